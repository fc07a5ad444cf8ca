"""Rebuild: the VMs of a drained node are given to other nodes, one step for each VM.

Rules: nothing is moved without evidence at that moment; it ends when the evidence turns out to be false; while the
node's agent looks again (it has just restarted, say) the VMs that are still to be moved wait; a VM with local disks
stays; a VM that fits nowhere waits and is tried again, and is never placed where it should not be.
"""

from __future__ import annotations

import msgspec

from chimed.core.rules import arrivals, ownership, placement, recovery
from chimed.core.rules.alarms import ALIVE
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work import attempts
from chimed.core.work.operations import OPEN_STEPS, fail, succeed
from wire import messages as m
from wire.types import AdminState, Desired, Observed, StepState, Storage

SIGHTED_S = 30.0
"""How long a rebuild waits for a node to remove what nobody can be shown to have sent there."""


def steps_for(vms: list[r.Vm]) -> tuple[r.Step, ...]:
    """One step for each VM of the node; those with local disks are said to stay."""
    steps = []
    for vm in sorted(vms, key=lambda v: v.name):
        if vm.spec.storage == Storage.LOCAL:
            text = f"not rebuilt: its disks are local to {vm.node}, its data is there and nowhere else"
            steps.append(r.Step(name=vm.uuid, state=StepState.SKIPPED, detail=text))
        elif vm.desired != Desired.DELETED:
            steps.append(r.Step(name=vm.uuid, state=StepState.PENDING, detail="to be placed"))
    return tuple(steps)


def progress(facts: Facts, op: r.Operation) -> None:
    """Places what can be placed, and ends when every VM has arrived."""
    node = facts.ctx.tables.nodes.get(op.subject)
    if node is None or node.admin_state != AdminState.DRAINED or node.drain_serial != op.serial:
        fail(facts.ctx, op, f"{op.subject} is not drained any more; nothing more is moved", code="no-evidence")
        return
    if node.evidence is None and (names := _seen_running(facts, node)):
        text = f"{node.name} was said to run nothing, and runs {names}; nothing more is moved"
        fail(facts.ctx, op, text, code="no-evidence")
        return
    targets = _Targets(facts, node.name)
    steps = tuple(_step(facts, op, node, step, targets) for step in op.steps)
    if steps != op.steps:
        op = msgspec.structs.replace(op, steps=steps)
        facts.ctx.tables.operations.put(op)
    if not any(step.state in OPEN_STEPS for step in steps):
        _end_rebuild(facts.ctx, op)


def _seen_running(facts: Facts, node: r.Node) -> str:
    session = facts.sessions.get(node.name)
    reports = session.reports if session is not None else {}
    return ", ".join(sorted(facts.ctx.vm_name(uuid) for uuid, report in reports.items() if report.observed in ALIVE))


def concerns(facts: Facts, op: r.Operation, node_name: str) -> bool:
    """Whether news of this node can change anything about the operation before the next sweep."""
    if op.subject == node_name:
        return True
    vms = (facts.ctx.tables.vms.get(step.name) for step in op.steps if step.state == StepState.RUNNING)
    return any(vm is not None and vm.node == node_name for vm in vms)


class _Targets:
    """Where the node's VMs could go; looked at again after each one that was placed."""

    def __init__(self, facts: Facts, without: str) -> None:
        self._facts, self._without = facts, without
        self._found: list[placement.Candidate] | None = None

    def choose(self, spec: m.VmSpec) -> placement.Choice:
        """The best of them for a VM, or why none is."""
        if self._found is None:
            self._found = self._facts.candidates(without=self._without)
        choice = placement.choose(spec, self._found)
        if choice.node is not None:
            self._found = None
        return choice


def _step(facts: Facts, op: r.Operation, node: r.Node, step: r.Step, targets: _Targets) -> r.Step:
    if step.state not in OPEN_STEPS:
        return step
    vm = facts.ctx.tables.vms.get(step.name)
    if vm is None or vm.desired == Desired.DELETED:
        return msgspec.structs.replace(step, state=StepState.SKIPPED, detail="deleted meanwhile")
    if vm.node == op.subject:
        return _place(facts, op, node, vm, step, targets)
    report = facts.report(vm)
    if report is None:
        return step
    if report.observed == Observed.FAILED:
        return msgspec.structs.replace(step, state=StepState.FAILED, detail=f"on {vm.node}: {report.detail}")
    arrived = Observed.RUNNING if vm.desired == Desired.RUNNING else Observed.STOPPED
    if report.observed == arrived:
        return msgspec.structs.replace(step, state=StepState.DONE, detail=f"{arrived} on {vm.node}")
    return step


