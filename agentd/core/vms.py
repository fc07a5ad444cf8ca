"""What the agent sees of its VMs now, and the next action for each. Volatile: all of it is learned again after a death.

Rules: one action at a time for each VM, and no other until it has really returned; a start is counted when it is ordered.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from agentd.core import guard, planner
from agentd.core.budget import Budget, RestartPolicy
from agentd.core.durable import Durable, Held, Tombstone
from agentd.core.effects import Act, Acted, Action
from agentd.core.facts import Domain, DomainState, Happening, HostScan, Lifecycle, OffReason, VmFacts
from agentd.core.reporting import Outbox
from wire.types import OnGuestShutdown

NEVER = float("inf")
RETRY_S = 5.0
RETRY_MAX_S = 60.0


class Stopping(Struct):
    """A graceful stop under way (times in CLOCK_BOOTTIME seconds)."""

    since: float
    last_asked: float


class Blocked(Struct):
    """The last attempt failed; no other before `until`. `why` empty: no more than a pause."""

    until: float
    why: str
    tries: int
    serial: int


class Vms:
    """Facts, actions under way, budgets. Methods take the durable draft and return it changed where they change it."""

    def __init__(self, boot_id: str, policy: RestartPolicy, outbox: Outbox) -> None:
        self._boot_id, self._policy, self._outbox = boot_id, policy, outbox
        self.facts: dict[str, VmFacts] = {}
        self.in_flight: dict[str, tuple[int, Action]] = {}
        self._budgets: dict[str, Budget] = {}
        self._blocked: dict[str, Blocked] = {}
        self._stopping: dict[str, Stopping] = {}
        self._host_signal: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        self._next_token = 1
        self.last_act_ended = float("-inf")

    def blocked_reasons(self) -> dict[str, str]:
        """Why VMs whose last attempt failed could not be started or defined."""
        return {uuid: entry.why for uuid, entry in self._blocked.items() if entry.why}

    # --- facts --------------------------------------------------------------------------------------------------------

    def scanned(self, scan: HostScan, durable: Durable) -> None:
        """A look at the whole host. VMs with an action under way keep what the action will tell."""
        domains = {domain.uuid: domain for domain in scan.domains}
        known = durable.held.keys() | durable.tombstones.keys() | domains.keys() | {p.uuid for p in scan.processes}
        facts = {}
        for uuid in known:
            processes = tuple(p for p in scan.processes if p.uuid == uuid)
            domain = domains.get(uuid)
            if domain is None and not processes and uuid not in durable.held and not _undone(durable, uuid):
                continue
            facts[uuid] = VmFacts(uuid, scan.libvirt_ok, domain if scan.libvirt_ok else None, processes)
        for uuid in self.in_flight:
            if uuid in self.facts:
                facts[uuid] = self.facts[uuid]
        self.facts = facts

    def lost(self) -> None:
        """libvirt does not answer: nothing is known but the processes."""
        self.facts = {uuid: VmFacts(uuid, False, None, seen.processes) for uuid, seen in self.facts.items()}

    def unknown(self, uuid: str) -> None:
        """An action on the VM does not return."""
        seen = self.facts.get(uuid)
        self.facts[uuid] = VmFacts(uuid, False, None, seen.processes if seen else ())

    def happened(self, event: Lifecycle) -> bool:
        """A lifecycle event changed the facts. Returns whether a scan is needed to understand it."""
        uuid, happening = event.uuid, event.happening
        if happening == Happening.HOST_SHUTDOWN:
            self._host_signal.add(uuid)
        if uuid in self.in_flight:
            return False
        seen = self.facts.get(uuid)
        domain = seen.domain if seen and seen.libvirt_ok else None
        if domain is None or happening in (Happening.DEFINED, Happening.STARTED):
            return True
        changed = _after(domain, event)
        processes = () if changed is None or not changed.active else seen.processes if seen else ()
        self.facts[uuid] = VmFacts(uuid, True, changed, processes)
        return False

    # --- ends that nobody asked for -----------------------------------------------------------------------------------

    def notice(self, durable: Durable) -> Durable:
        """Remembers which VMs ran, and tells a guest's own power-off from a crash."""
        for uuid, held in durable.held.items():
            seen = self.facts.get(uuid)
            domain = seen.domain if seen and seen.libvirt_ok else None
            if domain is not None and domain.epoch == held.vm.epoch and not held.defined:
                held = msgspec.structs.replace(held, defined=True)
                durable = durable.with_held(held)
            if domain is None or uuid in self.in_flight or not planner.should_run(durable, held):
                continue
            if domain.active and not held.started:
                durable = durable.with_held(msgspec.structs.replace(held, started_serial=held.vm.start_serial))
            elif not domain.active and held.started and self._by_guest(held, domain):
                self._outbox.add("vm-halted", uuid, "its guest powered itself off; it stays off")
                durable = durable.with_held(msgspec.structs.replace(held, halted_serial=held.vm.start_serial))
        return durable

    def _by_guest(self, held: Held, domain: Domain) -> bool:
        stays_off = held.vm.spec.on_guest_shutdown == OnGuestShutdown.STOP
        return stays_off and domain.reason == OffReason.SHUTDOWN and held.vm.uuid not in self._host_signal

    # --- planning -----------------------------------------------------------------------------------------------------

    def plan_all(self, durable: Durable, now: float) -> tuple[Durable, list[Act], float]:
        """The actions to order now, and when to look again."""
        acts: list[Act] = []
        wake = NEVER
        for uuid in self._concerned(durable):
            if uuid in self.in_flight or (seen := self.facts.get(uuid)) is None:
                continue
            if self._pausing(durable, uuid, now):
                wake = min(wake, self._blocked[uuid].until)
                continue
            durable, act, at = self._plan_one(durable, seen, now)
            wake = min(wake, at)
            if act is not None:
                acts.append(act)
        return durable, acts, wake

    def _concerned(self, durable: Durable) -> list[str]:
        return [*durable.held, *(u for u in durable.tombstones if u not in durable.held and u in self.facts)]

    def _pausing(self, durable: Durable, uuid: str, now: float) -> bool:
        entry, held = self._blocked.get(uuid), durable.held.get(uuid)
        if entry is None:
            return False
        if held is not None and held.vm.start_serial != entry.serial:
            del self._blocked[uuid]  # an operator asked again: no need to wait
            return False
        return now < entry.until

    def _plan_one(self, durable: Durable, seen: VmFacts, now: float) -> tuple[Durable, Act | None, float]:
        uuid = seen.uuid
        stopping = self._stopping.get(uuid)
        since, last_asked = (stopping.since, stopping.last_asked) if stopping else (None, None)
        step = planner.plan(durable, seen, since, last_asked, now)
        if step.action in (Action.SHUTDOWN, Action.DESTROY):
            return self._plan_stop(durable, uuid, step, now)
        if step.wake_at is not None:
            return durable, None, step.wake_at
        self._stopping.pop(uuid, None)
        if step.action == Action.START:
            return self._plan_start(durable, seen, now)
        if step.action is None:
            self._note_foreign(seen)
            return self._settled(durable, seen), None, NEVER
        return durable, self._order(durable, uuid, step.action), NEVER

    def _plan_stop(
        self, durable: Durable, uuid: str, step: planner.Plan, now: float
    ) -> tuple[Durable, Act | None, float]:
        """The stop is recorded as ours, so that later it is not taken for the guest's doing."""
        held = durable.held.get(uuid)
        if held is not None and held.started:
            durable = durable.with_held(msgspec.structs.replace(held, started_serial=-1))
        if step.action == Action.SHUTDOWN:
            stopping = self._stopping.get(uuid)
            self._stopping[uuid] = Stopping(stopping.since if stopping else now, now)
        if held is None and step.action is not None:
            self._outbox.add("vm-removed", uuid, f"its process here is ended: {step.why}")
        return durable, self._order(durable, uuid, step.action or Action.DESTROY), NEVER

    def _plan_start(self, durable: Durable, seen: VmFacts, now: float) -> tuple[Durable, Act | None, float]:
        held = durable.held[seen.uuid]
        if guard.refusal(durable, seen.uuid, self._boot_id, seen) is not None:
            self._note_foreign(seen)
            return durable, None, NEVER
        budget = self._budget(held)
        budget.forget_old(now, self._policy)
        again = held.started or budget.tried
        if again and budget.spent(self._policy):
            return self._fail(durable, held), None, NEVER
        if again and now < budget.next_at(self._policy):
            return durable, None, budget.next_at(self._policy)
        budget.tried = True
        if again:
            budget.restarts.append(now)
        if held.started:
            why = seen.domain.reason if seen.domain else OffReason.UNKNOWN
            self._outbox.add("vm-restarted", seen.uuid, f"it ended by itself ({why}) and is started again")
            durable = durable.with_held(msgspec.structs.replace(held, restarts=held.restarts + 1))
        return durable, self._order(durable, seen.uuid, Action.START), NEVER

    def _budget(self, held: Held) -> Budget:
        budget = self._budgets.get(held.vm.uuid)
        if budget is None or budget.serial != held.vm.start_serial:
            budget = self._budgets[held.vm.uuid] = Budget(held.vm.start_serial)
        return budget

    def _fail(self, durable: Durable, held: Held) -> Durable:
        text = f"restarted {self._policy.limit} times within {self._policy.window_s:g} s; start it to try again"
        self._outbox.add("vm-failed", held.vm.uuid, text)
        failed = msgspec.structs.replace(held, failed_serial=held.vm.start_serial, detail=text)
        return durable.with_held(failed)

    def _settled(self, durable: Durable, seen: VmFacts) -> Durable:
        """Nothing is left to do: if that is a release, it can be confirmed."""
        tombstone = durable.tombstones.get(seen.uuid)
        if tombstone is None or tombstone.done or not seen.libvirt_ok:
            return durable
        if seen.uuid in durable.held:
            gone = seen.domain is not None and (seen.domain.epoch or 0) > tombstone.epoch
        else:
            gone = seen.domain is None and not seen.processes
        if not gone:
            return durable
        return durable.with_tombstone(seen.uuid, Tombstone(epoch=tombstone.epoch, done=True))

    def _note_foreign(self, seen: VmFacts) -> None:
        outside = bool(seen.processes) and seen.libvirt_ok and (seen.domain is None or not seen.domain.active)
        key = (seen.uuid, "foreign")
        if outside and key not in self._warned:
            self._warned.add(key)
            pids = ", ".join(str(process.pid) for process in seen.processes)
            self._outbox.add("vm-foreign-process", seen.uuid, f"qemu runs it outside libvirt (pid {pids}): not started")
        if not outside:
            self._warned.discard(key)

    def order_reboot(self, durable: Durable, uuid: str, force: bool) -> Act:
        """Orders the reboot of a VM that has no action under way."""
        act = self._order(durable, uuid, Action.REBOOT)
        return msgspec.structs.replace(act, force=force)

    def _order(self, durable: Durable, uuid: str, action: Action) -> Act:
        token = self._next_token
        self._next_token += 1
        self.in_flight[uuid] = (token, action)
        held = durable.held.get(uuid)
        vm = held.vm if held else None
        if vm is not None and held is not None and held.defined and vm.create_disks:
            vm = msgspec.structs.replace(vm, create_disks=False)
        return Act(uuid, action, token, vm)

    def dropped(self, acts: list[Act]) -> None:
        """These orders were not given: what they depended on could not be recorded."""
        for act in acts:
            if self.in_flight.get(act.uuid, (0,))[0] == act.token:
                del self.in_flight[act.uuid]

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def acted(self, event: Acted, durable: Durable, now: float) -> bool:
        """An action returned. False: it is not the one that was ordered last."""
        if self.in_flight.get(event.uuid, (0,))[0] != event.token:
            return False
        del self.in_flight[event.uuid]
        self.last_act_ended = now
        self.facts[event.uuid] = event.facts
        if event.action == Action.START:
            self._host_signal.discard(event.uuid)
        if event.refused:
            self._block(event.uuid, durable, now, "", RETRY_S)
        elif event.error:
            self._act_failed(event, durable, now)
        else:
            self._blocked.pop(event.uuid, None)
        return True

    def _act_failed(self, event: Acted, durable: Durable, now: float) -> None:
        entry = self._blocked.get(event.uuid)
        tries = entry.tries + 1 if entry else 1
        tells = event.action in (Action.START, Action.DEFINE)
        if tells and (entry is None or entry.why != event.error):
            self._outbox.add("vm-start-failed", event.uuid, event.error)
        if event.action == Action.START and not event.invalid:
            self._block(event.uuid, durable, now, event.error, 0.0, tries)  # the restart budget sets the pace
            return
        if event.action == Action.START:
            budget = self._budgets.get(event.uuid)
            if budget and budget.restarts:
                budget.restarts.pop()  # it never ran: this is not a crash loop
        pause = min(RETRY_S * 2 ** min(tries - 1, 10), RETRY_MAX_S)
        self._block(event.uuid, durable, now, event.error if tells else "", float(pause), tries)

    def _block(self, uuid: str, durable: Durable, now: float, why: str, pause_s: float, tries: int = 1) -> None:
        held = durable.held.get(uuid)
        self._blocked[uuid] = Blocked(now + pause_s, why, tries, held.vm.start_serial if held else 0)

    def forget(self, durable: Durable) -> None:
        """Drops what is known of VMs that are not here any more."""
        for known in (self._budgets, self._blocked, self._stopping):
            for uuid in [u for u in known if u not in durable.held and u not in durable.tombstones]:
                del known[uuid]


def _undone(durable: Durable, uuid: str) -> bool:
    tombstone = durable.tombstones.get(uuid)
    return tombstone is not None and not tombstone.done


_HAPPENING_STATE: dict[Happening, DomainState] = {
    Happening.PAUSED: DomainState.PAUSED,
    Happening.PAUSED_IO_ERROR: DomainState.PAUSED,
    Happening.RESUMED: DomainState.RUNNING,
    Happening.STOPPED: DomainState.OFF,
}


def _after(domain: Domain, event: Lifecycle) -> Domain | None:
    """The domain after the event; None if it is gone."""
    if event.happening == Happening.UNDEFINED:
        return msgspec.structs.replace(domain, persistent=False) if domain.active else None
    state = _HAPPENING_STATE.get(event.happening)
    if state is None:
        return domain
    if state == DomainState.OFF and not domain.persistent:
        return None
    io_error = event.happening == Happening.PAUSED_IO_ERROR
    return msgspec.structs.replace(domain, state=state, reason=event.reason, io_error=io_error)
