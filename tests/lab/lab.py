"""The lab: real hosts with real systemd and libvirtd, and Chime in them as the README installs it.

    with Lab() as lab:
        uuid = lab.create_guest("web", node="n1")
        lab.host("n1").power_off()
        lab.wait(lambda: lab.node("n1")["health"] == "unreachable", "it is missed")
        lab.tool("vm", "list")                            # chime-tool on the server's host, as JSON
        assert not lab.oracle.running(uuid)

The truth is the machine's process table (`lab.oracle`, watched all the time) and what the guests count, never what
Chime says. Needs root. Everything of a lab lies in one directory and has its run's name, so that any later run can
sweep what a killed one left.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hosts import Guest, Qemu, build_guest, forget_directory, guest_cmdline, short_directory
from tests.hosts import oracle as table
from tests.lab import remains
from tests.lab.host import LabHost
from tests.lab.layers import LOCAL, ROOT, SHARED, installed, make_common
from tests.lab.wires import NETS, Net, Plug, Wires
from tests.operator import AGENT_CONFIG, SERVER_CONFIG, Operator, toml
from wire import messages as m
from wire.types import VirtType

SERVER = "srv"
NODES = ("n1", "n2", "n3")
FIRST_NUMBER = 10  # hosts get the addresses .10, .11, ... on both networks
PORT = 7440
GUEST_MIB = 96
COUNT_INTERVAL_S = 0.5
BUSINESS_CHECK_S, STORAGE_CHECK_S = 2.0, 5.0
AUDIT_S = 45.0  # long, so that what happens at once is due to libvirt's events and not to the audit
JOURNAL_TAIL = 80
UNITS = ("chimed", "chime-agentd", "libvirtd")
CONFIG_FOLDER = Path("/etc/chime")
OPERATOR_KEY = Path("/root/.config/chime/operator.key")  # where chime-tool looks for it


class Oracle:
    """What really runs: the machine's process table, which shows the processes of all hosts."""

    def __init__(self, hosts: Mapping[str, LabHost]) -> None:
        self._hosts = hosts

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes in the lab's hosts."""
        names = {host.pid_namespace: host.name for host in self._hosts.values() if host.is_on}
        found = {uuid: [seen for seen in group if seen.host] for uuid, group in table.scan(names).items()}
        return {uuid: group for uuid, group in found.items() if group}

    def running(self, uuid: str) -> list[Qemu]:
        """The processes of a VM."""
        return self.processes().get(uuid, [])

    def places(self, uuid: str) -> list[str]:
        """The hosts in which a VM has a process."""
        return sorted(seen.host for seen in self.running(uuid))


