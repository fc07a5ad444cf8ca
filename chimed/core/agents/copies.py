"""What a report of a VM means: from its owner, from a node that does not own it, and after a restore.

Rules: the owner's word counts in the present epoch; whoever else has a copy gets a release for it; of a VM that nobody
knows any more the newest holder keeps it; an epoch that an agent holds is never undercut; owner and epoch follow an
agent's higher epoch only during the recovery after a restore, and only with proof that it was given (`proofs`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable

import msgspec

from chimed.core.rules import alarms, arrivals, behind, networks, ownership, proofs, recovery
from chimed.core.rules.arrivals import Verdict
from chimed.core.rules.evidence import OFF
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.sessions import Session
from chimed.core.state.turn import Context
from chimed.core.work import attempts
from wire.messages import VmReport
from wire.types import EPOCHS_PER_GENERATION, Desired, Observed
from wire.words import Problem

OTHERS_AT_ONCE = 100
"""VMs of other nodes that are looked at in one turn. A node that comes back may have copies of many, and who has its
key may claim to have all there are: each may take an alarm and a release."""
_UNDECIDED = (Verdict.WAIT, Verdict.ASK)


def reconcile(facts: Facts, session: Session, uuids: Iterable[str]) -> None:
    """Compares what the node of `session` reports of these VMs with what should be. What the others have said of them
    may mean something else now. Beyond `OTHERS_AT_ONCE` it is done in later turns (`settle_rest`): it is no
    more than what a later report would do. A recovery ends by what is found here: then nothing is left for later."""
    all_heard = functools.cache(alarms.all_are_heard)  # there may be many, of VMs and of nodes
    room = sys.maxsize if facts.ctx.tables.meta.recovering else OTHERS_AT_ONCE
    later: set[str] = set()
    for uuid in sorted(uuids):
        if _means_nothing(facts, uuid):
            continue
        vm = facts.ctx.tables.vms.get(uuid)
        room -= vm is not None and vm.node != session.node
        if room < 0 and vm is not None and vm.node != session.node:
            later.add(uuid)
            continue
        settle = functools.partial(_settle, facts, session, uuid, all_heard)
        facts.ctx.contained(f"what {session.node} says of {uuid}", settle)
    facts.sessions.settle_later(session, later)


def settle_rest(facts: Facts) -> str:
    """Goes on with what was left for later, of one node. Returns its name."""
    session, uuids = facts.sessions.take_unsettled()
    reconcile(facts, session, uuids)
    return session.node


def _means_nothing(facts: Facts, uuid: str) -> bool:
    """Whether all that `_settle` does would change nothing: for a VM that nobody knows and one node invents, of which
    there may be thousands."""
    if facts.ctx.tables.vms.get(uuid) is not None:
        return False
    seen_on = facts.sessions.seen_on(uuid)
    return (seen_on == 0 or (seen_on == 1 and alarms.are_many(facts.ctx))) and not alarms.is_raised(facts.ctx, uuid)


def _settle(facts: Facts, session: Session, uuid: str, all_heard: Callable[[Facts], bool]) -> None:
    report, vm = session.reports.get(uuid), facts.ctx.tables.vms.get(uuid)
    if report is not None and vm is not None:
        _look(facts, vm, session.node, report)
        recovery.settle_vm(facts, facts.ctx.tables.vms.get(uuid) or vm)
        row = facts.ctx.tables.migrations.get(uuid)
        if row is not None:
            attempts.decide(facts, row)
        _has_failed(facts, session.node, report)
        _look_at_others(facts, uuid, session.node)
    elif vm is None:
        _settle_unknown(facts, uuid)
    alarms.sync_vm(facts, uuid, all_heard)


def look_elsewhere(facts: Facts, node_name: str) -> None:
    """The node is lost: copies of its VMs may mean something else now."""
    for vm in facts.ctx.tables.vms.by("node", node_name):
        what = f"copies of {vm.name}"
        facts.ctx.contained(what, functools.partial(_look_at_others, facts, vm.uuid, node_name))


def undecided(facts: Facts, node_name: str) -> list[r.Vm]:
    """VMs of other nodes that this one has a copy of, by a migration of which nobody can tell yet how it ended."""
    others = [vm for vm in facts.ctx.tables.vms if vm.node != node_name and vm.desired != Desired.DELETED]
    said = [(vm, report) for vm in others if (report := facts.said(node_name, vm.uuid)) is not None]
    return [vm for vm, copy in said if arrivals.mark(copy) and arrivals.judge(facts, vm, node_name, copy) in _UNDECIDED]


def _settle_unknown(facts: Facts, uuid: str) -> None:
    """A VM that a restored database does not know: who holds it in an older epoch than another lost it in the history
    that is undone, and would start it once the recovery is over."""
    said = facts.sessions.sightings(uuid)
    owners = (report for session, report in said if _is_owners(facts.ctx, session.node, report))
    newest = max((report.epoch for report in owners), default=0)
    for session, report in said:
        if report.revision > 0 and report.epoch < newest:
            ownership.release_any(facts.ctx, session.node, uuid, report.name, report.epoch)


def _look_at_others(facts: Facts, uuid: str, node_name: str) -> None:
    for session, report in facts.sessions.sightings(uuid):
        vm = facts.ctx.tables.vms.get(uuid)
        if vm is not None and session.node not in (node_name, vm.node):
            _look(facts, vm, session.node, report)


def _look(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> None:
    ctx = facts.ctx
    if _is_found(ctx, vm, node_name, report):
        found = msgspec.structs.replace(vm, held=r.Held.NOTHING)
        ownership.move(ctx, found, node_name, f"{node_name} was given it after the backup, and {vm.node} has it not")
        recovery.sync_alarm(ctx)
    elif _is_invented(ctx, vm, node_name, report):
        ctx.counters["impossible-epochs"] += 1
    elif report.epoch > vm.epoch and not ctx.tables.meta.recovering:
        _newer(facts, vm, node_name, report)
    elif report.epoch > _highest(ctx):
        ctx.counters["impossible-epochs"] += 1
    elif vm.node == node_name:
        _from_owner(ctx, vm, report)
        _has_left(facts, report)
    else:
        _from_other(facts, vm, node_name, report)


def _is_found(ctx: Context, vm: r.Vm, node_name: str, report: VmReport) -> bool:
    """After a restore: whether a node that was not known then has the VM that its owner has not. Since the owner got it
    no other node was given it, as far as the database goes; so that was later."""
    is_sought = vm.held == r.Held.START and not ctx.tables.meta.holding and vm.desired != Desired.DELETED
    return is_sought and node_name != vm.node and report.epoch >= vm.since and _is_owners(ctx, node_name, report)


def _highest(ctx: Context) -> int:
    """No server of this generation has given a later epoch."""
    return ctx.tables.meta.generation * EPOCHS_PER_GENERATION


def _is_invented(ctx: Context, vm: r.Vm, node_name: str, report: VmReport) -> bool:
    """An epoch of this generation that this database has not seen is one that another server with its key has given,
    and shows that, or is none."""
    is_new = report.epoch > vm.epoch and _of_this_generation(ctx, report.epoch)
    return is_new and not proofs.was_given(ctx, node_name, report)


def _newer(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> None:
    """An epoch that this database has not seen, and no restore is being recovered from. One of an earlier generation is
    of a history that was undone: its copy has to go. One of this generation, which a server with this key has given,
    shows that this database is behind."""
    ctx = facts.ctx
    if _of_this_generation(ctx, report.epoch):
        text = f"{node_name} was given {vm.name} in epoch {report.epoch}, and this database knows only {vm.epoch}"
        behind.noted(ctx, ctx.tables.meta.generation, text)
    elif vm.node == node_name:
        _from_owner(ctx, vm, report)
        _has_left(facts, report)
    elif not arrivals.mark(report) or arrivals.left(report):
        ownership.release(ctx, node_name, vm, report.epoch)
    else:
        _from_copy(facts, vm, node_name, report)


def raise_ignored(ctx: Context, session: Session, revision: int) -> None:
    """After a restore: a node that does not follow an assignment it has (it released that epoch in the history that the
    restore has undone) gets the VM in an epoch of this generation."""
    ignored = []
    for vm in ctx.tables.vms.by("node", session.node):
        report = session.reports.get(vm.uuid)
        held = report is not None and (report.revision > 0 or arrivals.left(report) is not None)
        follows = held or _of_this_generation(ctx, vm.epoch)
        if not follows and vm.revision <= revision and vm.desired != Desired.DELETED:
            ignored.append(vm)
    _hold_for_a_person(ctx, ignored, "its owner does not follow the restored epoch")


def hold_what_is_off(facts: Facts, node: r.Node) -> None:
    """Since the backup the node has begun anew: a VM that does not run there may have moved to a node that was added
    since, and nobody who is known can tell. A person has to say that it is to be started."""
    off = []
    for vm in facts.ctx.tables.vms.by("node", node.name):
        report = facts.said(node.name, vm.uuid)
        is_off = report is None or report.observed not in alarms.ALIVE
        if is_off and vm.desired != Desired.DELETED and vm.held != r.Held.START:
            off.append(vm)
    _hold_for_a_person(facts.ctx, off, "its owner has begun anew since the backup, and does not run it")


def _hold_for_a_person(ctx: Context, vms: list[r.Vm], why: str) -> None:
    """They wait, in an epoch of this generation, which their owner follows when it may."""
    for vm in vms:
        held = msgspec.structs.replace(vm, held=r.Held.START)
        ownership.raise_epoch(ctx, held, ctx.next_epoch(held), why)
    if vms:
        recovery.sync_alarm(ctx)


def _of_this_generation(ctx: Context, epoch: int) -> bool:
    return epoch > (ctx.tables.meta.generation - 1) * EPOCHS_PER_GENERATION


def _from_owner(ctx: Context, vm: r.Vm, report: VmReport) -> None:
    if report.epoch > vm.epoch:
        is_away = arrivals.left(report) is not None  # it must not begin anew
        has_it = (report.revision > 0 or is_away) and proofs.was_given(ctx, vm.node, report)
        epoch = report.epoch if has_it else max(ctx.next_epoch(vm), report.epoch + 1)
        ownership.raise_epoch(ctx, vm, epoch, f"its agent has known epoch {report.epoch}")
        return
    if report.observed == Observed.RUNNING and not vm.exists:
        vm = msgspec.structs.replace(vm, exists=True)
        ctx.tables.vms.put(vm)
    halted = report.halted and report.epoch == vm.epoch and report.start_serial == vm.start_serial
    if halted and vm.desired == Desired.RUNNING and not ctx.tables.meta.holding:
        ctx.audit("guest", "vm-stopped", vm.uuid, "the guest powered itself off")
        revision = ctx.bump(vm.node)
        ctx.tables.vms.put(msgspec.structs.replace(vm, desired=Desired.STOPPED, revision=revision))


def _has_left(facts: Facts, report: VmReport) -> None:
    """The owner says that the VM has left by an order on the node, and where to: whether or not the other end is heard,
    it is the only one that may have it. What the server has ordered is decided elsewhere (`attempts`)."""
    ctx, vm, row = facts.ctx, facts.ctx.tables.vms.get(report.uuid), facts.ctx.tables.migrations.get(report.uuid)
    said = arrivals.gone(vm, report) if vm is not None else None
    if said is None or vm is None or vm.desired == Desired.DELETED or (row is not None and row.attempt == said.attempt):
        return
    target = networks.other_node_at(ctx.tables.nodes, said.peer, vm.node)
    if target is None:
        return
    if target.evidence is not None and not facts.is_live(target.name):  # an owner's word is no word about another node
        ctx.said_to_leave_for.setdefault(target.name, set()).add(vm.uuid)
    else:
        attempts.arrive(ctx, vm, target.name, said.attempt, f"{vm.node} says that it has left")


def come_home(facts: Facts, node_name: str) -> None:
    """The node has told all that it has: VMs that were said to have left for it, while it was proven to run nothing,
    are its own."""
    for uuid in sorted(facts.ctx.said_to_leave_for.pop(node_name, ())):
        vm = facts.ctx.tables.vms.get(uuid)
        report = facts.said(vm.node, uuid) if vm is not None else None
        if report is not None:
            what = f"what was said to have left for {node_name}"
            facts.ctx.contained(what, functools.partial(_has_left, facts, report))


def _has_failed(facts: Facts, node_name: str, report: VmReport) -> None:
    """The owner says that an attempt has failed, whoever ordered it: whether or not the other end is heard, it may have
    a copy, and is told once to end it."""
    ctx, said = facts.ctx, arrivals.failed(report)
    vm, row = ctx.tables.vms.get(report.uuid), ctx.tables.migrations.get(report.uuid)
    if said is None or vm is None or vm.node != node_name or vm.failed == said.attempt:
        return
    if row is not None or ctx.tables.meta.holding or not _has_stayed(report):
        return
    target = networks.other_node_at(ctx.tables.nodes, said.peer, vm.node)
    if target is None:
        return
    if vm.desired != Desired.DELETED:
        told = msgspec.structs.replace(vm, failed=said.attempt)
        ownership.end_copy(ctx, told, target.name, "may have a stale copy")
    elif not _is_given_back(ctx, vm):
        ownership.release(ctx, target.name, vm, vm.epoch)


def _has_stayed(report: VmReport) -> bool:
    """Whether the VM is surely where its owner says, and did not leave by a person's later migration."""
    return report.observed in OFF | {Observed.RUNNING, Observed.PAUSED} and report.problem != Problem.MIGRATED_AWAY


