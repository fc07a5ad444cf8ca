"""Copies of the database and the way back.

A copy is taken with SQLite's backup API (consistent while chimed writes), checked, and only then given its
name. A restore puts a checked copy in the database's place in one rename; the replaced file is kept beside
it. It raises the generation and lists every node as one to wait for, because what agents have learned since
the backup is newer than what the database says (design.md S4). A crash at any moment leaves the old database
or the new one, never a mix: SQLite's log (`-wal`) of the old one is gone from its place before the new one
takes it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from chimed import rights
from chimed.core.rules import behind, recovery
from chimed.core.state import rows as r
from chimed.core.state.mark import Mark
from chimed.database import (
    Lock,
    StoreError,
    connect,
    generation_of,
    inspect,
    make_private_file,
    migrate,
    name_to_keep,
    remove_files,
    sync_directory,
)
from wire.text import counted

R = TypeVar("R", bound=r.Row)


def back_up(path: Path | str, destination: Path | str, overwrite: bool = False) -> None:
    """Writes a checked copy of the database at `path`, in use or not, to `destination` (mode 0600). Raises
    StoreError."""
    path, destination = Path(path), Path(destination)
    if destination.exists() and not overwrite:
        raise StoreError(f"{destination} exists already, and was left as it is: --overwrite replaces it")
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    if destination.exists() and destination.samefile(path):
        raise StoreError(f"{destination} is the database itself")
    part = _part_of(destination)
    try:
        with closing(_to_read(path)) as original:
            _copy(original, path, part)
        _sync(part)
        if overwrite:
            os.replace(part, destination)
        else:
            os.link(part, destination)  # refuses a file that has appeared meanwhile
            part.unlink()
        sync_directory(destination.parent)
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{path} cannot be copied to {destination}: {why}") from error
    finally:
        remove_files(part)


def check(backup: Path | str) -> None:
    """Raises StoreError unless `backup` is there, and is a database of chimed."""
    backup = Path(backup)
    try:
        _to_read(backup).close()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{backup} cannot be read: {error}") from error


def restore(backup: Path | str, path: Path | str) -> int:
    """Puts `backup` in the place of the database at `path` and returns the new generation. Raises StoreError,
    with the database as it was, when the backup is damaged or newer than this version, or when a chimed is
    running."""
    backup, path = Path(backup), Path(path)
    try:
        with closing(_to_read(backup)) as original, rights.of_owner(path.parent), Lock(path) as lock:
            return _restore(original, backup, path, lock)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{backup} cannot be restored to {path}: {error}") from error


def _restore(original: sqlite3.Connection, backup: Path, path: Path, lock: Lock) -> int:
    part = _part_of(path)
    try:
        _copy(original, backup, part)
        mark = _renew(part, max(lock.noted().generation, _present_generation(path)))
        _sync(part)
        lock.forget_lives()
        _swap(part, path)
    finally:
        remove_files(part)
    lock.note(mark)
    return mark.generation


def _to_read(source: Path) -> sqlite3.Connection:
    """A checked connection that changes nothing and reads without further rights: its files are open."""
    if not source.exists():
        raise StoreError(f"{source} does not exist")
    original = connect(source)
    try:
        original.execute("PRAGMA query_only = ON")
        inspect(original, source, "none")
    except BaseException:
        original.close()
        raise
    return original


def _copy(original: sqlite3.Connection, source: Path, part: Path) -> None:
    """A checked copy in one file without a log."""
    make_private_file(part)
    with closing(connect(part)) as copy:
        original.backup(copy)  # all pages in one step: one moment of the database
        copy.execute("PRAGMA journal_mode = DELETE")
        inspect(copy, source, "full")


def _renew(part: Path, present: int) -> Mark:
    """Brings the copy to this version's tables and marks it as restored, also in the audit trail."""
    with closing(connect(part)) as connection:
        migrate(connection)
        connection.execute("BEGIN IMMEDIATE")
        text = connection.execute("SELECT max(row) FROM meta").fetchone()[0]
        nodes = tuple(name for (name,) in connection.execute("SELECT name FROM nodes ORDER BY name"))
        old = _decoded("meta", text, r.Meta)
        meta = recovery.begun(old, present, nodes, secrets.token_hex(8))
        connection.execute("UPDATE meta SET row = ?", (msgspec.json.encode(meta).decode(),))
        _change(connection, "nodes", "name", r.Node, recovery.held_node)
        _change(connection, "vms", "uuid", r.Vm, recovery.held_vm)
        _tell(connection, meta)
        connection.execute("COMMIT")
    return Mark(meta.generation, meta.history)


def _change(connection: sqlite3.Connection, table: str, key: str, kind: type[R], change: Callable[[R], R]) -> None:
    """Every row of a table as it counts after a restore."""
    for name, text in connection.execute(f"SELECT {key}, row FROM {table}").fetchall():
        row = _decoded(table, text, kind)
        changed = change(row)
        if changed != row:
            new = msgspec.json.encode(changed).decode()
            connection.execute(f"UPDATE {table} SET row = ? WHERE {key} = ?", (new, name))


def _tell(connection: sqlite3.Connection, meta: r.Meta) -> None:
    """A line of the audit trail, behind all that the backup has."""
    newest = connection.execute("SELECT time FROM events ORDER BY id DESC LIMIT 1").fetchone()
    until = f"its newest event is of {_utc(newest[0])}" if newest else "it has no events"
    awaited = counted(len(meta.waiting_for), "node is", "nodes are")
    text = f"generation {meta.generation}, from a backup: {until}; {awaited} waited for"
    row = (time.time(), "chimed", "restored", behind.SERVER, text)
    connection.execute("INSERT INTO events (time, actor, action, subject, text) VALUES (?, ?, ?, ?, ?)", row)


def _utc(epoch_s: float) -> str:
    """To the second, for people; a backup may hold any number."""
    try:
        return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(epoch_s)


def _decoded(table: str, text: object, kind: type[R]) -> R:
    """Raises StoreError."""
    try:
        return msgspec.json.decode(str(text), type=kind)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the backup's row of table {table} cannot be read ({error}): nothing was changed") from None


def _present_generation(path: Path) -> int:
    """Of the database that is to be replaced; 0 when it is missing or cannot be read."""
    if not path.exists():
        return 0
    try:
        with closing(connect(path)) as connection:
            return generation_of(connection)
    except (sqlite3.Error, StoreError):
        return 0


def _swap(part: Path, path: Path) -> None:
    kept = name_to_keep(path)
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if path.exists() and _fold_log(path):
        os.link(path, kept)
    elif path.exists():
        # Cannot be read, so its log cannot be folded into it. It leaves its place first: without its log it
        # might look like a sound, older database. A crash here leaves no database, which chimed refuses to
        # start with.
        os.rename(path, kept)
        sync_directory(path.parent)
        if log.exists():
            os.rename(log, kept.with_name(kept.name + "-wal"))
    log.unlink(missing_ok=True)
    index.unlink(missing_ok=True)
    sync_directory(path.parent)
    os.replace(part, path)
    sync_directory(path.parent)


def _fold_log(path: Path) -> bool:
    """Moves the log into the database file. False when the file is too damaged; raises StoreError when it is
    in use."""
    try:
        with closing(connect(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(f"{path} is open in another program: close it first") from error
        return False
    return bool(mode == "delete")


def _part_of(path: Path) -> Path:
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    remove_files(part)
    return part


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
