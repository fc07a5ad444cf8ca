"""Errors that the kernel has counted: of disks (`disk-errors`) and of file systems (`filesystem-errors`).

Counters: `ioerr_cnt` of SCSI and SATA disks, `errors_count` of ext4. NVMe and virtio disks have none: there, failed and
slow writes (`storage`) and SMART tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.text import counted
from wire.types import Severity

DISK, FILESYSTEM = "disk-errors", "filesystem-errors"
MIN_NEW = 3
"""A command that a disk does not know counts as an error too, so one alone says nothing."""


@dataclass(frozen=True, slots=True)
class ErrorCounters:
    """Errors so far by device."""

    disks: Mapping[str, int]
    filesystems: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BlockDeviceCheck:
    """New I/O errors of disks; errors of file systems, which last until a check of the file system clears them."""

    sys: Path = Path("/sys")
    name: str = "block-devices"
    interval_s: float = 30.0
    timeout_s: float = 10.0
    codes: ClassVar[Mapping[str, Code]] = {
        DISK: Code(Severity.WARNING, clear_after=20),
        FILESYSTEM: Code(Severity.CRITICAL),
    }

    def read(self) -> ErrorCounters:
        """All counters that there are."""
        disks = {path.parent.parent.name: _number(path) for path in self.sys.glob("block/*/device/ioerr_cnt")}
        filesystems = {path.parent.name: _number(path) for path in self.sys.glob("fs/ext4/*/errors_count")}
        return ErrorCounters(disks, filesystems)

    def symptoms(
        self, reading: ErrorCounters, before: ErrorCounters | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """Disks with new errors, file systems with any."""
        earlier = before.disks if before is not None else {}
        for disk, count in reading.disks.items():
            new = count - earlier.get(disk, count)
            if new >= MIN_NEW or (new > 0 and Key(DISK, disk) in raised):
                yield Symptom(DISK, disk, f"{disk}: {counted(new, 'new I/O error')}, {count} since it was connected")
        for device, count in reading.filesystems.items():
            if count > 0:
                yield Symptom(FILESYSTEM, device, f"ext4 on {device} has found errors (see the kernel log)")


def _number(path: Path) -> int:
    """The number in a file of /sys (SCSI counts in hexadecimal); 0 when the device has gone meanwhile."""
    try:
        return int(path.read_text().strip(), 0)
    except (OSError, ValueError):
        return 0


def checks(config: Config) -> list[BlockDeviceCheck]:
    """The check, for `chime.checks`."""
    return [BlockDeviceCheck()]
