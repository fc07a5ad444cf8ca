"""Desired x observed -> the next action for one VM. Pure: a table in words.

    released, process alive          destroy
    released, domain defined         undefine
    released, nothing left           (confirm: the agent marks the tombstone done)
    ours, not defined or old         define
    ours, should run, off            start (if the guard has no objection; budget and back-off apply)
    ours, should not run, alive      shutdown, after the graceful time destroy
    not ours, not released           nothing: it may be an arrival or someone else's

"Should run" is desired = running, node not drained, guest not halted, budget not spent.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from agentd.core.durable import Durable, Held, Tombstone
from agentd.core.effects import Action
from agentd.core.facts import Domain, DomainState, VmFacts
from wire.types import Desired, Observed


class Plan(Struct, frozen=True):
    """`action` None: nothing to do. `restart`: the start follows an end that nobody asked for. `wake_at`: look again."""

    action: Action | None = None
    why: str = ""
    wake_at: float | None = None


SHUTDOWN_REPEAT_S = 10.0


def should_run(durable: Durable, held: Held) -> bool:
    """Whether the VM should run on this node now."""
    return held.vm.desired == Desired.RUNNING and not durable.drained and not held.halted and not held.failed


def is_released(tombstone: Tombstone | None, held: Held | None) -> bool:
    """Whether this node must not have the VM at all."""
    return tombstone is not None and (held is None or held.vm.epoch <= tombstone.epoch)


def is_leftover(domain: Domain, tombstone: Tombstone | None) -> bool:
    """Whether the domain is one that the release speaks of, though the VM was assigned here again since."""
    return tombstone is not None and not tombstone.done and (domain.epoch or 0) <= tombstone.epoch


def plan(durable: Durable, facts: VmFacts, stopping_since: float | None, last_asked: float | None, now: float) -> Plan:
    """The next step for the VM that `facts` are about. `stopping_since`: when the graceful stop began;
    `last_asked`: when the guest was last asked to power off. Times in CLOCK_BOOTTIME seconds."""
    held, tombstone = durable.held.get(facts.uuid), durable.tombstones.get(facts.uuid)
    if not facts.libvirt_ok:
        return Plan(why="libvirt does not answer")
    if is_released(tombstone, held):
        return _remove(facts.domain)
    if held is None:
        return Plan()
    if facts.domain is not None and facts.domain.active and is_leftover(facts.domain, tombstone):
        return Plan(Action.DESTROY, "a process of an epoch that this node released")
    if facts.domain is None or not facts.domain.persistent or _outdated(facts.domain, held):
        return Plan(Action.DEFINE, "definition missing or old")
    if should_run(durable, held):
        return Plan(Action.START, "should run") if not facts.domain.active else Plan()
    return _stop(durable, held, facts.domain, stopping_since, last_asked, now)


def _remove(domain: Domain | None) -> Plan:
    if domain is None:
        return Plan()
    if domain.active:
        return Plan(Action.DESTROY, "released: another node owns it or it was deleted")
    return Plan(Action.UNDEFINE, "released")


def _outdated(domain: Domain, held: Held) -> bool:
    return domain.epoch != held.vm.epoch


def _stop(
    durable: Durable, held: Held, domain: Domain, since: float | None, last_asked: float | None, now: float
) -> Plan:
    if not domain.active:
        return Plan()
    graceful_s = durable.graceful_drain_s if durable.drained else held.vm.graceful_s
    if graceful_s <= 0 or (since is not None and now >= since + graceful_s):
        return Plan(Action.DESTROY, "should not run, and its time to power off is over")
    if last_asked is None or now >= last_asked + SHUTDOWN_REPEAT_S:
        return Plan(Action.SHUTDOWN, "should not run")
    return Plan(wake_at=min((since or now) + graceful_s, last_asked + SHUTDOWN_REPEAT_S))


_ACTIVE: dict[DomainState, Observed] = {
    DomainState.RUNNING: Observed.RUNNING,
    DomainState.SHUTTING_DOWN: Observed.RUNNING,
    DomainState.PAUSED: Observed.PAUSED,
    DomainState.OTHER: Observed.PAUSED,
}


class Sight(NamedTuple):
    """How a VM is to be reported; `problem` as in the protocol."""

    observed: Observed
    problem: str = ""
    detail: str = ""


def observe(durable: Durable, facts: VmFacts, blocked: str) -> Sight:
    """How the VM is to be reported. `blocked`: why its last start or definition failed."""
    held = durable.held.get(facts.uuid)
    if not facts.libvirt_ok:
        return Sight(Observed.UNKNOWN, detail="libvirt does not answer")
    if facts.domain is not None and facts.domain.active:
        if facts.domain.io_error:
            return Sight(Observed.PAUSED, "io-error", "paused by a disk error")
        return Sight(_ACTIVE[facts.domain.state])
    if facts.processes:
        pids = ", ".join(str(process.pid) for process in facts.processes)
        return Sight(Observed.UNKNOWN, "foreign-process", f"a qemu process outside libvirt runs it: pid {pids}")
    if held is not None and held.failed and held.vm.desired == Desired.RUNNING:
        return Sight(Observed.FAILED, "crash-loop", held.detail)
    if held is None or not should_run(durable, held):
        return Sight(Observed.STOPPED)
    if blocked:
        return Sight(Observed.FAILED, "start-failed", blocked)
    return Sight(Observed.CRASHED if held.started else Observed.STOPPED, detail="about to be started")
