"""Why a node or VM is as it is, in sentences for the person who was woken. Pure; reads the same facts as the
decisions."""

from __future__ import annotations

from chimed.core.operators.views import Views
from chimed.core.rules import arrivals, evidence, recovery
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire.text import counted
from wire.types import AdminState, Desired, Health, Observed, Storage


def node_lines(ctx: Context, facts: Facts, views: Views, node: r.Node, now: float) -> list[str]:
    """The state of a node and what it means."""
    view = views.node(node, now)
    age = f"{view.last_heartbeat_age_s:.0f} s ago" if view.last_heartbeat_age_s is not None else _not_heard(node)
    reasons = f" ({', '.join(view.reasons)})" if view.reasons else ""
    lines = [f"{node.name} is {node.admin_state} and {node.health}{reasons}; last heartbeat: {age}."]
    if holding := recovery.why_holding(ctx):
        lines.append(f"The server decides nothing for now: {holding}.")
    if node.held:
        lines.append("The restored database wants it drained: a person has to confirm that (chime-tool recovery show).")
    lines += [f"Fault {fault.code} ({fault.severity}): {fault.text}" for fault in view.faults]
    why = views.why_not_schedulable(node, facts.room(node))
    lines.append(f"No new VM is placed here: it {why}." if why else "New VMs may be placed here.")
    deaf = "the server decides nothing for now" if holding else "its agent is not heard"
    lines.append("Its VMs take commands." if view.commandable else f"Its VMs take no commands: {deaf}.")
    if node.health == Health.UNREACHABLE:
        lines.append("Its VMs may still be running: ping and heartbeats prove nothing about them.")
    if node.lock:
        lines.append(f"Locked by operation {node.lock}.")
    lines += _drain_lines(ctx, node)
    return lines


def _not_heard(node: r.Node) -> str:
    return "never" if node.health == Health.UNKNOWN else "none yet since the server's start"


def _drain_lines(ctx: Context, node: r.Node) -> list[str]:
    if node.admin_state != AdminState.DRAINED:
        return []
    if why := _why_no_rebuild(ctx, node):
        return [f"Rebuild is refused: {why}."]
    waiting = ctx.tables.releases.count_by("node", node.name)
    lines = [f"Rebuild is possible: evidence {node.evidence} {node.evidence_comment}".rstrip() + "."]
    if waiting:
        moved = counted(waiting, "VM that was", "VMs that were")
        lines.append(f"{moved} moved away will be removed from it when it comes back.")
    return lines


def _why_no_rebuild(ctx: Context, node: r.Node) -> str:
    if ctx.tables.meta.holding:
        return "nothing is moved before the recovery is over"
    if node.held:
        return (
            f"confirm first that it is to be drained (chime-tool node drain {node.name}, or recovery confirm for all "
            f"that is held), or open it (chime-tool node enable {node.name})"
        )
    return "" if node.evidence else evidence.missing(node)


def vm_lines(ctx: Context, facts: Facts, views: Views, vm: r.Vm) -> list[str]:
    """The state of a VM and what it means."""
    view = views.vm(vm)
    lines = [f"{vm.name} should be {vm.desired}; it is {view.observed} on its owner {vm.node} (epoch {vm.epoch})."]
    if view.detail:
        lines.append(f"Detail: {view.detail}.")
    node = ctx.tables.nodes.get(vm.node)
    if node is not None and vm.desired == Desired.RUNNING and view.observed != Observed.RUNNING:
        lines += _why_not_running(facts, node, view.observed, vm.held != r.Held.NOTHING)
    if vm.spec.storage == Storage.LOCAL:
        lines.append("It has local disks: it cannot be rebuilt on another node.")
    lines += _whereabouts(ctx, facts, vm)
    for release in ctx.tables.releases.by("uuid", vm.uuid):
        lines.append(f"{release.node} has not yet confirmed that it removed epoch {release.epoch}.")
    if vm.operation:
        lines.append(f"Operation {vm.operation} is under way.")
    return lines


def _whereabouts(ctx: Context, facts: Facts, vm: r.Vm) -> list[str]:
    """What is known of migrations: of one that is under way, and of copies on other nodes."""
    lines = []
    row, report = ctx.tables.migrations.get(vm.uuid), facts.said(vm.node, vm.uuid)
    if row is not None:
        lines.append(f"It is being migrated to {row.target} by {row.address} ({row.operation}, attempt {row.attempt}).")
        if row.cancelled:
            lines.append(f"{row.source} was asked to give that up.")
        if report is None:
            lines.append(f"{row.source} is not heard: only it can tell whether the VM has left.")
            lines.append(f"If {row.source} does not come back: drain it, and rebuild it.")
    elif left := arrivals.gone(vm, report):
        lines.append(f"{vm.node} says that it has left for {left.peer}: a report from there is awaited.")
        lines.append("If it runs nowhere: chime-tool vm start --evidence operator.")
    for session, seen in facts.sessions.sightings(vm.uuid):
        if session.node != vm.node and arrivals.mark(seen):
            lines.append(f"{session.node} has a copy that a migration brought ({seen.observed}).")
    return lines


def _why_not_running(facts: Facts, node: r.Node, observed: Observed, held: bool) -> list[str]:
    if not facts.is_live(node.name):
        return [f"{node.name} is not heard ({node.health}): whether the VM runs cannot be told."]
    is_drained = node.admin_state == AdminState.DRAINED
    if held or node.held or facts.ctx.tables.meta.holding:
        lines = ["Nothing is started or stopped here for now: see `chime-tool recovery show`."]
        after = f"When that is over: {node.name} is drained, rebuild or enable it."
        return [*lines, after] if is_drained and not node.held else lines
    if is_drained:
        return [f"{node.name} is drained: nothing is started there. Rebuild or enable the node."]
    if observed == Observed.FAILED:
        return ["It failed: mend the cause, then `chime-tool vm start` tries again."]
    if observed == Observed.PAUSED:
        return ["It is paused: nobody resumes it but a person (virsh resume on its node)."]
    if observed == Observed.UNKNOWN:
        return ["Its agent cannot tell whether it runs: nothing is started before that is known."]
    return ["Its agent is about to start it."]
