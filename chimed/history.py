"""How much history is kept, and what of it goes: by the order in which rows came and the time that this process has
counted, never by what a clock said of them. The store asks for it in a transaction, and removes it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from chimed.core.state import rows as r

AGES = 100  # an answer is kept up to one in so many parts longer than asked for
PRUNE_STEP = 500  # rows that one call of `prune` removes at most from each table: a turn stays short


# `+` keeps SQLite from the index on that column: rows are read in their order, and few of them are left out.
_OLDEST_ALARMS = "SELECT id FROM alarms WHERE +cleared IS NOT NULL ORDER BY rowid LIMIT ?"
_OLDEST_ANSWERS = "SELECT operator, key FROM answers ORDER BY rowid LIMIT ?"
_AGED_ANSWERS = "SELECT count(*) FROM (SELECT 1 FROM answers WHERE rowid <= ? LIMIT ?)"
_OLDEST_OPERATIONS = (
    "SELECT id, rowid, EXISTS (SELECT 1 FROM vms WHERE json_extract(vms.row, '$.last_operation') = operations.id) "
    "OR EXISTS (SELECT 1 FROM nodes WHERE json_extract(nodes.row, '$.last_operation') = operations.id) "
    "FROM operations WHERE +ended IS NOT NULL AND rowid > ? ORDER BY rowid LIMIT ?"
)


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept. `events`: of operators and of the server itself; `node_events`: what nodes tell, and
    what follows from their word."""

    events: int = 1_000_000
    node_events: int = 1_000_000
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


class Passed(msgspec.Struct, frozen=True):
    """How far the look at old operations came (a row's number), and how many it left there."""

    until: int = -1
    count: int = 0


def old_alarms(connection: sqlite3.Connection, keep: Retention) -> list[r.Change]:
    """The oldest that were cleared, beyond what is kept."""
    cleared = connection.execute("SELECT count(*) FROM alarms WHERE cleared IS NOT NULL").fetchone()[0]
    return _removed("alarms", connection.execute(_OLDEST_ALARMS, (_most(cleared - keep.alarms),)))


def old_answers(connection: sqlite3.Connection, keep: Retention, aged: int) -> list[r.Change]:
    """The oldest beyond what is kept, and those up to row `aged`."""
    kept = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    too_old = connection.execute(_AGED_ANSWERS, (aged, PRUNE_STEP)).fetchone()[0]
    most = _most(max(kept - keep.answers, too_old))
    return _removed("answers", connection.execute(_OLDEST_ANSWERS, (most,)))


def old_operations(
    connection: sqlite3.Connection, keep: Retention, passed: Passed
) -> tuple[list[r.Change], Passed]:
    """The next of the oldest operations that ended, without those that a node or VM names, and how far that went: those
    stay, and there may be many."""
    ended = connection.execute("SELECT count(*) FROM operations WHERE ended IS NOT NULL").fetchone()[0]
    most = _most(ended - keep.operations - passed.count)
    if most == 0:
        return [], Passed()
    found = connection.execute(_OLDEST_OPERATIONS, (passed.until, most)).fetchall()
    named = sum(is_named for _, _, is_named in found)
    further = Passed(found[-1][1], passed.count + named) if len(found) == most else Passed()
    return [r.Change("operations", (key,), None) for key, _, is_named in found if not is_named], further


def _most(surplus: int) -> int:
    return min(PRUNE_STEP, max(0, surplus))


def _removed(table: str, keys: Iterable[tuple[Any, ...]]) -> list[r.Change]:
    return [r.Change(table, tuple(key), None) for key in keys]
