"""The durable state of the server in SQLite: one file, one connection, one thread.

Rules: a turn's changes are one transaction, on disk (WAL, `synchronous=FULL`) when `commit` returns, and not
there at all when it raises. A database is opened by one chimed at a time (lock on `<path>.lock`). A damaged,
foreign or newer file is refused and left as it is; one that was put back in the place of a newer one is known, and no
log of another file gets into it (`core/state/mark.py` says how). Rows are JSON in a `row` column beside real key
columns (`schema.py` says why); the store does not know what they mean. No decision is taken here. Copies and restores
are in `backup.py`.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from chimed import history, rights
from chimed.backup import back_up
from chimed.core.state import rows as r
from chimed.core.state.mark import Mark, PutBack, put_back
from chimed.core.state.tables import KEYS
from chimed.database import (
    RESTORE,
    Check,
    Header,
    Lock,
    StoreConflict,
    StoreError,
    connect,
    identity,
    inspect,
    lay_log_aside,
    life_of,
    make_private_file,
    mark_of,
    migrate,
    remove_files,
    sync_directory,
    unusable,
)
from chimed.history import PRUNE_STEP, Ages, Passed, Retention
from wire.messages import EventView

PROBE_BYTES = 64 * 1024  # room that there must be again before the server takes changes


class _Table:
    """SQL and codec of one row type."""

    def __init__(self, kind: type[r.Row]) -> None:
        self.name, fields = KEYS[kind]
        self.columns = fields or ("one",)
        self.decoder = msgspec.json.Decoder(kind)
        names = ", ".join(self.columns)
        marks = ", ".join("?" for _ in self.columns)
        self.upsert = (
            f"INSERT INTO {self.name} ({names}, row) VALUES ({marks}, ?) "
            f"ON CONFLICT ({names}) DO UPDATE SET row = excluded.row"
        )
        self.delete = f"DELETE FROM {self.name} WHERE " + " AND ".join(f"{name} = ?" for name in self.columns)
        self.select = f"SELECT {names}, row FROM {self.name} ORDER BY rowid"


_BESIDE = ("-wal", "-shm")
TABLES = {kind: _Table(kind) for kind in KEYS}
_BY_NAME = {table.name: table for table in TABLES.values()}
_ADD_EVENT = (
    "INSERT INTO events (time, actor, action, subject, text, operation, source_id, of_node) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (subject, actor, source_id) WHERE source_id <> '' DO NOTHING"
)


_OLDEST_EVENTS = "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE of_node = ? ORDER BY id LIMIT ?)"


_NEXT_TURN = "UPDATE turns SET turn = turn + 1"


class Store:
    """The open database. Use `create` or `open`; close it, or its lock stays until the process ends."""

    def __init__(
        self, path: Path, lock: Lock, header: Header, connection: sqlite3.Connection, mark: Mark
    ) -> None:  # fmt: skip
        self.path = path
        self._lock, self._header = lock, header
        self._connection = connection
        # The log and its index stay while the database is open: nobody else may be the last to close it.
        names = (path.with_name(path.name + suffix) for suffix in _BESIDE)
        self._files = {path: header.identity()}
        self._files |= {name: known for name in names if (known := identity(name)) is not None}
        self._whole = False
        self._written_over = ""
        self._ages = Ages()
        self.broken = ""
        """Why nothing can be saved until chimed is restarted; empty while all is well."""
        found = dict(connection.execute("SELECT of_node, count(*) FROM events GROUP BY of_node").fetchall())
        self._events = {False: int(found.get(0, 0)), True: int(found.get(1, 0))}
        """How many lines there are, by `of_node`: to count a million takes longer than a turn may."""
        self._written = PRUNE_STEP
        """Rows since `prune` last found nothing more to remove."""
        self._passed = Passed()
        self._mark, self._newest = mark, lock.noted()
        """How far this database has come, and the newest that was in its place."""
        self.put_back: PutBack | None = put_back(mark, self._newest)
        """What is known of a newer database that was in this place; None: this is the newest."""
        self.noted = self._newest
        """What was noted of a database in this place before this one was opened, or made."""
        self._begin_life()

    @classmethod
    def create(cls, path: Path | str) -> Store:
        """A new database at `path` (mode 0600), opened, in a generation above what was noted here (`noted`). Raises
        StoreError when something is there already."""
        path = Path(path)
        fresh = path.with_name(f".{path.name}.new")
        if path.exists():
            raise StoreError(f"{path} exists already: it was left as it is")
        try:
            with rights.of_owner(path.parent), Lock(path) as lock:
                noted = lock.noted()
                meta = r.Meta(generation=noted.generation + 1)
                lock.forget_lives()
                lay_log_aside(path)
                _create(fresh, path, meta)
                lock.note(Mark(meta.generation))
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be created: {error}") from error
        store = cls.open(path, check="none")
        store.noted = noted
        return store

    @classmethod
    def open(cls, path: Path | str, check: Check = "quick") -> Store:
        """The database at `path`, locked, checked and brought to this version's tables. Raises StoreError."""
        path = Path(path)
        if not path.exists():
            raise StoreError(
                f"{path} does not exist: make it with `chimed init`, or restore a backup with `{RESTORE}`"
            )
        with ExitStack() as opened:
            lock = opened.enter_context(Lock(path))
            try:
                header = opened.enter_context(closing(Header(path)))
                life = header.life()
                if (last_open := lock.last_open()) and life not in last_open:
                    lay_log_aside(path)
                connection = opened.enter_context(closing(connect(path)))
                inspect(connection, path, check)
                connection.execute("PRAGMA journal_mode = WAL")
                migrate(connection)
                mark = msgspec.structs.replace(mark_of(connection), lives=(life,))
                store = cls(path, lock, header, connection, mark)
            except OSError as error:
                raise StoreError(f"{path} cannot be opened: {error.strerror or error}") from error
            except sqlite3.Error as error:
                raise unusable(path, error) from error
            opened.pop_all()
        return store

    def close(self) -> None:
        """Moves the log into the database file and gives up the lock. A second call does nothing."""
        self._connection.close()
        self._header.close()
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Iterator[r.Row]:
        """Every row except events, table by table, each in the order of creation. Raises StoreError."""
        for table in TABLES.values():
            key: list[Any] = []
            try:
                for *key, text in self._connection.execute(table.select):  # noqa: B007 (read in the except)
                    yield table.decoder.decode(text)
            except (ValueError, RecursionError) as error:
                raise StoreError(
                    f"{self.path}: row {key} of table {table.name} cannot be read ({error}): "
                    f"the file was left as it is; restore a backup with `{RESTORE}`"
                ) from error
            except sqlite3.Error as error:
                raise unusable(self.path, error) from error

    def commit(self, changes: Iterable[r.Change], events: Iterable[r.Event] = ()) -> None:
        """Saves all or nothing; on disk when it returns.

        Raises StoreError when that cannot be done now (full, I/O error, locked): nothing has changed and the
        same call may succeed later. After an I/O error in the very last sync the changes may appear after a
        crash: the answer to the client is then "not known", never "no". Raises StoreConflict for rows that
        contradict each other.
        """
        changes = sorted(changes, key=_order)
        lines = [
            (e.time, e.actor, e.action, e.subject, e.text, e.operation, e.source_id, e.of_node) for e in events
        ]
        if not changes and not lines:
            return
        added = {False: 0, True: 0}
        with _Transaction(self) as connection:
            for (is_save, name), group in groupby(changes, key=_order):
                table = _BY_NAME[name]
                if is_save:
                    rows = [(*(change.key or (1,)), _encode(change.row)) for change in group]
                    connection.executemany(table.upsert, rows)
                else:
                    connection.executemany(table.delete, [change.key or (1,) for change in group])
            for of_node, part in groupby(lines, key=lambda line: line[-1]):
                before = connection.total_changes
                connection.executemany(_ADD_EVENT, part)
                added[of_node] += connection.total_changes - before
            connection.execute(_NEXT_TURN)
        self._come_further(changes)
        self._events = {of_node: count + added[of_node] for of_node, count in self._events.items()}
        self._written += len(changes) + len(lines)

    def _come_further(self, changes: list[r.Change]) -> None:
        """A turn is on disk."""
        meta = next((c.row for c in changes if isinstance(c.row, r.Meta)), self._mark)
        self._mark = Mark(meta.generation, meta.history, self._mark.turn + 1, self._mark.lives)
        if self.put_back is not None and self._mark.generation > self.put_back.generation:
            self.put_back = None  # a recovery has begun
        self._note()

    def _note(self) -> bool:
        """Whether it could be. The newest mark stays noted until this database is the newest."""
        if self.put_back is None:
            self._newest = self._mark
        return self._lock.note(self._newest, self._mark.lives)

    def _begin_life(self) -> None:
        """The file is told from its copies of before by a new number in its header. Which numbers it may bear is noted
        before it can bear them, so a crash at any moment leaves one that is known; so does a full disk."""
        with suppress(sqlite3.Error, OSError):
            if not self._has_one_life():
                self._write_log_back()  # the start before was cut off
                if not self._has_one_life():
                    return
            old, new = self._mark.lives, _new_life()
            self._live((*old, new))
            if not self._note():
                self._live(old)
                return
            self._connection.execute(f"PRAGMA user_version = {new}")
            self._write_log_back()
            self._has_one_life()

    def _has_one_life(self) -> bool:
        """Notes the lives that the file may bear from now on. Whether it is one, and noted."""
        self._live(tuple(sorted({self._header.life(), life_of(self._connection)})))
        return self._note() and len(self._mark.lives) == 1

    def _live(self, lives: tuple[int, ...]) -> None:
        self._mark = msgspec.structs.replace(self._mark, lives=lives)

    def _write_log_back(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def writable(self) -> bool:
        """Whether a change can be saved now: really writes 64 KiB and syncs them."""
        try:
            with _Transaction(self) as connection:
                connection.execute("INSERT OR REPLACE INTO probe VALUES (1, randomblob(?))", (PROBE_BYTES,))
        except StoreError:
            return False
        return True

    def events(self, subject: str | None = None, after_id: int = 0, limit: int = 100) -> list[EventView]:
        """The newest `limit` events with a larger id, of `subject` or of all, oldest first. Raises
        StoreError."""
        where, values = ("subject = ? AND ", (subject,)) if subject is not None else ("", ())
        sql = (
            "SELECT id, time, actor, action, subject, text, operation FROM events "
            f"WHERE {where}id > ? ORDER BY id DESC LIMIT ?"
        )
        try:
            found = self._connection.execute(sql, (*values, after_id, limit)).fetchall()
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error
        return [
            EventView(id=i, time=t, actor=a, action=c, subject=s, text=x, operation=o)
            for i, t, a, c, s, x, o in reversed(found)
        ]

    def much_surplus(self) -> bool:
        """Whether so much was written that `prune` should be called soon; costs nothing."""
        return self._written >= PRUNE_STEP

    def prune(self, now: float, keep: Retention | None = None) -> list[r.Change]:
        """Removes history beyond `keep`, a bounded number of rows a call: call it again while `much_surplus`. The
        file does not shrink; its pages are used again. Returns what was deleted, for the tables in memory to drop too
        (events are not in memory). `now`: monotonic. What is older is told by the order of the rows, and for how long
        an answer has been kept by the calls before: a clock that was wrong for a minute drops nothing. An operation
        that a node or VM names as its last one stays. Raises StoreError."""
        keep = keep or Retention()
        removed: list[r.Change] = []
        most = {False: keep.events, True: keep.node_events}
        surplus = {of_node: min(PRUNE_STEP, max(0, self._events[of_node] - most[of_node])) for of_node in most}
        passed = self._passed
        with _Transaction(self) as connection:
            for of_node, count in surplus.items():
                connection.execute(_OLDEST_EVENTS, (of_node, count))
            removed += history.old_alarms(connection, keep)
            removed += history.old_answers(connection, keep, self._ages.before(now - keep.answers_s))
            operations, passed = history.old_operations(connection, keep, passed)
            removed += operations
            for change in removed:
                connection.execute(_BY_NAME[change.table].delete, change.key)
            newest = connection.execute("SELECT coalesce(max(rowid), 0) FROM answers").fetchone()[0]
        self._ages.note(now, newest, keep.answers_s)
        self._passed = passed
        self._events = {of_node: count - surplus[of_node] for of_node, count in self._events.items()}
        if len(removed) + max(surplus.values()) < PRUNE_STEP and not passed.count:
            self._written = 0
        return removed

    def astray(self) -> str:
        """Which of the files that are open here is no longer what it was, and what to do: what is saved would be lost
        at the next start. Empty while all is well."""
        if self._is_written_over():
            return self._written_over
        gone = [name for name, known in self._files.items() if identity(name) != known]
        if not self._lock.is_in_place():
            gone.append(self._lock.path)
        if not gone:
            self._whole = False
            return ""
        self._fold()
        return (
            f"{gone[0]} was deleted, moved or replaced while chimed has it open: put that very file back, "
            f"or stop chimed and restore a backup with `{RESTORE}`"
        )

    def _fold(self) -> None:
        """Once: moves the log into the open database, so that this file is whole by itself, wherever it is, and no log
        is left that another file in its place would take for its own. Best effort."""
        if not self._whole:
            self._whole = True
            with suppress(sqlite3.Error):
                self._write_log_back()

    def _is_written_over(self) -> bool:
        """Whether another file's content is in the open file. It stays so until chimed is restarted: SQLite may have
        read from it. To close it may write the log into it, and no life that it shows then is right."""
        with suppress(OSError):
            if not self._written_over and self._header.life() not in self._mark.lives:
                self._written_over = (
                    f"{self.path} was written over while chimed has it open: stop chimed, and restore a backup with "
                    f"`{RESTORE}`"
                )
                nothing = (_new_life(),)
                self._lock.note(msgspec.structs.replace(self._newest, lives=nothing), nothing)
        return bool(self._written_over)

    def backup(self, destination: Path | str, overwrite: bool = False) -> None:
        """See `backup.back_up`; this call takes as long as the copy takes."""
        back_up(self.path, destination, overwrite)


def _new_life() -> int:
    """Not 0, which is every database's before it is opened for the first time."""
    return secrets.randbelow(0x7FFFFFFF) + 1


def _create(fresh: Path, path: Path, meta: r.Meta) -> None:
    try:
        remove_files(fresh)
        make_private_file(fresh)
        with closing(connect(fresh)) as connection:
            migrate(connection)
            connection.execute("UPDATE meta SET row = ?", (_encode(meta),))
        os.link(fresh, path)  # unlike a rename, never replaces
        sync_directory(path.parent)
    finally:
        remove_files(fresh)


class _Transaction:
    """Begins at once; commits at the end of the block, or rolls back and raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection = store._connection

    def __enter__(self) -> sqlite3.Connection:
        why = self._store.broken or self._store.astray()
        if why:
            raise StoreError(why)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._fail(error)
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            try:
                self._connection.execute("COMMIT")
                return
            except sqlite3.Error as commit_error:
                error = commit_error
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        path = self._store.path
        try:
            if self._connection.in_transaction:  # SQLite has rolled back by itself after some errors
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            # A new connection would read the log from disk and might find what this turn was told is not
            # there.
            self._store.broken = f"{path}: a rollback failed ({second}): restart chimed"
        if isinstance(error, sqlite3.IntegrityError):
            raise StoreConflict(f"{path}: {error}") from error
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"{path}: changes cannot be saved: {error}") from error
        if not isinstance(error, StoreError):
            raise error


def _order(change: r.Change) -> tuple[bool, str]:
    """Deletions first: a name may pass from a deleted row to a new one in one turn."""
    return change.row is not None, change.table


def _encode(row: r.Row | None) -> str:
    return msgspec.json.encode(row).decode()
