"""Migrate and evacuate: VMs go to other nodes, one step for each.

Rules: a VM that runs is migrated live, within the limits of its nodes and the cluster; one that its agent reports as
stopped is given to the target at once; one with local disks goes only live and only when that was asked for. The
operation does not end while an attempt is undecided. Decided from tables and reports only: it may be asked at any time.
"""

from __future__ import annotations

import msgspec

from chimed.core.rules import arrivals, networks, ownership, placement, recovery
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import attempts, imports
from chimed.core.work.operations import OPEN_STEPS, cancel, fail, succeed
from wire import messages as m
from wire.errors import ChimeError
from wire.text import counted
from wire.types import AdminState, Desired, Observed, StepState, Storage, VirtType
from wire.words import OperationKind, Problem

PASSING = frozenset({Observed.STOPPED, Observed.CRASHED})
"""What a VM that should run is seen as for a moment: its agent is about to start it."""


# --- what a VM needs --------------------------------------------------------------------------------------------------


def is_live(facts: Facts, vm: r.Vm) -> bool:
    """Whether the VM runs, and is migrated; else it is stopped, and moved. Raises `ChimeError` when it is neither."""
    report = facts.report(vm) if facts.in_session(vm.node) else None
    if report is None:
        raise ChimeError("node-unreachable", f"{vm.name} is on {vm.node}, which has not told how it is")
    if said := arrivals.leaving(report):
        raise ChimeError("locked", f"{vm.name} is being migrated to {said.peer}, by an order on {vm.node}")
    if imports.is_pending(report):
        raise ChimeError("locked", f"{vm.name} is imported, and {vm.node} has not taken it over: {report.detail}")
    if vm.desired == Desired.RUNNING and report.observed == Observed.RUNNING:
        return True
    if report.revision >= vm.revision and _stays_off(vm, report):
        return False
    raise ChimeError(
        "refused-unsafe",
        f"{vm.name} should be {vm.desired} and is {report.observed}: only a VM that runs, or is known to be stopped, "
        "can be migrated",
    )


def _stays_off(vm: r.Vm, report: m.VmReport) -> bool:
    """Whether the agent says that the VM is off, that no start of it is under way, and that it tries none."""
    if vm.desired == Desired.STOPPED:
        return report.observed == Observed.STOPPED and not report.problem
    return report.observed == Observed.FAILED and report.problem == Problem.CRASH_LOOP


def local_disks(vm: r.Vm, live: bool, options: m.MigrationOptions) -> str | None:
    """Why the VM's disks keep it where it is, or None."""
    if vm.spec.storage != Storage.LOCAL or (live and options.local_disks):
        return None
    if not live:
        return f"its disks are local to {vm.node}, and it is stopped: they are copied only while it runs"
    return f"its disks are local to {vm.node}: give --with-local-disks to copy them"


def choose(facts: Facts, vm: r.Vm, live: bool, moving: r.Moving) -> tuple[str, str]:
    """The target for a VM, and its address (empty for one that is not live). Raises `ChimeError` when there is none."""
    objections: dict[str, str] = {}
    candidates = []
    for candidate in facts.candidates(without=vm.node):
        node = candidate[0]
        if moving.to not in ("", node.name):
            continue
        why = _objection(facts, vm, node, moving) if live else None
        if why is None:
            candidates.append(candidate)
        else:
            objections[node.name] = why
    choice = placement.choose(vm.spec, candidates)
    if choice.node is None:
        why_not = placement.Choice(None, {**objections, **choice.objections}).why_not()
        raise ChimeError("no-room", f"no node can take {vm.name}: {why_not}")
    target = facts.ctx.tables.nodes.get(choice.node)
    assert target is not None
    return target.name, (networks.address_on(target, moving.network) or "") if live else ""


def _objection(facts: Facts, vm: r.Vm, node: r.Node, moving: r.Moving) -> str | None:
    source = facts.ctx.tables.nodes.get(vm.node)
    if vm.spec.virt_type == VirtType.AUTO and source is not None and source.kvm and not node.kvm:
        return "has no KVM, which it runs by"
    if networks.address_on(node, moving.network) is None:
        return f"has no address on the network {moving.network}"
    release = facts.ctx.tables.releases.get(node.name, vm.uuid)
    if release is not None and release.epoch >= vm.epoch:
        return "has still to remove another copy of it"
    return None


def steps_for(facts: Facts, vms: list[r.Vm], options: m.MigrationOptions) -> tuple[r.Step, ...]:
    """One step for each VM that is not being deleted, the most important first; some stay, and it is said why."""
    steps = []
    for vm in sorted(vms, key=lambda v: (-v.spec.priority, v.name)):
        report = facts.report(vm)
        live = vm.desired == Desired.RUNNING and not (report is not None and report.observed == Observed.FAILED)
        if why := local_disks(vm, live, options):
            steps.append(r.Step(name=vm.uuid, state=StepState.SKIPPED, detail=why))
        elif vm.desired != Desired.DELETED:
            steps.append(r.Step(name=vm.uuid, state=StepState.PENDING, detail="waits for its turn"))
    return tuple(steps)


