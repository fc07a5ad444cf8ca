"""Who may speak, and when: keys, roles, sessions, replays, copied keys."""

from __future__ import annotations

import pytest

from chimed.core.state import effects as fx
from chimed.core.state.liveness import NEVER, STALL_S
from chimed.core.state.sessions import Sessions
from tests.tools.samples import sample
from tests.unit.server.world import Agent, Refused, World, key_of, uuid_of
from wire import messages as m
from wire.errors import ChimeError
from wire.types import Observed
from wire.verbs import VERBS, Role


@pytest.fixture
def world() -> World:
    world = World("n1", "n2")
    world.start()
    return world


def refusal(world: World, who: str, body: m.Base, route: bytes | None = None) -> str:
    with pytest.raises(Refused) as caught:
        world.say(who, body, route)
    return caught.value.code


@pytest.mark.parametrize("kind", sorted(VERBS))
@pytest.mark.parametrize("who", ["op", "n1"])
def test_every_verb_is_refused_to_the_wrong_role(world: World, kind: str, who: str) -> None:
    role = Role.OPERATOR if who == "op" else Role.AGENT
    if VERBS[kind].sender is role:
        return
    before = world.saved()
    assert refusal(world, who, sample(VERBS[kind].body)) == "forbidden"
    after = world.saved()
    if who == "n1":  # that is told
        assert world.alarms() == [("key-misused", "n1")]
        after["alarms"], after["meta"] = before["alarms"], before["meta"]
    assert after == before


def test_an_unknown_key_is_refused(world: World) -> None:
    assert refusal(world, "nobody", m.ServerStatus()) == "unknown-key"


def test_another_route_or_session_is_stale(world: World) -> None:
    agent = world.agents["n1"]
    assert refusal(world, "n1", agent.heartbeat(seq=9), b"elsewhere") == "stale-session"
    assert refusal(world, "n1", agent.heartbeat(seq=9, session="old")) == "stale-session"
    assert refusal(world, "n1", m.Pull(session="old", nonce="n")) == "stale-session"
    assert refusal(world, "n1", m.Pull(session=agent.session or "", nonce="n"), b"elsewhere") == "stale-session"


def test_a_key_that_names_another_node(world: World) -> None:
    """Refused with an alarm; a storm of it is one alarm and few lines."""
    for _ in range(50):
        assert (
            refusal(world, "n1", m.Hello(versions=(1,), node="n2", boot_id=uuid_of("x"), incarnation="i", nonce="n"))
            == "wrong-node"
        )
    assert world.alarms() == [("wrong-node", "n1")]
    assert len(world.actions("n1")) < 6
    world.run(200)
    assert world.alarms() == []


def test_a_restarted_agent_is_admitted_at_once(world: World) -> None:
    old = world.agents["n1"].session
    assert isinstance(world.agents["n1"].hello(incarnation="other"), m.Welcome)
    assert refusal(world, "n1", m.Pull(session=old or "", nonce="n")) == "stale-session"


def test_a_copied_key_never_takes_over_from_a_living_host(world: World) -> None:
    agent = world.agents["n1"]
    hello = m.Hello(versions=(1,), node="n1", boot_id=uuid_of("clone"), incarnation="c", nonce="n")
    assert refusal(world, "n1", hello, b"clone") == "node-busy"
    assert agent.poked
    world.now += 1
    agent.sync()
    world.run(1.5)
    assert refusal(world, "n1", hello, b"clone") == "cloned-key"
    assert world.alarms() == [("node-key-cloned", "n1")]
    assert agent.beat() is not None
    world.run(200)
    assert world.alarms() == []


def test_a_rebooted_host_is_admitted_after_silence(world: World) -> None:
    agent = world.agents["n1"]
    agent.power_off()
    agent.boot = uuid_of("second boot")
    assert not agent.connect()
    world.run(2.5)
    assert agent.connect()
    assert world.alarms() == []


def test_the_servers_own_sleep_is_no_silence_of_a_living_host(world: World) -> None:
    """It asks whether the old host lives, sleeps, and finds the copy's second hello before the old host's answer."""
    agent = world.agents["n1"]
    hello = m.Hello(versions=(1,), node="n1", boot_id=uuid_of("clone"), incarnation="c", nonce="n")
    assert refusal(world, "n1", hello, b"clone") == "node-busy"
    world.now += 10
    assert refusal(world, "n1", hello, b"clone") == "node-busy"
    agent.sync()
    assert refusal(world, "n1", hello, b"clone") == "cloned-key"


