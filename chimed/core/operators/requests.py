"""Requests of operators that change something: checks first, then rows, operation, audit.

Rules: a refusal changes nothing and says what to do; a dry run takes the same checks and stops before the first
change; a request that is repeated with its key gets the saved answer; everything that could make two instances is
refused here before it can begin (drained nodes, missing evidence, locks, recovery after a restore).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from chimed.core.operators.checks import Done, RequestParts, check_comment
from chimed.core.operators.imports import ImportRequests
from chimed.core.operators.migrations import MigrationRequests
from chimed.core.operators.nodes import NodeRequests
from chimed.core.operators.queries import find_node, find_operation
from chimed.core.operators.vms import VmRequests
from chimed.core.rules import recovery
from chimed.core.state import rows as r
from chimed.core.work import migration, operations
from wire import messages as m
from wire.errors import ChimeError
from wire.types import AdminState, Desired, OperationState
from wire.words import OperationKind

WHILE_BEHIND = frozenset({m.RecoveryConfirm, m.AlarmAck, m.OperatorAdd, m.OperatorRemove, m.NodeAdd, m.NodeRekey})
"""What a database that is behind still takes: nothing that says what should become of a VM."""

_encoder = msgspec.msgpack.Encoder()


class Requests:
    """Every changing verb. Each method takes (body, actor, now)."""

    def __init__(self, parts: RequestParts) -> None:
        self._parts, self._ctx, self._facts, self._views = parts, parts.ctx, parts.facts, parts.views
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            **NodeRequests(parts).handlers,
            **VmRequests(parts).handlers,
            **ImportRequests(parts).handlers,
            **MigrationRequests(parts).handlers,
            m.OpCancel: self._op_cancel,
            m.AlarmAck: self._alarm_ack,
            m.OperatorAdd: self._operator_add,
            m.OperatorRemove: self._operator_remove,
            m.RecoveryConfirm: self._recovery_confirm,
        }

    def handle(self, body: m.Mutation, actor: str, now: float) -> Any:
        """The result of the request, saved under its key; a repeated key gets what was saved."""
        digest = hashlib.blake2b(type(body).__name__.encode() + _encoder.encode(body), digest_size=16).hexdigest()
        if not body.dry_run:
            saved = self._ctx.tables.answers.get(actor, body.key)
            if saved is not None and saved.digest != digest:
                raise ChimeError("key-conflict", "this idempotency key was used with another request")
            if saved is not None:
                return msgspec.msgpack.decode(saved.answer)
            if self._ctx.read_only:
                raise ChimeError("storage-unavailable", f"the server cannot record changes: {self._ctx.read_only}")
        if self._ctx.tables.meta.behind and type(body) not in WHILE_BEHIND:
            self._parts.settled()
        result = self._result(self.handlers[type(body)](body, actor, now), body.dry_run)
        if not body.dry_run:
            answer = r.Answer(
                operator=actor, key=body.key, digest=digest, answer=_encoder.encode(result), created=self._ctx.wall()
            )
            self._ctx.tables.answers.put(answer)
        return result

    def _result(self, done: Done, dry_run: bool) -> dict[str, Any]:
        op = self._ctx.tables.operations.get(done.operation.id) if done.operation and not dry_run else None
        return {
            "operation": self._views.operation(op) if op else None,
            "changed": done.changed and not dry_run,
            "warnings": done.warnings,
            "plan": done.plan,
            **done.extra,
        }

    # --- operations, alarms, operators --------------------------------------------------------------------------------

    def _op_cancel(self, body: m.OpCancel, actor: str, _now: float) -> Done:
        op = find_operation(self._ctx, body.id)
        if op.state != OperationState.RUNNING:
            return Done([f"{op.id} has ended already: {op.state}"], op, changed=False)
        if op.kind in (OperationKind.DELETE, OperationKind.RELEASE):
            what = "deletion" if op.kind == OperationKind.DELETE else "release"
            raise ChimeError("conflict", f"a {what} cannot be cancelled")
        plan = [f"cancels {op.id} ({op.label}); what it has done so far stays"]
        warnings = self._what_stays(op)
        if op.moving is not None:
            plan = [f"cancels {op.id} ({op.label}): nothing more begins, and it ends when what is under way is decided"]
        if not body.dry_run:
            self._ctx.audit(actor, "operation-cancelled", op.subject, f"{op.id}: {op.label}")
            if op.moving is not None:
                migration.cancel_operation(self._facts, op, actor)
            else:
                operations.cancel(self._ctx, op, f"cancelled by {actor}")
        return Done(plan, op, warnings=warnings)

    def _what_stays(self, op: r.Operation) -> list[str]:
        """What was asked for by the operation, and goes on to be wanted when nobody waits for it any more."""
        vm, node = self._ctx.tables.vms.get(op.subject), self._ctx.tables.nodes.get(op.subject)
        if op.kind == OperationKind.DRAIN and node is not None:
            return [f"{node.name} stays {node.admin_state}: chime-tool node enable {node.name} changes that"]
        if op.kind in (OperationKind.CREATE, OperationKind.START, OperationKind.STOP) and vm is not None:
            verb = "start" if vm.desired == Desired.STOPPED else "stop"
            return [f"the desired state of {vm.name} stays {vm.desired}: chime-tool vm {verb} {vm.name} changes it"]
        return []

    def _alarm_ack(self, body: m.AlarmAck, actor: str, _now: float) -> Done:
        alarm = self._ctx.tables.alarms.get(body.id)
        if alarm is None:
            raise ChimeError("not-found", f"there is no alarm {body.id}")
        if body.comment:
            check_comment(body.comment)
        if not body.dry_run:
            self._ctx.tables.alarms.put(msgspec.structs.replace(alarm, acked_by=actor, comment=body.comment))
            self._ctx.audit(actor, "alarm-acked", alarm.subject, f"{alarm.code}: {body.comment}".rstrip(": "))
        return Done([f"acknowledges alarm {alarm.id} ({alarm.code} {alarm.subject})"])

    def _operator_add(self, body: m.OperatorAdd, actor: str, _now: float) -> Done:
        if self._ctx.tables.operators.get(body.name):
            raise ChimeError("exists", f"operator {body.name} exists already")
        self._parts.new_key(body.public_key)
        if not body.dry_run:
            row = r.Operator(name=body.name, public_key=body.public_key, created=self._ctx.wall())
            self._ctx.tables.operators.put(row)
            self._ctx.audit(actor, "operator-added", body.name)
        return Done([f"adds operator {body.name}"], extra={"operator": body.name, "public_key": body.public_key})

    def _operator_remove(self, body: m.OperatorRemove, actor: str, _now: float) -> Done:
        row = self._ctx.tables.operators.get(body.name)
        if row is None:
            raise ChimeError("not-found", f"there is no operator {body.name}")
        if len(self._ctx.tables.operators) == 1:
            raise ChimeError("refused-unsafe", f"{body.name} is the last operator: nobody could command the server")
        if not body.dry_run:
            self._ctx.tables.operators.delete(row)
            self._ctx.audit(actor, "operator-removed", body.name)
        return Done([f"removes operator {body.name}; its key is refused from now on"])

    def _recovery_confirm(self, body: m.RecoveryConfirm, actor: str, _now: float) -> Done:
        check_comment(body.comment)
        about = recovery.at_hand(self._ctx)
        if body.about and body.about != about:
            text = "what waits for a word is not what this one was given for any more: look again"
            raise ChimeError("conflict", f"{text} (chime-tool recovery show)")
        done = self._recovery_word(body, actor)
        done.extra["about"] = about
        return done

    def _recovery_word(self, body: m.RecoveryConfirm, actor: str) -> Done:
        meta = self._ctx.tables.meta
        if meta.behind:
            return self._recovery_begin(body, actor)
        if not meta.recovering:
            return self._confirm_held(body, actor)
        names = ", ".join(meta.waiting_for)
        if not body.dry_run:
            self._ctx.audit(actor, "recovery-confirmed", "server", f"without {names}: {body.comment}")
            recovery.no_longer_waits_for(self._ctx, meta.waiting_for)
            self._parts.recovered()
        return Done([f"ends the recovery without a report of {names}: you attest that no VM runs there that the "
                     "restored database gives to another node", _ALL_KNOWN])  # fmt: skip

    def _recovery_begin(self, body: m.RecoveryConfirm, actor: str) -> Done:
        plan = [f"begins a recovery though not all nodes are heard, since {self._ctx.tables.meta.ahead_text}",
                "you attest that no other chimed gives orders with this key"]  # fmt: skip
        if not body.dry_run:
            self._ctx.audit(actor, "recovery-confirmed", "server", body.comment)
            self._parts.begin_recovery(f"{actor} says that no other server gives orders")
        return Done(plan)

    def _confirm_held(self, body: m.RecoveryConfirm, actor: str) -> Done:
        vms, nodes = recovery.held_vms(self._ctx), recovery.held_nodes(self._ctx)
        if not vms and not nodes:
            return Done(["the server is not recovering, and nothing waits for a word"], changed=False)
        plan = [_confirms(vm, find_node(self._ctx, vm.node)) for vm in vms]
        if any(vm.held == r.Held.START for vm in vms):
            plan.append(_ALL_KNOWN)
        plan += [f"drains {node.name}: its VMs are stopped" for node in nodes]
        if not body.dry_run:
            names = ", ".join([*(vm.name for vm in vms), *(node.name for node in nodes)])
            self._ctx.audit(actor, "recovery-confirmed", "server", f"{names}: {body.comment}")
            recovery.confirm_all(self._ctx)
        return Done(plan)


_ALL_KNOWN = (
    "you attest that every node that was added since the backup has been added again (chime-tool node add) and has "
    "reported: what its owner does not run may run there"
)
_DOES = {Desired.STOPPED: "stops", Desired.DELETED: "deletes", Desired.RUNNING: "starts"}


def _confirms(vm: r.Vm, node: r.Node) -> str:
    """What is done with a VM that was held, on its node."""
    if vm.held == r.Held.START and vm.desired == Desired.STOPPED:
        return f"leaves off, and takes to be nowhere else, {vm.name} on {node.name}"
    if vm.desired == Desired.RUNNING and node.admin_state == AdminState.DRAINED:
        return f"starts {vm.name} when {node.name}, which is drained, is enabled or rebuilt"
    return f"{_DOES[vm.desired]} {vm.name} on {node.name}"
