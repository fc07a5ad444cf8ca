"""The agent's side of the session with the server: hello, pull, heartbeats, reports, reconnecting.

Rules: nothing is believed that does not answer the newest question (nonce) of the present session; an answer that does
not come in time ends the connection, and with it everything queued in it; a report stays until it is acknowledged.
The link decides when to speak and what to believe; what is said about VMs comes from the agent core.

    idle --hello--> greeting --welcome--> pulling --last page applied--> ready
      ^                |                     |                             |
      +------ time-out, stale-session, missed acknowledgements -----------+
"""

from __future__ import annotations

import random
from enum import StrEnum

from msgspec import Struct

from agentd.core.effects import Effect, Log, Reconnect, Send
from wire import PROTOCOL_VERSION
from wire import messages as m

MISSED_ACKS = 3
MAX_BACKOFF_S = 30.0


class LinkState(StrEnum):
    """Where the session is."""

    IDLE = "idle"  # waiting to say hello
    GREETING = "greeting"  # hello sent
    PULLING = "pulling"  # session open, inventory not complete yet
    READY = "ready"  # inventory applied


class LinkTimes(Struct, frozen=True):
    """Seconds. The heartbeat interval comes from the server."""

    answer_s: float = 5.0
    retry_s: float = 1.0


class Link:
    """One session after another. Methods return effects; `now` in CLOCK_BOOTTIME seconds."""

    def __init__(
        self, node: str, boot_id: str, incarnation: str, host: m.HostFacts, rng: random.Random, times: LinkTimes
    ) -> None:
        self._node, self._boot_id, self._incarnation = node, boot_id, incarnation
        self.host = host
        self._rng, self._times = rng, times
        self.state = LinkState.IDLE
        self.session = ""
        self.heartbeat_s = 15.0
        self.generation = 0
        self.newest_revision = 0
        self.report_wanted = False
        self.last_error = ""
        self._failures = 0
        self._next_hello = 0.0
        self._nonce = ""
        self._answer_by = 0.0
        self._seq = 0
        self._next_beat = 0.0
        self._beat_nonce = ""
        self._last_ack = 0.0
        self._pages: list[m.Inventory] = []
        self._pulling_from = 0
        self._report_seq = 0
        self._report_by = 0.0
        self._report_hold = 0.0

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if self.state == LinkState.IDLE:
            return self._next_hello
        if self.state == LinkState.GREETING:
            return self._answer_by
        deadlines = [self._next_beat, self._last_ack + MISSED_ACKS * self.heartbeat_s]
        if self._nonce:
            deadlines.append(self._answer_by)
        if self._report_seq:
            deadlines.append(self._report_by)
        elif self.report_wanted and self.state == LinkState.READY:
            deadlines.append(self._report_hold)
        return min(deadlines)

    def tick(self, now: float) -> list[Effect]:
        """Says hello when it is time, gives up what was not answered."""
        if self.state == LinkState.IDLE:
            return self._hello(now) if now >= self._next_hello else []
        if self.state == LinkState.GREETING:
            return self.drop(now, "no answer to hello") if now >= self._answer_by else []
        if now >= self._last_ack + MISSED_ACKS * self.heartbeat_s:
            return self.drop(now, "the server does not answer heartbeats")
        if self._nonce and now >= self._answer_by:
            return self.drop(now, "no answer to pull")
        if self._report_seq and now >= self._report_by:
            return self.drop(now, "no answer to report")
        return []

    def disconnected(self, why: str, now: float) -> list[Effect]:
        """The connection ended. While idle a new one is on its way already."""
        return [] if self.state == LinkState.IDLE else self.drop(now, why)

    def beat_due(self, now: float) -> bool:
        """Whether a heartbeat should be sent now."""
        return self.state in (LinkState.PULLING, LinkState.READY) and now >= self._next_beat

    def drop(self, now: float, why: str, wait_s: float | None = None) -> list[Effect]:
        """Ends the session; hello again after `wait_s`, or a back-off that grows and is spread at random."""
        level = "warning" if self.last_error != why else "debug"
        self.last_error = why
        if wait_s is None:
            base = min(self._times.retry_s * 2 ** min(self._failures, 10), MAX_BACKOFF_S)
            wait_s = base * (0.5 + self._rng.random())
        self._failures += 1
        self._next_hello = now + wait_s
        self.state, self.session, self._nonce = LinkState.IDLE, "", ""
        self._pages, self._report_seq = [], 0
        return [Log(level, f"link: session ended: {why}; hello again in {wait_s:.1f} s"), Reconnect()]

    # --- hello --------------------------------------------------------------------------------------------------------

    def _hello(self, now: float) -> list[Effect]:
        self.state, self._answer_by = LinkState.GREETING, now + self._times.answer_s
        self._nonce = self._new_nonce()
        return [
            Send(
                m.Hello(
                    versions=(PROTOCOL_VERSION,),
                    node=self._node,
                    boot_id=self._boot_id,
                    incarnation=self._incarnation,
                    nonce=self._nonce,
                    host=self.host,
                )
            )
        ]

    def welcome(self, body: m.Welcome, now: float) -> list[Effect]:
        """A session is open: pull everything."""
        if self.state != LinkState.GREETING or body.nonce != self._nonce:
            return []
        self.session, self.heartbeat_s = body.session, body.heartbeat_s
        self.generation, self.newest_revision = body.generation, body.revision
        self._failures, self.last_error = 0, ""
        self._seq, self._report_seq, self._last_ack, self._next_beat = 0, 0, now, now
        return [Log("info", "link: session open"), *self.pull(0, now)]

    # --- pull ---------------------------------------------------------------------------------------------------------

    def pull(self, since: int, now: float) -> list[Effect]:
        """Asks for what changed after `since`; replaces a pull that is under way."""
        self._pages = []
        self._pulling_from = since
        if since == 0:
            self.state = LinkState.PULLING
        return self._ask_page(since, now)

    def _ask_page(self, since: int, now: float) -> list[Effect]:
        self._nonce, self._answer_by = self._new_nonce(), now + self._times.answer_s
        return [Send(m.Pull(session=self.session, nonce=self._nonce, since=since))]

    @property
    def pulling(self) -> bool:
        """A pull is under way."""
        return self.state in (LinkState.PULLING, LinkState.READY) and bool(self._nonce)

    def page(self, body: m.Inventory, now: float) -> tuple[list[Effect], list[m.Inventory]]:
        """One page came. The second part is the complete inventory (its pages) once the last one is there."""
        if not self.pulling or body.session != self.session or body.nonce != self._nonce:
            return [], []
        if self._pages and body.generation != self._pages[0].generation:
            return self.pull(0, now), []
        self._pages.append(body)
        if body.more:
            return self._ask_page(body.revision, now), []
        pages, self._pages, self._nonce = self._pages, [], ""
        self.generation = body.generation
        self.newest_revision = max(self.newest_revision, body.revision)
        return [], pages

    @property
    def full_pull(self) -> bool:
        """The pull under way, or the last one, asked for everything."""
        return self._pulling_from == 0

    def applied(self) -> None:
        """The inventory is saved and in force."""
        self.state, self.report_wanted = LinkState.READY, True

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def beat(self, revision: int, digest: str, faults: tuple[m.Fault, ...], load: m.Load, now: float) -> list[Effect]:
        """A heartbeat."""
        self._seq += 1
        self._beat_nonce = self._new_nonce()
        self._next_beat = max(self._next_beat + self.heartbeat_s, now + self.heartbeat_s / 2)
        body = m.Heartbeat(
            session=self.session,
            seq=self._seq,
            nonce=self._beat_nonce,
            boot_id=self._boot_id,
            incarnation=self._incarnation,
            revision=revision,
            digest=digest,
            faults=faults,
            load=load,
        )
        return [Send(body)]

    def hurry_beat(self, now: float) -> None:
        """Makes the next heartbeat due at once: a fault came or went."""
        self._next_beat = now

    def ack(self, body: m.HeartbeatAck, now: float) -> None:
        """The server has heard the newest heartbeat; it may name news."""
        if body.session != self.session or body.nonce != self._beat_nonce:
            return
        self._last_ack = now
        self.newest_revision = max(self.newest_revision, body.revision)
        self.report_wanted = self.report_wanted or body.report

    def poked(self, body: m.Poke) -> bool:
        """The server hints at news: pull, if it is our session."""
        return bool(self.session) and body.session == self.session

    # --- reports ------------------------------------------------------------------------------------------------------

    def may_report(self, now: float) -> bool:
        """No report is unanswered, and the session is ready."""
        return self.state == LinkState.READY and self._report_seq == 0 and now >= self._report_hold

    def report_sent(self, seq: int, now: float) -> None:
        """Report `seq` waits for its acknowledgement."""
        self._report_seq, self._report_by = seq, now + self._times.answer_s

    def report_acked(self, body: m.ReportAck) -> bool:
        """Whether this acknowledges the outstanding report."""
        if body.session != self.session or body.seq != self._report_seq:
            return False
        self._report_seq = 0
        return True

    # --- errors -------------------------------------------------------------------------------------------------------

    def refused(self, body: m.ErrorBody, now: float) -> list[Effect]:
        """The server refused something: the session is of no use any more; how soon to try again depends on why."""
        if body.code in ("storage-unavailable", "overloaded") and self.state == LinkState.READY:
            self._report_seq, self._report_hold, self.report_wanted = 0, now + self._times.answer_s, True
            return []
        wait_s = body.details.get("retry_after_s")
        if not isinstance(wait_s, int | float):
            wait_s = None if body.retriable else MAX_BACKOFF_S * (0.5 + self._rng.random())
        if body.code == "stale-session":
            wait_s = self._times.retry_s * self._rng.random()
        return self.drop(now, f"{body.code}: {body.message}", wait_s)

    def _new_nonce(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"
