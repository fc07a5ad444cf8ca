"""VMs that leave and arrive by migration: attempts, how they are decided, handing over, arrivals."""

from __future__ import annotations

import msgspec
import pytest

from agentd.core import effects as fx
from agentd.core import guard, leaving, planner
from agentd.core.drain import DrainWatch
from agentd.core.durable import Attempt, Durable, Held, Journaled, Left, Tombstone
from agentd.core.effects import Action
from agentd.core.facts import Domain, DomainState, OffReason, Process, VmFacts
from agentd.core.migrations import Migrations
from agentd.hypervisor import HypervisorError
from agentd.libvirt import domain_xml
from tests.fakes.hypervisor import FakeDomain
from tests.unit.agent.server import VM_1, VM_2, assignment
from tests.unit.agent.world import PEER, World
from wire import messages as m
from wire.types import AdminState, Desired, MigrationPhase, Observed, Outcome, Storage

replace = msgspec.structs.replace
ORDER = m.MigrationOrder(target="n2", address=PEER)


def migrate(world: World, attempt: str = "a1", **changes: object) -> None:
    """The server orders it, as it does: the command, and the attempt in the assignment."""
    world.server.change(VM_1, attempt=attempt)
    world.server.command(attempt, kind="migrate", migration=ORDER, **changes)
    world.poke()


def leaving_now(world: World) -> bool:
    return VM_1 in world.saved.held and world.saved.held[VM_1].leaving


def has_left(world: World) -> bool:
    return VM_1 in world.saved.left


def attempt(world: World) -> Attempt:
    found = world.saved.held[VM_1].attempt
    assert found is not None
    return found


def told(world: World) -> m.MigrationReport:
    report = world.server.reports[VM_1].migration
    assert report is not None
    return report


def arrive(world: World, attempt: str = "a1", epoch: int = 1, state: DomainState = DomainState.PAUSED) -> FakeDomain:
    """A copy from another node stands here."""
    world.hv._next_pid += 1
    domain = FakeDomain(VM_1, "vm-01", state=state, pid=world.hv._next_pid)
    domain.stamp = domain_xml.Stamp(epoch, 1, attempt, "n0")
    world.hv.domains[VM_1] = domain
    world.agent._look_soon(world.now)
    world.run(1.0)
    return domain


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_a_vm_leaves_is_handed_over_and_the_server_hears_of_it(running: World) -> None:
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    assert running.server.results == {}, "nothing is said before it is decided"
    running.run_until(lambda: running.server.reports[VM_1].observed == Observed.MIGRATING)
    assert told(running).phase == MigrationPhase.LEAVING and told(running).peer == "n2"
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(5.0)
    report = running.server.reports[VM_1]
    assert VM_1 not in running.hv.domains and VM_1 not in running.saved.held
    assert report.observed == Observed.UNKNOWN and report.problem == "migrated-away" and report.revision == 0
    assert told(running) == m.MigrationReport(attempt="a1", phase=MigrationPhase.LEFT, peer="n2")
    assert running.server.results["a1"].outcome == Outcome.DONE and "vm-left" in running.events()
    assert running.saved.left[VM_1].handed_over and running.hand_overs == [VM_1]
    assert running.saved.tombstones[VM_1] == Tombstone(epoch=1, done=True, acked=True)
    assert running.server.confirmed == [], "no release is confirmed that was not asked for"
    assert len(running.starts) == 1


def test_the_release_that_follows_is_confirmed_and_ends_what_is_said(running: World) -> None:
    migrate(running)
    running.run_until(lambda: has_left(running))
    running.run(3.0)
    running.server.change(VM_1, revision=9)  # the server has not drawn its conclusion yet
    running.poke()
    running.run(3.0)
    assert running.server.reports[VM_1].problem == "migrated-away"
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    running.run(3.0)
    assert running.saved.left == {} and VM_1 not in running.server.reports


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_confirmation_says_where_it_had_left_to(running: World, epoch: int) -> None:
    """The server may not have heard of that: a VM that is deleted is deleted there."""
    migrate(running)
    running.run_until(lambda: has_left(running))
    running.run(3.0)
    for asked in (1, 2):  # the second time nothing is remembered of its leaving but in the release
        running.server.release(VM_1, epoch)
        running.poke()
        running.run_until(lambda count=asked: len(running.server.confirmed) >= count)
    assert {(r.epoch, r.left_to) for r in running.server.confirmed} == {(epoch, "n2")}
    running.server.release(VM_1, 7)  # of another time
    running.poke()
    running.run_until(lambda: running.server.confirmed[-1].epoch == 7)
    assert running.server.confirmed[-1].left_to == ""


def test_a_vm_that_comes_back_later_is_started_here(running: World) -> None:
    migrate(running)
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(3.0)
    running.peer.destroy(VM_1)
    again = msgspec.structs.replace(running.server.vms[VM_1], epoch=3, attempt="")
    running.server.release(VM_1, 2)
    running.server.assign(again)
    running.poke()
    running.run_until(lambda: running.runs(VM_1))
    running.run(3.0)
    assert running.saved.left == {} and "vm-migrated-away" not in running.events()


