"""The server's core: every event passes through `handle`, and nothing else changes its state.

Who speaks is decided by the key of each message alone; what a key may say is the table of `wire.verbs`. Effects are
carried out after the commit of the turn; when it fails, `rolled_back` makes the turn not have happened and answers
its requests with an error. See `agents` for nodes, `requests` and `queries` for operators, `operations` for long work.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

import msgspec

from chimed.core.agents import copies
from chimed.core.agents.handlers import Agents
from chimed.core.agents.health import NodeHealth
from chimed.core.agents.overuse import Overuse
from chimed.core.agents.surveys import Surveys
from chimed.core.operators.checks import RequestParts
from chimed.core.operators.queries import Queries
from chimed.core.operators.requests import Requests
from chimed.core.operators.views import Views
from chimed.core.rules import behind
from chimed.core.rules.known import Facts
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.liveness import NEVER, Liveness
from chimed.core.state.mark import PutBack
from chimed.core.state.sessions import Sessions
from chimed.core.state.tables import Tables
from chimed.core.state.turn import Context, Policy
from chimed.core.work import operations, progress
from wire import messages as m
from wire.errors import ChimeError
from wire.types import Health, OperationState
from wire.verbs import TYPE_OF, VERBS, Role

SWEEP_S = 1.0
REST_S = 10.0
TRIPPED = "the server tripped over it, see its log; what it has done so far stays"
"""The outcome of an operation whose handling raised an exception."""


class Peer(msgspec.Struct, frozen=True):
    """Whose key it is."""

    role: Role
    name: str


class ServerCore:
    """One life of the server. `now` is monotonic seconds; `wall` gives the time of day for the audit trail; `seal_key`
    is the key of its seals (`wire.seals.key_from`); `put_back`: a newer database was in this one's place."""

    def __init__(
        self,
        tables: Tables,
        policy: Policy,
        rng: random.Random,
        wall: Callable[[], float],
        now: float,
        seal_key: bytes,
        put_back: PutBack | None = None,
    ) -> None:
        self.tables, self.policy = tables, policy
        self.ctx = Context(tables, policy, rng, wall, seal_key, now)
        self.sessions = Sessions(policy.challenge_s)
        self.liveness = Liveness(policy.heartbeat_s, policy.missed_heartbeats, policy.ping_tries, policy.ping_timeout_s)
        self.facts = Facts(self.ctx, self.sessions, self.liveness)
        self._health = NodeHealth(self.ctx, self.sessions, self.liveness, self._progress_node)
        self._overuse = Overuse(self.ctx, self._health)
        surveys = Surveys(self.ctx, self.facts)
        self._agents = Agents(
            self.facts, self._health, surveys, self._overuse, self._progress_node, self._progress
        )
        views = Views(self.ctx, self.facts)
        self._queries = Queries(self.ctx, self.facts, views, surveys, now)
        self._requests = Requests(
            RequestParts(
                self.ctx, self.facts, views, self._watch_operation, self._forget_node, self._agents.recovered,
                self._agents.begin_recovery,
            )
        )
        self._next_sweep = NEVER
        self._rests: dict[str, float] = {}  # operations that were tripped over and cannot end yet, and until when
        self._last_now = now
        self._put_back = put_back
        for node in tables.nodes:
            if node.health != Health.UNKNOWN:
                self.liveness.watch(node.name, now)
        for op in tables.operations.by("state", OperationState.RUNNING):
            self._watch_operation(op, now)

    # --- who may speak ------------------------------------------------------------------------------------------------

    def peer(self, key: str) -> Peer | None:
        """Whose key it is, as of now: a revoked key is refused from the next message on."""
        node = self.tables.nodes.first("public_key", key)
        if node is not None:
            return Peer(Role.AGENT, node.name)
        person = self.tables.operators.first("public_key", key)
        return Peer(Role.OPERATOR, person.name) if person is not None else None

    def keys(self) -> dict[str, Role]:
        """Every key that may connect, and for what."""
        nodes = {row.public_key: Role.AGENT for row in self.tables.nodes}
        return nodes | {row.public_key: Role.OPERATOR for row in self.tables.operators}

    # --- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]:
        """One event, and what follows from it."""
        self._last_now = self.ctx.now = now
        self.ctx.cause, self.ctx.of_node = None, False
        if self._put_back is not None:
            behind.found_put_back(self.ctx, self._put_back)
        if type(event) is fx.Received:
            self._received(event, now)
        else:
            _HANDLERS[type(event)](self, event, now)
        out, self.ctx.out = self.ctx.out, []
        return out

    def next_deadline(self) -> float:
        """When `Tick` has something to do, in monotonic seconds."""
        alive = min(self.liveness.next_deadline(), self.sessions.next_deadline())
        if self.ctx.read_only:
            return alive
        unsettled = self._last_now if self.sessions.unsettled() else NEVER
        alive = min(alive, self.ctx.meeting.next_deadline())
        return min(alive, unsettled, self._next_sweep, self._health.next_deadline(), self._overuse.next_deadline())

    def _received(self, event: fx.Received, now: float) -> None:
        body = event.body
        try:
            if type(body) is m.Heartbeat:  # the hot path: a short cut through the same checks
                node = self.tables.nodes.first("public_key", event.key)
                if node is not None:
                    ack = self._agents.heartbeat(node, event, body, now)
                    if ack is not None:
                        self.ctx.out.append(fx.Send(event.route, ack, event.id))
                    return
            peer = self.peer(event.key)
            if peer is None:
                raise ChimeError("unknown-key", "this key is not registered, or not any more")
            kind = TYPE_OF[type(body)]
            self.ctx.of_node = peer.role is Role.AGENT
            if VERBS[kind].sender is not peer.role:
                self._overuse.forbidden(peer.role, peer.name, kind, now)
                raise ChimeError("forbidden", f"{kind} is not for the key of an {peer.role}")
            answer = self._answer(peer, event, now)
            if self.ctx.read_only and self.tables.dirty:
                self._undo(peer, event)
                raise self._storage_unavailable()
            if answer is not None:
                self.ctx.out.append(fx.Send(event.route, answer, event.id))
        except ChimeError as error:
            self._refuse(event.route, event.id, error)

    def _answer(self, peer: Peer, event: fx.Received, now: float) -> m.Base | None:
        if peer.role is Role.AGENT:
            return self._agents.handle(peer.name, event, now)
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

    def _over_budget(self, event: fx.OverBudget, now: float) -> None:
        peer = self.peer(event.key)
        if peer is not None:
            self._overuse.unseen(peer.role, peer.name, event.count, now)

    def _ping_answered(self, event: fx.PingAnswered, now: float) -> None:
        self.liveness.ping_answered(event.token)

    def _ping_unsent(self, event: fx.PingUnsent, now: float) -> None:
        self.liveness.ping_unsent(event.token, event.why)

    def _unroutable(self, _event: fx.Unroutable, _now: float) -> None:
        self.ctx.counters["unroutable"] += 1

    def _tick(self, _event: fx.Tick, now: float) -> None:
        self.sessions.tick(now)
        to_ping, changed = self.liveness.tick(now)
        for name in to_ping:
            node = self.tables.nodes.get(name)
            address = (node.ping_address or node.address) if node else ""
            if address:
                self.ctx.emit(fx.Ping(address, name))
            else:
                self.liveness.ping_unsent(name, "no address is known")
        if self.ctx.read_only:
            return
        self.ctx.meeting.tick(now)
        for name in changed:
            self.ctx.meeting.met(name)
        if changed:
            self._health.sync(changed, now)
        self._agents.recovers()
        self._health.tick(now)
        self._agents.met_all()
        self._agents.settle_rest(now)
        self._overuse.tick(now)
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
        self.ctx.deadlines[op.id] = now + op.timeout_s
        self._next_sweep = min(self._next_sweep, now + SWEEP_S)

    def _progress_node(self, node_name: str, _now: float) -> None:
        """Facts about a node or its VMs changed: look at the operations that may wait for them."""
        node = self.tables.nodes.get(node_name)
        if node is not None and self.facts.is_lost(node):
            copies.look_elsewhere(self.facts, node_name)
        waiting = [vm.operation for vm in self.tables.vms.by("node", node_name) if vm.operation]
        if node is not None and node.lock:
            waiting.append(node.lock)
        wide = {op.id: op for kind in progress.WIDE for op in self.tables.operations.by("open_kind", kind)}
        waiting = [op_id for op_id in waiting if op_id not in wide]
        waiting += [op.id for op in wide.values() if self._concerns(op, node_name)]
        for op_id in waiting:
            self._progress(op_id)

    def _concerns(self, op: r.Operation, node_name: str) -> bool:
        try:
            return progress.concerns(self.facts, op, node_name)
        except Exception:  # then it trips over it in its own turn, and ends
            return True

    def _progress(self, op_id: str) -> None:
        op = self.tables.operations.get(op_id)
        if op is None or op.state != OperationState.RUNNING or self._last_now < self._rests.get(op_id, 0.0):
            return
        if not self.ctx.contained(f"{op.id} ({op.label})", lambda: progress.progress(self.facts, op)):
            self._tripped_over(op)
        elif op.kind in progress.WIDE and self.tables.operations.get(op_id) is not op:
            self.ctx.deadlines[op_id] = self._last_now + op.timeout_s  # the time of a step begins with it

    def _sweep(self, now: float) -> None:
        """Once a second while operations run: time-outs, and steps that wait for room."""
        running = self.tables.operations.by("state", OperationState.RUNNING)
        self.ctx.deadlines = {op.id: self.ctx.deadlines.get(op.id, now + op.timeout_s) for op in running}
        self._next_sweep = now + SWEEP_S if running else NEVER
        for op in running:
            self._progress(op.id)
            current = self.tables.operations.get(op.id)
            if current is None or current.state != OperationState.RUNNING or now < self.ctx.deadlines[op.id]:
                continue
            if not self.ctx.contained(f"{op.id} ({op.label})", functools.partial(self._overdue, current, now)):
                self._tripped_over(current)

    def _tripped_over(self, op: r.Operation) -> None:
        """It fails; while a migration of its is open that has to be decided first, as its source says."""
        if self.tables.migrations.by("operation", op.id):
            self._rests[op.id] = self._last_now + REST_S
        else:
            self._rests.pop(op.id, None)
            operations.fail(self.ctx, op, TRIPPED, code="internal")

    def _overdue(self, op: r.Operation, now: float) -> None:
        why = progress.overdue(self.facts, op)
        if why is not None:
            operations.fail(self.ctx, op, *why)
        else:  # it waits, for room or for evidence
            self.ctx.deadlines[op.id] = now + op.timeout_s

    # --- storage ------------------------------------------------------------------------------------------------------

    def rolled_back(self, error: str, requests: Sequence[fx.Received | fx.Garbage]) -> list[fx.Effect]:
        """The turn could not be saved. Nothing of it has happened; from now on nothing is changed. Its requests are
        handled again as such: heartbeats and questions are answered, what must be recorded is refused."""
        self.undo()
        self.sessions.forget_challenges()
        if not self.ctx.read_only:
            self.ctx.read_only_since = self.ctx.wall()
        self.ctx.read_only = error
        sends: list[fx.Effect] = [fx.Log("error", f"read-only: {error}")]
        for request in requests:
            sends += self._again(request)
        return sends

    def undo(self) -> None:
        """Forgets what this turn has changed and wanted to send so far."""
        self.tables.rollback()
        self._overuse.untold()
        self.sessions.untaken()
        self.ctx.touched.clear()
        self.ctx.out = []

    def _again(self, request: fx.Received | fx.Garbage) -> list[fx.Effect]:
        peer = self.peer(request.key)
        if isinstance(request, fx.Received) and peer is not None and peer.role is Role.AGENT:
            if isinstance(request.body, m.Heartbeat):
                ack = self._agents.ack_again(peer.name, request, request.body)
                return [fx.Send(request.route, ack, request.id)] if ack is not None else []
            self._undo(peer, request)
        return self.handle(request, self._last_now)

    def _undo(self, peer: Peer, event: fx.Received) -> None:
        """What the message would have changed is not changed; a report has to come again."""
        self.undo()
        session = self.sessions.get(peer.name)
        if session is None or session.route != event.route:
            return
        if isinstance(event.body, m.Hello):
            self.sessions.drop(peer.name)
        elif isinstance(event.body, m.Report) and session.id == event.body.session:
            session.report_seq, session.digest = min(session.report_seq, event.body.seq - 1), ""
            session.reported, session.full_wanted = False, True  # what it told counts when it is recorded

    def _storage_unavailable(self) -> ChimeError:
        return ChimeError("storage-unavailable", f"the server cannot record changes: {self.ctx.read_only}")

    def writable_again(self, now: float) -> list[fx.Effect]:
        """Changes can be recorded again: catch up with what happened meanwhile."""
        self.ctx.read_only = ""
        self.ctx.meeting.goes_on(now)
        self.ctx.cause, self.ctx.of_node = None, False
        self.ctx.audit("chimed", "storage-recovered", "server", "changes can be recorded again")
        self.ctx.log("warning", "storage: changes can be recorded again")
        self._health.sync([node.name for node in self.tables.nodes], now)
        for op in self.tables.operations.by("state", OperationState.RUNNING):
            self.ctx.deadlines.setdefault(op.id, now + op.timeout_s)
        self._next_sweep = now
        out, self.ctx.out = self.ctx.out, []
        return out + self.flush()

    # --- small --------------------------------------------------------------------------------------------------------

    def _forget_node(self, node_name: str) -> None:
        self.sessions.drop(node_name)
        self.liveness.forget(node_name)
        self.ctx.meeting.met(node_name)
        self._health.forget(node_name)
        self._overuse.forget(node_name)


_HANDLERS: dict[type[fx.Event], Callable[..., None]] = {
    fx.Garbage: ServerCore._garbage,
    fx.OverBudget: ServerCore._over_budget,
    fx.PingAnswered: ServerCore._ping_answered,
    fx.PingUnsent: ServerCore._ping_unsent,
    fx.Unroutable: ServerCore._unroutable,
    fx.Tick: ServerCore._tick,
}
"""Which method handles which event; messages have their own way."""
