"""Which conditions are alarms: literal tables and level-triggered rules. Raised and cleared in `Context.sync_alarms`.

Rule: what nobody can see any more is not therefore over: an alarm about a VM is cleared by a report, not by silence.
"""

from __future__ import annotations

from collections.abc import Callable

from chimed.core.rules import arrivals
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.sessions import Session, Sessions
from chimed.core.state.turn import Context
from wire import messages as m
from wire.text import clean_text, counted
from wire.types import Health, Observed, Severity
from wire.words import ALARM_OF, ALARMS, AlarmCode, AlarmSubject, FaultCode

SUSPICIONS = frozenset(
    {
        AlarmCode.NODE_KEY_CLONED,
        AlarmCode.WRONG_NODE,
        AlarmCode.FALSE_WORD,
        AlarmCode.KEY_MISUSED,
        AlarmCode.NODE_OVER_BUDGET,
    }
)
"""What is wrong with the use of a node's key."""
OF_FAULTS = frozenset({AlarmCode.NODE_ERROR, AlarmCode.NODE_NOTICE})
NODE_CODES = frozenset(code for code, info in ALARMS.items() if info.subject == AlarmSubject.NODE)
COPIES = frozenset({AlarmCode.VM_DUPLICATE, AlarmCode.VM_MISPLACED})
OF_OWNER = frozenset(ALARM_OF.values())
VM_CODES = frozenset(code for code, info in ALARMS.items() if info.subject == AlarmSubject.VM)
UNKNOWN_MAX = 100
"""With so many active alarms no further `vm-unknown` is raised: a node that invents VMs must not bury the others."""
SERVER = "server"
ALIVE = frozenset({Observed.RUNNING, Observed.PAUSED, Observed.MIGRATING})

Wanted = dict[AlarmCode, tuple[Severity, str]]


def raised(code: AlarmCode, text: str, worst: Severity = Severity.CRITICAL) -> Wanted:
    """The alarm that should be active, as urgent as its table says. `worst`: of the faults that it is about."""
    return {code: (ALARMS[code].severity or worst, text)}


def node_alarms(node: r.Node, faults: tuple[m.Fault, ...], mass: bool) -> Wanted:
    """The alarms that should be active for a node, suspicions about its key apart."""
    if node.health == Health.UNREACHABLE and not mass:
        text = f"node {node.name} sends no heartbeats and does not answer ping"
        return raised(AlarmCode.NODE_UNREACHABLE, text)
    if FaultCode.AGENT_LOST in node.reasons:
        pinged = FaultCode.PING_UNAVAILABLE not in node.reasons
        known = "but answers ping" if pinged else "its answer to ping is not known"
        text = f"node {node.name} sends no heartbeats, {known}"
        return raised(AlarmCode.AGENT_LOST, text)
    return _fault_alarms(node, faults)


def _fault_alarms(node: r.Node, faults: tuple[m.Fault, ...]) -> Wanted:
    """One alarm for what makes the node's health `error`, as urgent as the worst of it; one for what does not."""
    notices = [fault for fault in faults if fault.severity == Severity.INFO]
    errors = [fault for fault in faults if fault.severity != Severity.INFO]
    wanted: Wanted = {}
    if node.health == Health.ERROR:
        worst = Severity.CRITICAL if any(f.severity == Severity.CRITICAL for f in errors) else Severity.WARNING
        text = _in_words(errors) or ", ".join(node.reasons)
        wanted |= raised(AlarmCode.NODE_ERROR, f"node {node.name} reports: {text}", worst)
    if node.health in (Health.ERROR, Health.NORMAL) and notices:
        wanted |= raised(AlarmCode.NODE_NOTICE, f"node {node.name} reports: {_in_words(notices)}")
    return wanted


def _in_words(faults: list[m.Fault]) -> str:
    return clean_text("; ".join(f"{fault.code}: {fault.text}" if fault.text else fault.code for fault in faults))


def sync_mass(ctx: Context) -> bool:
    """The alarm for many nodes: so many are unreachable that the server's own network is the likelier cause. Returns
    whether it is raised."""
    nodes, policy = ctx.tables.nodes, ctx.policy
    lost = nodes.count_by("health", Health.UNREACHABLE)
    heard_of = len(nodes) - nodes.count_by("health", Health.UNKNOWN)
    mass = lost >= policy.mass_min and lost > policy.mass_fraction * heard_of
    text = f"{lost} of {counted(heard_of, 'node')} unreachable together: look at the server's own network first"
    code = AlarmCode.MASS_UNREACHABLE
    ctx.sync_alarms(SERVER, raised(code, text) if mass else {}, frozenset({code}))
    return mass


def all_are_heard(facts: Facts) -> bool:
    """Whether every node that was ever heard is heard now, and has reported all that it has."""
    ctx, sessions = facts.ctx, facts.sessions
    return all(_has_reported(ctx, sessions, n.name) for n in ctx.tables.nodes if n.health != Health.UNKNOWN)


