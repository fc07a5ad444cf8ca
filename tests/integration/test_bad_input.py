"""Bad input is refused in one clear line with the right exit code, and changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.hosts import wait_until
from tests.integration.chime import Chime, tiny, unique
from tests.integration.plain_peer import Agent, Refused
from tests.integration.real_server import ROOT, Finished, Server, inside, run, toml, until
from wire import messages as m
from wire.types import DiskFormat

SOME = ("--vcpus", "1", "--memory", "64")
UUID, OTHER = "6f1c7f9e-52a4-4c0e-9a53-0d8c7a1e2b3c", "0b7c3c1e-8f5d-4a56-9c0e-2f6f1d2a9b11"
SPEC = {"vcpus": 1, "memory_mib": 64}


def refused(done: Finished, code: int, *words: str) -> str:
    """Checks a refusal: exit code, nothing on stdout, one line that says what was wrong. Returns the line."""
    line = done.stderr.rstrip("\n").split("\n")[-1]
    assert (done.returncode, done.stdout) == (code, ""), (done.returncode, done.stdout, done.stderr)
    assert re.match(r"(chime-tool|chimed|agentd): \S", line), done.stderr
    assert line.isprintable() and len(line) < 600
    assert "Traceback" not in done.stderr and "Errno" not in line
    for word in words:
        assert word in line, line
    return line


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With node n1 (2 CPUs, 2 GiB) and its agent, and VM v1."""
    with Server(tmp_path_factory.mktemp("bad")) as running, running.new_peer() as peer:
        agent = Agent(running.add_node(peer, "n1"), vcpus=2, memory_mib=2048)
        agent.start()
        until(lambda: peer.request("node.show", {"name": "n1"})["node"]["schedulable"], "n1 is schedulable")
        peer.finish(peer.change("vm.create", name="v1", spec=SPEC, uuid=UUID))
        yield running
        agent.stop()


@pytest.fixture
def unchanged(server: Server) -> Iterator[Server]:
    """The server, whose rows and files must be the same afterwards."""
    before = server.rows()
    yield server
    assert server.rows() == before


BAD_NAMES = ("", "a" * 64, "a\nb", "a\n", "\x1b[31m", "ü", "../x", "/etc", "a b", ".a", "_a", "\u202ea")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names(unchanged: Server, name: str) -> None:
    refused(unchanged.tool("vm", "create", name, *SOME), 2, "name ", "expected text of")
    with unchanged.new_peer() as peer:
        key = unchanged.new_keys("x")["public_key"]
        for verb, body in (("vm.create", {"spec": SPEC}), ("node.add", {"public_key": key}),
                           ("operator.add", {"public_key": key}), ("node.drain", {})):  # fmt: skip
            with pytest.raises(Refused, match="invalid"):
                peer.change(verb, name=name, **body)


