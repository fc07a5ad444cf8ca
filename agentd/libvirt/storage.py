"""Which disks of a VM only this node has, and a place for their copies on the target of a migration.

Rules: a disk that only this node has is copied, or its VM stays: the copy never meets another file of that name. What
exists on the target is never written to. A disk counts as shared because of its file system, or because the operator
says so of its folder, never because a file of that name exists elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from agentd.hypervisor import HypervisorError
from agentd.libvirt import domain_xml
from agentd.libvirt.connection import libvirt, one_line
from agentd.libvirt.target import Settings, bracketed
from wire.messages import MigrationOrder

SHARED_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "fuse.ceph-fuse", "gfs2", "ocfs2", "gpfs"}
    | {"lustre", "beegfs", "9p"}
)


UNSAFE = libvirt.VIR_MIGRATE_UNSAFE  # libvirt knows fewer shared file systems; each disk was looked at here


class Copied(NamedTuple):
    """What libvirt must be told about the disks."""

    flags: int
    parameters: dict[str, Any]


def is_shared(path: str, shared_paths: tuple[str, ...]) -> bool:
    """Whether the file at `path` is the same on all nodes."""
    real = os.path.realpath(path)
    return _said_to_be(real, shared_paths) or _file_system(real) in SHARED_FILE_SYSTEMS


def _said_to_be(real: str, shared_paths: tuple[str, ...]) -> bool:
    return any(Path(real).is_relative_to(os.path.realpath(folder)) for folder in shared_paths)


def _file_system(real: str) -> str:
    holders = [part for part in psutil.disk_partitions(all=True) if Path(real).is_relative_to(part.mountpoint)]
    return max(holders, key=lambda part: len(part.mountpoint)).fstype if holders else ""


def local_disks(xml: str, shared_paths: tuple[str, ...]) -> list[domain_xml.FileDisk]:
    """The writable image files of a domain that only this node has. (Block devices are told apart by no one: the target
    has the same device, or libvirt refuses.)"""
    return [disk for disk in domain_xml.file_disks_of(xml) if not is_shared(disk.path, shared_paths)]


@contextlib.contextmanager
def prepared(domain: Any, settings: Settings, order: MigrationOrder, conn: Any) -> Iterator[Copied]:
    """Makes room for the copies of local disks on the target, which `conn` leads to, while it lasts. Raises
    HypervisorError."""
    xml = domain.XMLDesc(0)
    local = local_disks(xml, settings.shared_paths)
    if not local:
        yield Copied(UNSAFE, {})
        return
    if not order.options.local_disks:
        text = "copy it (local disks), or list its folder in shared_paths if all nodes share it"
        raise HypervisorError(f"disk {local[0].path} is only on this node: {text}")
    with contextlib.ExitStack() as undo:
        for folder in sorted({os.path.dirname(disk.path) for disk in local}):
            names = [os.path.basename(disk.path) for disk in local if os.path.dirname(disk.path) == folder]
            undo.enter_context(_pool(conn, order.address, folder, names))
        yield Copied(UNSAFE | libvirt.VIR_MIGRATE_NON_SHARED_DISK, _disk_parameters(local, order.address))


def _disk_parameters(local: list[domain_xml.FileDisk], address: str) -> dict[str, Any]:
    return {
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: [disk.target for disk in local],
        libvirt.VIR_MIGRATE_PARAM_DISKS_URI: f"tcp://{bracketed(address)}",
    }


@contextlib.contextmanager
def _pool(conn: Any, address: str, folder: str, names: list[str]) -> Iterator[None]:
    """A storage pool for `folder` on the target: libvirt makes the files of a migration only in pools. One that is made
    here is given up afterwards; its files stay."""
    with _files(conn, address, folder) as taken:
        for name in names:
            if name in taken:
                raise HypervisorError(f"disk {folder}/{name} exists on {address} already: it is not written over")
        yield


def missing(conn: Any, address: str, paths: Iterable[str]) -> list[str]:
    """Which of these files the target does not have. Raises HypervisorError if a folder cannot be read."""
    lost: list[str] = []
    for folder, group in itertools.groupby(sorted(paths, key=_folder_and_path), os.path.dirname):
        with _files(conn, address, folder) as names:
            lost += [path for path in group if os.path.basename(path) not in names]
    return lost


def _folder_and_path(path: str) -> tuple[str, str]:
    return os.path.dirname(path), path


@contextlib.contextmanager
def _files(conn: Any, address: str, folder: str) -> Iterator[frozenset[str]]:
    """The names in a folder of the target, as one of its storage pools; one that is made for it lasts no longer."""
    try:
        pool, ours = _find_or_make(conn, folder)
    except libvirt.libvirtError as error:
        raise HypervisorError(f"folder {folder} cannot be read on {address}: {one_line(error)}") from None
    try:
        yield _names(pool, address, folder)
    finally:
        if ours:
            with contextlib.suppress(libvirt.libvirtError):
                pool.destroy()


def _find_or_make(conn: Any, folder: str) -> tuple[Any, bool]:
    for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if ET.fromstring(pool.XMLDesc(0)).findtext("./target/path") == folder:
            return pool, False
    element = ET.Element("pool", type="dir")
    ET.SubElement(element, "name").text = f"chime-{secrets.token_hex(6)}"
    ET.SubElement(ET.SubElement(element, "target"), "path").text = folder
    return conn.storagePoolCreateXML(ET.tostring(element, encoding="unicode"), 0), True


def _names(pool: Any, address: str, folder: str) -> frozenset[str]:
    try:
        pool.refresh(0)
        return frozenset(pool.listVolumes())
    except libvirt.libvirtError as error:
        raise HypervisorError(f"folder {folder} cannot be read on {address}: {one_line(error)}") from None
