"""Files with known names: what somebody else has put there is neither written nor read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wire import files

READ_OR_MAKE = os.O_RDWR | os.O_CREAT


def refusal(path: Path, flags: int = READ_OR_MAKE) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        files.open_own(path, flags)
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value.strerror or ""


def like(path: Path, **changes: int) -> os.stat_result:
    values = list(path.stat())
    for name, value in changes.items():
        values[("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid").index(name)] = value
    return os.stat_result(values)


def test_h8_a_new_file_is_private_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        os.close(files.open_own(path, READ_OR_MAKE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        files.open_own(tmp_path / "none", os.O_RDWR)


@pytest.mark.parametrize("there", [True, False])
def test_h8_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    target, path = tmp_path / "target", tmp_path / "lock"
    path.symlink_to(target)
    if there:
        target.write_bytes(b"precious")
    assert "symbolic link" in refusal(path)
    assert target.exists() == there and (not there or target.read_bytes() == b"precious")


def test_h8_what_is_not_a_file_is_refused_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "irectory" in refusal(tmp_path)


def test_h8_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    owner = tmp_path.stat().st_uid
    files.check_own(path, like(path, st_uid=owner, st_nlink=2))  # a link of the directory's owner to a file of its own
    with pytest.raises(OSError, match="user 4242"):
        files.check_own(path, like(path, st_uid=4242))


def test_h8_somebody_elses_file_under_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, in the directory of a user: /etc/shadow, linked to the name of the lock."""
    path, us = tmp_path / "lock", tmp_path.stat().st_uid + 1
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: us)
    files.check_own(path, like(path, st_uid=us))
    with pytest.raises(OSError, match="hard link"):
        files.check_own(path, like(path, st_uid=us, st_nlink=2))


def test_h8_what_is_made_is_new(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "part"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    descriptor = files.make_own(path)
    os.write(descriptor, b"mine")
    os.close(descriptor)
    assert target.read_bytes() == b"precious"
    assert path.read_bytes() == b"mine" and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600
    os.close(files.make_own(path))
    assert path.read_bytes() == b""
