"""The next action for each VM, from what was seen of it. Volatile: all of it is learned again after a death.

Rules: one action at a time for each VM, and no other until it has really returned; a start is counted when it is
ordered, and not if the guard refused it; a migration is decided by what was seen after it returned, if libvirt has
answered for long enough that nothing can be under way in it of which this agent does not know.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from agentd.core import adoption, endings, guard, leaving, planner
from agentd.core.budget import Budget, RestartPolicy
from agentd.core.durable import Durable, Held
from agentd.core.effects import Act, Acted, Action
from agentd.core.facts import HostScan, Lifecycle, OffReason, VmFacts
from agentd.core.planner import Stopping
from agentd.core.reporting import Outbox
from agentd.core.sightings import Sightings
from wire.text import counted
from wire.words import EventCode

NEVER = float("inf")
REFUSED_S = 0.5
RETRY_S = 5.0
RETRY_MAX_S = 60.0
UNDECIDED_S = 0.5
UNDECIDED_MAX_S = 5.0


class Blocked(Struct):
    """The last attempt at `action` failed; no other before `until`. `why` empty: no more than a pause. `key`: epoch and
    start request that it belongs to."""

    action: Action
    until: float
    why: str
    tries: int
    key: tuple[int, int]


class Vms:
    """Sightings, actions under way, budgets. Methods take the durable draft and return it changed where they must."""

    def __init__(self, boot_id: str, policy: RestartPolicy, outbox: Outbox) -> None:
        self.boot_id, self._policy, self._outbox = boot_id, policy, outbox
        self.sightings = Sightings()
        self.in_flight: dict[str, tuple[int, Action]] = {}
        self._budgets: dict[str, Budget] = {}
        self._blocked: dict[str, Blocked] = {}
        self._stopping: dict[str, Stopping] = {}
        self._restarting: dict[str, str] = {}
        self._counted: set[str] = set()
        self._foreign: set[str] = set()
        self._next_token = 1
        self._last_start_ended = -NEVER
        self.settled_at = NEVER

    def connected(self, settled_at: float) -> None:
        """libvirt answers. Before `settled_at` no drain is proven, nothing is undefined and no release is confirmed: a
        start that a dead predecessor ordered, or one that waited in a libvirt that hung, may still be under way there.
        """
        self.settled_at = settled_at

    @property
    def starting(self) -> bool:
        """A start is under way: the one action that makes a process."""
        return any(action == Action.START for _, action in self.in_flight.values())

    @property
    def busy_until(self) -> float:
        """When the last start ended, or will surely have ended; infinite while one is under way."""
        return NEVER if self.starting else max(self._last_start_ended, self.settled_at)

    def may_be_starting(self, uuid: str, now: float) -> bool:
        """Whether a process of the VM may appear though it is off: a start is under way, or one that a dead predecessor
        has ordered may be."""
        return self.in_flight.get(uuid, (0, None))[1] == Action.START or now < self.settled_at

    @property
    def facts(self) -> dict[str, VmFacts]:
        """What is known of each VM now."""
        return self.sightings.facts

    def blocked_reasons(self) -> dict[str, str]:
        """Why VMs whose last attempt failed could not be started or defined."""
        return {uuid: entry.why for uuid, entry in self._blocked.items() if entry.why}

    def scanned(self, scan: HostScan, started_at: float, durable: Durable) -> bool:
        """A look at the whole host. Returns whether another is needed."""
        return self.sightings.scanned(scan, started_at, durable, set(self.in_flight))

    def happened(self, event: Lifecycle, durable: Durable, now: float) -> bool:
        """A lifecycle event. Returns whether a look is needed to understand it."""
        return self.sightings.happened(event, durable, event.uuid in self.in_flight, now)

    # --- ends that nobody asked for -----------------------------------------------------------------------------------

    def notice(self, durable: Durable) -> Durable:
        """Remembers which VMs ran, and tells a guest's own power-off from a crash."""
        return endings.notice(durable, self.sightings, self.in_flight.keys(), self._outbox)

    # --- planning -----------------------------------------------------------------------------------------------------

    def plan_all(self, durable: Durable, now: float) -> tuple[Durable, list[Act], float]:
        """The actions to order now, and when to look again."""
        acts: list[Act] = []
        wake = NEVER
        for uuid in [*durable.held, *(u for u in durable.tombstones if u not in durable.held)]:
            seen = self.facts.get(uuid)
            if uuid in self.in_flight or seen is None:
                continue
            durable, act, at = self._plan_one(durable, seen, now)
            wake = min(wake, at)
            if act is not None:
                acts.append(act)
        return durable, acts, wake

    def _plan_one(self, durable: Durable, seen: VmFacts, now: float) -> tuple[Durable, Act | None, float]:
        uuid = seen.uuid
        step = planner.plan(durable, seen, self.boot_id, self._stopping.get(uuid), now)
        if step.action not in (Action.SHUTDOWN, Action.DESTROY) and step.wake_at is None and seen.libvirt_ok:
            self._stopping.pop(uuid, None)
        self._note_foreign(seen)
        if step.action is None:
            at = NEVER if step.wake_at is None else step.wake_at
            if _is_open(durable, uuid) and now < self.settled_at:
                return durable, None, min(at, self.settled_at)
            return self._settled(durable, seen), None, at
        until = self._pause(durable, uuid, step.action)
        if step.action == Action.UNDEFINE:
            until = max(until, self.settled_at)
        if now < until:
            return durable, None, until
        if step.action in (Action.SHUTDOWN, Action.DESTROY):
            return self._plan_stop(durable, uuid, step, now)
        if step.action == Action.START:
            return self._plan_start(durable, seen, now)
        if step.action == Action.RESUME and guard.resume_refusal(durable, uuid, self.boot_id, seen) is not None:
            return durable, None, NEVER
        return durable, self._order(durable, uuid, step.action), NEVER

    def _pause(self, durable: Durable, uuid: str, action: Action) -> float:
        """Until when the action must wait because it failed."""
        entry = self._blocked.get(uuid)
        if entry is None or entry.action != action:
            return -NEVER
        if entry.key != _key(durable, uuid):
            del self._blocked[uuid]  # an operator asked again: no need to wait
            return -NEVER
        return entry.until

    def _plan_stop(
        self, durable: Durable, uuid: str, step: planner.Plan, now: float
    ) -> tuple[Durable, Act | None, float]:
        """The stop is recorded as ours, so that later it is not taken for the guest's doing."""
        held = durable.held.get(uuid)
        if held is not None and not (held.ending and not held.started):
            durable = durable.with_held(msgspec.structs.replace(held, started_serial=-1, ending=True))
        if step.action == Action.SHUTDOWN:
            before = self._stopping.get(uuid)
            self._stopping[uuid] = Stopping(before.since if before else now, now)
        blocked = self._blocked.get(uuid)
        if held is None and (blocked is None or blocked.action != Action.DESTROY):
            self._outbox.add(EventCode.VM_REMOVED, uuid, f"its process here is ended: {step.why}")
        return durable, self._order(durable, uuid, step.action or Action.DESTROY), NEVER

    def _plan_start(self, durable: Durable, seen: VmFacts, now: float) -> tuple[Durable, Act | None, float]:
        held = durable.held[seen.uuid]
        if guard.refusal(durable, seen.uuid, self.boot_id, seen) is not None:
            return durable, None, NEVER
        budget = self._budget(durable, held)
        budget.forget_old(now, self._policy)
        again = held.started or budget.tried
        if again and budget.spent(self._policy):
            return self._fail(durable, held), None, NEVER
        if again and now < budget.next_at(self._policy):
            return durable, None, budget.next_at(self._policy)
        budget.tried = True
        if again:
            budget.restarts.append(now)
            self._counted.add(seen.uuid)
        if held.started:
            why = seen.domain.reason if seen.domain else OffReason.UNKNOWN
            self._restarting[seen.uuid] = f"it ended by itself ({why}) and was started again"
        return durable, self._order(durable, seen.uuid, Action.START), NEVER

    def _budget(self, durable: Durable, held: Held) -> Budget:
        uuid = held.vm.uuid
        budget, key = self._budgets.get(uuid), _key(durable, uuid)
        if budget is None or budget.key != key:
            budget = self._budgets[uuid] = Budget(key)
        return budget

    def _fail(self, durable: Durable, held: Held) -> Durable:
        times = counted(self._policy.limit, "time")
        text = f"restarted {times} within {self._policy.window_s:g} s; start it to try again"
        blocked = self._blocked.get(held.vm.uuid)
        if blocked is not None and blocked.why:
            text = f"{text}; last: {blocked.why}"
        self._outbox.add(EventCode.VM_FAILED, held.vm.uuid, text)
        failed = msgspec.structs.replace(held, failed_serial=held.vm.start_serial, detail=text[:500])
        del self._budgets[held.vm.uuid]
        return durable.with_held(failed)

    def _settled(self, durable: Durable, seen: VmFacts) -> Durable:
        """Nothing is left to do: if that is a release, it can be confirmed."""
        tombstone, domain = durable.tombstones.get(seen.uuid), seen.domain
        if tombstone is None or tombstone.done or not seen.libvirt_ok:
            return durable
        mine = domain is not None and (domain.active or not seen.processes)
        newer = mine and domain is not None and (domain.epoch or 0) > tombstone.epoch
        kept = tombstone.keep and seen.uuid not in durable.held
        gone = newer or (domain is None and (kept or not seen.processes))
        if not gone:
            return durable
        return durable.with_tombstone(seen.uuid, msgspec.structs.replace(tombstone, done=True))

    def _note_foreign(self, seen: VmFacts) -> None:
        pids = planner.foreign_pids(seen) if seen.libvirt_ok else ""
        if pids and seen.uuid not in self._foreign:
            self._foreign.add(seen.uuid)
            text = f"qemu runs it outside libvirt (pid {pids}): not started"
            self._outbox.add(EventCode.VM_FOREIGN_PROCESS, seen.uuid, text)
        elif not pids and seen.libvirt_ok:
            self._foreign.discard(seen.uuid)

    # --- orders and outcomes ------------------------------------------------------------------------------------------

    def order_reboot(self, durable: Durable, uuid: str, force: bool) -> Act:
        """Orders the reboot of a VM that has no action under way."""
        act = self._order(durable, uuid, Action.REBOOT)
        return msgspec.structs.replace(act, force=force)

    def order_migration(self, durable: Durable, uuid: str) -> Act:
        """Orders the migration of a VM whose attempt is recorded and that has no action under way."""
        return self._order(durable, uuid, Action.MIGRATE)

    def _order(self, durable: Durable, uuid: str, action: Action) -> Act:
        token = self._next_token
        self._next_token += 1
        self.in_flight[uuid] = (token, action)
        self.sightings.ordered(uuid, action)
        held = durable.held.get(uuid)
        vm = held.vm if held else None
        if vm is not None and held is not None and held.defined and vm.create_disks:
            vm = msgspec.structs.replace(vm, create_disks=False)
        stone = durable.tombstones.get(uuid)
        epoch = stone.epoch if stone is not None and action == Action.GIVE_BACK else 0
        attempt = held.attempt if held is not None and action in (Action.MIGRATE, Action.SETTLE) else None
        return Act(uuid, action, token, vm, attempt=attempt, epoch=epoch)

    def dropped(self, acts: list[Act]) -> None:
        """These orders were not given: what they depended on could not be recorded."""
        for act in acts:
            if self.in_flight.get(act.uuid, (0,))[0] == act.token:
                del self.in_flight[act.uuid]
                if act.action == Action.SHUTDOWN:
                    self._stopping.pop(act.uuid, None)  # the guest was not asked: its time has not begun

    def acted(self, event: Acted, durable: Durable, now: float) -> tuple[Durable, bool]:
        """An action returned. The second part: a look at the host is needed."""
        del self.in_flight[event.uuid]
        if event.action == Action.START:
            self._last_start_ended = now
        look = self.sightings.acted(event, now)
        why = self._restarting.pop(event.uuid, "")
        if event.action in (Action.MIGRATE, Action.SETTLE):
            durable = self._migrated(event, durable, now)
        elif event.refused:
            self._refused(event, durable, now)
        elif event.error:
            self._failed(event, durable, now)
        else:
            durable = self._succeeded(event, durable, why)
        self._counted.discard(event.uuid)
        return durable, look

    def _migrated(self, event: Acted, durable: Durable, now: float) -> Durable:
        """What was seen decides; while it does not, libvirt is asked again."""
        uuid, held = event.uuid, durable.held.get(event.uuid)
        if held is None or not held.leaving:
            return durable
        seen = event.facts if now >= self.settled_at else VmFacts(uuid, False)
        decided = leaving.decide(durable, seen, event.error or event.refused)
        after = decided.held.get(uuid)
        if after is not None and after.leaving:
            self._block_undecided(event, decided, now)
            return decided
        self._blocked.pop(uuid, None)
        if after is None:
            target = decided.left[uuid].target or "another node"
            self._outbox.add(EventCode.VM_LEFT, uuid, f"it was migrated to {target}")
        else:
            assert after.attempt is not None
            self._outbox.add(EventCode.VM_MIGRATION_FAILED, uuid, after.attempt.detail)
        return decided

    def _block_undecided(self, event: Acted, durable: Durable, now: float) -> None:
        entry = self._blocked.get(event.uuid)
        tries = entry.tries + 1 if entry is not None and entry.action == Action.SETTLE else 1
        until = now + min(UNDECIDED_S * 2 ** min(tries - 1, 10), UNDECIDED_MAX_S)
        key = _key(durable, event.uuid)
        self._blocked[event.uuid] = Blocked(Action.SETTLE, max(until, self.settled_at), "", tries, key)

    def _succeeded(self, event: Acted, durable: Durable, why: str) -> Durable:
        entry, held = self._blocked.get(event.uuid), durable.held.get(event.uuid)
        if entry is not None and event.action in (entry.action, Action.START):
            del self._blocked[event.uuid]
        if event.action == Action.GIVE_BACK:
            return _given_back(durable, event)
        if event.action != Action.START or held is None:
            return durable
        if why:
            self._outbox.add(EventCode.VM_RESTARTED, event.uuid, why)
        changed = msgspec.structs.replace(
            held, started_serial=held.vm.start_serial, ending=False, restarts=held.restarts + (1 if why else 0)
        )
        return durable.with_held(changed)

    def _refused(self, event: Acted, durable: Durable, now: float) -> None:
        """The guard said no: nothing was tried, so nothing is counted."""
        self._uncount(event.uuid)
        entry = self._blocked.get(event.uuid)
        tries = entry.tries + 1 if entry is not None and not entry.why else 1
        self._block(event, durable, "", now + min(REFUSED_S * 2 ** min(tries - 1, 10), RETRY_S), tries)

    def _uncount(self, uuid: str) -> None:
        budget = self._budgets.get(uuid)
        if uuid in self._counted and budget is not None and budget.restarts:
            budget.restarts.pop()

    def _failed(self, event: Acted, durable: Durable, now: float) -> None:
        entry = self._blocked.get(event.uuid)
        tries = entry.tries + 1 if entry is not None and entry.action == event.action else 1
        tells = event.action in (Action.START, Action.DEFINE) or (event.action == Action.ADOPT and event.invalid)
        if tells and (entry is None or entry.why != event.error):
            self._outbox.add(EventCode.VM_START_FAILED, event.uuid, event.error)
        pause = float(min(RETRY_S * 2 ** min(tries - 1, 10), RETRY_MAX_S))
        if event.action == Action.START and event.invalid:
            self._uncount(event.uuid)  # it never ran: this is not a crash loop
        elif event.action == Action.START:
            pause = 0.0  # the restart budget sets the pace
        self._block(event, durable, event.error if tells else "", now + pause, tries)

    def _block(self, event: Acted, durable: Durable, why: str, until: float, tries: int) -> None:
        self._blocked[event.uuid] = Blocked(event.action, until, why, tries, _key(durable, event.uuid))


def _given_back(durable: Durable, event: Acted) -> Durable:
    """The mark of a VM was taken off: its release is carried out, if it is still that one."""
    tombstone = durable.tombstones.get(event.uuid)
    if tombstone is None or tombstone.done or not tombstone.keep or not adoption.is_given_back(event.facts):
        return durable
    return durable.with_tombstone(event.uuid, msgspec.structs.replace(tombstone, done=True))


def _is_open(durable: Durable, uuid: str) -> bool:
    """A release of the VM was not carried out yet."""
    tombstone = durable.tombstones.get(uuid)
    return tombstone is not None and not tombstone.done


def _key(durable: Durable, uuid: str) -> tuple[int, int]:
    held = durable.held.get(uuid)
    return (held.vm.epoch, held.vm.start_serial) if held else (0, 0)
