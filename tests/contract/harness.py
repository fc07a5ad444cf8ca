"""One way for the contract suite to do things to a VM from outside, for the fake and for real qemu."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid as uuids
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from agentd.core.facts import Happening, Lifecycle, OffReason
from agentd.hypervisor import Hypervisor
from tests.fakes.hypervisor import FakeHypervisor
from wire.messages import Assignment, VmSpec
from wire.types import Desired, VirtType

DEADLINE_S = 30.0


def wait(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, looked at often, until the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {deadline_s} s in vain for: {what}"
        time.sleep(0.02)
    return value


def new_vm(
    epoch: int = 1, revision: int = 1, uuid: str | None = None, create_disks: bool = True, **spec: Any
) -> Assignment:
    """A VM that starts in half a second and sits in its firmware."""
    uuid = uuid or str(uuids.uuid4())
    return Assignment(
        uuid=uuid,
        name=f"t-{uuid[:8]}",
        epoch=epoch,
        revision=revision,
        desired=Desired.RUNNING,
        start_serial=1,
        graceful_s=10.0,
        create_disks=create_disks,
        spec=VmSpec(**{"vcpus": 1, "memory_mib": 32, "virt_type": VirtType.QEMU, **spec}),
    )


def bare_qemu(uuid: str, monitor: str = "none") -> list[str]:
    """A qemu that does nothing, outside libvirt."""
    options = f"-machine none -display none -monitor {monitor} -serial none"
    return ["qemu-system-x86_64", "-uuid", uuid, *options.split()]


class Events:
    """What the driver told."""

    def __init__(self) -> None:
        self.seen: list[Lifecycle] = []
        self.lost: list[str] = []

    def of(self, uuid: str) -> list[tuple[Happening, OffReason]]:
        return [(event.happening, event.reason) for event in self.seen if event.uuid == uuid]

    def wait_for(self, uuid: str, happening: Happening) -> OffReason:
        def found() -> list[OffReason]:
            return [reason for seen, reason in self.of(uuid) if seen == happening]

        reason: OffReason = wait(found, f"event {happening} of {uuid}")[-1]
        return reason


class Harness(Protocol):
    """What a hypervisor under test can be made to suffer."""

    driver: Hypervisor
    events: Events
    has_firmware_guest: bool  # guests that cannot be asked to power off

    def kill(self, uuid: str) -> None: ...
    def sigterm(self, uuid: str) -> None: ...
    def sigstop(self, uuid: str) -> None: ...
    def run_outside(self, uuid: str) -> None: ...
    def person_define(self, uuid: str, name: str) -> None: ...
    def person_destroy(self, uuid: str) -> None: ...
    def person_pause(self, uuid: str) -> None: ...
    def person_undefine(self, uuid: str) -> None: ...
    def person_start(self, uuid: str) -> None: ...
    def xml(self, uuid: str, live: bool) -> str: ...
    def set_autostart(self, uuid: str) -> None: ...
    def autostart(self, uuid: str) -> bool: ...
    def make_file(self, path: Path) -> None: ...
    def remove_file(self, path: Path) -> None: ...
    def exists(self, path: Path) -> bool: ...


class FakeHarness:
    has_firmware_guest = False

    def __init__(self) -> None:
        self.fake = FakeHypervisor(files=())
        self.driver: Hypervisor = self.fake
        self.events = Events()
        self.kill = self.fake.kill
        self.sigterm = self.fake.host_sigterm
        self.sigstop = self.fake.freeze
        self.person_define = self.fake.person_define
        self.person_destroy = self.fake.person_destroy
        self.person_pause = self.fake.person_pause
        self.person_undefine = self.fake.person_undefine
        self.person_start = self.fake.person_start

    def run_outside(self, uuid: str) -> None:
        self.fake.person_run(uuid)

    def xml(self, uuid: str, live: bool) -> str:
        """What a person sees; the fake's has no metadata in it."""
        return self.fake.domains[uuid].xml

    def set_autostart(self, uuid: str) -> None:
        self.fake.domains[uuid].autostart = True

    def autostart(self, uuid: str) -> bool:
        return self.fake.domains[uuid].autostart

    def make_file(self, path: Path) -> None:
        assert self.fake.files is not None
        self.fake.files.add(str(path))

    def remove_file(self, path: Path) -> None:
        assert self.fake.files is not None
        self.fake.files.remove(str(path))

    def exists(self, path: Path) -> bool:
        return self.fake.files is not None and str(path) in self.fake.files