REFUSALS: tuple[tuple[int, tuple[str, ...], tuple[str, ...]], ...] = (
    # names
    (2, ("vm", "create", "-x", *SOME), ("unknown option -x",)),
    (2, ("node", "add", "a/b"), ("name 'a/b'",)),
    (2, ("operator", "add", "a b"), ("name 'a b'",)),
    (2, ("vm", "create", OTHER, *SOME), ("is a UUID",)),
    (1, ("vm", "create", "v1", *SOME), ("a VM named v1 exists",)),
    (1, ("node", "add", "n1"), ("node n1 exists",)),
    (1, ("operator", "add", "admin"), ("operator admin exists",)),
    # sizes
    (2, ("vm", "create", "w", "--vcpus", "0", "--memory", "64"), ("vcpus 0", ">= 1")),
    (2, ("vm", "create", "w", "--vcpus", "-1", "--memory", "64"), ("--vcpus '-1'",)),
    (2, ("vm", "create", "w", "--vcpus", "1.5", "--memory", "64"), ("--vcpus '1.5'",)),
    (2, ("vm", "create", "w", "--vcpus", "1025", "--memory", "64"), ("<= 1024",)),
    (2, ("vm", "create", "w", "--vcpus", "9" * 20, "--memory", "64"), ("--vcpus",)),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "0"), ("--memory '0'", "512M")),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "-5"), ("--memory '-5'",)),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "1.5"), ("--memory '1.5'",)),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "15"), ("memory 15", ">= 16")),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "99999T"), ("memory", "<=")),
    (2, ("vm", "create", "w", "--vcpus", "1", "--memory", "5K"), ("--memory '5K'",)),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a,size=0"), ("--disk size '0'",)),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a,size=99999T"), ("size",)),
    (2, ("vm", "create", "w", *SOME, "--disk", "a.qcow2"), ("path 'a.qcow2'", "absolute")),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a\n"), ("path", "absolute path without control")),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a,format=vmdk"), ("qcow2 or raw",)),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a,sise=1G"), ("'sise=1G'",)),
    (2, ("vm", "create", "w", *SOME, "--disk", "/a", "--disk", "/a"), ("two disks have the same path",)),
    (2, ("vm", "create", "w", *SOME, "--network", "bridge=" + "b" * 16), ("bridge",)),
    (2, ("vm", "create", "w", *SOME, "--network", "user,mac=1"), ("mac '1'",)),
    (2, ("vm", "create", "w", *SOME, "--kernel", "vmlinuz"), ("kernel 'vmlinuz'",)),
    (2, ("vm", "stop", "v1", "--graceful", "-1", "--yes"), ("--graceful '-1'",)),
    (2, ("vm", "stop", "v1", "--graceful", "25h", "--yes"), ("<= 86400",)),
    # UUIDs
    (2, ("vm", "create", "w", *SOME, "--uuid", "x"), ("--uuid 'x'", "not a UUID such as")),
    (2, ("vm", "create", "w", *SOME, "--uuid", UUID[:-1]), ("not a UUID",)),
    (2, ("vm", "create", "w", *SOME, "--uuid", UUID.replace("-", "")), ("not a UUID",)),
    (2, ("vm", "create", "w", *SOME, "--uuid", re.sub("[0-9a-f]", "0", UUID)), ("not one that a VM can have",)),
    (1, ("vm", "create", "w", *SOME, "--uuid", UUID), (f"a VM with UUID {UUID} exists",)),
    (1, ("vm", "create", "w", *SOME, "--uuid", UUID.upper()), (f"a VM with UUID {UUID} exists",)),
    # what does not exist
    (1, ("vm", "start", "nope"), ("there is no VM nope",)),
    (1, ("vm", "start", OTHER), (f"there is no VM {OTHER}",)),
    (1, ("vm", "delete", "nope", "--yes"), ("there is no VM nope",)),
    (1, ("vm", "create", "w", *SOME, "--node", "nope"), ("there is no node nope",)),
    (1, ("vm", "list", "--node", "nope"), ("there is no node nope",)),
    (1, ("node", "drain", "nope", "--yes"), ("there is no node nope",)),
    (1, ("explain", "node", "nope"), ("there is no node nope",)),
    (1, ("op", "show", "op-999"), ("there is no operation op-999",)),
    (1, ("alarm", "ack", "999"), ("there is no alarm 999",)),
    # no room
    (1, ("vm", "create", "w", "--vcpus", "1", "--memory", "4G"),
     ("no node can take w: n1 has 1472 MiB of memory left, 4096 are needed",)),
    (1, ("vm", "create", "w", "--vcpus", "9", "--memory", "64", "--node", "n1"),
     ("n1 has 7 vCPUs left, 9 are needed",)),
    (1, ("vm", "create", "w", *SOME, "--virt-type", "kvm"), ("n1 has no KVM",)),
    # safety
    (3, ("node", "rebuild", "n1", "--yes"), ("drain it first",)),
    (3, ("node", "remove", "n1", "--yes"), ("v1",)),
    (3, ("operator", "remove", "admin", "--yes"), ("last operator",)),
    (2, ("node", "drain", "n1", "--evidence", "fence", "--yes"), ("only 'operator'",)),
    (2, ("node", "drain", "n1", "--comment", "off", "--yes"), ("--comment goes with --evidence",)),
    (3, ("node", "drain", "n1", "--evidence", "operator", "--comment", "off", "--yes"), ("the agent of n1 is alive",)),
    (2, ("vm", "stop", "v1"), ("nothing was changed", "--yes")),
    # usage
    (2, (), ("a command is needed",)),
    (2, ("nod", "list"), ("did you mean node?",)),
    (2, ("node", "lst"), ("did you mean list?",)),
    (2, ("vm", "list", "--nod", "x"), ("did you mean --node?",)),
    (2, ("vm", "list", "more"), ("unexpected argument 'more'",)),
    (2, ("vm", "list", "-o", "xml"), ("allowed are table",)),
    (2, ("vm", "create", "w"), ("vm create needs",)),
    (2, ("event", "list", "--limit", "0"), ("limit 0",)),
    (2, ("alarm", "ack", "x"), ("'x'",)),
    (2, ("node", "add", "n9", "--public-key", "short"), ("40 characters",)),
    (2, ("node", "add", "n9", "--address", "999.1.1.1"), ("999.1.1.1",)),
    (2, ("node", "add", "n9", "--output", "/nowhere/bundle"), ("cannot write into /nowhere",)),
)  # fmt: skip


