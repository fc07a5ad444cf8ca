"""Live migration: the whole way of one, its refusals, its cancellation."""

from __future__ import annotations

import msgspec
import pytest

from chimed.core.state.turn import Policy
from tests.unit.server.migration.steps import attempt, leave, migrate, owner, said, state
from tests.unit.server.world import LOCAL, SPEC, World, uuid_of
from wire import messages as m
from wire.types import MigrationPhase, Observed

WEB, DB = uuid_of("web"), uuid_of("db")


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
