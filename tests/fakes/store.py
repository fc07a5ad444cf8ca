"""A store in memory with the interface and the rules of `chimed.store.Store`, for the simulator.

What was committed survives `close` (a crash of the server is: drop the object, open the same `FakeDisk`
again). `disk.fault` makes changes impossible, as a full disk does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from chimed.core.rules import recovery
from chimed.core.state import rows as r
from chimed.core.state.mark import Mark, put_back
from chimed.core.state.tables import KEYS
from chimed.database import StoreConflict, StoreError
from chimed.history import Retention
from wire.messages import EventView

UNIQUE = {
    "nodes": "public_key", "vms": "name", "operations": "number", "operators": "public_key", "migrations": "attempt"
}  # fmt: skip
"""Besides the key: the same as the constraints in `chimed/schema.py`."""

_LIVES = itertools.count(1)


class FakeDisk:
    """What survives."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, r.Row]] = {name: {} for name, _ in KEYS.values()}
        self.tables["meta"][()] = r.Meta()
        self.events: list[tuple[int, r.Event]] = []
        self.next_event = 1
        self.fault = ""
        self.astray = ""
        self.commits = 0
        self.turn = 0
        self.life = 0
        self.noted = Mark()

    @property
    def mark(self) -> Mark:
        """How far the database has come."""
        meta = self.tables["meta"][()]
        assert isinstance(meta, r.Meta)
        return Mark(meta.generation, meta.history, self.turn, (self.life,))

    def restore(self, tables: dict[str, dict[Any, r.Row]], history: str = "restored") -> None:
        """As `chimed.backup.restore` puts a backup in the place of what is here."""
        present = self.tables["meta"][()]
        self.tables = {name: dict(rows) for name, rows in tables.items()}
        nodes, vms, meta = self.tables["nodes"], self.tables["vms"], self.tables["meta"][()]
        assert isinstance(present, r.Meta) and isinstance(meta, r.Meta)
        for key, node in nodes.items():
            nodes[key] = recovery.held_node(node)  # type: ignore[arg-type]
        for key, vm in vms.items():
            vms[key] = recovery.held_vm(vm)  # type: ignore[arg-type]
        names = sorted(name for (name,) in nodes)
        before = max(present.generation, self.noted.generation)
        self.tables["meta"][()] = recovery.begun(meta, before, names, history)
        self.noted = self.mark


class FakeStore:
    """See `chimed.store.Store`."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk
        self.broken = ""
        self._seen: dict[Any, float] = {}  # answers, and when `prune` first saw each
        self.put_back = put_back(disk.mark, disk.noted)
        disk.life = next(_LIVES)
        self._note()

    def close(self) -> None:
        """Nothing to give up."""

    def load(self) -> Iterator[r.Row]:
        """Every row except events."""
        for table in self.disk.tables.values():
            yield from table.values()

    def commit(self, changes: Iterable[r.Change], events: Iterable[r.Event] = ()) -> None:
        """Saves all or nothing. Raises StoreError or StoreConflict."""
        if self.disk.fault or self.disk.astray:
            raise StoreError(f"changes cannot be saved: {self.disk.fault or self.disk.astray}")
        tables, changes = self.disk.tables, list(changes)
        before = [(change, tables[change.table].get(change.key)) for change in changes]
        for change in changes:
            _put(tables[change.table], change.key, change.row)
        try:
            self._check(changes)
        except StoreConflict:
            for change, row in reversed(before):
                _put(tables[change.table], change.key, row)
            raise
        self.disk.commits += 1
        self.disk.turn += 1
        self._note()
        for event in events:
            self._append(event)

    def _note(self) -> None:
        """As `chimed.store.Store` does it after each commit."""
        if self.put_back is not None and self.disk.mark.generation > self.put_back.generation:
            self.put_back = None
        if self.put_back is None:
            self.disk.noted = self.disk.mark

    def _append(self, event: r.Event) -> None:
        once = (event.subject, event.actor, event.source_id)
        known = ((e.subject, e.actor, e.source_id) for _, e in self.disk.events)
        if not event.source_id or once not in known:
            self.disk.events.append((self.disk.next_event, event))
            self.disk.next_event += 1

    def _check(self, changes: list[r.Change]) -> None:
        tables = self.disk.tables
        for table in {change.table for change in changes} & UNIQUE.keys():
            values = [getattr(row, UNIQUE[table]) for row in tables[table].values()]
            if len(values) != len(set(values)):
                raise StoreConflict(f"UNIQUE constraint failed: {table}.{UNIQUE[table]}")
        if any(change.table in ("nodes", "vms") for change in changes) and any(
            (getattr(vm, "node", None),) not in tables["nodes"] for vm in tables["vms"].values()
        ):
            raise StoreConflict("FOREIGN KEY constraint failed")

    def writable(self) -> bool:
        """Whether a change can be saved now."""
        return not (self.disk.fault or self.disk.astray)

    def astray(self) -> str:
        """Why what is saved would be lost."""
        return self.disk.astray

    def events(self, subject: str | None = None, after_id: int = 0, limit: int = 100) -> list[EventView]:
        """The newest `limit` events with a larger id, oldest first."""
        found = [
            EventView(id=number, time=e.time, actor=e.actor, action=e.action, subject=e.subject, text=e.text,
                      operation=e.operation)
            for number, e in self.disk.events
            if number > after_id and subject in (None, e.subject)
        ]  # fmt: skip
        return found[-limit:]

    def much_surplus(self) -> bool:
        """Never."""
        return False

    def prune(self, now: float, keep: Retention | None = None) -> list[r.Change]:
        """Removes history beyond `keep`; returns what was deleted."""
        if self.disk.fault or self.disk.astray:
            raise StoreError(f"changes cannot be saved: {self.disk.fault or self.disk.astray}")
        keep = keep or Retention()
        gone = {
            number
            for of_node, most in ((False, keep.events), (True, keep.node_events))
            for number in [i for i, e in self.disk.events if e.of_node is of_node][: -most or None]
        }
        self.disk.events = [(i, e) for i, e in self.disk.events if i not in gone]
        rows = self.disk.tables
        named = {
            getattr(row, "last_operation", "") for row in (*rows["nodes"].values(), *rows["vms"].values())
        }
        surplus: list[tuple[str, Any]]
        surplus = [("operations", key) for key in self._newest("operations", "ended")[keep.operations :]]
        surplus = [(table, key) for table, key in surplus if key[0] not in named]
        surplus += [("alarms", key) for key in self._newest("alarms", "cleared")[keep.alarms :]]
        answers = self._newest("answers", "created")
        old = [key for key, seen in self._seen.items() if seen <= now - keep.answers_s]
        surplus += [("answers", key) for key in dict.fromkeys([*answers[keep.answers :], *old])]
        for table, key in surplus:
            del rows[table][key]
        self._seen = {key: self._seen.get(key, now) for key in rows["answers"]}
        return [r.Change(table, key, None) for table, key in surplus]

    def _newest(self, table: str, field: str) -> list[Any]:
        """Keys of the rows whose `field` is set, the row that came last first."""
        return [key for key, row in reversed(self.disk.tables[table].items()) if getattr(row, field) is not None]


def _put(table: dict[Any, r.Row], key: Any, row: r.Row | None) -> None:
    if row is None:
        table.pop(key, None)
    else:
        table[key] = row
