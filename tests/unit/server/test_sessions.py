"""Who may speak, and when: keys, roles, sessions, replays, copied keys."""

from __future__ import annotations

import pytest

from chimed.core import effects as fx
from tests.tools.samples import sample
from tests.unit.server.world import Refused, World, key_of, uuid_of
from wire import messages as m
from wire.errors import ChimeError
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
    assert world.saved() == before


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
