"""A database that is behind: put back by a copy, forked, made anew, or reverted with its server (E4, E5, E6).

It decides nothing until it has recovered from what the nodes have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chimed.core.rules import behind
from chimed.core.state import rows as r
from chimed.core.state.mark import Mark
from tests.unit.server.migration.steps import migrate, owner, state
from tests.unit.server.world import SEAL_KEY, Refused, World, running, seal_of, uuid_of
from wire import messages as m
from wire import seals

WEB = uuid_of("web")
OTHER_KEY = seals.key_from("the secret key of another server")


@pytest.fixture
def world() -> World:
    """Three nodes, and the VM `web` that runs on n1."""
    return running("n1", "n2", "n3")


def point(world: World, node: str = "n2", key: bytes = SEAL_KEY, to: str = "", **fields: Any) -> m.Point:
    """What this server has given the node, changed; with the seal for it. `to`: whose it is."""
    meta, row = world.tables().meta, world.tables().nodes.get(node)
    assert row is not None
    values: dict[str, Any] = {
        "history": meta.history, "generation": meta.generation, "life": world.core.ctx.life, "revision": row.revision,
        **fields,
    }  # fmt: skip
    return m.Point(**{"seal": seals.of_point(key, to or node, **values), **values})


def is_behind(world: World) -> bool:
    meta = world.tables().meta
    assert meta.holding or not meta.behind
    assert (("server-behind", behind.SERVER) in world.alarms()) is meta.behind
    assert bool(world.ask(m.ServerStatus())["behind"]) is meta.behind
    return meta.behind


def hears(world: World, shown: m.Point, node: str = "n2") -> m.Base | None:
    """The node's agent starts anew and shows that point."""
    world.agents[node].newest = shown
    return world.agents[node].hello()


def newer(world: World, node: str = "n2") -> m.Point:
    """More than the database has given it."""
    return point(world, node, revision=point(world, node).revision + 1)


# --- points -----------------------------------------------------------------------------------------------------------

NEWER = {
    "a higher generation": ({"generation": 2}, "is of 1"),
    "a much higher generation in another history": ({"generation": 9, "history": "x", "revision": 0}, "is of 1"),
    "another history": ({"history": "x"}, "another history with the same generation 1"),
    "another history and less": ({"history": "x", "revision": 0}, "another history with the same generation 1"),
}
OLDER: dict[str, dict[str, Any]] = {
    "what it has": {},
    "a lower revision": {"revision": 0},
    "a lower revision of another life": {"revision": 0, "life": "another"},
}


@pytest.mark.parametrize("case", NEWER)
def test_e4_a_point_that_is_newer_shows_that_the_database_is_behind(world: World, case: str) -> None:
    fields, text = NEWER[case]
    assert isinstance(hears(world, point(world, **fields)), m.Welcome), "so that the node is heard"
    assert is_behind(world) and text in world.tables().meta.ahead_text
    assert world.tables().meta.ahead == fields.get("generation", 1)


@pytest.mark.parametrize("case", OLDER)
def test_e4_a_point_that_is_not_newer_shows_nothing(world: World, case: str) -> None:
    hears(world, point(world, **OLDER[case]))
    assert not is_behind(world) and world.alarms() == []


def test_e4_a_point_of_a_generation_before_shows_nothing(world: World) -> None:
    old = point(world, revision=1000)
    world.restore(world.saved())
    hears(world, old)
    assert not is_behind(world) and world.tables().meta.recovering


def test_e4_in_this_life_a_revision_is_known_as_soon_as_it_was_given(world: World) -> None:
    world.do(m.NodeDisable, name="n2")
    world.settle()
    hears(world, point(world))
    assert not is_behind(world)
    hears(world, newer(world))
    assert is_behind(world)
    given = point(world).revision
    text = f"n2 has an inventory of revision {given + 1}, and this database has given it {given}"
    assert world.tables().meta.ahead_text == text


