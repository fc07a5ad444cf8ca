"""Files that are made to trip their reader over: deep, long, huge numbers. One line says so, whoever reads."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import snapshot
from agentd.config import Config, load_config
from agentd.local_socket import LocalSocket
from chimed import backup
from chimed.database import StoreError
from chimed.store import Store
from tools import config as tool_config
from tools import domain_xml
from tools.options import Options, UsageError
from wire import keys, toml
from wire.errors import ChimeError
from wire.local.settings import parse_settings
from wire.text import shown_value

DIGITS = "9" * 5000
TOML = {
    "nested": "timeout_s = " + "[" * 5000,
    "tables": "timeout_s = " + "{a = " * 3000,
    "digits": f"timeout_s = {DIGITS}",
    "hex digits": "timeout_s = 0x" + "f" * 6000,
    "dots": "a." * 5000 + "x = 1",
    "deep": "timeout_s = " + "{a = " * 100 + "1" + "}" * 100,
    "long key": "k" * 15_000 + " = 1",
    "long value": f"timeout_s = '{'x' * 15_000}'",
    "huge": "timeout_s = 1" + "0" * 400,
    "time": "timeout_s = 07:32:00",
    "no text": "\0",
}


def one_line(call: Callable[[], object], *kinds: type[Exception]) -> str:
    with pytest.raises(kinds) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600 and not isinstance(caught.value, msgspec.MsgspecError)
    return text


@pytest.mark.parametrize("text", TOML.values(), ids=TOML.keys())
def test_h10_toml_is_refused_in_one_line_by_each_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text)
    path.chmod(0o600)
    assert "file.toml" in one_line(lambda: keys.load(path), ChimeError)
    assert "file.toml" in one_line(lambda: load_config(path), ChimeError)
    one_line(lambda: tool_config.resolve(Options(config=str(path)), False, {}), UsageError)
    for kind in ("workers", "links", "severities", "socket", "storage_paths"):
        one_line(lambda kind=kind: parse_settings(text.replace("timeout_s", kind), Config), ChimeError)  # type: ignore[misc]


def test_h10_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(b"[" * (10 << 20))
    path.chmod(0o600)
    assert "larger" in one_line(lambda: keys.load(path), ChimeError)
    assert "larger" in one_line(lambda: load_config(path), ChimeError)
    assert "larger" in one_line(lambda: tool_config.resolve(Options(config=str(path)), False, {}), UsageError)
    assert "not text" in one_line(lambda: toml.decoded(b"\xff", 9), ValueError)
    path.write_bytes(b"a.b = 1")
    assert toml.parse(toml.read_text(path, 7)) == {"a": {"b": 1}}


def test_h10_a_value_is_shown_short() -> None:
    assert shown_value("short") == "'short'" and len(shown_value("x" * 9999)) <= 200
    assert shown_value(16**6000) == "a number of too many digits"


@pytest.mark.parametrize("body", [b"[" * (10 << 20), b'{"x":' * (1 << 20), b'{"revision":' + DIGITS.encode() + b"}"])
def test_h10_a_snapshot_is_refused_in_one_line(body: bytes) -> None:
    def sealed(content: bytes) -> bytes:
        header = snapshot.Header(snapshot.MAGIC, 1, hashlib.blake2b(content, digest_size=32).hexdigest())
        return msgspec.json.encode(header) + b"\n" + content + b"\n"

    one_line(lambda: snapshot.decode(sealed(body), "n1"), snapshot.SnapshotError)
    one_line(lambda: snapshot.decode(body, "n1"), snapshot.SnapshotError)


def test_h10_a_large_snapshot_is_put_aside_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1000)
    (tmp_path / "snapshot").write_bytes(b"[" * 1001)
    durable, why = snapshot.Snapshot(tmp_path, "n1").load()
    assert not durable.held and "it is too large" in why


def test_h10_a_question_to_the_agent_is_answered() -> None:
    class Socket:
        answers: list[Any] = []  # noqa: RUF012

        def recv_multipart(self, _flags: int) -> list[bytes]:
            return [b'{"verb":"status","x":' + b"[" * 60_000]

        def send(self, answer: bytes, _flags: int) -> None:
            self.answers.append(answer)

    local = object.__new__(LocalSocket)
    local.socket = Socket()  # type: ignore[assignment]
    assert local.receive() is None and b"not understood" in Socket.answers[0]


@pytest.mark.parametrize(
    "xml",
    [
        "[" * 262_144, "<a>" * 80_000, "<domain>" + "<a>" * 30_000 + "</a>" * 30_000 + "</domain>",
        f"<domain><uuid>{DIGITS}</uuid></domain>", f"<domain><vcpu>{DIGITS}</vcpu></domain>",
        f"<domain><memory>{DIGITS}</memory></domain>", f"<domain><memory unit='{DIGITS}'>1</memory></domain>",
        f"<{'a' * 9999}/>", "<domain>" * 10_000_000,
    ],
    ids=range(9),
)  # fmt: skip
def test_h10_a_domain_is_refused_in_one_line(tmp_path: Path, xml: str) -> None:
    path = tmp_path / "vm.xml"
    path.write_text(xml)
    one_line(lambda: domain_xml.read(str(path), "shared"), UsageError)


@pytest.mark.parametrize("row", ["[" * (1 << 20), f'{{"generation": {DIGITS}}}', None, b"\xff"])
def test_h10_a_backup_is_refused_in_one_line(tmp_path: Path, row: str | bytes | None) -> None:
    Store.create(tmp_path / "chime.db").close()
    backup.back_up(tmp_path / "chime.db", tmp_path / "bad.db")
    with closing(sqlite3.connect(tmp_path / "bad.db", isolation_level=None)) as file:
        file.execute("PRAGMA ignore_check_constraints = ON")
        file.execute("DROP TABLE meta")
        file.execute("CREATE TABLE meta (one INTEGER PRIMARY KEY, row, generation)")
        if row is not None:
            file.execute("INSERT INTO meta VALUES (1, ?, NULL)", (row,))
    before = (tmp_path / "chime.db").read_bytes()
    one_line(lambda: backup.restore(tmp_path / "bad.db", tmp_path / "chime.db"), StoreError)
    one_line(lambda: Store.open(tmp_path / "bad.db"), StoreError)
    (tmp_path / "junk.db").write_bytes(b"[" * (10 << 20))
    one_line(lambda: backup.restore(tmp_path / "junk.db", tmp_path / "chime.db"), StoreError)
    assert (tmp_path / "chime.db").read_bytes() == before
    backup.back_up(tmp_path / "chime.db", tmp_path / "good.db")
    assert backup.restore(tmp_path / "good.db", tmp_path / "chime.db") == 2
