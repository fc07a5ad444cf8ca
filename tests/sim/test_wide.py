"""The widened world: state that goes back, two servers, a liar. It is repeatable, written as scenarios, and judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chimed.core.state import rows as r
from tests.fakes import rows
from tests.fakes.store import FakeDisk
from tests.sim import chaos, runner, scenario, shrink
from tests.sim.commands import COMMANDS
from tests.sim.delays import LONGEST_S, Delays
from tests.sim.engine import Violation
from tests.sim.story import Story
from tests.sim.trust import Trust
from wire.messages import Step
from wire.types import Desired, StepState


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    runner.prepare()


@pytest.fixture(params=["back", "two", "liar"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(chaos, "WIDENED", 1.0)
    monkeypatch.setattr(chaos, "SHAPES", ((request.param, 1),))
    return str(request.param)


def _told(seed: int) -> list[str]:
    story = Story(on=True)
    try:
        chaos.run(chaos.scenario_of(seed), story)
    except Violation as violation:
        return [*map(str, story.lines), str(violation)]
    return list(map(str, story.lines))


def test_a_widened_run_is_the_same_under_the_same_seed(shape: str) -> None:
    assert _told(3) == _told(3)


def test_a_widened_run_can_be_written_down_and_read_again(shape: str) -> None:
    for seed in range(1, 20):
        drawn = chaos.scenario_of(seed)
        again = scenario.parse(shrink.as_text(drawn))
        assert [step.text for step in again.steps if not step.expect][:-1] == [step.text for step in drawn.steps]
        assert again.plan.delays == drawn.plan.delays


def test_every_command_that_a_shape_draws_means_something() -> None:
    deck_rng = chaos.random.Random(1)
    plan = chaos.plan_of(deck_rng)
    for kind, draws in chaos.MORE.items():
        deck = chaos.Deck(plan, deck_rng, kind)
        for draw, _ in draws:
            for text in draw(deck).split("; "):
                COMMANDS.find(text)


def test_delays_have_tails_and_short_ones_have_none() -> None:
    delays = Delays(1)
    assert {delays.tail() for _ in range(100)} == {0.0}
    delays.become("long")
    drawn = [delays.tail() for _ in range(5000)]
    assert 0.5 < sum(tail == 0.0 for tail in drawn) / len(drawn) < 0.8
    assert any(tail > 1.0 for tail in drawn) and max(drawn) <= LONGEST_S


@pytest.mark.parametrize(("text", "words"), [
    ("nodes n1\ndelays endless", "delays are: short, usual, long"),
    ("nodes n1\nat 5 n1 turns saint", "no command is written as"),
])  # fmt: skip
def test_a_line_that_means_nothing_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(scenario.Usage, match=words):
        scenario.parse(text)


@pytest.mark.parametrize(("text", "words"), [
    ("nodes n1\nvm web on n1\nat 5 n1 lies that web exploded by x", "an attempt can be"),
    ("nodes n1\nat 5 keep server third", "the servers are"),
])  # fmt: skip
def test_a_word_that_there_is_not_is_a_mistake_of_the_scenario(text: str, words: str) -> None:
    with pytest.raises(scenario.Usage, match=words):
        scenario.run(scenario.parse(text))


# --- S7 ---------------------------------------------------------------------------------------------------------------


class World:
    """A disk on which commits are judged. `web` is n1's, `own` the liar's (n3)."""

    def __init__(self) -> None:
        self.disk, self.spoilt = FakeDisk(), [""]
        self.web, self.own = rows.vm("web", "n1"), rows.vm("own", "n3")
        for row in (rows.node("n1"), rows.node("n2"), rows.node("n3"), self.web, self.own):
            self.put(row)
        self.trust = Trust(self.spoilt.append)
        self.trust.begins_to_lie("n3", self.disk, ())

    def put(self, row: r.Row) -> None:
        change = rows.change(row)
        self.disk.tables[change.table][change.key] = row

    def commit(self, speaker: str, *changes: r.Change) -> None:
        """Judged as a turn of `speaker`'s."""
        before = [(change, self.disk.tables[change.table].get(change.key)) for change in changes]
        for change in changes:
            if change.row is not None:
                self.put(change.row)
            else:
                self.disk.tables[change.table].pop(change.key, None)
        server: Any = SimpleNamespace(disk=self.disk, process=SimpleNamespace(speaker=speaker))
        self.trust.committed(server, before)


