"""What the shell of the server has around it in this world: a socket, a pinger and a store, in which it may die.

It may die before a commit, after it, and before it sends (`Process.step`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from chimed.core.state import rows as r
from chimed.core.state.budgets import Accounts, Limits
from chimed.icmp import PingOutcome, Reply
from chimed.transport import Refused, SendOutcome
from tests.fakes.store import FakeDisk, FakeStore
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.server import Process

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
        self._alone = False
        self.accounts = Accounts()

    @property
    def more(self) -> bool:
        """Messages are left."""
        return bool(self.inbox) or self._alone

    def receive(self, budget: int) -> list[Message]:
        """The next ones. With a liar in the run each has a turn of its own: then it is known what follows from it."""
        lies = bool(self._process.world.oracle.trust.liars)
        budget = 1 if lies else budget
        taken, self.inbox = self.inbox[:budget], self.inbox[budget:]
        self._alone = lies and bool(taken)
        for message in taken:
            message.waits = self.accounts.of(message.user_id).waits
        self._process.speaker = self._process.world.name_of(taken[0].user_id) if self._alone else ""
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
            world.engine.after(PING_S + world.engine.delays.tail(), self._process.ping_came, Reply(address, token))
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
        self._process.world.oracle.committed(self._process.world, before, events)
        self._process.step("commit-after")
