"""A real chimed, as a process on the loopback, and the project's commands run against it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any, Self
from unittest import mock

import zmq

from tests.hosts import wait_until
from tests.integration.plain_peer import Keys, Peer

ROOT = Path(__file__).resolve().parents[2]
FAST = {"heartbeat_s": 0.5, "challenge_s": 0.3, "ping_timeout_s": 0.2, "log_format": "console"}
Finished = subprocess.CompletedProcess[str]


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])


def run(module: str, *args: object, stdin: str = "", env: dict[str, str] | None = None, **options: Any) -> Finished:
    """One of the project's commands to its end, by its module (`chimed.main`)."""
    argv = [sys.executable, "-m", module, *(str(arg) for arg in args)]
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, **(env or {})}, **options,
    )  # fmt: skip


def inside(module: str, *args: object, stdin: str = "", env: dict[str, str] | None = None) -> Finished:
    """The same within this process: for the many commands that are refused, or only ask, and end by themselves."""
    argv, out, err = [str(arg) for arg in args], io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = importlib.import_module(module).main(argv)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def toml(values: dict[str, Any]) -> str:
    """The values as TOML (numbers, text)."""
    return "".join(f"{k} = {v if isinstance(v, int | float) else repr(str(v))}\n" for k, v in values.items())


class Server:
    """`init`, `start`, then `tool(...)` and peers; `stop` at the end."""

    def __init__(self, directory: Path, address: str = "127.0.0.1", **settings: Any) -> None:
        self.dir, self.state = directory, directory / "server"
        self.config, self.database = directory / "chimed.toml", directory / "server" / "chime.db"
        self.endpoint = f"tcp://{address}:{free_port(address)}"
        self.config.write_text(toml({"endpoint": self.endpoint, "state_dir": self.state, **FAST, **settings}))
        self.operator_file = self.state / "operator.key"
        self.log = directory / "chimed.log"
        self.process: subprocess.Popen[bytes] | None = None
        done = run("chimed.main", "init", "--config", self.config)
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it listens."""
        with open(self.log, "wb") as log:
            argv = [sys.executable, "-m", "chimed.main", "--config", str(self.config)]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
        wait_until(self._listens, 30, "chimed listens")

    def _listens(self) -> bool:
        text = self.log.read_text()
        assert self.process is not None
        assert self.process.poll() is None, text
        return "listens at" in text

    def stop(self) -> None:
        """A clean stop; it must be alive until then."""
        if self.process is None:
            return
        early, process, self.process = self.process.poll(), self.process, None
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
        assert (early, process.returncode) == (None, 0), self.log.read_text()[-3000:]

    def rss_mib(self) -> float:
        """Resident memory."""
        assert self.process is not None
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    # --- operators and nodes ------------------------------------------------------------------------------------------

    @property
    def operator(self) -> Keys:
        """Keys of the first operator."""
        return key_file(self.operator_file)

    def tool(self, *args: object, **env: str) -> Finished:
        """`chime-tool` with the first operator's key."""
        return inside("tools.main", *args, env={"CHIME_KEY": str(self.operator_file), "HOME": str(self.dir), **env})

    def new_peer(self) -> Peer:
        """A connection of the first operator."""
        return Peer(self.operator)

    def new_keys(self, name: str) -> Keys:
        """A key pair that the server does not know yet."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        return {**self.operator, "name": name, "public_key": public, "secret_key": secret}

    def add_node(self, peer: Peer, name: str) -> Keys:
        """Registers a node with an address that answers no ping."""
        keys = self.new_keys(name)
        peer.change("node.add", name=name, public_key=keys["public_key"], address="127.0.0.1")
        return keys

    def add_operator(self, peer: Peer, name: str) -> Keys:
        """Registers an operator."""
        keys = self.new_keys(name)
        peer.change("operator.add", name=name, public_key=keys["public_key"])
        return keys

    def rows(self) -> dict[str, list[Any]]:
        """All rows of the database but the audit trail, and the names of all files beside it."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            kept = sorted(name for name in names if not name.startswith(("events", "sqlite_")))
            rows = {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall()) for name in kept}
        rows["files"] = sorted(path.name for path in self.state.iterdir())
        return rows


def key_file(path: Path) -> Keys:
    """What a key file says."""
    return tomllib.loads(path.read_text())


def token() -> str:
    """An idempotency key."""
    return secrets.token_hex(16)


def until(condition: Any, what: str, timeout_s: float = 15.0) -> Any:
    """Polls `condition` until it is true."""
    started = time.monotonic()
    result = wait_until(condition, timeout_s, what)
    assert time.monotonic() - started < timeout_s + 5
    return result
