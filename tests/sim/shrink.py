"""A shorter run that fails in the same way: what is left out was not needed."""

from __future__ import annotations

import traceback

import msgspec

from tests.sim import chaos
from tests.sim.engine import Violation
from tests.sim.scenario import Scenario, Step


def failure(scenario: Scenario) -> Violation | None:
    """How the run fails, if it does. An error in the cores, or in the simulator, is a failure too."""
    try:
        chaos.run(scenario)
    except Violation as violation:
        return violation
    except Exception:
        return Violation("bug", traceback.format_exc(limit=-6))
    return None


def shrink(scenario: Scenario, budget: int = 400) -> Scenario:
    """Leaves out ever smaller parts as long as the same invariant is violated; at most `budget` runs."""
    first = failure(scenario)
    if first is None:
        return scenario
    rule = first.rule
    size = max(1, len(scenario.steps) // 2)
    while size and budget > 0:
        at = 0
        while at < len(scenario.steps) and budget > 0:
            budget -= 1
            shorter = _without(scenario, at, at + size)
            found = failure(shorter)
            if found is not None and found.rule == rule:
                scenario = shorter
            else:
                at += size
        size //= 2
    for vm in list(scenario.plan.vms) if budget > 0 else []:
        vms = [kept for kept in scenario.plan.vms if kept is not vm]
        shorter = msgspec.structs.replace(scenario, plan=msgspec.structs.replace(scenario.plan, vms=vms))
        found = failure(shorter)
        if found is not None and found.rule == rule:
            scenario = shorter
    return scenario


def _without(scenario: Scenario, start: int, end: int) -> Scenario:
    return msgspec.structs.replace(scenario, steps=[*scenario.steps[:start], *scenario.steps[end:]])


def as_text(scenario: Scenario) -> str:
    """The run as a scenario file: `make sim SCENARIO=FILE` runs it."""
    plan = scenario.plan
    lines = [f"# {scenario.title}", f"seed {scenario.seed}"]
    lines += [f"delays {plan.delays}"] if plan.delays != "short" else []
    lines += [f"nodes {' '.join(plan.nodes)} memory {plan.memory_mib}"]
    for vm in plan.vms:
        words = ["local"] if vm.storage == "local" else []
        words += ["stopped"] if vm.desired == "stopped" else []
        words += ["restarts"] if vm.on_guest_shutdown == "restart" else []
        lines.append(" ".join(["vm", vm.name, "on", vm.node, *words]))
    lines += [_line(step) for step in scenario.steps]
    last = scenario.steps[-1].time if scenario.steps else 0.0
    lines += [f"at {last + 1:g} faults stop", f"at +{chaos.SETTLE_S:g} expect all is well"]
    return "\n".join(lines) + "\n"


def _line(step: Step) -> str:
    return f"at {step.time:g} {step.text}"
