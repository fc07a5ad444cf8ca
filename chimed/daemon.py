"""The server's shell: one thread, one loop. It turns what came into events, commits what the core changed, then sends.

Rules: commit before send; messages are drained before deadlines are judged; when the store cannot record, the turn did
not happen and the server grants nothing until it can again. A key's frames are counted before they are looked at; nodes
are served before operators, who take turns, and before large messages; a turn is short. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import structlog

from chimed import transport
from chimed.core.server import ServerCore
from chimed.core.state import budgets
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.tables import Tables
from chimed.core.state.turn import Policy
from chimed.database import StoreConflict, StoreError
from chimed.history import Retention
from chimed.icmp import Pinger, PingOutcome
from chimed.store import Store
from chimed.transport import Incoming, Refused, Router, SendOutcome, WakeUp
from chimed.waiting import Waiting
from wire import codec, seals
from wire import messages as m
from wire.errors import ChimeError
from wire.local.notify import Notifier
from wire.verbs import Role

BUDGET = 100  # messages of one turn; many more fall out of the processor's cache before they are answered
OPERATORS_S = 0.01  # of one turn, for operators' requests
LARGE_BYTES = transport.LARGE_BYTES  # a node's message of more waits for the others; one is handled in a turn
REST_TIMES, REST_MAX_S = 4.0, 1.0  # a key rests for so many times as long as its large message took
FLOODED_S = 5.0  # deadlines are judged after all messages, but under a flood at least so often
PROBE_S = 2.0
LOOK_S = 2.0  # whether the database is still where it was
PRUNE_S = 3600.0
PRUNE_AGAIN_S = 0.1  # while there is much to remove
OVER_BUDGET_S = 1.0  # between looks at who has sent too much
LIMITS = {Role.AGENT: budgets.NODE, Role.OPERATOR: budgets.OPERATOR}

log = structlog.get_logger()


class Daemon:
    """Owns the socket, the store and the pinger, and drives the core."""

    def __init__(
        self, core: ServerCore, store: Store, router: Router, pinger: Pinger, retention: Retention,
        clock: Callable[[], float] = time.monotonic, limits: Mapping[Role, budgets.Limits] = LIMITS,
    ) -> None:  # fmt: skip
        self._core, self._store, self._router, self._pinger = core, store, router, pinger
        self._retention, self._clock, self._limits = retention, clock, limits
        self._waiting, self._large = Waiting(), Waiting()
        self._wake: WakeUp | None = None
        self._last_tick = clock()
        self._stopping = False
        self._trouble = ""
        self._pending: list[fx.Event] = []
        self._tokens: dict[int, str] = {}
        self._token_of: dict[str, int] = {}
        self._allowed: dict[str, Role] = {}
        self._refused: dict[str, int] = {}
        self._next_probe, self._next_look, self._next_count = float("inf"), clock() + LOOK_S, clock()
        self._last_prune, self._next_prune = clock(), clock() + 60.0

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, notifier: Notifier) -> None:
        """Until SIGTERM or SIGINT. The socket is bound before; each turn feeds the watchdog."""
        self._wake = WakeUp()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        fds = [self._wake.fd, *self._pinger.fds()]
        notifier.ready("nodes and operators are served")
        while not self._stopping:
            notifier.beat()
            if not self.turn():
                self._router.poll(max(0.0, min(self.next_deadline() - self._clock(), notifier.wait_s())), fds)
                self._wake.clear()
        notifier.stopping()
        log.info("stopped")

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._wake is not None:
            self._wake.wake()

    def next_deadline(self) -> float:
        """When the next turn is due, if nothing comes before."""
        return min(
            self._core.next_deadline(), self._large.due(), self._next_probe, self._next_look, self._next_prune
        )  # fmt: skip

    def turn(self) -> bool:
        """Handles what is there. Returns whether another turn is due at once."""
        now = self._clock()
        incoming = self._router.receive(BUDGET)
        for refused in self._router.refusals():
            self._refuse(refused)
        events, self._pending = self._pending, []
        any_large = bool(self._large)
        for message in incoming:
            if message.waits:
                self._let_wait(self._waiting, message)
            elif len(message.payload) > LARGE_BYTES or (any_large and self._large.holds(message)):
                any_large = True
                self._let_wait(self._large, message)
            else:
                events.append(self._event(message))
        events += [fx.PingAnswered(self._tokens[r.token]) for r in self._pinger.read() if r.token in self._tokens]
        drained = not self._router.more
        if drained or now - self._last_tick > FLOODED_S:
            self._last_tick = now
            events.append(fx.Tick())
        self._handle(events, now)
        self._serve_operators(now)
        self._serve_large(now)
        self._housekeeping(now)
        return not drained or bool(self._pending) or bool(self._waiting)

    def _let_wait(self, waiting: Waiting, message: Incoming) -> None:
        if not waiting.add(message):
            self._refuse(Refused(message.routing_id, message.user_id, message.payload[: transport.HEAD_BYTES]))

    def _serve_operators(self, now: float) -> None:
        """As many requests as fit into `OPERATORS_S`, one at least."""
        if self._waiting:
            self._handle(self._in_turn(self._clock() + OPERATORS_S), now)

    def _in_turn(self, until: float) -> Iterator[fx.Event]:
        while self._waiting:
            yield self._event(self._waiting.take())
            if self._clock() >= until:
                return

    def _serve_large(self, now: float) -> None:
        """One message. Who sends many of them has a part of the server's time, however little it has to do."""
        message = self._large.take_rested(now)
        if message is not None:
            began = time.thread_time()
            self._handle([self._event(message)], now)
            took_s = time.thread_time() - began
            self._large.rest(message.user_id, now + min(REST_MAX_S, (1.0 + REST_TIMES) * took_s))

    def _refuse(self, refused: Refused) -> None:
        """Answers a frame that was not decoded."""
        if refused.user_id in self._allowed:
            error = ChimeError("overloaded", "more than this key's budget: send less, and later", retry_after_s=1.0)
        else:
            error = ChimeError("unknown-key", "this key is not registered, or not any more")
        self._core.ctx.counters[f"refused-{error.code}"] += 1
        self._router.send(refused.routing_id, codec.encode(error.body(), codec.glance(refused.head)))

    def _event(self, message: Incoming) -> fx.Event:
        try:
            _, correlation_id, body = codec.decode(message.payload)
        except ChimeError as error:
            found = error.details.get("id", "")
            return fx.Garbage(message.user_id, message.routing_id, error, found if isinstance(found, str) else "")
        return fx.Received(message.user_id, message.routing_id, body, correlation_id, lambda: message.peer_address)

    def _handle(self, events: Iterable[fx.Event], now: float) -> None:
        """One turn: handle, commit, then carry out. A message that the core trips over (a bug of ours) must not end
        the service for everybody else: the turn is undone, and its events are handled one by one."""
        handled, effects = [], []
        events = iter(events)
        try:
            for event in events:
                handled.append(event)
                effects += self._core.handle(event, now)
        except Exception as problem:
            handled += events
            if len(handled) == 1:
                self._trip_over(handled[0], problem)
                return
            self._core.undo()
            for event in handled:
                self._handle([event], now)
            return
        effects += self._core.flush()
        if self._commit(now):
            self._carry_out(effects)
        else:
            messages: list[fx.Received | fx.Garbage] = [e for e in handled if isinstance(e, fx.Received)]
            self._carry_out(self._core.rolled_back(self._trouble, messages))

    def _trip_over(self, event: fx.Event, problem: Exception) -> None:
        """Undoes the event; its sender hears of it. Without a sender it is the server's own clock: then it must end."""
        self._core.undo()
        if not isinstance(event, fx.Received):
            raise problem
        log.error(f"{type(event.body).__name__} refused: a bug in the server", exc_info=problem)
        self._core.ctx.counters["internal-errors"] += 1
        refusal = ChimeError("internal", "the server could not handle this message: see its log")
        self._send(fx.Send(event.route, refusal.body(), event.id))

    # --- saving -------------------------------------------------------------------------------------------------------

    def _commit(self, now: float) -> bool:
        changes, events = self._core.tables.changes()
        if not changes and not events:
            self._core.tables.committed()
            return True
        try:
            self._store.commit(changes, events)
        except StoreConflict:
            raise
        except StoreError as error:
            self._trouble = str(error)
            self._next_probe = now + PROBE_S
            if self._store.broken:
                raise
            return False
        self._core.tables.committed()
        if any(c.table in ("nodes", "operators") and self._is_new_key(c.row) for c in changes):
            self.allow_keys()
        return True

    def _is_new_key(self, row: object) -> bool:
        return row is None or getattr(row, "public_key", None) not in self._allowed

    def allow_keys(self) -> None:
        """Tells the authenticator which keys may connect now."""
        self._allowed = self._core.keys()
        self._router.allow({key: self._limits[role] for key, role in self._allowed.items()})

    def _note_refusals(self) -> None:
        """What the socket refused, for `server.status`."""
        refused = self._router.refused()
        if refused != self._refused:
            self._refused = refused
            for name, count in refused.items():
                self._core.ctx.counters[name] = count

    def _housekeeping(self, now: float) -> None:
        self._note_refusals()
        if now >= self._next_look:
            self._look(now)
        if now >= self._next_count:
            self._next_count = now + OVER_BUDGET_S
            self._pending += [fx.OverBudget(key, count) for key, count in self._router.accounts.over().items()]
        if now >= self._next_probe:
            self._next_probe = now + PROBE_S
            if self._store.writable():
                self._next_probe = float("inf")
                effects = self._core.writable_again(now)
                if self._commit(now):
                    self._carry_out(effects)
                else:
                    self._core.rolled_back(self._trouble, [])
        if self._store.much_surplus():
            self._next_prune = min(self._next_prune, self._last_prune + PRUNE_AGAIN_S)
        if now >= self._next_prune:
            self._last_prune, self._next_prune = now, now + PRUNE_S
            self._prune()

    def _look(self, now: float) -> None:
        """Nothing may have to be saved for hours; that it would be lost is known before."""
        self._next_look = now + LOOK_S
        why = self._store.astray() if self._next_probe == float("inf") else ""
        if why:
            self._trouble, self._next_probe = why, now + PROBE_S
            self._carry_out(self._core.rolled_back(why, []))

    def _prune(self) -> None:
        """Old history goes, a bounded part at a time; where that cannot be recorded now, it goes the next time."""
        try:
            removed = self._store.prune(self._last_prune, self._retention)
        except StoreError as error:
            if self._store.broken:
                raise
            log.warning(f"old history not removed: {error}")
            return
        self._core.tables.pruned(removed)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if type(effect) is fx.Send:
                self._send(effect)
            elif isinstance(effect, fx.Ping):
                self._ping(effect)
            elif isinstance(effect, fx.ReadEvents):
                self._read_events(effect)
            elif isinstance(effect, fx.Log):
                getattr(log, effect.level)(effect.text)

    def _send(self, effect: fx.Send) -> None:
        try:
            frame = codec.encode(effect.body, effect.id)
        except ChimeError as error:
            log.error(f"answer not sent: {error}")
            frame = codec.encode(ChimeError("internal", f"the answer does not fit: {error}").body(), effect.id)
        if self._router.send(effect.route, frame) is SendOutcome.UNROUTABLE:
            self._pending.append(fx.Unroutable(effect.route))

    def _ping(self, effect: fx.Ping) -> None:
        token = self._token_of.setdefault(effect.token, len(self._token_of) + 1)
        self._tokens[token] = effect.token
        if self._pinger.ping(effect.address, token) is PingOutcome.CANNOT:
            why = self._pinger.reason or f"{effect.address} cannot be pinged"
            self._pending.append(fx.PingUnsent(effect.token, why))

    def _read_events(self, effect: fx.ReadEvents) -> None:
        query = effect.query
        subjects: tuple[str | None, ...] = effect.subjects or (None,)
        try:
            found = [e for s in subjects for e in self._store.events(s, query.after_id, query.limit)]
        except StoreError as error:
            refusal = ChimeError("storage-unavailable", str(error))
            self._send(fx.Send(effect.route, refusal.body(), effect.id))
            return
        found.sort(key=lambda event: event.id)
        kept = found[: query.limit] if query.after_id else found[-query.limit :]
        items = [msgspec.structs.replace(e, subject=self._core.ctx.vm_name(e.subject)) for e in kept]
        self._send(fx.Send(effect.route, m.Ok(result={"items": items}), effect.id))


def make_core(
    store: Store, policy: Policy, secret_key: str, clock: Callable[[], float] = time.monotonic
) -> ServerCore:
    """The core with everything that the store holds. `secret_key`: the server's; the key of seals follows from it."""
    tables = Tables()
    tables.load(store.load())
    _name_history(store, tables)
    seal_key = seals.key_from(secret_key)
    return ServerCore(tables, policy, random.SystemRandom(), time.time, clock(), seal_key, store.put_back)


def _name_history(store: Store, tables: Tables) -> None:
    """A database of an earlier version has no name for its history yet; on a full disk it gets one next time."""
    if tables.meta.history:
        return
    named = msgspec.structs.replace(tables.meta, history=secrets.token_hex(8))
    with contextlib.suppress(StoreError):
        store.commit([r.Change("meta", (), named)], [])
        tables.load([named])
