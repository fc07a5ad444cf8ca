"""`chimed init`, run by root, beside a key that is there already."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chimed.main import main
from wire import keys

SERVICE = 12345


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that the service's user reaches, as /var/lib is."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_e6_init_takes_the_key_that_is_the_services_by_now(
    open_to_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database is lost, and the key is not: the unit has given both to its user."""
    state, config = open_to_all / "state", tmp_path / "chimed.toml"
    config.write_text(f'state_dir = "{state}"\npublic_endpoint = "tcp://192.0.2.1:7440"\n')
    words = ["init", "--config", str(config), "--operator-key"]
    assert main([*words, str(tmp_path / "first")]) == 0
    before = keys.load(state / "server.key")
    for path in (state, *state.iterdir()):
        os.chown(path, SERVICE, SERVICE)
    (state / "chime.db").unlink()
    assert main([*words, str(tmp_path / "second")]) == 0, capsys.readouterr().err
    assert keys.load(tmp_path / "second").server_public_key == before.public_key
    os.chown(state / "server.key", SERVICE + 1, 0)
    (state / "chime.db").unlink()
    assert main([*words, str(tmp_path / "third")]) == 2
    assert f"belongs to user {SERVICE + 1}" in capsys.readouterr().err
