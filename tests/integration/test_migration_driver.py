"""The contract of migrations, kept by two real libvirtd on two hosts; and what only Linux guests can show."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.core.facts import DomainState
from agentd.hypervisor import HypervisorError
from agentd.libvirt.target import Settings
from tests.contract.harness import Events, new_vm, wait
from tests.contract.migrating import MigrationContract, Moving, here, moved, there
from tests.contract.pair import Pair, order
from tests.hosts import Cluster, Guest, Host, guest_cmdline
from tests.hosts.guest import GUEST_MEMORY_MIB
from tests.integration.libvirtd import start_libvirtd
from wire.messages import Assignment, Boot, Disk
from wire.types import VirtType

pytestmark = pytest.mark.integration

URI = "qemu+tcp://{host}/system"


AGENT = """
import sys
from agentd.libvirt.driver import LibvirtDriver
from agentd.libvirt.target import Settings
from wire.messages import MigrationOptions, MigrationOrder
uri, others, address, uuid = sys.argv[1:]
driver = LibvirtDriver(uri, migration=Settings(others))
driver.connect(lambda lifecycle: None, lambda why: None)
options = MigrationOptions(bandwidth_mib_s=8, auto_converge=False)
driver.migrate(uuid, MigrationOrder(target="t", address=address, options=options), "a9", "n1", lambda progress: None)
"""


class RealPair:
    """Two hosts with a libvirtd each. `slow_down`: the transfer gets 1 MiB/s."""

    slow = {"bandwidth_mib_s": 1, "auto_converge": False}  # noqa: RUF012

    def __init__(self, cluster: Cluster, kernel: Path, initrd: Path) -> None:
        self.cluster, self.kernel, self.initrd = cluster, str(kernel), str(initrd)
        self.source_host, self.target_host = cluster["s"], cluster["t"]
        self.shared = cluster.dir / "shared"
        self.shared.mkdir(exist_ok=True)
        self.target_address = self.target_host.address
        self.nowhere = str(cluster.bridge.subnet[250])
        self.source_events, self.target_events = Events(), Events()
        self.source = self._driver(self.source_host, self.source_events)
        self.target = self._driver(self.target_host, self.target_events)

    def _driver(self, host: Host, events: Events) -> Any:
        from agentd.libvirt.driver import LibvirtDriver

        if not host.is_on:
            host.power_on(start_services=False)
            start_libvirtd(host, listen=True)
        driver = LibvirtDriver(
            URI.replace("{host}", host.address), VirtType.QEMU, Settings(URI, shared_paths=(str(self.shared),))
        )

        def connected() -> bool:
            try:
                driver.connect(events.seen.append, events.lost.append)
            except HypervisorError:
                return False
            return True

        wait(connected, f"libvirtd of {host.name}")
        return driver

    def vm(self) -> dict[str, Any]:
        boot = Boot(kernel=self.kernel, initrd=self.initrd, cmdline=guest_cmdline("t", 0.1))
        return {"memory_mib": GUEST_MEMORY_MIB, "boot": boot}

    def counting(self, **more: Any) -> tuple[Assignment, Guest]:
        """A running VM, and its guest that counts into a file on shared storage."""
        vm = new_vm(epoch=3, revision=7)
        guest = Guest("t", self.shared / f"{vm.name}.log")
        vm = new_vm(epoch=3, revision=7, uuid=vm.uuid, **self.vm(), serial_log=str(guest.serial), **more)
        self.source.define(vm)
        self.source.start(vm.uuid)
        wait(lambda: guest.counts()[4:], "the guest counts")
        return vm, guest

    def slow_down(self) -> None:
        """The options do it."""

    def kill_target(self) -> None:
        self.target_host.power_off()

    def close(self) -> None:
        """Nothing is left running or defined."""
        for driver in (self.source, self.target):
            for domain in driver.scan().domains:
                driver.abort_migration(domain.uuid)
                driver.destroy(domain.uuid)
                if driver.inspect(domain.uuid).domain is not None:
                    driver.undefine(domain.uuid)
            driver.close()


@pytest.fixture(scope="module")
def cluster(needs_hosts: None) -> Iterator[Cluster]:
    with Cluster(["s", "t"]) as cluster:
        for host in cluster.hosts.values():
            start_libvirtd(host, listen=True)
        yield cluster


@pytest.fixture
def pair(cluster: Cluster, guest: tuple[Path, Path]) -> Iterator[Pair]:
    pair = RealPair(cluster, *guest)
    yield pair
    pair.close()


class TestReal(MigrationContract):
    """The contract, kept by libvirt."""


def test_guest_counts_on_after_the_handover_and_not_before(pair: Any) -> None:
    vm, guest = pair.counting()
    began = time.monotonic()
    moved(pair, vm.uuid)
    took = time.monotonic() - began
    last = guest.last()
    time.sleep(1.0)
    assert guest.last() == last, "the copy runs before the handover"
    began = time.monotonic()
    pair.source.hand_over(vm.uuid, "a1", pair.target_address)
    wait(lambda: guest.last() != last, "the copy counts")
    gap = time.monotonic() - began
    print(f"migration {took:.2f} s, from handover to the next count {gap:.2f} s")
    whole = guest.ran_once(incoming=True)
    assert gap < 2.0 or not whole


def test_source_counts_on_when_the_target_dies(pair: Any) -> None:
    vm, guest = pair.counting()
    moving = Moving(pair, vm.uuid, order(pair.target_address, **pair.slow))
    wait(lambda: moving.progress, "progress")
    pair.kill_target()
    before = len(guest.counts())
    wait(lambda: len(guest.counts()) > before + 10, "it counts while libvirt notices nothing")
    assert wait(moving.end, "the end")
    after = guest.last()
    wait(lambda: guest.last() != after, "it counts on")
    guest.ran_once(incoming=False)
    assert here(pair, vm.uuid).state == DomainState.RUNNING


def test_migration_goes_on_without_the_agent_that_ordered_it(pair: Any) -> None:
    vm, guest = pair.counting()
    words = [URI.replace("{host}", pair.source_host.address), URI, pair.target_address, vm.uuid]
    agent = subprocess.Popen([sys.executable, "-c", AGENT, *words])
    try:
        wait(lambda: pair.target.inspect(vm.uuid).domain is not None, "the copy begins")
    finally:
        agent.kill()
        agent.wait()
    pair.source.settle(vm.uuid)
    facts = pair.source.inspect(vm.uuid)
    assert facts.libvirt_ok and facts.domain is None
    last = guest.last()
    pair.source.hand_over(vm.uuid, "a9", pair.target_address)
    wait(lambda: guest.last() != last, "the copy counts")


def test_local_disk_is_refused_or_copied(pair: Any) -> None:
    folder = pair.cluster.dir / "local"
    folder.mkdir()
    pair.target_host.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)])
    disk = folder / "d.qcow2"
    made = ["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "8M"]
    pair.source_host.run(made)
    pair.source_host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(disk)])
    vm, _ = pair.counting(disks=(Disk(path=str(disk)),))
    with pytest.raises(HypervisorError, match=f"disk {disk} is only on this node"):
        moved(pair, vm.uuid)
    copying = order(pair.target_address, local_disks=True)
    pair.target_host.run(made)
    with pytest.raises(HypervisorError, match="already: it is not written over"):
        pair.source.migrate(vm.uuid, copying, "a1", "n1", lambda progress: None)
    pair.target_host.run(["rm", str(disk)])
    moving = Moving(pair, vm.uuid, order(pair.target_address, local_disks=True, **pair.slow))
    wait(lambda: moving.progress, "progress")
    pair.source.abort_migration(vm.uuid)
    assert "cancelled" in moving.end()
    with pytest.raises(HypervisorError, match="already: it is not written over"):  # the half of a copy stays
        pair.source.migrate(vm.uuid, copying, "a1", "n1", lambda progress: None)
    pair.target_host.run(["rm", str(disk)])
    pair.source.migrate(vm.uuid, copying, "a1", "n1", lambda progress: None)
    assert there(pair, vm.uuid).state == DomainState.PAUSED
    pair.target.destroy(vm.uuid)
    pattern = pair.target_host.run(["qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 64k", str(disk)]).stdout
    assert "Pattern verification failed" not in pattern and "read 65536/65536" in pattern
    pools = ["virsh", "-q", "-c", "qemu:///system", "pool-list", "--all"]
    assert not pair.target_host.run(pools).stdout.strip()


def test_target_is_checked_before_anything_begins(pair: Any) -> None:
    vm, _ = pair.counting()
    bridge = pair.cluster.bridge.name
    findings = pair.source.check_target(pair.target_address, bridge, [vm.uuid])
    assert findings.problems == () and findings.notes == ()
    assert problem(pair, vm, pair.target_address, "nosuch0").startswith("this node has no interface nosuch0")
    assert "would leave by" in problem(pair, vm, pair.target_address, "lo")
    assert "is an address of this node itself" in problem(pair, vm, pair.cluster.address, bridge)
    assert problem(pair, vm, pair.nowhere, bridge).startswith(f"target {pair.nowhere} cannot be reached over {bridge}")
    assert "is this node itself" in problem(pair, vm, pair.source_host.address, bridge)
    moved(pair, vm.uuid)
    assert pair.source.inspect(vm.uuid).domain is None
    with pytest.raises(HypervisorError, match=f"no domain {vm.uuid}"):
        pair.source.check_target(pair.target_address, bridge, [vm.uuid])


def test_disk_that_the_target_does_not_have_is_found_out(pair: Any) -> None:
    folder = pair.shared / "late"
    folder.mkdir()
    made = ["qemu-img", "create", "-q", "-f", "qcow2"]
    pair.source_host.run([*made, str(folder / "d.qcow2"), "8M"])
    vm, _ = pair.counting(disks=(Disk(path=str(folder / "d.qcow2")),))
    bridge = pair.cluster.bridge.name
    assert pair.source.check_target(pair.target_address, bridge, [vm.uuid]).problems == ()
    pair.target_host.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)])  # its storage is not there
    missing = f"{folder}/d.qcow2 of {vm.name} does not exist on {pair.target_address}"
    assert problem(pair, vm, pair.target_address, bridge) == missing
    with pytest.raises(HypervisorError, match=vm.uuid):
        moved(pair, vm.uuid)
    assert here(pair, vm.uuid).state == DomainState.RUNNING


def test_libvirtd_of_the_target_that_hangs_holds_nobody_up_for_long(pair: Any) -> None:
    vm, _ = pair.counting()
    libvirtd = pair.target_host.service("libvirtd")
    libvirtd.kill(signal.SIGSTOP)
    try:
        for call in (
            lambda: moved(pair, vm.uuid),
            lambda: pair.source.hand_over(vm.uuid, "a1", pair.target_address),
        ):
            began = time.monotonic()
            with pytest.raises(HypervisorError, match="does not answer"):
                call()
            assert time.monotonic() - began < 25.0
    finally:
        libvirtd.kill(signal.SIGCONT)
    assert here(pair, vm.uuid).state == DomainState.RUNNING


def problem(pair: Any, vm: Assignment, address: str, interface: str) -> str:
    """The only problem that is found."""
    (only,) = pair.source.check_target(address, interface, [vm.uuid]).problems
    return str(only)
