"""A report that would take long is looked at in parts, and what nobody knows costs little: others wait meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from chimed.core.agents import copies
from chimed.core.rules import alarms
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from tests.fakes.names import key_of, uuid_of
from tests.fakes.rows import change, vm
from tests.unit.server.world import World
from wire import messages as m
from wire.types import Observed

MANY = 4 * copies.OTHERS_AT_ONCE


@pytest.fixture
def world() -> World:
    """n1 owns many VMs."""
    world = World("n1", "n2")
    world.store.commit([change(r.Node(name="n1", public_key=key_of("n1"), revision=MANY))])
    world.store.commit([change(vm(f"vm-{i:04}", "n1", revision=1 + i)) for i in range(MANY)])
    world.crash()
    world.start()
    return world


def claims(world: World, count: int = MANY) -> tuple[m.VmReport, ...]:
    """That they run there, as a node says that has nothing to do with them."""
    owned = sorted(row.uuid for row in world.tables().vms)[:count]
    return tuple(m.VmReport(uuid=uuid, epoch=1, revision=0, observed=Observed.RUNNING) for uuid in owned)


def deliver(world: World, *vms: m.VmReport) -> list[tuple[int, int]]:
    """A report of n2 with a shell that measures: rows and lines of each turn until nothing is due."""
    agent, turns = world.agents["n2"], []
    agent.report_seq += 1
    body = m.Report(
        session=agent.session or "", seq=agent.report_seq, revision=0, generation=world.tables().meta.generation,
        digest="x", full=True, vms=vms,
    )  # fmt: skip
    events: list[fx.Event] = [fx.Received(key_of("n2"), agent.route, body, "", lambda: "")]
    while True:
        for event in events:
            world.core.handle(event, world.now)
        world.core.flush()
        changes, lines = world.core.tables.changes()
        world.store.commit(changes, lines)
        world.core.tables.committed()
        turns.append((len(changes), len(lines)))
        if world.core.next_deadline() > world.now:
            return turns
        events = [fx.Tick()]


def told_to_end(world: World) -> set[str]:
    return {row.uuid for row in world.tables().releases.by("node", "n2")}


def test_h6_claims_to_many_vms_of_others_are_looked_at_in_parts(world: World) -> None:
    turns = deliver(world, *claims(world))
    assert len(turns) == 4 and all(len(part) == 2 for part in turns)
    assert max(rows for rows, _ in turns) < 3 * copies.OTHERS_AT_ONCE
    assert told_to_end(world) == {row.uuid for row in world.tables().vms}
    assert all(event.of_node for _, event in world.disk.events if event.action == "alarm-raised")


def test_h6_parts_of_a_report_count_for_its_node(world: World) -> None:
    deliver(world, *claims(world))
    bucket = world.core._overuse._changes["n2"]
    assert world.policy.node_changes_burst - bucket.room(world.now) > 3 * MANY


def test_h6_a_part_that_could_not_be_saved_is_looked_at_again(world: World) -> None:
    agent = world.agents["n2"]
    agent.report(vms=claims(world))  # with one part in the tick of the same turn
    assert len(told_to_end(world)) == 2 * copies.OTHERS_AT_ONCE
    world.disk.fault = "disk full"
    world.turn()
    assert world.core.ctx.read_only and world.core.next_deadline() > world.now
    world.recover_storage()
    while world.core.next_deadline() <= world.now:
        world.turn()
    assert told_to_end(world) == {row.uuid for row in world.tables().vms}


def test_h6_what_is_left_ends_with_the_session(world: World) -> None:
    agent = world.agents["n2"]
    agent.report(vms=claims(world))
    assert world.core.sessions.unsettled()
    agent.say(m.Bye(session=agent.session or ""))
    assert not world.core.sessions.unsettled()
    world.core.undo()  # of a turn that took some of it
    assert not world.core.sessions.unsettled()


def test_e7_nothing_is_left_for_later_while_the_server_recovers(world: World) -> None:
    world.restore({name: dict(rows) for name, rows in world.disk.tables.items()})
    assert world.agents["n2"].connect() and world.tables().meta.recovering
    [_] = deliver(world, *claims(world))
    assert not world.core.sessions.unsettled()


def test_h6_vms_that_nobody_knows_cost_no_more_than_their_alarms(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[str] = []
    whole = copies._settle

    def counted(facts: Any, session: Any, uuid: str, all_heard: Any) -> None:
        settled.append(uuid)
        whole(facts, session, uuid, all_heard)

    monkeypatch.setattr(copies, "_settle", counted)
    strays = [
        [m.VmReport(uuid=uuid_of(f"{n}-{i}"), epoch=1, revision=0, observed=Observed.RUNNING) for i in range(1000)]
        for n in range(2)
    ]
    deliver(world, *strays[0])
    assert len(settled) == alarms.UNKNOWN_MAX == len(world.alarms())
    settled.clear()
    deliver(world, *strays[1])
    assert len(settled) <= 2 * alarms.UNKNOWN_MAX
    assert len(world.alarms()) == alarms.UNKNOWN_MAX
    assert {subject for _, subject in world.alarms()} <= {row.uuid for row in strays[1]}, "the old ones are over"


def test_h6_vms_that_two_nodes_invent_raise_no_more_alarms_either(world: World) -> None:
    strays = [m.VmReport(uuid=uuid_of(f"{i}"), epoch=1, revision=0, observed=Observed.RUNNING) for i in range(300)]
    world.agents["n1"].report(vms=tuple(strays))
    deliver(world, *strays)
    assert len([code for code, _ in world.alarms() if code == "vm-unknown"]) == alarms.UNKNOWN_MAX


def test_h6_lines_about_the_end_of_vm_alarms_are_of_nodes_whatever_ended_them(world: World) -> None:
    deliver(world, *claims(world, 5))
    world.agents["n2"].up = False
    world.do(m.NodeDrain, name="n2")
    world.run(300.0)
    ended = [event for _, event in world.disk.events if event.action == "alarm-cleared" and "misplaced" in event.text]
    assert all(event.of_node for event in ended)


def test_a_part_of_a_turn_is_undone_alone_and_remembers_what_was_before_the_turn() -> None:
    tables = World("n1").tables()
    tables.nodes.put(r.Node(name="a", public_key="ka"))
    with pytest.raises(ZeroDivisionError), tables.part():
        tables.nodes.put(r.Node(name="a", public_key="kb"))
        tables.nodes.put(r.Node(name="b", public_key="kc"))
        raise ZeroDivisionError
    assert tables.nodes.get("b") is None
    with tables.part():
        tables.nodes.put(r.Node(name="a", public_key="kd"))
        tables.nodes.put(r.Node(name="c", public_key="ke"))
    changed = {key: getattr(row, "public_key", "") for _, key, row in tables.changes()[0]}
    assert changed == {("a",): "kd", ("c",): "ke"}
    tables.rollback()
    assert tables.nodes.get("a") is None and tables.nodes.get("c") is None