# --- the operation ----------------------------------------------------------------------------------------------------


def progress(facts: Facts, op: r.Operation) -> None:
    """Decides what can be decided, begins what may begin, and ends the operation when no step is left."""
    for row in facts.ctx.tables.migrations.by("operation", op.id):
        attempts.decide(facts, row)
    for number in range(len(op.steps)):
        current = facts.ctx.tables.operations.get(op.id)
        assert current is not None
        before = current.steps[number]
        step = _step(facts, current, number, before)
        if step != before:
            steps = (*current.steps[:number], step, *current.steps[number + 1 :])
            facts.ctx.tables.operations.put(msgspec.structs.replace(current, steps=steps))
    current = facts.ctx.tables.operations.get(op.id)
    if current is not None and not any(step.state in OPEN_STEPS for step in current.steps):
        _end(facts.ctx, current)


def concerns(facts: Facts, op: r.Operation, node_name: str) -> bool:
    """Whether news of this node can change anything about the operation before the next sweep."""
    assert op.moving is not None
    if op.moving.source == node_name:
        return True
    if any(row.target == node_name for row in facts.ctx.tables.migrations.by("operation", op.id)):
        return True
    vms = (facts.ctx.tables.vms.get(step.name) for step in op.steps if step.state == StepState.RUNNING)
    return any(vm is not None and vm.node == node_name for vm in vms)


def cancel_operation(facts: Facts, op: r.Operation, actor: str) -> None:
    """Somebody wants it to end: what has not begun does not begin, what is under way is asked to stop. It ends when all
    is decided."""
    assert op.moving is not None
    moving = msgspec.structs.replace(op.moving, cancelled_by=actor)
    op = msgspec.structs.replace(op, moving=moving)
    facts.ctx.tables.operations.put(op)
    for row in facts.ctx.tables.migrations.by("operation", op.id):
        attempts.cancel(facts.ctx, row)
    progress(facts, op)


def _step(facts: Facts, op: r.Operation, number: int, step: r.Step) -> r.Step:
    assert op.moving is not None
    if step.state not in OPEN_STEPS:
        return step
    vm, row = facts.ctx.tables.vms.get(step.name), facts.ctx.tables.migrations.get(step.name)
    if vm is None or vm.desired == Desired.DELETED:
        return _as(step, StepState.SKIPPED, "deleted meanwhile")
    if row is not None and row.operation == op.id:
        return step
    if step.state == StepState.RUNNING:
        return _arriving(facts, vm, step)
    if op.moving.cancelled_by:
        return _as(step, StepState.SKIPPED, f"cancelled: by {op.moving.cancelled_by}", r.StepEnd.CANCELLED)
    if vm.node != op.moving.source:
        return _as(step, StepState.SKIPPED, f"is on {vm.node} meanwhile")
    if row is not None:
        return _as(step, StepState.WAITING, f"is being migrated to {row.target} ({row.operation})")
    return _next(facts, op, number, vm, step)


def _as(step: r.Step, state: StepState, detail: str, end: r.StepEnd | None = None) -> r.Step:
    return msgspec.structs.replace(step, state=state, detail=detail, end=end)


def _arriving(facts: Facts, vm: r.Vm, step: r.Step) -> r.Step:
    """The VM has a new owner, which has to say that it is there."""
    report = facts.report(vm)
    if report is None:
        return step
    if report.observed == Observed.FAILED and vm.desired == Desired.RUNNING:
        return _as(step, StepState.FAILED, f"on {vm.node}: {report.detail}")
    there = Observed.RUNNING if vm.desired == Desired.RUNNING else Observed.STOPPED
    if report.observed != there:
        return step
    detail = step.detail if step.end == r.StepEnd.MOVED else f"migrated to {vm.node}"
    return _as(step, StepState.DONE, detail, step.end)


