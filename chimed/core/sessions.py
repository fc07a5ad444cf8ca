"""Who speaks for each node now. Volatile: after a restart of the server every agent says hello again.

Rules: one session for each node, the newest; messages of another session are refused; a host with another boot id is
admitted only after the old one was asked (poked) and stayed silent for `challenge_s`, so that a copied key on a second
host never takes over from a living one.
"""

from __future__ import annotations

from msgspec import Struct, field

from wire.messages import Fault, Hello, Load, VmReport


class Session(Struct):
    """The newest session of a node. `reports`: what its agent sees, by VM; `reported`: a full report has come."""

    node: str
    route: bytes
    id: str
    boot_id: str
    incarnation: str
    heard: float
    seq: int = 0
    revision: int = 0
    digest: str = ""
    reported: bool = False
    faults: tuple[Fault, ...] = ()
    load: Load = field(default_factory=Load)
    reports: dict[str, VmReport] = field(default_factory=dict)


class Challenge(Struct):
    """A host with another boot id wants in; the old session was asked at `since`."""

    boot_id: str
    since: float


class Sessions:
    """Sessions by node."""

    def __init__(self, challenge_s: float) -> None:
        self._challenge_s = challenge_s
        self._by_node: dict[str, Session] = {}
        self._challenges: dict[str, Challenge] = {}

    def get(self, node: str) -> Session | None:
        """The node's session, if it has one in this life of the server."""
        return self._by_node.get(node)

    def drop(self, node: str) -> None:
        """Ends the node's session."""
        self._by_node.pop(node, None)
        self._challenges.pop(node, None)

    def drop_route(self, route: bytes) -> str | None:
        """The connection is gone; returns whose it was. The session's facts stay until liveness says otherwise."""
        return next((s.node for s in self._by_node.values() if s.route == route), None)

    def admission(self, hello: Hello, now: float, alive_s: float) -> str:
        """What to do with a hello: `admit`, `ask` (poke the old session first), `wait`, or `cloned`.

        `alive_s`: a session that was silent for longer needs no question."""
        old = self._by_node.get(hello.node)
        if old is None or old.boot_id == hello.boot_id or now - old.heard > alive_s:
            return "admit"
        challenge = self._challenges.get(hello.node)
        if challenge is None or challenge.boot_id != hello.boot_id:
            self._challenges[hello.node] = Challenge(hello.boot_id, now)
            return "ask"
        if old.heard > challenge.since:
            del self._challenges[hello.node]
            return "cloned"
        return "admit" if now - challenge.since >= self._challenge_s else "wait"

    def open(self, hello: Hello, route: bytes, session_id: str, now: float) -> Session:
        """Replaces the node's session. What the old one reported is forgotten."""
        self._challenges.pop(hello.node, None)
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
