"""Nodes: power, networks, drain and rebuild. Rows 19 to 23, 25 and 49 of the fault table, and the seed's scenario 1."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.lab.lab import SHARED, Lab
from tests.lab.wires import Direction
from tests.operator import unique
from wire import messages as m
from wire.types import DiskFormat, Storage

WATCHED_S = 5.0  # how long a node that must start nothing is looked at
DISK_MIB = 8


def lose(lab: Lab, name: str) -> None:
    """The node loses power, and the server knows."""
    lab.host(name).power_off()
    lab.wait_nodes(name, health="unreachable")


def starts_nothing(lab: Lab, name: str) -> bool:
    """No qemu runs on the host."""
    return not any(seen.host == name for group in lab.processes().values() for seen in group)


def test_row_12_a_vm_runs_on_two_nodes(lab: Lab) -> None:
    """An operator's word was false. A critical alarm; only the copy on the node that does not own the VM is stopped."""
    name = unique("twice")
    uuid, n1 = lab.create_guest(name, node="n1"), lab.host("n1")
    n1.cut("mgmt")
    lab.wait_nodes("n1", health="unreachable")
    lab.do(m.NodeDrain, name="n1", evidence="operator", comment="not true")
    lab.do(m.NodeRebuild, name="n1", evidence="operator", comment="not true")
    lab.wait(lambda: len(lab.oracle.places(uuid)) == 2, "it runs twice")
    owner = next(seen for seen in lab.oracle.running(uuid) if seen.host != "n1")
    n1.heal()
    lab.wait(lambda: lab.pids(uuid) == [owner.pid], "the copy of the old owner is stopped")
    lab.wait(lambda: "vm-removed" in lab.actions(name), "the audit trail tells")
    alarms = [alarm for alarm in lab.tool("alarm", "list", "--all") if alarm["code"] == "vm-duplicate"]
    assert [alarm["severity"] for alarm in alarms if name in alarm["text"]] == ["critical"], alarms
    lab.observed(name, "running")
    lab.counting(name)
    assert lab.watch.violations, "the oracle saw it"
    lab.forgive(name)


def test_row_19_a_node_loses_power(lab: Lab) -> None:
    """Unreachable, with an alarm; what its VMs do is unknown; no command is taken, no new VM is placed there."""
    name = unique("power")
    uuid = lab.create_guest(name, node="n1")
    lose(lab, "n1")
    assert not lab.oracle.running(uuid)
    row = next(row for row in lab.tool("node", "list") if row["name"] == "n1")
    assert (row["health"], row["schedulable"]) == ("unreachable", False)
    assert lab.raised("n1") == {"node-unreachable"}
    assert lab.vm(name)["observed"] == "unknown", "never a stale word"
    for verb in ("start", "stop", "delete"):
        lab.tool("vm", verb, name, "--yes", code=4)
    assert lab.refused(m.VmCreate, name=unique("new"), spec=lab.guest_spec("new"), node="n1") == "node-unreachable"
    assert lab.process(lab.create_guest(unique("placed"))).host != "n1"


def test_row_20_a_node_boots_and_the_server_is_there(lab: Lab) -> None:
    """Its VMs are started by it, those that should be off are not; normal again by itself; no restart is counted."""
    name = unique("boots")
    uuid, off = lab.create_guest(name, node="n1"), lab.create(unique("off"), node="n1", desired="stopped")
    lose(lab, "n1")
    lab.host("n1").power_on()
    assert lab.process(uuid).host == "n1"
    lab.wait_nodes("n1")
    lab.observed(name, "running")
    lab.counting(name)
    lab.wait(lambda: not lab.raised("n1"), "the alarm is cleared")
    assert not lab.oracle.running(off) and lab.vm(name)["restarts"] == 0
    lab.do(m.VmStop, vm=name, force=True)
    lab.no_process(uuid)


@pytest.mark.parametrize("why", ["network", "server"])
def test_row_21_a_node_boots_and_the_server_is_not_reachable(lab: Lab, why: str) -> None:
    """It starts nothing before the server has confirmed, in this boot, what it owns."""
    n1 = lab.host("n1")
    uuid = lab.create_guest(unique("waiting"), node="n1")
    n1.power_off()
    if why == "network":
        n1.cut("mgmt")
    else:
        lab.server.systemctl("stop", "chimed")
    n1.power_on()
    lab.wait(lambda: n1.unit("chime-agentd", "ActiveState") == "active", "its agent runs")
    lab.stays(lambda: starts_nothing(lab, "n1"), WATCHED_S, "it starts nothing")
    n1.heal()
    lab.server.systemctl("start", "chimed")
    assert lab.process(uuid).host == "n1"


