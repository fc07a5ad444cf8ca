"""Requests of operators that change a node: register, enable, disable, drain, rebuild, remove.

Rules: everything that could make two instances is refused here before it can begin: missing evidence, locks, a node
that is not drained, recovery after a restore.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chimed.core.agents import copies
from chimed.core.operators.checks import Done, RequestParts, names_of
from chimed.core.operators.queries import find_node
from chimed.core.rules import alarms, evidence, ownership, placement, recovery
from chimed.core.rules.alarms import NODE_CODES
from chimed.core.state import rows as r
from chimed.core.work import migration, operations, progress, rebuild
from wire import messages as m
from wire.errors import ChimeError
from wire.text import counted
from wire.types import AdminState, Desired, Evidence, Health, Observed, StepState
from wire.words import OperationKind


class NodeRequests:
    """One method for each verb. Each takes (body, actor, now)."""

    def __init__(self, parts: RequestParts) -> None:
        self._parts, self._ctx, self._facts, self._views = parts, parts.ctx, parts.facts, parts.views
        self.handlers: dict[type[m.Base], Callable[..., Done]] = {
            m.NodeAdd: self._node_add,
            m.NodeRekey: self._node_rekey,
            m.NodeRemove: self._node_remove,
            m.NodeEnable: self._node_enable,
            m.NodeDisable: self._node_disable,
            m.NodeDrain: self._node_drain,
            m.NodeRebuild: self._node_rebuild,
        }

    def _node_add(self, body: m.NodeAdd, actor: str, now: float) -> Done:
        if self._ctx.tables.nodes.get(body.name):
            text = f"node {body.name} exists already: chime-tool node rekey {body.name} gives it a new key"
            raise ChimeError("exists", text)
        self._parts.new_key(body.public_key)
        plan = [f"adds node {body.name}"]
        if body.dry_run:
            return Done(plan)
        forgotten = self._ctx.tables.meta.forgotten_revision  # no node of this name was given a later one
        node = r.Node(
            name=body.name,
            public_key=body.public_key,
            ping_address=body.address or "",
            created=self._ctx.wall(),
            revision=forgotten + 2,
            given=forgotten + 1,
        )
        self._ctx.tables.nodes.put(node)
        self._ctx.audit(actor, "node-added", body.name)
        return Done(plan, extra={"node": self._views.node(node, now)})

    def _node_rekey(self, body: m.NodeRekey, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._parts.new_key(body.public_key)
        plan = [f"gives {node.name} a new key; its agent is refused until it has the new one"]
        if body.dry_run:
            return Done(plan)
        changed = msgspec.structs.replace(node, public_key=body.public_key)
        self._ctx.tables.nodes.put(changed)
        self._facts.sessions.drop(node.name)
        self._ctx.audit(actor, "node-rekeyed", node.name)
        return Done(plan, extra={"node": self._views.node(changed, now)})

    def _node_remove(self, body: m.NodeRemove, actor: str, _now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._removable(node)
        releases = self._ctx.tables.releases.by("node", node.name)
        plan = [f"removes node {node.name}; its key is refused from now on"]
        warnings = []
        if releases:
            moved = counted(len(releases), "moved VM")
            warnings = [
                f"{node.name} never confirmed the removal of {moved}: a node of this name that is added again is told "
                "to remove what is left"
            ]
        if body.dry_run:
            return Done(plan, warnings=warnings)
        self._forget(node)
        self._ctx.audit(actor, "node-removed", node.name)
        return Done(plan, warnings=warnings)

    def _removable(self, node: r.Node) -> None:
        if self._ctx.tables.meta.holding:
            text = f"the database was restored or put back, and {node.name} may know what it does not"
            todo = "wait until the recovery is over, or end it without the nodes that cannot be heard"
            raise ChimeError("recovering", f"{text}: {todo} (chime-tool recovery confirm)")
        self._parts.unlocked(node)
        coming = self._ctx.tables.migrations.by("target", node.name)
        if coming:
            moving = counted(len(coming), "VM is", "VMs are")
            raise ChimeError("locked", f"{moving} being migrated to {node.name}: wait for that")
        vms = self._ctx.tables.vms.by("node", node.name)
        if vms:
            owned = f"owns {counted(len(vms), 'VM')} ({names_of(vms)})"
            raise ChimeError("refused-unsafe", f"{node.name} {owned}: rebuild the node or delete its VMs first")
        if node.health != Health.UNKNOWN and (node.admin_state != AdminState.DRAINED or node.evidence is None):
            raise ChimeError("refused-unsafe", f"drain {node.name} first: {evidence.missing(node)}")
        open_copies = copies.undecided(self._facts, node.name)
        if open_copies:
            copied = f"{counted(len(open_copies), 'VM')} ({names_of(open_copies)})"
            there = f"may have a copy, by a migration, of {copied}"
            todo = "wait until every node that owns one of them is heard, or rebuild it"
            raise ChimeError("refused-unsafe", f"{node.name} {there}: {todo}")

    def _forget(self, node: r.Node) -> None:
        tables = self._ctx.tables
        highest = max(tables.meta.forgotten_revision, node.revision)
        tables.meta = msgspec.structs.replace(tables.meta, forgotten_revision=highest)
        for command in tables.commands.by("node", node.name):
            tables.commands.delete(command)
        tables.nodes.delete(node)
        self._parts.forget_node(node.name)
        self._ctx.sync_alarms(node.name, {}, NODE_CODES)
        alarms.sync_mass(self._ctx)

    def _node_enable(self, body: m.NodeEnable, actor: str, now: float) -> Done:
        return self._open(body, AdminState.ENABLED, actor, now)

    def _node_disable(self, body: m.NodeDisable, actor: str, now: float) -> Done:
        return self._open(body, AdminState.DISABLED, actor, now)

    def _open(self, body: m.NodeEnable | m.NodeDisable, state: AdminState, actor: str, _now: float) -> Done:
        node = find_node(self._ctx, body.name)
        if node.admin_state == state:
            return Done([f"{node.name} is {state} already"], changed=False)
        self._parts.unlocked(node)
        plan = [f"sets {node.name} to {state}"]
        if node.admin_state == AdminState.DRAINED and node.evidence is not None:
            self._parts.settled()  # else nothing was given away: the drain is only taken back
        if node.admin_state == AdminState.DRAINED and not recovery.why_holding(self._ctx):
            plan += self._end_of_drain(node)
        if not body.dry_run:
            evidence.opened(self._ctx, node, state)
            recovery.sync_alarm(self._ctx)
            self._ctx.audit(actor, f"node-{state}", node.name, f"{node.admin_state} -> {state}")
        return Done(plan)

    def _end_of_drain(self, node: r.Node) -> list[str]:
        """What becomes of the node's VMs when it is drained no more. What is held waits on."""
        vms, plan = self._ctx.tables.vms.by("node", node.name), []
        vms = [vm for vm in vms if vm.desired == Desired.RUNNING and vm.held == r.Held.NOTHING]
        if node.held:
            plan = [f"{node.name} was not drained, since that waited for a person's word: what runs there goes on"]
            vms = [vm for vm in vms if self._views.vm(vm).observed not in (Observed.RUNNING, Observed.PAUSED)]
        return plan + ([f"starts {counted(len(vms), 'VM')} on {node.name}: {names_of(vms)}"] if vms else [])

    def _node_drain(self, body: m.NodeDrain, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        evacuation = self._evacuation(node)
        if evacuation is None:
            self._parts.unlocked(node)
        self._check_evidence(node, body.evidence)
        live = self._facts.is_live(node.name)
        if node.admin_state == AdminState.DRAINED and not node.held and (node.evidence is not None or not live):
            return self._drain_again(node, body, actor)
        plan, warnings = self._drain_plan(node, live, body.evidence)
        if evacuation is not None:
            plan.append(f"cancels {evacuation.id} ({evacuation.label}); what is under way is decided first")
        if body.dry_run:
            return Done(plan, warnings=warnings)
        if evacuation is not None:
            migration.cancel_operation(self._facts, evacuation, actor)
            node = find_node(self._ctx, body.name)
        node = evidence.drained(self._ctx, node, body.graceful_s)
        recovery.sync_alarm(self._ctx)
        step = r.Step(name="stop all VMs", state=StepState.RUNNING)
        timeout_s = body.graceful_s + self._ctx.policy.operation_timeout_s
        label = f"drain {node.name}"
        op = self._parts.begin(OperationKind.DRAIN, node.name, label, actor, (step,), node.drain_serial, now, timeout_s)
        node = find_node(self._ctx, node.name)
        if body.evidence is None and self._facts.is_lost(node):
            operations.succeed(self._ctx, op, progress.unheard(node))
            return Done(plan, op, warnings=warnings)
        if body.evidence is not None:
            self._attest(node, actor, body.comment)
        progress.progress(self._facts, op)
        return Done(plan, op, warnings=warnings)

    def _evacuation(self, node: r.Node) -> r.Operation | None:
        """The evacuation that holds the node: unlike other work it gives way to a drain."""
        op = self._ctx.tables.operations.get(node.lock)
        return op if op is not None and op.kind == OperationKind.EVACUATE else None

    def _drain_again(self, node: r.Node, body: m.NodeDrain, actor: str) -> Done:
        if node.evidence is not None or body.evidence is None:
            known = f"evidence {node.evidence}" if node.evidence else "no evidence yet"
            warnings = [] if node.evidence else [evidence.missing(node)]
            return Done([f"{node.name} is drained already ({known})"], changed=False, warnings=warnings)
        if not body.dry_run:
            self._attest(node, actor, body.comment)
        return Done([f"records your word that {node.name} runs none of its VMs"], warnings=evidence.doubts(node))

    def _drain_plan(self, node: r.Node, live: bool, given: Evidence | None) -> tuple[list[str], list[str]]:
        vms = self._ctx.tables.vms.by("node", node.name)
        if live:
            on = [vm for vm in vms if self._views.vm(vm).observed in (Observed.RUNNING, Observed.PAUSED)]
            what = f"stops {counted(len(on), 'running VM')} on {node.name}" + (f": {names_of(on)}" if on else "")
            waits = f"nothing is stopped before the recovery is over; {recovery.awaited(self._ctx)}"
            warnings = [waits] if self._ctx.tables.meta.recovering else []
            return [f"sets {node.name} to drained: nothing is started there", what], warnings
        plan = [f"sets {node.name} to drained: when it comes back it starts nothing"]
        if given is not None:
            return [*plan, f"records your word that {node.name} runs none of its VMs"], evidence.doubts(node)
        return plan, [evidence.missing(node)]

    def _check_evidence(self, node: r.Node, given: Evidence | None) -> None:
        evidence.check_word(given)
        if given is None:
            return
        evidence.check_attestable(node, self._facts.is_lost(node))

    def _attest(self, node: r.Node, actor: str, comment: str) -> r.Node:
        attested = evidence.attest(self._ctx, node, actor, comment)
        self._ctx.tables.nodes.put(attested)
        return attested

    def _node_rebuild(self, body: m.NodeRebuild, actor: str, now: float) -> Done:
        node = find_node(self._ctx, body.name)
        self._parts.unlocked(node)
        self._parts.settled()
        if node.admin_state != AdminState.DRAINED:
            text = f"{node.name} is {node.admin_state}: drain it first (chime-tool node drain {node.name})"
            raise ChimeError("refused-unsafe", text)
        if node.held:
            text = f"the database was restored or put back, and may be wrong about {node.name} being drained"
            raise ChimeError("refused-unsafe", f"{text}: drain it again first (chime-tool node drain {node.name})")
        if node.evidence is None and body.evidence is None:
            raise ChimeError("no-evidence", evidence.missing(node))
        if node.evidence is None:
            self._check_evidence(node, body.evidence)
        vms = self._ctx.tables.vms.by("node", node.name)
        steps = rebuild.steps_for(vms)
        plan = self._rebuild_plan(node, vms, steps, body.evidence)
        warnings = [step.detail for step in steps if step.state == StepState.SKIPPED]
        if node.evidence is None:
            warnings += evidence.doubts(node)
        if body.dry_run or not vms:
            return Done(plan, changed=bool(vms), warnings=warnings)
        if node.evidence is None:
            self._attest(node, actor, body.comment)
        self._end_deletions(vms, node)
        if not steps:
            return Done(plan)
        label = f"rebuild {node.name}"
        uuids = {vm.uuid for vm in vms}
        self._ctx.sighted = {key: at for key, at in self._ctx.sighted.items() if key[1] not in uuids}
        op = self._parts.begin(OperationKind.REBUILD, node.name, label, actor, steps, node.drain_serial, now)
        progress.progress(self._facts, op)
        return Done(plan, op, warnings=warnings)

    def _end_deletions(self, vms: list[r.Vm], node: r.Node) -> None:
        """VMs that were being deleted are gone; their releases wait for the node."""
        for vm in vms:
            if vm.desired == Desired.DELETED and vm.held == r.Held.NOTHING:
                op = self._ctx.tables.operations.get(
                    ownership.forget(self._ctx, vm, f"{node.name} is rebuilt without it")
                )
                if op is not None:
                    progress.progress(self._facts, op)

    def _rebuild_plan(
        self, node: r.Node, vms: list[r.Vm], steps: tuple[r.Step, ...], given: Evidence | None
    ) -> list[str]:
        if not vms:
            return [f"{node.name} owns no VM: there is nothing to rebuild"]
        by_uuid = {vm.uuid: vm for vm in vms}
        plan = [f"evidence that {node.name} runs none of its VMs: {node.evidence or given}"]
        deleted = [vm for vm in vms if vm.desired == Desired.DELETED]
        if gone := [vm for vm in deleted if vm.held == r.Held.NOTHING]:
            plan.append(f"forgets {names_of(gone)}, being deleted")
        plan += [_stays(vm) for vm in deleted if vm.held != r.Held.NOTHING]
        rooms = {n.name: (n, room, ok) for n, room, ok in self._facts.candidates(without=node.name)}
        for step in steps:
            vm = by_uuid[step.name]
            if step.state == StepState.SKIPPED:
                plan.append(f"leaves {vm.name}: {step.detail}")
                continue
            if vm.held != r.Held.NOTHING:
                plan.append(_stays(vm))
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


def _stays(vm: r.Vm) -> str:
    """What a rebuild does with a VM that waits for a person's word."""
    return f"leaves {vm.name} until it is confirmed (chime-tool recovery show): {recovery.IN_WORDS[vm.held]}"
