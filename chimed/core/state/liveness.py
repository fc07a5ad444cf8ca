"""Which nodes are alive. Heartbeats push a deadline; a missed one starts pings; pings only name the state.

    alive --3 heartbeats missed--> asking --reply--> agent-lost      (error: agent-lost)
                                          --none---> silent          (unreachable)
                                          --unsent-> agent-lost, ping-unavailable: no answer is known, never "down"
    agent-lost / silent: asked again every heartbeat interval; any heartbeat --> alive

Rules: nobody is judged before a full grace period after the server's start, nor for the server's own sleep (a stalled
loop gives everyone a new heartbeat interval, a long stall a new grace period, and pings under way begin again);
nothing here decides about VMs. Deadlines are equal for all, so that the order of last heartbeats is the order of
deadlines: one ordered dict, no heap. Only the few nodes that are being pinged are in a heap.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from enum import StrEnum

from msgspec import Struct

STALL_S = 1.0
NEVER = float("inf")


class Phase(StrEnum):
    """What liveness knows of a node."""

    ALIVE = "alive"  # heard from within the limit
    ASKING = "asking"  # heartbeats missed, being pinged
    AGENT_LOST = "agent-lost"  # no heartbeats; ping answers, or could not be sent
    SILENT = "silent"  # no heartbeats, no ping reply
    GRACE = "grace"  # not heard from since the server's start, and not judged yet


TRANSITIONS: dict[Phase, dict[Phase, str]] = {
    Phase.GRACE: {
        Phase.ALIVE: "heard",
        Phase.AGENT_LOST: "silent for the grace period; ping answers, or cannot be sent",
        Phase.SILENT: "silent for the grace period; no ping reply",
    },
    Phase.ALIVE: {Phase.ASKING: "heartbeats missed"},
    Phase.ASKING: {
        Phase.ALIVE: "heard",
        Phase.AGENT_LOST: "ping answers, or cannot be sent",
        Phase.SILENT: "no ping reply",
    },
    Phase.AGENT_LOST: {Phase.ALIVE: "heard", Phase.SILENT: "no ping reply any more"},
    Phase.SILENT: {Phase.ALIVE: "heard", Phase.AGENT_LOST: "ping answers, or cannot be sent"},
}
"""Every change of phase that there is, and why. A node begins with GRACE (after a restart) or ALIVE (first hello)."""


class Probe(Struct):
    """The pings of a node that is not heard since `heard`. `next_at`: its entry in the heap that counts."""

    heard: float
    sent: int = 0
    next_at: float = 0.0
    answered: bool = False
    unsent: str = ""
    unavailable: bool = False


class Liveness:
    """Timers of all nodes; `now` in monotonic seconds. `in_grace`: nodes that are neither heard since the server's
    start nor judged."""

    def __init__(self, heartbeat_s: float, missed: int, ping_tries: int, ping_timeout_s: float) -> None:
        self._heartbeat_s, self._limit_s = heartbeat_s, heartbeat_s * missed
        self._ping_tries, self._ping_timeout_s = ping_tries, ping_timeout_s
        self._last_heard: OrderedDict[str, float] = OrderedDict()
        self._phases: dict[str, Phase] = {}
        self.in_grace: set[str] = set()
        self._probes: dict[str, Probe] = {}
        self._heap: list[tuple[float, str]] = []
        self._not_before = 0.0
        self._last_tick: float | None = None
        self._expected_tick = NEVER

    # --- facts in -----------------------------------------------------------------------------------------------------

    def watch(self, node: str, now: float) -> None:
        """Begins to wait for a node that was heard in an earlier life of the server: a full grace period."""
        self.forget(node)
        self._last_heard[node] = now
        self._phases[node] = Phase.GRACE  # the beginning
        self.in_grace.add(node)

    def forget(self, node: str) -> None:
        """The node was removed."""
        self.in_grace.discard(node)
        self._last_heard.pop(node, None)
        self._phases.pop(node, None)
        self._probes.pop(node, None)

    def heard(self, node: str, now: float) -> bool:
        """A heartbeat. Returns whether the node's phase changed."""
        self._last_heard[node] = now
        self._last_heard.move_to_end(node)
        if self._phases.get(node) is Phase.ALIVE:
            return False
        self._enter(node, Phase.ALIVE)
        self._probes.pop(node, None)
        return True

    def ping_answered(self, node: str) -> None:
        """A reply came."""
        if node in self._probes:
            self._probes[node].answered = True
            self._schedule(node, 0.0)

    def ping_unsent(self, node: str, why: str) -> None:
        """A ping could not be sent."""
        if node in self._probes:
            self._probes[node].unsent = why or "not possible"
            self._schedule(node, 0.0)

    # --- facts out ----------------------------------------------------------------------------------------------------

    def phase(self, node: str) -> Phase | None:
        """None: never heard from."""
        return self._phases.get(node)

    def ping_unavailable(self, node: str) -> bool:
        """The last round of pings could not be sent."""
        probe = self._probes.get(node)
        return probe is not None and probe.unavailable

    def age_s(self, node: str, now: float) -> float | None:
        """Seconds since the last heartbeat; None if there was none in this life of the server."""
        if self._phases.get(node) in (None, Phase.GRACE):
            return None
        probe = self._probes.get(node)
        return now - (probe.heard if probe else self._last_heard[node])

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        first = next(iter(self._last_heard.values()), NEVER)
        self._drop_stale()
        wake = self._heap[0][0] if self._heap else NEVER
        self._expected_tick = min(wake, max(first + self._limit_s, self._not_before))
        return self._expected_tick

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> tuple[list[str], list[str]]:
        """Returns the nodes to ping now, and the nodes whose phase changed. Call it after all messages are handled."""
        self._credit_stall(now)
        if now >= self._not_before:
            self._expire(now)
        return self._probe(now)

    def _credit_stall(self, now: float) -> None:
        """The loop slept: what it missed is its own fault."""
        last = now if self._last_tick is None else self._last_tick
        lost_s = now - max(last, min(self._expected_tick, last + self._limit_s))
        self._last_tick = now
        if lost_s <= STALL_S:
            return
        credit_s = self._heartbeat_s if lost_s < self._heartbeat_s else self._limit_s
        self._not_before = max(self._not_before, now + credit_s)
        for node, probe in self._probes.items():
            if self._phases[node] in (Phase.ASKING, Phase.GRACE):
                probe.sent = 0
                self._schedule(node, now)

    def _expire(self, now: float) -> None:
        while self._last_heard:
            node, heard = next(iter(self._last_heard.items()))
            if heard + self._limit_s > now:
                break
            del self._last_heard[node]
            self._probes[node] = Probe(heard=heard)
            if self._phases[node] is not Phase.GRACE:
                self._enter(node, Phase.ASKING)
            self._schedule(node, now)

    def _enter(self, node: str, phase: Phase) -> None:
        before = self._phases.get(node, phase)
        assert before is phase or phase in TRANSITIONS[before], f"{before} -> {phase}"
        self._phases[node] = phase
        self.in_grace.discard(node)

    def _schedule(self, node: str, at: float) -> None:
        self._probes[node].next_at = at
        heapq.heappush(self._heap, (at, node))

    def _drop_stale(self) -> None:
        """Entries of the heap count only while their probe still names their time."""
        while self._heap:
            at, node = self._heap[0]
            probe = self._probes.get(node)
            if probe is not None and probe.next_at == at:
                return
            heapq.heappop(self._heap)

    def _probe(self, now: float) -> tuple[list[str], list[str]]:
        to_ping: list[str] = []
        changed: list[str] = []
        self._drop_stale()
        while self._heap and self._heap[0][0] <= now:
            _, node = heapq.heappop(self._heap)
            probe = self._probes[node]
            if probe.answered or probe.unsent or probe.sent >= self._ping_tries:
                if self._conclude(node, probe):
                    changed.append(node)
                self._schedule(node, now + self._heartbeat_s)
            else:
                probe.sent += 1
                to_ping.append(node)
                self._schedule(node, now + self._ping_timeout_s)
            self._drop_stale()
        return to_ping, changed

    def _conclude(self, node: str, probe: Probe) -> bool:
        phase = Phase.AGENT_LOST if probe.answered or probe.unsent else Phase.SILENT
        unavailable = bool(probe.unsent) and not probe.answered
        changed = phase is not self._phases[node] or unavailable != probe.unavailable
        probe.unavailable = unavailable
        self._enter(node, phase)
        probe.sent, probe.answered, probe.unsent = 0, False, ""
        return changed
