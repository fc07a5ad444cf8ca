"""Drain and rebuild: evidence, moves, races, and what comes back in the middle."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chimed.core.rules import ownership
from chimed.core.rules.alarms import UNKNOWN_MAX
from tests.unit.server.world import LOCAL, SPEC, World, running, uuid_of
from wire import messages as m
from wire.types import EPOCHS_PER_GENERATION, Observed

WEB = uuid_of("web")


@pytest.fixture
def world() -> World:
    return running("n1", "n2", "n3")


def lose(world: World, name: str = "n1", drain: bool = True, evidence: bool = False) -> None:
    world.agents[name].power_off()
    world.run(60)
    if drain:
        given: dict[str, Any] = {"evidence": "operator", "comment": "unplugged"} if evidence else {}
        world.do(m.NodeDrain, name=name, **given)


def test_a_drain_is_proven_by_the_agent(world: World) -> None:
    answer = world.do(m.NodeDrain, name="n1")
    assert answer["plan"][1] == "stops 1 running VM on n1: web"
    assert world.node("n1")["operation"] == answer["operation"]["id"]
    assert world.refuse(m.NodeRebuild, name="n1").code == "locked"
    world.settle()
    assert world.op(answer)["state"] == "succeeded"
    assert (world.node("n1")["drain_evidence"], world.node("n1")["operation"]) == ("agent", None)
    assert world.vm("web")["observed"] == "stopped" and not world.node("n1")["schedulable"]


@pytest.mark.parametrize("wrong", ["serial", "boot", "running", "unclean", "none"])
def test_a_proof_that_does_not_fit_proves_nothing(world: World, wrong: str) -> None:
    world.do(m.NodeDrain, name="n1")
    agent = world.agents["n1"]
    for page in agent.pull():
        agent.apply(page)
    agent.running.clear()
    fields: dict[str, Any] = {"drain_serial": 1, "boot_id": agent.boot, "clean": True}
    fields |= {"serial": {"drain_serial": 0}, "boot": {"boot_id": uuid_of("x")}, "unclean": {"clean": False},
               "running": {"running": (WEB,)}}.get(wrong, {})  # fmt: skip
    agent.report(drain=m.DrainProof(**fields) if wrong != "none" else None)
    assert world.node("n1")["drain_evidence"] is None


@pytest.mark.parametrize("observed", ["running", "paused", "migrating", "unknown"])
def test_what_is_not_reported_as_stopped_contradicts_the_proof(world: World, observed: str) -> None:
    world.do(m.NodeDrain, name="n1")
    agent = world.agents["n1"]
    for page in agent.pull():
        agent.apply(page)
    agent.running.clear()
    agent.strays[uuid_of("stray")] = (1, observed)
    agent.report(drain=m.DrainProof(drain_serial=1, boot_id=agent.boot, clean=True))
    assert world.node("n1")["drain_evidence"] is None


def test_a_proof_of_another_session_is_refused(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    agent = world.agents["n1"]
    for page in agent.pull():
        agent.apply(page)
    agent.act()
    agent.hello(incarnation="newer")
    with pytest.raises(Exception, match="stale-session"):
        agent.report()
    assert world.node("n1")["drain_evidence"] is None


@pytest.mark.parametrize("how", ["enable", "drain-again", "running", "boot"])
def test_evidence_is_withdrawn(world: World, how: str) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    agent = world.agents["n1"]
    if how == "enable":
        world.do(m.NodeEnable, name="n1")
    elif how == "drain-again":
        world.do(m.NodeEnable, name="n1")
        agent.stuck = True
        world.do(m.NodeDrain, name="n1")
    elif how == "running":
        agent.running.add(WEB)
        agent.report()
        assert "evidence-withdrawn" in world.actions("n1")
    else:
        agent.boot = uuid_of("second")
        agent.connect()
        world.run(3)
        agent.connect()
        assert "evidence-withdrawn" in world.actions("n1")
    assert world.node("n1")["drain_evidence"] is None


def test_the_operators_word_ends_when_the_node_reports_a_running_vm(world: World) -> None:
    world.deaf.add("n1")
    world.run(70)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="I believe so")
    assert world.node("n1")["drain_evidence"] == "operator"
    world.agents["n1"].stuck = True
    world.deaf.clear()
    world.run(20)
    assert world.node("n1")["drain_evidence"] is None
    assert world.refuse(m.NodeRebuild, name="n1").code == "no-evidence"


def test_draining_a_lost_node_ends_at_once_with_a_warning(world: World) -> None:
    world.agents["n1"].power_off()
    world.run(60)
    answer = world.do(m.NodeDrain, name="n1")
    assert world.op(answer)["state"] == "succeeded" and "nothing proves" in answer["warnings"][0]
    assert world.node("n1")["drain_evidence"] is None and world.node("n1")["operation"] is None
    assert world.do(m.NodeDrain, name="n1")["changed"] is False
    assert world.do(m.NodeDrain, name="n1", evidence="operator", comment="c")["changed"] is True
    assert world.node("n1")["drain_evidence"] == "operator"


def test_a_node_lost_while_it_drains_fails_the_drain(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.NodeDrain, name="n1")
    world.agents["n1"].power_off()
    world.run(70)
    assert world.op(answer)["state"] == "failed" and world.op(answer)["outcome"].startswith("node-unreachable: ")
    assert world.node("n1")["admin_state"] == "drained"


def test_a_drain_goes_on_after_a_crash_of_the_server(world: World) -> None:
    answer = world.do(m.NodeDrain, name="n1")
    world.crash()
    world.run(10)
    world.start()
    assert world.op(answer)["state"] == "succeeded" and world.node("n1")["drain_evidence"] == "agent"


def test_the_operators_word_is_not_taken_while_the_agent_may_be_heard(world: World) -> None:
    word = {"evidence": "operator", "comment": "c"}
    assert world.refuse(m.NodeDrain, name="n1", **word).code == "no-evidence"
    world.crash()
    assert world.refuse(m.NodeDrain, name="n1", **word).code == "no-evidence"
    world.agents["n1"].power_off()
    world.start("n2", "n3")
    world.run(60)
    world.crash()
    world.do(m.NodeDrain, name="n1", **word)  # an earlier life of the server found it lost, and it was not heard since


def test_rebuild_is_refused_until_it_is_safe(world: World) -> None:
    assert world.refuse(m.NodeRebuild, name="n1").code == "refused-unsafe"
    lose(world)
    body = world.refuse(m.NodeRebuild, name="n1")
    assert body.code == "no-evidence" and "--evidence operator" in body.message


def test_rebuild_moves_what_can_be_moved(world: World) -> None:
    world.create("off", "n1", desired="stopped")
    world.create("pet", "n1", spec=LOCAL)
    lose(world)
    epochs = {name: world.vm(name)["epoch"] for name in ("web", "off", "pet")}
    answer = world.do(m.NodeRebuild, name="n1", evidence="operator", comment="unplugged")
    assert "local" in answer["warnings"][0]
    assert len(world.tables().releases.by("node", "n1")) == 2
    world.settle()
    op = world.op(answer)
    assert op["state"] == "succeeded" and op["outcome"] == "2 rebuilt, 1 left in place"
    assert sorted((s["name"], s["state"]) for s in op["steps"]) == [
        ("off", "done"),
        ("pet", "skipped"),
        ("web", "done"),
    ]
    assert world.vm("web")["observed"] == "running" and world.vm("off")["observed"] == "stopped"
    assert world.vm("pet")["node"] == "n1" and world.vm("pet")["epoch"] == epochs["pet"]
    assert world.vm("web")["epoch"] > epochs["web"] and world.vm("off")["epoch"] > epochs["off"]
    assert world.alarms() == [("node-unreachable", "n1")]
    assert world.node("n1")["last_operation"] == op["id"]
    moved = next(e for _, e in world.disk.events if e.action == "vm-moved")
    assert "evidence operator" in moved.text and moved.operation == op["id"]


def test_the_old_node_comes_back_and_cleans_up(world: World) -> None:
    lose(world, evidence=True)
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    agent = world.agents["n1"]
    agent.boot_again()
    assert not agent.running and world.node("n1")["health"] == "normal"
    agent.sync()
    assert not world.tables().releases.by("node", "n1") and WEB not in agent.held
    world.do(m.NodeEnable, name="n1")
    world.settle()
    assert not agent.running and world.vm("web")["observed"] == "running"


def test_the_old_node_comes_back_in_the_middle(world: World) -> None:
    """While steps wait for room; with evidence of an operator who was wrong nothing more is moved."""
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    agent = world.agents["n1"]
    agent.host_up = agent.up = True
    agent.connect()
    agent.next_beat = world.now + 15
    world.do(m.NodeEnable, name="n2")
    world.run(3)
    assert world.op(answer)["steps"][0]["detail"] == "n1 is back: its report is awaited"
    assert world.vm("web")["node"] == "n1"
    agent.stuck = True
    agent.running.add(WEB)
    agent.sync()
    assert world.op(answer)["outcome"].startswith("no-evidence: ") and world.vm("web")["node"] == "n1"


def test_no_room_waits_and_is_retried(world: World) -> None:
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    world.run(1000)
    step = world.op(answer)["steps"][0]
    assert step["state"] == "waiting" and "no room: n2 is disabled; n3 is disabled" in step["detail"]
    assert world.op(answer)["state"] == "running"
    assert world.refuse(m.NodeEnable, name="n1").code == "locked"
    world.do(m.NodeEnable, name="n3")
    world.run(5)
    world.settle()
    assert world.op(answer)["state"] == "succeeded" and world.vm("web")["node"] == "n3"


def test_races_one_wins(world: World) -> None:
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    lose(world, evidence=True)
    world.do(m.NodeRebuild, name="n1")
    for kind in (m.NodeRebuild, m.NodeDrain, m.NodeEnable, m.NodeDisable, m.NodeRemove):
        assert world.refuse(kind, name="n1").code == "locked"
    for kind in (m.VmStop, m.VmReboot, m.VmDelete):
        assert world.refuse(kind, vm="web").code == "locked"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_of_the_server_in_the_middle(world: World, when: str) -> None:
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    if when == "after":
        world.settle(1)
    owner = world.vm("web")["node"]
    world.crash()
    world.run(5)
    world.start("n2", "n3")
    world.run(60)
    assert world.op(answer)["state"] == "succeeded" and world.vm("web")["node"] == owner


def test_the_target_is_lost_too(world: World) -> None:
    lose(world, evidence=True)
    first = world.do(m.NodeRebuild, name="n1")
    target = world.vm("web")["node"]
    lose(world, target, evidence=True)
    second = world.do(m.NodeRebuild, name=target)
    world.settle()
    assert world.op(second)["state"] == "succeeded" and world.op(first)["state"] == "succeeded"
    assert len(world.tables().releases.by("uuid", WEB)) == 2


def test_the_target_cannot_start_it(world: World) -> None:
    lose(world, evidence=True)
    for name in ("n2", "n3"):
        world.agents[name].failed[WEB] = "disk is not visible"
    answer = world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.op(answer)["state"] == "failed" and "web" in world.op(answer)["outcome"]


def test_vms_that_were_being_deleted_are_forgotten(world: World) -> None:
    world.agents["n1"].stuck = True
    delete = world.do(m.VmDelete, vm="web")
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    assert "forgets web, being deleted" in answer["plan"]
    assert world.op(delete)["state"] == "succeeded" and not len(world.tables().vms)
    assert world.tables().releases.get("n1", WEB) is not None
    world.do(m.NodeRemove, name="n1")


def test_a_vm_deleted_while_it_waits(world: World) -> None:
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    world.do(m.VmDelete, vm="web")
    world.settle()
    world.run(2)
    assert world.op(answer)["steps"][0]["state"] == "skipped" and world.op(answer)["state"] == "succeeded"


def test_an_empty_node_has_nothing_to_rebuild(world: World) -> None:
    lose(world, "n2", evidence=True)
    assert world.do(m.NodeRebuild, name="n2")["changed"] is False


def test_a_drain_on_the_node_itself_is_adopted(world: World) -> None:
    agent = world.agents["n1"]
    agent.running.clear()
    agent.report(local_drain=True)
    assert world.node("n1")["admin_state"] == "drained"
    agent.sync()
    assert world.node("n1")["drain_evidence"] == "agent"


def test_enable_starts_again(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    assert "starts 1 VM on n1: web" in world.do(m.NodeEnable, name="n1")["plan"]
    world.settle()
    assert world.vm("web")["observed"] == "running"


def test_two_copies(world: World) -> None:
    """Critical alarm, a release for the copy of the node that does not own it, and no word against the owner's: that
    goes on as it was, since anybody may say that he has a copy."""
    other, epoch = world.agents["n2"], world.vm("web")["epoch"]
    other.stuck = True
    other.strays[WEB] = (epoch, "running")
    other.report()
    assert world.vm("web")["epoch"] == epoch
    assert "has still to remove another copy" in world.refuse(m.VmMigrate, vm="web", to="n2").message
    world.agents["n1"].sync()
    assert world.alarms() == [("vm-duplicate", "web")]
    assert [r.node for r in world.tables().releases] == ["n2"]
    world.agents["n3"].report()
    assert world.alarms() == [("vm-duplicate", "web")]
    releases = world.saved()["releases"]
    other.report()
    assert world.saved()["releases"] == releases, "told once"
    other.stuck = False
    other.sync()
    assert world.alarms() == [] and not len(world.tables().releases)
    assert world.vm("web")["observed"] == "running"


def test_a_vm_that_is_not_known(world: World) -> None:
    other = world.agents["n2"]
    other.strays[uuid_of("who")] = (3, "running")
    other.report()
    assert world.alarms() == [("vm-unknown", uuid_of("who"))]
    assert not len(world.tables().releases)
    other.strays.clear()
    other.report()
    assert world.alarms() == []


def test_an_alarm_of_a_vm_outlives_a_crash_and_ends_with_it(world: World) -> None:
    agent = world.agents["n1"]
    agent.failed[WEB] = "broken"
    agent.act()
    agent.report()
    first = world.ask(m.AlarmList())["items"]
    world.crash()
    world.start("n2", "n3")
    assert world.ask(m.AlarmList())["items"] == first
    world.do(m.AlarmAck, id=first[0]["id"], comment="seen")
    agent.failed.clear()
    agent.start()
    assert world.alarms() == []
    assert world.ask(m.AlarmList(all=True))["items"][0]["acked_by"] == "op"


def test_pages_are_ordered_and_complete() -> None:
    world = World("n1")
    agent = world.agents["n1"]
    agent.vcpus, agent.memory_mib = 10_000, 10_000_000
    world.start()
    big = m.VmSpec(vcpus=1, memory_mib=16, xml=f"<domain>{'x' * 2000}</domain>")
    for i in range(620):
        world.do(m.VmCreate, name=f"v{i}", uuid=uuid_of(f"v{i}"), spec=big)
    agent.sync()
    world.do(m.VmDelete, vm="v0")
    world.do(m.VmReboot, vm="v1")
    pages = agent.pull(0)
    assert len(pages) > 2 and [p.more for p in pages] == [True] * (len(pages) - 1) + [False]
    found = [vm.revision for page in pages for vm in page.vms]
    assert found == sorted(found) and len(set(found)) == 619
    assert [r.uuid for r in pages[-1].releases] == [uuid_of("v0")] and len(pages[-1].commands) == 1
    assert pages[-1].revision == world.tables().nodes.get("n1").revision  # type: ignore[union-attr]
    assert agent.pull(pages[-1].revision)[0].vms == ()
    world.create("late")
    assert [vm.name for vm in agent.pull(pages[-1].revision)[0].vms] == ["late"]


def test_room_that_a_dry_run_promises_is_what_happens(world: World) -> None:
    world.create("two", "n1")
    lose(world, evidence=True)
    plan = world.ask(m.NodeRebuild(key="d", name="n1", dry_run=True))["plan"]
    world.do(m.NodeRebuild, name="n1")
    for name in ("web", "two"):
        assert f"starts {name} on {world.vm(name)['node']}" in plan


def test_unchanged_spec(world: World) -> None:
    assert world.ask(m.VmShow(vm="web"))["spec"]["memory_mib"] == SPEC.memory_mib


def test_a_release_never_names_the_owners_present_epoch(world: World) -> None:
    vm = world.tables().vms.get(WEB)
    assert vm is not None
    for epoch in (vm.epoch, vm.epoch + 1):
        with pytest.raises(AssertionError, match="present epoch"):
            ownership.release(world.core.ctx, "n1", vm, epoch)
    assert not len(world.tables().releases)


def test_proof_is_withdrawn_when_the_agent_cannot_tell_any_more(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    agent = world.agents["n1"]
    proof = agent.proof()
    assert proof is not None and world.node("n1")["drain_evidence"] == "agent"
    agent.report(drain=msgspec.structs.replace(proof, clean=False))
    assert world.node("n1")["drain_evidence"] is None
    assert world.refuse(m.NodeRebuild, name="n1").code == "no-evidence"


def test_a_rebuild_waits_until_each_vm_runs(world: World) -> None:
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    target = world.agents[world.vm("web")["node"]]
    for page in target.pull():
        target.apply(page)
    target.report()  # it has the VM and has not started it yet
    assert world.op(answer)["state"] == "running" and world.op(answer)["steps"][0]["state"] == "running"
    target.sync()
    assert world.op(answer)["state"] == "succeeded"


def test_a_deletion_whose_operation_timed_out_ends_with_the_rebuild(world: World) -> None:
    deletion = world.do(m.VmDelete, vm="web")
    world.agents["n1"].power_off()
    world.run(400)
    assert world.op(deletion)["state"] == "failed" and world.vm("web")["desired"] == "deleted"
    lose(world, evidence=True)
    world.do(m.NodeRebuild, name="n1")
    assert world.refuse(m.VmShow, vm="web").code == "not-found"
    assert [release.node for release in world.tables().releases] == ["n1"]


def test_commands_of_a_node_end_with_it(world: World) -> None:
    lose(world, drain=False)
    world.agents["n1"].boot_again()
    world.settle()
    world.agents["n1"].power_off()
    reboot = world.do(m.VmReboot, vm="web")
    world.run(55)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.tables().commands.count_by("node", "n1") == 1 and world.op(reboot)["state"] == "running"
    assert world.do(m.NodeRemove, name="n1")["warnings"]
    assert not len(world.tables().commands) and len(world.tables().releases) == 1
    world.run(60)
    assert world.op(reboot)["state"] == "failed" and world.vm("web")["observed"] == "running"


@pytest.mark.parametrize("node", ["n1", "n2"], ids=["owner", "another"])
def test_an_epoch_that_cannot_be_is_not_believed(world: World, node: str) -> None:
    before = world.vm("web")
    epoch = (1 if node == "n2" else 0) + EPOCHS_PER_GENERATION
    for reported in (EPOCHS_PER_GENERATION + 1, epoch):
        report = m.VmReport(uuid=WEB, epoch=reported, revision=1, observed=Observed.STOPPED)
        world.agents[node].report(vms=(report,))
    after = world.vm("web")
    assert (after["node"], after["epoch"] >= before["epoch"]) == ("n1", True)
    assert world.ask(m.ServerStatus())["counters"]["impossible-epochs"] >= 1
    assert not len(world.tables().releases) and after["epoch"] <= EPOCHS_PER_GENERATION


def test_a_higher_epoch_elsewhere_in_the_same_generation_is_not_believed(world: World) -> None:
    report = m.VmReport(uuid=WEB, epoch=world.vm("web")["epoch"] + 5, revision=1, observed=Observed.STOPPED)
    before = world.vm("web")
    world.agents["n2"].report(vms=(report,))
    assert world.vm("web") == before and not len(world.tables().releases)
    assert world.ask(m.ServerStatus())["counters"]["impossible-epochs"] == 1


def test_the_owners_higher_epoch_is_not_believed_without_proof(world: World) -> None:
    report = m.VmReport(uuid=WEB, epoch=world.vm("web")["epoch"] + 5, revision=1, observed=Observed.STOPPED)
    before = world.vm("web")
    world.agents["n1"].report(vms=(report,))
    assert world.vm("web")["epoch"] == before["epoch"] and not len(world.tables().releases)
    assert world.ask(m.ServerStatus())["counters"]["impossible-epochs"] == 1


def test_a_node_that_invents_vms_does_not_bury_other_alarms(world: World) -> None:
    agent = world.agents["n2"]
    agent.strays = {uuid_of(f"s{i}"): (1, "running") for i in range(UNKNOWN_MAX + 20)}
    agent.report()
    assert len(world.alarms()) == UNKNOWN_MAX
    known = world.alarms()[0][1]
    agent.strays[known] = (1, "stopped")
    agent.report()
    assert len(world.alarms()) == UNKNOWN_MAX
    (text,) = (a["text"] for a in world.ask(m.AlarmList(limit=1000))["items"] if a["subject"] == known)
    assert "(stopped)" in text, "an alarm that is raised says what is so now"
    world.agents["n1"].failed[WEB] = "broken"
    world.agents["n1"].report()
    assert ("vm-failed", "web") in world.alarms()
    agent.strays = {known: (1, "stopped")}
    agent.report()
    assert world.alarms() == [("vm-failed", "web"), ("vm-unknown", known)]


def test_a_rebuild_waits_while_the_agent_has_to_prove_the_drain_again(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    answer = world.do(m.NodeRebuild, name="n1")
    agent = world.agents["n1"]
    proof = agent.proof()
    assert proof is not None
    agent.report(drain=msgspec.structs.replace(proof, clean=False))
    world.do(m.NodeEnable, name="n2")
    world.run(2)
    (step,) = world.op(answer)["steps"]
    assert step["state"] == "waiting" and step["detail"].endswith("its agent has to prove it again")
    assert world.vm("web")["node"] == "n1"
    agent.report(drain=proof)
    world.settle()
    assert world.op(answer)["state"] == "succeeded" and world.vm("web")["node"] == "n2"


@pytest.mark.parametrize(("seen_before", "code"), [(True, "vm-duplicate"), (False, "vm-misplaced")])
def test_an_alarm_of_copies_stays_what_it_was_while_the_owner_cannot_tell(
    world: World, seen_before: bool, code: str
) -> None:
    owner, other = world.agents["n1"], world.agents["n2"]
    other.stuck = True
    other.strays[WEB] = (world.vm("web")["epoch"], "running")
    unknown = msgspec.structs.replace(owner.vm_report(WEB), observed=Observed.UNKNOWN)
    if seen_before:
        other.report()
    owner.report(vms=(unknown,))
    other.report()
    assert world.alarms() == [(code, "web")]


def test_several_vms_that_fit_nowhere_wait_together(world: World) -> None:
    world.create("db", "n1")
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    lose(world, evidence=True)
    answer = world.do(m.NodeRebuild, name="n1")
    assert {step["state"] for step in world.op(answer)["steps"]} == {"waiting"}
    world.do(m.NodeEnable, name="n2")
    world.run(20)
    assert world.op(answer)["state"] == "succeeded"


@pytest.mark.parametrize("how", ["answers", "silent", "no ping"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_word_for_a_host_that_answers_ping_is_doubted(world: World, how: str, dry_run: bool) -> None:
    def warnings(kind: type[m.Mutation]) -> str:
        return "\n".join(world.do(kind, name="n1", evidence="operator", comment="off", dry_run=dry_run)["warnings"])

    agent = world.agents["n1"]
    if how == "silent":
        agent.power_off()
    else:
        agent.up = False
    if how == "no ping":
        world.unping.add("n1")
    world.run(70)
    doubted = how == "answers"
    assert ("n1 ANSWERS PING" in warnings(m.NodeDrain)) is doubted
    if dry_run:
        world.do(m.NodeDrain, name="n1")
        assert ("n1 ANSWERS PING" in warnings(m.NodeDrain)) is doubted
        assert ("n1 ANSWERS PING" in warnings(m.NodeRebuild)) is doubted
