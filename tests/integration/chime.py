"""A whole Chime for tests: chimed and agentds as supervised processes of simulated hosts, with short timings.

The truth is the process table (`Chime.processes`, and `Chime.watch` all the time), never what Chime says.
Waiting is for conditions, with generous deadlines: this is a busy machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Cluster, Host, HostError, Qemu, Service, Watch, wait_until
from wire import keys
from wire import messages as m
from wire.client import Client, new_key
from wire.errors import ChimeError
from wire.types import Desired, VirtType

ROOT = Path(__file__).resolve().parents[2]
PORT = 7440
SERVER = "server"
DEADLINE_S = 60.0
TINY_MIB = 32
"""Memory of a VM without disk and kernel: its firmware runs, finds nothing to boot, and waits."""
LOG_TAIL = 2500

SERVER_CONFIG: Mapping[str, Any] = {
    "heartbeat_s": 1.0,
    "challenge_s": 0.7,
    "ping_timeout_s": 0.3,
    "command_timeout_s": 20.0,
    "operation_timeout_s": 60.0,
    "vcpu_overcommit": 100.0,
    "log_format": "console",
}
AGENT_CONFIG: Mapping[str, Any] = {
    "virt_type": "qemu",
    "audit_s": 6.0,
    "call_timeout_s": 5.0,
    "settle_s": 1.0,
    "restart_backoff_s": 0.2,
    "restart_backoff_max_s": 1.0,
    "restart_window_s": 60.0,
    "log_format": "console",
}


def toml(values: Mapping[str, Any]) -> str:
    """The values as TOML (JSON's strings, numbers and lists are TOML's too)."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def environment() -> dict[str, str]:
    """Daemons and tools run from this very tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def tiny(**values: Any) -> m.VmSpec:
    """A VM that starts in a moment and does nothing."""
    return m.VmSpec(vcpus=1, memory_mib=TINY_MIB, virt_type=VirtType.QEMU, **values)


def monitored(socket: Path) -> m.VmSpec:
    """A VM with a second QMP monitor, by which a person can meddle with it behind libvirt's back."""
    xml = (
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<memory unit='MiB'>{TINY_MIB}</memory><vcpu>1</vcpu><os><type>hvm</type></os>"
        f"<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{socket},server=on,wait=off'/>"
        "</qemu:commandline></domain>"
    )
    return m.VmSpec(vcpus=1, memory_mib=TINY_MIB, xml=xml)


AS_A_PERSON = """
import sys, threading, libvirt
libvirt.virEventRegisterDefaultImpl()
def loop():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=loop, daemon=True).start()
connection = libvirt.open(sys.argv[1])
exec(sys.argv[2])
"""


