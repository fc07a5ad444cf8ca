"""A store that cannot save, and a database that was restored."""

from __future__ import annotations

import msgspec
import pytest

from chimed.core.rules import recovery
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.tables import KEYS
from chimed.history import Retention
from tests.unit.server.world import SPEC, Refused, World, key_of, uuid_of
from wire import messages as m
from wire.types import AdminState, Observed, Outcome

WEB = uuid_of("web")


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
    world.restore(backup)
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
    world.restore(backup)
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
    world.restore(backup)
    world.start("n1")
    assert not world.agents["n1"].running
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(60)
    assert not world.agents["n1"].running and world.vm("web")["epoch"] > 1_000_000
    world.do(m.RecoveryConfirm, comment="and it runs nowhere else")
    world.settle()
    assert world.vm("web")["observed"] == "running"


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
    world.restore(backup)
    world.start("n1") if same_boot else world.agents["n1"].boot_again()
    world.run(60)
    assert not world.agents["n1"].running, "nobody starts anything before all have reported"
    world.start("n2")
    world.run(60)
    assert world.ask(m.ServerStatus())["recovering"] is False
    assert not world.agents["n1"].running and world.vm("web")["node"] == "n2"
    assert world.vm("web")["observed"] == "running" and not world.tables().releases.by("node", "n1")


@pytest.mark.parametrize("first", ["n1", "n2"])
def test_a_vm_that_was_created_and_moved_since_the_backup_stays_where_it_is_newer(world: World, first: str) -> None:
    """Its old node never heard that it was moved, and the old database does not know it."""
    backup = world.saved()
    del backup["vms"][(WEB,)]
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.agents["n1"].kill()
    world.run(60)
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    world.agents["n2"].kill()
    world.restore(backup)
    for name in sorted(("n1", "n2"), key=lambda name: name != first):
        world.start(name)
        world.run(60)
    assert not world.agents["n1"].running and world.agents["n2"].running == {WEB}
    assert WEB not in world.agents["n1"].held and not world.tables().releases.by("node", "n1")


def test_what_is_off_since_a_boot_starts_when_a_person_says_so(world: World) -> None:
    backup = world.saved()
    world.agents["n1"].power_off()
    world.agents["n2"].power_off()
    world.restore(backup)
    world.agents["n1"].boot_again()
    world.run(60)
    assert not world.agents["n1"].running
    world.do(m.RecoveryConfirm, comment="n2 runs nothing")
    world.run(60)
    assert not world.agents["n1"].running, "n1 has booted since the backup: it may have lost the VM before"
    world.do(m.RecoveryConfirm, comment="all nodes are known")
    world.run(60)
    assert world.agents["n1"].running and world.vm("web")["observed"] == "running"


def test_a_restored_vm_that_was_deleted_is_there_again(world: World) -> None:
    backup = world.saved()
    world.do(m.VmDelete, vm="web")
    world.settle()
    world.restore(backup)
    world.start()
    world.run(40)
    assert not world.agents["n1"].running, "it may be on a node that this database does not know"
    world.do(m.VmStart, vm="web", evidence="operator", comment="it was deleted")
    world.settle()
    assert world.vm("web")["observed"] == "running"
    world.create("more", spec=SPEC)


