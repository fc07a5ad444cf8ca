"""The database file: crashes, full disks, damage, versions, locks, copies and restores."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chimed import backup, database
from chimed.core.state import rows as r
from chimed.core.state.mark import Mark
from chimed.database import NOTE_BYTES, Lock, StoreError
from chimed.history import PRUNE_STEP, Retention
from chimed.store import Store
from tests.fakes.rows import change, event, node, operation, vm

NOW = 1_000_000.0
ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from chimed.store import Store
from tests.fakes.rows import change, event, node, vm
store = Store.open(sys.argv[1])
serial = sum(1 for _ in store.load())
while True:
    serial += 1
    owner = node(f"n{serial}")
    store.commit([change(owner), change(vm(f"v{serial}", owner.name))], [event(owner.name)])
    print(serial, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with three nodes and a VM."""
    path = tmp_path / "chime.db"
    with Store.create(path) as store:
        rows = (node("n1"), node("n2"), node("n3"), vm("web", "n1", epoch=4))
        store.commit([change(row) for row in rows], [event("n1")])
    return path


def restored(path: Path) -> list[r.Row]:
    """What a backup holds as it counts after a restore, without the database's own row."""
    rows = rows_of(path)[1:]
    return [msgspec.structs.replace(row, restored=True) if isinstance(row, r.Node) else row for row in rows]


def rows_of(path: Path) -> list[r.Row]:
    with Store.open(path) as store:
        return list(store.load())


def refused(path: Path, *words: str) -> None:
    """Open says why in one line, and leaves the file as it is."""
    before = path.read_bytes()
    with pytest.raises(StoreError) as raised:
        Store.open(path)
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in (str(path), *words)), str(raised.value)
    assert path.read_bytes() == before


# --- crashes
# ----------------------------------------------------------------------------------------------------------


def test_kill_9_of_a_writer_loses_nothing_that_it_was_told_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "chime.db"
    Store.create(path).close()
    for lines in (1, 17, 40, 3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline() for _ in range(lines)]
            writer.kill()
            told += [line for line in writer.stdout if line.endswith("\n")]
        acknowledged = {int(line) for line in told}
        rows = rows_of(path)
        names = {row.name for row in rows if isinstance(row, r.Vm)}
        assert {f"v{serial}" for serial in acknowledged} <= names
        assert len(names) == sum(isinstance(row, r.Node) for row in rows), "half of a turn was saved"


