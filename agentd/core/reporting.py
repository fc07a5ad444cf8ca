"""What the agent tells the server about its VMs: built from facts, kept until acknowledged.

The outbox is bounded; what is lost when it overflows is the oldest event, and that is said in its place.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable

import msgspec
from msgspec import Struct

from agentd.core import adoption, planner
from agentd.core.durable import DECLINED, Attempt, Durable, Held, Left
from agentd.core.facts import VmFacts
from wire import messages as m
from wire.text import clean_line, clean_text
from wire.types import MigrationPhase, Observed
from wire.words import EventCode, Problem

MAX_EVENTS = 500
MAX_EVENTS_PER_REPORT = 100
MAX_RELEASES_PER_REPORT = 500
MAX_VMS = 3500  # with no details they fit a frame
MAX_DETAIL = 500
MAX_REPORT_BYTES = 1_000_000

_encoder = msgspec.msgpack.Encoder()


class Reporter:
    """What is reported of each VM. A report is made again only when something that it follows from is another object
    than before: most VMs stay as they are while something happens to one."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[object, ...], m.VmReport]] = {}

    def reports(
        self,
        durable: Durable,
        facts: dict[str, VmFacts],
        blocked: dict[str, str],
        ignored: dict[str, str],
        progress: dict[str, m.MigrationProgress],
        starting: Callable[[str], bool],
    ) -> dict[str, m.VmReport]:
        """One report for each VM that this node owns, for each that has left it by migration, for each domain that is
        or was ours without being owned, and for each assignment that was ignored because of its epoch (`ignored`: why,
        by VM). `starting`: whether a start of the VM may be under way, of which nothing is seen yet."""
        self._made = {
            uuid: self._held(
                durable, held, facts.get(uuid), blocked.get(uuid, ""), progress.get(uuid), starting(uuid)
            )
            for uuid, held in durable.held.items()
        }
        reports = {uuid: report for uuid, (_, report) in self._made.items()}
        for uuid, left in durable.left.items():
            reports[uuid] = _left_report(durable, uuid, left, facts.get(uuid))
        for uuid, seen in facts.items():
            if uuid not in reports and (stray := _stray(durable, seen)):
                reports[uuid] = stray
        for uuid, why in ignored.items():
            seen = facts.get(uuid) or VmFacts(uuid, False)
            if uuid not in reports:
                reports[uuid] = _not_held(durable, seen, Problem.STALE_EPOCH, why)
        return reports if len(reports) <= MAX_VMS else dict(list(reports.items())[:MAX_VMS])

    def _held(
        self,
        durable: Durable,
        held: Held,
        seen: VmFacts | None,
        blocked: str,
        progress: m.MigrationProgress | None,
        starting: bool,
    ) -> tuple[tuple[object, ...], m.VmReport]:
        basis = (held, seen, durable.tombstones.get(held.vm.uuid), blocked, durable.drained, progress, starting)
        old = self._made.get(held.vm.uuid)
        if old is not None and all(map(operator.is_, old[0], basis)):
            return old
        report = _held_report(durable, held, seen, blocked, progress)
        if starting and report.observed == Observed.STOPPED and not report.problem:
            report = msgspec.structs.replace(report, problem=Problem.START_PENDING)
        return basis, report


def _held_report(
    durable: Durable, held: Held, seen: VmFacts | None, blocked: str, progress: m.MigrationProgress | None
) -> m.VmReport:
    facts = seen or VmFacts(held.vm.uuid, False)
    if held.declined:
        return _not_held(durable, facts, Problem.STALE_EPOCH, DECLINED)
    sight = planner.observe(durable, facts, blocked)
    problem, detail = adoption.problem(held, facts, blocked)
    if problem:
        sight = sight._replace(problem=problem, detail=detail)
    epoch = max(durable.highest_epoch(held.vm.uuid), _marked(facts))
    return m.VmReport(
        uuid=held.vm.uuid,
        epoch=epoch,
        revision=held.vm.revision,
        observed=sight.observed,
        start_serial=held.vm.start_serial,
        restarts=held.restarts,
        halted=held.halted,
        problem=sight.problem,
        detail=clean_text(sight.detail, MAX_DETAIL),
        name=held.vm.name,
        migration=None if held.attempt is None else _attempt_report(held.attempt, progress),
        seal=_seal(held, facts, epoch),
    )


