"""Who speaks for each node now. Volatile: after a restart of the server every agent says hello again.

Rules: one session for each node, the newest; messages of another session are refused; a host with another boot id is
admitted only after the old one was asked (poked) and stayed silent for `challenge_s`, so that a copied key on a second
host never takes over from a living one. Time in which the server itself slept is no silence. What the sessions report
is findable by VM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct, field

from chimed.core.state.liveness import NEVER, STALL_S
from wire.messages import Fault, Hello, Load, VmReport


class Session(Struct):
    """The newest session of a node. `reports`: what its agent sees, by VM; `reported`: a full report has come;
    `full_wanted`: another one is asked for; `looks_for`: the migrations because of which one was.
    `kept`: about so many bytes of text. `seq` and `report_seq`: the newest heartbeat and report. `unrecorded`: its
    agent has begun anew while nothing could be recorded: it is heard, and given nothing before that is."""

    node: str
    route: bytes
    id: str
    boot_id: str
    incarnation: str
    heard: float
    seq: int = 0
    report_seq: int = 0
    revision: int = 0
    digest: str = ""
    reported: bool = False
    full_wanted: bool = False
    looks_for: set[str] = field(default_factory=set)
    faults: tuple[Fault, ...] = ()
    load: Load = field(default_factory=Load)
    reports: dict[str, VmReport] = field(default_factory=dict)
    kept: int = 0
    unrecorded: bool = False


class Challenge(Struct):
    """A host with another boot id wants in; the old session was asked at `since` and has until `due`. `over`: all
    messages that came until then are handled."""

    boot_id: str
    since: float
    due: float
    over: bool = False


class Sessions:
    """Sessions by node."""

    def __init__(self, challenge_s: float) -> None:
        self._challenge_s = challenge_s
        self._by_node: dict[str, Session] = {}
        self._challenges: dict[str, Challenge] = {}
        self._seen_on: dict[str, tuple[str, ...]] = {}
        self._unsettled: dict[str, set[str]] = {}
        self._taken: tuple[str, set[str]] = ("", set())

    def get(self, node: str) -> Session | None:
        """The node's session, if it has one in this life of the server."""
        return self._by_node.get(node)

    def drop(self, node: str) -> None:
        """Ends the node's session, and what it reported."""
        session = self._by_node.pop(node, None)
        self._challenges.pop(node, None)
        self._unsettled.pop(node, None)
        if session is not None:
            self._unsee(node, session.reports)

    def forget_challenges(self) -> None:
        """The questions were never sent: they have to be asked again."""
        self._challenges.clear()

    def admission(self, hello: Hello, now: float, alive_s: float) -> str:
        """What to do with a hello: `admit`, `ask` (poke the old session first), `wait`, or `cloned`.

        `alive_s`: a session that was silent for longer needs no question."""
        old = self._by_node.get(hello.node)
        if old is None or old.boot_id == hello.boot_id or now - old.heard > alive_s:
            return "admit"
        challenge = self._challenges.get(hello.node)
        if challenge is None or challenge.boot_id != hello.boot_id:
            self._challenges[hello.node] = Challenge(hello.boot_id, now, now + self._challenge_s)
            return "ask"
        if old.heard > challenge.since:
            del self._challenges[hello.node]
            return "cloned"
        return "admit" if challenge.over else "wait"

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if not self._challenges:
            return NEVER
        return min((c.due for c in self._challenges.values() if not c.over), default=NEVER)

    def tick(self, now: float) -> None:
        """All messages that came until now are handled. A question whose time passed while the server slept is given
        that time again."""
        for challenge in self._challenges.values():
            if now > challenge.due + STALL_S and not challenge.over:
                challenge.due = now + self._challenge_s
            elif now >= challenge.due:
                challenge.over = True

    def open(self, hello: Hello, route: bytes, session_id: str, now: float) -> Session:
        """Replaces the node's session. What the old one reported is forgotten."""
        self.drop(hello.node)
        session = Session(
            node=hello.node,
            route=route,
            id=session_id,
            boot_id=hello.boot_id,
            incarnation=hello.incarnation,
            heard=now,
        )
        self._by_node[hello.node] = session
        return session

    # --- what is reported ---------------------------------------------------------------------------------------------

    def note(self, session: Session, vms: Collection[VmReport], full: bool) -> set[str]:
        """Takes the reports of VMs; returns the UUIDs of which something is different now."""
        before = session.reports
        new = {report.uuid: report for report in vms}
        session.kept = self.kept(session, vms, full)
        changed = {uuid for uuid, report in new.items() if before.get(uuid) != report}
        if full:
            gone = before.keys() - new.keys()
            self._unsee(session.node, gone)
            changed |= gone
            session.reports = new
        else:
            session.reports = {**before, **new}
        for uuid in new.keys() - before.keys():
            self._seen_on[uuid] = (*self._seen_on.get(uuid, ()), session.node)
        return changed

    def kept(self, session: Session, vms: Collection[VmReport], full: bool) -> int:
        """How many bytes of text the session would hold with these reports, about."""
        new = {report.uuid: report for report in vms}  # the last one of a UUID counts
        size = sum(map(_text_bytes, new.values()))
        replaced = session.reports.keys() if full else new.keys() & session.reports.keys()
        return session.kept + size - sum(_text_bytes(session.reports[uuid]) for uuid in replaced)

    def sightings(self, uuid: str) -> list[tuple[Session, VmReport]]:
        """Which nodes report the VM, and what they say."""
        return [((s := self._by_node[node]), s.reports[uuid]) for node in self._seen_on.get(uuid, ())]

    # --- what of it is looked at later --------------------------------------------------------------------------------

    def settle_later(self, session: Session, uuids: set[str]) -> None:
        """What the session reports of these VMs is looked at in later turns."""
        if uuids:
            self._unsettled[session.node] = self._unsettled.get(session.node, set()) | uuids

    def unsettled(self) -> bool:
        """Whether there is some of that."""
        return bool(self._unsettled)

    def take_unsettled(self) -> tuple[Session, set[str]]:
        """The node whose turn it is, and the VMs."""
        node = next(iter(self._unsettled))
        self._taken = (node, self._unsettled.pop(node))
        return self._by_node[node], self._taken[1]

    def untaken(self) -> None:
        """The turn that took them did not happen. What was settled before is looked at once more."""
        node, uuids = self._taken
        self._taken = ("", set())
        if node in self._by_node:
            self.settle_later(self._by_node[node], uuids)

    def seen_on(self, uuid: str) -> int:
        """How many nodes report the VM."""
        return len(self._seen_on.get(uuid, ()))

    def _unsee(self, node: str, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            rest = tuple(name for name in self._seen_on[uuid] if name != node)
            if rest:
                self._seen_on[uuid] = rest
            else:
                del self._seen_on[uuid]


def _text_bytes(report: VmReport) -> int:
    """The texts that a peer chooses the length of, in characters of up to four bytes."""
    size = len(report.problem) + len(report.detail) + len(report.name)
    if report.migration is not None:
        size += len(report.migration.attempt) + len(report.migration.peer) + len(report.migration.detail)
    return size
