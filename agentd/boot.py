"""Which boot of the host this is. Needs nothing that is not always there: commands that look at no VM use it too."""

from __future__ import annotations

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The id of this boot of the host."""
    return BOOT_ID.read_text().strip().lower()
