"""The durable rows in memory, with what changed in this turn and how to undo it.

The shell commits `changes()` before anything is sent; when that fails it calls `rollback()`, and the turn has not
happened. Rows are never changed in place. Indexes are kept by `put` and `delete` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from chimed.core.state import rows as r

R = TypeVar("R", bound=r.Row)
Key = tuple[str | int, ...]
_NO_ROWS: dict[Key, Any] = {}

KEYS: dict[type[r.Row], tuple[str, tuple[str, ...]]] = {
    r.Meta: ("meta", ()),
    r.Node: ("nodes", ("name",)),
    r.Vm: ("vms", ("uuid",)),
    r.Release: ("releases", ("node", "uuid")),
    r.Command: ("commands", ("id",)),
    r.Migration: ("migrations", ("uuid",)),
    r.Operation: ("operations", ("id",)),
    r.Alarm: ("alarms", ("id",)),
    r.Operator: ("operators", ("name",)),
    r.Answer: ("answers", ("operator", "key")),
}
"""Table name and key columns of each row type. Events are appended, never read back here."""


class Journal:
    """The row that each changed key had before the turn, or before the part of it that is under way."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[tuple[type[r.Row], Key], r.Row | None] = {}


class Table(Generic[R]):
    """Rows by key. `journal` remembers what they were."""

    def __init__(self, kind: type[R], journal: Journal) -> None:
        self._kind = kind
        self._key_fields = KEYS[kind][1]
        self._rows: dict[Key, R] = {}
        self._journal = journal
        self._indexes: dict[str, dict[Any, dict[Key, R]]] = {}
        self._sparse: set[str] = set()
        self._watcher: Callable[[R | None, R | None], None] | None = None

    def watch(self, watcher: Callable[[R | None, R | None], None]) -> None:
        """Calls `watcher(old, new)` at each change, also at loading and at rollback: for running totals."""
        self._watcher = watcher

    def index(self, field: str, sparse: bool = False) -> None:
        """Keeps rows findable by `field`; `sparse`: only those where it is not empty or false."""
        self._indexes[field] = {}
        if sparse:
            self._sparse.add(field)

    def key_of(self, row: R) -> Key:
        """The primary key of `row`."""
        return tuple(getattr(row, name) for name in self._key_fields)

    def get(self, *key: str | int) -> R | None:
        """The row, or None."""
        return self._rows.get(key)

    def by(self, field: str, value: Any) -> list[R]:
        """Rows whose indexed `field` is `value`, in the order they came."""
        return list(self._indexes[field].get(value, {}).values())

    def first(self, field: str, value: Any) -> R | None:
        """One row whose indexed `field` is `value`, or None: cheaper than `by` where there is one at most."""
        rows: dict[Key, R] = self._indexes[field].get(value, _NO_ROWS)
        for row in rows.values():
            return row
        return None

    def count_by(self, field: str, value: Any) -> int:
        """How many rows `by` would return."""
        return len(self._indexes[field].get(value, {}))

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: R) -> None:
        """Adds or replaces."""
        key = self.key_of(row)
        self._remember(key)
        self._set(key, row)

    def delete(self, row: R) -> None:
        """Removes; absent is fine."""
        key = self.key_of(row)
        self._remember(key)
        self._set(key, None)

    def load(self, rows: Iterable[R]) -> None:
        """Fills the table from the store; not a change."""
        for row in rows:
            self._set(self.key_of(row), row)

    def restore(self, key: Key, row: R | None) -> None:
        """Puts back what a key had; only for rollback."""
        self._set(key, row)

    def _remember(self, key: Key) -> None:
        if (self._kind, key) not in self._journal.rows:
            self._journal.rows[(self._kind, key)] = self._rows.get(key)

    def _set(self, key: Key, row: R | None) -> None:
        old = self._rows.pop(key, None) if row is None else self._rows.get(key)
        if self._watcher is not None:
            self._watcher(old, row)
        for field, index in self._indexes.items():
            value = getattr(old, field) if old is not None else None
            if old is not None and value in index and (row is None or getattr(row, field) != value):
                index[value].pop(key)
                if not index[value]:
                    del index[value]
            if row is not None and (getattr(row, field) or field not in self._sparse):
                index.setdefault(getattr(row, field), {})[key] = row
        if row is not None:
            self._rows[key] = row