class RealHarness:
    """Real qemu under an embedded libvirt; `close` leaves nothing of it running or defined."""

    has_firmware_guest = True

    def __init__(self, root: Path) -> None:
        from agentd.libvirt.driver import LibvirtDriver

        self.root = root
        self.uri = f"qemu:///embed?root={root}"
        self.driver: Hypervisor = LibvirtDriver(self.uri, VirtType.QEMU)
        self.events = Events()
        self._children: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        conn = self._person()
        for domain in conn.listAllDomains():
            with contextlib.suppress(Exception):  # it has just ended
                domain.destroy()
            with contextlib.suppress(Exception):  # a transient one is gone with its process
                domain.undefine()
        wait(lambda: not self._pids(), "the end of all qemu")

    def kill(self, uuid: str) -> None:
        os.kill(self._pid(uuid), signal.SIGKILL)

    def sigterm(self, uuid: str) -> None:
        os.kill(self._pid(uuid), signal.SIGTERM)

    def sigstop(self, uuid: str) -> None:
        os.kill(self._pid(uuid), signal.SIGSTOP)

    def run_outside(self, uuid: str) -> None:
        self._children.append(subprocess.Popen(bare_qemu(uuid), stdin=subprocess.DEVNULL))
        wait(lambda: "-uuid" in _cmdline(self._children[-1].pid), "qemu outside libvirt")

    def person_define(self, uuid: str, name: str) -> None:
        self._person().defineXML(
            f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
            "<os><type>hvm</type></os></domain>"
        )

    def person_destroy(self, uuid: str) -> None:
        self._person().lookupByUUIDString(uuid).destroy()

    def person_pause(self, uuid: str) -> None:
        self._person().lookupByUUIDString(uuid).suspend()

    def person_undefine(self, uuid: str) -> None:
        self._person().lookupByUUIDString(uuid).undefine()

    def person_start(self, uuid: str) -> None:
        self._person().lookupByUUIDString(uuid).create()

    def xml(self, uuid: str, live: bool) -> str:
        """What a person sees, of the process or of the definition."""
        return str(self._person().lookupByUUIDString(uuid).XMLDesc(0 if live else 2))

    def set_autostart(self, uuid: str) -> None:
        self._person().lookupByUUIDString(uuid).setAutostart(1)

    def autostart(self, uuid: str) -> bool:
        return bool(self._person().lookupByUUIDString(uuid).autostart())

    def make_file(self, path: Path) -> None:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def exists(self, path: Path) -> bool:
        return path.exists()

    def _person(self) -> Any:
        from agentd.libvirt.connection import open_connection

        return open_connection(self.uri)

    def _pid(self, uuid: str) -> int:
        return next(process.pid for process in self.driver.inspect(uuid).processes)

    def _pids(self) -> list[int]:
        return [pid for pid in _running() if f"{self.root}/" in _cmdline(pid)]


def _running() -> Iterable[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def real_hypervisor_missing() -> str:
    """Why real qemu cannot be used here; empty if it can."""
    missing = [command for command in ("qemu-system-x86_64", "qemu-img") if shutil.which(command) is None]
    if os.geteuid() != 0:
        return "embedded libvirt needs root"
    if missing:
        return f"commands are missing: {', '.join(missing)}"
    try:
        import agentd.libvirt.driver  # noqa: F401
    except ImportError:
        return "libvirt-python is missing"
    return ""
