"""A database file: its lock, its connection settings, and what is refused.

A database is used by one chimed at a time (lock on `<path>.lock`). A damaged, foreign or newer file is
refused and left as it is. Rows and transactions are in `store.py`, copies and restores in `backup.py`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Literal

import msgspec
from sqlite_utils import Database

from chimed.core.state.mark import Mark
from chimed.schema import APPLICATION_ID, migrations
from wire import files

Check = Literal["none", "quick", "full"]

BUSY_TIMEOUT_MS = 2_000
LIFE_AT, LIFE_BYTES = 60, 4  # where SQLite keeps `PRAGMA user_version`: https://www.sqlite.org/fileformat.html
NOTE_BYTES = 128
_LIVES = r"(-|\d{1,10}(?:,\d{1,10})*)"
_NOTE = re.compile(rf"chime-mark 1 (\d{{1,7}}) (\d{{1,15}}) (-|[0-9a-z]{{1,32}}) {_LIVES} {_LIVES} *\n", re.ASCII)
_RELEASED = re.compile(r"(?=.{31}\n)(\d{1,7}) *\n", re.ASCII)
"""What versions before noted: the generation alone."""
RESTORE = "chimed restore FILE"


class StoreError(Exception):
    """The database cannot be used, or not now: no space, I/O error, locked, damaged, newer. Nothing was
    changed."""


class StoreConflict(StoreError):
    """The rows contradict each other (a name twice, an unknown node): a bug of the caller. Nothing was
    changed."""


class Lock:
    """Exclusive use of a database, by a lock on `<path>.lock`, which also remembers how far the newest database in
    this place had come, and which file was open here last."""

    def __init__(self, path: Path) -> None:
        self.path, self._synced = Path(f"{path}.lock"), ""
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
        return self._read()[0]

    def last_open(self) -> tuple[int, ...]:
        """The lives that the file which was open here last may bear: the log beside it is that file's. Empty: not
        known."""
        return self._read()[1]

    def note(self, mark: Mark, last_open: tuple[int, ...] = ()) -> bool:
        """Remembers it; false when that cannot be done now (the disk may be full). What says which database is the
        newest is on disk then; the number of turns need not be: one that is too small after a crash is true as well."""
        which = f"{mark.history or '-'} {_lives_text(mark.lives)} {_lives_text(last_open)}"
        text = f"chime-mark 1 {mark.generation} {mark.turn} {which}".ljust(NOTE_BYTES - 1) + "\n"
        if _NOTE.fullmatch(text) is None:
            return False
        try:
            os.pwrite(self._fd, text.encode(), 0)
            if self._synced != f"{mark.generation} {which}":
                os.ftruncate(self._fd, NOTE_BYTES)
                os.fsync(self._fd)
                self._synced = f"{mark.generation} {which}"
        except OSError:
            return False
        return True

    def forget_lives(self) -> None:
        """Before another file takes the place: it is right then, whatever its life is. Raises StoreError."""
        mark, last_open = self._read()
        if (mark.lives or last_open) and not self.note(msgspec.structs.replace(mark, lives=())):
            raise StoreError(f"{self.path} cannot be written: nothing was changed")

    def _read(self) -> tuple[Mark, tuple[int, ...]]:
        text = os.pread(self._fd, NOTE_BYTES + 1, 0).decode("ascii", "replace")
        if found := _NOTE.fullmatch(text):
            generation, turn, history, lives, last_open = found.groups()
            mark = Mark(int(generation), history.strip("-"), int(turn), _lives_of(lives))
            return mark, _lives_of(last_open)
        if found := _RELEASED.fullmatch(text):
            return Mark(int(found[1])), ()
        return Mark(), ()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Header:
    """The beginning of a database file, as it lies on disk, read past SQLite. To close any descriptor of the file ends
    the locks that SQLite has on it in this process: this one is opened before SQLite's and closed after it."""

    def __init__(self, path: Path) -> None:
        """Also: nobody else may read the file. Raises OSError also when it is a link, or a file of somebody else."""
        self._fd = files.open_own(path, os.O_RDONLY)
        try:
            os.fchmod(self._fd, 0o600)
        except OSError:
            self.close()
            raise

    def life(self) -> int:
        """The number of the file's life; -1 when the file is too short to have one. Raises OSError."""
        found = os.pread(self._fd, LIFE_BYTES, LIFE_AT)
        return int.from_bytes(found, "big") if len(found) == LIFE_BYTES else -1

    def identity(self) -> tuple[int, int] | None:
        """Of the file that is open, wherever it is now."""
        return identity(self._fd)

    def close(self) -> None:
        """A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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


def life_of(connection: sqlite3.Connection) -> int:
    """The life of the database, as far as it is saved: the file itself may not have it yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0]) & 0xFFFFFFFF


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


def _lives_text(lives: tuple[int, ...]) -> str:
    return ",".join(map(str, lives)) or "-"


def _lives_of(text: str) -> tuple[int, ...]:
    return tuple(int(life) for life in text.split(",")) if text != "-" else ()


def _uri_path(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def remove_files(path: Path) -> None:
    """Deletes a database that nobody uses, with its log; absent is fine."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def lay_log_aside(path: Path) -> None:
    """Before SQLite opens the database: the log beside it is of another file and would be written into this one. It is
    kept under another name. Raises OSError."""
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    index.unlink(missing_ok=True)
    if log.exists():
        os.rename(log, name_to_keep(log))
        sync_directory(path.parent)


def name_to_keep(path: Path) -> Path:
    """A name beside it for what is replaced."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for count in itertools.count():
        name = path.with_name(f"{path.name}.replaced-{stamp}" + (f"-{count}" if count else ""))
        if not name.exists():
            break
    return name
