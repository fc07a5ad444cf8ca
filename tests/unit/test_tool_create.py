"""`vm create`: the definition that is built from options or from a domain XML, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.tool_stand_in import VM_UUID, StandIn, mutation, tool

XML = f"""<?xml version="1.0" encoding="utf-8"?>
<domain type="kvm">
  <name>old</name>
  <uuid>{VM_UUID.upper()}</uuid>
  <memory unit="GiB">2</memory>
  <vcpu placement="static">4</vcpu>
  <devices>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/srv/a.qcow2"/></disk>
    <disk type="block" device="disk"><source dev="/dev/vg/b"/></disk>
    <disk type="network" device="disk"><source protocol="rbd" name="p/c"/></disk>
    <disk type="file" device="cdrom"/>
  </devices>
</domain>
"""
BASE = "vm create a --vcpus 2 --memory 2G"


def _create(line: str | list[str]) -> Any:
    return tool(line, StandIn({"vm.create": mutation()}))


def _sent(line: str | list[str]) -> Any:
    ran = _create(line)
    assert ran.code == 0, ran.err
    return ran.sent[-1]


def test_every_option_reaches_the_definition() -> None:
    words = [*BASE.split(), "--disk", "/srv/a.qcow2", "--disk", "/srv/b,format=raw,storage=local,size=10G",
             "--network", "bridge=br0,mac=52:54:00:AA:BB:CC", "--network", "user", "--kernel", "/boot/k",
             "--initrd", "/boot/i", "--cmdline", "console=ttyS0 panic=-1", "--serial-log", "/var/log/a",
             "--virt-type", "qemu", "--on-guest-shutdown", "restart", "--node", "n1", "--uuid", VM_UUID,
             "--stopped"]  # fmt: skip
    body = _sent(words)
    spec = body.spec
    assert (body.name, body.node, body.uuid, body.desired) == ("a", "n1", VM_UUID, "stopped")
    assert (spec.vcpus, spec.memory_mib, spec.virt_type, spec.on_guest_shutdown) == (
        2,
        2048,
        "qemu",
        "restart",
    )
    first, second = spec.disks
    assert (first.path, first.format, first.storage, first.size_mib) == (
        "/srv/a.qcow2",
        "qcow2",
        "shared",
        None,
    )
    assert (second.path, second.format, second.storage, second.size_mib) == ("/srv/b", "raw", "local", 10240)
    bridge, user = spec.networks
    assert (bridge.kind, bridge.bridge, bridge.mac) == ("bridge", "br0", "52:54:00:aa:bb:cc")
    assert (user.kind, user.bridge) == ("user", None)
    assert (spec.boot.kernel, spec.boot.initrd, spec.boot.cmdline) == (
        "/boot/k",
        "/boot/i",
        "console=ttyS0 panic=-1",
    )
    assert spec.serial_log == "/var/log/a" and spec.xml is None


def test_the_least() -> None:
    body = _sent(BASE)
    assert (body.uuid, body.node, body.desired) == (None, None, "running")
    assert (body.spec.disks, body.spec.networks, body.spec.boot) == ((), (), None)


@pytest.mark.parametrize(
    ("text", "mib"), [("2048", 2048), ("512M", 512), ("2G", 2048), ("1.5GiB", 1536), ("1T", 1048576)]
)
def test_sizes(text: str, mib: int) -> None:
    assert _sent(f"vm create a --vcpus 1 --memory {text}").spec.memory_mib == mib


BAD = [
    ("vm create a/b --vcpus 1 --memory 1G", "name 'a/b': expected text of at most 63 letters, digits"),
    ("vm create -a --vcpus 1 --memory 1G", "unknown option -a"),
    ("vm create a --vcpus 0 --memory 1G", "vcpus 0: expected a whole number >= 1"),
    ("vm create a --vcpus 9999 --memory 1G", "vcpus 9999: expected a whole number <= 1024"),
    ("vm create a --vcpus two --memory 1G", "--vcpus 'two': give a whole number"),
    ("vm create a --vcpus 1 --memory 1K", "--memory '1K': give whole MiB: 2048, 512M, 2G or 1T"),
    ("vm create a --vcpus 1 --memory -5", "--memory '-5'"),
    ("vm create a --vcpus 1 --memory 0.5M", "--memory '0.5M'"),
    ("vm create a --vcpus 1 --memory 8", "memory 8: expected a whole number >= 16"),
    (f"{BASE} --uuid nope", "--uuid 'nope': not a UUID such as"),
    (f"{BASE} --disk a.qcow2", "path 'a.qcow2': expected text that is an absolute path"),
    (f"{BASE} --disk /a,format=vmdk", "format is qcow2 or raw"),
    (f"{BASE} --disk /a,storage=none", "storage is shared or local"),
    (f"{BASE} --disk /a,storage=nfs", "storage is shared or local"),
    (f"{BASE} --disk /a,size=", "'size=' is not one of format=..., storage=..., size=..."),
    (f"{BASE} --disk /a,size=big", "--disk size 'big'"),
    (f"{BASE} --disk /a,size=1G,size=2G", "size is given twice"),
    (f"{BASE} --network br0", "--network 'br0': give bridge=NAME[,mac=MAC] or user"),
    (f"{BASE} --network bridge=", "give bridge=NAME"),
    (f"{BASE} --network bridge=br0,mac=zz", "mac 'zz': expected text that is a MAC address"),
    (
        f"{BASE} --network bridge=much-too-long-a-name",
        "bridge 'much-too-long-a-name': expected text of 1 to 15",
    ),
    (f"{BASE} --cmdline quiet", "go with --kernel"),
    (f"{BASE} --kernel k", "kernel 'k': expected text that is an absolute path"),
    (f"{BASE} --virt-type xen", "--virt-type 'xen': allowed are auto, kvm, qemu"),
    (f"{BASE} --on-guest-shutdown explode", "allowed are stop, restart"),
    (f"{BASE} --node n/1", "node 'n/1'"),
    (f"{BASE} --storage local", "do not go together"),
    ("vm create a --xml /nowhere/a.xml", "--xml /nowhere/a.xml: No such file or directory"),
    ("vm create a --xml /", "--xml /: Is a directory"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_bad_values_are_named_and_nothing_is_sent(line: str, said: str) -> None:
    ran = _create(line)
    assert ran.code == 2 and not ran.out and not ran.sent
    assert ran.err.startswith("chime-tool: ") and ran.err.count("\n") == 1
    assert said in ran.err, ran.err


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    path = tmp_path / "a.xml"
    path.write_text(XML)
    return path


def test_a_domain_gives_uuid_cpus_memory_and_disks(xml: Path) -> None:
    ran = _create(f"vm create a --xml {xml}")
    assert ran.code == 0
    body = ran.sent[-1]
    assert (body.uuid, body.spec.vcpus, body.spec.memory_mib, body.spec.xml) == (VM_UUID, 4, 2048, XML)
    assert [(disk.path, disk.format, disk.storage) for disk in body.spec.disks] == [
        ("/srv/a.qcow2", "qcow2", "local"), ("/dev/vg/b", "raw", "local")]  # fmt: skip
    assert "count as local to the node" in ran.err and "not old as in the XML" in ran.err


def test_its_disks_are_shared_when_said_so(xml: Path) -> None:
    ran = _create(f"vm create old --xml {xml} --storage shared")
    assert {disk.storage for disk in ran.sent[-1].spec.disks} == {"shared"}
    assert ran.err == ""


def test_its_uuid_must_be_the_one_given(xml: Path) -> None:
    other = VM_UUID.replace("6f", "7f", 1)
    ran = _create(f"vm create a --xml {xml} --storage shared --uuid {other}")
    assert (
        ran.code == 2 and f"--uuid {other}: the XML names another UUID, {VM_UUID}" in ran.err and not ran.sent
    )
    assert _sent(f"vm create a --xml {xml} --uuid {VM_UUID.upper()}").uuid == VM_UUID


@pytest.mark.parametrize("option", ["--kernel=/k", "--cmdline=x", "--serial-log=/l"])
def test_options_that_the_xml_holds_itself_are_refused(xml: Path, option: str) -> None:
    ran = _create(f"vm create a --xml {xml} {option}")
    assert ran.code == 2 and "does not go with --xml" in ran.err


BAD_XML = [
    ("<domain>\n<vcpu>1\n</domain>", "line 3: not well formed: mismatched tag"),
    ("", "line 1: not well formed: no element found"),
    ("<network/>", "the root is <network>, needed is <domain>"),
    ('<!DOCTYPE d [<!ENTITY a "b">]>\n<domain/>', "line 1: a DOCTYPE or ENTITY is not accepted"),
    ("<domain/>", "<memory> is needed"),
    ("<domain><memory>x</memory></domain>", "<memory> is needed, a whole number"),
    ("<domain><memory unit='parsec'>1</memory></domain>", "<memory unit='parsec'>"),
    ("<domain><memory>99</memory></domain>", "memory 1: expected a whole number >= 16"),
    ("<domain><memory unit='G'>1</memory><vcpu>x</vcpu></domain>", "<vcpu> 'x' is not a whole number"),
    ("<domain><memory unit='G'>1</memory><uuid>x</uuid></domain>", "<uuid> 'x' is not a UUID"),
    ("<domain><memory unit='G'>1</memory><uuid/></domain>", "<uuid> is empty: leave it out"),
    ("<domain><memory unit='G'>1</memory><uuid> \n</uuid></domain>", "<uuid> is empty: leave it out"),
    ("<domain><memory unit='G'>1</memory><devices><disk type='dir'><source dir='/x'/></disk></devices>"
     "</domain>",
     "<disk type='dir'>: known are file, block and network"),
    ("<domain><memory unit='G'>1</memory><devices><disk><driver type='vmdk'/><source file='/x'/></disk>"
     "</devices></domain>", "disk /x has format 'vmdk'"),
    ("<domain><memory unit='G'>1</memory><devices><disk><source file='x'/></disk></devices></domain>",
     "path 'x': expected text that is an absolute path"),
    ("<domain>" + " " * 262_144 + "</domain>", "longer than 262144 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD_XML)
def test_bad_xml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.xml"
    path.write_text(text)
    ran = _create(f"vm create a --storage shared --xml {path}")
    assert ran.code == 2 and ran.err.count("\n") == 1 and said in ran.err, ran.err
    assert not ran.sent


def test_xml_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.xml"
    path.write_bytes(b"<domain>\xff\xfe</domain>")
    assert "it is not UTF-8 text" in _create(f"vm create a --xml {path}").err


def test_h5_what_reaches_beyond_the_vm_is_sent_as_allowed_only_with_the_flag() -> None:
    plain = "vm create a --vcpus 1 --memory 1G"
    assert not _sent(plain).allow_unsafe and _sent(f"{plain} --allow-unsafe").allow_unsafe
