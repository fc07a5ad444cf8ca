"""Recovery on the lab's hosts (real systemd, libvirtd, counting guests), with every setting of Chime at its default.

- From SIGKILL of a qemu to the next one of that UUID in the machine's process table, with the same VM on three hosts of
  the same kind, in turns: Chime; libvirt's own event and `create()`, the least that anything can take; Pacemaker's
  VirtualDomain. The kills are spread evenly over Pacemaker's monitor interval, or its time would be a matter of luck.
- From a host's loss of power to `unreachable`, spread in the same way over the heartbeat interval.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import agentd.config
import chimed.config
from agentd.libvirt import domain_xml
from tests.bench import bare_restart, pacemaker
from tests.bench.figures import Figure, Runs
from tests.hosts import oracle, wait_until
from tests.lab.lab import Lab
from tests.lab.layers import SHARED
from tests.operator import AGENT_CONFIG, SERVER_CONFIG
from wire import messages as m
from wire.types import Desired, VirtType

CHIME, LIBVIRT, PACEMAKER = HOSTS = ("chime", "libvirt", "pacemaker")
PYTHON = "/opt/chime/bin/python"  # of Chime's installation: it has libvirt's bindings
ROUNDS = 5  # kills of Pacemaker's VM
KILLS = 15  # of the others: some take 0.2 s less, with libvirt alone too, so that a median is of either kind
POWER_LOSSES = 3
RATIO, UNREACHABLE_S = 1.3, 60.0
SETTLE_S = 1.5  # the last start is over, and what follows it
RECOVER_S = 90.0
NORMAL_S = 120.0
POLL_S = 0.002
LOOK_S = 0.02


def measure(_directory: Path) -> list[Figure]:
    """Both. Nothing may ever have run twice."""
    server, node = _defaults(chimed.config.Config(), SERVER_CONFIG), _defaults(agentd.config.Config(), AGENT_CONFIG)
    with Lab(HOSTS, server_config=server, agent_config=node) as lab:
        vms, interval_s = _start_vms(lab)
        figures = _crashes(lab, vms, interval_s) + _power_losses(lab, server["heartbeat_s"])
        if lab.watch.violations:
            raise RuntimeError(f"two processes of one VM: {lab.watch.violations}")
    return figures


def _defaults(config: Any, changed: Iterable[str]) -> dict[str, Any]:
    """The timings that the lab shortens, as they are by default."""
    return {name: getattr(config, name) for name in changed if name.endswith("_s")}


# --- crashes ----------------------------------------------------------------------------------------------


def _start_vms(lab: Lab) -> tuple[dict[str, str], float]:
    """The VM that each host keeps running, and Pacemaker's monitor interval."""
    for name in (LIBVIRT, PACEMAKER):
        lab.host(name).systemctl("stop", "chime-agentd")
    vms = {CHIME: lab.create_guest(CHIME, node=CHIME)}
    vms |= {name: _write_definition(lab, name) for name in (LIBVIRT, PACEMAKER)}
    script = "bare_restart.py"
    shutil.copy(bare_restart.__file__, lab.shared / script)
    run = (PYTHON, f"{SHARED}/{script}", "qemu:///system", f"{SHARED}/{LIBVIRT}.xml")
    lab.host(LIBVIRT).run("systemd-run", "--quiet", f"--unit={script}", *run)
    interval_s = pacemaker.start(lab.host(PACEMAKER), f"{SHARED}/{PACEMAKER}.xml")
    for name in (LIBVIRT, PACEMAKER):
        lab.counting(name)
    return vms, interval_s


def _write_definition(lab: Lab, name: str) -> str:
    """The domain that Chime would define for the same VM, in a file; gives its UUID."""
    vm = str(uuid.uuid4())
    assignment = m.Assignment(
        uuid=vm,
        name=name,
        epoch=1,
        revision=1,
        desired=Desired.RUNNING,
        start_serial=1,
        graceful_s=60.0,
        spec=lab.guest_spec(name),
    )
    root = ET.fromstring(domain_xml.build(assignment, VirtType.QEMU))
    ET.indent(root)  # VirtualDomain finds the name only on a line of its own
    (lab.shared / f"{name}.xml").write_text(ET.tostring(root, encoding="unicode"))
    return vm


