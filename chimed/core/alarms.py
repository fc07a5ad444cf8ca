"""Which conditions are alarms: literal tables and level-triggered rules. Raised and cleared in `Context.sync_alarms`."""

from __future__ import annotations

from collections.abc import Iterable

from chimed.core import rows as r
from chimed.core.context import Context, Policy
from chimed.core.sessions import Session, Sessions
from wire import messages as m
from wire.types import Health, Observed, Severity

NODE_CODES = frozenset({"node-unreachable", "agent-lost", "node-error", "node-key-cloned"})
VM_CODES = frozenset({"vm-failed", "vm-duplicate", "vm-misplaced", "vm-unknown", "vm-io-error", "vm-foreign-process"})
MASS = "mass-unreachable"
SERVER = "server"
ALIVE = frozenset({Observed.RUNNING, Observed.PAUSED, Observed.MIGRATING})

_PROBLEMS: dict[str, tuple[str, Severity]] = {
    "io-error": ("vm-io-error", Severity.CRITICAL),
    "foreign-process": ("vm-foreign-process", Severity.CRITICAL),
    "start-failed": ("vm-failed", Severity.CRITICAL),
    "crash-loop": ("vm-failed", Severity.CRITICAL),
}
"""Alarm code and severity for each problem that an agent may report of a VM."""


def node_alarms(node: r.Node, faults: tuple[m.Fault, ...], cloned: bool, mass: bool) -> dict[str, tuple[Severity, str]]:
    """The alarms that should be active for a node."""
    wanted: dict[str, tuple[Severity, str]] = {}
    if node.health == Health.UNREACHABLE and not mass:
        text = f"node {node.name} sends no heartbeats and does not answer ping"
        wanted["node-unreachable"] = (Severity.CRITICAL, text)
    elif node.health == Health.ERROR and "agent-lost" in node.reasons:
        known = "its answer to ping is not known" if "ping-unavailable" in node.reasons else "but answers ping"
        text = f"node {node.name} sends no heartbeats, {known}"
        wanted["agent-lost"] = (Severity.CRITICAL, text)
    elif node.health == Health.ERROR:
        text = "; ".join(f"{f.code}: {f.text}" if f.text else f.code for f in faults) or ", ".join(node.reasons)
        wanted["node-error"] = (Severity.WARNING, f"node {node.name} reports: {text}")
    if cloned:
        text = f"a second host that is alive uses the key of node {node.name}; it is refused"
        wanted["node-key-cloned"] = (Severity.CRITICAL, text)
    return wanted


def is_mass(nodes: Iterable[r.Node], policy: Policy) -> tuple[bool, int]:
    """Whether so many nodes are unreachable that the server's own network is the likelier cause, and how many."""
    all_nodes = [node for node in nodes if node.health != Health.UNKNOWN]
    lost = sum(node.health == Health.UNREACHABLE for node in all_nodes)
    return lost >= policy.mass_min and lost > policy.mass_fraction * len(all_nodes), lost


def sync_node(ctx: Context, sessions: Sessions, node: r.Node, cloned: bool) -> None:
    """Alarms of one node, and the one for many."""
    mass, lost = is_mass(ctx.tables.nodes, ctx.policy)
    if mass:
        text = f"{lost} nodes are unreachable together: look at the server's own network first"
        ctx.sync_alarms(SERVER, {MASS: (Severity.CRITICAL, text)}, frozenset({MASS}))
    else:
        ctx.sync_alarms(SERVER, {}, frozenset({MASS}))
    session = sessions.get(node.name)
    faults = session.faults if session else ()
    ctx.sync_alarms(node.name, node_alarms(node, faults, cloned, mass), NODE_CODES)


def sync_vm(ctx: Context, sessions: Sessions, uuid: str) -> None:
    """Alarms of one VM, from what all nodes report of it."""
    vm = ctx.tables.vms.get(uuid)
    sightings = [
        (session, session.reports[uuid])
        for node in ctx.tables.nodes
        if (session := sessions.get(node.name)) is not None and uuid in session.reports
    ]
    wanted: dict[str, tuple[Severity, str]] = {}
    if vm is None:
        wanted.update(_unknown(ctx, uuid, sightings))
    else:
        wanted.update(_elsewhere(vm, sightings))
        wanted.update(_of_owner(vm, sightings))
    ctx.sync_alarms(uuid, wanted, VM_CODES)


def _unknown(
    ctx: Context, uuid: str, sightings: list[tuple[Session, m.VmReport]]
) -> dict[str, tuple[Severity, str]]:
    strays = [(s, report) for s, report in sightings if ctx.tables.releases.get(s.node, uuid) is None]
    if not strays:
        return {}
    session, report = strays[0]
    text = f"{session.node} has the managed VM {report.name} ({report.observed}), which this database does not know"
    return {"vm-unknown": (Severity.WARNING, text)}


def _elsewhere(vm: r.Vm, sightings: list[tuple[Session, m.VmReport]]) -> dict[str, tuple[Severity, str]]:
    others = [s.node for s, report in sightings if s.node != vm.node and report.observed in ALIVE]
    if not others:
        return {}
    owner_runs = any(s.node == vm.node and report.observed in ALIVE for s, report in sightings)
    code = "vm-duplicate" if owner_runs else "vm-misplaced"
    also = f"on its owner {vm.node} and " if owner_runs else ""
    text = f"{vm.name} runs {also}on {', '.join(others)}, which does not own it and is told to end its copy"
    return {code: (Severity.CRITICAL, text)}


def _of_owner(vm: r.Vm, sightings: list[tuple[Session, m.VmReport]]) -> dict[str, tuple[Severity, str]]:
    for session, report in sightings:
        if session.node == vm.node and report.problem in _PROBLEMS:
            code, severity = _PROBLEMS[report.problem]
            return {code: (severity, f"{vm.name} on {vm.node}: {report.detail or report.problem}")}
    return {}