def test_e4_the_same_revision_of_another_life_is_another_inventory(world: World) -> None:
    """Two processes with copies of one database have given the node different things under one number."""
    given = point(world, "n2")
    hears(world, point(world, life="another", revision=given.revision - 1))
    assert not is_behind(world), "what came before may be of any life"
    hears(world, point(world, life="another"))
    assert is_behind(world)
    text = f"n2 has another inventory of revision {given.revision} than this database has given it"
    assert world.tables().meta.ahead_text == text


def test_e4_what_was_given_counts_and_not_what_was_made_since(world: World) -> None:
    """The database was put back, and has gone on while the node was away: by number it has more than the node."""
    given = point(world, "n2")
    world.agents["n2"].power_off()
    for kind in (m.NodeDisable, m.NodeEnable) * 3:
        world.do(kind, name="n2")
    world.crash()
    row = world.tables().nodes.get("n2")
    assert row is not None and row.revision > given.revision + 1 and row.given == given.revision
    hears(world, point(world, revision=given.revision + 1))
    assert is_behind(world)


def test_e4_a_node_that_was_added_again_is_not_ahead_by_what_it_had_before(world: World) -> None:
    world.tables().nodes.put(r.Node(name="n9", public_key="k9", revision=9, given=8))
    node = world.tables().nodes.get("n9")
    assert node is not None
    for revision, is_newer in ((7, False), (9, True)):
        told = behind.newer(world.core.ctx, node, point(world, "n9", life="another", revision=revision))
        assert bool(told) is is_newer


LIES = {
    "of another key": {"key": OTHER_KEY},
    "of another node": {"to": "n1"},
    "none": {"seal": ""},
    "no ASCII": {"seal": "\N{LATIN SMALL LETTER E WITH ACUTE}"},
}


@pytest.mark.parametrize("case", LIES)
def test_h4_a_point_with_a_wrong_seal_is_a_lie_and_moves_nothing(world: World, case: str) -> None:
    given = {**LIES[case]}
    seal = given.pop("seal", None)
    shown = point(world, generation=7, **given)
    if seal is not None:
        shown = msgspec.structs.replace(shown, seal=seal)
    assert isinstance(hears(world, shown), m.Welcome)
    assert world.alarms() == [("false-word", "n2")] and not world.tables().meta.holding
    world.agents["n2"].newest = None
    world.agents["n2"].start()
    world.run(120)
    assert world.alarms() == [], "it has not been said again for a while"


@pytest.mark.parametrize("field", ["history", "generation", "life", "revision"])
def test_h4_each_part_of_a_point_is_sealed(world: World, field: str) -> None:
    changed: Any = 9 if field in ("generation", "revision") else "x"
    shown = msgspec.structs.replace(point(world), **{field: changed})
    assert not behind.is_sealed(world.core.ctx, "n2", shown)
    assert behind.is_sealed(world.core.ctx, "n2", point(world, **{field: changed}))


def test_what_is_given_is_sealed_page_by_page(world: World) -> None:
    """Also when the pages after it never come."""
    for page in world.agents["n1"].pull(since=0):
        given = m.Point(
            history=page.history, generation=page.generation, life=page.life, revision=page.revision, seal=page.seal
        )
        assert behind.is_sealed(world.core.ctx, "n1", given)
        assert behind.newer(world.core.ctx, world.tables().nodes.get("n1"), given) == ""  # type: ignore[arg-type]


# --- what follows at once ---------------------------------------------------------------------------------------------


def test_e4_every_agent_is_told_and_says_hello_again(world: World) -> None:
    """What the others were told, and have said, was in a time that is undone."""
    answer = hears(world, newer(world))
    assert isinstance(answer, m.Welcome) and "server-behind" in world.actions(behind.SERVER)
    assert any(line.startswith("this database is behind: n2 has an inventory") for line in world.logs)
    assert world.core.sessions.get("n2") is not None
    assert world.core.sessions.get("n1") is None and world.core.sessions.get("n3") is None
    with pytest.raises(Refused, match="stale-session"):
        world.agents["n1"].say(world.agents["n1"].heartbeat(seq=99))