def _seal(held: Held, facts: VmFacts, epoch: int) -> str:
    """What shows that the VM was given to this node in the epoch that is reported."""
    if epoch == held.vm.epoch:
        return held.vm.seal
    return facts.domain.seal if facts.domain is not None and facts.domain.epoch == epoch else ""


def _attempt_report(attempt: Attempt, progress: m.MigrationProgress | None) -> m.MigrationReport:
    return m.MigrationReport(
        attempt=attempt.id,
        phase=attempt.phase,
        peer=attempt.peer,
        detail=clean_text(attempt.detail, MAX_DETAIL),
        progress=progress,
    )


def _left_report(durable: Durable, uuid: str, left: Left, seen: VmFacts | None) -> m.VmReport:
    """The VM is on its way to another owner: what becomes of it is not known here."""
    gone = seen is None or (seen.domain is None and not seen.processes)
    report = m.MigrationReport(
        attempt=left.attempt,
        phase=MigrationPhase.LEFT,
        peer=left.peer,
        detail=clean_text(left.detail, MAX_DETAIL),
    )
    return m.VmReport(
        uuid=uuid,
        epoch=durable.highest_epoch(uuid),
        revision=0,
        observed=Observed.UNKNOWN if seen is None or gone else planner.observe(durable, seen, "").observed,
        problem=Problem.MIGRATED_AWAY,
        detail="it was migrated away from here",
        name=left.name,
        migration=report,
        seal=left.seal,
    )


def _marked(seen: VmFacts) -> int:
    return (seen.domain.epoch or 0) if seen.domain is not None else 0


def _stray(durable: Durable, seen: VmFacts) -> m.VmReport | None:
    """What is marked, or was ours. A VM that was given back is no business of the server's, but after a restore it may
    not know of that, and would start it elsewhere."""
    domain, tombstone = seen.domain, durable.tombstones.get(seen.uuid)
    if domain is not None and domain.epoch is not None:
        return _not_held(durable, seen)
    if tombstone is None or (domain is None and not seen.processes):
        return None
    if not tombstone.keep or (durable.order.hold and seen.processes):
        return _not_held(durable, seen)
    return None


def _not_held(durable: Durable, seen: VmFacts, problem: str = "", detail: str = "") -> m.VmReport:
    sight, tombstone = planner.observe(durable, seen, ""), durable.tombstones.get(seen.uuid)
    seal = seen.domain.seal if seen.domain is not None and _marked(seen) else ""
    if not _marked(seen) and tombstone is not None:
        seal = tombstone.seal
    return m.VmReport(
        uuid=seen.uuid,
        epoch=_marked(seen) or durable.highest_epoch(seen.uuid),
        revision=0,
        observed=sight.observed,
        problem=sight.problem or problem,
        detail=clean_text(sight.detail or detail, MAX_DETAIL),
        name=clean_line(seen.domain.name, 200) if seen.domain else "",
        migration=_arrival_report(seen),
        seal=clean_line(seal, 64),
    )


def _arrival_report(seen: VmFacts) -> m.MigrationReport | None:
    attempt = clean_line(seen.domain.attempt, 64) if seen.domain is not None else ""
    if not attempt or seen.domain is None:
        return None
    return m.MigrationReport(
        attempt=attempt,
        phase=MigrationPhase.ARRIVED,
        peer=clean_line(seen.domain.origin, 200),
        voucher=clean_line(seen.domain.voucher, 64),
        address=clean_line(seen.domain.address, 64),
    )


def fit(report: m.Report) -> m.Report:
    """The report small enough for a frame: details are shortened first, then left out; events that do not fit were cut
    before (`compose`)."""
    for length in (100, 0):
        if len(_encoder.encode(report)) <= MAX_REPORT_BYTES:
            return report
        vms = tuple(msgspec.structs.replace(vm, detail=clean_text(vm.detail, length)) for vm in report.vms)
        report = msgspec.structs.replace(report, vms=vms)
    return report


