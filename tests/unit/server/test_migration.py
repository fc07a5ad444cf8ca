"""Live migration: the whole way, its refusals, its races; what the server makes of copies that it did not order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chimed.core.context import Policy
from tests.unit.server.world import LOCAL, SPEC, World, uuid_of
from wire import messages as m
from wire.types import Desired, MigrationPhase, Observed

WEB, DB = uuid_of("web"), uuid_of("db")


@pytest.fixture
def world() -> World:
    world = World("n1", "n2", "n3")
    world.start()
    world.create("web", "n1")
    return world


def migrate(world: World, vm: str = "web", to: str | None = "n2", **fields: Any) -> Any:
    """Asked for, and known to the source."""
    answer = world.do(m.VmMigrate, vm=vm, to=to, **fields)
    world.settle()
    return answer


def attempt(world: World, vm: str = "web") -> str:
    row = world.tables().migrations.get(uuid_of(vm))
    assert row is not None
    return row.attempt


def leave(world: World, source: str = "n1", target: str = "n2", vm: str = "web", observed: str = "running") -> None:
    """It has left and was handed over; nobody has told the server yet."""
    uuid = uuid_of(vm)
    said = world.agents[source].said[uuid]
    world.agents[target].arrive(uuid, world.agents[source].held[uuid].epoch, said.attempt, observed)
    world.agents[source].leave(uuid)


def said(world: World, name: str) -> None:
    """The node says how things are there, and everybody follows."""
    world.agents[name].report()
    world.settle()


def owner(world: World, vm: str = "web") -> tuple[str, int]:
    row = world.tables().vms.get(uuid_of(vm))
    assert row is not None
    return row.node, row.epoch


def state(world: World, answer: Any) -> tuple[str, str]:
    op = world.op(answer)
    return op["state"], op["outcome"]


# --- the way of one migration -----------------------------------------------------------------------------------------


def test_a_vm_is_migrated(world: World) -> None:
    before = owner(world)
    answer = migrate(world)
    assert answer["plan"] == ["migrates web from n1 to n2 while it runs, by 10.0.0.1"]
    order = world.agents["n1"].said[WEB]
    assert (order.attempt, order.phase, order.peer) == (attempt(world), MigrationPhase.LEAVING, "n2")
    assert world.agents["n1"].held[WEB].attempt == order.attempt, "its assignment names the attempt"
    assert world.vm("web")["detail"] == "is being migrated to n2"
    world.agents["n2"].arrive(WEB, before[1], order.attempt)
    said(world, "n2")
    assert owner(world) == before and world.alarms() == []
    leave(world)
    said(world, "n1")
    assert owner(world) == ("n2", before[1] + 1)
    assert world.agents["n2"].held[WEB].arrival == order.attempt and not world.agents["n2"].held[WEB].attempt
    world.run(2)
    assert state(world, answer) == ("succeeded", "migrated to n2")
    assert world.vm("web")["observed"] == "running" and world.vm("web")["operation"] is None
    assert not world.tables().releases.by("uuid", WEB) and not world.agents["n1"].gone
    assert not len(world.tables().migrations) and not len(world.tables().commands)


def test_how_far_it_is(world: World) -> None:
    answer = migrate(world)
    assert world.op(answer)["steps"][0]["detail"] == "to n2"
    world.agents["n1"].progress(WEB, total_mib=2048, remaining_mib=512, rate_mib_s=112, iteration=3, downtime_ms=40)
    before = world.saved()["operations"]
    said(world, "n1")
    assert world.saved()["operations"] == before, "progress is not written"
    op = world.op(answer)
    assert op["steps"][0]["detail"] == "to n2: 512 of 2048 MiB left, 112 MiB/s, iteration 3, 40 ms"
    assert op["steps"][0]["progress"]["remaining_mib"] == 512 and op["progress"] == round(0.75 * 0.99, 3)
    world.agents["n1"].said[WEB] = msgspec.structs.replace(world.agents["n1"].said[WEB], detail="waits for libvirt")
    said(world, "n1")
    assert world.op(answer)["steps"][0]["detail"].endswith("40 ms: waits for libvirt")
    world.agents["n1"].kill()
    world.run(60)
    assert "is not heard: whether it has left cannot be told" in world.op(answer)["steps"][0]["detail"]
    assert world.vm("web")["detail"] == "n1 is not heard; it was being migrated to n2"


@pytest.mark.parametrize("first", ["source", "target"])
@pytest.mark.parametrize("crash", ["", "begun", "arrived", "left", "moved"])
def test_every_order_and_every_restart_of_the_server(world: World, first: str, crash: str) -> None:
    def maybe(point: str) -> None:
        if crash == point:
            world.crash()

    answer = migrate(world)
    epoch = owner(world)[1]
    maybe("begun")
    world.run(20)
    world.agents["n2"].arrive(WEB, epoch, attempt(world))
    said(world, "n2")
    maybe("arrived")
    world.run(20)
    leave(world)
    maybe("left")
    if world.agents["n1"].session is None:
        names = ("n1", "n2") if first == "source" else ("n2", "n1")
        for name in names:
            world.agents[name].start()
    else:
        for name in ("n1", "n2") if first == "source" else ("n2", "n1"):
            world.agents[name].report()
    maybe("moved")
    world.run(40)
    assert owner(world) == ("n2", epoch + 1) and world.agents["n2"].running == {WEB}
    assert state(world, answer)[0] == "succeeded"
    assert world.alarms() == [] and ("vm-duplicate", "web") not in world.alarms(all=True)


@pytest.mark.parametrize("at", ["begin", "left"])
@pytest.mark.parametrize("how", [{"save": False}, {"send": False}])
def test_the_server_dies_in_the_turn(world: World, at: str, how: dict[str, bool]) -> None:
    epoch = owner(world)[1]
    request = m.VmMigrate(key="once", vm="web", to="n2")
    if at == "begin":
        world.say("op", request, **how)
        world.run(20)
        answer = world.ask(request)
    else:
        answer = world.ask(request)
        world.settle()
        leave(world)
        agent = world.agents["n1"]
        agent.report_seq += 1
        report = m.Report(
            session=agent.session or "", seq=agent.report_seq, revision=agent.revision, generation=agent.generation,
            digest="x", full=True, vms=tuple(agent._others()),
        )  # fmt: skip
        agent.say(report, **how)
    world.run(20)
    if at == "begin":
        leave(world)
        said(world, "n1")
    world.run(40)
    assert owner(world) == ("n2", epoch + 1)
    assert state(world, answer) == ("succeeded", "migrated to n2")


def test_left_is_said_twice_and_late(world: World) -> None:
    answer = migrate(world)
    leave(world)
    late = world.agents["n1"]._others()
    said(world, "n1")
    world.run(2)
    now = owner(world)
    agent = world.agents["n1"]
    agent.report(vms=tuple(late))
    world.settle()
    world.run(20)
    assert owner(world) == now and state(world, answer)[0] == "succeeded" and world.alarms() == []


def test_the_source_keeps_it(world: World) -> None:
    before = owner(world)
    answer = migrate(world)
    world.agents["n2"].arrive(WEB, before[1], attempt(world))
    said(world, "n2")
    world.agents["n1"].stay(WEB, "the target's libvirt closed the connection")
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == ("failed", "the target's libvirt closed the connection")
    assert owner(world) == ("n1", before[1] + 1) and world.vm("web")["observed"] == "running"
    assert not world.agents["n2"].arrivals, "the stale copy is told to go, and a later one is of another epoch"
    assert not world.agents["n1"].held[WEB].attempt and world.alarms(all=True) == []


@pytest.mark.parametrize("phase", [None, MigrationPhase.LEAVING])
def test_the_result_of_the_command_counts_when_its_node_says_nothing_else(
    world: World, phase: MigrationPhase | None
) -> None:
    answer = migrate(world)
    agent = world.agents["n1"]
    result = m.CommandResult(id=attempt(world), outcome="rejected", detail="too late")  # type: ignore[arg-type]
    if phase is None:
        del agent.said[WEB]
    agent.report(results=(result,))
    world.run(2)
    if phase is None:
        assert state(world, answer) == ("failed", "rejected: too late")
    else:
        assert state(world, answer)[0] == "running"
        leave(world)
        said(world, "n1")
        world.run(2)
        assert state(world, answer)[0] == "succeeded"


@pytest.mark.parametrize(("outcome", "detail", "said_"), [("failed", "", "failed"), ("done", "", "")])
def test_a_result_before_the_rest_is_told(world: World, outcome: str, detail: str, said_: str) -> None:
    """A refusal is kept until its node has told how the VM is."""
    answer = migrate(world)
    agent = world.agents["n1"]
    result = m.CommandResult(id=attempt(world), outcome=outcome, detail=detail)  # type: ignore[arg-type]
    agent.connect()
    agent.report_seq += 1
    agent.say(m.Report(session=agent.session or "", seq=1, revision=0, generation=1, digest="", full=False,
                       results=(result,)))  # fmt: skip
    assert state(world, answer)[0] == "running"
    del agent.said[WEB]
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == (("failed", said_) if said_ else ("running", ""))


def test_a_failed_start_on_the_target(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.agents["n2"].arrivals.clear()
    world.agents["n2"].failed[WEB] = "no such bridge"
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == ("failed", "on n2: no such bridge")


def test_the_target_never_says_that_it_has_it(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.deaf.add("n2")
    said(world, "n1")
    assert "n2 takes it over" in world.op(answer)["steps"][0]["detail"]
    world.run(400)
    assert state(world, answer)[0] == "failed"
    world.deaf.clear()
    world.run(40)
    assert world.vm("web")["observed"] == "running" and world.vm("web")["node"] == "n2"


def test_a_stopped_vm_arrives_stopped(world: World) -> None:
    """Stopped on the source's guest while it left: the target has not told yet that it is off."""
    answer = migrate(world)
    leave(world)
    world.deaf.add("n2")
    said(world, "n1")
    world.deaf.clear()
    agent = world.agents["n2"]
    agent.connect()
    for page in agent.pull():
        agent.apply(page)
    agent.running.clear()
    agent.report()
    assert state(world, answer)[0] == "running"
    agent.sync()
    world.run(2)
    assert state(world, answer)[0] == "succeeded"


