"""A hypervisor in memory, for the simulator and for tests of the agent.

It passes the same contract suite as the real one. Lifecycle events come synchronously, in the caller's
thread, in the order in which libvirt was seen to send them. VMs live on while the connection is lost; only
`power_loss` ends them.

A migration is made of steps that do not block: `migrate_begin`, `migrate_arrive`, `migrate_confirm`, or
`migrate_fail` at any point. `migrate` takes one after the other; the simulator takes them at its own times. A migration
is libvirt's: it goes on without the agent that ordered it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentd.core.facts import Domain, DomainState, Happening, HostScan, Lifecycle, OffReason, Process, VmFacts
from agentd.hypervisor import HypervisorError, InvalidVm, NoArrival
from agentd.libvirt import domain_xml
from wire.messages import Assignment, ForeignVm, MigrationOptions, MigrationOrder, MigrationProgress
from wire.types import Desired, Observed, OnTimeout, VirtType


@dataclass(slots=True)
class FakeDomain:
    """A domain and, while it is active, its process."""

    uuid: str
    name: str
    xml: str = "<domain/>"
    stamp: domain_xml.Stamp | None = None
    state: DomainState = DomainState.OFF
    reason: OffReason = OffReason.UNKNOWN
    persistent: bool = True
    io_error: bool = False
    autostart: bool = False
    pid: int = 0
    letter: str = "S"
    obeys: bool = True  # the guest powers off when asked
    killable: bool = True  # False: in disk sleep, survives SIGKILL
    job: bool = False  # libvirt is migrating it, in or out
    replaced: FakeDomain | None = None  # the definition that a copy which is still coming hides

    def seen(self) -> Domain:
        stamp = self.stamp
        return Domain(
            uuid=self.uuid,
            name=self.name,
            state=self.state,
            reason=self.reason,
            epoch=None if stamp is None else stamp.epoch,
            revision=None if stamp is None else stamp.revision,
            persistent=self.persistent,
            adopted=stamp is not None and stamp.adopted,
            io_error=self.io_error,
            attempt="" if stamp is None else stamp.attempt,
            origin="" if stamp is None else stamp.origin,
            job=self.job,
            seal="" if stamp is None else stamp.seal,
            voucher="" if stamp is None else stamp.voucher,
            address="" if stamp is None else stamp.address,
        )


@dataclass(slots=True)
class Move:
    """A migration away from here that is under way. `was`: the source's state before. `arrived`: the whole copy stands
    on the target, and it knows nothing of the source any more."""

    uuid: str
    address: str
    peer: FakeHypervisor
    was: DomainState
    arrived: bool = False


class FakeHypervisor:
    """`agentd.hypervisor.Hypervisor` in memory. `files`: the paths that exist; None: every path exists. `peers`: other
    hypervisors, by the address under which `reach` finds them."""

    def __init__(self, files: Iterable[str] | None = None, kvm: bool = False) -> None:
        self.files: set[str] | None = None if files is None else set(files)
        self.created: list[str] = []  # disks, in the order of their creation
        self.domains: dict[str, FakeDomain] = {}
        self.outside: list[Process] = []  # qemu processes that libvirt does not know
        self.calls: list[tuple[str, str]] = []
        self.peers: dict[str, FakeHypervisor] = {}
        self.moves: dict[str, Move] = {}  # migrations away from here that are under way
        self.blind = False  # True: the processes cannot be looked at
        self._seen: tuple[Process, ...] = ()
        self.slow_transfers = False  # True: `migrate` copies until it is set back (and `tell_moves` called)
        self._kvm = kvm
        self._connected = False
        self._reachable = True
        self._on_lifecycle: Callable[[Lifecycle], None] = lambda event: None
        self._on_lost: Callable[[str], None] = lambda reason: None
        self._failures: dict[str, list[Exception]] = {}
        self._flowing = threading.Event()  # cleared: calls hang
        self._flowing.set()
        self._next_pid = 1000
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)

    # --- the interface ------------------------------------------------------------------------------------

    def connect(self, on_lifecycle: Callable[[Lifecycle], None], on_lost: Callable[[str], None]) -> None:
        self._flowing.wait()
        self._fail("connect")
        if not self._reachable:
            raise HypervisorError("cannot connect to fake:///: nobody answers")
        self._on_lifecycle, self._on_lost, self._connected = on_lifecycle, on_lost, True

    def close(self) -> None:
        self._connected, self._seen = False, ()

    def version(self) -> str:
        self._enter("version")
        return "fake 1.0.0"

    def has_kvm(self) -> bool:
        self._enter("has_kvm")
        return self._kvm

    def scan(self) -> HostScan:
        problem = ""
        try:
            self._enter("scan")
        except HypervisorError as error:
            problem = str(error)
        with self._lock:
            processes, blind = self._look()
            if problem or blind:
                return HostScan(libvirt_ok=False, processes=processes, error=problem or blind)
            for domain in self.domains.values():
                domain.autostart = domain.autostart and domain.stamp is None
            domains = tuple(domain.seen() for domain in self.domains.values())
            return HostScan(libvirt_ok=True, domains=domains, processes=processes)

    def inspect(self, uuid: str) -> VmFacts:
        domain, known = None, True
        try:
            self._enter("inspect", uuid)
        except HypervisorError:
            known = False
        with self._lock:
            if known and uuid in self.domains:
                domain = self.domains[uuid].seen()
            alive, blind = self._look()
            processes = tuple(process for process in alive if process.uuid == uuid)
            return VmFacts(uuid=uuid, libvirt_ok=known and not blind, domain=domain, processes=processes)

    def _look(self) -> tuple[tuple[Process, ...], str]:
        if self.blind:
            return self._seen, "cannot look at the processes: Too many open files"
        self._seen = self._processes()
        return self._seen, ""

    def define(self, vm: Assignment) -> None:
        self._enter("define", vm.uuid)
        xml = domain_xml.build(vm, VirtType.QEMU)
        with self._lock:
            for other in self.domains.values():
                if other.name == vm.name and other.uuid != vm.uuid:
                    raise HypervisorError(f"cannot define {vm.name}: {other.uuid} has that name already")
            self._create_disks(vm)
            self._check_files(xml)
            domain = self.domains.setdefault(vm.uuid, FakeDomain(vm.uuid, vm.name))
            domain.xml, domain.stamp = xml, domain_xml.stamp_of(vm)
            domain.persistent, domain.autostart = True, False
        self._tell(vm.uuid, Happening.DEFINED)

    def survey(self, after: str, uuid: str | None) -> tuple[tuple[ForeignVm, ...], bool]:
        self._enter("survey", uuid or "")
        with self._lock:
            foreign = sorted((d for d in self.domains.values() if d.stamp is None), key=lambda d: d.name)
            if uuid is not None:
                return tuple(self._tell_of(d, d.xml) for d in foreign if d.uuid == uuid), False
            later = [d for d in foreign if d.name > after]
            return tuple(self._tell_of(d, None) for d in later[:500]), len(later) > 500

    def _tell_of(self, domain: FakeDomain, xml: str | None) -> ForeignVm:
        observed = Observed.STOPPED if domain.state == DomainState.OFF else Observed.RUNNING
        problem = "" if domain.persistent else "it is transient"
        return ForeignVm(
            uuid=domain.uuid, name=domain.name, observed=observed, autostart=domain.autostart, problem=problem, xml=xml
        )

    def adopt(self, vm: Assignment) -> None:
        self._enter("adopt", vm.uuid)
        with self._lock:
            domain = self.domains.get(vm.uuid)
            if domain is None:
                raise InvalidVm(f"no domain {vm.uuid} is defined on this node any more")
            if domain.stamp is None:
                self._check_same(domain, vm)
            domain.stamp, domain.autostart = domain_xml.stamp_of(vm, adopted=True), False

    def _check_same(self, domain: FakeDomain, vm: Assignment) -> None:
        if not domain.persistent:
            raise InvalidVm("it is transient")
        if domain.name != vm.name:
            raise InvalidVm(f"the domain is named {domain.name} now, not {vm.name}")
        if vm.spec.xml != domain.xml:
            raise InvalidVm("its definition was changed since it was looked at: import it again")
        if vm.desired == Desired.RUNNING and domain.state == DomainState.OFF:
            raise InvalidVm("it does not run any more: import it again")

    def give_back(self, uuid: str, epoch: int) -> None:
        self._enter("give_back", uuid)
        with self._lock:
            domain = self.domains.get(uuid)
            if domain is not None and domain.stamp is not None and domain.stamp.epoch <= epoch:
                domain.stamp = None

    def start(self, uuid: str) -> None:
        self._enter("start", uuid)
        self._begin(uuid)

    def _begin(self, uuid: str) -> None:
        with self._lock:
            domain = self._found(uuid)
            if domain.state != DomainState.OFF:
                raise HypervisorError(f"cannot start {uuid}: it is running already")
            self._check_files(domain.xml)
            self._next_pid += 1
            domain.state, domain.reason = DomainState.RUNNING, OffReason.UNKNOWN
            domain.pid, domain.letter = self._next_pid, "S"
        self._tell(uuid, Happening.RESUMED)
        self._tell(uuid, Happening.STARTED)

    def shutdown(self, uuid: str) -> None:
        self._enter("shutdown", uuid)
        domain = self._active(uuid)
        if domain.obeys and domain.letter == "S":
            self.guest_shutdown(uuid)

    def destroy(self, uuid: str) -> None:
        self._enter("destroy", uuid)
        domain = self.domains.get(uuid)
        if domain is None or domain.state == DomainState.OFF:
            return
        if not domain.killable:
            raise HypervisorError(f"cannot end {uuid}: Failed to terminate process {domain.pid} with SIGKILL")
        self._tell(uuid, Happening.HOST_SHUTDOWN)
        self._end(uuid, OffReason.DESTROYED)

    def undefine(self, uuid: str) -> None:
        self._enter("undefine", uuid)
        with self._lock:
            domain = self.domains.get(uuid)
            if domain is None:
                return
            if domain.state != DomainState.OFF:
                raise HypervisorError(f"cannot undefine {uuid}: it is running")
            del self.domains[uuid]
        self._tell(uuid, Happening.UNDEFINED)

    def reboot(self, uuid: str, force: bool) -> None:
        self._enter("reboot", uuid)
        self._active(uuid)

    def resume(self, uuid: str) -> None:
        self._enter("resume", uuid)
        self._resume(uuid)

    def migrate(
        self,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        origin: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        self._enter("migrate", uuid)
        move = self.migrate_begin(uuid, order, attempt, origin)
        on_progress(MigrationProgress(total_mib=32, remaining_mib=32))
        self._transfer(uuid, move, order.options)
        try:
            self.migrate_arrive(uuid)
            self.migrate_confirm(uuid)
        except HypervisorError:
            self.migrate_fail(uuid)
            raise

    def settle(self, uuid: str) -> None:
        self._enter("settle", uuid)
        with self._moved:
            self._moved.wait_for(lambda: uuid not in self.moves)

    def abort_migration(self, uuid: str) -> None:
        self._enter("abort_migration", uuid)
        move = self.moves.get(uuid)
        if move is not None and not move.arrived:
            self.migrate_fail(uuid)

    def hand_over(self, uuid: str, attempt: str, address: str) -> None:
        self._enter("hand_over", uuid)
        peer = self.reach(address)
        copy = peer.domains.get(uuid)
        if copy is None or copy.state == DomainState.OFF or copy.stamp is None or copy.stamp.attempt != attempt:
            raise NoArrival(f"{address} has no copy of {uuid} that came by {attempt}")
        if copy.job:
            raise HypervisorError(f"cannot resume {uuid} on {address}: it is still coming")
        peer._resume(uuid)

    # --- the steps of a migration -------------------------------------------------------------------------

    def reach(self, address: str) -> FakeHypervisor:
        """libvirt at that address. Raises HypervisorError; the simulator puts its network in here."""
        peer = self.peers.get(address)
        if peer is None or not peer._reachable:
            raise HypervisorError(f"target {address} cannot be reached: nobody answers")
        return peer

    def migrate_begin(self, uuid: str, order: MigrationOrder, attempt: str, origin: str) -> Move:
        """The paused target appears, with a mark; memory begins to flow. Raises HypervisorError: nothing happened."""
        self._fail("migrate_begin")
        source = self._active(uuid)
        if uuid in self.moves or source.job:
            raise HypervisorError(f"cannot migrate {uuid}: a migration of it is under way")
        peer = self.reach(order.address)
        stamp = source.stamp and source.stamp.copied(attempt, origin, order.address)
        copy = FakeDomain(uuid, source.name, source.xml, stamp, DomainState.PAUSED, persistent=False, job=True)
        peer._receive(copy, order.options.local_disks)
        source.job = True
        move = self.moves[uuid] = Move(uuid, order.address, peer, source.state)
        return move

    def migrate_arrive(self, uuid: str) -> None:
        """Everything is copied: the source is paused, the target's copy is whole, defined, and paused. Raises
        HypervisorError if one of both is gone."""
        self._fail("migrate_arrive")
        move = self._move(uuid)
        copy = move.peer.domains.get(uuid)
        if copy is None or not copy.job or copy.state == DomainState.OFF:
            raise HypervisorError(f"cannot migrate {uuid}: the copy on the target is gone")
        self.domains[uuid].state = DomainState.PAUSED
        self._tell(uuid, Happening.PAUSED)
        move.arrived = True
        copy.job, copy.persistent, copy.replaced = False, True, None
        move.peer._tell(uuid, Happening.DEFINED)
        move.peer._tell(uuid, Happening.PAUSED)

    def migrate_confirm(self, uuid: str) -> None:
        """The source hears that the copy has arrived, and is gone, with its definition. Fails if the target's reply is
        lost (`migrate_fail` follows)."""
        self._fail("migrate_confirm")
        move = self._move(uuid)
        if not move.arrived:
            raise HypervisorError(f"cannot migrate {uuid}: nothing has arrived")
        self._end_move(uuid)
        self._end(uuid, OffReason.MIGRATED)
        self.domains.pop(uuid, None)  # no event says so

    def migrate_fail(self, uuid: str, paused: bool = False) -> None:
        """The source gives up and goes on as it was, or stays paused. A copy that has not arrived is ended, if the
        target's libvirt can be reached (else by `incoming_lost` there); one that has arrived stays, paused."""
        move = self._end_move(uuid)
        source = self.domains.get(uuid)
        if move is None or source is None or source.state == DomainState.OFF:
            return
        if source.state == DomainState.PAUSED and move.was == DomainState.RUNNING and not paused:
            self._resume(uuid)

    def incoming_lost(self, uuid: str) -> None:
        """The target's libvirt misses the source, and ends a copy that is still coming."""
        copy = self.domains.get(uuid)
        if copy is None or not copy.job or uuid in self.moves:
            return
        copy.job = False
        if copy.replaced is None:
            del self.domains[uuid]
        else:
            self.domains[uuid] = copy.replaced
        self._tell(uuid, Happening.STOPPED, OffReason.CRASHED)

    def tell_moves(self) -> None:
        """Wakes what waits for migrations, after `slow_transfers` was changed."""
        with self._moved:
            self._moved.notify_all()

    def _transfer(self, uuid: str, move: Move, options: MigrationOptions) -> None:
        def over() -> bool:
            return not self.slow_transfers or self.moves.get(uuid) is not move

        with self._moved:
            in_time = self._moved.wait_for(over, options.timeout_s)
        if not in_time and options.on_timeout == OnTimeout.CANCEL:
            self.migrate_fail(uuid)
            raise HypervisorError(f"cannot migrate {uuid}: timed out after {options.timeout_s:g} s")
        if self.moves.get(uuid) is not move:
            raise HypervisorError(f"cannot migrate {uuid}: cancelled")

    def _receive(self, copy: FakeDomain, with_disks: bool) -> None:
        with self._lock:
            old = self.domains.get(copy.uuid)
            if old is not None and old.state != DomainState.OFF:
                raise HypervisorError(f"cannot migrate {copy.uuid}: it is active on the target")
            if any(other.name == copy.name and other.uuid != copy.uuid for other in self.domains.values()):
                raise HypervisorError(f"cannot migrate {copy.uuid}: the target has another {copy.name}")
            if self.files is not None and with_disks:
                self._copy_disks(self.files, copy.xml)
            self._check_files(copy.xml)
            self._next_pid += 1
            copy.pid, copy.replaced, copy.persistent = self._next_pid, old, old is not None
            self.domains[copy.uuid] = copy
        self._tell(copy.uuid, Happening.STARTED)

    def _copy_disks(self, files: set[str], xml: str) -> None:
        disks = domain_xml.disks_of(xml)
        for path in disks:
            if path in files:
                raise HypervisorError(f"disk {path} exists on the target already")
        files.update(disks)

    def _move(self, uuid: str) -> Move:
        move = self.moves.get(uuid)
        if move is None:
            raise HypervisorError(f"cannot migrate {uuid}: no migration is under way")
        return move

    def _end_move(self, uuid: str) -> Move | None:
        with self._moved:
            move = self.moves.pop(uuid, None)
            if move is None:
                return None
            if uuid in self.domains:
                self.domains[uuid].job = False
            self._moved.notify_all()
        if not move.arrived:
            with contextlib.suppress(HypervisorError):
                self.reach(move.address).incoming_lost(uuid)
        return move

    # --- what happens to VMs ------------------------------------------------------------------------------

    def kill(self, uuid: str) -> None:
        """SIGKILL."""
        if self._active(uuid).killable:
            self._end(uuid, OffReason.CRASHED)

    def host_sigterm(self, uuid: str) -> None:
        """SIGTERM from the host."""
        self._tell(uuid, Happening.HOST_SHUTDOWN)
        self._end(uuid, OffReason.SHUTDOWN)

    def guest_shutdown(self, uuid: str) -> None:
        """The guest powers itself off."""
        self._tell(uuid, Happening.GUEST_SHUTDOWN)
        self._end(uuid, OffReason.SHUTDOWN)

    def io_error(self, uuid: str) -> None:
        """A disk fails and the VM pauses."""
        domain = self._active(uuid)
        domain.state, domain.io_error = DomainState.PAUSED, True
        self._tell(uuid, Happening.PAUSED_IO_ERROR)

    def freeze(self, uuid: str, letter: str = "T") -> None:
        """SIGSTOP (`T`), or disk sleep (`D`), which no signal ends; `S` thaws."""
        domain = self._active(uuid)
        domain.letter, domain.killable = letter, letter != "D"

    def power_loss(self) -> None:
        """The host loses power: every process is gone, nobody is told; definitions stay. Migrations to and from here
        are for the other ends to notice."""
        with self._moved:
            self.moves.clear()
            self._moved.notify_all()
        for uuid, copy in list(self.domains.items()):
            if copy.replaced is not None:
                self.domains[uuid] = copy.replaced
        for domain in list(self.domains.values()):
            domain.state, domain.reason, domain.io_error = DomainState.OFF, OffReason.UNKNOWN, False
            domain.killable, domain.job = True, False
            if not domain.persistent:
                del self.domains[domain.uuid]
        self.outside.clear()
        self._connected = False

    # --- what people do -----------------------------------------------------------------------------------

    def person_define(self, uuid: str, name: str) -> None:
        """A domain without our metadata."""
        xml = f"<domain><name>{name}</name><uuid>{uuid}</uuid></domain>"
        self.domains[uuid] = FakeDomain(uuid, name, xml)
        self._tell(uuid, Happening.DEFINED)

    def person_undefine(self, uuid: str) -> None:
        """The definition is lost; a running VM becomes transient."""
        domain = self.domains[uuid]
        if domain.state == DomainState.OFF:
            del self.domains[uuid]
        domain.persistent = False
        self._tell(uuid, Happening.UNDEFINED)

    def person_start(self, uuid: str) -> None:
        self.start(uuid)

    def person_destroy(self, uuid: str) -> None:
        self.destroy(uuid)

    def person_pause(self, uuid: str) -> None:
        self._active(uuid).state = DomainState.PAUSED
        self._tell(uuid, Happening.PAUSED)

    def person_resume(self, uuid: str) -> None:
        self._resume(uuid)

    def person_run(self, uuid: str) -> int:
        """A qemu outside libvirt; gives its pid."""
        self._next_pid += 1
        self.outside.append(Process(uuid, self._next_pid, "S"))
        return self._next_pid

    # --- what happens to libvirt --------------------------------------------------------------------------

    def lose(self, reason: str = "libvirt closed it") -> None:
        """The connection breaks, and cannot be made before `restore`."""
        self._reachable = False
        if self._connected:
            self._connected = False
            self._on_lost(f"the connection to libvirt broke: {reason}")

    def restore(self) -> None:
        self._reachable = True

    def hang(self) -> None:
        """Every call blocks until `release`."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def fail_next(self, call: str, error: Exception | None = None) -> None:
        """The next `call` (name of a method) fails; several are taken in order."""
        self._failures.setdefault(call, []).append(error or HypervisorError(f"{call} failed as ordered"))

    # --- inside -------------------------------------------------------------------------------------------

    def _enter(self, call: str, uuid: str = "") -> None:
        self.calls.append((call, uuid))
        self._flowing.wait()
        if not self._connected:
            raise HypervisorError("not connected to fake:///")
        self._fail(call)

    def _fail(self, call: str) -> None:
        if self._failures.get(call):
            raise self._failures[call].pop(0)

    def _found(self, uuid: str) -> FakeDomain:
        domain = self.domains.get(uuid)
        if domain is None:
            raise HypervisorError(f"no domain {uuid} is defined on this node")
        return domain

    def _active(self, uuid: str) -> FakeDomain:
        domain = self._found(uuid)
        if domain.state == DomainState.OFF:
            raise HypervisorError(f"domain {uuid} is not running")
        return domain

    def _resume(self, uuid: str) -> None:
        with self._lock:
            domain = self._active(uuid)
            if domain.state == DomainState.RUNNING:
                return
            domain.state, domain.io_error = DomainState.RUNNING, False
        self._tell(uuid, Happening.RESUMED)

    def _end(self, uuid: str, reason: OffReason) -> None:
        self._end_move(uuid)
        if self._active(uuid).job:
            self.incoming_lost(uuid)
            return
        with self._lock:
            domain = self._active(uuid)
            domain.state, domain.reason, domain.io_error = DomainState.OFF, reason, False
            if not domain.persistent:
                del self.domains[uuid]
        self._tell(uuid, Happening.STOPPED, reason)

    def _tell(self, uuid: str, happening: Happening, reason: OffReason = OffReason.UNKNOWN) -> None:
        if self._connected:
            self._on_lifecycle(Lifecycle(uuid, happening, reason))

    def _processes(self) -> tuple[Process, ...]:
        with self._lock:
            ours = [
                Process(domain.uuid, domain.pid, domain.letter)
                for domain in self.domains.values()
                if domain.state != DomainState.OFF
            ]
            return (*ours, *self.outside)

    def _create_disks(self, vm: Assignment) -> None:
        if self.files is None:
            return
        for disk in vm.spec.disks:
            if disk.path in self.files or disk.size_mib is None:
                continue
            if vm.uuid in self.domains or not vm.create_disks:
                raise InvalidVm(f"disk {disk.path} does not exist on this node, and is not created again")
            self.files.add(disk.path)
            self.created.append(disk.path)

    def _check_files(self, xml: str) -> None:
        if self.files is None:
            return
        for path in (*domain_xml.disks_of(xml), *domain_xml.boot_files_of(xml)):
            if path not in self.files:
                raise InvalidVm(f"disk {path} does not exist on this node")
