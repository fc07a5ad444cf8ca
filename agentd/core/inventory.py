"""What the server says about this node, merged into what the node knows. Pure: pages in, `Durable` out.

Rules: only a release removes, and it alone ends what is remembered of a VM that has left; an epoch never falls; a
release is never forgotten; an owner that goes on in another epoch remembers what happened to the VM, also that it is
being migrated; all pages count at once or none; time runs forward: an inventory that is older than one that was applied
is not taken; what a full one does not name is not started any more.
"""

from __future__ import annotations

import msgspec

from agentd.core.durable import Durable, Held, Tombstone
from wire.messages import Assignment, Inventory, Release
from wire.types import EPOCHS_PER_GENERATION


def older(durable: Durable, generation: int, history: str, revision: int) -> str:
    """Why what a server says that stands there must not be followed; empty: it may. A server that was restored goes on
    in a higher generation, so that nothing else goes back in time by a person's will."""
    if durable.generation == 0 or generation > durable.generation:
        return ""
    if generation < durable.generation:
        return f"the server is of generation {generation}, and this node has followed generation {durable.generation}"
    if history and durable.history and history != durable.history:
        return f"the server is of another history with the same generation {generation}: there are two databases"
    if revision < durable.revision:
        return f"the server has given revision {revision}, and this node has followed revision {durable.revision}"
    return ""


def merge(
    durable: Durable, pages: list[Inventory], boot_id: str, clear_local_drain: bool, full: bool = False
) -> tuple[Durable, dict[str, str]]:
    """The new durable state, and by VM why its assignment had to be ignored. `clear_local_drain`: the server
    already knew of the drain on the node when it answered. `full`: the pages hold everything."""
    ignored: dict[str, str] = {}
    last = pages[-1]
    undone = _undone_epochs(durable, last.generation)
    for page in pages:
        for release in page.releases:
            durable = _released(durable, release)
        for vm in page.vms:
            durable, why = _assigned(durable, vm, undone)
            if why:
                ignored[vm.uuid] = why
    if full:
        durable = _only_named(durable, {vm.uuid for page in pages for vm in page.vms})
    merged = msgspec.structs.replace(
        durable,
        generation=last.generation,
        history=last.history,
        life=last.life,
        revision=last.revision,
        seal=last.seal,
        put_back=False,
        order=last.node,
        confirmed_boot=boot_id,
        local_drain=durable.local_drain and not clear_local_drain,
    )
    return merged, ignored


def _undone_epochs(durable: Durable, generation: int) -> int:
    """The server was restored since this node followed it: up to this epoch what it gives is older than what was
    followed, and counts only for what this node has. 0: it was not restored."""
    return (generation - 1) * EPOCHS_PER_GENERATION if 0 < durable.generation < generation else 0


def _only_named(durable: Durable, named: set[str]) -> Durable:
    for uuid, held in durable.held.items():
        if held.named != (uuid in named):
            durable = durable.with_held(msgspec.structs.replace(held, named=uuid in named))
    return durable


def _released(durable: Durable, release: Release) -> Durable:
    known, left = durable.tombstones.get(release.uuid), durable.left.get(release.uuid)
    left_to = ""
    if left is not None and left.epoch <= release.epoch:
        durable, left_to = durable.without_left(release.uuid), left.peer
    held = durable.held.get(release.uuid)
    if known is not None and known.epoch >= release.epoch:
        # it asks again: it is looked at again and confirmed again; what was given back is never ended afterwards
        keep = known.keep or (release.keep and known.epoch == release.epoch)
        tombstone = Tombstone(epoch=known.epoch, keep=keep, left_to=left_to or known.left_to, seal=known.seal)
    else:
        seal = held.vm.seal if held is not None and held.vm.epoch == release.epoch else ""
        tombstone = Tombstone(epoch=release.epoch, keep=release.keep, left_to=left_to, seal=seal)
    durable = durable.with_tombstone(release.uuid, tombstone)
    if held is not None and held.vm.epoch <= release.epoch:
        durable = durable.without_held(release.uuid)
    return durable


def _assigned(durable: Durable, vm: Assignment, undone: int) -> tuple[Durable, str]:
    tombstone, held, left = durable.tombstones.get(vm.uuid), durable.held.get(vm.uuid), durable.left.get(vm.uuid)
    if left is not None and vm.since > left.epoch:
        durable, left = durable.without_left(vm.uuid), None  # it came back since
    if left is not None:  # only a release says that the server knows: a higher epoch may have crossed the news
        return durable, "" if vm.epoch <= left.epoch else f"vm {vm.name}: assigned in epoch {vm.epoch}, but it has left"
    if tombstone is not None and tombstone.epoch >= vm.epoch:
        return durable, f"vm {vm.name}: assigned in epoch {vm.epoch}, but released here up to epoch {tombstone.epoch}"
    if held is not None and held.vm.epoch > vm.epoch:
        return durable, f"vm {vm.name}: assigned in epoch {vm.epoch}, but held here in epoch {held.vm.epoch}"
    held = Held(vm=vm, declined=vm.epoch <= undone) if held is None else held.assigned(vm)
    return durable.with_held(held), ""
