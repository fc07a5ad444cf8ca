"""On which node a VM may be placed, and which of them is best. Pure.

Filter: enabled, normal, not locked, in session, room for memory and vCPUs with overcommit and reserve, hardware
acceleration where the VM demands it. Weigh: spread, that is the largest share of memory left after placing; ties by
name.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from chimed.core.state import rows as r
from chimed.core.state.turn import Policy
from wire.messages import VmSpec
from wire.text import counted
from wire.types import AdminState, Health, VirtType


class Room(Struct, frozen=True):
    """What a node can hold and holds (vCPUs, MiB)."""

    vcpus: int
    memory_mib: int
    vcpus_used: int
    memory_used_mib: int


Candidate = tuple[r.Node, Room, bool]
"""A node, its room, and whether its agent is in session."""


def room_of(node: r.Node, used: tuple[int, int], policy: Policy) -> Room:
    """Capacity of `node`, and what of it is `used` (vCPUs, MiB)."""
    return Room(
        int(max(0, node.vcpus - policy.vcpu_reserve) * policy.vcpu_overcommit),
        int(max(0, node.memory_mib - policy.memory_reserve_mib) * policy.memory_overcommit),
        *used,
    )


def closed(node: r.Node, in_session: bool) -> str | None:
    """Why `node` takes no VM at all, or None."""
    if node.admin_state != AdminState.ENABLED:
        return f"is {node.admin_state}"
    if node.health != Health.NORMAL:
        return f"is {node.health}" + (f" ({', '.join(node.reasons)})" if node.reasons else "")
    if not in_session:
        return "has no session with the server yet"
    if node.lock:
        return f"is locked by {node.lock}"
    return None


def objection(node: r.Node, room: Room, in_session: bool, spec: VmSpec) -> str | None:
    """Why `node` cannot take a VM with `spec`, or None."""
    if why := closed(node, in_session):
        return why
    if spec.virt_type == VirtType.KVM and not node.kvm:
        return "has no KVM"
    if spec.memory_mib > room.memory_mib - room.memory_used_mib:
        return f"has {max(0, room.memory_mib - room.memory_used_mib)} MiB of memory left, {spec.memory_mib} are needed"
    if spec.vcpus > room.vcpus - room.vcpus_used:
        left = counted(max(0, room.vcpus - room.vcpus_used), "vCPU")
        return f"has {left} left, {counted(spec.vcpus, 'is', 'are')} needed"
    return None


class Choice(Struct, frozen=True):
    """The node that was chosen, or why each of them was not."""

    node: str | None
    objections: dict[str, str]

    def why_not(self) -> str:
        """The objections in one line."""
        parts = [f"{name} {why}" for name, why in list(self.objections.items())[:10]]
        more = len(self.objections) - len(parts)
        return "; ".join(parts) + (f"; and {more} more" if more > 0 else "") or "there is no node"


def choose(spec: VmSpec, candidates: Iterable[Candidate]) -> Choice:
    """The best node for `spec` among (node, room, in session)."""
    best: tuple[float, str] | None = None
    objections = {}
    for node, room, in_session in candidates:
        why = objection(node, room, in_session, spec)
        if why is not None:
            objections[node.name] = why
            continue
        left = (room.memory_mib - room.memory_used_mib - spec.memory_mib) / max(1, room.memory_mib)
        key = (-left, node.name)
        if best is None or key < best:
            best = key
    return Choice(best[1] if best else None, objections)