class Chime:
    """One server on a host of its own, and an agent on each of the other hosts. Use as a context manager."""

    def __init__(
        self,
        names: Iterable[str],
        server_config: Mapping[str, Any] | None = None,
        agent_config: Mapping[str, Any] | None = None,
        server_state_mount: str = "",
    ) -> None:
        self.names = tuple(names)
        self._agent_config = {**AGENT_CONFIG, **(agent_config or {})}
        self._stack = contextlib.ExitStack()
        self.cluster = self._stack.enter_context(Cluster((SERVER, *self.names)))
        try:
            self._build(server_config or {}, server_state_mount)
        except BaseException:
            self.close()
            raise

    def _build(self, server_config: Mapping[str, Any], mount: str) -> None:
        host = self.cluster[SERVER]
        self.state_dir = host.dir / "state"
        self.server_toml = host.etc / "chimed.toml"
        self.operator_key = self.cluster.dir / "operator.key"
        endpoint = {"endpoint": f"tcp://{host.address}:{PORT}", "state_dir": str(self.state_dir)}
        self.server_toml.write_text(toml({**SERVER_CONFIG, **server_config, **endpoint}))
        if mount:  # inside the host, so that it goes away with it
            self.state_dir.mkdir(mode=0o700)
            host.run(["mount", "-t", "tmpfs", "-o", mount, "tmpfs", self.state_dir])
        self.chimed("init", "--operator-key", self.operator_key)
        self.server = self.serve()
        self.server.start()
        self._client: Client | None = None
        self._stack.callback(self._close_client)
        self.wait_server()
        for name in self.names:
            self.add_node(name)
        self.wait_nodes(*self.names)
        self.watch = self._stack.enter_context(self.cluster.watch(0.1))

    def __enter__(self) -> Chime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything."""
        self._stack.close()

    # Parts

    def __getitem__(self, name: str) -> Host:
        return self.cluster[name]

    def agent(self, name: str) -> Service:
        """The agentd of a host."""
        return self.cluster[name].service("agentd")

    def serve(self) -> Service:
        """The service that runs chimed; it comes back whenever it dies."""
        argv = [sys.executable, "-m", "chimed.main", "--config", self.server_toml]
        return self.cluster[SERVER].service("chimed", argv, env=environment())

    def agent_toml(self, name: str) -> Path:
        """The configuration file of an agent."""
        return self.cluster[name].etc / "agentd.toml"

    def agent_state(self, name: str) -> Path:
        """The state directory of an agent."""
        return self.cluster[name].dir / "state"

    def write_agent_config(self, name: str, **values: Any) -> None:
        """Writes the configuration of the agent of host `name`."""
        host = self.cluster[name]
        paths = {
            "state_dir": str(self.agent_state(name)),
            "socket": str(host.run_dir / "agent.sock"),
            "libvirt_uri": host.hyp_uri,
        }
        self.agent_toml(name).write_text(toml({**self._agent_config, **paths, **values}))

    def add_node(self, name: str) -> None:
        """Registers the host as a node and starts its agent."""
        bundle = self.cluster[name].etc / "bundle"
        self.tool("node", "add", name, "--output", bundle)
        self.write_agent_config(name)
        self.agentd(name, "join", bundle)
        self.agent_service(name).start()

    def agent_service(self, name: str) -> Service:
        """Defines the service that runs agentd on a host."""
        argv = [sys.executable, "-m", "agentd.main", "--config", self.agent_toml(name)]
        return self.cluster[name].service("agentd", argv, env=environment())

    # Commands

    def chimed(self, *argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A `chimed` command on the server's host."""
        return self._run(SERVER, "chimed.main", [*argv, "--config", self.server_toml], code)

    def agentd(self, name: str, *argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """An `agentd` command on a host."""
        return self._run(name, "agentd.main", [*argv, "--config", self.agent_toml(name)], code)

    def local(self, name: str, *argv: object, code: int = 0) -> dict[str, Any]:
        """A `chime-agent` command on a host; what it printed as JSON."""
        done = self._run(name, "agentd.local_main", [*argv, "--config", self.agent_toml(name), "-o", "json"], code)
        return dict(json.loads(done.stdout)) if done.stdout else {"error": done.stderr}

    def _run(self, host: str, module: str, argv: Iterable[object], code: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", module, *(str(word) for word in argv)]
        done = self.cluster[host].run(words, timeout_s=120.0, check=False, env=environment())
        assert done.returncode == code, f"{module} {words[3:]}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def tool(self, *argv: object, code: int = 0) -> Any:
        """A `chime-tool` command; what it printed as JSON, or for a refusal its words."""
        words = [sys.executable, "-m", "tools.main", *(str(word) for word in argv), "-o", "json", "--key"]
        done = subprocess.run(
            [*words, str(self.operator_key)], capture_output=True, text=True, env=environment(), timeout=150, cwd=ROOT
        )
        assert done.returncode == code, f"{words[3:]}: exit {done.returncode}: {done.stdout}{done.stderr}"
        if code or not done.stdout.startswith(("{", "[")):
            return done.stderr
        return json.loads(done.stdout)

    # The wire

    def new_client(self, timeout_s: float = 10.0) -> Client:
        """A connection of its own, for one thread."""
        file = keys.load(self.operator_key)
        assert file.endpoint and file.server_public_key
        return Client(file.endpoint, file.server_public_key, file.pair(), timeout_s)

    @property
    def client(self) -> Client:
        """The connection of the test itself."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def ask(self, body: m.Base, timeout_s: float | None = None) -> Any:
        """The result of one request. Raises ChimeError."""
        return self.client.request(body, timeout_s)

    def do(self, kind: type[m.Mutation], /, wait: bool = True, **values: Any) -> dict[str, Any]:
        """Changes something, and waits for its operation to succeed."""
        result = dict(self.ask(kind(key=new_key(), **values)))
        if wait and result["operation"]:
            op = self.client.wait_operation(result["operation"]["id"], DEADLINE_S)
            assert op.state == "succeeded", f"{op}\n{self.logs()}"
        return result

    def refused(self, kind: type[m.Mutation], /, **values: Any) -> str:
        """The code with which the request is refused."""
        with pytest.raises(ChimeError) as caught:
            self.ask(kind(key=new_key(), **values))
        return caught.value.code

    def create(self, name: str, spec: m.VmSpec | None = None, **values: Any) -> str:
        """Creates a VM, waits until that is done, and returns its UUID."""
        return str(self.do(m.VmCreate, name=name, spec=spec or tiny(), **values)["vm"]["uuid"])

    def vm(self, name: str) -> dict[str, Any]:
        """What the server shows of a VM."""
        return dict(self.ask(m.VmShow(vm=name))["vm"])

    def node(self, name: str) -> dict[str, Any]:
        """What the server shows of a node."""
        return dict(self.ask(m.NodeShow(name=name))["node"])

    def vms(self) -> dict[str, dict[str, Any]]:
        """All VMs by UUID, as the server shows them."""
        return {row["uuid"]: dict(row) for row in self.client.items(m.VmList())}

    def alarms(self, code: str | None = None) -> list[dict[str, Any]]:
        """The alarms that are raised now."""
        return [dict(row) for row in self.ask(m.AlarmList())["items"] if code in (None, row["code"])]

    def actions(self, subject: str | None = None) -> list[str]:
        """The audit trail of a subject: its actions, oldest first."""
        return [row["action"] for row in self.ask(m.EventList(subject=subject, limit=1000))["items"]]

    # The truth

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes."""
        return self.cluster.processes()

    def pids(self, uuid: str) -> list[int]:
        """The pids (outside) of the VM's processes."""
        return [seen.pid for seen in self.processes().get(uuid, [])]

    def process(self, uuid: str) -> Qemu:
        """The VM's one process, awaited."""
        return self.wait(lambda: self._one(uuid), f"one process of {uuid}")

    def _one(self, uuid: str) -> Qemu | None:
        found = self.processes().get(uuid, [])
        return found[0] if len(found) == 1 else None

    def other_process(self, uuid: str, than: Qemu, timeout_s: float = DEADLINE_S) -> Qemu:
        """The VM's one process once it is another one than `than`."""

        def look() -> Qemu | None:
            found = self._one(uuid)
            same = found is not None and (found.pid, found.started_ticks) == (than.pid, than.started_ticks)
            return None if same else found

        return self.wait(look, f"a new process of {uuid}", timeout_s)

    def no_process(self, uuid: str) -> None:
        """Waits until the VM has no process."""
        self.wait(lambda: not self.processes().get(uuid), f"no process of {uuid}")

    def stays(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Holds all the time. For what must not happen there is no condition to wait for."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert condition(), f"no longer true: {what}\n{self.logs()}"
            time.sleep(0.1)

    # Waiting

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
        """Until `condition` gives something true; while the server is away it is false."""

        def quietly() -> Any:
            try:
                return condition()
            except ChimeError as error:
                if error.code not in ("unreachable", "not-found"):
                    raise
                return None

        try:
            return wait_until(quietly, timeout_s, what, period_s=0.05)
        except HostError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_server(self) -> None:
        """Until the server answers."""
        self.wait(lambda: self.ask(m.ServerStatus(), 2.0), "the server answers")

    def wait_nodes(self, *names: str, health: str = "normal") -> None:
        """Until these nodes have this health (and, being normal, have reported)."""

        def fine(name: str) -> bool:
            node = self.node(name)
            return bool(node["health"] == health and (health != "normal" or self.reported(name)))

        self.wait(lambda: all(fine(name) for name in names), f"{', '.join(names)}: {health}")

    def reported(self, name: str) -> bool:
        """The node takes commands, and its agent has told what it sees."""
        node = self.node(name)
        drained = node["admin_state"] != "enabled"
        return bool(node["commandable"] and (node["schedulable"] or drained))

    def observed(self, name: str, what: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Waits until the server shows the VM as `what`, and returns the VM."""

        def seen() -> dict[str, Any] | None:
            vm = self.vm(name)
            return vm if vm["observed"] == what else None

        return dict(self.wait(seen, f"{name} is {what}", timeout_s))

    # Meddling

    def kill(self, seen: Qemu, number: int = signal.SIGKILL) -> None:
        """A signal to a qemu."""
        os.kill(seen.pid, number)

    def stop_agent(self, name: str) -> None:
        """Ends the agent (SIGTERM, at once SIGKILL); it stays away until `agent(name).start()`."""
        service = self.agent(name)
        self.cluster[name].ask_init("stop", name="agentd")
        service.enabled = False
        with contextlib.suppress(HostError):
            service.kill()
        wait_until(lambda: service.status()["pid"] is None, 10, f"agentd of {name} ends")

    def stop_server(self) -> None:
        """Ends the server (SIGTERM, at once SIGKILL); it stays away until `serve_again`."""
        self.cluster[SERVER].ask_init("stop", name="chimed")
        with contextlib.suppress(HostError):
            self.server.kill()
        wait_until(lambda: self.server.status()["pid"] is None, 10, "chimed ends")

    def as_a_person(self, name: str, statement: str) -> None:
        """Uses the libvirt of a host as with virsh (`connection`). An embedded one is free only while no agent runs."""
        words = [sys.executable, "-c", AS_A_PERSON, self.cluster[name].hyp_uri, statement]
        self.cluster[name].run(words, env=environment())

    def domain_file(self, node: str, name: str) -> Path:
        """Where the embedded libvirt keeps a domain's definition."""
        return self.cluster[node].hyp / "etc" / "qemu" / f"{name}.xml"

    # Cleaning up

    def tidy(self) -> None:
        """Back to a clean slate for the next test: all running, no VM left. And nothing was ever run twice."""
        self.serve_again()
        for name in self.names:
            host = self.cluster[name]
            host.heal()
            if not host.is_on:
                host.power_on()
            if not self.agent(name).status()["wanted"]:
                self.agent(name).start()
        for group in self.processes().values():
            for seen in group:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seen.pid, signal.SIGCONT)
        self.wait_nodes(*self.names)
        for name in self.names:
            if self.node(name)["admin_state"] != "enabled":
                self.do(m.NodeEnable, name=name)
        for vm in self.vms().values():
            if vm["desired"] != Desired.DELETED:
                self.do(m.VmDelete, vm=vm["uuid"], wait=False)
        self.wait(lambda: not self.vms(), "all VMs are deleted")
        self.wait(lambda: not self.processes(), "no process is left")
        violations, self.watch.violations[:] = list(self.watch.violations), []
        assert violations == [], "a VM had two runnable processes at once"

    def serve_again(self) -> None:
        """Starts the server if it was stopped."""
        if not self.server.status()["wanted"]:
            self.server.start()
        self.wait_server()

    def logs(self) -> str:
        """The ends of all logs."""
        parts = []
        for host in self.cluster.hosts.values():
            for file in sorted(host.log.glob("*d.log")):
                parts.append(f"--- {host.name} {file.name}\n{file.read_text(errors='replace')[-LOG_TAIL:]}")
        return "\n".join(parts)


@functools.cache
def _numbers() -> Iterator[int]:
    return itertools.count(1)


def unique(prefix: str) -> str:
    """A name that no other VM of this run has."""
    return f"{prefix}-{next(_numbers())}"


def qmp(socket: Path, command: str) -> None:
    """Says one command to a QMP monitor, as a person with socat would."""
    import socket as sockets

    with sockets.socket(sockets.AF_UNIX) as connection:
        connection.settimeout(20.0)
        connection.connect(str(socket))
        stream = connection.makefile("rwb", buffering=0)
        stream.readline()
        for word in ("qmp_capabilities", command):
            stream.write(json.dumps({"execute": word}).encode() + b"\n")
            while b'"return"' not in (line := stream.readline()) and line:
                assert b'"error"' not in line, line


__all__ = [
    "DEADLINE_S",
    "ROOT",
    "SERVER",
    "Chime",
    "Watch",
    "monitored",
    "new_key",
    "qmp",
    "tiny",
    "unique",
]
