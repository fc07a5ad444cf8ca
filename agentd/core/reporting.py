"""What the agent tells the server about its VMs: built from facts, kept until acknowledged.

The outbox is bounded; what is lost when it overflows is the oldest event, and that is said in its place.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from agentd.core import planner
from agentd.core.durable import Durable
from agentd.core.facts import VmFacts
from wire import messages as m

MAX_EVENTS = 500
MAX_EVENTS_PER_REPORT = 100

_encoder = msgspec.msgpack.Encoder()


def vm_reports(durable: Durable, facts: dict[str, VmFacts], blocked: dict[str, str]) -> dict[str, m.VmReport]:
    """One report for each VM that this node owns, and for each domain that is or was ours without being owned."""
    reports = {}
    for uuid, held in durable.held.items():
        seen = facts.get(uuid) or VmFacts(uuid, False)
        sight = planner.observe(durable, seen, blocked.get(uuid, ""))
        reports[uuid] = m.VmReport(
            uuid=uuid,
            epoch=held.vm.epoch,
            revision=held.vm.revision,
            observed=sight.observed,
            start_serial=held.vm.start_serial,
            restarts=held.restarts,
            halted=held.halted,
            problem=sight.problem,
            detail=sight.detail[:500],
            name=held.vm.name,
        )
    for uuid, seen in facts.items():
        if uuid not in reports and (stray := _stray(durable, seen)):
            reports[uuid] = stray
    return reports


def _stray(durable: Durable, seen: VmFacts) -> m.VmReport | None:
    domain, tombstone = seen.domain, durable.tombstones.get(seen.uuid)
    if domain is None or (domain.epoch is None and tombstone is None):
        return None
    sight = planner.observe(durable, seen, "")
    return m.VmReport(
        uuid=seen.uuid,
        epoch=domain.epoch if domain.epoch is not None else tombstone.epoch if tombstone else 0,
        revision=0,
        observed=sight.observed,
        problem=sight.problem,
        detail=sight.detail,
        name=domain.name[:200],
    )


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


class Outbox:
    """Events, and what the server has acknowledged so far."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._next_id = 1
        self.events: list[m.AgentEvent] = []
        self._sent: Sent | None = None
        self._acked: dict[str, m.VmReport] = {}
        self._acked_digest: str | None = None
        self.seq = 0

    def add(self, code: str, uuid: str | None, text: str) -> None:
        """Queues an event; the oldest is lost when there are too many."""
        event = m.AgentEvent(id=f"{self._incarnation}-{self._next_id}", code=code, uuid=uuid, text=text[:500])
        self._next_id += 1
        self.events.append(event)
        self.events = self.events[-MAX_EVENTS:]

    def mark(self) -> int:
        """A point to roll back to."""
        return self._next_id

    def rollback(self, mark: int) -> None:
        """Forgets the events since `mark`: the turn that made them could not be recorded."""
        self.events = self.events[: max(0, len(self.events) - (self._next_id - mark))]

    def new_session(self) -> None:
        """The next report is a full one."""
        self._sent, self._acked, self._acked_digest = None, {}, None

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
        self._sent = Sent(self.seq, dict(reports), ids, digest, released, local_drain)
        return full, vms, events

    def acked(self, seq: int) -> Sent | None:
        """The report `seq` is recorded by the server; returns what it held."""
        sent = self._sent
        if sent is None or sent.seq != seq:
            return None
        self._acked, self._acked_digest, self._sent = sent.reports, sent.digest, None
        self.events = [event for event in self.events if event.id not in sent.events]
        return sent