def test_an_open_transaction_of_a_killed_process_leaves_nothing(path: Path) -> None:
    before = rows_of(path)
    code = (
        "import os, sys; from chimed.store import Store, _Transaction\n"
        "store = Store.open(sys.argv[1])\n"
        "with _Transaction(store) as connection:\n"
        "    connection.execute('DELETE FROM vms'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
    assert rows_of(path) == before


# --- no space
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a file system of 2 MiB can only be mounted by root")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler, pytest.raises(OSError):
        for size in (65536, 4096, 1):
            while True:
                try:
                    if filler.write(b"x" * size) < size:
                        break
                except OSError:
                    if size == 1:
                        raise
                    break


def test_a_full_disk_refuses_changes_reads_on_and_recovers(small_disk: Path) -> None:
    path, filler = small_disk / "chime.db", small_disk / "filler"
    with Store.create(path) as store:
        store.commit([change(node("n1"))], [event("n1")])
        before = list(store.load())
        fill(filler)
        failed = 0
        for serial in range(200):
            try:
                store.commit([change(vm(f"v{serial}", "n1"))], [event("n1")])
                before.append(vm(f"v{serial}", "n1"))
            except StoreError as error:
                failed += 1
                assert "full" in str(error) or "disk I/O" in str(error)
        assert failed
        assert not store.writable()
        assert set(store.load()) == set(before)
        assert store.events("n1")
        filler.unlink()
        assert store.writable()
        store.commit([change(vm("after", "n1"))])
    assert set(rows_of(path)) == {*before, vm("after", "n1")}


def test_a_full_disk_at_create_leaves_no_database(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(StoreError, match="cannot be created"):
        Store.create(small_disk / "chime.db")
    assert not (small_disk / "chime.db").exists()


# --- refused files
# ----------------------------------------------------------------------------------------------------


def test_a_missing_database_is_not_made_by_open(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="chimed init"):
        Store.open(tmp_path / "chime.db")
    assert list(tmp_path.iterdir()) == []


def test_create_leaves_an_existing_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        Store.create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["overwritten", "header", "cut"])
def test_a_damaged_database_is_refused_and_kept(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "overwritten":
        content[4096:] = os.urandom(len(content) - 4096)
    elif damage == "header":
        content[:100] = os.urandom(100)
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    refused(path, "chimed restore FILE")


def test_a_row_that_cannot_be_read_is_named(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE vms SET row = json_set(row, '$.spec.memory_mib', 'much')")
    with (
        Store.open(path) as store,
        pytest.raises(StoreError, match=r"row \['.*'\] of table vms .*memory_mib"),
    ):
        list(store.load())


@pytest.mark.parametrize("content", [b"", b"not a database, but longer than a header" * 100])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chime.db"
    path.write_bytes(content)
    refused(path)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chime.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    refused(path, "not a Chime database")


def test_a_newer_version_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('chime', '9999_later', '')"
        )
        connection.execute("PRAGMA journal_mode = DELETE")
    refused(path, "newer version", "9999_later")
    with pytest.raises(StoreError, match="newer version"):
        backup.restore(path, path.with_name("other.db"))


def test_two_servers_cannot_open_one_database(path: Path) -> None:
    with Store.open(path):
        for attempt in (lambda: Store.open(path), lambda: backup.restore(path, path)):
            with pytest.raises(StoreError, match="in use by another chimed"):
                attempt()
    Store.open(path).close()


def test_the_lock_goes_with_the_process(path: Path) -> None:
    code = (
        "import os, sys; from chimed.store import Store; s = Store.open(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
    Store.open(path).close()


def test_only_the_owner_reads_any_of_the_files(path: Path) -> None:
    path.chmod(0o644)
    previous = os.umask(0)
    try:
        with Store.open(path) as store:
            store.commit([change(node("n9"))])
            store.backup(path.with_name("copy.db"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert len(modes) == 5, modes  # database, log, index of the log, lock, copy
    assert set(modes.values()) == {0o600}, modes


# --- copies and restores
# ----------------------------------------------------------------------------------------------


def test_a_backup_taken_while_writing_is_one_moment_of_the_database(path: Path) -> None:
    copies = [path.with_name(f"copy{i}.db") for i in range(5)]
    stop, errors = threading.Event(), []

    def copy() -> None:
        try:
            for destination in copies:
                backup.back_up(path, destination)
        except StoreError as error:
            errors.append(error)
        finally:
            stop.set()

    with Store.open(path) as store:
        thread = threading.Thread(target=copy)
        thread.start()
        written = 0
        while not stop.is_set():
            written += 1
            store.commit([change(node(f"m{written}")), change(vm(f"w{written}", f"m{written}"))])
        thread.join()
    assert not errors
    assert written > 5
    for destination in copies:
        rows = rows_of(destination)
        assert sum(isinstance(x, r.Node) for x in rows) == sum(isinstance(x, r.Vm) for x in rows) + 2


def test_a_backup_replaces_a_file_only_when_told(path: Path) -> None:
    destination = path.with_name("copy.db")
    destination.write_text("precious")
    with pytest.raises(StoreError, match="exists already"):
        backup.back_up(path, destination)
    assert destination.read_text() == "precious"
    with pytest.raises(StoreError, match="database itself"):
        backup.back_up(path, path, overwrite=True)
    backup.back_up(path, destination, overwrite=True)
    assert rows_of(destination) == rows_of(path)


def test_a_restore_raises_the_generation_and_waits_for_every_node(path: Path) -> None:
    copy = path.with_name("copy.db")
    backup.back_up(path, copy)
    with Store.open(path) as store:
        store.commit([change(r.Meta(generation=5)), change(node("later"))])
        newest = list(store.load())
    assert backup.restore(copy, path) == 6
    first, *rest = rows_of(path)
    assert isinstance(first, r.Meta) and first.history
    assert first == r.Meta(generation=6, history=first.history, waiting_for=("n1", "n2", "n3"))
    assert rest == restored(copy)
    [kept] = path.parent.glob("chime.db.replaced-*")
    assert rows_of(kept) == newest
    assert backup.restore(copy, path) == 7, "a second restore of the same copy is a new generation"


def test_a_restore_over_a_damaged_or_missing_database_still_raises_the_generation(path: Path) -> None:
    copy = path.with_name("copy.db")
    backup.back_up(path, copy)
    assert backup.restore(copy, path) == 2
    path.write_bytes(b"damaged" * 1000)
    path.with_name("chime.db-wal").write_bytes(b"log")
    assert backup.restore(copy, path) == 3
    assert any(file.read_bytes() == b"damaged" * 1000 for file in path.parent.glob("chime.db.replaced-*"))
    assert [file.read_bytes() for file in path.parent.glob("chime.db.replaced-*-wal")] == [b"log"]
    path.unlink()
    assert backup.restore(copy, path) == 4
    assert rows_of(path)[1:] == restored(copy)


def test_a_damaged_backup_changes_nothing(path: Path) -> None:
    copy, before = path.with_name("copy.db"), rows_of(path)
    backup.back_up(path, copy)
    content = bytearray(copy.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    copy.write_bytes(content)
    with pytest.raises(StoreError, match=str(copy)):
        backup.restore(copy, path)
    assert rows_of(path) == before
    assert not list(path.parent.glob("*.part*")) + list(path.parent.glob(".*part*"))


CRASHING_RESTORE = """
import os, signal, sys
from chimed import backup, database
count = [int(sys.argv[3])]
def crash_before(module, name):
    plain = getattr(module, name)
    def call(*args, **kwargs):
        if count[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] -= 1
        return plain(*args, **kwargs)
    setattr(module, name, call)
for name in ("link", "rename", "replace", "fsync"):
    crash_before(os, name)
for name in ("_fold_log", "_renew", "sync_directory"):
    crash_before(backup, name)
backup.restore(sys.argv[1], sys.argv[2])
print("restored")
"""


@pytest.mark.parametrize("with_log", [False, True], ids=["clean", "killed with a log"])
def test_a_restore_killed_at_any_step_leaves_the_old_or_the_new_database(path: Path, with_log: bool) -> None:
    copy = path.with_name("copy.db")
    backup.back_up(path, copy)
    with Store.open(path) as store:
        store.commit([change(node("later"))])
        if with_log:  # what a kill -9 leaves: the newest turn only in the log
            files = {name: path.with_name(name).read_bytes() for name in ("chime.db", "chime.db-wal")}
    if with_log:
        for name, content in files.items():
            path.with_name(name).write_bytes(content)
    old, new = rows_of(path)[1:], restored(copy)
    seen = set()
    for step in range(40):
        command = [sys.executable, "-c", CRASHING_RESTORE, str(copy), str(path), str(step)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        meta, *rest = rows_of(path)
        assert isinstance(meta, r.Meta)
        assert rest == (new if meta.waiting_for else old)
        assert meta.generation >= 2 if meta.waiting_for else meta.generation == 1
        with Store.open(path) as store:
            assert store.put_back is None
        seen.add(bool(meta.waiting_for))
        if "restored" in done.stdout:
            break
        assert done.returncode == -9
    else:
        pytest.fail("the restore never ended")
    assert seen == {False, True}


def test_load_of_a_large_fleet(tmp_path: Path) -> None:
    with Store.create(tmp_path / "chime.db") as store:
        store.commit([change(node(f"n{i}")) for i in range(1000)])
        store.commit([change(vm(f"vm{i}", f"n{i % 1000}")) for i in range(20_000)])
    with Store.open(tmp_path / "chime.db") as store:
        assert sum(isinstance(row, r.Vm) for row in store.load()) == 20_000


# --- under a running server -------------------------------------------------------------------------------------------

BESIDE = ["", "-wal", "-shm", ".lock"]


@pytest.mark.parametrize("suffix", BESIDE)
@pytest.mark.parametrize("how", ["moved", "deleted", "replaced", "made anew"])
def test_h12_a_file_that_is_taken_away_is_noticed_at_once(path: Path, suffix: str, how: str) -> None:
    with Store.open(path) as store:
        store.commit([change(node("n4"))])
        assert store.astray() == "" and store.writable()
        file, aside = path.with_name(path.name + suffix), path.with_name("aside")
        file.rename(aside)
        if how == "deleted":
            aside.unlink()
        elif how == "replaced":
            file.write_bytes(aside.read_bytes())
        elif how == "made anew":
            file.touch()
        assert file.name in store.astray() and not store.writable()
        with pytest.raises(StoreError, match=f"{file.name} was deleted, moved or replaced"):
            store.commit([change(node("n5"))])
        assert "n4" in {row.name for row in store.load() if isinstance(row, r.Node)}
        if how != "deleted":
            aside.rename(file)
            assert store.astray() == "" and store.writable()
            store.commit([change(node("n5"))])
    if how != "deleted":
        assert {"n4", "n5"} <= {row.name for row in rows_of(path) if isinstance(row, r.Node)}


def test_h12_what_was_moved_away_is_whole_without_its_log(path: Path) -> None:
    """And no log is left for the file that was put in its place."""
    (path.parent / "old").mkdir()
    backup.back_up(path, path.parent / "old" / "chime.db")
    with Store.open(path) as store:
        store.commit([change(node("n4"))])
        path.rename(path.parent / "aside.db")
        (path.parent / "old" / "chime.db").rename(path)
        assert store.astray()
        assert path.with_name("chime.db-wal").stat().st_size == 0
    assert "n4" in {row.name for row in rows_of(path.parent / "aside.db") if isinstance(row, r.Node)}
    assert "n4" not in {row.name for row in rows_of(path) if isinstance(row, r.Node)}


def test_h12_a_copy_taken_meanwhile_is_no_trouble(path: Path) -> None:
    with Store.open(path) as store:
        backup.back_up(path, path.parent / "copy.db")
        for number in range(50):
            store.commit([change(node(f"m{number}"))])
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT count(*) FROM nodes").fetchone()
        assert store.astray() == ""


def test_h6_removing_history_keeps_up_in_short_turns_and_the_file_stops_growing(tmp_path: Path) -> None:
    """Lines come as fast as they can be saved. What is measured is processor time: others use the disk too."""
    keep, slowest_s, sizes = Retention(events=5_000, node_events=5_000), 0.0, []
    with Store.create(tmp_path / "chime.db") as store:
        for number in range(450):
            lines = [event("n1", "x" * 200, f"{number}.{i}", of_node=number % 3 > 0) for i in range(100)]
            store.commit([], lines)
            if store.much_surplus():
                began = time.thread_time()
                assert store.prune(NOW, keep) == []
                slowest_s = max(slowest_s, time.thread_time() - began)
            if number % 150 == 149:
                sizes.append((tmp_path / "chime.db").stat().st_size + (tmp_path / "chime.db-wal").stat().st_size)
        assert sizes[2] < 1.2 * sizes[0]
        assert len(store.events(limit=100_000)) <= 10_000 + 2 * PRUNE_STEP
        for _ in range(3):
            store.prune(NOW, keep)
        assert len(store.events(limit=100_000)) == 10_000
    print(f"slowest removal {1000 * slowest_s:.1f} ms, file {sizes} bytes")
    assert slowest_s < 0.04


def test_h6_old_operations_that_vms_name_stay_and_do_not_keep_others_from_going(tmp_path: Path) -> None:
    with Store.create(tmp_path / "chime.db") as store:
        named = [operation(i, ended=float(i)) for i in range(1, 2 * PRUNE_STEP)]
        others = [operation(i, ended=float(i)) for i in range(5000, 5000 + 2 * PRUNE_STEP)]
        vms = [vm(f"v{i}", "n1", last_operation=row.id) for i, row in enumerate(named)]
        store.commit([change(row) for row in (node("n1"), *vms, *named, *others)])
        gone = []
        for _ in range(20):
            gone += store.prune(NOW, Retention(operations=100))
        assert {c.key for c in gone} == {(row.id,) for row in others[:-100]}
        assert not store.much_surplus()


def test_lines_of_a_database_from_before_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "chime.db"
    with Store.create(path) as store:
        store.commit([], [event("n1", "told", "s1", actor="agentd@n1"), event("n1", "own")])
    with closing(sqlite3.connect(path)) as old, old:
        for table in ("nodes", "vms"):
            old.execute(f"DROP INDEX {table}_last_operation")
        old.execute("DROP INDEX events_of_nodes")
        old.execute("ALTER TABLE events DROP COLUMN of_node")
        old.execute("DELETE FROM _sqlite_migrations WHERE name = '0003_event_rings'")
    with Store.open(path) as store:
        store.prune(NOW, Retention(events=1, node_events=0))
        assert [e.text for e in store.events()] == ["own"]


# --- a file that was put back -----------------------------------------------------------------------------------------


def names(path: Path) -> set[str]:
    return {row.name for row in rows_of(path) if isinstance(row, r.Node)}


def told(path: Path) -> str:
    """What a start knows of a newer database that was here; the start changes nothing but the life."""
    with Store.open(path) as store:
        return store.put_back.text if store.put_back else ""


def life_of(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[60:64], "big")


def noted(path: Path) -> Mark:
    with Lock(path) as lock:
        return lock.noted()


def mark_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


KILLED = """
import os, sys
from chimed.store import Store
from tests.fakes.rows import change, node
store = Store.open(sys.argv[1])
for name in sys.argv[2:]:
    store.commit([change(node(name))])
os.kill(os.getpid(), 9)
"""


def killed_after(path: Path, *nodes: str) -> None:
    """What was committed is in the log alone."""
    command = [sys.executable, "-c", KILLED, str(path), *nodes]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    assert path.with_name("chime.db-wal").stat().st_size > 0


OTHER = "it was put back: the file is not the one that was open here last"


def test_e4_each_start_gives_the_file_another_life_on_disk(path: Path) -> None:
    lives = [life_of(path)]
    for _ in range(3):
        with Store.open(path) as store:
            assert store.put_back is None and store.astray() == ""
            lives.append(life_of(path))
            assert noted(path.with_name("none")) == Mark()
            assert f" {lives[-1]} {lives[-1]} " in mark_file(path).read_text()
            store.commit([change(node(f"m{len(lives)}"))])
            assert store.astray() == ""
        assert life_of(path) == lives[-1]
    assert len(set(lives)) == 4 and all(0 < life < 1 << 31 for life in lives)


@pytest.mark.parametrize("changes", [1, 30])
def test_e4_killed_with_a_log_and_an_old_file_put_over_it(path: Path, changes: int) -> None:
    """The log would make a mixture of the old file, with the newest number of changes."""
    old = path.read_bytes()
    with Store.open(path) as store:
        store.commit([change(node("kept"))])
    killed_after(path, *(f"k{number}" for number in range(changes)))
    log = path.with_name("chime.db-wal").read_bytes()
    path.write_bytes(old)
    with Store.open(path) as store:
        assert store.put_back is not None and "were saved in its place" in store.put_back.text
        assert {row.name for row in store.load() if isinstance(row, r.Node)} == {"n1", "n2", "n3"}
    [kept] = path.parent.glob("chime.db-wal.replaced-*")
    assert kept.read_bytes() == log
    assert told(path)


def test_e4_killed_with_a_log_that_goes_on(path: Path) -> None:
    for number in range(4):
        killed_after(path, f"k{number}")
    assert told(path) == ""
    assert {"k0", "k1", "k2", "k3"} <= names(path)
    assert not list(path.parent.glob("*.replaced-*"))


def test_e4_a_wrong_file_keeps_what_it_saved_and_leaves_nothing_in_the_right_one(path: Path) -> None:
    """Both are killed with a log of their own."""
    wrong = path.read_bytes()
    with Store.open(path) as store:
        store.commit([change(node("right"))])
    right = path.read_bytes()
    path.write_bytes(wrong)
    for number in range(3):
        killed_after(path, f"w{number}", *(f"more{number}.{i}" for i in range(3)))
    assert {"w0", "w1", "w2"} <= names(path) and told(path)
    killed_after(path, "w3")
    path.write_bytes(right)
    assert told(path) == ""
    assert names(path) == {"n1", "n2", "n3", "right"}
    killed_after(path, "after")
    assert told(path) == "" and names(path) == {"n1", "n2", "n3", "right", "after"}


def test_e4_written_over_while_it_is_open(path: Path) -> None:
    old = path.read_bytes()
    with Store.open(path) as store:
        store.commit([change(vm("moved", "n1", epoch=2))])
    with Store.open(path) as store:
        store.commit([change(node("n4"))], [event("n1") for _ in range(1000)])
        right = path.read_bytes()
        path.write_bytes(old)
        assert f"{path} was written over" in store.astray() and "stop chimed" in store.astray()
        assert not store.writable()
        assert path.read_bytes() == old, "nothing is written into it while chimed runs"
        with pytest.raises(StoreError, match="was written over"):
            store.commit([change(node("n5"))])
        path.write_bytes(right)
        assert store.astray(), "what SQLite has read from it meanwhile is not known"
        path.write_bytes(old)
    assert life_of(path) not in noted(path).lives, "whatever was written into it when it was closed"
    for _ in range(2):
        try:
            assert told(path)
        except StoreError as error:  # closing it has mixed the log into it
            assert "chimed restore FILE" in str(error)
    assert noted(path).turn == 3, "of the newest that there was"


def test_e4_an_empty_file_in_its_place_while_it_is_open(path: Path) -> None:
    with Store.open(path) as store:
        path.write_bytes(b"")
        assert "was written over" in store.astray()


def test_e4_written_over_with_the_newest_by_one_that_was_wrong(path: Path) -> None:
    wrong = path.read_bytes()
    with Store.open(path) as store:
        store.commit([change(node("right"))])
    right = path.read_bytes()
    path.write_bytes(wrong)
    with Store.open(path) as store:
        store.commit([change(node("n4"))])
        path.write_bytes(right)
        assert store.astray()
    assert told(path), "the log of the wrong one may be in it"


def test_e4_a_restore_over_a_log_of_another_file_is_right(path: Path) -> None:
    copy, old = path.with_name("copy.db"), path.read_bytes()
    backup.back_up(path, copy)
    killed_after(path, "k1")
    path.write_bytes(old)
    assert told(path)
    assert backup.restore(copy, path) == 2
    assert noted(path).lives == ()
    assert told(path) == "" and noted(path).lives and names(path) == {"n1", "n2", "n3"}


@pytest.mark.parametrize("with_log", [False, True], ids=["clean", "killed with a log"])
def test_e4_a_start_that_is_cut_off_anywhere_is_no_false_alarm(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_log: bool
) -> None:
    """All files are copied before each statement and before and after each step that writes; each state of them is
    started, cut off, and started again."""
    saved: list[dict[str, bytes]] = []

    def save(*_: object) -> None:
        files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", ".lock")]
        state = {file.name: file.read_bytes() for file in files if file.exists()}
        if state not in saved:
            saved.append(state)

    def saving(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object) -> Any:
            save()
            done = plain(*args)
            save()
            return done

        return call

    def connect(place: Path) -> sqlite3.Connection:
        connection = database.connect(place)
        connection.set_trace_callback(save)
        return connection

    if with_log:
        killed_after(path, "k1")
    expected = {"n1", "n2", "n3", *(["k1"] if with_log else [])}
    with monkeypatch.context() as patched:
        patched.setattr("chimed.store.connect", connect)
        patched.setattr(Lock, "note", saving(Lock.note))
        patched.setattr(Store, "_write_log_back", saving(Store._write_log_back))
        Store.open(path).close()
    assert len(saved) >= 5
    for state in saved:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        copied = folder / "chime.db"
        for name, content in state.items():
            (folder / name).write_bytes(content)
        killed_after(copied, "last")
        assert told(copied) == "" and names(copied) == {*expected, "last"}
        assert not list(folder.glob("*.replaced-*"))


class Failing:
    """A connection on which some statements fail as they do on a full disk."""

    def __init__(self, connection: sqlite3.Connection, words: tuple[str, ...]) -> None:
        self._connection, self._words = connection, words

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        if sql.startswith(self._words):
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(sql, *args)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def failing(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Store:
    """Opened while such statements fail."""
    begin = Store._begin_life

    def call(store: Store) -> None:
        plain, store._connection = store._connection, Failing(store._connection, words)  # type: ignore[assignment]
        begin(store)
        store._connection = plain

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_begin_life", call)
        return Store.open(path)


def closed_as_killed(store: Store) -> None:
    """The log is left as it is, and the file without it."""
    files = [store.path, store.path.with_name("chime.db-wal")]
    content = [file.read_bytes() for file in files]
    store.close()
    for file, data in zip(files, content, strict=True):
        file.write_bytes(data)


@pytest.mark.parametrize("words", ["PRAGMA user_version =", "PRAGMA wal_checkpoint", "PRAGMA user_version"])
def test_e4_a_life_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """It goes on with what there is, as often as that is so, and is still told from an older file."""
    old = path.read_bytes()
    with Store.open(path) as store:
        store.commit([change(node("n4"))])
    for number in range(3):
        store = failing(path, monkeypatch, words)
        assert store.put_back is None and store.astray() == ""
        store.commit([change(node(f"m{number}"))])
        closed_as_killed(store)
    assert told(path) == "" and {"m0", "m1", "m2"} <= names(path)
    path.write_bytes(old)
    assert told(path)


def test_e4_a_life_that_is_only_in_the_log_may_still_come_into_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start has another life for it, which cannot be saved."""
    closed_as_killed(failing(path, monkeypatch, "PRAGMA wal_checkpoint"))
    failing(path, monkeypatch, "PRAGMA user_version =").close()
    assert told(path) == ""


def test_e4_a_start_while_another_program_reads(path: Path) -> None:
    """The log cannot be moved into the file: either life is right."""
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        store.commit([change(node("n4"))])
        store.close()
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM nodes").fetchone()
        with Store.open(path) as again:
            assert again.put_back is None
            again.commit([change(node("n5"))])
            assert again.astray() == ""
            assert len(noted_lives(path)) == 2
            reader.execute("COMMIT")
            for _ in range(2):  # more than the log takes before it is moved
                again.commit([], [event("n1", "x" * 500) for _ in range(10_000)])
            assert again.astray() == ""
    assert told(path) == "" and "n5" in names(path)
    assert len(noted_lives(path)) == 1


def noted_lives(path: Path) -> list[str]:
    return mark_file(path).read_text().split()[5].split(",")


def test_e4_a_note_that_cannot_be_written_changes_no_life(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = life_of(path)
    monkeypatch.setattr(Lock, "note", lambda *_: False)
    with Store.open(path) as store:
        store.commit([change(node("n4"))])
        assert store.astray() == ""
    assert life_of(path) == before
    monkeypatch.undo()
    assert told(path) == ""


GARBAGE = (
    b"", b"4242\n", b"999999999999999999\n", b"%-31d\n" % 10**7, b"%-30d\n" % 5, b"%-31d\n\n" % 5, b"5\n" + 30 * b" ",
    bytes(range(256)), b"chime-mark 1 2 7 - 5\n", b"chime-mark 1 2 7 - 5 5\n" + 200 * b" ",
    b"%-127s\n" % b"chime-mark 2 2 7 - 5 5", b"%-127s\n" % b"chime-mark 1 12345678 7 - 5 5",
    b"%-127s\n" % b"chime-mark 1 2 1234567890123456 - 5 5", b"%-127s\n" % b"chime-mark 1 2 7 - 5 5,",
    b"%-127s\n" % b"2 7 abc", b"%-127s\n" % b"chime-mark 1 2 7 - 5 5 5",
    b"%-127s\n" % "chime-mark 1 \u0662 7 - 5 5".encode(),
)  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE)
def test_e4_what_is_no_mark_says_nothing(path: Path, content: bytes) -> None:
    mark_file(path).write_bytes(content)
    assert noted(path) == Mark()
    assert told(path) == ""
    assert mark_file(path).stat().st_size == NOTE_BYTES
    assert noted(path) == Mark(1, "", 1, (life_of(path),))


def test_e4_the_mark_of_the_version_before_is_read(path: Path) -> None:
    mark_file(path).write_bytes(b"%-31d\n" % 3)
    assert noted(path) == Mark(3)
    assert "one of generation 3" in told(path)
    mark_file(path).write_bytes(b"%-31d\n" % 1)
    assert told(path) == ""


@pytest.mark.parametrize("mark", [Mark(10**7), Mark(1, "", 10**15), Mark(1, "not a name")])
def test_e4_what_would_not_be_read_again_is_not_noted(path: Path, mark: Mark) -> None:
    before = mark_file(path).read_bytes()
    with Lock(path) as lock:
        assert not lock.note(mark, (1,))
    assert mark_file(path).read_bytes() == before


def test_e6_a_new_database_begins_above_what_was_here(path: Path) -> None:
    copy = path.with_name("copy.db")
    backup.back_up(path, copy)
    assert backup.restore(copy, path) == 2
    killed_after(path, "k1")
    path.unlink()
    with Store.create(path) as store:
        assert store.noted.generation == 2 and store.put_back is None
        assert list(store.load()) == [r.Meta(generation=3)], "nothing comes from the log of the one before"
    assert told(path) == ""
    assert backup.restore(copy, path) == 4


def test_e6_a_new_database_that_was_just_made_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not noted yet when the machine went down."""
    path.unlink()
    plain = Lock.note
    notes: list[Mark] = []

    def note(lock: Lock, mark: Mark, last_open: tuple[int, ...] = ()) -> bool:
        notes.append(mark)
        if mark.generation == 2:
            raise OSError("the power is gone")
        return plain(lock, mark, last_open)

    with monkeypatch.context() as patched:
        patched.setattr(Lock, "note", note)
        with pytest.raises(StoreError, match="the power is gone"):
            Store.create(path)
    assert path.exists() and notes[-1].generation == 2
    assert told(path) == ""


def test_e6_a_first_database_begins_in_generation_one(tmp_path: Path) -> None:
    with Store.create(tmp_path / "chime.db") as store:
        assert store.noted == Mark() and list(store.load()) == [r.Meta()]
        assert store.noted.generation == 0
