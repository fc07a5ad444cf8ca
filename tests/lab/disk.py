"""A host's own small disk, and the ways in which it can break.

An ext4 image on a loop device. Its backing file is sparse and lies on a small tmpfs, so that filling the tmpfs makes
the device lose what is written to it: fsync fails, as on a thin pool that is full. Everything is undone by `mend`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Literal

from tests.hosts.service import succeeds, wait_until
from tests.lab.layers import LOCAL

DISK_MIB = 48
BUSY_S = 10.0
ROOM_MIB = 64  # of the backing tmpfs
Failure = Literal["read-only", "full", "errors", "hang"]


class Disk:
    """The image below `backing`, mounted at `mounted` in the host's own mount namespace (by its boot)."""

    def __init__(self, backing: Path, mounted: Path) -> None:
        self.backing = backing
        self.mounted = mounted

    def make(self) -> None:
        """Make an empty disk."""
        _do("mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB}m,mode=700", "tmpfs", self.backing)
        self._format()

    def remove(self) -> None:
        """Take the backing file away (the host is off)."""
        subprocess.run(["umount", "-l", str(self.backing)], capture_output=True)

    def fail(self, how: Failure, leader: int) -> None:
        """Let it fail: mounted read-only by the kernel, full, losing writes, writes that never end."""
        inside = f"/proc/{leader}/root{LOCAL}"
        if how == "read-only":
            remount = ("nsenter", "-t", str(leader), "-m", "mount", "-o", "remount,ro", LOCAL)
            wait_until(lambda: succeeds(*remount), BUSY_S, f"{LOCAL} is read-only: the agent's probe makes it busy")
        elif how == "full":
            _fill(Path(f"{inside}/filler"))
        elif how == "errors":
            _fill(self.backing / "filler")
        else:
            _do("nsenter", "-t", str(leader), "-m", "fsfreeze", "--freeze", LOCAL)

    def mend(self, leader: int) -> None:
        """Undo all of it; `leader` is the host's first process, 0 when it is off."""
        (self.backing / "filler").unlink(missing_ok=True)
        if leader:
            inside = ["nsenter", "-t", str(leader), "-m"]
            subprocess.run([*inside, "fsfreeze", "--unfreeze", LOCAL], capture_output=True)
            subprocess.run([*inside, "mount", "-o", "remount,rw", LOCAL], capture_output=True)
            with contextlib.suppress(OSError):
                os.unlink(f"/proc/{leader}/root{LOCAL}/filler")
            subprocess.run([*inside, "fstrim", LOCAL], capture_output=True)  # what was deleted is sparse again

    def _format(self) -> None:
        image = self.backing / "image"
        with open(image, "wb") as file:
            file.truncate(DISK_MIB * 1024 * 1024)
        _do("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)


def _fill(path: Path) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(1024 * 1024)):
            pass


def _do(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
