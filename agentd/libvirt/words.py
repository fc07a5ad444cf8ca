"""libvirt's numbers in Chime's words: literal tables, from libvirt's `libvirt-domain.h`.

Numbers, not libvirt's names, so that this can be read and tested without libvirt; they are part of its stable
interface.
"""

from __future__ import annotations

from agentd.core.facts import DomainState, Happening, Lifecycle, OffReason

STATES = {  # virDomainState; anything else counts as a process
    1: DomainState.RUNNING,
    2: DomainState.RUNNING,  # blocked: waits for a resource
    3: DomainState.PAUSED,
    4: DomainState.SHUTTING_DOWN,
    5: DomainState.OFF,
}

OFF_REASONS = {  # virDomainShutoffReason
    1: OffReason.SHUTDOWN,
    2: OffReason.DESTROYED,
    3: OffReason.CRASHED,
    4: OffReason.MIGRATED,
    5: OffReason.SAVED,
    6: OffReason.FAILED,
}

HAPPENINGS = {  # virDomainEventType
    0: Happening.DEFINED,
    1: Happening.UNDEFINED,
    2: Happening.STARTED,
    3: Happening.PAUSED,
    4: Happening.RESUMED,
    5: Happening.STOPPED,
    6: Happening.GUEST_SHUTDOWN,
    7: Happening.PAUSED,  # suspended by the guest's power management
}

DETAILED = {  # (virDomainEventType, its detail)
    (3, 2): Happening.PAUSED_IO_ERROR,
    (6, 2): Happening.HOST_SHUTDOWN,
}

STOP_REASONS = {  # virDomainEventStoppedDetailType
    0: OffReason.SHUTDOWN,
    1: OffReason.DESTROYED,
    2: OffReason.CRASHED,
    3: OffReason.MIGRATED,
    4: OffReason.SAVED,
    5: OffReason.CRASHED,  # "host emulator failed": how the death of a qemu process is told
}


def lifecycle(uuid: str, event: int, detail: int) -> Lifecycle | None:
    """A lifecycle event, or None for one that says nothing here."""
    happening = DETAILED.get((event, detail)) or HAPPENINGS.get(event)
    if happening is None:
        return None
    reason = OffReason.UNKNOWN
    if happening == Happening.STOPPED:
        reason = STOP_REASONS.get(detail, OffReason.UNKNOWN)
    return Lifecycle(uuid=uuid.lower(), happening=happening, reason=reason)
