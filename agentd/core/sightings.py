"""What was last seen of each VM, from looks at the host, lifecycle events and outcomes of actions, in whatever order
they come.

Rules: what was learned later is never replaced by an older look; an event from a run before the present one changes
nothing; what libvirt does not tell is unknown, with the last known domain kept only to name it.
"""

from __future__ import annotations

import msgspec

from agentd.core.durable import Durable
from agentd.core.effects import Acted, Action
from agentd.core.facts import Domain, DomainState, Happening, HostScan, Lifecycle, OffReason, Process, VmFacts

SIGNAL_LASTS_S = 30.0
_BEGINS = (Happening.STARTED, Happening.RESUMED)


class Sightings:
    """Facts by VM. `host_signal`: VMs that a signal from the host ends, and when that was heard. `moved`: VMs that
    ended here because they were migrated away. Times in CLOCK_BOOTTIME seconds."""

    def __init__(self) -> None:
        self.facts: dict[str, VmFacts] = {}
        self.host_signal: dict[str, float] = {}
        self.moved: set[str] = set()
        self._learned: dict[str, float] = {}
        self._start_unheard: set[str] = set()
        self._heard_in_flight: dict[str, Happening] = {}

    # --- looks --------------------------------------------------------------------------------------------------------

    def scanned(self, scan: HostScan, started_at: float, durable: Durable, in_flight: set[str]) -> bool:
        """A look at the whole host. VMs with an action under way, and those of which something was learned after the
        look began, keep what is known. Returns whether another look is needed for the latter."""
        seen = _by_uuid(scan, durable, self.facts)
        newer = {uuid for uuid, at in self._learned.items() if at > started_at}
        for uuid in in_flight | newer:
            if uuid in self.facts:
                seen[uuid] = self.facts[uuid]
            else:
                seen.pop(uuid, None)
        self.facts = seen
        if scan.libvirt_ok:
            self._confirm_running(seen.keys() - in_flight - newer, started_at)
        self._learned = {uuid: self._learned[uuid] for uuid in newer}
        return bool(newer - in_flight)

    def _confirm_running(self, fresh: set[str], started_at: float) -> None:
        for uuid in fresh:
            self._start_unheard.discard(uuid)
            domain = self.facts[uuid].domain
            since = self.host_signal.get(uuid)
            if since is not None and started_at > since + SIGNAL_LASTS_S and domain is not None and domain.active:
                del self.host_signal[uuid]  # it survived, or the news of its next start was lost

    def assigned(self, uuids: set[str], now: float) -> None:
        """These VMs are given to this node: what was seen of them before may be older than the copies by which they
        come, so that only a look from now on tells."""
        for uuid in uuids:
            self.facts.pop(uuid, None)
            self._learned[uuid] = now

    def lost(self) -> None:
        """libvirt does not answer: nothing is known but the processes."""
        self.facts = {uuid: msgspec.structs.replace(seen, libvirt_ok=False) for uuid, seen in self.facts.items()}

    def unknown(self, uuid: str) -> None:
        """An action on the VM does not return."""
        seen = self.facts.get(uuid, VmFacts(uuid, False))
        self.facts[uuid] = msgspec.structs.replace(seen, libvirt_ok=False)

    # --- events -------------------------------------------------------------------------------------------------------

    def happened(self, event: Lifecycle, durable: Durable, in_flight: bool, now: float) -> bool:
        """A lifecycle event. Returns whether a look is needed to understand it."""
        uuid, happening = event.uuid, event.happening
        stale = happening == Happening.STOPPED and uuid in self._start_unheard
        held = durable.held.get(uuid)
        self._note_signals(event, stale or held is None or held.leaving, now)
        if in_flight:
            self._heard_in_flight[uuid] = happening
            return False
        self._learned[uuid] = now
        seen = self.facts.get(uuid)
        if seen is None or not seen.libvirt_ok or seen.domain is None or uuid not in durable.held:
            return True  # a release is only ever confirmed by a look
        if stale or happening in (Happening.DEFINED, Happening.STARTED):
            return True
        if happening == Happening.STOPPED and event.reason == OffReason.SHUTDOWN:
            return True  # it stays off for good if that is so: an event that comes late may be of a run before
        changed = _after(seen.domain, event)
        alive = changed is not None and changed.active
        self.facts[uuid] = VmFacts(uuid, True, changed, seen.processes if alive else ())
        return False

    def _note_signals(self, event: Lifecycle, expected: bool, now: float) -> None:
        """`expected`: that it ends here by a migration is no news."""
        if event.happening == Happening.HOST_SHUTDOWN:
            self.host_signal[event.uuid] = now
        elif event.happening == Happening.STARTED:
            self.host_signal.pop(event.uuid, None)
            self.moved.discard(event.uuid)
            self._start_unheard.discard(event.uuid)
        elif event.happening == Happening.STOPPED and event.reason == OffReason.MIGRATED and not expected:
            self.moved.add(event.uuid)

    # --- actions ------------------------------------------------------------------------------------------------------

    def ordered(self, uuid: str, action: Action) -> None:
        """An action on the VM begins: until it ends, only its outcome tells of the VM."""
        self._heard_in_flight.pop(uuid, None)
        if action == Action.START:
            self._start_unheard.add(uuid)

    def acted(self, event: Acted, now: float) -> bool:
        """An action ended, with what was seen afterwards. Returns whether something happened after that look."""
        uuid, facts = event.uuid, event.facts
        heard = self._heard_in_flight.pop(uuid, None)
        if event.action == Action.START and (event.error or event.refused):
            self._start_unheard.discard(uuid)
        self._learned[uuid] = now
        if not facts.libvirt_ok:
            before = self.facts.get(uuid)
            self.facts[uuid] = msgspec.structs.replace(facts, domain=before.domain if before else None)
            return True
        self.facts[uuid] = facts
        if heard in _BEGINS and (facts.domain is None or not facts.domain.active):
            self.unknown(uuid)  # somebody else's start, or that of a dead predecessor
            return True
        if facts.domain is None:
            return heard == Happening.DEFINED
        ended = heard == Happening.STOPPED and facts.domain.active
        return ended or (heard == Happening.UNDEFINED and facts.domain.persistent)

    def forget(self, durable: Durable) -> None:
        """Drops notes on VMs that are not here any more."""
        known = durable.held.keys() | durable.tombstones.keys() | self.facts.keys()
        self.host_signal = {uuid: at for uuid, at in self.host_signal.items() if uuid in known}
        self.moved &= known
        self._start_unheard &= known
        self._learned = {uuid: at for uuid, at in self._learned.items() if uuid in known}


