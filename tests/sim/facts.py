"""What a scenario can expect, in its words. Each function says what is otherwise, or nothing when it is so."""

from __future__ import annotations

from tests.sim.cluster import Cluster
from tests.sim.words import Vocabulary
from wire import messages as m

FACTS = Vocabulary("fact")
_word = FACTS.word


def otherwise(cluster: Cluster, text: str) -> str:
    """Why the fact does not hold; empty when it does. Raises Usage."""
    do, words = FACTS.find(text)
    found: str = do(cluster, **words)
    return found


def _differs(what: str, is_: object, should: object) -> str:
    return "" if str(is_) == str(should) else f"{what} is {is_}, not {should}"


# --- reality ----------------------------------------------------------------------------------------------------------


@_word("{vm} runs on {node}")
def _runs_on(c: Cluster, vm: str, node: str) -> str:
    """Exactly one qemu of the VM can run, and it is there."""
    return _differs(f"the place of {vm}", c.oracle.running_on(c.uuid(vm)), [node])


@_word("{vm} runs once")
def _runs_once(c: Cluster, vm: str) -> str:
    """Exactly one qemu of the VM can run."""
    where = c.oracle.running_on(c.uuid(vm))
    return "" if len(where) == 1 else f"{vm} runs on {where or 'no host'}"


@_word("{vm} runs nowhere")
def _runs_nowhere(c: Cluster, vm: str) -> str:
    """No qemu of the VM."""
    return _differs(f"the place of {vm}", c.oracle.running_on(c.uuid(vm)), [])


@_word("{vm} runs on both {one} {two}")
def _runs_twice(c: Cluster, vm: str, one: str, two: str) -> str:
    """Two qemus: somebody did it by hand, or lied."""
    return _differs(f"the place of {vm}", sorted(c.oracle.running_on(c.uuid(vm))), sorted([one, two]))


@_word("{vm} started {count} times")
def _started(c: Cluster, vm: str, count: str) -> str:
    """How often Chime made a qemu for it since the beginning."""
    return _differs(f"the number of starts of {vm}", c.oracle.starts[c.uuid(vm)], count)


@_word("{vm} rebooted {count} times")
def _rebooted(c: Cluster, vm: str, count: str) -> str:
    """How often it was rebooted by command."""
    done = sum(host.hypervisor.reboots.count(c.uuid(vm)) for host in c.hosts.values())
    return _differs(f"the number of reboots of {vm}", done, count)


@_word("{vm} rebooted at most {count} times")
def _rebooted_at_most(c: Cluster, vm: str, count: str) -> str:
    """Not more often than that, by command."""
    done = sum(host.hypervisor.reboots.count(c.uuid(vm)) for host in c.hosts.values())
    return "" if done <= int(count) else f"{vm} was rebooted {done} times"


@_word("{vm} is defined on {node}")
def _defined(c: Cluster, vm: str, node: str) -> str:
    """libvirt there has its definition."""
    return "" if c.uuid(vm) in c.host(node).hypervisor.domains else f"{vm} is not defined on {node}"


@_word("{vm} is gone from {node}")
def _gone(c: Cluster, vm: str, node: str) -> str:
    """libvirt there has no definition of it."""
    return "" if c.uuid(vm) not in c.host(node).hypervisor.domains else f"{vm} is defined on {node}"


@_word("agentd {node} runs")
def _agent_runs(c: Cluster, node: str) -> str:
    """Its process lives."""
    return "" if c.host(node).agent is not None else f"no agentd runs on {node}"


@_word("agentd {node} is refused {code}")
def _refused(c: Cluster, node: str, code: str) -> str:
    """The server does not admit it, for this reason."""
    agent = c.host(node).agent
    why = "it does not run" if agent is None else agent.core.link.session or agent.core.link.last_error
    return "" if why.startswith(f"{code}:") else f"the session of agentd {node}: {why or 'none yet'}"


@_word("agentd {node} started {count} times")
def _agent_started(c: Cluster, node: str, count: str) -> str:
    """How often its process began: 1 without any crash."""
    return _differs(f"the number of starts of agentd on {node}", c.host(node).lives, count)