def test_time_alone_decides_nothing(world: World) -> None:
    answer = migrate(world)
    world.run(3000)
    assert state(world, answer)[0] == "running"
    world.agents["n1"].kill()
    world.run(3000)
    assert state(world, answer)[0] == "running"
    leave(world, observed="paused")
    world.run(100)
    assert owner(world)[0] == "n1" and world.agents["n2"].arrivals, "its copy waits for the source's word"
    world.agents["n1"].start()
    world.settle()
    world.run(2)
    assert state(world, answer)[0] == "succeeded" and owner(world)[0] == "n2"


def test_a_copy_that_runs_shows_that_a_lost_source_has_left(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.agents["n1"].power_off()
    said(world, "n2")
    assert owner(world)[0] == "n1", "it may be heard any moment"
    world.run(60)
    assert owner(world)[0] == "n2" and world.vm("web")["observed"] == "running"
    assert state(world, answer)[0] == "succeeded"
    world.agents["n1"].boot_again()
    world.settle()
    assert owner(world)[0] == "n2" and world.alarms() == []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_while_it_is_open(world: World) -> None:
    answer = migrate(world)
    op = answer["operation"]["id"]
    for kind in (m.VmStart, m.VmStop, m.VmReboot, m.VmDelete):
        error = world.refuse(kind, vm="web")
        assert (error.code, error.retriable) == ("locked", True) and op in error.message
    assert world.refuse(m.VmMigrate, vm="web", to="n3").code == "locked"
    assert "web" in str(world.refuse(m.NodeRemove, name="n1").message)
    assert world.refuse(m.NodeRemove, name="n2").code == "locked"
    assert world.do(m.NodeDrain, name="n1", dry_run=True)["plan"]


def test_what_can_be_migrated(world: World) -> None:
    assert world.refuse(m.VmMigrate, vm="web", to="n1").code == "conflict"
    assert world.refuse(m.VmMigrate, vm="web", to="n9").code == "not-found"
    assert world.refuse(m.VmMigrate, vm="nix").code == "not-found"
    world.do(m.NodeDisable, name="n2")
    error = world.refuse(m.VmMigrate, vm="web", to="n2")
    assert (error.code, error.message) == ("no-room", "n2 takes no VM: it is disabled")
    world.agents["n1"].kill()
    assert world.do(m.VmMigrate, vm="web", dry_run=True)["plan"] == [
        "migrates web from n1 to n3 while it runs, by 10.0.0.1"
    ]
    world.run(60)
    assert world.refuse(m.VmMigrate, vm="web").code == "node-unreachable"


@pytest.mark.parametrize("observed", ["paused", "unknown", "migrating", "crashed"])
def test_a_vm_that_neither_runs_nor_is_stopped_stays(world: World, observed: str) -> None:
    agent = world.agents["n1"]
    agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), observed=Observed(observed)),))
    error = world.refuse(m.VmMigrate, vm="web")
    assert error.code == "refused-unsafe" and f"is {observed}" in error.message