class Tables:
    """All durable state of the server."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._metas: Table[r.Meta] = Table(r.Meta, self._journal)
        self.nodes: Table[r.Node] = Table(r.Node, self._journal)
        self.vms: Table[r.Vm] = Table(r.Vm, self._journal)
        self.releases: Table[r.Release] = Table(r.Release, self._journal)
        self.commands: Table[r.Command] = Table(r.Command, self._journal)
        self.migrations: Table[r.Migration] = Table(r.Migration, self._journal)
        self.operations: Table[r.Operation] = Table(r.Operation, self._journal)
        self.alarms: Table[r.Alarm] = Table(r.Alarm, self._journal)
        self.operators: Table[r.Operator] = Table(r.Operator, self._journal)
        self.answers: Table[r.Answer] = Table(r.Answer, self._journal)
        self.nodes.index("public_key")
        self.nodes.index("health")
        self.nodes.index("held", sparse=True)
        self.nodes.index("fresh", sparse=True)
        self.operators.index("public_key")
        self.vms.index("node")
        self.vms.index("name")
        self.vms.index("held", sparse=True)
        self.releases.index("node")
        self.releases.index("uuid")
        self.commands.index("node")
        self.commands.index("operation")
        self.migrations.index("source")
        self.migrations.index("target")
        self.migrations.index("operation")
        self.operations.index("state")
        self.operations.index("subject")
        self.operations.index("open_kind")
        self.alarms.index("subject")
        self.alarms.index("cleared")
        self._used: dict[str, tuple[int, int]] = {}
        self.vms.watch(self._count)
        self._by_kind: dict[type[r.Row], Table[Any]] = {
            r.Meta: self._metas, r.Node: self.nodes, r.Vm: self.vms, r.Release: self.releases,
            r.Command: self.commands, r.Migration: self.migrations, r.Operation: self.operations,
            r.Alarm: self.alarms, r.Operator: self.operators, r.Answer: self.answers,
        }  # fmt: skip
        self._events: list[r.Event] = []

    @property
    def meta(self) -> r.Meta:
        """The one row of server-wide facts."""
        return self._metas.get() or r.Meta()

    @meta.setter
    def meta(self, row: r.Meta) -> None:
        self._metas.put(row)

    def used(self, node_name: str) -> tuple[int, int]:
        """vCPUs and MiB of all VMs that the node owns: also of stopped ones, since they may be started, and of those
        that are being deleted, since they may still run."""
        return self._used.get(node_name, (0, 0))

    def _count(self, old: r.Vm | None, new: r.Vm | None) -> None:
        for vm, sign in ((old, -1), (new, 1)):
            if vm is not None:
                vcpus, memory_mib = self._used.get(vm.node, (0, 0))
                self._used[vm.node] = (vcpus + sign * vm.spec.vcpus, memory_mib + sign * vm.spec.memory_mib)

    def append(self, event: r.Event) -> None:
        """Adds a line to the audit trail."""
        self._events.append(event)

    def load(self, rows: Iterable[r.Row]) -> None:
        """Fills the tables from the store."""
        for row in rows:
            self._by_kind[type(row)].load([row])

    def pruned(self, removed: Iterable[r.Change]) -> None:
        """Drops history that the store has removed already (`Store.prune`); not a change. Call it between turns."""
        by_name = {KEYS[kind][0]: table for kind, table in self._by_kind.items()}
        for change in removed:
            by_name[change.table].restore(change.key, None)

    @property
    def pending(self) -> int:
        """How many rows and lines this turn has touched."""
        return len(self._journal.rows) + len(self._events)

    @property
    def dirty(self) -> bool:
        """Whether this turn has something to save."""
        return bool(self._events) or any(
            self._by_kind[kind].get(*key) is not old for (kind, key), old in self._journal.rows.items()
        )

    def changes(self) -> tuple[list[r.Change], list[r.Event]]:
        """What this turn changed, for the store to save in one transaction."""
        changes = []
        for (kind, key), old in self._journal.rows.items():
            row = self._by_kind[kind].get(*key)
            if row is not old:
                changes.append(r.Change(KEYS[kind][0], key, row))
        return changes, list(self._events)

    def committed(self) -> None:
        """The turn is saved."""
        self._journal.rows.clear()
        self._events.clear()

    def rollback(self) -> None:
        """The turn could not be saved: everything is as before it."""
        self._undo_journal()
        self._events.clear()

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """A part of the turn that may fail: what it has changed is taken back when an exception leaves it. There may be
        thousands in a turn: one costs what it changes itself."""
        before, events = self._journal.rows, len(self._events)
        self._journal.rows = {}
        try:
            yield
        except BaseException:
            self._undo_journal()
            del self._events[events:]
            raise
        finally:
            for key, row in self._journal.rows.items():
                before.setdefault(key, row)  # what the turn had before the part, it had before the turn
            self._journal.rows = before

    def _undo_journal(self) -> None:
        for (kind, key), row in reversed(self._journal.rows.items()):
            self._by_kind[kind].restore(key, row)
        self._journal.rows.clear()
