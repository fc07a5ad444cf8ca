"""How much history is kept, and what of it goes: by the order in which rows came and the time that this process has
counted, never by what a clock said of them. The store removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

AGES = 100  # an answer is kept up to one in so many parts longer than asked for
PRUNE_STEP = 5_000  # rows that one call of `prune` removes at most from each table: a turn stays short


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept."""

    events: int = 1_000_000
    operations: int = 100_000  # ended ones
    alarms: int = 20_000  # cleared ones
    answers: int = 100_000
    answers_s: float = 86_400.0


class Ages:
    """Which answers were there when. Only of this life: after a restart the time begins anew."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []  # when, and the newest answer then

    def before(self, moment: float) -> int:
        """All answers up to this row were there at `moment`."""
        return max((newest for when, newest in self._seen if when <= moment), default=0)

    def note(self, now: float, newest: int, keep_s: float) -> None:
        """What is there after a look. A row that comes later gets a higher number than the newest that is there now."""
        gone = [mark for mark in self._seen if mark[0] <= now - keep_s][:-1]
        self._seen = [(when, min(number, newest)) for when, number in self._seen if (when, number) not in gone]
        if not self._seen or now - self._seen[-1][0] >= keep_s / AGES:
            self._seen.append((now, newest))


def surplus(old_answers: int, keep: Retention) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Table, condition and its values, for each kind of history that lives in memory too. Rows are numbered as they
    come: what a clock said of them decides nothing."""
    newest = "NOT IN (SELECT rowid FROM {0} WHERE {1} IS NOT NULL ORDER BY rowid DESC LIMIT ?)"
    named = (
        "SELECT json_extract(row, '$.last_operation') FROM nodes UNION ALL "
        "SELECT json_extract(row, '$.last_operation') FROM vms"
    )
    ended = f"ended IS NOT NULL AND rowid {newest.format('operations', 'ended')} AND id NOT IN ({named})"
    yield "operations", ended, (keep.operations,)
    yield "alarms", f"cleared IS NOT NULL AND rowid {newest.format('alarms', 'cleared')}", (keep.alarms,)
    yield "answers", f"rowid <= ? OR rowid {newest.format('answers', 'key')}", (old_answers, keep.answers)
