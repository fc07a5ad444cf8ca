"""Domain XML: what is built, what is kept and what is refused of an operator's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from agentd.hypervisor import InvalidVm
from agentd.libvirt import domain_xml
from wire.messages import Assignment, Boot, Disk, Network, VmSpec
from wire.types import Desired, DiskFormat, NetworkKind, VirtType

UUID = "11111111-2222-4333-8444-555555555555"
OURS = f"metadata/{{{domain_xml.NAMESPACE}}}vm"


def vm(**spec: Any) -> Assignment:
    return Assignment(
        uuid=UUID,
        name="web",
        epoch=3,
        revision=17,
        desired=Desired.RUNNING,
        start_serial=1,
        graceful_s=60.0,
        spec=VmSpec(**{"vcpus": 2, "memory_mib": 64, **spec}),
    )


def built(**spec: Any) -> ET.Element:
    return ET.fromstring(domain_xml.build(vm(**spec), VirtType.QEMU))


def texts(domain: ET.Element, *tags: str) -> list[str | None]:
    return [domain.findtext(tag) for tag in tags]


def test_plain_vm() -> None:
    domain = built()
    assert domain.get("type") == "qemu"
    assert texts(domain, "name", "uuid", "memory", "vcpu") == ["web", UUID, "64", "2"]
    assert texts(domain, "on_poweroff", "on_reboot", "on_crash") == ["destroy", "restart", "destroy"]
    stamp = domain.find(OURS)
    assert stamp is not None and stamp.attrib == {"epoch": "3", "revision": "17"}
    assert domain.find("features/acpi") is not None
    assert domain.find("devices/graphics") is None
    assert domain.find("devices/serial[@type='pty']") is not None


def test_type_of_the_vm_wins_over_the_nodes() -> None:
    assert built(virt_type=VirtType.KVM).get("type") == "kvm"


def test_disks_networks_boot_and_serial() -> None:
    domain = built(
        disks=(Disk(path="/d/a&b.qcow2"), Disk(path="/d/b", format=DiskFormat.RAW)),
        networks=(Network(kind=NetworkKind.BRIDGE, bridge="br0", mac="52:54:00:00:00:01"),),
        boot=Boot(kernel="/k", initrd="/i", cmdline='console=ttyS0 x="<&>"'),
        serial_log="/var/log/web.log",
    )
    assert [target.get("dev") for target in domain.iter("target")][:2] == ["vda", "vdb"]
    assert [driver.get("type") for driver in domain.iter("driver")] == ["qcow2", "raw"]
    assert domain.find("devices/interface[@type='bridge']/source[@bridge='br0']") is not None
    assert texts(domain, "os/kernel", "os/initrd", "os/cmdline") == ["/k", "/i", 'console=ttyS0 x="<&>"']
    assert domain.find("devices/serial/source[@path='/var/log/web.log'][@append='on']") is not None
    xml = ET.tostring(domain, encoding="unicode")
    assert domain_xml.disks_of(xml) == ["/d/a&b.qcow2", "/d/b"]
    assert domain_xml.boot_files_of(xml) == ["/k", "/i"]


def test_many_disks_have_different_targets() -> None:
    domain = built(disks=tuple(Disk(path=f"/d/{i}") for i in range(30)))
    names = [target.get("dev") for target in domain.findall("devices/disk/target")]
    assert len(set(names)) == 30 and names[25:28] == ["vdz", "vdaa", "vdab"]


def test_cards_without_mac_get_a_lasting_one_each() -> None:
    spec: dict[str, Any] = {"networks": (Network(kind=NetworkKind.USER),) * 2}
    first, again = ([mac.get("address") for mac in built(**spec).iter("mac")] for _ in range(2))
    assert first == again and len(set(first)) == 2
    assert all(address is not None and address.startswith("52:54:") for address in first)


def test_bridge_without_name_is_refused() -> None:
    with pytest.raises(InvalidVm, match="bridge"):
        built(networks=(Network(kind=NetworkKind.BRIDGE),))


USER_XML = f"""<domain type='kvm' id='4' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>old</name><uuid>{UUID.upper()}</uuid><title>kept</title><on_crash>restart</on_crash><memory>1</memory>
  <metadata><x:app xmlns:x='urn:x' v='1'/><c:vm xmlns:c='urn:chime:vm:1' epoch='9' revision='9'/></metadata>
  <devices><interface type='user'/><disk type='block'><source dev='/dev/v'/><target dev='vda'/></disk>
  <disk device='cdrom'><target dev='sda'/></disk>
  <disk device='cdrom'><source file='/opt.iso' startupPolicy='optional'/><target dev='sdb'/></disk></devices>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"""


def test_operators_xml_is_kept_but_for_what_chime_owns() -> None:
    domain = built(xml=USER_XML)
    assert domain.get("type") == "kvm" and domain.get("id") is None
    assert texts(domain, "name", "uuid", "title", "memory") == ["web", UUID, "kept", "1"]
    assert [element.text for element in domain.findall("on_crash")] == ["destroy"]
    assert [stamp.get("epoch") for stamp in domain.findall(OURS)] == ["3"]
    assert domain.find("metadata/{urn:x}app[@v='1']") is not None
    assert domain.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None
    assert domain_xml.disks_of(USER_XML) == ["/dev/v"]
    assert domain.find("devices/interface/mac") is not None


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<domain><uuid>22222222-2222-4333-8444-555555555555</uuid></domain>", "another VM"),
        ("<domain><uuid>junk</uuid></domain>", "another VM"),
        ("<domain>", "malformed"),
        ("no XML", "malformed"),
        ("<network/>", "root"),
        ("<!DOCTYPE domain><domain/>", "document type"),
        ('<!DOCTYPE d [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><domain><a>&b;</a></domain>', "document type"),
        ('<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>', "document type"),
        ("<domain><name>&none;</name></domain>", "malformed"),
        ("<domain>" + "<a>" * 20000 + "</a>" * 20000 + "</domain>", "nested"),
    ],
)
def test_refused_xml(xml: str, words: str) -> None:
    with pytest.raises(InvalidVm, match=words):
        built(xml=xml)


def test_metadata_is_read_back() -> None:
    assert domain_xml.read_metadata(domain_xml.metadata_element(vm())) == domain_xml.stamp_of(vm())
    adopted = domain_xml.metadata_element(vm(), adopted=True)
    assert domain_xml.read_metadata(adopted) == domain_xml.stamp_of(vm(), adopted=True)
    assert domain_xml.read_metadata("<vm epoch='x'/>") is None
    assert domain_xml.read_metadata("junk") is None
