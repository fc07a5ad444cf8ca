"""The life of durable long work: how an operation begins, shows at its subject, and ends. `progress` says what each
kind waits for.

A VM's newer operation supersedes the older one; a node's operation locks the node. The error that ended it
is its `code`; peers see it before the outcome ("node-unreachable: ..."): the exit code of a tool that waits.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire import messages as m
from wire.types import OperationState, Outcome, StepState
from wire.words import CommandKind, OperationKind

KEPT_PER_SUBJECT = 20
OF_ATTEMPTS = (CommandKind.MIGRATE, CommandKind.CANCEL_MIGRATION)
"""Kinds of commands whose results end no operation: the attempt is decided by what its source says."""


def begin(
    ctx: Context,
    kind: OperationKind,
    subject: str,
    label: str,
    actor: str,
    steps: tuple[r.Step, ...],
    serial: int,
    timeout_s: float,
    moving: r.Moving | None = None,
) -> r.Operation:
    """A new operation, with an id and an audit line; its subject shows it."""
    meta = ctx.tables.meta
    ctx.tables.meta = msgspec.structs.replace(meta, next_operation=meta.next_operation + 1)
    op = r.Operation(
        id=f"op-{meta.next_operation}",
        number=meta.next_operation,
        kind=kind,
        subject=subject,
        name=ctx.vm_name(subject),
        label=label,
        state=OperationState.RUNNING,
        steps=steps,
        actor=actor,
        created=ctx.wall(),
        timeout_s=timeout_s,
        serial=serial,
        moving=moving,
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


def fail(ctx: Context, op: r.Operation, outcome: str, code: str = "") -> None:
    """Ends the operation badly. `code`: of an error of `wire.errors`."""
    _end(ctx, msgspec.structs.replace(op, code=code), OperationState.FAILED, outcome)


def cancel(ctx: Context, op: r.Operation, outcome: str) -> None:
    """Ends the operation because somebody wants it so."""
    _end(ctx, op, OperationState.CANCELLED, outcome)


class Failure(NamedTuple):
    """Why an operation failed. `code`: the error of `wire.errors`, if it is one of those."""

    outcome: str
    code: str = ""


TRANSITIONS: dict[OperationState, dict[OperationState, str]] = {
    OperationState.RUNNING: {
        OperationState.SUCCEEDED: "what it waits for is true",
        OperationState.FAILED: "it cannot become true, or the time is over",
        OperationState.CANCELLED: "cancelled by an operator, or superseded by a newer one",
    },
    OperationState.SUCCEEDED: {},
    OperationState.FAILED: {},
    OperationState.CANCELLED: {},
}
"""Every change of state that there is, and why."""

_STEP_AT_END: dict[OperationState, StepState] = {
    OperationState.SUCCEEDED: StepState.DONE,
    OperationState.FAILED: StepState.FAILED,
    OperationState.CANCELLED: StepState.SKIPPED,
}
OPEN_STEPS = frozenset({StepState.PENDING, StepState.RUNNING, StepState.WAITING})


def _end(ctx: Context, op: r.Operation, state: OperationState, outcome: str, point: bool = True) -> None:
    assert state in TRANSITIONS[op.state], f"{op.id}: {op.state} -> {state}"
    steps = tuple(
        msgspec.structs.replace(s, state=_STEP_AT_END[state]) if s.state in OPEN_STEPS else s for s in op.steps
    )
    ended = msgspec.structs.replace(op, state=state, outcome=outcome, ended=ctx.wall(), steps=steps)
    ctx.tables.operations.put(ended)
    cause, ctx.cause = ctx.cause, op.id
    ctx.audit("chimed", f"{op.kind}-{state}", op.subject, f"{op.label}: {ended.told}")
    ctx.log("info" if state == OperationState.SUCCEEDED else "warning", f"{op.id} {op.label}: {state}: {ended.told}")
    for command in ctx.tables.commands.by("operation", op.id):
        ctx.tables.commands.delete(command)
    if point:
        _point(ctx, ended, running=False)
    ctx.cause = cause


def _forget_old(ctx: Context, subject: str) -> None:
    ops = ctx.tables.operations.by("subject", subject)
    ended = [op for op in ops if op.state != OperationState.RUNNING]
    for op in sorted(ended, key=lambda o: o.number)[: max(0, len(ops) - KEPT_PER_SUBJECT)]:
        ctx.tables.operations.delete(op)


def note_result(ctx: Context, node_name: str, result: m.CommandResult) -> None:
    """A command ended on its node; its operation ends with it, if it is not one of a migration."""
    if result.outcome != Outcome.DONE:
        _note_refusal(ctx, node_name, result)
    command = ctx.tables.commands.get(result.id)
    if command is None or command.node != node_name:
        return
    ctx.tables.commands.delete(command)
    if command.kind in OF_ATTEMPTS:
        return
    op = ctx.tables.operations.get(command.operation)
    if op is None or op.state != OperationState.RUNNING:
        return
    if result.outcome == Outcome.DONE:
        succeed(ctx, op, "done")
    else:
        fail(ctx, op, f"{result.outcome}: {result.detail}" if result.detail else str(result.outcome))


def _note_refusal(ctx: Context, node_name: str, result: m.CommandResult) -> None:
    """The order to migrate came to nothing, if its node does not say otherwise (`attempts.decide`). It may have been
    withdrawn meanwhile."""
    for row in ctx.tables.migrations.by("source", node_name):
        if row.attempt == result.id:
            refused = f"{result.outcome}: {result.detail}" if result.detail else str(result.outcome)
            ctx.tables.migrations.put(msgspec.structs.replace(row, refused=refused))
