"""A database file: its lock, its connection settings, and what is refused.

A database is used by one chimed at a time (lock on `<path>.lock`). A damaged, foreign or newer file is
refused and left as it is. Rows and transactions are in `store.py`, copies and restores in `backup.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Literal

from sqlite_utils import Database

from chimed.core.state.mark import Mark
from chimed.schema import APPLICATION_ID, migrations
from wire import files

Check = Literal["none", "quick", "full"]

BUSY_TIMEOUT_MS = 2_000
_NOTE_BYTES = 128
RESTORE = "chimed restore FILE"


class StoreError(Exception):
    """The database cannot be used, or not now: no space, I/O error, locked, damaged, newer. Nothing was
    changed."""


class StoreConflict(StoreError):
    """The rows contradict each other (a name twice, an unknown node): a bug of the caller. Nothing was
    changed."""


class Lock:
    """Exclusive use of a database, by a lock on `<path>.lock`, which also remembers how far the newest
    database in this place had come."""

    def __init__(self, path: Path) -> None:
        self.path, self._synced = Path(f"{path}.lock"), -1
        try:
            self._fd = files.open_own(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise StoreError(f"{path} is in use by another chimed: stop it first") from error

    def release(self) -> None:
        """Gives it up; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_in_place(self) -> bool:
        """Whether who asks for the lock would find this one."""
        return identity(self.path) == identity(self._fd)

    def noted(self) -> Mark:
        """The newest mark of a database in this place that was noted; one of generation 0 if none."""
        words = os.pread(self._fd, _NOTE_BYTES, 0).decode("ascii", "replace").split()
        if not words or any(not _is_number(word) for word in words[:2]):
            return Mark()
        return Mark(int(words[0]), words[2] if len(words) > 2 else "", int(words[1]) if len(words) > 1 else 0)

    def note(self, mark: Mark) -> None:
        """Remembers it. Best effort: the disk may be full. The number of turns is not synced: one that is too small
        after a crash is true as well."""
        text = f"{mark.generation} {mark.turn} {mark.history}"
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, text.ljust(_NOTE_BYTES - 1).encode() + b"\n", 0)
            if mark.generation != self._synced:
                os.fsync(self._fd)
                self._synced = mark.generation

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings of every Chime database; explicit transactions. The file must exist."""
    uri = f"file:{_uri_path(path)}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 16777216")
    return connection


def inspect(connection: sqlite3.Connection, path: Path, check: Check) -> None:
    """Refuses a file that is damaged, not a Chime database, or of a newer version. Raises StoreError."""
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(f"{path} is not a Chime database: it was left as it is")
        known = {m.name for m in migrations.pending(Database(memory=True))}
        newer = {m.name for m in migrations.applied(Database(connection))} - known
        found = [] if check == "none" else connection.execute(f"PRAGMA {_CHECKS[check]}").fetchall()
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    if newer:
        names = ", ".join(sorted(newer))
        raise StoreError(f"{path} was written by a newer version of Chime ({names}): upgrade chimed")
    if found and found[0][0] != "ok":
        raise unusable(path, sqlite3.DatabaseError(str(found[0][0]).replace("\n", " ")))


def migrate(connection: sqlite3.Connection) -> None:
    """Applies the migrations that are missing."""
    database = Database(connection)
    if migrations.pending(database):
        migrations.apply(database)


def generation_of(connection: sqlite3.Connection) -> int:
    """The generation in the meta row. Raises StoreError when there is none."""
    row = connection.execute("SELECT generation FROM meta").fetchone()
    if row is None or not isinstance(row[0], int):
        raise StoreError(f"the database has no generation: restore a backup with `{RESTORE}`")
    return row[0]


def mark_of(connection: sqlite3.Connection) -> Mark:
    """How far a database of this version has come. Raises StoreError when it does not say its generation."""
    history = connection.execute("SELECT max(json_extract(row, '$.history')) FROM meta").fetchone()[0]
    turn = connection.execute("SELECT max(turn) FROM turns").fetchone()[0]
    return Mark(generation_of(connection), str(history or ""), turn or 0)


def identity(file: Path | int) -> tuple[int, int] | None:
    """Tells a file from every other one; None when there is none, or it cannot be looked at."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def make_private_file(path: Path) -> None:
    """An empty file that only its owner reads. Raises OSError when it exists."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def make_private(path: Path) -> None:
    """Nobody else may read the file at `path`. Raises OSError also when it is a link, or a file of somebody else."""
    descriptor = files.open_own(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes creations and renames in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_CHECKS = {"quick": "quick_check(1)", "full": "integrity_check(1)"}
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def unusable(path: Path, error: sqlite3.Error) -> StoreError:
    """What to tell an operator about `error`."""
    name = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
    if not name.startswith(_DAMAGE):
        return StoreError(f"{path} cannot be read: {error}")
    return StoreError(
        f"{path} is damaged ({error}): it was left as it is; "
        f"restore a backup with `{RESTORE}` (the damaged file is kept)"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _uri_path(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def remove_files(path: Path) -> None:
    """Deletes a database that nobody uses, with its log; absent is fine."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
