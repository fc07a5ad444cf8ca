"""The server's loop around the core: old history is removed, and where that cannot be recorded the server goes on."""

from __future__ import annotations

from typing import Any

from chimed.core.state import rows as r
from chimed.core.state.budgets import Accounts
from chimed.core.state.turn import Policy
from chimed.daemon import LARGE_BYTES, REST_MAX_S, Daemon, make_core
from chimed.history import Retention
from chimed.transport import Incoming, SendOutcome
from tests.fakes.store import FakeDisk, FakeStore
from wire import messages as m
from wire.types import OperationState


class Silent:
    """A router and a pinger that nobody speaks to."""

    reason, more = "", False

    def receive(self, _limit: int) -> list[Any]:
        return []

    def refused(self) -> dict[str, int]:
        return {}

    accounts = Accounts()
    read = fds = refusals = lambda self, *_: []


def daemon_with_history() -> tuple[Daemon, Any, FakeStore, list[float]]:
    """A daemon whose database holds one operation, ended long ago. The list is its clock."""
    store, clock, silent = FakeStore(FakeDisk()), [1000.0], Silent()
    old = r.Operation(
        id="op-1", number=1, kind="start", subject="gone", label="start gone", state=OperationState.SUCCEEDED, steps=(),
        actor="admin", created=1.0, ended=2.0, timeout_s=60.0,
    )  # fmt: skip
    store.commit([r.Change("operations", ("op-1",), old)])
    core = make_core(store, Policy(), "secret", lambda: clock[0])  # type: ignore[arg-type]
    parts: Any = (core, store, silent, silent)
    return Daemon(*parts, Retention(operations=0), clock=lambda: clock[0]), core, store, clock


class Talking(Silent):
    """A router with these messages, that notes who is answered."""

    def __init__(self, *messages: Incoming) -> None:
        self.inbox, self.sent = list(messages), list[bytes]()

    def receive(self, _limit: int) -> list[Any]:
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, route: bytes, _frame: bytes) -> SendOutcome:
        self.sent.append(route)
        return SendOutcome.SENT


def of(key: str, route: bytes, size: int = 10) -> Incoming:
    no_frame: Any = None
    return Incoming(route, key, bytes(size), no_frame)


def daemon_with(*messages: Incoming) -> tuple[Daemon, Talking, list[float]]:
    """The messages are no frames: each is answered with an error."""
    router, clock = Talking(*messages), [1000.0]
    core = make_core(FakeStore(FakeDisk()), Policy(), "secret", lambda: clock[0])  # type: ignore[arg-type]
    parts: Any = (core, FakeStore(FakeDisk()), router, Silent())
    return Daemon(*parts, Retention(), clock=lambda: clock[0]), router, clock


def test_h6_large_messages_are_handled_after_the_others_and_one_in_a_turn() -> None:
    large = LARGE_BYTES + 1
    daemon, router, _ = daemon_with(
        of("busy", b"1", large), of("busy", b"1", large), of("big", b"2", large), of("n3", b"3"), of("n4", b"4")
    )
    daemon.turn()
    assert router.sent == [b"3", b"4", b"1"]
    router.inbox = [of("n3", b"3"), of("busy", b"1")]
    daemon.turn()
    assert router.sent[3:] == [b"3", b"2"], "what comes later on the same connection does not overtake"


def test_h6_a_key_rests_after_a_large_message_and_the_loop_knows_until_when() -> None:
    large = LARGE_BYTES + 1
    daemon, router, clock = daemon_with(of("busy", b"1", large), of("busy", b"1", large))
    daemon.turn()
    daemon.turn()
    assert router.sent == [b"1"] and 1000.0 < daemon.next_deadline() <= 1000.0 + REST_MAX_S
    clock[0] = daemon.next_deadline()
    daemon.turn()
    assert router.sent == [b"1", b"1"] and daemon.next_deadline() > clock[0]


def test_old_history_is_removed_from_disk_and_memory() -> None:
    daemon, core, store, clock = daemon_with_history()
    clock[0] += 61.0
    daemon.turn()
    assert not store.disk.tables["operations"] and not len(core.tables.operations)


def test_a_full_disk_does_not_end_the_server_when_history_should_go() -> None:
    daemon, core, store, clock = daemon_with_history()
    store.disk.fault = "disk full"
    clock[0] += 61.0
    daemon.turn()
    assert len(core.tables.operations) == 1
    store.disk.fault = ""
    clock[0] += 3600.0
    daemon.turn()
    assert not len(core.tables.operations)


def test_h12_a_database_that_is_gone_is_noticed_before_anything_has_to_be_saved() -> None:
    daemon, core, store, clock = daemon_with_history()
    daemon.turn()
    store.disk.astray = "chime.db was deleted"
    clock[0] += 2.5
    daemon.turn()
    assert core.ctx.read_only == "chime.db was deleted"
    status = core._queries._status(m.ServerStatus(), clock[0], None)
    (alarm,) = core._queries._unrecorded()
    assert status["read_only"] and alarm.severity == "critical" and "chime.db was deleted" in alarm.text
    said = store.disk.commits
    clock[0] += 2.5
    daemon.turn()
    assert core.ctx.read_only and store.disk.commits == said
    store.disk.astray = ""
    clock[0] += 2.5
    daemon.turn()
    assert not core.ctx.read_only
    assert [e.text for e in store.events("server")] == ["changes can be recorded again"]