def test_a_vm_that_comes_back_at_once_is_looked_at_before_anything_is_done_to_it(running: World) -> None:
    """Its assignment comes before news of its copy: what is known here is that it is gone. A definition made now would
    take the mark off the copy, which nobody would let run."""
    migrate(running)
    running.run_until(lambda: running.runs_on_peer(VM_1))
    again = msgspec.structs.replace(running.server.vms[VM_1], epoch=3, attempt="", arrival="a2")
    running.server.release(VM_1, 1)
    running.poke()
    running.run(5.0)
    running.peer.destroy(VM_1)
    copy = FakeDomain(VM_1, "vm-01", state=DomainState.PAUSED, pid=4711)
    copy.stamp = domain_xml.Stamp(2, 1, "a2", "n2")
    running.hv.domains[VM_1] = copy
    running.server.assign(again)
    running.poke()
    running.run_until(lambda: copy.state == DomainState.RUNNING)
    assert running.resumes == [VM_1] and len(running.starts) == 1


def test_a_higher_epoch_that_crosses_the_news_that_it_left_starts_nothing(running: World) -> None:
    migrate(running)
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.server.change(VM_1, epoch=3, attempt="")
    running.poke()
    running.run(30.0)
    assert not running.runs(VM_1) and running.saved.left[VM_1].epoch == 1


def test_a_higher_epoch_does_not_end_a_migration_that_is_under_way(running: World) -> None:
    running.transfer_s = 8.0
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.server.change(VM_1, epoch=2)
    running.poke()
    running.run_until(lambda: running.runs_on_peer(VM_1))
    assert not running.runs(VM_1) and running.saved.left[VM_1].epoch == 2


def test_progress_is_told_once_a_second_and_not_recorded(running: World) -> None:
    running.transfer_s = 8.0
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    saved = running.saved
    running.run(0.5)
    for step in range(60):
        progress = m.MigrationProgress(total_mib=64, remaining_mib=64 - step)
        running.give(fx.Progressed(VM_1, "a1", progress))
        running.run(0.05)
    times = [at for at, body in running.sent if isinstance(body, m.Report) and at > running.now - 3.0]
    assert len(times) <= 5 and saved == running.saved
    running.give(fx.Progressed(VM_1, "old", m.MigrationProgress(total_mib=1)))
    running.run(1.5)
    assert told(running).progress is not None and told(running).progress != m.MigrationProgress(total_mib=1)
    shown = running.agent.status(running.now)["migrations"][0]
    assert shown["phase"] == "leaving" and shown["progress"]["total_mib"] == 64
    running.run_until(lambda: has_left(running))
    assert running.agent.status(running.now)["left"][0]["target"] == "n2"


def test_a_migration_that_fails_leaves_the_vm_running(running: World) -> None:
    running.hv.fail_next("migrate_begin")
    migrate(running)
    running.run_until(lambda: "a1" in running.server.results)
    running.run(3.0)
    assert running.server.results["a1"].outcome == Outcome.FAILED
    assert told(running).phase == MigrationPhase.FAILED and told(running).detail == "migrate_begin failed as ordered"
    assert running.runs(VM_1) and attempt(running).resumed and "vm-migration-failed" in running.events()
    assert running.server.reports[VM_1].observed == Observed.RUNNING and running.resumes == []
    shown = running.agent.status(running.now)["migrations"][0]
    assert shown["phase"] == "failed" and shown["progress"] is None


def test_a_source_that_stayed_paused_is_resumed_once_and_never_again(running: World) -> None:
    running.stays_paused = True
    running.hv.fail_next("migrate_confirm")
    running.hv.fail_next("resume")
    migrate(running)
    running.run_until(lambda: running.resumes == [VM_1, VM_1])
    running.run(3.0)
    assert running.hv.domains[VM_1].state == DomainState.RUNNING and attempt(running).resumed
    assert running.peer.domains[VM_1].state == DomainState.PAUSED and running.hand_overs == []
    running.hv.person_pause(VM_1)
    running.run(100.0)
    assert running.resumes == [VM_1, VM_1] and running.hv.domains[VM_1].state == DomainState.PAUSED


def test_what_libvirt_does_not_tell_is_not_that_the_guest_went_on() -> None:
    held = Held(vm=assignment(VM_1), attempt=Attempt(id="a1", target="n2", address=PEER, phase=MigrationPhase.FAILED))
    assert leaving.noticed(held, VmFacts(VM_1, False)) is held
    assert leaving.noticed(held, VmFacts(VM_1, True)) is not held


def test_a_source_that_stayed_paused_is_resumed_in_the_next_epoch_too(running: World) -> None:
    """The server raises the epoch at once when it finds the stale copy."""
    running.stays_paused = True
    running.hv.fail_next("migrate_confirm")
    running.hv.fail_next("resume")
    migrate(running)
    running.run_until(lambda: running.resumes == [VM_1])
    running.server.change(VM_1, epoch=2)
    running.poke()
    running.run_until(lambda: running.hv.domains[VM_1].state == DomainState.RUNNING)
    running.run(3.0)
    assert running.saved.held[VM_1].vm.epoch == 2 and attempt(running).resumed


def test_a_source_that_should_not_run_any_more_is_not_resumed(running: World) -> None:
    running.stays_paused = True
    running.hv.fail_next("migrate_confirm")
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.server.order = replace(running.server.order, hold=True)
    running.server.revision += 1
    running.poke()
    running.run(5.0)
    assert running.resumes == [] and running.hv.domains[VM_1].state == DomainState.PAUSED
    running.server.order = replace(running.server.order, hold=False)
    running.server.revision += 1
    running.poke()
    running.run_until(lambda: running.resumes == [VM_1])


