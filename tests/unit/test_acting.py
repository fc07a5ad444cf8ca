"""One thing done to a VM: nothing is called that the guard refuses, and every error has its word."""

from __future__ import annotations

from typing import cast

import pytest

from agentd.acting import Outcome, acted, carry_out, outcome_of
from agentd.core import effects as fx
from agentd.core.durable import Attempt, Left
from agentd.core.facts import VmFacts
from agentd.core.guard import UNGUARDED
from agentd.hypervisor import HypervisorError, InvalidVm, NoArrival
from tests.contract.harness import new_vm

ATTEMPT = Attempt(id="a1", target="n2", address="target")
LEFT = Left(attempt="a1", epoch=1, name="v", target="n2", address="target")
VM = new_vm()


class Recorder:
    """A hypervisor, and a guard, that write down what they are asked. `problem`: what every call raises."""

    def __init__(self, refusal: str | None = None, problem: Exception | None = None) -> None:
        self.refusal, self.problem = refusal, problem
        self.asked: list[str] = []

    def guard(self, act: fx.Act, facts: VmFacts) -> str | None:
        assert facts.uuid == act.uuid == VM.uuid
        self.asked.append("guard")
        return self.refusal

    def inspect(self, uuid: str) -> VmFacts:
        self.asked.append("inspect")
        return VmFacts(uuid, True)

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        def call(*args: object) -> None:
            self.asked.append(name)
            if self.problem is not None:
                raise self.problem

        return call


def do(action: fx.Action, recorder: Recorder) -> Outcome:
    act = fx.Act(VM.uuid, action, 7, vm=VM, attempt=ATTEMPT, left=LEFT)
    return carry_out(act, recorder, recorder.guard, "n1", lambda event: None)


@pytest.mark.parametrize("action", fx.Action)
def test_each_action_is_one_call_and_what_is_guarded_is_looked_at_and_asked_for_first(action: fx.Action) -> None:
    recorder = Recorder()
    assert do(action, recorder) == Outcome()
    before = [] if action in UNGUARDED else ["inspect", "guard"]
    assert recorder.asked == [*before, action.value.replace("-", "_")]


@pytest.mark.parametrize("action", [fx.Action.START, fx.Action.RESUME, fx.Action.MIGRATE, cast(fx.Action, "teleport")])
def test_what_is_refused_is_not_called(action: fx.Action) -> None:
    recorder = Recorder(refusal="no")
    assert do(action, recorder) == Outcome(refused="no")
    assert recorder.asked == ["inspect", "guard"]


PROBLEMS = {
    "an error": (HypervisorError("busy"), Outcome("busy")),
    "a VM that cannot run": (InvalidVm("no disk"), Outcome("no disk", invalid=True)),
    "no copy": (NoArrival("nobody"), Outcome("nobody", invalid=True)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("action", fx.Action)
def test_each_error_of_each_call_has_its_word(action: fx.Action, problem: str) -> None:
    raised, outcome = PROBLEMS[problem]
    assert do(action, Recorder(problem=raised)) == outcome


def test_a_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        outcome_of(lambda: print(1 // 0))


def test_the_core_hears_the_outcome_with_what_was_seen_afterwards() -> None:
    act, seen = fx.Act(VM.uuid, fx.Action.START, 7), VmFacts(VM.uuid, True)
    event = acted(act, Outcome("busy", invalid=True), seen)
    assert event == fx.Acted(VM.uuid, fx.Action.START, 7, seen, error="busy", invalid=True)
    assert acted(act, Outcome(refused="no"), seen).refused == "no"
