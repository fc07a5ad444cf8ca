"""Faults at the n-th system call of a real process, by strace: it is killed there, or the call fails.

Only calls of the main thread that name one of the given paths, first or by a descriptor, count and are hit: other
threads, children, sockets and other files never are. strace counts each kind of call for itself. It kills before the
call has any effect. (Its --seccomp-bpf would be faster, but signals are not injected then.)
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.hosts.service import wait_until

WRITES = (
    "openat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "rename", "renameat2", "unlink",
)  # fmt: skip
KILL = "signal=SIGKILL"
READY_S = 10.0


@functools.cache
def usable() -> bool:
    """Whether strace is here and may trace on this machine."""
    command = ["strace", "-o", os.devnull, "-e", "trace=fsync", sys.executable, "-S", "-c", ""]
    return shutil.which("strace") is not None and subprocess.run(command, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Fault:
    """`what` (as strace's `inject` says it: `signal=SIGKILL`, `error=EIO`) happens to the system call `call` on one of
    the `paths`, at those of its times that `when` says (`7`, `7+`)."""

    paths: tuple[Path, ...]
    call: str
    when: str = "1+"
    what: str = KILL

    def words(self, output: Path) -> list[str]:
        """The command line of strace up to what it traces; all writes to the paths are noted in `output`."""
        paths = [word for path in self.paths for word in ("-P", str(path))]
        inject = ["-e", f"trace={','.join(WRITES)}", "-e", f"inject={self.call}:{self.what}:when={self.when}"]
        return ["strace", "-qq", "-y", "-s", "0", "-o", str(output), *paths, *inject]

    def around(self, output: Path, children: bool = False) -> list[str]:
        """Put before a command, which keeps its pid (-D). `children`: each has the fault too, and counts for itself."""
        return [*self.words(output), "-D", *(["-f"] if children else [])]

    def __str__(self) -> str:
        return f"{self.what} at {self.call} number {self.when} of {', '.join(path.name for path in self.paths)}"


class Attached:
    """A fault in a process that runs already, until `detach`, or as a context manager."""

    def __init__(self, fault: Fault, pid: int, output: Path) -> None:
        self.fault, self.pid, self.output = fault, pid, output
        output.write_bytes(b"")
        words = [*fault.words(output), "-p", str(pid)]
        quiet = subprocess.DEVNULL
        self._strace = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)
        try:
            wait_until(lambda: self.over or self._tracing(), READY_S, f"strace traces {pid}", 0.002)
        except BaseException:
            self.detach()
            raise

    def _tracing(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        return f"TracerPid:\t{self._strace.pid}\n" in status

    @property
    def over(self) -> bool:
        """Whether strace has ended, as it does after its process."""
        return self._strace.poll() is not None

    def detach(self) -> None:
        """The process goes on without faults."""
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGTERM)
        try:
            self._strace.wait(READY_S)
        finally:
            self._strace.kill()
            self._strace.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def place_of_death(output: Path) -> str:
    """The call at which the traced process was killed, and the file that it was about; empty: it was not at a call."""
    places = places_of_death(output)
    return places[-1] if places else ""


def places_of_death(output: Path) -> list[str]:
    """The same for each of several processes."""
    return [_call(line) for line in output.read_text(errors="replace").splitlines() if line.endswith(" = ?")]


def injected(output: Path) -> list[str]:
    """The calls that were made to fail, in order."""
    lines = output.read_text(errors="replace").splitlines()
    return [_call(line) for line in lines if line.endswith("(INJECTED)")]


def _call(line: str) -> str:
    """`write(3</dir/file>, ""..., 5) = ?`, with or without a pid before it, as `write file`."""
    name, _, arguments = line.partition("(")
    return f"{name.split()[-1]} {_file(arguments.split('...')[0])}"


def _file(arguments: str) -> str:
    """The last path that the arguments name: the target of a rename, the file that is opened or written."""
    paths: Iterable[str] = (part for part in arguments.replace("<", '"').replace(">", '"').split('"') if "/" in part)
    return Path(["?", *paths][-1]).name
