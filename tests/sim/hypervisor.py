"""The hypervisor of a simulated host: the fake one of the contract suite, in which a start takes its time and goes on
when the agent that ordered it is dead, which other hosts reach over a network, and from which people migrate VMs by
hand."""

from __future__ import annotations

from collections.abc import Callable

from agentd.core.facts import DomainState, Happening, OffReason, VmFacts
from agentd.hypervisor import HypervisorError, NoArrival
from tests.fakes.hypervisor import FakeDomain, FakeHypervisor
from wire.messages import Assignment

ALIVE = frozenset({DomainState.RUNNING, DomainState.SHUTTING_DOWN, DomainState.OTHER, DomainState.PAUSED})


class SimHypervisor(FakeHypervisor):
    """`touched(uuid)` is called whenever a process may have begun or ended, `copy_runs(uuid, attempt)` before a copy
    that came by a migration runs. `by_hand`: VMs whose process here was made by a person. `handed_over`: VMs whose
    process here is one end of a live migration, and must not run (paused target, or source whose target was resumed).
    `leaving`: VMs that a person migrates away from here, with libvirt's lock on them. `route(address)`: the hypervisor
    that answers there. `losses`: how often libvirtd was lost."""

    def __init__(self, touched: Callable[[str], None], copy_runs: Callable[[str, str], None]) -> None:
        super().__init__()
        self._touched, self._copy_runs = touched, copy_runs
        self.route: Callable[[str], FakeHypervisor | None] = lambda address: None
        self.losses = 0
        self.by_hand: set[str] = set()
        self.handed_over: set[str] = set()
        self.leaving: set[str] = set()
        self.creating: set[str] = set()
        self.reboots: list[str] = []
        self.boots = 0

    # --- what is true -------------------------------------------------------------------------------------------------

    def processes_of(self, uuid: str) -> int:
        """Real qemu processes of the VM that could run its vCPUs, now or when they are continued."""
        domain = self.domains.get(uuid)
        inside = domain is not None and domain.state in ALIVE and uuid not in self.handed_over
        return int(inside) + sum(process.uuid == uuid for process in self.outside)

    def alive(self) -> set[str]:
        """VMs of which any process exists."""
        return {process.uuid for process in self._processes()}

    def is_running(self, uuid: str) -> bool:
        """Whether libvirt's process of the VM runs (not paused)."""
        domain = self.domains.get(uuid)
        return domain is not None and domain.state == DomainState.RUNNING

    def is_paused(self, uuid: str) -> bool:
        """Whether libvirt's process of the VM is paused."""
        domain = self.domains.get(uuid)
        return domain is not None and domain.state == DomainState.PAUSED

    # --- calls of the agent -------------------------------------------------------------------------------------------

    def adopt(self, vm: Assignment) -> None:
        """As the fake's; a domain that is being migrated is not changed."""
        self._not_while_it_leaves(vm.uuid)
        super().adopt(vm)

    def give_back(self, uuid: str, epoch: int) -> None:
        """As `adopt`."""
        self._not_while_it_leaves(uuid)
        super().give_back(uuid, epoch)

    def _not_while_it_leaves(self, uuid: str) -> None:
        if uuid in self.leaving:
            raise HypervisorError("cannot acquire state change lock")

    def inspect(self, uuid: str) -> VmFacts:
        """Fresh facts. Cheaper than the fake's, which is for several threads."""
        processes = tuple(process for process in self._processes() if process.uuid == uuid)
        if not self._connected or self.blind or self._failures.get("inspect"):
            return super().inspect(uuid)
        found = self.domains.get(uuid)
        return VmFacts(uuid, True, None if found is None else found.seen(), processes)

    def begin_start(self, uuid: str) -> None:
        """libvirt takes the order; the process appears with `finish_start`, whoever still waits for it then. Raises
        HypervisorError."""
        self._enter("start", uuid)
        if self._found(uuid).state != DomainState.OFF or uuid in self.creating:
            raise HypervisorError(f"cannot start {uuid}: it is running already")
        self.creating.add(uuid)

    def finish_start(self, uuid: str, boots: int) -> None:
        """The process appears, if the host has not lost its power since. Raises HypervisorError."""
        if boots != self.boots or uuid not in self.creating:
            raise HypervisorError(f"cannot start {uuid}: the host went down")
        self.creating.discard(uuid)
        self._begin(uuid)

    def reboot(self, uuid: str, force: bool) -> None:
        """Counted: a command must take effect at most once."""
        super().reboot(uuid, force)
        self.reboots.append(uuid)

    def end_failures(self) -> None:
        """Calls that were to fail do not."""
        self._failures.clear()

    # --- what happens -------------------------------------------------------------------------------------------------

    def power_loss(self) -> None:
        """The host loses power: no process is left."""
        lost = self.alive()
        super().power_loss()
        self.boots += 1
        self.creating.clear()
        self.by_hand.clear()
        self.handed_over.clear()
        self.leaving.clear()
        for uuid in lost:
            self._touched(uuid)

    def person_start(self, uuid: str) -> None:
        """`virsh start`, whatever the agent's connection does."""
        self._begin(uuid)
        self.by_hand.add(uuid)

    def person_destroy(self, uuid: str) -> None:
        """`virsh destroy`, whatever the agent's connection does."""
        if self._active(uuid).killable:
            self._tell(uuid, Happening.HOST_SHUTDOWN)
            self._end(uuid, OffReason.DESTROYED)

    def person_run(self, uuid: str) -> int:
        """A qemu outside libvirt."""
        self.by_hand.add(uuid)
        pid = super().person_run(uuid)
        self._touched(uuid)
        return pid

    def person_end(self, uuid: str) -> None:
        """The qemu outside libvirt is ended."""
        self.outside = [process for process in self.outside if process.uuid != uuid]
        if uuid not in self.alive():
            self.by_hand.discard(uuid)
        self._touched(uuid)

    def _tell(self, uuid: str, happening: Happening, reason: OffReason = OffReason.UNKNOWN) -> None:
        if happening == Happening.STOPPED:
            if not any(process.uuid == uuid for process in self.outside):
                self.by_hand.discard(uuid)
            self.handed_over.discard(uuid)
        self._touched(uuid)
        super()._tell(uuid, happening, reason)

    def lose(self, reason: str = "libvirt closed it") -> None:
        """As the fake's; what libvirtd was doing is cut short."""
        self.losses += 1
        super().lose(reason)

    # --- live migration -----------------------------------------------------------------------------------------------

    def reach(self, address: str) -> FakeHypervisor:
        """libvirt of another host. Raises HypervisorError."""
        peer = self.route(address)
        if peer is None or not peer._reachable:
            raise HypervisorError(f"target {address} cannot be reached")
        return peer

    def has_copy(self, uuid: str, attempt: str) -> bool:
        """Whether a paused copy is here that came, or comes, by this attempt."""
        domain = self.domains.get(uuid)
        marked = domain is not None and domain.stamp is not None and domain.stamp.attempt == attempt
        return marked and uuid in self.handed_over and self.is_paused(uuid)

    def take_over_copy(self, uuid: str, attempt: str) -> None:
        """Another host lets the copy run. Raises HypervisorError."""
        copy = self.domains.get(uuid)
        if not self._reachable:
            raise HypervisorError("the target's libvirt is gone")
        if copy is None or copy.state == DomainState.OFF or copy.stamp is None or copy.stamp.attempt != attempt:
            raise NoArrival("there is no such copy")
        if copy.job:
            raise HypervisorError("it is still coming")
        self._resume(uuid)

    def _receive(self, copy: FakeDomain, with_disks: bool) -> None:
        super()._receive(copy, with_disks)
        self.handed_over.add(copy.uuid)

    def _resume(self, uuid: str) -> None:
        domain = self._active(uuid)
        if uuid in self.handed_over:
            self._copy_runs(uuid, domain.stamp.attempt if domain.stamp is not None else "")
            self.handed_over.discard(uuid)
        super()._resume(uuid)

    # --- live migration, by a person ----------------------------------------------------------------------------------

    def incoming(self, source: FakeDomain) -> None:
        """The target's qemu begins, paused; raises HypervisorError when there is one already."""
        if self.domains.get(source.uuid, FakeDomain("", "")).state != DomainState.OFF:
            raise HypervisorError("it runs on the target already")
        copy = FakeDomain(source.uuid, source.name, source.xml, source.stamp, DomainState.PAUSED, persistent=False)
        self._next_pid += 1
        copy.pid = self._next_pid
        self.domains[source.uuid] = copy
        self.handed_over.add(source.uuid)
        self.by_hand.add(source.uuid)
        self._tell(source.uuid, Happening.STARTED)

    def pause_for_handover(self, uuid: str) -> None:
        """The source's vCPUs stop for good, unless the migration fails."""
        self._active(uuid).state = DomainState.PAUSED
        self._tell(uuid, Happening.PAUSED)

    def take_over(self, uuid: str) -> None:
        """The target's vCPUs run."""
        domain = self._active(uuid)
        self.handed_over.discard(uuid)
        domain.state, domain.persistent = DomainState.RUNNING, True
        self._tell(uuid, Happening.RESUMED)

    def destroy_by_hand(self, uuid: str) -> None:
        """The migration failed: its target is ended."""
        self._end(uuid, OffReason.FAILED)

    def migrated_away(self, uuid: str) -> None:
        """The source's qemu ends; its definition stays."""
        self._end(uuid, OffReason.MIGRATED)