def sync_vm(facts: Facts, uuid: str, all_heard: Callable[[Facts], bool] = all_are_heard) -> None:
    """Alarms of one VM, from what all nodes report of it. Who looks at many passes an `all_heard` that remembers."""
    ctx, sessions = facts.ctx, facts.sessions
    vm = ctx.tables.vms.get(uuid)
    sightings = [(s, report) for s, report in sessions.sightings(uuid) if _heard(ctx, s.node)]
    if vm is None:
        wanted = _unknown(ctx, uuid, sightings)
        if wanted and are_many(ctx) and not is_raised(ctx, uuid):
            return
        if wanted or (is_raised(ctx, uuid) and all_heard(facts) and _is_clear(facts, uuid)):
            ctx.sync_alarms(uuid, wanted, VM_CODES)
        return
    owner_is_seen = _is_seen(ctx, sessions, vm.node, uuid)
    copies = _elsewhere(facts, vm, sightings)
    if not owner_is_seen and copies:  # whether it runs there too is not known now: the alarm stays what it was
        copies = {next((c for c in COPIES if ctx.alarm_active(c, uuid)), code): what for code, what in copies.items()}
    wanted = {**copies, **_of_owner(vm, sightings)}
    codes = set(VM_CODES)
    if not owner_is_seen:
        codes -= OF_OWNER - wanted.keys()
    if not all(_is_seen(ctx, sessions, release.node, uuid) for release in ctx.tables.releases.by("uuid", uuid)):
        codes -= COPIES - wanted.keys()
    ctx.sync_alarms(uuid, wanted, frozenset(codes))


def are_many(ctx: Context) -> bool:
    """Whether no further `vm-unknown` is raised."""
    return ctx.tables.alarms.count_by("cleared", None) >= UNKNOWN_MAX


def is_raised(ctx: Context, subject: str) -> bool:
    """Whether there is an alarm about it now."""
    return any(alarm.cleared is None for alarm in ctx.tables.alarms.by("subject", subject))


def _heard(ctx: Context, node_name: str) -> bool:
    """Whether the node is not known to be lost: what it said before that is no fact any more."""
    node = ctx.tables.nodes.get(node_name)
    return node is not None and node.health != Health.UNREACHABLE and FaultCode.AGENT_LOST not in node.reasons


def _is_seen(ctx: Context, sessions: Sessions, node_name: str, uuid: str) -> bool:
    """Whether the node has said how the VM is there, or that it is not there at all."""
    session = sessions.get(node_name)
    return session is not None and _has_reported(ctx, sessions, node_name) and _says(session.reports.get(uuid))


def _has_reported(ctx: Context, sessions: Sessions, node_name: str) -> bool:
    session = sessions.get(node_name)
    return session is not None and session.reported and _heard(ctx, node_name)


def _says(report: m.VmReport | None) -> bool:
    return report is None or report.observed != Observed.UNKNOWN or report.problem in ALARM_OF


def _is_clear(facts: Facts, uuid: str) -> bool:
    """Whether no node that reports the VM is at a loss about it."""
    said = ((facts.ctx.tables.nodes.get(session.node), report) for session, report in facts.sessions.sightings(uuid))
    return all(_says(report) for node, report in said if node is not None and node.health != Health.UNKNOWN)


def _unknown(ctx: Context, uuid: str, sightings: list[tuple[Session, m.VmReport]]) -> Wanted:
    strays = [(s, report) for s, report in sightings if ctx.tables.releases.get(s.node, uuid) is None]
    if not strays:
        return {}
    session, report = strays[0]
    text = f"{session.node} has the managed VM {report.name} ({report.observed}), which this database does not know"
    return raised(AlarmCode.VM_UNKNOWN, text)


def _elsewhere(facts: Facts, vm: r.Vm, sightings: list[tuple[Session, m.VmReport]]) -> Wanted:
    alive = [(s, report) for s, report in sightings if s.node != vm.node and report.observed in ALIVE]
    others = sorted(s.node for s, report in alive if not arrivals.is_expected(facts, vm, s.node, report))
    ctx = facts.ctx
    if not others:
        return {}
    owner_runs = any(s.node == vm.node and report.observed in ALIVE for s, report in sightings)
    code = AlarmCode.VM_DUPLICATE if owner_runs else AlarmCode.VM_MISPLACED
    also = f"on its owner {vm.node} and " if owner_runs else ""
    told = [node for node in others if ctx.tables.releases.get(node, vm.uuid) is not None]
    then = "is told to end its copy" if told else f"keeps its copy until {vm.node} is heard"
    return raised(code, f"{vm.name} runs {also}on {', '.join(others)}, which does not own it and {then}")


def _of_owner(vm: r.Vm, sightings: list[tuple[Session, m.VmReport]]) -> Wanted:
    for session, report in sightings:
        if session.node == vm.node and report.problem in ALARM_OF:
            text = f"{vm.name} on {vm.node}: {report.detail or report.problem}"
            return raised(ALARM_OF[report.problem], text)
    return {}
