"""After a restore: until every node has told what it holds, nobody starts anything and no VM changes its owner.

The database is behind then: it may give a VM to a node that lost it since the backup. So inventories carry `hold`,
which the agents' guard obeys; running VMs go on. The hold ends with the last report, or with an operator's word for the
nodes that cannot report.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chimed.core import rows as r
from chimed.core.context import Context


def begun(meta: r.Meta, present: int, names: Iterable[str]) -> r.Meta:
    """The restored `meta` as it counts from now on: a generation above its own and that of the database which is
    replaced (`present`), and all nodes to wait for."""
    return msgspec.structs.replace(meta, generation=max(meta.generation, present) + 1, waiting_for=tuple(names))


def no_longer_waits_for(ctx: Context, names: Iterable[str]) -> bool:
    """These nodes have reported, are gone, or were attested for. True when that ends the recovery: every agent is
    told to go on."""
    meta, gone = ctx.tables.meta, set(names)
    rest = tuple(name for name in meta.waiting_for if name not in gone)
    if rest == meta.waiting_for:
        return False
    ctx.tables.meta = msgspec.structs.replace(meta, waiting_for=rest)
    if rest:
        return False
    ctx.audit("chimed", "recovered", "server", "no node is waited for any more")
    for node in list(ctx.tables.nodes):
        ctx.bump(node.name)
    return True
