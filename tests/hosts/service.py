"""Services of a host as seen from outside, and the polling and the error that go with them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hosts.host import Host


class HostError(RuntimeError):
    """A host or one of its services did not do what was asked; the message says which and why."""


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str, period_s: float = 0.02) -> Any:
    """Poll until `condition` gives something true and return it. Raises HostError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise HostError(f"not within {timeout_s:g} s: {what}")
        time.sleep(period_s)


def succeeds(*argv: str | Path) -> bool:
    """Whether the command ends with 0; for what the kernel refuses while something is busy."""
    return subprocess.run(argv, capture_output=True).returncode == 0


class Service:
    """A supervised process of a host: restarted after `restart_delay_s` whenever it ends by itself."""

    def __init__(self, host: Host, name: str, spec: dict[str, Any]) -> None:
        self.host = host
        self.name = name
        self.spec = spec
        self.enabled = False  # started by hand and not stopped since: comes back at power-on
        self.log = Path(spec["log"])

    def start(self) -> None:
        """Start it. Raises HostError when it runs already."""
        self.enabled = True
        self.host.ask_init("start", name=self.name, spec=self.spec)

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM and wait; SIGKILL and HostError when it does not end in time. It stays stopped."""
        self.enabled = False
        self.host.ask_init("stop", name=self.name)
        try:
            wait_until(
                lambda: self.status()["pid"] is None, timeout_s, f"{self.host.name}: {self.name} stops"
            )
        except HostError:
            self.kill()
            raise

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its main process; init starts it again if it ends."""
        self.host.ask_init("kill", name=self.name, signal=int(number))

    def status(self) -> dict[str, Any]:
        """`pid` (inside the host, None = not running), `wanted`, `starts`, `last_exit` (< 0: a signal)."""
        status = self.host.ask_init("status").get(self.name)
        if status is None:
            raise HostError(f"{self.host.name}: service {self.name} was never started in this boot")
        return dict(status)

    @property
    def pid(self) -> int | None:
        """Its main process as seen from outside the host, or None."""
        inner = self.status()["pid"] if self.host.is_on else None
        return self.host.outer_pid(inner) if inner else None
