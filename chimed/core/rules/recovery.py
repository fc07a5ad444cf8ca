"""After a restore: until every node has told what it holds, nothing is started, stopped or moved; owners follow what
the nodes show.

The database is behind then: it may give a VM to a node that lost it since the backup, or want a VM stopped that was
started since. So inventories carry `hold`, which the agents obey; running VMs go on. The hold ends with the last
report, or with an operator's word for the nodes that cannot report. What the database then still wants to stop, to
drain, to delete, or to start although its node gave it up, waits on for a person's word (`Held`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from chimed.core.rules import behind
from chimed.core.rules.alarms import ALIVE
from chimed.core.rules.evidence import OFF
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.rows import Held
from chimed.core.state.turn import Context
from wire.messages import VmReport
from wire.text import counted
from wire.types import AdminState, Desired, Observed, Severity
from wire.words import ALARMS, AlarmCode, Problem

_WANTS = {Desired.STOPPED: Held.STOP, Desired.DELETED: Held.DELETE, Desired.RUNNING: Held.NOTHING}
IN_WORDS = {
    Held.STOP: "the restored database wants it stopped",
    Held.DELETE: "the restored database wants it deleted",
    Held.START: "since the backup its node gave it up or began anew: it may run on a node that this database does not "
    "know (chime-tool node add, before you confirm)",
}
_CERTAIN = {Held.STOP: OFF, Held.START: ALIVE}
"""What the owner says of a VM that is held, for nobody to be asked any more."""


# --- how it begins ----------------------------------------------------------------------------------------------------


def begun(meta: r.Meta, present: int, names: Iterable[str], history: str) -> r.Meta:
    """The restored `meta` as it counts from now on: a generation above its own and that of the database which is
    replaced (`present`), with a history of its own, and all nodes to wait for."""
    generation = max(meta.generation, present, meta.ahead) + 1
    return msgspec.structs.replace(
        meta, generation=generation, history=history, waiting_for=tuple(names), ahead=0, ahead_text=""
    )


def held_vm(vm: r.Vm) -> r.Vm:
    """The VM's row as it counts after a restore."""
    if vm.held == Held.START and vm.desired != Desired.DELETED:
        return vm  # nobody has said yet where it is
    return msgspec.structs.replace(vm, held=_WANTS[vm.desired])


def held_node(node: r.Node) -> r.Node:
    """The node's row as it counts after a restore: what was evidence when the backup was taken is none now."""
    node = msgspec.structs.replace(node, restored=True)
    if node.admin_state != AdminState.DRAINED:
        return node
    return msgspec.structs.replace(node, held=True, evidence=None, evidence_boot_id="", evidence_comment="")


def may_begin(facts: Facts) -> bool:
    """Whether the database is behind, and every node is there to say what it has: then no other server has them."""
    tables = facts.ctx.tables
    return tables.meta.behind and all(facts.is_live(node.name) for node in tables.nodes)


def begin(ctx: Context, why: str) -> None:
    """A database that is behind counts as restored from now on. The caller ends all sessions, so that agents hear of
    the new generation."""
    tables = ctx.tables
    tables.meta = begun(tables.meta, tables.meta.ahead, sorted(node.name for node in tables.nodes), ctx.token())
    for vm in list(tables.vms):
        tables.vms.put(held_vm(vm))
    for node in list(tables.nodes):
        tables.nodes.put(held_node(node))
    ctx.audit("chimed", "recovery-begun", behind.SERVER, f"generation {tables.meta.generation}: {why}")
    ctx.log("warning", f"recovery begins in generation {tables.meta.generation}: {why}")
    behind.sync_alarm(ctx)


def why_holding(ctx: Context) -> str:
    """Why nothing is started, stopped or moved now, in words; empty: it may be."""
    meta = ctx.tables.meta
    if meta.behind:
        return f"this database is behind: {meta.ahead_text} (chime-tool recovery show)"
    if not meta.recovering:
        return ""
    return (
        "the database was restored or put back: nothing is started, stopped or moved until every node has reported; "
        f"{awaited(ctx)}"
    )


def awaited(ctx: Context) -> str:
    """Who has not reported since the restore, and where more is said."""
    return f"awaited: {', '.join(ctx.tables.meta.waiting_for[:10])} (chime-tool recovery show)"


# --- how it ends ------------------------------------------------------------------------------------------------------


def no_longer_waits_for(ctx: Context, names: Iterable[str]) -> bool:
    """These nodes have reported, are gone, or were attested for. True when that ends the recovery: every agent is
    told to go on."""
    meta, gone = ctx.tables.meta, set(names)
    rest = tuple(name for name in meta.waiting_for if name not in gone)
    if rest == meta.waiting_for:
        return False
    for name in gone:
        ctx.meeting.met(name)
    ctx.tables.meta = msgspec.structs.replace(meta, waiting_for=rest)
    if rest:
        return False
    ctx.audit("chimed", "recovered", "server", "no node is waited for any more")
    ctx.log("info", "the recovery is over: no node is waited for any more")
    for node in list(ctx.tables.nodes):
        ctx.bump(node.name)
    return True


# --- what waits for a person ------------------------------------------------------------------------------------------


def held_vms(ctx: Context) -> list[r.Vm]:
    """VMs with which nothing is done before a person has confirmed it, by name."""
    return sorted((vm for what in IN_WORDS for vm in ctx.tables.vms.by("held", what)), key=lambda vm: vm.name)


