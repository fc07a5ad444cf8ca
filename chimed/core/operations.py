"""Durable long work: what each kind waits for, and how it ends. Decided from tables and reports, never from memory.

Because `progress` only compares what should be with what is, it may be called at any time and any number of times, also
after a restart in the middle. A VM's newer operation supersedes the older one; a node's operation locks the node.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chimed.core import inventory, placement
from chimed.core import rows as r
from chimed.core.context import Context
from chimed.core.sessions import Sessions
from wire import messages as m
from wire.types import AdminState, Desired, Observed, OperationState, Outcome, StepState, Storage

KEPT_PER_SUBJECT = 20


class Facts:
    """What operations look at besides the tables."""

    def __init__(self, ctx: Context, sessions: Sessions, is_live: Callable[[str], bool]) -> None:
        self.ctx, self.sessions, self.is_live = ctx, sessions, is_live

    def report(self, vm: r.Vm) -> m.VmReport | None:
        """What the owner reports of the VM in its present epoch, while the owner is heard from."""
        session = self.sessions.get(vm.node)
        if session is None or not self.is_live(vm.node):
            return None
        report = session.reports.get(vm.uuid)
        return report if report is not None and report.revision > 0 and report.epoch == vm.epoch else None

    def candidates(self) -> list[tuple[r.Node, placement.Room, bool]]:
        """All nodes as placement wants them."""
        tables, policy = self.ctx.tables, self.ctx.policy
        return [
            (node, placement.room_of(node, tables.vms.by("node", node.name), policy), self.in_session(node.name))
            for node in tables.nodes
        ]

    def in_session(self, node_name: str) -> bool:
        """The node's agent is in session and has reported."""
        session = self.sessions.get(node_name)
        return session is not None and session.reported and self.is_live(node_name)


# --- life of an operation ---------------------------------------------------------------------------------------------


def begin(
    ctx: Context, kind: str, subject: str, label: str, actor: str, steps: tuple[m.Step, ...], serial: int, timeout_s: float
) -> r.Operation:
    """A new operation, with an id and an audit line; its subject shows it."""
    meta = ctx.tables.meta
    ctx.tables.meta = msgspec.structs.replace(meta, next_operation=meta.next_operation + 1)
    op = r.Operation(
        id=f"op-{meta.next_operation}",
        number=meta.next_operation,
        kind=kind,
        subject=subject,
        label=label,
        state=OperationState.RUNNING,
        steps=steps,
        actor=actor,
        created=ctx.wall(),
        timeout_s=timeout_s,
        serial=serial,
    )
    ctx.tables.operations.put(op)
    ctx.cause = op.id
    ctx.audit(actor, f"{kind}-requested", subject, label)
    _point(ctx, op, running=True)
    _forget_old(ctx, subject)
    return op


def _point(ctx: Context, op: r.Operation, running: bool) -> None:
    """Shows the operation at its subject. For a node it is the lock."""
    vm, node = ctx.tables.vms.get(op.subject), ctx.tables.nodes.get(op.subject)
    current = op.id if running else ""
    if vm is not None:
        if vm.operation not in ("", op.id) and running:
            older = ctx.tables.operations.get(vm.operation)
            if older is not None and older.state == OperationState.RUNNING:
                _end(ctx, older, OperationState.CANCELLED, f"superseded by {op.id} ({op.kind})", point=False)
        if running or vm.operation == op.id:
            ctx.tables.vms.put(msgspec.structs.replace(vm, operation=current, last_operation=op.id))
    elif node is not None and (running or node.lock == op.id):
        ctx.tables.nodes.put(msgspec.structs.replace(node, lock=current, last_operation=op.id))


def succeed(ctx: Context, op: r.Operation, outcome: str) -> None:
    """Ends the operation well."""
    _end(ctx, op, OperationState.SUCCEEDED, outcome)


def fail(ctx: Context, op: r.Operation, outcome: str) -> None:
    """Ends the operation badly."""
    _end(ctx, op, OperationState.FAILED, outcome)


def cancel(ctx: Context, op: r.Operation, outcome: str) -> None:
    """Ends the operation because somebody wants it so."""
    _end(ctx, op, OperationState.CANCELLED, outcome)


