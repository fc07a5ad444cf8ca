"""Who is alive: time-outs, pings, grace, stalls."""

from __future__ import annotations

import time

import pytest

from chimed.core.state import effects as fx
from chimed.core.state.liveness import Liveness, Phase
from tests.unit.server.world import World, key_of, uuid_of
from wire import messages as m
from wire.types import Severity

LIMIT = 45.0


@pytest.fixture
def world() -> World:
    world = World("n1", "n2", "n3", "n4")
    world.start()
    world.run(20)
    return world


def test_a_dead_host_is_unreachable_in_time(world: World) -> None:
    world.agents["n1"].power_off()
    died = world.now
    while world.node("n1")["health"] != "unreachable":
        world.run(0.5)
        assert world.now - died < LIMIT + 3 + 1 < 60
    assert world.alarms() == [("node-unreachable", "n1")]
    node = world.node("n1")
    assert not node["schedulable"] and not node["commandable"] and node["last_heartbeat_age_s"] > LIMIT


def test_a_dead_agent_on_a_host_that_answers_is_agent_lost(world: World) -> None:
    world.agents["n1"].kill()
    world.run(60)
    assert (world.node("n1")["health"], world.node("n1")["reasons"]) == ("error", ["agent-lost"])
    assert world.alarms() == [("agent-lost", "n1")]


def test_a_ping_that_cannot_be_sent_is_never_unreachable(world: World) -> None:
    world.unping.add("n1")
    world.agents["n1"].power_off()
    world.run(300)
    assert world.node("n1")["reasons"] == ["agent-lost", "ping-unavailable"]


def test_blocked_ping_with_heartbeats_is_normal(world: World) -> None:
    world.unping.update(world.agents)
    world.run(300)
    assert {world.node(n)["health"] for n in world.agents} == {"normal"} and not world.pings


def test_heartbeats_return_and_the_node_is_normal_by_itself(world: World) -> None:
    world.deaf.add("n1")
    world.run(70)
    assert world.node("n1")["health"] == "unreachable"
    world.deaf.clear()
    world.run(16)
    assert world.node("n1")["health"] == "normal" and world.node("n1")["commandable"]
    assert world.alarms() == []


def test_a_restart_gives_everyone_a_full_grace_period(world: World) -> None:
    world.deaf.update(world.agents)
    world.run(10)
    world.crash()
    world.run(LIMIT - 16)
    assert {world.node(n)["health"] for n in world.agents} == {"normal"}
    world.deaf.clear()
    world.run(60)
    assert {world.node(n)["health"] for n in world.agents} == {"normal"}
    assert world.alarms(all=True) == []


@pytest.mark.parametrize("stall_s", [10.0, 46.0, 200.0])
def test_the_servers_own_sleep_kills_nobody(world: World, stall_s: float) -> None:
    """Also when the agents take their time to come back, and when pings were under way."""
    world.core.next_deadline()
    world.now += stall_s
    world.turn()
    world.run(1.0)
    for agent in world.agents.values():
        agent.next_beat = world.now + 14
    world.run(100)
    assert world.alarms(all=True) == []


def test_a_stall_while_pinging_begins_the_pings_again() -> None:
    live = Liveness(15, 3, 3, 1)
    live.heard("n1", 0)
    live.next_deadline()
    assert live.tick(45) == (["n1"], [])
    for at in (46, 47):
        live.next_deadline()
        live.tick(at)
    live.next_deadline()
    assert live.tick(147) == (["n1"], [])
    assert live.phase("n1") is Phase.ASKING


def test_a_link_that_flaps_makes_no_storm(world: World) -> None:
    for _ in range(20):
        world.deaf.add("n1")
        world.run(20)
        world.deaf.clear()
        world.run(20)
    assert len(world.alarms(all=True)) <= 1


def test_mass_loss_is_one_alarm() -> None:
    names = [f"n{i}" for i in range(9)]
    world = World(*names)
    world.start()
    world.run(20)
    world.deaf.update(names[:5])
    world.run(100)
    assert world.alarms() == [("mass-unreachable", "server")]
    world.deaf.clear()
    world.deaf.add("n0")
    world.run(60)
    assert world.alarms() == [("node-unreachable", "n0")]


