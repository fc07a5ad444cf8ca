"""The server's core: every event passes through `handle`, and nothing else changes its state.

Who speaks is decided by the key of each message alone; what a key may say is the table of `wire.verbs`. Effects are
carried out after the commit of the turn; when it fails, `rolled_back` makes the turn not have happened and answers
its requests with an error. See `agents` for nodes, `requests` and `queries` for operators, `operations` for long work.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from chimed.core import effects as fx
from chimed.core import operations
from chimed.core import rows as r
from chimed.core.agents import Agents
from chimed.core.context import Context, Policy
from chimed.core.liveness import Liveness, Phase
from chimed.core.operations import Facts
from chimed.core.queries import Queries
from chimed.core.requests import Requests
from chimed.core.sessions import Sessions
from chimed.core.tables import Tables
from chimed.core.views import Views
from wire import messages as m
from wire.errors import ChimeError
from wire.types import Health, OperationState
from wire.verbs import TYPE_OF, VERBS, Role

NEVER = float("inf")
RETRY_S = 2.0
SWEEP_S = 1.0


class Peer(msgspec.Struct, frozen=True):
    """Whose key it is."""

    role: Role
    name: str


class ServerCore:
    """One life of the server. `now` is monotonic seconds; `wall` gives the time of day for the audit trail."""

    def __init__(
        self, tables: Tables, policy: Policy, rng: random.Random, wall: Callable[[], float], now: float
    ) -> None:
        self.tables, self.policy = tables, policy
        self.ctx = Context(tables, policy, rng, wall)
        self.sessions = Sessions(policy.challenge_s)
        self.liveness = Liveness(
            policy.heartbeat_s, policy.missed_heartbeats, policy.ping_tries, policy.ping_timeout_s
        )
        self.facts = Facts(self.ctx, self.sessions, self._is_live)
        views = Views(self.ctx, self.facts, self.liveness)
        self._agents = Agents(self.ctx, self.sessions, self.liveness, self._progress_node)
        self._queries = Queries(self.ctx, self.facts, views, now)
        self._requests = Requests(self.ctx, self.facts, views, self._watch_operation, self._forget_node)
        self._op_deadlines: dict[str, float] = {}
        self._next_sweep = NEVER
        self._last_now = now
        for node in tables.nodes:
            if node.health != Health.UNKNOWN:
                self.liveness.watch(node.name, now)
        for op in tables.operations.by("state", OperationState.RUNNING):
            self._watch_operation(op, now)

    # --- who may speak ------------------------------------------------------------------------------------------------

    def peer(self, key: str) -> Peer | None:
        """Whose key it is, as of now: a revoked key is refused from the next message on."""
        for row in self.tables.nodes.by("public_key", key):
            return Peer(Role.AGENT, row.name)
        for person in self.tables.operators.by("public_key", key):
            return Peer(Role.OPERATOR, person.name)
        return None

    def keys(self) -> frozenset[str]:
        """Every key that may connect."""
        return frozenset(row.public_key for row in (*self.tables.nodes, *self.tables.operators))

    # --- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]:
        """One event, and what follows from it."""
        self._last_now = now
        if type(event) is fx.Received:
            self._received(event, now)
        else:
            _HANDLERS[type(event)](self, event, now)
        out, self.ctx.out = self.ctx.out, []
        return out

    def next_deadline(self) -> float:
        """When `Tick` has something to do, in monotonic seconds."""
        return min(self.liveness.next_deadline(), self._next_sweep)

    def _received(self, event: fx.Received, now: float) -> None:
        peer = self.peer(event.key)
        try:
            if peer is None:
                raise ChimeError("unknown-key", "this key is not registered, or not any more")
            verb = VERBS[TYPE_OF[type(event.body)]]
            if verb.sender is not peer.role:
                raise ChimeError("forbidden", f"{TYPE_OF[type(event.body)]} is not for the key of an {peer.role}")
            answer = self._answer(peer, event, now)
            if answer is not None:
                self.ctx.out.append(fx.Send(event.route, answer, event.id))
        except ChimeError as error:
            self._refuse(event.route, event.id, error)

    def _answer(self, peer: Peer, event: fx.Received, now: float) -> m.Base | None:
        if peer.role is Role.AGENT:
            return self._agents.handle(peer.name, event, now)
        self.ctx.cause = None
        body = event.body
        if isinstance(body, m.Mutation):
            return m.Ok(result=self._requests.handle(body, peer.name, now))
        result = self._queries.handlers[type(body)](body, now, event)
        return m.Ok(result=result) if result is not None else None

    def _refuse(self, route: bytes, correlation_id: str, error: ChimeError) -> None:
        self.ctx.counters[f"refused-{error.code}"] += 1
        self.ctx.out.append(fx.Send(route, error.body(), correlation_id))

    def _garbage(self, event: fx.Garbage, _now: float) -> None:
        self._refuse(event.route, event.id, event.error)

    def _ping_answered(self, event: fx.PingAnswered, now: float) -> None:
        self.liveness.ping_answered(event.token)

    def _ping_unsent(self, event: fx.PingUnsent, now: float) -> None:
        self.liveness.ping_unsent(event.token, event.why)

    def _unroutable(self, _event: fx.Unroutable, _now: float) -> None:
        self.ctx.counters["unroutable"] += 1

    def _tick(self, _event: fx.Tick, now: float) -> None:
        to_ping, changed = self.liveness.tick(now)
        for name in to_ping:
            node = self.tables.nodes.get(name)
            address = (node.ping_address or node.address) if node else ""
            if address:
                self.ctx.emit(fx.Ping(address, name))
            else:
                self.liveness.ping_unsent(name, "no address is known")
        if not self.ctx.read_only:
            for name in changed:
                self._agents.sync_node(name, now)
        if now >= self._next_sweep:
            self._sweep(now)

    def flush(self) -> list[fx.Effect]:
        """The last effects of the turn: pokes to the agents of nodes whose inventory changed."""
        out: list[fx.Effect] = []
        for name in sorted(self.ctx.touched):
            session, node = self.sessions.get(name), self.tables.nodes.get(name)
            if session is not None and node is not None:
                out.append(fx.Send(session.route, m.Poke(session=session.id, revision=node.revision)))
        self.ctx.touched.clear()
        return out

    # --- operations ---------------------------------------------------------------------------------------------------

    def _watch_operation(self, op: r.Operation, now: float) -> None:
        self._op_deadlines[op.id] = now + op.timeout_s
        self._next_sweep = min(self._next_sweep, now + SWEEP_S)

    def _progress_node(self, node_name: str, now: float) -> None:
        """Facts about a node or its VMs changed: look at the operations that may wait for them."""
        running = self.tables.operations.by("state", OperationState.RUNNING)
        for op in running:
            vm = self.tables.vms.get(op.subject)
            concerned = op.kind in ("rebuild", "delete") or op.subject == node_name
            if concerned or (vm is not None and vm.node == node_name):
                self._progress(op.id)

    def _progress(self, op_id: str) -> None:
        op = self.tables.operations.get(op_id)
        if op is not None and op.state == OperationState.RUNNING:
            operations.progress(self.facts, op)

    def _sweep(self, now: float) -> None:
        """Once a second while operations run: time-outs, and steps that wait for room."""
        self._next_sweep = NEVER
        if self.ctx.read_only:
            self._next_sweep = now + RETRY_S
            return
        for op in self.tables.operations.by("state", OperationState.RUNNING):
            self._progress(op.id)
            current = self.tables.operations.get(op.id)
            if current is None or current.state != OperationState.RUNNING:
                self._op_deadlines.pop(op.id, None)
                continue
            self._next_sweep = now + SWEEP_S
            if now >= self._op_deadlines.setdefault(op.id, now + op.timeout_s):
                why = operations.overdue(current)
                if why is not None:
                    operations.fail(self.ctx, current, why)

    # --- storage ------------------------------------------------------------------------------------------------------

    def rolled_back(self, error: str, requests: list[fx.Received | fx.Garbage]) -> list[fx.Effect]:
        """The turn could not be saved. Nothing of it has happened; its requests are told so, nothing else is sent."""
        self.tables.rollback()
        self.ctx.touched.clear()
        self.ctx.out = []
        self.ctx.read_only = error
        refusal = ChimeError("storage-unavailable", f"the server cannot record changes: {error}")
        sends: list[fx.Effect] = [fx.Log("error", f"read-only: {error}")]
        for request in requests:
            sends.append(fx.Send(request.route, refusal.body(), request.id))
        return sends

    def writable_again(self, now: float) -> list[fx.Effect]:
        """Changes can be recorded again: catch up with what happened meanwhile."""
        self.ctx.read_only = ""
        self.ctx.audit("chimed", "storage-recovered", "server", "changes can be recorded again")
        self.ctx.log("warning", "storage: changes can be recorded again")
        for node in list(self.tables.nodes):
            self._agents.sync_node(node.name, now)
        self._next_sweep = now
        out, self.ctx.out = self.ctx.out, []
        return out

    # --- small --------------------------------------------------------------------------------------------------------

    def _is_live(self, node_name: str) -> bool:
        """Whether the node's agent is in session and heard: its VMs take commands, its reports count."""
        return self.sessions.get(node_name) is not None and self.liveness.phase(node_name) is Phase.ALIVE

    def _forget_node(self, node_name: str) -> None:
        self.sessions.drop(node_name)
        self.liveness.forget(node_name)


_HANDLERS: dict[type[fx.Event], Callable[..., None]] = {
    fx.Garbage: ServerCore._garbage,
    fx.PingAnswered: ServerCore._ping_answered,
    fx.PingUnsent: ServerCore._ping_unsent,
    fx.Unroutable: ServerCore._unroutable,
    fx.Tick: ServerCore._tick,
}
"""Which method handles which event; messages have their own way."""