def test_e4_agents_in_session_are_poked(world: World) -> None:
    """By what another node says of a VM: its own session goes on."""
    world.agents.pop("n3").power_off()
    world.run(60)
    for agent in world.agents.values():
        agent.poked = False
    behind.noted(world.core.ctx, 1, "it is so")
    world.turn()
    assert all(agent.poked for agent in world.agents.values())
    for agent in world.agents.values():
        assert all(page.node.hold for page in agent.pull(since=0))


def test_e4_what_is_known_already_is_not_told_again(world: World) -> None:
    world.agents["n3"].power_off()
    world.run(60)
    ctx = world.core.ctx
    for generation, text, kept in ((2, "a", "a"), (1, "b", "a"), (2, "c", "a"), (3, "d", "d")):
        behind.noted(ctx, generation, text)
        assert world.tables().meta.ahead_text == kept
    world.turn()
    assert world.actions(behind.SERVER).count("server-behind") == 1
    (alarm,) = [a for a in world.ask(m.AlarmList())["items"] if a["code"] == "server-behind"]
    assert "this database is behind: d: nothing is started" in alarm["text"] and alarm["severity"] == "critical"


@pytest.fixture
def held(world: World) -> World:
    """n3 is off, so that not everybody is heard; n2 shows that the database is behind."""
    world.do(m.VmStop, vm="web")
    world.settle()
    world.agents["n3"].power_off()
    world.run(60)
    shown = newer(world)
    world.agents["n2"].newest = shown
    world.agents["n2"].start()
    world.run(30)
    assert is_behind(world)
    return world


def test_e4_while_behind_nothing_is_started_moved_or_reboot(held: World) -> None:
    before = held.saved()
    refused: list[tuple[type[m.Mutation], dict[str, Any]]] = [
        (m.VmStart, {"vm": "web"}),
        (m.VmMigrate, {"vm": "web", "to": "n2"}),
        (m.NodeRebuild, {"name": "n3"}),
        (m.VmCreate, {"name": "new", "uuid": uuid_of("new"), "spec": m.VmSpec(vcpus=1, memory_mib=64)}),
    ]
    for kind, fields in refused:
        error = held.refuse(kind, **fields)
        assert error.code == "recovering" and held.tables().meta.ahead_text in error.message, kind
    held.run(60)
    assert held.saved()["vms"] == before["vms"] and not held.agents["n1"].running
    assert held.agents["n1"].order.hold


def test_e4_while_behind_nothing_is_stopped(world: World) -> None:
    world.agents["n3"].power_off()
    world.run(60)
    hears(world, newer(world))
    world.run(30)
    assert world.refuse(m.VmStop, vm="web").code == "recovering"
    assert world.refuse(m.NodeDrain, name="n1").code == "recovering"
    world.run(60)
    assert world.agents["n1"].running == {WEB} and is_behind(world)


def test_e4_an_attempt_that_has_left_waits_for_the_recovery(world: World) -> None:
    """What its source says now may be undone in the time that this database does not know."""
    answer = migrate(world)
    world.agents["n3"].power_off()
    world.run(60)
    hears(world, newer(world, "n2"))
    agent = world.agents["n1"]
    agent.start()
    agent.leave(WEB)
    agent.report()
    assert owner(world)[0] == "n1" and state(world, answer)[0] == "running"


# --- the recovery -----------------------------------------------------------------------------------------------------


def test_e4_the_recovery_begins_when_every_node_is_heard_and_not_before(held: World) -> None:
    assert held.ask(m.ServerStatus())["waiting_for"] == ["n3"]
    assert held.tables().meta.generation == 1 and "recovery-begun" not in held.actions(behind.SERVER)
    held.agents["n3"].boot = uuid_of("n3 boots")
    with pytest.raises(Refused, match="the server begins a recovery"):
        held.agents["n3"].hello()
    meta = held.tables().meta
    assert (meta.generation, meta.behind, meta.waiting_for) == (2, False, ("n1", "n2", "n3")) and meta.history
    assert not is_behind(held) and "recovery-begun" in held.actions(behind.SERVER)
    assert not any(held.core.sessions.get(name) for name in held.agents), "agents say hello to the new generation"
    held.agents["n3"].start()
    held.run(60)
    assert not held.tables().meta.holding and held.ask(m.ServerStatus())["waiting_for"] == []
    assert {agent.generation for agent in held.agents.values()} == {2}