# --- what operators see -----------------------------------------------------------------------------------------------


def _of_vm(c: Cluster, vm: str, field: str, value: str) -> str:
    view = c.vm_view(vm)
    return f"{vm} is not known" if view is None else _differs(f"{field} of {vm}", getattr(view, field), value)


@_word("{vm} observed {value}")
def _observed(c: Cluster, vm: str, value: str) -> str:
    """How the server shows it."""
    return _of_vm(c, vm, "observed", value)


@_word("{vm} desired {value}")
def _desired(c: Cluster, vm: str, value: str) -> str:
    """What is wanted of it."""
    return _of_vm(c, vm, "desired", value)


@_word("{vm} owner {value}")
def _owner(c: Cluster, vm: str, value: str) -> str:
    """The node that may run it."""
    return _of_vm(c, vm, "node", value)


@_word("{vm} epoch {value}")
def _epoch(c: Cluster, vm: str, value: str) -> str:
    """Its epoch."""
    return _of_vm(c, vm, "epoch", value)


@_word("{vm} epoch above {value}")
def _epoch_above(c: Cluster, vm: str, value: str) -> str:
    """Its epoch is larger."""
    view = c.vm_view(vm)
    epoch = view.epoch if view is not None else 0
    return "" if epoch > int(value) else f"epoch of {vm} is {epoch}"


@_word("{vm} is unknown to chimed")
def _unknown(c: Cluster, vm: str) -> str:
    """There is no such VM."""
    return "" if c.vm_view(vm) is None else f"{vm} is known"


def _of_node(c: Cluster, node: str, field: str, value: str) -> str:
    view = next((n for n in c.node_views() if n.name == node), None)
    return f"{node} is not known" if view is None else _differs(f"{field} of {node}", getattr(view, field), value)


@_word("node {node} is {value}")
def _health(c: Cluster, node: str, value: str) -> str:
    """Its health: normal, error, unreachable, unknown."""
    return _of_node(c, node, "health", value)


@_word("node {node} admin {value}")
def _admin(c: Cluster, node: str, value: str) -> str:
    """Its admin state: enabled, disabled, drained."""
    return _of_node(c, node, "admin_state", value)


@_word("node {node} evidence {value}")
def _evidence(c: Cluster, node: str, value: str) -> str:
    """The evidence of its drain: none, agent, operator."""
    return _of_node(c, node, "drain_evidence", "None" if value == "none" else value)


@_word("node {node} reason {value}")
def _reason(c: Cluster, node: str, value: str) -> str:
    """Why it is in error."""
    view = next((n for n in c.node_views() if n.name == node), None)
    return "" if view is not None and value in view.reasons else f"reasons of {node}: {view.reasons if view else None}"


@_word("node {node} schedulable {value}")
def _schedulable(c: Cluster, node: str, value: str) -> str:
    """Whether new VMs may come there (yes, no)."""
    return _of_node(c, node, "schedulable", str(value == "yes"))


@_word("alarm {code} {subject}")
def _alarm(c: Cluster, code: str, subject: str) -> str:
    """It is raised now, and once."""
    names = {subject, c.uuids.get(subject, subject)}
    count = sum(alarm.code == code and alarm.subject in names for alarm in c.alarms())
    return "" if count == 1 else f"{count} such alarms; there are: {_alarms(c)}"


@_word("no alarm {code} {subject}")
def _no_alarm(c: Cluster, code: str, subject: str) -> str:
    """It is not raised now."""
    return "" if _alarm(c, code, subject) else f"alarm {code} {subject}"


@_word("no alarm")
def _no_alarms(c: Cluster) -> str:
    """None is raised now."""
    return f"there are: {_alarms(c)}" if c.alarms() else ""


def _alarms(c: Cluster) -> str:
    return ", ".join(f"{alarm.code} {alarm.subject}" for alarm in c.alarms()) or "none"


@_word("alarm {code} raised {count} times")
def _raised(c: Cluster, code: str, count: str) -> str:
    """How often since the beginning, for whomever."""
    raised = sum(event.action == "alarm-raised" and event.text.startswith(f"{code} ") for event in c.oracle.events)
    return _differs(f"the number of alarms {code}", raised, count)


