"""`chimed restore`: what it says, and what it leaves in the audit trail."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chimed import backup
from chimed.main import main
from chimed.store import Store
from tests.fakes.rows import change, event, node

AT = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of two nodes, whose newest event is of a known time, and a backup of it beside it."""
    path = tmp_path / "chime.db"
    with Store.create(path) as store:
        store.commit([change(node("n1")), change(node("n2"))], [event("n1")])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE events SET time = ?", (AT,))
    backup.back_up(path, tmp_path / "copy.db")
    return path


def restored(path: Path) -> str:
    """The last line of the audit trail after the backup was restored."""
    backup.restore(path.with_name("copy.db"), path)
    with Store.open(path) as store:
        last = store.events(None, 0, 100)[-1]
    assert (last.actor, last.action, last.subject) == ("chimed", "restored", "server") and last.time > AT
    return last.text


def test_the_restore_is_in_the_audit_trail(path: Path) -> None:
    newest = "its newest event is of 2023-11-14 22:13:20 UTC"
    assert restored(path) == f"generation 2, from a backup: {newest}; 2 nodes are waited for"


def test_a_backup_without_events_and_one_with_a_time_that_is_none(path: Path) -> None:
    with closing(sqlite3.connect(path.with_name("copy.db"))) as connection, connection:
        connection.execute("UPDATE events SET time = 1e300")
    assert "its newest event is of 1e+300; 2 nodes" in restored(path)
    with closing(sqlite3.connect(path.with_name("copy.db"))) as connection, connection:
        connection.execute("DELETE FROM events")
    assert restored(path) == "generation 3, from a backup: it has no events; 2 nodes are waited for"


def test_it_says_what_comes_next(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = path.with_name("chimed.toml")
    config.write_text(f'state_dir = "{path.parent}"\n')
    assert main(["restore", str(path.with_name("copy.db")), "--yes", "--config", str(config)]) == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert "Until all nodes have reported, nothing is started, stopped or moved." in text
    assert "Add again the nodes that were added since the backup" in text and "recovery show" in text
