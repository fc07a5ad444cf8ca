"""What a node's key does that it may not, or more often than it may, is told once and then with a count."""

from __future__ import annotations

from typing import Any

import pytest

from chimed.core.agents.overuse import TOLD_EVERY_S
from chimed.core.state import effects as fx
from chimed.core.state.turn import Policy
from tests.fakes.names import key_of, uuid_of
from tests.unit.server.world import Refused, World
from wire import messages as m
from wire.types import Observed, Severity

FEW = Policy(node_events_per_s=1.0, node_events_burst=10, node_changes_per_s=1.0, node_changes_burst=100)


def world_of(*nodes: str, policy: Policy | None = None) -> World:
    world = World(*nodes, policy=policy)
    world.start()
    return world


def lines(world: World, action: str) -> list[Any]:
    return [event for _, event in world.disk.events if event.action == action]


def forbid(world: World, who: str, body: m.Base | None = None) -> None:
    with pytest.raises(Refused, match="forbidden"):
        world.say(who, body or m.NodeList())


def events(count: int, first: int = 0) -> tuple[m.AgentEvent, ...]:
    return tuple(m.AgentEvent(id=f"e{i}", code="vm-restarted", text="x") for i in range(first, first + count))


# --- H7 ---------------------------------------------------------------------------------------------------------------


def test_h7_many_forbidden_requests_are_one_alarm_and_lines_with_a_count() -> None:
    world = world_of("n1", "n2")
    for _ in range(1500):
        forbid(world, "n1")
    assert world.alarms() == [("key-misused", "n1")]
    [first] = lines(world, "requests-forbidden")
    assert (first.subject, first.text) == ("n1", "1 requests that are not for this key, the newest node.list")
    assert len(lines(world, "alarm-raised")) == 1
    assert len([line for line in world.logs if "not for this key" in line]) == 1
    forbid(world, "n1", m.NodeRemove(key="k", name="n2"))
    world.run(TOLD_EVERY_S + 1)
    [_, second] = lines(world, "requests-forbidden")
    assert second.text == "1500 requests that are not for this key, the newest node.remove"


def test_h7_the_alarm_ends_when_it_is_not_tried_any_more() -> None:
    world = world_of("n1")
    forbid(world, "n1")
    world.run(3 * TOLD_EVERY_S)
    assert world.alarms() == []
    assert len(lines(world, "requests-forbidden")) == 1
    forbid(world, "n1")
    assert world.alarms() == [("key-misused", "n1")]
    assert len(lines(world, "requests-forbidden")) == 2


def test_h7_an_operator_that_speaks_as_an_agent_is_in_the_trail_without_an_alarm() -> None:
    world = world_of("n1")
    forbid(world, "op", m.Bye(session="x"))
    assert [line.subject for line in lines(world, "requests-forbidden")] == ["op"]
    assert world.alarms() == []


def test_h7_a_node_that_is_removed_leaves_nothing_behind() -> None:
    world = world_of("n1", "n2")
    forbid(world, "n1")
    forbid(world, "n1")
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.agents["n1"].up = False
    world.do(m.NodeRemove, name="n1")
    world.run(2 * TOLD_EVERY_S)
    assert len(lines(world, "requests-forbidden")) == 1


def test_h7_what_cannot_be_recorded_is_refused_all_the_same() -> None:
    world = world_of("n1")
    world.disk.fault = "disk full"
    forbid(world, "n1")
    forbid(world, "n1")
    world.recover_storage()
    assert not lines(world, "requests-forbidden")
    forbid(world, "n1")
    assert len(lines(world, "requests-forbidden")) == 1


# --- H6 ---------------------------------------------------------------------------------------------------------------


def test_h6_events_beyond_the_budget_are_dropped_and_counted() -> None:
    world = world_of("n1", policy=FEW)
    agent = world.agents["n1"]
    agent.report(events=events(50))
    agent.report(events=events(50, 50))
    assert [event.source_id for event in lines(world, "vm-restarted")] == [f"n1/e{i}" for i in range(10)]
    assert [line.text for line in lines(world, "events-dropped")] == ["40 events beyond its budget were dropped"]
    assert world.alarms() == [("node-over-budget", "n1")]
    world.run(TOLD_EVERY_S + 1)
    assert [line.text[:3] for line in lines(world, "events-dropped")] == ["40 ", "50 "]
    agent.report(events=events(5, 100))
    assert len(lines(world, "vm-restarted")) == 15


