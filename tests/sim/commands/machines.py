"""Commands: hosts and the network."""

from __future__ import annotations

from tests.sim.cluster import Cluster
from tests.sim.commands.base import word as _word
from tests.sim.host import Host, SnapshotDisk
from wire import messages as m
from wire.types import Severity

# --- hosts ------------------------------------------------------------------------------------------------------------


@_word("power {node} off")
def _power_off(c: Cluster, node: str) -> None:
    """The host loses power."""
    c.host(node).power_off()


@_word("power {node} on")
def _power_on(c: Cluster, node: str) -> None:
    """The host boots, with a new boot id."""
    c.host(node).power_on()


@_word("clone {node}", "clone {node} as {claim}")
def _clone(c: Cluster, node: str, claim: str = "") -> None:
    """Another host, `NODE-clone`, boots with the node's key and snapshot; it speaks as the node, or as `claim`."""
    name = f"{node}-clone"
    clone = c.hosts[name] = Host(name, c.engine, c.network, c.oracle)
    clone.key, clone.disk = c.host(node).key, SnapshotDisk(claim or node, c.host(node).disk._now)
    clone.disk.content = None if claim else c.host(node).disk.content
    clone.peers = c.hosts
    clone.start_agent()


@_word("fault {node} {code}", "fault {node} {code} {severity}")
def _fault(c: Cluster, node: str, code: str, severity: str = "warning") -> None:
    """The host's checks find a fault (`none`: they find none any more)."""
    fault = m.Fault(code=code, text="as ordered", severity=Severity(severity))
    c.host(node).faults = () if code == "none" else (fault,)


# --- the network ------------------------------------------------------------------------------------------------------


@_word("cut {node} mgmt", "cut {node}")
def _cut(c: Cluster, node: str) -> None:
    """The management network between the host (or `op`, the operator) and the server is down, in both directions."""
    c.network.cut(node)


@_word("cut {node} to-server")
def _cut_up(c: Cluster, node: str) -> None:
    """Nothing of the host reaches the server."""
    c.network.cut(node, down=False)


@_word("cut {node} from-server")
def _cut_down(c: Cluster, node: str) -> None:
    """Nothing of the server reaches the host."""
    c.network.cut(node, up=False)


@_word("heal {node}")
def _heal(c: Cluster, node: str) -> None:
    """The network works again; what was held back arrives late, or its connection breaks."""
    c.network.heal(node)


@_word("drop {node}")
def _drop(c: Cluster, node: str) -> None:
    """The host's connections break."""
    c.network.drop(node)


@_word("ping {node} blocked")
def _no_ping(c: Cluster, node: str) -> None:
    """No ping reaches the host."""
    c.network.path(node).ping = False


@_word("ping {node} open")
def _ping(c: Cluster, node: str) -> None:
    """Pings reach it again."""
    c.network.path(node).ping = True


@_word("cut {node} data")
def _cut_data(c: Cluster, node: str) -> None:
    """The network over which VMs are migrated does not reach the host."""
    c.network.without_data.add(node)


@_word("heal {node} data")
def _heal_data(c: Cluster, node: str) -> None:
    """It reaches it again."""
    c.network.without_data.discard(node)


@_word("lose the finish on {node}")
def _finish_lost(c: Cluster, node: str) -> None:
    """In the next migration away from the host, libvirt there does not hear that the copy is complete."""
    c.host(node).finish_lost = True


@_word("noise {node} loss {loss} duplicates {duplicates} reorders {reorders} delay {delay}")
def _noise(c: Cluster, node: str, loss: str, duplicates: str, reorders: str, delay: str) -> None:
    """Frames are lost, doubled, swapped (shares of 1) and delayed (up to so many seconds)."""
    path = c.network.path(node)
    path.loss, path.duplicates, path.reorders = float(loss), float(duplicates), float(reorders)
    path.delay_s = float(delay)
