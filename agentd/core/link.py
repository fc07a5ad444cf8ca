"""The agent's side of the session with the server: hello, pull, heartbeats, reports, reconnecting.

Rules: nothing is believed that does not answer the newest question (nonce) of the present session; an answer that does
not come in time ends the connection, and with it everything queued in it; a report stays until it is acknowledged.
The link decides when to speak and what to believe; what is said about VMs comes from the agent core.

    idle --hello--> greeting --welcome--> pulling --last page applied--> ready
      ^                |                     |                             |
      +------ time-out, stale-session, missed acknowledgements -----------+

    greeting --the server knows less than this node has followed--> older (heartbeats only)

An inventory that is older than its welcome ends the session: the next hello tells the server what this node has. A
pull that is not answered is repeated in the same session; so is one whose inventory could not be saved.
"""

from __future__ import annotations

import random
from enum import StrEnum

from msgspec import Struct

from agentd.core.effects import Effect, Log, Reconnect, Send
from wire import PROTOCOL_VERSION
from wire import messages as m

MISSED_ACKS = 3
MISSED_PULLS = 3
MAX_BACKOFF_S = 30.0
REFUSED_S = 60.0  # before the next hello when an operator has to change something
MAX_WAIT_S = 300.0
MIN_HEARTBEAT_S = 0.05
KEY_REFUSED = "the server refuses this node's key"
"""Why a connection ended that the server did not let in. Nothing else is heard of that: no hello comes through."""
KEEPS_SESSION = ("storage-unavailable", "overloaded")


class LinkState(StrEnum):
    """Where the session is."""

    IDLE = "idle"  # waiting to say hello
    GREETING = "greeting"  # hello sent
    PULLING = "pulling"  # session open, inventory not complete yet
    READY = "ready"  # inventory applied
    OLDER = "older"  # session open with a server that knows less than this node has followed: heartbeats only


