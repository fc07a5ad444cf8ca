"""Lesser hardware faults, the seed's scenario 4: the node says what is wrong, its VMs run on, it clears by itself."""

from __future__ import annotations

from tests.lab.disk import Failure
from tests.lab.lab import Lab
from tests.operator import unique

ENOUGH_S = 120.0
BROKEN: dict[str, tuple[Failure, set[str]]] = {
    "n1": ("read-only", {"storage-read-only"}),
    "n2": ("hang", {"check-stuck", "storage-slow"}),
}


def test_scenario_4_disks_break(lab: Lab) -> None:
    """`error` with the kind of fault, and an alarm; no new VM is placed there; heartbeats and commands go on."""
    names = {node: unique("near") for node in BROKEN}
    uuids = {node: lab.create_guest(name, node=node) for node, name in names.items()}
    before = {node: lab.pids(uuid) for node, uuid in uuids.items()}
    for node, (how, _) in BROKEN.items():
        lab.host(node).break_disk(how)
    for node, (_, codes) in BROKEN.items():
        lab.wait(lambda node=node: lab.node(node)["health"] == "error", f"{node} reports it", ENOUGH_S)
        assert set(lab.node(node)["reasons"]) <= codes
        assert lab.raised(node) == {"node-error"} and not lab.node(node)["schedulable"]
        lab.counting(names[node])
        assert lab.pids(uuids[node]) == before[node]
        lab.tool("vm", "stop", names[node], "--yes", "--force")
        lab.no_process(uuids[node])
    assert lab.process(lab.create_guest(unique("placed"))).host == "n3"
    for node in BROKEN:
        lab.host(node).mend_disk()
    for node in BROKEN:
        lab.wait(lambda node=node: lab.node(node)["health"] == "normal", f"{node}: it clears", ENOUGH_S)
        lab.wait(lambda node=node: not lab.raised(node), f"{node}: the alarm is cleared")
