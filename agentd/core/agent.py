"""The agent's core: every event passes through `handle`, and nothing else changes its state.

Rules: what must be recorded is saved before it is acted upon or told (`Save` first, the rest after `Saved`); a start is
the exception that needs no record, since the guard judges it by what is saved. When a save fails the turn has not
happened, and heartbeats go on to say so. See `vms` for the VMs, `link` for the session, `inventory` for what the
server says, `planner` and `guard` for the decisions.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import msgspec
from msgspec import Struct

from agentd.core import effects as fx
from agentd.core import guard, inventory, leaving, reporting, status
from agentd.core.budget import RestartPolicy
from agentd.core.commands import Commands
from agentd.core.drain import DrainWatch
from agentd.core.durable import Durable
from agentd.core.facts import VmFacts
from agentd.core.faults import Faults
from agentd.core.link import Link, LinkState, LinkTimes
from agentd.core.migrations import Migrations
from agentd.core.reporting import Outbox
from agentd.core.vms import NEVER, Vms
from wire import messages as m
from wire.text import clean_line, clean_text
from wire.words import FaultCode

SAVE_RETRY_S = 2.0
HYPERVISOR_RETRY_S = 2.0
LOOK_AT_JOBS_S = 1.0  # libvirt does not tell for certain when a migration to here ends


class AgentPolicy(Struct, frozen=True):
    """Settings of the core; seconds. `settle_s`: a drain is not proven earlier than this after libvirt was connected,
    since a start that a dead predecessor ordered may still be under way in it."""

    audit_s: float = 60.0
    settle_s: float = 5.0
    restart: RestartPolicy = RestartPolicy()
    link: LinkTimes = LinkTimes()


class AgentCore:
    """One incarnation of the agent. `now` is CLOCK_BOOTTIME in seconds; `rng` is its only source of chance."""

    def __init__(
        self,
        durable: Durable,
        boot_id: str,
        incarnation: str,
        policy: AgentPolicy,
        rng: random.Random,
        now: float,
    ) -> None:
        self.durable = durable
        self._boot_id, self._policy = boot_id, policy
        self.outbox = Outbox(incarnation)
        self.vms = Vms(boot_id, policy.restart, self.outbox)
        self.link = Link(durable.node, boot_id, incarnation, m.HostFacts(), rng, policy.link)
        self.commands = Commands(durable)
        self.migrations = Migrations()
        self._new_boot = durable.confirmed_boot != boot_id or durable.put_back
        self._as_recovered = self._draft = self._recovered()
        self._waiting: list[fx.Effect] = []
        self._mark = (self.outbox.mark(), self.commands.mark())
        self._reporter = reporting.Reporter()
        self._reports: dict[str, m.VmReport] = {}
        self._ignored: dict[str, str] = {}
        self._drain = DrainWatch(boot_id)
        self._digest = ""
        self._faults = Faults(self.link.hurry_beat)
        self._load = m.Load()
        self._host_known = False
        self._hypervisor_up = False
        self._next_connect = now
        self._scanning = self._scan_again = False
        self._next_scan = NEVER
        self._last_good_scan = self._last_scan = -NEVER
        self._next_check = now
        self._wake = now
        self._server_knows_local_drain = False
        self._pull_clears_local_drain = False
        self._applying = False
        self._must_save = False
        self._undone = False  # what was derived from the draft belongs to a turn that has not happened
        self._unconfirmed = False  # the server has to hear of a result, or of a release that was carried out

    def _recovered(self) -> Durable:
        """What is saved, as it counts in this boot: what ran before it did not end by itself."""
        if not self._new_boot:
            return self.durable
        held = {
            uuid: msgspec.structs.replace(entry, started_serial=-1, ending=False)
            for uuid, entry in self.durable.held.items()
        }
        return msgspec.structs.replace(self.durable, held=held)

    # --- the outside --------------------------------------------------------------------------------------------------

    def may(self, act: fx.Act, facts: VmFacts) -> str | None:
        """The guard, on what is saved in this moment: why not, or None. Safe to call from another thread."""
        return guard.may(act, self.durable, self._boot_id, facts, self.migrations.cancelled)

    def next_deadline(self) -> float:
        """When `Tick` has something to do, in CLOCK_BOOTTIME seconds."""
        connect = NEVER if self._hypervisor_up else self._next_connect
        scan = self._next_scan if self._hypervisor_up and not self._scanning else NEVER
        link = self.link.next_deadline() if self._host_known else NEVER
        report = self.link.report_at() if self._has_looked and self._has_news() else NEVER
        return min(link, report, scan, self._next_check, self._wake, connect)

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]:
        """One event, and what follows from it."""
        if isinstance(event, fx.Saved):
            return self._saved()
        if isinstance(event, fx.SaveFailed):
            return self._save_failed(event, now)
        self._mark = (self.outbox.mark(), self.commands.mark())
        out: list[fx.Effect] = _HANDLERS[type(event)](self, event, now)
        if self._undone or now >= self._wake or not _is_quiet(event):
            out += self._settle(now)
        out += self._look(now)
        out += self._talk(now)
        return self._in_order(out)

    # --- saving -------------------------------------------------------------------------------------------------------

    def _in_order(self, out: list[fx.Effect]) -> list[fx.Effect]:
        if not self._must_save and (self._draft is self.durable or self._draft == self.durable):
            self._draft = self.durable
            self._applying = False
            return out
        self._must_save = False
        free = [e for e in out if _is_free(e)]
        self._waiting = [e for e in out if not _is_free(e)]
        return [fx.Save(self._draft), *free]

    def _saved(self) -> list[fx.Effect]:
        self.durable = self._draft
        self._applying = self._new_boot = False
        self._faults.over(FaultCode.SNAPSHOT_NOT_WRITABLE, None)
        waiting, self._waiting = self._waiting, []
        return waiting

    def _save_failed(self, event: fx.SaveFailed, now: float) -> list[fx.Effect]:
        """The turn has not happened: nothing that depends on it is done, and it is tried again."""
        waiting, self._waiting = self._waiting, []
        self._draft = self._as_recovered if self._new_boot else self.durable
        self.outbox.rollback(self._mark[0])
        self.commands.rollback(self._mark[1])
        dropped = [e for e in waiting if isinstance(e, fx.Act)]
        self.vms.dropped([e for e in dropped if e.action != fx.Action.HAND_OVER])
        self.migrations.dropped(dropped)
        new = self._faults.met(FaultCode.SNAPSHOT_NOT_WRITABLE, event.error, now)
        self._wake, self._undone = now + SAVE_RETRY_S, True
        if any(isinstance(e, fx.Send) and isinstance(e.body, m.Report) for e in waiting):
            self.link.hold_report(now, HYPERVISOR_RETRY_S, self.outbox.not_sent())
        if self._applying:
            self.link.not_applied(now, HYPERVISOR_RETRY_S)
        self._applying = False
        answers = [fx.Answer(e.ask, {"error": event.error}) for e in waiting if isinstance(e, fx.Answer)]
        log = [fx.Log("error", f"snapshot not written: {event.error}")] if new else []
        return [*answers, *log]

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_tick(self, _event: fx.Tick, now: float) -> list[fx.Effect]:
        out: list[fx.Effect] = []
        if not self._hypervisor_up and now >= self._next_connect:
            self._next_connect = NEVER
            out.append(fx.ConnectHypervisor())
        if now >= self._next_check:
            self._next_check = now + self.link.heartbeat_s
            self._must_save = FaultCode.SNAPSHOT_NOT_WRITABLE in self._faults  # or it would last until the next change
            out.append(fx.CheckHost())
        return out

    def _on_received(self, event: fx.Received, now: float) -> list[fx.Effect]:
        body = event.body
        if isinstance(body, m.Welcome):
            if not self.link.welcomed(body):
                return []
            self.outbox.new_session()
            self._server_knows_local_drain = self._pull_clears_local_drain = False
            why = inventory.older(self.durable, body.generation, body.history, body.revision)
            self._judge_server(why, now)
            return self.link.welcome(body, now, bool(why))
        if isinstance(body, m.HeartbeatAck):
            self.link.ack(body, now)
        elif isinstance(body, m.Inventory):
            return self._on_inventory(body, now)
        elif isinstance(body, m.ReportAck):
            self._on_report_ack(body)
        elif isinstance(body, m.Poke) and self.link.poked(body):
            return self.link.ask_again(now) if self.link.pulling else self._pull(now)
        elif isinstance(body, m.Survey) and body.session == self.link.session:
            return [fx.LookForeign(body)]
        elif isinstance(body, m.ErrorBody):
            return self._on_refused(body, event.id, now)
        return []

    def _on_refused(self, body: m.ErrorBody, correlation_id: str, now: float) -> list[fx.Effect]:
        out = self.link.refused(body, correlation_id, now)
        if self.link.report_at() < NEVER:
            self.outbox.not_sent()
        return out

    def _judge_server(self, why: str, now: float) -> None:
        """`why`: it must not be followed; empty: it may."""
        if why:
            self._faults.met(FaultCode.SERVER_BEHIND, f"{why}; nothing of what it says is followed", now)
        else:
            self._faults.over(FaultCode.SERVER_BEHIND, now)

    def _on_disconnected(self, event: fx.Disconnected, now: float) -> list[fx.Effect]:
        return self.link.disconnected(event.why, now)

    def _pull(self, now: float) -> list[fx.Effect]:
        self._pull_clears_local_drain = self._server_knows_local_drain
        same = (self.link.generation, self.link.history) == (self.durable.generation, self.durable.history)
        complete = self.link.state == LinkState.READY and same
        return self.link.pull(self.durable.revision if complete else 0, now)

    def _on_inventory(self, body: m.Inventory, now: float) -> list[fx.Effect]:
        out, pages = self.link.page(body, now)
        if not pages:
            return out
        last, full = pages[-1], self.link.full_pull
        if (last.generation, last.history) != (self.durable.generation, self.durable.history) and not full:
            return self.link.pull(0, now)
        if why := inventory.older(self.durable, last.generation, last.history, last.revision):
            self._judge_server(why, now)
            return self.link.drop(now, why)  # it may not know that it is: hello tells it
        cannot_know = not self._knows_its_journal
        known = self._draft.held.keys()
        self._draft, ignored = inventory.merge(
            self._draft, pages, self._boot_id, self._pull_clears_local_drain, full
        )
        self.vms.sightings.assigned(self._draft.held.keys() - known - self.vms.in_flight.keys(), now)
        commands = tuple(command for page in pages for command in page.commands)
        if cannot_know:
            self.commands.cannot_know(commands)
            commands = ()
        self._draft = self.commands.arrived(commands, self._draft, self.link.asked_at)
        undone = [uuid for uuid, tombstone in self._draft.tombstones.items() if not tombstone.done]
        if any(uuid not in self.vms.facts for uuid in (*self._draft.held, *undone)):
            self._look_soon(now)
        lines = [fx.Log("warning", line) for uuid, line in ignored.items() if uuid not in self._ignored]
        self._ignored = self._still_ignored(pages) | ignored
        self.vms.sightings.forget(self._draft)
        self.link.applied()
        self._applying = True
        return [*out, fx.Log("debug", f"inventory revision {pages[-1].revision}"), *lines]

    @property
    def _knows_its_journal(self) -> bool:
        """Whether what is not in the journal was not begun. Not so with the first inventory of all, after the snapshot
        was lost or put back, and after a boot, over which it may have been put back without a trace."""
        return self.durable.generation > 0 and self.durable.confirmed_boot == self._boot_id

    def _still_ignored(self, pages: list[m.Inventory]) -> dict[str, str]:
        """Those that the server has neither assigned here in a later epoch nor taken back."""
        if self.link.full_pull:
            return {}
        over = self._draft.held.keys() | {release.uuid for page in pages for release in page.releases}
        return {uuid: why for uuid, why in self._ignored.items() if uuid not in over}

    def _look_soon(self, now: float) -> None:
        self._next_scan = min(self._next_scan, now)
        self._scan_again = self._scanning

    def _on_report_ack(self, body: m.ReportAck) -> None:
        if not self.link.report_acked(body):
            return
        sent = self.outbox.acked(body.seq)
        if sent is None:
            return
        self._server_knows_local_drain = self._server_knows_local_drain or sent.local_drain
        self._draft = self.commands.acked(body.seq, self._draft)
        for release in sent.released:
            tombstone = self._draft.tombstones[release.uuid]
            if tombstone.epoch == release.epoch:
                self._draft = self._draft.with_tombstone(
                    release.uuid, msgspec.structs.replace(tombstone, acked=True)
                )

    def _on_scanned(self, event: fx.Scanned, now: float) -> list[fx.Effect]:
        if event.started_at < self._last_scan:
            return []  # one that hung and was given up
        self._last_scan = event.started_at
        again = self.vms.scanned(event.scan, event.started_at, self._draft) or self._scan_again
        self._next_scan = now if again else now + self._policy.audit_s
        self._scanning = self._scan_again = False
        self._faults.returned(fx.Call.SCAN, now)
        if not event.scan.libvirt_ok:
            return self._on_hypervisor_down(fx.HypervisorDown(event.scan.error), now)
        self._last_good_scan = event.started_at
        if FaultCode.LIBVIRT_UNREACHABLE not in self._faults:
            return []
        # Only now: it may be connected, and show nothing, again and again.
        self._faults.over(FaultCode.LIBVIRT_UNREACHABLE, now)
        return [fx.Log("info", f"libvirt answers again: {self.link.host.hypervisor}")]

    def _on_happened(self, event: fx.Happened, now: float) -> list[fx.Effect]:
        if self.vms.happened(event.lifecycle, self._draft, now):
            self._look_soon(now)
        return []

    def _on_acted(self, event: fx.Acted, now: float) -> list[fx.Effect]:
        if event.action == fx.Action.HAND_OVER:
            self._draft = self.migrations.handed(event, self._draft, now)
            return [self._outcome(event)]
        if self.vms.in_flight.get(event.uuid, (0,))[0] != event.token:
            return []  # not the one that was ordered last
        self._draft, look = self.vms.acted(event, self._draft, now)
        if look:
            self._look_soon(now)
        if event.action == fx.Action.REBOOT:
            self.commands.done(event)
        self._faults.returned(event.uuid, now)
        return [self._outcome(event)]

    def _outcome(self, event: fx.Acted) -> fx.Log:
        text = clean_line(f"vm {self._name(event.uuid)}: {event.action}: {event.error or event.refused or 'done'}", 600)
        is_news = bool(event.error or (event.refused and event.action != fx.Action.RESUME))  # it runs already, mostly
        return fx.Log("warning" if is_news else "info", text)

    def _on_progressed(self, event: fx.Progressed, _now: float) -> list[fx.Effect]:
        self._wake = min(self._wake, self.migrations.progressed(event))
        return []

    def _on_surveyed(self, event: fx.Surveyed, _now: float) -> list[fx.Effect]:
        if event.survey.session != self.link.session:
            return []  # who asked is not there any more
        error, nonce = clean_text(event.error, 500), event.survey.nonce
        body = m.Surveyed(session=self.link.session, nonce=nonce, vms=event.vms, more=event.more, error=error)
        return [fx.Send(body)]

    def _on_overdue(self, event: fx.Overdue, now: float) -> list[fx.Effect]:
        text = f"{event.what} has not returned in time"
        if event.call == fx.Call.SCAN:
            self.vms.sightings.lost()
        elif event.uuid in self.vms.in_flight:
            self.vms.sightings.unknown(event.uuid)
        elif event.call != fx.Call.CONNECT:
            return [fx.Log("error", clean_line(text, 300))]
        new = self._faults.overdue(event.uuid or event.call, text, now)
        return [fx.Log("error", f"libvirt: {text}")] if new else []

    def _on_hypervisor_up(self, event: fx.HypervisorUp, now: float) -> list[fx.Effect]:
        self._hypervisor_up, self._scanning, self._next_scan = True, False, now
        self.vms.connected(now + self._policy.settle_s)
        self._faults.returned(fx.Call.CONNECT, now)
        self._faults.returned(fx.Call.SCAN, now)
        version = clean_line(event.version, 200)
        self.link.host = msgspec.structs.replace(self.link.host, hypervisor=version)
        return [] if FaultCode.LIBVIRT_UNREACHABLE in self._faults else [fx.Log("info", f"connected to {version}")]

    def _on_hypervisor_down(self, event: fx.HypervisorDown, now: float) -> list[fx.Effect]:
        self._hypervisor_up, self._next_connect = False, now + HYPERVISOR_RETRY_S
        self._faults.returned(fx.Call.CONNECT, now)
        self.vms.sightings.lost()
        new = self._faults.met(FaultCode.LIBVIRT_UNREACHABLE, event.error, now)
        return [fx.Log("error", clean_line(f"libvirt: {event.error}", 600))] if new else []

    def _on_host_checked(self, event: fx.HostChecked, now: float) -> list[fx.Effect]:
        self._faults.checked(event.faults, now)
        self._load = event.load
        self.link.host = msgspec.structs.replace(event.host, hypervisor=self.link.host.hypervisor)
        self._host_known = True
        return []

    def _on_asked(self, event: fx.Asked, now: float) -> list[fx.Effect]:
        if event.verb == "drain":
            self._draft = msgspec.structs.replace(
                self._draft, local_drain=True, local_drain_graceful_s=event.graceful_s
            )
            self._server_knows_local_drain = self._pull_clears_local_drain = False
            return [fx.Answer(event.ask, {"accepted": True}), fx.Log("warning", "drained on the node by its operator")]
        if event.verb == "status":
            return [fx.Answer(event.ask, self.status(now))]
        if event.verb == "migrate" and event.migration is not None and event.attempt:
            return self._asked_to_migrate(event, event.migration)
        return [fx.Answer(event.ask, {"error": f"unknown request {event.verb!r}"})]

    def _asked_to_migrate(self, event: fx.Asked, order: m.MigrationOrder) -> list[fx.Effect]:
        uuid, held, left = event.uuid, self._draft.held.get(event.uuid), self._draft.left.get(event.uuid)
        attempt = held.attempt if held is not None else None
        if event.attempt in (attempt and attempt.id, left and left.attempt):
            return [fx.Answer(event.ask, {"begun": event.attempt})]
        seen, with_disks = self.vms.facts.get(uuid), order.options.local_disks
        why = leaving.objection(self._draft, uuid, self._boot_id, seen, with_disks)
        if why is not None:
            return [fx.Answer(event.ask, {"refused": why})]
        if uuid in self.vms.in_flight:
            return [fx.Answer(event.ask, {"busy": "something else is being done to it"})]
        self._draft = leaving.begin(self._draft, uuid, leaving.ordered(event.attempt, order))
        text = f"vm {self._name(uuid)}: migrated to {order.address} by the node's operator"
        act = self.vms.order_migration(self._draft, uuid)
        return [act, fx.Answer(event.ask, {"begun": event.attempt}), fx.Log("warning", text)]

    # --- what follows from the state ----------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[fx.Effect]:
        """Everything that must be true after an event that concerns VMs: they are planned, and a drain is judged."""
        self._undone = False
        self._draft = leaving.adopt(self._draft, self.commands.waiting)
        self._draft = self.vms.notice(self._draft)
        self._draft, acts, wake = self.vms.plan_all(self._draft, now)
        self._draft, ordered, wake_commands = self.commands.plan(self._draft, self.vms, self.migrations, now)
        aborts, wake_aborts = self.migrations.aborts(self._draft, self.vms.in_flight, now)
        hand_overs, wake_hand_overs = self.migrations.hand_overs(self._draft, now)
        wake_tell = self.migrations.tell(self._draft, now)
        settles = self.vms.settled_at if now < self.vms.settled_at else NEVER
        self._wake = min(wake, wake_commands, wake_aborts, wake_hand_overs, wake_tell, settles)
        out: list[fx.Effect] = [*acts, *ordered, *aborts, *hand_overs]
        busy = self.vms.busy_until if self._hypervisor_up else NEVER
        look_at = self._drain.judge(self._draft, self.vms.facts, busy, self._last_good_scan, now)
        self._next_scan = min(self._next_scan, look_at, self._look_at_jobs(now))
        blocked = self.vms.blocked_reasons()
        progress = self.migrations.progress
        starting = functools.partial(self.vms.may_be_starting, now=now)
        self._reports = self._reporter.reports(
            self._draft, self.vms.facts, blocked, self._ignored, progress, starting
        )
        self._digest = reporting.digest_of(self._reports, self._drain.proof, self._draft.local_drain)
        released = any(t.done and not t.acked for t in self._draft.tombstones.values())
        self._unconfirmed = released or self.commands.unacked(self._draft)
        return out

    def _look_at_jobs(self, now: float) -> float:
        busy, facts = self.vms.in_flight, self.vms.facts.values()
        jobs = any(seen.domain is not None and seen.domain.job and seen.uuid not in busy for seen in facts)
        return now + LOOK_AT_JOBS_S if jobs else NEVER

    def _look(self, now: float) -> list[fx.Effect]:
        if self._scanning or not self._hypervisor_up or now < self._next_scan:
            return []
        self._scanning, self._next_scan = True, NEVER
        return [fx.Scan()]

    def _talk(self, now: float) -> list[fx.Effect]:
        self.link.newest = self.durable.newest
        out = self.link.tick(now) if self._host_known else []
        if self.link.beat_due(now):
            out += self.link.beat(self._applied, self.outbox.told_digest, self._faults.all(), self._load, now)
        if self.link.pull_due(now) or self._drain_is_undecided():
            out += self._pull(now)
        if self._has_looked and self.link.may_report(now) and self._has_news():
            out += self._report(now)
        return out

    @property
    def _applied(self) -> int:
        """The revision of this server's inventory that is applied; 0: none yet, or what it has given is older."""
        durable, link = self.durable, self.link
        same = (link.generation, link.history) == (durable.generation, durable.history)
        return durable.revision if same and link.state != LinkState.OLDER else 0

    def _drain_is_undecided(self) -> bool:
        """The server knows of the drain on the node, and no inventory was asked for since: the next one decides."""
        known = self._draft.local_drain and self._server_knows_local_drain and not self._pull_clears_local_drain
        return known and self.link.state == LinkState.READY and not self.link.pulling

    def _has_news(self) -> bool:
        return (
            self.link.report_wanted
            or self.outbox.pending(self._digest)
            or self._unconfirmed
        )

    @property
    def _has_looked(self) -> bool:
        """It knows what is on its host. Before that it reports nothing: after a lost snapshot that would read as if
        there were nothing, and the server may wait for just that word."""
        return self._last_good_scan > -NEVER

    def _report(self, now: float) -> list[fx.Effect]:
        done = [(uuid, t) for uuid, t in self._draft.tombstones.items() if t.done and not t.acked]
        released = tuple(
            m.Release(uuid=uuid, epoch=stone.epoch, left_to=stone.left_to)
            for uuid, stone in done[: reporting.MAX_RELEASES_PER_REPORT]
        )
        full, vms, events = self.outbox.compose(
            self._reports, self._digest, self.link.report_wanted, released, self._draft.local_drain
        )
        self.link.report_wanted = False
        self.link.report_sent(self.outbox.seq, now)
        body = m.Report(
            session=self.link.session,
            seq=self.outbox.seq,
            revision=self._draft.revision,
            generation=self._draft.generation,
            digest=self._digest,
            full=full,
            vms=vms,
            released=released,
            results=self.commands.results(self._draft, self.outbox.seq),
            events=events,
            drain=self._drain.proof,
            local_drain=self._draft.local_drain,
        )
        return [fx.Send(reporting.fit(body), self.link.session)]

    # --- small --------------------------------------------------------------------------------------------------------

    def _name(self, uuid: str) -> str:
        held = self._draft.held.get(uuid)
        left = self._draft.left.get(uuid)
        return held.vm.name if held else left.name if left else uuid

    def status(self, now: float) -> dict[str, Any]:
        """What `chime-agent status` shows."""
        seen, proof = self.vms.facts, self._drain.proof
        return status.show(self.durable, self._boot_id, self.link, proof, self._faults.all(), self._reports, seen)