@_word("alarm {code} raised at most {count} times")
def _raised_at_most(c: Cluster, code: str, count: str) -> str:
    """Not more often than that, for whomever."""
    raised = sum(event.action == "alarm-raised" and event.text.startswith(f"{code} ") for event in c.oracle.events)
    return "" if raised <= int(count) else f"alarm {code} was raised {raised} times"


@_word("event {action} of {subject}")
def _event(c: Cluster, action: str, subject: str) -> str:
    """The audit trail has such a line."""
    names = {subject, c.uuids.get(subject, subject)}
    found = any(event.action == action and event.subject in names for event in c.oracle.events)
    return "" if found else f"no event {action} of {subject}"


@_word("event {action} of {subject} {count} times")
def _events(c: Cluster, action: str, subject: str, count: str) -> str:
    """The audit trail has so many such lines."""
    names = {subject, c.uuids.get(subject, subject)}
    found = sum(event.action == action and event.subject in names for event in c.oracle.events)
    return _differs(f"the number of events {action} of {subject}", found, count)


@_word("rebuild of {node} shows {vm} {state}")
def _rebuild_shows(c: Cluster, node: str, vm: str, state: str) -> str:
    """The step of the VM in the newest rebuild: pending, running, waiting (for room), done, skipped, failed."""
    found = c.ask(m.OpList()) or {"items": []}
    rebuilds = [op for op in found["items"] if (op.kind, op.subject) == ("rebuild", node)]
    steps = {step.name: step for op in rebuilds[-1:] for step in op.steps}
    is_ = f"{steps[vm].state}" if vm in steps else "no step"
    return _differs(f"{vm} in the rebuild of {node}", is_, state)


@_word("generation {value}")
def _generation(c: Cluster, value: str) -> str:
    """How many times the database was restored, plus one."""
    status = c.ask(m.ServerStatus())
    return _differs("the generation", status["generation"] if status else "unknown", value)


@_word("chimed is recovering")
def _recovering(c: Cluster) -> str:
    """After a restore it still waits for nodes."""
    status = c.ask(m.ServerStatus())
    return "" if status and status["recovering"] else "it is not recovering"


@_word("chimed is read-only")
def _read_only(c: Cluster) -> str:
    """It cannot record changes."""
    status = c.ask(m.ServerStatus())
    return "" if status and status["read_only"] else "it records changes"


@_word("on {server} {rest}")
def _on(c: Cluster, server: str, rest: str) -> str:
    """The fact, as that one of two servers has it: `on second chimed is recovering`."""
    usual, c.server = c.server, c.servers[server]
    try:
        return otherwise(c, rest)
    finally:
        c.server = usual


@_word("answer to {rest}")
def _answer(c: Cluster, rest: str) -> str:
    """`answer to REQUEST: OUTCOME`; succeeded, failed, cancelled or running (its operation), ok (it began none),
    refused CODE, or none (nothing came yet)."""
    text, _, should = rest.partition(": ")
    requests = [request for request in c.operator.requests if request.text == text]
    if not requests:
        return f"nobody asked {text!r}"
    answer = requests[-1].answer
    if answer is None:
        return _differs(f"the answer to {text!r}", "none", should)
    if isinstance(answer, m.ErrorBody):
        return _differs(f"the answer to {text!r}", f"refused {answer.code}", should)
    operation = requests[-1].operation
    if not operation:
        return _differs(f"the answer to {text!r}", "ok", should)
    shown = c.ask(m.OpShow(id=operation))
    state = shown["operation"].state if shown else "unknown"
    return _differs(f"the operation of {text!r} ({shown['operation'].outcome if shown else ''})", state, should)


@_word("all is well")
def _well(c: Cluster) -> str:
    """Reality is as wanted, and the server's picture is reality."""
    if c.server.process is None:
        return "chimed does not run"
    return "; ".join(c.oracle.picture(c.vm_views(), c.node_views(), c.server.disk))
