"""The server's host, and the process of `chimed`: the real shell (`chimed.daemon.Daemon`) around the real core, with a
socket, a pinger and a disk of this world.

It may die before a commit, between a commit and the answers, and between any two answers. What survives is the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from chimed.core import arrivals, recovery
from chimed.core import rows as r
from chimed.core.budgets import Accounts, Limits
from chimed.core.context import Policy
from chimed.core.server import ServerCore
from chimed.core.sessions import Session
from chimed.core.tables import Tables
from chimed.daemon import Daemon
from chimed.icmp import PingOutcome, Reply
from chimed.store import Retention
from chimed.transport import Refused, SendOutcome
from tests.fakes.names import address_of, key_of
from tests.fakes.store import FakeDisk, FakeStore
from tests.sim.engine import Clock, Engine, Violation
from tests.sim.network import Network
from wire.types import Observed

if TYPE_CHECKING:
    from tests.sim.oracle import Oracle

NAME = "chimed"
RESTART_S = (1.0, 5.0)
PING_S = 0.002


class DeadError(BaseException):
    """The server dies here. Not an Exception: no handler may live on."""


class Message:
    """What the transport hands to the shell: the fields of `chimed.transport.Incoming`."""

    __slots__ = ("payload", "peer_address", "routing_id", "user_id", "waits")

    def __init__(self, routing_id: bytes, user_id: str, payload: bytes, peer_address: str) -> None:
        self.routing_id, self.user_id, self.payload, self.peer_address = routing_id, user_id, payload, peer_address
        self.waits = False


class Router:
    """The parts of `chimed.transport.Router` that the shell uses."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network, self._process = network, process
        self.inbox: list[Message] = []
        self.allowed: frozenset[str] = frozenset()
        self.accounts = Accounts()

    @property
    def more(self) -> bool:
        """Messages are left."""
        return bool(self.inbox)

    def receive(self, budget: int) -> list[Message]:
        """The next ones."""
        taken, self.inbox = self.inbox[:budget], self.inbox[budget:]
        for message in taken:
            message.waits = self.accounts.of(message.user_id).waits
        return taken

    def send(self, route: bytes, frame: bytes) -> SendOutcome:
        """To a client."""
        self._process.step("send")
        return SendOutcome.SENT if self._network.send_down(route, frame) else SendOutcome.UNROUTABLE

    def allow(self, keys: Mapping[str, Limits]) -> None:
        """Keys that may connect."""
        self.allowed = frozenset(keys)
        self.accounts.register(keys)

    def refusals(self) -> list[Refused]:
        """Nor is anything over budget."""
        return []

    def refused(self) -> dict[str, int]:
        """Nothing is refused below the core here."""
        return {}


