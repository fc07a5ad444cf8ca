"""The hypervisor of a simulated host: the fake one of the contract suite, in which a start takes its time and goes on
when the agent that ordered it is dead, and from which people migrate VMs away by hand."""

from __future__ import annotations

from collections.abc import Callable

from agentd.core.facts import DomainState, Happening, OffReason, VmFacts
from agentd.hypervisor import HypervisorError
from tests.fakes.hypervisor import FakeDomain, FakeHypervisor

ALIVE = frozenset({DomainState.RUNNING, DomainState.SHUTTING_DOWN, DomainState.OTHER, DomainState.PAUSED})


class SimHypervisor(FakeHypervisor):
    """`touched(uuid)` is called whenever a process may have begun or ended. `by_hand`: VMs whose process here was made
    by a person. `handed_over`: VMs whose process here is one end of a live migration, and must not run (paused target,
    or source whose target was resumed)."""

    def __init__(self, touched: Callable[[str], None]) -> None:
        super().__init__()
        self._touched = touched
        self.by_hand: set[str] = set()
        self.handed_over: set[str] = set()
        self.creating: set[str] = set()
        self.reboots: list[str] = []
        self.boots = self.losses = 0

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

    def inspect(self, uuid: str) -> VmFacts:
        """Fresh facts. Cheaper than the fake's, which is for several threads."""
        processes = tuple(process for process in self._processes() if process.uuid == uuid)
        if not self._connected or self._failures.get("inspect"):
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

    @property
    def reachable(self) -> bool:
        """libvirtd runs."""
        return self._reachable

    # --- live migration -----------------------------------------------------------------------------------------------

    def incoming(self, source: FakeDomain, attempt: str = "", origin: str = "") -> None:
        """The target's qemu begins, paused; raises HypervisorError when there is one already. Without an attempt a
        person migrates it."""
        if self.domains.get(source.uuid, FakeDomain("", "")).state != DomainState.OFF:
            raise HypervisorError("it runs on the target already")
        stamp = source.stamp
        if attempt and stamp is not None:
            stamp = stamp._replace(attempt=attempt, origin=origin)
        copy = FakeDomain(source.uuid, source.name, source.xml, stamp, DomainState.PAUSED, persistent=False)
        self._next_pid += 1
        copy.pid, copy.job = self._next_pid, True
        self.domains[source.uuid] = copy
        self.handed_over.add(source.uuid)
        if not attempt:
            self.by_hand.add(source.uuid)
        self._tell(source.uuid, Happening.STARTED)

    def has_copy(self, uuid: str, attempt: str) -> bool:
        """Whether a paused copy is here that came, or comes, by this attempt."""
        domain = self.domains.get(uuid)
        marked = domain is not None and domain.stamp is not None and domain.stamp.attempt == attempt
        return marked and uuid in self.handed_over and self.is_paused(uuid)

    def complete(self, uuid: str) -> None:
        """All memory is here: the copy stays, whatever becomes of the source."""
        domain = self._active(uuid)
        domain.job, domain.persistent = False, True
        self._tell(uuid, Happening.DEFINED)

    def throw_away(self, uuid: str, attempt: str) -> None:
        """The migration failed: its copy ends, if it is here."""
        if self.has_copy(uuid, attempt) and self.domains[uuid].job:
            self.domains[uuid].persistent = False
            self._end(uuid, OffReason.FAILED)

    def undefined(self, uuid: str) -> None:
        """The definition goes with the process that has left."""
        if uuid in self.domains and self.domains[uuid].state == DomainState.OFF:
            del self.domains[uuid]
            super()._tell(uuid, Happening.UNDEFINED)

    def resume_copy(self, uuid: str) -> None:
        """The copy's vCPUs run."""
        domain = self._active(uuid)
        self.handed_over.discard(uuid)
        domain.state = DomainState.RUNNING
        self._tell(uuid, Happening.RESUMED)

    def pause_for_handover(self, uuid: str) -> None:
        """The source's vCPUs stop for good, unless the migration fails."""
        self._active(uuid).state = DomainState.PAUSED
        self._tell(uuid, Happening.PAUSED)

    def take_over(self, uuid: str) -> None:
        """The target's vCPUs run."""
        domain = self._active(uuid)
        self.handed_over.discard(uuid)
        domain.state, domain.persistent, domain.job = DomainState.RUNNING, True, False
        self._tell(uuid, Happening.RESUMED)

    def destroy_by_hand(self, uuid: str) -> None:
        """The migration failed: its target is ended."""
        self._end(uuid, OffReason.FAILED)

    def migrated_away(self, uuid: str) -> None:
        """The source's qemu ends; its definition stays."""
        self._end(uuid, OffReason.MIGRATED)
