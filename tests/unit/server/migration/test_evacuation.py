"""Evacuations, steps that meet other work, and sources that are lost meanwhile."""

from __future__ import annotations

import msgspec
import pytest

from chimed.core.state.turn import Policy
from tests.unit.server.migration.steps import attempt, leave, lose, migrate, owner, said, state, step, waiting
from tests.unit.server.world import LOCAL, SPEC, World, uuid_of
from wire import messages as m
from wire.types import Desired, Observed

WEB, DB = uuid_of("web"), uuid_of("db")


# --- evacuation -------------------------------------------------------------------------------------------------------


def evacuated() -> World:
    world = World("n1", "n2", "n3", policy=Policy(migrations_per_node=2))
    world.start()
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 9)):
        world.create(name, "n1", spec=msgspec.structs.replace(SPEC, priority=priority))
    world.create("local", "n1", spec=LOCAL)
    world.create("off", "n1", desired=Desired.STOPPED)
    return world


def test_evacuate() -> None:
    world = evacuated()
    answer = world.do(m.NodeEvacuate, name="n1")
    text = "its disks are local to n1: give --with-local-disks to copy them"
    assert answer["warnings"] == [f"local stays: {text}"]
    assert answer["plan"][0] == "migrates 5 VMs from n1 to other nodes"
    assert "moves off (stopped), to" in answer["plan"][-1]
    assert [s["name"] for s in world.op(answer)["steps"]] == ["d", "b", "a", "c", "local", "off"]
    assert world.node("n1")["operation"] == answer["operation"]["id"]
    assert world.node("n1")["admin_state"] == "enabled" and not world.node("n1")["schedulable"]
    assert world.refuse(m.VmStop, vm="a").code == "locked"
    world.settle()
    steps = {s["name"]: s for s in world.op(answer)["steps"]}
    assert {n for n, s in steps.items() if s["state"] == "running"} == {"d", "b"}
    assert steps["off"]["state"] == "done" and steps["local"]["state"] == "skipped"
    assert steps["a"]["detail"] == "waits for its turn: 2 migrations of n1 under way"
    assert world.op(answer)["progress"] == round(2 / 6, 3)
    seen = []
    for _ in range(20):
        rows = list(world.tables().migrations)
        if not rows:
            break
        assert len(rows) <= 2
        row = rows[0]
        vm = world.tables().vms.get(row.uuid)
        assert vm is not None
        seen.append(vm.name)
        if vm.name == "c":
            world.agents["n1"].stay(row.uuid, "the target is full")
        else:
            leave(world, "n1", row.target, vm.name)
        said(world, "n1")
        world.run(2)
    assert sorted(seen) == ["a", "b", "c", "d"]
    outcome = "3 migrated, 1 moved (stopped), 1 left in place: local, 1 failed: c (the target is full)"
    assert state(world, answer) == ("failed", outcome)
    assert world.node("n1")["operation"] is None


def test_an_evacuation_is_cancelled() -> None:
    world = evacuated()
    answer = world.do(m.NodeEvacuate, name="n1", to="n2")
    world.settle()
    leave(world, vm="d")
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.settle()
    world.agents["n1"].stay(uuid_of("b"), "as asked")
    said(world, "n1")
    world.run(2)
    steps = {s["name"]: (s["state"], s["detail"]) for s in world.op(answer)["steps"]}
    assert steps["a"] == ("skipped", "cancelled: by op") and steps["d"] == ("done", "migrated to n2")
    assert steps["b"] == ("skipped", "cancelled: it stays on n1 (as asked)")
    assert state(world, answer)[0] == "cancelled" and "1 migrated, 1 moved (stopped)" in state(world, answer)[1]


def test_a_drain_wins_over_an_evacuation() -> None:
    world = evacuated()
    answer = world.do(m.NodeEvacuate, name="n1", to="n2")
    world.settle()
    drain = world.do(m.NodeDrain, name="n1")
    assert "cancels op-" in drain["plan"][-1]
    assert world.node("n1")["operation"] == drain["operation"]["id"]
    leave(world, vm="d")
    world.agents["n1"].stay(uuid_of("b"), "as asked")
    said(world, "n1")
    world.run(2)
    assert state(world, answer)[0] == "cancelled" and state(world, drain)[0] == "succeeded"
    assert world.node("n1")["operation"] is None and owner(world, "d")[0] == "n2"