def test_h6_lines_that_a_nodes_word_brings_about_are_apart_from_those_of_operators_and_the_server() -> None:
    world = world_of("n1")
    world.create("web", "n1")
    world.agents["n1"].report(events=events(1))
    forbid(world, "n1")
    apart = {(event.action, event.of_node) for _, event in world.disk.events}
    assert {("vm-restarted", True), ("node-health", True)} <= apart
    assert {("requests-forbidden", False), ("alarm-raised", False)} <= apart, "told by the server, and seldom"
    assert {("create-requested", False), ("create-succeeded", False)} <= apart
    assert all(not event.of_node for _, event in world.disk.events if event.operation)
    before = len(world.disk.events)
    world.agents["n1"].up = False
    world.run(120.0)
    assert [event.of_node for _, event in world.disk.events[before:]] == [False] * (len(world.disk.events) - before)


def test_h6_a_node_that_changes_too_much_has_to_wait_and_goes_on_later() -> None:
    world = world_of("n1", "n2", policy=FEW)
    agent = world.agents["n1"]
    strays = tuple(m.VmReport(uuid=uuid_of(f"s{i}"), epoch=1, revision=0, observed=Observed.RUNNING) for i in range(60))
    agent.report(vms=strays)
    with pytest.raises(Refused, match="overloaded") as caught:
        agent.report()
    assert caught.value.body.details["retry_after_s"] > 0
    agent.beat()
    assert world.node("n1")["health"] == "normal", "it is heard"
    assert ("node-over-budget", "n1") in world.alarms()
    world.agents["n2"].report()
    world.run(200.0)
    agent.report()
    assert [code for code, _ in world.alarms()] == []


def test_h6_faults_that_change_with_each_heartbeat_have_to_wait_too() -> None:
    world = world_of("n1", policy=FEW)
    agent = world.agents["n1"]
    for number in range(200):
        agent.faults = (m.Fault(code=f"f{number}", severity=Severity.CRITICAL, text=""),)
        agent.beat()
    assert len([e for _, e in world.disk.events if e.action == "node-health"]) < 60
    agent.faults = ()
    world.run(400.0)
    assert (world.node("n1")["health"], world.alarms()) == ("normal", [])


def test_h6_messages_that_were_not_looked_at_are_told_with_a_count() -> None:
    world = world_of("n1")
    world.turn(fx.OverBudget(key_of("n1"), 70), fx.OverBudget(key_of("op"), 5), fx.OverBudget("nobody", 1))
    told = [(line.subject, line.text) for line in lines(world, "messages-over-budget")]
    assert told == [(who, f"{n} messages beyond its budget were not looked at") for who, n in (("n1", 70), ("op", 5))]
    assert world.alarms() == [("node-over-budget", "n1")]


def report_of(name: str, size: int) -> m.VmReport:
    migration = m.MigrationReport(attempt="a", phase="leaving", peer="p" * size)  # type: ignore[arg-type]
    return m.VmReport(
        uuid=uuid_of(name), epoch=0, revision=0, observed=Observed.STOPPED, detail="x" * size, migration=migration
    )


def partial(agent: Any, *vms: m.VmReport) -> None:
    """A report of these VMs alone."""
    agent.report_seq += 1
    agent.say(m.Report(session=agent.session, seq=agent.report_seq, revision=agent.revision,
                       generation=agent.generation, digest="d", full=False, vms=vms))  # fmt: skip


def test_h6_the_text_that_a_session_keeps_is_bounded_over_all_its_reports() -> None:
    world = world_of("n1", policy=Policy(reported_mib=1))
    agent = world.agents["n1"]
    agent.report(vms=tuple(report_of(f"v{i}", 1000) for i in range(500)))
    with pytest.raises(Refused, match="more than 1 MiB: shorten texts"):
        partial(agent, *(report_of(f"w{i}", 1000) for i in range(50)))
    partial(agent, *(report_of(f"v{i}", 1000) for i in range(500)))
    partial(agent, *(report_of(f"v{i}", 0) for i in range(100)))
    partial(agent, *(report_of(f"w{i}", 1000) for i in range(100)))
    with pytest.raises(Refused, match="more than 1 MiB"):
        agent.report(vms=tuple(report_of(f"x{i}", 1000) for i in range(600)))


def test_h6_a_full_report_of_more_vms_than_a_node_has_is_refused() -> None:
    world = world_of("n1", policy=Policy(reported_vms=100))
    vms = tuple(report_of(f"v{i}", 0) for i in range(101))
    with pytest.raises(Refused, match="more than 100 VMs: raise reported_vms"):
        world.agents["n1"].report(vms=vms)


def test_a_node_with_a_thousand_vms_that_all_crash_is_within_every_budget() -> None:
    world = world_of("n1")
    vms = tuple(
        m.VmReport(uuid=uuid_of(f"v{i}"), epoch=1, revision=0, observed=Observed.FAILED, detail="x" * 2000)
        for i in range(1000)
    )
    for number in range(4):
        world.agents["n1"].report(vms=vms, events=events(500, 500 * number))
        world.run(30.0)
    assert ("node-over-budget", "n1") not in world.alarms()
