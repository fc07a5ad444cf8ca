"""Migrating VMs away without the agent: what the core does with events, done here in one go.

Rules: the same as the core's, by the same functions (`leaving`, `guard`): an attempt is on disk before it begins, facts
decide it, and only after that is recorded the copy on the target is told to run. Whoever comes after a death here, an
agent or another `chime-agent`, goes on from what is recorded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from agentd.boot import boot_id
from agentd.core import guard, leaving
from agentd.core.facts import VmFacts
from agentd.hypervisor import HypervisorError, NoArrival
from agentd.local.offline import Offline
from wire.messages import MigrationOrder, MigrationProgress
from wire.types import MigrationPhase

PAUSE_S = 0.5
PAUSE_MAX_S = 5.0


class Ended(NamedTuple):
    """What became of an attempt: left, failed, leaving (not decided in time) or, if it was not begun, None."""

    phase: MigrationPhase | None
    detail: str


def migrate(
    offline: Offline,
    uuid: str,
    attempt_id: str,
    order: MigrationOrder,
    until: float,
    on_progress: Callable[[MigrationProgress], None],
) -> Ended:
    """Migrates one VM, and waits for the outcome until `until` (monotonic seconds)."""
    hypervisor = offline.hypervisor
    seen, with_disks = hypervisor.inspect(uuid), order.options.local_disks
    why = leaving.objection(offline.durable, uuid, boot_id(), seen, with_disks)
    if why is not None:
        return Ended(None, why)
    offline.record(leaving.begin(offline.durable, uuid, leaving.ordered(attempt_id, order)))
    connected_at, error = offline.connected_at, ""
    try:
        hypervisor.migrate(uuid, order, attempt_id, offline.durable.node, on_progress)
    except HypervisorError as problem:
        error = str(problem)
    return _conclude(offline, uuid, error, until, trusted=connected_at)


def go_on(offline: Offline, until: float, say: Callable[[str], None]) -> None:
    """Decides what an agent or a `chime-agent` that died has left undecided, and hands over what is not handed over."""
    for uuid, held in list(offline.durable.held.items()):
        if held.leaving:
            say(f"{held.vm.name}: an earlier migration is not decided yet: looking")
            say(f"{held.vm.name}: {settle(offline, uuid, until).detail}")
    for uuid, left in list(offline.durable.left.items()):
        if not left.handed_over:
            say(f"{left.name}: {_hand_over(offline, uuid, until).detail}")


def settle(offline: Offline, uuid: str, until: float) -> Ended:
    """The outcome of an attempt that somebody else has begun."""
    return _conclude(offline, uuid, "", until, trusted=None)


def _conclude(offline: Offline, uuid: str, error: str, until: float, trusted: float | None) -> Ended:
    """`trusted`: when the connection was made over which the migration was ordered and has returned; over another one,
    it may still be about to begin in libvirt."""
    pause_s = PAUSE_S
    if trusted is None:
        error = _settled(offline, uuid)
    while True:
        facts = _look(offline, uuid)
        calm = offline.connected_at == trusted or time.monotonic() >= offline.connected_at + offline.settle_s
        decided = leaving.decide(offline.durable, facts if calm else VmFacts(uuid, False), error)
        if decided is not offline.durable:
            offline.record(decided)
        held = offline.durable.held.get(uuid)
        if held is None or not held.leaving:
            return _decided(offline, uuid, until)
        if time.monotonic() >= until:
            return Ended(MigrationPhase.LEAVING, "not decided yet: whoever comes next goes on, agentd or chime-agent")
        if leaving.leaves_definition(facts):
            with contextlib.suppress(HypervisorError):
                offline.hypervisor.undefine(uuid)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_MAX_S)
        error = error or _settled(offline, uuid)


def _settled(offline: Offline, uuid: str) -> str:
    """Waits until libvirt does not migrate the VM; returns why that is not known."""
    try:
        offline.hypervisor.settle(uuid)
    except HypervisorError as problem:
        return str(problem)
    return ""


def _look(offline: Offline, uuid: str) -> VmFacts:
    facts = offline.hypervisor.inspect(uuid)
    if facts.libvirt_ok:
        return facts
    with contextlib.suppress(HypervisorError):
        offline.reconnect()
    return VmFacts(uuid, False)


def _decided(offline: Offline, uuid: str, until: float) -> Ended:
    held = offline.durable.held.get(uuid)
    if held is None:
        return _hand_over(offline, uuid, until)
    detail = held.attempt.detail if held.attempt is not None else ""
    facts = offline.hypervisor.inspect(uuid)
    if guard.resume_refusal(offline.durable, uuid, boot_id(), facts) is None:
        try:
            offline.hypervisor.resume(uuid)
        except HypervisorError as problem:
            detail = f"{detail}; it is paused: {problem}"
    noticed = leaving.noticed(held, offline.hypervisor.inspect(uuid))
    if noticed is not held:
        offline.record(offline.durable.with_held(noticed))
    return Ended(MigrationPhase.FAILED, detail)


def _hand_over(offline: Offline, uuid: str, until: float) -> Ended:
    """Lets the copy run: on disk stands that nothing of the VM is here any more."""
    pause_s = PAUSE_S
    while not (left := offline.durable.left[uuid]).handed_over:
        detail = ""
        try:
            offline.hypervisor.hand_over(uuid, left.attempt, left.address)
        except NoArrival as problem:
            detail = str(problem)
        except HypervisorError as problem:
            if time.monotonic() >= until:
                return Ended(MigrationPhase.LEFT, f"it has left, and is paused there: agentd goes on trying: {problem}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
            continue
        offline.record(leaving.handed_over(offline.durable, uuid, left.attempt, detail))
    return Ended(MigrationPhase.LEFT, left.detail or "it runs there")