def test_evacuations_that_are_refused_or_have_nothing_to_do(world: World) -> None:
    assert world.refuse(m.NodeEvacuate, name="n1", to="n1").code == "conflict"
    assert world.refuse(m.NodeEvacuate, name="n1", to="n2", network="eth7").code == "invalid"
    answer = world.do(m.NodeEvacuate, name="n2")
    assert (answer["changed"], answer["operation"]) == (False, None)
    plan = world.do(m.NodeEvacuate, name="n1", dry_run=True)["plan"]
    assert plan == ["migrates 1 VM from n1 to other nodes", "migrates web, to n2 as it looks now"]
    world.do(m.NodeDrain, name="n2")
    world.settle()
    assert world.refuse(m.NodeEvacuate, name="n2").code == "conflict"
    world.agents["n3"].kill()
    world.run(60)
    assert world.refuse(m.NodeEvacuate, name="n3").code == "node-unreachable"
    world.do(m.VmDelete, vm="web")
    assert world.do(m.NodeEvacuate, name="n1")["operation"] is None


def test_only_local_disks(world: World) -> None:
    world.create("db", "n3", spec=LOCAL)
    answer = world.do(m.NodeEvacuate, name="n3")
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left in place: db")


def test_the_limit_of_the_cluster_and_of_the_target() -> None:
    world = World("n1", "n2", "n3", "n4", policy=Policy(migrations_per_node=1, migrations_per_cluster=2))
    world.start()
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "n3")):
        world.create(name, node)
    first = migrate(world, "a", "n4")
    second = migrate(world, "b", "n4")
    assert world.op(second)["steps"][0]["detail"] == "waits for its turn: 1 migration of n4 under way"
    leave(world, target="n4", vm="a")
    said(world, "n1")
    world.run(2)
    third = migrate(world, "c", "n1")
    world.do(m.VmCreate, name="d", spec=SPEC, node="n1")
    assert state(world, first)[0] == "succeeded"
    assert world.op(third)["steps"][0]["state"] == "running"
    world.settle()
    core = world.core.policy
    assert len(world.tables().migrations) == core.migrations_per_cluster
    fourth = world.do(m.VmMigrate, vm="d", to="n4")
    assert world.op(fourth)["steps"][0]["detail"] == "waits for its turn: 2 migrations are under way"
    stop = world.do(m.VmStop, vm="d")
    assert state(world, fourth)[0] == "cancelled", "what has not begun is superseded"
    assert stop["operation"]


@pytest.mark.parametrize("proven", [True, False])
def test_the_target_is_drained_meanwhile(world: World, proven: bool) -> None:
    """What was proven of it before the VM came does not count: it is drained once more."""
    answer = migrate(world)
    world.agents["n2"].stuck = not proven
    drain = world.do(m.NodeDrain, name="n2")
    if proven:
        world.settle()
    assert state(world, drain)[0] == ("succeeded" if proven else "running")
    leave(world)
    said(world, "n1")
    assert owner(world)[0] == "n2" and "drained-again" in world.actions("n2")
    world.agents["n2"].stuck = False
    world.agents["n2"].sync()
    world.run(20)
    assert state(world, drain)[0] == "succeeded" and world.node("n2")["drain_evidence"] == "agent"
    assert world.vm("web")["observed"] == "stopped" and not world.agents["n2"].running
    world.run(400)
    assert state(world, answer)[0] == ("failed" if proven else "succeeded"), "it ran there for a moment, or never"


# --- steps that meet other work ---------------------------------------------------------------------------------------


def test_a_step_waits_for_room_without_end(world: World) -> None:
    answer = waiting(world)
    world.run(2000)
    assert step(world, answer)[0] == "waiting"
    world.do(m.NodeEnable, name="n3")
    world.run(2)
    assert step(world, answer) == ("running", "to n3")


