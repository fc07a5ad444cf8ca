"""State that goes back in time, and two of what must be one: E1 to E7 of the world, on real hosts.

The judge is the lab's oracle: never two processes of a VM, sampled all the time, and the guests' counters. Here is also
looked at where the process is, and that it is the same one as before.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts import Qemu
from tests.lab import past
from tests.lab.lab import CONFIG_FOLDER, Lab
from tests.lab.lab import PORT as FIRST
from tests.operator import Operator, unique
from wire import messages as m

AGENT = "chime-agentd"
WATCHED_S = 6.0  # how long it is looked at whether something happens that must not
BEHIND = "server-behind"
LIBVIRT_SEEN = "connected to QEMU"


def stays_there(lab: Lab, *seen: Qemu, nothing_on: str = "", seconds: float = WATCHED_S) -> None:
    """These processes go on, each alone, and nothing is started on the node."""
    wanted = {one.uuid: one.pid for one in seen}

    def same() -> bool:
        now = lab.processes()
        alone = all([one.pid for one in now.get(uuid, [])] == [pid] for uuid, pid in wanted.items())
        return alone and not any(one.host == nothing_on for group in now.values() for one in group)

    lab.stays(same, seconds, f"{wanted} as they are, nothing on {nothing_on or 'others'}")


def started(lab: Lab, name: str, times: int) -> None:
    """So often the guest has booted."""
    lab.counting(name)
    assert len(lab.guests[name].runs()) == times, "it was started so often"


def owner(server: Operator, uuid: str) -> str:
    """The VM's owner, as the server shows it."""
    return str(server.vm(uuid)["node"])


def no_definition(lab: Lab, node: str, uuid: str) -> None:
    """The node's libvirt knows the VM no more."""
    lab.wait(lambda: uuid not in lab.host(node).virsh("list", "--all", "--uuid"), f"{node} has no definition of it")


def boot_ready(lab: Lab, name: str) -> None:
    """The node boots, and the network comes when its agent knows all that it needs to start VMs at once."""
    host = lab.host(name)
    host.cut("mgmt")
    before = host.journal(AGENT, lines=1000).count(LIBVIRT_SEEN)
    host.power_on()
    lab.wait(lambda: host.journal(AGENT, lines=1000).count(LIBVIRT_SEEN) > before, f"{name} has looked at its libvirt")
    host.heal()


def is_behind(server: Operator) -> dict[str, Any]:
    """The server has seen that it is behind; gives its alarm."""

    def look() -> dict[str, Any] | None:
        return next(iter(server.alarms(BEHIND)), None)

    alarm: dict[str, Any] = server.wait(look, "an alarm that the server is behind")
    assert (alarm["subject"], alarm["severity"]) == ("server", "critical")
    return alarm


def test_e1_a_node_that_was_rebuilt_and_removed_comes_back_under_its_name(lab: Lab) -> None:
    """With its old state directory and a new key it starts nothing that runs elsewhere, and removes what is left."""
    name = unique("again")
    uuid = lab.create_guest(name, node="n1")
    seen, n1 = past.rebuild_elsewhere(lab, "n1", name), lab.host("n1")
    n1.cut("mgmt")
    n1.power_on()  # its agent starts with the system, and reaches nobody
    lab.tool("node", "remove", "n1", "--yes")
    bundle = "/srv/shared/again.bundle"
    lab.tool("node", "add", "n1", "--output", bundle)
    n1.run("agentd", "join", bundle, "--config", CONFIG_FOLDER / "agentd.toml", "--force")
    stays_there(lab, seen, nothing_on="n1", seconds=2)
    n1.power_off()
    boot_ready(lab, "n1")
    lab.wait_nodes("n1")
    stays_there(lab, seen, nothing_on="n1")
    no_definition(lab, "n1", uuid)
    assert owner(lab, uuid) == seen.host
    started(lab, name, 2)
    assert lab.node("n1")["admin_state"] == "enabled" and not lab.raised("n1") and not lab.raised(uuid)


def test_e2_a_state_directory_is_put_back_and_the_network_is_down(lab: Lab) -> None:
    """The agent knows that it is older than what this boot has seen, and starts nothing before the server speaks."""
    gone, kept = unique("gone"), unique("kept")
    uuids = {name: lab.create_guest(name, node="n1") for name in (gone, kept)}
    n1 = lab.host("n1")
    copy = past.keep_state(n1)
    lab.do(m.VmMigrate, vm=gone, to="n2")
    seen, own = lab.process(uuids[gone]), lab.process(uuids[kept])
    assert (seen.host, own.host) == ("n2", "n1")
    n1.cut("mgmt")
    n1.systemctl("stop", AGENT)
    past.put_back_state(n1, copy)
    n1.systemctl("start", AGENT)
    stays_there(lab, seen, own)
    assert "an older state was put back" in n1.journal(AGENT)
    lab.kill(own)
    lab.wait(lambda: not lab.processes().get(own.uuid), "its process is gone")
    stays_there(lab, seen, nothing_on="n1")
    n1.heal()
    assert lab.other_process(uuids[kept], own).host == "n1", "it is started when the server has said that it is there"
    lab.wait_nodes("n1")
    stays_there(lab, seen, seconds=2)
    no_definition(lab, "n1", uuids[gone])
    started(lab, gone, 1)
    started(lab, kept, 2)


