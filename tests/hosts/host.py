"""A host: namespaces (net, pid, mount, uts) with an init of its own, its own boot id and one network link.

All that a host owns lies in one short directory: `etc/ run/ log/ hyp/`; `hyp` is the root of libvirt's
embedded driver (`qemu:///embed?root=...`). Power off kills the host's init from outside, and the kernel kills
every process in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hosts import oracle
from tests.hosts.network import Link
from tests.hosts.service import HostError, Service, wait_until

START_TIMEOUT_S = 15.0
# Namespaces of the host, then what its first process does before it becomes `init.py`.
UNSHARE = ("unshare", "-n", "-m", "-p", "-u", "-f", "--kill-child", "--mount-proc")
BOOT_SCRIPT = """
set -e
mount --bind "$1" /proc/sys/kernel/random/boot_id
mount --bind "$2" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
mount -t sysfs sysfs /sys
hostname "$3"
shift 3
exec "$@"
"""
QEMU_CONF = """stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = [ ]
remember_owner = 0
"""


def embed_conf(root: Path) -> str:
    """Write the qemu.conf that the embedded driver needs below `root`; return its libvirt URI."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "qemu.conf").write_text(QEMU_CONF)
    return f"qemu:///embed?root={root}"


class Host:
    """One simulated machine. Made by `Cluster.add_host`; powered on there."""

    def __init__(self, name: str, directory: Path, link: Link, names_file: Path, keep: bool = False) -> None:
        self.name = name
        self.dir = directory
        self.names_file = names_file  # becomes the host's /etc/hosts; without it libvirt waits 10 s for DNS
        self.etc = directory / "etc"
        self.run_dir = directory / "run"
        self.log = directory / "log"
        self.hyp = directory / "hyp"
        self.link = link
        self.keep = keep
        self.boot_id = ""
        self.init_pid = 0  # as seen from outside; 0 = powered off
        self.pid_namespace = 0
        self.services: dict[str, Service] = {}
        self._unshare: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        for part in (self.etc, self.run_dir, self.log, self.hyp):
            part.mkdir(parents=True, exist_ok=True)
        self.hyp_uri = embed_conf(self.hyp)

    @property
    def address(self) -> str:
        """IPv4 address of the host's eth0."""
        return self.link.address

    @property
    def is_on(self) -> bool:
        """True while the host's init lives."""
        return self.init_pid != 0 and oracle.pid_namespace(self.init_pid) == self.pid_namespace

    # Power and network

    def power_on(self, start_services: bool = True) -> None:
        """Boot with a new boot id, plug the network in, start the services that were not stopped by hand."""
        if self.is_on:
            raise HostError(f"host {self.name} is on already")
        self.link.unplug()
        self.boot_id = str(uuid.uuid4())
        boot_id_file = self.run_dir / "boot_id"
        boot_id_file.write_text(self.boot_id + "\n")
        (self.run_dir / "init.sock").unlink(missing_ok=True)
        self._spawn_init(boot_id_file)
        self.init_pid = wait_until(self._find_init, START_TIMEOUT_S, f"init of host {self.name} answers")
        self.pid_namespace = oracle.pid_namespace(self.init_pid) or 0
        self.link.plug(self.init_pid)
        for service in self.services.values():
            if start_services and service.enabled:
                service.start()

    def power_off(self) -> None:
        """Lose power: the network goes silent, then every process of the host is killed at once."""
        if self.is_on:
            self.link.silence()  # first, so that no peer sees a connection being closed
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init_pid, signal.SIGKILL)
        self._bury()
        self.link.unplug()

    def cut(self) -> None:
        """Cut the host's network cable; its processes go on."""
        self.link.cut()

    def heal(self) -> None:
        """Repair the cable."""
        self.link.heal()

    # Commands and services

    def run(
        self,
        argv: Sequence[str | Path],
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host; its output comes back. HostError on exit code != 0 if `check`."""
        process = self.popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise HostError(f"{self.name}: {_words(argv)}: still running after {timeout_s:g} s") from None
        if check and process.returncode:
            raise HostError(f"{self.name}: {_words(argv)}: exit {process.returncode}: {(err or out).strip()}")
        return subprocess.CompletedProcess([str(word) for word in argv], process.returncode, out, err)

    def popen(
        self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command inside the host, in a process group of its own."""
        if not self.is_on:
            raise HostError(f"host {self.name} is off")
        enter = ["nsenter", "-t", str(self.init_pid), "-n", "-m", "-p", "-u", "-r", "-w"]
        command = [*enter, *(str(word) for word in argv)]
        return subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )

    def service(
        self,
        name: str,
        argv: Sequence[str | Path] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        restart: bool = True,
        restart_delay_s: float = 0.3,
    ) -> Service:
        """The service of that name; with `argv`, define it. `.start()` and later power-ons start it."""
        if argv is not None:
            spec = {
                "argv": [str(word) for word in argv],
                "env": {**os.environ, **(env or {})},
                "cwd": os.getcwd(),
                "log": str(self.log / f"{name}.log"),
                "restart": restart,
                "restart_delay_s": restart_delay_s,
            }
            self.services[name] = Service(self, name, spec)
        return self.services[name]

    def ask_init(self, verb: str, **arguments: Any) -> Any:
        """Send one command to the host's init and return its answer. Raises HostError."""
        request = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5.0)
                client.connect(str(self.run_dir / "init.sock"))
                client.sendall(request)
                reply = json.loads(client.makefile("rb").readline())
        except (OSError, ValueError) as error:
            raise HostError(f"init of host {self.name} does not answer: {error}") from error
        if "error" in reply:
            raise HostError(f"{self.name}: {verb} {arguments.get('name', '')}: {reply['error']}")
        return reply["ok"]

    def outer_pid(self, inner: int) -> int | None:
        """The id that a process of this host has outside, or None when it is gone."""
        for pid in oracle.pids():
            if oracle.pid_namespace(pid) == self.pid_namespace and oracle.inner_pid(pid) == inner:
                return pid
        return None

    # Inside

    def _spawn_init(self, boot_id_file: Path) -> None:
        init = [sys.executable, "-I", "-S", str(Path(__file__).with_name("init.py")), str(self.dir)]
        read_end: int | None = None
        if not self.keep:
            read_end, self._lifeline = os.pipe()
            init.append(str(read_end))
        arguments = [str(boot_id_file), str(self.names_file), self.name, *init]
        argv = [*UNSHARE, "sh", "-c", BOOT_SCRIPT, "boot", *arguments]
        fds = () if read_end is None else (read_end,)
        with open(self.log / "init.log", "ab") as log:
            self._unshare = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=fds
            )
        if read_end is not None:
            os.close(read_end)

    def _find_init(self) -> int | None:
        """Outer pid of the init once it listens: the kernel translates the peer's pid into our namespace."""
        if self._unshare is not None and self._unshare.poll() is not None:
            log = (self.log / "init.log").read_text(errors="replace")
            raise HostError(f"host {self.name} did not boot: {log.strip()[-500:]}")
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.run_dir / "init.sock"))
            return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        return None

    def _bury(self) -> None:
        """Wait until no process of the host is left (its init ends last), then forget it."""
        if self._unshare is not None:
            if self.init_pid == 0:
                self._unshare.kill()  # half booted; --kill-child takes the rest along
            self._unshare.wait(START_TIMEOUT_S)
            self._unshare = None
        wait_until(lambda: not self.is_on, START_TIMEOUT_S, f"host {self.name} is down")
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.init_pid = 0

    def detach(self) -> None:
        """Let the host outlive this process (only when made with `keep`)."""
        if self._unshare is not None:
            self._unshare.returncode = 0  # nobody waits for it any more
            self._unshare = None


def _words(argv: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in argv)[:200]
