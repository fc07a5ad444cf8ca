"""How a VM leaves this node by a migration: what is recorded, and what decides. `chime-agent` works by it too.

Rules: an attempt is recorded before it begins, and from then on nothing of the VM is started here; it is decided once,
by what libvirt and the process table show, while return values and error texts only colour the detail; what cannot be
known now stays undecided. A VM that has left is given up by that very record: a tombstone stands in its epoch.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from agentd.core import adoption
from agentd.core.durable import Attempt, Durable, Held, Journaled, Left, Tombstone
from agentd.core.facts import DomainState, OffReason, VmFacts
from wire.messages import CommandResult, MigrationOrder
from wire.text import clean_text
from wire.types import Desired, MigrationPhase, Outcome, Storage

MAX_DETAIL = 500


def objection(
    durable: Durable, uuid: str, boot_id: str, facts: VmFacts | None, with_local_disks: bool = False
) -> str | None:
    """Why the VM cannot be migrated away now, or None. `with_local_disks`: its local disks are to be copied."""
    held = durable.held.get(uuid)
    if held is None:
        return "this node does not own the VM"
    if held.attempt is not None and held.leaving:
        return f"another migration of it is under way: {held.attempt.id}"
    if durable.confirmed_boot != boot_id:
        return "the server has not confirmed the inventory since this host booted"
    if durable.drained:
        return "the node is drained"
    if held.vm.desired != Desired.RUNNING:
        return f"it should be {held.vm.desired}"
    if held.vm.spec.storage == Storage.LOCAL and not with_local_disks:
        return "its disks are local to this node, and it was not asked to copy them"
    return _not_migratable(held, facts)


def _not_migratable(held: Held, facts: VmFacts | None) -> str | None:
    if facts is None or not facts.libvirt_ok:
        return "libvirt does not answer: the VM's state is unknown"
    domain = facts.domain
    if adoption.is_due(held, domain):
        return "it is imported, and not taken over yet"
    if domain is None or not domain.active:
        return "the VM does not run"
    if domain.job:
        return "libvirt is migrating it already"
    if domain.state != DomainState.RUNNING:
        return f"the VM is {domain.state}"
    if len(facts.processes) != 1:
        return f"{len(facts.processes)} qemu processes have its UUID"
    return None if domain.epoch == held.vm.epoch else f"its domain carries epoch {domain.epoch}, not {held.vm.epoch}"


def begin(durable: Durable, uuid: str, attempt: Attempt) -> Durable:
    """The attempt is recorded, in phase leaving."""
    return durable.with_held(msgspec.structs.replace(durable.held[uuid], attempt=attempt))


def ordered(attempt_id: str, order: MigrationOrder) -> Attempt:
    """The attempt that an order asks for."""
    return Attempt(id=attempt_id, target=order.target, address=order.address, options=order.options)


def rejected(durable: Durable, uuid: str, attempt_id: str, why: str) -> Durable:
    """The attempt was not begun: it has failed, which is told with the VM. One that is under way stays."""
    held = durable.held.get(uuid)
    if held is None or held.leaving:
        return durable
    resumed = held.attempt is None or held.attempt.resumed
    failed = Attempt(
        id=attempt_id, target="", address="", phase=MigrationPhase.FAILED, detail=_text(why), resumed=resumed
    )
    return begin(durable, uuid, failed)


def adopt(durable: Durable, waiting: Set[str]) -> Durable:
    """Attempts that the server holds for undecided and of which nothing is known here are under way, as far as this
    node can tell: facts decide them. `waiting`: commands that were not judged yet."""
    for uuid, held in durable.held.items():
        name = held.vm.attempt
        if not name or held.leaving or name in waiting or name in durable.journal:
            continue
        if held.attempt is None or held.attempt.id != name:
            durable = begin(durable, uuid, Attempt(id=name, target="", address=""))
    return durable


def is_open(durable: Durable, uuid: str, attempt_id: str) -> bool:
    """Whether that attempt is under way."""
    held = durable.held.get(uuid)
    return held is not None and held.attempt is not None and held.leaving and held.attempt.id == attempt_id


def leaves_definition(facts: VmFacts) -> bool:
    """libvirt says that the VM has left, and only its definition is still here."""
    domain = facts.domain
    return domain is not None and domain.reason == OffReason.MIGRATED and not domain.active and not facts.processes


def phase_by(facts: VmFacts) -> MigrationPhase:
    """What facts, looked at after libvirt's job ended, say of an attempt that was under way."""
    if not facts.libvirt_ok or leaves_definition(facts):
        return MigrationPhase.LEAVING
    if facts.domain is None:
        return MigrationPhase.LEAVING if facts.processes else MigrationPhase.LEFT
    return MigrationPhase.LEAVING if facts.domain.job else MigrationPhase.FAILED


