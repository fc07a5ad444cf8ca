"""The libvirt domain XML of a VM: pure, an assignment in, text out.

Rules:
- Built and read as a tree, never by joining strings.
- Chime owns UUID, name, its own metadata element and the power actions, also when the VM was given as XML;
  all else of such XML keeps its meaning.
- The same assignment gives the same XML on every node: a network card without a MAC gets one derived from the
  VM, since libvirt would invent another at each definition.
- `on_crash` and `on_poweroff` are `destroy`: libvirt never starts a VM again by itself; only the
  agent's guard may.
"""

from __future__ import annotations

import hashlib
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import NamedTuple

from agentd.hypervisor import InvalidVm
from wire import reach, seals
from wire.messages import Assignment, Boot, Disk, Network
from wire.types import NetworkKind, VirtType

NAMESPACE = "urn:chime:vm:1"
POWER_ACTIONS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}

_OURS = f"{{{NAMESPACE}}}vm"
ET.register_namespace("chime", NAMESPACE)
ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")


class Stamp(NamedTuple):
    """What Chime's metadata says of a domain. `attempt`, `origin`: it is the copy that this attempt to migrate the VM
    has made, from that node, with a `voucher` for the target at `address`; a definition by Chime has none, but the
    `seal` of its assignment. `adopted`: the rest of its definition is its maker's."""

    epoch: int
    revision: int
    attempt: str = ""
    origin: str = ""
    adopted: bool = False
    seal: str = ""
    voucher: str = ""
    address: str = ""

    def copied(self, attempt: str, origin: str, address: str) -> Stamp:
        """What the copy says that is sent to `address`: never the seal itself, which is the owner's alone."""
        voucher = seals.voucher(self.seal, attempt, address) if self.seal else ""
        return self._replace(attempt=attempt, origin=origin, seal="", voucher=voucher, address=address)

    def attributes(self) -> dict[str, str]:
        """As the element has them."""
        named = {
            "epoch": str(self.epoch), "revision": str(self.revision), "attempt": self.attempt, "from": self.origin,
            "adopted": "yes" if self.adopted else "", "seal": self.seal, "voucher": self.voucher, "to": self.address,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value}


# --- building ---------------------------------------------------------------------------------------------


def build(vm: Assignment, virt_type: VirtType) -> str:
    """Domain XML of `vm`. `virt_type` (kvm or qemu) is used where the VM leaves it open. Raises InvalidVm."""
    domain = _from_user_xml(vm) if vm.spec.xml is not None else _from_spec(vm, virt_type)
    _number_cards(domain, vm.uuid)
    return ET.tostring(domain, encoding="unicode")


def stamp_of(vm: Assignment, adopted: bool = False) -> Stamp:
    """What the metadata says of a domain that is defined, or taken over, by this assignment."""
    return Stamp(vm.epoch, vm.revision, adopted=adopted, seal=vm.seal)


def metadata_element(vm: Assignment, adopted: bool = False) -> str:
    """Our metadata element without its namespace, as `setMetadata` wants it."""
    return ET.tostring(ET.Element("vm", stamp_of(vm, adopted).attributes()), encoding="unicode")


def marked(xml: str, attempt: str, origin: str, address: str) -> str:
    """The XML of a domain that libvirt gave, with a mark in our metadata: what its copy on the target at `address` is
    to be. Raises InvalidVm if it has no metadata of ours."""
    domain = parse(xml)
    ours = domain.find(f"./metadata/{_OURS}")
    if ours is None:
        raise InvalidVm("the domain has no metadata of Chime: it cannot be migrated by Chime")
    stamp = _read(ours)
    if stamp is None:
        raise InvalidVm("the domain's metadata of Chime names no epoch: it cannot be migrated by Chime")
    ours.attrib.clear()
    ours.attrib.update(stamp.copied(attempt, origin, address).attributes())
    return ET.tostring(domain, encoding="unicode")


def read_metadata(text: str) -> Stamp | None:
    """What our metadata element says; None if it has no epoch or revision."""
    try:
        return _read(ET.fromstring(text))
    except ET.ParseError:
        return None


def _read(element: ET.Element) -> Stamp | None:
    def said(name: str) -> str:
        return element.get(name, "")

    try:
        numbers = int(said("epoch")), int(said("revision"))
    except ValueError:
        return None
    adopted = said("adopted") == "yes"
    return Stamp(*numbers, said("attempt"), said("from"), adopted, said("seal"), said("voucher"), said("to"))


def _from_spec(vm: Assignment, virt_type: VirtType) -> ET.Element:
    spec = vm.spec
    kind = virt_type if spec.virt_type == VirtType.AUTO else spec.virt_type
    domain = ET.Element("domain", type=kind.value)
    _text(domain, "name", vm.name)
    _text(domain, "uuid", vm.uuid)
    _stamp(ET.SubElement(domain, "metadata"), vm)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    _add_os(domain, spec.boot)
    features = ET.SubElement(domain, "features")  # without ACPI a guest cannot be asked to power off
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if kind == VirtType.KVM:
        ET.SubElement(domain, "cpu", mode="host-model")
    ET.SubElement(domain, "clock", offset="utc")
    for tag, action in POWER_ACTIONS.items():
        _text(domain, tag, action)
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(spec.disks):
        _add_disk(devices, disk, _disk_name(index))
    for network in spec.networks:
        _add_network(devices, network)
    _add_serial(devices, spec.serial_log)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="virtio")
    return domain


