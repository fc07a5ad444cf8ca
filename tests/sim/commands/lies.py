"""Commands: one bad node."""

from __future__ import annotations

from typing import Any

from tests.sim import lies
from tests.sim.cluster import Cluster
from tests.sim.commands.base import word as _word
from tests.sim.liar import Liar
from tests.sim.words import Usage
from wire import messages as m
from wire.types import MigrationPhase


def _liar(c: Cluster, node: str, beside: bool = False) -> Liar:
    """Who has the key of the node: from now on it is he."""
    host = c.host(node)
    if host.liar is None:
        host.liar = Liar(c, host, beside)
        c.oracle.begins_to_lie(node, c.server.disk)
        if not beside and host.agent is not None:
            host.agent.die()
    return host.liar


@_word("{node} turns liar")
def _turns(c: Cluster, node: str) -> None:
    """Somebody has the host, and speaks with its key; no agent of ours runs there any more. VMs go on."""
    _liar(c, node)


@_word("{node} turns liar beside its agent")
def _turns_beside(c: Cluster, node: str) -> None:
    """Somebody speaks with its key over the connection of its agent, which goes on."""
    _liar(c, node, beside=True)


@_word("{node} lies at random")
def _at_random(c: Cluster, node: str) -> None:
    """He says anything at any time, without end."""
    _liar(c, node).begin()


def _epoch(c: Cluster, vm: str, text: str) -> int:
    """`same`, `+1`, or a number."""
    row: Any = c.server.disk.tables["vms"].get((c.uuid(vm),))
    present = row.epoch if row is not None else 1
    return present if text == "same" else present + int(text) if text[0] in "+-" else int(text)


@_word("{node} lies that {vm} runs in epoch {epoch}")
def _runs(c: Cluster, node: str, vm: str, epoch: str) -> None:
    """That he has the VM, and runs it; the epoch is `same`, a difference such as `+1`, or a number."""
    liar = _liar(c, node)
    liar.say(lies.runs(liar, vm, _epoch(c, vm, epoch)))


@_word("{node} lies that {vm} {phase} by {attempt}", "{node} lies that {vm} {phase} by {attempt} in epoch {epoch}")
def _says_of_attempt(c: Cluster, node: str, vm: str, phase: str, attempt: str, epoch: str = "same") -> None:
    """A word about an attempt (leaving, left, failed, arrived); `open`: the one that the server has open."""
    if phase not in [known.value for known in MigrationPhase]:
        raise Usage(f"an attempt can be: {', '.join(MigrationPhase)}")
    row: Any = c.server.disk.tables["migrations"].get((c.uuid(vm),))
    if attempt == "open":
        attempt = row.attempt if row is not None else "none-is-open"
    liar = _liar(c, node)
    liar.say(lies.says_of_attempt(liar, vm, MigrationPhase(phase), attempt, _epoch(c, vm, epoch)))


@_word("{node} lies that {other} released {vm}")
def _released(c: Cluster, node: str, other: str, vm: str) -> None:
    """He confirms a release that another holds."""
    row: Any = c.server.disk.tables["releases"].get((other, c.uuid(vm)))
    liar = _liar(c, node)
    liar.say(liar.report(released=(m.Release(uuid=c.uuid(vm), epoch=row.epoch if row is not None else 1),)))


@_word("{node} lies that its address is {address}")
def _address(c: Cluster, node: str, address: str) -> None:
    """He says hello once more, with that address."""
    liar = _liar(c, node)
    network = m.HostNetwork(interface="eth1", address=address, prefix=8)
    liar.say(liar.hello(host=m.HostFacts(networks=(network,), business_interface="eth1")))
