"""Real libvirt: what agentd.toml does not allow is not defined, not taken over and not started; what runs goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.hypervisor import InvalidVm
from agentd.libvirt.driver import LibvirtDriver
from tests.contract.harness import RealHarness, new_vm
from tests.contract.test_foreign import order, pids, told
from wire import messages as m
from wire.reach import DEFAULT, Reach

pytestmark = pytest.mark.integration
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


@pytest.fixture
def host(real_root: Path) -> Iterator[RealHarness]:
    harness = RealHarness(real_root)
    harness.driver.connect(harness.events.seen.append, harness.events.lost.append)
    yield harness
    harness.close()
    harness.driver.close()


def allow(host: RealHarness, *what: Reach) -> None:
    """The node's settings allow this too."""
    assert isinstance(host.driver, LibvirtDriver)
    host.driver._limits = DEFAULT._replace(allowed=frozenset(what))


def evil(devices: str = "", rest: str = "") -> m.Assignment:
    uuid = new_vm().uuid
    xml = (
        f"<domain type='qemu' {QEMU}><name>x</name><memory unit='MiB'>32</memory><os><type>hvm</type></os>"
        f"<devices>{devices}</devices>{rest}</domain>"
    )
    return new_vm(uuid=uuid, xml=xml)


SHADOW = "<disk type='file'><driver name='qemu' type='raw'/><source file='/etc/shadow'/><target dev='vda'/></disk>"
ARGUMENT = "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>"


@pytest.mark.parametrize(
    ("devices", "rest", "words"),
    [
        ("<emulator>/tmp/evil</emulator>", "", "emulator /tmp/evil .emulators in agentd.toml"),
        (SHADOW, "", "disk /etc/shadow: a path of the system .vm_paths in agentd.toml"),
        ("", ARGUMENT, "commandline .*vm_allow in agentd.toml"),
        ("<filesystem type='mount'><source dir='/'/><target dir='a'/></filesystem>", "", "filesystem mount"),
    ],
)
def test_h5_what_the_node_does_not_allow_is_not_defined(
    host: RealHarness, devices: str, rest: str, words: str
) -> None:
    vm = evil(devices, rest)
    with pytest.raises(InvalidVm, match=f"this node does not allow it: {words}"):
        host.driver.define(vm)
    assert host.driver.inspect(vm.uuid).domain is None


def test_h5_no_disk_is_made_where_none_may_be(host: RealHarness, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    disk = m.Disk(path=f"{tmp_path}/link/h5.qcow2", size_mib=1)
    with pytest.raises(InvalidVm, match="it leads to /etc/h5"):
        host.driver.define(new_vm(disks=(disk,)))
    assert not Path("/etc/h5.qcow2").exists()


def test_h5_what_the_node_allows_is_defined_and_started_and_nothing_when_it_no_longer_does(host: RealHarness) -> None:
    vm = evil(rest=ARGUMENT)
    allow(host, Reach.QEMU_ARGUMENTS)
    host.driver.define(vm)
    allow(host)
    with pytest.raises(InvalidVm, match="does not allow it: commandline"):
        host.driver.start(vm.uuid)
    assert not pids(host, vm.uuid)
    allow(host, Reach.QEMU_ARGUMENTS)
    host.driver.start(vm.uuid)
    assert len(pids(host, vm.uuid)) == 1


def test_h5_a_running_vm_that_reaches_too_far_is_not_taken_over_and_runs_on(host: RealHarness) -> None:
    uuid = new_vm().uuid
    host._person().defineXML(
        f"<domain type='qemu' {QEMU}><name>t-{uuid[:8]}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
        f"<os><type>hvm</type></os>{ARGUMENT}</domain>"
    )
    host.person_start(uuid)
    process, wanted = pids(host, uuid), order(host, uuid)
    with pytest.raises(InvalidVm, match="does not allow it: commandline"):
        host.driver.adopt(wanted)
    assert told(host, uuid).problem == "" and pids(host, uuid) == process
    allow(host, Reach.QEMU_ARGUMENTS)
    host.driver.adopt(wanted)
    seen = host.driver.inspect(uuid).domain
    assert seen is not None and seen.adopted and pids(host, uuid) == process
