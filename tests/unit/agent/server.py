"""A small but legal server for tests of the agent: it speaks the messages of the protocol for one node, keeps what it
recorded, and never changes its mind about an epoch."""

from __future__ import annotations

import msgspec

from wire import messages as m
from wire.types import EPOCHS_PER_GENERATION, AdminState, Desired, OnGuestShutdown
from wire.words import Problem

VM_1 = "00000000-0000-4000-8000-000000000001"
VM_2 = "00000000-0000-4000-8000-000000000002"
VM_3 = "00000000-0000-4000-8000-000000000003"


def assignment(uuid: str = VM_1, **changes: object) -> m.Assignment:
    """An assignment that should run."""
    spec = m.VmSpec(vcpus=1, memory_mib=64)
    vm = m.Assignment(
        uuid=uuid,
        name=f"vm-{uuid[-2:]}",
        epoch=1,
        revision=1,
        desired=Desired.RUNNING,
        start_serial=1,
        graceful_s=60.0,
        spec=spec,
    )
    return msgspec.structs.replace(vm, **changes)


class Server:
    """The server's picture of one node."""

    def __init__(self) -> None:
        self.generation = 1
        self.history, self.life = "h1", "l1"
        self.revision = 0
        self.order = m.NodeOrder(admin_state=AdminState.ENABLED, drain_serial=0)
        self.vms: dict[str, m.Assignment] = {}
        self.releases: dict[str, tuple[int, m.Release]] = {}
        self.commands: dict[str, tuple[int, m.Command]] = {}
        self.session = ""
        self.reports: dict[str, m.VmReport] = {}
        self.digest = ""
        self.events: dict[str, m.AgentEvent] = {}
        self.results: dict[str, m.CommandResult] = {}
        self.results_seen: list[m.CommandResult] = []
        self.confirmed: list[m.Release] = []
        self.proof: m.DrainProof | None = None
        self.local_drain = False
        self.faults: tuple[str, ...] = ()
        self.surveyed: list[m.Surveyed] = []
        self.heartbeat_s = 15.0
        self.page_size = 100
        self.refusals: dict[type[m.Base], list[m.ErrorBody]] = {}
        self.deaf = False
        self._sessions = 0
        self._seq: dict[type[m.Base], int] = {}

    # --- the operator's side ------------------------------------------------------------------------------

    def recover(self, above: int = 0) -> None:
        """It was restored, or has found out that it was behind, and everybody has reported."""
        self.generation = max(self.generation, above) + 1
        self.history = f"h{self.generation}"

    def hold(self, hold: bool) -> None:
        """It was restored, and waits for others; or a person has to confirm a drain."""
        self.revision += 1
        self.order = msgspec.structs.replace(self.order, hold=hold)

    def assign(self, vm: m.Assignment) -> None:
        self.revision += 1
        self.vms[vm.uuid] = msgspec.structs.replace(vm, revision=self.revision)

    def change(self, uuid: str, **changes: object) -> None:
        self.assign(msgspec.structs.replace(self.vms[uuid], **changes))

    def begin(self, uuid: str) -> None:
        """An operator starts it."""
        self.change(uuid, desired=Desired.RUNNING, start_serial=self.vms[uuid].start_serial + 1)

    def on_guest_shutdown(self, uuid: str, policy: OnGuestShutdown) -> None:
        self.change(uuid, spec=msgspec.structs.replace(self.vms[uuid].spec, on_guest_shutdown=policy))

    def release(self, uuid: str, epoch: int, keep: bool = False) -> None:
        self.revision += 1
        if uuid in self.vms and self.vms[uuid].epoch <= epoch:
            del self.vms[uuid]
        self.releases[uuid] = (self.revision, m.Release(uuid=uuid, epoch=epoch, keep=keep))

    def drain(self, graceful_s: float = 60.0) -> None:
        self.revision += 1
        serial = self.order.drain_serial + 1
        self.order = m.NodeOrder(admin_state=AdminState.DRAINED, drain_serial=serial, drain_graceful_s=graceful_s)

    def enable(self) -> None:
        self.revision += 1
        self.order = msgspec.structs.replace(self.order, admin_state=AdminState.ENABLED)

    def command(self, command_id: str, uuid: str = VM_1, **changes: object) -> None:
        self.revision += 1
        command = m.Command(id=command_id, kind="reboot", uuid=uuid, epoch=1, deadline_s=30.0)
        self.commands[command_id] = (self.revision, msgspec.structs.replace(command, **changes))

    # --- the wire -----------------------------------------------------------------------------------------

    def receive(self, body: m.Base) -> list[m.Base]:
        """The answers to one message."""
        if self.deaf:
            return []
        if self.refusals.get(type(body)):
            return [self.refusals[type(body)].pop(0)]
        if isinstance(body, m.Hello):
            return [self._welcome(body)]
        if body.session != self.session:  # type: ignore[attr-defined]
            return [m.ErrorBody(code="stale-session", message="say hello again", retriable=True)]
        if isinstance(body, m.Heartbeat | m.Report) and body.revision > self.revision:
            return [m.ErrorBody(code="stale-session", message="that revision was not given", retriable=True)]
        if isinstance(body, m.Heartbeat):
            return self._heartbeat(body)
        if isinstance(body, m.Pull):
            return [self.page(body)]
        if isinstance(body, m.Surveyed):
            self.surveyed.append(body)
        return self._report(body) if isinstance(body, m.Report) else []

    def _welcome(self, body: m.Hello) -> m.Base:
        self._sessions += 1
        self.session, self.digest, self.reports, self._seq = f"s{self._sessions}", "", {}, {}
        return m.Welcome(
            version=1,
            session=self.session,
            nonce=body.nonce,
            heartbeat_s=self.heartbeat_s,
            max_frame_bytes=1 << 20,
            generation=self.generation,
            history=self.history,
            revision=self.revision,
        )

    def seal(self, revision: int) -> str:
        """Of the point where that inventory stands; opaque to the agent."""
        return f"seal of {self.generation} {self.history} {self.life} {revision}"

    def _grows(self, kind: type[m.Base], seq: int) -> bool:
        if seq <= self._seq.get(kind, 0):
            return False
        self._seq[kind] = seq
        return True

    def _heartbeat(self, body: m.Heartbeat) -> list[m.Base]:
        if not self._grows(m.Heartbeat, body.seq):
            return []
        self.faults = tuple(fault.code for fault in body.faults)
        wants = body.digest != self.digest
        return [m.HeartbeatAck(session=self.session, nonce=body.nonce, revision=self.revision, report=wants)]

    def page(self, body: m.Pull) -> m.Inventory:
        parts: list[tuple[int, m.Base]] = [(vm.revision, vm) for vm in self.vms.values()]
        parts += list(self.releases.values()) + list(self.commands.values())
        parts = sorted((part for part in parts if part[0] > body.since), key=lambda part: part[0])
        taken, more = parts[: self.page_size], len(parts) > self.page_size
        bodies = [part for _, part in taken]
        revision = taken[-1][0] if more else self.revision
        return m.Inventory(
            session=self.session,
            nonce=body.nonce,
            generation=self.generation,
            history=self.history,
            life=self.life,
            seal=self.seal(revision),
            node=self.order,
            revision=revision,
            more=more,
            vms=tuple(part for part in bodies if isinstance(part, m.Assignment)),
            releases=tuple(part for part in bodies if isinstance(part, m.Release)),
            commands=tuple(part for part in bodies if isinstance(part, m.Command)),
        )

    def _raise_ignored(self, report: m.VmReport) -> None:
        """After a restore: what the node does not follow is given in an epoch of this generation."""
        vm, undone = self.vms.get(report.uuid), (self.generation - 1) * EPOCHS_PER_GENERATION
        if vm is not None and report.problem == Problem.STALE_EPOCH and vm.epoch <= undone:
            self.change(report.uuid, epoch=undone + 1)

    def _report(self, body: m.Report) -> list[m.Base]:
        if not self._grows(m.Report, body.seq):
            return []
        self.reports = {} if body.full else dict(self.reports)
        self.reports.update({report.uuid: report for report in body.vms})
        self.digest, self.proof = body.digest, body.drain
        for report in body.vms:
            self._raise_ignored(report)
        self.local_drain = body.local_drain
        if body.local_drain and self.order.admin_state != AdminState.DRAINED:
            self.drain()
        self.events.update({event.id: event for event in body.events})
        for release in body.released:
            known = self.releases.get(release.uuid)
            if known is not None and known[1].epoch <= release.epoch:
                del self.releases[release.uuid]
                self.confirmed.append(release)
        for result in body.results:
            self.results_seen.append(result)
            self.results.setdefault(result.id, result)
            assert self.results[result.id] == result, "the outcome of a command changed"
            self.commands.pop(result.id, None)
        return [m.ReportAck(session=self.session, seq=body.seq)]