_STEP_AT_END: dict[OperationState, StepState] = {
    OperationState.SUCCEEDED: StepState.DONE,
    OperationState.FAILED: StepState.FAILED,
    OperationState.CANCELLED: StepState.SKIPPED,
}
_OPEN_STEPS = frozenset({StepState.PENDING, StepState.RUNNING, StepState.WAITING})


def _end(ctx: Context, op: r.Operation, state: OperationState, outcome: str, point: bool = True) -> None:
    steps = tuple(
        msgspec.structs.replace(s, state=_STEP_AT_END[state]) if s.state in _OPEN_STEPS else s for s in op.steps
    )
    ended = msgspec.structs.replace(op, state=state, outcome=outcome, ended=ctx.wall(), steps=steps)
    ctx.tables.operations.put(ended)
    ctx.cause = op.id
    ctx.audit("chimed", f"{op.kind}-{state}", op.subject, f"{op.label}: {outcome}")
    ctx.log("info" if state == OperationState.SUCCEEDED else "warning", f"{op.id} {op.label}: {state}: {outcome}")
    for command in [c for c in ctx.tables.commands if c.operation == op.id]:
        ctx.tables.commands.delete(command)
    if point:
        _point(ctx, ended, running=False)


def _forget_old(ctx: Context, subject: str) -> None:
    ops = ctx.tables.operations.by("subject", subject)
    ended = [op for op in ops if op.state != OperationState.RUNNING]
    for op in sorted(ended, key=lambda o: o.number)[: max(0, len(ops) - KEPT_PER_SUBJECT)]:
        ctx.tables.operations.delete(op)


def note_result(ctx: Context, node_name: str, result: m.CommandResult) -> None:
    """A command ended on its node; its operation ends with it."""
    command = ctx.tables.commands.get(result.id)
    if command is None or command.node != node_name:
        return
    ctx.tables.commands.delete(command)
    op = ctx.tables.operations.get(command.operation)
    if op is None or op.state != OperationState.RUNNING:
        return
    if result.outcome == Outcome.DONE:
        succeed(ctx, op, "done")
    else:
        fail(ctx, op, f"{result.outcome}: {result.detail}" if result.detail else str(result.outcome))


# --- progress ---------------------------------------------------------------------------------------------------------


def progress(facts: Facts, op: r.Operation) -> None:
    """Ends the operation if what it waits for is true, or takes its next step."""
    facts.ctx.cause = op.id
    _PROGRESS[op.kind](facts, op)
    facts.ctx.cause = None


def _progress_start(facts: Facts, op: r.Operation) -> None:
    vm = facts.ctx.tables.vms.get(op.subject)
    if vm is None or vm.desired == Desired.DELETED:
        fail(facts.ctx, op, "the VM was deleted")
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
    if report.problem == "start-failed":
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
        succeed(facts.ctx, op, f"no VM runs on {node.name} (evidence: {node.evidence})")
    elif not facts.is_live(node.name):
        succeed(
            facts.ctx,
            op,
            f"{node.name} is set to drained, but its agent cannot be heard: nothing proves that its VMs are stopped",
        )
    else:
        session = facts.sessions.get(node.name)
        left = sorted(
            facts.ctx.vm_name(uuid)
            for uuid, report in (session.reports.items() if session else ())
            if report.observed not in (Observed.STOPPED, Observed.FAILED)
        )
        _show_step(facts.ctx, op, f"{len(left)} VMs left: {', '.join(left[:10])}" if left else "being verified")


def _show_step(ctx: Context, op: r.Operation, detail: str) -> None:
    if op.steps[0].detail != detail:
        step = msgspec.structs.replace(op.steps[0], detail=detail)
        ctx.tables.operations.put(msgspec.structs.replace(op, steps=(step, *op.steps[1:])))


# --- rebuild ----------------------------------------------------------------------------------------------------------


