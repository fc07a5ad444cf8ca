"""PID 1 of a test host: reaps orphans at once, runs services, obeys one-line JSON commands on a unix socket.

Standard library only; started by `host.py` inside new namespaces as `python init.py HOST_DIR [LIFELINE_FD]`.
When the process that made the host dies, the lifeline pipe closes and this process ends, and with it every
process of the host.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

MAX_REQUEST_BYTES = 64 * 1024


class Supervised:
    """One service: what to run, whether it should run, and the process that does."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.wanted = True
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.starts = 0
        self.last_exit: int | None = None

    def start(self) -> None:
        self.starts += 1
        with open(self.spec["log"], "ab", buffering=0) as log:
            try:
                self.process = subprocess.Popen(
                    self.spec["argv"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.spec["cwd"],
                    env=self.spec["env"],
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"init: cannot start: {error}\n".encode())
                self.exited(127)

    def exited(self, status: int) -> None:
        if self.process is not None:
            self.process.returncode = status  # we reaped it; Popen need not look again
        self.process = None
        self.last_exit = status
        self.wanted = self.wanted and self.spec["restart"]
        self.start_at = time.monotonic() + self.spec["restart_delay_s"]

    def signal(self, number: int) -> None:
        if self.process is not None:
            os.kill(self.process.pid, number)

    def describe(self) -> dict[str, Any]:
        pid = self.process.pid if self.process else None
        return {"pid": pid, "wanted": self.wanted, "starts": self.starts, "last_exit": self.last_exit}


services: dict[str, Supervised] = {}


def reap() -> None:
    """Collect every dead child, ours or orphaned, without waiting."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for service in services.values():
            if service.process is not None and service.process.pid == pid:
                service.exited(os.waitstatus_to_exitcode(status))


def start_due(now: float) -> float | None:
    """Start what is wanted and due; return the seconds until the next one is due, or None."""
    waits = []
    for service in services.values():
        if service.wanted and service.process is None:
            if service.start_at <= now:
                service.start()
            if service.wanted and service.process is None:
                waits.append(max(0.0, service.start_at - now))
    return min(waits, default=None)


def do_start(request: dict[str, Any]) -> Any:
    old = services.get(request["name"])
    if old is not None and old.process is not None:
        raise ValueError(f"service {request['name']} already runs")
    services[request["name"]] = Supervised(request["spec"])
    start_due(time.monotonic())
    return services[request["name"]].describe()


def do_stop(request: dict[str, Any]) -> Any:
    service = services[request["name"]]
    service.wanted = False
    service.signal(signal.SIGTERM)
    return service.describe()


def do_kill(request: dict[str, Any]) -> Any:
    services[request["name"]].signal(request["signal"])
    return services[request["name"]].describe()


def do_status(request: dict[str, Any]) -> Any:
    return {name: service.describe() for name, service in services.items()}


VERBS = {"start": do_start, "stop": do_stop, "kill": do_kill, "status": do_status}


def answer(listener: socket.socket) -> None:
    """Serve one connection: one request line, one answer line."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.settimeout(2.0)
        try:
            reap()
            request = json.loads(connection.makefile("rb").readline(MAX_REQUEST_BYTES))
            reply: dict[str, Any] = {"ok": VERBS[request["verb"]](request)}
        except (KeyError, TypeError, ValueError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(reply).encode() + b"\n")


def listen(path: str) -> socket.socket:
    """A listening unix socket that nothing can connect to before it is ready."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(16)
    os.rename(path + ".new", path)
    return listener


def main() -> None:
    host_dir = sys.argv[1]
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 ignores it then; services do not
    listener = listen(os.path.join(host_dir, "run", "init.sock"))
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, "command")
    selector.register(wake_read, selectors.EVENT_READ, "wake")
    if len(sys.argv) > 2:
        selector.register(int(sys.argv[2]), selectors.EVENT_READ, "lifeline")
    while True:
        for key, _ in selector.select(start_due(time.monotonic())):
            if key.data == "command":
                answer(listener)
            elif key.data == "wake":
                os.read(wake_read, 4096)
            else:
                sys.exit(0)
        reap()


main()
