"""The cluster of the demo: a server and three nodes, each in a host of its own, and guests that count.

Two sources of truth that are nothing of Chime: the machine's process table, and the serial files to which the
guests print a counter. A serial file lies on storage that all nodes share, so two runs of one guest at the
same time would show as interleaved lines.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from agentd.config import Config as AgentConfig
from chimed.config import Config as ServerConfig
from tests.hosts import Cluster, Guest, Host, Qemu, guest_cmdline, oracle

SERVER = "server"
NODES = ("n1", "n2", "n3")
PORT = 7440
MEMORY_MIB = 96
DISK_MIB = 16
SERVER_TIMINGS = {"heartbeat_s": 1.0, "ping_timeout_s": 0.3, "challenge_s": 0.5, "command_timeout_s": 20.0}
AGENT_TIMINGS = {"audit_s": 10.0, "call_timeout_s": 9.0, "settle_s": 1.0}
STARTED = "starting up"  # how libvirt's log of a VM names every start, also one that fails at once


class Answer(NamedTuple):
    """A command that was run: exit code and everything it printed."""

    code: int
    text: str


class Fleet:
    """Makes the cluster, starts the daemons, runs commands. `close` ends all of it."""

    def __init__(self, kernel: Path, initrd: Path, keep: bool) -> None:
        self.bin = Path(sys.executable).parent
        self.cluster = Cluster((SERVER, *NODES), keep=keep)
        self.dir = self.cluster.dir
        self.shared = self.dir / "shared"
        try:
            self.shared.mkdir()
            self.kernel = Path(shutil.copy(kernel, self.shared / "vmlinuz"))
            self.initrd = Path(shutil.copy(initrd, self.shared / "initrd.gz"))
        except BaseException:
            self.cluster.close()
            raise
        self.guests: dict[str, Guest] = {}
        self.server = self.cluster[SERVER]
        self.nodes = {name: self.cluster[name] for name in NODES}
        self.endpoint = f"tcp://{self.server.address}:{PORT}"
        self.operator_key = self.dir / "operator.key"

    def close(self) -> None:
        """End every process, remove everything."""
        self.cluster.close()

    # Daemons

    def start_server(self) -> None:
        """`chimed init`, then chimed as a service of its host."""
        config = self.server.etc / "chimed.toml"
        _write_toml(
            config,
            endpoint=self.endpoint,
            state_dir=str(self.server.dir / "state"),
            memory_reserve_mib=0,
            log_format="console",
            **SERVER_TIMINGS,
        )
        self._must(self.bin / "chimed", "init", "--config", config, "--operator-key", self.operator_key)
        self.server.service("chimed", [self.bin / "chimed", "--config", config]).start()

    def start_agent(self, name: str, bundle: Path) -> None:
        """`agentd join`, then agentd as a service of its host, which starts it at every boot."""
        host = self.nodes[name]
        _write_toml(
            self.agent_config(host),
            state_dir=str(host.dir / "state"),
            socket=str(host.run_dir / "agent.sock"),
            libvirt_uri=host.hyp_uri,
            virt_type="qemu",
            storage_min_free_percent=0.0,  # the fleet shares this machine's disk and memory,
            memory_min_free_percent=0.0,  # which are none of the demo's business
            log_format="console",
            **AGENT_TIMINGS,
        )
        self._must(self.bin / "agentd", "join", bundle, "--config", self.agent_config(host))
        host.service("agentd", [self.bin / "agentd", "--config", self.agent_config(host)]).start()

    def agent_config(self, host: Host) -> Path:
        """The configuration file of a node's agent."""
        return host.etc / "agentd.toml"

    def log_files(self) -> list[Path]:
        """The logs of all daemons."""
        return [self.server.log / "chimed.log", *(host.log / "agentd.log" for host in self.nodes.values())]

    # Commands

    def tool(self, *words: str) -> Answer:
        """Run chime-tool."""
        return self._run(self.bin / "chime-tool", *words)

    def ask(self, *words: str) -> Any:
        """What chime-tool answers with `-o json`; None when it does not exit with 0."""
        argv = [str(self.bin / "chime-tool"), *words, "-o", "json"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, env=self._environ()
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def node(self, name: str) -> dict[str, Any]:
        """A node as the server shows it."""
        rows = {row["name"]: row for row in self.ask("node", "list") or []}
        return dict(rows.get(name, {}))

    def vms(self) -> dict[str, dict[str, Any]]:
        """All VMs as the server shows them, by name."""
        return {row["name"]: row for row in self.ask("vm", "list") or []}

    def agent_status(self, name: str) -> dict[str, Any]:
        """What `chime-agent status` says on a node; empty when it says nothing."""
        words = [self.bin / "chime-agent", "status", "--config", self.agent_config(self.nodes[name]), "-o", "json"]
        done = self.nodes[name].run(words, check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def on_node(self, name: str, *words: str) -> Answer:
        """Run chime-agent on a node."""
        host = self.nodes[name]
        done = host.run([self.bin / "chime-agent", *words, "--config", self.agent_config(host)], check=False)
        return Answer(done.returncode, done.stdout + done.stderr)

    def create(self, name: str) -> tuple[str, Answer]:
        """Create a guest and start it; gives what a person would type, and the answer."""
        guest = Guest(name, self.shared / f"{name}.serial")
        self.guests[name] = guest
        words = ["vm", "create", name, "--vcpus", "1", "--memory", f"{MEMORY_MIB}M"]
        words += ["--disk", f"{self.shared}/{name}.qcow2,size={DISK_MIB}M"]
        words += ["--kernel", str(self.kernel), "--initrd", str(self.initrd), "--serial-log", str(guest.serial)]
        words += ["--cmdline", guest_cmdline(name, 0.5)]
        return shlex.join(["chime-tool", *words]), self.tool(*words)

    # Truth

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> qemu processes of this cluster, wherever they run, whatever the hosts believe."""
        names = {host.pid_namespace: host.name for host in self.cluster.hosts.values()}
        found = {}
        for uuid, group in oracle.scan(names).items():
            ours = [seen for seen in group if f"{self.dir}/" in seen.path]
            if ours:
                found[uuid] = ours
        return found

    def places(self) -> dict[str, list[str]]:
        """VM name -> the hosts where a process of it runs."""
        found = {group[0].name: sorted(seen.host for seen in group) for group in self.processes().values()}
        return dict(sorted(found.items()))

    def identities(self) -> dict[str, tuple[int, int]]:
        """VM name -> (pid, start time) of its process: the same pair is the same process."""
        return {seen.name: (seen.pid, seen.started_ticks) for group in self.processes().values() for seen in group}

    def definitions(self, node: str) -> set[str]:
        """Names of the VMs that libvirt has a definition of on a node."""
        return {file.stem for file in (self.nodes[node].hyp / "etc").glob("**/qemu/*.xml")}

    def starts(self, node: str) -> dict[str, int]:
        """VM name -> how many times libvirt tried to start it on a node, from libvirt's own logs."""
        logs = (self.nodes[node].hyp).glob("**/qemu/*.log")
        return {file.stem: file.read_text(errors="replace").count(STARTED) for file in logs}

    # Inside

    def _environ(self) -> dict[str, str]:
        # no configuration of the person who runs the demo; plain output, wide enough for the tables
        own = {"CHIME_KEY": str(self.operator_key), "CHIME_SERVER": self.endpoint, "HOME": str(self.dir)}
        return {**os.environ, **own, "COLUMNS": "110", "NO_COLOR": "1"}

    def _run(self, program: Path, *words: str | Path) -> Answer:
        done = subprocess.run(
            [str(program), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            env=self._environ(),
        )
        return Answer(done.returncode, done.stdout)

    def _must(self, program: Path, *words: str | Path) -> None:
        answer = self._run(program, *words)
        if answer.code:
            raise RuntimeError(f"{program.name} {words[0]}: exit {answer.code}: {answer.text.strip()}")


def timings() -> str:
    """How the demo's timings differ from the defaults."""
    server, agent = ServerConfig(), AgentConfig()
    parts = (("chimed", server, SERVER_TIMINGS), ("agentd", agent, AGENT_TIMINGS))
    lines = []
    for program, default, short in parts:
        values = [f"{key} {value:g} (default {getattr(default, key):g})" for key, value in short.items()]
        lines.append(f"  {program}  {', '.join(values)}")
    limits = f"{unreachable_s(SERVER_TIMINGS):.1f} s after its last heartbeat (default {unreachable_s({}):.0f} s)"
    return "\n".join([*lines, f"  a node that falls silent is called unreachable at most {limits}"])


def unreachable_s(changed: dict[str, float]) -> float:
    """How long after its last heartbeat a node is called unreachable."""
    config = ServerConfig(**changed)
    return config.heartbeat_s * config.missed_heartbeats + config.ping_tries * config.ping_timeout_s


def _write_toml(path: Path, **values: str | float) -> None:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
