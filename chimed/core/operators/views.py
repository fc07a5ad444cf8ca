"""Rows as operators see them. Pure: derived from tables, sessions and liveness; nothing is cached."""

from __future__ import annotations

import msgspec

from chimed.core.rules import arrivals, placement, recovery
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import migration
from wire import messages as m
from wire.types import Desired, Observed


class Views:
    """Builds views. `now` in monotonic seconds."""

    def __init__(self, ctx: Context, facts: Facts) -> None:
        self._ctx, self._facts, self._liveness = ctx, facts, facts.liveness

    def vm(self, vm: r.Vm) -> m.VmView:
        """A VM. What its node last said counts only while the node is heard."""
        report = self._facts.report(vm)
        detail = (report.detail if report else "") or self._whereabouts(vm)
        return m.VmView(
            name=vm.name,
            uuid=vm.uuid,
            node=vm.node,
            epoch=vm.epoch,
            desired=vm.desired,
            observed=report.observed if report else Observed.UNKNOWN,
            storage=vm.spec.storage,
            restarts=report.restarts if report else 0,
            vcpus=vm.spec.vcpus,
            memory_mib=vm.spec.memory_mib,
            operation=vm.operation or None,
            detail=detail,
        )

    def _whereabouts(self, vm: r.Vm) -> str:
        """What is to be said of a VM besides what its owner's agent says."""
        row = self._ctx.tables.migrations.get(vm.uuid)
        if vm.held != r.Held.NOTHING:
            return f"held until a person confirms: {recovery.IN_WORDS[vm.held]}"
        if not self._facts.is_live(vm.node):
            return f"{vm.node} is not heard" + (f"; it was being migrated to {row.target}" if row else "")
        if row is not None:
            return f"is being migrated to {row.target}"
        left = arrivals.gone(vm, self._facts.said(vm.node, vm.uuid))
        return f"{vm.node} says that it has left for {left.peer}: no node has reported it there" if left else ""

    def node(self, node: r.Node, now: float) -> m.NodeView:
        """A node."""
        session = self._facts.sessions.get(node.name)
        vms = self._ctx.tables.vms.by("node", node.name)
        room = self._facts.room(node)
        live = self._facts.is_live(node.name)
        age = self._liveness.age_s(node.name, now)
        return m.NodeView(
            name=node.name,
            admin_state=node.admin_state,
            health=node.health,
            reasons=list(node.reasons),
            drain_evidence=node.evidence,
            operation=node.lock or None,
            last_operation=node.last_operation or None,
            vms=sum(vm.desired != Desired.DELETED for vm in vms),
            vms_running=self._running(vms) if live else 0,
            last_heartbeat_age_s=round(age, 3) if age is not None else None,
            schedulable=self.why_not_schedulable(node, room) is None,
            commandable=live and not self._ctx.tables.meta.holding,
            address=node.ping_address or node.address or None,
            vcpus=room.vcpus,
            memory_mib=room.memory_mib,
            vcpus_used=room.vcpus_used,
            memory_used_mib=room.memory_used_mib,
            cpu_percent=session.load.cpu_percent if session else 0.0,
            boot_id=node.boot_id or None,
            agent_version=node.agent_version,
            faults=list(session.faults) if session and live else [],
            public_key=node.public_key,
        )

    def _running(self, vms: list[r.Vm]) -> int:
        reports = (self._facts.report(vm) for vm in vms)
        return sum(report is not None and report.observed == Observed.RUNNING for report in reports)

    def why_not_schedulable(self, node: r.Node, room: placement.Room) -> str | None:
        """Why no VM at all can be placed on the node, or None."""
        why = placement.closed(node, self._facts.in_session(node.name))
        if why is None and self._ctx.tables.meta.holding:
            why = "waits for the recovery (chime-tool recovery show)"
        if why is None and (room.memory_used_mib >= room.memory_mib or room.vcpus_used >= room.vcpus):
            why = "has no room left"
        return why

    def operation(self, op: r.Operation) -> m.OperationView:
        """An operation; steps that name a VM by UUID show its name."""
        shown = [migration.shown(self._facts, step) for step in op.steps]
        steps = [msgspec.structs.replace(step, name=self._ctx.vm_name(step.name)) for step in shown]
        share = sum(migration.share(step) for step in shown) / len(shown) if shown else 1.0
        return m.OperationView(
            id=op.id,
            kind=op.kind,
            subject=op.name or self._ctx.vm_name(op.subject),
            state=op.state,
            steps=steps,
            outcome=op.told,
            actor=op.actor,
            created=op.created,
            ended=op.ended,
            progress=round(share, 3),
        )

    def alarm(self, alarm: r.Alarm) -> m.AlarmView:
        """An alarm; its subject is shown by name."""
        return m.AlarmView(
            id=alarm.id,
            code=alarm.code,
            subject=self._ctx.vm_name(alarm.subject),
            severity=alarm.severity,
            text=alarm.text,
            raised=alarm.raised,
            cleared=alarm.cleared,
            acked_by=alarm.acked_by,
            comment=alarm.comment,
        )

    def last_operations(self, subject: str) -> list[m.OperationView]:
        """The newest operations of a node or VM, newest first."""
        ops = sorted(self._ctx.tables.operations.by("subject", subject), key=lambda op: -op.number)
        return [self.operation(op) for op in ops[:10]]
