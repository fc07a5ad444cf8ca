"""Questions of operators that only a node can answer: which domains it has that Chime does not manage.

Rules: a survey changes nothing and is kept nowhere: it is passed on, and the answer is passed back; who asks and gets
none asks again. Only the node that was asked, in the session in which it was asked, answers.
"""

from __future__ import annotations

from msgspec import Struct

from chimed.core.rules.known import Facts
from chimed.core.state import effects as fx
from chimed.core.state.turn import Context
from wire import messages as m
from wire.errors import ChimeError

MAX_OPEN = 100
OPEN_S = 60.0


class _Open(Struct, frozen=True):
    """A question on its way: from where it came, and until when its answer is passed on."""

    node: str
    route: bytes
    id: str
    until: float


class Surveys:
    """Open questions by nonce. Volatile."""

    def __init__(self, ctx: Context, facts: Facts) -> None:
        self._ctx, self._facts = ctx, facts
        self._open: dict[str, _Open] = {}

    def ask(self, body: m.NodeSurvey, now: float, event: fx.Received) -> None:
        """Passes the question on to the node. Raises `ChimeError` if it is not heard."""
        if self._ctx.tables.nodes.get(body.name) is None:
            raise ChimeError("not-found", f"there is no node {body.name}")
        session = self._facts.sessions.get(body.name)
        if session is None or not self._facts.is_live(body.name):
            raise ChimeError("node-unreachable", f"{body.name} is not heard: nobody can tell what it has")
        self._open = {nonce: asked for nonce, asked in self._open.items() if now < asked.until}
        if len(self._open) >= MAX_OPEN:
            raise ChimeError("overloaded", f"{MAX_OPEN} surveys wait for their answers already")
        nonce = self._ctx.token()
        self._open[nonce] = _Open(body.name, event.route, event.id, now + OPEN_S)
        survey = m.Survey(session=session.id, nonce=nonce, after=body.after, uuid=body.uuid)
        self._ctx.emit(fx.Send(session.route, survey))

    def interrupted(self, node_name: str) -> None:
        """The node's agent has begun anew: what was asked of the one before gets no answer."""
        for nonce in [nonce for nonce, asked in self._open.items() if asked.node == node_name]:
            asked = self._open.pop(nonce)
            error = ChimeError("node-unreachable", f"the agent of {node_name} has begun a new session: ask again")
            self._ctx.emit(fx.Send(asked.route, error.body(), asked.id))

    def answered(self, node_name: str, body: m.Surveyed) -> None:
        """Passes the node's answer back to who asked; one that is not awaited is dropped."""
        asked = self._open.get(body.nonce)
        if asked is None or asked.node != node_name:
            self._ctx.counters["surveys-stale"] += 1
            return
        del self._open[body.nonce]
        answer: m.Base
        if body.error:
            answer = ChimeError("node-unreachable", f"{node_name} cannot tell what it has: {body.error}").body()
        else:
            last = body.vms[-1].name if body.more and body.vms else ""
            answer = m.Ok(result={"items": body.vms, "next": last})
        self._ctx.emit(fx.Send(asked.route, answer, asked.id))