def test_e3_a_root_disk_is_put_back_and_the_node_boots(lab: Lab) -> None:
    """After a boot nothing starts before the answer names the VM."""
    gone, kept = unique("gone"), unique("kept")
    uuids = {name: lab.create_guest(name, node="n1") for name in (gone, kept)}
    n1 = lab.host("n1")
    copy = past.keep_state(n1)
    lab.do(m.VmMigrate, vm=gone, to="n2")
    seen = lab.process(uuids[gone])
    n1.power_off()
    past.put_back_disk(n1, copy)
    boot_ready(lab, "n1")
    assert lab.process(uuids[kept]).host == "n1", "what is its own is started"
    lab.wait_nodes("n1")
    stays_there(lab, seen)
    no_definition(lab, "n1", uuids[gone])
    assert owner(lab, uuids[gone]) == "n2"
    started(lab, gone, 1)


def test_e4_a_database_is_put_back_by_cp(lab: Lab) -> None:
    """The server hears of newer than it gave: it is behind, says so, and holds everything until all nodes have spoken;
    the VM stays with its newest owner, in a higher generation."""
    name, other = unique("newer"), unique("other")
    uuid, beside = lab.create_guest(name, node="n1"), lab.create_guest(other, node="n3")
    copy, before = past.copy_database(lab), past.status(lab)["generation"]
    lab.wait_nodes(*lab.names)
    seen, there = past.rebuild_elsewhere(lab, "n1", name), lab.process(beside)
    past.put_back_database(lab, copy)
    alarm = is_behind(lab)
    assert "recovery show" in alarm["text"] or "nothing is started" in alarm["text"], alarm
    lab.wait(lambda: past.status(lab)["waiting_for"] == ["n1"], "the others are heard")
    assert past.status(lab)["recovering"] and BEHIND in lab.actions("server")
    assert lab.refused(m.VmStop, vm=other, force=True) == "recovering"
    stays_there(lab, seen, there, nothing_on="n1")
    lab.host("n1").power_on()
    past.wait_generation(lab, before + 1)
    lab.wait_nodes(*lab.names)
    stays_there(lab, seen, nothing_on="n1")
    assert owner(lab, uuid) == seen.host
    lab.observed(name, "running")
    no_definition(lab, "n1", uuid)
    assert not lab.alarms(BEHIND)
    started(lab, name, 2)


def test_e5_a_second_server_with_a_copy_of_the_database(lab: Lab) -> None:
    """What the nodes have from the first is newer: the second is behind, says so, and gives the old owner nothing."""
    name = unique("two")
    uuid, n1 = lab.create_guest(name, node="n1"), lab.host("n1")
    before = past.status(lab)["generation"]
    with past.second_server(lab) as second:
        second.start(past.back_up(lab))
        seen = past.rebuild_elsewhere(lab, "n1", name)
        past.flip(lab, seen.host)
        is_behind(second)
        fault = lab.wait(lambda: lab.local(seen.host, "status")["faults"], "the node says what it refuses")
        assert BEHIND in str(fault)
        n1.cut("mgmt")
        n1.power_on()
        past.flip(lab, "n1")
        n1.heal()
        stays_there(lab, seen, nothing_on="n1")
        assert owner(second, uuid) == "n1", "it has learned nothing yet"
        for rest in set(lab.names) - {"n1", seen.host}:
            past.flip(lab, rest)
        past.wait_generation(second, before + 1)
        second.wait(lambda: owner(second, uuid) == seen.host, "the second server knows the owner")
        second.wait_nodes(*lab.names)
        stays_there(lab, seen, nothing_on="n1", seconds=2)
        second.becomes_the_server()
    lab.wait_nodes(*lab.names)
    stays_there(lab, seen, nothing_on="n1", seconds=2)
    started(lab, name, 2)