def test_a_vm_that_crashes_while_it_leaves_is_started_when_that_is_decided(running: World) -> None:
    running.transfer_s = 5.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.kill_agent()
    running.hv.kill(VM_1)
    running.start_agent()
    running.run(4.0)
    assert leaving_now(running) and not running.runs(VM_1), "it may be elsewhere, as far as is known"
    running.run_until(lambda: running.runs(VM_1))
    assert attempt(running).phase == MigrationPhase.FAILED and attempt(running).resumed


def test_a_definition_that_stayed_behind_is_removed_and_the_vm_has_left(running: World) -> None:
    domain, confirm = running.hv.domains[VM_1], running.hv.migrate_confirm

    def confirmed(uuid: str) -> None:
        confirm(uuid)
        running.hv.domains[uuid] = domain

    running.hv.migrate_confirm = confirmed  # type: ignore[method-assign]
    migrate(running)
    running.run_until(lambda: has_left(running))
    assert VM_1 not in running.hv.domains and len(running.starts) == 1
    assert ("undefine", VM_1) in running.hv.calls


@pytest.mark.parametrize("dies_after", range(1, 14))
def test_row_51_an_agent_that_dies_at_any_step_finds_the_outcome(running: World, dies_after: int) -> None:
    running.kill_after = running.effects + dies_after
    migrate(running)
    running.run(60.0)
    outcome = running.server.results["a1"].outcome
    assert outcome in (Outcome.DONE, Outcome.FAILED) and running.saved.journal["a1"].result is not None
    assert running.runs(VM_1) != running.runs_on_peer(VM_1)
    assert (outcome == Outcome.DONE) == running.runs_on_peer(VM_1)


def test_row_51_an_agent_that_dies_while_it_is_copied_waits_for_libvirt(running: World) -> None:
    running.transfer_s = 30.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.restart_agent()
    running.run(20.0)
    assert leaving_now(running) and running.server.reports[VM_1].observed == Observed.MIGRATING
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(3.0)
    assert running.server.results["a1"].outcome == Outcome.DONE and running.migrations == [(VM_1, "a1")]


def test_an_attempt_is_not_decided_before_libvirt_has_answered_for_a_while(running: World) -> None:
    """What a dead predecessor has ordered may be about to begin in libvirt."""
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.restart_agent()
    running.run(4.0)
    assert leaving_now(running), "settle_s is not over"
    running.run_until(lambda: not leaving_now(running), 5.0)


def test_an_attempt_stays_undecided_while_libvirt_is_silent(running: World) -> None:
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.hv.lose()
    running.run(100.0)
    assert leaving_now(running) and running.server.reports[VM_1].observed == Observed.UNKNOWN
    running.hv.restore()
    running.run_until(lambda: not leaving_now(running))


def test_settling_is_tried_again_with_a_pause_that_grows(running: World) -> None:
    running.hv.fail_next("migrate_begin")
    running.kill_agent()
    held = replace(running.saved.held[VM_1], attempt=Attempt(id="a1", target="n2", address=PEER))
    running.saved = running.saved.with_held(held)
    running.hv.domains[VM_1].job = True
    running.start_agent()
    running.run(60.0)
    settles = running.hv.calls.count(("settle", VM_1))
    assert leaving_now(running) and 8 <= settles <= 20
    running.hv.domains[VM_1].job = False
    running.run_until(lambda: not leaving_now(running), 10.0)


def test_after_a_boot_the_same_rule_holds(running: World) -> None:
    running.transfer_s = 30.0
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.power_loss()
    running.start_agent()
    running.run_until(lambda: not leaving_now(running))
    assert attempt(running).phase == MigrationPhase.FAILED
    running.run_until(lambda: running.runs(VM_1))
    assert attempt(running).resumed


def test_an_outcome_that_could_not_be_recorded_is_decided_again(running: World) -> None:
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.disk_full = True
    running.run(10.0)
    assert leaving_now(running) and running.hand_overs == [] and VM_1 not in running.hv.domains
    running.disk_full = False
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(3.0)
    assert running.server.results["a1"].outcome == Outcome.DONE and running.events().count("vm-left") == 1


def test_an_attempt_that_could_not_be_recorded_is_not_begun(running: World) -> None:
    running.disk_full = True
    migrate(running)
    running.run(10.0)
    assert running.migrations == [] and "a1" not in running.server.results
    running.disk_full = False
    running.run_until(lambda: running.runs_on_peer(VM_1))


# --- handing over -----------------------------------------------------------------------------------------------------


def test_handing_over_is_tried_until_the_target_answers(running: World) -> None:
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.run(1.0)
    reach = running.hv.peers.pop(PEER)
    running.run(61.0)
    assert 6 <= len(running.hand_overs) <= 9 and not running.saved.left[VM_1].handed_over
    running.restart_agent()
    running.hv.peers[PEER] = reach
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(1.0)
    assert running.saved.left[VM_1].handed_over


def test_a_copy_that_is_not_there_ends_handing_over(running: World) -> None:
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.hv.fail_next("hand_over")
    running.run_until(lambda: has_left(running))
    running.peer.destroy(VM_1)
    running.run(30.0)
    left = running.saved.left[VM_1]
    assert left.handed_over and "no copy" in left.detail and "no copy" in told(running).detail


def test_a_release_is_carried_out_while_handing_over_hangs(running: World) -> None:
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.run(1.99)
    running.run_until(lambda: has_left(running))
    running.hung = True
    running.run(1.0)
    running.server.release(VM_1, 1)
    running.poke()
    running.run(3.0)
    assert running.saved.left == {}
    running.unhang()
    running.hand_overs.clear()
    running._stuck.clear()


