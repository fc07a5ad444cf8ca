"""How VMs ended that nobody of Chime ended: by a crash, by their own guest, by a person, by a migration.

Rules: a stop that this agent asked for is never taken for the guest's; a VM that left by a migration is not started;
only what was seen for certain is remembered.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from agentd.core import leaving, planner
from agentd.core.durable import Durable, Held
from agentd.core.facts import Domain, DomainState, OffReason, VmFacts
from agentd.core.reporting import Outbox
from agentd.core.sightings import Sightings
from wire.types import Desired, OnGuestShutdown
from wire.words import EventCode


def notice(durable: Durable, sightings: Sightings, busy: Set[str], outbox: Outbox) -> Durable:
    """Remembers which VMs ran, and how they ended. `busy`: an action on them is under way."""
    for uuid, held in durable.held.items():
        seen = sightings.facts.get(uuid)
        if seen is None or not seen.libvirt_ok or uuid in busy or held.leaving:
            continue
        if seen.domain is not None and seen.domain.active:
            noticed = _alive(durable, held, seen.domain, outbox)
        else:
            noticed = _off(durable, held, seen, sightings, outbox)
        if seen.domain is not None and seen.domain.epoch == held.vm.epoch and not held.defined:
            noticed = msgspec.structs.replace(noticed, defined=True)
        noticed = leaving.noticed(noticed, seen)
        if noticed is not held:
            durable = durable.with_held(noticed)
    return durable


def _alive(durable: Durable, held: Held, domain: Domain, outbox: Outbox) -> Held:
    if planner.is_leftover(domain, durable.tombstones.get(domain.uuid)):
        return held
    if held.vm.desired != Desired.RUNNING or durable.drained or held.ending:
        return held
    if held.halted or held.failed or (held.moved and domain.state == DomainState.RUNNING):
        outbox.add(EventCode.VM_STARTED_OUTSIDE, domain.uuid, "it was started by someone else; it is kept running")
        held = msgspec.structs.replace(held, halted_serial=-1, failed_serial=-1, moved_serial=-1, detail="")
    if held.started or not planner.should_run(durable, held):
        return held
    return msgspec.structs.replace(held, started_serial=held.vm.start_serial)


def _off(durable: Durable, held: Held, seen: VmFacts, sightings: Sightings, outbox: Outbox) -> Held:
    uuid, domain = seen.uuid, seen.domain
    left = uuid in sightings.moved or (domain is not None and domain.reason == OffReason.MIGRATED)
    if left and held.moved_serial < 0:
        outbox.add(EventCode.VM_MIGRATED_AWAY, uuid, "it was migrated away without Chime: it is not started here")
        held = msgspec.structs.replace(held, moved_serial=held.vm.start_serial)
    if domain is not None and _by_guest(held, domain, sightings) and planner.should_run(durable, held) and held.started:
        outbox.add(EventCode.VM_HALTED, uuid, "its guest powered itself off; it stays off")
        held = msgspec.structs.replace(held, halted_serial=held.vm.start_serial)
    return msgspec.structs.replace(held, ending=False) if held.ending else held


def _by_guest(held: Held, domain: Domain, sightings: Sightings) -> bool:
    stays_off = held.vm.spec.on_guest_shutdown == OnGuestShutdown.STOP
    return stays_off and domain.reason == OffReason.SHUTDOWN and held.vm.uuid not in sightings.host_signal
