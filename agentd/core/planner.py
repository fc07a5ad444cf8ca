"""Desired x observed -> the next action for one VM. Pure: a table in words.

    given back, our mark still there take it off
    leaving, undecided               settle; its definition that stayed behind: undefine
    released, process alive          destroy
    released, domain defined         undefine
    released, nothing left           (confirm: the agent marks the tombstone done)
    imported, no mark yet            adopt (put our mark on it), and nothing else before that
    ours, should not run, alive      shutdown, after the graceful time destroy
    ours, a paused copy that came    resume, if it is the one that the VM came by; else destroy
    ours, paused as it did not leave resume, once
    ours, not defined or old         define (once the server has confirmed the inventory in this boot)
    ours, held back                  nothing: neither started, stopped nor defined (`held_back`)
    ours, should run, off            start (if the guard has no objection; budget and back-off apply)
    ours, its domain is newer        nothing but a stop: the server has to learn of the higher epoch first
    not ours, not released           nothing: it may be an arrival or someone else's. A release speaks of no newer
                                     epoch, and one that was carried out of no copy that came since

"Should run" is desired = running, node not drained, guest not halted, budget not spent.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from agentd.core import adoption, leaving
from agentd.core.durable import DECLINED, Durable, Held, Tombstone
from agentd.core.effects import Action
from agentd.core.facts import Domain, DomainState, VmFacts
from wire.types import Desired, MigrationPhase, Observed
from wire.words import Problem


class Plan(Struct, frozen=True):
    """`action` None: nothing to do. `wake_at`: look again (CLOCK_BOOTTIME seconds)."""

    action: Action | None = None
    why: str = ""
    wake_at: float | None = None


SHUTDOWN_REPEAT_S = 10.0


def should_run(durable: Durable, held: Held) -> bool:
    """Whether the VM should run on this node now."""
    ended = held.halted or held.failed or held.moved
    return held.vm.desired == Desired.RUNNING and not durable.drained and not ended


def held_back(durable: Durable, held: Held) -> str:
    """Why the VM is left as it is, running or not, whatever its assignment says; empty: it is not. What a person drains
    on the node itself is stopped all the same."""
    if durable.local_drain:
        return ""
    if durable.put_back:
        return "this node's state is older than what this boot has seen"
    if durable.order.hold or held.vm.hold:
        return "the server was restored: what it wants of the VM is not certain"
    if held.declined:
        return DECLINED
    return "" if held.named else "the newest inventory of the server does not name it"


def is_released(tombstone: Tombstone | None, held: Held | None) -> bool:
    """Whether this node must not have the VM at all."""
    return tombstone is not None and (held is None or held.vm.epoch <= tombstone.epoch)


def is_leftover(domain: Domain, tombstone: Tombstone | None) -> bool:
    """Whether the domain is one that the release speaks of, though the VM was assigned here again since."""
    if tombstone is None or tombstone.done or tombstone.keep:
        return False
    return (domain.epoch or 0) <= tombstone.epoch


def speaks_of(tombstone: Tombstone, domain: Domain | None) -> bool:
    """Whether a release of a VM that is not owned here means this domain."""
    if domain is None or domain.epoch is None:
        return True
    return domain.epoch <= tombstone.epoch and not (tombstone.done and domain.attempt)


class Stopping(NamedTuple):
    """A graceful stop under way: when it began, and when the guest was last asked (CLOCK_BOOTTIME seconds)."""

    since: float
    last_asked: float


def plan(durable: Durable, facts: VmFacts, boot_id: str, stopping: Stopping | None, now: float) -> Plan:
    """The next step for the VM that `facts` are about."""
    held, tombstone = durable.held.get(facts.uuid), durable.tombstones.get(facts.uuid)
    if not facts.libvirt_ok:
        return Plan(why="libvirt does not answer")
    if tombstone is not None and is_released(tombstone, held):
        if not speaks_of(tombstone, facts.domain):
            return Plan()
        if tombstone.keep:
            return Plan(adoption.give_back(tombstone, facts.domain), "it is given back")
        return _remove(facts.domain)
    if held is None:
        return Plan()
    if adoption.is_due(held, facts.domain):
        action = adoption.next_action(facts.domain) if durable.confirmed_boot == boot_id else None
        return Plan(action, "it is imported")
    if held.leaving:
        if leaving.leaves_definition(facts):
            return Plan(Action.UNDEFINE, "it has left, and its definition stayed behind")
        return Plan(Action.SETTLE, "its migration is undecided")
    if facts.domain is not None and facts.domain.active:
        return _alive(durable, held, facts.domain, stopping, boot_id, now)
    if why := held_back(durable, held):
        return Plan(why=why)
    if held.vm.desired == Desired.DELETED or _is_newer(facts.domain, held):
        return Plan()
    wanted = should_run(durable, held)
    makers = wanted and facts.domain is not None and facts.domain.adopted  # it lacks Chime's power actions
    if makers or _must_define(facts.domain, held):
        action = Action.DEFINE if makers else adoption.renewal(facts.domain)
        return Plan(action, "definition missing or old") if durable.confirmed_boot == boot_id else Plan()
    return Plan(Action.START, "should run") if wanted else Plan()


def _alive(
    durable: Durable, held: Held, domain: Domain, stopping: Stopping | None, boot_id: str, now: float
) -> Plan:
    if is_leftover(domain, durable.tombstones.get(domain.uuid)):
        return Plan(Action.DESTROY, "a process of an epoch that this node released")
    if why := held_back(durable, held):
        return Plan(why=why)
    if domain.attempt and domain.job:
        return Plan(why="it is still coming")
    if domain.attempt and domain.state == DomainState.PAUSED:
        return _arrived(durable, held, domain)
    if not should_run(durable, held):
        graceful_s = durable.graceful_drain_s if durable.drained else held.vm.graceful_s
        return _stop(graceful_s, stopping, now)
    if stayed_paused(held, domain):
        return Plan(Action.RESUME, "its migration failed, and it did not go on")
    if _must_define(domain, held) and not _is_newer(domain, held) and durable.confirmed_boot == boot_id:
        return Plan(adoption.renewal(domain), "definition missing or old")
    return Plan()


def _arrived(durable: Durable, held: Held, domain: Domain) -> Plan:
    """A copy that a migration left paused here, of a VM that is ours now."""
    if domain.attempt != held.vm.arrival:
        return Plan(Action.DESTROY, "a copy that the VM did not come by")
    if not should_run(durable, held):
        return Plan(Action.DESTROY, "should not run, and cannot power off while it is paused")
    return Plan(Action.RESUME, "it has arrived")


def stayed_paused(held: Held, domain: Domain) -> bool:
    """Whether a migration that failed has left the VM paused here."""
    attempt = held.attempt
    failed = attempt is not None and attempt.phase == MigrationPhase.FAILED and not attempt.resumed
    return failed and domain.state == DomainState.PAUSED and not domain.io_error and not domain.job


def _must_define(domain: Domain | None, held: Held) -> bool:
    return domain is None or not domain.persistent or domain.epoch != held.vm.epoch


def _is_newer(domain: Domain | None, held: Held) -> bool:
    return domain is not None and domain.epoch is not None and domain.epoch > held.vm.epoch


def _remove(domain: Domain | None) -> Plan:
    if domain is None:
        return Plan()
    if domain.active:
        return Plan(Action.DESTROY, "released: another node owns it or it was deleted")
    return Plan(Action.UNDEFINE, "released")


def _stop(graceful_s: float, stopping: Stopping | None, now: float) -> Plan:
    if graceful_s <= 0 or (stopping is not None and now >= stopping.since + graceful_s):
        return Plan(Action.DESTROY, "should not run, and its time to power off is over")
    if stopping is None or now >= stopping.last_asked + SHUTDOWN_REPEAT_S:
        return Plan(Action.SHUTDOWN, "should not run")
    return Plan(wake_at=min(stopping.since + graceful_s, stopping.last_asked + SHUTDOWN_REPEAT_S))


_ACTIVE: dict[DomainState, Observed] = {
    DomainState.RUNNING: Observed.RUNNING,
    DomainState.SHUTTING_DOWN: Observed.RUNNING,
    DomainState.PAUSED: Observed.PAUSED,
    DomainState.OTHER: Observed.PAUSED,
}


class Sight(NamedTuple):
    """How a VM is to be reported; `problem`: a `Problem`, or empty."""

    observed: Observed
    problem: str = ""
    detail: str = ""


def observe(durable: Durable, facts: VmFacts, blocked: str) -> Sight:
    """How the VM is to be reported. `blocked`: why its last start or definition failed."""
    held = durable.held.get(facts.uuid)
    if not facts.libvirt_ok:
        return Sight(Observed.UNKNOWN, detail="libvirt does not answer")
    if held is not None and held.attempt is not None and held.leaving:
        return Sight(Observed.MIGRATING, detail=f"to {held.attempt.peer}".strip())
    outside = foreign_pids(facts)
    if facts.domain is not None and facts.domain.active:
        if facts.domain.attempt and facts.domain.job:
            return Sight(Observed.MIGRATING, detail=f"from {facts.domain.origin}")
        if facts.domain.io_error:
            return Sight(Observed.PAUSED, Problem.IO_ERROR, "paused by a disk error")
        twice = f"more than one qemu process has its UUID: pid {outside}"
        return Sight(_ACTIVE[facts.domain.state], *((Problem.FOREIGN_PROCESS, twice) if outside else ()))
    if outside:
        text = f"a qemu process outside libvirt runs it: pid {outside}"
        return Sight(Observed.UNKNOWN, Problem.FOREIGN_PROCESS, text)
    return _off(durable, facts, held, blocked)


def _off(durable: Durable, facts: VmFacts, held: Held | None, blocked: str) -> Sight:
    if held is None or held.vm.desired != Desired.RUNNING:
        return Sight(Observed.STOPPED)
    if held.failed:
        return Sight(Observed.FAILED, Problem.CRASH_LOOP, held.detail)
    if held.moved:
        text = "it was migrated away without Chime: it may run elsewhere"
        return Sight(Observed.UNKNOWN, Problem.MIGRATED_AWAY, text)
    if not should_run(durable, held):
        return Sight(Observed.STOPPED)
    if held.vm.hold or held.declined or not held.named:
        return Sight(Observed.STOPPED, detail=held_back(durable, held))
    if _is_newer(facts.domain, held):
        epoch = facts.domain.epoch if facts.domain else 0
        return Sight(Observed.STOPPED, Problem.NEWER_EPOCH, f"its domain carries epoch {epoch}")
    if blocked:
        return Sight(Observed.FAILED, Problem.START_FAILED, blocked)
    return Sight(Observed.CRASHED if held.started else Observed.STOPPED, detail="about to be started")


def foreign_pids(facts: VmFacts) -> str:
    """The processes that are more than libvirt accounts for."""
    accounted = 1 if facts.domain is not None and facts.domain.active else 0
    return ", ".join(str(process.pid) for process in facts.processes) if len(facts.processes) > accounted else ""
