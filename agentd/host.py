"""Facts and faults of the host itself: who it is, how loaded, whether memory or storage runs out.

Rules: the decisions (`memory_full`, `storage_full`) are pure, with the earlier state as an argument; a fault
is raised at its limit and cleared only a margin above it. Reading a path may block on dead storage: worker
threads only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from wire.messages import Fault, HostFacts, Load

MEMORY_FULL = "memory-full"
STORAGE_FULL = "storage-full"
MIB = 1024 * 1024
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Seconds since the host booted, suspend included: the clock of every duration."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The id of this boot of the host."""
    return BOOT_ID.read_text().strip().lower()


def host_facts(kvm: bool, hypervisor: str, agent_version: str) -> HostFacts:
    """What the host is; the caller knows hypervisor and agent."""
    return HostFacts(
        hostname=socket.gethostname(),
        vcpus=psutil.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // MIB,
        kvm=kvm,
        hypervisor=hypervisor,
        agent_version=agent_version,
    )


def load(vms_running: int) -> Load:
    """Load now. CPU: the mean since the last call (0 at the first); returns at once."""
    return Load(
        cpu_percent=round(psutil.cpu_percent(interval=None), 1),
        memory_available_mib=psutil.virtual_memory().available // MIB,
        vms_running=vms_running,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """A fault is raised below `*_free_percent` and cleared at `margin_percent` more."""

    memory_free_percent: float = 5.0
    storage_free_percent: float = 5.0
    margin_percent: float = 2.0


def memory_full(free_percent: float, limits: Limits, was: Fault | None) -> Fault | None:
    """The fault of a host with so much available memory, given whether it had it before."""
    if not _below(free_percent, limits.memory_free_percent, limits.margin_percent, was is not None):
        return None
    return was or Fault(code=MEMORY_FULL, text=_text("memory", free_percent, limits.memory_free_percent))


def storage_full(free_percent: Mapping[str, float | None], limits: Limits, was: Fault | None) -> Fault | None:
    """The fault of a host with so much free space under each path (None: it cannot be read)."""
    limit, full = limits.storage_free_percent, []
    for path, free in sorted(free_percent.items()):
        if free is None:
            full.append(f"{path}: cannot be read")
        elif _below(free, limit, limits.margin_percent, _names(was, path)):
            full.append(_text(f"{path}:", free, limit))
    return Fault(code=STORAGE_FULL, text="; ".join(full)[:2000]) if full else None


def _below(free: float, limit: float, margin: float, was: bool) -> bool:
    return free < (limit + margin if was else limit)


def _names(fault: Fault | None, path: str) -> bool:
    """Whether the path was found full; one that could not be read has no margin to climb."""
    parts = fault.text.split("; ") if fault is not None else []
    return any(part.startswith(f"{path}: ") and "free" in part for part in parts)


def _text(what: str, free: float, limit: float) -> str:
    """Whole percents: a text that changed with every reading would be a change to report each time."""
    return f"{what} {free:.0f} % free, limit {limit:g} %"


def memory_free_percent() -> float:
    """Memory available without swapping, percent of all."""
    memory = psutil.virtual_memory()
    return 100.0 * memory.available / memory.total


def storage_free_percent(paths: Iterable[str]) -> dict[str, float | None]:
    """Free space (or inodes, if fewer) under each path, percent of the file system; None: cannot be read."""
    return {path: _free_percent(path) for path in paths}


def _free_percent(path: str) -> float | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    space = status.f_bavail / status.f_blocks if status.f_blocks else 1.0
    inodes = status.f_favail / status.f_files if status.f_files else 1.0  # btrfs does not count them
    return 100.0 * min(space, inodes)


@dataclass(slots=True)
class HostChecks:
    """The host's own faults, remembered from one reading to the next."""

    storage_paths: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    memory: Fault | None = None
    storage: Fault | None = None

    def faults(self) -> tuple[Fault, ...]:
        """Reads the host and gives the faults that it has now."""
        self.memory = memory_full(memory_free_percent(), self.limits, self.memory)
        self.storage = storage_full(storage_free_percent(self.storage_paths), self.limits, self.storage)
        return tuple(fault for fault in (self.memory, self.storage) if fault is not None)