def test_a_replayed_heartbeat_is_no_sign_of_life(world: World) -> None:
    agent = world.agents["n1"]
    agent.beat()
    replay = agent.heartbeat()
    agent.kill()
    for _ in range(5):
        world.run(12)
        assert world.say("n1", replay) is None
    assert world.node("n1")["health"] == "error"


def test_a_report_out_of_order_is_dropped(world: World) -> None:
    world.create("web", "n1")
    agent = world.agents["n1"]
    assert world.vm("web")["observed"] == "running"
    assert agent.report(seq=1, vms=()) is None
    assert world.vm("web")["observed"] == "running"


@pytest.mark.parametrize("how", ["rekey", "remove"])
def test_a_revoked_key_is_refused_from_the_next_message(how: str) -> None:
    world = World("n1")
    agent = world.agents["n1"]
    world.start()
    if how == "rekey":
        world.do(m.NodeRekey, name="n1", public_key=key_of("fresh"))
        assert not world.node("n1")["commandable"]
    else:
        world.do(m.NodeDrain, name="n1")
        world.settle()
        world.do(m.NodeRemove, name="n1")
    assert refusal(world, "n1", agent.heartbeat(seq=99)) == "unknown-key"
    assert key_of("n1") not in set(world.core.keys())


def test_bye_ends_the_session_but_judges_nobody(world: World) -> None:
    agent = world.agents["n1"]
    world.say("n1", m.Bye(session=agent.session or ""))
    node = world.node("n1")
    assert node["health"] == "normal" and not node["commandable"] and not node["schedulable"]
    agent.session, agent.up = None, False
    world.run(60)
    assert world.node("n1")["reasons"] == ["agent-lost"]


def test_garbage_is_answered_and_counted(world: World) -> None:
    effects = world.turn(fx.Garbage(key_of("n1"), b"r", ChimeError("bad-frame", "no map"), "x"))
    assert isinstance(effects[0], fx.Send) and effects[0].body.code == "bad-frame"  # type: ignore[attr-defined]
    assert world.ask(m.ServerStatus())["counters"]["refused-bad-frame"] == 1


def test_an_agent_of_another_protocol_is_refused_and_told_which_is_spoken(world: World) -> None:
    with pytest.raises(Refused) as caught:
        world.agents["n1"].hello(versions=(2, 3))
    assert (caught.value.code, caught.value.body.details) == ("unsupported-version", {"versions": [1]})


def test_a_host_that_changed_without_a_boot_is_known_as_it_is_now(world: World) -> None:
    agent = world.agents["n1"]
    before = world.actions("n1").count("node-booted")
    agent.memory_mib += 4096
    assert agent.connect()
    assert world.node("n1")["memory_mib"] == 16384 + 4096
    assert world.actions("n1").count("node-booted") == before


def test_a_report_of_another_generation_is_stale(world: World) -> None:
    agent = world.agents["n1"]
    agent.generation += 1
    with pytest.raises(Refused, match="stale-session"):
        agent.report()


def partial(agent: Agent, *vms: m.VmReport) -> m.Base | None:
    agent.report_seq += 1
    return agent.say(
        m.Report(
            session=agent.session or "", seq=agent.report_seq, revision=agent.revision, generation=agent.generation,
            digest="d", full=False, vms=vms,
        )
    )  # fmt: skip


def test_a_partial_report_changes_only_what_it_names(world: World) -> None:
    world.create("web", "n1")
    world.create("db", "n1")
    agent = world.agents["n1"]
    agent.running.discard(uuid_of("db"))
    partial(agent, agent.vm_report(uuid_of("db")))
    assert (world.vm("web")["observed"], world.vm("db")["observed"]) == ("running", "stopped")


def test_what_a_node_reports_is_bounded_over_all_its_reports(world: World) -> None:
    agent = world.agents["n1"]
    most = world.policy.reported_vms
    many = tuple(m.VmReport(uuid=f"u{i}", epoch=0, revision=0, observed=Observed.STOPPED) for i in range(most))
    one = m.VmReport(uuid="more", epoch=0, revision=0, observed=Observed.STOPPED)
    agent.report(vms=many)
    with pytest.raises(Refused, match="send a full report"):
        partial(agent, one)
    assert not world.core.sessions.sightings("more")
    agent.report(vms=(one,))
    assert world.core.sessions.sightings("more")


@pytest.mark.parametrize("then", ["restarted", "said bye"])
def test_a_suspicion_changes_no_health_that_is_not_known_now(world: World, then: str) -> None:
    if then == "restarted":
        world.crash()
    else:
        world.say("n1", m.Bye(session=world.agents["n1"].session or ""))
    hello = m.Hello(versions=(1,), node="n2", boot_id=uuid_of("x"), incarnation="i", nonce="n")
    assert refusal(world, "n1", hello) == "wrong-node"
    assert (world.node("n1")["health"], world.node("n1")["reasons"]) == ("normal", [])
    assert world.alarms() == [("wrong-node", "n1")]


