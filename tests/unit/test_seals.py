"""Words that can be checked later: no two of them are the same, and nothing is forged from another."""

from __future__ import annotations

import itertools

import pytest

from wire import seals

KEY = seals.key_from("a secret")


def test_a_seal_is_the_same_each_time_and_fits_a_field() -> None:
    """Nothing is stored: a server whose database is older makes the same."""
    assert seals.of_assignment(KEY, "u", 1, "n1") == seals.of_assignment(seals.key_from("a secret"), "u", 1, "n1")
    for made in (
        seals.of_assignment(KEY, "u", 1, "n1"), seals.of_point(KEY, "n1", "h", 1, "l", 1), seals.voucher("s", "a", "b")
    ):  # fmt: skip
        assert len(made) == 2 * seals.SIZE and set(made) <= set("0123456789abcdef")


def test_another_secret_makes_other_seals() -> None:
    other = seals.key_from("another secret")
    assert other != KEY and seals.of_assignment(KEY, "u", 1, "n1") != seals.of_assignment(other, "u", 1, "n1")
    assert seals.of_point(KEY, "n1", "h", 1, "l", 1) != seals.of_point(other, "n1", "h", 1, "l", 1)


def test_the_key_of_the_seals_does_not_show_the_secret() -> None:
    assert b"a secret" not in KEY and len(KEY) == 32


TEXTS = ("", "1", "11", ":", "1:", ":1", "1:1", "2:1:", "vm", "2:vm", "\N{SNOWMAN}", "x", "xx", "x1:")


def test_parts_that_hold_separators_are_not_confused() -> None:
    """Names, histories and attempts come from others: none may be chosen so that two lists of parts read the same."""
    seen: dict[str, tuple[str, ...]] = {}
    lists = [parts for count in (1, 2, 3) for parts in itertools.product(TEXTS, repeat=count)]
    for parts in lists:
        made = seals._made(KEY, *parts)
        assert seen.setdefault(made, parts) == parts
    assert len(seen) == len(lists)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (seals.of_assignment(KEY, "u", 11, "n"), seals.of_assignment(KEY, "u1", 1, "n")),
        (seals.of_assignment(KEY, "u", 1, "1n"), seals.of_assignment(KEY, "u", 11, "n")),
        (seals.of_assignment(KEY, "u1:1", 1, "n"), seals.of_assignment(KEY, "u", 1, "1:1n")),
        (seals.of_point(KEY, "n", "h1", 1, "l", 1), seals.of_point(KEY, "n", "h", 11, "l", 1)),
        (seals.of_point(KEY, "n", "h", 1, "l1", 1), seals.of_point(KEY, "n", "h", 1, "l", 11)),
        (seals.of_point(KEY, "nh", "", 1, "l", 1), seals.of_point(KEY, "n", "h", 1, "l", 1)),
        (seals.voucher("s", "a1", "0.0.0.1"), seals.voucher("s", "a", "10.0.0.1")),
        (seals.voucher("s", "a:1", ""), seals.voucher("s", "a", ":1")),
    ],
)
def test_what_moves_from_one_part_to_the_next_makes_another_seal(one: str, other: str) -> None:
    assert one != other


def test_each_part_of_each_kind_counts() -> None:
    given = (("u", 1, "n"), ("v", 1, "n"), ("u", 2, "n"), ("u", 1, "m"))
    assert len({seals.of_assignment(KEY, *parts) for parts in given}) == 4
    base: list[object] = ["n", "h", 1, "l", 1]
    points = {seals.of_point(KEY, *base)}  # type: ignore[arg-type]
    for place, other in enumerate(["m", "i", 2, "k", 2]):
        points.add(seals.of_point(KEY, *[*base[:place], other, *base[place + 1 :]]))  # type: ignore[arg-type]
    assert len(points) == 6
    sent = (("s", "a", "b"), ("t", "a", "b"), ("s", "c", "b"), ("s", "a", "d"))
    assert len({seals.voucher(*parts) for parts in sent}) == 4


def test_one_kind_is_not_taken_for_another() -> None:
    """A point of a node named as a VM, in an epoch that is its generation, is no assignment."""
    assert seals.of_point(KEY, "u", "1", 1, "n", 1) != seals.of_assignment(KEY, "u", 1, "n")
    assert seals.voucher(KEY.hex(), "u", "1") != seals.of_assignment(KEY, "u", 1, "")


def test_a_voucher_needs_the_seal_of_the_owner() -> None:
    """Who only saw a voucher of another attempt cannot make one."""
    seal = seals.of_assignment(KEY, "u", 1, "n1")
    shown = seals.voucher(seal, "a", "10.0.0.2")
    assert seals.voucher(shown, "b", "10.0.0.2") != seals.voucher(seal, "b", "10.0.0.2")
    assert seals.voucher("", "a", "10.0.0.2") != shown


@pytest.mark.parametrize("shown", ["", "x", "0" * 32, "\N{LATIN SMALL LETTER E WITH ACUTE}", "a" * 31, "a" * 33])
def test_what_does_not_fit_is_no_error(shown: str) -> None:
    assert not seals.fits(shown, "a" * 32)
    assert seals.fits("a" * 32, "a" * 32)