@pytest.mark.parametrize(("code", "args", "words"), REFUSALS, ids=lambda value: None)
def test_requests(unchanged: Server, code: int, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(unchanged.tool(*args), code, *words)


XMLS = {
    "": "not well formed",
    "<domain": "not well formed",
    "<vm/>": "the root is <vm>",
    "<!DOCTYPE a><domain/>": "DOCTYPE",
    "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>": "DOCTYPE",
    "<domain><memory unit='MiB'>64</memory><uuid>x</uuid></domain>": "not a UUID",
    f"<domain><memory unit='MiB'>64</memory><uuid>{OTHER}</uuid></domain>": "names another UUID",
    "<domain><memory unit='XiB'>64</memory></domain>": "XiB",
    "<domain/>": "<memory> is needed",
}


@pytest.mark.parametrize("xml", XMLS)
def test_xml(unchanged: Server, tmp_path: Path, xml: str) -> None:
    file = tmp_path / "domain.xml"
    file.write_text(xml)
    refused(unchanged.tool("vm", "create", "w", "--xml", file, "--uuid", UUID[:-1] + "9"), 2, XMLS[xml])
    with unchanged.new_peer() as peer, pytest.raises(Refused, match=r"invalid|exists"):
        peer.change("vm.create", name="w", spec={**SPEC, "xml": xml}, uuid=UUID)


def test_xml_that_is_not_there(unchanged: Server) -> None:
    refused(unchanged.tool("vm", "create", "w", "--xml", "/nowhere"), 2, "/nowhere", "No such file")


# --- key files, configuration, reaching the server --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o777])
def test_key_files_that_others_can_read(server: Server, tmp_path: Path, mode: int) -> None:
    """By the tool, the server and the agent alike."""
    words = (f"{mode:04o}", "chmod 600")
    key = tmp_path / "some.key"
    shutil.copy(server.operator_file, key)
    key.chmod(mode)
    refused(server.tool("status", "--key", key), 2, str(key), *words)
    config = tmp_path / "daemon.toml"
    config.write_text(toml({"state_dir": tmp_path, "key_file": key, "database": server.database}))
    refused(run("chimed.main", "--config", config), 2, str(key), *words)
    config.write_text(toml({"state_dir": tmp_path, "key_file": key}))
    refused(run("agentd.main", "--config", config), 2, str(key), *words)


def test_key_files_of_another_kind(server: Server, tmp_path: Path) -> None:
    kinds = {"server": server.state / "server.key", "operator": server.operator_file}
    for name, wanted in (("tools", "server"), ("chimed", "operator"), ("agentd", "operator"), ("agentd", "server")):
        key, config = kinds[wanted], tmp_path / f"{name}.toml"
        if name == "tools":
            refused(server.tool("status", "--key", key), 2, "of kind chime-server, needed is chime-operator")
            continue
        more = {"database": server.database} if name == "chimed" else {}
        config.write_text(toml({"state_dir": tmp_path / name, "key_file": key, **more}))
        refused(run(f"{name}.main", "--config", config), 2, f"of kind chime-{wanted}, needed is chime-")
    config = tmp_path / "join.toml"
    config.write_text(toml({"state_dir": tmp_path / "join"}))
    refused(run("agentd.main", "join", server.operator_file, "--config", config), 2, "chime-operator")
    bad = ("junk", "kind = 1", "kind = " + "[" * 10_000, "kind = " + "9" * 5000, "[" * (10 << 20))  # H10
    (large := tmp_path / "large").write_text(bad[-1])
    for source, text in (("/nowhere", ""), (str(tmp_path), ""), (str(large), ""), *(("-", b) for b in bad)):
        refused(run("agentd.main", "join", source, "--config", config, stdin=text), 2)
    refused(run("agentd.main", "--config", config), 2, "agentd join")
    assert not (tmp_path / "join").exists()


def test_broken_key_files(server: Server, tmp_path: Path) -> None:
    text, key = server.operator_file.read_text(), tmp_path / "broken.key"
    key.touch(0o600)
    fields = server.operator
    other = server.new_keys("x")
    for content, code, word in (
        ("", 2, "kind"), ("junk", 2, "not TOML"), ("\0", 2, "not TOML"), ("x" * 20_000, 2, "larger"),
        (text.replace(fields["public_key"], other["public_key"]), 2, "swapped"),
        (text.replace("tcp://", "udp://"), 2, "tcp://host:port"),
        (text.replace(fields["server_public_key"], other["public_key"]), 4, "server_public_key"),
        (text.replace(fields["public_key"], other["public_key"]).replace(fields["secret_key"], other["secret_key"]),
         4, "does not know the key"),
    ):  # fmt: skip
        key.write_text(content)
        refused(server.tool("status", "--key", key, "--timeout", "1"), code, word)
    refused(server.tool("status", "--key", "/nowhere"), 2, "/nowhere")
    refused(server.tool("status", CHIME_KEY=""), 2, "no operator key file", "CHIME_KEY")


def test_a_server_that_is_not_there(server: Server) -> None:
    for endpoint in ("tcp://127.0.0.1:1", "tcp://no-such-host.invalid:7440"):
        refused(server.tool("status", "--server", endpoint, "--timeout", "1"), 4, endpoint, "within 1 s")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        refused(server.tool("status", "--server", endpoint, "--timeout", "1"), 4, endpoint)
    refused(server.tool("status", "--server", "localhost"), 2, "tcp://HOST:PORT")


CONFIGS = {
    "chimed": {
        "hartbeat_s = 1": "did you mean heartbeat_s?",
        "heartbeat_s = 'x'": "expected a number",
        "heartbeat_s = 0": "heartbeat_s = 0",
        "heartbeat_s = nan": "finite",
        "heartbeat_s = [": "not TOML",
        "\0": "not TOML",
        "heartbeat_s = 1\nping_timeout_s = 5": "ping_tries * ping_timeout_s (15) must be at most",
        "challenge_s = 20": "must be less than heartbeat_s",
        "command_timeout_s = 5": "heartbeat_s (15) must be at most command_timeout_s (5)",
        "operation_timeout_s = 10": "must be at most operation_timeout_s",
        "answers_kept_s = 60": "must be at most answers_kept_s",
        "missed_heartbeats = 1": ">= 2",
        "endpoint = 'nonsense'": "tcp://host:port",
        "endpoint = 'tcp://127.0.0.1:99999'": "tcp://host:port",
        "public_endpoint = 'tcp://0.0.0.0:1'": "no address to connect to",
        "state_dir = 'relative'": "absolute path",
        "database = 'relative'": "absolute path",
        "log_level = 'loud'": "expected one of debug, info",
        "[section]\nkey = 1": "unknown key section",
    },
    "agentd": {
        "libvirt_url = 'x'": "did you mean libvirt_uri?",
        "libvirt_uri = 'xen:///'": "qemu:///system",
        "virt_type = 'xen'": "expected one of auto, kvm, qemu",
        "audit_s = 1": "must be less than audit_s",
        "restart_backoff_s = 100": "must be at most restart_backoff_max_s",
        "restart_window_s = 10": "must be less than restart_window_s",
        "settle_s = 100": "must be at most audit_s",
        "storage_paths = ['x']": "storage_paths",
        "workers = 0": ">= 1",
        "key_file = 'x'": "absolute path",
        "state_dir = 5": "expected text",
        "x": "not TOML",
    },
}


@pytest.mark.parametrize("program", CONFIGS)
def test_configurations(tmp_path: Path, program: str) -> None:
    """At `check-config`, and the same at start, before anything is made."""
    config = tmp_path / "c.toml"
    for text, words in CONFIGS[program].items():
        config.write_text(text)
        refused(inside(f"{program}.main", "check-config", "--config", config), 2, str(config), words)
    refused(run(f"{program}.main", "--config", config), 2, str(config))
    for missing in ("/nowhere.toml", tmp_path):
        refused(inside(f"{program}.main", "--config", missing), 2, str(missing))
    for args in (("nonsense",), ("--confg", "x"), ("--config",), ("check-config", "more")):
        refused(inside(f"{program}.main", *args), 2, f"see {program} --help")
    refused(inside(f"{program}.main", "--confg", config), 2, "did you mean --config?")


def test_configuration_of_the_tool(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "tool.toml"
    for text, words in {"sever = 'x'": "did you mean server?", "key = 5": "must be text", "x = [": str(config),
                        "timeout_s = -1": "above 0", "output = 'xml'": "allowed are"}.items():  # fmt: skip
        config.write_text(text)
        refused(server.tool("status", "--config", config), 2, words)
    refused(server.tool("status", "--config", "/nowhere"), 2, "no such file")


# --- database, backup, init -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Server:
    """An initialised server that does not run."""
    return Server(tmp_path)


def chimed(server: Server, *args: object) -> Finished:
    return run("chimed.main", *args, "--config", server.config)


def files(directory: Path) -> dict[str, bytes]:
    """Every file and its content, but locks and SQLite's index of its log."""
    return {
        str(path): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix not in (".lock",) and not path.name.endswith(("-shm", "-wal"))
    }


def newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('chime', '9999_later', '')"
        )


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (newer, "newer version"),
    "text": (lambda path: path.write_text("no database\n" * 1000), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a Chime database"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
    "missing": (lambda path: path.unlink(), "chimed init"),
    "foreign": (lambda path: _foreign(path), "not a Chime database"),
}


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (cake TEXT)")


@pytest.mark.parametrize("kind", DAMAGE)
def test_databases_that_cannot_be_used(stopped: Server, kind: str) -> None:
    spoil, words = DAMAGE[kind]
    copy = stopped.dir / "copy"
    assert chimed(stopped, "backup", copy).returncode == 0
    spoil(stopped.database)
    before = files(stopped.dir)
    refused(chimed(stopped), 1, str(stopped.database), words)
    if kind != "newer":  # which is sound, and may be copied
        refused(chimed(stopped, "backup", stopped.dir / "other"), 1, str(stopped.database))
    assert files(stopped.dir) == before | {k: v for k, v in files(stopped.dir).items() if k.endswith("other")}
    if kind != "missing":
        bad = stopped.dir / "bad"
        shutil.copy(stopped.database, bad)
        shutil.copy(copy, stopped.database)
        before = files(stopped.dir)
        refused(chimed(stopped, "restore", bad, "--yes"), 1, str(bad))
        assert files(stopped.dir) == before


def test_init_twice_and_badly(stopped: Server, tmp_path: Path) -> None:
    before = files(stopped.dir)
    refused(chimed(stopped, "init"), 1, "exists already")
    assert files(stopped.dir) == before
    config = tmp_path / "fresh.toml"
    fresh = tmp_path / "fresh"
    config.write_text(toml({"state_dir": fresh}))
    for args, code, word in ((("--operator", "a b"), 2, "--operator 'a b'"),
                             (("--operator-key", stopped.operator_file), 1, "exists already")):  # fmt: skip
        refused(run("chimed.main", "init", "--config", config, *args), code, word)
        assert not fresh.exists()
    refused(run("chimed.main", "init", "--config", config, "--operator-key", "/nowhere/key"), 2, "/nowhere/key")
    config.write_text(toml({"state_dir": stopped.config / "x"}))
    refused(run("chimed.main", "init", "--config", config), 1, "Not a directory")


def test_backup_and_restore(stopped: Server) -> None:
    copy = stopped.dir / "copy"
    assert chimed(stopped, "backup", copy).returncode == 0
    before = files(stopped.dir)
    refused(chimed(stopped, "backup", copy), 1, "exists already")
    refused(chimed(stopped, "backup", "/nowhere/copy"), 1, "No such file")
    refused(chimed(stopped, "backup", stopped.database, "--overwrite"), 1, "the database itself")
    refused(chimed(stopped, "restore", "/nowhere", "--yes"), 1, "/nowhere does not exist")
    refused(chimed(stopped, "restore", stopped.dir, "--yes"), 1, str(stopped.dir))
    refused(chimed(stopped, "restore", stopped.config, "--yes"), 1, "not a database")
    refused(chimed(stopped, "restore", copy), 2, "--yes")
    assert files(stopped.dir) == before


def older_copy(server: Server) -> bytes:
    """The database of before n2 was added; the server runs on the newer one."""
    server.start()
    with server.new_peer() as peer:
        server.add_node(peer, "n1")
    server.stop()
    old = server.database.read_bytes()
    server.start()
    with server.new_peer() as peer:
        server.add_node(peer, "n2")
    return old


def test_a_database_that_is_put_back_by_cp(stopped: Server) -> None:
    """It is known before any node is heard, nothing is decided by it, and a person's word begins the recovery."""
    old = older_copy(stopped)
    stopped.stop()
    stopped.database.write_bytes(old)
    stopped.start()
    try:
        found = msgspec.json.decode(stopped.tool("alarm", "list", "-o", "json").stdout)
        assert [a["code"] for a in found if a["severity"] == "critical"] == ["server-behind"]
        assert "were saved in its place" in stopped.tool("recovery", "show").stdout
        refused(stopped.tool("vm", "create", "web", *SOME), 3, "this database is behind: it was put back")
        word = ("--yes", "--comment", "no other server runs, n1 is off")
        assert stopped.tool("recovery", "confirm", *word).returncode == 0
        status = msgspec.json.decode(stopped.tool("status", "-o", "json").stdout)
        assert status["generation"] == 2
        assert not status["behind"]
    finally:
        stopped.stop()


def behind(server: Server) -> str:
    """What the server says of a newer database that was here."""
    return str(msgspec.json.decode(server.tool("status", "-o", "json").stdout)["behind"])


def test_e4_killed_and_an_old_database_put_over_its_log(stopped: Server) -> None:
    old = older_copy(stopped)
    assert stopped.process
    stopped.process.kill()
    stopped.process.wait()
    stopped.process = None
    assert stopped.database.with_name("chime.db-wal").stat().st_size
    stopped.database.write_bytes(old)
    stopped.start()
    try:
        assert "were saved in its place" in behind(stopped)
        nodes = msgspec.json.decode(stopped.tool("node", "list", "-o", "json").stdout)
        assert [node["name"] for node in nodes] == ["n1"]
    finally:
        stopped.stop()


def test_e4_a_database_that_is_written_over_under_a_running_server(stopped: Server) -> None:
    old = stopped.database.read_bytes()
    stopped.start()
    with stopped.new_peer() as peer:
        stopped.add_node(peer, "n1")
    stopped.stop()
    right = stopped.database.read_bytes()
    stopped.start()
    try:
        stopped.database.write_bytes(old)
        wait_until(lambda: "written over" in stopped.tool("alarm", "list").stdout, 20, "the alarm")
        refused(stopped.tool("node", "disable", "n1", "--yes"), 1, "written over", "stop chimed")
    finally:
        stopped.stop()
    stopped.database.write_bytes(right)
    stopped.start()
    try:
        assert "not the one that was open here last" in behind(stopped), "what was changed in between is not known"
    finally:
        stopped.stop()


def test_e6_init_where_a_database_was(stopped: Server) -> None:
    stopped.database.unlink()
    stopped.operator_file.unlink()
    done = chimed(stopped, "init")
    assert done.returncode == 0 and "a database of generation 1 was here before" in done.stderr
    stopped.start()
    try:
        status = msgspec.json.decode(stopped.tool("status", "-o", "json").stdout)
        assert (status["generation"], status["behind"]) == (2, "")
    finally:
        stopped.stop()


def test_a_second_server(server: Server, tmp_path: Path) -> None:
    """On the same database, on the same port, and a restore under a running server."""
    before = server.rows()
    refused(chimed(server), 1, "in use by another chimed")
    assert chimed(server, "backup", tmp_path / "copy").returncode == 0
    refused(chimed(server, "restore", tmp_path / "copy", "--yes"), 1, "in use by another chimed")
    config = tmp_path / "second.toml"
    config.write_text(toml({"state_dir": tmp_path / "second", "endpoint": server.endpoint, "log_format": "console"}))
    assert run("chimed.main", "init", "--config", config).returncode == 0
    refused(run("chimed.main", "--config", config), 1, server.endpoint, "in use")
    assert server.rows() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 8])
