"""Whose word counts for what (docs/trust.md). Pure.

Rules: a node speaks of what the tables give to it: VMs that it owns, attempts whose source or target it is, releases
that it holds. Of anything else it speaks only with a proof that this server, or one with its key and another
database, gave it the VM (a seal), or that the VM's owner sent it there (a voucher). What has neither is a sighting:
it may be shown, and it moves, ends and holds up nothing.
"""

from __future__ import annotations

from chimed.core.rules import networks
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire import seals
from wire.addresses import ip
from wire.messages import MigrationReport, VmReport


def was_given(ctx: Context, node_name: str, report: VmReport) -> bool:
    """Whether the node shows that it was given the VM in the epoch that it reports."""
    return seals.fits(report.seal, seals.of_assignment(ctx.seal_key, report.uuid, report.epoch, node_name))


def is_ours(ctx: Context, report: VmReport, nodes: list[str]) -> bool:
    """Whether the VM was given to any of the `nodes` in the epoch that is reported: a copy bears its owner's seal."""
    return any(was_given(ctx, node, report) for node in nodes)


def speaks_for(ctx: Context, vm: r.Vm | None, node_name: str, report: VmReport) -> bool:
    """Whether the node speaks as an owner: the present one, or that of another epoch with its seal."""
    return (vm is not None and vm.node == node_name) or was_given(ctx, node_name, report)


def was_sent(ctx: Context, node_name: str, report: VmReport, owner: str) -> bool:
    """Whether a copy on the node comes from the `owner` in the epoch that it reports: Chime's own copies have a voucher
    for this target, those that a person has made still bear the owner's seal."""
    if owner == node_name:
        return False  # nobody sends a VM to itself
    said = report.migration
    right = seals.of_assignment(ctx.seal_key, report.uuid, report.epoch, owner)
    if said is None or not said.attempt:
        return seals.fits(report.seal, right)
    if not seals.fits(said.voucher, seals.voucher(right, said.attempt, said.address)):
        return False
    node, address = ctx.tables.nodes.get(node_name), ip(said.address)
    return node is not None and address is not None and address in networks.addresses(node)


def is_target(ctx: Context, node_name: str, source: str, said: MigrationReport) -> bool:
    """Whether the source names this node as where the VM has left to, in words that mean one node."""
    target = networks.other_node_at(ctx.tables.nodes, said.peer, source)
    return target is not None and target.name == node_name
