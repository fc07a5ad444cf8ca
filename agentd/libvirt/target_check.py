"""Whether VMs can be migrated to a target over a given interface, found out before anything begins.

Rules: nothing is changed, here or there (a folder of the target is read by a storage pool that is given up at once).
What is against it is a problem; what could not be found out is a note, never taken for good or bad in silence.
"""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil

from agentd.hypervisor import HypervisorError
from agentd.libvirt import domain_xml, storage
from agentd.libvirt.connection import libvirt, one_line
from agentd.libvirt.target import Settings, opened, probe, uri_of

KIB_PER_MIB = 1024
MIB = 1024 * 1024


class Findings(NamedTuple):
    """Problems, each with what to do where there is something; notes on what was not checked. `reached`: the target's
    libvirt has answered, or was not asked."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reached: bool = True


class Needs(NamedTuple):
    """What a VM asks of the target. `xml`: as it would be migrated."""

    uuid: str
    name: str
    memory_mib: int
    xml: str


class Here(NamedTuple):
    """This node: libvirt's capabilities, and the VMs that shall leave."""

    capabilities: str
    vms: list[Needs]


def needs(domain: Any) -> Needs:
    """What a domain asks of the target. Raises libvirtError."""
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
    return Needs(domain.UUIDString(), domain.name(), domain.info()[1] // KIB_PER_MIB, xml)


# --- the way ----------------------------------------------------------------------------------------------------------


def interface_address(interface: str, like: str) -> str:
    """The first address of an interface of this node, of the kind (IPv4, IPv6) of `like`. Raises HypervisorError."""
    family = socket.AF_INET6 if ":" in like else socket.AF_INET
    addresses = psutil.net_if_addrs().get(interface)
    if addresses is None:
        raise HypervisorError(f"this node has no interface {interface}: it has {', '.join(psutil.net_if_addrs())}")
    found = [entry.address for entry in addresses if entry.family == family]
    if not found:
        raise HypervisorError(f"interface {interface} has no {'IPv6' if ':' in like else 'IPv4'} address")
    return found[0]


def owner_of(address: str) -> str:
    """The interface of this node that has the address, or an empty text."""
    bare = address.partition("%")[0]
    for interface, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == bare for entry in entries):
            return interface
    return ""


def way_to(address: str) -> str:
    """The interface by which this node reaches an address, as the kernel would send. Raises HypervisorError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((address, 9))  # sends nothing: it only looks up the route
        except OSError as error:
            raise HypervisorError(f"no route leads to {address}: {error.strerror or error}") from None
        return owner_of(asking.getsockname()[0])


def check_way(address: str, interface: str) -> None:
    """Whether data for `address` leaves by `interface`. Raises HypervisorError that says what to do."""
    interface_address(interface, address)
    if owner_of(address):
        raise HypervisorError(f"{address} is an address of this node itself")
    other = way_to(address)
    if other != interface:
        help_text = f"add a route (ip route add {address} dev {interface}) or give the target's address in that network"
        way = other or "another interface"
        raise HypervisorError(f"data for {address} would leave by {way}, not {interface}: {help_text}")


# --- the target -------------------------------------------------------------------------------------------------------


def check(here: Here, settings: Settings, address: str, interface: str, local_disks: bool) -> Findings:
    """Everything, as far as it can be reached. Never raises for what the target is or says."""
    try:
        check_way(address, interface)
    except HypervisorError as problem:
        return Findings((str(problem),))
    try:
        probe(uri_of(settings.uri, address), address, interface)
        with opened(settings.uri, address) as conn:
            if _host_uuid(conn.getCapabilities()) == _host_uuid(here.capabilities):
                text = f"{address} is this node itself, or has the same host UUID (host_uuid in libvirtd.conf)"
                return Findings((text,))
            return _check_host(conn, here, settings, address, local_disks)
    except HypervisorError as problem:
        return Findings((str(problem),), reached=False)
    except libvirt.libvirtError as error:
        return Findings((f"libvirt on {address}: {one_line(error)}",), reached=False)


def _check_host(conn: Any, here: Here, settings: Settings, address: str, local_disks: bool) -> Findings:
    problems: list[str] = []
    notes: list[str] = []
    checks = (
        _room(conn, here, address),
        _there_already(conn, here, address),
        _processors(conn, here, address),
        _disks(conn, here, settings, address, local_disks),
    )
    for found in checks:
        try:
            problems.extend(found)
        except libvirt.libvirtError as error:
            notes.append(f"not checked: {one_line(error)}")
        except HypervisorError as problem:
            problems.append(str(problem))
    notes += [
        f"not checked: whether {address} has block device {path} of {vm.name}"
        for vm in here.vms
        for path in domain_xml.block_devices_of(vm.xml)
    ]
    return Findings(tuple(problems), tuple(notes))


def _host_uuid(capabilities: str) -> str | None:
    return ET.fromstring(capabilities).findtext("./host/uuid")


def _room(conn: Any, here: Here, address: str) -> Iterator[str]:
    memory = conn.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    free_mib = sum(memory.get(part, 0) for part in ("free", "buffers", "cached")) // KIB_PER_MIB
    needed_mib = sum(vm.memory_mib for vm in here.vms)
    if needed_mib > free_mib:
        yield f"{address} has {free_mib} MiB of memory free, and the VMs need {needed_mib} MiB"


def _there_already(conn: Any, here: Here, address: str) -> Iterator[str]:
    domains = {domain.UUIDString(): domain for domain in conn.listAllDomains(0)}
    names = {domain.name(): uuid for uuid, domain in domains.items()}
    for vm in here.vms:
        if vm.uuid in domains and domains[vm.uuid].isActive():
            yield f"{vm.name} is active on {address} already"
        elif names.get(vm.name, vm.uuid) != vm.uuid:
            yield f"{address} has another domain with the name {vm.name}"


def _processors(conn: Any, here: Here, address: str) -> Iterator[str]:
    """A guest of KVM needs a target with its CPU; qemu's own emulation runs everywhere."""
    for vm in here.vms:
        domain = ET.fromstring(vm.xml)
        cpu = domain.find("cpu")
        if domain.get("type") != "kvm" or cpu is None:
            continue
        if cpu.get("mode") in ("host-passthrough", "maximum"):
            host_cpu = ET.fromstring(here.capabilities).find("./host/cpu")
            result = -1 if host_cpu is None else conn.compareCPU(ET.tostring(host_cpu, encoding="unicode"), 0)
        else:
            text = ET.tostring(cpu, encoding="unicode")
            result = conn.compareHypervisorCPU(None, None, None, "kvm", text, 0)
        if result in (libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, libvirt.VIR_CPU_COMPARE_ERROR):
            yield f"the CPU of {address} does not offer what {vm.name} runs on"


def _disks(conn: Any, here: Here, settings: Settings, address: str, local_disks: bool) -> Iterator[str]:
    for vm in here.vms:
        local = {disk.path for disk in storage.local_disks(vm.xml, settings.shared_paths)}
        if local and not local_disks:
            yield f"disk {min(local)} of {vm.name} is only on this node: copy it, or see shared_paths"
        needed = {*domain_xml.disks_of(vm.xml), *domain_xml.boot_files_of(vm.xml)}
        needed -= {*local, *domain_xml.block_devices_of(vm.xml)}
        for path in storage.missing(conn, address, needed):
            yield f"{path} of {vm.name} does not exist on {address}"
