"""Facts of the host itself: who it is and how loaded. What is wrong with it is found by `checks`."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil

from wire.messages import HostFacts, Load

MIB = 1024 * 1024
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Seconds since the host booted, suspend included: the clock of every duration."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The id of this boot of the host."""
    return BOOT_ID.read_text().strip().lower()


def host_facts(kvm: bool, hypervisor: str, agent_version: str) -> HostFacts:
    """What the host is; the caller knows hypervisor and agent."""
    return HostFacts(
        hostname=socket.gethostname(),
        vcpus=psutil.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // MIB,
        kvm=kvm,
        hypervisor=hypervisor,
        agent_version=agent_version,
    )


def load(vms_running: int) -> Load:
    """Load now. CPU: the mean since the last call (0 at the first); returns at once."""
    return Load(
        cpu_percent=round(psutil.cpu_percent(interval=None), 1),
        memory_available_mib=psutil.virtual_memory().available // MIB,
        vms_running=vms_running,
    )
