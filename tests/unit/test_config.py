"""Configuration files: defaults, refusals in one line that name the key, and the order of the timings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import config as agent
from chimed import config as server
from chimed.core.state.turn import Policy
from wire.errors import ChimeError
from wire.local.settings import MAX_FILE_BYTES, parse_settings

BOTH = [server, agent]


def refused(module: Any, text: str, tmp_path: Path) -> str:
    path = tmp_path / "chime.toml"
    path.write_text(text + "\n")
    with pytest.raises(ChimeError) as raised:
        module.load_config(path)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert str(path) in message
    return message.removeprefix(f"configuration {path}").lstrip(": ")


@pytest.mark.parametrize("module", BOTH)
def test_every_default_works_and_keeps_the_order(module: Any, tmp_path: Path) -> None:
    assert module.load_config(None) == module.Config()
    empty = tmp_path / "empty.toml"
    empty.write_text("# nothing\n")
    assert module.load_config(empty) == module.Config()


@pytest.mark.parametrize("module", BOTH)
def test_every_default_may_be_written_down(module: Any, tmp_path: Path) -> None:
    values = msgspec.to_builtins(module.Config(state_dir="/srv/x"))
    lines = [f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in values.items() if value != ""]
    path = tmp_path / "all.toml"
    path.write_text("".join(lines))
    assert module.load_config(path) == module.Config(state_dir="/srv/x")


def test_paths_follow_from_the_state_directory() -> None:
    assert server.Config().database == "/var/lib/chime/chime.db"
    assert server.Config(state_dir="/s").key_file == "/s/server.key"
    assert server.Config(state_dir="/s", key_file="/k").key_file == "/k"
    assert agent.Config(state_dir="/s").key_file == "/s/node.key"


def test_the_core_gets_the_same_defaults_and_the_values_set(tmp_path: Path) -> None:
    assert server.Config().policy("1") == Policy(version="1")
    assert server.Config(heartbeat_s=2.0).policy("1").heartbeat_s == 2.0


def test_what_peers_are_told_to_connect_to() -> None:
    assert server.Config(public_endpoint="tcp://chime:1").endpoint_for_peers() == "tcp://chime:1"
    assert server.Config(endpoint="tcp://[::]:7").endpoint_for_peers().endswith(":7")
    assert "0.0.0.0" not in server.Config().endpoint_for_peers()


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        (server, "hartbeat_s = 15", "unknown key hartbeat_s: did you mean heartbeat_s?"),
        (server, "[chimed]\nheartbeat_s = 15", "unknown key chimed"),
        (agent, "libvirt_url = 'x'", "unknown key libvirt_url: did you mean libvirt_uri?"),
        (server, "heartbeat_s = '15'", "heartbeat_s = '15': expected a number, got text"),
        (server, "heartbeat_s = 0", "heartbeat_s = 0: expected a number > 0.0"),
        (server, "heartbeat_s = inf", "heartbeat_s = inf: expected a finite number"),
        (server, "ping_timeout_s = nan", "ping_timeout_s = nan: expected a finite number"),
        (server, "ping_tries = 2.5", "ping_tries = 2.5: expected a whole number, got a number"),
        (server, "missed_heartbeats = 1", "missed_heartbeats = 1: expected a whole number >= 2"),
        (server, "missed_heartbeats = true", "= True: expected a whole number, got true or false"),
        (server, "log_level = 'loud'", "log_level = 'loud': expected one of debug, info, warning, error"),
        (server, "state_dir = 'here'", "state_dir = 'here': expected an absolute path"),
        (server, "database = 'here'", "database = 'here': expected an absolute path"),
        (agent, "key_file = 'here'", "key_file = 'here': expected an absolute path"),
        (server, "endpoint = '0.0.0.0:7440'", "endpoint '0.0.0.0:7440' is not of the form tcp://host:port"),
        (server, "endpoint = 'tcp://h:99999'", "endpoint 'tcp://h:99999' is not of the form tcp://host:port"),
        (server, "public_endpoint = 'tcp://0.0.0.0:1'", "'tcp://0.0.0.0:1' is no address to connect to"),
        (agent, "storage_paths = '/srv'", "storage_paths = '/srv': expected a list, got text"),
        (agent, "storage_paths = ['srv']", "storage_paths = ['srv']: "),
        (agent, "libvirt_uri = 'xen:///'", "libvirt_uri = 'xen:///': expected qemu:///system or qemu:///embed"),
        (agent, "virt_type = 'vmware'", "virt_type = 'vmware': expected one of auto, kvm, qemu"),
        (agent, "business_interface = 'a/b'", "business_interface = 'a/b': expected an interface name"),
        (agent, "business_targets = ['10.0.0.1']", "business_targets needs a business_interface"),
        (agent, "business_interface = 'b'\nbusiness_targets = ['fe:x']", "business_targets = ['fe:x']: "),
        (agent, "business_interface = 'b'\nbusiness_targets = ['10.0.0.999']", "has '10.0.0.999': expected IP"),
        (agent, "links = {eno1 = -1}", "links = {'eno1': -1}: expected a whole number >= 0"),
        (agent, "severities = {x = 'loud'}", "severities = {'x': 'loud'}: "),
        (agent, "script_timeout_s = 90", "script_timeout_s (90) must be at most script_interval_s (60)"),
        (agent, "workers = 0", "workers = 0: expected a whole number >= 1"),
        (server, "heartbeat_s = ", "is not TOML: Invalid value (at line 1, column 15)"),
        (server, "heartbeat_s = 1\nheartbeat_s = 2", "is not TOML: Cannot overwrite a value (at line 2"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_in_one_line(module: Any, text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused(module, text, tmp_path)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        (server, "ping_timeout_s = 20",
         "ping_tries * ping_timeout_s (60) must be at most heartbeat_s * missed_heartbeats (45)"),
        (server, "challenge_s = 15", "challenge_s (15) must be less than heartbeat_s (15)"),
        (server, "heartbeat_s = 90", "heartbeat_s (90) must be at most command_timeout_s (60)"),
        (server, "command_timeout_s = 301", "command_timeout_s (301) must be at most operation_timeout_s"),
        (server, "answers_kept_s = 60", "operation_timeout_s (300) must be at most answers_kept_s (60)"),
        (agent, "restart_backoff_s = 61", "restart_backoff_s (61) must be at most restart_backoff_max_s"),
        (agent, "restart_window_s = 60", "restart_backoff_max_s (60) must be less than restart_window_s"),
        (agent, "audit_s = 30", "call_timeout_s (30) must be less than audit_s (30)"),
        (agent, "settle_s = 61", "settle_s (61) must be at most audit_s (60)"),
    ],
)  # fmt: skip
def test_an_unsafe_order_names_both_values_and_why(module: Any, text: str, expected: str, tmp_path: Path) -> None:
    message = refused(module, text, tmp_path)
    assert message.startswith(expected)
    assert len(message.partition("): ")[2]) > 20, "no reason given"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ChimeError, match=expected):
            server.load_config(path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ChimeError, match="is not text"):
        server.load_config(binary)
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ChimeError, match=f"is larger than {MAX_FILE_BYTES} bytes"):
        server.load_config(large)


class Needs(msgspec.Struct):
    name: str


def test_a_value_without_a_default_is_asked_for_by_name() -> None:
    with pytest.raises(ChimeError, match="missing required field `name`"):
        parse_settings("", Needs)


def test_the_source_is_named() -> None:
    with pytest.raises(ChimeError, match=r"^given settings: unknown key x$"):
        parse_settings("x = 1", server.Config, (), "given settings")
