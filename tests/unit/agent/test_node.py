"""The node as a whole: boots, deaths of the agent, drains, libvirt and disk failures."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from agentd.core import effects as fx
from agentd.core.commands import MAX_WAITING, Commands
from agentd.core.drain import DrainWatch
from agentd.core.durable import MAX_JOURNAL, Durable, Held, Journaled
from agentd.core.facts import Domain, DomainState, Process, VmFacts
from agentd.hypervisor import HypervisorError
from tests.unit.agent.server import VM_1, VM_2, assignment
from tests.unit.agent.world import World
from wire import messages as m
from wire.types import AdminState, Desired, Observed, Outcome

# --- boots and deaths -------------------------------------------------------------------------------------


def test_rows_19_20_after_a_boot_it_starts_once_the_server_confirmed(running: World) -> None:
    running.power_loss()
    running.start_agent()
    assert running.run_until(lambda: running.runs(VM_1)) < 1.0
    running.run(5.0)
    assert running.server.reports[VM_1].restarts == 0 and "vm-restarted" not in running.events()


def test_row_21_after_a_boot_nothing_starts_while_the_server_is_silent(running: World) -> None:
    running.power_loss()
    running.network_down = True
    running.start_agent()
    running.run(3600.0)
    assert not running.runs(VM_1)
    running.restart_agent()
    running.run(600.0)
    assert not running.runs(VM_1)
    running.network_down = False
    assert running.run_until(lambda: running.runs(VM_1)) < 60.0


def test_row_22_drained_node_that_comes_back_starts_nothing(running: World) -> None:
    running.server.drain()
    running.power_loss()
    running.start_agent()
    running.run(300.0)
    assert not running.runs(VM_1) and running.server.proof is not None and running.server.proof.clean


def test_row_22_rebuilt_away_node_removes_its_definition(running: World) -> None:
    running.power_loss()
    running.server.release(VM_1, 1)
    running.start_agent()
    running.run_until(lambda: bool(running.server.confirmed))
    assert len(running.starts) == 1 and VM_1 not in running.hv.domains


def test_rows_13_33_restarted_agent_goes_on_without_the_server(running: World) -> None:
    running.network_down = True
    running.restart_agent()
    running.run(3600.0)
    assert len(running.starts) == 1
    running.hv.kill(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.3


def test_row_38_lost_snapshot_adopts_what_runs_and_starts_nothing_unconfirmed(running: World) -> None:
    running.network_down = True
    running.kill_agent()
    running.saved = Durable(node="n1")
    running._epochs.clear()
    running.start_agent()
    running.run(100.0)
    running.hv.kill(VM_1)
    running.run(100.0)
    assert len(running.starts) == 1
    running.network_down = False
    running.run_until(lambda: running.runs(VM_1))
    running.run(5.0)
    assert running.server.reports[VM_1].observed == Observed.RUNNING


def test_row_38_lost_snapshot_with_a_running_vm_does_not_start_it_again(running: World) -> None:
    running.kill_agent()
    running.saved = Durable(node="n1")
    running._epochs.clear()
    running.start_agent()
    running.run(100.0)
    assert len(running.starts) == 1 and running.server.reports[VM_1].observed == Observed.RUNNING


def _begin(world: World) -> None:
    world.server.assign(assignment(VM_2))


def _stop(world: World) -> None:
    world.server.change(VM_1, desired=Desired.STOPPED)


def _release(world: World) -> None:
    world.server.release(VM_1, 1)


def _reboot(world: World) -> None:
    world.server.command("c1")


def _drain(world: World) -> None:
    world.server.drain()


def _local_drain(world: World) -> None:
    world.give(fx.Asked(1, "drain", 60.0))


SETTLED: dict[Callable[[World], None], Callable[[World], bool]] = {
    _begin: lambda w: w.runs(VM_2) and w.server.reports[VM_2].observed == Observed.RUNNING,
    _stop: lambda w: not w.runs(VM_1) and w.server.reports[VM_1].observed == Observed.STOPPED,
    _release: lambda w: bool(w.server.confirmed),
    _reboot: lambda w: "c1" in w.server.results,
    _drain: lambda w: w.server.proof is not None and w.server.proof.clean,
}


@pytest.mark.parametrize("effect", range(1, 26))
@pytest.mark.parametrize("order", SETTLED, ids=lambda order: order.__name__)
def test_row_15_killed_after_each_effect_each_takes_effect_at_most_once(
    running: World, order: Callable[[World], None], effect: int
) -> None:
    order(running)
    running.kill_after = running.effects + effect
    running.poke()
    running.run_until(lambda: SETTLED[order](running))
    running.run(100.0)
    assert len(running.reboots) <= 1
    assert running.starts.count(VM_2) == (1 if order is _begin else 0) and running.starts.count(VM_1) == 1


@pytest.mark.parametrize("effect", range(1, 12))
def test_row_15_local_drain_killed_after_each_effect_is_kept_if_it_was_answered(running: World, effect: int) -> None:
    running.kill_after = running.effects + effect
    _local_drain(running)
    running.run(100.0)
    if running.answers:
        assert not running.runs(VM_1) and running.server.order.admin_state == AdminState.DRAINED


# --- libvirt ----------------------------------------------------------------------------------------------


def test_row_17_lost_libvirt_is_unknown_and_starts_nothing(running: World) -> None:
    running.hv.lose()
    running.run(100.0)
    assert running.server.reports[VM_1].observed == Observed.UNKNOWN
    assert running.server.faults == ("libvirt-unreachable",)
    running.hv.restore()
    running.run(20.0)
    assert running.server.reports[VM_1].observed == Observed.RUNNING and running.server.faults == ()
    assert len(running.starts) == 1


def test_processes_that_cannot_be_looked_at_are_one_lasting_fault(running: World) -> None:
    running.hv.blind = True
    running.run_until(lambda: running.server.faults == ("libvirt-unreachable",))
    before, logs = len(running.bodies(m.Heartbeat)), len(running.logs)
    running.run(60.0)
    assert running.server.faults == ("libvirt-unreachable",) and running.logs[logs:] == []
    assert len(running.bodies(m.Heartbeat)) <= before + 5, "nothing changed that had to be told at once"
    assert running.server.reports[VM_1].observed == Observed.UNKNOWN
    running.hv.blind = False
    running.run_until(lambda: running.server.faults == ())
    assert "libvirt answers again" in running.logs[-1] and len(running.starts) == 1


def test_row_18_hung_libvirt_is_a_fault_and_heartbeats_go_on(running: World) -> None:
    running.hung = True
    running.hv.kill(VM_1)
    before = len(running.bodies(m.Heartbeat))
    running.run(120.0)
    assert running.server.faults == ("libvirt-slow",) and len(running.bodies(m.Heartbeat)) >= before + 7
    assert len(running.starts) == 1
    running.unhang()
    running.run_until(lambda: running.runs(VM_1))
    running.run(80.0)
    assert len(running.starts) == 2 and running.server.faults == ()


def test_overdue_connect_is_no_vm(world: World) -> None:
    world.give(fx.Overdue(fx.Call.CONNECT, "connect"))
    world.give(fx.Overdue(fx.Call.CHECK, "check of the host"))
    assert not world.agent.vms.facts
    world.server.drain()
    world.poke()
    world.run_until(lambda: world.server.proof is not None and world.server.proof.clean)


# --- disk -------------------------------------------------------------------------------------------------


def test_row_37_full_disk_acknowledges_nothing_and_heartbeats_go_on(running: World) -> None:
    running.disk_full = True
    running.server.change(VM_1, desired=Desired.STOPPED)
    running.server.command("c1")
    running.poke()
    before, sessions = len(running.bodies(m.Heartbeat)), len(running.bodies(m.Hello))
    running.run(300.0)
    assert running.runs(VM_1) and "c1" not in running.server.results and not running.reboots
    assert "snapshot-not-writable" in running.server.faults
    assert len(running.bodies(m.Heartbeat)) >= before + 19 and len(running.bodies(m.Hello)) == sessions
    running.give(fx.Asked(1, "drain"))
    assert "error" in running.answers[-1] and not running.saved.local_drain
    running.disk_full = False
    running.run_until(lambda: not running.runs(VM_1) and "c1" in running.server.results)
    running.run(20.0)
    assert running.server.faults == ()


def test_what_could_not_be_recorded_is_not_told(running: World) -> None:
    running.disk_full = True
    running.hv.guest_shutdown(VM_1)
    running.run(1.5)
    running.hv.person_define(VM_2, "another's")  # any event that concerns VMs
    running.run(3.0)
    assert not running.saved.held[VM_1].halted and not running.server.reports[VM_1].halted


def test_row_37_crashed_vm_is_started_again_with_a_full_disk(running: World) -> None:
    running.disk_full = True
    running.hv.kill(VM_1)
    assert running.run_until(lambda: running.runs(VM_1)) < 0.3


def test_full_disk_that_has_room_again_is_noticed_though_nothing_is_to_be_saved(running: World) -> None:
    running.disk_full = True
    running.give(fx.Asked(1, "drain"))
    running.run(20.0)
    assert "error" in running.answers[-1] and running.server.faults == ("snapshot-not-writable",)
    running.disk_full = False
    running.run(2 * running.server.heartbeat_s)
    assert running.server.faults == () and not running.saved.local_drain and running.runs(VM_1)


def test_event_of_a_turn_that_could_not_be_recorded_is_told_once(running: World) -> None:
    running.disk_full = True
    running.hv.guest_shutdown(VM_1)
    running.run(60.0)  # the end is judged again and again
    assert running.events() == [] and not running.saved.held[VM_1].halted
    running.disk_full = False
    running.run(60.0)
    assert running.events() == ["vm-halted"] and running.saved.held[VM_1].halted


def test_guest_gets_its_whole_time_after_an_order_that_could_not_be_recorded(running: World) -> None:
    running.hv.domains[VM_1].obeys = False
    running.hv.lose()
    running.server.change(VM_1, desired=Desired.STOPPED, graceful_s=60.0)
    running.poke()
    running.run(5.0)  # the wish is recorded, nothing can be done yet
    running.disk_full = True
    running.hv.restore()
    running.run(100.0)
    assert ("shutdown", VM_1) not in running.hv.calls
    running.disk_full = False
    running.run_until(lambda: ("shutdown", VM_1) in running.hv.calls)
    assert running.run_until(lambda: not running.runs(VM_1)) == pytest.approx(60.0, abs=1.0)


def test_definition_that_could_not_be_recorded_is_made_later(running: World) -> None:
    running.disk_full = True
    running.server.change(VM_1, epoch=2)
    running.poke()
    running.run(30.0)
    assert running.hv.domains[VM_1].seen().epoch == 1
    running.disk_full = False
    running.run(10.0)
    assert running.hv.domains[VM_1].seen().epoch == 2 and running.saved.held[VM_1].vm.epoch == 2


def test_inventory_that_ends_a_session_and_cannot_be_saved_is_pulled_in_the_next(running: World) -> None:
    """It comes in the very moment in which too many heartbeats were not answered."""
    late: list[m.Inventory] = []
    running.run_until(lambda: isinstance(running.sent[-1][1], m.Heartbeat))
    running.mangle = lambda body: late.append(body) or 0 if isinstance(body, m.Inventory) else 0  # type: ignore[func-returns-value]
    running.run(42.0)
    running.server.assign(assignment(VM_2))
    running.poke()
    running.run_until(lambda: bool(late))
    running.now += 4.5
    running.mangle, running.disk_full = lambda body: 1, True
    running.give(fx.Received(late[-1]))
    assert not running.ready and VM_2 not in running.saved.held
    running.disk_full = False
    running.run_until(lambda: running.runs(VM_2))


def test_vm_of_an_inventory_that_was_never_recorded_leaves_nothing_behind(running: World) -> None:
    running.kill_agent()
    running.hv.power_loss()  # its definition stays
    running.saved, vm = Durable(node="n1"), running.server.vms.pop(VM_1)
    running._epochs.clear()
    running.start_agent()
    running.run(10.0)
    running.disk_full = True
    running.server.assign(vm)
    running.poke()
    running.run(60.0)
    assert not running.runs(VM_1)
    del running.server.vms[VM_1]
    running.disk_full = False
    running.poke()
    running.run(0.2)
    assert VM_1 not in running.agent.vms._blocked
    running.server.assign(vm)
    running.poke()
    assert running.run_until(lambda: running.runs(VM_1)) < 0.5


def test_order_that_was_not_given_does_not_end_a_later_one(running: World) -> None:
    vms, durable = running.agent.vms, running.agent.durable
    first, later = vms.order_reboot(durable, VM_1, False), vms.order_reboot(durable, VM_1, True)
    vms.dropped([first])
    assert vms.in_flight[VM_1] == (later.token, fx.Action.REBOOT)
    vms.dropped([later])
    assert VM_1 not in vms.in_flight


# --- the host, and who asks about it ----------------------------------------------------------------------


def test_fault_of_the_host_is_told_at_once(running: World) -> None:
    running.run(3.0)
    running.give(fx.HostChecked((m.Fault(code="disk-slow", text="sda"),), m.Load(), m.HostFacts()))
    running.run(1.0)
    assert running.server.faults == ("disk-slow",)


def test_status_says_what_the_node_has_and_what_is_wrong(running: World) -> None:
    running.disk_full = True
    running.give(fx.Asked(1, "drain"))
    running.run(2.0)
    running.give(fx.Asked(2, "status"))
    shown = running.answers[-1]
    assert shown["node"] == "n1" and shown["session"] == "ready" and shown["confirmed_in_this_boot"] is True
    assert shown["local_drain"] is False and shown["drain_clean"] is None
    assert shown["faults"] == [
        {"code": "snapshot-not-writable", "severity": "critical", "text": "no space left on device"}
    ]
    assert shown["vms"] == [
        {"name": "vm-01", "uuid": VM_1, "epoch": 1, "observed": "running", "owned": True, "restarts": 0, "detail": ""}
    ]


def test_question_that_nobody_knows_is_refused(running: World) -> None:
    running.give(fx.Asked(1, "dance"))
    assert running.answers == [{"error": "unknown request 'dance'"}] and running.runs(VM_1)


# --- drain ------------------------------------------------------------------------------------------------


def clean(world: World) -> bool:
    return world.server.proof is not None and world.server.proof.clean


def test_drain_is_not_proven_before_the_agent_has_settled() -> None:
    world = World()
    world.server.drain()
    world.start_agent()
    took = world.run_until(lambda: clean(world))
    assert 5.0 <= took < 8.0


def test_drain_is_not_proven_while_a_start_is_under_way(world: World) -> None:
    world.run(10.0)
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: any(a == fx.Action.START for _, a in world.agent.vms.in_flight.values()), 2.0)
    world.hung = True
    world.server.drain(0.0)
    world.poke()
    world.run(60.0)
    assert not clean(world)
    world.unhang()
    world.run_until(lambda: clean(world))
    assert not world.runs(VM_1)


def test_removing_what_was_rebuilt_elsewhere_does_not_end_the_proof(running: World) -> None:
    """Else the evidence for the VMs that a rebuild has not moved yet would be withdrawn in its middle."""
    running.server.drain(0.0)
    running.poke()
    running.run_until(lambda: clean(running))
    before = len(running.bodies(m.Report))
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    told = [body.drain for body in running.bodies(m.Report)[before:] if isinstance(body, m.Report)]
    assert told and all(drain is not None and drain.clean for drain in told)


def test_drain_is_not_proven_while_libvirt_is_unknown(world: World) -> None:
    world.hv.lose()
    world.run(5.0)
    world.server.drain()
    world.poke()
    world.run(60.0)
    assert not clean(world)
    world.hv.restore()
    world.run_until(lambda: clean(world))
    world.hv.lose()
    world.run(5.0)
    assert not clean(world)


def test_drain_is_not_proven_with_a_foreign_process_of_our_uuid(running: World) -> None:
    running.hv.person_run(VM_1)
    running.run(61.0)
    running.server.drain(0.0)
    running.poke()
    running.run(100.0)
    assert not clean(running)
    running.hv.outside.clear()
    running.run_until(lambda: clean(running))


def test_drain_proof_is_bound_to_serial_and_boot_and_withdrawn(running: World) -> None:
    running.server.drain()
    running.poke()
    running.run_until(lambda: clean(running))
    assert running.server.proof is not None
    assert (running.server.proof.drain_serial, running.server.proof.boot_id) == (1, running.boot_id)
    running.server.enable()
    running.poke()
    running.run_until(lambda: running.server.proof is None)
    running.run_until(lambda: running.runs(VM_1))
    running.server.drain()
    running.poke()
    running.run_until(lambda: clean(running))
    assert running.server.proof.drain_serial == 2
    running.hand_started = frozenset({VM_1})
    running.hv.person_start(VM_1)
    running.run(0.1)
    assert not clean(running)
    running.run_until(lambda: clean(running))
    assert not running.runs(VM_1)


def test_row_25_local_drain_works_alone_persists_and_is_settled_by_the_server(running: World) -> None:
    running.network_down = True
    running.give(fx.Asked(1, "drain", 5.0))
    running.run_until(lambda: not running.runs(VM_1))
    running.restart_agent()
    running.run(300.0)
    assert running.saved.local_drain and not running.runs(VM_1)
    running.power_loss()
    running.network_down = True
    running.start_agent()
    running.run(100.0)
    running.network_down = False
    running.run_until(lambda: running.server.order.admin_state == AdminState.DRAINED)
    running.run_until(lambda: clean(running) and not running.saved.local_drain)
    running.server.enable()
    running.poke()
    running.run_until(lambda: running.runs(VM_1))


def test_local_drain_is_not_cleared_by_an_inventory_pulled_before_the_server_knew(running: World) -> None:
    running.server.refusals[m.Report] = [m.ErrorBody(code="storage-unavailable", message="full", retriable=True)] * 8
    running.give(fx.Asked(1, "drain", 5.0))
    for _ in range(6):
        running.server.change(VM_1, graceful_s=running.rng.random())
        running.poke()
        running.run(2.0)
    assert running.server.order.admin_state == AdminState.ENABLED and running.server.refusals[m.Report]
    assert running.saved.local_drain and not running.runs(VM_1)


CALM_AT, CLEAN_AT = 5.0, 100.0
OFF_HERE = VmFacts(VM_1, True, Domain(VM_1, "vm", DomainState.OFF, epoch=1))
DRAINED = Durable(
    node="n1", confirmed_boot="b", order=m.NodeOrder(admin_state=AdminState.DRAINED, drain_serial=4),
    held={VM_1: Held(vm=assignment())},
)  # fmt: skip
NOT_CLEAN = {
    "not confirmed in this boot": (msgspec.structs.replace(DRAINED, confirmed_boot="a"), OFF_HERE, CALM_AT, CLEAN_AT),
    "an action under way": (DRAINED, OFF_HERE, float("inf"), CLEAN_AT),
    "an action ended after the look began": (DRAINED, OFF_HERE, CLEAN_AT + 1, CLEAN_AT),
    "not settled": (DRAINED, OFF_HERE, CALM_AT, 4.0),
    "libvirt unknown": (DRAINED, VmFacts(VM_1, False), CALM_AT, CLEAN_AT),
    "libvirt unknown, last seen off": (DRAINED, msgspec.structs.replace(OFF_HERE, libvirt_ok=False), CALM_AT, CLEAN_AT),
    "a process": (DRAINED, VmFacts(VM_1, True, None, (Process(VM_1, 1, "D"),)), CALM_AT, CLEAN_AT),
    "a domain of Chime that this node does not know": (
        msgspec.structs.replace(DRAINED, held={}),
        VmFacts(VM_1, True, Domain(VM_1, "vm", DomainState.PAUSED, epoch=1)),
        CALM_AT,
        CLEAN_AT,
    ),
}


@pytest.mark.parametrize("case", NOT_CLEAN)
def test_each_doubt_alone_keeps_a_drain_unproven(case: str) -> None:
    durable, seen, busy_until, looked_at = NOT_CLEAN[case]
    watch = DrainWatch("b")
    watch.judge(durable, {VM_1: seen}, busy_until, looked_at, CLEAN_AT + 2)
    assert watch.proof is not None and not watch.proof.clean
    watch = DrainWatch("b")
    watch.judge(DRAINED, {VM_1: OFF_HERE}, CALM_AT, CLEAN_AT, CLEAN_AT + 2)
    assert watch.proof is not None and watch.proof.clean and watch.proof.drain_serial == 4
    watch.judge(durable, {VM_1: seen}, busy_until, looked_at, CLEAN_AT + 3)
    assert not watch.proof.clean


def test_after_a_doubt_only_a_later_look_proves_the_drain() -> None:
    watch = DrainWatch("b")
    watch.judge(DRAINED, {VM_1: VmFacts(VM_1, False)}, CALM_AT, CLEAN_AT, CLEAN_AT + 1)
    watch.judge(DRAINED, {VM_1: OFF_HERE}, CALM_AT, CLEAN_AT, CLEAN_AT + 2)
    assert watch.proof is not None and not watch.proof.clean
    watch.judge(DRAINED, {VM_1: OFF_HERE}, CALM_AT, CLEAN_AT + 3, CLEAN_AT + 4)
    assert watch.proof.clean


# --- commands ---------------------------------------------------------------------------------------------


def outcome(world: World, command_id: str = "c1") -> Outcome:
    world.poke()
    world.run_until(lambda: command_id in world.server.results)
    return world.server.results[command_id].outcome


def test_command_is_done_once_though_it_comes_many_times(running: World) -> None:
    running.server.command("c1")
    assert outcome(running) == Outcome.DONE
    running.server.command("c1")
    running.poke()
    running.run_until(lambda: len(running.server.results_seen) > 1)
    running.restart_agent()
    running.run(20.0)
    assert running.reboots == [VM_1]


def test_a_command_waits_until_a_new_agent_knows_whether_the_vm_runs(running: World) -> None:
    running.kill_agent()
    running.server.command("c1")
    running.hung = True
    running.start_agent()
    running.run(5.0)
    assert "c1" not in running.server.results
    running.unhang()
    assert outcome(running) == Outcome.DONE and running.reboots == [VM_1]


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"kind": "dance"}, {"deadline_s": 0.0}, {"uuid": VM_2}])
def test_command_that_does_not_fit_is_rejected_without_effect(running: World, changes: dict[str, object]) -> None:
    running.server.command("c1", **changes)
    assert outcome(running) == Outcome.REJECTED and not running.reboots


def test_command_that_waits_is_rejected_past_its_deadline(running: World) -> None:
    running.hung = True
    running.server.command("c1", deadline_s=1000.0)
    running.server.command("c2", deadline_s=5.0)
    running.poke()
    running.run(6.0)
    assert running.server.results["c2"].outcome == Outcome.REJECTED


def test_command_that_waits_is_done_once_though_it_comes_again(running: World) -> None:
    running.hung = True
    running.server.command("c1")
    running.server.command("c2", deadline_s=1000.0)
    running.poke()
    running.run(1.0)
    running.server.session = "another"  # a new session: everything is pulled again
    running.run_until(lambda: running.agent.link.session == "s2" and running.ready)
    running.unhang()
    running.run_until(lambda: {"c1", "c2"} <= running.server.results.keys())
    running.run(20.0)
    assert running.reboots == [VM_1, VM_1]
    assert {result.outcome for result in running.server.results_seen} == {Outcome.DONE}


def test_commands_that_wait_are_bounded(running: World) -> None:
    running.hung = True
    running.server.page_size = 500
    for number in range(150):
        running.server.command(f"c{number}", deadline_s=1000.0)
    running.poke()
    running.run(1.0)
    running.unhang()
    running.run(60.0)
    assert running.server.results.keys() == {f"c{number}" for number in range(MAX_WAITING)}


def test_acknowledgement_of_an_older_report_settles_no_result() -> None:
    result = m.CommandResult(id="c1", outcome=Outcome.DONE)
    durable = Durable(node="n1").with_journal("c1", Journaled(uuid=VM_1, result=result))
    commands = Commands(durable)
    commands.results(durable, 1)
    commands.results(durable, 2)
    assert commands.unacked(commands.acked(1, durable)) and not commands.unacked(commands.acked(2, durable))


def test_interrupted_command_is_not_tried_again(running: World) -> None:
    running.hung = True
    running.server.command("c1")
    running.poke()
    running.run(1.0)
    running.unhang()
    running.kill_agent()
    running.start_agent()
    assert outcome(running) == Outcome.INTERRUPTED
    running.run(20.0)
    assert not running.reboots


def test_rejection_that_could_not_be_saved_never_stands_beside_an_execution(running: World) -> None:
    running.hv.kill(VM_1)
    running.hv.fail_next("start")
    running.run(0.2)
    running.disk_full = True
    running.server.command("c1")
    running.poke()
    running.run(0.1)  # it arrived while the VM was off, and its rejection could not be saved
    running.disk_full = False
    running.run_until(lambda: "c1" in running.server.results)
    outcome_1 = running.server.results["c1"].outcome
    running.server.command("c1")
    running.poke()
    running.run(30.0)
    assert len(running.reboots) == (1 if outcome_1 == Outcome.DONE else 0)
    assert {result.outcome for result in running.server.results_seen} == {outcome_1}


def test_unacknowledged_results_are_never_dropped_from_the_journal() -> None:
    durable = Durable(node="n1")
    for number in range(3 * MAX_JOURNAL):
        result = m.CommandResult(id=str(number), outcome=Outcome.DONE)
        durable = durable.with_journal(str(number), Journaled(uuid=VM_1, result=result, acked=number % 2 == 0))
    assert all(str(number) in durable.journal for number in range(1, 3 * MAX_JOURNAL, 2))


def test_text_from_outside_never_spoils_a_report(running: World) -> None:
    for _ in range(3):
        running.hv.fail_next("start", HypervisorError("bad\x00\x1b[31m" + "\u2028" + "x" * 5000))
    running.hv.kill(VM_1)
    running.hv.lose("libvirt \x07 said\x9b")
    running.run(5.0)
    running.hv.restore()
    running.run_until(lambda: running.runs(VM_1))