def test_a_vm_whose_state_was_not_told_stays(world: World) -> None:
    world.agents["n1"].connect()
    assert world.refuse(m.VmMigrate, vm="web").code == "node-unreachable"


def test_a_vm_that_is_about_to_stop_stays(world: World) -> None:
    world.do(m.VmStop, vm="web")
    assert world.refuse(m.VmMigrate, vm="web").code == "refused-unsafe"


def test_local_disks(world: World) -> None:
    world.create("db", "n1", spec=LOCAL)
    error = world.refuse(m.VmMigrate, vm="db")
    assert error.code == "refused-unsafe"
    assert error.message == "db stays: its disks are local to n1: give --with-local-disks to copy them"
    answer = world.do(m.VmMigrate, vm="db", options=m.MigrationOptions(local_disks=True))
    world.settle()
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.settle()
    world.agents["n1"].stay(DB, "cancelled")
    said(world, "n1")
    world.run(2)
    world.do(m.VmStop, vm="db")
    world.settle()
    error = world.refuse(m.VmMigrate, vm="db", options=m.MigrationOptions(local_disks=True))
    assert "copied only while it runs" in error.message


def test_nobody_has_room(world: World) -> None:
    for name in ("n2", "n3"):
        world.do(m.NodeDisable, name=name)
    error = world.refuse(m.VmMigrate, vm="web")
    assert (error.code, error.message) == ("no-room", "no node can take web: n2 is disabled; n3 is disabled")


