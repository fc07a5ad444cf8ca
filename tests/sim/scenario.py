"""Scenarios: how a run begins, what happens when, and what must be true then. See README.md for the format."""

from __future__ import annotations

from pathlib import Path

import msgspec

from chimed.core.state.turn import Policy
from tests.sim import commands, facts
from tests.sim.cluster import Cluster, Plan, VmPlan
from tests.sim.delays import KINDS
from tests.sim.story import Story
from tests.sim.words import Usage
from wire.types import Desired, OnGuestShutdown, Storage

POLL_S = 0.5
WARM_UP_S = 30.0


class Step(msgspec.Struct, frozen=True):
    """One line: a command, or a fact to expect (`expect` True) at once, `within` or `throughout` so many seconds.
    `time`: since the beginning, or since the step before has ended (`after`)."""

    time: float
    text: str
    after: bool = False
    line: int = 0
    expect: bool = False
    within: float = 0.0
    throughout: float = 0.0


class Scenario(msgspec.Struct):
    """A parsed file."""

    plan: Plan
    steps: list[Step]
    title: str = ""
    seed: int = 1


class ExpectationError(AssertionError):
    """A fact is otherwise than the scenario says."""


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Scenario:
    """The scenario in a file. Raises Usage, with the number of the line."""
    return parse(path.read_text(), path.name)


def parse(text: str, name: str = "scenario") -> Scenario:
    """A scenario from its text. Raises Usage, with the number of the line."""
    scenario = Scenario(Plan([], []), [])
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not scenario.title and raw.startswith("#"):
            scenario.title = raw.lstrip("# ").strip()
        if not line:
            continue
        try:
            _line(scenario, line, number)
        except (ValueError, KeyError) as error:
            raise Usage(f"{name}:{number}: {error}") from None
    if not scenario.plan.nodes:
        raise Usage(f"{name}: it has no line `nodes ...`")
    return scenario


def _line(scenario: Scenario, line: str, number: int) -> None:
    first, _, rest = line.partition(" ")
    if first in _HEADERS:
        _HEADERS[first](scenario, rest.split())
        return
    time, after = 0.0, True
    if first == "at":
        word, _, line = rest.strip().partition(" ")
        time, after, line = _seconds(word.lstrip("+")), word.startswith("+"), line.strip()
    if line.startswith("expect "):
        scenario.steps.append(_expectation(line.removeprefix("expect ").strip(), time, after, number))
    else:
        commands.COMMANDS.find(line)
        scenario.steps.append(Step(time, line, after, number))


def _seconds(text: str) -> float:
    """Seconds; with `m` or `h`: minutes or hours."""
    return float(text.rstrip("mh")) * {"m": 60.0, "h": 3600.0}.get(text[-1:], 1.0)


def _expectation(line: str, time: float, after: bool, number: int) -> Step:
    words = line.split()
    within = throughout = 0.0
    if len(words) > 2 and words[-2] in ("within", "for"):
        seconds = _seconds(words[-1])
        within, throughout = (seconds, 0.0) if words[-2] == "within" else (0.0, seconds)
        line = " ".join(words[:-2])
    facts.FACTS.find(line)
    return Step(time, line, after, number, True, within, throughout)


def _nodes(scenario: Scenario, words: list[str]) -> None:
    if "memory" in words:
        at = words.index("memory")
        scenario.plan.memory_mib = int(words[at + 1])
        words = words[:at]
    scenario.plan.nodes += words


def _vm(scenario: Scenario, words: list[str]) -> None:
    """`NAME on NODE [local] [stopped] [restarts] [memory MIB] [priority N]`"""
    name, on, node, *rest = words
    if on != "on" or node not in scenario.plan.nodes:
        raise ValueError("a VM is written as: vm NAME on NODE [local] [stopped] [restarts] [memory MIB] [priority N]")
    vm = VmPlan(name, node)
    while rest:
        word = rest.pop(0)
        if word == "local":
            vm.storage = Storage.LOCAL
        elif word == "stopped":
            vm.desired = Desired.STOPPED
        elif word == "restarts":
            vm.on_guest_shutdown = OnGuestShutdown.RESTART
        elif word == "memory":
            vm.memory_mib = int(rest.pop(0))
        elif word == "priority":
            vm.priority = int(rest.pop(0))
        else:
            raise ValueError(f"a VM is not {word!r}")
    scenario.plan.vms.append(vm)


def _seed(scenario: Scenario, words: list[str]) -> None:
    scenario.seed = int(words[0])


def _set(scenario: Scenario, words: list[str]) -> None:
    """A setting of the server: `set heartbeat_s 15`."""
    name, value = words
    kind = type(getattr(Policy(), name, None))
    if kind not in (int, float):
        raise ValueError(f"there is no setting {name}")
    scenario.plan.policy = msgspec.structs.replace(scenario.plan.policy, **{name: kind(value)})


def _delays(scenario: Scenario, words: list[str]) -> None:
    """`delays usual`: things take longer now and then."""
    if words[0] not in KINDS:
        raise ValueError(f"delays are: {', '.join(KINDS)}")
    scenario.plan.delays = words[0]


_HEADERS = {"nodes": _nodes, "vm": _vm, "seed": _seed, "set": _set, "delays": _delays}
"""Lines that say how the run begins."""


# --- running ----------------------------------------------------------------------------------------------------------


def run(scenario: Scenario, story: Story | None = None, seed: int | None = None) -> Cluster:
    """Carries it out. Raises ExpectationError or Violation."""
    cluster = Cluster(scenario.plan, scenario.seed if seed is None else seed, story)
    for step in scenario.steps:
        now = cluster.engine.now
        cluster.engine.run_until(now + step.time if step.after else max(now, step.time))
        if step.expect:
            _check(cluster, step)
        else:
            commands.carry_out(cluster, step.text)
    return cluster


def _check(cluster: Cluster, step: Step) -> None:
    engine = cluster.engine
    end = engine.now + max(step.within, step.throughout)
    why = facts.otherwise(cluster, step.text)
    while engine.now < end and bool(why) == bool(step.within):
        engine.run_until(min(end, engine.now + POLL_S))
        why = facts.otherwise(cluster, step.text)
    cluster.story.tell(engine.now, "expect", f"{'NOT SO' if why else 'ok'}: {step.text}{': ' + why if why else ''}")
    if why:
        raise ExpectationError(f"line {step.line}, {engine.now:.0f} s: expected {step.text!r}, but {why}")
