"""What all changing requests share: what they answer, how they begin an operation, and common refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from chimed.core.operators.queries import find_node
from chimed.core.operators.views import Views
from chimed.core.rules import arrivals, recovery
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import operations
from wire.errors import ChimeError
from wire.types import Desired, OperationState
from wire.words import OperationKind


class Done(Struct):
    """What a request did, or would do."""

    plan: list[str]
    operation: r.Operation | None = None
    changed: bool = True
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class RequestParts:
    """The parts of the core that requests use. `watch(op, now)` minds an operation's time-out; `forget_node(name)` ends
    all that is known of a node besides its row; `recovered()` looks again at what was said in a recovery;
    `begin_recovery(why)` begins one."""

    def __init__(
        self,
        ctx: Context,
        facts: Facts,
        views: Views,
        watch: Callable[[r.Operation, float], None],
        forget_node: Callable[[str], None],
        recovered: Callable[[], None],
        begin_recovery: Callable[[str], None],
    ) -> None:
        self.ctx, self.facts, self.views = ctx, facts, views
        self.watch, self.forget_node, self.recovered = watch, forget_node, recovered
        self.begin_recovery = begin_recovery

    def begin(
        self, kind: OperationKind, subject: str, label: str, actor: str, steps: tuple[r.Step, ...], serial: int,
        now: float, timeout_s: float = 0.0, moving: r.Moving | None = None,
    ) -> r.Operation:  # fmt: skip
        """A new operation, watched."""
        op = operations.begin(
            self.ctx, kind, subject, label, actor, steps, serial,
            timeout_s or self.ctx.policy.operation_timeout_s, moving,
        )  # fmt: skip
        self.watch(op, now)
        return op

    def unlocked(self, node: r.Node) -> None:
        """Raises `ChimeError` locked while an operation holds the node."""
        if node.lock:
            op = self.ctx.tables.operations.get(node.lock)
            kind = op.kind if op else "operation"
            raise ChimeError(
                "locked", f"{node.name} is locked by {kind} {node.lock}: wait for it (chime-tool op wait {node.lock})"
            )

    def decided(self, vm: r.Vm) -> None:
        """Raises `ChimeError` locked while the VM is being migrated or imported."""
        op = self.ctx.tables.operations.get(vm.operation)
        if op is not None and op.kind == OperationKind.IMPORT and op.state == OperationState.RUNNING:
            raise ChimeError("locked", f"{vm.name} is being imported: wait for it (chime-tool op wait {op.id})")
        row = self.ctx.tables.migrations.get(vm.uuid)
        if row is not None:
            raise ChimeError(
                "locked",
                f"{vm.name} is being migrated to {row.target}: wait for it (chime-tool op wait {row.operation}) or "
                f"cancel it (chime-tool op cancel {row.operation})",
            )

    def here(self, vm: r.Vm) -> None:
        """Raises `ChimeError` locked while its node says that it leaves or has left, and it has no new owner yet."""
        report = self.facts.said(vm.node, vm.uuid)
        if said := arrivals.leaving(report) or arrivals.gone(vm, report):
            raise ChimeError(
                "locked",
                f"{vm.name} is being migrated away from {vm.node} to {said.peer or 'another node'}, by an order on the "
                "node: try again when its new node is known",
            )

    def commandable(self, vm: r.Vm) -> r.Node:
        """The node of a VM that takes commands now. Raises `ChimeError` else."""
        node = find_node(self.ctx, vm.node)
        self.decided(vm)
        if vm.desired == Desired.DELETED and vm.held != r.Held.DELETE:
            raise ChimeError("conflict", f"{vm.name} is being deleted")
        if node.lock:
            op = self.ctx.tables.operations.get(node.lock)
            if op is not None and op.kind != OperationKind.DRAIN:
                self.unlocked(node)
        if not self.facts.is_live(node.name):
            state = f"{node.health}" + (f" ({', '.join(node.reasons)})" if node.reasons else "")
            if not self.facts.is_lost(node):
                state = "it has no session with the server yet"
            raise ChimeError("node-unreachable", f"{vm.name} is on {node.name}, which takes no commands now: {state}")
        return node

    def settled(self) -> None:
        """Raises `ChimeError` recovering after a restore until all nodes have reported."""
        why = recovery.why_holding(self.ctx)
        if why:
            raise ChimeError("recovering", why)

    def all_met(self) -> None:
        """Raises `ChimeError` recovering until every node has reported, or was judged, since the server's start."""
        if not self.facts.has_met_all():
            names = ", ".join(self.ctx.meeting.unmet()[:10])
            text = f"the server has just started, and {names} may have such a VM: wait until every node has reported"
            raise ChimeError("recovering", f"{text}, or is judged not to be heard")

    def confirmed(self, vm: r.Vm) -> None:
        """Raises `ChimeError` recovering while a person has to confirm what a restored database wants of the VM."""
        if vm.held != r.Held.NOTHING:
            text = f"{vm.name} is held: {recovery.IN_WORDS[vm.held]}"
            raise ChimeError("recovering", f"{text}. Start, stop or delete it, or see chime-tool recovery show")

    def revived(self, vm: r.Vm) -> r.Vm:
        """The VM as a person wants it who starts or stops it: what a restored database wanted counts no more."""
        if vm.held != r.Held.DELETE:
            return msgspec.structs.replace(vm, held=r.Held.NOTHING)
        release = self.ctx.tables.releases.get(vm.node, vm.uuid)
        if release is not None:
            self.ctx.tables.releases.delete(release)
        return msgspec.structs.replace(vm, held=r.Held.NOTHING, epoch=self.ctx.next_epoch(vm))

    def new_key(self, public_key: str) -> None:
        """Raises `ChimeError` exists when somebody has this key."""
        tables = self.ctx.tables
        owner = tables.nodes.first("public_key", public_key) or tables.operators.first("public_key", public_key)
        if owner is not None:
            raise ChimeError("exists", f"this public key belongs to {owner.name} already")


def check_comment(text: str) -> None:
    """Raises `ChimeError` invalid when nothing is to be read there."""
    if not text.strip():
        raise ChimeError("invalid", "the comment is empty: say how you know, or what is being done")


def names_of(vms: list[r.Vm]) -> str:
    """The first names, in one line."""
    names = sorted(vm.name for vm in vms)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