def _from_other(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> None:
    ctx = facts.ctx
    if vm.desired == Desired.DELETED and report.epoch <= vm.epoch:
        if not (_is_given_back(ctx, vm) and arrivals.mark(report)):
            ownership.release(ctx, node_name, vm, report.epoch)
    elif report.epoch > vm.epoch and (_of_this_generation(ctx, vm.epoch) or vm.desired == Desired.DELETED):
        ctx.counters["impossible-epochs"] += _of_this_generation(ctx, vm.epoch)
    elif report.epoch <= vm.epoch or arrivals.mark(report):
        _from_copy(facts, vm, node_name, report)
    elif _is_owners(ctx, node_name, report):
        ownership.adopt(ctx, vm, node_name, report.epoch)


def _is_given_back(ctx: Context, vm: r.Vm) -> bool:
    """Whether the VM leaves Chime as it is. A copy may be that VM, which its node's operator migrated at the same time:
    it is not ended. A person decides (the alarm vm-unknown)."""
    release = ctx.tables.releases.get(vm.node, vm.uuid)
    return release is not None and release.keep


def _from_copy(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> None:
    verdict = arrivals.judge(facts, vm, node_name, report)
    if verdict is Verdict.RELEASE:
        _copy_goes(facts, vm, node_name, report)
    elif verdict is Verdict.MOVE:
        why = f"{node_name} has it, {vm.node} has not"
        attempts.arrive(facts.ctx, vm, node_name, arrivals.mark(report), why, report.observed == Observed.RUNNING)
    elif verdict is Verdict.ASK and vm.doubt != arrivals.mark(report):
        revision = facts.ctx.bump(vm.node)
        facts.ctx.tables.vms.put(msgspec.structs.replace(vm, doubt=arrivals.mark(report), revision=revision))


def _copy_goes(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> None:
    """Where an owner has sent a copy, it may send another: that one comes in a later epoch. What was only sighted costs
    the owner nothing."""
    sent = report.epoch == vm.epoch and not arrivals.left(report) and arrivals.is_proven(facts, vm, node_name, report)
    if sent:
        ownership.end_copy(facts.ctx, vm, node_name, "has a stale copy")
    else:
        ownership.release(facts.ctx, node_name, vm, report.epoch)


def _is_owners(ctx: Context, node_name: str, report: VmReport) -> bool:
    """Whether an epoch that the restored database has not seen makes the node the owner: it was given the VM in that
    epoch, and holds it, or runs it and has lost its snapshot."""
    is_there = report.revision > 0 or report.observed in alarms.ALIVE
    return is_there and report.epoch <= _highest(ctx) and proofs.was_given(ctx, node_name, report)