def digest_of(reports: dict[str, m.VmReport], drain: m.DrainProof | None, local_drain: bool) -> str:
    """A short name of everything that the server should know of the VMs."""
    hasher = hashlib.blake2b(digest_size=8)
    for uuid in sorted(reports):
        hasher.update(_encoder.encode(reports[uuid]))
    hasher.update(_encoder.encode((drain, local_drain)))
    return hasher.hexdigest()


class Sent(Struct, frozen=True):
    """What an unacknowledged report held."""

    seq: int
    reports: dict[str, m.VmReport]
    events: frozenset[str]
    digest: str
    released: tuple[m.Release, ...]
    local_drain: bool
    full: bool


class Outbox:
    """Events, and what the server has acknowledged so far."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._next_id = 1
        self._lost = 0
        self.events: list[m.AgentEvent] = []
        self._sent: Sent | None = None
        self._acked: dict[str, m.VmReport] = {}
        self._acked_digest: str | None = None
        self.seq = 0

    def add(self, code: str, uuid: str | None, text: str) -> None:
        """Queues an event; the oldest is lost when there are too many."""
        self.events.append(self._event(code, uuid, text))
        if len(self.events) > MAX_EVENTS:
            self._lost += len(self.events) - MAX_EVENTS + (0 if self._lost else 1)
            text = f"{self._lost} events of this node were lost: too many waited"
            lost = self._event(EventCode.EVENTS_LOST, None, text)
            self.events = [lost, *self.events[-MAX_EVENTS + 1 :]]

    def _event(self, code: str, uuid: str | None, text: str) -> m.AgentEvent:
        event_id = f"{self._incarnation}-{self._next_id}"
        self._next_id += 1
        return m.AgentEvent(id=event_id, code=code, uuid=uuid, text=clean_text(text, 500))

    def mark(self) -> tuple[m.AgentEvent, ...]:
        """A point to take a turn back to."""
        return tuple(self.events)

    def rollback(self, mark: tuple[m.AgentEvent, ...]) -> None:
        """Forgets the events since `mark`: the turn that made them could not be recorded. Ids are not used again."""
        self.events = list(mark)

    def new_session(self) -> None:
        """The next report is a full one."""
        self._sent, self._acked, self._acked_digest, self.seq = None, {}, None, 0

    @property
    def told_digest(self) -> str:
        """The digest of the newest report that was acknowledged or is on its way."""
        return self._sent.digest if self._sent else self._acked_digest or ""

    def not_sent(self) -> bool:
        """The report composed last was not sent, or not taken. Returns whether it was a full one."""
        full = self._sent is not None and self._sent.full
        self._sent = None
        return full

    def pending(self, digest: str) -> bool:
        """Whether the server should hear something."""
        return digest != self._acked_digest or bool(self.events)

    def compose(
        self,
        reports: dict[str, m.VmReport],
        digest: str,
        full: bool,
        released: tuple[m.Release, ...],
        local_drain: bool,
    ) -> tuple[bool, tuple[m.VmReport, ...], tuple[m.AgentEvent, ...]]:
        """What the next report holds: (full, VMs, events). It counts as sent under the new `seq`."""
        full = full or self._acked_digest is None or bool(self._acked.keys() - reports.keys())
        vms = tuple(r for uuid, r in reports.items() if full or self._acked.get(uuid) != r)
        events = tuple(self.events[:MAX_EVENTS_PER_REPORT])
        self.seq += 1
        ids = frozenset(event.id for event in events)
        self._sent = Sent(self.seq, dict(reports), ids, digest, released, local_drain, full)
        return full, vms, events

    def acked(self, seq: int) -> Sent | None:
        """The report `seq` is recorded by the server; returns what it held."""
        sent = self._sent
        if sent is None or sent.seq != seq:
            return None
        self._acked, self._acked_digest, self._sent = sent.reports, sent.digest, None
        self.events = [event for event in self.events if event.id not in sent.events]
        self._lost = self._lost if any(event.code == EventCode.EVENTS_LOST for event in self.events) else 0
        return sent
