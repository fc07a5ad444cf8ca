"""What a supervisor hears of a daemon, and when: without sockets and without time."""

from __future__ import annotations

import pytest

from wire.local.notify import AGAIN_S, BEATS_PER_PERIOD, Notifier, take_environment

PERIOD_S = 30.0


class Supervisor:
    """Remembers what it was told; while `away` nothing reaches it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard: list[list[str]] = []
        self.away = False

    def send(self, address: str, payload: bytes) -> None:
        assert address == "/run/notify"
        if self.away:
            raise ConnectionRefusedError
        self.heard.append(payload.decode().splitlines())

    def notifier(self, period_s: float = PERIOD_S) -> Notifier:
        return Notifier("/run/notify", period_s, self.send, lambda: self.now)


def test_a_loop_that_waits_as_long_as_it_may_beats_in_time() -> None:
    supervisor = Supervisor()
    notifier = supervisor.notifier()
    notifier.ready("listens")
    assert supervisor.heard == [["READY=1", "STATUS=listens"]]
    notifier.beat()
    assert len(supervisor.heard) == 1, "not in every turn"
    for turn in range(1, 4):
        assert notifier.wait_s() == pytest.approx(PERIOD_S / BEATS_PER_PERIOD)
        supervisor.now += notifier.wait_s()
        assert notifier.wait_s() == 0
        notifier.beat()
        assert supervisor.heard[turn:] == [["WATCHDOG=1"]]
    assert BEATS_PER_PERIOD >= 2
    notifier.stopping()
    assert supervisor.heard[-1] == ["STOPPING=1"]


def test_what_could_not_be_said_is_said_soon() -> None:
    """Else a service that was ready while systemd was being replaced would be killed for not having started."""
    supervisor = Supervisor()
    notifier = supervisor.notifier()
    supervisor.away = True
    notifier.ready("listens")
    assert notifier.wait_s() == AGAIN_S
    supervisor.now += AGAIN_S
    supervisor.away = False
    notifier.beat()
    assert supervisor.heard == [["READY=1", "STATUS=listens", "WATCHDOG=1"]]
    supervisor.now += PERIOD_S / BEATS_PER_PERIOD
    notifier.beat()
    assert supervisor.heard[1:] == [["WATCHDOG=1"]]


def test_without_a_watchdog_only_what_failed_is_repeated() -> None:
    supervisor = Supervisor()
    notifier = supervisor.notifier(float("inf"))
    notifier.ready("listens")
    assert notifier.wait_s() == float("inf")
    supervisor.away = True
    notifier.stopping()
    assert notifier.wait_s() == AGAIN_S


def test_without_a_supervisor_nothing_is_said() -> None:
    def never(_address: str, _payload: bytes) -> None:
        raise AssertionError

    notifier = Notifier("", 1.0, never, lambda: 0.0)
    notifier.ready("listens")
    notifier.beat()
    notifier.stopping()
    assert notifier.wait_s() == float("inf")


@pytest.mark.parametrize(
    ("usec", "pid", "period_s"),
    [("30000000", "7", 30.0), ("30000000", None, 30.0), ("30000000", "8", None), ("0", "7", None), ("x", "7", None)],
)
def test_the_environment_names_socket_and_period_and_is_not_inherited(
    usec: str, pid: str | None, period_s: float | None
) -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": usec, "PATH": "/bin"}
    if pid is not None:
        environ["WATCHDOG_PID"] = pid
    wait_s = take_environment(environ, pid=7).wait_s()
    assert environ == {"PATH": "/bin"}
    if period_s is None:
        assert wait_s == float("inf")
    else:
        assert 0 < wait_s <= period_s / BEATS_PER_PERIOD


def test_a_process_without_supervisor_has_an_idle_notifier() -> None:
    assert take_environment({}).wait_s() == float("inf")