def test_a_hand_over_that_returns_late_or_could_not_be_ordered_changes_nothing() -> None:
    left = Left(attempt="a1", epoch=1, name="vm", target="n2", address=PEER)
    durable = Durable(node="n1").with_left(VM_1, left)
    migrations = Migrations()
    acts, _ = migrations.hand_overs(durable, 0.0)
    assert [act.action for act in acts] == [Action.HAND_OVER] and acts[0].left == left
    assert migrations.hand_overs(durable, 0.0)[0] == []
    migrations.dropped(acts)
    again, _ = migrations.hand_overs(durable, 0.0)
    migrations.dropped(acts)  # of an older turn
    late = fx.Acted(VM_1, Action.HAND_OVER, acts[0].token, VmFacts(VM_1, True))
    assert migrations.handed(late, durable, 0.0) == durable
    returned = replace(late, token=again[0].token)
    assert migrations.handed(returned, Durable(node="n1"), 0.0) == Durable(node="n1")
    assert leaving.handed_over(durable, VM_1, "a2") == durable
    assert leaving.handed_over(Durable(node="n1"), VM_1, "a1") == Durable(node="n1")


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"migration": None}, "where to"),
        ({"epoch": 7}, "epoch 7"),
        ({"deadline_s": 0.0}, "deadline"),
    ],
)
def test_a_migration_that_cannot_be_begun_is_rejected(running: World, changes: dict[str, object], why: str) -> None:
    running.server.command("a1", kind="migrate", **{"migration": ORDER, **changes})
    running.poke()
    running.run_until(lambda: "a1" in running.server.results)
    running.run(2.0)
    assert running.server.results["a1"].outcome == Outcome.REJECTED and why in running.server.results["a1"].detail
    assert told(running).phase == MigrationPhase.FAILED and why in told(running).detail
    assert running.migrations == [] and running.runs(VM_1)


def test_a_paused_vm_is_not_migrated_nor_resumed(running: World) -> None:
    running.hv.person_pause(VM_1)
    running.run(1.0)
    migrate(running)
    running.run_until(lambda: "a1" in running.server.results)
    running.run(20.0)
    assert "paused" in running.server.results["a1"].detail and running.resumes == []


def test_a_rejected_one_does_not_hide_that_the_source_is_to_be_resumed() -> None:
    failed = Attempt(id="a1", target="n2", address=PEER, phase=MigrationPhase.FAILED)
    durable = Durable(node="n1").with_held(Held(vm=assignment(), attempt=failed))
    after = leaving.rejected(durable, VM_1, "a2", "it is paused").held[VM_1].attempt
    assert after is not None and after.id == "a2" and not after.resumed
    assert leaving.rejected(durable, VM_2, "a2", "not here") == durable


def test_one_attempt_at_a_time(running: World) -> None:
    running.transfer_s = 10.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.server.command("a2", kind="migrate", migration=ORDER)
    running.poke()
    running.run_until(lambda: "a2" in running.server.results)
    assert running.server.results["a2"].outcome == Outcome.REJECTED and attempt(running).id == "a1"
    running.run_until(lambda: running.runs_on_peer(VM_1))


def test_the_same_command_again_is_answered_and_not_begun_again(running: World) -> None:
    migrate(running)
    running.run_until(lambda: "a1" in running.server.results)
    running.server.command("a1", kind="migrate", migration=ORDER)
    running.poke()
    running.run(5.0)
    assert [r.outcome for r in running.server.results_seen] == [Outcome.DONE, Outcome.DONE]
    assert len(running.migrations) == 1


@pytest.mark.parametrize("at_s", [0.0, 0.07, 1.0])
def test_a_cancelled_migration_is_given_up(running: World, at_s: float) -> None:
    running.transfer_s = 600.0
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.run(at_s)
    running.server.command("c1", kind="cancel-migration", attempt="a1")
    running.poke()
    running.run_until(lambda: "c1" in running.server.results)
    assert running.server.results["c1"].outcome == Outcome.DONE
    running.run(20.0)
    assert running.server.results["a1"].outcome == Outcome.FAILED and running.runs(VM_1)
    running.server.command("c2", kind="cancel-migration", attempt="a1")
    running.poke()
    running.run_until(lambda: "c2" in running.server.results)
    assert running.server.results["c2"].outcome == Outcome.REJECTED


def test_a_migration_that_waits_is_cancelled_before_it_begins(running: World) -> None:
    running.hung = True
    running.server.command("r1")
    running.poke()
    running.run(0.5)
    migrate(running)
    running.run(0.5)
    running.server.command("c1", kind="cancel-migration", attempt="a1")
    running.poke()
    running.run_until(lambda: "c1" in running.server.results)
    assert running.server.results["a1"].outcome == Outcome.REJECTED
    running.unhang()
    running.run(5.0)
    assert running.migrations == []


def test_a_migration_that_comes_with_its_cancelling_is_not_begun(running: World) -> None:
    running.server.command("c1", kind="cancel-migration", attempt="a1")
    migrate(running)
    running.run_until(lambda: {"a1", "c1"} <= running.server.results.keys())
    assert running.server.results["a1"].outcome == Outcome.REJECTED and running.migrations == []


