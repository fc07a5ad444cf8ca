"""The life of an attempt to migrate a VM: begun, cancelled, decided.

Rules: an attempt is decided by the word of its source alone, or by a copy that runs while the source is lost; never by
time, and never by the result of its command while the source says that the VM is leaving or has left. The VM's row
names the attempt while it is open, so that its agent starts nothing. A beginning or a decision and its traces (the
commands, the operation's step, the new owner) are one turn.
"""

from __future__ import annotations

import msgspec

from chimed.core.rules import arrivals, evidence, ownership
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire import messages as m
from wire.types import AdminState, MigrationPhase, StepState
from wire.words import CommandKind


def begin(ctx: Context, op: r.Operation, vm: r.Vm, attempt: str, target: str, address: str) -> r.Migration:
    """Gives the order to the VM's node. The command comes before the new assignment, which names it."""
    assert op.moving is not None
    options = op.moving.options
    row = r.Migration(
        uuid=vm.uuid,
        attempt=attempt,
        source=vm.node,
        target=target,
        epoch=vm.epoch,
        operation=op.id,
        address=address,
        options=options,
    )
    ctx.tables.migrations.put(row)
    order = m.MigrationOrder(target=target, address=address, options=options)
    _command(ctx, row, attempt, CommandKind.MIGRATE, migration=order)
    ctx.tables.vms.put(msgspec.structs.replace(vm, attempt=attempt, revision=ctx.bump(vm.node)))
    ctx.counters["migrations-begun"] += 1
    ctx.audit("chimed", "migration-begun", vm.uuid, f"{vm.node} -> {target} by {address}, attempt {attempt}")
    return row


def cancel(ctx: Context, row: r.Migration) -> None:
    """Asks the source to give up. What it has not been told yet it is not told any more."""
    _withdraw(ctx, row)
    ctx.tables.migrations.put(msgspec.structs.replace(row, cancelled=True))
    node = ctx.tables.nodes.get(row.source)
    assert node is not None  # it owns the VM
    _command(ctx, row, f"{row.attempt}-c{node.revision}", CommandKind.CANCEL_MIGRATION, attempt=row.attempt)


def _command(
    ctx: Context, row: r.Migration, command_id: str, kind: CommandKind, attempt: str = "",
    migration: m.MigrationOrder | None = None,
) -> None:  # fmt: skip
    ctx.tables.commands.put(
        r.Command(
            id=command_id,
            node=row.source,
            uuid=row.uuid,
            epoch=row.epoch,
            kind=kind,
            force=False,
            revision=ctx.bump(row.source),
            timeout_s=ctx.policy.command_timeout_s,
            operation=row.operation,
            attempt=attempt,
            migration=migration,
        )
    )


def _withdraw(ctx: Context, row: r.Migration) -> None:
    for command in ctx.tables.commands.by("operation", row.operation):
        if command.uuid == row.uuid:
            ctx.tables.commands.delete(command)


def decide(facts: Facts, row: r.Migration) -> None:
    """Closes the attempt if its source's word decides it; may be asked at any time."""
    ctx, vm = facts.ctx, facts.ctx.tables.vms.get(row.uuid)
    if vm is None or (vm.node, vm.epoch) != (row.source, row.epoch):
        _close(ctx, row, StepState.FAILED, "something else decided where the VM is")
        return
    said = arrivals.word(facts, row.uuid, row.epoch, row.attempt)
    if said is not None and said.phase == MigrationPhase.LEFT:
        arrive(ctx, vm, row.target, row.attempt, f"{row.source} says that it has left")
    elif said is not None and said.phase == MigrationPhase.FAILED:
        stays(ctx, row, said.detail)
    elif said is None and row.refused and facts.in_session(row.source):
        stays(ctx, row, row.refused)


def stays(ctx: Context, row: r.Migration, why: str) -> None:
    """The source has kept the VM."""
    why = why or "no reason was given"
    if row.cancelled:
        _close(ctx, row, StepState.SKIPPED, f"cancelled: it stays on {row.source} ({why})", r.StepEnd.CANCELLED)
    else:
        ctx.counters["migrations-failed"] += 1
        _close(ctx, row, StepState.FAILED, why)


def arrive(ctx: Context, vm: r.Vm, target: str, attempt: str, why: str, runs: bool = False) -> None:
    """The copy on `target` is the VM from now on. One that does not run (`runs`) waits for the end of the recovery
    after a restore: a node that has not reported yet may have the VM in a later epoch."""
    if ctx.tables.meta.holding and not runs:
        return
    row = ctx.tables.migrations.get(vm.uuid)
    if row is not None and (row.attempt, row.target) == (attempt, target):
        ctx.counters["migrations-left"] += 1
        _close(ctx, row, StepState.RUNNING, f"left {vm.node}: {target} takes it over")
    elif row is not None:
        _close(ctx, row, StepState.FAILED, f"it was migrated to {target} by somebody else")
    vm = ctx.tables.vms.get(vm.uuid) or vm
    evidence.drained_again(ctx, target, vm)
    ownership.move(ctx, vm, target, f"migrated: {why}" + (f" (attempt {attempt})" if attempt else ""), attempt)


def give_up(facts: Facts, row: r.Migration) -> str:
    """The source is lost, and proven not to run the VM: before it is placed anew its target must have no copy of it. A
    copy that runs there is the VM, so that it has to tell all that it has first. Returns what is awaited, or nothing
    when the attempt is closed."""
    ctx, vm = facts.ctx, facts.ctx.tables.vms.get(row.uuid)
    target = ctx.tables.nodes.get(row.target)
    assert vm is not None and target is not None  # both are kept while the attempt is open
    is_drained = target.admin_state == AdminState.DRAINED and target.evidence is not None
    is_proven = is_drained and not facts.is_live(target.name)
    if not row.asked and not is_proven and _has_looked(facts, row):
        ownership.release(ctx, row.target, vm, row.epoch)
        ctx.tables.migrations.put(msgspec.structs.replace(row, asked=True))
    if is_proven or (row.asked and ctx.tables.releases.get(row.target, row.uuid) is None):
        stays(ctx, row, f"{row.source} was lost before it had left")
        return ""
    asked = "it is asked to remove it" if facts.in_session(row.target) else "it is not heard"
    return f"{row.target} may have a copy that was being migrated: {asked}"


def _has_looked(facts: Facts, row: r.Migration) -> bool:
    """Whether the target has told all that it has since it was asked for this attempt."""
    session = facts.sessions.get(row.target)
    if session is None or not facts.in_session(row.target):
        return False
    if row.attempt not in session.looks_for:
        session.looks_for.add(row.attempt)
        session.full_wanted = True
    return not session.full_wanted


def _close(
    ctx: Context, row: r.Migration, state: StepState, detail: str, end: r.StepEnd | None = None
) -> None:
    _withdraw(ctx, row)
    ctx.tables.migrations.delete(row)
    vm = ctx.tables.vms.get(row.uuid)
    if vm is not None and vm.attempt == row.attempt:
        ctx.tables.vms.put(msgspec.structs.replace(vm, attempt="", revision=ctx.bump(vm.node)))
    if state != StepState.RUNNING:
        ctx.audit("chimed", "migration-ended", row.uuid, f"{row.source} -> {row.target}: {detail}")
    op = ctx.tables.operations.get(row.operation)
    assert op is not None  # it does not end before
    steps = tuple(
        msgspec.structs.replace(s, state=state, detail=detail, end=end) if s.name == row.uuid else s for s in op.steps
    )
    ctx.tables.operations.put(msgspec.structs.replace(op, steps=steps))
