"""What every hypervisor driver does, shown on the fake and on real qemu under an embedded libvirt."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.core.facts import Domain, DomainState, Happening, OffReason
from agentd.hypervisor import HypervisorError, InvalidVm
from agentd.libvirt import processes
from agentd.libvirt.processes import Processes
from tests.contract.harness import (
    Harness,
    RealHarness,
    bare_qemu,
    new_vm,
    wait,
)
from tests.hosts.frozen import frozen_disk, writes_under_way
from tests.hosts.guest import GUEST_MEMORY_MIB, guest_cmdline
from wire.messages import Boot, Disk

ENDED_BADLY = (OffReason.CRASHED, OffReason.FAILED)


def domain(host: Harness, uuid: str) -> Domain:
    found = host.driver.inspect(uuid).domain
    assert found is not None
    return found


def state(host: Harness, uuid: str) -> DomainState:
    return domain(host, uuid).state


def started(host: Harness, **spec: Any) -> str:
    vm = new_vm(**spec)
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    return vm.uuid


def test_define_start_inspect_and_scan_agree(host: Harness) -> None:
    vm = new_vm(epoch=3, revision=17)
    assert host.driver.inspect(vm.uuid).domain is None
    host.driver.define(vm)
    seen = domain(host, vm.uuid)
    assert (seen.state, seen.epoch, seen.revision, seen.name) == (DomainState.OFF, 3, 17, vm.name)
    assert seen.persistent and not seen.active
    host.driver.start(vm.uuid)
    facts, scan = host.driver.inspect(vm.uuid), host.driver.scan()
    assert facts.libvirt_ok and scan.libvirt_ok and scan.error == ""
    assert facts.domain is not None and facts.domain.state == DomainState.RUNNING
    assert facts.domain in scan.domains
    assert [process.uuid for process in facts.processes] == [vm.uuid]
    assert facts.processes[0].pid in [process.pid for process in scan.processes]
    host.events.wait_for(vm.uuid, Happening.DEFINED)
    host.events.wait_for(vm.uuid, Happening.STARTED)


def test_facts_about_the_host(host: Harness) -> None:
    assert "\n" not in host.driver.version() and host.driver.version()
    assert isinstance(host.driver.has_kvm(), bool)


def test_second_start_is_refused(host: Harness) -> None:
    uuid = started(host)
    with pytest.raises(HypervisorError, match="running"):
        host.driver.start(uuid)
    assert len(host.driver.inspect(uuid).processes) == 1


def test_what_is_not_defined_cannot_be_started_or_asked(host: Harness) -> None:
    uuid = new_vm().uuid
    for call in (host.driver.start, host.driver.shutdown, lambda uuid: host.driver.reboot(uuid, True)):
        with pytest.raises(HypervisorError, match=uuid):
            call(uuid)


def test_sigkill_is_told_and_seen(host: Harness) -> None:
    uuid = started(host)
    host.kill(uuid)
    assert host.events.wait_for(uuid, Happening.STOPPED) in ENDED_BADLY
    wait(lambda: not host.driver.inspect(uuid).processes, "no process")
    assert (state(host, uuid), domain(host, uuid).reason) == (DomainState.OFF, OffReason.CRASHED)
    assert Happening.GUEST_SHUTDOWN not in [happening for happening, _ in host.events.of(uuid)]
    host.driver.start(uuid)
    assert state(host, uuid) == DomainState.RUNNING


def test_sigterm_is_the_hosts_doing_not_the_guests(host: Harness) -> None:
    uuid = started(host)
    host.sigterm(uuid)
    host.events.wait_for(uuid, Happening.STOPPED)
    told = [happening for happening, _ in host.events.of(uuid)]
    assert Happening.HOST_SHUTDOWN in told and Happening.GUEST_SHUTDOWN not in told
    assert state(host, uuid) == DomainState.OFF


def test_destroy_ends_and_may_be_repeated(host: Harness) -> None:
    uuid = started(host)
    host.driver.destroy(uuid)
    assert host.events.wait_for(uuid, Happening.STOPPED) == OffReason.DESTROYED
    assert (state(host, uuid), domain(host, uuid).reason) == (DomainState.OFF, OffReason.DESTROYED)
    host.driver.destroy(uuid)
    host.driver.destroy(new_vm().uuid)
    assert not host.driver.inspect(uuid).processes


def test_destroy_by_a_person_looks_like_ours(host: Harness) -> None:
    uuid = started(host)
    host.person_destroy(uuid)
    assert host.events.wait_for(uuid, Happening.STOPPED) == OffReason.DESTROYED


def test_undefine_may_be_repeated_and_keeps_disks(host: Harness, tmp_path: Path) -> None:
    disk = tmp_path / "d.qcow2"
    host.make_file(disk)
    uuid = started(host, disks=(Disk(path=str(disk)),))
    with pytest.raises(HypervisorError, match="running"):
        host.driver.undefine(uuid)
    host.driver.destroy(uuid)
    host.driver.undefine(uuid)
    host.driver.undefine(uuid)
    assert host.driver.inspect(uuid).domain is None and host.exists(disk)
    host.events.wait_for(uuid, Happening.UNDEFINED)


def test_epoch_changes_while_running_and_survives_a_new_connection(host: Harness) -> None:
    vm = new_vm(epoch=3, revision=5)
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    pid = host.driver.inspect(vm.uuid).processes[0].pid
    host.driver.define(new_vm(uuid=vm.uuid, epoch=4, revision=9))
    assert (domain(host, vm.uuid).epoch, domain(host, vm.uuid).revision) == (4, 9)
    host.driver.close()
    gone = host.driver.inspect(vm.uuid)
    assert not gone.libvirt_ok and gone.domain is None
    assert [process.pid for process in gone.processes] == [pid]
    assert not host.driver.scan().libvirt_ok and host.driver.scan().error
    with pytest.raises(HypervisorError, match="connected"):
        host.driver.define(vm)
    host.driver.connect(host.events.seen.append, host.events.lost.append)
    assert (domain(host, vm.uuid).epoch, state(host, vm.uuid)) == (4, DomainState.RUNNING)
    host.driver.destroy(vm.uuid)
    assert domain(host, vm.uuid).epoch == 4
    host.events.wait_for(vm.uuid, Happening.STOPPED)
    assert len([seen for seen, _ in host.events.of(vm.uuid) if seen == Happening.STOPPED]) == 1


def test_connecting_again_replaces_the_callbacks(host: Harness) -> None:
    host.driver.connect(host.events.seen.append, host.events.lost.append)
    vm = new_vm()
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    host.events.wait_for(vm.uuid, Happening.STARTED)
    assert [seen for seen, _ in host.events.of(vm.uuid)].count(Happening.DEFINED) == 1


def test_domains_of_others_are_seen_without_epoch(host: Harness) -> None:
    vm = new_vm()
    host.person_define(vm.uuid, vm.name)
    host.set_autostart(vm.uuid)
    (seen,) = [found for found in host.driver.scan().domains if found.uuid == vm.uuid]
    assert (seen.epoch, seen.revision, seen.state) == (None, None, DomainState.OFF)
    assert host.autostart(vm.uuid)  # not ours: not touched


def test_name_of_another_domain_is_not_taken(host: Harness) -> None:
    vm = new_vm()
    other = new_vm().uuid
    host.person_define(other, vm.name)
    with pytest.raises(HypervisorError, match=vm.name):
        host.driver.define(vm)
    assert host.driver.inspect(vm.uuid).domain is None and domain(host, other).epoch is None


def test_libvirt_never_starts_our_domain_by_itself(host: Harness) -> None:
    vm = new_vm()
    host.driver.define(vm)
    for look in (host.driver.scan, lambda: host.driver.define(vm)):
        host.set_autostart(vm.uuid)
        look()
        assert not host.autostart(vm.uuid)


def test_lost_definition_of_a_running_vm_is_seen_and_mended(host: Harness) -> None:
    vm = new_vm(epoch=2)
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    host.person_undefine(vm.uuid)
    assert not domain(host, vm.uuid).persistent and domain(host, vm.uuid).epoch == 2
    assert not next(found for found in host.driver.scan().domains if found.uuid == vm.uuid).persistent
    host.driver.define(vm)
    assert domain(host, vm.uuid).persistent and state(host, vm.uuid) == DomainState.RUNNING


def test_pause_by_a_person_is_told_and_is_no_disk_error(host: Harness) -> None:
    uuid = started(host)
    host.person_pause(uuid)
    host.events.wait_for(uuid, Happening.PAUSED)
    assert state(host, uuid) == DomainState.PAUSED and not domain(host, uuid).io_error


def test_missing_disk_is_refused(host: Harness, tmp_path: Path) -> None:
    vm = new_vm(disks=(Disk(path=str(tmp_path / "none.qcow2")),))
    with pytest.raises(InvalidVm, match=r"none\.qcow2 does not exist on this node"):
        host.driver.define(vm)
    assert host.driver.inspect(vm.uuid).domain is None


def test_disk_that_went_missing_prevents_the_start(host: Harness, tmp_path: Path) -> None:
    disk = tmp_path / "d.qcow2"
    host.make_file(disk)
    vm = new_vm(disks=(Disk(path=str(disk)),))
    host.driver.define(vm)
    host.remove_file(disk)
    with pytest.raises(InvalidVm, match="does not exist on this node"):
        host.driver.start(vm.uuid)
    assert state(host, vm.uuid) == DomainState.OFF


def test_missing_kernel_is_refused(host: Harness, tmp_path: Path) -> None:
    with pytest.raises(InvalidVm, match="vmlinuz does not exist on this node"):
        host.driver.define(new_vm(boot=Boot(kernel=str(tmp_path / "vmlinuz"))))


def test_disk_is_created_once_and_never_again(host: Harness, tmp_path: Path) -> None:
    disk = tmp_path / "new.qcow2"
    vm = new_vm(disks=(Disk(path=str(disk), size_mib=4),))
    host.driver.define(vm)
    assert host.exists(disk)
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    host.driver.destroy(vm.uuid)
    host.remove_file(disk)  # or its storage is not mounted
    with pytest.raises(InvalidVm, match="not created again"):
        host.driver.define(vm)
    assert not host.exists(disk)


def test_disk_of_a_vm_that_had_another_owner_is_not_created(host: Harness, tmp_path: Path) -> None:
    disk = tmp_path / "new.qcow2"
    with pytest.raises(InvalidVm, match="not created again"):
        host.driver.define(new_vm(create_disks=False, disks=(Disk(path=str(disk), size_mib=4),)))
    assert not host.exists(disk)


@pytest.mark.parametrize(
    "xml",
    [
        "<domain type='qemu'><uuid>22222222-2222-4333-8444-555555555555</uuid></domain>",
        "<domain",
        "<!DOCTYPE d [<!ENTITY a 'x'>]><domain type='qemu'><title>&a;</title></domain>",
    ],
)
def test_bad_xml_is_refused(host: Harness, xml: str) -> None:
    vm = new_vm(xml=xml)
    with pytest.raises(InvalidVm, match="XML"):
        host.driver.define(vm)
    assert host.driver.inspect(vm.uuid).domain is None


def test_vm_given_as_xml_runs_under_our_name(host: Harness) -> None:
    xml = "<domain type='qemu'><name>x</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
    vm = new_vm(xml=xml, epoch=6)
    host.driver.define(vm)
    host.driver.start(vm.uuid)
    assert (domain(host, vm.uuid).name, domain(host, vm.uuid).epoch) == (vm.name, 6)


def test_process_outside_libvirt_is_found(host: Harness) -> None:
    uuid = new_vm().uuid
    host.run_outside(uuid)
    assert uuid in [process.uuid for process in host.driver.scan().processes]
    facts = host.driver.inspect(uuid)
    assert facts.domain is None and len(facts.processes) == 1


def test_stopped_process_is_alive(host: Harness) -> None:
    uuid = started(host)
    host.sigstop(uuid)
    wait(lambda: host.driver.inspect(uuid).processes[0].state == "T", "state T")
    assert domain(host, uuid).active
    assert uuid in [process.uuid for process in host.driver.scan().processes]


def test_forced_reboot_keeps_the_process(host: Harness) -> None:
    uuid = started(host)
    pid = host.driver.inspect(uuid).processes[0].pid
    host.driver.reboot(uuid, True)
    assert [process.pid for process in host.driver.inspect(uuid).processes] == [pid]


def test_shutdown_only_asks(host: Harness) -> None:
    uuid = started(host)
    host.driver.shutdown(uuid)
    if host.has_firmware_guest:  # nobody listens in there
        assert state(host, uuid) == DomainState.RUNNING
    else:
        assert host.events.wait_for(uuid, Happening.STOPPED) == OffReason.SHUTDOWN
        assert (Happening.GUEST_SHUTDOWN, OffReason.UNKNOWN) in host.events.of(uuid)


def test_calls_from_several_threads(host: Harness) -> None:
    vms = [new_vm() for _ in range(3)]
    failures: list[Exception] = []

    def run(index: int) -> None:
        try:
            host.driver.define(vms[index])
            host.driver.start(vms[index].uuid)
            host.driver.scan()
            host.driver.destroy(vms[index].uuid)
            host.driver.undefine(vms[index].uuid)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(vms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- only real --------------------------------------------------------------------------------------------


@pytest.fixture
def linux(
    real_root: Path, guest: tuple[Path, Path], tmp_path: Path
) -> Iterator[Callable[[str], tuple[RealHarness, str, Path]]]:
    """`linux(words)`: a running Linux guest with those words on its kernel command line; its serial log."""
    harness = RealHarness(real_root)
    harness.driver.connect(harness.events.seen.append, harness.events.lost.append)

    def run(words: str) -> tuple[RealHarness, str, Path]:
        kernel, initrd = map(str, guest)
        boot = Boot(kernel=kernel, initrd=initrd, cmdline=guest_cmdline("t", 0.2, words))
        log = tmp_path / "serial.log"
        uuid = started(harness, memory_mib=GUEST_MEMORY_MIB, boot=boot, serial_log=str(log))
        wait(lambda: log.exists() and "counter 5" in log.read_text(), "the guest's counter")
        return harness, uuid, log

    yield run
    harness.close()
    harness.driver.close()


@pytest.mark.integration
@pytest.mark.parametrize("asked", [True, False])
def test_power_off_by_the_guest_is_told_as_such(linux: Any, asked: bool) -> None:
    harness, uuid, _ = linux("" if asked else "chime.poweroff_after=6")
    if asked:
        harness.driver.shutdown(uuid)
    assert harness.events.wait_for(uuid, Happening.STOPPED) == OffReason.SHUTDOWN
    told = [happening for happening, _ in harness.events.of(uuid)]
    assert told[-2:] == [Happening.GUEST_SHUTDOWN, Happening.STOPPED] and Happening.HOST_SHUTDOWN not in told


@pytest.mark.integration
@pytest.mark.parametrize("asked", [True, False])
def test_reboot_of_the_guest_is_no_end(linux: Any, asked: bool) -> None:
    harness, uuid, log = linux("" if asked else "chime.reboot_after=1.5")
    if asked:
        harness.driver.reboot(uuid, False)
    wait(lambda: log.read_text().count("counter 1 ") > 1, "the guest's second life")
    told = [happening for happening, _ in harness.events.of(uuid)]
    assert not {Happening.GUEST_SHUTDOWN, Happening.HOST_SHUTDOWN, Happening.STOPPED} & set(told)


@pytest.mark.integration
@pytest.mark.slow
def test_stopped_process_can_be_ended(linux: Any) -> None:
    harness, uuid, _ = linux("")
    harness.sigstop(uuid)
    harness.driver.destroy(uuid)  # SIGKILL after ten seconds
    assert state(harness, uuid) == DomainState.OFF and not harness.driver.inspect(uuid).processes


@pytest.mark.integration
def test_domain_that_libvirt_waits_for_holds_up_no_scan(real_root: Path) -> None:
    harness = RealHarness(real_root)
    harness.driver.connect(harness.events.seen.append, harness.events.lost.append)
    uuid = started(harness)
    harness.sigstop(uuid)
    busy = threading.Thread(target=harness.driver.reboot, args=(uuid, True))  # qemu does not answer libvirt
    busy.start()
    try:
        began = time.monotonic()
        while not harness.driver.inspect(uuid).domain.job:  # type: ignore[union-attr]
            assert time.monotonic() - began < 10.0
        began = time.monotonic()
        (seen,) = [domain for domain in harness.driver.scan().domains if domain.uuid == uuid]
        assert (seen.state, seen.job) == (DomainState.RUNNING, False)
        assert time.monotonic() - began < 5.0
    finally:
        os.kill(harness.driver.inspect(uuid).processes[0].pid, signal.SIGCONT)
        busy.join()
        harness.close()
        harness.driver.close()


def _states(seen: Processes, uuid: str) -> list[str]:
    return [process.state for process in seen.scan() if process.uuid == uuid]


def _waits_for_writes(pid: int) -> bool:
    """Whether a thread waits for the last writes. Whoever reads its arguments before may have to wait in its stead."""
    return any(file.read_text() == "exit_aio" for file in Path(f"/proc/{pid}/task").glob("*/wchan"))


@pytest.mark.integration
def test_zombie_is_not_seen(real_root: Path) -> None:
    """Its leader can be a zombie while its other threads still end: until then it counts."""
    seen, uuid = Processes(), new_vm().uuid
    child = subprocess.Popen(bare_qemu(uuid), stdin=subprocess.DEVNULL)
    try:
        wait(lambda: _states(seen, uuid), "a live process")
        child.kill()
        wait(lambda: not _states(seen, uuid), "no live process")
        assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    finally:
        child.kill()
        child.wait()


@pytest.mark.integration
def test_killed_qemu_that_waits_for_a_write_to_a_dead_disk_is_seen(needs_hosts: None, short_dir: Path) -> None:
    """The kernel has freed its memory, so that its arguments are gone, and waits: the write may still come."""
    seen, uuid = Processes(), new_vm().uuid
    with frozen_disk(short_dir) as disk, disk.device() as device:
        drive = f"if=none,id=d,format=raw,cache=none,aio=native,file={device}"
        child = subprocess.Popen([*bare_qemu(uuid, "stdio"), "-drive", drive], stdin=subprocess.PIPE)
        assert child.stdin is not None
        try:
            wait(lambda: _states(seen, uuid), "a live process")
            disk.freeze()
            child.stdin.write(b'qemu-io d "aio_write 0 4k"\n')
            child.stdin.flush()
            wait(lambda: writes_under_way(device), "a write that hangs")
            child.kill()
            wait(lambda: _waits_for_writes(child.pid), "it ends")  # see there
            assert not Path(f"/proc/{child.pid}/cmdline").read_bytes()
            wait(lambda: _states(seen, uuid) == ["D"], "it waits in the kernel")
            assert writes_under_way(device)
            disk.thaw()
            wait(lambda: not _states(seen, uuid), "the write is done")
        finally:
            disk.thaw()
            child.kill()
            child.communicate()


@pytest.mark.integration
def test_who_cannot_look_at_the_processes_knows_nothing_new(
    real_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = RealHarness(real_root)
    harness.driver.connect(harness.events.seen.append, harness.events.lost.append)
    uuid = started(harness)
    try:
        before = harness.driver.inspect(uuid)
        assert before.libvirt_ok and before.processes

        def no_more(*_args: Any, **_options: Any) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(processes, "open", no_more, raising=False)
            scan, facts = harness.driver.scan(), harness.driver.inspect(uuid)
        assert (scan.libvirt_ok, scan.error) == (False, "cannot look at the processes: Too many open files")
        assert set(before.processes) <= set(scan.processes)
        assert not facts.libvirt_ok and facts.processes == before.processes
        after = harness.driver.inspect(uuid)
        assert after.libvirt_ok and [process.pid for process in after.processes] == [before.processes[0].pid]
    finally:
        harness.close()
        harness.driver.close()


@pytest.mark.integration
def test_words_match_the_numbers_of_libvirt(real_root: Path) -> None:
    import libvirt

    from agentd.libvirt import words

    assert words.STATES[libvirt.VIR_DOMAIN_SHUTOFF] == DomainState.OFF
    assert words.OFF_REASONS[libvirt.VIR_DOMAIN_SHUTOFF_CRASHED] == OffReason.CRASHED
    assert words.OFF_REASONS[libvirt.VIR_DOMAIN_SHUTOFF_FAILED] == OffReason.FAILED
    assert words.HAPPENINGS[libvirt.VIR_DOMAIN_EVENT_STOPPED] == Happening.STOPPED
    assert words.STOP_REASONS[libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED] == OffReason.SAVED
    io_error = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR)
    by_host = (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST)
    expected = {io_error: Happening.PAUSED_IO_ERROR, by_host: Happening.HOST_SHUTDOWN}
    assert expected == words.DETAILED
