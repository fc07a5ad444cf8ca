"""Folders with VM disks, and the agent's own: no room, read-only, write errors, slow writes.

Rules: each folder is a check of its own, since one on dead storage hangs; a folder for VM disks is written to (one file
of this host, 4 KiB with fsync, removed again), the agent's own is not, since the snapshot already tells of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire import files
from wire.types import Severity

FULL, READ_ONLY, FAILED, SLOW = "storage-full", "storage-read-only", "storage-failed", "storage-slow"
MARGIN_PERCENT = 2.0
PROBE_BYTES = 4096
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class StorageReading:
    """A folder: room in percent (None: it cannot be looked at), and how the write went (`write_s` None: it was not
    tried, or failed; `cause` is the errno)."""

    free_percent: float | None
    read_only: bool = False
    error: str = ""
    cause: int = 0
    write_s: float | None = None


@dataclass(frozen=True, slots=True)
class StorageCheck:
    """One folder. `storage-full` is cleared only `MARGIN_PERCENT` above its limit."""

    path: str
    limit_percent: float
    slow_s: float
    probe: bool
    interval_s: float = 30.0
    timeout_s: float = 20.0
    codes: ClassVar[Mapping[str, Code]] = {
        FULL: Code(Severity.WARNING, clear_after=1),
        READ_ONLY: Code(Severity.CRITICAL),
        FAILED: Code(Severity.CRITICAL),
        SLOW: Code(Severity.WARNING, raise_after=2, clear_after=3),
    }

    @property
    def name(self) -> str:
        """The check and its folder."""
        return f"storage {self.path}"

    def read(self) -> StorageReading:
        """Looks at the folder's file system and writes to it."""
        try:
            status = os.statvfs(self.path)
        except OSError as error:
            return StorageReading(None, error=f"cannot be read: {error.strerror}")
        free, read_only = _free_percent(status), bool(status.f_flag & os.ST_RDONLY)
        if read_only or not self.probe:
            return StorageReading(free, read_only)
        began = time.monotonic()
        try:
            _write(self.path)
        except OSError as error:
            text = f"cannot be written: {error.strerror}"
            return StorageReading(free, error.errno == errno.EROFS, text, error.errno or 0)
        return StorageReading(free, write_s=time.monotonic() - began)

    def symptoms(
        self, reading: StorageReading, before: StorageReading | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """What is wrong with the folder."""
        limit = self.limit_percent + (MARGIN_PERCENT if Key(FULL, self.path) in raised else 0.0)
        if reading.read_only:
            yield Symptom(READ_ONLY, self.path, f"{self.path} is read-only")
        elif reading.error and reading.cause not in NO_ROOM:
            allowed = reading.cause not in NOT_ALLOWED  # root of a node is nobody on some NFS: VMs may be well
            yield Symptom(FAILED, self.path, f"{self.path} {reading.error}", None if allowed else Severity.INFO)
        if reading.cause in NO_ROOM:
            yield Symptom(FULL, self.path, f"{self.path} {reading.error}")
        elif reading.free_percent is not None and reading.free_percent < limit:
            free = f"{reading.free_percent:.0f} % free, limit {self.limit_percent:g} %"
            yield Symptom(FULL, self.path, f"{self.path}: {free}")
        if reading.write_s is not None and reading.write_s > self.slow_s:
            took = f"{reading.write_s:.1f} s to write {PROBE_BYTES} bytes, limit {self.slow_s:g} s"
            yield Symptom(SLOW, self.path, f"{self.path}: {took}")


def _free_percent(status: os.statvfs_result) -> float:
    """Free space, or inodes if there are fewer, in percent of the file system."""
    space = status.f_bavail / status.f_blocks if status.f_blocks else 1.0
    inodes = status.f_favail / status.f_files if status.f_files else 1.0  # btrfs does not count them
    return 100.0 * min(space, inodes)


def _write(folder: str) -> None:
    """Writes a file and has it on disk. Raises OSError. The name is this host's own: others share the folder."""
    path = os.path.join(folder, f".chime-probe-{socket.gethostname()}")
    file = files.make_own(Path(path))
    try:
        os.write(file, bytes(PROBE_BYTES))
        os.fsync(file)
    finally:
        os.close(file)
        with contextlib.suppress(OSError):
            os.unlink(path)


def checks(config: Config) -> list[StorageCheck]:
    """A check for each folder, for `chime.checks`."""
    limit, slow_s, every_s = config.storage_min_free_percent, config.storage_slow_s, config.storage_check_s
    for_vms = dict.fromkeys(config.storage_paths)
    own = [] if config.state_dir in for_vms else [config.state_dir]
    return [
        *(StorageCheck(path, limit, slow_s, probe=False, interval_s=every_s) for path in own),
        *(StorageCheck(path, limit, slow_s, probe=True, interval_s=every_s) for path in for_vms),
    ]