def _is_quiet(event: fx.Event) -> bool:
    """Whether the event changes nothing that VMs are planned by, except time: most events are of this kind."""
    if isinstance(event, fx.Received):
        return isinstance(event.body, m.HeartbeatAck | m.Survey)
    return isinstance(event, fx.Tick | fx.HostChecked | fx.Progressed | fx.Surveyed)


def _is_free(effect: fx.Effect) -> bool:
    """Whether the effect may be done though the turn is not recorded: starts are judged by what is saved, heartbeats
    and pulls claim nothing, the rest only looks."""
    if isinstance(effect, fx.Act):
        return effect.action == fx.Action.START
    if isinstance(effect, fx.Send):
        return isinstance(effect.body, m.Heartbeat | m.Hello | m.Pull | m.Surveyed)
    return isinstance(effect, fx.Scan | fx.LookForeign | fx.ConnectHypervisor | fx.CheckHost | fx.Log | fx.Reconnect)


_HANDLERS: dict[type[fx.Event], Any] = {
    fx.Tick: AgentCore._on_tick,
    fx.Received: AgentCore._on_received,
    fx.Disconnected: AgentCore._on_disconnected,
    fx.Scanned: AgentCore._on_scanned,
    fx.Happened: AgentCore._on_happened,
    fx.Acted: AgentCore._on_acted,
    fx.Progressed: AgentCore._on_progressed,
    fx.Surveyed: AgentCore._on_surveyed,
    fx.Overdue: AgentCore._on_overdue,
    fx.HypervisorUp: AgentCore._on_hypervisor_up,
    fx.HypervisorDown: AgentCore._on_hypervisor_down,
    fx.HostChecked: AgentCore._on_host_checked,
    fx.Asked: AgentCore._on_asked,
}
"""Which method handles which event."""
