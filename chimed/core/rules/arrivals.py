"""What a copy of a VM on a node that does not own it means, when a migration may have brought it there. Pure.

Rules: the source's word decides, and nothing else: `left` makes the copy the VM, `leaving` leaves it open, anything
else makes it stale. A source that is lost says nothing; only a copy that runs, and that the source can be shown to have
sent there, shows then that the source had left, because nobody but the source starts it. A source that may be heard any
moment is waited for, and one that does not speak of the copy is asked first: its newest report may be older than the
copy. A copy that nobody can be shown to have sent is a sighting: it is told to go, and nothing waits for it.
"""

from __future__ import annotations

from enum import Enum

from chimed.core.rules import proofs
from chimed.core.rules.evidence import OFF
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from wire.messages import MigrationReport, VmReport
from wire.types import MigrationPhase, Observed
from wire.words import Problem


class Verdict(Enum):
    """What follows for the copy."""

    RELEASE = "it is told to go"
    MOVE = "its node is the owner from now on"
    WAIT = "nobody can tell yet"
    ASK = "the owner has to look again: it has not spoken since the copy was seen"


def mark(report: VmReport) -> str:
    """The attempt that brought the copy, or nothing."""
    said = _said(report, MigrationPhase.ARRIVED)
    return said.attempt if said is not None else ""


def left(report: VmReport | None) -> MigrationReport | None:
    """What the node says of an attempt by which the VM has left it."""
    return _said(report, MigrationPhase.LEFT)


def failed(report: VmReport | None) -> MigrationReport | None:
    """What the node says of an attempt that has failed."""
    return _said(report, MigrationPhase.FAILED)


def leaving(report: VmReport | None) -> MigrationReport | None:
    """What the node says of an attempt by which the VM may be leaving it."""
    return _said(report, MigrationPhase.LEAVING)


def _said(report: VmReport | None, phase: MigrationPhase) -> MigrationReport | None:
    said = report.migration if report is not None else None
    return said if said is not None and said.phase == phase else None


def word(facts: Facts, uuid: str, epoch: int, attempt: str) -> MigrationReport | None:
    """What the source of the attempt says of it; None: nobody speaks of it. That it has left is never untrue again."""
    vm = facts.ctx.tables.vms.get(uuid)
    for session, report in facts.sessions.sightings(uuid):
        said = report.migration
        if said is None or said.attempt != attempt or said.phase == MigrationPhase.ARRIVED or report.epoch != epoch:
            continue
        if not proofs.speaks_for(facts.ctx, vm, session.node, report):
            continue
        if said.phase == MigrationPhase.LEFT or facts.in_session(session.node):
            return said
    return None