def _place(facts: Facts, op: r.Operation, node: r.Node, vm: r.Vm, step: r.Step, targets: _Targets) -> r.Step:
    if facts.ctx.tables.meta.holding:
        text = "until the recovery after a restore is over"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    if node.evidence is None:
        text = f"the evidence that {node.name} runs none of its VMs was withdrawn: its agent has to prove it again"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    if not facts.has_met_all():
        text = "until every node was heard or judged since the server's start"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    if vm.held != r.Held.NOTHING:
        text = f"{recovery.IN_WORDS[vm.held]}: confirm it (chime-tool recovery show)"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    if facts.is_live(node.name) and not facts.in_session(node.name):
        text = f"{node.name} is back: its report is awaited"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    row = facts.ctx.tables.migrations.get(vm.uuid)
    session = facts.sessions.get(node.name)
    if session is not None and (away := arrivals.gone(vm, session.reports.get(vm.uuid))):
        text = f"{node.name} said that it has left for {away.peer}, which is no node: find out whether it runs there"
        return msgspec.structs.replace(step, state=StepState.FAILED, detail=text)
    if row is not None and not facts.is_lost(node):
        text = f"was being migrated to {row.target}: {node.name} is heard, and says how that ended"
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=text)
    if row is not None and (awaited := attempts.give_up(facts, row)):
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=awaited)
    vm = facts.ctx.tables.vms.get(vm.uuid) or vm
    if awaited := _copies_elsewhere(facts, vm):
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=awaited)
    vm = facts.ctx.tables.vms.get(vm.uuid) or vm
    if vm.node != op.subject:
        return msgspec.structs.replace(step, state=StepState.RUNNING, detail=f"on {vm.node}, where it runs")
    choice = targets.choose(vm.spec)
    if choice.node is None:
        return msgspec.structs.replace(step, state=StepState.WAITING, detail=f"no room: {choice.why_not()}")
    ownership.move(facts.ctx, vm, choice.node, f"{op.id}, evidence {node.evidence}")
    return msgspec.structs.replace(step, state=StepState.RUNNING, detail=f"on {choice.node}")


def _copies_elsewhere(facts: Facts, vm: r.Vm) -> str:
    """The owner is proven not to run the VM, and another node has a process of it: one that was sent there by a
    migration and runs is the VM; any other has to go before the VM is placed. Returns what is awaited, or nothing."""
    for session, report in facts.sessions.sightings(vm.uuid):
        if session.node == vm.node or report.observed not in ALIVE or _is_proven_off(facts, session.node):
            continue
        is_sent = arrivals.is_proven(facts, vm, session.node, report)
        if is_sent and arrivals.mark(report) and report.observed == Observed.RUNNING:
            attempts.arrive(facts.ctx, vm, session.node, arrivals.mark(report), f"{session.node} runs it")
            return ""
        ownership.release(facts.ctx, session.node, vm, report.epoch if is_sent else min(report.epoch, vm.epoch))
        if is_sent or _is_fresh(facts.ctx, session.node, vm.uuid):
            return f"{session.node} has a copy: it is asked to remove it"
    return ""


def _is_fresh(ctx: Context, node_name: str, uuid: str) -> bool:
    """A copy of which nothing shows that it was sent there is waited for, but not for ever: it may be a lie."""
    since = ctx.sighted.setdefault((node_name, uuid), ctx.now)
    return ctx.now < since + SIGHTED_S


def _is_proven_off(facts: Facts, node_name: str) -> bool:
    node = facts.ctx.tables.nodes.get(node_name)
    assert node is not None  # sessions end with their nodes
    proven = node.admin_state == AdminState.DRAINED and node.evidence is not None
    return proven and not facts.is_live(node_name)


def _end_rebuild(ctx: Context, op: r.Operation) -> None:
    count = {state: sum(step.state == state for step in op.steps) for state in StepState}
    parts = [f"{count[StepState.DONE]} rebuilt"]
    if count[StepState.SKIPPED]:
        parts.append(f"{count[StepState.SKIPPED]} left in place")
    if count[StepState.FAILED]:
        failed = [ctx.vm_name(step.name) for step in op.steps if step.state == StepState.FAILED]
        fail(ctx, op, f"{', '.join(parts)}, {len(failed)} failed: {', '.join(failed[:10])}")
    else:
        succeed(ctx, op, ", ".join(parts))
