"""`chime-agent` without the agent: directly on libvirt and the snapshot.

Rules: the agent's lock is held, so that no agent starts meanwhile; the drain is recorded before the first VM is
stopped, so that a later agent keeps the node drained; only VMs of Chime are touched; done is what libvirt and the
process table say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import msgspec

from agentd import snapshot
from agentd.boot import boot_id
from agentd.config import Config
from agentd.core import adoption, status
from agentd.core.durable import Durable
from agentd.core.facts import HostScan, VmFacts
from agentd.hypervisor import Hypervisor, HypervisorError
from wire import keys
from wire.errors import ChimeError
from wire.words import FaultCode

POLL_S = 0.3
ASK_AGAIN_S = 10.0


def connect(config: Config) -> Hypervisor:
    """The node's libvirt. Raises `ChimeError` (unreachable)."""
    from agentd.libvirt.driver import configured

    driver = configured(config)
    try:
        driver.connect(lambda _event: None, lambda _why: None)
    except HypervisorError as error:
        raise ChimeError("unreachable", f"libvirt at {config.libvirt_uri}: {error}") from None
    return driver


class Offline:
    """The node as the snapshot and libvirt show it. Keeps agents out until it is closed: use as a context manager."""

    def __init__(self, config: Config) -> None:
        self._config = config
        node = keys.load(config.key_file, keys.Kind.NODE).name
        self._snapshot = snapshot.of(config, node)
        self._snapshot.lock("chime-agent")
        try:
            self.durable, why = self._snapshot.load()
            if why and not self.durable.put_back:
                raise ChimeError("internal", f"{why}; stop the VMs with virsh, and see to it that agentd does not run")
            self.hypervisor = connect(config)
            self.connected_at = time.monotonic()
            self.settle_s = config.settle_s
        except BaseException:
            self._snapshot.unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets an agent start again."""
        self.hypervisor.close()
        self._snapshot.unlock()

    def reconnect(self) -> None:
        """After the connection to libvirt was lost. Raises HypervisorError."""
        self.hypervisor.connect(lambda _event: None, lambda _why: None)
        self.connected_at = time.monotonic()

    def record(self, durable: Durable) -> None:
        """On disk when this returns. Raises SnapshotError: nothing that depends on it may be done."""
        self._snapshot.save(durable)
        self.durable = durable

    def status(self) -> dict[str, Any]:
        """Like the agent's own status, as far as it can be told without it."""
        scan = self._scan()
        seen = {uuid: _seen(uuid, scan) for uuid in self.durable.held}
        return {
            "node": self.durable.node,
            "session": "",
            **status.state(self.durable, boot_id()),
            "admin_state": self.durable.order.admin_state.value,
            "local_drain": self.durable.local_drain,
            "faults": [] if scan.libvirt_ok else [_libvirt_fault(scan.error)],
            "vms": [self._vm(uuid, scan) for uuid in sorted(_managed(self.durable, scan))],
            **status.migrations(self.durable, boot_id(), {}, seen),
        }

    def _vm(self, uuid: str, scan: HostScan) -> dict[str, Any]:
        held = self.durable.held.get(uuid)
        domain = next((d for d in scan.domains if d.uuid == uuid), None)
        alive = uuid in _alive(self.durable, scan)
        state = domain.state.value if domain is not None and domain.active else "running" if alive else "stopped"
        return {
            "name": held.vm.name if held else domain.name if domain else "",
            "uuid": uuid,
            "epoch": held.vm.epoch if held else (domain.epoch or 0) if domain else 0,
            "observed": state if scan.libvirt_ok else "unknown",
            "restarts": held.restarts if held else 0,
            "detail": "" if held else "not owned by this node",
        }

    def drain(self, graceful_s: float, timeout_s: float, say: Callable[[str], None]) -> list[str]:
        """Stops all VMs of Chime here; returns the UUIDs of those that still run at the time-out."""
        drained = msgspec.structs.replace(
            self.durable, local_drain=True, local_drain_graceful_s=graceful_s, held=_not_started(self.durable)
        )
        self.record(drained)
        began, asked = time.monotonic(), -ASK_AGAIN_S
        while True:
            scan = self._scan()
            if not scan.libvirt_ok:
                raise ChimeError("unreachable", f"libvirt: {scan.error}; the drain is recorded, VMs may still run")
            left = _alive(self.durable, scan)
            waited = time.monotonic() - began
            if waited >= timeout_s or (not left and waited >= self._config.settle_s):
                return sorted(left)  # earlier, a start that a dead agent ordered may still be under way in libvirt
            if waited >= graceful_s:
                self._each(left, self.hypervisor.destroy, say)
            elif waited >= asked + ASK_AGAIN_S:
                asked = waited
                self._each(left, self.hypervisor.shutdown, say)
            time.sleep(POLL_S)

    def _each(self, uuids: set[str], call: Callable[[str], None], say: Callable[[str], None]) -> None:
        for uuid in sorted(uuids):
            try:
                call(uuid)
            except HypervisorError as error:
                say(f"{uuid}: {error}")

    def _scan(self) -> HostScan:
        return self.hypervisor.scan()


def _not_started(durable: Durable) -> dict[str, Any]:
    """The stop is ours: it must not be taken for the guests' own power-off later."""
    return {uuid: msgspec.structs.replace(held, started_serial=-1, ending=True) for uuid, held in durable.held.items()}


def _seen(uuid: str, scan: HostScan) -> VmFacts:
    domain = next((d for d in scan.domains if d.uuid == uuid), None)
    return VmFacts(uuid, scan.libvirt_ok, domain, tuple(p for p in scan.processes if p.uuid == uuid))


def _managed(durable: Durable, scan: HostScan) -> set[str]:
    marked = {domain.uuid for domain in scan.domains if adoption.is_marked(durable, domain)}
    return marked | durable.held.keys() | {u for u, t in durable.tombstones.items() if not t.done and not t.keep}


def _alive(durable: Durable, scan: HostScan) -> set[str]:
    running = {d.uuid for d in scan.domains if d.active} | {p.uuid for p in scan.processes}
    removed = durable.tombstones.keys() - adoption.given_back(durable)
    return running & (_managed(durable, scan) | removed)


def _libvirt_fault(error: str) -> dict[str, str]:
    return {"code": FaultCode.LIBVIRT_UNREACHABLE, "severity": "critical", "text": error}
