"""What happens to nodes: power, cables, agents away, drain and rebuild, keys.

Fault rows 19 to 23, 25, 28, 43, 44 and 47.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.chime import CALM, Chime, tiny, unique
from wire import messages as m
from wire.types import DiskFormat, Storage

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1", "n2")) as chime:
        yield chime


def test_power_loss_and_return(chime: Chime) -> None:
    """Rows 19 and 20: unreachable, alarm, commands refused; at its return the VMs start and all is normal."""
    name = unique("power")
    uuid = chime.create(name, node="n1")
    first = chime.process(uuid)
    chime["n1"].power_off()
    chime.wait_nodes("n1", health="unreachable")
    node = chime.node("n1")
    assert not node["schedulable"] and not node["commandable"]
    assert chime.vm(name)["observed"] == "unknown", "never a stale word"
    assert chime.raised("n1") == {"node-unreachable"}
    for kind in (m.VmStart, m.VmStop, m.VmDelete):
        assert chime.refused(kind, vm=name) == "node-unreachable"
    chime.tool("vm", "stop", name, "--yes", code=4)
    assert chime.refused(m.VmCreate, name=unique("new"), spec=tiny(), node="n1") == "node-unreachable"
    placed = unique("placed")
    chime.process(chime.create(placed))
    assert chime.vm(placed)["node"] == "n2"
    chime["n1"].power_on()
    assert chime.other_process(uuid, first).host == "n1"
    chime.wait_nodes("n1")
    chime.observed(name, "running")
    chime.wait(lambda: not chime.raised("n1"), "the alarm is cleared")
    assert chime.vm(name)["restarts"] == 0, "a boot of the host is no crash"


def test_a_booted_node_waits_for_the_server(chime: Chime) -> None:
    """Row 21: it starts nothing before the server has confirmed its inventory in this boot."""
    uuid = chime.create(unique("waiting"), node="n1")
    chime.stop_server()
    chime["n1"].power_off()
    chime["n1"].power_on()
    chime.wait(lambda: chime.local("n1", "status").get("agent_running"), "the agent is there")
    chime.stays(lambda: not chime.processes().get(uuid), 4.0, "nothing is started without the server")
    chime.serve_again()
    assert chime.process(uuid).host == "n1"


def test_rebuild_needs_evidence_and_the_old_node_cleans_up(chime: Chime) -> None:
    """Rows 22 and 47, R10, R17: refused with exit 3, then the operator's word; the old node starts nothing when it
    comes back and removes what it does not own. A VM with a local disk stays where its data is."""
    name, local = unique("moved"), unique("local")
    disk = m.Disk(path=str(chime["n1"].dir / "disk"), format=DiskFormat.RAW, storage=Storage.LOCAL, size_mib=1)
    uuid, local_uuid = chime.create(name, node="n1"), chime.create(local, tiny(disks=(disk,)), node="n1")
    first, epoch = chime.process(uuid), chime.vm(name)["epoch"]
    chime["n1"].power_off()
    chime.wait_nodes("n1", health="unreachable")
    assert chime.refused(m.NodeRebuild, name="n1") == "refused-unsafe", "not drained"
    chime.do(m.NodeDrain, name="n1")
    words = chime.tool("node", "rebuild", "n1", "--yes", code=3)
    assert "--evidence operator" in words and "n1" in words
    assert chime.refused(m.NodeRebuild, name="n1") == "no-evidence"
    assert not chime.processes()
    done = chime.tool("node", "rebuild", "n1", "--yes", "--evidence", "operator", "--comment", "unplugged")
    assert done["operation"]["state"] == "succeeded" and any("local" in text for text in done["warnings"])
    second = chime.other_process(uuid, first)
    assert second.host == "n2"
    vm = chime.observed(name, "running")
    assert (vm["node"], vm["epoch"]) == ("n2", epoch + 1)
    assert chime.vm(local)["node"] == "n1"
    assert chime.domain_file("n1", name).exists()
    chime["n1"].power_on()
    chime.wait(lambda: not chime.domain_file("n1", name).exists(), "the old definition is removed")
    chime.wait_nodes("n1")
    assert chime.node("n1")["admin_state"] == "drained"
    chime.stays(lambda: chime.pids(uuid) == [second.pid] and not chime.pids(local_uuid), 2.0, "it starts nothing")
    chime.do(m.NodeEnable, name="n1")
    assert chime.process(local_uuid).host == "n1"
    assert (chime["n1"].dir / "disk").exists() and chime.process(uuid).pid == second.pid


def test_drain_and_rebuild_of_a_living_node(chime: Chime) -> None:
    """R7: the agent stops all and proves it; rebuild moves them; enabling starts nothing that is elsewhere."""
    names = [unique("drained") for _ in range(3)]
    uuids = [chime.create(name, node="n1") for name in names]
    stopped = chime.create(unique("off"), node="n1", desired="stopped")
    chime.tool("node", "drain", "n1", "--yes", "--graceful", "0")
    assert not chime.processes() and chime.node("n1")["drain_evidence"] == "agent"
    assert chime.refused(m.VmStart, vm=names[0]) == "refused-unsafe"
    chime.do(m.NodeRebuild, name="n1")
    assert {chime.process(uuid).host for uuid in uuids} == {"n2"}
    assert stopped not in chime.processes() and chime.vms()[stopped]["node"] == "n2"
    chime.do(m.NodeEnable, name="n1")
    chime.wait(lambda: not list(chime.domain_file("n1", "x").parent.glob("*.xml")), "n1 has no definition left")
    assert {chime.process(uuid).host for uuid in uuids} == {"n2"}


def test_a_node_without_its_agent(chime: Chime) -> None:
    """Rows 28 and 47: the host answers ping: `agent-lost`, commands refused, its VMs run on; that is no evidence."""
    name = unique("lost")
    uuid = chime.create(name, node="n1")
    seen = chime.process(uuid)
    chime.stop_agent("n1")
    chime.wait_nodes("n1", health="error")
    assert chime.node("n1")["reasons"] == ["agent-lost"] and chime.raised("n1") == {"agent-lost"}
    assert chime.refused(m.VmStop, vm=name) == "node-unreachable"
    chime.do(m.NodeDrain, name="n1")
    chime.tool("node", "rebuild", "n1", "--yes", code=3)
    assert chime.pids(uuid) == [seen.pid]
    chime.do(m.NodeEnable, name="n1")
    chime.agent("n1").start()
    chime.wait_nodes("n1")
    chime.wait(lambda: not chime.raised("n1"), "the alarm is cleared")
    chime.observed(name, "running")
    assert chime.pids(uuid) == [seen.pid], "the agent adopts it"


def test_a_cut_cable_and_a_drain_on_the_node(chime: Chime) -> None:
    """Rows 23 and 25, R13: VMs go on; `chime-agent drain` on the node; the server learns of it later."""
    name = unique("cut")
    uuid = chime.create(name, node="n1")
    seen = chime.process(uuid)
    chime["n1"].cut()
    chime.wait_nodes("n1", health="unreachable")
    assert chime.pids(uuid) == [seen.pid]
    status = chime.local("n1", "status")
    assert status["agent_running"] and [vm["name"] for vm in status["vms"]] == [name]
    assert chime.local("n1", "drain", "--dry-run")["changed"] is False
    chime.local("n1", "drain", code=2)  # nobody to ask
    assert chime.pids(uuid) == [seen.pid]
    assert chime.local("n1", "drain", "--yes", "--graceful", "0")["drained"]
    assert not chime.processes().get(uuid)
    assert chime.node("n1")["admin_state"] == "enabled", "the server cannot know yet"
    chime["n1"].heal()
    chime.wait_nodes("n1")
    chime.wait(lambda: chime.node("n1")["drain_evidence"] == "agent", "the server knows, with evidence")
    assert chime.node("n1")["admin_state"] == "drained"
    chime.stays(lambda: not chime.processes().get(uuid), 1.0, "drained is drained")
    chime.do(m.NodeEnable, name="n1")
    chime.other_process(uuid, seen)
    assert not chime.local("n1", "status")["local_drain"]


def test_a_drain_on_the_node_without_agent_and_server(chime: Chime) -> None:
    """R13: directly on libvirt and the snapshot. A later agent keeps the node drained and the server adopts that."""
    name = unique("offline")
    uuid = chime.create(name, node="n1")
    seen = chime.process(uuid)
    chime.stop_agent("n1")
    chime.stop_server()
    status = chime.local("n1", "status")
    assert not status["agent_running"] and status["vms"][0]["observed"] == "running"
    assert chime.local("n1", "drain", "--yes", "--graceful", "0.5")["drained"]
    assert not chime.processes().get(uuid)
    status = chime.local("n1", "status")
    assert status["local_drain"] and status["vms"][0]["observed"] == "stopped"
    chime.agent("n1").start()
    chime.wait(lambda: chime.local("n1", "status").get("agent_running"), "the agent is there")
    chime.stays(lambda: not chime.processes().get(uuid), 2.0, "an agent without server keeps it drained")
    chime["n1"].power_off()
    chime.serve_again()
    chime["n1"].power_on()
    chime.wait(lambda: chime.node("n1")["drain_evidence"] == "agent", "the server has learnt it, with evidence")
    assert chime.node("n1")["admin_state"] == "drained" and not chime.processes().get(uuid)
    chime.do(m.NodeEnable, name="n1")
    chime.other_process(uuid, seen)


def test_disabled_takes_no_new_vms(chime: Chime) -> None:
    """R7: existing VMs are managed, new ones go elsewhere or are refused."""
    name = unique("kept")
    uuid = chime.create(name, node="n1")
    chime.do(m.NodeDisable, name="n1")
    assert chime.refused(m.VmCreate, name=unique("new"), spec=tiny(), node="n1") == "no-room"
    chime.create(unique("other"))
    seen = chime.process(uuid)
    chime.kill(seen)
    chime.other_process(uuid, seen)
    chime.do(m.VmStop, vm=name, force=True)
    chime.do(m.VmStart, vm=name)


def test_a_copied_key_on_a_second_host(needs_hosts: None) -> None:
    """Row 43: the copy is refused and an alarm tells; the node itself is undisturbed; the copy starts nothing."""
    with Chime(("n1", "n2"), CALM) as chime:
        name = unique("cloned")
        uuid = chime.create(name, node="n1")
        seen = chime.process(uuid)
        chime.cluster.add_host("clone")
        chime.write_agent_config("clone")
        chime.agentd("clone", "join", chime["n1"].etc / "bundle", "--force")
        for file in chime.agent_state("n1").iterdir():  # a copied disk: the snapshot too
            if file.name == "snapshot":
                (chime.agent_state("clone") / file.name).write_bytes(file.read_bytes())
        chime.agent_service("clone").start()
        try:
            chime.wait(lambda: chime.raised("n1") & {"node-key-cloned", "cloned-key"}, "the alarm")
            assert chime.node("n1")["health"] == "normal"
            log = chime["clone"].log / "agentd.log"
            chime.wait(lambda: "cloned-key" in log.read_text(errors="replace"), "the copy is told")
            chime.kill(seen)
            again = chime.other_process(uuid, seen)
            assert again.host == "n1" and chime.vm(name)["node"] == "n1"
            chime.stays(lambda: chime.pids(uuid) == [again.pid], 2.0, "nothing runs on the copy")
        finally:
            chime["clone"].power_off()


def test_a_new_key_ends_a_live_session(chime: Chime) -> None:
    """Row 44: after `node rekey` the old key is refused at once; with a key made on the node it comes back."""
    uuid = chime.create(unique("rekeyed"), node="n1")
    seen = chime.process(uuid)
    public = chime.agentd("n1", "keygen").stdout.strip()
    bundle = chime["n1"].etc / f"bundle-{unique('key')}"
    chime.tool("node", "rekey", "n1", "--yes", "--public-key", public, "--output", bundle)
    assert "secret" not in bundle.read_text(), "it never leaves the node"
    chime.wait_nodes("n1", health="error")
    assert chime.node("n1")["reasons"] == ["agent-lost"]
    chime.agentd("n1", "join", bundle, code=1)
    chime.agentd("n1", "join", bundle, "--force")
    assert chime.agent_state("n1").joinpath("node.key").stat().st_mode & 0o777 == 0o600
    chime.agent("n1").kill()
    chime.wait_nodes("n1")
    assert chime.pids(uuid) == [seen.pid]


def test_a_removed_node_is_refused(chime: Chime) -> None:
    """Row 44: removed while connected. Refused while it owns a VM or is not drained. It can be added again."""
    name = unique("owned")
    chime.create(name, node="n2")
    assert chime.refused(m.NodeRemove, name="n2") == "refused-unsafe"
    chime.do(m.VmDelete, vm=name)
    assert chime.refused(m.NodeRemove, name="n2") == "refused-unsafe", "not drained"
    chime.do(m.NodeDrain, name="n2", graceful_s=0.0)
    chime.do(m.NodeRemove, name="n2")
    log = chime["n2"].log / "agentd.log"
    try:
        chime.wait(lambda: "unknown-key" in log.read_text(errors="replace"), "its agent is refused")
        assert chime.local("n2", "status")["key_refused"]
        assert [node["name"] for node in chime.tool("node", "list")] == ["n1"]
    finally:
        bundle = chime["n2"].etc / f"bundle-{unique('key')}"
        chime.tool("node", "add", "n2", "--output", bundle)
        chime.agentd("n2", "join", bundle, "--force")
        chime.agent("n2").kill()
        chime.wait_nodes("n2")
    chime.create(unique("again"), node="n2")


def test_a_node_that_knows_nothing_of_chime(chime: Chime) -> None:
    """An agent without a bundle, with a bad one, or with an unknown setting says so in one line and ends."""
    bare = chime.cluster.add_host("bare")
    chime.write_agent_config("bare")
    assert "node.key" in chime.agentd("bare", code=2).stderr
    chime.agentd("bare", "join", chime.operator_key, code=2)
    chime.write_agent_config("bare", heartbaet_s=3)
    assert "heartbaet_s" in chime.agentd("bare", code=2).stderr
    bare.power_off()