def test_e4_the_generation_goes_above_all_that_was_shown(held: World) -> None:
    held.agents["n1"].newest = point(held, "n1", generation=5, history="f")
    held.agents["n1"].hello()
    assert held.tables().meta.ahead == 5
    held.agents["n3"].boot_again()
    held.run(60)
    assert held.tables().meta.generation == 6 and held.tables().meta.history != "f"


def test_e4_another_begins_it_and_the_word_is_recorded(held: World) -> None:
    text = held.tables().meta.ahead_text
    dry = held.ask(m.RecoveryConfirm(key="dry", comment="the other is off", dry_run=True))
    assert held.tables().meta.generation == 1 and text in dry["plan"][0] and "no other chimed" in dry["plan"][1]
    assert held.do(m.RecoveryConfirm, comment="the other is off")["plan"] == dry["plan"]
    meta = held.tables().meta
    assert (meta.generation, meta.behind, meta.waiting_for) == (2, False, ("n1", "n2", "n3"))
    assert "recovery-confirmed" in held.actions(behind.SERVER)
    held.run(60)
    assert held.ask(m.ServerStatus())["waiting_for"] == ["n3"], "then it waits as after a restore"
    held.do(m.RecoveryConfirm, comment="n3 burnt down")
    held.run(30)
    assert not held.tables().meta.holding


def test_e4_it_is_behind_after_a_crash_too(held: World) -> None:
    text, history = held.tables().meta.ahead_text, held.tables().meta.history
    held.crash()
    assert held.tables().meta.behind and held.tables().meta.ahead_text == text
    held.start("n1", "n2")
    assert is_behind(held) and held.agents["n1"].order.hold
    held.crash()
    held.agents["n1"].start()
    held.agents["n3"].boot_again()
    assert held.tables().meta.generation == 1, "n2 was not heard by this life"
    held.agents["n2"].start()
    held.run(60)
    assert held.tables().meta.generation == 2 and held.tables().meta.history not in ("", history)
    assert not is_behind(held)


def test_e4_a_node_that_is_lost_again_is_not_heard(held: World) -> None:
    held.agents["n2"].power_off()
    held.run(60)
    held.agents["n3"].boot_again()
    held.run(30)
    assert held.tables().meta.generation == 1 and held.ask(m.ServerStatus())["waiting_for"] == ["n2"]
    held.agents["n2"].boot_again()
    held.run(60)
    assert held.tables().meta.generation == 2


def test_e4_the_begin_is_a_turn_that_can_fail(held: World) -> None:
    """Nothing of it has happened then, and it begins when changes can be recorded."""
    held.disk.fault = "disk full"
    held.agents["n3"].boot_again()
    assert held.tables().meta.generation == 1 and held.tables().meta.behind
    held.recover_storage()
    held.run(90)
    assert held.tables().meta.generation == 2 and not held.tables().meta.holding


def test_e4_a_node_that_is_heard_again_needs_no_hello(held: World) -> None:
    """Its heartbeats were late when the last of the others said hello."""
    held.deaf.add("n2")
    held.run(60)
    assert held.ask(m.ServerStatus())["waiting_for"] == ["n2", "n3"]
    held.agents["n3"].boot_again()
    assert held.ask(m.ServerStatus())["waiting_for"] == ["n2"]
    session = held.agents["n2"].session
    held.deaf.clear()
    held.agents["n2"].beat()
    assert session is not None and held.tables().meta.generation == 2
    held.run(60)
    assert not held.tables().meta.holding


