"""What becomes of a VM: crashes, guests that power off, stops, drains, releases (rows of faults.md in the names)."""

from __future__ import annotations

import msgspec
import pytest

from agentd.core import effects as fx
from agentd.core import planner
from agentd.core.durable import Durable, Held
from agentd.core.facts import Domain, DomainState, Happening, HostScan, Lifecycle, OffReason, Process, VmFacts
from agentd.core.sightings import Sightings
from agentd.hypervisor import HypervisorError
from tests.unit.agent.server import VM_1, VM_2, VM_3, assignment
from tests.unit.agent.world import World
from wire.messages import Disk, Inventory, VmSpec
from wire.types import Desired, Observed, OnGuestShutdown


def observed(world: World, uuid: str = VM_1) -> Observed:
    return world.server.reports[uuid].observed


# --- ends that nobody asked for ---------------------------------------------------------------------------


def test_row_1_killed_vm_runs_again_at_once_in_the_same_epoch(running: World) -> None:
    running.hv.kill(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.2
    running.run(5.0)
    assert running.events() == ["vm-restarted"] and running.server.reports[VM_1].restarts == 1


def test_row_1_killed_vm_runs_again_at_the_audit_if_the_event_is_lost(running: World) -> None:
    running.hv._on_lifecycle = lambda event: None
    running.hv.kill(VM_1)
    assert 1.0 < running.run_until(lambda: running.runs(VM_1)) <= 61.0


def test_row_2_sigterm_from_the_host_is_not_the_guests_power_off(running: World) -> None:
    running.hv.host_sigterm(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.2


def test_row_3_guest_power_off_stays_off_and_is_reported(running: World) -> None:
    running.hv.guest_shutdown(VM_1)
    running.run(300.0)
    report = running.server.reports[VM_1]
    assert not running.runs(VM_1) and report.halted and report.observed == Observed.STOPPED
    running.restart_agent()
    running.run(100.0)
    assert not running.runs(VM_1)
    running.server.begin(VM_1)
    running.poke()
    running.run_until(lambda: running.runs(VM_1))


def test_row_3_guest_power_off_with_policy_restart_is_restarted(running: World) -> None:
    running.server.on_guest_shutdown(VM_1, OnGuestShutdown.RESTART)
    running.poke()
    running.run(1.0)
    running.hv.guest_shutdown(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.2


def test_power_off_after_an_earlier_sigterm_is_the_guests_again(running: World) -> None:
    running.hv.host_sigterm(VM_1)
    running.run_until(lambda: running.runs(VM_1))
    running.run(1.0)
    running.hv.guest_shutdown(VM_1)
    running.run(30.0)
    assert not running.runs(VM_1) and "vm-halted" in running.events()


def test_row_5_crash_loop_backs_off_then_fails_until_cleared(running: World) -> None:
    times = []
    for _ in range(5):
        running.hv.kill(VM_1)
        times.append(running.run_until(lambda: running.runs(VM_1)))
    assert times[0] < 0.2 and all(0.5 * 2**i <= t <= 1.2 * 2**i for i, t in enumerate(times[1:]))
    running.hv.kill(VM_1)
    running.run(2000.0)
    assert not running.runs(VM_1) and observed(running) == Observed.FAILED
    running.restart_agent()
    running.run(100.0)
    assert not running.runs(VM_1)
    running.server.begin(VM_1)
    running.poke()
    assert running.run_until(lambda: running.runs(VM_1)) < 0.5
    running.hv.kill(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.2


def test_crashes_that_left_the_window_do_not_count(running: World) -> None:
    for _ in range(12):
        running.hv.kill(VM_1)
        assert running.run_until(lambda: running.runs(VM_1)) < 0.2
        running.run(601.0)
    assert "vm-failed" not in running.events()


def test_row_6_destroyed_by_a_person_runs_again(running: World) -> None:
    running.hv.person_destroy(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.2


@pytest.mark.parametrize("alive", [True, False])
def test_row_7_lost_definition_is_made_again(running: World, alive: bool) -> None:
    if not alive:
        running.server.change(VM_1, desired=Desired.STOPPED, graceful_s=0.0)
        running.poke()
        running.run_until(lambda: not running.runs(VM_1))
        running.run(1.0)
    running.hv.person_undefine(VM_1)
    running.run(5.0)
    assert running.hv.domains[VM_1].persistent and running.runs(VM_1) == alive


def test_row_9_paused_vm_is_left_alone_and_an_io_error_is_reported(running: World) -> None:
    starts = len(running.starts)
    running.hv.person_pause(VM_1)
    running.run(200.0)
    assert observed(running) == Observed.PAUSED
    running.hv.person_resume(VM_1)
    running.hv.io_error(VM_1)
    running.run(200.0)
    assert running.server.reports[VM_1].problem == "io-error" and len(running.starts) == starts


@pytest.mark.parametrize("letter", ["T", "D"])
def test_row_10_frozen_qemu_counts_as_alive(running: World, letter: str) -> None:
    starts = len(running.starts)
    running.hv.freeze(VM_1, letter)
    running.run(200.0)
    assert running.runs(VM_1) and len(running.starts) == starts


def test_row_11_process_outside_libvirt_forbids_the_start_and_is_told(world: World) -> None:
    world.hv.person_run(VM_1)
    world.server.assign(assignment())
    world.poke()
    world.run(200.0)
    assert not world.starts and "vm-foreign-process" in world.events()
    assert world.server.reports[VM_1].problem == "foreign-process"
    world.hv.outside.clear()
    assert world.run_until(lambda: bool(world.starts)) <= 61.0


def test_vm_that_was_migrated_away_behind_our_back_is_not_started_here(running: World) -> None:
    starts = len(running.starts)
    running.hv._end(VM_1, OffReason.MIGRATED)
    running.run(1.0)
    running.hv.person_undefine(VM_1)  # --undefinesource
    running.run(100.0)
    running.restart_agent()
    running.run(100.0)
    assert len(running.starts) == starts and running.server.reports[VM_1].problem == "migrated-away"


def test_what_happened_to_a_vm_counts_in_the_next_epoch_of_its_owner_too(running: World) -> None:
    """It is not a new start, and the server may not have heard of it before."""
    running.mangle = lambda body: 0 if type(body).__name__ == "Report" else 1
    running.hv.guest_shutdown(VM_1)
    running.run_until(lambda: running.saved.held[VM_1].halted)
    running.server.change(VM_1, epoch=2)
    running.poke()
    running.run(5.0)
    held = running.saved.held[VM_1]
    assert held.vm.epoch == 2 and held.halted and held.restarts == 0 and not running.runs(VM_1)


def test_halted_vm_that_a_person_starts_is_kept_running(running: World) -> None:
    running.hv.guest_shutdown(VM_1)
    running.run(5.0)
    running.hv.person_start(VM_1)
    running.run(200.0)
    assert running.runs(VM_1) and not running.server.reports[VM_1].halted


def test_power_off_after_a_signal_that_the_guest_survived_is_the_guests_own(running: World) -> None:
    running.hv._tell(VM_1, Happening.HOST_SHUTDOWN)
    running.run(100.0)
    running.hv.guest_shutdown(VM_1)
    running.run(30.0)
    assert not running.runs(VM_1) and "vm-halted" in running.events()


def test_start_that_the_guard_refuses_costs_nothing_of_the_restart_budget(running: World) -> None:
    """An operator starts it again, which cannot be recorded, so that the guard goes by what is saved: it is halted."""
    running.hv.guest_shutdown(VM_1)
    running.run(5.0)
    running.disk_full = True
    running.server.begin(VM_1)
    running.poke()
    running.run(200.0)
    refused = [line for line in running.logs if line.endswith("start: its guest powered itself off")]
    assert not running.runs(VM_1) and len(refused) > 10
    running.disk_full = False
    assert running.run_until(lambda: running.runs(VM_1)) < 10.0
    running.run(5.0)
    assert "vm-failed" not in running.events() and running.server.reports[VM_1].restarts == 0


def with_a_disk(path: str = "/disk") -> World:
    """A node on which VM_1 runs from the one disk that exists."""
    world = World(files=[path])
    world.server.assign(assignment(spec=VmSpec(vcpus=1, memory_mib=64, disks=(Disk(path=path),))))
    world.start_agent()
    world.run_until(lambda: world.runs(VM_1))
    world.run(6.0)
    return world


def test_start_that_cannot_work_is_no_crash_loop_and_says_why() -> None:
    world = with_a_disk()
    assert world.hv.files is not None
    world.hv.files.clear()
    world.hv.kill(VM_1)
    world.run(900.0)
    report = world.server.reports[VM_1]
    assert (report.observed, report.problem) == (Observed.FAILED, "start-failed") and "/disk" in report.detail
    world.hv.files.add("/disk")
    world.run_until(lambda: world.runs(VM_1))
    assert "vm-failed" not in world.events()


def test_vm_that_fails_for_good_says_why_it_could_not_start(running: World) -> None:
    for _ in range(10):
        running.hv.fail_next("start", HypervisorError("no bridge br0"))
    running.hv.kill(VM_1)
    running.run(300.0)
    report = running.server.reports[VM_1]
    assert report.problem == "crash-loop" and report.detail.endswith("; last: no bridge br0")


def defined(world: World) -> int:
    return sum(call == ("define", VM_1) for call in world.hv.calls)


def test_start_asked_again_does_not_wait_for_the_pause_after_a_definition_that_failed(world: World) -> None:
    for _ in range(100):
        world.hv.fail_next("define")
    world.server.assign(assignment())
    world.poke()
    world.run(200.0)  # now it is tried once a minute
    world.run_until(lambda: "define failed as ordered" in world.logs[-1])
    tried = defined(world)
    world.run(5.0)
    assert defined(world) == tried
    world.server.begin(VM_1)
    world.poke()
    assert world.run_until(lambda: defined(world) > tried) < 1.0


def test_pause_after_a_failure_is_short_again_after_a_success(running: World) -> None:
    for _ in range(4):
        running.hv.fail_next("define")
    running.hv.person_undefine(VM_1)
    running.run(100.0)
    assert running.hv.domains[VM_1].persistent and defined(running) == 6
    running.hv.fail_next("define")
    running.hv.person_undefine(VM_1)
    running.run_until(lambda: defined(running) == 7)
    assert running.run_until(lambda: defined(running) == 8) == pytest.approx(5.0, abs=0.2)


# --- late news --------------------------------------------------------------------------------------------


def test_look_that_began_before_the_start_does_not_undo_what_the_start_told(world: World) -> None:
    world.server.assign(assignment(desired=Desired.STOPPED))
    world.poke()
    world.run(5.0)
    before = world.hv.scan()
    began = world.now
    world.server.begin(VM_1)
    world.poke()
    world.run_until(lambda: world.runs(VM_1))
    world.run(1.0)
    stale = msgspec.structs.replace(
        before, domains=tuple(msgspec.structs.replace(d, reason=OffReason.SHUTDOWN) for d in before.domains)
    )
    world.give(fx.Scanned(stale, began))
    world.run(200.0)
    assert world.runs(VM_1) and world.starts == [VM_1] and "vm-halted" not in world.events()


def test_end_of_the_run_before_heard_after_the_start_changes_nothing(running: World) -> None:
    running.hv._on_lifecycle = lambda event: None  # events are late
    running.hv.kill(VM_1)
    running.run_until(lambda: running.runs(VM_1))
    running.run(0.5)
    running.give(fx.Happened(Lifecycle(VM_1, Happening.GUEST_SHUTDOWN)))
    running.give(fx.Happened(Lifecycle(VM_1, Happening.STOPPED, OffReason.SHUTDOWN)))
    running.run(100.0)
    assert running.runs(VM_1) and "vm-halted" not in running.events() and len(running.starts) == 2


def test_crash_between_the_look_after_a_start_and_its_outcome_is_not_missed(world: World) -> None:
    world.server.assign(assignment())
    start = world.hv.start

    def crash_soon(uuid: str) -> None:
        start(uuid)
        if len(world.starts) == 1:
            world.later(0.0001, lambda: world.hv.kill(uuid))

    world.hv.start = crash_soon  # type: ignore[method-assign]
    world.poke()
    world.run(3.0)
    assert world.runs(VM_1) and len(world.starts) == 2


def test_look_that_hung_and_was_given_up_says_nothing(running: World) -> None:
    running.run(100.0)
    running.give(fx.Scanned(HostScan(libvirt_ok=False, error="gone"), running.now - 90.0))
    running.run(1.0)
    assert running.server.faults == () and observed(running) == Observed.RUNNING


def test_outcome_of_an_action_that_is_not_the_present_one_is_ignored(running: World) -> None:
    off = msgspec.structs.replace(running.facts(VM_1), domain=None, processes=())
    running.give(fx.Acted(VM_1, fx.Action.DESTROY, 10_000, off))
    running.run(100.0)
    assert observed(running) == Observed.RUNNING and len(running.starts) == 1


def test_look_that_is_wanted_during_a_look_is_made_after_it(running: World) -> None:
    late: list[Inventory] = []
    running.mangle = lambda body: late.append(body) or 0 if isinstance(body, Inventory) else 1  # type: ignore[func-returns-value]
    running.server.assign(assignment(VM_2))
    running.poke()
    running.run(0.1)
    running.hv.person_define(VM_3, "another's")  # this needs a look
    running.run_until(lambda: running.agent._scanning, 1.0)
    before = running.hv.calls.count(("scan", ""))
    running.give(fx.Received(late[-1]))  # and a VM that was not looked for yet needs one too
    running.run(1.0)
    assert running.hv.calls.count(("scan", "")) == before + 2


def test_vm_that_nobody_knew_is_not_judged_by_a_look_from_before_its_event() -> None:
    sightings = Sightings()
    durable = Durable(node="n1").with_held(Held(vm=assignment()))
    assert sightings.happened(Lifecycle(VM_1, Happening.STARTED), durable, False, 11.0), "this needs a look"
    off = HostScan(libvirt_ok=True, domains=(Domain(VM_1, "vm", DomainState.OFF, epoch=1),))
    assert sightings.scanned(off, 10.0, durable, set()), "and a later one"
    assert VM_1 not in sightings.facts
    assert not sightings.scanned(off, 12.0, durable, set())
    assert sightings.facts[VM_1].domain == off.domains[0]


@pytest.mark.parametrize("domain", [None, Domain(VM_1, "vm", DomainState.OFF, epoch=1)])
def test_a_start_that_is_heard_while_an_action_ends_is_later_than_what_that_saw(domain: Domain | None) -> None:
    """A start that a dead predecessor has ordered: nothing is known before the next look, least of all that it is
    off."""
    sightings, durable = Sightings(), Durable(node="n1").with_held(Held(vm=assignment()))
    acted = fx.Acted(VM_1, fx.Action.START, 1, VmFacts(VM_1, True, domain), error="it is running already")
    sightings.ordered(VM_1, fx.Action.START)
    for happening in (Happening.RESUMED, Happening.STARTED):
        assert not sightings.happened(Lifecycle(VM_1, happening), durable, True, 11.0)
    assert sightings.acted(acted, 12.0) and not sightings.facts[VM_1].libvirt_ok
    sightings.ordered(VM_1, fx.Action.START)
    sightings.happened(Lifecycle(VM_1, Happening.STARTED), durable, True, 13.0)
    sightings.happened(Lifecycle(VM_1, Happening.STOPPED), durable, True, 13.1)
    assert not sightings.acted(acted, 14.0) and sightings.facts[VM_1].libvirt_ok


def test_vm_without_a_definition_is_gone_when_it_stops() -> None:
    sightings = Sightings()
    durable = Durable(node="n1").with_held(Held(vm=assignment()))
    alive = Domain(VM_1, "vm", DomainState.RUNNING, epoch=1, persistent=False)
    sightings.scanned(HostScan(True, (alive,), (Process(VM_1, 7, "S"),)), 1.0, durable, set())
    assert not sightings.happened(Lifecycle(VM_1, Happening.STOPPED, OffReason.CRASHED), durable, False, 2.0)
    assert sightings.facts[VM_1] == VmFacts(VM_1, True)


# --- stop -------------------------------------------------------------------------------------------------


def stop(world: World, graceful_s: float) -> None:
    world.server.change(VM_1, desired=Desired.STOPPED, graceful_s=graceful_s)
    world.poke()


def calls(world: World, name: str) -> int:
    return sum(call == name for call, _ in world.hv.calls)


def test_stop_asks_the_guest_and_keeps_the_definition(running: World) -> None:
    stop(running, 60.0)
    assert running.run_until(lambda: not running.runs(VM_1)) < 1.0
    running.run(5.0)
    assert calls(running, "destroy") == 0 and VM_1 in running.hv.domains
    assert observed(running) == Observed.STOPPED and not running.server.reports[VM_1].halted


def test_stop_asks_again_and_ends_a_deaf_guest_after_its_time(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    stop(running, 35.0)
    assert 35.0 <= running.run_until(lambda: not running.runs(VM_1)) < 36.0
    assert calls(running, "shutdown") == 4


def test_forced_stop_ends_it_at_once_even_during_a_graceful_one(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    stop(running, 500.0)
    running.run(20.0)
    stop(running, 0.0)
    assert running.run_until(lambda: not running.runs(VM_1)) < 0.5


def test_drain_uses_its_own_time(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    running.server.drain(7.0)
    running.poke()
    assert 7.0 <= running.run_until(lambda: not running.runs(VM_1)) < 8.0


def test_stop_is_not_blocked_by_a_definition_that_fails(running: World) -> None:
    for _ in range(50):
        running.hv.fail_next("define")
    running.hv.person_undefine(VM_1)
    running.run(100.0)
    stop(running, 60.0)
    assert running.run_until(lambda: not running.runs(VM_1)) < 1.0


def test_power_off_that_we_asked_for_is_not_the_guests_after_an_enable(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    running.server.drain(60.0)
    running.poke()
    running.run(3.0)
    running.server.enable()
    running.poke()
    running.run(3.0)
    running.hv.guest_shutdown(VM_1)  # now it obeys
    running.run_until(lambda: len(running.starts) == 2 and running.runs(VM_1))
    running.run(5.0)
    assert "vm-halted" not in running.events()


def test_start_asked_while_the_guest_still_powers_off_is_not_lost(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    stop(running, 60.0)
    running.run(2.0)
    running.server.begin(VM_1)
    running.poke()
    running.run(2.0)
    running.restart_agent()
    running.run(2.0)
    running.hv.guest_shutdown(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 1.0


def test_drain_and_enable_start_again_what_the_drain_stopped(running: World) -> None:
    running.server.drain()
    running.poke()
    running.run_until(lambda: not running.runs(VM_1))
    running.run(10.0)
    running.server.enable()
    running.poke()
    assert running.run_until(lambda: running.runs(VM_1)) < 1.0


# --- releases ---------------------------------------------------------------------------------------------


def test_release_ends_undefines_and_is_confirmed(running: World) -> None:
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    assert not running.runs(VM_1) and VM_1 not in running.hv.domains
    assert running.saved.tombstones[VM_1].epoch == 1


def test_release_is_confirmed_again_until_acknowledged(running: World) -> None:
    running.mangle = lambda body: 0 if type(body).__name__ == "ReportAck" else 1
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    running.run(30.0)
    assert not running.saved.tombstones[VM_1].acked
    running.mangle = lambda body: 1
    running.run_until(lambda: running.saved.tombstones[VM_1].acked)


def assign_what_was_released(world: World) -> None:
    """In epoch 3, which the node has released."""
    world.server.release(VM_1, 3)
    world.poke()
    world.run_until(lambda: bool(world.server.confirmed))
    world.server.assign(assignment(epoch=3))
    world.poke()


def test_tombstone_blocks_an_assignment_of_its_epoch_and_says_so(running: World) -> None:
    assign_what_was_released(running)
    running.run(100.0)
    assert not running.runs(VM_1) and VM_1 not in running.saved.held
    report = running.server.reports[VM_1]
    assert (report.epoch, report.revision, report.problem) == (3, 0, "stale-epoch")
    running.server.assign(assignment(epoch=4))
    running.poke()
    running.run_until(lambda: running.runs(VM_1))


def test_an_assignment_that_was_ignored_is_over_with_the_next_release(running: World) -> None:
    """As after a restore: the server learns that it is another node's, and this one speaks of it no more."""
    assign_what_was_released(running)
    running.run_until(lambda: VM_1 in running.server.reports)
    assert running.server.reports[VM_1].problem == "stale-epoch"
    running.server.release(VM_1, 3)
    running.poke()
    running.run_until(lambda: VM_1 not in running.server.reports)


def test_leftover_of_the_released_epoch_is_ended_before_the_new_one_starts(running: World) -> None:
    running.server.release(VM_1, 1)
    running.server.assign(assignment(epoch=2))
    pid = running.hv.domains[VM_1].pid
    running.poke()
    running.run_until(lambda: running.runs(VM_1) and running.hv.domains[VM_1].pid != pid)
    running.run(5.0)
    assert running.hv.domains[VM_1].stamp is not None and running.hv.domains[VM_1].stamp.epoch == 2
    assert running.server.confirmed and running.runs(VM_1)


def test_row_8_released_vm_that_a_person_starts_is_ended_and_told(running: World) -> None:
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    running.run(5.0)
    running.hand_started = frozenset({VM_1})
    running.hv.person_define(VM_1, "again")
    running.hv.person_start(VM_1)
    running.run_until(lambda: VM_1 not in running.hv.domains)
    running.run(5.0)
    assert running.events().count("vm-removed") == 2


@pytest.mark.parametrize("drained", [False, True])
def test_s5_vm_of_somebody_else_is_never_touched(world: World, drained: bool) -> None:
    world.hv.person_define(VM_2, "theirs")
    world.hv.person_start(VM_2)
    if drained:
        world.server.drain(0.0)
    world.poke()
    world.run(200.0)
    assert world.runs(VM_2) and not calls(world, "destroy") and not calls(world, "undefine")
    if drained:
        assert world.server.proof is not None and world.server.proof.clean
    assert VM_2 not in world.server.reports


def test_release_of_a_vm_that_never_was_here_is_confirmed(world: World) -> None:
    world.server.release(VM_2, 5)
    world.poke()
    world.run_until(lambda: bool(world.server.confirmed))


def test_release_is_not_confirmed_while_a_process_is_left(running: World) -> None:
    running.hv.freeze(VM_1, "D")
    running.server.release(VM_1, 1)
    running.poke()
    running.run(200.0)
    assert not running.server.confirmed
    running.hv.freeze(VM_1, "S")
    running.run_until(lambda: bool(running.server.confirmed))


def test_release_is_not_confirmed_while_a_process_outside_libvirt_is_left(running: World) -> None:
    running.hv.person_run(VM_1)
    running.server.release(VM_1, 1)
    running.poke()
    running.run(200.0)
    assert not running.server.confirmed and VM_1 not in running.hv.domains
    running.hv.outside.clear()
    running.run_until(lambda: bool(running.server.confirmed))


def test_nothing_is_planned_for_a_vm_that_is_neither_held_nor_released() -> None:
    domain = Domain(VM_1, "vm", DomainState.RUNNING, epoch=1)
    facts = VmFacts(VM_1, True, domain, (Process(VM_1, 7, "S"),))
    durable = Durable(node="n1", confirmed_boot="b")
    assert planner.plan(durable, facts, "b", None, 0.0) == planner.Plan()
    off = VmFacts(VM_1, True, msgspec.structs.replace(domain, state=DomainState.OFF))
    assert planner.plan(durable, off, "b", None, 0.0) == planner.Plan()


def test_domain_of_a_higher_epoch_keeps_it_and_the_server_hears_of_it(running: World) -> None:
    running.server.change(VM_1, epoch=7)
    running.poke()
    running.run(5.0)
    running.kill_agent()
    running.saved = Durable(node="n1")  # snapshot lost, and an old backup restored
    running._epochs.clear()
    running.server.vms[VM_1] = assignment(epoch=3)
    running.start_agent()
    running.run(30.0)
    stamp = running.hv.domains[VM_1].stamp
    assert stamp is not None and stamp.epoch == 7 and running.server.reports[VM_1].epoch == 7
    running.hv.kill(VM_1)
    running.run(30.0)
    assert not running.runs(VM_1)
    running.server.change(VM_1, epoch=7)
    running.poke()
    running.run_until(lambda: running.runs(VM_1))


def test_disks_are_made_once_and_never_again() -> None:
    world = World(files=())
    spec = VmSpec(vcpus=1, memory_mib=64, disks=(Disk(path="/d", size_mib=1),))
    world.server.assign(assignment(spec=spec, create_disks=True))
    world.start_agent()
    world.run_until(lambda: world.runs(VM_1))
    world.run(5.0)
    world.hv.kill(VM_1)
    world.hv.person_undefine(VM_1)
    assert world.hv.files is not None
    world.hv.files.clear()
    world.run(100.0)
    assert world.hv.created == ["/d"] and observed(world) == Observed.FAILED
    world.hv.files.add("/d")
    assert world.run_until(lambda: world.runs(VM_1)) <= 61.0


def test_a_power_off_that_is_heard_late_is_looked_at_before_it_is_believed() -> None:
    """The event may be of a run before the present one, and it would keep the VM off for good."""
    sightings, durable = Sightings(), Durable(node="n1").with_held(Held(vm=assignment()))
    running = VmFacts(VM_1, True, Domain(VM_1, "vm", DomainState.RUNNING), ())
    sightings.facts[VM_1] = running
    assert sightings.happened(Lifecycle(VM_1, Happening.STOPPED, OffReason.SHUTDOWN), durable, False, 1.0)
    assert sightings.facts[VM_1] == running
    assert not sightings.happened(Lifecycle(VM_1, Happening.STOPPED, OffReason.CRASHED), durable, False, 2.0)
    assert not sightings.facts[VM_1].domain.active  # type: ignore[union-attr]
