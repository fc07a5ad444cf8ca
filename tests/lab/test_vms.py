"""VMs, qemu and libvirtd: rows 1, 17 and 18 of the fault table."""

from __future__ import annotations

import re

import pytest

from tests.lab.lab import AUDIT_S, Lab
from tests.operator import unique

SOON_S = AUDIT_S / 2  # what comes sooner was not found by the audit


def test_row_01_a_killed_qemu_runs_again_at_once(lab: Lab) -> None:
    """Same node, same epoch, one restart; the guest boots again and counts from the beginning."""
    name = unique("killed")
    uuid = lab.create_guest(name, node="n1")
    first, epoch = lab.process(uuid), lab.vm(name)["epoch"]
    lab.kill(first)
    assert lab.other_process(uuid, first, SOON_S).host == "n1"
    lab.counting(name)
    assert len(lab.guests[name].runs()) == 2
    lab.observed(name, "running")
    lab.wait(lambda: lab.vm(name)["restarts"] == 1, "the restart is counted")
    assert lab.vm(name)["epoch"] == epoch


@pytest.mark.parametrize("how", ["crash", "restart"])
def test_row_17_libvirtd_ends_and_comes_back(lab: Lab, how: str) -> None:
    """The VM runs on and is the same afterwards; its events are followed again."""
    name = unique("orphan")
    uuid = lab.create_guest(name, node="n1")
    first, n1 = lab.process(uuid), lab.host("n1")
    old = n1.unit_pid("libvirtd")
    if how == "crash":
        n1.kill("libvirtd")
    else:
        n1.systemctl("restart", "libvirtd")
    lab.wait(lambda: n1.unit_pid("libvirtd") not in (0, old), "systemd has started it again")
    lab.wait(
        lambda: "session" in n1.journal("chime-agentd") and lab.node("n1")["health"] == "normal", "the node is fine"
    )
    lab.counting(name)
    assert lab.pids(uuid) == [first.pid]
    lab.observed(name, "running")
    lab.kill(first)
    lab.other_process(uuid, first, SOON_S)


def test_row_17_libvirtd_stays_away(lab: Lab) -> None:
    """Observed is `unknown`, not `stopped`, the node has an error; the VM runs on."""
    name = unique("orphan")
    uuid = lab.create_guest(name, node="n1")
    first, n1 = lab.process(uuid), lab.host("n1")
    n1.stop_libvirt()
    lab.observed(name, "unknown")
    lab.wait(lambda: "libvirt-unreachable" in lab.node("n1")["reasons"], "the fault is reported")
    lab.counting(name)
    n1.start_libvirt()
    lab.observed(name, "running")
    lab.wait_nodes("n1")
    assert lab.pids(uuid) == [first.pid]


def test_row_18_libvirtd_hangs(lab: Lab) -> None:
    """Calls time out, health is `error`, heartbeats go on, nothing is started twice."""
    name = unique("hung")
    uuid = lab.create_guest(name, node="n1")
    first, n1 = lab.process(uuid), lab.host("n1")
    n1.hang("libvirtd")
    lab.wait(lambda: lab.node("n1")["health"] == "error", "the node has an error", 2 * AUDIT_S)
    assert re.search("libvirt-(slow|unreachable)", " ".join(lab.node("n1")["reasons"]))
    assert lab.node("n1")["last_heartbeat_age_s"] < 10
    lab.observed(name, "unknown")
    lab.counting(name)
    n1.resume()
    lab.wait_nodes("n1")
    lab.observed(name, "running")
    assert lab.pids(uuid) == [first.pid]