def test_a_migration_that_waits_in_its_worker_is_not_begun_once_cancelled(running: World) -> None:
    running.hung = True
    migrate(running)
    running.run_until(lambda: leaving_now(running))
    running.server.command("c1", kind="cancel-migration", attempt="a1")
    running.poke()
    running.run_until(lambda: "c1" in running.server.results)
    running.unhang()
    running.run_until(lambda: "a1" in running.server.results)
    assert running.migrations == [] and "cancelled" in running.server.results["a1"].detail


def test_a_release_meanwhile_wins_over_the_migration(running: World) -> None:
    running.transfer_s = 600.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed), 650.0)
    assert VM_1 not in running.hv.domains and running.saved.left == {}


def test_an_attempt_that_nothing_is_known_of_is_decided_by_facts(running: World) -> None:
    running.server.change(VM_1, attempt="a9")  # and its command never came
    running.poke()
    running.run_until(lambda: running.saved.held[VM_1].attempt is not None)
    assert leaving_now(running) and attempt(running).address == ""
    running.run_until(lambda: not leaving_now(running))
    running.run(2.0)
    assert attempt(running).phase == MigrationPhase.FAILED and told(running).attempt == "a9"
    assert running.runs(VM_1)


def test_after_a_lost_snapshot_a_vm_that_is_gone_has_left(running: World) -> None:
    running.transfer_s = 10.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.kill_agent()
    running.saved = Durable(node="n1")
    running._epochs.clear()
    running.run(20.0)
    running.start_agent()
    running.run_until(lambda: has_left(running))
    running.run(2.0)
    assert running.hand_overs == [] and running.saved.left[VM_1].handed_over and len(running.starts) == 1
    assert running.server.results["a1"].outcome == Outcome.INTERRUPTED
    assert told(running) == m.MigrationReport(attempt="a1", phase=MigrationPhase.LEFT)


def test_a_drain_on_the_node_waits_for_the_attempt_and_is_not_proven_before(running: World) -> None:
    running.transfer_s = 10.0
    migrate(running)
    running.run_until(lambda: bool(running.hv.moves))
    running.give(fx.Asked(1, "drain", 0.0))
    running.run(5.0)
    assert leaving_now(running) and running.server.proof is not None and not running.server.proof.clean
    running.run_until(lambda: has_left(running))
    running.run_until(lambda: running.server.proof is not None and running.server.proof.clean)
    assert running.server.reports[VM_1].problem == "migrated-away"


def test_a_drain_is_not_proven_by_a_leaving_vm_of_which_nothing_is_seen() -> None:
    held = Held(vm=assignment(), attempt=Attempt(id="a", target="", address=""))
    durable = Durable(node="n1", local_drain=True, held={VM_1: held})
    watch = DrainWatch("b")
    watch.judge(durable, {VM_1: VmFacts(VM_1, True)}, 0.0, 50.0, 60.0)
    assert watch.proof is not None and not watch.proof.clean and watch.proof.running == (VM_1,)


# --- asked on the node ------------------------------------------------------------------------------------------------


def ask(world: World, attempt: str = "l1", uuid: str = VM_1) -> dict[str, object]:
    world.answers.clear()
    world.give(fx.Asked(1, "migrate", uuid=uuid, attempt=attempt, migration=ORDER))
    return world.answers[0]


def test_the_nodes_operator_migrates_without_the_server(running: World) -> None:
    running.network_down = True
    assert ask(running) == {"begun": "l1"} and leaving_now(running)
    assert ask(running) == {"begun": "l1"}, "the same question again"
    assert "another migration" in str(ask(running, "l2")["refused"])
    running.run_until(lambda: running.runs_on_peer(VM_1))
    running.run(1.0)
    assert ask(running) == {"begun": "l1"} and len(running.migrations) == 1
    assert "own" in str(ask(running, "l3")["refused"]) and "own" in str(ask(running, "l1", VM_2)["refused"])
    running.network_down = False
    running.run_until(lambda: VM_1 in running.server.reports and running.server.reports[VM_1].revision == 0)
    running.run(60.0)
    assert told(running).attempt == "l1" and told(running).phase == MigrationPhase.LEFT


def test_a_question_that_cannot_be_recorded_begins_nothing(running: World) -> None:
    running.disk_full = True
    assert "error" in ask(running)
    running.run(1.0)
    assert running.migrations == []
    running.disk_full = False
    running.run(5.0)
    assert running.migrations == [] and not leaving_now(running)


def test_a_question_waits_for_what_is_done_to_the_vm(running: World) -> None:
    running.hung = True
    running.server.command("r1")
    running.poke()
    running.run(0.5)
    assert "busy" in ask(running)
    running.unhang()
    running.run(1.0)
    running.answers.clear()
    running.give(fx.Asked(1, "migrate", uuid=VM_1))
    assert "error" in running.answers[0]


# --- arrivals ---------------------------------------------------------------------------------------------------------


def test_an_arrival_that_is_not_owned_is_told_and_not_touched(world: World) -> None:
    domain = arrive(world)
    domain.job = True
    world.agent._look_soon(world.now)
    world.run(1.0)
    assert world.server.reports[VM_1].observed == Observed.MIGRATING
    assert told(world) == m.MigrationReport(attempt="a1", phase=MigrationPhase.ARRIVED, peer="n0")
    domain.job = False  # and nothing tells
    world.run(3.0)
    assert world.server.reports[VM_1].observed == Observed.PAUSED
    domain.state = DomainState.RUNNING
    world.run(130.0)
    assert world.server.reports[VM_1].observed == Observed.RUNNING and world.server.reports[VM_1].revision == 0
    assert world.resumes == [] and world.hv.domains[VM_1] is domain


