"""When a drain is proven on the node: the ground on which a rebuild elsewhere may stand.

Clean means: libvirt answers, nothing of ours is under way, and a look at all domains and real processes that began after
the last of it shows no process of a VM that is or was Chime's. Unknown is not clean.
"""

from __future__ import annotations

from agentd.core.durable import Durable
from agentd.core.facts import VmFacts
from wire.messages import DrainProof


def prove(
    durable: Durable, facts: dict[str, VmFacts], fresh: bool, boot_id: str, previous: DrainProof | None
) -> DrainProof:
    """The state of the drain. `fresh`: the facts come from a look that began after the last action ended. Once clean
    it stays so until something is seen: the guard lets nothing start on a drained node."""
    running = tuple(sorted(uuid for uuid, seen in facts.items() if _ours(durable, seen) and _alive(seen)))
    serial = durable.order.drain_serial
    was_clean = previous is not None and previous.clean and previous.drain_serial == serial
    confirmed = durable.confirmed_boot == boot_id or durable.local_drain
    clean = not running and confirmed and (fresh or was_clean) and all(seen.libvirt_ok for seen in facts.values())
    return DrainProof(drain_serial=serial, boot_id=boot_id, clean=clean, running=running[:500])


def _ours(durable: Durable, seen: VmFacts) -> bool:
    marked = seen.domain is not None and seen.domain.epoch is not None
    return marked or seen.uuid in durable.held or seen.uuid in durable.tombstones


def _alive(seen: VmFacts) -> bool:
    return bool(seen.processes) or (seen.domain is not None and seen.domain.active)
