"""What agents say: hello, heartbeats, pulls, reports; and what that makes of their nodes.

Rules: a message counts only in the newest session of its node; what a report says of a VM counts only when it comes from
the owner in the present epoch; whoever else has a copy gets a release for it. The heartbeat is the hot path: one that
changes nothing changes no row.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chimed.core import alarms, evidence, inventory, operations
from chimed.core import effects as fx
from chimed.core import rows as r
from chimed.core.context import Context
from chimed.core.liveness import Liveness, Phase
from chimed.core.sessions import Session, Sessions
from wire import PROTOCOL_VERSION
from wire import messages as m
from wire.errors import ChimeError
from wire.types import AdminState, Desired, Health


class Agents:
    """Handles agents' messages. `progress(node)` is called when facts about a node or its VMs have changed."""

    def __init__(
        self, ctx: Context, sessions: Sessions, liveness: Liveness, progress: Callable[[str, float], None]
    ) -> None:
        self._ctx, self._sessions, self._liveness, self._progress = ctx, sessions, liveness, progress
        self._cloned: dict[str, float] = {}
        self._handlers: dict[type[m.Base], Callable[..., m.Base | None]] = {
            m.Hello: self._hello,
            m.Heartbeat: self._heartbeat,
            m.Pull: self._pull,
            m.Report: self._report,
            m.Bye: self._bye,
        }

    def handle(self, node_name: str, event: fx.Received, now: float) -> m.Base | None:
        """The answer to one message of the node whose key spoke. Raises `ChimeError` for a refusal."""
        return self._handlers[type(event.body)](node_name, event, event.body, now)

    # --- session ------------------------------------------------------------------------------------------------------

    def _hello(self, node_name: str, event: fx.Received, body: m.Hello, now: float) -> m.Base:
        if body.node != node_name:
            self._ctx.audit("chimed", "refused", node_name, f"its key was used to speak as {body.node}")
            raise ChimeError("wrong-node", f"this key belongs to node {node_name}, not {body.node}")
        if PROTOCOL_VERSION not in body.versions:
            raise ChimeError("unsupported-version", f"the server speaks version {PROTOCOL_VERSION}")
        self._admit(body, now)
        session = self._sessions.open(body, event.route, self._ctx.token(), now)
        self._note_host(node_name, body, event)
        self._heard(node_name, session, now)
        node = self._node(node_name)
        return m.Welcome(
            version=PROTOCOL_VERSION,
            session=session.id,
            nonce=body.nonce,
            heartbeat_s=self._ctx.policy.heartbeat_s,
            max_frame_bytes=self._ctx.policy.max_frame_bytes,
            generation=self._ctx.tables.meta.generation,
            revision=node.revision,
            server_version=self._ctx.policy.version,
        )

    def _admit(self, body: m.Hello, now: float) -> None:
        policy = self._ctx.policy
        verdict = self._sessions.admission(body, now, policy.heartbeat_s * policy.missed_heartbeats)
        if verdict == "admit":
            return
        old = self._sessions.get(body.node)
        if verdict == "ask" and old is not None:
            self._ctx.emit(fx.Send(old.route, m.Poke(session=old.id, revision=0)))
        if verdict == "cloned":
            self._cloned[body.node] = now
            self.sync_node(body.node, now)
            raise ChimeError(
                "cloned-key", f"another host that is alive uses the key of {body.node}", retry_after_s=policy.heartbeat_s
            )
        raise ChimeError(
            "node-busy",
            f"another host spoke as {body.node} a moment ago; it is being asked whether it is alive",
            retry_after_s=policy.challenge_s,
        )

    def _note_host(self, node_name: str, body: m.Hello, event: fx.Received) -> None:
        """Keeps what the node is, when it differs from what is known; a new boot ends evidence that an agent gave."""
        node, host = self._node(node_name), body.host
        changed = msgspec.structs.replace(
            node,
            boot_id=body.boot_id,
            address=event.address() or node.address,
            vcpus=host.vcpus,
            memory_mib=host.memory_mib,
            kvm=host.kvm,
            agent_version=host.agent_version,
        )
        changed = evidence.after_boot(changed)
        if changed == node:
            return
        if changed.boot_id != node.boot_id:
            self._ctx.audit("agentd", "node-booted", node_name, f"boot id {body.boot_id}")
        self._ctx.tables.nodes.put(changed)

    def _session(self, node_name: str, session_id: str, event: fx.Received, now: float) -> Session:
        session = self._sessions.get(node_name)
        if session is None or session.id != session_id or session.route != event.route:
            raise ChimeError("stale-session", f"not the newest session of {node_name}: say hello again")
        session.heard = now
        return session

    def _bye(self, node_name: str, event: fx.Received, body: m.Bye, now: float) -> None:
        self._session(node_name, body.session, event, now)
        self._ctx.log("info", f"node {node_name}: its agent stops")

    # --- heartbeat ----------------------------------------------------------------------------------------------------

    def _heartbeat(self, node_name: str, event: fx.Received, body: m.Heartbeat, now: float) -> m.Base | None:
        session = self._sessions.get(node_name)
        if session is None or session.id != body.session or session.route != event.route:
            raise ChimeError("stale-session", f"not the newest session of {node_name}: say hello again")
        if body.boot_id != session.boot_id or body.incarnation != session.incarnation or body.seq <= session.seq:
            self._ctx.counters["heartbeats-stale"] += 1
            return None
        session.seq, session.heard, session.revision, session.load = body.seq, now, body.revision, body.load
        if body.faults != session.faults:
            session.faults = body.faults
            self.sync_node(node_name, now)
        if self._liveness.heard(node_name, now):
            self.sync_node(node_name, now)
        node = self._ctx.tables.nodes.get(node_name)
        return m.HeartbeatAck(
            session=body.session,
            nonce=body.nonce,
            revision=node.revision if node else 0,
            report=body.digest != session.digest,
        )

    def _heard(self, node_name: str, session: Session, now: float) -> None:
        session.heard = now
        self._liveness.heard(node_name, now)
        self.sync_node(node_name, now)

    # --- inventory ----------------------------------------------------------------------------------------------------

    def _pull(self, node_name: str, event: fx.Received, body: m.Pull, now: float) -> m.Base:
        session = self._session(node_name, body.session, event, now)
        return inventory.page(self._ctx.tables, node_name, body.since, session.id, body.nonce)

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, node_name: str, event: fx.Received, body: m.Report, now: float) -> m.Base | None:
        session = self._session(node_name, body.session, event, now)
        if self._ctx.read_only and _must_be_recorded(body):
            raise ChimeError("storage-unavailable", f"the server cannot record: {self._ctx.read_only}")
        if body.generation != self._ctx.tables.meta.generation:
            raise ChimeError("stale-session", "the report belongs to another generation: say hello again")
        before = session.reports
        session.reports = {} if body.full else dict(before)
        session.reports.update({report.uuid: report for report in body.vms})
        session.digest, session.reported = body.digest, session.reported or body.full
        self._record_events(node_name, body)
        for release in body.released:
            inventory.confirm_release(self._ctx, node_name, release)
        self._reconcile_vms(node_name, session, before)
        self._note_drain(node_name, session, body)
        if body.full:
            self._recovered(node_name)
        for result in body.results:
            self._ctx.counters["command-results"] += 1
            operations.note_result(self._ctx, node_name, result)
        self.sync_node(node_name, now)
        self._progress(node_name, now)
        return m.ReportAck(session=body.session, seq=body.seq)

    def _record_events(self, node_name: str, body: m.Report) -> None:
        for event in body.events:
            subject = event.uuid or node_name
            source = f"{node_name}/{event.id}"
            self._ctx.audit(f"agentd@{node_name}", event.code, subject, event.text, source)

    def _reconcile_vms(self, node_name: str, session: Session, before: dict[str, m.VmReport]) -> None:
        for uuid in {**before, **session.reports}:
            report = session.reports.get(uuid)
            vm = self._ctx.tables.vms.get(uuid)
            if report is None or vm is None:
                alarms.sync_vm(self._ctx, self._sessions, uuid)
                continue
            if vm.node == node_name:
                self._from_owner(vm, report)
            else:
                self._from_other(vm, node_name, report)
            alarms.sync_vm(self._ctx, self._sessions, uuid)

    def _from_owner(self, vm: r.Vm, report: m.VmReport) -> None:
        if report.epoch > vm.epoch:
            revision = self._ctx.bump(vm.node)
            self._ctx.audit("chimed", "epoch-adopted", vm.uuid, f"{vm.node} holds epoch {report.epoch}")
            vm = msgspec.structs.replace(vm, epoch=report.epoch, revision=revision)
            self._ctx.tables.vms.put(vm)
        if report.halted and report.start_serial == vm.start_serial and vm.desired == Desired.RUNNING:
            self._ctx.audit("guest", "vm-stopped", vm.uuid, "the guest powered itself off")
            revision = self._ctx.bump(vm.node)
            self._ctx.tables.vms.put(msgspec.structs.replace(vm, desired=Desired.STOPPED, revision=revision))

    def _from_other(self, vm: r.Vm, node_name: str, report: m.VmReport) -> None:
        if report.epoch > vm.epoch and self._ctx.tables.meta.waiting_for:
            inventory.adopt(self._ctx, vm, node_name, report.epoch)
        elif report.epoch <= vm.epoch:
            inventory.release(self._ctx, node_name, vm, report.epoch)

    def _note_drain(self, node_name: str, session: Session, body: m.Report) -> None:
        node = self._node(node_name)
        if body.local_drain and node.admin_state != AdminState.DRAINED:
            self._ctx.audit(f"agentd@{node_name}", "node-drained", node_name, "drained on the node by its operator")
            node = evidence.drained(self._ctx, node, 60.0)
        node = evidence.judge(self._ctx, node, session, body.drain)
        self._ctx.tables.nodes.put(node)

    def _recovered(self, node_name: str) -> None:
        meta = self._ctx.tables.meta
        if node_name in meta.waiting_for:
            rest = tuple(name for name in meta.waiting_for if name != node_name)
            self._ctx.tables.meta = msgspec.structs.replace(meta, waiting_for=rest)
            if not rest:
                self._ctx.audit("chimed", "recovered", "server", "all nodes have reported since the restore")

    # --- health -------------------------------------------------------------------------------------------------------

    def sync_node(self, node_name: str, now: float) -> None:
        """Derives health, reasons and alarms of the node from liveness and faults; saves and tells what changed."""
        node = self._ctx.tables.nodes.get(node_name)
        if node is None:
            return
        health, reasons = self.health(node, now)
        if (health, reasons) != (node.health, node.reasons):
            text = f"{node.health} -> {health}" + (f" ({', '.join(reasons)})" if reasons else "")
            self._ctx.audit("chimed", "node-health", node_name, text)
            self._ctx.log("info" if health == Health.NORMAL else "warning", f"node {node_name}: {text}")
            node = msgspec.structs.replace(node, health=health, reasons=reasons)
            self._ctx.tables.nodes.put(node)
            self._progress(node_name, now)
        alarms.sync_node(self._ctx, self._sessions, node, self.is_cloned(node_name, now))

    def is_cloned(self, node_name: str, now: float) -> bool:
        """A second living host used the node's key within the last minute or four heartbeats."""
        since = self._cloned.get(node_name)
        return since is not None and now - since < max(60.0, 4 * self._ctx.policy.heartbeat_s)

    def health(self, node: r.Node, now: float) -> tuple[Health, tuple[str, ...]]:
        """Health and reasons of a node as of now."""
        phase = self._liveness.phase(node.name)
        if phase is None or phase is Phase.GRACE or phase is Phase.ASKING:
            return node.health, node.reasons
        if phase is Phase.SILENT:
            return Health.UNREACHABLE, ()
        if phase is Phase.AGENT_LOST:
            extra = ("ping-unavailable",) if self._liveness.ping_unavailable(node.name) else ()
            return Health.ERROR, ("agent-lost", *extra)
        session = self._sessions.get(node.name)
        codes = sorted({fault.code for fault in session.faults}) if session else []
        return (Health.ERROR, tuple(codes)) if codes else (Health.NORMAL, ())

    def _node(self, name: str) -> r.Node:
        node = self._ctx.tables.nodes.get(name)
        if node is None:
            raise ChimeError("unknown-key", f"node {name} is not registered any more")
        return node


def _must_be_recorded(body: m.Report) -> bool:
    return bool(body.events or body.released or body.results)
