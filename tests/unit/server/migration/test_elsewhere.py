"""What the server makes of copies that it did not order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.server.migration.steps import fail_alone, leave, leave_alone, lose, migrate, owner, said, state, step
from tests.unit.server.world import World, uuid_of
from wire import messages as m
from wire.types import MigrationPhase, Observed

WEB = uuid_of("web")


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


def test_a_node_with_a_copy_that_nobody_can_judge_is_not_removed(world: World) -> None:
    """The copy ran, and has ended; whether the VM had left its lost owner shows when that one is heard."""
    leave_alone(world, "n2")
    world.agents["n2"].arrive(WEB, owner(world)[1], "alone", "stopped")
    world.agents["n1"].kill()
    world.run(60)
    world.do(m.NodeDrain, name="n2")
    said(world, "n2")
    for dry_run in (True, False):
        error = world.refuse(m.NodeRemove, name="n2", dry_run=dry_run)
        assert error.code == "refused-unsafe" and "of 1 VM (web)" in error.message
    world.do(m.NodeDrain, name="n3")
    world.settle()
    world.do(m.NodeRemove, name="n3")  # another one may go
    world.agents["n1"].start()
    world.settle()
    assert owner(world)[0] == "n2"


def test_a_copy_of_a_vm_that_is_being_deleted_keeps_no_node(world: World) -> None:
    world.agents["n1"].stuck = True
    world.do(m.VmDelete, vm="web")
    world.agents["n1"].kill()
    world.run(60)
    world.do(m.NodeDrain, name="n2")
    world.settle()
    world.agents["n2"].arrive(WEB, owner(world)[1], "alone", "stopped")
    world.agents["n2"].report()
    world.do(m.NodeRemove, name="n2")


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
    world.agents["n2"].origins[WEB] = "n1"
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
    world.agents["n3"].origins[WEB] = "n1"
    del agent.said[WEB]
    away = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.STOPPED, problem="migrated-away")
    agent.report(vms=(away,))
    world.agents["n3"].report()
    assert owner(world) == ("n3", epoch + 1)
    world.run(2)
    assert state(world, answer) == ("failed", "it was migrated to n3 by somebody else")


def test_it_has_left_and_nobody_has_it(world: World) -> None:
    epoch = owner(world)[1]
    leave_alone(world, "192.0.2.7")
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
    leave_alone(world, "192.0.2.7")
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
    assert state(world, answer) == ("succeeded", "0 migrated, 1 left in place: web")


def test_it_has_left_by_an_order_on_its_node_before_it_heard_the_servers(world: World) -> None:
    """Where to is known, and no other node may have it: nothing else is waited for."""
    answer, epoch = world.do(m.VmMigrate, vm="web", to="n3"), owner(world)[1]
    leave_alone(world, "n2")
    world.agents["n1"].report()
    assert owner(world) == ("n2", epoch + 1)
    world.run(2)
    assert state(world, answer) == ("failed", "it was migrated to n2 by somebody else")


@pytest.mark.parametrize("heard", [True, False])
def test_one_that_fails_may_have_left_a_copy_on_its_target(world: World, heard: bool) -> None:
    """It is told to end that, whatever becomes of the VM before it hears."""
    epoch = owner(world)[1]
    migrate(world)
    if not heard:
        world.agents["n2"].kill()
        world.run(60)
    world.agents["n1"].stay(WEB, "the target's answer was lost")
    said(world, "n1")
    releases = [(row.node, row.epoch) for row in world.tables().releases.by("uuid", WEB)]
    assert (owner(world), releases) == (("n1", epoch + 1), [] if heard else [("n2", epoch)])  # or confirmed already


def failed_alone(world: World, peer: str = "n2", **fields: Any) -> list[tuple[str, int]]:
    """An order on n1 has failed while the server was away, and no other node is heard. Returns the releases then."""
    for name in ("n2", "n3"):
        world.agents[name].kill()
    world.run(60)
    fail_alone(world, peer)
    agent = world.agents["n1"]
    agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), **fields),))
    return [(row.node, row.epoch) for row in world.tables().releases.by("uuid", WEB)]


@pytest.mark.parametrize("crash", [False, True])
def test_one_that_failed_by_an_order_on_its_node_may_have_left_a_copy_too(world: World, crash: bool) -> None:
    """Its target is told to end that once, however often the node says so, also to a server that has died since."""
    epoch = owner(world)[1]
    assert failed_alone(world) == [("n2", epoch)] and owner(world) == ("n1", epoch + 1)
    world.settle()
    if crash:
        world.crash()
        world.agents["n1"].start()
    world.agents["n2"].start()
    world.settle()
    said(world, "n1")
    assert not world.tables().releases.by("uuid", WEB) and owner(world) == ("n1", epoch + 1)


@pytest.mark.parametrize(
    ("peer", "fields"),
    [
        ("n1", {}),
        ("192.0.2.7", {}),
        ("n2", {"observed": Observed.UNKNOWN}),
        ("n2", {"observed": Observed.STOPPED, "problem": "migrated-away"}),
    ],
)
def test_where_a_failed_one_may_have_a_copy_is_not_known_or_not_sure(
    world: World, peer: str, fields: dict[str, Any]
) -> None:
    """What came there by a person's later migration would be the VM."""
    before = owner(world)
    assert failed_alone(world, peer, **fields) == [] and owner(world) == before


