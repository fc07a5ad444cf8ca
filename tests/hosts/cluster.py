"""A cluster: hosts on one bridge, all in one short directory, and nothing of it is left behind.

`close()` undoes everything and is safe at any moment, also half-way through construction. A cluster made with
`keep=True` can live on after its process; `python -m tests.hosts down` ends it, from its `cluster.json`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.hosts import oracle
from tests.hosts.host import Host
from tests.hosts.network import Bridge, Link, NetworkError, delete_device, device_exists
from tests.hosts.oracle import Qemu
from tests.hosts.service import HostError, wait_until

DIRECTORY_PREFIX = "chime-"
STATE_FILE = "cluster.json"
FIRST_HOST_INDEX = 11  # hosts get .11, .12, ...; the bridge has .1
MAX_HOSTS = 200
MAX_BASE_PATH = 20  # longer temporary directories make unix socket paths of libvirt too long

_directories_made: list[Path] = []
_devices_made: list[str] = []


def short_directory() -> Path:
    """A new directory with a path short enough for unix sockets; `left_behind` knows it."""
    base = tempfile.gettempdir()
    path = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base if len(base) <= MAX_BASE_PATH else "/tmp"))
    _directories_made.append(path)
    return path


def forget_directory(path: Path) -> None:
    """`left_behind` does not look for it any more."""
    if path in _directories_made:
        _directories_made.remove(path)


class Cluster:
    """Owns a bridge and hosts. Use as a context manager, or call `close()`.

    names: hosts to make and power on at once. keep: let it live on after this process (see `detach`).
    """

    def __init__(self, names: Iterable[str] = (), keep: bool = False) -> None:
        self.hosts: dict[str, Host] = {}
        self.keep = keep
        self._detached = False
        sweep()
        self.dir = short_directory()
        run = secrets.token_hex(3)
        self.bridge = Bridge(f"chm{run}")
        self._names_file = self.dir / "hosts"
        self._names_file.write_text("127.0.0.1 localhost\n")
        self._device_prefix = f"cv{run}"
        _devices_made.append(self.bridge.name)
        atexit.register(self.close)
        try:
            self._write_state()
            self.bridge.create()
            for name in names:
                self.add_host(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """This machine's own address on the bridge; every host can reach it."""
        return self.bridge.address

    def add_host(self, name: str, power_on: bool = True) -> Host:
        """Make a host (directory `dir/NAME`, next free address) and boot it."""
        if name in self.hosts or len(self.hosts) >= MAX_HOSTS:
            raise HostError(f"host {name} exists already, or there are {MAX_HOSTS} hosts")
        number = len(self.hosts)
        link = Link(self.bridge, f"{self._device_prefix}n{number}", FIRST_HOST_INDEX + number)
        _devices_made.append(link.device)
        host = Host(name, self.dir / name, link, self._names_file, keep=self.keep)
        self.hosts[name] = host
        with open(self._names_file, "a") as names:
            names.write(f"{host.address} {name}\n")
        self._write_state()
        if power_on:
            host.power_on()
        return host

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes in this cluster's hosts, from the real process table."""
        names = {host.pid_namespace: host.name for host in self.hosts.values() if host.is_on}
        everything = oracle.scan(names)
        ours = {uuid: [seen for seen in group if seen.host] for uuid, group in everything.items()}
        return {uuid: group for uuid, group in ours.items() if group}

    def watch(self, period_s: float = 0.1) -> oracle.Watch:
        """A context manager that checks S1 on the process table all the time (see `oracle.Watch`)."""
        return oracle.Watch(self.processes, period_s)

    def detach(self) -> None:
        """Leave the cluster running when this process ends (needs keep=True); `down(cluster.dir)` ends it."""
        if not self.keep:
            raise HostError("only a cluster made with keep=True can be left running")
        self._detached = True
        self._write_state()
        for host in self.hosts.values():
            host.detach()
        atexit.unregister(self.close)
        forget_directory(self.dir)

    def close(self) -> None:
        """End every process, remove links, bridge and directory. Does nothing the second time."""
        if self._detached:
            return
        with contextlib.ExitStack() as undo:  # last first; all run, whatever fails
            undo.callback(atexit.unregister, self.close)
            undo.callback(shutil.rmtree, self.dir, ignore_errors=True)
            undo.callback(self.bridge.delete)
            for host in self.hosts.values():
                undo.callback(host.power_off)

    def _write_state(self) -> None:
        stat = oracle.state_and_start(os.getpid())
        state = {
            "bridge": self.bridge.name,
            "links": [host.link.device for host in self.hosts.values()],
            "kept": self._detached,
            "owner": [os.getpid(), stat[1] if stat else 0],
        }
        (self.dir / STATE_FILE).write_text(json.dumps(state))


def kept_clusters() -> list[Path]:
    """Directories of clusters that were left running on purpose."""
    return [path.parent for path, state in _states() if state["kept"]]


def down(directory: Path) -> None:
    """End a cluster of another process: its hosts, links, bridge and directory."""
    try:
        state = json.loads((directory / STATE_FILE).read_text())
    except FileNotFoundError:
        return  # somebody else was quicker
    for pid in _inits_below(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _inits_below(directory), 15.0, f"the hosts in {directory} are down")
    for device in (*state["links"], state["bridge"]):
        with contextlib.suppress(NetworkError):
            delete_device(device)
    shutil.rmtree(directory, ignore_errors=True)


def _inits_below(directory: Path) -> list[int]:
    """Outer pids of the inits of all hosts in a cluster's directory."""
    found = []
    for pid in oracle.pids():
        words = oracle.cmdline(pid)
        for script, argument in itertools.pairwise(words):
            ours = script.endswith("hosts/init.py") and Path(argument).parent == directory
            if ours and oracle.inner_pid(pid) == 1:
                found.append(pid)
    return found


def sweep() -> None:
    """Remove what clusters left whose process was killed (their hosts died with it)."""
    for path, state in _states():
        pid, started = state["owner"]
        now = oracle.state_and_start(pid)
        if not state["kept"] and (now is None or now[1] != started):
            down(path.parent)


def _states() -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for base in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for path in base.glob(f"{DIRECTORY_PREFIX}*/{STATE_FILE}"):
            with contextlib.suppress(OSError, ValueError):
                found.append((path, json.loads(path.read_text())))
    return found


def left_behind() -> list[str]:
    """Processes, network devices, mounts and directories that this process's clusters left."""
    found = []
    for directory in _directories_made:
        found += _processes_of(directory)
        with open("/proc/self/mounts") as mounts:
            found += [f"mount {line.split()[1]}" for line in mounts if f"{directory}/" in line]
        if directory.exists():
            found.append(f"directory {directory}")
    return found + [f"network device {device}" for device in _devices_made if device_exists(device)]


def _processes_of(directory: Path) -> list[str]:
    found = []
    for pid in oracle.pids():
        words = " ".join(oracle.cmdline(pid))
        cwd = ""
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{pid}/cwd")
        if pid != os.getpid() and (str(directory) in words or f"{cwd}/".startswith(f"{directory}/")):
            found.append(f"process {pid}: {words[:200]}")
    return found