def _crashes(lab: Lab, vms: Mapping[str, str], interval_s: float) -> list[Figure]:
    """A kill of Pacemaker's VM comes at a moment counted from a monitor that was seen."""
    seconds = {who: Runs() for who in vms}
    for phase_s in _spread(interval_s, ROUNDS):
        for number in range(KILLS // ROUNDS):
            for who in sorted((CHIME, LIBVIRT), reverse=bool(number % 2)):
                seconds[who].values.append(_crash_afresh(lab, who, vms[who]))
        pacemaker.wait_for_monitor(lab.host(PACEMAKER), interval_s)
        time.sleep(phase_s)
        seconds[PACEMAKER].values.append(_crash(vms[PACEMAKER]))
    return _crash_figures(seconds, interval_s)


def _crash_afresh(lab: Lab, who: str, vm: str) -> float:
    """As the first crash for a long time: a start by the operator clears what Chime counts of earlier ones."""
    if who == CHIME:
        lab.do(m.VmStart, vm=CHIME)
    time.sleep(SETTLE_S)
    return _crash(vm)


def _crash(vm: str) -> float:
    """Kills the VM's qemu; seconds until there is another."""
    before = set(oracle.pids())
    (old,) = (pid for pid in before if _is_qemu_of(vm, pid))
    began = time.perf_counter()
    os.kill(old, signal.SIGKILL)

    def new() -> bool:
        return any(_is_qemu_of(vm, pid) for pid in set(oracle.pids()) - before)

    wait_until(new, RECOVER_S, f"{vm} runs again", POLL_S)
    return time.perf_counter() - began


def _is_qemu_of(vm: str, pid: int) -> bool:
    words = oracle.cmdline(pid)
    return bool(words) and "qemu" in os.path.basename(words[0]) and vm in words[1:]


def _crash_figures(seconds: Mapping[str, Runs], interval_s: float) -> list[Figure]:
    names = {
        CHIME: "Chime, default settings",
        LIBVIRT: "libvirt's event + create()",
        PACEMAKER: f"Pacemaker's VirtualDomain, monitor each {interval_s:g} s",
    }
    detail = {
        "kills": {who: len(runs.values) for who, runs in seconds.items()},
        "end": "a new live qemu of the UUID in the process table, seen from outside",
        "seconds": {who: runs.rounded() for who, runs in seconds.items()},
        "pacemaker": f"one node, no quorum, no fencing; monitor interval {interval_s:g} s, the default of the agent's "
        f"meta-data; kills spread evenly between two monitors",
        "chime": "each crash is the first of its start request: no back-off",
    }
    figures = [
        Figure(f"lab, crash to running: {name}", seconds[who].median, "s", detail=detail) for who, name in names.items()
    ]
    bare, other = (seconds[CHIME].most / seconds[who].most for who in (LIBVIRT, PACEMAKER))
    return [
        *figures,
        Figure("lab, crash to running, Chime against libvirt's event + create()", bare, "x", "<=", RATIO, detail),
        Figure("lab, crash to running, Chime against Pacemaker", other, "x", "<=", 1.0, detail),
    ]


# --- loss of power ----------------------------------------------------------------------------------------


def _power_losses(lab: Lab, heartbeat_s: float) -> list[Figure]:
    lost = Runs()
    for phase_s in _spread(heartbeat_s, POWER_LOSSES):
        wait_until(lambda: _is_normal(lab), NORMAL_S, "the node is normal", LOOK_S)
        wait_until(_in_phase(lab, phase_s), 2 * heartbeat_s, f"a heartbeat is {phase_s:g} s old", LOOK_S)
        began = time.perf_counter()
        lab.host(CHIME).power_off()
        wait_until(lambda: lab.node(CHIME)["health"] == "unreachable", NORMAL_S, "the node is missed", LOOK_S)
        lost.values.append(time.perf_counter() - began)
        lab.host(CHIME).power_on()
    detail = {
        "losses": POWER_LOSSES,
        "seconds": lost.rounded(),
        "heartbeat_s": heartbeat_s,
        "of_the_60_s_that_are_required": round(lost.median / UNREACHABLE_S, 3),
        "spread": "losses spread evenly over the heartbeat interval",
    }
    what = "lab, power-off to unreachable, default timings"
    return [
        Figure(f"{what}: median", lost.median, "s", "<=", UNREACHABLE_S, detail),
        Figure(f"{what}: longest", max(lost.values), "s", "<=", UNREACHABLE_S, detail),
    ]


def _is_normal(lab: Lab) -> bool:
    return bool(lab.node(CHIME)["health"] == "normal" and lab.reported(CHIME))


def _in_phase(lab: Lab, phase_s: float) -> Callable[[], bool]:
    """The node's last heartbeat has that age (as the server sees it)."""
    return lambda: 0.0 <= lab.node(CHIME)["last_heartbeat_age_s"] - phase_s < 0.5


def _spread(interval_s: float, count: int) -> list[float]:
    """Moments spread evenly over an interval."""
    return [interval_s * (number + 0.5) / count for number in range(count)]