def test_a_step_waits_for_its_node(world: World) -> None:
    answer = waiting(world)
    world.agents["n1"].kill()
    world.run(100)
    assert step(world, answer) == ("waiting", "n1 is not heard")
    agent = world.agents["n1"]
    agent.up = True
    agent.connect()
    for page in agent.pull():
        agent.apply(page)
    agent.running.clear()
    agent.report()
    world.run(1)
    assert step(world, answer) == ("waiting", "is stopped: its agent is about to start it")
    agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.PAUSED),))
    world.run(1)
    assert state(world, answer)[0] == "failed" and "is paused" in state(world, answer)[1]


def test_a_step_whose_node_is_drained_there(world: World) -> None:
    answer = waiting(world)
    world.agents["n1"].report(local_drain=True)
    world.run(2)
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left in place: web")


def test_a_migration_that_has_not_begun_when_its_node_is_drained() -> None:
    world = World("n1", "n2", policy=Policy(migrations_per_node=1))
    world.start()
    world.create("web", "n1")
    world.create("db", "n1")
    migrate(world)
    answer = migrate(world, "db")
    assert step(world, answer)[0] == "pending"
    world.do(m.NodeDrain, name="n1")
    world.run(2)
    assert state(world, answer) == ("failed", "n1 was drained")


def test_a_step_whose_vm_is_gone_or_elsewhere(world: World) -> None:
    answer = waiting(world)
    vm = world.tables().vms.get(WEB)
    assert vm is not None
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    world.agents["n2"].arrive(WEB, vm.epoch, "alone", "running")
    world.agents["n1"].leave(WEB)
    said(world, "n2")
    said(world, "n1")
    world.run(2)
    assert step(world, answer) == ("skipped", "is on n2 meanwhile")
    assert state(world, answer)[0] == "succeeded"


