"""Where two rules meet: restores, restarts and lies at the seams between them."""

from __future__ import annotations

import pytest

from chimed.core.state import rows as r
from tests.unit.server.migration.steps import owner
from tests.unit.server.test_proofs import report, shows
from tests.unit.server.test_recovery import moved_stopped, row, to_start
from tests.unit.server.test_storage import moved
from tests.unit.server.world import ADDRESS, SPEC, Refused, World, running, seal_of, uuid_of
from wire import messages as m
from wire import seals
from wire.types import EPOCHS_PER_GENERATION, MigrationPhase

WEB = uuid_of("web")


def lost_and_rebuilt(world: World) -> None:
    """n1 has lost power, says a person truly, and n2 has web now."""
    world.agents["n1"].power_off()
    world.run(90)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert owner(world)[0] == "n2" and WEB in world.agents["n2"].running


def test_e4_the_old_owner_waits_also_in_the_next_life_of_the_server() -> None:
    world = running("n1", "n2")
    saved = world.saved()
    lost_and_rebuilt(world)
    world.deaf.add("n2")
    world.put_back(saved)
    world.agents["n1"].boot_again()
    assert not world.agents["n1"].running
    world.crash()
    world.agents["n1"].start()
    world.run(3)
    assert not (world.agents["n1"].running and world.agents["n2"].running), "two"


def test_e4_a_node_that_was_added_and_not_heard_when_the_copy_was_made_is_waited_for_too() -> None:
    world = World("n1", "n2")
    world.start("n1")
    world.run(90)  # n2 is waited for no more
    world.create("web", "n1")
    saved = world.saved()  # n2 is registered, and has never been heard
    world.start("n2")
    lost_and_rebuilt(world)
    world.deaf.add("n2")
    world.put_back(saved)
    world.agents["n1"].boot_again()
    world.run(3)
    assert not (world.agents["n1"].running and world.agents["n2"].running), "two"


def test_e4_a_vm_that_was_made_since_the_copy_is_not_made_again_before_its_node_was_met() -> None:
    """Terraform finds its VM gone and makes it anew, under its UUID."""
    world = running("n1", "n2")
    saved = world.saved()
    world.create("db", "n2")
    world.deaf.add("n2")
    world.put_back(saved)
    world.agents["n1"].start()
    try:
        world.do(m.VmCreate, name="db", spec=SPEC, node="n1", uuid=uuid_of("db"))
    except Refused:
        return
    world.settle()
    assert not (uuid_of("db") in world.agents["n1"].running and uuid_of("db") in world.agents["n2"].running), "two"


def test_e7_a_second_restore_does_not_forget_that_a_person_has_to_confirm_a_start() -> None:
    world = to_start()
    assert row(world).held == r.Held.START and not world.agents["n1"].running
    world.restore(world.saved(), "again")
    world.start("n1")
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(200)
    assert not world.agents["n1"].running, "n2 may run it: nobody has confirmed"


def test_e7_a_recovery_of_a_recovery_does_not_forget_it_either() -> None:
    """The database begins a recovery by itself: it was put back by a copy from after the first one."""
    world = to_start()
    assert row(world).held == r.Held.START
    saved = world.saved()
    world.do(m.NodeDisable, name="n1")
    world.settle()
    world.put_back(saved)
    world.start("n1")
    assert world.tables().meta.behind
    world.do(m.RecoveryConfirm, comment="no other server runs")
    world.start("n1")
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(200)
    assert not world.agents["n1"].running, "n2 may run it: nobody has confirmed"


def test_e7_a_vm_that_its_node_gave_up_is_not_started_without_a_word_because_it_was_off_in_the_backup() -> None:
    """web was off. Since the backup n2 was added, web was given to it and started: the restored database does not know
    n2."""
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = moved_stopped(world)
    del saved["nodes"][("n2",)]
    world.do(m.VmStart, vm="web")
    world.settle()
    assert WEB in world.agents["n2"].running
    world.deaf.add("n2")
    world.restore(saved)
    world.start("n1")
    world.run(120)
    assert not world.tables().meta.holding
    assert world.refuse(m.VmStart, vm="web").code == "no-evidence"
    world.settle()
    assert not world.agents["n1"].running


