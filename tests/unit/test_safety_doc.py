"""`docs/safety.md` names scenarios, tests and defects that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sim.defects import DEFECTS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/safety.md").read_text()
SCENARIOS = ROOT / "tests/scenarios"
ROWS = re.findall(r"^\|[^|]+\|(?: (?:S\d|R1|L1))+ \|([^|]*)\|([^|]*)\|[^|]*\|$", TEXT, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`((?:[a-h]?\d+)-[a-z0-9-]+)`", TEXT)))


@pytest.mark.parametrize("name", NAMED)
def test_the_scenario_exists(name: str) -> None:
    assert (SCENARIOS / f"{name}.txt").is_file()


def test_what_shows_a_rule_exists() -> None:
    assert len(ROWS) > 20
    names = {defect.name for defect in DEFECTS}
    for scenarios, defects in ROWS:
        for pattern in re.findall(r"[a-z]?\d+-[a-z0-9*-]+", scenarios):
            assert list(SCENARIOS.glob(f"{pattern}.txt")), pattern
        for pattern in re.findall(r"[a-z]+(?:-[a-z*]+)+", defects):
            assert any(Path(name).match(pattern) for name in names), pattern


def test_the_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:tests|agentd|chimed|wire)/[\w/.]*)`", TEXT))
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)
