"""What the tests of migration do and ask again and again."""

from __future__ import annotations

from typing import Any

from tests.unit.server.world import World, uuid_of
from wire import messages as m


def migrate(world: World, vm: str = "web", to: str | None = "n2", **fields: Any) -> Any:
    """Asked for, and known to the source."""
    answer = world.do(m.VmMigrate, vm=vm, to=to, **fields)
    world.settle()
    return answer


def attempt(world: World, vm: str = "web") -> str:
    row = world.tables().migrations.get(uuid_of(vm))
    assert row is not None
    return row.attempt


def leave(world: World, source: str = "n1", target: str = "n2", vm: str = "web", observed: str = "running") -> None:
    """It has left and was handed over; nobody has told the server yet."""
    uuid = uuid_of(vm)
    said = world.agents[source].said[uuid]
    world.agents[target].arrive(uuid, world.agents[source].held[uuid].epoch, said.attempt, observed)
    world.agents[source].leave(uuid)


def leave_alone(world: World, where: str) -> None:
    """It has left n1 for `where` by an order on the node; nobody has told the server yet."""
    uuid = uuid_of("web")
    world.agents["n1"].begin_alone(uuid, "alone", where)
    world.agents["n1"].leave(uuid)


def fail_alone(world: World, where: str) -> None:
    """An order on n1 to migrate it to `where` has failed; nobody has told the server yet."""
    uuid = uuid_of("web")
    world.agents["n1"].begin_alone(uuid, "alone", where)
    world.agents["n1"].stay(uuid, "the target's answer was lost")


def said(world: World, name: str) -> None:
    """The node says how things are there, and everybody follows."""
    world.agents[name].report()
    world.settle()


def owner(world: World, vm: str = "web") -> tuple[str, int]:
    row = world.tables().vms.get(uuid_of(vm))
    assert row is not None
    return row.node, row.epoch


def state(world: World, answer: Any) -> tuple[str, str]:
    op = world.op(answer)
    return op["state"], op["outcome"]


def waiting(world: World) -> Any:
    """An evacuation of n1 whose step for web has to wait."""
    world.do(m.NodeDisable, name="n2")
    world.do(m.NodeDisable, name="n3")
    answer = world.do(m.NodeEvacuate, name="n1")
    assert "n2 is disabled" in world.op(answer)["steps"][0]["detail"]
    return answer


def step(world: World, answer: Any) -> tuple[str, str]:
    found = world.op(answer)["steps"][0]
    return found["state"], found["detail"]


def lose(world: World, name: str = "n1") -> None:
    world.agents[name].power_off()
    world.run(60)
    world.do(m.NodeDrain, name=name, evidence="operator", comment="unplugged")