def _changed(row: Any, **fields: Any) -> r.Change:
    return rows.change(msgspec.structs.replace(row, **fields))


def test_s7_what_was_the_liars_is_nobodys_business() -> None:
    world = World()
    assert world.trust.theirs == {world.own.uuid} and world.spoilt == ["", world.own.uuid]
    world.commit("n3", _changed(world.own, epoch=9, node="n2"))


@pytest.mark.parametrize("fields", [
    {"node": "n2", "epoch": 2}, {"epoch": 2}, {"desired": Desired.STOPPED}, {"doubt": "x"}, {"attempt": "x"},
])  # fmt: skip
def test_s7_in_the_liars_turn_nothing_changes_at_a_vm_of_another(fields: dict[str, Any]) -> None:
    world = World()
    world.commit("n1", _changed(world.web, **fields))
    world = World()
    with pytest.raises(Violation, match="S7: a word of n3 changes vms"):
        world.commit("n3", _changed(world.web, **fields))


@pytest.mark.parametrize("speaker", ["", "n1", "n3"])
def test_s7_no_vm_comes_to_the_liar_that_nobody_sent_there(speaker: str) -> None:
    world = World()
    with pytest.raises(Violation, match="S7: web comes from n1 to n3, where nobody sent it"):
        world.commit(speaker, _changed(world.web, node="n3", epoch=2))


def test_s7_a_vm_that_an_operation_moves_to_the_liar_was_sent_there() -> None:
    world = World()
    step = Step(name=world.web.uuid, state=StepState.PENDING)
    world.put(rows.operation(1, kind="rebuild", steps=(step,)))
    world.commit("n3", _changed(world.web, node="n3", epoch=2))
    assert world.web.uuid in world.trust.theirs
    world = World()
    world.commit("", rows.change(rows.migration("web", "op-1", target="n3")))
    assert world.web.uuid in world.trust.theirs
    world.commit("n3", _changed(world.web, node="n3", epoch=2, arrival="op-1-1"))


def test_s7_during_a_rebuild_a_copy_that_the_liar_claims_is_no_order() -> None:
    world = World()
    world.put(rows.operation(1, kind="rebuild", steps=(Step(name=world.web.uuid, state=StepState.PENDING),)))
    with pytest.raises(Violation, match="S7"):
        world.commit("n3", _changed(world.web, node="n3", epoch=2, arrival="never-1"))


def test_s7_the_liar_confirms_no_release_and_answers_no_command_of_another() -> None:
    world = World()
    release = r.Release(node="n1", uuid=world.web.uuid, epoch=1, revision=3)
    world.put(release)
    with pytest.raises(Violation, match="S7: a word of n3 changes releases"):
        world.commit("n3", rows.deletion(release))
    command = r.Command(id="c", node="n1", uuid=world.web.uuid, epoch=1, kind="reboot", force=False, revision=3,
                        timeout_s=60.0, operation="op-1")  # fmt: skip
    world.put(command)
    with pytest.raises(Violation, match="S7: a word of n3 changes commands"):
        world.commit("n3", rows.deletion(command))


def test_s7_the_liar_speaks_of_no_other_node_and_not_for_the_server() -> None:
    world = World()
    with pytest.raises(Violation, match="S7: a word of n3 changes nodes"):
        world.commit("n3", _changed(rows.node("n1"), boot_id="b"))
    world.commit("n3", _changed(rows.node("n3"), boot_id="b"))
    world.put(r.Meta(waiting_for=("n1", "n2", "n3")))
    world.commit("n3", rows.change(r.Meta(waiting_for=("n1", "n2"))))
    with pytest.raises(Violation, match="S7: a word of n3 changes meta"):
        world.commit("n3", rows.change(r.Meta(waiting_for=("n2",))))
