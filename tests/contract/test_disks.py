"""Images are created whole, once, and nothing is ever overwritten or removed."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from agentd.hypervisor import HypervisorError, InvalidVm
from agentd.libvirt import disks
from tests.contract.harness import real_hypervisor_missing
from wire.messages import Disk
from wire.types import DiskFormat

needs_qemu = pytest.mark.skipif(bool(real_hypervisor_missing()), reason=real_hypervisor_missing())


def disk(path: Path, size_mib: int | None = 4, kind: DiskFormat = DiskFormat.QCOW2) -> Disk:
    return Disk(path=str(path), size_mib=size_mib, format=kind)


@needs_qemu
@pytest.mark.parametrize("kind", list(DiskFormat))
def test_image_of_the_right_format_and_size(tmp_path: Path, kind: DiskFormat) -> None:
    image = tmp_path / "--odd name,with=signs.img"
    assert disks.create(disk(image, kind=kind))
    told = subprocess.run(
        ["qemu-img", "info", "-f", kind.value, str(image)], capture_output=True, text=True, check=True
    )
    assert "4 MiB" in told.stdout
    assert os.listdir(tmp_path) == [image.name]
    disks.check_disks([str(image)])


@needs_qemu
@pytest.mark.parametrize("links", [True, False])
def test_existing_file_is_never_overwritten(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    image = tmp_path / "d"
    image.write_text("data")
    assert not disks.create(disk(image))
    assert image.read_text() == "data" and os.listdir(tmp_path) == ["d"]
    assert disks.create(disk(tmp_path / "e"))
    assert sorted(os.listdir(tmp_path)) == ["d", "e"]


def test_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, images = tmp_path / "bin", tmp_path / "images"
    programs.mkdir()
    images.mkdir()
    program = programs / "qemu-img"
    program.write_text('#!/bin/sh\necho half > "$6"\necho "no\nroom" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HypervisorError, match="cannot be created: no room"):
        disks.create(disk(images / "d"))
    assert os.listdir(images) == []
    program.unlink()
    with pytest.raises(HypervisorError, match="qemu-img is not installed"):
        disks.create(disk(images / "d"))


def test_the_reason_is_told_where_nothing_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    program = tmp_path / "qemu-img"
    program.write_text('#!/bin/sh\necho "Could not create: Read-only file system" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(HypervisorError, match="cannot be created: Could not create: Read-only"):
        disks.create(disk(tmp_path / "d"))
    monkeypatch.undo()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    link = tmp_path / "dangling"
    link.symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "none", link, tmp_path / "none" / "d"):
        with pytest.raises(InvalidVm, match=f"disk {path} does not exist on this node"):
            disks.check_disks([str(path)])
    with pytest.raises(InvalidVm, match="is not a file"):
        disks.check_disks([str(tmp_path)])
    with pytest.raises(InvalidVm, match="is not a directory"):
        disks.create(disk(tmp_path / "none" / "d"))


def test_creation_needs_a_size_and_permission(tmp_path: Path) -> None:
    assert disks.create_missing([disk(tmp_path / "d", size_mib=None)], may_create=True) == []
    with pytest.raises(InvalidVm, match="not created again"):
        disks.create_missing([disk(tmp_path / "d")], may_create=False)
    assert os.listdir(tmp_path) == []