def arrived_by_itself(world: World, name: str, epoch: int) -> m.VmReport:
    """The node makes a voucher of its own true seal."""
    own = seal_of(WEB, epoch, name)
    said = m.MigrationReport(
        attempt="a", phase=MigrationPhase.ARRIVED, peer=name, address=ADDRESS,
        voucher=seals.voucher(own, "a", ADDRESS),
    )  # fmt: skip
    return report(epoch, migration=said)


def test_h1_a_seal_of_an_undone_history_moves_nothing_after_the_recovery() -> None:
    """n2 had web after the backup, and says nothing of it in the recovery; later it shows a copy that it has sent to
    itself."""
    world = running("n1", "n2", "n3")
    world.do(m.NodeDisable, name="n3")
    saved = world.saved()
    lost_and_rebuilt(world)
    world.restore(saved)
    world.agents["n1"].boot_again()
    world.start("n3")
    liar = world.agents["n2"]
    epoch = liar.held[WEB].epoch
    liar.connect()
    liar.pull(0)
    liar.held.clear()
    liar.generation = world.tables().meta.generation
    shows(world, "n2")
    world.run(3)
    assert not world.tables().meta.holding
    world.settle()
    world.do(m.RecoveryConfirm, comment="all nodes are known")
    world.settle()
    world.agents["n1"].sync(full=True)
    assert owner(world)[0] == "n1" and WEB in world.agents["n1"].running
    shows(world, "n2", arrived_by_itself(world, "n2", epoch))
    world.settle()
    assert owner(world)[0] == "n1" and WEB in world.agents["n1"].running


def test_h_a_lie_in_a_rebuild_does_not_bar_a_node_for_ever() -> None:
    world = running("n1", "n2", "n3")
    world.agents["n1"].power_off()
    world.run(90)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    vm = world.tables().vms.get(WEB)
    assert vm is not None
    target = vm.node
    liar = "n3" if target == "n2" else "n2"
    world.agents[target].power_off()
    world.run(90)
    world.do(m.NodeDrain, name=target, evidence="operator", comment="unplugged")
    shows(world, liar, report(2**53))
    world.do(m.NodeRebuild, name=target)
    release = world.tables().releases.get(liar, WEB)
    vm = world.tables().vms.get(WEB)
    assert vm is not None and release is not None and release.epoch <= vm.epoch, "no later epoch is ever given"


def test_h_a_sighting_does_not_block_the_making_of_a_vm_on_another_node() -> None:
    world = World("n1", "n2")
    world.start()
    said = m.VmReport(uuid=uuid_of("db"), epoch=1, revision=0, observed="running")  # type: ignore[arg-type]
    shows(world, "n2", said)
    world.do(m.VmCreate, name="db", spec=SPEC, node="n1", uuid=uuid_of("db"))


def test_l1_who_waits_for_the_others_goes_on_though_that_turn_could_not_be_saved() -> None:
    world = running("n1", "n2")
    world.agents["n1"].power_off()
    world.deaf.add("n2")
    world.crash()
    world.agents["n1"].boot_again()
    assert not world.agents["n1"].running and world.agents["n1"].order.hold
    world.disk.fault = "no space left"
    world.deaf.clear()
    world.agents["n2"].start()
    world.run(5)
    world.recover_storage()
    world.run(120)
    assert WEB in world.agents["n1"].running


def test_h_a_deletion_that_has_left_for_a_drained_node_does_not_void_its_evidence() -> None:
    """The way of `released.left_to`, beside that of `left`."""
    world = running("n1", "n2", "n3")
    world.create("own", "n3")
    world.agents["n1"].power_off()
    world.run(90)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.VmDelete, vm="own")
    liar = world.agents["n3"]
    liar.revision = liar.pull()[-1].revision
    epoch = liar.held[uuid_of("own")].epoch
    liar.running.discard(uuid_of("own"))
    liar.report(vms=(), released=(m.Release(uuid=uuid_of("own"), epoch=epoch, left_to="n1"),))
    node = world.tables().nodes.get("n1")
    assert node is not None and node.evidence == "operator", "the rebuild of n1 is blocked by a word of n3"