def test_row_22_a_node_returns_whose_vms_were_rebuilt(lab: Lab) -> None:
    """Scenario 1, as an operator types it: drain, rebuild with evidence; nothing runs twice when the node is back."""
    name, local = unique("moved"), unique("local")
    disk = {"format": DiskFormat.QCOW2, "storage": Storage.SHARED, "size_mib": DISK_MIB}
    shared = m.Disk(path=f"{SHARED}/{name}.qcow2", **disk)
    own = m.Disk(path="/srv/local/disk", format=DiskFormat.RAW, storage=Storage.LOCAL, size_mib=1)
    uuid = lab.create(name, lab.guest_spec(name, disks=(shared,)), node="n1")
    local_uuid = lab.create(local, lab.guest_spec(local, disks=(own,)), node="n1")
    lab.counting(name)
    lose(lab, "n1")
    lab.tool("node", "rebuild", "n1", "--yes", code=3)
    lab.tool("node", "drain", "n1", "--yes")
    assert "operator" in lab.tool("node", "rebuild", "n1", "--yes", code=3), "it says what would be evidence"
    done = lab.tool("node", "rebuild", "n1", "--yes", "--evidence", "operator", "--comment", "unplugged", timeout_s=300)
    assert done["operation"]["state"] == "succeeded" and any("local" in text for text in done["warnings"])
    assert lab.process(uuid).host != "n1"
    lab.counting(name)
    n1 = lab.host("n1")
    n1.power_on()
    lab.wait_nodes("n1")
    lab.wait(lambda: uuid not in n1.virsh("list", "--all", "--uuid"), "it removes the definition it lost")
    assert lab.node("n1")["admin_state"] == "drained"
    lab.stays(lambda: starts_nothing(lab, "n1"), WATCHED_S, "a drained node starts nothing")
    assert (lab.shared / f"{name}.qcow2").exists()
    lab.tool("node", "enable", "n1", "--yes")
    assert lab.process(local_uuid).host == "n1", "what was not rebuilt is still its own"
    assert lab.oracle.places(uuid) != ["n1"]


@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_row_23_the_management_network_is_down(lab: Lab, direction: Direction) -> None:
    """Unreachable; the VM runs on, and is started again if it crashes; all is normal by itself when the network is."""
    name = unique("cut")
    uuid = lab.create_guest(name, node="n1")
    first, n1 = lab.process(uuid), lab.host("n1")
    n1.cut("mgmt", direction)
    lab.wait_nodes("n1", health="unreachable")
    lab.counting(name)
    lab.kill(first)
    second = lab.other_process(uuid, first)
    assert second.host == "n1"
    n1.heal()
    lab.wait_nodes("n1")
    lab.observed(name, "running")
    assert lab.pids(uuid) == [second.pid]


@pytest.mark.parametrize("how", ["pull", "in", "out", "both"])
def test_row_24_the_business_network_is_down(lab: Lab, how: Literal["pull", "in", "out", "both"]) -> None:
    """The node reports an error, and other nodes do not; commands still work; all is well by itself afterwards."""
    name = unique("cut")
    uuid = lab.create_guest(name, node="n1")
    n1 = lab.host("n1")
    if how == "pull":
        n1.pull("biz")
    else:
        n1.cut("biz", how)
    lab.wait_nodes("n1", health="error")
    node = lab.node("n1")
    assert node["reasons"] == ["business-network-down"] and not node["schedulable"]
    assert lab.raised("n1") == {"node-error"}
    lab.counting(name)
    lab.tool("vm", "stop", name, "--yes", "--force")
    lab.no_process(uuid)
    lab.tool("vm", "start", name)
    lab.counting(name)
    assert [lab.node(other)["health"] for other in ("n2", "n3")] == ["normal", "normal"]
    n1.heal()
    lab.wait_nodes("n1")
    lab.wait(lambda: not lab.raised("n1"), "the alarm is cleared")


def test_row_25_both_networks_are_down(lab: Lab) -> None:
    """No rebuild without evidence; `chime-agent drain` on the node stops its VMs; the server learns it, as evidence."""
    name = unique("island")
    uuid = lab.create_guest(name, node="n1")
    n1 = lab.host("n1")
    n1.pull("mgmt")
    n1.pull("biz")
    lab.wait_nodes("n1", health="unreachable")
    lab.do(m.NodeDrain, name="n1")
    lab.tool("node", "rebuild", "n1", "--yes", code=3)
    lab.counting(name)
    assert lab.local("n1", "drain", "--yes", "--graceful", "0")["drained"]
    assert not lab.oracle.running(uuid)
    n1.heal()
    lab.wait_nodes("n1")
    lab.wait(lambda: lab.node("n1")["drain_evidence"] == "agent", "the server has the evidence")
    lab.do(m.NodeRebuild, name="n1")
    assert lab.process(uuid).host != "n1"
    lab.counting(name)


def test_row_49_the_old_node_returns_in_the_middle_of_a_rebuild(lab: Lab) -> None:
    """It starts nothing of what is being rebuilt, and all of it runs once, elsewhere."""
    names = [unique("race") for _ in range(3)]
    uuids = [lab.create_guest(name, node="n1") for name in names]
    lose(lab, "n1")
    lab.do(m.NodeDrain, name="n1")
    done = lab.do(m.NodeRebuild, wait=False, name="n1", evidence="operator", comment="it is off")
    lab.host("n1").power_on()
    assert lab.client.wait_operation(done["operation"]["id"], 120).state == "succeeded"
    for name, uuid in zip(names, uuids, strict=True):
        assert lab.process(uuid).host != "n1"
        lab.counting(name)
    lab.wait_nodes("n1")
    lab.stays(lambda: starts_nothing(lab, "n1"), WATCHED_S, "the old node starts nothing")
    defined = ("list", "--all", "--uuid")
    lab.wait(lambda: not set(uuids) & set(lab.host("n1").virsh(*defined).split()), "their old definitions are gone")
