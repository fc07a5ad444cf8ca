"""What a command of the daemons refuses, it refuses before it says or does anything, and with the next step."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentd import main as agentd
from chimed import main as chimed
from wire import curve, keys


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a server or of an agent: both have their state there."""
    path = tmp_path / "chime.toml"
    path.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    return path


def test_a_backup_that_is_there_already_can_be_overwritten(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.write_text("kept")
    assert chimed.main(["backup", str(copy), "--config", str(config)]) == 1
    assert "was left as it is: --overwrite replaces it" in capsys.readouterr().err and copy.read_text() == "kept"


@pytest.mark.parametrize("what", ["missing", "no database", "of somebody else"])
def test_what_cannot_be_restored_is_refused_before_anything_is_announced(
    what: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = tmp_path / "nope.db"
    if what == "no database":
        backup.write_text("x" * 4096)
    elif what == "of somebody else":
        with sqlite3.connect(backup) as connection:
            connection.execute("CREATE TABLE songs (name TEXT)")
        connection.close()
    assert chimed.main(["restore", str(backup), "--yes", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"chimed: {backup}") and said.count("\n") == 1


def test_a_key_that_is_there_already_can_be_replaced(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, server = curve.new_pair(), curve.new_pair()
    bundle = keys.KeyFile(
        kind=keys.Kind.NODE, name="n1", public_key=pair.public, secret_key=pair.secret,
        server_public_key=server.public, endpoint="tcp://192.0.2.1:7440",
    )  # fmt: skip
    keys.save(tmp_path / "bundle", bundle)
    for words in (["join", str(tmp_path / "bundle")], ["keygen"]):
        words += ["--config", str(config)]
        assert agentd.main(words) == 0, capsys.readouterr().err
        assert agentd.main(words) == 1
        assert "is there already, and was left as it is: --force replaces it" in capsys.readouterr().err
        assert agentd.main([*words, "--force"]) == 0
