"""The lab itself: what the other tests take for granted."""

from __future__ import annotations

import errno
import subprocess
import uuid as uuids
from collections.abc import Iterator

import pytest

from tests.hosts import Guest, guest_xml, wait_until
from tests.lab.disk import Failure
from tests.lab.host import LabHost
from tests.lab.lab import Lab
from tests.lab.layers import LOCAL, SHARED
from tests.lab.wires import Net
from tests.operator import unique

PORT = 9999
HEARING_S = 2
LISTEN = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", {PORT}))
print("ready", flush=True)
s.settimeout({HEARING_S})
try:
    s.recv(9)
except TimeoutError:
    sys.exit(1)
"""
TALK = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.bind((sys.argv[1], 0))
s.sendto(b"hello", (sys.argv[2], {PORT}))
"""
WRITE = """
import os, sys
try:
    fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
    for _ in range(4):
        os.write(fd, bytes(1 << 20))
    os.fsync(fd)
    os.unlink(sys.argv[1])
    print(0)
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def foreign(lab: Lab) -> Iterator[tuple[str, Guest]]:
    """UUID and guest of a counting domain on n1 that is a person's, not Chime's."""
    uuid, name = str(uuids.uuid4()), unique("foreign")
    files = (f"{SHARED}/vmlinuz", f"{SHARED}/initrd.gz", f"{SHARED}/{name}.serial")
    xml = lab.shared / f"{name}.xml"
    xml.write_text(guest_xml(name, uuid, *files, interval_s=0.1))
    lab.host("n1").virsh("define", f"{SHARED}/{name}.xml")
    lab.host("n1").virsh("start", name)
    guest = Guest(name, lab.shared / f"{name}.serial")
    wait_until(lambda: guest.last().number > 5, 60, "the foreign guest counts")
    yield uuid, guest


def test_hosts_are_machines_of_their_own(lab: Lab) -> None:
    """Own names, boot ids, addresses; all services came up; power off ends all, power on is another boot."""
    hosts = [lab.host(name) for name in ("srv", *lab.names)]
    boots = [host.run("cat", "/proc/sys/kernel/random/boot_id").stdout for host in hosts]
    assert len(set(boots)) == len(hosts)
    for host in hosts:
        assert host.run("hostname").stdout.strip() == host.name
        assert host.systemctl("--failed", "--no-legend") == ""
    n1 = lab.host("n1")
    n1.power_off()
    assert not n1.is_on
    n1.power_on()
    assert n1.run("cat", "/proc/sys/kernel/random/boot_id").stdout not in boots


@pytest.mark.parametrize(("net", "other"), [("mgmt", "biz"), ("biz", "mgmt")])
def test_networks_are_cut_in_one_direction_or_both_or_pulled(lab: Lab, net: Net, other: Net) -> None:
    """What a cut host sends or hears is lost, other networks and hosts notice nothing, and healing undoes it."""
    n1, n2, n3 = (lab.host(name) for name in ("n1", "n2", "n3"))
    assert hears(n2, n1, net) and hears(n1, n2, net)
    n1.cut(net, "out")
    assert not hears(n2, n1, net) and hears(n1, n2, net)
    n1.heal()
    n1.cut(net, "in")
    assert hears(n2, n1, net) and not hears(n1, n2, net)
    n1.cut(net, "both")
    assert not hears(n2, n1, net) and not hears(n1, n2, net)
    assert hears(n3, n2, net) and hears(n2, n1, other)
    n1.heal(net)
    assert hears(n2, n1, net)
    n1.pull(net)
    assert "NO-CARRIER" in n1.run("ip", "link", "show", f"{net}0").stdout
    n1.heal()
    wait_until(lambda: hears(n2, n1, net), 15, "the cable works again")


def hears(listener: LabHost, talker: LabHost, net: Net) -> bool:
    """Does a broadcast (which needs no way back) arrive?"""
    with listener.popen("python3", "-c", LISTEN, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        talker.run("python3", "-c", TALK, talker.address(net), broadcast(talker, net))
        return process.wait() == 0


def broadcast(host: LabHost, net: Net) -> str:
    """The broadcast address of a network."""
    return str(host.wires.subnets[net].broadcast_address)


@pytest.mark.parametrize(
    ("how", "number"), [("read-only", errno.EROFS), ("full", errno.ENOSPC), ("errors", errno.ENOSPC)]
)
def test_a_disk_breaks(lab: Lab, how: Failure, number: int) -> None:
    """Writing to the host's own disk fails in the way that was asked for, until it is mended."""
    n1 = lab.host("n1")
    n1.break_disk(how)
    done = n1.run("python3", "-c", WRITE, f"{LOCAL}/probe-{how}", check=False)
    assert done.stdout.strip() == str(number), done.stderr
    n1.mend_disk()
    assert n1.run("python3", "-c", WRITE, f"{LOCAL}/probe-{how}").stdout.strip() == "0"


def test_a_disk_hangs(lab: Lab) -> None:
    """A write does not come back before the disk is mended; then it succeeds."""
    n1 = lab.host("n1")
    n1.break_disk("hang")
    with n1.popen("python3", "-c", WRITE, f"{LOCAL}/probe", stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        n1.mend_disk()
        assert process.communicate(timeout=30)[0].strip() == "0"


def test_live_migration_between_two_hosts(lab: Lab, foreign: tuple[str, Guest]) -> None:
    """Peer to peer over the business network, as a person does it: the guest counts on, on the other host."""
    uuid, guest = foreign
    migrate(lab, uuid, "n1", "n2")
    assert lab.oracle.places(uuid) == ["n2"]
    before = guest.last().number
    wait_until(lambda: guest.last().number > before, 30, "the guest counts on")
    guest.ran_once(incoming=True)
    assert uuid not in lab.host("n1").virsh("list", "--all", "--uuid")
    assert uuid not in lab.vms(), "Chime has nothing to do with it"


def test_a_copy_beside_a_migrated_guest_is_seen(lab: Lab, foreign: tuple[str, Guest]) -> None:
    """The oracle's own test: what arrived by migration runs from then on, and its paused source does not."""
    uuid, guest = foreign
    migrate(lab, uuid, "n1", "n2")
    assert not lab.watch.violations
    migrate(lab, uuid, "n2", "n1")
    assert not lab.watch.violations
    lab.host("n3").virsh("create", f"{SHARED}/{guest.name}.xml")
    lab.wait(lambda: lab.watch.violations, "two processes of one VM are noticed")
    lab.host("n3").virsh("destroy", uuid)
    lab.watch.violations.clear()


def migrate(lab: Lab, uuid: str, source: str, target: str) -> None:
    """As a person does it, peer to peer over the business network."""
    address = lab.host(target).address("biz")
    words = ("migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--migrateuri", f"tcp://{address}")
    lab.host(source).virsh(*words, uuid, f"qemu+tcp://{address}/system", timeout_s=120)


def test_two_copies_of_a_guest_are_seen(lab: Lab, foreign: tuple[str, Guest]) -> None:
    """The oracle's own test: the same VM on two hosts shows in the process table and in what it counts."""
    uuid, guest = foreign
    lab.host("n2").virsh("create", f"{SHARED}/{guest.name}.xml")
    lab.wait(lambda: lab.watch.violations, "two processes of one VM are noticed")
    lab.wait(lambda: len(guest.runs()) > len(set(guest.runs())), "what they count is interleaved")
    lab.host("n2").virsh("destroy", uuid)
    lab.watch.violations.clear()
