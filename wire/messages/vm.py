"""The definition of a VM."""

from __future__ import annotations

from typing import Annotated

from wire import types as w
from wire.messages.base import Base


class Disk(Base, frozen=True, kw_only=True):
    """One disk of a VM. `size_mib` asks the agent to create the image when the path does not exist."""

    path: w.Path
    format: w.DiskFormat = w.DiskFormat.QCOW2
    storage: w.Storage = w.Storage.SHARED
    size_mib: w.DiskMiB | None = None


class Network(Base, frozen=True, kw_only=True):
    """One network card. A bridge needs `bridge`; a user network needs nothing."""

    kind: w.NetworkKind
    bridge: w.Bridge | None = None
    mac: w.Mac | None = None


class Boot(Base, frozen=True, kw_only=True):
    """Direct kernel boot."""

    kernel: w.Path
    initrd: w.Path | None = None
    cmdline: w.Line = ""


class VmSpec(Base, frozen=True, kw_only=True):
    """The definition of a VM: structured, or a whole libvirt domain XML (`xml`) of which Chime owns UUID,
    name, metadata and power actions. With `xml`, `vcpus` and `memory_mib` say what it reserves and `disks`
    names the disks that the XML uses; nothing else is used. `priority`: VMs with a higher one are evacuated first."""

    vcpus: w.VCpus
    memory_mib: w.MemoryMiB
    disks: Annotated[tuple[Disk, ...], w.Few] = ()
    networks: Annotated[tuple[Network, ...], w.Few] = ()
    boot: Boot | None = None
    serial_log: w.Path | None = None
    virt_type: w.VirtType = w.VirtType.AUTO
    on_guest_shutdown: w.OnGuestShutdown = w.OnGuestShutdown.STOP
    priority: w.Priority = 0
    xml: w.Xml | None = None

    @property
    def storage(self) -> w.Storage:
        """Local if any disk is local, none if there is no disk, else shared."""
        if any(disk.storage == w.Storage.LOCAL for disk in self.disks):
            return w.Storage.LOCAL
        return w.Storage.SHARED if self.disks else w.Storage.NONE
