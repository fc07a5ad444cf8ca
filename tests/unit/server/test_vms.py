"""Operations on VMs: how they end, what supersedes them, what a lost node does to them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chimed.core.work.operations import KEPT_PER_SUBJECT
from tests.unit.server.world import SPEC, World, uuid_of
from wire import messages as m
from wire.types import Desired, Evidence, NetworkKind, Observed, Outcome

WEB = uuid_of("web")


def test_create_start_stop_reboot_delete(world: World) -> None:
    agent = world.agents["n1"]
    assert world.vm("web")["observed"] == "running" and world.vm("web")["operation"] is None
    for kind, observed in ((m.VmStop, "stopped"), (m.VmStart, "running"), (m.VmReboot, "running")):
        answer = world.do(kind, vm="web")
        assert world.vm("web")["operation"] == answer["operation"]["id"]
        world.settle()
        assert world.op(answer)["state"] == "succeeded" and world.vm("web")["observed"] == observed
    assert not world.tables().commands.by("node", "n1")
    answer = world.do(m.VmDelete, vm=WEB)
    assert world.do(m.VmDelete, vm="web")["changed"] is False
    assert world.refuse(m.VmStart, vm="web").code == "conflict"
    assert world.refuse(m.VmCreate, name="w2", spec=SPEC, uuid=WEB).code == "exists"
    world.settle()
    assert world.op(answer)["state"] == "succeeded" and not agent.running
    assert world.refuse(m.VmShow, vm="web").code == "not-found"


def test_placement_spreads_and_filters(world: World) -> None:
    names = [world.create(f"s{i}")["vm"]["node"] for i in range(3)]
    assert names == ["n2", "n1", "n2"]
    world.do(m.NodeDisable, name="n2")
    assert world.create("s4")["vm"]["node"] == "n1"
    world.agents["n1"].faults = (m.Fault(code="broken"),)
    world.run(16)
    body = world.refuse(m.VmCreate, name="s5", spec=SPEC)
    assert body.code == "no-room" and "n1 is error (broken)" in body.message and "n2 is disabled" in body.message


def test_room_is_used_up_and_given_back(world: World) -> None:
    big = m.VmSpec(vcpus=1, memory_mib=8000)
    world.create("a", "n2", spec=big)
    world.create("b", "n2", spec=big)
    assert "MiB of memory left" in world.refuse(m.VmCreate, name="c", spec=big, node="n2").message
    world.do(m.VmDelete, vm="a")
    assert world.refuse(m.VmCreate, name="c", spec=big, node="n2").code == "no-room"
    world.settle()
    world.create("c", "n2", spec=big)
    assert world.node("n2")["memory_used_mib"] == 16000


def test_no_kvm_no_kvm_vm(world: World) -> None:
    spec = m.VmSpec(vcpus=1, memory_mib=64, virt_type="kvm")  # type: ignore[arg-type]
    assert "has no KVM" in world.refuse(m.VmCreate, name="k", spec=spec).message


def test_a_newer_operation_supersedes(world: World) -> None:
    world.agents["n1"].stuck = True
    stop = world.do(m.VmStop, vm="web")
    start = world.do(m.VmStart, vm="web")
    assert world.op(stop)["state"] == "cancelled" and start["operation"]["id"] in world.op(stop)["outcome"]
    assert world.vm("web")["operation"] == start["operation"]["id"]


def test_starting_a_failed_vm_clears_it(world: World) -> None:
    agent = world.agents["n1"]
    agent.failed[WEB] = "disk is missing"
    agent.sync()
    assert world.vm("web")["observed"] == "failed" and world.alarms() == [("vm-failed", "web")]
    answer = world.do(m.VmStart, vm="web")
    assert world.op(answer)["state"] == "running", "the old report does not fail the new start"
    world.settle()
    assert world.op(answer)["state"] == "succeeded" and world.alarms() == []


def test_a_start_that_fails_says_why(world: World) -> None:
    agent = world.agents["n1"]
    answer = world.do(m.VmStart, vm="web")
    for page in agent.pull():
        agent.apply(page)
    agent.failed[WEB] = "disk is missing"
    agent.act()
    agent.report()
    assert (world.op(answer)["state"], world.op(answer)["outcome"]) == ("failed", "disk is missing")


def test_a_guest_that_powers_itself_off_stays_off(world: World) -> None:
    agent = world.agents["n1"]
    agent.halted.add(WEB)
    agent.running.clear()
    agent.report()
    assert world.vm("web")["desired"] == "stopped"
    world.do(m.VmStart, vm="web")
    agent.report()
    assert world.vm("web")["desired"] == "running", "a late report of the old halt does not undo the start"
    world.settle()
    assert world.vm("web")["observed"] == "running"


def test_observed_is_unknown_while_nobody_can_tell(world: World) -> None:
    world.agents["n1"].kill()
    world.run(60)
    assert world.vm("web")["observed"] == "unknown" and world.node("n1")["vms_running"] == 0
    assert world.refuse(m.VmStop, vm="web").code == "node-unreachable"
    world.agents["n1"].start()
    assert world.vm("web")["observed"] == "running"
    world.crash()
    assert world.vm("web")["observed"] == "unknown"


def test_an_operation_whose_node_is_lost_times_out_as_unreachable(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.VmStop, vm="web")
    world.agents["n1"].power_off()
    world.run(600)
    assert world.op(answer)["state"] == "failed" and world.op(answer)["outcome"].startswith("node-unreachable: ")
    assert world.vm("web")["operation"] is None


def test_an_operation_goes_on_after_a_crash_of_the_server(world: World) -> None:
    agent = world.agents["n1"]
    agent.stuck = True
    answer = world.do(m.VmStop, vm="web")
    world.crash()
    agent.stuck = False
    agent.start()
    assert world.op(answer)["state"] == "succeeded"
    slow = world.agents["n1"]
    slow.stuck = True
    answer = world.do(m.VmStart, vm="web")
    world.crash()
    world.run(700)
    assert world.op(answer)["state"] == "failed"


def test_a_late_command_is_not_delivered(world: World) -> None:
    """Its deadline is that of its operation, not of its arrival."""
    agent = world.agents["n1"]
    answer = world.do(m.VmReboot, vm="web")
    world.now += 50
    page = agent.pull(0)[-1]
    assert page.commands[0].deadline_s == pytest.approx(10)
    world.now += 30
    assert agent.pull(0)[-1].commands == ()
    agent.poked = False
    world.run(2)
    assert world.op(answer)["state"] == "failed"
    agent.report(results=(m.CommandResult(id=page.commands[0].id, outcome="done"),))  # type: ignore[arg-type]
    assert world.op(answer)["state"] == "failed"


def test_a_node_that_is_drained_fails_a_start(world: World) -> None:
    world.agents["n1"].stuck = True
    world.do(m.VmStop, vm="web")
    start = world.do(m.VmStart, vm="web")
    world.agents["n1"].running.clear()
    world.do(m.NodeDrain, name="n1")
    world.run(2)
    assert world.op(start)["outcome"].startswith("refused-unsafe: ")
    assert world.refuse(m.VmStart, vm="web").code == "refused-unsafe"


def test_deleting_on_a_dead_drained_node_needs_evidence(world: World) -> None:
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1")
    assert world.refuse(m.VmDelete, vm="web").code == "node-unreachable"
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    answer = world.do(m.VmDelete, vm="web")
    assert answer["warnings"] and world.op(answer)["state"] == "succeeded"
    assert world.refuse(m.VmShow, vm="web").code == "not-found"
    assert world.refuse(m.VmCreate, name="w2", spec=SPEC, uuid=WEB).code == "conflict"
    world.agents["n1"].boot_again()
    world.run(5)
    world.agents["n1"].boot_again() if world.agents["n1"].session is None else None
    world.settle()
    assert not world.tables().releases.by("uuid", WEB) and not world.agents["n1"].running


def test_a_uuid_that_comes_back_gets_a_later_epoch(world: World) -> None:
    epoch = world.vm("web")["epoch"]
    world.do(m.VmDelete, vm="web")
    world.settle()
    world.create("again", "n1", uuid=WEB)
    assert world.vm("again")["epoch"] > epoch and world.vm("again")["observed"] == "running"
    assert world.create("fresh", uuid=None)["vm"]["epoch"] == 1


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (m.VmSpec(vcpus=1, memory_mib=64, networks=(m.Network(kind="bridge"),)), "bridge"),  # type: ignore[arg-type]
        (m.VmSpec(vcpus=1, memory_mib=64, networks=(m.Network(kind=NetworkKind.USER, bridge="br0"),)), "no bridge"),
        (m.VmSpec(vcpus=1, memory_mib=64, disks=(m.Disk(path="/a"), m.Disk(path="/a"))), "same path"),
        (m.VmSpec(vcpus=1, memory_mib=64, disks=(m.Disk(path="/a", storage="none"),)), "shared or local"),  # type: ignore[arg-type]
        (m.VmSpec(vcpus=1, memory_mib=64, xml="<!DOCTYPE x>"), "DOCTYPE"),
    ],
)
def test_specs_that_the_schema_cannot_refuse(world: World, spec: m.VmSpec, word: str) -> None:
    body = world.refuse(m.VmCreate, name="x", spec=spec)
    assert body.code == "invalid" and word in body.message


def test_networks_of_both_kinds_are_taken(world: World) -> None:
    networks = (m.Network(kind=NetworkKind.BRIDGE, bridge="br0"), m.Network(kind=NetworkKind.USER))
    world.create("db", spec=m.VmSpec(vcpus=1, memory_mib=64, networks=networks))
    assert [n["kind"] for n in world.ask(m.VmShow(vm="db"))["spec"]["networks"]] == ["bridge", "user"]


def test_cancelling(world: World) -> None:
    world.agents["n1"].stuck = True
    stop = world.do(m.VmStop, vm="web")
    world.do(m.OpCancel, id=stop["operation"]["id"])
    assert world.op(stop)["state"] == "cancelled" and world.vm("web")["operation"] is None
    delete = world.do(m.VmDelete, vm="web")
    assert world.refuse(m.OpCancel, id=delete["operation"]["id"]).code == "conflict"


def test_what_the_views_hold(world: World) -> None:
    vm, node = world.vm("web"), world.node("n1")
    assert {"name", "uuid", "node", "epoch", "desired", "observed", "storage", "restarts"} <= set(vm)
    assert {
        "name", "admin_state", "health", "reasons", "drain_evidence", "operation", "vms", "last_heartbeat_age_s",
        "schedulable",
    } <= set(node)  # fmt: skip
    assert (node["vms"], node["vms_running"], node["schedulable"]) == (1, 1, True)


def test_explanations(world: World) -> None:
    assert "running on its owner n1" in world.ask(m.Explain(kind="vm", name="web"))["lines"][0]
    world.agents["n1"].power_off()
    world.run(60)
    lines = " ".join(world.ask(m.Explain(kind="node", name="n1"))["lines"])
    assert "unreachable" in lines and "may still be running" in lines
    assert "cannot be told" in " ".join(world.ask(m.Explain(kind="vm", name="web"))["lines"])
    world.do(m.NodeDrain, name="n1")
    assert "Rebuild is refused" in " ".join(world.ask(m.Explain(kind="node", name="n1"))["lines"])


def test_pages_of_lists(world: World) -> None:
    for i in range(5):
        world.create(f"p{i}")
    seen, after = [], ""
    while True:
        page = world.ask(m.VmList(after=after, limit=2))
        seen += [vm["name"] for vm in page["items"]]
        after = page["next"]
        if not after:
            break
    assert seen == ["p0", "p1", "p2", "p3", "p4", "web"]


def test_a_start_waits_for_the_word_of_its_node(world: World) -> None:
    world.agents["n1"].next_beat = world.now + 10
    answer = world.do(m.VmCreate, name="db", spec=SPEC, node="n1")
    world.run(3)
    assert world.op(answer)["state"] == "running" and world.vm("db")["observed"] == "unknown"
    world.settle()
    assert world.op(answer)["state"] == "succeeded"


def stopped_create(world: World) -> tuple[Any, m.VmReport]:
    """A VM that is created stopped, and what its agent says of it once it has its definition."""
    agent = world.agents["n1"]
    answer = world.do(m.VmCreate, name="db", spec=SPEC, node="n1", uuid=uuid_of("db"), desired=Desired.STOPPED)
    for page in agent.pull():
        agent.apply(page)
    return answer, agent.vm_report(uuid_of("db"))


@pytest.mark.parametrize("change", [{"revision": 1}, {"observed": Observed.UNKNOWN}])
def test_a_stopped_vm_is_created_only_when_its_agent_says_so(world: World, change: dict[str, Any]) -> None:
    answer, report = stopped_create(world)
    world.agents["n1"].report(vms=(msgspec.structs.replace(report, **change),))
    assert world.op(answer)["state"] == "running"
    world.agents["n1"].report(vms=(report,))
    assert (world.op(answer)["state"], world.op(answer)["outcome"]) == ("succeeded", "stopped on n1")


def test_a_stopped_vm_that_cannot_be_defined_fails_its_creation(world: World) -> None:
    answer, report = stopped_create(world)
    failed = msgspec.structs.replace(report, observed=Observed.FAILED, problem="start-failed", detail="no disk")
    world.agents["n1"].report(vms=(failed,))
    assert (world.op(answer)["state"], world.op(answer)["outcome"]) == ("failed", "no disk")


@pytest.mark.parametrize(("detail", "outcome"), [("too late", "rejected: too late"), ("", "rejected")])
def test_a_reboot_that_its_node_rejects_fails(world: World, detail: str, outcome: str) -> None:
    agent = world.agents["n1"]
    answer = world.do(m.VmReboot, vm="web")
    (command,) = agent.pull()[-1].commands
    agent.report(results=(m.CommandResult(id=command.id, outcome=Outcome.REJECTED, detail=detail),))
    assert (world.op(answer)["state"], world.op(answer)["outcome"]) == ("failed", outcome)
    assert agent.pull(0)[-1].commands == ()


def test_old_operations_of_a_vm_are_forgotten(world: World) -> None:
    for _ in range(15):
        for kind in (m.VmStop, m.VmStart):
            world.do(kind, vm="web")
            world.settle()
    kept = [op for op in world.ask(m.OpList())["items"] if op["subject"] == "web"]
    assert len(kept) == KEPT_PER_SUBJECT and kept[-1]["id"] == "op-31"


def test_a_vm_takes_commands_while_its_node_drains(world: World) -> None:
    world.agents["n1"].stuck = True
    world.do(m.NodeDrain, name="n1")
    answer = world.do(m.VmStop, vm="web", force=True)
    assert world.op(answer)["state"] == "running"


def test_a_vm_takes_no_command_before_its_agent_is_back_after_a_restart(world: World) -> None:
    world.crash()
    assert world.refuse(m.VmStop, vm="web").message.endswith("it has no session with the server yet")
    world.start("n1")
    world.do(m.VmStop, vm="web")


def test_a_vm_that_was_migrated_away_by_hand_is_started_only_on_a_persons_word(world: World) -> None:
    """Nobody knows whether it runs elsewhere."""
    agent = world.agents["n1"]
    agent.running.clear()
    away = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.UNKNOWN, problem="migrated-away")
    agent.report(vms=(away,))
    assert world.refuse(m.VmStart, vm="web").code == "no-evidence"
    assert world.refuse(m.VmStart, vm="web", dry_run=True).code == "no-evidence"
    assert world.refuse(m.VmStart, vm="web", evidence=Evidence.AGENT).code == "invalid"
    told = world.do(m.VmStart, vm="web", evidence=Evidence.OPERATOR, comment="looked everywhere")
    assert told["plan"][1] == "records your word that web runs nowhere else"
    assert "evidence-operator" in world.actions()


def test_a_vm_that_the_database_does_not_know_is_taken_over_where_it_is_and_nowhere_else(world: World) -> None:
    lost, agent = uuid_of("lost"), world.agents["n2"]
    agent.strays[lost] = (1, "running")
    agent.sync()
    assert world.alarms() == [("vm-unknown", lost)]
    refusal = world.refuse(m.VmCreate, name="lost", uuid=lost, spec=SPEC, node="n1")
    assert refusal.code == "conflict" and "--node n2" in refusal.message
    world.crash()
    world.start("n1")
    refusal = world.refuse(m.VmCreate, name="lost", uuid=lost, spec=SPEC, node="n1")
    assert refusal.code == "conflict" and "vm-unknown" in refusal.message
    world.start("n2")
    world.do(m.VmCreate, name="lost", uuid=lost, spec=SPEC, node="n2")
    assert world.vm("lost")["node"] == "n2"
