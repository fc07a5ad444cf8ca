"""What the edges tell the core about the hypervisor: facts, never decisions.

A fact that could not be had is missing (`libvirt_ok = False`), never guessed: unknown is not stopped.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class DomainState(StrEnum):
    """State of a libvirt domain."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting-down"  # still a process
    OFF = "off"  # no process, says libvirt
    OTHER = "other"  # suspended by the guest, blocked, no state: a process exists


class OffReason(StrEnum):
    """Why a domain is off, as far as libvirt knows."""

    UNKNOWN = "unknown"
    SHUTDOWN = "shutdown"  # the guest powered off, or the host sent SIGTERM: only the lifecycle event tells which
    DESTROYED = "destroyed"
    CRASHED = "crashed"
    FAILED = "failed"  # could not be started
    MIGRATED = "migrated"
    SAVED = "saved"


class Happening(StrEnum):
    """A lifecycle event of a domain, in the words that matter here."""

    STARTED = "started"
    PAUSED = "paused"
    PAUSED_IO_ERROR = "paused-io-error"
    RESUMED = "resumed"
    GUEST_SHUTDOWN = "guest-shutdown"  # the guest asked for power-off; the process ends next
    HOST_SHUTDOWN = "host-shutdown"  # a signal from the host made qemu end
    STOPPED = "stopped"  # the process is gone; see the reason
    DEFINED = "defined"
    UNDEFINED = "undefined"


class Domain(Struct, frozen=True):
    """One libvirt domain. `epoch` is from Chime's metadata, None if it has none; `io_error`: paused by a disk error.
    `attempt`, `origin`: it came by this attempt to migrate it, from that node, says its metadata. `job`: libvirt is
    migrating it now, in or out. `adopted`: it was taken over as it was: its definition is its maker's. `seal`: of the
    assignment by which it was defined; a copy has a `voucher` for the target at `address` instead."""

    uuid: str
    name: str
    state: DomainState
    reason: OffReason = OffReason.UNKNOWN
    epoch: int | None = None
    revision: int | None = None
    persistent: bool = True
    io_error: bool = False
    attempt: str = ""
    origin: str = ""
    job: bool = False
    adopted: bool = False
    seal: str = ""
    voucher: str = ""
    address: str = ""

    @property
    def active(self) -> bool:
        """Whether libvirt says that a process exists."""
        return self.state != DomainState.OFF


class Process(Struct, frozen=True):
    """One real qemu process of this host, zombies left out. `state` is the letter of `/proc/PID/stat`."""

    uuid: str
    pid: int
    state: str


class VmFacts(Struct, frozen=True):
    """Everything seen of one VM at one moment. `libvirt_ok` False: `domain` says nothing."""

    uuid: str
    libvirt_ok: bool
    domain: Domain | None = None
    processes: tuple[Process, ...] = ()


class HostScan(Struct, frozen=True):
    """Everything seen of the host at one moment: all domains (ours or not) and all qemu processes."""

    libvirt_ok: bool
    domains: tuple[Domain, ...] = ()
    processes: tuple[Process, ...] = ()
    error: str = ""


class Lifecycle(Struct, frozen=True):
    """A lifecycle event as it came from libvirt."""

    uuid: str
    happening: Happening
    reason: OffReason = OffReason.UNKNOWN
