"""What is counted for people is said as people say it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wire.text import counted

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("chimed", "agentd", "tools") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(("number", "said"), [(0, "0 VMs"), (1, "1 VM"), (2, "2 VMs")])
def test_one_is_one_and_others_are_many(number: int, said: str) -> None:
    assert counted(number, "VM") == said


def test_the_words_after_it_agree() -> None:
    assert [counted(number, "VM is", "VMs are") for number in (1, 2)] == ["1 VM is", "2 VMs are"]


def test_no_text_counts_by_itself() -> None:
    by_itself = re.compile(r"\} (?:[a-z]+ )?(?:VMs|nodes|migrations|copies|vCPUs|times)\b")
    assert SOURCES and not [path for path in SOURCES if by_itself.search(path.read_text())]