def test_faults_are_error_with_reasons_and_clear_by_themselves(world: World) -> None:
    agent = world.agents["n1"]
    agent.faults = (m.Fault(code="storage-full", text="/srv"), m.Fault(code="libvirt-hangs"))
    world.run(16)
    node = world.node("n1")
    assert (node["health"], node["reasons"]) == ("error", ["libvirt-hangs", "storage-full"])
    assert node["faults"][0] == {"code": "storage-full", "text": "/srv", "severity": "warning"}
    assert not node["schedulable"]
    assert world.alarms() == [("node-error", "n1")]
    agent.faults = ()
    world.run(16)
    assert world.node("n1")["health"] == "normal" and world.alarms() == []


def test_the_alarm_of_a_node_is_as_urgent_as_its_worst_fault_and_a_change_is_told(world: World) -> None:
    agent = world.agents["n1"]
    slow = m.Fault(code="storage-slow", text="/srv")
    agent.faults = (slow,)
    world.run(16)
    alarms = world.ask(m.AlarmList())["items"]
    assert [(a["code"], a["severity"]) for a in alarms] == [("node-error", "warning")]
    agent.faults = (slow, m.Fault(code="raid-degraded", severity=Severity.CRITICAL))
    world.run(16)
    alarms = world.ask(m.AlarmList())["items"]
    assert [(a["code"], a["severity"]) for a in alarms] == [("node-error", "critical")]
    assert alarms[0]["text"] == "node n1 reports: storage-slow: /srv; raid-degraded"
    changes = [e for _, e in world.disk.events if e.action == "alarm-severity"]
    assert [(e.subject, e.text.partition(":")[0]) for e in changes] == [("n1", "node-error (warning -> critical)")]


def test_what_is_only_worth_knowing_leaves_the_node_normal(world: World) -> None:
    agent = world.agents["n1"]
    agent.faults = (m.Fault(code="business-target", text="192.0.2.9", severity=Severity.INFO),)
    world.run(16)
    node = world.node("n1")
    assert (node["health"], node["reasons"], node["schedulable"]) == ("normal", [], True)
    assert node["faults"] == [{"code": "business-target", "text": "192.0.2.9", "severity": "info"}]
    assert world.alarms() == [("node-notice", "n1")]
    agent.faults = (*agent.faults, m.Fault(code="storage-full"))
    world.run(16)
    assert world.node("n1")["reasons"] == ["storage-full"]
    assert sorted(world.alarms()) == [("node-error", "n1"), ("node-notice", "n1")]
    agent.faults = ()
    world.run(16)
    assert world.alarms() == []


@pytest.mark.parametrize("what", ["the agent restarts", "the agent says bye", "the server restarts"])
@pytest.mark.parametrize("lasts", [True, False])
def test_a_new_session_says_nothing_of_faults_until_its_first_heartbeat(world: World, what: str, lasts: bool) -> None:
    agent = world.agents["n1"]
    agent.faults = (
        m.Fault(code="raid-degraded", severity=Severity.CRITICAL),
        m.Fault(code="clock-unsynchronised", severity=Severity.INFO),
    )
    world.run(16)
    before = world.ask(m.AlarmList())["items"]
    if what == "the server restarts":
        world.crash()
    elif what == "the agent says bye":
        agent.say(m.Bye(session=agent.session or ""))
    agent.faults = agent.faults if lasts else ()
    agent.connect()
    assert world.node("n1")["health"] == "error" and world.ask(m.AlarmList())["items"] == before
    world.run(16)
    assert world.node("n1")["health"] == ("error" if lasts else "normal")
    assert world.ask(m.AlarmList())["items"] == (before if lasts else [])


def test_a_lost_node_that_says_hello_is_normal_at_once(world: World) -> None:
    agent = world.agents["n1"]
    agent.kill()
    world.run(100)
    assert world.node("n1")["reasons"] == ["agent-lost"]
    agent.connect()
    assert world.node("n1")["health"] == "normal" and world.alarms() == []


