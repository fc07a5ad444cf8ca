"""A host of the lab: systemd-nspawn boots a real systemd on an overlay of this machine's root.

Each boot has a mount namespace, cgroups and cables of its own, which vanish with it. What the host wrote stays (its
layer), but for `/run` and `/tmp`. Power off kills the host's first process from outside, and the kernel kills all the
others at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pexpect

from tests.hosts import HostError, oracle, wait_until
from tests.hosts.network import device_exists
from tests.lab.disk import Disk
from tests.lab.layers import LOCAL, SHARED, make_own
from tests.lab.wires import NETS, Direction, Net, Plug, Wires
from tests.terminal import on_terminal

BOOT_TIMEOUT_S = 90.0
OFF_TIMEOUT_S = 30.0
CGROUPS = Path("/sys/fs/cgroup")
JOURNAL_LINES = 60
LIBVIRT_UNITS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd-tcp.socket", "libvirtd")
# $1 directory, $2 lower layers, $3 cgroup, then the command. Mounts are private: they go away with the host.
BOOT_SCRIPT = """
set -e
dir=$1 lower=$2 cgroup=$3
shift 3
for root in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e $root/cgroup.procs ] || continue
    mkdir -p $root/$cgroup
    echo $$ >$root/$cgroup/cgroup.procs