def judge(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> Verdict:
    """What a node that does not own the VM says of it, a copy or that it has left."""
    if left(report) is not None:
        return Verdict.RELEASE  # it may forget that
    if report.epoch < vm.epoch:
        return _older(facts, vm, node_name, report)
    if not mark(report):
        return _unmarked(facts, vm, node_name, report)
    if not is_proven(facts, vm, node_name, report):
        return _sighted(facts, vm, node_name, report)
    return _present(facts, vm, report)


def is_proven(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> bool:
    """Whether the VM was sent to the node: the server has ordered it, or the copy bears the owner's voucher or seal."""
    row = facts.ctx.tables.migrations.get(vm.uuid)
    if row is not None and (row.attempt, row.target, row.epoch) == (mark(report), node_name, report.epoch):
        return True
    origin = report.migration.peer if report.migration is not None and report.epoch > vm.epoch else vm.node
    return proofs.was_sent(facts.ctx, node_name, report, origin)


_BY_OWNER = {MigrationPhase.LEFT: Verdict.MOVE, MigrationPhase.LEAVING: Verdict.WAIT}
"""What the owner's word about an attempt means for its copy, also in an older epoch: its attempts go on in the next."""


def _sighted(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> Verdict:
    """A copy that is said to have come by an attempt, and shows nothing that it was sent (an agent of an earlier
    version makes such): it is the VM if the owner says that it left for this node; else it goes."""
    said = word(facts, vm.uuid, report.epoch, mark(report))
    if said is not None and said.phase in _BY_OWNER and proofs.is_target(facts.ctx, node_name, vm.node, said):
        return _BY_OWNER[said.phase]
    if report.epoch > vm.epoch:
        return Verdict.WAIT
    return Verdict.RELEASE if _speaks(facts, vm) else Verdict.WAIT


def _present(facts: Facts, vm: r.Vm, report: VmReport) -> Verdict:
    """A copy in the owner's epoch, or (after a restore) in one that the database has not seen."""
    attempt = mark(report)
    row = facts.ctx.tables.migrations.get(vm.uuid)
    is_open = row is not None and row.attempt == attempt
    if row is not None and is_open and row.asked:
        return Verdict.WAIT  # it has its release already
    said = word(facts, vm.uuid, report.epoch, attempt)
    if said is not None and said.phase == MigrationPhase.LEFT:
        return Verdict.MOVE
    if said is not None:
        is_over = said.phase == MigrationPhase.FAILED and not facts.ctx.tables.meta.holding
        return Verdict.RELEASE if is_over else Verdict.WAIT
    if report.observed == Observed.RUNNING and _is_held_off(facts, vm):
        return Verdict.MOVE
    is_gone = _is_lost(facts, vm) or left(facts.said(vm.node, vm.uuid)) is not None
    if report.observed == Observed.RUNNING and (is_gone or report.epoch > vm.epoch):
        return Verdict.MOVE
    if is_gone or is_open or not _speaks(facts, vm):
        return Verdict.WAIT
    return Verdict.RELEASE if _has_looked(facts, vm, attempt) else Verdict.ASK


def _older(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> Verdict:
    """A copy in an epoch before the present one: no more than what is left of another time, unless the owner got the
    present epoch when the VM had left it, and has not taken it."""
    attempt, owners = mark(report), facts.said(vm.node, vm.uuid)
    if not attempt:
        return Verdict.RELEASE
    said = owners.migration if owners is not None else None
    if said is not None and said.attempt == attempt and said.phase in _BY_OWNER:
        meant = is_proven(facts, vm, node_name, report) or proofs.is_target(facts.ctx, node_name, vm.node, said)
        return _BY_OWNER[said.phase] if meant else Verdict.RELEASE
    came_from_owner = report.migration is not None and report.migration.peer == vm.node
    if not came_from_owner or facts.report(vm) is not None:  # it holds the present epoch: it was there when that began
        return Verdict.RELEASE
    return Verdict.WAIT


def _is_held_off(facts: Facts, vm: r.Vm) -> bool:
    """After a restore: the owner does not run the VM, and starts nothing before the recovery is over; or it released
    the present epoch in the history that is undone, and starts nothing before it gets another."""
    owners = facts.said(vm.node, vm.uuid)
    if owners is None:
        return False
    return owners.problem == Problem.STALE_EPOCH or (facts.ctx.tables.meta.holding and owners.observed in OFF)


def _has_looked(facts: Facts, vm: r.Vm, attempt: str) -> bool:
    """Whether the owner has reported the VM after it was asked: it holds the revision that asks."""
    report = facts.said(vm.node, vm.uuid)
    return vm.doubt == attempt and report is not None and report.revision >= vm.revision


def _unmarked(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> Verdict:
    owners = facts.said(vm.node, vm.uuid)
    runs = report.observed == Observed.RUNNING and proofs.was_sent(facts.ctx, node_name, report, vm.node)
    if left(owners):
        return Verdict.MOVE if runs else Verdict.WAIT
    if not _speaks(facts, vm) or leaving(owners):
        return Verdict.WAIT
    return Verdict.MOVE if runs and owners is not None and owners.problem == Problem.MIGRATED_AWAY else Verdict.RELEASE


def _speaks(facts: Facts, vm: r.Vm) -> bool:
    """Whether the owner has said all that it knows: what it does not speak of, it has nothing to do with. During the
    recovery after a restore another node may know more."""
    return facts.in_session(vm.node) and not facts.ctx.tables.meta.holding


def _is_lost(facts: Facts, vm: r.Vm) -> bool:
    owner = facts.ctx.tables.nodes.get(vm.node)
    return owner is not None and facts.is_lost(owner)


def is_expected(facts: Facts, vm: r.Vm, node_name: str, report: VmReport) -> bool:
    """Whether the copy is part of a migration, and no alarm. One that does not run does no harm, stale or not."""
    if not mark(report):
        return False
    return report.observed != Observed.RUNNING or (
        report.epoch >= vm.epoch and judge(facts, vm, node_name, report) is not Verdict.RELEASE
    )