def rebuild_steps(vms: list[r.Vm]) -> tuple[m.Step, ...]:
    """One step for each VM of the node; those with local disks are said to stay."""
    steps = []
    for vm in sorted(vms, key=lambda v: v.name):
        if vm.spec.storage == Storage.LOCAL:
            text = f"not rebuilt: its disks are local to {vm.node}, its data is there and nowhere else"
            steps.append(m.Step(name=vm.uuid, state=StepState.SKIPPED, detail=text))
        elif vm.desired != Desired.DELETED:
            steps.append(m.Step(name=vm.uuid, state=StepState.PENDING, detail="to be placed"))
    return tuple(steps)


def _progress_rebuild(facts: Facts, op: r.Operation) -> None:
    node = facts.ctx.tables.nodes.get(op.subject)
    unsafe = node is None or node.admin_state != AdminState.DRAINED or node.drain_serial != op.serial
    if node is None or unsafe or node.evidence is None:
        fail(facts.ctx, op, f"the evidence that {op.subject} runs none of its VMs was withdrawn; nothing more is moved")
        return
    steps = tuple(_rebuild_step(facts, op, node, step) for step in op.steps)
    if steps != op.steps:
        op = msgspec.structs.replace(op, steps=steps)
        facts.ctx.tables.operations.put(op)
    if not any(step.state in _OPEN_STEPS for step in steps):
        _end_rebuild(facts.ctx, op)


def _rebuild_step(facts: Facts, op: r.Operation, node: r.Node, step: m.Step) -> m.Step:
    if step.state not in _OPEN_STEPS:
        return step
    vm = facts.ctx.tables.vms.get(step.name)
    if vm is None or vm.desired == Desired.DELETED:
        return msgspec.structs.replace(step, state=StepState.SKIPPED, detail="deleted meanwhile")
    if vm.node == op.subject:
        return _place(facts, op, node, vm, step)
    report = facts.report(vm)
    if report is None:
        return step
    if report.observed == Observed.FAILED:
        return msgspec.structs.replace(step, state=StepState.FAILED, detail=f"on {vm.node}: {report.detail}")
    arrived = Observed.RUNNING if vm.desired == Desired.RUNNING else Observed.STOPPED
    if report.observed == arrived:
        return msgspec.structs.replace(step, state=StepState.DONE, detail=f"{arrived} on {vm.node}")
    return step


def _place(facts: Facts, op: r.Operation, node: r.Node, vm: r.Vm, step: m.Step) -> m.Step:
    others = [c for c in facts.candidates() if c[0].name != node.name]
    choice = placement.choose(vm.spec, others)
    if choice.node is None:
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=f"no room: {choice.why_not()}")
    inventory.move(facts.ctx, vm, choice.node, f"{op.id}, evidence {node.evidence}")
    return msgspec.structs.replace(step, state=StepState.RUNNING, detail=f"on {choice.node}")


def _end_rebuild(ctx: Context, op: r.Operation) -> None:
    count = {state: sum(step.state == state for step in op.steps) for state in StepState}
    parts = [f"{count[StepState.DONE]} rebuilt"]
    if count[StepState.SKIPPED]:
        parts.append(f"{count[StepState.SKIPPED]} left where they are")
    if count[StepState.FAILED]:
        failed = [ctx.vm_name(step.name) for step in op.steps if step.state == StepState.FAILED]
        fail(ctx, op, f"{', '.join(parts)}, {len(failed)} failed: {', '.join(failed[:10])}")
    else:
        succeed(ctx, op, ", ".join(parts))


_PROGRESS: dict[str, Callable[[Facts, r.Operation], None]] = {
    "create": _progress_start,
    "start": _progress_start,
    "stop": _progress_stop,
    "delete": _progress_delete,
    "reboot": _progress_reboot,
    "drain": _progress_drain,
    "rebuild": _progress_rebuild,
}
"""What each kind of operation waits for."""


def overdue(op: r.Operation) -> str | None:
    """What to say when the operation has taken longer than its time-out; None: it may wait on (for room)."""
    if op.kind == "rebuild" and any(step.state in (StepState.WAITING, StepState.PENDING) for step in op.steps):
        return None
    left = "; ".join(step.detail for step in op.steps if step.state in _OPEN_STEPS and step.detail)
    return f"not done within {op.timeout_s:g} s" + (f": {left}" if left else "")