def test_e4_a_node_that_may_know_better_is_not_removed_without_a_word(world: World) -> None:
    world.agents["n3"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n3", evidence="operator", comment="it burnt down")
    hears(world, newer(world))
    assert is_behind(world) and world.refuse(m.NodeEnable, name="n3").code == "recovering"
    assert world.refuse(m.NodeRemove, name="n3").code == "recovering"
    world.do(m.RecoveryConfirm, comment="no other server runs")
    world.run(30)
    assert world.tables().meta.waiting_for == ("n3",) and world.refuse(m.NodeRemove, name="n3").code == "recovering"
    world.do(m.RecoveryConfirm, comment="n3 burnt down")
    world.run(60)
    assert world.tables().meta.generation == 2 and not world.tables().meta.holding
    world.do(m.NodeDrain, name="n3", evidence="operator", comment="it burnt down")
    world.settle()
    world.do(m.NodeRemove, name="n3")


def test_e4_one_node_alone_is_enough_when_its_report_shows_it() -> None:
    world = running("n1")
    agent = world.agents["n1"]
    epoch = owner(world)[1] + 1
    agent.held[WEB] = msgspec.structs.replace(agent.held[WEB], epoch=epoch, seal=seal_of(WEB, epoch, "n1"))
    agent.highest[WEB] = epoch
    agent.report()
    world.run(60)
    assert world.tables().meta.generation == 2 and not world.tables().meta.holding
    assert owner(world) == ("n1", epoch) and agent.running == {WEB}


# --- the mark beside the database ------------------------------------------------------------------------------------


def put_back_unheard(world: World) -> None:
    """The database of then is put back by a copy, and the mark beside it stays; nobody who knows better is heard."""
    saved, turn = world.saved(), world.disk.turn
    _rebuild(world)
    world.deaf |= {"n2", "n3"}
    world.run(60)
    world.disk.turn = turn
    world.put_back(saved)


def test_e4_the_mark_tells_before_anybody_is_heard(world: World) -> None:
    put_back_unheard(world)
    world.turn()
    assert is_behind(world) and "changes were saved in its place" in world.ask(m.ServerStatus())["behind"]
    world.agents["n1"].boot_again()
    world.run(200)
    assert not world.agents["n1"].running
    world.deaf.clear()
    world.run(120)
    assert not world.tables().meta.holding and world.tables().meta.generation == 2
    assert owner(world)[0] != "n1" and not is_behind(world)


def test_e4_what_the_mark_tells_is_noted_when_it_can_be_saved(world: World) -> None:
    put_back_unheard(world)
    world.disk.fault = "disk full"
    world.agents["n1"].boot_again()
    world.run(200)
    assert not world.agents["n1"].running and not is_behind(world)
    world.recover_storage()
    world.run(200)
    assert is_behind(world) and not world.agents["n1"].running


def test_e4_who_begins_anew_while_nothing_can_be_recorded_is_heard_and_given_nothing(world: World) -> None:
    """Its agent has lost its state in the same boot. Once that can be recorded it waits like everybody."""
    world.crash()
    world.disk.fault = "disk full"
    agent = world.agents["n1"]
    agent.newest = None
    world.turn()
    assert agent.connect(), "it is heard"
    with pytest.raises(Refused) as refusal:
        agent.pull(0)
    assert refusal.value.code == "storage-unavailable"
    world.recover_storage()
    assert agent.pull(0)[0].node.hold, "nobody else has reported yet"
    for name in ("n2", "n3"):
        world.agents[name].connect()
        world.agents[name].sync(full=True)
    agent.sync(full=True)
    world.run(5)
    assert not agent.order.hold and not world.tables().nodes.by("fresh", True)


def test_e4_the_mark_tells_after_each_start_until_a_recovery(world: World) -> None:
    put_back_unheard(world)
    world.turn()
    world.crash()
    world.run(5)
    assert is_behind(world)
    world.deaf.clear()
    world.agents["n1"].boot_again()
    world.run(120)
    assert world.tables().meta.generation == 2
    world.crash()
    world.run(60)
    assert not is_behind(world) and world.tables().meta.generation == 2


# --- whole stories ----------------------------------------------------------------------------------------------------


def _rebuild(world: World) -> None:
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.agents["n2"].running | world.agents["n3"].running == {WEB}


def _put_back(world: World) -> None:
    saved = world.saved()
    _rebuild(world)
    world.put_back(saved)


def _restored_twice(world: World) -> None:
    saved = world.saved()
    world.restore(saved, "one")
    world.start()
    world.run(30)
    _rebuild(world)
    world.disk.tables["meta"][()], world.disk.noted = saved["meta"][()], Mark()  # the first new machine is lost
    world.restore(saved, "two")
    world.disk.tables["meta"][()] = msgspec.structs.replace(
        world.disk.tables["meta"][()], waiting_for=()  # type: ignore[arg-type]
    )
    world.crash()


STORIES: dict[str, Callable[[World], None]] = {
    "e4-put-back-by-a-copy": _put_back,
    "e6-the-same-backup-restored-twice": _restored_twice,
}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("order", [("n1", "n2", "n3"), ("n3", "n2", "n1"), ("n2", "n1", "n3")])
def test_what_runs_goes_on_and_the_old_owner_starts_nothing(world: World, story: str, order: tuple[str, ...]) -> None:
    STORIES[story](world)
    there = next(name for name in ("n2", "n3") if world.agents[name].running)
    for name in order:
        if name == "n1":
            world.agents[name].boot_again()
        world.run(20)
    world.run(120)
    assert not world.tables().meta.holding and owner(world)[0] == there
    assert {name for name, agent in world.agents.items() if agent.running} == {there}
    assert not is_behind(world)


def test_e4_what_the_old_rows_want_waits_for_a_person_as_after_a_restore(world: World) -> None:
    """When the database that was put back was saved, web was stopped and n2 drained."""
    world.create("db", "n2")
    world.do(m.VmStop, vm="web")
    world.do(m.NodeDrain, name="n2")
    world.settle()
    saved = world.saved()
    world.do(m.VmStart, vm="web")
    world.do(m.NodeEnable, name="n2")
    world.settle()
    runs = {name: set(agent.running) for name, agent in world.agents.items()}
    assert runs["n1"] == {WEB} and runs["n2"] == {uuid_of("db")}
    world.put_back(saved)
    world.run(180)
    assert world.tables().meta.generation == 2 and not world.tables().meta.holding
    assert {name: agent.running for name, agent in world.agents.items()} == runs
    status = world.ask(m.ServerStatus())
    assert [vm["name"] for vm in status["held_vms"]] == ["web"] and status["held_nodes"] == ["n2"]
    assert ("recovery-held", behind.SERVER) in world.alarms()


# --- revisions that were never given ----------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [0, 1])
def test_e4_a_heartbeat_with_a_revision_that_was_never_given_ends_the_session(world: World, above: int) -> None:
    """The process was reverted with its memory: the agent says hello again, and shows its point."""
    agent = world.agents["n2"]
    agent.seq += 1
    beat = agent.heartbeat(revision=point(world).revision + above)
    if above:
        with pytest.raises(Refused, match="stale-session: that revision was not given by this database"):
            agent.say(beat)
    else:
        assert isinstance(agent.say(beat), m.HeartbeatAck)


@pytest.mark.parametrize("above", [0, 1])
def test_e4_a_report_with_a_revision_that_was_never_given_is_not_heard(world: World, above: int) -> None:
    agent = world.agents["n1"]
    agent.running.clear()
    agent.stuck = True
    if above:
        with pytest.raises(Refused, match="stale-session: that revision was not given by this database"):
            agent.report(revision=point(world, "n1").revision + above)
    else:
        agent.report(revision=point(world, "n1").revision)
    assert world.vm("web")["observed"] == ("running" if above else "stopped")


def test_e4_a_server_that_is_reverted_with_its_memory_is_behind(world: World) -> None:
    """The same life goes on with the tables of then: the next heartbeat ends the session, the hello shows the point."""
    world.agents["n3"].power_off()
    world.run(60)
    saved = world.saved()
    world.do(m.NodeDisable, name="n2")
    world.settle()
    for key, row in saved["nodes"].items():
        world.disk.tables["nodes"][key] = row
        world.tables().nodes.put(row)  # type: ignore[arg-type]
    world.tables().committed()
    world.revisions.clear()
    world.run(40)
    assert is_behind(world) and world.tables().meta.ahead_text.startswith("n2 has an inventory of revision")