def test_a_vm_that_is_coming_needs_its_room(world: World) -> None:
    big = msgspec.structs.replace(SPEC, memory_mib=12_000)
    world.create("db", "n1", spec=msgspec.structs.replace(SPEC, memory_mib=6000))
    world.do(m.VmDelete, vm="web")
    world.settle()
    migrate(world, "db", "n2")
    assert world.node("n2")["memory_used_mib"] == 6000 and world.node("n1")["memory_used_mib"] == 6000
    world.do(m.NodeDisable, name="n3")
    assert world.refuse(m.VmCreate, name="x", spec=big, node="n2").code == "no-room"
    leave(world, vm="db")
    said(world, "n1")
    assert world.node("n2")["memory_used_mib"] == 6000 and world.node("n1")["memory_used_mib"] == 0


def test_kvm_goes_to_kvm(world: World) -> None:
    for name in ("n1", "n3"):
        world.agents[name].host = {"kvm": True}
        world.agents[name].start()
    assert "n2 has no KVM, which it runs by" in world.refuse(m.VmMigrate, vm="web", to="n2").message
    assert "to n3" in world.do(m.VmMigrate, vm="web", dry_run=True)["plan"][0]


# --- by which network -------------------------------------------------------------------------------------------------


NETWORKS = (
    m.HostNetwork(interface="eth0", address="10.1.0.2", prefix=24),
    m.HostNetwork(interface="eth1", address="fe80::1", prefix=64),
    m.HostNetwork(interface="eth1", address="10.2.0.2", prefix=24),
)


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("management", "10.0.0.1"),
        ("business", "10.2.0.2"),
        ("eth0", "10.1.0.2"),
        ("10.2.0.0/24", "10.2.0.2"),
        ("10.1.0.2", "10.1.0.2"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_networks(world: World, network: str, address: str) -> None:
    world.agents["n2"].host = {"networks": NETWORKS, "business_interface": "eth1"}
    world.agents["n2"].start()
    for to in ("n2", None):
        plan = world.do(m.VmMigrate, vm="web", to=to, network=network, dry_run=True)["plan"]
        assert address in plan[0]


@pytest.mark.parametrize("network", ["business", "eth9", "10.9.0.0/16", "no network", "fe80::/64"])
def test_a_network_that_the_target_has_not(world: World, network: str) -> None:
    world.agents["n2"].host = {"networks": NETWORKS[:2], "business_interface": ""}
    world.agents["n2"].start()
    error = world.refuse(m.VmMigrate, vm="web", to="n2", network=network)
    assert error.code == "invalid" and "management (10.0.0.1), eth0 (10.1.0.2/24)" in error.message
    error = world.refuse(m.VmMigrate, vm="web", network=network)
    assert f"n3 has no address on the network {network}" in error.message


def test_the_network_is_a_setting() -> None:
    world = World("n1", "n2", policy=Policy(migration_network="eth0"))
    world.agents["n2"].host = {"networks": NETWORKS}
    world.start()
    world.create("web", "n1")
    migrate(world, to=None)
    row = world.tables().migrations.get(WEB)
    assert row is not None and row.address == "10.1.0.2"


# --- stopped VMs ------------------------------------------------------------------------------------------------------


def test_a_stopped_vm_is_moved_at_once(world: World) -> None:
    world.do(m.VmStop, vm="web")
    world.settle()
    answer = world.do(m.VmMigrate, vm="web", network="nowhere", to="n2")
    assert answer["plan"] == ["moves web (stopped) from n1 to n2"] and owner(world)[0] == "n2"
    world.settle()
    world.run(2)
    assert state(world, answer) == ("succeeded", "moved (stopped) to n2")
    assert world.vm("web")["observed"] == "stopped" and not world.agents["n1"].held


def test_a_failed_vm_is_moved_and_tried_anew(world: World) -> None:
    agent = world.agents["n1"]
    agent.failed[WEB] = "no such file"
    agent.running.clear()
    said(world, "n1")
    assert world.refuse(m.VmMigrate, vm="web").code == "refused-unsafe", "its agent goes on trying"
    agent.why_failed = "crash-loop"
    said(world, "n1")
    answer = world.do(m.VmMigrate, vm="web")
    world.settle()
    world.run(2)
    assert state(world, answer) == ("succeeded", "moved (stopped) to n2")
    assert world.vm("web")["observed"] == "running"


def test_a_stop_that_the_agent_has_not_seen_is_no_stop(world: World) -> None:
    world.do(m.VmStop, vm="web")
    world.settle()
    world.do(m.VmStart, vm="web")
    world.do(m.VmStop, vm="web")
    assert world.refuse(m.VmMigrate, vm="web").code == "refused-unsafe"


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel(world: World) -> None:
    answer = migrate(world)
    id_ = attempt(world)
    assert "ends when what is under way is decided" in world.do(m.OpCancel, id=answer["operation"]["id"])["plan"][0]
    world.settle()
    assert state(world, answer)[0] == "running"
    assert world.op(answer)["steps"][0]["detail"] == "cancelling; to n2"
    [order] = world.agents["n1"].cancels
    assert (order.kind, order.attempt, order.uuid) == ("cancel-migration", id_, WEB)
    world.agents["n1"].stay(WEB, "cancelled")
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == ("cancelled", "cancelled: it stays on n1 (cancelled)")
    assert owner(world)[0] == "n1" and not len(world.tables().commands)


def test_cancel_comes_too_late(world: World) -> None:
    answer = migrate(world)
    leave(world)
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.settle()
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == ("succeeded", "migrated to n2")


def test_cancel_before_the_order_was_fetched(world: World) -> None:
    world.deaf.add("n1")
    answer = world.do(m.VmMigrate, vm="web", to="n2")
    id_ = attempt(world)
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.deaf.clear()
    agent = world.agents["n1"]
    agent.sync()
    assert not agent.said and [c.attempt for c in agent.cancels] == [id_], "the order itself is not given any more"
    assert agent.held[WEB].attempt == id_
    agent.said[WEB] = m.MigrationReport(attempt=id_, phase=MigrationPhase.FAILED, detail="never begun")
    said(world, "n1")
    world.run(2)
    assert state(world, answer)[0] == "cancelled"


def test_an_order_that_was_withdrawn_and_is_refused(world: World) -> None:
    """The agent had it, and was told to give it up before it began."""
    answer = migrate(world)
    id_ = attempt(world)
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.settle()
    del world.agents["n1"].said[WEB]
    world.agents["n1"].report(results=(m.CommandResult(id=id_, outcome="rejected", detail="cancelled"),))  # type: ignore[arg-type]
    world.run(2)
    assert state(world, answer) == ("cancelled", "cancelled: it stays on n1 (rejected: cancelled)")


def test_the_result_of_a_cancellation_means_nothing(world: World) -> None:
    answer = migrate(world)
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.settle()
    [order] = world.agents["n1"].cancels
    world.agents["n1"].report(results=(m.CommandResult(id=order.id, outcome="rejected"),))  # type: ignore[arg-type]
    world.run(2)
    assert state(world, answer)[0] == "running"


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
    assert steps["a"]["detail"] == "waits for its turn: 2 migrations of n1 are under way"
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
    outcome = "3 migrated, 1 moved (stopped), 1 left where they are: local, 1 failed: c (the target is full)"
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
    assert plan == ["migrates 1 VMs from n1 to other nodes", "migrates web, to n2 as it looks now"]
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
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left where they are: db")


def test_the_limit_of_the_cluster_and_of_the_target() -> None:
    world = World("n1", "n2", "n3", "n4", policy=Policy(migrations_per_node=1, migrations_per_cluster=2))
    world.start()
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "n3")):
        world.create(name, node)
    first = migrate(world, "a", "n4")
    second = migrate(world, "b", "n4")
    assert world.op(second)["steps"][0]["detail"] == "waits for its turn: 1 migrations of n4 are under way"
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


