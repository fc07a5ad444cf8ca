"""Which faults are raised: pure, from what was bad in each reading.

Rules: a fault is raised after `raise_after` bad readings in a row and cleared after `clear_after` good ones in a row;
while it is raised its text stays, unless it becomes more or less urgent. What could not be read is neither good nor
bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentd.checks.interface import Code, Key, Symptom
from wire.messages import Fault
from wire.text import clean_line
from wire.types import Severity

MAX_SUBJECTS = 100
"""Disks, interfaces or paths that one check may complain about at a time."""
MAX_FAULTS = 64
MAX_TEXT = 500
MAX_PART = 160
UNKNOWN_CODE = Code(Severity.WARNING)
_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


@dataclass(frozen=True, slots=True)
class Track:
    """One symptom over time. `run`: readings in a row that speak against what is so far."""

    text: str
    severity: Severity
    raised: bool
    run: int


Tracks = Mapping[Key, Track]


def judge(tracks: Tracks, symptoms: Iterable[Symptom], codes: Mapping[str, Code]) -> dict[Key, Track]:
    """What is known after one more reading."""
    bad = {symptom.key: symptom for symptom in symptoms}
    judged: dict[Key, Track] = {}
    for key in sorted({*tracks, *bad}, key=lambda key: (key not in tracks, key)):
        track = _judge_one(tracks.get(key), bad.get(key), codes.get(key.code, UNKNOWN_CODE))
        if track is not None and len(judged) < MAX_SUBJECTS:
            judged[key] = track
    return judged


def _judge_one(track: Track | None, symptom: Symptom | None, code: Code) -> Track | None:
    if symptom is None:
        if track is None or not track.raised or track.run + 1 >= code.clear_after:
            return None
        return Track(track.text, track.severity, True, track.run + 1)
    severity, text = symptom.severity or code.severity, clean_line(symptom.text, MAX_PART)
    if track is not None and track.raised:
        return Track(track.text if severity == track.severity else text, severity, True, 0)
    run = (track.run if track is not None else 0) + 1
    return Track(text, severity, run >= code.raise_after, 0 if run >= code.raise_after else run)


def raised(tracks: Tracks) -> frozenset[Key]:
    """What is raised."""
    return frozenset(key for key, track in tracks.items() if track.raised)


def faults(all_tracks: Iterable[Tracks], severities: Mapping[str, Severity]) -> tuple[Fault, ...]:
    """One fault for each code that is raised, as urgent as the worst of what it is about, or as `severities` says."""
    by_code: dict[str, list[tuple[str, Track]]] = {}
    for tracks in all_tracks:
        for key, track in tracks.items():
            if track.raised:
                by_code.setdefault(key.code, []).append((key.subject, track))
    made = []
    for code, found in sorted(by_code.items())[:MAX_FAULTS]:
        texts = [track.text for _, track in sorted(found, key=lambda pair: pair[0])]
        worst = max((track.severity for _, track in found), key=_RANK.__getitem__)
        text = clean_line("; ".join(texts), MAX_TEXT)
        made.append(Fault(code=code, text=text, severity=severities.get(code, worst)))
    return tuple(made)