def test_the_copy_that_the_vm_came_by_is_resumed_and_then_defined(world: World) -> None:
    pid = arrive(world).pid
    world.server.assign(assignment(epoch=2, arrival="a1"))
    world.poke()
    world.run_until(lambda: world.resumes == [VM_1])
    world.run(3.0)
    domain = world.hv.domains[VM_1]
    assert domain.pid == pid and domain.state == DomainState.RUNNING and world.starts == []
    assert domain.stamp is not None and (domain.stamp.epoch, domain.stamp.attempt) == (2, "")
    assert world.server.reports[VM_1].observed == Observed.RUNNING and world.server.reports[VM_1].restarts == 0
    assert world.server.reports[VM_1].migration is None


@pytest.mark.parametrize("arrival", ["", "a2"])
def test_another_copy_is_ended_and_the_vm_started_anew(world: World, arrival: str) -> None:
    pid = arrive(world).pid
    world.server.assign(assignment(epoch=2, arrival=arrival))
    world.poke()
    world.run_until(lambda: world.starts == [VM_1])
    world.run(3.0)
    assert world.hv.domains[VM_1].pid != pid and world.resumes == [] and world.server.reports[VM_1].restarts == 0


def test_a_copy_that_is_still_coming_is_waited_for(world: World) -> None:
    domain = arrive(world)
    domain.job = True
    world.agent._look_soon(world.now)
    world.server.assign(assignment(epoch=2, arrival="a1"))
    world.poke()
    world.run(10.0)
    assert world.resumes == [] and world.hv.domains[VM_1] is domain
    domain.job = False
    world.run_until(lambda: world.resumes == [VM_1], 5.0)


def test_a_copy_that_was_handed_over_is_kept(world: World) -> None:
    pid = arrive(world, state=DomainState.RUNNING).pid
    world.server.assign(assignment(epoch=2))
    world.poke()
    world.run(5.0)
    domain = world.hv.domains[VM_1]
    assert domain.pid == pid and domain.stamp is not None and domain.stamp.epoch == 2 and world.starts == []


def test_an_arrival_that_should_not_run_is_ended_at_once(world: World) -> None:
    arrive(world)
    world.server.assign(assignment(epoch=2, arrival="a1", desired=Desired.STOPPED))
    world.poke()
    world.run(3.0)
    assert not world.runs(VM_1) and world.resumes == []


def test_a_copy_that_stays_in_hold_is_not_resumed_before_its_end(world: World) -> None:
    arrive(world)
    world.server.order = replace(world.server.order, hold=True)
    world.server.assign(assignment(epoch=2, arrival="a1"))
    world.poke()
    world.run(5.0)
    assert world.resumes == [] and world.hv.domains[VM_1].stamp == domain_xml.Stamp(1, 1, "a1", "n0")
    world.server.order = replace(world.server.order, hold=False)
    world.server.revision += 1
    world.poke()
    world.run_until(lambda: world.resumes == [VM_1])


def test_a_release_ends_a_stale_copy_and_no_copy_that_comes_after_it(world: World) -> None:
    arrive(world)
    world.server.release(VM_1, 1)
    world.poke()
    world.run_until(lambda: bool(world.server.confirmed))
    assert VM_1 not in world.hv.domains
    domain = arrive(world, "a2")
    world.run(100.0)
    assert world.hv.domains[VM_1] is domain and told(world).attempt == "a2"
    world.server.release(VM_1, 1)
    world.poke()
    world.run_until(lambda: VM_1 not in world.hv.domains)


def test_a_release_of_an_older_epoch_does_not_end_an_arrival_and_is_confirmed(world: World) -> None:
    domain = arrive(world, epoch=3)
    world.server.release(VM_1, 2)
    world.poke()
    world.run_until(lambda: bool(world.server.confirmed))
    world.run(5.0)
    assert world.hv.domains[VM_1] is domain


# --- the pure parts ---------------------------------------------------------------------------------------------------

HELD = Held(vm=assignment(epoch=3, arrival="a1"))
GOOD = Durable(node="n1", confirmed_boot="b", held={VM_1: HELD})
RUNS = Domain(VM_1, "vm", DomainState.RUNNING, epoch=3)
HERE = Domain(VM_1, "vm", DomainState.PAUSED, epoch=2, attempt="a1")
ONE = (Process(VM_1, 7, "S"),)
FAILED = Attempt(id="f", target="", address="", phase=MigrationPhase.FAILED)
UNDER_WAY = replace(FAILED, phase=MigrationPhase.LEAVING)


def held(**changes: object) -> Durable:
    return replace(GOOD, held={VM_1: replace(HELD, **changes)})


