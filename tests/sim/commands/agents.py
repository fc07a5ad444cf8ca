"""Commands: the agents' processes, their disks, and people who use `chime-agent`."""

from __future__ import annotations

from typing import Any

from agentd import snapshot
from agentd.core.durable import Durable
from tests.sim.cluster import Cluster
from tests.sim.commands.base import kill_agent, on
from tests.sim.commands.base import word as _word
from tests.sim.words import Usage


@_word("kill agentd {node}")
def _kill_agent(c: Cluster, node: str) -> None:
    """SIGKILL; systemd starts it again in 1 to 5 s."""
    kill_agent(c.host(node))


@_word("stop agentd {node}")
def _stop_agent(c: Cluster, node: str) -> None:
    """It ends and is not started again."""
    c.host(node).wanted = False
    kill_agent(c.host(node))


@_word("start agentd {node}")
def _start_agent(c: Cluster, node: str) -> None:
    """It is started."""
    c.host(node).wanted = True
    c.host(node).start_agent()


@_word("freeze agentd {node}")
def _freeze(c: Cluster, node: str) -> None:
    """SIGSTOP."""
    agent = c.host(node).agent
    if agent is not None:
        agent.frozen = True


@_word("thaw agentd {node}")
def _thaw(c: Cluster, node: str) -> None:
    """SIGCONT."""
    agent = c.host(node).agent
    if agent is not None:
        agent.thaw()


@_word("crash agentd {node} in {count} effects")
def _crash_agent(c: Cluster, node: str, count: str) -> None:
    """It dies between two effects (writes, messages, orders to libvirt), or in the middle of a write."""
    agent = c.host(node).agent
    if agent is not None:
        agent.crash_in = int(count)


@_word("disk {node} full")
def _disk_full(c: Cluster, node: str) -> None:
    """Nothing can be written (`chimed`: by the server; else by the host's agent)."""
    if node == "chimed":
        c.server.disk.fault = "database or disk is full"
    else:
        c.host(node).disk.full = True


@_word("disk {node} ok")
def _disk_ok(c: Cluster, node: str) -> None:
    """It can be written again."""
    if node == "chimed":
        c.server.disk.fault = ""
    else:
        c.host(node).disk.full = False


@_word("snapshot {node} {damage}")
def _snapshot(c: Cluster, node: str, damage: str) -> None:
    """The agent dies, and its snapshot is empty, truncated, flipped (one bit), foreign (of another node) or newer."""
    host = c.host(node)
    if damage not in _DAMAGES:
        raise Usage(f"a snapshot can be: {', '.join(_DAMAGES)}")
    if host.disk.content:
        host.disk.content = _DAMAGES[damage](host.disk.content, c.engine.rng)
        c.oracle.snapshot_lost(host)
    kill_agent(c.host(node))


def _flip(content: bytes, rng: Any) -> bytes:
    at = rng.randrange(len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


_DAMAGES = {
    "empty": lambda content, rng: b"",
    "truncated": lambda content, rng: content[: rng.randrange(len(content) - 2)],
    "flipped": _flip,
    "foreign": lambda content, rng: snapshot.encode(Durable(node="elsewhere"), 1),
    "newer": lambda content, rng: content.replace(b'"version":1', b'"version":9', 1),
}
"""What can be wrong with a snapshot."""


@_word("local drain {node}")
def _local_drain(c: Cluster, node: str) -> None:
    """`chime-agent drain` on the node."""
    agent = c.host(node).agent
    if agent is not None:
        agent.ask("drain", 10.0)


@_word("local migrate {vm} to {node}")
def _local_migrate(c: Cluster, vm: str, node: str) -> None:
    """`chime-agent migrate` on the node where it runs, without the server."""
    host, uuid = on(c, vm)
    c.host(node)
    if host is not None and host.name == node:
        host.tell(f"chime-agent migrate {vm}: {node} is this node itself", uuid)
    elif host is not None and host.agent is not None:
        c.oracle.on_the_node.add((host.name, uuid))
        c.oracle.trust.sent(node, uuid)
        if (node,) not in c.server.disk.tables["nodes"]:
            c.oracle.has_gone_out_of_sight(uuid)
        host.agent.ask_to_migrate(uuid, node)