def test_a_node_that_is_waited_for_is_removed_after_a_word(world: World) -> None:
    world.agents["n2"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n2", evidence="operator", comment="burnt down")
    world.restore(world.saved())
    world.start("n1")
    assert world.ask(m.ServerStatus())["waiting_for"] == ["n2"]
    assert world.refuse(m.VmStart, vm="web").code == "recovering"
    world.do(m.NodeDrain, name="n2", evidence="operator", comment="it burnt down")
    assert world.refuse(m.NodeRemove, name="n2").code == "recovering"
    world.do(m.RecoveryConfirm, comment="it burnt down")
    world.do(m.NodeRemove, name="n2")
    assert world.ask(m.ServerStatus())["recovering"] is False and "recovered" in world.actions("server")
    assert world.core.sessions.get("n1").full_wanted, "every agent is asked for a full report"  # type: ignore[union-attr]
    world.settle()
    world.do(m.VmStart, vm="web")


@pytest.mark.parametrize(("present", "generation"), [(0, 6), (5, 6), (9, 10)])
def test_a_restore_begins_a_generation_above_both_databases(present: int, generation: int) -> None:
    meta = r.Meta(generation=5, next_operation=7, waiting_for=("old",))
    assert recovery.begun(meta, present, ["n1", "n2"], "h2") == r.Meta(
        generation=generation, history="h2", next_operation=7, waiting_for=("n1", "n2")
    )


def test_a_restore_of_a_database_that_was_behind_begins_above_what_it_was_shown() -> None:
    meta = recovery.begun(r.Meta(generation=5, history="h", ahead=9, ahead_text="n1 has more"), 6, ["n1"], "h2")
    assert meta == r.Meta(generation=10, history="h2", waiting_for=("n1",))


def test_an_epoch_that_only_a_release_remembers_is_no_claim_after_a_restore(world: World) -> None:
    """The node released the VM in an epoch that the database does not know any more: it is not the owner."""
    world.restore(world.saved())
    world.start("n1")
    epoch = world.vm("web")["epoch"]
    agent = world.agents["n2"]
    agent.connect()
    agent.pull()
    report = m.VmReport(uuid=WEB, epoch=epoch + 5, revision=0, observed=Observed.STOPPED)
    agent.generation = world.tables().meta.generation
    agent.report(vms=(report,))
    assert (world.vm("web")["node"], world.vm("web")["epoch"]) == ("n1", epoch)
    assert world.ask(m.ServerStatus())["counters"].get("impossible-epochs", 0) == 0


# --- turns that fail --------------------------------------------------------------------------------------------------


def failed_turn(world: World, *events: fx.Event) -> None:
    """A turn with these events and one that must be recorded."""
    world.disk.fault = "disk full"
    world.turn(*events, fx.Received(key_of("op"), b"op", m.VmStop(key="k", vm="web"), "o", str))


def test_a_pull_is_answered_in_the_very_turn_that_fails(world: World) -> None:
    agent = world.agents["n1"]
    pull = m.Pull(session=agent.session or "", nonce="p")
    failed_turn(world, fx.Received(key_of("n1"), agent.route, pull, "p", str))
    page = next(body for body, answered in world.answers[agent.route] if answered == "p")
    assert isinstance(page, m.Inventory) and [vm.desired for vm in page.vms] == ["running"]
    assert agent.beat() is not None, "the session goes on"


def test_a_heartbeat_of_another_session_is_not_answered_in_a_turn_that_fails(world: World) -> None:
    agent = world.agents["n1"]
    beat = agent.heartbeat(seq=99, session="old")
    failed_turn(world, fx.Received(key_of("n1"), agent.route, beat, "b", str))
    answers = [body for body, answered in world.answers[agent.route] if answered == "b"]
    assert not any(isinstance(body, m.HeartbeatAck) for body in answers)


def test_what_was_told_and_not_recorded_gives_no_vm_away(world: World) -> None:
    world.do(m.VmStop, vm="web")
    world.settle()
    world.disk.fault = "disk full"
    world.refuse(m.NodeDisable, name="n2")
    with pytest.raises(Refused, match="storage-unavailable"):
        world.agents["n1"].report(events=(m.AgentEvent(id="1-1", code="vm-removed", uuid=WEB, text="it is off"),))
    world.recover_storage()
    assert world.refuse(m.VmMigrate, vm="web", to="n2").code == "node-unreachable"
    world.agents["n1"].beat()
    world.do(m.VmMigrate, vm="web", to="n2")


def test_an_operation_that_could_not_be_recorded_leaves_its_id_to_another(world: World) -> None:
    """The next one may be of any kind, and waits for what its own kind waits for."""
    world.disk.fault = "disk full"
    world.refuse(m.NodeEvacuate, name="n1")
    world.recover_storage()
    world.do(m.VmStop, vm="web")
    world.settle()
    assert world.vm("web")["observed"] == "stopped" and not world.core.ctx.counters["internal-errors"]


def test_read_only_since_is_the_first_failure(world: World) -> None:
    failed_turn(world)
    since = world.core.ctx.read_only_since
    world.now += 30
    world.core.rolled_back("still full", [])
    (alarm,) = world.ask(m.AlarmList())["items"]
    assert alarm["raised"] == since and "still full" in alarm["text"]


def test_a_node_whose_registration_could_not_be_saved_is_nobody(world: World) -> None:
    """Its agent spoke in the turn that has not happened."""
    add = m.NodeAdd(key="k", name="n9", public_key=key_of("n9"))
    hello = m.Hello(versions=(1,), node="n9", boot_id=uuid_of("b9"), incarnation="i", nonce="n")
    world.disk.fault = "disk full"
    said = fx.Received(key_of("n9"), b"n9", hello, "h", lambda: "10.0.0.9")
    world.turn(fx.Received(key_of("op"), b"op", add, "o", str), said)
    answers = {answered: body for route in (b"op", b"n9") for body, answered in world.answers[route]}
    assert answers["o"].code == "storage-unavailable" and answers["h"].code == "unknown-key"  # type: ignore[attr-defined]
    world.recover_storage()
    world.run(200)
    assert world.alarms(all=True) == [] and "n9" not in world.pings
    assert world.refuse(m.NodeShow, name="n9").code == "not-found"
    assert world.do(m.NodeAdd, name="n9", public_key=key_of("n9"))["changed"]


def test_a_rebuild_goes_on_after_a_failed_turn(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    target = world.agents["n2"]
    answer = world.do(m.NodeRebuild, name="n1")
    world.disk.fault = "disk full"
    target.sync()
    assert world.op(answer)["state"] == "running"
    world.recover_storage()
    world.run(40)
    assert world.op(answer)["state"] == "succeeded" and world.vm("web")["node"] == "n2"


# --- a database with something missing --------------------------------------------------------------------------------


def damaged(world: World, **rows: object) -> None:
    """Rows are gone, or are others (`table=row`; None: the table is empty), when the server starts again."""
    for table, row in rows.items():
        world.disk.tables[table] = {} if row is None else {**world.disk.tables[table], _key(row): row}  # type: ignore[dict-item]
    world.crash()


def _key(row: object) -> tuple[str | int, ...]:
    return tuple(getattr(row, name) for name in KEYS[type(row)][1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(m.VmStart, ("failed", "the VM was deleted")), (m.VmStop, ("succeeded", "the VM is gone"))],
)
def test_an_operation_whose_vm_is_gone_ends(world: World, kind: type[m.Mutation], outcome: tuple[str, str]) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(kind, vm="web")
    damaged(world, vms=None)
    world.run(2)
    assert (world.op(answer)["state"], world.op(answer)["outcome"]) == outcome


def test_a_drain_of_a_node_that_is_not_drained_any_more_is_cancelled(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.NodeDrain, name="n1")
    node = world.tables().nodes.get("n1")
    damaged(world, nodes=msgspec.structs.replace(node, admin_state=AdminState.ENABLED))  # type: ignore[type-var]
    world.run(2)
    assert (world.op(answer)["state"], world.node("n1")["operation"]) == ("cancelled", None)


def test_a_rebuild_of_a_node_that_is_not_drained_any_more_moves_nothing(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.do(m.NodeDisable, name="n2")
    answer = world.do(m.NodeRebuild, name="n1")
    assert world.op(answer)["steps"][0]["state"] == "waiting"
    node, target = world.tables().nodes.get("n1"), world.tables().nodes.get("n2")
    world.disk.tables["nodes"][("n2",)] = msgspec.structs.replace(target, admin_state=AdminState.ENABLED)  # type: ignore[type-var]
    enabled = msgspec.structs.replace(node, admin_state=AdminState.ENABLED, evidence=None)  # type: ignore[type-var]
    damaged(world, nodes=enabled)
    world.start()
    world.run(2)
    assert world.op(answer)["state"] == "failed" and world.op(answer)["outcome"].startswith("no-evidence: n1 is not")
    assert world.vm("web")["node"] == "n1"


def test_an_operation_that_its_vm_does_not_name_ends_without_it(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.VmStop, vm="web")
    vm = world.tables().vms.get(WEB)
    damaged(world, vms=msgspec.structs.replace(vm, operation=""))  # type: ignore[type-var]
    last = world.tables().vms.get(WEB).last_operation  # type: ignore[union-attr]
    world.do(m.OpCancel, id=answer["operation"]["id"])
    assert world.op(answer)["state"] == "cancelled"
    assert (world.vm("web")["operation"], world.tables().vms.get(WEB).last_operation) == (None, last)  # type: ignore[union-attr]


def test_operations_that_are_gone_are_not_waited_for(world: World) -> None:
    agent = world.agents["n1"]
    world.do(m.VmReboot, vm="web")
    (command,) = world.saved()["commands"].values()
    world.disk.tables["vms"][(WEB,)] = msgspec.structs.replace(world.tables().vms.get(WEB), operation="")  # type: ignore[type-var]
    damaged(world, operations=None)
    agent.connect()
    agent.report(results=(m.CommandResult(id=command.id, outcome=Outcome.DONE),))  # type: ignore[attr-defined]
    assert not len(world.tables().commands)
    vm = world.tables().vms.get(WEB)
    world.core.tables.vms.put(msgspec.structs.replace(vm, operation="op-999"))  # type: ignore[type-var]
    answer = world.do(m.VmStop, vm="web")
    world.settle()
    assert world.op(answer)["state"] == "succeeded"