def waiting(world: World) -> Any:
    """An evacuation of n1 whose step for web has to wait."""
    world.do(m.NodeDisable, name="n2")
    world.do(m.NodeDisable, name="n3")
    answer = world.do(m.NodeEvacuate, name="n1")
    assert "n2 is disabled" in world.op(answer)["steps"][0]["detail"]
    return answer


def step(world: World, answer: Any) -> tuple[str, str]:
    found = world.op(answer)["steps"][0]
    return found["state"], found["detail"]


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
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left where they are: web")


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


def lose(world: World, name: str = "n1") -> None:
    world.agents[name].power_off()
    world.run(60)
    world.do(m.NodeDrain, name=name, evidence="operator", comment="unplugged")


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


# --- migrations that the server did not order -------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["n1", "n2"])
@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("observed", ["running", "paused"])
def test_on_the_node_without_the_server(world: World, first: str, crash: bool, observed: str) -> None:
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    leave(world, observed=observed)
    world.agents[first].report()
    word = ("n2", epoch + 1) if first == "n1" else ("n1", epoch)
    assert owner(world) == word, "the source's word is enough, the target's is not"
    if crash:
        world.crash()
        world.agents[first].start()
        assert owner(world) == word
    second = "n1" if first == "n2" else "n2"
    world.agents[second].start()
    world.settle()
    assert owner(world) == ("n2", epoch + 1) and world.agents["n2"].running == {WEB}
    assert world.alarms(all=True) == [] and not world.agents["n1"].gone