def test_h_an_epoch_that_an_owner_invents_in_a_recovery_does_not_outlive_it() -> None:
    """n1 owns web, and claims the last epoch of the generation; then it is rebuilt elsewhere."""
    world = running("n1", "n2")
    saved = world.saved()
    world.restore(saved)
    world.start("n2")
    liar = world.agents["n1"]
    liar.connect()
    liar.apply(liar.pull(0)[-1])
    shows(world, "n1", report(2 * EPOCHS_PER_GENERATION))
    world.run(3)
    liar.power_off()
    world.run(90)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.do(m.RecoveryConfirm, comment="n1 is off, and nobody else has it")
    world.run(60)
    assert owner(world)[0] == "n2" and WEB in world.agents["n2"].running
    world.agents["n2"].running.discard(WEB)
    world.agents["n2"].halted.add(WEB)
    world.agents["n2"].report()
    assert world.vm("web")["desired"] == "stopped", "its owner's word that the guest has halted is not heard"


def test_e4_who_comes_without_a_point_is_met_when_it_has_reported() -> None:
    """n2 has lost its snapshot, and runs web: only its report shows the seal."""
    world = running("n1", "n2")
    saved = world.saved()
    lost_and_rebuilt(world)
    world.deaf.add("n2")
    world.put_back(saved)
    world.agents["n1"].boot_again()
    assert not world.agents["n1"].running
    world.deaf.clear()
    world.agents["n2"].newest = None
    world.agents["n2"].connect()  # its report comes a second later
    world.settle()
    assert not (world.agents["n1"].running and world.agents["n2"].running), "two"


@pytest.mark.parametrize("kind", [m.VmDelete, m.VmRelease, m.VmStop])
def test_e7_nobody_is_told_that_a_vm_is_gone_or_off_while_its_node_is_waited_for(kind: type[m.Mutation]) -> None:
    """It runs on n2, which has it since the backup and is not heard yet; n1 truly says that it has none."""
    world = running("n1", "n2")
    saved = moved(world)
    world.restore(saved)
    world.deaf.add("n2")
    world.start("n1")
    assert world.tables().meta.recovering and WEB in world.agents["n2"].running
    try:
        answer = world.do(kind, vm="web")
    except Refused:
        return
    world.settle()
    world.run(5)
    assert world.op(answer)["state"] != "succeeded"
    world.deaf.clear()
    world.agents["n2"].start()
    world.run(30)
    assert world.tables().vms.get(WEB) is not None, "n2 runs it, and the database has forgotten it"


def test_e7_an_old_owner_that_is_heard_first_does_not_answer_for_the_one_that_runs_it() -> None:
    """The backup wants web stopped on n1. Since then it was started, n1 was lost and rebuilt, and n2 runs it; n1 has
    booted, holds the old epoch, and truly says that it does not run there."""
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = world.saved()
    world.do(m.VmStart, vm="web")
    world.settle()
    lost_and_rebuilt(world)
    world.deaf.add("n2")
    world.restore(saved)
    world.agents["n1"].boot_again()
    assert world.tables().meta.recovering
    world.deaf.clear()
    world.agents["n2"].start()
    world.run(60)
    assert owner(world)[0] == "n2"
    assert WEB in world.agents["n2"].running, "stopped by an old row, and nobody was asked"


def test_e7_a_guest_that_powered_itself_off_at_the_old_owner_does_not_stop_it_where_it_runs() -> None:
    """n1 was cut off when its guest powered itself off, and then lost; n2 runs web since the rebuild."""
    world = running("n1", "n2")
    saved = world.saved()
    world.agents["n1"].halted.add(WEB)
    lost_and_rebuilt(world)
    world.deaf.add("n2")
    world.restore(saved)
    world.agents["n1"].boot_again()
    world.deaf.clear()
    world.agents["n2"].start()
    world.run(60)
    assert owner(world)[0] == "n2"
    assert WEB in world.agents["n2"].running, "stopped by an old word, and nobody was asked"
