"""Hysteresis: raised after k bad readings in a row, cleared after k good ones, and one fault for each code."""

from __future__ import annotations

import pytest

from agentd.checks import judging
from agentd.checks.interface import Code, Key, Symptom
from wire.types import Severity

CODES = {
    "slow": Code(Severity.WARNING, raise_after=2, clear_after=3),
    "broken": Code(Severity.CRITICAL),
    "notice": Code(Severity.INFO, clear_after=1),
}


def symptom(code: str, subject: str = "sda", text: str = "as seen", severity: Severity | None = None) -> Symptom:
    return Symptom(code, subject, text, severity)


def states(readings: str, code: str) -> str:
    """B: a bad reading, g: a good one. The fault after each: R raised, - not."""
    tracks: judging.Tracks = {}
    seen = ""
    for reading in readings:
        tracks = judging.judge(tracks, [symptom(code)] if reading == "B" else [], CODES)
        seen += "R" if judging.raised(tracks) else "-"
    return seen


@pytest.mark.parametrize(
    ("code", "readings", "expected"),
    [
        ("slow", "gBgBgB", "------"),
        ("slow", "BBgggg", "-RRR--"),
        ("slow", "BBggBggg", "-RRRRRR-"),
        ("slow", "BBgggBB", "-RRR--R"),
        ("broken", "BgBgBgg", "RRRRRR-"),
        ("notice", "BgBg", "R-R-"),
        ("of a site", "Bgg", "RR-"),
    ],
)
def test_raised_and_cleared(code: str, readings: str, expected: str) -> None:
    assert states(readings, code) == expected


def test_what_is_over_is_forgotten() -> None:
    tracks = judging.judge({}, [symptom("slow")], CODES)
    assert judging.judge(tracks, [], CODES) == {}


def test_each_subject_has_its_own_hysteresis() -> None:
    tracks = judging.judge({}, [symptom("slow", "sda")], CODES)
    tracks = judging.judge(tracks, [symptom("slow", "sda"), symptom("slow", "sdb")], CODES)
    assert judging.raised(tracks) == {Key("slow", "sda")}


def test_the_text_of_a_lasting_fault_stays_until_it_is_more_urgent() -> None:
    tracks = judging.judge({}, [symptom("broken", text="1 %", severity=Severity.WARNING)], CODES)
    tracks = judging.judge(tracks, [symptom("broken", text="2 %", severity=Severity.WARNING)], CODES)
    (fault,) = judging.faults([tracks], {})
    assert (fault.text, fault.severity) == ("1 %", Severity.WARNING)
    tracks = judging.judge(tracks, [symptom("broken", text="3 %")], CODES)
    (fault,) = judging.faults([tracks], {})
    assert (fault.text, fault.severity) == ("3 %", Severity.CRITICAL)


def test_one_fault_for_each_code_as_urgent_as_its_worst() -> None:
    one = judging.judge({}, [symptom("broken", "sdb", "b", Severity.WARNING), symptom("notice", "", "n")], CODES)
    two = judging.judge({}, [symptom("broken", "sda", "a"), symptom("slow")], CODES)
    shown = [(f.code, f.text, f.severity) for f in judging.faults([one, two], {})]
    assert shown == [("broken", "a; b", Severity.CRITICAL), ("notice", "n", Severity.INFO)]


def test_a_site_says_how_urgent_a_code_is() -> None:
    tracks = judging.judge({}, [symptom("notice")], CODES)
    (fault,) = judging.faults([tracks], {"notice": Severity.CRITICAL})
    assert fault.severity == Severity.CRITICAL


def test_all_is_bounded_and_clean() -> None:
    tracks = judging.judge({}, [symptom("broken", f"{n:03}", "x\x1b\n" * 500) for n in range(500)], CODES)
    assert len(tracks) == judging.MAX_SUBJECTS
    again = judging.judge(tracks, [symptom("broken", f"{n:03}") for n in range(999, -1, -1)], CODES)
    assert again.keys() == tracks.keys()
    (fault,) = judging.faults([tracks], {})
    assert len(fault.text) <= judging.MAX_TEXT and "\x1b" not in fault.text and "\n" not in fault.text
    many = [judging.judge({}, [symptom(f"code{n}")], {}) for n in range(500)]
    assert len(judging.faults(many, {})) == judging.MAX_FAULTS