def test_begun_on_the_node_and_not_decided(world: World) -> None:
    before = owner(world)
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    world.agents["n2"].arrive(WEB, before[1], "alone")
    said(world, "n1")
    said(world, "n2")
    assert owner(world) == before and world.agents["n2"].arrivals and world.alarms() == []
    world.agents["n1"].stay(WEB, "given up")
    said(world, "n1")
    assert owner(world) == ("n1", before[1] + 1)
    assert not world.agents["n2"].arrivals and world.alarms(all=True) == []


def test_a_stale_copy_that_runs_is_an_alarm(world: World) -> None:
    before = owner(world)
    world.agents["n2"].arrive(WEB, before[1], "alone", "running")
    world.agents["n2"].report()
    assert world.alarms() == [], "the owner is asked first"
    world.agents["n1"].report()
    assert world.alarms() == [], "it has not looked since"
    world.agents["n1"].sync()
    assert world.alarms() == [("vm-duplicate", "web")] and owner(world) == ("n1", before[1] + 1)
    world.settle()
    assert not world.agents["n2"].arrivals


@pytest.mark.parametrize("heard", [True, False])
def test_an_older_copy_that_runs_while_its_source_is_not_heard(world: World, heard: bool) -> None:
    """The owner was given a new epoch when the VM had left it already: nobody but it can tell."""
    epoch = owner(world)[1]
    report = m.VmReport(
        uuid=WEB, epoch=epoch - 1, revision=0, observed=Observed.RUNNING,
        migration=m.MigrationReport(attempt="alone", phase=MigrationPhase.ARRIVED, peer="n1"),
    )  # fmt: skip
    if not heard:
        world.agents["n1"].kill()
        world.run(60)
    world.agents["n2"].report(vms=(report,))
    assert owner(world) == ("n1", epoch)
    assert bool(world.tables().releases.get("n2", WEB)) is heard


@pytest.mark.parametrize("observed", ["running", "paused"])
def test_a_lost_source_that_says_nothing(world: World, observed: str) -> None:
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    said(world, "n1")
    leave(world, observed=observed)
    world.agents["n1"].power_off()
    said(world, "n2")
    world.run(60)
    if observed == "running":
        assert owner(world) == ("n2", epoch + 1)
    else:
        assert owner(world) == ("n1", epoch) and world.agents["n2"].arrivals
        lose(world)
        world.do(m.NodeRebuild, name="n1")
        world.settle()
        world.run(2)
        assert owner(world)[1] == epoch + 1 and not world.agents["n2"].arrivals


def test_a_chain_of_migrations_whose_middle_is_not_heard(world: World) -> None:
    """n1 -> n2 -> n3 while the server was down; n2 is heard last."""
    epoch, agent = owner(world)[1], world.agents["n2"]
    agent.kill()
    world.agents["n1"].begin_alone(WEB, "one", "n2")
    world.agents["n1"].leave(WEB)
    world.agents["n3"].arrive(WEB, epoch, "two", "paused", origin="n2")
    said(world, "n1")
    said(world, "n3")
    assert owner(world) == ("n2", epoch + 1) and world.agents["n3"].arrivals
    agent.up = True
    agent.connect()
    agent.said[WEB] = m.MigrationReport(attempt="two", phase=MigrationPhase.LEFT, peer="n3")
    agent.gone[WEB] = epoch
    said(world, "n2")
    assert owner(world) == ("n3", epoch + 2) and world.agents["n3"].running == {WEB}


