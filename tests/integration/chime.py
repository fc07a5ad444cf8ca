"""A whole Chime for tests: chimed and agentds as supervised processes of simulated hosts, with short timings.

The truth is the process table (`Chime.processes`, and `Chime.watch` all the time), never what Chime says.
Waiting is for conditions, with generous deadlines: this is a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.hosts import Cluster, Host, HostError, Qemu, Service, Watch, wait_until
from tests.operator import AGENT_CONFIG, DEADLINE_S, SERVER_CONFIG, TINY_MIB, Operator, tiny, toml, unique
from wire import messages as m
from wire.client import new_key

ROOT = Path(__file__).resolve().parents[2]
PORT = 7440
SERVER = "server"
LOG_TAIL = 2500
CALM = {"heartbeat_s": 2.0, "challenge_s": 1.8}
"""Of a server for tests in which nobody may be called lost because the machine was busy for a second."""


def environment() -> dict[str, str]:
    """Daemons and tools run from this very tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


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


class Chime(Operator):
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
        self._stack.callback(self.forget_client)
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

    def in_session(self, name: str) -> None:
        """Until the agent that runs now is in session: the server may still believe the one before it."""
        self.wait(lambda: self.local(name, "status").get("session") == "ready", f"the agent of {name} is in session")

    def local(self, name: str, *argv: object, code: int = 0) -> dict[str, Any]:
        """A `chime-agent` command on a host; what it printed as JSON."""
        done = self._run(name, "agentd.local.main", [*argv, "--config", self.agent_toml(name), "-o", "json"], code)
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

    # Meddling

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes."""
        return self.cluster.processes()

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
        self.clean_slate(self.names)

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
