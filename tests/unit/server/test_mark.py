"""Which database is the newest in its place."""

from __future__ import annotations

import pytest

from chimed.core.state.mark import Mark, put_back

NEWEST = Mark(3, "h", 7, (5,))
CASES = {
    "the same": (Mark(3, "h", 7, (5,)), ""),
    "further": (Mark(3, "h", 8, (5,)), ""),
    "a higher generation": (Mark(4, "x", 0, (5,)), ""),
    "a higher generation in another file": (Mark(4, "x", 0, (6,)), "the file is not the one"),
    "a lower generation": (Mark(2, "h", 99, (5,)), "one of generation 3 was in its place"),
    "another history": (Mark(3, "x", 99, (5,)), "one of another history with the same generation 3"),
    "a history without a name": (Mark(3, "", 7, (5,)), ""),
    "fewer changes": (Mark(3, "h", 6, (5,)), "7 changes were saved in its place, and it has 6 of them"),
    "another file": (Mark(3, "h", 7, (6,)), "the file is not the one that was open here last"),
    "one of two lives": (Mark(3, "h", 7, (6, 5)), ""),
    "an unknown life": (Mark(3, "h", 7), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_of_a_newer_one(case: str) -> None:
    mine, words = CASES[case]
    found = put_back(mine, NEWEST)
    assert (found is not None) is bool(words)
    if found is not None:
        assert words in found.text and found.generation == max(mine.generation, NEWEST.generation)


def test_where_nothing_was_noted_every_database_is_the_newest() -> None:
    assert put_back(Mark(1, "h", 1, (5,)), Mark()) is None
