"""A store that cannot save, and a database that was restored."""

from __future__ import annotations

import msgspec
import pytest

from chimed.core import effects as fx
from chimed.store import Retention
from tests.unit.server.world import SPEC, Refused, World, key_of, uuid_of
from wire import messages as m

WEB = uuid_of("web")


@pytest.fixture
def world() -> World:
    world = World("n1", "n2")
    world.start()
    world.create("web", "n1")
    return world


def memory(world: World) -> dict[str, object]:
    return {name: world._memory(name) for name in world.disk.tables}


def test_nothing_is_granted_and_nothing_is_lost(world: World) -> None:
    world.disk.fault = "disk full"
    before, used = memory(world), dict(world.tables()._used)
    for _ in range(2):
        assert world.refuse(m.VmStop, vm="web").code == "storage-unavailable"
    assert memory(world) == before and dict(world.tables()._used) == used
    assert world.alarms() == [("storage-unavailable", "server")]
    assert world.vm("web")["observed"] == "running" and world.ask(m.ServerStatus())["read_only"] is True
    assert world.ask(m.VmStop(key="x", vm="web", dry_run=True))["plan"]
    world.recover_storage()
    assert world.alarms() == []
    world.do(m.VmStop, vm="web")
    world.settle()
    assert world.vm("web")["observed"] == "stopped"


def test_heartbeats_are_answered_in_the_very_turn_that_fails(world: World) -> None:
    agent = world.agents["n1"]
    agent.seq += 1
    world.disk.fault = "disk full"
    beat = fx.Received(key_of("n1"), agent.route, agent.heartbeat(), "b", str)
    change = fx.Received(key_of("op"), b"op", m.VmStop(key="k", vm="web"), "o", str)
    query = fx.Received(key_of("op"), b"op", m.NodeList(), "q", str)
    world.turn(beat, change, query)
    assert isinstance(next(b for b, i in world.answers[agent.route] if i == "b"), m.HeartbeatAck)
    answers = {i: b for b, i in world.answers[b"op"]}
    assert answers["o"].code == "storage-unavailable" and isinstance(answers["q"], m.Ok)  # type: ignore[attr-defined]


def test_nodes_stay_alive_and_their_reports_wait(world: World) -> None:
    world.disk.fault = "disk full"
    world.refuse(m.VmStop, vm="web")
    world.run(300)
    assert world.node("n1")["health"] == "normal"
    agent = world.agents["n1"]
    agent.halted.add(WEB)
    agent.running.clear()
    with pytest.raises(Refused, match="storage-unavailable"):
        agent.report()
    assert world.vm("web")["desired"] == "running"
    world.recover_storage()
    agent.beat()
    assert world.vm("web")["desired"] == "stopped", "it was asked for a full report again"


def test_a_new_boot_is_not_admitted_unrecorded(world: World) -> None:
    world.disk.fault = "disk full"
    world.refuse(m.VmStop, vm="web")
    agent = world.agents["n2"]
    agent.power_off()
    world.now += 100
    agent.boot = uuid_of("second")
    with pytest.raises(Refused, match="storage-unavailable"):
        agent.hello()
    agent.boot = uuid_of("n2-boot-1")
    assert isinstance(agent.hello(), m.Welcome)


def test_what_happened_meanwhile_is_caught_up(world: World) -> None:
    world.disk.fault = "disk full"
    world.refuse(m.VmStop, vm="web")
    world.agents["n2"].power_off()
    world.run(100)
    world.recover_storage()
    assert world.node("n2")["health"] == "unreachable" and ("node-unreachable", "n2") in world.alarms()


def test_operations_go_on_after_a_failed_turn(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.VmStop, vm="web")
    world.disk.fault = "disk full"
    world.run(500)
    world.recover_storage()
    world.run(400)
    assert world.op(answer)["state"] == "failed"


def test_a_challenge_that_was_never_sent_is_asked_again(world: World) -> None:
    agent = world.agents["n1"]
    hello = m.Hello(versions=(1,), node="n1", boot_id=uuid_of("clone"), incarnation="c", nonce="n")
    world.disk.fault = "disk full"
    change = fx.Received(key_of("op"), b"op", m.VmStop(key="k", vm="web"), "o", str)
    world.turn(fx.Received(key_of("n1"), b"clone", hello, "h", str), change)
    assert agent.poked, "the old host is asked though the turn failed"
    world.now += 3
    agent.sync()
    with pytest.raises(Refused, match="cloned-key"):
        world.say("n1", hello, b"clone")


def test_rollback_is_exact(world: World) -> None:
    tables = world.tables()
    before, used = memory(world), dict(tables._used)
    for node in list(tables.nodes):
        tables.nodes.put(msgspec.structs.replace(node, revision=99))
    tables.vms.delete(tables.vms.get(WEB))  # type: ignore[arg-type]
    tables.operations.delete(next(iter(tables.operations)))
    tables.meta = msgspec.structs.replace(tables.meta, generation=9)
    assert tables.dirty
    tables.rollback()
    assert memory(world) == before and dict(tables._used) == used and not tables.dirty
    assert [vm.uuid for vm in tables.vms.by("node", "n1")] == [WEB]


