"""What a test asks of a running Chime, and how it waits for the truth, whatever its hosts are made of.

The truth is the process table (`Operator.processes`), never what Chime says. Waiting is for conditions, with generous
deadlines: this is a busy machine.
"""

from __future__ import annotations

import abc
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import HostError, Qemu, Watch, wait_until
from wire import keys
from wire import messages as m
from wire.client import Client, new_key
from wire.errors import ChimeError
from wire.types import Desired, VirtType

DEADLINE_S = 60.0
TINY_MIB = 32
"""Memory of a VM without disk and kernel: its firmware runs, finds nothing to boot, and waits."""

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


def tiny(**values: Any) -> m.VmSpec:
    """A VM that starts in a moment and does nothing."""
    return m.VmSpec(vcpus=1, memory_mib=TINY_MIB, virt_type=VirtType.QEMU, **values)


class Operator(abc.ABC):
    """A person with the operator key. A subclass makes the hosts, and says where processes and logs are."""

    operator_key: Path
    watch: Watch
    _client: Client | None = None

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

    def forget_client(self) -> None:
        """The next request makes a new connection, with the key that is there then."""
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

    def raised(self, subject: str) -> set[str]:
        """Codes of the alarms about a node or VM."""
        return {alarm["code"] for alarm in self.alarms() if alarm["subject"] == subject}

    def actions(self, subject: str | None = None) -> list[str]:
        """The audit trail of a subject: its actions, oldest first."""
        return [row["action"] for row in self.ask(m.EventList(subject=subject, limit=1000))["items"]]

    # The truth

    @abc.abstractmethod
    def processes(self) -> dict[str, list[Qemu]]:
        """UUID -> live qemu processes."""

    @abc.abstractmethod
    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""

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

    # Cleaning up

    def clean_slate(self, names: Iterable[str]) -> None:
        """All nodes normal and enabled, no VM left, for the next test. And nothing was ever run twice."""
        self.wait_nodes(*names)
        for name in names:
            if self.node(name)["admin_state"] != "enabled":
                self.do(m.NodeEnable, name=name)
        for vm in self.vms().values():
            if vm["desired"] != Desired.DELETED:
                self.do(m.VmDelete, vm=vm["uuid"], wait=False)
        self.wait(lambda: not self.vms(), "all VMs are deleted")
        self.wait(lambda: not self.processes(), "no process is left")
        violations, self.watch.violations[:] = list(self.watch.violations), []
        assert violations == [], "a VM had two runnable processes at once"


@functools.cache
def _numbers() -> Iterator[int]:
    return itertools.count(1)


def unique(prefix: str) -> str:
    """A name that no other VM of this run has."""
    return f"{prefix}-{next(_numbers())}"
