"""Requests of operators that change something: checks first, then rows, operation, audit.

Rules: a refusal changes nothing and says what to do; a dry run takes the same checks and stops before the first change; a
request that is repeated with its key gets the saved answer; everything that could make two instances is refused here
before it can begin (drained nodes, missing evidence, locks, recovery after a restore).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from chimed.core import evidence, inventory, operations, placement
from chimed.core import rows as r
from chimed.core.alarms import NODE_CODES
from chimed.core.context import Context
from chimed.core.operations import Facts
from chimed.core.queries import find_node, find_operation, find_vm
from chimed.core.views import Views
from wire import messages as m
from wire.errors import ChimeError
from wire.types import AdminState, Desired, Evidence, NetworkKind, Observed, OperationState, StepState, Storage

_encoder = msgspec.msgpack.Encoder()


class Done(Struct):
    """What a request did, or would do."""

    plan: list[str]
    operation: r.Operation | None = None
    changed: bool = True
    warnings: list[str] = []
    extra: dict[str, Any] = {}


class Requests:
    """One method for each changing verb. Each takes (body, actor, now)."""

    def __init__(
        self,
        ctx: Context,
        facts: Facts,
        views: Views,
        watch: Callable[[r.Operation, float], None],
        forget_node: Callable[[str], None],
    ) -> None:
        self._ctx, self._facts, self._views = ctx, facts, views
        self._watch, self._forget_node = watch, forget_node
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            m.NodeAdd: self._node_add,
            m.NodeRekey: self._node_rekey,
            m.NodeRemove: self._node_remove,
            m.NodeEnable: self._node_enable,
            m.NodeDisable: self._node_disable,
            m.NodeDrain: self._node_drain,
            m.NodeRebuild: self._node_rebuild,
            m.VmCreate: self._vm_create,
            m.VmStart: self._vm_start,
            m.VmStop: self._vm_stop,
            m.VmReboot: self._vm_reboot,
            m.VmDelete: self._vm_delete,
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
        result = self._result(self.handlers[type(body)](body, actor, now), body.dry_run)
        if not body.dry_run:
            answer = r.Answer(
                operator=actor, key=body.key, digest=digest, answer=_encoder.encode(result), created=self._ctx.wall()
            )
            self._ctx.tables.answers.put(answer)
        return result

    def _result(self, done: Done, dry_run: bool) -> dict[str, Any]:
        op = self._ctx.tables.operations.get(done.operation.id) if done.operation else None
        return {
            "operation": self._views.operation(op) if op else None,
            "changed": done.changed and not dry_run,
            "warnings": done.warnings,
            "plan": done.plan,
            **done.extra,
        }

    def _begin(
        self, kind: str, subject: str, label: str, actor: str, steps: tuple[m.Step, ...], serial: int, now: float,
        timeout_s: float = 0.0,
    ) -> r.Operation:  # fmt: skip
        op = operations.begin(
            self._ctx, kind, subject, label, actor, steps, serial,
            timeout_s or self._ctx.policy.operation_timeout_s,
        )  # fmt: skip
        self._watch(op, now)
        return op

    # --- checks -------------------------------------------------------------------------------------------------------

    def _unlocked(self, node: r.Node) -> None:
        if node.lock:
            op = self._ctx.tables.operations.get(node.lock)
            kind = op.kind if op else "operation"
            raise ChimeError(
                "locked", f"{node.name} is locked by {kind} {node.lock}: wait for it (chime-tool op wait {node.lock})"
            )

    def _commandable(self, vm: r.Vm) -> r.Node:
        node = find_node(self._ctx, vm.node)
        if vm.desired == Desired.DELETED:
            raise ChimeError("conflict", f"{vm.name} is being deleted")
        if node.lock:
            op = self._ctx.tables.operations.get(node.lock)
            if op is not None and op.kind != "drain":
                self._unlocked(node)
        if not self._facts.is_live(node.name):
            state = f"{node.health}" + (f" ({', '.join(node.reasons)})" if node.reasons else "")
            raise ChimeError("node-unreachable", f"{vm.name} is on {node.name}, which takes no commands now: {state}")
        return node

    def _settled(self) -> None:
        waiting = self._ctx.tables.meta.waiting_for
        if waiting:
            raise ChimeError(
                "recovering",
                f"the database was restored: until {', '.join(waiting[:10])} have reported, no VM may change its owner "
                "(or attest with: chime-tool recovery confirm)",
            )

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _node_add(self, body: m.NodeAdd, actor: str, now: float) -> Done:
        if self._ctx.tables.nodes.get(body.name):
            raise ChimeError("exists", f"node {body.name} exists already")
        self._new_key(body.public_key)
        plan = [f"adds node {body.name}"]
        if body.dry_run:
            return Done(plan)
        node = r.Node(
            name=body.name, public_key=body.public_key, ping_address=body.address or "", created=self._ctx.wall()
        )
        self._ctx.tables.nodes.put(node)
        self._ctx.audit(actor, "node-added", body.name)
        return Done(plan, extra={"node": self._views.node(node, now)})

    def _new_key(self, public_key: str) -> None:
        nodes, people = self._ctx.tables.nodes, self._ctx.tables.operators
        owner = next((row.name for row in (*nodes, *people) if row.public_key == public_key), None)
        if owner is not None:
            raise ChimeError("exists", f"this public key belongs to {owner} already")

    def _node_rekey(self, body: m.NodeRekey, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._new_key(body.public_key)
        plan = [f"gives {node.name} a new key; its agent is refused until it has the new one"]
        if body.dry_run:
            return Done(plan)
        changed = msgspec.structs.replace(node, public_key=body.public_key)
        self._ctx.tables.nodes.put(changed)
        self._ctx.audit(actor, "node-rekeyed", node.name)
        return Done(plan, extra={"node": self._views.node(changed, now)})

    def _node_remove(self, body: m.NodeRemove, actor: str, _now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._unlocked(node)
        vms = self._ctx.tables.vms.by("node", node.name)
        if vms:
            names = ", ".join(sorted(vm.name for vm in vms)[:10])
            raise ChimeError("refused-unsafe", f"{node.name} owns {len(vms)} VMs ({names}): rebuild or delete them first")
        if node.health != "unknown" and (node.admin_state != AdminState.DRAINED or node.evidence is None):
            raise ChimeError("refused-unsafe", f"drain {node.name} first: {evidence.missing(node)}")
        releases = self._ctx.tables.releases.by("node", node.name)
        plan = [f"removes node {node.name}; its key is refused from now on"]
        warnings = []
        if releases:
            warnings = [f"{node.name} never confirmed the removal of {len(releases)} moved VMs: wipe it before reuse"]
        if body.dry_run:
            return Done(plan, warnings=warnings)
        for release in releases:
            self._ctx.tables.releases.delete(release)
        self._ctx.tables.nodes.delete(node)
        self._ctx.sync_alarms(node.name, {}, NODE_CODES)
        self._forget_node(node.name)
        self._ctx.audit(actor, "node-removed", node.name)
        return Done(plan, warnings=warnings)

    def _node_enable(self, body: m.NodeEnable, actor: str, now: float) -> Done:
        return self._open(body, AdminState.ENABLED, actor, now)

    def _node_disable(self, body: m.NodeDisable, actor: str, now: float) -> Done:
        return self._open(body, AdminState.DISABLED, actor, now)

    def _open(self, body: m.NodeEnable | m.NodeDisable, state: AdminState, actor: str, _now: float) -> Done:
        node = find_node(self._ctx, body.name)
        if node.admin_state == state:
            return Done([f"{node.name} is {state} already"], changed=False)
        self._unlocked(node)
        plan = [f"sets {node.name} to {state}"]
        if node.admin_state == AdminState.DRAINED:
            vms = [vm for vm in self._ctx.tables.vms.by("node", node.name) if vm.desired == Desired.RUNNING]
            if vms:
                plan.append(f"starts {len(vms)} VMs on {node.name}: {_names(vms)}")
        if not body.dry_run:
            evidence.opened(self._ctx, node, state)
            self._ctx.audit(actor, f"node-{state}", node.name, f"{node.admin_state} -> {state}")
        return Done(plan)

    def _node_drain(self, body: m.NodeDrain, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._unlocked(node)
        live = self._facts.is_live(node.name)
        self._check_evidence(node, body.evidence, live)
        if node.admin_state == AdminState.DRAINED and (node.evidence is not None or not live):
            return self._drain_again(node, body, actor, live)
        plan, warnings = self._drain_plan(node, live, body.evidence)
        if body.dry_run:
            return Done(plan, warnings=warnings)
        node = evidence.drained(self._ctx, node, body.graceful_s)
        step = m.Step(name="stop all VMs", state=StepState.RUNNING)
        timeout_s = body.graceful_s + self._ctx.policy.operation_timeout_s
        op = self._begin("drain", node.name, f"drain {node.name}", actor, (step,), node.drain_serial, now, timeout_s)
        if body.evidence is not None:
            self._attest(find_node(self._ctx, node.name), live, actor, body.comment)
        operations.progress(self._facts, op)
        return Done(plan, op, warnings=warnings)

    def _drain_again(self, node: r.Node, body: m.NodeDrain, actor: str, live: bool) -> Done:
        if node.evidence is not None or body.evidence is None:
            known = f"evidence {node.evidence}" if node.evidence else "no evidence yet"
            warnings = [] if node.evidence else [evidence.missing(node)]
            return Done([f"{node.name} is drained already ({known})"], changed=False, warnings=warnings)
        if not body.dry_run:
            self._attest(node, live, actor, body.comment)
        return Done([f"records your word that {node.name} runs none of its VMs"])

    def _drain_plan(self, node: r.Node, live: bool, given: Evidence | None) -> tuple[list[str], list[str]]:
        vms = self._ctx.tables.vms.by("node", node.name)
        if live:
            on = [vm for vm in vms if self._views.vm(vm).observed in (Observed.RUNNING, Observed.PAUSED)]
            what = f"stops {len(on)} running VMs on {node.name}" + (f": {_names(on)}" if on else "")
            return [f"sets {node.name} to drained: nothing is started there", what], []
        plan = [f"sets {node.name} to drained: when it comes back it starts nothing"]
        if given is not None:
            return [*plan, f"records your word that {node.name} runs none of its VMs"], []
        return plan, [evidence.missing(node)]

    def _check_evidence(self, node: r.Node, given: Evidence | None, live: bool) -> None:
        if given is None:
            return
        if given != Evidence.OPERATOR:
            raise ChimeError("invalid", f"evidence {given} cannot be given by a request, only operator")
        evidence.check_attestable(node, live)

    def _attest(self, node: r.Node, live: bool, actor: str, comment: str) -> r.Node:
        evidence.check_attestable(node, live)
        attested = evidence.attest(self._ctx, node, actor, comment)
        self._ctx.tables.nodes.put(attested)
        return attested

    def _node_rebuild(self, body: m.NodeRebuild, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._unlocked(node)
        self._settled()
        live = self._facts.is_live(node.name)
        if node.admin_state != AdminState.DRAINED:
            text = f"{node.name} is {node.admin_state}: drain it first (chime-tool node drain {node.name})"
            raise ChimeError("refused-unsafe", text)
        if node.evidence is None and body.evidence is None:
            raise ChimeError("no-evidence", evidence.missing(node))
        if node.evidence is None:
            self._check_evidence(node, body.evidence, live)
        vms = self._ctx.tables.vms.by("node", node.name)
        steps = operations.rebuild_steps(vms)
        plan = self._rebuild_plan(node, vms, steps, body.evidence)
        if body.dry_run or not steps:
            return Done(plan, changed=bool(steps))
        if node.evidence is None:
            node = self._attest(node, live, actor, body.comment)
        op = self._begin("rebuild", node.name, f"rebuild {node.name}", actor, steps, node.drain_serial, now)
        operations.progress(self._facts, op)
        return Done(plan, op, warnings=[s.detail for s in steps if s.state == StepState.SKIPPED])

    def _rebuild_plan(
        self, node: r.Node, vms: list[r.Vm], steps: tuple[m.Step, ...], given: Evidence | None
    ) -> list[str]:
        if not steps:
            return [f"{node.name} owns no VM: there is nothing to rebuild"]
        by_uuid = {vm.uuid: vm for vm in vms}
        plan = [f"evidence that {node.name} runs none of its VMs: {node.evidence or given}"]
        rooms = {n.name: (n, room, ok) for n, room, ok in self._facts.candidates() if n.name != node.name}
        for step in steps:
            vm = by_uuid[step.name]
            if step.state == StepState.SKIPPED:
                plan.append(f"leaves {vm.name}: {step.detail}")
                continue
            choice = placement.choose(vm.spec, rooms.values())
            verb = "starts" if vm.desired == Desired.RUNNING else "moves (stopped)"
            if choice.node is None:
                plan.append(f"cannot place {vm.name} now and keeps trying: {choice.why_not()}")
                continue
            plan.append(f"{verb} {vm.name} on {choice.node}")
            target, room, ok = rooms[choice.node]
            used = msgspec.structs.replace(
                room,
                memory_used_mib=room.memory_used_mib + vm.spec.memory_mib,
                vcpus_used=room.vcpus_used + vm.spec.vcpus,
            )
            rooms[choice.node] = (target, used, ok)
        return plan

    # --- VMs ----------------------------------------------------------------------------------------------------------

    def _vm_create(self, body: m.VmCreate, actor: str, now: float) -> Done:
        if body.desired == Desired.DELETED:
            raise ChimeError("invalid", "desired must be running or stopped")
        _check_spec(body.spec)
        if self._ctx.tables.vms.by("name", body.name):
            raise ChimeError("exists", f"a VM named {body.name} exists already")
        if body.uuid is not None and self._ctx.tables.vms.get(body.uuid):
            raise ChimeError("exists", f"a VM with UUID {body.uuid} exists already")
        if body.uuid is not None and self._ctx.tables.releases.by("uuid", body.uuid):
            raise ChimeError("conflict", f"UUID {body.uuid} was used by a VM that a node has not removed yet")
        node_name = self._place_new(body)
        plan = [f"creates {body.name} on {node_name}"]
        if body.desired == Desired.RUNNING:
            plan.append(f"starts {body.name}")
        if body.dry_run:
            return Done(plan)
        vm = r.Vm(
            uuid=body.uuid or self._new_uuid(),
            name=body.name,
            spec=body.spec,
            node=node_name,
            epoch=0,
            desired=body.desired,
            revision=self._ctx.bump(node_name),
            created=self._ctx.wall(),
        )
        vm = msgspec.structs.replace(vm, epoch=self._ctx.next_epoch(vm))
        self._ctx.tables.vms.put(vm)
        step = m.Step(name=f"on {node_name}", state=StepState.RUNNING)
        op = self._begin("create", vm.uuid, f"create {vm.name} on {node_name}", actor, (step,), vm.start_serial, now)
        return Done(plan, op, extra={"vm": self._views.vm(self._ctx.tables.vms.get(vm.uuid) or vm)})

    def _place_new(self, body: m.VmCreate) -> str:
        candidates = self._facts.candidates()
        if body.node is not None:
            node = find_node(self._ctx, body.node)
            candidates = [c for c in candidates if c[0].name == node.name]
        choice = placement.choose(body.spec, candidates)
        if choice.node is None:
            raise ChimeError("no-room", f"no node can take {body.name}: {choice.why_not()}")
        return choice.node

    def _new_uuid(self) -> str:
        bits = self._ctx.rng.getrandbits(128)
        bits = (bits & ~(0xF << 76) | (4 << 76)) & ~(0x3 << 62) | (0x2 << 62)
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def _vm_start(self, body: m.VmStart, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        node = self._commandable(vm)
        if node.admin_state == AdminState.DRAINED:
            text = f"{vm.name} is on {node.name}, which is drained: enable the node, or rebuild it"
            raise ChimeError("refused-unsafe", text)
        plan = [f"starts {vm.name} on {vm.node}"]
        if body.dry_run:
            return Done(plan)
        changed = msgspec.structs.replace(
            vm, desired=Desired.RUNNING, start_serial=vm.start_serial + 1, revision=self._ctx.bump(vm.node)
        )
        self._ctx.tables.vms.put(changed)
        step = m.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._begin("start", vm.uuid, f"start {vm.name}", actor, (step,), changed.start_serial, now)
        return Done(plan, op)

    def _vm_stop(self, body: m.VmStop, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        self._commandable(vm)
        graceful_s = 0.0 if body.force else body.graceful_s
        how = f", within {graceful_s:g} s, then by force" if graceful_s else " by force"
        plan = [f"stops {vm.name} on {vm.node}{how}"]
        if body.dry_run:
            return Done(plan)
        changed = msgspec.structs.replace(
            vm, desired=Desired.STOPPED, graceful_s=graceful_s, revision=self._ctx.bump(vm.node)
        )
        self._ctx.tables.vms.put(changed)
        step = m.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        timeout_s = graceful_s + self._ctx.policy.operation_timeout_s
        op = self._begin("stop", vm.uuid, f"stop {vm.name}", actor, (step,), changed.revision, now, timeout_s)
        return Done(plan, op)

    def _vm_reboot(self, body: m.VmReboot, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        self._commandable(vm)
        if self._views.vm(vm).observed != Observed.RUNNING:
            raise ChimeError("conflict", f"{vm.name} does not run: it is {self._views.vm(vm).observed}")
        plan = [f"{'resets' if body.force else 'reboots'} {vm.name} on {vm.node}"]
        if body.dry_run:
            return Done(plan)
        timeout_s = self._ctx.policy.command_timeout_s
        step = m.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._begin("reboot", vm.uuid, f"reboot {vm.name}", actor, (step,), 0, now, timeout_s)
        command = r.Command(
            id=f"{op.id}-{self._ctx.tables.meta.generation}",
            node=vm.node,
            uuid=vm.uuid,
            epoch=vm.epoch,
            kind="reboot",
            force=body.force,
            revision=self._ctx.bump(vm.node),
            timeout_s=timeout_s,
            operation=op.id,
        )
        self._ctx.tables.commands.put(command)
        return Done(plan, op)

    def _vm_delete(self, body: m.VmDelete, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        if vm.desired == Desired.DELETED:
            op = self._ctx.tables.operations.get(vm.operation)
            return Done([f"{vm.name} is being deleted already"], op, changed=False)
        self._commandable(vm)
        disks = [disk.path for disk in vm.spec.disks]
        plan = [f"stops {vm.name} on {vm.node} by force and removes its definition"]
        if disks:
            plan.append(f"leaves its disks: {', '.join(disks)}")
        if body.dry_run:
            return Done(plan)
        changed = msgspec.structs.replace(vm, desired=Desired.DELETED)
        self._ctx.tables.vms.put(changed)
        step = m.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._begin("delete", vm.uuid, f"delete {vm.name}", actor, (step,), 0, now)
        inventory.release(self._ctx, vm.node, changed, vm.epoch)
        return Done(plan, op)

    # --- operations, alarms, operators --------------------------------------------------------------------------------

    def _op_cancel(self, body: m.OpCancel, actor: str, _now: float) -> Done:
        op = find_operation(self._ctx, body.id)
        if op.state != OperationState.RUNNING:
            return Done([f"{op.id} has ended already: {op.state}"], op, changed=False)
        if op.kind == "delete":
            raise ChimeError("conflict", "a deletion cannot be cancelled")
        plan = [f"cancels {op.id} ({op.label}); what it has done so far stays"]
        if not body.dry_run:
            operations.cancel(self._ctx, op, f"cancelled by {actor}")
        return Done(plan, op)

    def _alarm_ack(self, body: m.AlarmAck, actor: str, _now: float) -> Done:
        alarm = self._ctx.tables.alarms.get(body.id)
        if alarm is None:
            raise ChimeError("not-found", f"there is no alarm {body.id}")
        if not body.dry_run:
            self._ctx.tables.alarms.put(msgspec.structs.replace(alarm, acked_by=actor, comment=body.comment))
            self._ctx.audit(actor, "alarm-acked", alarm.subject, f"{alarm.code}: {body.comment}".rstrip(": "))
        return Done([f"acknowledges alarm {alarm.id} ({alarm.code} {alarm.subject})"])

    def _operator_add(self, body: m.OperatorAdd, actor: str, _now: float) -> Done:
        if self._ctx.tables.operators.get(body.name):
            raise ChimeError("exists", f"operator {body.name} exists already")
        self._new_key(body.public_key)
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
        meta = self._ctx.tables.meta
        if not meta.waiting_for:
            return Done(["the server is not recovering"], changed=False)
        names = ", ".join(meta.waiting_for)
        if not body.dry_run:
            self._ctx.tables.meta = msgspec.structs.replace(meta, waiting_for=())
            self._ctx.audit(actor, "recovery-confirmed", "server", f"without {names}: {body.comment}")
        return Done([f"ends the recovery though {names} have not reported: you attest that they run no VM that the "
                     "restored database gives to another node"])  # fmt: skip


def _names(vms: list[r.Vm]) -> str:
    names = sorted(vm.name for vm in vms)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _check_spec(spec: m.VmSpec) -> None:
    """What the schema cannot say. Raises `ChimeError` invalid."""
    for network in spec.networks:
        if network.kind == NetworkKind.BRIDGE and not network.bridge:
            raise ChimeError("invalid", "a bridge network needs the name of the bridge")
        if network.kind == NetworkKind.USER and network.bridge:
            raise ChimeError("invalid", "a user network has no bridge")
    paths = [disk.path for disk in spec.disks]
    if len(set(paths)) != len(paths):
        raise ChimeError("invalid", "two disks have the same path")
    if any(disk.storage == Storage.NONE for disk in spec.disks):
        raise ChimeError("invalid", "a disk's storage is shared or local")
    if spec.xml is not None and ("<!DOCTYPE" in spec.xml or "<!ENTITY" in spec.xml):
        raise ChimeError("invalid", "domain XML must not have a DOCTYPE or entities")
