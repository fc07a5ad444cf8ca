"""Taking over a domain that a person made, and giving one back. Pure.

Rules: a domain that is to be taken over gets our mark before anything else is done with it, and none is made where
there is none. Of one that is given back only the mark is taken off: it is never ended, whatever release comes later for
the same epoch. A domain that was taken over keeps its maker's definition until Chime starts it for the first time.
"""

from __future__ import annotations

from agentd.core.durable import Durable, Held, Tombstone
from agentd.core.effects import Action
from agentd.core.facts import Domain, VmFacts
from wire.words import Problem


def is_due(held: Held, domain: Domain | None) -> bool:
    """Whether the VM has to be taken over before anything else is done with it. Of one that may have left it is
    decided first whether it has."""
    if not held.vm.adopt or held.leaving:
        return False
    if domain is None or domain.epoch is None:
        return not held.defined
    return domain.adopted and domain.epoch < held.vm.epoch


def next_action(domain: Domain | None) -> Action | None:
    """What takes the domain over; None if it cannot be."""
    return Action.ADOPT if domain is not None and domain.persistent else None


def renewal(domain: Domain | None) -> Action:
    """What brings the definition of a VM to its present epoch. One that is its maker's, also where a migration has
    brought it, is kept until Chime starts the VM: only its mark is renewed."""
    return Action.ADOPT if domain is not None and domain.adopted and domain.persistent else Action.DEFINE


def give_back(tombstone: Tombstone, domain: Domain | None) -> Action | None:
    """What gives the domain back; None if that is done."""
    if domain is None:
        return None
    marked = domain.epoch is not None and domain.epoch <= tombstone.epoch
    return Action.GIVE_BACK if marked or not tombstone.done else None


def is_given_back(seen: VmFacts) -> bool:
    """Whether our mark is off."""
    return seen.libvirt_ok and (seen.domain is None or seen.domain.epoch is None)


def problem(held: Held, seen: VmFacts, blocked: str) -> tuple[str, str]:
    """What is to be reported of a VM that is not taken over yet: (problem, detail); both empty if it is."""
    if not seen.libvirt_ok or not is_due(held, seen.domain):
        return "", ""
    if seen.domain is None:
        return Problem.ADOPTION_REFUSED, f"no domain with UUID {seen.uuid} is defined here any more"
    if not seen.domain.persistent:
        text = "its domain is transient: libvirt forgets it when it ends (virsh define it first)"
        return Problem.ADOPTION_REFUSED, text
    return (Problem.ADOPTION_REFUSED, blocked) if blocked else (Problem.NOT_ADOPTED, "about to be taken over")


def given_back(durable: Durable) -> set[str]:
    """VMs that are no business of Chime's here any more."""
    return {uuid for uuid, stone in durable.tombstones.items() if stone.keep and uuid not in durable.held}


def is_marked(durable: Durable, domain: Domain | None) -> bool:
    """Whether the domain bears our mark, and is not on its way to lose it."""
    if domain is None or domain.epoch is None:
        return False
    stone = durable.tombstones.get(domain.uuid)
    return domain.uuid in durable.held or stone is None or not stone.keep or domain.epoch > stone.epoch
