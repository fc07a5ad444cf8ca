"""From SIGKILL of a qemu to a new one: with Chime, and with libvirt's own event and `create()`.

Both in hosts of the same kind (an init that reaps at once), with the same definition, killed in turns. The end is the
same for both: an observer outside sees a new live qemu with that UUID in the process table. The agent's restart budget
and pause are set for twenty crashes in a row; with the defaults the first restart is as immediate, later ones wait.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

from agentd.libvirt import domain_xml
from tests.bench.agents import VM_MEMORY_MIB, cluster_of_one, create_vm
from tests.bench.figures import Figure, Runs
from tests.bench.processes import command
from tests.hosts import Cluster, wait_until
from wire import messages as m
from wire.types import Desired, VirtType

KILLS = 20
RATIO = 1.3
PAUSE_S = 0.7  # the last start is over, and what follows it
START_S = 30.0


def measure(directory: Path) -> list[Figure]:
    """The ratio of the medians."""
    settings = {"restart_budget": 1000, "restart_backoff_s": 0.01, "restart_backoff_max_s": 0.02}
    with cluster_of_one(directory, ("n1", "n2"), **settings) as (cluster, client):
        ours = create_vm(client, "vm")
        bare = str(uuid.uuid4())
        xml = cluster["n2"].dir / "vm.xml"
        xml.write_text(_definition(bare))
        run = command("tests.bench.bare_restart", cluster["n2"].hyp_uri, str(xml))
        cluster["n2"].service("libvirt", run).start()
        for vm in (ours, bare):
            wait_until(lambda vm=vm: vm in cluster.processes(), START_S, f"{vm} runs")
        return _compare(cluster, {"chime": ours, "libvirt": bare})


def _definition(vm: str) -> str:
    spec = m.VmSpec(vcpus=1, memory_mib=VM_MEMORY_MIB, virt_type=VirtType.QEMU)
    assignment = m.Assignment(
        uuid=vm, name="vm", epoch=1, revision=1, desired=Desired.RUNNING, start_serial=1, graceful_s=60.0, spec=spec
    )
    return domain_xml.build(assignment, VirtType.QEMU)


def _compare(cluster: Cluster, both: dict[str, str]) -> list[Figure]:
    seconds = {who: Runs() for who in both}
    for kill in range(-1, KILLS):
        for who in sorted(both, reverse=bool(kill % 2)):
            time.sleep(PAUSE_S)
            took = _crash(cluster, both[who])
            if kill >= 0:  # the first warms up
                seconds[who].values.append(took)
    detail = {
        "kills_each": KILLS,
        "end": "a new live qemu of the UUID in the process table, seen from outside",
        "seconds": {who: runs.rounded() for who, runs in seconds.items()},
        "median_s": {who: round(runs.median, 4) for who, runs in seconds.items()},
    }
    ratio = seconds["chime"].median / seconds["libvirt"].median
    return [Figure("crash to running, against libvirt's event + create()", ratio, "x", "<=", RATIO, detail)]


def _crash(cluster: Cluster, vm: str) -> float:
    (old,) = cluster.processes()[vm]
    began = time.perf_counter()
    os.kill(old.pid, signal.SIGKILL)
    while not any(seen.pid != old.pid for seen in cluster.processes().get(vm, [])):
        if time.perf_counter() - began > START_S:
            raise RuntimeError(f"{vm} was not started again within {START_S:g} s")
    return time.perf_counter() - began