def _by_uuid(scan: HostScan, durable: Durable, before: dict[str, VmFacts]) -> dict[str, VmFacts]:
    """Facts of every VM that is here, should be, or has a release to carry out."""
    domains = {domain.uuid: domain for domain in scan.domains}
    undone = {uuid for uuid, tombstone in durable.tombstones.items() if not tombstone.done}
    known = durable.held.keys() | undone | domains.keys() | {process.uuid for process in scan.processes}
    if not scan.libvirt_ok:
        known |= before.keys()
        domains = {uuid: seen.domain for uuid, seen in before.items() if seen.domain is not None}
    processes: dict[str, list[Process]] = {}
    for process in scan.processes:
        processes.setdefault(process.uuid, []).append(process)
    facts = {}
    for uuid in known:
        seen = VmFacts(uuid, scan.libvirt_ok, domains.get(uuid), tuple(processes.get(uuid, ())))
        old = before.get(uuid)
        facts[uuid] = old if old == seen else seen  # the same object while nothing changes: compared at no cost
    return facts


_HAPPENING_STATE: dict[Happening, DomainState] = {
    Happening.PAUSED: DomainState.PAUSED,
    Happening.PAUSED_IO_ERROR: DomainState.PAUSED,
    Happening.RESUMED: DomainState.RUNNING,
    Happening.STOPPED: DomainState.OFF,
}


def _after(domain: Domain, event: Lifecycle) -> Domain | None:
    """The domain after the event; None if it is gone."""
    if event.happening == Happening.UNDEFINED:
        return msgspec.structs.replace(domain, persistent=False) if domain.active else None
    state = _HAPPENING_STATE.get(event.happening)
    if state is None:
        return domain
    if state == DomainState.OFF and not domain.persistent:
        return None
    io_error = event.happening == Happening.PAUSED_IO_ERROR
    return msgspec.structs.replace(domain, state=state, reason=event.reason, io_error=io_error)
