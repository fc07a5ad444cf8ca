"""The session: what is believed, what is sent again, how soon."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from agentd.core import effects as fx
from agentd.core import reporting
from agentd.core.link import KEY_REFUSED, LinkState
from tests.unit.agent.server import VM_1, VM_2, assignment
from tests.unit.agent.world import World
from wire import codec
from wire import messages as m
from wire.types import Desired, Observed


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def error(code: str, retriable: bool = True, **details: object) -> m.ErrorBody:
    return m.ErrorBody(code=code, message=code, retriable=retriable, details=details)


def test_lost_hello_is_repeated_with_a_jittered_bounded_back_off() -> None:
    world = World()
    world.server.deaf = True
    world.start_agent()
    world.run(600.0)
    times = [at for at, body in world.sent if isinstance(body, m.Hello)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 12 <= len(times) <= 40 and max(gaps) <= 5.0 + 45.0 and len({round(gap, 3) for gap in gaps}) == len(gaps)


def test_missed_acknowledgements_end_the_session(running: World) -> None:
    running.mangle = lambda body: 0 if isinstance(body, m.HeartbeatAck) else 1
    running.run(70.0)
    assert len(running.bodies(m.Hello)) == 2
    running.mangle = lambda body: 1
    running.run_until(lambda: running.ready)


def test_one_lost_acknowledgement_changes_nothing(running: World) -> None:
    lost = iter([0])
    running.mangle = lambda body: next(lost, 1) if isinstance(body, m.HeartbeatAck) else 1
    running.run(100.0)
    assert len(running.bodies(m.Hello)) == 1


def test_node_busy_waits_as_long_as_told() -> None:
    world = World()
    world.server.refusals[m.Hello] = [error("node-busy", retry_after_s=7.0)]
    world.start_agent()
    assert 7.0 <= world.run_until(lambda: world.ready) < 8.0


@pytest.mark.parametrize("wait", [-5, True, "soon", None, 1e9])
def test_senseless_retry_after_is_bounded(wait: object) -> None:
    world = World()
    world.server.refusals[m.Hello] = [error("node-busy", retry_after_s=wait)]
    world.start_agent()
    world.run_until(lambda: world.ready, 301.0)


def test_refusal_that_needs_an_operator_waits_about_a_minute() -> None:
    world = World()
    world.server.refusals[m.Hello] = [error("wrong-node", retriable=False)]
    world.start_agent()
    assert 40.0 < world.run_until(lambda: world.ready) < 80.0


def test_stale_session_says_hello_again_soon(running: World) -> None:
    running.server.session = "another"
    running.run_until(lambda: running.agent.link.session == "s2" and running.ready, 20.0)


def test_error_of_a_session_that_is_over_is_ignored(running: World) -> None:
    running.give(fx.Received(error("stale-session"), "an-older-session"))
    assert running.ready


@pytest.mark.parametrize("kind", [m.Pull, m.Report])
def test_storage_unavailable_keeps_the_session_and_tries_again(world: World, kind: type[m.Base]) -> None:
    world.server.refusals[kind] = [error("storage-unavailable"), error("storage-unavailable")]
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: VM_1 in world.server.reports and world.server.reports[VM_1].observed == Observed.RUNNING)
    assert len(world.bodies(m.Hello)) == 1


def test_failing_reports_do_not_make_a_storm(running: World) -> None:
    running.server.refusals[m.Report] = [error("internal")] * 1000
    running.hv.kill(VM_1)
    before = len(running.bodies(m.Hello))
    running.run(600.0)
    assert len(running.bodies(m.Hello)) - before < 40


def test_heartbeats_go_on_while_pulling(world: World) -> None:
    world.mangle = lambda body: 0 if isinstance(body, m.Inventory) else 1
    world.poke()
    before = len(world.bodies(m.Heartbeat))
    world.run(60.0)
    assert len(world.bodies(m.Heartbeat)) - before >= 3


def test_lost_inventory_is_pulled_again_in_the_same_session(world: World) -> None:
    lost = iter([0])
    world.mangle = lambda body: next(lost, 1) if isinstance(body, m.Inventory) else 1
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: world.runs(VM_1), 8.0)
    assert len(world.bodies(m.Hello)) == 1


def test_broken_connection_begins_a_new_session(running: World) -> None:
    running.give(fx.Disconnected("the server closed it"))
    assert not running.ready and running.agent.link.last_error == "the server closed it"
    waits_until = running.agent.link.next_deadline()
    running.give(fx.Disconnected("closed again"))
    assert running.agent.link.next_deadline() == waits_until, "a new session is on its way already"
    running.run_until(lambda: running.ready)


def test_back_off_begins_anew_after_a_session_that_worked(running: World) -> None:
    running.server.deaf = True
    running.give(fx.Disconnected("broken"))
    running.run(300.0)
    times = [at for at, body in running.sent if isinstance(body, m.Hello)]
    assert times[-1] - times[-2] > 10.0
    running.server.deaf = False
    running.run_until(lambda: running.ready and not running.agent._has_news())
    running.give(fx.Disconnected("broken"))
    assert running.agent.link.next_deadline() - running.now <= 1.5


@pytest.mark.parametrize("change", [{"session": "other"}, {"nonce": "other"}])
def test_acknowledgement_of_another_heartbeat_says_nothing(running: World, change: dict[str, str]) -> None:
    acks: list[m.HeartbeatAck] = []
    running.mangle = lambda body: acks.append(body) or 1 if isinstance(body, m.HeartbeatAck) else 1  # type: ignore[func-returns-value]
    running.run(16.0)
    before = len(running.bodies(m.Pull)), len(running.bodies(m.Report))
    running.give(fx.Received(msgspec.structs.replace(acks[-1], revision=99, report=True, **change)))
    running.run(1.0)
    assert (len(running.bodies(m.Pull)), len(running.bodies(m.Report))) == before


@pytest.mark.parametrize(("session", "seq"), [("other", 0), ("other", 3), ("s1", 0), ("s1", 99)])
def test_acknowledgement_of_no_report_of_ours_changes_nothing(running: World, session: str, seq: int) -> None:
    digest = running.agent.outbox.told_digest
    running.mangle = lambda body: 0 if isinstance(body, m.ReportAck) else 1
    running.give(fx.Received(m.ReportAck(session=session, seq=seq)))
    running.hv.person_pause(VM_1)
    running.run(0.1)
    assert running.agent.outbox.told_digest != digest, "the pause is on its way"
    running.give(fx.Received(m.ReportAck(session=session, seq=seq)))
    running.mangle = lambda body: 1
    running.run_until(lambda: running.ready and not running.agent._has_news())
    assert running.server.reports[VM_1].observed == Observed.PAUSED


def test_late_acknowledgement_does_not_confirm_a_later_release(running: World) -> None:
    acks: list[m.ReportAck] = []
    running.mangle = lambda body: acks.append(body) or 0 if isinstance(body, m.ReportAck) else 1  # type: ignore[func-returns-value]
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    running.server.release(VM_1, 5)
    running.poke()
    running.run(0.1)
    assert running.saved.tombstones[VM_1].epoch == 5
    running.mangle = lambda body: 1
    running.give(fx.Received(acks[-1]))
    assert not running.saved.tombstones[VM_1].acked
    running.run_until(lambda: running.saved.tombstones[VM_1].acked)
    assert [release.epoch for release in running.server.confirmed] == [1, 5]


# --- inventory --------------------------------------------------------------------------------------------


def test_pages_count_all_at_once_or_not_at_all(world: World) -> None:
    world.server.page_size = 2
    for number in range(1, 8):
        world.server.assign(assignment(uuid(number)))
    pages = itertools.count()
    world.mangle = lambda body: (0 if next(pages) >= 2 else 1) if isinstance(body, m.Inventory) else 1
    world.poke()
    world.run(4.0)
    assert not world.saved.held
    world.mangle = lambda body: 1
    world.run_until(lambda: len(world.saved.held) == 7)


def test_pokes_during_a_long_pull_do_not_start_it_over(world: World) -> None:
    world.server.page_size = 1
    for number in range(1, 41):
        world.server.assign(assignment(uuid(number), desired=Desired.STOPPED))
    for _ in range(60):
        world.poke()
        world.run(0.03)
    assert len(world.saved.held) == 40


def test_news_poked_while_the_answer_is_under_way_are_pulled_at_once(world: World) -> None:
    late: list[m.Inventory] = []
    world.mangle = lambda body: late.append(body) or 0 if isinstance(body, m.Inventory) else 1  # type: ignore[func-returns-value]
    world.poke()
    world.run(0.1)
    world.mangle = lambda body: 1
    world.server.assign(assignment())
    world.give(fx.Received(m.Poke(session="s1", revision=world.server.revision)))
    world.give(fx.Received(late[-1]))
    assert world.run_until(lambda: world.runs(VM_1)) < 1.0


def test_pages_of_two_generations_are_never_put_together(world: World) -> None:
    world.server.page_size = 2
    for number in range(1, 6):
        world.server.assign(assignment(uuid(number), desired=Desired.STOPPED))
    world.poke()
    world.run_until(lambda: len(world.bodies(m.Pull)) >= 3, 1.0)  # the first page came
    world.server.generation = 2
    del world.server.vms[uuid(1)]
    world.run_until(lambda: world.saved.generation == 2, 5.0)
    assert world.saved.held.keys() == {uuid(number) for number in range(2, 6)}


@pytest.mark.parametrize("change", [{"nonce": "other"}, {"session": "other"}])
def test_inventory_of_another_question_or_session_is_dropped(world: World, change: dict[str, str]) -> None:
    world.server.assign(assignment())
    asked: list[m.Inventory] = []
    world.mangle = lambda body: asked.append(body) or 0 if isinstance(body, m.Inventory) else 1  # type: ignore[func-returns-value]
    world.poke()
    world.run(0.1)
    assert asked
    world.give(fx.Received(msgspec.structs.replace(asked[0], **change)))
    assert not world.saved.held
    world.give(fx.Received(asked[0]))
    assert world.saved.held


def test_late_inventory_from_before_a_release_changes_nothing(running: World) -> None:
    kept: list[m.Inventory] = []
    running.mangle = lambda body: kept.append(body) or 1 if isinstance(body, m.Inventory) else 1  # type: ignore[func-returns-value]
    running.poke()
    running.run(1.0)
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: bool(running.server.confirmed))
    for body in kept:
        running.give(fx.Received(body))
    running.run(100.0)
    assert VM_1 not in running.saved.held and not running.runs(VM_1)


def test_late_welcome_does_not_disturb_the_session(running: World) -> None:
    running.give(
        fx.Received(
            m.Welcome(
                version=1, session="x", nonce="x", heartbeat_s=1.0, max_frame_bytes=1, generation=9, revision=9
            )
        )
    )
    assert running.agent.link.session == "s1" and running.agent.outbox.told_digest == running.server.digest


def test_other_generation_leads_to_a_full_pull_and_a_full_report(running: World) -> None:
    running.server.generation = 2
    running.server.assign(assignment(VM_2))
    before = len(running.sent)
    running.poke()
    running.run(5.0)
    later = [body for _, body in running.sent[before:]]
    assert any(isinstance(body, m.Pull) and body.since == 0 for body in later)
    assert any(isinstance(body, m.Report) and body.full and body.generation == 2 for body in later)


def test_lower_epoch_is_ignored(running: World) -> None:
    running.server.change(VM_1, epoch=5)
    running.poke()
    running.run(5.0)
    running.server.change(VM_1, epoch=3, desired=Desired.STOPPED)
    running.poke()
    running.run(30.0)
    assert running.saved.held[VM_1].vm.epoch == 5 and running.runs(VM_1)
    assert running.server.reports[VM_1].epoch == 5


def test_absence_removes_nothing(running: World) -> None:
    del running.server.vms[VM_1]
    running.restart_agent()
    running.run(100.0)
    assert VM_1 in running.saved.held and running.runs(VM_1)


# --- reports ----------------------------------------------------------------------------------------------


def test_report_is_sent_again_over_sessions_until_acknowledged(running: World) -> None:
    running.mangle = lambda body: 0 if isinstance(body, m.ReportAck) else 1
    running.hv.kill(VM_1)
    running.run(60.0)
    assert len(running.bodies(m.Hello)) > 2
    running.mangle = lambda body: 1
    running.run_until(lambda: running.ready and not running.agent._has_news())
    assert running.events().count("vm-restarted") == 1
    sent = len(running.bodies(m.Report))
    running.run(14.0)
    assert len(running.bodies(m.Report)) == sent


def test_server_that_wants_a_report_gets_a_full_one(running: World) -> None:
    running.server.digest = "lost"
    running.server.reports = {}
    running.run(16.0)
    assert VM_1 in running.server.reports


def test_change_of_state_is_reported_at_once_and_alone(running: World) -> None:
    running.server.assign(assignment(VM_2))
    running.poke()
    running.run(5.0)
    before = len(running.bodies(m.Report))
    running.hv.person_pause(VM_1)
    running.run(0.1)
    (report,) = running.bodies(m.Report)[before:]
    assert isinstance(report, m.Report) and not report.full and [vm.uuid for vm in report.vms] == [VM_1]


def test_thousands_of_vms_fit_a_report(world: World) -> None:
    vms = tuple(
        m.VmReport(uuid=uuid(n), epoch=2**40, revision=2**40, observed=Observed.FAILED, problem="start-failed",
                   detail="x" * 500, name="n" * 63)
        for n in range(reporting.MAX_VMS)
    )  # fmt: skip
    report = m.Report(session="s", seq=1, revision=1, generation=1, digest="d", full=True, vms=vms)
    assert len(codec.encode(reporting.fit(report))) <= codec.MAX_FRAME_BYTES


def test_events_that_are_lost_are_told(running: World) -> None:
    for number in range(1000):
        running.agent.outbox.add("vm-restarted", None, str(number))
    assert len(running.agent.outbox.events) == 500
    assert running.agent.outbox.events[0].text.startswith("501 events")


# --- deadlines --------------------------------------------------------------------------------------------


def test_quiet_node_ticks_only_for_heartbeats_and_audits(running: World) -> None:
    before = running.ticks
    running.run(3600.0)
    assert running.ticks - before <= 2 * 240 + 60 + 20


@pytest.mark.parametrize("trouble", ["network_down", "disk_full", "hung"])
def test_node_in_trouble_does_not_spin(running: World, trouble: str) -> None:
    setattr(running, trouble, True)
    running.server.change(VM_1, desired=Desired.STOPPED)
    running.poke()
    before = running.ticks
    running.run(600.0)
    assert running.ticks - before <= 1800
    assert running.agent.link.state in LinkState


# --- a key that is refused --------------------------------------------------------------------------------


def key_refused(world: World) -> bool:
    world.give(fx.Asked(1, "status"))
    return bool(world.answers[-1]["key_refused"])


@pytest.mark.parametrize("idle", [True, False])
def test_a_key_that_is_not_let_in_is_told_until_the_server_welcomes_it(running: World, idle: bool) -> None:
    assert not key_refused(running)
    running.server.deaf = True
    if idle:  # the new connection fails before the next hello
        running.give(fx.Disconnected("the connection was lost"))
    running.give(fx.Disconnected(KEY_REFUSED))
    assert key_refused(running)
    running.run(30.0)
    assert running.agent.link.last_error == "no answer to hello" and key_refused(running)
    running.server.deaf = False
    running.run_until(lambda: running.ready)
    assert not key_refused(running)


def test_a_key_that_is_revoked_in_a_session_is_told(running: World) -> None:
    running.server.refusals[m.Heartbeat] = [error("unknown-key", retriable=False)]
    running.run_until(lambda: not running.ready)
    assert key_refused(running)
