"""Where the settings come from, key files that the tool writes, and the terminal itself."""

from __future__ import annotations

import json
import os
import pty
import stat
import sys
from pathlib import Path

import pytest

from tests.unit.tool_stand_in import ENDPOINT, NODE_KEY, StandIn, Stream, mutation, node, refused, tool
from tools import config, units
from tools.main import connect, main, run
from tools.options import Options, UsageError
from tools.terminal import Terminal
from wire import keys
from wire.curve import new_pair
from wire.errors import ChimeError, Unreachable


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tool.toml"
    file.write_text('key = "/from/file"\nserver = "tcp://file:1"\noutput = "json"\ntimeout_s = 20\n')
    options = Options(config=str(file))
    made, settings = config.resolve(options, False, {})
    assert (made.output, made.timeout_s) == ("json", 20.0)
    assert (str(settings.key_file), settings.server, settings.request_s) == (
        "/from/file",
        "tcp://file:1",
        10.0,
    )
    environ = {"CHIME_KEY": "/from/env", "CHIME_SERVER": "tcp://env:1"}
    _, settings = config.resolve(options, False, environ)
    assert (str(settings.key_file), settings.server) == ("/from/env", "tcp://env:1")
    options = Options(config=str(file), key="/from/line", server="tcp://line:1", timeout_s=3.0)
    made, settings = config.resolve(options, True, environ)
    assert (made.output, str(settings.key_file), settings.server) == ("table", "/from/line", "tcp://line:1")
    assert settings.request_s == 3.0


def test_the_key_file_is_looked_for_at_home(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no operator key file: looked for"):
        config.resolve(Options(), False, {"HOME": str(tmp_path)})
    path = tmp_path / ".config/chime/operator.key"
    path.parent.mkdir(parents=True)
    path.touch()
    assert config.resolve(Options(), False, {"HOME": str(tmp_path)})[1].key_file == path


@pytest.mark.parametrize(("text", "said"), [
    ("colour = true", "unknown key 'colour': known are key, server, output, timeout_s"),
    ("output = 'xml'", "output = 'xml': allowed are"),
    ("timeout_s = 'long'", "timeout_s = 'long': a number above 0"),
    ("timeout_s = -1", "timeout_s = -1"),
    ("key = 5", "key must be text"),
    ("key = ", "tool.toml is not TOML: "),
])  # fmt: skip
def test_bad_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tool.toml"
    file.write_text(text)
    ran = tool(["node", "list", "--config", str(file)])
    assert ran.code == 2 and ran.err.count("\n") == 1 and said in ran.err


def test_a_configuration_that_is_not_there_is_refused() -> None:
    assert "no such file" in tool("node list --config /nowhere/x.toml").err


def _operator_key(tmp_path: Path, mode: int = 0o600, **changes: object) -> str:
    pair = new_pair()
    path = tmp_path / "operator.key"
    values = {"endpoint": ENDPOINT, "server_public_key": new_pair().public} | changes
    names = {"kind": keys.Kind.OPERATOR, "name": "ann", "public_key": pair.public, "secret_key": pair.secret}
    keys.save(path, keys.KeyFile(**(names | values)))  # type: ignore[arg-type]
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(("mode", "changes", "extra", "said"), [
    (0o644, {}, [], "can be read by others"),
    (0o600, {"endpoint": None}, [], "does not say where its server is"),
    (0o600, {}, ["--server", "10.0.0.1"], "server '10.0.0.1': give tcp://HOST:PORT"),
])  # fmt: skip
def test_a_key_file_that_cannot_be_used(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: int,
    changes: dict[str, object],
    extra: list[str],
    said: str,
) -> None:
    code = main(["node", "list", "--key", _operator_key(tmp_path, mode, **changes), *extra])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


def test_no_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "list", "--key", str(tmp_path / "none")]) == 2
    assert "cannot read key file" in capsys.readouterr().err


def test_the_server_option_overrides_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    class Client:
        def __init__(self, *given: object) -> None:
            made.append(given)

        def close(self) -> None: ...

    monkeypatch.setattr("tools.main.Client", Client)
    path = Path(_operator_key(tmp_path))
    for server, endpoint in (("tcp://127.0.0.1:9", "tcp://127.0.0.1:9"), (None, ENDPOINT)):
        connection = connect(config.Settings(path, server, 1.0))
        assert connection.endpoint == endpoint == made[-1][0] and made[-1][3] == 1.0


@pytest.fixture
def added() -> StandIn:
    return StandIn(
        {"node.add": {"node": node()}, "operator.add": {"operator": "bob"}, "node.rekey": {"node": node()}}
    )


