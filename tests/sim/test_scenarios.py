"""Every file of tests/scenarios: what must happen under one fault, readable in a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim import scenario

FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))

@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """With the file's own seed, and with others: what it expects may not hang on luck."""
    found = scenario.read(path)
    for seed in (found.seed, 1001, 1002):
        scenario.run(found, seed=seed)


def test_there_are_enough_and_each_says_what_it_shows() -> None:
    assert len(FILES) >= 60
    for path in FILES:
        assert scenario.read(path).title, f"{path.name} begins with no line that says what it shows"
        assert any(step.expect for step in scenario.read(path).steps), f"{path.name} expects nothing"