TRANSITIONS: dict[LinkState, dict[LinkState, str]] = {
    LinkState.IDLE: {LinkState.GREETING: "hello sent"},
    LinkState.GREETING: {
        LinkState.PULLING: "welcome",
        LinkState.OLDER: "welcome of a server that is behind this node",
        LinkState.IDLE: "no answer, refused, or connection lost",
    },
    LinkState.PULLING: {
        LinkState.READY: "last page applied",
        LinkState.IDLE: "no answer, session refused, or connection lost",
    },
    LinkState.READY: {
        LinkState.PULLING: "a new generation, or the inventory could not be saved",
        LinkState.IDLE: "no answer, session refused, or connection lost",
    },
    LinkState.OLDER: {LinkState.IDLE: "session refused (the server recovers), or connection lost"},
}
"""Every change of state that there is, and why."""


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
        self.history = ""
        self.newest: m.Point | None = None  # where the newest inventory stands that was applied and saved
        self.newest_revision = 0
        self.pulled_revision = 0
        self.report_wanted = False
        self.last_error = ""
        self.key_refused = False  # when the server last answered
        self._failures = 0
        self._next_hello = 0.0
        self._nonce = ""
        self._answer_by = 0.0
        self._next_pull = 0.0
        self._missed_pulls = 0
        self._seq = 0
        self._next_beat = 0.0
        self._last_beat = 0.0
        self._beat_nonce = ""
        self._last_ack = 0.0
        self._pages: list[m.Inventory] = []
        self._pulling_from = 0
        self._asked_from = 0
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
        elif self._wants_pull:
            deadlines.append(self._next_pull)
        if self._report_seq:
            deadlines.append(self._report_by)
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
            return self._pull_missed(now)
        if self._report_seq and now >= self._report_by:
            return self.drop(now, "no answer to report")
        return []

    def _pull_missed(self, now: float) -> list[Effect]:
        self._missed_pulls += 1
        if self._missed_pulls >= MISSED_PULLS:
            return self.drop(now, "no answer to pull")
        return self.pull(self._pulling_from, now)

    def disconnected(self, why: str, now: float) -> list[Effect]:
        """The connection ended. While idle a new one is on its way already."""
        self.key_refused = self.key_refused or why == KEY_REFUSED
        return [] if self.state == LinkState.IDLE else self.drop(now, why)

    def beat_due(self, now: float) -> bool:
        """Whether a heartbeat should be sent now."""
        return self.state in (LinkState.PULLING, LinkState.READY, LinkState.OLDER) and now >= self._next_beat

    def drop(self, now: float, why: str, wait_s: float | None = None) -> list[Effect]:
        """Ends the session; hello again after `wait_s`, or a back-off that grows and is spread at random."""
        level = "warning" if self.last_error != why else "debug"
        self.last_error = why
        if wait_s is None:
            base = min(self._times.retry_s * 2 ** min(self._failures, 10), MAX_BACKOFF_S)
            wait_s = base * (0.5 + self._rng.random())
        self._failures += 1
        self._next_hello = now + wait_s
        self._enter(LinkState.IDLE)
        self.session = self._nonce = ""
        self._pages, self._report_seq, self._report_hold, self._missed_pulls = [], 0, 0.0, 0
        return [Log(level, f"link: session ended: {why}; hello again in {wait_s:.1f} s"), Reconnect()]

    # --- hello --------------------------------------------------------------------------------------------------------

    def _hello(self, now: float) -> list[Effect]:
        self._enter(LinkState.GREETING)
        self._answer_by = now + self._times.answer_s
        self._nonce = self._new_nonce()
        body = m.Hello(
            versions=(PROTOCOL_VERSION,),
            node=self._node,
            boot_id=self._boot_id,
            incarnation=self._incarnation,
            nonce=self._nonce,
            host=self.host,
            newest=self.newest,
        )
        return [Send(body, self._nonce)]

    def welcomed(self, body: m.Welcome) -> bool:
        """Whether this answers the newest hello."""
        return self.state == LinkState.GREETING and body.nonce == self._nonce

    def welcome(self, body: m.Welcome, now: float, older: bool) -> list[Effect]:
        """A session is open: pull everything. `older`: the server knows less than this node has followed: it hears that
        the node lives, and no more."""
        self.session, self.heartbeat_s = body.session, max(body.heartbeat_s, MIN_HEARTBEAT_S)
        self.generation, self.history, self.newest_revision = body.generation, body.history, body.revision
        self.last_error, self.key_refused = "", False
        self._seq, self._report_seq, self._last_ack, self._next_beat = 0, 0, now, now
        if not older:
            return [Log("info", "link: session open"), *self.pull(0, now)]
        self._enter(LinkState.OLDER)
        self._nonce, self._failures = "", 0  # it will end the session when it has recovered: hello again at once then
        return [Log("error", "link: the server that answers is older than what this node has followed")]

    # --- pull ---------------------------------------------------------------------------------------------------------

    def pull(self, since: int, now: float) -> list[Effect]:
        """Asks for what changed after `since`; replaces a pull that is under way."""
        self._pages = []
        self._pulling_from = since
        if since == 0:
            self._enter(LinkState.PULLING)
        return self._ask_page(since, now)

    def _ask_page(self, since: int, now: float) -> list[Effect]:
        self._nonce, self._answer_by = self._new_nonce(), now + self._times.answer_s
        self._asked_from = since
        return [Send(m.Pull(session=self.session, nonce=self._nonce, since=since), self.session)]

    def ask_again(self, now: float) -> list[Effect]:
        """Repeats the question that is open, so that a later answer counts; pages that came stay."""
        return self._ask_page(self._asked_from, now)

    @property
    def behind(self) -> bool:
        """The server has news that were not pulled yet."""
        return self.newest_revision > self.pulled_revision

    def pull_due(self, now: float) -> bool:
        """Whether a pull should begin now."""
        return self._wants_pull and not self._nonce and now >= self._next_pull

    @property
    def _wants_pull(self) -> bool:
        return self.state == LinkState.PULLING or (self.state == LinkState.READY and self.behind)

    @property
    def pulling(self) -> bool:
        """A pull is under way."""
        return self.state in (LinkState.PULLING, LinkState.READY) and bool(self._nonce)

    def page(self, body: m.Inventory, now: float) -> tuple[list[Effect], list[m.Inventory]]:
        """One page came. The second part is the complete inventory (its pages) once the last one is there. One that
        comes after its time is not believed: this process, or the host, may have slept since it was sent."""
        if not self.pulling or body.session != self.session or body.nonce != self._nonce or now >= self._answer_by:
            return [], []
        if self._pages and body.generation != self._pages[0].generation:
            return self.pull(0, now), []
        self._pages.append(body)
        if body.more:
            return self._ask_page(body.revision, now), []
        pages, self._pages, self._nonce = self._pages, [], ""
        self.generation, self.history = body.generation, body.history
        self.newest_revision = max(self.newest_revision, body.revision)
        self.pulled_revision, self._missed_pulls = body.revision, 0
        return [], pages

    @property
    def asked_at(self) -> float:
        """When the newest page was asked for: what it holds is not older than that."""
        return self._answer_by - self._times.answer_s

    @property
    def full_pull(self) -> bool:
        """The pull under way, or the last one, asked for everything."""
        return self._pulling_from == 0

    def applied(self) -> None:
        """The inventory is in force, and saved before anything else is sent."""
        self.report_wanted = self.report_wanted or self.state == LinkState.PULLING
        self._enter(LinkState.READY)

    def _enter(self, state: LinkState) -> None:
        assert state is self.state or state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def not_applied(self, now: float, wait_s: float) -> None:
        """The inventory could not be saved: everything is pulled again later; heartbeats go on."""
        if self.session:
            self._enter(LinkState.PULLING)
            self._nonce, self._pages = "", []
            self._next_pull = now + wait_s

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def beat(self, revision: int, digest: str, faults: tuple[m.Fault, ...], load: m.Load, now: float) -> list[Effect]:
        """A heartbeat."""
        self._seq += 1
        self._beat_nonce = self._new_nonce()
        self._next_beat = max(self._next_beat + self.heartbeat_s, now + self.heartbeat_s / 2)
        self._last_beat = now
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
        return [Send(body, self.session)]

    def hurry_beat(self, now: float) -> None:
        """Makes the next heartbeat due at once (but not many in a row): a fault came or went."""
        self._next_beat = min(self._next_beat, max(now, self._last_beat + min(1.0, self.heartbeat_s / 4)))

    def ack(self, body: m.HeartbeatAck, now: float) -> None:
        """The server has heard the newest heartbeat; it may name news."""
        if body.session != self.session or body.nonce != self._beat_nonce:
            return
        self._last_ack = now
        self.newest_revision = max(self.newest_revision, body.revision)
        self.report_wanted = self.report_wanted or body.report

    def poked(self, body: m.Poke) -> bool:
        """The server hints at news: pull, if it is our session."""
        return bool(self.session) and body.session == self.session and self.state != LinkState.OLDER

    # --- reports ------------------------------------------------------------------------------------------------------

    def may_report(self, now: float) -> bool:
        """No report is unanswered, none is held back, and the session is ready."""
        return self.state == LinkState.READY and self._report_seq == 0 and now >= self._report_hold

    def report_at(self) -> float:
        """When a report that is wanted may be sent."""
        return self._report_hold if self.state == LinkState.READY and self._report_seq == 0 else float("inf")

    def hold_report(self, now: float, wait_s: float, full: bool) -> None:
        """The report was not sent, or not taken: another one later."""
        self._report_seq, self._report_hold = 0, now + wait_s
        self.report_wanted = self.report_wanted or full

    def report_sent(self, seq: int, now: float) -> None:
        """Report `seq` waits for its acknowledgement."""
        self._report_seq, self._report_by = seq, now + self._times.answer_s

    def report_acked(self, body: m.ReportAck) -> bool:
        """Whether this acknowledges the outstanding report."""
        if body.session != self.session or body.seq != self._report_seq:
            return False
        self._report_seq, self._failures = 0, 0
        return True

    # --- errors -------------------------------------------------------------------------------------------------------

    def refused(self, body: m.ErrorBody, correlation_id: str, now: float) -> list[Effect]:
        """The server refused something: the session is of no use any more; how soon to try again depends on why."""
        if self.state == LinkState.IDLE or (correlation_id and correlation_id not in (self.session, self._nonce)):
            return []  # about a session that is over
        self.key_refused = body.code == "unknown-key"
        if body.code in KEEPS_SESSION and self.session:
            return self._put_off(now)
        return self.drop(now, f"{body.code}: {body.message[:300]}", self._wait_after(body))

    def _put_off(self, now: float) -> list[Effect]:
        if self._nonce:
            self._nonce, self._pages, self._next_pull = "", [], now + self._times.answer_s
        if self._report_seq:
            self.hold_report(now, self._times.answer_s, True)
        return []

    def _wait_after(self, body: m.ErrorBody) -> float | None:
        wait_s = body.details.get("retry_after_s")
        if isinstance(wait_s, int | float) and not isinstance(wait_s, bool):
            return min(max(float(wait_s), self._times.retry_s / 10), MAX_WAIT_S)
        if body.code == "stale-session":
            return self._times.retry_s * self._rng.random() * float(2 ** min(self._failures, 5))
        return None if body.retriable else REFUSED_S * (0.75 + 0.5 * self._rng.random())

    def _new_nonce(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"