LOCAL_DISK = m.Disk(path="/d", storage=Storage.LOCAL)
LOCAL = assignment(epoch=3, spec=m.VmSpec(vcpus=1, memory_mib=64, disks=(LOCAL_DISK,)))
OBJECTIONS: dict[str, tuple[Durable, VmFacts | None]] = {
    "not owned": (replace(GOOD, held={}), None),
    "under way": (held(attempt=UNDER_WAY), VmFacts(VM_1, True, RUNS, ONE)),
    "not confirmed": (replace(GOOD, confirmed_boot="a"), VmFacts(VM_1, True, RUNS, ONE)),
    "drained": (replace(GOOD, local_drain=True), VmFacts(VM_1, True, RUNS, ONE)),
    "should be stopped": (held(vm=assignment(epoch=3, desired=Desired.STOPPED)), VmFacts(VM_1, True, RUNS, ONE)),
    "local disks": (held(vm=LOCAL), VmFacts(VM_1, True, RUNS, ONE)),
    "never seen": (GOOD, None),
    "unknown": (GOOD, VmFacts(VM_1, False, RUNS, ONE)),
    "no domain": (GOOD, VmFacts(VM_1, True)),
    "off": (GOOD, VmFacts(VM_1, True, replace(RUNS, state=DomainState.OFF))),
    "paused": (GOOD, VmFacts(VM_1, True, replace(RUNS, state=DomainState.PAUSED), ONE)),
    "migrated by a person": (GOOD, VmFacts(VM_1, True, replace(RUNS, job=True), ONE)),
    "two processes": (GOOD, VmFacts(VM_1, True, RUNS, ONE * 2)),
    "old definition": (GOOD, VmFacts(VM_1, True, replace(RUNS, epoch=2), ONE)),
}


@pytest.mark.parametrize("case", OBJECTIONS)
def test_each_objection_to_a_migration(case: str) -> None:
    durable, facts = OBJECTIONS[case]
    assert leaving.objection(durable, VM_1, "b", facts)


def test_nothing_objects_to_a_running_vm_that_is_owned() -> None:
    assert leaving.objection(GOOD, VM_1, "b", VmFacts(VM_1, True, RUNS, ONE)) is None
    assert leaving.objection(held(vm=LOCAL), VM_1, "b", VmFacts(VM_1, True, RUNS, ONE), with_local_disks=True) is None


STAYED = replace(HERE, attempt="", epoch=3)
RESUMES: dict[str, tuple[Durable, VmFacts, bool]] = {
    "arrival": (GOOD, VmFacts(VM_1, True, HERE, ONE), True),
    "stayed": (held(attempt=FAILED), VmFacts(VM_1, True, STAYED, ONE), True),
    "not owned": (replace(GOOD, held={}), VmFacts(VM_1, True, HERE, ONE), False),
    "drained": (replace(GOOD, local_drain=True), VmFacts(VM_1, True, HERE, ONE), False),
    "leaving": (held(attempt=UNDER_WAY), VmFacts(VM_1, True, STAYED, ONE), False),
    "unknown": (GOOD, VmFacts(VM_1, False, HERE, ONE), False),
    "gone": (GOOD, VmFacts(VM_1, True), False),
    "runs": (GOOD, VmFacts(VM_1, True, replace(HERE, state=DomainState.RUNNING), ONE), False),
    "disk error": (GOOD, VmFacts(VM_1, True, replace(HERE, io_error=True), ONE), False),
    "still coming": (GOOD, VmFacts(VM_1, True, replace(HERE, job=True), ONE), False),
    "no process": (GOOD, VmFacts(VM_1, True, HERE), False),
    "two processes": (GOOD, VmFacts(VM_1, True, HERE, ONE * 2), False),
    "another copy": (GOOD, VmFacts(VM_1, True, replace(HERE, attempt="a2"), ONE), False),
    "paused by a person": (GOOD, VmFacts(VM_1, True, STAYED, ONE), False),
    "paused again": (held(attempt=replace(FAILED, resumed=True)), VmFacts(VM_1, True, STAYED, ONE), False),
    "an older epoch": (held(attempt=FAILED), VmFacts(VM_1, True, replace(STAYED, epoch=2), ONE), True),
    "a newer epoch": (held(attempt=FAILED), VmFacts(VM_1, True, replace(STAYED, epoch=4), ONE), False),
    "without a mark": (held(attempt=FAILED), VmFacts(VM_1, True, replace(STAYED, epoch=None), ONE), False),
    "of an epoch that was released": (
        held(attempt=FAILED).with_tombstone(VM_1, Tombstone(epoch=2)),
        VmFacts(VM_1, True, replace(STAYED, epoch=2), ONE),
        False,
    ),
}


@pytest.mark.parametrize("case", RESUMES)
def test_what_may_be_resumed(case: str) -> None:
    durable, facts, allowed = RESUMES[case]
    assert (guard.resume_refusal(durable, VM_1, "b", facts) is None) == allowed


def test_a_leaving_vm_is_never_started() -> None:
    off = VmFacts(VM_1, True, replace(RUNS, state=DomainState.OFF))
    assert guard.refusal(GOOD, VM_1, "b", off) is None
    assert guard.refusal(held(attempt=UNDER_WAY), VM_1, "b", off) == "it is being migrated away"


def test_only_the_attempt_that_is_recorded_may_begin() -> None:
    none: frozenset[str] = frozenset()
    under_way = held(attempt=UNDER_WAY)
    assert guard.migrate_refusal(under_way, VM_1, "f", none) is None
    assert guard.migrate_refusal(under_way, VM_1, "f", {"f"}) == "it was cancelled before it began"
    assert guard.migrate_refusal(under_way, VM_1, "g", none)
    for other in (held(attempt=FAILED), GOOD, Durable(node="n1")):
        assert guard.migrate_refusal(other, VM_1, "f", none)