def test_a_chain_of_migrations_whose_middle_is_lost(world: World) -> None:
    """n1 -> n2 -> n3 on the nodes; n2 is never heard again, and n3 runs it."""
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "one", "n2")
    world.agents["n1"].leave(WEB)
    world.agents["n2"].power_off()
    world.agents["n3"].arrive(WEB, epoch, "two", "running", origin="n2")
    said(world, "n1")
    said(world, "n3")
    assert owner(world) == ("n2", epoch + 1) and world.agents["n3"].arrivals
    world.run(60)
    said(world, "n3")
    assert owner(world) == ("n2", epoch + 1), "n2 may know better"
    lose(world, "n2")
    world.do(m.NodeRebuild, name="n2")
    world.settle()
    assert owner(world) == ("n3", epoch + 2) and world.agents["n3"].running == {WEB}


def test_an_older_copy_of_another_owner_is_removed(world: World) -> None:
    before = owner(world)
    world.agents["n2"].arrive(WEB, before[1] - 1, "old", "paused", origin="n3")
    said(world, "n2")
    assert owner(world) == before and not world.agents["n2"].arrivals


def test_by_hand_without_a_mark(world: World) -> None:
    epoch = owner(world)[1]
    agent = world.agents["n1"]
    world.agents["n2"].strays[WEB] = (epoch, "running")
    agent.kill()
    world.run(60)
    world.agents["n2"].report()
    assert owner(world) == ("n1", epoch) and ("vm-misplaced", "web") in world.alarms()
    assert not world.tables().releases.by("uuid", WEB)
    agent.up = True
    agent.connect()
    for page in agent.pull():
        agent.apply(page)
    agent.running.clear()
    away = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.STOPPED, problem="migrated-away")
    agent.report(vms=(away,))
    assert owner(world) == ("n2", epoch + 1)


def test_by_hand_while_an_order_is_open(world: World) -> None:
    answer = migrate(world)
    epoch = owner(world)[1]
    agent = world.agents["n1"]
    agent.running.clear()
    world.agents["n3"].strays[WEB] = (epoch, "running")
    del agent.said[WEB]
    away = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.STOPPED, problem="migrated-away")
    agent.report(vms=(away,))
    world.agents["n3"].report()
    assert owner(world) == ("n3", epoch + 1)
    world.run(2)
    assert state(world, answer) == ("failed", "it was migrated to n3 by somebody else")


def test_it_has_left_and_nobody_has_it(world: World) -> None:
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "alone", "192.0.2.7")
    world.agents["n1"].leave(WEB)
    said(world, "n1")
    assert owner(world) == ("n1", epoch) and world.agents["n1"].running == set()
    view = world.vm("web")
    assert view["observed"] == "unknown" and "has left for 192.0.2.7" in view["detail"]
    assert any("192.0.2.7" in line for line in world.ask(m.Explain(kind="vm", name="web"))["lines"])
    assert world.refuse(m.VmStart, vm="web").code == "no-evidence"
    answer = world.do(m.VmStart, vm="web", evidence="operator", comment="it was lost")
    world.settle()
    assert owner(world) == ("n1", epoch + 1) and state(world, answer)[0] == "succeeded"
    assert world.vm("web")["observed"] == "running"


def test_it_has_left_for_nobody_knows_where_and_its_node_is_lost(world: World) -> None:
    """That its node runs nothing proves nothing about where it went."""
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "alone", "192.0.2.7")
    world.agents["n1"].leave(WEB)
    said(world, "n1")
    lose(world)
    rebuild = world.do(m.NodeRebuild, name="n1")
    assert step(world, rebuild)[0] == "failed" and "has left for 192.0.2.7" in step(world, rebuild)[1]
    assert owner(world) == ("n1", epoch)


def test_while_it_leaves_by_an_order_on_its_node(world: World) -> None:
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    said(world, "n1")
    assert world.refuse(m.VmMigrate, vm="web", to="n3").code == "locked"
    answer = world.do(m.NodeEvacuate, name="n1")
    assert step(world, answer) == ("waiting", "web is being migrated to n2, by an order on n1")
    leave(world)
    said(world, "n2")
    said(world, "n1")
    world.run(2)
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left where they are: web")