def test_a_step_whose_vm_is_being_deleted(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.deaf.add("n2")
    said(world, "n1")
    world.do(m.VmDelete, vm="web")
    assert state(world, answer)[0] == "cancelled", "a newer operation of the VM"
    world.create("db", "n1")
    evacuation = world.do(m.NodeEvacuate, name="n1", to="n3")
    world.settle()
    leave(world, target="n3", vm="db")
    world.deaf.add("n3")
    said(world, "n1")
    world.do(m.VmDelete, vm="db")
    world.run(2)
    assert step(world, evacuation) == ("skipped", "deleted meanwhile")


def test_a_stopped_vm_whose_disks_are_local_turns_up_in_its_turn(world: World) -> None:
    world.create("db", "n1", spec=LOCAL)
    world.do(m.NodeDisable, name="n2")
    world.do(m.NodeDisable, name="n3")
    answer = world.do(m.NodeEvacuate, name="n1", options=m.MigrationOptions(local_disks=True))
    agent = world.agents["n1"]
    agent.failed[DB], agent.why_failed = "disk is gone", "crash-loop"
    agent.running.discard(DB)
    agent.report()
    world.run(2)
    assert step(world, answer)[0] == "skipped" and "copied only while it runs" in step(world, answer)[1]


def test_an_evacuation_waits_for_a_migration(world: World) -> None:
    first = migrate(world)
    answer = world.do(m.NodeEvacuate, name="n1")
    assert step(world, answer) == ("waiting", f"is being migrated to n2 ({first['operation']['id']})")
    leave(world)
    said(world, "n1")
    world.run(2)
    assert state(world, first)[0] == "succeeded" and state(world, answer)[0] == "succeeded"


# --- a source that is lost --------------------------------------------------------------------------------------------


def test_a_rebuild_asks_the_target_first(world: World) -> None:
    answer = migrate(world)
    epoch = owner(world)[1]
    world.agents["n2"].arrive(WEB, epoch, attempt(world))
    said(world, "n2")
    world.deaf.add("n2")
    lose(world)
    rebuild = world.do(m.NodeRebuild, name="n1")
    text = "n2 may have a copy that was being migrated: "
    assert step(world, rebuild) == ("waiting", f"{text}it is not heard") and owner(world) == ("n1", epoch)
    world.run(1000)
    assert state(world, rebuild)[0] == "running" and owner(world) == ("n1", epoch)
    world.crash()
    world.deaf.clear()
    world.agents["n2"].start()
    world.run(1)
    met = "until every node was heard or judged since the server's start"
    assert step(world, rebuild) == ("waiting", met) and owner(world) == ("n1", epoch)
    world.run(59)
    assert step(world, rebuild) == ("waiting", f"{text}it is asked to remove it") and owner(world) == ("n1", epoch)
    agent = world.agents["n2"]
    agent.apply, apply = lambda page: None, agent.apply  # type: ignore[method-assign]
    world.run(20)
    row = world.tables().migrations.get(WEB)
    assert row is not None and row.asked
    agent.arrivals[WEB] = agent.arrivals[WEB]._replace(observed="running")
    agent.report()
    assert owner(world) == ("n1", epoch), "it has its release already"
    agent.apply = apply  # type: ignore[method-assign]
    world.crash()
    world.run(60)
    assert not world.agents["n2"].arrivals
    assert owner(world)[1] == epoch + 1 and state(world, rebuild)[0] == "succeeded"
    assert state(world, answer) == ("failed", "n1 was lost before it had left")


def test_a_target_that_comes_back_with_a_copy_that_runs_is_the_owner(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.deaf.add("n2")
    lose(world)
    rebuild = world.do(m.NodeRebuild, name="n1")
    world.deaf.clear()
    world.run(60)
    assert owner(world)[0] == "n2" and world.agents["n2"].running == {WEB} and not world.agents["n2"].arrivals
    assert state(world, answer)[0] == "succeeded" and state(world, rebuild)[0] == "succeeded"


def test_a_source_that_is_lost_in_its_evacuation() -> None:
    world = evacuated()
    world.do(m.VmDelete, vm="local")
    answer = world.do(m.NodeEvacuate, name="n1", to="n2")
    world.settle()
    leave(world, vm="d")
    said(world, "n2")
    lose(world)
    assert state(world, answer)[0] == "running" and owner(world, "d")[0] == "n2"
    rebuild = world.do(m.NodeRebuild, name="n1")
    assert world.node("n1")["operation"] == rebuild["operation"]["id"]
    world.run(60)
    assert state(world, answer)[0] == "cancelled" and state(world, rebuild)[0] == "succeeded"
    assert all(world.vm(name)["observed"] == "running" and owner(world, name)[0] != "n1" for name in "abcd")
    assert world.node("n1")["operation"] is None and not len(world.tables().migrations)


def test_the_target_may_be_proven_too(world: World) -> None:
    answer = migrate(world)
    lose(world, "n2")
    lose(world, "n1")
    world.run(2)
    rebuild = world.do(m.NodeRebuild, name="n1")
    world.settle()
    world.run(2)
    assert owner(world)[0] == "n3" and state(world, rebuild)[0] == "succeeded"
    assert state(world, answer)[0] == "failed"


def test_a_rebuild_finds_the_copy_running(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.deaf.add("n2")
    lose(world)
    world.deaf.clear()
    world.agents["n2"].start()
    world.settle()
    assert owner(world)[0] == "n2" and state(world, answer)[0] == "succeeded"
    assert world.do(m.NodeRebuild, name="n1")["changed"] is False


def test_a_source_that_comes_back_during_its_rebuild_is_heard(world: World) -> None:
    answer = migrate(world)
    world.deaf.add("n2")
    lose(world)
    rebuild = world.do(m.NodeRebuild, name="n1")
    agent = world.agents["n1"]
    agent.boot_again()
    world.run(2)
    assert step(world, rebuild)[1] == "was being migrated to n2: n1 is heard, and says how that ended"
    agent.stay(WEB, "the host lost its power")
    said(world, "n1")
    world.deaf.clear()
    world.run(60)
    assert state(world, answer)[0] == "failed" and state(world, rebuild)[0] == "succeeded"
    assert sum(WEB in a.running for a in world.agents.values()) == 1
