"""What a daemon tells its supervisor: ready, alive, stopping (systemd's notification protocol, sd_notify(3)).

Rules: nothing here blocks or raises, whatever the supervisor does; what could not be said is said again with the next
beat. Without a supervisor (`NOTIFY_SOCKET` not set) everything does nothing. The main loop calls `beat` in each turn,
and waits no longer than `wait_s`: a loop that hangs falls silent, and that is what the watchdog waits for. A thread of
its own would go on feeding it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

BEATS_PER_PERIOD = 3
"""One late beat must not look like a hanging loop."""
AGAIN_S = 1.0

Send = Callable[[str, bytes], None]


def send_datagram(address: str, payload: bytes) -> None:
    """One datagram to a unix socket; a leading @ stands for the abstract namespace. Raises OSError, never blocks."""
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(payload, socket.MSG_DONTWAIT, target)


class Notifier:
    """The daemon's end. `take_environment` gives the one that systemd asks for; `clock` in seconds."""

    def __init__(
        self,
        address: str = "",
        period_s: float = float("inf"),
        send: Send = send_datagram,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._send, self._clock = address, send, clock
        self._every_s = period_s / BEATS_PER_PERIOD if address else float("inf")
        self._unsaid: dict[str, str] = {}
        self._next = clock() + self._every_s

    def ready(self, status: str) -> None:
        """The service can be used now; `status` is one line for people."""
        self._say(READY="1", STATUS=status)

    def stopping(self) -> None:
        """The service ends because it was told to."""
        self._say(STOPPING="1")

    def beat(self) -> None:
        """The loop turns. To be called in each turn: says so when it is time."""
        if self._clock() >= self._next:
            self._say(WATCHDOG="1")

    def wait_s(self) -> float:
        """For how long the loop may wait at most before the next `beat`."""
        return max(0.0, self._next - self._clock())

    def _say(self, **values: str) -> None:
        if not self._address:
            return
        self._unsaid |= values
        payload = "\n".join(f"{name}={value}" for name, value in self._unsaid.items()).encode()
        try:
            self._send(self._address, payload)
        except OSError:  # no room, or the supervisor is being replaced
            self._next = self._clock() + min(AGAIN_S, self._every_s)
            return
        self._unsaid.clear()
        self._next = self._clock() + self._every_s


def take_environment(environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
    """The notifier that the environment asks for. What asks for it is removed: commands that the daemon runs are not
    the daemon. `pid`: the process to watch, this one if None."""
    address = environ.pop("NOTIFY_SOCKET", "")
    period_s = _period_s(environ, os.getpid() if pid is None else pid)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        environ.pop(name, None)
    return Notifier(address, period_s)


def _period_s(environ: Mapping[str, str], pid: int) -> float:
    """The watchdog's period; infinite when none watches this process."""
    usec = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
    return int(usec) / 1e6 if watched and usec.isdigit() and int(usec) > 0 else float("inf")