def _next(facts: Facts, op: r.Operation, number: int, vm: r.Vm, step: r.Step) -> r.Step:
    """Its turn, if it has one."""
    assert op.moving is not None
    ctx, report = facts.ctx, facts.report(vm)
    node = ctx.tables.nodes.get(vm.node)
    if node is None or (node.admin_state == AdminState.DRAINED and vm.desired == Desired.RUNNING):
        return _as(step, StepState.SKIPPED, f"{vm.node} was drained")
    if ctx.tables.meta.holding:
        return _as(step, StepState.WAITING, "until the recovery after a restore is over")
    if vm.held != r.Held.NOTHING:
        return _as(step, StepState.SKIPPED, recovery.IN_WORDS[vm.held])
    if report is None:
        return _as(step, StepState.WAITING, f"{vm.node} is not heard")
    if vm.desired == Desired.RUNNING and report.observed in PASSING:
        return _as(step, StepState.WAITING, f"is {report.observed}: its agent is about to start it")
    try:
        live = is_live(facts, vm)
        if why := local_disks(vm, live, op.moving.options):
            return _as(step, StepState.SKIPPED, why)
        if live and (why := _busy(ctx, vm.node)):
            return _as(step, StepState.PENDING, why)
        target, address = choose(facts, vm, live, op.moving)
    except ChimeError as error:
        state = StepState.WAITING if error.retriable else StepState.FAILED
        return _as(step, state, error.message)
    if not live and not facts.has_met_all():
        return _as(step, StepState.WAITING, "until every node was heard or judged since the server's start")
    if not live:
        ownership.move(ctx, vm, target, f"{op.id}: {vm.node} says that it is stopped")
        return _as(step, StepState.RUNNING, f"moved (stopped) to {target}", r.StepEnd.MOVED)
    if why := _busy(ctx, target):
        return _as(step, StepState.PENDING, why)
    suffix = f"-{number}" if op.kind == OperationKind.EVACUATE else ""
    attempts.begin(ctx, op, vm, f"{op.id}-{ctx.tables.meta.generation}{suffix}", target, address)
    return _as(step, StepState.RUNNING, f"to {target}")


def _busy(ctx: Context, node_name: str) -> str | None:
    """Why another migration cannot begin there now, or None."""
    rows = ctx.tables.migrations
    if len(rows) >= ctx.policy.migrations_per_cluster:
        return f"waits for its turn: {counted(len(rows), 'migration is', 'migrations are')} under way"
    count = rows.count_by("source", node_name) + rows.count_by("target", node_name)
    if count >= ctx.policy.migrations_per_node:
        return f"waits for its turn: {counted(count, 'migration')} of {node_name} under way"
    return None


def _end(ctx: Context, op: r.Operation) -> None:
    assert op.moving is not None
    done = [step for step in op.steps if step.state == StepState.DONE]
    failed = [f"{ctx.vm_name(s.name)} ({s.detail})" for s in op.steps if s.state == StepState.FAILED]
    kept = [ctx.vm_name(s.name) for s in op.steps if s.state == StepState.SKIPPED]
    is_cancelled = any(step.end == r.StepEnd.CANCELLED for step in op.steps)
    if op.kind == OperationKind.MIGRATE:
        outcome = op.steps[0].detail
        if kept and not is_cancelled:
            failed = kept
    else:
        moved = sum(step.end == r.StepEnd.MOVED for step in done)
        parts = [f"{len(done) - moved} migrated"]
        parts += [f"{moved} moved (stopped)"] if moved else []
        parts += [f"{len(kept)} left in place: {', '.join(kept[:10])}"] if kept else []
        parts += [f"{len(failed)} failed: {', '.join(failed[:10])}"] if failed else []
        outcome = ", ".join(parts)
    end = cancel if is_cancelled else fail if failed else succeed
    end(ctx, op, outcome)


# --- how it is shown --------------------------------------------------------------------------------------------------


def shown(facts: Facts, step: r.Step) -> m.Step:
    """The step with how far its migration is, as its source says now."""
    row = facts.ctx.tables.migrations.get(step.name)
    if row is None or step.state != StepState.RUNNING:
        return step.view()
    report = facts.said(row.source, row.uuid)
    if report is None:
        text = f"{row.source} is not heard: whether it has left cannot be told before it is"
        return msgspec.structs.replace(step.view(), detail=text)
    said = report.migration if report.migration is not None and report.migration.attempt == row.attempt else None
    progress_ = said.progress if said is not None else None
    parts = [f"to {row.target}"]
    if progress_ is not None:
        parts.append(
            f"{progress_.remaining_mib} of {progress_.total_mib} MiB left, {progress_.rate_mib_s} MiB/s, "
            f"iteration {progress_.iteration}, {progress_.downtime_ms} ms"
        )
    if said is not None and said.detail:
        parts.append(said.detail)
    text = ("cancelling; " if row.cancelled else "") + ": ".join(parts)
    return msgspec.structs.replace(step.view(), detail=text, progress=progress_)


def share(step: m.Step) -> float:
    """How much of a step is done, from 0 to 1."""
    if step.state not in OPEN_STEPS:
        return 1.0
    if step.progress is None or not step.progress.total_mib:
        return 0.0
    return max(0.0, 1 - step.progress.remaining_mib / step.progress.total_mib) * 0.99
