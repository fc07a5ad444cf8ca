"""What operators are shown: lists, and explanations in sentences."""

from __future__ import annotations

import msgspec
import pytest

from chimed.core.state import effects as fx
from tests.unit.server.world import LOCAL, World, key_of, uuid_of
from wire import messages as m
from wire.types import Observed

WEB = uuid_of("web")


def explained(world: World, kind: str, name: str) -> str:
    return "\n".join(world.ask(m.Explain(kind=kind, name=name))["lines"])


def test_vms_of_one_node(world: World) -> None:
    world.create("other", "n2")
    assert [vm["name"] for vm in world.ask(m.VmList(node="n1"))["items"]] == ["web"]
    assert len(world.ask(m.VmList())["items"]) == 2
    assert world.refuse(m.VmList, node="none").code == "not-found"


def test_operations_all_or_those_that_run(world: World) -> None:
    world.agents["n1"].stuck = True
    stop = world.do(m.VmStop, vm="web")["operation"]["id"]
    assert [op["id"] for op in world.ask(m.OpList(active=True))["items"]] == [stop]
    assert [op["kind"] for op in world.ask(m.OpList())["items"]] == ["create", "stop"]


def test_operators_by_name_without_secrets(world: World) -> None:
    world.do(m.OperatorAdd, name="eve", public_key=key_of("eve"))
    items = world.ask(m.OperatorList())["items"]
    assert [(item["name"], item["public_key"]) for item in items] == [("eve", key_of("eve")), ("op", key_of("op"))]
    assert items[0].keys() == {"name", "public_key", "created"}


@pytest.mark.parametrize(("subject", "subjects"), [(None, ()), ("n1", ("n1",)), ("web", ("web", WEB))])
def test_events_of_a_vm_are_found_by_its_name(world: World, subject: str | None, subjects: tuple[str, ...]) -> None:
    body = m.EventList(subject=subject)
    effects = world.turn(fx.Received(key_of("op"), b"op", body, "c", str))
    assert [e for e in effects if isinstance(e, fx.ReadEvents)] == [fx.ReadEvents(b"op", "c", body, subjects)]


def test_a_full_node_takes_no_vm_and_says_so(world: World) -> None:
    world.create("big", "n2", spec=m.VmSpec(vcpus=1, memory_mib=16384))
    assert world.node("n2")["schedulable"] is False
    assert "No new VM is placed here: it has no room left." in explained(world, "node", "n2")
    assert "New VMs may be placed here." in explained(world, "node", "n1")


def test_faults_and_locks_are_explained(world: World) -> None:
    agent = world.agents["n1"]
    agent.faults = (m.Fault(code="disk-full", text="/var"),)
    world.run(16)
    agent.stuck = True
    answer = world.do(m.NodeDrain, name="n1")
    text = explained(world, "node", "n1")
    assert "n1 is drained and error (disk-full)" in text and "Fault disk-full (warning): /var" in text
    assert f"Locked by operation {answer['operation']['id']}." in text and "Its VMs take commands." in text
    assert "may still be running" not in text and "Rebuild is refused" in text


def test_what_a_rebuild_waits_for_and_leaves_behind_is_explained(world: World) -> None:
    world.do(m.NodeDrain, name="n1")
    world.settle()
    text = explained(world, "node", "n1")
    assert "Rebuild is possible: evidence agent." in text and "moved away" not in text
    epoch = world.vm("web")["epoch"]
    world.agents["n1"].power_off()
    world.do(m.NodeRebuild, name="n1")
    assert "1 VM that was moved away will be removed from it when it comes back." in explained(world, "node", "n1")
    assert f"n1 has not yet confirmed that it removed epoch {epoch}." in explained(world, "vm", "web")


def test_a_vm_that_cannot_be_rebuilt_says_so(world: World) -> None:
    world.create("data", "n1", spec=LOCAL)
    assert "It has local disks: it cannot be rebuilt on another node." in explained(world, "vm", "data")
    assert "local disks" not in explained(world, "vm", "web")


def test_why_a_vm_does_not_run(world: World) -> None:
    agent = world.agents["n1"]
    agent.running.clear()
    agent.report()
    assert "Its agent is about to start it." in explained(world, "vm", "web")
    agent.failed[WEB] = "no bridge br0"
    agent.report()
    text = explained(world, "vm", "web")
    assert "Detail: no bridge br0." in text and "It failed: mend the cause" in text
    agent.failed.clear()
    report = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.PAUSED)
    agent.report(vms=(report,))
    assert "It is paused: nobody resumes it but a person" in explained(world, "vm", "web")
    agent.report(vms=(msgspec.structs.replace(report, observed=Observed.UNKNOWN, detail="libvirt does not answer"),))
    text = explained(world, "vm", "web")
    assert "Detail: libvirt does not answer." in text and "cannot tell whether it runs" in text
    agent.stuck = True
    answer = world.do(m.NodeDrain, name="n1")
    agent.report(vms=(msgspec.structs.replace(report, observed=Observed.STOPPED),))
    assert "n1 is drained: nothing is started there." in explained(world, "vm", "web")
    assert world.op(answer)["state"] == "running"


def test_an_operation_under_way_is_named(world: World) -> None:
    world.agents["n1"].stuck = True
    answer = world.do(m.VmStop, vm="web")
    assert f"Operation {answer['operation']['id']} is under way." in explained(world, "vm", "web")