def test_a_bundle_is_printed_and_nothing_else(added: StandIn) -> None:
    ran = tool("node add n1", added)
    bundle = keys.parse(ran.out)
    assert (
        ran.code == 0
        and bundle.kind == keys.Kind.NODE
        and bundle.name == "n1"
        and bundle.endpoint == ENDPOINT
    )
    assert bundle.secret_key and bundle.server_public_key and "keep them secret" in ran.err
    assert keys.parse(tool("operator add bob", added).out).kind == keys.Kind.OPERATOR


def test_a_secret_that_stayed_on_the_node_is_not_in_the_bundle(added: StandIn) -> None:
    ran = tool(["node", "add", "n1", "--public-key", NODE_KEY], added)
    assert keys.parse(ran.out).secret_key is None and ran.sent[0].public_key == NODE_KEY


def test_the_secret_is_never_sent(added: StandIn) -> None:
    ran = tool("node add n1", added)
    assert keys.parse(ran.out).secret_key not in repr(ran.sent)


def test_a_bundle_goes_into_a_private_file(added: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "n1.bundle"
    ran = tool(f"node add n1 --output {path}", added)
    assert ran.code == 0 and str(path) in ran.out and "secret" not in ran.out + ran.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and keys.load(path, keys.Kind.NODE).name == "n1"
    again = tool(f"node rekey n1 --yes --output {path}", added)
    assert again.code == 2 and "it is there already" in again.err and len(added.sent) == 1


def test_json_of_a_bundle(added: StandIn, tmp_path: Path) -> None:
    document = json.loads(tool("node add n1 -o json", added).out)
    assert document["node"]["name"] == "n1" and document["bundle"]["secret_key"]
    document = json.loads(tool(f"node add n1 -o json --output {tmp_path}/b", added).out)
    assert document["file"] == f"{tmp_path}/b" and "bundle" not in document


@pytest.mark.parametrize(("error", "kept"), [(refused("exists"), False), (Unreachable("no answer"), True)])
def test_a_file_of_a_refused_node_goes_away(tmp_path: Path, error: ChimeError, kept: bool) -> None:
    path = tmp_path / "n1.bundle"
    ran = tool(f"node add n1 --output {path}", StandIn({"node.add": error}))
    assert ran.code == error.exit_code and path.exists() is kept and ("is kept" in ran.err) is kept


def test_a_file_that_cannot_be_written_stops_before_anything_is_sent(added: StandIn) -> None:
    ran = tool("node add n1 --output /nowhere/x", added)
    assert ran.code == 2 and "cannot write into /nowhere" in ran.err and not added.sent


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert main(["--help"]) == 0
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_a_full_disk_is_one_line() -> None:
    class Full(Stream):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    err = Stream()
    assert run(["--help"], Terminal(Stream(), Full(), err, {}), {}, connect) == 1
    assert err.getvalue() == "chime-tool: cannot read or write: [Errno 28] No space left on device\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        terminal = Terminal(Stream(), out, Stream(), {})
        terminal.write("x" * 100_000)
        terminal.write("more")
        assert terminal.closed


def test_the_question_on_a_real_terminal() -> None:
    master, slave = pty.openpty()
    with open(slave, closefd=False) as stdin, open(slave, "w", closefd=False) as stderr:
        terminal = Terminal(stdin, Stream(), stderr, {})
        assert terminal.can_ask and terminal.err_is_terminal and not terminal.out_is_terminal
        os.write(master, b"y\n")
        assert terminal.ask("drain node n1: continue?")
        seen = b""
        while b"continue? [y/N]" not in seen:  # the echo of the answer may come first, in a piece of its own
            seen += os.read(master, 1000)
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize(("seconds", "text"), [(None, "never"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"),
                                               (7200, "2 h"), (200_000, "2 d"), (-5, "0 s")])  # fmt: skip
def test_ages(seconds: float | None, text: str) -> None:
    assert units.age(seconds) == text


def test_times_and_sizes() -> None:
    assert units.local_time(None) == "-" and units.local_time(1e30) == "1e+30"
    assert units.local_time(0.0)[:4] in ("1970", "1969")
    assert (units.size(512), units.size(2048), units.size(1536), units.size(1048576)) == (
        "512 MiB", "2 GiB", "1.5 GiB", "1 TiB")  # fmt: skip


def test_ctrl_c_elsewhere_says_that_a_request_may_have_been_taken() -> None:
    ran = tool("vm start a", StandIn({"vm.start": KeyboardInterrupt()}))
    assert ran.code == 1 and "may have taken effect" in ran.err and mutation()["operation"] is None
