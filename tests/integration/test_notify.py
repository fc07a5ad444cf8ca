"""chimed and agentd under a supervisor that listens on a NOTIFY_SOCKET, as systemd does. Needs no root."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.snapshot import Snapshot
from tests.integration.chime import environment, toml
from wire import curve, keys
from wire.local.notify import send_datagram

WATCHDOG_S = 0.6
DEADLINE_S = 60.0


class Supervisor:
    """A notify socket, and the daemon that it supervises."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.process: subprocess.Popen[str] | None = None

    def start(self, module: str, config: Path) -> subprocess.Popen[str]:
        notify = {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(config)], env={**environment(), **notify},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def hear(self, within_s: float = DEADLINE_S) -> list[str]:
        """The next datagram; empty when none comes in time."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(4096).decode().splitlines()
        except TimeoutError:
            return []

    def forget(self) -> None:
        """Drops what lies there."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def close(self) -> None:
        self._socket.close()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.communicate()


@pytest.fixture
def supervisor(short_dir: Path) -> Iterator[Supervisor]:
    made = Supervisor(short_dir)
    yield made
    made.close()


@pytest.fixture
def server(short_dir: Path) -> tuple[Path, socket.socket]:
    """The configuration of an initialised server, and a socket that has its port until it is closed."""
    port = socket.create_server(("127.0.0.1", 0))
    config = short_dir / "chimed.toml"
    endpoint = f"tcp://127.0.0.1:{port.getsockname()[1]}"
    config.write_text(toml({"endpoint": endpoint, "state_dir": str(short_dir / "server")}))
    words = [sys.executable, "-m", "chimed.main", "init", "--config", str(config)]
    subprocess.run(words, env=environment(), check=True, capture_output=True)
    return config, port


@pytest.fixture
def node(short_dir: Path) -> Path:
    """The configuration of an agent whose server does not exist and whose libvirt does not answer."""
    state = short_dir / "agent"
    state.mkdir()
    own, authority = curve.new_pair(), curve.new_pair()
    file = keys.KeyFile(
        kind=keys.Kind.NODE, name="n1", public_key=own.public, secret_key=own.secret,
        server_public_key=authority.public, endpoint="tcp://127.0.0.1:1",
    )  # fmt: skip
    keys.save(state / "node.key", file)
    config = short_dir / "agentd.toml"
    uri = f"test://{short_dir}/absent.xml"
    config.write_text(toml({"state_dir": str(state), "socket": str(short_dir / "a.sock"), "libvirt_uri": uri}))
    return config


def feeds_and_ends(supervisor: Supervisor, process: subprocess.Popen[str]) -> None:
    """Beats while it runs, none while it is stopped, beats again, and says that it ends."""
    for _ in range(4):
        assert supervisor.hear() == ["WATCHDOG=1"]
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    supervisor.forget()
    assert supervisor.hear(3 * WATCHDOG_S) == []
    os.kill(process.pid, signal.SIGCONT)
    assert supervisor.hear() == ["WATCHDOG=1"]
    process.terminate()
    while (heard := supervisor.hear()) == ["WATCHDOG=1"]:
        pass
    assert heard == ["STOPPING=1"]
    assert process.wait(DEADLINE_S) == 0


def test_chimed_is_ready_when_it_accepts_connections(
    supervisor: Supervisor, server: tuple[Path, socket.socket]
) -> None:
    config, port = server
    address = port.getsockname()
    port.close()
    process = supervisor.start("chimed.main", config)
    assert supervisor.hear()[0] == "READY=1"
    socket.create_connection(address, 5).close()
    feeds_and_ends(supervisor, process)


def test_chimed_is_not_ready_when_its_port_is_taken(
    supervisor: Supervisor, server: tuple[Path, socket.socket]
) -> None:
    config, port = server
    with port:
        process = supervisor.start("chimed.main", config)
        assert process.wait(DEADLINE_S) == 1
    assert supervisor.hear(0.1) == []


def test_agentd_is_ready_without_server_and_libvirt(supervisor: Supervisor, node: Path) -> None:
    process = supervisor.start("agentd.main", node)
    assert supervisor.hear() == ["READY=1", "STATUS=guards node n1"]
    feeds_and_ends(supervisor, process)


def test_a_second_agentd_is_never_ready(supervisor: Supervisor, node: Path) -> None:
    first = Snapshot(node.with_name("agent"), "n1")
    first.lock()
    try:
        assert supervisor.start("agentd.main", node).wait(DEADLINE_S) == 1
    finally:
        first.unlock()
    assert supervisor.hear(0.1) == []


def test_an_abstract_socket_is_reached_and_one_that_is_gone_is_an_error() -> None:
    name = f"chime-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        send_datagram(f"@{name}", b"READY=1")
        assert receiver.recv(100) == b"READY=1"
    with pytest.raises(OSError):
        send_datagram(f"@{name}", b"READY=1")