def held_nodes(ctx: Context) -> list[r.Node]:
    """Nodes that are not drained before a person has confirmed it, by name."""
    return sorted(ctx.tables.nodes.by("held", True), key=lambda node: node.name)


def wants(vm: r.Vm) -> str:
    """What a person's word does with a VM that is held: `stop`, `delete`, `start`, or `stop` for one that is off and
    stays off."""
    return _WANTS[vm.desired] or Held.START


def at_hand(ctx: Context) -> str:
    """A name for what waits for a person's word now, for a word to say what it is about; empty: nothing. While it
    recovers fewer and fewer nodes are waited for: the same word covers them."""
    meta = ctx.tables.meta
    if meta.holding:
        return f"{'behind' if meta.behind else 'recovering'}-{meta.generation}"
    held = [*((vm.uuid, str(vm.held)) for vm in held_vms(ctx)), *((node.name, "drain") for node in held_nodes(ctx))]
    return f"held-{hashlib.blake2b(repr(held).encode(), digest_size=8).hexdigest()}" if held else ""


def settle_vm(facts: Facts, vm: r.Vm) -> None:
    """What need not be asked is not held: its owner says that it does not run. Who the owner is, is certain only when
    the recovery is over."""
    report = facts.report(vm) if not facts.ctx.tables.meta.holding else None
    if report is not None and report.observed in _CERTAIN.get(vm.held, ()):
        _audit_settled(facts.ctx, vm.uuid, f"{vm.node} reports that it is {report.observed}")
        confirm_vm(facts.ctx, vm)


def hello(node: r.Node, begins_anew: bool) -> r.Node:
    """The node's agent says hello, for the first time since a restore or not. `begins_anew`: in another boot than the
    database knows, or without what it was given: it knows only what the database says. Who goes on declines by
    itself what it does not have any more."""
    if not node.restored:
        return node
    begins_anew = begins_anew or node.fresh
    return msgspec.structs.replace(node, fresh=begins_anew, restored=begins_anew)


def is_looked_through(facts: Facts, node: r.Node) -> bool:
    """Whether a node that has begun anew since a restore has looked at its host, and told of every VM whether it runs
    there. What it does not speak of does not run there, as far as it knows."""
    if not node.restored:
        return True
    if facts.ctx.tables.meta.holding or not facts.in_session(node.name):
        return False
    said = [facts.said(node.name, vm.uuid) for vm in facts.ctx.tables.vms.by("node", node.name)]
    return not any(report is not None and _is_yet_unknown(report) for report in said)


def _is_yet_unknown(report: VmReport) -> bool:
    return report.observed == Observed.UNKNOWN and report.problem != Problem.MIGRATED_AWAY


def settle_node(facts: Facts, node: r.Node) -> None:
    """A drain that stops nothing need not be asked for."""
    session = facts.sessions.get(node.name)
    if not node.held or session is None or not facts.in_session(node.name):
        return
    if all(report.observed in OFF for report in session.reports.values()):
        _audit_settled(facts.ctx, node.name, "nothing of it runs any more")
        confirm_node(facts.ctx, node)


def _audit_settled(ctx: Context, subject: str, why: str) -> None:
    """Told once a person may have seen it in the list; what is settled with the end of the recovery is no news."""
    if ctx.alarm_active(AlarmCode.RECOVERY_HELD, behind.SERVER):
        ctx.audit("chimed", "recovery-settled", subject, f"it is held no more: {why}")


def confirm_vm(ctx: Context, vm: r.Vm) -> None:
    """What the database wants of the VM, which is held, counts again."""
    ctx.tables.vms.put(msgspec.structs.replace(vm, held=Held.NOTHING, revision=ctx.bump(vm.node)))
    release = ctx.tables.releases.get(vm.node, vm.uuid)
    if release is not None:  # it was held back, and comes with a revision that is later than what the agent has
        ctx.tables.releases.put(msgspec.structs.replace(release, revision=ctx.bump(vm.node)))
    sync_alarm(ctx)


def confirm_node(ctx: Context, node: r.Node) -> None:
    """What the database wants of the node, which is held, counts again."""
    ctx.tables.nodes.put(msgspec.structs.replace(node, held=False))
    ctx.bump(node.name)
    sync_alarm(ctx)


def confirm_all(ctx: Context) -> None:
    """A person wants everything that the restored database says."""
    for vm in held_vms(ctx):
        confirm_vm(ctx, vm)
    for node in held_nodes(ctx):
        confirm_node(ctx, node)


def sync_alarm(ctx: Context) -> None:
    """The alarm is there while something waits for a person and no node is waited for."""
    tables = ctx.tables
    vms = sum(tables.vms.count_by("held", what) for what in IN_WORDS)
    nodes = tables.nodes.count_by("held", True)
    off = tables.vms.count_by("held", Held.START)
    held = f"{counted(vms, 'VM')} and {counted(nodes, 'node')} wait for a person's word"
    stay = f", and {counted(off, 'VM')} of them stay off until then" if off else ""
    text = f"{held}{stay}: the restored database may be wrong about them (chime-tool recovery show)"
    waits, code = bool(vms or nodes) and not tables.meta.holding, AlarmCode.RECOVERY_HELD
    severity = Severity.CRITICAL if off else ALARMS[code].severity or Severity.WARNING
    wanted = {code: (severity, text)} if waits else {}
    ctx.sync_alarms(behind.SERVER, wanted, frozenset({code}))
