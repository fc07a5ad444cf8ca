"""The one interface between the agent and a hypervisor.

`libvirt.driver.LibvirtDriver` is the real one; tests have a fake; both pass `tests/contract/test_hypervisor.py`.
Every call may block and is made in a worker thread, several at a time. Nothing here decides whether a VM may start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentd.core.facts import HostScan, Lifecycle, VmFacts
from wire.messages import Assignment, ForeignVm, MigrationOrder, MigrationProgress


class HypervisorError(Exception):
    """The hypervisor refused or failed: the text is for the operator. The state of the VM is then unknown."""


class InvalidVm(HypervisorError):
    """The VM cannot run here as it is defined (a disk is missing, the XML is refused...): trying again will not help
    before something is changed."""


class NoArrival(HypervisorError):
    """The target has no copy of the VM that names the attempt."""


class Hypervisor(Protocol):
    """Blocking calls. `HypervisorError` for every failure, with one clear line."""

    def connect(self, on_lifecycle: Callable[[Lifecycle], None], on_lost: Callable[[str], None]) -> None:
        """Connects, or connects again, and registers for lifecycle events. The callbacks come from another thread;
        `on_lost` is called once when the connection breaks."""

    def close(self) -> None:
        """Closes the connection; VMs go on."""

    def version(self) -> str:
        """Hypervisor and library versions, one line."""

    def has_kvm(self) -> bool:
        """Whether hardware acceleration is offered."""

    def scan(self) -> HostScan:
        """All domains and all real qemu processes. Never raises: a failure is `libvirt_ok=False` with `error`."""

    def inspect(self, uuid: str) -> VmFacts:
        """One domain and its real processes, fresh. Never raises."""

    def define(self, vm: Assignment) -> None:
        """Makes or updates the persistent definition with epoch and revision in its metadata (also of the running
        domain). Creates missing disks that have a size if the assignment says so. Raises InvalidVm when a disk is
        missing or the XML is refused."""

    def survey(self, after: str, uuid: str | None) -> tuple[tuple[ForeignVm, ...], bool]:
        """Domains without our metadata, by name, from after the one named `after`: a page, and whether there are more.
        With `uuid`: that one, with its XML."""

    def adopt(self, vm: Assignment) -> None:
        """Puts our metadata on a domain, running or not, and changes nothing else of it; libvirt does not start it by
        itself any more. Raises InvalidVm if it is not what the assignment was made of, or cannot be taken over."""

    def give_back(self, uuid: str, epoch: int) -> None:
        """Takes our metadata off a domain if it names `epoch` or a lower one, and changes nothing else. None there, or
        no domain, is success."""

    def start(self, uuid: str) -> None:
        """Starts a defined domain. Raises InvalidVm when a disk that it needs is not there."""

    def shutdown(self, uuid: str) -> None:
        """Asks the guest to power off (ACPI). Returns at once."""

    def destroy(self, uuid: str) -> None:
        """Ends the process now. Done already is success."""

    def undefine(self, uuid: str) -> None:
        """Removes the definition (with managed save, snapshots' metadata, nvram), never a disk. Gone already is
        success. Refused with HypervisorError while active."""

    def reboot(self, uuid: str, force: bool) -> None:
        """Asks the guest to reboot, or resets it when forced."""

    def resume(self, uuid: str) -> None:
        """Lets a paused VM run. Running already is success."""

    def migrate(
        self,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        origin: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Migrates a running VM live and returns at the end. The copy on the target stays paused, its metadata names
        `attempt` and `origin` (this node); on success the domain here is gone, with its definition. What the time-out
        asks for is done here. `on_progress` comes about once a second, from another thread or this one. An error does
        not tell what runs where: look."""

    def settle(self, uuid: str) -> None:
        """Returns when libvirt does not migrate the domain (any more), or has none."""

    def abort_migration(self, uuid: str) -> None:
        """Asks libvirt to give up the migration; returns at once. Nothing to give up is success."""

    def hand_over(self, uuid: str, attempt: str, address: str) -> None:
        """Lets the copy on the target at `address` run. Running already is success. Raises NoArrival if it has no
        domain that names `attempt`."""
