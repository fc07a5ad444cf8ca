"""Facts of the host itself: who it is and how loaded. What is wrong with it is found by `checks`."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil

from wire.addresses import problem
from wire.messages import HostFacts, HostNetwork, Load

MIB = 1024 * 1024
MAX_NETWORKS = 256


def boottime() -> float:
    """Seconds since the host booted, suspend included: the clock of every duration."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_facts(kvm: bool, hypervisor: str, agent_version: str, business_interface: str) -> HostFacts:
    """What the host is; the caller knows hypervisor, agent, and by which network its VMs are reached."""
    return HostFacts(
        hostname=socket.gethostname(),
        vcpus=psutil.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // MIB,
        kvm=kvm,
        hypervisor=hypervisor,
        agent_version=agent_version,
        networks=networks(psutil.net_if_addrs()),
        business_interface=business_interface,
    )


def networks(addresses: Mapping[str, list[Any]]) -> tuple[HostNetwork, ...]:
    """The host's addresses, as psutil gives them, by which others may reach it; the first 256."""
    found: list[HostNetwork] = []
    for interface in sorted(addresses):
        for entry in addresses[interface]:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.netmask:
                found += _network(interface, entry.address, entry.netmask)
    return tuple(found[:MAX_NETWORKS])


def _network(interface: str, address: str, netmask: str) -> list[HostNetwork]:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_loopback or ip.is_link_local or problem(str(ip)):
        return []
    prefix = int(ipaddress.ip_address(netmask)).bit_count()
    return [HostNetwork(interface=interface, address=str(ip), prefix=prefix)]


def load(vms_running: int) -> Load:
    """Load now. CPU: the mean since the last call (0 at the first); returns at once."""
    return Load(
        cpu_percent=round(psutil.cpu_percent(interval=None), 1),
        memory_available_mib=psutil.virtual_memory().available // MIB,
        vms_running=vms_running,
    )
