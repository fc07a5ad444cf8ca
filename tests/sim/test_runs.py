"""The simulator itself: runs are repeatable, defects are found, shortened and told, bad scenarios refused in words."""

from __future__ import annotations

import pytest

from agentd.core import guard
from tests.sim import chaos, runner, scenario, shrink
from tests.sim.engine import Violation
from tests.sim.story import Story


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    runner.prepare()


@pytest.mark.parametrize("seed", range(1, 31))
def test_random_runs_hold_all_invariants(seed: int) -> None:
    outcome, last_s = runner.run_seed(seed), chaos.scenario_of(seed).steps[-1].time
    assert outcome.violation == ""
    assert outcome.hours * 3600 >= last_s + chaos.SETTLE_S and outcome.events > 50


def test_the_same_seed_is_the_same_run() -> None:
    stories = []
    for _ in range(2):
        story = Story(on=True)
        cluster = chaos.run(chaos.scenario_of(11), story)
        stories.append((cluster.engine.events, [str(line) for line in story.lines]))
    assert stories[0] == stories[1]


def test_a_defect_is_found_shortened_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that starts what runs already."""
    monkeypatch.setattr(guard, "_alive", lambda facts: None)
    text = "seed 2\nnodes n1\nvm web on n1\nvm db on n1\nat 30 kill qemu db\nat 31 qemu of web by hand on n1\n" \
           "at 40 kill qemu web\nat 45 wall clock 5\nat 60 kill agentd n1\n"  # fmt: skip
    whole = scenario.parse(text)
    found = shrink.failure(whole)
    assert found is not None and found.rule == "S1"
    short = shrink.shrink(whole)
    assert [step.text for step in short.steps][:2] == ["qemu of web by hand on n1", "kill qemu web"]
    assert len(short.steps) <= 3  # it may keep one that only lets time pass
    assert [vm.name for vm in short.plan.vms] == ["web"]
    again = scenario.parse(shrink.as_text(short))
    story = Story(on=True)
    with pytest.raises(Violation, match="S1"):
        scenario.run(again, story)
    told = "\n".join(str(line) for line in story.of("web"))
    assert "kill qemu web" in told and "libvirt: web stopped crashed" in told


@pytest.mark.parametrize(("text", "words"), [
    ("", "no line `nodes"),
    ("nodes n1\nat 5 explode n1", "scenario:2: no command is written as 'explode n1'"),
    ("nodes n1\nat 5 power n1", "there is: power {node} off; power {node} on"),
    ("nodes n1\nat soon power n1 off", "scenario:2: could not convert"),
    ("nodes n1\nexpect the best", "scenario:2: no fact is written as"),
    ("nodes n1\nvm web on n9", "scenario:2: a VM is written as"),
    ("nodes n1\nvm web on n1 purple", "not 'purple'"),
    ("nodes n1\nset patience 5", "there is no setting patience"),
])  # fmt: skip
def test_a_line_that_means_nothing_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(scenario.Usage) as refused:
        scenario.parse(text)
    assert words in str(refused.value)


def test_an_expectation_that_does_not_hold_names_its_line() -> None:
    wrong = scenario.parse("nodes n1\nvm web on n1\nat 30 expect web runs on n1\n   expect web runs nowhere within 5\n")
    with pytest.raises(scenario.ExpectationError, match=r"line 4, 35 s: expected 'web runs nowhere', but .*\['n1'\]"):
        scenario.run(wrong)


def test_a_node_that_is_not_there_is_a_mistake_of_the_scenario() -> None:
    with pytest.raises(scenario.Usage, match="there is no 'n9'"):
        scenario.run(scenario.parse("nodes n1\nat 5 power n9 off"))


def test_an_error_in_a_core_is_a_failure_with_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(guard, "refusal", broken)
    outcome = runner.run_seed(1)
    assert outcome.violation.startswith("bug: ") and "RuntimeError: a bug" in outcome.violation
    told: list[str] = []
    runner.explain(1, told.append)
    text = "\n".join(told)
    assert "make sim SCENARIO=FILE" in text and "connected to fake" in text and "RuntimeError: a bug" in text