def test_e5_the_old_server_runs_on_after_a_restore_elsewhere(lab: Lab) -> None:
    """A node that has followed the restored one refuses the older one and says so; that knows then that it is behind,
    and what it wants is not done."""
    name = unique("old")
    uuid = lab.create_guest(name, node="n1")
    seen, before = lab.process(uuid), past.status(lab)["generation"]
    with past.second_server(lab) as second:
        second.start(past.back_up(lab), restored=True)
        for node in lab.names:
            past.flip(lab, node)
        past.wait_generation(second, before + 1)
        second.wait_nodes(*lab.names)
        past.flip(lab, "n1", FIRST)
        is_behind(lab)
        lab.wait(lambda: BEHIND in lab.node("n1")["reasons"], "the node says what it refuses")
        assert BEHIND in str(lab.local("n1", "status")["faults"])
        assert lab.refused(m.VmStop, vm=name, force=True) == "recovering"
        stays_there(lab, seen)
        past.flip(lab, "n1")
        second.wait_nodes(*lab.names)
        second.observed(name, "running")
        second.becomes_the_server()
    lab.wait_nodes(*lab.names)
    stays_there(lab, seen, seconds=2)
    assert past.status(lab)["generation"] == before + 1
    started(lab, name, 1)


def test_e6_init_with_the_old_key(lab: Lab) -> None:
    """The new database has another history: the old owner starts nothing, what runs goes on for a person to see."""
    name = unique("lost")
    uuid = lab.create_guest(name, node="n1")
    seen = past.rebuild_elsewhere(lab, "n1", name)
    backup = past.back_up(lab)
    past.init_anew(lab)
    is_behind(lab)
    lab.host("n1").power_on()
    lab.wait(lambda: not past.status(lab)["recovering"], "all nodes are heard")
    assert past.status(lab)["generation"] > 1
    lab.wait(lambda: lab.alarms("vm-unknown"), "an alarm that there is a VM which the database does not know")
    stays_there(lab, seen, nothing_on="n1")
    past.find_again(lab, backup)
    lab.wait(lambda: not past.status(lab)["recovering"], "all nodes have spoken")
    lab.wait_nodes(seen.host)
    stays_there(lab, seen, nothing_on="n1", seconds=2)
    assert owner(lab, uuid) == seen.host
    lab.observed(name, "running")
    started(lab, name, 2)


def test_e6_the_same_backup_is_restored_on_two_new_machines(lab: Lab) -> None:
    """One generation number is used twice, but for two histories."""
    name = unique("twice")
    uuid = lab.create_guest(name, node="n1")
    backup = past.back_up(lab)
    past.restore(lab, backup, new_machine=True)
    lab.wait(lambda: not past.status(lab)["recovering"], "all nodes have spoken")
    first = past.status(lab)
    lab.wait_nodes(*lab.names)
    lab.do(m.VmMigrate, vm=name, to="n2")
    seen = lab.process(uuid)
    lab.host("n3").cut("mgmt")  # one that is not heard, so that the alarm stays to be seen
    past.restore(lab, backup, new_machine=True)
    assert past.status(lab)["generation"] == first["generation"] and past.status(lab)["history"] != first["history"]
    assert "history" in is_behind(lab)["text"]
    stays_there(lab, seen, nothing_on="n1")
    lab.host("n3").heal()
    past.wait_generation(lab, first["generation"] + 1)
    lab.wait(lambda: owner(lab, uuid) == "n2", "the newest owner is known")
    lab.wait_nodes(*lab.names)
    stays_there(lab, seen, nothing_on="n1", seconds=2)
    assert not lab.alarms(BEHIND)
    started(lab, name, 1)


@pytest.mark.parametrize("word", ["recovery confirm", "vm start"])
def test_e7_a_backup_in_which_running_vms_were_stopped_or_drained(lab: Lab, word: str) -> None:
    """They go on and are listed; what the backup wants is done after a word, or not at all."""
    stopped, drained = unique("stopped"), unique("drained")
    uuids = {stopped: lab.create_guest(stopped, node="n1"), drained: lab.create_guest(drained, node="n2")}
    lab.do(m.VmStop, vm=stopped, force=True)
    lab.do(m.NodeDrain, name="n2", graceful_s=0)
    backup = past.back_up(lab)
    lab.do(m.VmStart, vm=stopped)
    lab.do(m.NodeEnable, name="n2")
    seen = {name: lab.process(uuid) for name, uuid in uuids.items()}
    past.restore(lab, backup)
    lab.wait(lambda: not past.status(lab)["recovering"], "all nodes have spoken")
    lab.wait_nodes("n1")
    stays_there(lab, *seen.values())
    said = lab.tool("status")
    assert [(vm["name"], vm["wants"]) for vm in said["held_vms"]] == [(stopped, "stop")]
    assert said["held_nodes"] == ["n2"]
    assert lab.raised("server") == {"recovery-held"}
    if word == "vm start":
        lab.tool("vm", "start", stopped)
        lab.tool("node", "enable", "n2", "--yes")
        lab.wait(lambda: not lab.raised("server"), "nothing waits any more")
        stays_there(lab, *seen.values())
        return
    lab.tool("recovery", "confirm", "--yes", "--comment", "as the backup says")
    for uuid in uuids.values():
        lab.no_process(uuid)
    lab.wait(lambda: not lab.raised("server"), "nothing waits any more")
    lab.wait(lambda: lab.node("n2")["drain_evidence"] == "agent", "the drain is proven")
