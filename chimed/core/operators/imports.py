"""Requests of operators that take a running VM into management, and give one back.

Rules: what is imported is what a survey showed: its owner compares before it takes over. An import places nothing: the
VM is where it is, whether there is room or not. Nothing that may belong to another node is imported.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chimed.core.operators.checks import Done, RequestParts
from chimed.core.operators.queries import find_node, find_vm
from chimed.core.operators.vms import audit_reach, check_name, check_reach, check_spec
from chimed.core.rules import ownership
from chimed.core.state import rows as r
from chimed.core.work import imports
from wire import messages as m
from wire.errors import ChimeError
from wire.types import AdminState, Desired, StepState
from wire.words import OperationKind


class ImportRequests:
    """One method for each verb. Each takes (body, actor, now)."""

    def __init__(self, parts: RequestParts) -> None:
        self._parts, self._ctx, self._facts, self._views = parts, parts.ctx, parts.facts, parts.views
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            m.VmImport: self._vm_import,
            m.VmRelease: self._vm_release,
        }

    def _vm_import(self, body: m.VmImport, actor: str, now: float) -> Done:
        if body.desired == Desired.DELETED or body.spec.xml is None:
            raise ChimeError("invalid", "an import needs the domain's XML, and desired running or stopped")
        check_name(body.name, body.uuid)
        check_spec(body.spec)
        unsafe = check_reach(body.name, body.spec, body.allow_unsafe)
        self._check_free(body)
        self._check_node(body.node)
        self._check_elsewhere(body)
        plan = [f"takes {body.name} on {body.node} into management as it is, {body.desired}"]
        if body.dry_run:
            return Done(plan, warnings=unsafe)
        vm = r.Vm(
            uuid=body.uuid,
            name=body.name,
            spec=body.spec,
            node=body.node,
            epoch=self._ctx.known_epoch(),
            desired=body.desired,
            revision=self._ctx.bump(body.node),
            exists=True,
            adopt=True,
            created=self._ctx.wall(),
        )
        epoch = self._ctx.next_epoch(vm)
        vm = msgspec.structs.replace(vm, epoch=epoch, since=epoch)
        self._ctx.tables.vms.put(vm)
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        label = f"import {vm.name} from {vm.node}"
        op = self._parts.begin(OperationKind.IMPORT, vm.uuid, label, actor, (step,), vm.revision, now)
        audit_reach(self._ctx, actor, vm.uuid, unsafe)
        return Done(plan, op, warnings=unsafe, extra={"vm": self._views.vm(self._ctx.tables.vms.get(vm.uuid) or vm)})

    def _check_free(self, body: m.VmImport) -> None:
        known = self._ctx.tables.vms.get(body.uuid)
        if known is not None:
            raise ChimeError("exists", f"a VM with UUID {body.uuid} exists already: {known.name} on {known.node}")
        named = self._ctx.tables.vms.first("name", body.name)
        if named is not None:
            raise ChimeError("exists", f"a VM named {body.name} exists already on {named.node}")
        if ownership.is_unconfirmed(self._ctx, body.uuid):
            raise ChimeError("conflict", f"a node has not confirmed yet that it has given up {body.uuid}")

    def _check_node(self, name: str) -> None:
        node = find_node(self._ctx, name)
        if node.admin_state == AdminState.DRAINED:
            raise ChimeError("refused-unsafe", f"{name} is drained: what is imported there would be stopped")
        self._parts.unlocked(node)
        self._parts.settled()
        if not self._facts.in_session(name):
            state = "has not reported yet" if self._facts.is_live(name) else f"is not heard: it is {node.health}"
            raise ChimeError("node-unreachable", f"{name} takes no import now: it {state}")

    def _check_elsewhere(self, body: m.VmImport) -> None:
        """A node that knows the UUID as one of Chime's may run it too, or have to give it up."""
        self._parts.all_met()
        nodes = self._facts.holders(body.uuid, body.node)
        if nodes == [body.node]:
            text = f"{body.node} knows {body.uuid} as a VM of Chime's: vm create --uuid takes such a VM over"
            raise ChimeError("conflict", text)
        if nodes:
            text = f"on {', '.join(nodes)} there is a VM with UUID {body.uuid} too: it must not be managed twice"
            raise ChimeError("conflict", text)

    def _vm_release(self, body: m.VmRelease, actor: str, now: float) -> Done:
        vm = find_vm(self._ctx, body.vm)
        if vm.desired == Desired.DELETED:
            known = self._ctx.tables.releases.get(vm.node, vm.uuid)
            if known is not None and known.keep:
                op = self._ctx.tables.operations.get(vm.operation)
                return Done([f"{vm.name} is being given back already"], op, changed=False)
        node = self._parts.commandable(vm)
        self._parts.settled()
        self._parts.confirmed(vm)
        self._parts.here(vm)
        plan = [f"gives {vm.name} back: it stays on {node.name} as it is, and Chime forgets it"]
        warnings = ["nothing starts it again from then on when it ends or its node boots: not Chime, and not libvirt"]
        if body.dry_run:
            return Done(plan, warnings=warnings)
        step = r.Step(name=f"on {vm.node}", state=StepState.RUNNING)
        op = self._parts.begin(OperationKind.RELEASE, vm.uuid, f"release {vm.name}", actor, (step,), 0, now)
        imports.give_back(self._ctx, find_vm(self._ctx, vm.uuid))
        return Done(plan, op, warnings=warnings)
