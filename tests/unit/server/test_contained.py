"""An exception in one message, operation, VM or node fails that one, never the server (design rule 15, H2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chimed.core.agents import copies
from chimed.core.agents.health import AGAIN_S
from chimed.core.rules import alarms, placement
from chimed.core.work import progress
from tests.fakes.names import uuid_of
from tests.unit.server.world import Refused, World, running
from wire import messages as m
from wire.types import Observed


def _trip(*_: object, **__: object) -> Any:
    raise ValueError("a bug that was put in")


def _lost(world: World, node: str) -> None:
    world.agents[node].power_off()
    world.run(60.0)


def test_h2_an_operation_that_trips_fails_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = running("n1", "n2")
    world.may_trip = True
    _lost(world, "n1")
    world.do(m.NodeDrain, name="n1", evidence="operator")
    before = placement.choose
    monkeypatch.setattr(placement, "choose", lambda *_: placement.Choice(None, {}))
    answer = world.do(m.NodeRebuild, name="n1")
    monkeypatch.setattr(placement, "choose", _trip)
    world.run(3.0)
    op = world.op(answer)
    assert op["state"] == "failed" and op["outcome"].startswith("internal: ")
    assert world.vm("web")["node"] == "n1" and world.node("n1")["operation"] is None
    assert any("a bug that was put in" in line for line in world.logs)
    world.crash()
    world.start("n2")
    monkeypatch.setattr(placement, "choose", before)
    world.do(m.NodeRebuild, name="n1", evidence="operator")
    world.run(60)
    assert world.vm("web")["node"] == "n2"


@pytest.mark.parametrize("part", ["overdue", "concerns"])
def test_h2_every_part_of_an_operation_is_contained(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    world = running("n1", "n2")
    world.may_trip = True
    answer = world.do(m.VmMigrate, vm="web", to="n2")
    monkeypatch.setattr(progress, part, _trip)
    world.agents["n1"].report()
    world.run(700.0)
    assert world.node("n1")["health"] == "normal"
    assert world.op(answer)["state"] == "running", "it ends when its migration is decided"
    world.agents["n1"].stay(uuid_of("web"), "the target refused")
    world.agents["n1"].report()
    world.run(20.0)
    assert world.op(answer)["state"] == "failed"


def test_h2_an_operation_with_an_open_migration_rests_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = running("n1", "n2")
    world.may_trip = True
    answer = world.do(m.VmMigrate, vm="web", to="n2")
    world.settle()
    monkeypatch.setitem(progress._PROGRESS, "migrate", _trip)
    tripped = world.core.ctx.counters["internal-errors"]
    world.run(30.0)
    assert 1 <= world.core.ctx.counters["internal-errors"] - tripped <= 4
    world.agents["n1"].stay(uuid_of("web"), "the target refused")
    world.agents["n1"].report()
    world.run(20.0)
    assert world.op(answer)["outcome"].startswith("internal: ")


def test_h2_what_was_done_before_the_exception_is_undone() -> None:
    world = running("n1")
    world.may_trip = True
    ctx, tables = world.core.ctx, world.core.tables
    vm = tables.vms.get(uuid_of("web"))
    assert vm is not None

    def half() -> None:
        ctx.audit("op", "half", "n1")
        ctx.bump("n1")
        tables.vms.delete(vm)
        ctx.log("info", "half done")
        raise ValueError("then it trips")

    before = world.saved()
    ctx.bump("n1")
    assert not ctx.contained("half", half)
    world.turn()
    after = world.saved()
    assert after["vms"] == before["vms"] and "half" not in world.actions()
    assert after["nodes"][("n1",)].revision == before["nodes"][("n1",)].revision + 1  # type: ignore[attr-defined]
    assert "half done" not in world.logs


@pytest.mark.parametrize(("module", "name"), [(copies, "_look"), (alarms, "sync_vm")])
def test_h2_a_vm_that_trips_does_not_cost_the_report(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    world = running("n1")
    world.create("db", "n1")
    world.may_trip = True
    real: Callable[..., object] = getattr(module, name)
    web = uuid_of("web")

    def sometimes(facts: Any, second: Any, *rest: Any) -> Any:
        return _trip() if web in (second, getattr(second, "uuid", "")) else real(facts, second, *rest)

    monkeypatch.setattr(module, name, sometimes)
    world.agents["n1"].running.clear()
    world.agents["n1"].stuck = True
    assert isinstance(world.agents["n1"].report(), m.ReportAck)
    assert world.vm("db")["observed"] == Observed.STOPPED


def test_h2_a_node_that_trips_is_tried_again_and_the_others_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("n1", "n2", "n3", "n4")
    world.start()
    world.may_trip = True
    real, tripping = alarms.node_alarms, True

    def sometimes(node: Any, *rest: Any) -> Any:
        return _trip() if tripping and node.name == "n1" else real(node, *rest)

    monkeypatch.setattr(alarms, "node_alarms", sometimes)
    world.agents["n1"].power_off()
    world.agents["n2"].power_off()
    world.run(60.0)
    assert ("node-unreachable", "n2") in world.alarms() and ("node-unreachable", "n1") not in world.alarms()
    tripping = False
    world.run(AGAIN_S + 1.0)
    assert ("node-unreachable", "n1") in world.alarms()


def test_h2_a_node_that_is_removed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("n1", "n2")
    world.start()
    world.may_trip = True
    monkeypatch.setattr(alarms, "node_alarms", _trip)
    world.agents["n1"].power_off()
    world.run(60.0)
    monkeypatch.undo()
    world.do(m.NodeDrain, name="n1", evidence="operator")
    world.do(m.NodeRemove, name="n1")
    world.run(2 * AGAIN_S)
    with pytest.raises(Refused):
        world.node("n1")