class Pinger:
    """The parts of `chimed.icmp.Pinger` that the shell uses."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.replies: list[Reply] = []
        self.reason = ""

    def ping(self, address: str, token: int) -> PingOutcome:
        """One echo request."""
        world = self._process.world
        if world.pings_fail:
            self.reason = "not permitted"
            return PingOutcome.CANNOT
        host = world.at(address)
        if world.is_up(host) and world.network.pings(host):
            world.engine.after(PING_S, self._process.ping_came, Reply(address, token))
        return PingOutcome.SENT

    def read(self) -> list[Reply]:
        """The replies that came."""
        replies, self.replies = self.replies, []
        return replies


class Store(FakeStore):
    """Tells the oracle what is committed; the process may die before or after."""

    def __init__(self, disk: FakeDisk, process: Process) -> None:
        super().__init__(disk)
        self._process = process

    def commit(self, changes: Iterable[r.Change], events: Iterable[r.Event] = ()) -> None:
        """As `Store.commit`."""
        changes, events = list(changes), list(events)
        before = [(change, self.disk.tables[change.table].get(change.key)) for change in changes]
        self._process.step("commit-before")
        super().commit(changes, events)
        self._process.world.oracle.committed(self.disk, before, events)
        self._process.step("commit-after")


class Process:
    """One life of chimed. `crash_at`: dies at the n-th step of a kind ("commit-before", "commit-after", "send")."""

    def __init__(self, world: ServerHost) -> None:
        self.world, self.engine = world, world.engine
        self.alive = True
        self.crash_at: dict[str, int] = {}
        self.stalled_until = 0.0
        tables = Tables()
        store = Store(world.disk, self)
        tables.load(store.load())
        self.core = ServerCore(tables, world.policy, self.engine.rng, world.clock.wall, world.clock.now())
        self.router, self._pinger = Router(world.network, self), Pinger(self)
        self.daemon = Daemon(self.core, store, self.router, self._pinger, Retention(), world.clock.now)  # type: ignore[arg-type]
        self.daemon.allow_keys()
        self.sessions_before: dict[str, Session | None] = {}  # at the turn's beginning: one may open after a decision
        self._wake_at = float("inf")
        self._wake_now()

    def step(self, kind: str) -> None:
        """A point at which it may die."""
        if not self.crash_at or kind not in self.crash_at:
            return
        self.crash_at[kind] -= 1
        if self.crash_at[kind] <= 0:
            self.world.tell(f"is killed at {kind}")
            raise DeadError

    def incoming(self, route: bytes, key: str, frame: bytes) -> None:
        """A frame came; keys that may not connect are refused before."""
        if self.alive and key in self.router.allowed:
            self.router.inbox.append(Message(route, key, frame, self.world.host_of(key)))
            self._wake_now()

    def ping_came(self, reply: Reply) -> None:
        """A reply came."""
        self._pinger.replies.append(reply)
        self._wake_now()

    def _wake_now(self) -> None:
        self._wake(max(self.engine.now, self.stalled_until))

    def _wake(self, at: float) -> None:
        if at < self._wake_at:
            self._wake_at = at
            self.engine.at(at, self._turn, at)

    def _turn(self, at: float) -> None:
        if at != self._wake_at or not self.alive:
            return
        self._wake_at = float("inf")
        if self.engine.now < self.stalled_until:
            self._wake_now()
            return
        self.sessions_before = {name: self.core.sessions.get(name) for name in self.world.oracle.hosts}
        try:
            turns = 1
            while self.daemon.turn():
                turns += 1
                if turns > 1000:
                    raise Violation("L1", "chimed spins", NAME)
        except DeadError:
            self.world.died()
            return
        if self.core.ctx.counters["internal-errors"]:
            raise Violation("bug", "the core tripped over a message", NAME)
        self._wake(max(self.engine.now + 1e-6, self.world.clock.true(self.daemon.next_deadline())))


class ServerHost:
    """The machine that chimed runs on. `process` None: it does not run. `wanted`: systemd restarts it."""

    def __init__(
        self, engine: Engine, network: Network, oracle: Oracle, policy: Policy, is_up: Callable[[str], bool]
    ) -> None:
        self.engine, self.network, self.oracle, self.policy = engine, network, oracle, policy
        self.is_up = is_up
        self.clock = Clock(engine)
        self.disk = FakeDisk()
        self.process: Process | None = None
        self.wanted = True
        self.pings_fail = False
        self.backups: list[tuple[dict[str, dict[Any, r.Row]], float]] = []
        self._hosts: dict[str, str] = {}
        oracle.hears, oracle.in_session = self.hears, self.in_session

    def add_key(self, host: str) -> None:
        """Whose key it is, to know the address that a frame comes from."""
        self._hosts[key_of(host)] = host

    def hears(self, node: str, uuid: str) -> bool:
        """Whether the node's agent is heard now, and has told that the VM runs there, or nothing yet."""
        core = self.process.core if self.process is not None else None
        session = core.sessions.get(node) if core is not None and core.facts.is_live(node) else None
        report = session.reports.get(uuid) if session is not None else None
        if arrivals.left(report) is not None:
            return False  # that is never untrue again, recorded or not
        runs = report is not None and report.observed in (Observed.RUNNING, Observed.PAUSED)
        return session is not None and self.process.sessions_before.get(node) is session and (
            runs or not session.reported
        )

    def in_session(self, node: str) -> bool:
        """Whether the node's agent is in session and has reported."""
        return self.process is not None and self.process.core.facts.in_session(node)

    def host_of(self, key: str) -> str:
        """The address of a peer."""
        return address_of(self._hosts[key]) if key in self._hosts else ""

    def at(self, address: str) -> str:
        """Whose address it is."""
        return next((host for host in self._hosts.values() if address_of(host) == address), "")

    def tell(self, text: str, *subjects: str) -> None:
        """A line of the story."""
        self.engine.story.tell(self.engine.now, NAME, text, *subjects)

    def start(self) -> None:
        """systemd starts it, if it does not run."""
        if self.wanted and self.process is None:
            self.tell("starts")
            limit_s = self.policy.heartbeat_s * self.policy.missed_heartbeats
            self.oracle.judges_from = self.engine.now + 0.99 * limit_s
            self.process = Process(self)
            self.network.server_up(self.process)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.died()

    def died(self) -> None:
        """What was not committed is lost, with all connections."""
        assert self.process is not None
        self.process.alive = False
        self.process = None
        self.tell("is dead")
        self.network.server_down()
        if self.wanted:
            self.engine.after(self.engine.rng.uniform(*RESTART_S), self.start)

    # --- backup -------------------------------------------------------------------------------------------------------

    def backup(self) -> None:
        """`chimed backup`."""
        self.backups.append(({name: dict(rows) for name, rows in self.disk.tables.items()}, self.engine.now))
        self.tell("backup taken")

    def restore(self) -> bool:
        """`chimed restore` of the newest backup, as `chimed.backup.restore` does it. False: there is none."""
        if not self.backups:
            return False
        self.wanted = False
        self.kill()
        tables, taken = self.backups[-1]
        present = self.disk.tables["meta"][()].generation  # type: ignore[attr-defined]
        self.disk.tables = {name: dict(rows) for name, rows in tables.items()}
        names = sorted(name for (name,) in self.disk.tables["nodes"])
        meta = self.disk.tables["meta"][()]
        self.disk.tables["meta"][()] = recovery.begun(meta, present, names)  # type: ignore[arg-type]
        self.oracle.restored(self.disk, taken)
        self.tell(f"the backup of {taken:.0f} s is restored")
        self.wanted = True
        self.start()
        return True
