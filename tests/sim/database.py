"""What people do with the server's database: copy it, put a copy back, restore a backup, begin anew.

Only `restored` goes through what Chime offers for that, and makes a new generation; the others are a file manager's.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from chimed.core.state import rows as r
from chimed.core.state.mark import Mark
from tests.fakes.store import FakeDisk


class Copy(Struct, frozen=True):
    """The whole database as it was at `taken`, in true seconds, and the newest mark that lay beside it."""

    taken: float
    tables: dict[str, dict[Any, r.Row]]
    events: list[tuple[int, r.Event]]
    next_event: int
    turn: int = 0
    life: int = 0
    noted: Mark = Mark()


def copied(disk: FakeDisk, now: float) -> Copy:
    """`cp`, while nobody writes; `chimed backup` gives the same."""
    tables = {name: dict(rows) for name, rows in disk.tables.items()}
    return Copy(now, tables, list(disk.events), disk.next_event, disk.turn, disk.life, disk.noted)


def put(disk: FakeDisk, copy: Copy) -> None:
    """The copy is the database from now on. Nobody may have it open."""
    disk.tables = {name: dict(rows) for name, rows in copy.tables.items()}
    disk.events, disk.next_event = list(copy.events), copy.next_event
    disk.turn, disk.life = copy.turn, copy.life


def put_with_its_place(disk: FakeDisk, copy: Copy) -> None:
    """All that is in its directory is of then: the mark, too."""
    put(disk, copy)
    disk.noted = copy.noted


def restored(disk: FakeDisk, copy: Copy, history: str, present: bool = True) -> None:
    """As `chimed.backup.restore` does it. `present`: over the database that is there; else on a new machine."""
    if not present:
        disk.tables["meta"][()] = r.Meta(generation=0)
        disk.noted = Mark()
    disk.turn = copy.turn
    disk.restore(copy.tables, history)
    disk.events, disk.next_event = list(copy.events), copy.next_event


def begun_anew(disk: FakeDisk, history: str, present: bool = True) -> None:
    """`chimed init` with the old key: nothing is known but the operators. `present`: where a database was before, in a
    generation above what is noted there; else on a new machine."""
    operators = dict(disk.tables["operators"])
    empty = FakeDisk()
    empty.tables["operators"] = operators
    generation = disk.noted.generation + 1 if present else 1
    empty.tables["meta"][()] = r.Meta(generation=generation, history=history)
    empty.noted = Mark(generation)
    put_with_its_place(disk, copied(empty, 0.0))
