"""When a drain is proven on the node: the ground on which a rebuild elsewhere may stand.

Clean means: libvirt answers, no start is under way, no migration is undecided, and a look at all domains and real
processes that began after the last of them shows no process of a VM that is or was Chime's. Unknown is not clean. Once
clean it stays so until something is seen or libvirt is lost: the guard lets nothing start on a drained node.
"""

from __future__ import annotations

from agentd.core import adoption
from agentd.core.durable import Durable
from agentd.core.facts import VmFacts
from wire.messages import DrainProof

LOOK_AGAIN_S = 0.5
NEVER = float("inf")


class DrainWatch:
    """The proof of the present drain, if there is one. Times in CLOCK_BOOTTIME seconds."""

    def __init__(self, boot_id: str) -> None:
        self.proof: DrainProof | None = None
        self._boot_id = boot_id
        self._doubt = -NEVER

    def judge(
        self, durable: Durable, facts: dict[str, VmFacts], busy_until: float, looked_at: float, now: float
    ) -> float:
        """Judges anew and returns when a look at the host is wanted. `busy_until`: until when a start may be under way,
        infinite while one is or libvirt does not answer (other actions make no process: removing a released definition
        must not end the proof); `looked_at`: when the last good look began."""
        if not durable.drained:
            self.proof = None
            return NEVER
        alive = {uuid for uuid, seen in facts.items() if _ours(durable, seen) and _alive(seen)}
        running = tuple(sorted(alive | {uuid for uuid, held in durable.held.items() if held.leaving}))
        unseen = any(uuid not in facts for uuid in durable.held)
        if running or unseen or busy_until == NEVER or not all(seen.libvirt_ok for seen in facts.values()):
            self._doubt = now
        confirmed = durable.confirmed_boot == self._boot_id or durable.local_drain
        quiet_since = max(self._doubt, busy_until)
        clean = confirmed and looked_at > quiet_since and not running
        self.proof = DrainProof(
            drain_serial=durable.order.drain_serial, boot_id=self._boot_id, clean=clean, running=running[:10_000]
        )
        if clean or running or busy_until == NEVER or not confirmed:
            return NEVER
        return max(now, quiet_since) + LOOK_AGAIN_S


def _ours(durable: Durable, seen: VmFacts) -> bool:
    if seen.uuid in adoption.given_back(durable):
        return adoption.is_marked(durable, seen.domain)
    marked = seen.domain is not None and seen.domain.epoch is not None
    return marked or seen.uuid in durable.held or seen.uuid in durable.tombstones


def _alive(seen: VmFacts) -> bool:
    return bool(seen.processes) or (seen.domain is not None and seen.domain.active)