@pytest.mark.parametrize(("kind", "told"), [(m.VmDelete, True), (m.VmRelease, False)])
def test_a_failed_one_of_a_vm_that_is_on_its_way_out(world: World, kind: Any, told: bool) -> None:
    """A deletion follows to where a copy may be; a VM that is given back stays as it is."""
    epoch = owner(world)[1]
    world.deaf.add("n1")
    world.do(kind, vm="web")
    world.deaf.clear()
    fail_alone(world, "n2")
    world.agents["n1"].report()
    assert ("n2" in {row.node for row in world.tables().releases.by("uuid", WEB)}) == told
    assert owner(world) == ("n1", epoch)


def test_a_copy_that_runs_in_the_epoch_that_its_owner_has_released_is_the_vm(world: World) -> None:
    """After a restore: the owner says that it does not follow, and nothing of what it sees of the VM."""
    epoch = owner(world)[1]
    agent = world.agents["n1"]
    word = msgspec.structs.replace(
        agent.vm_report(WEB), revision=0, observed=Observed.UNKNOWN, problem="stale-epoch"
    )
    agent.running.clear()
    agent.report(vms=(word,))
    world.agents["n2"].arrive(WEB, epoch, "alone", "running")
    world.agents["n2"].report()
    assert owner(world) == ("n2", epoch + 1)


def deleted_after_it_left(world: World, peer: str) -> Any:
    """Its node hears of the deletion when it has left, and the server hears of both at once."""
    epoch = owner(world)[1]
    leave_alone(world, peer)
    answer = world.do(m.VmDelete, vm="web")
    world.agents["n1"].gone.clear()
    world.agents["n1"].report(released=(m.Release(uuid=WEB, epoch=epoch, left_to=peer),))
    return answer


@pytest.mark.parametrize(("peer", "follows"), [("n2", True), ("n1", False), ("10.9.9.9", False)])
def test_the_deletion_of_one_that_has_left_follows_it(world: World, peer: str, follows: bool) -> None:
    epoch = owner(world)[1]
    answer = deleted_after_it_left(world, peer)
    assert world.op(answer)["state"] == ("running" if follows else "succeeded")
    if follows:
        assert owner(world) == ("n2", epoch + 1)
        world.settle()
        assert world.op(answer)["state"] == "succeeded"
    assert not world.tables().vms.get(WEB) and not world.tables().releases.by("uuid", WEB)


def test_a_drained_node_to_which_a_deletion_follows_has_to_prove_its_drain_again(world: World) -> None:
    """Or the VM could be forgotten, and made anew elsewhere, while it runs there."""
    world.do(m.NodeDrain, name="n2")
    world.settle()
    assert world.node("n2")["drain_evidence"] == "agent"
    world.agents["n2"].kill()
    world.run(60)
    deleted_after_it_left(world, "n2")
    assert world.node("n2")["drain_evidence"] is None
    assert "being deleted already" in world.do(m.VmDelete, vm="web")["plan"][0]


def test_by_hand_while_its_node_cannot_tell_whether_an_order_was_carried_out(world: World) -> None:
    epoch = owner(world)[1]
    world.agents["n1"].begin_alone(WEB, "unknown", "")
    world.agents["n2"].strays[WEB] = (epoch, "running")
    world.agents["n2"].origins[WEB] = "n1"
    said(world, "n1")
    said(world, "n2")
    assert owner(world) == ("n1", epoch) and not world.tables().releases.by("uuid", WEB)


def test_a_copy_without_a_mark_of_one_that_has_left(world: World) -> None:
    epoch = owner(world)[1]
    leave_alone(world, "10.9.9.9")
    world.agents["n2"].strays[WEB] = (epoch, "paused")
    world.agents["n2"].origins[WEB] = "n1"
    said(world, "n1")
    said(world, "n2")
    assert owner(world) == ("n1", epoch) and not world.tables().releases.by("uuid", WEB)
    world.agents["n2"].strays[WEB] = (epoch, "running")
    world.agents["n2"].origins[WEB] = "n1"
    said(world, "n2")
    assert owner(world) == ("n2", epoch + 1)


def test_a_uuid_that_comes_back_gets_a_later_epoch_though_not_each_move_was_an_operation(world: World) -> None:
    for number in range(6):
        source, target = ("n1", "n2") if number % 2 == 0 else ("n2", "n1")
        world.agents[source].begin_alone(WEB, f"alone-{number}", target)
        leave(world, source, target)
        said(world, target)
        said(world, source)
    epoch = owner(world)[1]
    assert epoch > 6
    world.do(m.VmDelete, vm="web")
    world.settle()
    world.create("web", "n1")
    assert owner(world)[1] > epoch and world.vm("web")["observed"] == "running"
