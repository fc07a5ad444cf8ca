"""Requests of operators that move VMs while they run: `vm.migrate`, `node.evacuate`.

Rules: what cannot be done is refused here, with what to do about it; whatever begins, begins as `migration` says.
"""

from __future__ import annotations

from collections.abc import Callable

from chimed.core.operators.checks import Done, RequestParts
from chimed.core.operators.queries import find_node, find_vm
from chimed.core.rules import networks, placement
from chimed.core.state import rows as r
from chimed.core.work import migration
from wire import messages as m
from wire.errors import ChimeError
from wire.text import counted
from wire.types import AdminState, StepState
from wire.words import OperationKind


class MigrationRequests:
    """One method for each verb. Each takes (body, actor, now)."""

    def __init__(self, parts: RequestParts) -> None:
        self._parts, self._ctx, self._facts = parts, parts.ctx, parts.facts
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            m.VmMigrate: self._vm_migrate,
            m.NodeEvacuate: self._node_evacuate,
        }

    def _vm_migrate(self, body: m.VmMigrate, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        self._parts.commandable(vm)
        self._parts.confirmed(vm)
        self._parts.settled()
        live = migration.is_live(self._facts, vm)
        if why := migration.local_disks(vm, live, body.options):
            raise ChimeError("refused-unsafe", f"{vm.name} stays: {why}")
        moving = self._moving(vm.node, body, live)
        target, address = migration.choose(self._facts, vm, live, moving)
        how = f"migrates {vm.name} from {vm.node} to {target} while it runs, by {address}"
        plan = [how if live else f"moves {vm.name} (stopped) from {vm.node} to {target}"]
        if body.dry_run:
            return Done(plan)
        step = r.Step(name=vm.uuid, state=StepState.PENDING)
        label = f"migrate {vm.name} from {vm.node}" + (f" to {moving.to}" if moving.to else "")
        op = self._parts.begin(OperationKind.MIGRATE, vm.uuid, label, actor, (step,), 0, now, moving=moving)
        migration.progress(self._facts, op)
        return Done(plan, op)

    def _node_evacuate(self, body: m.NodeEvacuate, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._parts.unlocked(node)
        self._parts.settled()
        if node.admin_state == AdminState.DRAINED:
            text = f"{node.name} is drained: nothing runs there (chime-tool node rebuild {node.name})"
            raise ChimeError("conflict", text)
        if not self._facts.in_session(node.name):
            raise ChimeError("node-unreachable", f"{node.name} takes no commands now: it is {node.health}")
        moving = self._moving(node.name, body, live=True)
        vms = self._ctx.tables.vms.by("node", node.name)
        steps = migration.steps_for(self._facts, vms, body.options)
        by_uuid = {vm.uuid: vm for vm in vms}
        kept = [f"{by_uuid[s.name].name} stays: {s.detail}" for s in steps if s.state == StepState.SKIPPED]
        pending = [by_uuid[s.name] for s in steps if s.state == StepState.PENDING]
        where = f"to {moving.to}" if moving.to else "to other nodes"
        plan = [f"migrates {counted(len(pending), 'VM')} from {node.name} {where}"] if pending else []
        plan += [self._line(vm, moving) for vm in pending]
        if not steps:
            return Done([f"{node.name} owns no VM: there is nothing to evacuate"], changed=False)
        if body.dry_run:
            return Done(plan or kept, warnings=kept)
        label = f"evacuate {node.name}" + (f" to {moving.to}" if moving.to else "")
        op = self._parts.begin(OperationKind.EVACUATE, node.name, label, actor, steps, 0, now, moving=moving)
        migration.progress(self._facts, op)
        return Done(plan or kept, op, warnings=kept)

    def _line(self, vm: r.Vm, moving: r.Moving) -> str:
        """What becomes of one VM, as it looks now."""
        try:
            live = migration.is_live(self._facts, vm)
            target, _ = migration.choose(self._facts, vm, live, moving)
        except ChimeError as error:
            return f"cannot move {vm.name} now: {error.message}"
        return f"migrates {vm.name}, to {target} as it looks now" if live else f"moves {vm.name} (stopped), to {target}"

    def _moving(self, source: str, body: m.VmMigrate | m.NodeEvacuate, live: bool) -> r.Moving:
        """What is asked for. Raises `ChimeError` when the target that it names can take nothing."""
        moving = r.Moving(
            source=source,
            to=body.to or "",
            network=body.network or self._ctx.policy.migration_network,
            options=body.options,
        )
        if body.to is None:
            return moving
        target = find_node(self._ctx, body.to)
        if target.name == source:
            raise ChimeError("conflict", f"it is on {source} already")
        why = placement.closed(target, self._facts.in_session(target.name))
        if why is not None:
            raise ChimeError("no-room", f"{target.name} takes no VM: it {why}")
        if live and networks.address_on(target, moving.network) is None:
            raise ChimeError(
                "invalid",
                f"{target.name} has no address on the network {moving.network}; it has: {networks.listed(target)}",
            )
        return moving