def test_a_connection_that_is_gone_is_counted(world: World) -> None:
    world.turn(fx.Unroutable(b"r"))
    assert world.ask(m.ServerStatus())["counters"]["unroutable"] == 1


# --- hosts with the same key -----------------------------------------------------------------------------------------

CHALLENGE_S, ALIVE_S = 2.0, 45.0


def hello_from(boot: str) -> m.Hello:
    return m.Hello(versions=(1,), node="n1", boot_id=boot, incarnation="i", nonce="n")


def contested(heard: float = 100.0) -> Sessions:
    """The host of boot `old` has the session; the one of boot `new` said hello at 110."""
    sessions = Sessions(CHALLENGE_S)
    sessions.open(hello_from("old"), b"r", "s1", heard)
    assert sessions.admission(hello_from("new"), 110.0, ALIVE_S) == "ask"
    return sessions


def test_a_host_waits_for_the_whole_time_of_the_question() -> None:
    sessions = contested()
    assert sessions.next_deadline() == 112.0
    sessions.tick(111.99)
    assert sessions.admission(hello_from("new"), 111.99, ALIVE_S) == "wait"
    assert sessions.admission(hello_from("new"), 112.5, ALIVE_S) == "wait", "messages that came may not be handled yet"
    sessions.tick(112.0)
    assert sessions.next_deadline() == NEVER
    assert sessions.admission(hello_from("new"), 112.5, ALIVE_S) == "admit"


@pytest.mark.parametrize("over", [False, True])
def test_a_sign_of_life_after_the_question_shows_a_copied_key(over: bool) -> None:
    sessions = contested()
    session = sessions.get("n1")
    assert session is not None
    if over:
        sessions.tick(112.0)
    session.heard = 110.0
    assert sessions.admission(hello_from("new"), 113.0, ALIVE_S) == ("admit" if over else "wait"), "not after it"
    session.heard = 110.1
    assert sessions.admission(hello_from("new"), 113.0, ALIVE_S) == "cloned"
    assert sessions.admission(hello_from("new"), 113.0, ALIVE_S) == "ask", "each attempt is asked for anew"


def test_a_third_host_does_not_inherit_the_question_of_the_second() -> None:
    sessions = contested()
    sessions.tick(112.0)
    assert sessions.admission(hello_from("third"), 113.0, ALIVE_S) == "ask"
    assert sessions.next_deadline() == 115.0
    assert sessions.admission(hello_from("new"), 113.0, ALIVE_S) == "ask"


def test_only_a_session_that_was_silent_for_longer_needs_no_question() -> None:
    sessions = Sessions(CHALLENGE_S)
    sessions.open(hello_from("old"), b"r", "s1", 100.0)
    assert sessions.admission(hello_from("old"), 101.0, ALIVE_S) == "admit", "the same boot: its agent was restarted"
    assert sessions.admission(hello_from("new"), 100.0 + ALIVE_S, ALIVE_S) == "ask"
    assert sessions.admission(hello_from("new"), 100.1 + ALIVE_S, ALIVE_S) == "admit"


def test_time_that_the_server_slept_is_given_again_once() -> None:
    sessions = contested()
    sessions.tick(112.0 + STALL_S + 0.1)
    assert sessions.admission(hello_from("new"), 114.0, ALIVE_S) == "wait"
    assert sessions.next_deadline() == pytest.approx(112.0 + STALL_S + 0.1 + CHALLENGE_S)
    sessions.tick(sessions.next_deadline())
    sessions.tick(200.0)
    assert sessions.admission(hello_from("new"), 116.0, ALIVE_S) == "admit", "an answer that is over stays over"


def test_a_late_tick_within_the_tolerance_ends_the_question() -> None:
    sessions = contested()
    sessions.tick(112.0 + STALL_S)
    assert sessions.admission(hello_from("new"), 113.0, ALIVE_S) == "admit"


@pytest.mark.parametrize("end", ["drop", "forget"])
def test_a_question_ends_with_its_session(end: str) -> None:
    sessions = contested()
    if end == "drop":
        sessions.drop("n1")
        sessions.open(hello_from("old"), b"r", "s2", 110.5)
    else:
        sessions.forget_challenges()
    assert sessions.next_deadline() == NEVER
    assert sessions.admission(hello_from("new"), 111.0, ALIVE_S) == "ask"