def test_a_full_disk_at_init(tmp_path: Path, pages: int) -> None:
    """Wherever the room ends, nothing looks usable, and init can be tried again."""
    script = """
mount -t tmpfs -o size=256k tmpfs "$1" && head -c $((262144 - $2 * 4096)) /dev/zero > "$1/ballast"
"$3" -m chimed.main init --config "$4"; code=$?
ls -A "$1/server" >&3 2>/dev/null
rm "$1/ballast" && umount "$1" && mount -t tmpfs tmpfs "$1" || exit 98
"$3" -m chimed.main init --config "$4" 2>/dev/null || exit 99
exit $code
"""
    disk, config, listed = tmp_path / "disk", tmp_path / "c.toml", tmp_path / "listed"
    disk.mkdir()
    config.write_text(toml({"state_dir": disk / "server"}))
    argv = ["unshare", "-m", "sh", "-c", f"exec 3>{listed}\n{script}", "sh", str(disk), str(pages), sys.executable]
    done = subprocess.run([*argv, str(config)], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    refused(done, done.returncode, "No space left" if "No space" in done.stderr else "full")
    assert done.returncode in (1, 2), done
    assert "operator.key" not in listed.read_text().split()


# --- with a real agent ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chime(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1",)) as whole:
        yield whole


def test_a_disk_that_is_not_there(chime: Chime, tmp_path: Path) -> None:
    """The operation fails and says so, the VM is shown failed with the reason; with the disk it starts."""
    name, path = unique("diskless"), tmp_path / "late.raw"
    done = run("tools.main", "vm", "create", name, "--vcpus", "1", "--memory", "32", "--virt-type", "qemu",
               "--disk", f"{path},format=raw", env={"CHIME_KEY": str(chime.operator_key)})  # fmt: skip
    refused(done, 1, str(path))
    vm = chime.vm(name)
    assert (vm["desired"], vm["observed"]) == ("running", "failed")
    assert str(path) in vm["detail"]
    chime.no_process(vm["uuid"])
    assert not path.exists()
    path.write_bytes(bytes(1 << 20))
    chime.tool("vm", "start", name)
    assert chime.observed(name, "running")["detail"] == ""
    assert chime.process(vm["uuid"]).host == "n1"
    chime.do(m.VmDelete, vm=name)
    assert path.exists(), "a disk is never deleted"


def test_a_disk_of_another_format_and_a_bad_xml(chime: Chime, tmp_path: Path) -> None:
    """What only libvirt or qemu-img can tell is told by the failed operation."""
    path = tmp_path / "text.qcow2"
    path.write_text("this is no qcow2 image")
    content = path.read_bytes()
    disk = m.Disk(path=str(path), format=DiskFormat.QCOW2)
    xml = f"<domain type='qemu'><uuid>{UUID}</uuid><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
    for name, spec in ((unique("text"), tiny(disks=(disk,))), (unique("xml"), tiny(xml=xml)),
                       (unique("junk"), tiny(xml="<domain type='qemu'><os/></domain>"))):  # fmt: skip
        operation = chime.ask(m.VmCreate(key=unique("key"), name=name, spec=spec))["operation"]
        ended = chime.wait(lambda found=operation: _ended(chime, found["id"]), f"{name} is created or refused")
        assert ended["state"] == "failed" and ended["outcome"].isprintable(), ended
        assert chime.vm(name)["observed"] == "failed"
        chime.do(m.VmDelete, vm=name)
    assert path.read_bytes() == content


def _ended(chime: Chime, op_id: str) -> dict[str, object] | None:
    operation: dict[str, object] = chime.ask(m.OpShow(id=op_id))["operation"]
    return operation if operation["state"] != "running" else None


def test_a_snapshot_of_a_newer_version(chime: Chime) -> None:
    """It is refused and kept; the running VM is adopted, not started again, and the agent goes on."""
    name = unique("snap")
    uuid = chime.create(name)
    before = chime.process(uuid)
    chime.stop_agent("n1")
    snapshot = chime.agent_state("n1") / "snapshot"
    header, _, rest = snapshot.read_bytes().partition(b"\n")
    changed = {**msgspec.json.decode(header), "version": 9999}
    snapshot.write_bytes(msgspec.json.encode(changed) + b"\n" + rest)
    chime.agent("n1").start()
    wait_until(lambda: list(snapshot.parent.glob("snapshot.refused-*")), 30, "the snapshot is put aside")
    log = chime.agent("n1").log
    wait_until(lambda: "it has version 9999, this agentd knows" in log.read_text(), 30, "and that is said")
    chime.observed(name, "running")
    assert chime.process(uuid).pid == before.pid
    kept = next(snapshot.parent.glob("snapshot.refused-*")).read_bytes()
    assert kept.endswith(rest)
    chime.do(m.VmDelete, vm=name)
    chime.no_process(uuid)


def test_a_second_agent_and_a_second_join(chime: Chime) -> None:
    host = chime["n1"]
    line = chime.agentd("n1", code=1).stderr.strip().splitlines()[-1]
    assert "another agentd" in line
    line = chime.agentd("n1", "join", host.etc / "bundle", code=1).stderr.strip()
    assert "there already" in line
