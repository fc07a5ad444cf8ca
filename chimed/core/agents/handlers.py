"""What agents say: hello, heartbeats, pulls, reports; and what that makes of their nodes.

Rules: a message counts only in the newest session of its node; what a report says of a VM counts only when it comes
from the owner in the present epoch (`copies` says what the others' copies mean). The heartbeat is the hot path: one
that changes nothing changes no row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec

from chimed.core.agents import copies
from chimed.core.agents.health import NodeHealth
from chimed.core.agents.overuse import Overuse
from chimed.core.agents.surveys import Surveys
from chimed.core.rules import alarms, behind, evidence, ownership, recovery
from chimed.core.rules.known import Facts
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.sessions import Session
from chimed.core.work import operations
from wire import PROTOCOL_VERSION
from wire import messages as m
from wire.errors import ChimeError
from wire.text import counted
from wire.types import AdminState
from wire.words import AlarmCode

LOCAL_DRAIN_GRACEFUL_S = 60.0
HELLO_AGAIN_S = 0.2  # when the session ended for a reason of the server's own


class Agents:
    """Handles agents' messages. `progress(node, now)` is called when facts about a node or its VMs have changed,
    `progress_op(id)` when an operation should look again."""

    def __init__(
        self,
        facts: Facts,
        health: NodeHealth,
        surveys: Surveys,
        overuse: Overuse,
        progress: Callable[[str, float], None],
        progress_op: Callable[[str], None],
    ) -> None:
        self._facts, self._health, self._surveys, self._overuse = facts, health, surveys, overuse
        self._ctx, self._sessions, self._liveness = facts.ctx, facts.sessions, facts.liveness
        self._progress, self._progress_op = progress, progress_op
        self._handlers: dict[type[m.Base], Callable[..., m.Base | None]] = {
            m.Hello: self._hello,
            m.Heartbeat: self.heartbeat,
            m.Pull: self._pull,
            m.Report: self._report,
            m.Surveyed: self._surveyed,
            m.Bye: self._bye,
        }

    def handle(self, node_name: str, event: fx.Received, now: float) -> m.Base | None:
        """The answer to one message of the node whose key spoke. Raises `ChimeError` for a refusal."""
        tables, kind = self._ctx.tables, type(event.body)
        if kind is m.Hello or kind is m.Report:  # what changes most
            self._overuse.check_change(node_name, now)
        was_behind, before = tables.meta.behind, tables.pending
        answer = self._handlers[kind](node_name, event, event.body, now)
        self._overuse.changed(node_name, tables.pending - before, now)
        if tables.meta.behind and not was_behind:
            self._greet_anew(but=node_name)
        if kind is m.Hello and self.recovers():
            text = "the server begins a recovery: say hello again"
            raise ChimeError("stale-session", text, retry_after_s=HELLO_AGAIN_S)
        return answer

    def _greet_anew(self, but: str) -> None:
        """The database is behind: what was said to it before is of no account, and who is there says hello again."""
        for node in self._ctx.tables.nodes:
            if node.name != but:
                self._sessions.drop(node.name)

    # --- session ------------------------------------------------------------------------------------------------------

    def _hello(self, node_name: str, event: fx.Received, body: m.Hello, now: float) -> m.Base:
        if body.node != node_name:
            text = f"the key of node {node_name} is used to speak as {body.node}; that is refused"
            self._health.suspect(node_name, AlarmCode.WRONG_NODE, text, now)
            raise ChimeError("wrong-node", f"this key belongs to node {node_name}, not {body.node}")
        if PROTOCOL_VERSION not in body.versions:
            raise ChimeError(
                "unsupported-version", f"the server speaks version {PROTOCOL_VERSION}", versions=[PROTOCOL_VERSION]
            )
        self._admit(body, now)
        self._note_newest(node_name, body, now)
        session = self._sessions.open(body, event.route, self._ctx.token(), now)
        self._surveys.interrupted(node_name)
        self._note_fresh(session, body)
        self._note_host(node_name, body, event)
        self._liveness.heard(node_name, now)
        self._health.sync([node_name], now)
        return m.Welcome(
            version=PROTOCOL_VERSION,
            session=session.id,
            nonce=body.nonce,
            heartbeat_s=self._ctx.policy.heartbeat_s,
            max_frame_bytes=self._ctx.policy.max_frame_bytes,
            generation=self._ctx.tables.meta.generation,
            history=self._ctx.tables.meta.history,
            revision=self._node(node_name).revision,
            server_version=self._ctx.policy.version,
        )

    def _note_newest(self, node_name: str, body: m.Hello, now: float) -> None:
        """What the agent was given last: it may be more than this database knows."""
        point = body.newest
        if point is None:
            return
        if not behind.is_sealed(self._ctx, node_name, point):
            text = f"node {node_name} shows an inventory that no server with this key has given it"
            self._health.suspect(node_name, AlarmCode.FALSE_WORD, text, now)
            return
        newer = behind.newer(self._ctx, self._node(node_name), point)
        if newer:
            behind.noted(self._ctx, point.generation, newer)

    def _note_fresh(self, session: Session, body: m.Hello) -> None:
        """An agent that goes on in the same boot with what it was given starts nothing that it did not have. One that
        begins anew starts what the database says, and waits until everybody was met who may know better."""
        node, point, meta = self._node(session.node), body.newest, self._ctx.tables.meta
        begins_anew = point is None or body.boot_id != node.boot_id
        changed = recovery.hello(node, begins_anew)
        goes_on = point is not None and (point.generation, point.history) == (meta.generation, meta.history)
        if (begins_anew or not goes_on) and self._others_may_know_better():
            changed = msgspec.structs.replace(changed, fresh=True)
        session.unrecorded = changed != node and bool(self._ctx.read_only)
        if changed != node and not session.unrecorded:
            self._ctx.tables.nodes.put(changed)

    def _record_fresh(self, session: Session) -> None:
        """Before it is given anything: what could not be recorded when it said hello."""
        node = self._node(session.node)
        waits = node.restored or self._others_may_know_better()
        if session.unrecorded and waits and not node.fresh:
            self._ctx.tables.nodes.put(msgspec.structs.replace(node, fresh=True))

    def _others_may_know_better(self) -> bool:
        return self._ctx.tables.meta.holding or not self._facts.has_met_all()

    def met_all(self) -> None:
        """Who waited for that goes on."""
        fresh = self._ctx.tables.nodes.by("fresh", True)
        if fresh and self._facts.has_met_all():
            for node in fresh:
                if recovery.is_looked_through(self._facts, node):
                    self._settle_fresh(node)

    def _settle_fresh(self, node: r.Node) -> None:
        if node.restored:
            copies.hold_what_is_off(self._facts, node)
        node = self._node(node.name)
        self._ctx.tables.nodes.put(msgspec.structs.replace(node, fresh=False, restored=False))
        self._ctx.bump(node.name)

    def recovers(self) -> bool:
        """Begins a recovery if the database is behind and every node is heard. May be asked at any time: one that was
        not heard for a while needs no hello to be heard again."""
        if not recovery.may_begin(self._facts):
            return False
        self.begin_recovery("every node is heard")
        return True

    def begin_recovery(self, why: str) -> None:
        """Sessions end, so that every agent says hello to the new generation."""
        recovery.begin(self._ctx, why)
        for node in list(self._ctx.tables.nodes):
            self._sessions.drop(node.name)

    def _admit(self, body: m.Hello, now: float) -> None:
        policy = self._ctx.policy
        verdict = self._sessions.admission(body, now, policy.heartbeat_s * policy.missed_heartbeats)
        if verdict == "admit":
            return
        old = self._sessions.get(body.node)
        if verdict == "ask" and old is not None:
            self._ctx.emit(fx.Send(old.route, m.Poke(session=old.id, revision=self._node(body.node).revision)))
        if verdict == "cloned":
            text = f"a second host that is alive uses the key of node {body.node}; it is refused"
            self._health.suspect(body.node, AlarmCode.NODE_KEY_CLONED, text, now)
            raise ChimeError(
                "cloned-key",
                f"another host that is alive uses the key of {body.node}",
                retry_after_s=policy.heartbeat_s,
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
            networks=host.networks,
            business_interface=host.business_interface,
        )
        changed = evidence.after_boot(self._ctx, changed)
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
        """The session ends; the node is not judged before its heartbeats are missed."""
        self._session(node_name, body.session, event, now)
        self._sessions.drop(node_name)
        self._ctx.log("info", f"node {node_name}: its agent stops")

    def _surveyed(self, node_name: str, event: fx.Received, body: m.Surveyed, now: float) -> None:
        """What a person asked of the node."""
        self._session(node_name, body.session, event, now)
        self._surveys.answered(node_name, body)

    # --- heartbeat ----------------------------------------------------------------------------------------------------

    def heartbeat(self, node: r.Node, event: fx.Received, body: m.Heartbeat, now: float) -> m.HeartbeatAck | None:
        """A sign of life; its faults are the node's. None for one that is repeated or late."""
        session = self._sessions.get(node.name)
        if session is None or session.id != body.session or session.route != event.route:
            raise ChimeError("stale-session", f"not the newest session of {node.name}: say hello again")
        if body.seq <= session.seq or body.boot_id != session.boot_id or body.incarnation != session.incarnation:
            self._ctx.counters["heartbeats-stale"] += 1
            return None
        if body.revision > node.given:
            raise ChimeError("stale-session", "that revision was not given by this database: say hello again")
        changed = body.faults != session.faults or session.seq == 0
        session.seq, session.heard, session.revision, session.load = body.seq, now, body.revision, body.load
        if changed and self._overuse.may_change(node.name, now):  # else its next heartbeat tells it again
            session.faults = body.faults
        if self._liveness.heard(node.name, now) or changed:
            before, self._ctx.of_node = self._ctx.tables.pending, True
            self._health.sync([node.name], now)
            self._overuse.changed(node.name, self._ctx.tables.pending - before, now)
            node = self._node(node.name)
        return m.HeartbeatAck(
            session=body.session,
            nonce=body.nonce,
            revision=node.revision,
            report=session.full_wanted or body.digest != session.digest,
        )

    def ack_again(self, node_name: str, event: fx.Received, body: m.Heartbeat) -> m.HeartbeatAck | None:
        """The answer to a heartbeat that was heard in a turn that could not be saved."""
        session, node = self._sessions.get(node_name), self._ctx.tables.nodes.get(node_name)
        if session is None or node is None or session.id != body.session or session.route != event.route:
            return None
        return m.HeartbeatAck(session=body.session, nonce=body.nonce, revision=node.revision)

    # --- inventory ----------------------------------------------------------------------------------------------------

    def _pull(self, node_name: str, event: fx.Received, body: m.Pull, now: float) -> m.Base:
        session = self._session(node_name, body.session, event, now)
        self._record_fresh(session)
        page = ownership.page(self._ctx, node_name, body.since, session.id, body.nonce, now)
        behind.given(self._ctx, node_name, page.revision)
        return page

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, node_name: str, event: fx.Received, body: m.Report, now: float) -> m.Base | None:
        session = self._session(node_name, body.session, event, now)
        if body.seq <= session.report_seq:
            self._ctx.counters["reports-stale"] += 1
            return None
        if body.generation != self._ctx.tables.meta.generation:
            raise ChimeError("stale-session", "the report belongs to another generation: say hello again")
        if body.revision > self._node(node_name).given:
            raise ChimeError("stale-session", "that revision was not given by this database: say hello again")
        self._check_size(session, body)
        first = body.full and not session.reported
        changed = self._sessions.note(session, body.vms, body.full)
        session.report_seq, session.digest = body.seq, body.digest
        session.reported = session.reported or body.full
        session.full_wanted = session.full_wanted and not body.full
        self._record_events(node_name, body, now)
        for release in body.released:
            self._progress_op(ownership.confirm_release(self._ctx, node_name, release))
        copies.reconcile(self._facts, session, changed | set(session.reports) if body.full else changed)
        self._note_drain(node_name, session, body)
        recovery.settle_node(self._facts, self._node(node_name))
        if body.full:
            self._note_full(node_name, session, body, first)
        for result in body.results:
            self._ctx.counters["command-results"] += 1
            operations.note_result(self._ctx, node_name, result)
        self._health.sync([node_name], now)
        self._progress(node_name, now)
        return m.ReportAck(session=body.session, seq=body.seq)

    def settle_rest(self, now: float) -> None:
        """Goes on with a report that named too many VMs of others for one turn."""
        if not self._sessions.unsettled():
            return
        before, self._ctx.of_node = self._ctx.tables.pending, True
        node_name = copies.settle_rest(self._facts)
        self._progress(node_name, now)
        self._overuse.changed(node_name, self._ctx.tables.pending - before, now)
        self._ctx.of_node = False

    def _check_size(self, session: Session, body: m.Report) -> None:
        """What the server keeps of a session is bounded, whatever its reports add up to."""
        policy = self._ctx.policy
        vms = len(body.vms) + (0 if body.full else len(session.reports))
        if vms > policy.reported_vms:
            hint = "raise reported_vms of chimed" if body.full else "send a full report"
            limit = counted(policy.reported_vms, "VM")
            raise ChimeError("invalid", f"{session.node} reports more than {limit}: {hint}")
        if self._sessions.kept(session, body.vms, body.full) > policy.reported_mib << 20:
            raise ChimeError("invalid", f"{session.node} reports more than {policy.reported_mib} MiB: shorten texts")

    def _record_events(self, node_name: str, body: m.Report, now: float) -> None:
        for event in self._overuse.events(node_name, body.events, now):
            subject = event.uuid or node_name
            source = f"{node_name}/{event.id}"
            self._ctx.audit(f"agentd@{node_name}", event.code, subject, event.text, source)

    def _note_drain(self, node_name: str, session: Session, body: m.Report) -> None:
        node = self._node(node_name)
        if body.local_drain and node.admin_state != AdminState.DRAINED:
            self._ctx.audit(f"agentd@{node_name}", "node-drained", node_name, "drained on the node by its operator")
            node = evidence.drained(self._ctx, node, LOCAL_DRAIN_GRACEFUL_S)
        self._ctx.tables.nodes.put(evidence.judge(self._ctx, node, session, body.drain))

    def _note_full(self, node_name: str, session: Session, body: m.Report, first: bool) -> None:
        """What only a full report tells: which alarms about VMs are over, that a restored node is known, and which
        assignments it does not follow."""
        if first:
            self._ctx.meeting.met(node_name)
            copies.come_home(self._facts, node_name)
            all_heard = functools.cache(alarms.all_are_heard)
            for alarm in self._ctx.tables.alarms.by("cleared", None):
                if alarm.code in alarms.VM_CODES:
                    alarms.sync_vm(self._facts, alarm.subject, all_heard)
        if recovery.no_longer_waits_for(self._ctx, [node_name]):
            self.recovered()
        meta = self._ctx.tables.meta
        if meta.generation > 1 and not meta.holding:
            copies.raise_ignored(self._ctx, session, body.revision)

    def recovered(self) -> None:
        """The recovery after a restore is over: what was said means what it says now. Every agent is asked for a full
        report with its next heartbeat."""
        for node in list(self._ctx.tables.nodes):
            session = self._sessions.get(node.name)
            if session is not None:
                copies.reconcile(self._facts, session, session.reports)
                session.full_wanted = True
        recovery.sync_alarm(self._ctx)

    def _node(self, name: str) -> r.Node:
        node = self._ctx.tables.nodes.get(name)
        assert node is not None  # it was found by the key that speaks
        return node