def test_pruned_history_leaves_memory(world: World) -> None:
    for _ in range(5):
        world.do(m.VmStop, vm="web")
        world.settle()
    removed = world.store.prune(9e9, Retention(operations=0, answers=0))
    assert removed
    world.tables().pruned(removed)
    world.check()
    assert not world.tables().dirty and len(world.tables().answers) == 0


# --- restore ----------------------------------------------------------------------------------------------------------


def restore(world: World, backup: dict) -> None:  # type: ignore[type-arg]
    """The database is an older one now, in a new generation."""
    tables = {name: dict(rows) for name, rows in backup.items()}
    meta = world.tables().meta
    nodes = tuple(sorted(key[0] for key in tables["nodes"]))
    tables["meta"][()] = msgspec.structs.replace(tables["meta"][()], generation=meta.generation + 1, waiting_for=nodes)
    world.disk.tables = tables
    world.revisions.clear()
    world.owners.clear()
    world.epochs.clear()
    world.crash()


def moved(world: World) -> dict:  # type: ignore[type-arg]
    """A backup from before web was moved from n1 to n2, by a drain that n1 proved and a release that it confirmed."""
    backup = world.saved()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.vm("web")["node"] == "n2" and world.vm("web")["observed"] == "running"
    return backup


def test_an_agents_higher_epoch_wins(world: World) -> None:
    backup = moved(world)
    restore(world, backup)
    assert world.refuse(m.NodeRebuild, name="n1").code == "recovering"
    assert world.ask(m.ServerStatus())["waiting_for"] == ["n1", "n2"]
    world.start("n1")
    assert not world.agents["n1"].running, "it released that epoch"
    assert world.refuse(m.VmStart, vm="web").code == "recovering"
    world.start("n2")
    world.settle()
    world.run(40)
    assert world.ask(m.ServerStatus())["recovering"] is False
    vm = world.vm("web")
    assert (vm["node"], vm["observed"]) == ("n2", "running") and "vm-adopted" in world.actions(WEB)
    assert not world.agents["n1"].running


def test_new_epochs_are_never_old_ones(world: World) -> None:
    backup = moved(world)
    old = world.vm("web")["epoch"]
    restore(world, backup)
    world.start()
    world.settle()
    world.do(m.NodeEnable, name="n1") if world.node("n1")["admin_state"] != "enabled" else None
    world.do(m.NodeDrain, name="n2")
    world.settle()
    world.do(m.NodeRebuild, name="n2")
    world.settle()
    assert world.vm("web")["epoch"] > 1_000_000 > old and world.vm("web")["observed"] == "running"


def test_an_owner_that_released_the_restored_epoch_gets_a_new_one(world: World) -> None:
    """The node that had it since is gone for good; an operator says so."""
    backup = moved(world)
    world.agents["n2"].power_off()
    restore(world, backup)
    world.start("n1")
    assert not world.agents["n1"].running
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(40)
    world.settle()
    assert world.vm("web")["observed"] == "running" and world.vm("web")["epoch"] > 1_000_000


@pytest.mark.parametrize("same_boot", [False, True], ids=["booted since", "same boot"])
def test_a_node_that_lost_a_vm_since_the_backup_does_not_start_it(world: World, same_boot: bool) -> None:
    """It never heard that its VM was moved: on the word of the old database it would start a second one."""
    backup = world.saved()
    if same_boot:  # it was drained, proved it, and then was cut off before the release reached it
        world.do(m.NodeDrain, name="n1")
        world.settle()
        world.agents["n1"].power_off()
        world.run(60)
    else:
        world.agents["n1"].power_off()
        world.run(60)
        world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.agents["n2"].running
    world.agents["n2"].kill()
    restore(world, backup)
    world.start("n1") if same_boot else world.agents["n1"].boot_again()
    world.run(60)
    assert not world.agents["n1"].running, "nobody starts anything before all have reported"
    world.start("n2")
    world.run(60)
    assert world.ask(m.ServerStatus())["recovering"] is False
    assert not world.agents["n1"].running and world.vm("web")["node"] == "n2"
    assert world.vm("web")["observed"] == "running" and not world.tables().releases.by("node", "n1")


def test_what_is_off_starts_when_the_recovery_ends(world: World) -> None:
    backup = world.saved()
    world.agents["n1"].power_off()
    world.agents["n2"].power_off()
    restore(world, backup)
    world.agents["n1"].boot_again()
    world.run(60)
    assert not world.agents["n1"].running
    world.do(m.RecoveryConfirm, comment="n2 runs nothing")
    world.run(60)
    assert world.agents["n1"].running and world.vm("web")["observed"] == "running"


def test_a_restored_vm_that_was_deleted_is_there_again(world: World) -> None:
    backup = world.saved()
    world.do(m.VmDelete, vm="web")
    world.settle()
    restore(world, backup)
    world.start()
    world.run(40)
    world.settle()
    assert world.vm("web")["observed"] == "running"
    world.create("more", spec=SPEC)
