"""A file system whose writes hang when a test says so, as those of a dead disk do: ext4 on a loop device, frozen."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.service import succeeds, wait_until

BUSY_S = 10.0


class FrozenDisk:
    """A mounted file system; while it is frozen each write to it hangs in the kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._frozen = False

    def freeze(self) -> None:
        """Writes hang from now on."""
        subprocess.run(["fsfreeze", "--freeze", self.folder], check=True)
        self._frozen = True

    def thaw(self) -> None:
        """Writes go on."""
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", self.folder], check=True)
            self._frozen = False

    @contextmanager
    def device(self) -> Iterator[Path]:
        """A block device, kept in a file there: its writes hang too, but those who wait for them need not."""
        image = self.folder / "device"
        with image.open("wb") as file:
            file.truncate(1 << 20)
        made = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
        device = Path(made.stdout.strip())
        try:
            yield device
        finally:
            self.thaw()
            subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def frozen_disk(place: Path) -> Iterator[FrozenDisk]:
    """Such a file system of 8 MiB, mounted in `place`, which is empty; it is thawed and gone afterwards."""
    image, folder = place / "image", place / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    disk = FrozenDisk(folder)
    try:
        yield disk
    finally:
        disk.thaw()
        wait_until(lambda: succeeds("umount", folder), BUSY_S, f"{folder} is unmounted: a writer's end takes a moment")


def writes_under_way(device: Path) -> int:
    """Writes to a block device that are not done."""
    return int(Path(f"/sys/block/{device.name}/inflight").read_text().split()[1])
