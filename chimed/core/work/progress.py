"""What each kind of operation waits for. Decided from tables and reports, never from memory.

Because `progress` only compares what should be with what is, it may be called at any time and any number of times, also
after a restart in the middle.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chimed.core.rules.evidence import OFF
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import imports, migration, rebuild
from chimed.core.work.operations import OPEN_STEPS, Failure, cancel, fail, succeed
from wire import messages as m
from wire.text import counted
from wire.types import AdminState, Desired, Observed, StepState
from wire.words import OperationKind, Problem


def progress(facts: Facts, op: r.Operation) -> None:
    """Ends the operation if what it waits for is true, or takes its next step."""
    cause, facts.ctx.cause = facts.ctx.cause, op.id
    _PROGRESS[op.kind](facts, op)
    facts.ctx.cause = cause


def _progress_start(facts: Facts, op: r.Operation) -> None:
    vm = facts.ctx.tables.vms.get(op.subject)
    if vm is None or vm.desired == Desired.DELETED:
        fail(facts.ctx, op, "the VM was deleted")
        return
    node = facts.ctx.tables.nodes.get(vm.node)
    if node is not None and node.admin_state == AdminState.DRAINED and vm.desired == Desired.RUNNING:
        fail(facts.ctx, op, f"{node.name} was drained: nothing is started there", code="refused-unsafe")
        return
    report = facts.report(vm)
    if report is None:
        return
    if vm.desired == Desired.STOPPED:
        _progress_stopped_create(facts, op, vm, report)
    elif report.start_serial >= op.serial and report.observed == Observed.RUNNING:
        succeed(facts.ctx, op, f"running on {vm.node}")
    elif report.start_serial >= op.serial and report.observed == Observed.FAILED:
        fail(facts.ctx, op, report.detail or "failed")


def _progress_stopped_create(facts: Facts, op: r.Operation, vm: r.Vm, report: m.VmReport) -> None:
    if report.start_serial < op.serial or report.revision < vm.revision:
        return
    if report.problem == Problem.START_FAILED:
        fail(facts.ctx, op, report.detail)
    elif report.observed == Observed.STOPPED:
        halted = "; its guest powered itself off" if report.halted else ""
        succeed(facts.ctx, op, f"stopped on {vm.node}{halted}")


def _progress_stop(facts: Facts, op: r.Operation) -> None:
    vm = facts.ctx.tables.vms.get(op.subject)
    if vm is None:
        succeed(facts.ctx, op, "the VM is gone")
        return
    report = facts.report(vm)
    off = (Observed.STOPPED, Observed.FAILED)
    if report is not None and report.revision >= op.serial and report.observed in off:
        succeed(facts.ctx, op, f"stopped on {vm.node}")


def _progress_delete(facts: Facts, op: r.Operation) -> None:
    if facts.ctx.tables.vms.get(op.subject) is None:
        succeed(facts.ctx, op, "deleted; its disks are untouched")


def _progress_reboot(_facts: Facts, _op: r.Operation) -> None:
    """Ends with its command's result."""


def _progress_drain(facts: Facts, op: r.Operation) -> None:
    node = facts.ctx.tables.nodes.get(op.subject)
    if node is None or node.admin_state != AdminState.DRAINED or node.drain_serial != op.serial:
        cancel(facts.ctx, op, "the node is not drained any more")
    elif node.evidence is not None:
        succeed(facts.ctx, _show_step(facts.ctx, op, ""), f"no VM runs on {node.name} (evidence: {node.evidence})")
    elif facts.is_lost(node):
        fail(facts.ctx, op, unheard(node), code="node-unreachable")
    elif facts.ctx.tables.meta.holding:
        _show_step(facts.ctx, op, "waits for the recovery to end (chime-tool recovery show)")
    elif facts.in_session(node.name):
        _show_step(facts.ctx, op, _left(facts, node))


def unheard(node: r.Node) -> str:
    """What a drain says of a node that cannot be heard."""
    return (
        f"{node.name} is set to drained and starts nothing when it comes back, but its agent cannot be heard: nothing "
        "proves that its VMs are stopped"
    )


def _left(facts: Facts, node: r.Node) -> str:
    session = facts.sessions.get(node.name)
    reports = session.reports if session else {}
    left = sorted(facts.ctx.vm_name(uuid) for uuid, report in reports.items() if report.observed not in OFF)
    return f"{counted(len(left), 'VM')} left: {', '.join(left[:10])}" if left else "being verified"


def _show_step(ctx: Context, op: r.Operation, detail: str) -> r.Operation:
    if op.steps[0].detail != detail:
        step = msgspec.structs.replace(op.steps[0], detail=detail)
        op = msgspec.structs.replace(op, steps=(step, *op.steps[1:]))
        ctx.tables.operations.put(op)
    return op


_PROGRESS: dict[OperationKind, Callable[[Facts, r.Operation], None]] = {
    OperationKind.CREATE: _progress_start,
    OperationKind.START: _progress_start,
    OperationKind.STOP: _progress_stop,
    OperationKind.DELETE: _progress_delete,
    OperationKind.IMPORT: imports.progress_import,
    OperationKind.RELEASE: imports.progress_release,
    OperationKind.REBOOT: _progress_reboot,
    OperationKind.DRAIN: _progress_drain,
    OperationKind.REBUILD: rebuild.progress,
    OperationKind.MIGRATE: migration.progress,
    OperationKind.EVACUATE: migration.progress,
}
"""What each kind of operation waits for."""

_CONCERNS: dict[OperationKind, Callable[[Facts, r.Operation, str], bool]] = {
    OperationKind.REBUILD: rebuild.concerns,
    OperationKind.MIGRATE: migration.concerns,
    OperationKind.EVACUATE: migration.concerns,
}
WIDE = tuple(_CONCERNS)
"""Kinds of operations that wait for more nodes than one; the time of each step begins when the last one changed."""


def concerns(facts: Facts, op: r.Operation, node_name: str) -> bool:
    """Whether news of this node can change anything about the wide operation before the next sweep."""
    return _CONCERNS[op.kind](facts, op, node_name)


def overdue(facts: Facts, op: r.Operation) -> Failure | None:
    """What to say when the operation has taken longer than its time-out; None: it may wait on (for room)."""
    if op.kind in WIDE and any(step.state in (StepState.WAITING, StepState.PENDING) for step in op.steps):
        return None
    if facts.ctx.tables.migrations.by("operation", op.id):
        return None
    left = "; ".join(step.detail for step in op.steps if step.state in OPEN_STEPS and step.detail)
    text = f"not done within {op.timeout_s:g} s" + (f": {left}" if left else "")
    vm = facts.ctx.tables.vms.get(op.subject)
    if vm is not None and not facts.is_live(vm.node):
        is_reboot = op.kind == OperationKind.REBOOT
        late = "does not reboot it later" if is_reboot else "follows the request when it comes back"
        return Failure(f"{text}; {vm.node} is not heard, and {late}", code="node-unreachable")
    return Failure(text)
