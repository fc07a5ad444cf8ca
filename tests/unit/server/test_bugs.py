"""A bug in the server's core must not end the service for everybody."""

from __future__ import annotations

from typing import Any

import pytest

from chimed.core.state import effects as fx
from chimed.daemon import Daemon
from chimed.history import Retention
from wire import codec
from wire import messages as m


class Core:
    """Trips over one kind of message."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.undone = 0
        self.tables = self
        self.ctx = self
        self.counters: dict[str, int] = {"internal-errors": 0}

    def handle(self, event: fx.Event, _now: float) -> list[fx.Effect]:
        if isinstance(event, fx.Received) and isinstance(event.body, m.NodeShow):
            raise ZeroDivisionError("a bug")
        if isinstance(event, fx.Tick) and "bad-tick" in self.handled:
            raise ZeroDivisionError("a bug")
        name = event.id if isinstance(event, fx.Received) else "tick"
        self.handled.append(name)
        return [fx.Send(event.route, m.Ok(result=name), name)] if isinstance(event, fx.Received) else []

    def undo(self) -> None:
        self.undone += 1

    def flush(self) -> list[fx.Effect]:
        return []

    def changes(self) -> tuple[list[Any], list[Any]]:
        return [], []

    def committed(self) -> None:
        """Nothing."""


class Socket:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    def send(self, _route: bytes, frame: bytes) -> None:
        kind, correlation_id, body = codec.decode(frame)
        self.sent[correlation_id] = body.code if isinstance(body, m.ErrorBody) else kind


@pytest.fixture
def parts() -> tuple[Daemon, Core, Socket]:
    core, socket = Core(), Socket()
    daemon = Daemon(core, None, socket, None, Retention(), clock=lambda: 0.0)  # type: ignore[arg-type]
    return daemon, core, socket


def received(name: str, body: m.Base) -> fx.Received:
    return fx.Received("key", b"route", body, name, lambda: "")


def test_only_the_message_that_trips_the_core_is_refused(parts: tuple[Daemon, Core, Socket]) -> None:
    daemon, core, socket = parts
    good, bad = m.ServerStatus(), m.NodeShow(name="n1")
    batch = [received("a", good), received("b", bad), received("c", good), fx.Tick()]
    daemon._handle(list(batch), 0.0)
    assert socket.sent == {"a": "ok", "b": "internal", "c": "ok"}
    assert core.counters["internal-errors"] == 1
    assert core.undone == 2  # the whole turn once, then the one message


def test_a_clock_that_trips_ends_the_server(parts: tuple[Daemon, Core, Socket]) -> None:
    daemon, core, _ = parts
    core.handled.append("bad-tick")
    with pytest.raises(ZeroDivisionError):
        daemon._handle([fx.Tick()], 0.0)
