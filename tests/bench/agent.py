"""What an agentd with twenty VMs costs at the default timings: memory, and CPU while nothing happens.

The memory is all that is resident in the process, shared pages and the embedded libvirt included. The VMs are
stopped by SIGSTOP once they run, or twenty emulated firmwares would take the machine; an agent asks no qemu
anything while all is well.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.bench.agents import cluster_of_one, create_vm
from tests.bench.figures import Figure
from tests.bench.processes import cpu_s, memory_mib
from tests.hosts import wait_until

VMS = 20
SETTLE_S = 5.0
SECONDS = 65.0  # an audit and four heartbeats
RSS_MIB, CPU_PERCENT = 80.0, 1.0


def measure(directory: Path) -> list[Figure]:
    """Memory and CPU."""
    with cluster_of_one(directory, ("n1",)) as (cluster, client):
        for number in range(VMS):
            create_vm(client, f"vm{number}")
        wait_until(lambda: len(cluster.processes()) == VMS, 120.0, f"{VMS} VMs run", 0.2)
        time.sleep(SETTLE_S)
        for group in cluster.processes().values():
            os.kill(group[0].pid, signal.SIGSTOP)
        pid = cluster["n1"].service("agentd").pid
        assert pid is not None
        before, began = cpu_s(pid), time.monotonic()
        time.sleep(SECONDS)
        share = 100.0 * (cpu_s(pid) - before) / (time.monotonic() - began)
        if len(cluster.processes()) != VMS:
            raise RuntimeError("the VMs did not stay")
        memory = memory_mib(pid)
        threads = len(os.listdir(f"/proc/{pid}/task"))
    detail = {"vms": VMS, "seconds": SECONDS, "threads": threads}
    return [
        Figure("agentd, 20 VMs, resident memory", memory["rss"], "MiB", "<=", RSS_MIB, {**detail, "mib": memory}),
        Figure("agentd, 20 VMs, CPU of one core", share, "%", "<=", CPU_PERCENT, detail),
    ]