def decide(durable: Durable, facts: VmFacts, error: str) -> Durable:
    """Decides the attempt that is under way, if the facts do. `error`: what libvirt said, for the detail."""
    held = durable.held.get(facts.uuid)
    if held is None or held.attempt is None or not held.leaving:
        return durable
    attempt = held.attempt if held.attempt.detail else msgspec.structs.replace(held.attempt, detail=_text(error))
    phase = phase_by(facts)
    if phase == MigrationPhase.LEAVING:
        return durable if attempt == held.attempt else begin(durable, facts.uuid, attempt)
    if phase == MigrationPhase.FAILED:
        detail = attempt.detail or "the VM is still here, and libvirt does not migrate it"
        failed = msgspec.structs.replace(attempt, phase=phase, detail=detail)
        return _result(begin(durable, facts.uuid, failed), facts.uuid, attempt.id, Outcome.FAILED, detail)
    return _result(_left(durable, held, attempt), facts.uuid, attempt.id, Outcome.DONE, "")


def _left(durable: Durable, held: Held, attempt: Attempt) -> Durable:
    """Nothing is to be removed, and nothing to be confirmed that the server has not asked for."""
    uuid, epoch = held.vm.uuid, held.vm.epoch
    before = durable.tombstones.get(uuid)
    asked = before is not None and not before.acked
    left = Left(
        attempt=attempt.id,
        epoch=epoch,
        name=held.vm.name,
        target=attempt.target,
        address=attempt.address,
        handed_over=not attempt.address,
        seal=held.vm.seal,
    )
    gone = durable.without_held(uuid).with_tombstone(uuid, Tombstone(epoch=epoch, done=True, acked=not asked))
    return gone.with_left(uuid, left)


def _result(durable: Durable, uuid: str, attempt_id: str, outcome: Outcome, detail: str) -> Durable:
    entry = durable.journal.get(attempt_id)
    if entry is None or entry.result is not None:
        return durable
    result = CommandResult(id=attempt_id, outcome=outcome, detail=detail)
    return durable.with_journal(attempt_id, Journaled(uuid=uuid, result=result))


def handed_over(durable: Durable, uuid: str, attempt_id: str, detail: str = "") -> Durable:
    """The copy on the target runs, or is not there any more (`detail`): nothing is left to do for it here."""
    left = durable.left.get(uuid)
    if left is None or left.attempt != attempt_id:
        return durable
    return durable.with_left(uuid, msgspec.structs.replace(left, handed_over=True, detail=_text(detail)))


def noticed(held: Held, facts: VmFacts) -> Held:
    """After a failure: remembers that the guest went on, or has ended. Whoever pauses it later is to be respected."""
    attempt = held.attempt
    if not facts.libvirt_ok or attempt is None or attempt.phase != MigrationPhase.FAILED or attempt.resumed:
        return held
    if facts.domain is not None and facts.domain.active and facts.domain.state != DomainState.RUNNING:
        return held
    return msgspec.structs.replace(held, attempt=msgspec.structs.replace(attempt, resumed=True))


def _text(text: str) -> str:
    return clean_text(text, MAX_DETAIL)
