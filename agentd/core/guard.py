"""The one check in front of every start of a VM (design rule 1), and those in front of a resume and a migration.

`may` is asked for each action immediately before libvirt is called, with facts inspected in that moment and the durable
state of that moment. It returns why not, or None. Unknown is a reason, never a permission: an action that is neither
guarded nor listed in `UNGUARDED` is refused. `refusal` is its part for a start, and is asked with the same words by the
planner, to decide whether a start is worth trying; so is `resume_refusal`: it lets run what a migration left paused,
and nothing that a person has paused.
"""

from __future__ import annotations

from collections.abc import Set

from agentd.core import adoption
from agentd.core.durable import DECLINED, Durable, Held
from agentd.core.effects import Act, Action
from agentd.core.facts import DomainState, OffReason, VmFacts
from wire.types import Desired, MigrationPhase

UNGUARDED = frozenset(
    {
        Action.DEFINE,
        Action.SHUTDOWN,
        Action.DESTROY,
        Action.UNDEFINE,
        Action.REBOOT,
        Action.SETTLE,
        Action.HAND_OVER,  # of a VM whose end here is on disk (`durable.left`), and whose epoch is released
        Action.ADOPT,
        Action.GIVE_BACK,
    }
)
"""What makes no VM run here, and sends none away."""


def may(act: Act, durable: Durable, boot_id: str, facts: VmFacts, cancelled: Set[str]) -> str | None:
    """Why this must not be done now on this host, or None if it may. `cancelled`: attempts to migrate that were given
    up."""
    match act.action:
        case Action.START:
            return refusal(durable, act.uuid, boot_id, facts)
        case Action.RESUME:
            return resume_refusal(durable, act.uuid, boot_id, facts)
        case Action.MIGRATE:
            return migrate_refusal(durable, act.uuid, "" if act.attempt is None else act.attempt.id, cancelled)
        case known if known in UNGUARDED:
            return None
        case unknown:
            return f"the guard has no rule for {unknown}: this is a bug in Chime"


def refusal(durable: Durable, uuid: str, boot_id: str, facts: VmFacts) -> str | None:
    """Why the VM must not be started now on this host, or None if it may. The restart budget is the planner's."""
    objection = _not_ours(durable, uuid)
    if objection is not None:
        return objection
    held = durable.held[uuid]
    return _not_wanted(durable, held, boot_id) or _alive(facts) or _elsewhere(held, facts)


def resume_refusal(durable: Durable, uuid: str, boot_id: str, facts: VmFacts) -> str | None:
    """Why the paused VM must not be resumed now on this host, or None if it may: it is the copy by which the VM came
    here, or it stayed here when a migration failed."""
    objection = _not_ours(durable, uuid)
    if objection is not None:
        return objection
    held = durable.held[uuid]
    return _not_wanted(durable, held, boot_id) or _not_paused(facts) or _not_by_migration(durable, held, facts)


def migrate_refusal(durable: Durable, uuid: str, attempt_id: str, cancelled: Set[str]) -> str | None:
    """Why the migration, which may have waited for its turn, must not be begun any more, or None if it may."""
    if attempt_id in cancelled:
        return "it was cancelled before it began"
    objection = _not_ours(durable, uuid)
    if objection is not None:
        return objection
    attempt = durable.held[uuid].attempt
    under_way = attempt is not None and attempt.phase == MigrationPhase.LEAVING and attempt.id == attempt_id
    return None if under_way else "the attempt is over"


def _not_ours(durable: Durable, uuid: str) -> str | None:
    held, tombstone = durable.held.get(uuid), durable.tombstones.get(uuid)
    if held is None:
        return "this node does not own the VM"
    if tombstone is not None and tombstone.epoch >= held.vm.epoch:
        return f"this node released the VM up to epoch {tombstone.epoch}"
    return None


def _not_wanted(durable: Durable, held: Held, boot_id: str) -> str | None:
    if held.leaving:
        return "it is being migrated away"
    if durable.confirmed_boot != boot_id:
        return "the server has not confirmed the inventory since this host booted"
    if durable.put_back:
        return "this node's state is older than what this boot has seen: the server has to confirm it"
    if durable.order.hold:
        return "the server recovers from a restore, and starts nothing until all nodes have reported"
    if held.vm.hold:
        return "the server was restored, and a person has to confirm what it wants of this VM"
    if held.declined:
        return DECLINED
    if not held.named:
        return "the newest inventory of the server does not name it"
    if durable.drained:
        return "the node is drained"
    if held.vm.desired != Desired.RUNNING:
        return f"it should be {held.vm.desired}"
    if held.halted:
        return "its guest powered itself off"
    if held.failed:
        return "it failed too often; start it to try again"
    if held.moved:
        return "it was migrated away from here: it may run elsewhere"
    return None


def _elsewhere(held: Held, facts: VmFacts) -> str | None:
    assert facts.domain is not None  # or `_alive` has objected
    if facts.domain.reason == OffReason.MIGRATED and held.moved_serial < 0:
        return "libvirt says that it was migrated away: it may run elsewhere"
    if adoption.is_due(held, facts.domain):
        return "it is imported, and not taken over yet"
    epoch = facts.domain.epoch
    if epoch is not None and epoch > held.vm.epoch:
        return f"its domain carries epoch {epoch}, newer than {held.vm.epoch}"
    return None


def _alive(facts: VmFacts) -> str | None:
    if facts.processes:
        pids = ", ".join(f"{process.pid} ({process.state})" for process in facts.processes)
        return f"a qemu process with this UUID exists: {pids}"
    if not facts.libvirt_ok:
        return "libvirt does not answer: the VM's state is unknown"
    if facts.domain is None:
        return "the domain is not defined"
    if facts.domain.active:
        return f"libvirt says that it is {facts.domain.state}"
    return None


def _not_paused(facts: VmFacts) -> str | None:
    if not facts.libvirt_ok:
        return "libvirt does not answer: the VM's state is unknown"
    domain = facts.domain
    if domain is None or domain.state != DomainState.PAUSED:
        return "it is not paused"
    if domain.io_error:
        return "it is paused by a disk error"
    if domain.job:
        return "libvirt is migrating it"
    return None if len(facts.processes) == 1 else f"{len(facts.processes)} qemu processes have its UUID"


def _not_by_migration(durable: Durable, held: Held, facts: VmFacts) -> str | None:
    assert facts.domain is not None  # or `_not_paused` has objected
    if facts.domain.attempt:
        return None if facts.domain.attempt == held.vm.arrival else "it is a copy that the VM did not come by"
    attempt = held.attempt
    stayed = attempt is not None and attempt.phase == MigrationPhase.FAILED and not attempt.resumed
    tombstone = durable.tombstones.get(facts.uuid)
    released = 0 if tombstone is None else tombstone.epoch
    is_ours = facts.domain.epoch is not None and released < facts.domain.epoch <= held.vm.epoch
    return None if stayed and is_ours else "a person has paused it"