def test_it_has_left_by_an_order_on_its_node_before_it_heard_the_servers(world: World) -> None:
    """Where to is known, and no other node may have it: nothing else is waited for."""
    answer, epoch, agent = world.do(m.VmMigrate, vm="web", to="n3"), owner(world)[1], world.agents["n1"]
    agent.begin_alone(WEB, "alone", "n2")
    agent.leave(WEB)
    agent.report()
    assert owner(world) == ("n2", epoch + 1)
    world.run(2)
    assert state(world, answer) == ("failed", "it was migrated to n2 by somebody else")


def test_a_copy_without_a_mark_of_one_that_has_left(world: World) -> None:
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "alone", "10.9.9.9")
    world.agents["n1"].leave(WEB)
    world.agents["n2"].strays[WEB] = (epoch, "paused")
    said(world, "n1")
    said(world, "n2")
    assert owner(world) == ("n1", epoch) and not world.tables().releases.by("uuid", WEB)
    world.agents["n2"].strays[WEB] = (epoch, "running")
    said(world, "n2")
    assert owner(world) == ("n2", epoch + 1)


# --- after a restore --------------------------------------------------------------------------------------------------


def restore(world: World, backup: Any) -> None:
    """The server is restored from an old backup."""
    from chimed.core import recovery

    world.disk.tables = {name: dict(rows) for name, rows in backup.items()}
    meta = world.disk.tables["meta"][()]
    world.disk.tables["meta"][()] = recovery.begun(meta, 1, world.agents)  # type: ignore[arg-type]
    world.epochs.clear()
    world.revisions.clear()
    world.owners.clear()
    world.crash()


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
    restore(world, backup)
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
    restore(world, backup)
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
    last.held[WEB] = msgspec.structs.replace(agent.held[WEB], epoch=epoch + 2, attempt="")
    last.highest[WEB] = epoch + 2
    last.running.add(WEB)
    if phase == "left":
        agent.leave(WEB)
    else:
        agent.stay(WEB, "no")
        agent.running.discard(WEB)
    for other in world.agents.values():
        other.kill()
    restore(world, backup)
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
    restore(world, backup)
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
    restore(world, backup)
    world.run(40)
    assert step(world, answer) == ("waiting", "until the recovery after a restore is over")
    world.do(m.RecoveryConfirm, comment="all is well")
    world.run(20)
    assert state(world, answer)[0] == "succeeded"


def test_a_restore_whose_source_is_forgotten(world: World) -> None:
    """A paused copy that nobody speaks of is told to go when all have spoken."""
    backup = world.saved()
    world.agents["n2"].arrive(WEB, 7, "alone")
    restore(world, backup)
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
    restore(world, backup)
    for name in world.agents:
        world.agents[name].start()
    world.run(60)
    assert owner(world)[0] == "n2" and state(world, answer)[0] != "running"
    assert {name for name, a in world.agents.items() if WEB in a.running} == {"n2"}


def test_an_evacuation_waits_for_the_recovery(world: World) -> None:
    answer = waiting(world)
    for name in ("n2", "n3"):
        world.agents[name].kill()
    restore(world, world.saved())
    world.agents["n1"].start()
    world.run(2)
    assert step(world, answer) == ("waiting", "until the recovery after a restore is over")
    assert world.refuse(m.VmMigrate, vm="web").code == "locked"
    world.do(m.OpCancel, id=answer["operation"]["id"])
    assert world.refuse(m.VmMigrate, vm="web").code == "recovering"


# --- what is said of it -----------------------------------------------------------------------------------------------


def explained(world: World) -> str:
    return " ".join(world.ask(m.Explain(kind="vm", name="web"))["lines"])


def test_it_is_explained(world: World) -> None:
    answer = migrate(world)
    op, id_ = answer["operation"]["id"], attempt(world)
    world.agents["n2"].arrive(WEB, owner(world)[1], id_)
    said(world, "n2")
    assert f"It is being migrated to n2 by 10.0.0.1 ({op}, attempt {id_})." in explained(world)
    assert "n2 has a copy that a migration brought (paused)." in explained(world)
    world.do(m.OpCancel, id=op)
    assert "n1 was asked to give that up." in explained(world)
    world.agents["n1"].kill()
    world.run(60)
    assert "n1 is not heard: only it can tell whether the VM has left." in explained(world)


def test_the_alarm_says_what_becomes_of_the_copy(world: World) -> None:
    world.agents["n2"].strays[WEB] = (owner(world)[1], "running")
    world.agents["n1"].kill()
    world.run(60)
    world.agents["n2"].report()
    [alarm] = [a for a in world.ask(m.AlarmList())["items"] if a["code"] == "vm-misplaced"]
    assert alarm["text"] == "web runs on n2, which does not own it and keeps its copy until n1 is heard"
