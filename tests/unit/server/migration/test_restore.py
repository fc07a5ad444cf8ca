"""Migrations of which a restored database does not know."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.server.migration.steps import attempt, leave, lose, migrate, owner, said, state, step, waiting
from tests.unit.server.world import World, seal_of, uuid_of
from wire import messages as m

WEB = uuid_of("web")


@pytest.mark.parametrize("order", [("n1", "n2", "n3"), ("n2", "n3", "n1"), ("n3", "n2", "n1")])
@pytest.mark.parametrize("observed", ["running", "paused"])
def test_a_restore_with_an_arrival(world: World, order: tuple[str, ...], observed: str) -> None:
    """The backup knows the VM on n1; since then it went to n3, and by hand from n3 to n2."""
    backup = world.saved()
    migrate(world, to="n3")
    leave(world, target="n3")
    said(world, "n1")
    world.run(2)
    epoch = owner(world)[1]
    world.agents["n3"].begin_alone(WEB, "alone", "n2")
    leave(world, "n3", "n2", observed=observed)
    world.restore(backup)
    for name in order:
        world.agents[name].start()
    world.run(60)
    assert owner(world)[0] == "n2" and owner(world)[1] > epoch
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n2"}


@pytest.mark.parametrize("order", [("n1", "n2", "n3"), ("n2", "n1", "n3")])
@pytest.mark.parametrize("phase", ["left", "leaving", "failed"])
def test_a_restore_whose_owner_is_the_source(world: World, order: tuple[str, ...], phase: str) -> None:
    """The same node owns the VM in the backup, in a lower epoch."""
    backup = world.saved()
    agent = world.agents["n1"]
    agent.held[WEB] = msgspec.structs.replace(agent.held[WEB], epoch=7)
    agent.highest[WEB] = 7
    agent.begin_alone(WEB, "alone", "n2")
    world.agents["n2"].arrive(WEB, 7, "alone", "running" if phase == "left" else "paused")
    if phase == "left":
        agent.leave(WEB)
    elif phase == "failed":
        agent.stay(WEB, "no")
    world.restore(backup)
    for name in order:
        world.agents[name].start()
    world.run(60)
    assert world.agents["n2"].arrivals.keys() == ({WEB} if phase == "leaving" else set())
    assert owner(world)[0] == ("n2" if phase == "left" else "n1")
    assert {name for name, a in world.agents.items() if WEB in a.running} == {owner(world)[0]}


@pytest.mark.parametrize("phase", ["left", "failed"])
def test_a_restore_whose_vm_has_gone_on(world: World, phase: str) -> None:
    """What the source says was true in its epoch; a node that reports last has the VM in a later one."""
    migrate(world)
    backup = world.saved()
    epoch = owner(world)[1]
    agent, last = world.agents["n1"], world.agents["n3"]
    world.agents["n2"].arrive(WEB, epoch, attempt(world))
    last.held[WEB] = msgspec.structs.replace(
        agent.held[WEB], epoch=epoch + 2, attempt="", seal=seal_of(WEB, epoch + 2, "n3")
    )
    last.highest[WEB] = epoch + 2
    last.running.add(WEB)
    if phase == "left":
        agent.leave(WEB)
    else:
        agent.stay(WEB, "no")
        agent.running.discard(WEB)
    for other in world.agents.values():
        other.kill()
    world.restore(backup)
    for name in ("n1", "n2"):
        world.agents[name].start()
    world.run(20)
    assert owner(world) == ("n1", epoch) and last.running == {WEB}
    last.start()
    world.run(60)
    assert owner(world) == ("n3", epoch + 2)
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n3"}
    assert not world.agents["n2"].arrivals


def test_a_restore_whose_owner_does_not_run_what_another_runs(world: World) -> None:
    """Nobody speaks of the attempt; the owner starts nothing before the recovery is over."""
    backup = world.saved()
    world.agents["n2"].arrive(WEB, owner(world)[1], "alone", "running")
    for agent in world.agents.values():
        agent.kill()
    world.agents["n1"].running.clear()
    world.restore(backup)
    for name in ("n1", "n2"):
        world.agents[name].start()
    assert owner(world)[0] == "n2"
    world.agents["n3"].start()
    world.run(60)
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n2"}


def test_an_epoch_that_crosses_the_news_that_it_has_left(world: World) -> None:
    epoch = owner(world)[1]
    agent = world.agents["n1"]
    agent.begin_alone(WEB, "alone", "192.0.2.7")
    leave(world)
    row = world.tables().vms.get(WEB)
    assert row is not None
    world.disk.tables["vms"][(WEB,)] = msgspec.structs.replace(row, epoch=epoch + 1)
    world.crash()
    agent.apply, apply = lambda page: None, agent.apply  # type: ignore[method-assign]
    agent.generation = 1
    agent.start()
    assert owner(world) == ("n1", epoch + 1)
    world.agents["n2"].start()
    assert owner(world) == ("n2", epoch + 2)
    agent.apply = apply  # type: ignore[method-assign]
    world.run(60)
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n2"} and not agent.gone


def test_a_rebuild_waits_for_the_recovery(world: World) -> None:
    lose(world)
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    answer = world.do(m.NodeRebuild, name="n1")
    world.do(m.NodeEnable, name="n2")
    backup = world.saved()
    world.agents["n3"].kill()
    world.restore(backup)
    world.run(40)
    assert step(world, answer) == ("waiting", "until the recovery after a restore is over")
    world.do(m.RecoveryConfirm, comment="all is well")
    world.run(20)
    assert step(world, answer)[1].startswith("the evidence that n1 runs none of its VMs was withdrawn")
    world.do(m.OpCancel, id=answer["operation"]["id"])
    assert world.refuse(m.NodeRebuild, name="n1", evidence="operator").code == "refused-unsafe"
    world.do(m.NodeDrain, name="n1", evidence="operator")
    again = world.do(m.NodeRebuild, name="n1")
    world.run(20)
    assert state(world, again)[0] == "succeeded"


def test_a_restore_whose_source_is_forgotten(world: World) -> None:
    """A paused copy that nobody speaks of is told to go when all have spoken."""
    backup = world.saved()
    world.agents["n2"].arrive(WEB, 7, "alone")
    world.restore(backup)
    world.agents["n2"].start()
    world.agents["n1"].start()
    assert world.agents["n2"].arrivals
    world.agents["n3"].start()
    world.run(60)
    assert not world.agents["n2"].arrivals and owner(world)[0] == "n1"


def test_a_restore_of_an_open_attempt(world: World) -> None:
    answer = migrate(world)
    backup = world.saved()
    leave(world)
    said(world, "n1")
    world.run(2)
    assert state(world, answer)[0] == "succeeded"
    world.restore(backup)
    for name in world.agents:
        world.agents[name].start()
    world.run(60)
    assert owner(world)[0] == "n2" and state(world, answer)[0] != "running"
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n2"}


def test_an_evacuation_waits_for_the_recovery(world: World) -> None:
    answer = waiting(world)
    for name in ("n2", "n3"):
        world.agents[name].kill()
    world.restore(world.saved())
    world.agents["n1"].start()
    world.run(2)
    assert step(world, answer) == ("waiting", "until the recovery after a restore is over")
    assert world.refuse(m.VmMigrate, vm="web").code == "locked"
    world.do(m.OpCancel, id=answer["operation"]["id"])
    assert world.refuse(m.VmMigrate, vm="web").code == "recovering"
