"""Names that can be guessed, in directories into which a user with fewer rights writes: root is not led elsewhere."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from agentd.checks import storage
from agentd.core.durable import Durable
from agentd.local_socket import LocalSocket, Question, ask
from agentd.snapshot import Snapshot, locked
from chimed import backup, rights
from chimed.core.state import rows as r
from chimed.database import StoreError
from chimed.store import Store
from wire import keys
from wire.curve import new_pair

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(b"root:x:0:0\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A backup."""
    Store.create(tmp_path / "chime.db").close()
    backup.back_up(tmp_path / "chime.db", tmp_path / "backup.db")
    return tmp_path / "backup.db"


def untouched(precious: Path) -> bool:
    return precious.read_bytes() == b"root:x:0:0\n" and precious.stat().st_mode & 0o777 == 0o644


def test_h8_the_lock_as_a_link_is_refused_by_a_restore(tmp_path: Path, precious: Path, saved: Path) -> None:
    lock = tmp_path / "chime.db.lock"
    lock.unlink()
    lock.symlink_to(precious)
    for use in (lambda: backup.restore(saved, tmp_path / "chime.db"), lambda: Store.open(tmp_path / "chime.db")):
        with pytest.raises(StoreError, match="symbolic link"):
            use()
    assert untouched(precious)


def test_h8_the_database_as_a_link_is_refused(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "linked.db").symlink_to(precious)
    with pytest.raises(StoreError, match="symbolic link"):
        Store.open(tmp_path / "linked.db")
    assert untouched(precious)


@as_root
def test_h8_root_restores_with_the_rights_of_the_directorys_owner(tmp_path: Path, saved: Path) -> None:
    """Whoever owns the directory can exchange a file there between any two steps."""
    with tempfile.TemporaryDirectory() as name:  # where a user gets to
        home = Path(name)
        os.chown(home, NOBODY, NOBODY)
        backup.restore(saved, home / "chime.db")
        assert {file.stat().st_uid for file in home.iterdir()} == {NOBODY}
        with Store.open(home / "chime.db") as store:
            (meta,) = store.load()
            assert isinstance(meta, r.Meta) and meta.history and meta == r.Meta(generation=2, history=meta.history)
        with rights.of_owner(home), pytest.raises(PermissionError):
            saved.read_bytes()
        assert os.geteuid() == 0 and saved.read_bytes()
        Store.create(home / "other.db").close()
        assert {file.stat().st_uid for file in home.iterdir()} == {NOBODY}


def test_h8_the_agents_files_as_links_are_not_followed(tmp_path: Path, precious: Path) -> None:
    snapshot = Snapshot(tmp_path / "state", "n1")
    (tmp_path / "state" / "snapshot.part").symlink_to(precious)
    snapshot.save(Durable(node="n1"))
    assert snapshot.load() == (Durable(node="n1"), "") and untouched(precious)
    (tmp_path / "state" / "agentd.lock").symlink_to(precious)
    for use in (snapshot.lock, lambda: locked(tmp_path / "state")):
        with pytest.raises(OSError, match="symbolic link"):
            use()
    assert untouched(precious)


def test_h8_the_probe_of_a_folder_of_disks_writes_to_nothing_that_is_there(tmp_path: Path, precious: Path) -> None:
    name = tmp_path / f".chime-probe-{socket.gethostname()}"
    for put in (name.symlink_to, name.hardlink_to):
        put(precious)
        storage._write(str(tmp_path))
        assert untouched(precious) and not name.is_symlink() and not name.exists()


def test_h8_key_files_as_links_are_not_followed(tmp_path: Path, precious: Path) -> None:
    pair = new_pair()
    file = keys.KeyFile(kind=keys.Kind.NODE, name="n1", public_key=pair.public, secret_key=pair.secret)
    (tmp_path / "node.key").symlink_to(precious)
    (tmp_path / f".node.key.{os.getpid()}.new").symlink_to(precious)
    keys.save(tmp_path / "node.key", file, overwrite=True)
    assert untouched(precious) and keys.load(tmp_path / "node.key") == file


def test_h8_the_agents_socket_takes_the_place_of_no_file(tmp_path: Path, precious: Path) -> None:
    with pytest.raises(OSError, match="not a socket"):
        LocalSocket(precious)
    assert untouched(precious)


@as_root
def test_h8_a_socket_of_somebody_else_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        os.chown(path, NOBODY, NOBODY)
        with pytest.raises(OSError, match="not a socket of root"):
            ask(path, Question("status"), 1.0)
