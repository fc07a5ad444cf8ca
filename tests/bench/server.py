"""What a chimed with 1,000 nodes and 20,000 VMs costs, and that heartbeats which change nothing write nothing.

The agents are sockets that keep the protocol (`fleet`): hello, a full report of twenty VMs, heartbeats every 15 s.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure
from tests.bench.fleet import Agents, Server
from tests.bench.processes import cpu_s, memory_mib, written_bytes
from wire import messages as m

NODES, VMS_EACH = 1000, 20
HEARTBEAT_S = 15.0
SECONDS = 30.0
ROUNDS = 6
RSS_MIB = 300.0


def measure(directory: Path) -> list[Figure]:
    """Memory, CPU, time to start, time of the lists, bytes written."""
    server = Server(directory, NODES, VMS_EACH, vcpu_overcommit=100.0, memory_overcommit=100.0)
    began = time.monotonic()
    with server.started() as pid, Agents(server.endpoint, server.keys.public, server.nodes) as agents:
        start_s = time.monotonic() - began
        began = time.monotonic()
        agents.say_hello(server.vms)
        hello_s = time.monotonic() - began
        before, began = cpu_s(pid), time.monotonic()
        beats = agents.beat_slowly(SECONDS, HEARTBEAT_S)
        share = 100.0 * (cpu_s(pid) - before) / (time.monotonic() - began)
        nodes_s, nodes = _list(server, m.NodeList())
        vms_s, vms = _list(server, m.VmList())
        if (len(nodes), len(vms)) != (NODES, NODES * VMS_EACH) or any(n["health"] != "normal" for n in nodes):
            raise RuntimeError(f"the server shows {len(nodes)} nodes and {len(vms)} VMs, or not all are normal")
        memory = memory_mib(pid)
        written = _written(server, agents, pid)
    detail = {"nodes": NODES, "vms": len(vms), "mib": memory, "all_hello_and_report_s": round(hello_s, 2)}
    return [
        Figure("chimed, 1,000 nodes, 20,000 VMs, resident memory", memory["rss"], "MiB", "<=", RSS_MIB, detail),
        Figure("chimed, the same, CPU of one core", share, "%", detail={"heartbeats": beats, "seconds": SECONDS}),
        Figure("chimed, the same, start to first answer", start_s, "s"),
        Figure("node.list of all pages", nodes_s, "s"),
        Figure("vm.list of all pages", vms_s, "s"),
        Figure(f"bytes written by {NODES * ROUNDS} heartbeats", written["bytes"], "B", "<=", 0, written),
    ]


def _list(server: Server, body: m.Base) -> tuple[float, list[Any]]:
    with server.client() as client:
        client.request(m.ServerStatus())
        began = time.monotonic()
        found = list(client.items(body))
        return time.monotonic() - began, found


def _written(server: Server, agents: Agents, pid: int) -> dict[str, Any]:
    """libzmq's signals between its threads are writes of 8 bytes to an eventfd: so not `wchar`, but what goes to the
    disk, and the database's files as they are."""
    before, files = written_bytes(pid), _files(server)
    agents.beat(ROUNDS)
    after = written_bytes(pid)
    changed = [name for name, seen in _files(server).items() if files.get(name) != seen]
    written = after["write_bytes"] - before["write_bytes"]
    if changed:
        raise RuntimeError(f"heartbeats changed {', '.join(changed)}")
    return {"bytes": written, "files_unchanged": sorted(files)}


def _files(server: Server) -> dict[str, tuple[int, int]]:
    folder = server.database.parent
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()}
