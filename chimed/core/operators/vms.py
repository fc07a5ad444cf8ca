"""Requests of operators that change a VM: create, start, stop, reboot, delete.

Rules: a VM takes commands only while its node is heard; start and stop are levels in its row, reboot is a command that
ends with its operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from chimed.core.operators.checks import Done, RequestParts
from chimed.core.operators.queries import find_node, find_vm
from chimed.core.rules import arrivals, evidence, ownership, placement, recovery
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import progress
from wire import messages as m
from wire import reach
from wire.errors import ChimeError
from wire.text import clean_text
from wire.types import UUID_PATTERN, AdminState, Desired, Evidence, NetworkKind, Observed, StepState, Storage
from wire.words import AlarmCode, CommandKind, OperationKind, Problem


class VmRequests:
    """One method for each verb. Each takes (body, actor, now)."""

    def __init__(self, parts: RequestParts) -> None:
        self._parts, self._ctx, self._facts, self._views = parts, parts.ctx, parts.facts, parts.views
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            m.VmCreate: self._vm_create,
            m.VmStart: self._vm_start,
            m.VmStop: self._vm_stop,
            m.VmReboot: self._vm_reboot,
            m.VmDelete: self._vm_delete,
        }

    def _vm_create(self, body: m.VmCreate, actor: str, now: float) -> Done:
        if body.desired == Desired.DELETED:
            raise ChimeError("invalid", "desired must be running or stopped")
        self._parts.settled()
        check_name(body.name, body.uuid)
        check_spec(body.spec)
        unsafe = check_reach(body.name, body.spec, body.allow_unsafe)
        if self._ctx.tables.vms.by("name", body.name):
            raise ChimeError("exists", f"a VM named {body.name} exists already")
        if body.uuid is not None and self._ctx.tables.vms.get(body.uuid):
            raise ChimeError("exists", f"a VM with UUID {body.uuid} exists already")
        if body.uuid is not None and ownership.is_unconfirmed(self._ctx, body.uuid):
            raise ChimeError("conflict", f"UUID {body.uuid} was used by a VM that a node has not removed yet")
        node_name = self._place_new(body)
        if body.uuid is not None:
            self._check_unknown(body.uuid, node_name)
        plan = [f"creates {body.name} on {node_name}"]
        if body.desired == Desired.RUNNING:
            plan.append(f"starts {body.name}")
        if body.dry_run:
            return Done(plan, warnings=unsafe)
        # A UUID that is given may have been used before by a VM that is forgotten; no VM has had more epochs than there
        # were operations.
        vm = r.Vm(
            uuid=body.uuid or self._new_uuid(),
            name=body.name,
            spec=body.spec,
            node=node_name,
            epoch=self._ctx.known_epoch() if body.uuid is not None else 0,
            desired=body.desired,
            revision=self._ctx.bump(node_name),
            created=self._ctx.wall(),
        )
        epoch = self._ctx.next_epoch(vm)
        vm = msgspec.structs.replace(vm, epoch=epoch, since=epoch)
        self._ctx.tables.vms.put(vm)
        step = r.Step(name=f"on {node_name}", state=StepState.RUNNING)
        op = self._parts.begin(
            OperationKind.CREATE, vm.uuid, f"create {vm.name} on {node_name}", actor, (step,), vm.start_serial, now
        )
        audit_reach(self._ctx, actor, vm.uuid, unsafe)
        return Done(plan, op, warnings=unsafe, extra={"vm": self._views.vm(self._ctx.tables.vms.get(vm.uuid) or vm)})

    def _place_new(self, body: m.VmCreate) -> str:
        if body.node is not None:
            node = find_node(self._ctx, body.node)
            if self._facts.is_lost(node):
                raise ChimeError("node-unreachable", f"{node.name} takes no commands now: it is {node.health}")
            candidates = [(node, self._facts.room(node), self._facts.in_session(node.name))]
        else:
            candidates = self._facts.candidates()
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
        node = find_node(self._ctx, vm.node)
        if node.admin_state == AdminState.DRAINED:
            text = f"{vm.name} is on {node.name}, which is drained: enable the node, or rebuild it"
            raise ChimeError("refused-unsafe", text)
        self._parts.commandable(vm)
        self._parts.settled()
        away = self._check_away(vm, body.evidence)
        plan = [f"starts {vm.name} on {vm.node}"]
        warnings = [] if vm.held == r.Held.NOTHING else [f"it was held: {recovery.IN_WORDS[vm.held]}"]
        if away:
            plan.append(f"records your word that {vm.name} runs nowhere else")
        if body.dry_run:
            return Done(plan, warnings=warnings)
        if away:
            self._ctx.audit(actor, "evidence-operator", vm.uuid, body.comment or "attested that it runs nowhere else")
        vm = self._parts.revived(vm)
        changed = msgspec.structs.replace(
            vm, desired=Desired.RUNNING, start_serial=vm.start_serial + 1, revision=self._ctx.bump(vm.node)
        )
        report = self._facts.said(vm.node, vm.uuid)
        gone = report if arrivals.gone(vm, report) else None
        if gone is not None:  # its node takes the present epoch for gone, until it hears that this is known
            changed = msgspec.structs.replace(changed, epoch=self._ctx.next_epoch(vm), arrival="")
        self._ctx.tables.vms.put(changed)
        recovery.sync_alarm(self._ctx)
        if gone is not None:
            ownership.release(self._ctx, vm.node, changed, gone.epoch)
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        label = f"start {vm.name}"
        op = self._parts.begin(OperationKind.START, vm.uuid, label, actor, (step,), changed.start_serial, now)
        return Done(plan, op, warnings=warnings)

    def _check_unknown(self, uuid: str, node_name: str) -> None:
        """A node may have a VM with this UUID that the database does not know, since a backup was restored: it can be
        taken over on that node alone."""
        self._parts.all_met()
        nodes = self._facts.holders(uuid, node_name)
        is_seen = bool(self._facts.sessions.sightings(uuid))
        if not is_seen and self._ctx.alarm_active(AlarmCode.VM_UNKNOWN, uuid):
            raise ChimeError(
                "conflict", f"a node that is not heard now has a VM with UUID {uuid}: see the alarm vm-unknown"
            )
        if nodes not in ([], [node_name]):
            raise ChimeError(
                "conflict",
                f"on {', '.join(nodes)} there is a VM with UUID {uuid} which this database does not know: create it "
                f"there (--node {nodes[0]}) to take it over",
            )

    def _check_away(self, vm: r.Vm, given: Evidence | None) -> bool:
        """Whether the VM was migrated away without Chime, or is not where a restored database has it, and a person says
        that it runs nowhere."""
        evidence.check_word(given)
        report = self._facts.said(vm.node, vm.uuid)
        has_left = report is not None and arrivals.gone(vm, report) is not None
        is_sought = vm.held == r.Held.START
        away = is_sought or has_left or (report is not None and report.problem == Problem.MIGRATED_AWAY)
        if away and given is None:
            why = f"is held: {recovery.IN_WORDS[vm.held]}" if is_sought else f"was migrated away from {vm.node}"
            raise ChimeError(
                "no-evidence",
                f"{vm.name} {why}. It may run elsewhere: find out where, end it there, and give your word that it runs "
                "nowhere (--evidence operator)",
            )
        return away

    def _vm_stop(self, body: m.VmStop, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        self._parts.commandable(vm)
        self._parts.settled()
        graceful_s = 0.0 if body.force else body.graceful_s
        how = f", within {graceful_s:g} s, then by force" if graceful_s else " by force"
        plan, warnings = [f"stops {vm.name} on {vm.node}{how}"], _may_be_elsewhere(vm)
        if body.dry_run:
            return Done(plan, warnings=warnings)
        vm = self._parts.revived(vm)
        changed = msgspec.structs.replace(
            vm, desired=Desired.STOPPED, graceful_s=graceful_s, revision=self._ctx.bump(vm.node)
        )
        self._ctx.tables.vms.put(changed)
        recovery.sync_alarm(self._ctx)
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        timeout_s = graceful_s + self._ctx.policy.operation_timeout_s
        label = f"stop {vm.name}"
        op = self._parts.begin(
            OperationKind.STOP, vm.uuid, label, actor, (step,), changed.revision, now, timeout_s
        )
        return Done(plan, op, warnings=warnings)

    def _vm_reboot(self, body: m.VmReboot, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        self._parts.commandable(vm)
        self._parts.confirmed(vm)
        if self._views.vm(vm).observed != Observed.RUNNING:
            raise ChimeError("conflict", f"{vm.name} does not run: it is {self._views.vm(vm).observed}")
        plan = [f"{'resets' if body.force else 'reboots'} {vm.name} on {vm.node}"]
        if body.dry_run:
            return Done(plan)
        timeout_s = self._ctx.policy.command_timeout_s
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._parts.begin(OperationKind.REBOOT, vm.uuid, f"reboot {vm.name}", actor, (step,), 0, now, timeout_s)
        command = r.Command(
            id=f"{op.id}-{self._ctx.tables.meta.generation}",
            node=vm.node,
            uuid=vm.uuid,
            epoch=vm.epoch,
            kind=CommandKind.REBOOT,
            force=body.force,
            revision=self._ctx.bump(vm.node),
            timeout_s=timeout_s,
            operation=op.id,
        )
        self._ctx.tables.commands.put(command)
        return Done(plan, op)

    def _vm_delete(self, body: m.VmDelete, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        node = find_node(self._ctx, vm.node)
        proven = node.admin_state == AdminState.DRAINED and node.evidence is not None and not node.lock
        absent = proven and not self._facts.is_live(node.name)
        self._parts.settled()
        self._parts.decided(vm)
        self._parts.here(vm)
        if vm.desired == Desired.DELETED and vm.held == r.Held.NOTHING and not absent:
            op = self._ctx.tables.operations.get(vm.operation)
            return Done([f"{vm.name} is being deleted already"], op, changed=False)
        if not absent:
            self._parts.commandable(vm)
        plan, warnings = [f"stops {vm.name} on {vm.node} by force and removes its definition"], _may_be_elsewhere(vm)
        if absent:
            plan = [f"forgets {vm.name}: {vm.node} is drained and runs none of its VMs (evidence {node.evidence})"]
            warnings.append(f"{vm.node} cannot be heard: it removes the definition when it comes back")
        disks = [disk.path for disk in vm.spec.disks]
        if disks:
            plan.append(f"leaves its disks: {', '.join(disks)}")
        if body.dry_run:
            return Done(plan, warnings=warnings)
        changed = msgspec.structs.replace(vm, desired=Desired.DELETED, held=r.Held.NOTHING)
        self._ctx.tables.vms.put(changed)
        recovery.sync_alarm(self._ctx)
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._parts.begin(OperationKind.DELETE, vm.uuid, f"delete {vm.name}", actor, (step,), 0, now)
        changed = find_vm(self._ctx, vm.uuid)
        held_back = self._ctx.tables.releases.get(vm.node, vm.uuid)
        if held_back is not None and vm.held == r.Held.DELETE:
            self._ctx.tables.releases.delete(held_back)  # it is given again, in a revision that is read
        ownership.release(self._ctx, vm.node, changed, vm.epoch)
        if absent:
            ownership.forget(self._ctx, changed, f"its node {vm.node} runs none of its VMs (evidence {node.evidence})")
            progress.progress(self._facts, op)
        return Done(plan, op, warnings=warnings)


def _may_be_elsewhere(vm: r.Vm) -> list[str]:
    """What is said to who stops or deletes a VM that may run on a node which the database does not know."""
    return [f"it was held: {recovery.IN_WORDS[vm.held]}"] if vm.held == r.Held.START else []


def check_name(name: str, uuid: str | None) -> None:
    """A name must not be mistaken for the UUID of another VM, and libvirt takes no UUID of one digit only."""
    if re.search(UUID_PATTERN, name.lower()):
        raise ChimeError("invalid", f"name {name} is a UUID: VMs are called by name or UUID, and it could be another's")
    if uuid is not None and len(set(uuid)) == 2:
        raise ChimeError("invalid", f"UUID {uuid} is not one that a VM can have")


def check_spec(spec: m.VmSpec) -> None:
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


def check_reach(name: str, spec: m.VmSpec, allowed: bool) -> list[str]:
    """What the VM reaches beyond itself, in words. Raises `ChimeError` unless that is nothing, or allowed."""
    try:
        found = reach.of_spec(spec)
    except ValueError as problem:
        raise ChimeError("invalid", str(problem)) from None
    if found and not allowed:
        text = f"{name} reaches beyond itself on its node: {reach.words(found)}; if that is meant: --allow-unsafe"
        raise ChimeError("refused-unsafe", text)
    return [f"{name} reaches beyond itself: {finding.text}" for finding in found]


def audit_reach(ctx: Context, actor: str, uuid: str, unsafe: list[str]) -> None:
    """Records what was allowed."""
    if unsafe:
        ctx.audit(actor, "unsafe-allowed", uuid, clean_text("; ".join(unsafe)))