OFF = replace(RUNS, state=DomainState.OFF)
MIGRATED = replace(OFF, reason=OffReason.MIGRATED)
PHASES = {
    "gone": (VmFacts(VM_1, True), MigrationPhase.LEFT),
    "unknown": (VmFacts(VM_1, False), MigrationPhase.LEAVING),
    "a process without domain": (VmFacts(VM_1, True, None, ONE), MigrationPhase.LEAVING),
    "job": (VmFacts(VM_1, True, replace(RUNS, job=True), ONE), MigrationPhase.LEAVING),
    "only its definition": (VmFacts(VM_1, True, MIGRATED), MigrationPhase.LEAVING),
    "a process that libvirt says has left": (VmFacts(VM_1, True, MIGRATED, ONE), MigrationPhase.FAILED),
    "off": (VmFacts(VM_1, True, OFF), MigrationPhase.FAILED),
    "runs": (VmFacts(VM_1, True, RUNS, ONE), MigrationPhase.FAILED),
}


@pytest.mark.parametrize("case", PHASES)
def test_what_facts_say_of_an_attempt(case: str) -> None:
    facts, phase = PHASES[case]
    durable = replace(held(attempt=UNDER_WAY), journal={"f": Journaled(uuid=VM_1)})
    decided = leaving.decide(durable, facts, "libvirt said so")
    assert (VM_1 in decided.left) == (phase == MigrationPhase.LEFT) == (VM_1 not in decided.held)
    assert (decided.journal["f"].result is None) == (phase == MigrationPhase.LEAVING)
    after = decided.held.get(VM_1)
    assert after is None or (after.attempt is not None and after.attempt.phase == phase)
    assert after is None or after.attempt is None or after.attempt.detail == "libvirt said so"
    if phase == MigrationPhase.LEAVING:
        again = leaving.decide(decided, facts, "something later")
        assert again == decided, "the first error is the one that matters"


def test_what_is_not_under_way_is_not_decided() -> None:
    assert leaving.decide(GOOD, VmFacts(VM_1, True), "") is GOOD
    assert leaving.decide(held(attempt=FAILED), VmFacts(VM_1, True), "") == held(attempt=FAILED)
    assert leaving.decide(replace(GOOD, held={}), VmFacts(VM_1, True), "").left == {}


def test_a_release_that_was_asked_for_before_is_confirmed_by_having_left() -> None:
    durable = held(attempt=UNDER_WAY).with_tombstone(VM_1, Tombstone(epoch=1))
    assert leaving.decide(durable, VmFacts(VM_1, True), "").tombstones[VM_1] == Tombstone(epoch=3, done=True)
    settled = held(attempt=UNDER_WAY).with_tombstone(VM_1, Tombstone(epoch=1, done=True, acked=True))
    assert leaving.decide(settled, VmFacts(VM_1, True), "").tombstones[VM_1].acked


def test_what_the_guest_did_after_a_failure_is_noticed_once() -> None:
    stayed = Held(vm=assignment(), attempt=FAILED)
    assert leaving.noticed(HELD, VmFacts(VM_1, True)) is HELD
    assert leaving.noticed(stayed, VmFacts(VM_1, True, STAYED, ONE)) is stayed
    for facts in (VmFacts(VM_1, True), VmFacts(VM_1, True, OFF), VmFacts(VM_1, True, RUNS, ONE)):
        after = leaving.noticed(stayed, facts)
        assert after.attempt is not None and after.attempt.resumed
        assert leaving.noticed(after, facts) is after


def test_an_attempt_that_is_known_or_waits_is_not_adopted() -> None:
    vm = assignment(attempt="a5")
    unknown = Durable(node="n1").with_held(Held(vm=vm))
    adopted = leaving.adopt(unknown, set()).held[VM_1]
    assert adopted.leaving and adopted.attempt is not None and adopted.attempt.id == "a5"
    assert leaving.adopt(unknown, {"a5"}) == unknown
    journaled = unknown.with_journal("a5", Journaled(uuid=VM_1))
    assert leaving.adopt(journaled, set()) == journaled
    for known in (replace(FAILED, id="a5"), UNDER_WAY):
        durable = Durable(node="n1").with_held(Held(vm=vm, attempt=known))
        assert leaving.adopt(durable, set()) == durable


def test_a_left_vm_of_which_something_is_seen_is_told_as_it_is(running: World) -> None:
    migrate(running)
    running.run_until(lambda: has_left(running))
    running.run(3.0)
    running.hv.person_run(VM_1)
    running.hand_started = frozenset({VM_1})
    running.run(61.0)
    assert told(running).phase == MigrationPhase.LEFT
    assert running.server.reports[VM_1].observed == Observed.UNKNOWN


def test_plan_of_a_paused_copy_with_a_disk_error_is_no_start() -> None:
    facts = VmFacts(VM_1, True, replace(HERE, io_error=True), ONE)
    assert planner.plan(GOOD, facts, "b", None, 0.0).action == Action.RESUME  # which the guard refuses
    assert guard.resume_refusal(GOOD, VM_1, "b", facts) is not None
    drained = replace(GOOD, order=m.NodeOrder(admin_state=AdminState.DRAINED, drain_serial=1))
    assert planner.plan(drained, facts, "b", None, 0.0).action == Action.DESTROY


def test_hypervisor_errors_of_settling_change_nothing(running: World) -> None:
    running.hv.fail_next("settle", HypervisorError("libvirt is busy"))
    running.server.change(VM_1, attempt="a9")
    running.poke()
    running.run_until(lambda: not leaving_now(running) and running.saved.held[VM_1].attempt is not None)
    assert running.runs(VM_1)
