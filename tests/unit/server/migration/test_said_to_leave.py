"""What an owner says of where its VM went is no word about another node: what is proven of that one stays."""

from __future__ import annotations

from tests.unit.server.migration.steps import leave, owner
from tests.unit.server.world import World, uuid_of
from wire import messages as m

WEB = uuid_of("web")


def drained(world: World, node: str) -> None:
    """The node is off, and a person has said so."""
    world.agents[node].power_off()
    world.run(60)
    world.do(m.NodeDrain, name=node, evidence="operator")


def test_h3_a_vm_that_is_said_to_leave_for_a_node_that_is_proven_off_takes_its_proof_not_away(world: World) -> None:
    drained(world, "n2")
    serial = world.saved()["nodes"][("n2",)].drain_serial  # type: ignore[attr-defined]
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    leave(world)
    world.agents["n1"].report()
    node = world.node("n2")
    assert node["drain_evidence"] == "operator" and owner(world)[0] == "n1"
    assert world.saved()["nodes"][("n2",)].drain_serial == serial  # type: ignore[attr-defined]
    assert "has left for n2" in world.vm("web")["detail"]


def test_h3_when_that_node_has_told_what_it_has_the_vm_is_its_own(world: World) -> None:
    drained(world, "n2")
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    leave(world)
    world.agents["n1"].report()
    world.agents["n2"].boot_again()
    world.run(60)
    assert owner(world)[0] == "n2"
    world.do(m.NodeEnable, name="n2")
    world.run(30)
    assert world.agents["n2"].running == {WEB}


def test_h3_nothing_is_left_to_do_when_the_vm_was_deleted_meanwhile(world: World) -> None:
    drained(world, "n2")
    world.agents["n1"].begin_alone(WEB, "alone", "n2")
    leave(world)
    world.agents["n1"].report()
    world.core.ctx.said_to_leave_for["n2"].add(uuid_of("gone"))
    world.agents["n1"].kill()
    world.agents["n2"].boot_again()
    assert owner(world)[0] in ("n1", "n2") and not world.core.ctx.said_to_leave_for
