"""The server's host, and the process of `chimed`: the real shell (`chimed.daemon.Daemon`) around the real core, with a
socket, a pinger and a disk of this world.

It may die before a commit, between a commit and the answers, and between any two answers. What survives is the disk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from chimed.core.rules import arrivals
from chimed.core.server import ServerCore
from chimed.core.state.mark import put_back
from chimed.core.state.sessions import Session
from chimed.core.state.tables import Tables
from chimed.core.state.turn import Policy
from chimed.daemon import Daemon
from chimed.history import Retention
from chimed.icmp import Reply
from tests.fakes.names import address_of
from tests.fakes.store import FakeDisk
from tests.sim import database
from tests.sim.around import DeadError, Message, Pinger, Router, Store
from tests.sim.engine import Clock, Engine, Violation
from tests.sim.network import SERVER, Network
from wire import seals
from wire.types import Observed

if TYPE_CHECKING:
    from tests.sim.oracle import Oracle

SEAL_KEY = seals.key_from("the server's secret key")
RESTART_S = (1.0, 5.0)


class Process:
    """One life of chimed. `crash_at`: dies at the n-th step of a kind ("commit-before", "commit-after", "send")."""

    def __init__(self, world: ServerHost) -> None:
        self.world, self.engine = world, world.engine
        self.alive = True
        self.crash_at: dict[str, int] = {}
        self.speaker = ""  # whose message the present turn handles, if it is one alone
        self.stalled_until = 0.0
        tables = Tables()
        store = Store(world.disk, self)
        tables.load(store.load())
        clock = world.clock
        self.core = ServerCore(
            tables, world.policy, self.engine.rng, clock.wall, clock.now(), SEAL_KEY, store.put_back
        )  # fmt: skip
        self.router, self._pinger = Router(world.network, self), Pinger(self)
        self.daemon = Daemon(self.core, store, self.router, self._pinger, Retention(), world.clock.now)  # type: ignore[arg-type]
        self.daemon.allow_keys()
        self.sessions_before: dict[str, Session | None] = {}  # at the turn's beginning: one may open after a decision
        self.in_the_dark = False  # likewise: it cannot know that its database is older than what nodes hold
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

    def frozen(self) -> Process:
        """All that is in its memory now, to go on with later: what is around it stays what it is."""
        world, engine = self.world, self.engine
        around = (world, world.disk, world.clock, world.oracle, world.policy, world.network, engine, engine.rng)
        return copy.deepcopy(self, {id(thing): thing for thing in around})

    def goes_on(self) -> None:
        """It runs from here, as if nothing had been."""
        self._wake_at = float("inf")
        self._wake_now()

    def incoming(self, route: bytes, key: str, frame: bytes) -> None:
        """A frame came; keys that may not connect are refused before."""
        if self.alive and key in self.router.allowed:
            self.router.inbox.append(Message(route, key, frame, self.world.host_of(key)))
            self._wake(max(self.engine.now + self.engine.delays.tail(), self.stalled_until))

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
        self.in_the_dark = self.world.ahead is not None
        try:
            turns = 1
            while self.daemon.turn():
                turns += 1
                if turns > 1000:
                    raise Violation("L1", "chimed spins", self.world.name)
        except DeadError:
            self.world.died()
            return
        self.world.look_ahead()
        if self.core.ctx.counters["internal-errors"]:
            raise Violation("bug", "the core tripped over a message", self.world.name)
        self._wake(max(self.engine.now + 1e-6, self.world.clock.true(self.daemon.next_deadline())))


class ServerHost:
    """The machine that chimed runs on. `process` None: it does not run. `wanted`: systemd restarts it. `judges_from`:
    it may call no node lost before. `ahead`: the nodes that hold something newer than the database that a person has
    put in place: as long as none of them is heard the server cannot know that it is behind."""

    def __init__(
        self, engine: Engine, network: Network, oracle: Oracle, policy: Policy, is_up: Callable[[str], bool],
        name: str = SERVER,
    ) -> None:  # fmt: skip
        self.engine, self.network, self.oracle, self.policy = engine, network, oracle, policy
        self.is_up, self.name = is_up, name
        self.clock = Clock(engine)
        self.disk = FakeDisk()
        self.process: Process | None = None
        self.wanted = True
        self.pings_fail = False
        self.judges_from = 0.0
        self.backups: list[database.Copy] = []
        self.copies: list[database.Copy] = []
        self._image: tuple[database.Copy, Process, float, float] | None = None
        self.ahead: set[str] | None = None
        self._hosts: dict[str, str] = {}

    def add_key(self, host: str, key: str) -> None:
        """Whose key it is, to know the address that a frame comes from."""
        self._hosts[key] = host

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

    def name_of(self, key: str) -> str:
        """The host that has the key."""
        return self._hosts.get(key, "")

    def at(self, address: str) -> str:
        """Whose address it is."""
        return next((host for host in self._hosts.values() if address_of(host) == address), "")

    def tell(self, text: str, *subjects: str) -> None:
        """A line of the story."""
        self.engine.story.tell(self.engine.now, self.name, text, *subjects)

    def start(self) -> None:
        """systemd starts it, if it does not run."""
        if self.wanted and self.process is None:
            self.tell("starts")
            limit_s = self.policy.heartbeat_s * self.policy.missed_heartbeats
            self.judges_from = self.engine.now + 0.99 * limit_s
            self.process = Process(self)
            self.network.server_up(self.process, self.name)

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
        self.network.server_down(self.name)
        if self.wanted:
            self.engine.after(self.engine.rng.uniform(*RESTART_S), self.start)

    # --- the database -------------------------------------------------------------------------------------------------

    def backup(self) -> None:
        """`chimed backup`."""
        self.backups.append(database.copied(self.disk, self.engine.now))
        self.tell("backup taken")

    def copy_database(self) -> None:
        """`cp` of its files, or a snapshot of the virtual machine that it runs in."""
        self.copies.append(database.copied(self.disk, self.engine.now))
        self.tell("database copied")

    def restore(self, present: bool = True) -> bool:
        """`chimed restore` of the newest backup, and a start. `present`: over the database that is there; else on a
        machine that has none. False: there is no backup."""
        if not self.backups:
            return False
        self._replace(self.backups[-1], lambda old: database.restored(self.disk, old, self._name(), present))
        self.ahead = None  # it knows that it is behind
        return True

    def put_back_database(self) -> bool:
        """The newest copy stands where the database was, and the server is started: nobody tells it. False: there is no
        copy."""
        if not self.copies:
            return False
        self._replace(self.copies[-1], lambda old: database.put(self.disk, old))
        return True

    def put_back_directory(self) -> bool:
        """As `put_back_database`, with all that lies beside the database."""
        if not self.copies:
            return False
        self._replace(self.copies[-1], lambda old: database.put_with_its_place(self.disk, old))
        return True

    def freeze(self) -> None:
        """The virtual machine that it runs in is snapshotted, with its memory."""
        if self.process is not None:
            disk = database.copied(self.disk, self.engine.now)
            self._image = (disk, self.process.frozen(), self.clock.now(), self.judges_from)

    def revert(self) -> bool:
        """The virtual machine is reverted: disk, memory and clock are those of then, the connections are gone. False:
        there is no snapshot of it."""
        if self._image is None:
            return False
        disk, process, reading, self.judges_from = self._image
        self._replace(disk, lambda old: database.put_with_its_place(self.disk, old), start=False)
        self.clock.rewind(reading)
        self.process = process.frozen()
        self.network.server_up(self.process, self.name)
        self.process.goes_on()
        return True

    def init(self, present: bool = True) -> None:
        """`chimed init` with the old key, since it is lost. `present`: where it was; else on a new machine."""
        self._replace(database.Copy(0.0, {}, [], 1), lambda _: database.begun_anew(self.disk, self._name(), present))

    def _replace(self, old: database.Copy, replace: Callable[[database.Copy], None], start: bool = True) -> None:
        self.wanted = False
        self.kill()
        replace(old)
        is_told = put_back(self.disk.mark, self.disk.noted) is not None
        self.ahead = None if is_told else self.oracle.ahead_of(self.disk) or None
        self.oracle.restored(old.taken)
        self.oracle.forget_unheard(self.disk)
        self.tell(f"its database is that of {old.taken:.0f} s")
        self.wanted = True
        if start:
            self.start()

    def _name(self) -> str:
        """A random name for a history."""
        return f"{self.engine.rng.getrandbits(64):016x}"

    def know_keys_of(self, other: ServerHost) -> None:
        """Where frames come from."""
        self._hosts = dict(other._hosts)

    def look_ahead(self) -> None:
        """A node that holds something newer is in session: from now on the server knows."""
        if self.ahead and self.process and any(self.process.core.sessions.get(name) for name in self.ahead):
            self.ahead = None