def _add_os(domain: ET.Element, boot: Boot | None) -> None:
    """The machine is left to libvirt: its default for the host's architecture boots on all of them."""
    os_element = ET.SubElement(domain, "os")
    _text(os_element, "type", "hvm")
    if boot is None:
        ET.SubElement(os_element, "boot", dev="hd")
        return
    _text(os_element, "kernel", boot.kernel)
    if boot.initrd is not None:
        _text(os_element, "initrd", boot.initrd)
    if boot.cmdline:
        _text(os_element, "cmdline", boot.cmdline)


def _add_disk(devices: ET.Element, disk: Disk, target: str) -> None:
    """`error_policy` stop: an I/O error pauses the VM; libvirt's default hands it to the guest."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=disk.format.value, error_policy="stop")
    ET.SubElement(element, "source", file=disk.path)
    ET.SubElement(element, "target", dev=target, bus="virtio")


def _disk_name(index: int) -> str:
    """vda ... vdz, vdaa ..."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return "vd" + letters


def _add_network(devices: ET.Element, network: Network) -> None:
    element = ET.SubElement(devices, "interface", type=network.kind.value)
    if network.mac is not None:
        ET.SubElement(element, "mac", address=network.mac)
    if network.kind == NetworkKind.BRIDGE:
        if network.bridge is None:
            raise InvalidVm("a network of kind bridge needs the name of its bridge")
        ET.SubElement(element, "source", bridge=network.bridge)
    ET.SubElement(element, "model", type="virtio")


def _add_serial(devices: ET.Element, log: str | None) -> None:
    serial = ET.SubElement(devices, "serial", type="pty" if log is None else "file")
    if log is not None:
        ET.SubElement(serial, "source", path=log, append="on")
    ET.SubElement(serial, "target", port="0")


def _number_cards(domain: ET.Element, vm_uuid: str) -> None:
    for index, card in enumerate(domain.findall("./devices/interface")):
        if card.find("mac") is None:
            digest = hashlib.sha256(f"{vm_uuid}/{index}".encode()).digest()
            octets = bytes((0x52, 0x54)) + digest[:4]  # 0x52: locally administered, unicast
            ET.SubElement(card, "mac", address=":".join(f"{octet:02x}" for octet in octets))


def _stamp(metadata: ET.Element, vm: Assignment) -> None:
    ET.SubElement(metadata, _OURS, stamp_of(vm).attributes())


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


# --- XML of the operator ----------------------------------------------------------------------------------


def parse(text: str) -> ET.Element:
    """The `<domain>` element of operator's XML. Raises InvalidVm."""
    try:
        return reach.parse(text)
    except ValueError as problem:
        raise InvalidVm(str(problem)) from None


def _from_user_xml(vm: Assignment) -> ET.Element:
    assert vm.spec.xml is not None
    domain = parse(vm.spec.xml)
    for element in domain.findall("uuid"):
        if not _same_uuid(element.text or "", vm.uuid):
            raise InvalidVm(f"the domain XML is of another VM: its UUID is {element.text}, not {vm.uuid}")
    owned = {"name": vm.name, "uuid": vm.uuid, **POWER_ACTIONS}
    for element in [child for child in domain if child.tag in owned]:
        domain.remove(element)
    domain.attrib.pop("id", None)
    for position, (tag, value) in enumerate(owned.items()):
        element = ET.Element(tag)
        element.text = value
        domain.insert(position, element)
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(domain, "metadata")
    for old in metadata.findall(_OURS):
        metadata.remove(old)
    _stamp(metadata, vm)
    return domain


def _same_uuid(text: str, vm_uuid: str) -> bool:
    try:
        return str(uuids.UUID(text.strip())) == vm_uuid
    except ValueError:
        return False


# --- reading ----------------------------------------------------------------------------------------------


def disks_of(xml: str) -> list[str]:
    """Paths of the disk images and block devices that a domain needs to start, in the order of the XML."""
    return list(_disk_paths(parse(xml)))


class FileDisk(NamedTuple):
    """An image file that a domain writes to. `target`: its name in the domain (vda)."""

    path: str
    target: str


def file_disks_of(xml: str) -> list[FileDisk]:
    """The image files that a domain writes to, shared between VMs or not."""
    found = []
    for disk in parse(xml).findall("./devices/disk[@type='file']"):
        source, target = disk.find("source"), disk.find("target")
        path = None if source is None else source.get("file")
        if path and target is not None and disk.find("readonly") is None:
            found.append(FileDisk(path, target.get("dev", "")))
    return found


def block_devices_of(xml: str) -> list[str]:
    """Paths of the block devices that a domain uses."""
    return [path for source in parse(xml).findall("./devices/disk/source") if (path := source.get("dev"))]


def boot_files_of(xml: str) -> list[str]:
    """Paths of kernel and initrd of a domain with direct kernel boot."""
    found = (parse(xml).findtext(f"./os/{tag}") for tag in ("kernel", "initrd"))
    return [path.strip() for path in found if path and path.strip()]


def _disk_paths(domain: ET.Element) -> Iterator[str]:
    for disk in domain.findall("./devices/disk"):
        source = disk.find("source")
        if source is None or source.get("startupPolicy") == "optional":
            continue  # an empty drive, or a medium that libvirt drops when it is not there
        path = source.get("file") or source.get("dev")
        if path:
            yield path
