"""Agents and the server under their units: rows 13, 14 and 32 of the fault table, and the seed's scenario 3."""

from __future__ import annotations

import time
from typing import Any

from tests.lab.lab import Lab
from tests.operator import unique
from wire import messages as m

BACK_S = 5.0
WATCHDOG_S = 30.0 + 5.0  # WatchdogSec and TimeoutAbortSec of chime-agentd.service
AGENT = "chime-agentd"


def test_row_13_a_killed_agent_is_back_in_5_s(lab: Lab) -> None:
    """Scenario 3: systemd starts it again, VMs are untouched and adopted; one that died meanwhile is started once."""
    names = [unique("adopted") for _ in range(2)]
    uuids = [lab.create_guest(name, node="n1") for name in names]
    first = [lab.process(uuid) for uuid in uuids]
    n1 = lab.host("n1")
    killed_at, old = time.monotonic(), n1.kill(AGENT)
    lab.kill(first[1])
    lab.wait(lambda: n1.unit_pid(AGENT) not in (0, old) and n1.unit(AGENT, "ActiveState") == "active", "it is back")
    assert int(n1.unit(AGENT, "ActiveEnterTimestampMonotonic")) / 1e6 - killed_at < BACK_S
    lab.other_process(uuids[1], first[1])
    lab.wait_nodes("n1")
    for name in names:
        lab.observed(name, "running")
        lab.counting(name)
    assert lab.pids(uuids[0]) == [first[0].pid]
    assert [row["restarts"] for row in lab.tool("vm", "list") if row["name"] == names[0]] == [0]
    lab.wait(lambda: lab.vm(names[1])["restarts"] == 1, "its restart is counted")


def test_row_14_the_watchdog_replaces_a_frozen_agent(lab: Lab) -> None:
    """SIGSTOP: the node has the error `agent-lost` until systemd kills and starts the agent; its VMs run on."""
    name = unique("frozen")
    uuid = lab.create_guest(name, node="n1")
    first, n1 = lab.process(uuid), lab.host("n1")
    old = n1.hang(AGENT)
    lab.wait(lambda: lab.node("n1")["reasons"] == ["agent-lost"], "the agent is missed")
    lab.wait(lambda: n1.unit_pid(AGENT) not in (0, old), "the watchdog has replaced it", WATCHDOG_S + 30)
    lab.wait_nodes("n1")
    lab.observed(name, "running")
    lab.counting(name)
    assert lab.pids(uuid) == [first.pid]
    assert "watchdog" in n1.journal(AGENT).lower()


def test_row_32_the_server_is_killed_in_the_middle_of_drain_rebuild_and_migrate(lab: Lab) -> None:
    """At each step of the operation. systemd starts it again, it goes on, and never gives a VM two places."""
    names = [unique("moved") for _ in range(5)]
    uuids = [lab.create_guest(name, node="n1") for name in names]
    before = [lab.vm(name)["epoch"] for name in names]
    assert end_under_fire(lab, m.NodeDrain, name="n1", graceful_s=1.0)
    assert not any(lab.oracle.running(uuid) for uuid in uuids)
    assert lab.node("n1")["drain_evidence"] == "agent"
    assert end_under_fire(lab, m.NodeRebuild, name="n1")
    for name, uuid, epoch in zip(names, uuids, before, strict=True):
        assert lab.process(uuid).host != "n1"
        assert lab.observed(name, "running")["epoch"] == epoch + 1
        lab.counting(name)
    source = lab.process(uuids[0]).host
    target = next(name for name in lab.names if name not in ("n1", source))
    options = m.MigrationOptions(bandwidth_mib_s=8, auto_converge=False)
    assert end_under_fire(lab, m.VmMigrate, vm=names[0], to=target, options=options)
    assert lab.process(uuids[0]).host == target
    assert lab.observed(names[0], "running")["epoch"] == before[0] + 2
    lab.counting(names[0])
    assert not set(uuids) & set(lab.host("n1").virsh("list", "--all", "--uuid").split())


def end_under_fire(lab: Lab, kind: type[m.Mutation], **values: Any) -> int:
    """Start an operation and kill the server each time it has got further, until it has succeeded; gives the kills."""
    op_id, kills, seen = lab.do(kind, wait=False, **values)["operation"]["id"], 0, None
    while True:
        seen = lab.wait(lambda seen=seen: further(lab, op_id, seen), "the operation goes on", 120)
        if seen["state"] != "running":
            assert seen["state"] == "succeeded", f"{seen}\n{lab.logs()}"
            return kills
        lab.server.kill("chimed")
        kills += 1
        lab.wait_server()


def further(lab: Lab, op_id: str, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """The operation, once it is not what it was before."""
    now = dict(lab.ask(m.OpShow(id=op_id))["operation"])
    return None if now == before else now
