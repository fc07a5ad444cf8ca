"""The oracle: which qemu processes really exist, read from the machine's process table, nothing of Chime.

Every host is a pid namespace below ours, so the scan sees all hosts at once. A zombie runs nothing and is
left out.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

RAN_NS = 5_000_000  # a paused vCPU uses less between two samples, one that runs a Linux soon uses more


@dataclass(frozen=True, slots=True)
class Qemu:
    """One live qemu process with a VM's UUID."""

    uuid: str
    name: str  # libvirt's domain name, "" when unknown
    host: str  # name of the host it runs in, "" when in none of the given hosts
    pid: int  # as seen from outside the hosts
    started_ticks: int  # start time; with the pid it identifies the process for ever
    state: str  # the letter of /proc/PID/stat
    incoming: bool  # started as the target of a live migration
    path: str  # command line, for messages and for finding whose it is

    @property
    def runnable(self) -> bool:
        """False when the whole process is stopped by a signal (its vCPUs cannot run then)."""
        return self.state not in "Tt"


def pids() -> Iterator[int]:
    """All process ids of the machine, as seen from here."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def pid_namespace(pid: int) -> int | None:
    """Inode of the pid namespace of a process, or None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def cmdline(pid: int) -> list[str]:
    """Argument vector of a process; empty for kernel threads, zombies and processes that are gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read()
    except OSError:
        return []
    return raw.decode(errors="replace").rstrip("\0").split("\0") if raw else []


def state_and_start(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in ticks) of a process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[19])


def inner_pid(pid: int) -> int | None:
    """The id that a process has in its own (innermost) pid namespace."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def vcpu_time_ns(pid: int) -> int:
    """CPU time that the vCPU threads of a qemu have used (libvirt lets it name its threads); 0 when it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for task in os.scandir(f"/proc/{pid}/task"):
            if _read(f"{task.path}/comm").startswith(("CPU ", "ALL CPUs")):
                total += int((_read(f"{task.path}/schedstat").split() or ["0"])[0])
    return total


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def scan(namespaces: Mapping[int, str]) -> dict[str, list[Qemu]]:
    """UUID -> live qemu processes; `namespaces` maps pid namespace inodes to host names."""
    found: dict[str, list[Qemu]] = {}
    for pid in pids():
        argv = cmdline(pid)
        if argv and "qemu" in os.path.basename(argv[0]) and "-uuid" in argv[:-1]:
            seen = _inspect(pid, argv, namespaces)
            if seen is not None:
                found.setdefault(seen.uuid, []).append(seen)
    return found


def _inspect(pid: int, argv: list[str], namespaces: Mapping[int, str]) -> Qemu | None:
    host = namespaces.get(pid_namespace(pid) or 0, "")
    stat = state_and_start(pid)
    if stat is None or stat[0] in "ZX":
        return None
    name = argv[argv.index("-name") + 1] if "-name" in argv[:-1] else ""
    return Qemu(
        uuid=argv[argv.index("-uuid") + 1].lower(),
        name=name.split(",")[0].removeprefix("guest="),
        host=host,
        pid=pid,
        started_ticks=stat[1],
        state=stat[0],
        incoming="-incoming" in argv,
        path=" ".join(argv),
    )


def still_runs(seen: Qemu) -> bool:
    """True while that very process lives and is not stopped."""
    now = state_and_start(seen.pid)
    return now is not None and now[1] == seen.started_ticks and now[0] not in "ZXTt"


@dataclass
class Watch:
    """Samples the oracle in a thread and records every moment when a UUID had two runnable processes (S1).

    A scan is not atomic, so two processes count only when both are found alive again after it. The target of a live
    migration is no second copy as long as its vCPUs are paused. Whether they are, qemu is not asked: they are when
    their threads use no CPU time. Once they have used some, the source must not use any more.
    Use as a context manager; then read `violations` (empty is good) and `samples`.
    """

    scanner: Callable[[], dict[str, list[Qemu]]]
    period_s: float = 0.1
    violations: list[list[Qemu]] = field(default_factory=list)
    samples: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._cpu_ns: dict[tuple[int, int], int] = {}
        self._took_over: dict[tuple[int, int], int] = {}  # started as a target -> sample in which it had run
        self._thread = threading.Thread(target=self._loop, name="oracle", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            self.sample()
            self._stop.wait(max(0.0, self.period_s - (time.monotonic() - began)))

    def sample(self) -> None:
        """Look once."""
        groups = self.scanner()
        ran = self._which_ran(groups)
        for group in groups.values():
            live = sorted((seen for seen in group if seen.runnable), key=lambda seen: seen.started_ticks)
            for older, newer in itertools.combinations(live, 2):
                if self._both_run(older, newer, ran) and still_runs(older) and still_runs(newer):
                    self.violations.append([older, newer])
        self.samples += 1

    def _which_ran(self, groups: dict[str, list[Qemu]]) -> set[tuple[int, int]]:
        """Processes, of those where it matters, whose vCPUs have run since the last sample."""
        watched = [seen for group in groups.values() for seen in group if seen.incoming or len(group) > 1]
        used = {(seen.pid, seen.started_ticks): vcpu_time_ns(seen.pid) for seen in watched}
        ran = {key for key, now in used.items() if now - self._cpu_ns.get(key, now) > RAN_NS}
        self._cpu_ns = used
        for seen in watched:
            key = (seen.pid, seen.started_ticks)
            if seen.incoming and key in ran:
                self._took_over.setdefault(key, self.samples)
        return ran

    def _both_run(self, older: Qemu, newer: Qemu, ran: set[tuple[int, int]]) -> bool:
        first, second = ((seen.pid, seen.started_ticks) for seen in (older, newer))
        if not newer.incoming:
            return not older.incoming or first in self._took_over
        return self._took_over.get(second, self.samples) < self.samples and first in ran