class Lab(Operator):
    """Server `srv`, nodes, two networks, shared storage. Use as a context manager.

    nodes: names of the nodes. keep: it lives on after this process (see `detach`). server_config,
    agent_config: settings beside the short timings.
    """

    def __init__(
        self,
        nodes: Sequence[str] = NODES,
        keep: bool = False,
        server_config: Mapping[str, Any] | None = None,
        agent_config: Mapping[str, Any] | None = None,
    ) -> None:
        remains.sweep()
        self.names = tuple(nodes)
        self.guests: dict[str, Guest] = {}
        self.server_config = {**SERVER_CONFIG, "memory_reserve_mib": 0, **(server_config or {})}
        self._agent_config = {**AGENT_CONFIG, "audit_s": AUDIT_S, **(agent_config or {})}
        self._detached = False
        self.dir = short_directory()
        self.hosts: dict[str, LabHost] = {}
        self.oracle = Oracle(self.hosts)
        self.wires = Wires(secrets.token_hex(2))
        atexit.register(self.close)
        try:
            self._make(keep)
            self._boot()
            self._join()
        except BaseException as error:
            error.add_note(self.logs())
            self.close()
            raise
        self.watch = table.Watch(self.oracle.processes)
        self.watch.__enter__()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, remove everything. Does nothing the second time."""
        if self._detached:
            return
        with contextlib.ExitStack() as undo:  # last first; all run, whatever fails
            undo.callback(atexit.unregister, self.close)
            undo.callback(remains.remove, self.dir)
            for host in self.hosts.values():
                undo.callback(host.power_off)
            undo.callback(self.forget_client)
            if hasattr(self, "watch"):
                undo.callback(self.watch.__exit__)
        self._detached = True

    def detach(self) -> None:
        """Leave it running when this process ends (made with keep=True); `remains.remove` ends it."""
        self.forget_client()
        self.watch.__exit__()
        atexit.unregister(self.close)
        forget_directory(self.dir)
        remains.forget(self.wires.run)
        self._detached = True

    # Parts

    def host(self, name: str) -> LabHost:
        """A host by name."""
        return self.hosts[name]

    @property
    def shared(self) -> Path:
        """The shared storage (hosts see it as /srv/shared)."""
        return self.dir / "shared"

    @property
    def operator_key(self) -> Path:  # type: ignore[override]
        """The operator's key, as this machine sees it."""
        return self.dir / "operator.key"

    @property
    def server(self) -> LabHost:
        """The host of chimed."""
        return self.hosts[SERVER]

    def tool(self, *words: object, code: int = 0, timeout_s: float = 150.0) -> Any:
        """`chime-tool WORDS -o json` on the server's host; its JSON, or for a refusal what it said."""
        done = self.server.run("chime-tool", *map(str, words), "-o", "json", check=False, timeout_s=timeout_s)
        assert done.returncode == code, f"chime-tool {words}: exit {done.returncode}: {done.stdout}{done.stderr}"
        if code or not done.stdout.startswith(("{", "[")):
            return done.stderr
        return json.loads(done.stdout)

    def local(self, name: str, *words: object, code: int = 0) -> Any:
        """`chime-agent WORDS -o json` on a node."""
        done = self.host(name).run("chime-agent", *map(str, words), "-o", "json", check=False, timeout_s=120)
        assert done.returncode == code, f"chime-agent {words}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stderr

    # Guests

    def guest_spec(self, name: str, interval_s: float = COUNT_INTERVAL_S, extra: str = "", **values: Any) -> m.VmSpec:
        """A VM that boots Linux and counts into a file on the shared storage."""
        self.guests[name] = Guest(name, self.shared / f"{name}.serial")
        boot = m.Boot(
            kernel=f"{SHARED}/vmlinuz", initrd=f"{SHARED}/initrd.gz", cmdline=guest_cmdline(name, interval_s, extra)
        )
        serial = f"{SHARED}/{name}.serial"
        settings = {"vcpus": 1, "memory_mib": GUEST_MIB, "virt_type": VirtType.QEMU, "boot": boot, "serial_log": serial}
        return m.VmSpec(**{**settings, **values})

    def create_guest(self, name: str, interval_s: float = COUNT_INTERVAL_S, **values: Any) -> str:
        """Create a counting VM and wait until it counts; gives its UUID."""
        uuid = self.create(name, self.guest_spec(name, interval_s), **values)
        self.counting(name)
        return uuid

    def counter(self, name: str) -> int:
        """The last number that a guest has printed."""
        return self.guests[name].last().number

    def counting(self, name: str, timeout_s: float = 60.0) -> None:
        """Wait until the guest counts on (or begins to)."""
        before = len(self.guests[name].counts())
        self.wait(lambda: len(self.guests[name].counts()) > before, f"{name} counts", timeout_s)

    def ran_once(self, name: str) -> bool:
        """The guest counts on, and nobody started it anew. False: the emulation ended it, and it booted again."""
        self.counting(name)
        return self.guests[name].ran_once(self.process(self.vm(name)["uuid"]).incoming)

    def forgive(self, name: str) -> None:
        """This VM was run twice on purpose, and no longer is: what was seen and counted so far is no error."""
        self.guests.pop(name).serial.unlink()
        self.watch.violations.clear()

    # The truth

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes."""
        return self.oracle.processes()

    def logs(self) -> str:
        """The ends of the journals of Chime and libvirt on all hosts."""
        parts = []
        for host in self.hosts.values():
            units = [unit for unit in UNITS if host.name == SERVER or unit != "chimed"]
            state = "on" if host.is_on else "off"
            parts.append(f"--- {host.name} ({state})\n{host.journal(*units, lines=JOURNAL_TAIL)}")
        return "\n".join(parts)

    # Cleaning up

    def reset(self) -> None:
        """A clean slate for the next test: hosts on, networks whole, daemons running, no VM; and S1 has held."""
        for host in self.hosts.values():
            host.heal()
            if not host.is_on:
                host.power_on()
            host.mend_disk()
            host.resume()
        for name, host in self.hosts.items():
            if name != SERVER:
                host.start_libvirt()
            host.systemctl("start", "chimed" if name == SERVER else "chime-agentd")
        self.wait_server()
        for name in self.names:
            self._remove_foreign(self.host(name))
        self.clean_slate(self.names)
        for guest in self.guests.values():
            runs = guest.runs()
            assert len(runs) == len(set(runs)), f"{guest.name} was run twice at once: {runs}"
            guest.serial.unlink(missing_ok=True)
        self.guests.clear()

    def _remove_foreign(self, host: LabHost) -> None:
        """Domains that are nothing of Chime's."""
        ours = set(self.vms())
        for uuid in host.virsh("list", "--all", "--uuid").split():
            if uuid not in ours:
                host.virsh("destroy", uuid, check=False)
                host.virsh("undefine", uuid, check=False)

    # Making

    def _make(self, keep: bool) -> None:
        remains.record(self.dir, self.wires, keep)
        mount = ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self.dir)]
        subprocess.run(mount, check=True)
        remains.record(self.dir, self.wires, keep)  # the mount hides the first one
        self.wires.create()
        self.shared.mkdir()
        for source, name in zip(build_guest(ROOT / "build" / "guest"), ("vmlinuz", "initrd.gz"), strict=True):
            shutil.copy(source, self.shared / name)
        everyone = (SERVER, *self.names)
        remains.record(self.dir, self.wires, keep, everyone)
        plugs = all_plugs(self.wires, everyone)
        shutil.copytree(installed(), self.dir / "chime", symlinks=True)  # layers must not lie in each other
        names = {plugs[name]["mgmt"].address: name for name in everyone}
        names |= {plugs[name]["biz"].address: f"{name}-biz" for name in everyone}
        make_common(self.dir / "common", names)
        for name in everyone:
            host = LabHost(name, self.dir / name, plugs[name], self.wires, lifeline=not keep)
            host.make()
            self.hosts[name] = host

    def _boot(self) -> None:
        for host in self.hosts.values():
            host.power_on(wait=False)
        for host in self.hosts.values():
            host.wait_booted()

    def _join(self) -> None:
        """What an operator does, in the order of docs/install.md."""
        self._serve()
        for name in self.names:
            self._add_node(name)
        self.wait_nodes(*self.names)

    def _serve(self) -> None:
        server, config = self.server, CONFIG_FOLDER / "chimed.toml"
        endpoint = f"tcp://{server.address()}:{PORT}"
        self.write_config(server, "chimed", {**self.server_config, "public_endpoint": endpoint})
        _settle(server)
        server.run("mkdir", "-p", OPERATOR_KEY.parent)
        server.run("chimed", "init", "--config", config, "--operator-key", OPERATOR_KEY)
        shutil.copy(f"{server.dir}/own{OPERATOR_KEY}", self.operator_key)
        server.systemctl("enable", "--now", "chimed")
        self.wait_server()

    def _add_node(self, name: str) -> None:
        host, bundle = self.host(name), f"{SHARED}/{name}.bundle"
        self.tool("node", "add", name, "--output", bundle)
        self.write_config(host, "agentd", {**self._host_config(name), **self._agent_config})
        _settle(host)
        host.run("agentd", "join", bundle, "--config", CONFIG_FOLDER / "agentd.toml")
        (self.shared / f"{name}.bundle").unlink(missing_ok=True)
        host.systemctl("enable", "--now", "chime-agentd")

    def _host_config(self, name: str) -> dict[str, Any]:
        """What the agent looks at: the business network by its gateway (this machine) and peers, and its own disk."""
        peers = [self.host(other).address("biz") for other in self.names if other != name]
        gateway = str(self.wires.subnets["biz"][1])
        business = {"business_interface": self.host(name).plugs["biz"].inner, "business_targets": [gateway, *peers]}
        # systemd-nspawn forbids to ask the kernel whether the clock is synchronised
        migration = {"migration_uri": "qemu+tcp://{host}/system", "shared_paths": [SHARED]}
        checks = {"business_check_s": BUSINESS_CHECK_S, "storage_check_s": STORAGE_CHECK_S, "storage_paths": [LOCAL]}
        return {**business, **migration, **checks, "checks_off": ["clock"]}

    def write_config(self, host: LabHost, program: str, values: Mapping[str, Any]) -> None:
        """Write /etc/chime/PROGRAM.toml of a host."""
        host.run("sh", "-c", f"cat >{CONFIG_FOLDER}/{program}.toml <<'END'\n{toml(values)}END")


def all_plugs(wires: Wires, names: Sequence[str]) -> dict[str, dict[Net, Plug]]:
    """Where each host is plugged in."""
    return {name: {net: wires.plug(net, number) for net in NETS} for number, name in enumerate(names, FIRST_NUMBER)}


def _settle(host: LabHost) -> None:
    """What `make install DESTDIR=...` asks to be done once on the target."""
    tmpfiles = "systemd-tmpfiles --create chime-server.conf chime-agent.conf"
    host.run("sh", "-c", f"systemd-sysusers && {tmpfiles} && systemctl daemon-reload")
