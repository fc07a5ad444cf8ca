"""Disk images and boot files of VMs: is everything there, and the first creation of an image.

Rules: nothing here deletes or overwrites an image. An image appears under its name whole or not at all,
whenever the agent is killed. Every call may block on dead storage: worker threads only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from agentd.hypervisor import HypervisorError, InvalidVm
from wire.messages import Disk

CREATE_TIMEOUT_S = 120.0
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_disks(paths: Iterable[str]) -> None:
    """Raises InvalidVm for the first disk that is missing, unreadable or no image or block device."""
    for path in paths:
        _check("disk", path, (stat.S_ISREG, stat.S_ISBLK))


def check_boot_files(paths: Iterable[str]) -> None:
    """The same for kernel and initrd."""
    for path in paths:
        _check("boot file", path, (stat.S_ISREG,))


def create_missing(disks: Iterable[Disk], may_create: bool) -> list[str]:
    """Creates the disks that do not exist and have a size; gives the paths it created.

    Raises InvalidVm when one is missing and `may_create` is False: a blank image must never take the place of
    data that is only out of sight, on storage that is not mounted.
    """
    created = []
    for disk in disks:
        if os.path.lexists(disk.path) or disk.size_mib is None:
            continue
        if not may_create:
            raise InvalidVm(
                f"disk {disk.path} does not exist on this node, and is not created again: "
                "only a new VM gets new disks"
            )
        if create(disk):
            created.append(disk.path)
    return created


def create(disk: Disk) -> bool:
    """Creates an image of `size_mib` unless the path exists; whether it did."""
    target = Path(disk.path)
    if not target.parent.is_dir():
        raise InvalidVm(f"disk {target} cannot be created: {target.parent} is not a directory on this node")
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    try:
        _qemu_img_create(disk, part)
        _sync(part)
        made = _place(part, target)
    except OSError as error:
        raise HypervisorError(f"disk {target} cannot be created: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # a read-only file system: what matters is why nothing could be created
            part.unlink(missing_ok=True)
    _sync(target.parent)
    return made


def _check(what: str, path: str, kinds: tuple[Callable[[int], bool], ...]) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidVm(f"{what} {path} does not exist on this node") from None
    except (OSError, ValueError) as error:
        raise InvalidVm(f"{what} {path} cannot be used on this node: {error}") from None
    if not any(kind(mode) for kind in kinds):
        raise InvalidVm(f"{what} {path} is not a file on this node")
    if not os.access(path, os.R_OK):
        raise InvalidVm(f"{what} {path} cannot be read on this node")


def _qemu_img_create(disk: Disk, part: Path) -> None:
    command = ["qemu-img", "create", "-q", "-f", disk.format.value, "--", str(part), f"{disk.size_mib}M"]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=CREATE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise HypervisorError(f"disk {disk.path} cannot be created: qemu-img is not installed") from None
    except subprocess.TimeoutExpired:
        raise HypervisorError(
            f"disk {disk.path} cannot be created: no result in {CREATE_TIMEOUT_S:g} s"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or f"qemu-img exit code {error.returncode}"
        raise HypervisorError(f"disk {disk.path} cannot be created: {reason}") from None


def _place(part: Path, target: Path) -> bool:
    """Gives the finished image its name. A hard link fails where a rename would overwrite."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _place_exclusively(part, target)
    return True


def _place_exclusively(part: Path, target: Path) -> bool:
    """For file systems without hard links: one creator gets the name and replaces its own empty file."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    os.rename(part, target)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