done
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/own,workdir=$dir/work" "$dir/root"
mount -o loop "$dir/disk/image" "$dir/local"
exec "$@"
"""


class LabHost:
    """One machine of the lab. Made by `Lab`.

    lifeline: it dies with the process that booted it.
    """

    def __init__(self, name: str, directory: Path, plugs: Mapping[Net, Plug], wires: Wires, lifeline: bool) -> None:
        self.name = name
        self.dir = directory
        self.plugs = plugs
        self.wires = wires
        self.lifeline = lifeline
        self.cgroup = f"chime-lab-{wires.run}-{name}"
        self.machine = f"chimelab-{wires.run}-{name}"
        self.disk = Disk(directory / "disk", directory / "local")
        self.leader = 0  # pid of its init as seen from outside; 0 = powered off
        self.pid_namespace = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Lay out its directory, before the first boot."""
        for part in ("own", "work", "root", "local", "disk"):
            (self.dir / part).mkdir(parents=True)
        networks = {plug.inner: (plug.address, plug.prefix) for plug in self.plugs.values()}
        make_own(self.dir / "own", self.name, networks)
        self.disk.make()

    def address(self, net: Net = "mgmt") -> str:
        """Its IPv4 address on a network."""
        return self.plugs[net].address

    @property
    def is_on(self) -> bool:
        """True while its first process lives."""
        return self.leader != 0 and oracle.pid_namespace(self.leader) == self.pid_namespace

    # Power

    def power_on(self, wait: bool = True) -> None:
        """Boot; with `wait`, until its services are being started and its networks are up."""
        if self.is_on:
            raise HostError(f"host {self.name} is on already")
        argv = ["setpriv", "--pdeathsig", "TERM"] if self.lifeline else []
        lab = self.dir.parent
        lower = f"{lab}/chime:{lab}/common:/"
        argv += ["unshare", "-m", "sh", "-c", BOOT_SCRIPT, "boot", str(self.dir), lower, self.cgroup]
        argv += ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", f"--directory={self.dir}/root"]
        argv += ["--machine", self.machine, f"--hostname={self.name}", "--link-journal=no", "--resolv-conf=off"]
        argv += [
            "--timezone=off",
            "--kill-signal=SIGKILL",
            f"--bind={lab}/shared:{SHARED}",
            f"--bind={self.dir}/local:{LOCAL}",
        ]
        argv += [f"--network-veth-extra={plug.device}:{plug.inner}" for plug in self.plugs.values()]
        with open(self.dir / "console.log", "ab") as log:
            self._nspawn = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_booted()

    def wait_booted(self) -> None:
        """Until it is up so far that commands can be run in it and its networks carry."""
        self.leader = wait_until(self._find_leader, BOOT_TIMEOUT_S, f"the first process of host {self.name}")
        self.pid_namespace = oracle.pid_namespace(self.leader) or 0
        devices = [plug.device for plug in self.plugs.values()]
        wait_until(lambda: all(map(device_exists, devices)), BOOT_TIMEOUT_S, f"the cables of host {self.name}")
        self.wires.connect(self.plugs.values())
        wait_until(self._networks_up, BOOT_TIMEOUT_S, f"the networks of host {self.name}", 0.05)

    def power_off(self) -> None:
        """Lose power: the networks fall silent, then every process of the host is killed at once."""
        self.disk.mend(self.leader if self.is_on else 0)  # a frozen file system would survive the host
        if self.is_on:
            self.wires.silence(self.plugs.values())  # first, so that no peer sees a connection being closed
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        if self._nspawn is not None:
            if not self.leader:
                self._nspawn.kill()
            self._nspawn.wait(OFF_TIMEOUT_S)
            self._nspawn = None
        wait_until(lambda: not self.is_on, OFF_TIMEOUT_S, f"host {self.name} is off")
        self.leader = 0
        self.forget()

    def forget(self) -> None:
        """Remove what a boot leaves on the machine."""
        for root in (CGROUPS, CGROUPS / "systemd", CGROUPS / "unified"):
            remove_cgroup(root / self.cgroup)
        shutil.rmtree(Path("/run/systemd/nspawn/propagate") / self.machine, ignore_errors=True)

    # Networks

    def cut(self, net: Net, direction: Direction = "both") -> None:
        """Frames of one network vanish: "in" it hears nothing, "out" nobody hears it. The carrier stays."""
        self.wires.cut(self.plugs[net], direction)

    def pull(self, net: Net) -> None:
        """Pull the cable of a network: no carrier."""
        self.wires.pull(self.plugs[net])

    def heal(self, net: Net | None = None) -> None:
        """Repair a network, or all."""
        for each in NETS if net is None else (net,):
            self.wires.heal(self.plugs[each])

    # Commands

    def run(
        self, *argv: str | Path, timeout_s: float = 60.0, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host; its output comes back. HostError on exit code != 0 if `check`."""
        words = [str(word) for word in argv]
        process = self.popen(*words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise HostError(f"{self.name}: {' '.join(words)[:200]}: still running after {timeout_s:g} s") from None
        if check and process.returncode:
            text = (err or out).strip()
            raise HostError(f"{self.name}: {' '.join(words)[:200]}: exit {process.returncode}: {text}")
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def popen(self, *argv: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the host, in a process group of its own."""
        if not self.is_on:
            raise HostError(f"host {self.name} is off")
        return subprocess.Popen(
            [*enter(self.leader), *(str(word) for word in argv)],
            env={**ENVIRONMENT, **(env or {})},
            **{"stdin": subprocess.DEVNULL, "start_new_session": True, **options},
        )

    def terminal(self, *argv: str) -> pexpect.spawn:
        """A command in the host on a terminal of its own, where ^C is a signal."""
        inner = ["script", "-qec", f"exec {shlex.join(argv)}", "/dev/null"]
        env = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"}
        terminal = on_terminal([*enter(self.leader), *inner], env, TERMINAL, TERMINAL_S)
        terminal.logfile_read = sys.stdout
        return terminal

    def virsh(self, *words: str, check: bool = True, timeout_s: float = 60.0) -> str:
        """What a person does with libvirt on the host."""
        return self.run("virsh", "-q", *words, check=check, timeout_s=timeout_s).stdout

    # Services

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What `systemctl` prints."""
        return self.run("systemctl", *words, check=check, timeout_s=120.0).stdout.strip()

    def unit(self, name: str, key: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={key}", name)

    def unit_pid(self, name: str) -> int:
        """Main process of a unit as seen from outside, 0 when there is none."""
        inner = int(self.unit(name, "MainPID") or 0)
        pids = (pid for pid in oracle.pids() if oracle.pid_namespace(pid) == self.pid_namespace)
        return next((pid for pid in pids if inner and oracle.inner_pid(pid) == inner), 0)

    def kill(self, unit: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a unit's main process; gives its pid (outside)."""
        pid = self.unit_pid(unit)
        if not pid:
            raise HostError(f"{self.name}: {unit} does not run")
        os.kill(pid, number)
        return pid

    def hang(self, unit: str) -> int:
        """SIGSTOP a unit's main process: it is there and does nothing. `resume` ends that."""
        return self.kill(unit, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to every process of the host."""
        for pid in oracle.pids():
            state = oracle.state_and_start(pid)
            if state and state[0] in "Tt" and oracle.pid_namespace(pid) == self.pid_namespace:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop_libvirt(self) -> None:
        """Stop libvirtd so that it stays away: also the sockets that would start it again."""
        self.systemctl("stop", *LIBVIRT_UNITS)

    def start_libvirt(self) -> None:
        """Start it and its sockets again. Whoever connects in between starts it too early for some: then once more."""
        wait_until(self._libvirt_started, BOOT_TIMEOUT_S, f"libvirt on {self.name} with all its sockets")

    def _libvirt_started(self) -> bool:
        if self.run("systemctl", "start", *LIBVIRT_UNITS, check=False, timeout_s=BOOT_TIMEOUT_S).returncode:
            self.stop_libvirt()
            return False
        return True

    def journal(self, *units: str, lines: int = JOURNAL_LINES) -> str:
        """The end of the journal of some units, of all boots, also while the host is off."""
        selected = [f"--unit={unit}" for unit in units]
        argv = ["journalctl", f"--directory={self.dir}/own/var/log/journal", "--no-pager", "--output=short-precise"]
        done = subprocess.run([*argv, "--quiet", f"--lines={lines}", *selected], capture_output=True, text=True)
        return done.stdout + done.stderr

    # Disk

    def break_disk(self, how: Literal["read-only", "full", "errors", "hang"]) -> None:
        """Let the host's own disk (`/srv/local`) fail in one of these ways, until `mend_disk`."""
        self.disk.fail(how, self.leader)

    def mend_disk(self) -> None:
        """Let the host's own disk work again."""
        self.disk.mend(self.leader)

    # Inside

    def _find_leader(self) -> int | None:
        """Outer pid of the host's init: the child of systemd-nspawn that is 1 in its own namespace."""
        if self._nspawn is not None and self._nspawn.poll() is not None:
            text = (self.dir / "console.log").read_text(errors="replace")
            raise HostError(f"host {self.name} did not boot: {text.strip()[-1000:]}")
        return leader_of(self._nspawn.pid) if self._nspawn else None

    def _networks_up(self) -> bool:
        if not self.is_on:
            raise HostError(f"host {self.name} died while it booted:\n{self.journal()}")
        seen = self.run("ip", "-brief", "-4", "address", "show", check=False).stdout
        return all(plug.address in seen for plug in self.plugs.values())

    def adopt(self) -> None:
        """Find the host as another process has booted it."""
        for pid in oracle.pids():
            words = oracle.cmdline(pid)
            if words[:1] == ["systemd-nspawn"] and self.machine in words:
                self.leader = leader_of(pid) or 0
                self.pid_namespace = oracle.pid_namespace(self.leader) or 0


TERMINAL = (40, 110)  # lines and columns
TERMINAL_S = 150.0  # how long one is waited for
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "NO_COLOR": "1",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "COLUMNS": "160",
}


def enter(leader: int) -> list[str]:
    """The command that runs another one inside a host."""
    return ["nsenter", "-t", str(leader), "-a", "-r", "-w"]


def leader_of(nspawn: int) -> int | None:
    """The first process of the host that a systemd-nspawn runs, once it is an init."""
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
    except OSError:
        return None
    for child in map(int, children):
        if oracle.inner_pid(child) == 1 and "systemd" in Path(f"/proc/{child}/comm").read_text():
            return child
    return None


def remove_cgroup(path: Path) -> None:
    """Remove a control group and all below it; what is still in use stays."""
    for root, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(root)
