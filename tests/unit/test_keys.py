"""Key files: private, whole, checked, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wire import keys as k
from wire.curve import KeyPair, new_pair, public_of
from wire.errors import ChimeError

PAIR = new_pair()
SERVER = new_pair()
NODE = k.KeyFile(
    kind=k.Kind.NODE,
    name="node-1",
    public_key=PAIR.public,
    secret_key=PAIR.secret,
    server_public_key=SERVER.public,
    endpoint="tcp://192.0.2.1:9910",
)


def refusal(call: object, *args: object, **kwargs: object) -> ChimeError:
    assert callable(call)
    with pytest.raises(ChimeError) as caught:
        call(*args, **kwargs)
    assert PAIR.secret not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    k.save(path, NODE)
    assert k.load(path, k.Kind.NODE) == NODE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["node.key"]
    assert NODE.pair() == PAIR


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        k.save(tmp_path / "key", NODE)
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o177 == 0


def test_never_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("mine")
    assert refusal(k.save, path, NODE).code == "exists"
    assert path.read_text() == "mine"
    k.save(path, NODE, overwrite=True)
    assert k.load(path) == NODE
    assert [item.name for item in tmp_path.iterdir()] == ["key"]


def test_an_interrupted_save_does_not_block_the_next(tmp_path: Path) -> None:
    (tmp_path / f".key.{os.getpid()}.new").write_text("half")
    k.save(tmp_path / "key", NODE)
    assert k.load(tmp_path / "key") == NODE


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_readable_by_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    k.save(path, NODE)
    path.chmod(mode)
    assert "chmod 600" in refusal(k.load, path).message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    k.save(path, NODE)
    os.chown(path, 12345, 12345)
    assert "belongs to user 12345" in refusal(k.load, path).message
    assert k.load(path, owner=12345) == NODE


def test_not_a_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert "not a regular file" in refusal(k.load, fifo).message
    assert "No such file" in refusal(k.load, tmp_path / "none").message
    assert refusal(k.load, tmp_path).code == "invalid"
    assert "cannot write" in refusal(k.save, tmp_path / "no" / "key", NODE).message


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("#" * (k.MAX_FILE_BYTES + 1))
    path.chmod(0o600)
    assert "larger" in refusal(k.load, path).message
    path.write_bytes(b"\xff\xfe")
    assert "not text" in refusal(k.load, path).message


def test_kind_is_checked(tmp_path: Path) -> None:
    k.save(tmp_path / "key", NODE)
    assert "needed is chime-operator" in refusal(k.load, tmp_path / "key", k.Kind.OPERATOR).message


def changed(**values: str) -> str:
    lines = dict(line.split(" = ", 1) for line in k.render(NODE).splitlines())
    lines.update({name: f'"{value}"' for name, value in values.items()})
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed(public_key=PAIR.secret, secret_key=PAIR.public), "swapped"),
        (changed(public_key=PAIR.secret), "the same"),
        (changed(secret_key=SERVER.secret), "not that of secret_key"),
        (changed(server_public_key=PAIR.public), "itself"),
        (changed(secret_key="short"), "secret_key"),
        (changed(name="a b"), "(name)"),
        (changed(kind="other"), "(kind)"),
        (changed(colour="red"), "(colour)"),
        ("public_key = ", "not TOML"),
        ("", "missing"),
        *(
            (changed(endpoint=bad), "tcp://host:port")
            for bad in ("host", "tcp://h", "tcp://h:0", "tcp://h:65536")
        ),
        (changed(endpoint="tcp://h:1 tcp://i:2"), "tcp://host:port"),
    ],
)
def test_bad_content_is_refused(text: str, words: str) -> None:
    assert words in refusal(k.parse, text, "bundle").message


def test_a_secret_that_stayed_on_the_node() -> None:
    bundle = k.parse("".join(line + "\n" for line in k.render(NODE).splitlines() if "secret" not in line))
    assert bundle.secret_key is None
    assert "stayed" in refusal(bundle.pair).message


def test_a_server_file_needs_no_endpoint() -> None:
    server = k.KeyFile(kind=k.Kind.SERVER, name="server", public_key=SERVER.public, secret_key=SERVER.secret)
    assert k.parse(k.render(server)) == server


def test_secrets_are_not_shown() -> None:
    assert PAIR.secret not in f"{NODE!r} {NODE} {PAIR!r} {PAIR}"


def test_public_key_from_secret() -> None:
    assert public_of(PAIR.secret) == PAIR.public
    for bad in ("", "short", "ä" * 40, '"' * 40, PAIR.secret + "x"):
        assert refusal(public_of, bad).code == "invalid"
    assert KeyPair("a", "b").public == "a"


def test_ipv6_endpoint() -> None:
    k.check_endpoint("tcp://[2001:db8::1]:9910")
    k.check_endpoint("tcp://chime.example:9910")