def test_a_heartbeat_that_changes_nothing_changes_no_row(world: World) -> None:
    commits, agent = world.disk.commits, world.agents["n1"]
    agent.seq += 1
    world.core.handle(
        fx.Received(agent.world.tables().nodes.get("n1").public_key, agent.route, agent.heartbeat(), "", str), world.now
    )  # type: ignore[union-attr]
    assert world.tables().changes() == ([], []) and not world.tables().dirty
    world.run(100)
    assert world.disk.commits == commits


def test_a_wall_clock_that_jumps_changes_nothing(world: World) -> None:
    for jump in (3600, -7200):
        world.wall_shift += jump
        world.run(50)
    assert world.alarms(all=True) == []


def test_a_node_that_was_heard_before_the_server_started_is_not_called_never_heard(world: World) -> None:
    def said(name: str) -> str:
        return str(world.ask(m.Explain(kind="node", name=name))["lines"][0])

    world.do(m.NodeAdd, name="new", public_key=key_of("new"))
    world.crash()
    assert said("n1") == "n1 is enabled and normal; last heartbeat: none yet since the server's start."
    assert said("new").endswith("last heartbeat: never.")


def test_a_node_never_heard_stays_unknown_without_alarm() -> None:
    world = World("n1")
    world.run(600)
    assert world.node("n1")["health"] == "unknown" and world.alarms() == []
    assert world.node("n1")["last_heartbeat_age_s"] is None


def test_deadlines_are_honest() -> None:
    """Driven by next_deadline alone the server neither spins nor stalls."""
    world = World("n1", "n2")
    world.start()
    world.run(20)
    world.agents["n1"].power_off()
    world.agents["n2"].kill()
    turns = world.run(3600)
    assert turns < 3600 / 15 * 2 * 8
    assert world.node("n1")["health"] == "unreachable" and world.node("n2")["reasons"] == ["agent-lost"]


def test_ten_thousand_nodes_are_cheap() -> None:
    live = Liveness(15, 3, 3, 1)
    names = [uuid_of(str(i)) for i in range(10_000)]
    for name in names:
        live.heard(name, 0.0)
    began = time.process_time()
    for i, name in enumerate(names):
        live.heard(name, 1 + i / 1000)
        live.next_deadline()
        live.tick(1 + i / 1000)
    assert time.process_time() - began < 0.5
    began, now, silent = time.process_time(), 11.0, 0
    while silent < 10_000:
        now = max(now, live.next_deadline())
        silent += len(live.tick(now)[1])
    assert now < 11 + LIMIT + 4 and time.process_time() - began < 2


@pytest.mark.parametrize("news", [fx.PingAnswered("n1"), fx.PingUnsent("n1", "no route")], ids=["reply", "unsent"])
def test_late_news_of_a_ping_says_nothing_of_a_node_that_is_heard(world: World, news: fx.Event) -> None:
    world.turn(news)
    world.run(20)
    assert world.node("n1")["health"] == "normal" and world.alarms(all=True) == []


def test_a_node_without_an_address_is_never_unreachable() -> None:
    world = World("n1")
    hello = m.Hello(versions=(1,), node="n1", boot_id=uuid_of("b"), incarnation="i", nonce="n")
    world.turn(fx.Received(key_of("n1"), b"n1", hello, "h", str))
    world.run(100)
    assert world.node("n1")["reasons"] == ["agent-lost", "ping-unavailable"] and not world.pings


def test_a_stall_does_not_ask_again_at_once_after_nodes_that_are_judged() -> None:
    live = Liveness(15, 3, 3, 1)
    live.heard("n1", 0)
    live.heard("n2", 10)
    for at in (45, 46, 47, 48):
        live.next_deadline()
        live.tick(at)
    assert live.phase("n1") is Phase.SILENT
    assert live.next_deadline() == 55  # n2 is due first; n1 is asked again at 63
    assert live.tick(58) == ([], [])
    assert live.next_deadline() == 63
    assert live.tick(63) == (["n1"], [])
    assert (live.phase("n1"), live.phase("n2")) == (Phase.SILENT, Phase.ALIVE)
