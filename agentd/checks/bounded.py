"""Runs a command for a check: no input, a time-out, and no more output kept than a fault's text needs.

Rules: the command has a process group of its own, which is ended with it; the rest of its output is read and thrown
away; one that cannot be killed (D state) is waited for, in the check's own thread, so that there is never a second.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agentd.checks.interface import CheckFailed, CheckStuck

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended (negative: the signal) and what it wrote first to standard output."""

    code: int
    text: str


def run(argv: Sequence[str], timeout_s: float, max_bytes: int = 4096) -> Output:
    """Runs it to its end. Raises CheckStuck after the time-out, CheckFailed when it cannot be started."""
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise CheckFailed(f"cannot be run: {error.strerror}") from None
    assert process.stdout is not None
    with process.stdout:
        try:
            kept, ended = _read(process, deadline, max_bytes)
        finally:
            _kill_group(process.pid)  # not yet waited for, so the id is still its own
            code = process.wait()
    if not ended:
        raise CheckStuck(timeout_s)
    return Output(code, kept.decode("utf-8", "replace"))


def _read(process: subprocess.Popen[bytes], deadline: float, max_bytes: int) -> tuple[bytes, bool]:
    """What it wrote until it ended or the time was over, and whether it ended."""
    assert process.stdout is not None
    pipe, kept = process.stdout.fileno(), b""
    os.set_blocking(pipe, False)
    process_fd = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        poller.register(process_fd, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(left_s * 1000))
            if pipe in ready:
                chunk = _chunk(pipe)
                kept = (kept + chunk)[:max_bytes]
                if not chunk:
                    poller.unregister(pipe)  # closed
            elif process_fd in ready:
                return kept, True
        return kept, False
    finally:
        os.close(process_fd)


def _chunk(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all gone, or only the dead one is left
