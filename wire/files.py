"""Files with known names, opened so that nobody else can make them other files.

A lock, a half-written file or a probe has a name that can be guessed, and may lie in a directory into which a user with
fewer rights writes. Rules: a symbolic link is not followed; what is opened is a regular file of this user, of root or
of the directory's owner, and a file of anybody but that owner has one name only (a hard link is somebody's file under
another name); what is made anew is made, never found. Refusals are `OSError`s whose words name the reason.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hang us


def open_own(path: Path, flags: int) -> int:
    """Opens a file of ours and returns its descriptor; with `os.O_CREAT` it is made (0600) if it is not there. Raises
    OSError."""
    try:
        descriptor = os.open(path, flags | _ALWAYS, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed: remove it", str(path)) from None
        raise
    try:
        check_own(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own(path: Path, found: os.stat_result) -> None:
    """Raises OSError unless `found`, of the file at `path`, is a regular file that may be taken for ours."""
    owner = path.parent.stat().st_uid
    why = ""
    if not stat.S_ISREG(found.st_mode):
        why = "it is not a regular file: remove it"
    elif found.st_uid not in (0, os.geteuid(), owner):
        why = f"it belongs to user {found.st_uid}: remove it"
    elif found.st_nlink > 1 and found.st_uid != owner:
        why = "it is a hard link to a file of somebody else: remove it"
    if why:
        raise OSError(errno.EPERM, why, str(path))


def make_own(path: Path) -> int:
    """Makes a new file that only its owner reads, in the place of whatever has the name, and returns its descriptor,
    open for writing. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ALWAYS, 0o600)
