"""One-time commands: each takes effect at most once, whatever is repeated, late, or cut short.

A command is recorded before it is begun. What was begun by an agent that died is `interrupted`: it is not done again. A
migration never is: its attempt is in the snapshot, and its result is recorded when facts have decided it. Late ones,
and those for another epoch, are rejected without effect. A result is told until the server has recorded it.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec
from msgspec import Struct

from agentd.core import leaving
from agentd.core.durable import MAX_JOURNAL, Durable, Journaled
from agentd.core.effects import Act, Acted
from agentd.core.migrations import Migrations
from agentd.core.vms import NEVER, Vms
from wire.messages import Command, CommandResult
from wire.text import clean_text
from wire.types import Outcome
from wire.words import CommandKind

MAX_WAITING = 100
MAX_RESULTS_PER_REPORT = 100
_KINDS = frozenset(CommandKind)


class Mark(Struct, frozen=True):
    """What a turn that cannot be recorded is taken back to."""

    waiting: dict[str, tuple[Command, float]]
    running: dict[str, str]


class Commands:
    """Commands that wait for their turn, those under way, and outcomes of those that are not in the journal."""

    def __init__(self, durable: Durable) -> None:
        self._waiting: dict[str, tuple[Command, float]] = {}
        self._running: dict[str, str] = {}
        self._sent: tuple[int, frozenset[str]] = (0, frozenset())
        self._outcomes: dict[str, tuple[str, CommandResult]] = {}
        for command_id, entry in durable.journal.items():
            if leaving.is_open(durable, entry.uuid, command_id):
                continue  # facts decide it
            if entry.result is None:  # a predecessor began it and did not finish
                self._ended(command_id, entry.uuid, Outcome.INTERRUPTED, "the agent died while it carried this out")

    def mark(self) -> Mark:
        """A point to take a turn back to."""
        return Mark(dict(self._waiting), dict(self._running))

    def rollback(self, mark: Mark) -> None:
        """The turn could not be recorded: what came or was judged in it comes again. Outcomes of what was begun stay:
        they are facts, and wait for the next turn."""
        self._waiting, self._running = mark.waiting, mark.running

    def arrived(self, commands: tuple[Command, ...], durable: Durable, asked_at: float) -> Durable:
        """Commands came with an inventory that was asked for at `asked_at`: their time began no earlier. Known ones are
        answered again, new ones queued until their deadline."""
        unsettled = sum(not entry.acked for entry in durable.journal.values())
        for command in commands:
            known = durable.journal.get(command.id)
            if known is not None:
                durable = durable.with_journal(command.id, msgspec.structs.replace(known, acked=False))
            elif command.id not in self._waiting and len(self._waiting) < min(MAX_WAITING, MAX_JOURNAL - unsettled):
                self._waiting[command.id] = (command, asked_at + command.deadline_s)
        return durable

    def cannot_know(self, commands: tuple[Command, ...]) -> None:
        """There is no journal that says whether these were carried out before: they are not begun."""
        for command in commands:
            text = "the journal was lost: it may have been carried out"
            self._ended(command.id, command.uuid, Outcome.INTERRUPTED, text)

    @property
    def waiting(self) -> Set[str]:
        """The ids of those that were not judged yet."""
        return self._waiting.keys()

    def plan(
        self, durable: Durable, vms: Vms, migrations: Migrations, now: float
    ) -> tuple[Durable, list[Act], float]:
        """Begins what can begin, rejects what cannot, records outcomes. Returns also when to look again."""
        acts: list[Act] = []
        wake = NEVER
        for command, deadline in list(self._waiting.values()):
            if command.id not in self._waiting:
                continue  # cancelled by one before
            why = self._objection(command, deadline, durable, vms, now)
            if why is None and command.kind != CommandKind.CANCEL_MIGRATION and _must_wait(command, vms):
                wake = min(wake, deadline)
                continue
            del self._waiting[command.id]
            if why is not None:
                durable = _rejected(durable, command, why)
                continue
            durable, act = self._begun(durable, command, vms, migrations)
            acts += act
        return self._recorded(durable), acts, wake

    def _begun(
        self, durable: Durable, command: Command, vms: Vms, migrations: Migrations
    ) -> tuple[Durable, list[Act]]:
        if command.kind == CommandKind.CANCEL_MIGRATION:
            return self._cancelled(durable, command, migrations), []
        durable = durable.with_journal(command.id, Journaled(uuid=command.uuid))
        if command.kind == CommandKind.REBOOT:
            self._running[command.uuid] = command.id
            return durable, [vms.order_reboot(durable, command.uuid, command.force)]
        assert command.migration is not None  # or there was an objection
        durable = leaving.begin(durable, command.uuid, leaving.ordered(command.id, command.migration))
        return durable, [vms.order_migration(durable, command.uuid)]

    def _cancelled(self, durable: Durable, command: Command, migrations: Migrations) -> Durable:
        """libvirt is asked to give it up; whether it does is told by the outcome of the attempt."""
        waiting = self._waiting.pop(command.attempt, None)
        if waiting is not None:
            durable = _rejected(durable, waiting[0], "it was cancelled before it began")
        else:
            migrations.cancel(command.attempt)
        result = CommandResult(id=command.id, outcome=Outcome.DONE)
        return durable.with_journal(command.id, Journaled(uuid=command.uuid, result=result))

    def _recorded(self, durable: Durable) -> Durable:
        for command_id, (uuid, result) in list(self._outcomes.items()):
            entry = durable.journal.get(command_id)
            if entry is not None and entry.result is not None:
                del self._outcomes[command_id]
            else:
                durable = durable.with_journal(command_id, Journaled(uuid=uuid, result=result))
        return durable

    def _objection(self, command: Command, deadline: float, durable: Durable, vms: Vms, now: float) -> str | None:
        held = durable.held.get(command.uuid)
        if command.kind not in _KINDS:
            return f"command {command.kind} is not known here"
        if now >= deadline:
            return "its deadline has passed"
        if held is None or held.vm.epoch != command.epoch:
            return f"epoch {command.epoch} is not the one held here"
        if command.kind == CommandKind.CANCEL_MIGRATION:
            open_here = leaving.is_open(durable, command.uuid, command.attempt) or command.attempt in self._waiting
            return None if open_here else "no such migration is under way"
        if command.kind == CommandKind.MIGRATE and command.migration is None:
            return "it does not say where to"
        with_disks = command.migration is not None and command.migration.options.local_disks
        if command.kind == CommandKind.MIGRATE and held.leaving:
            return leaving.objection(durable, command.uuid, vms.boot_id, None, with_disks)
        if _must_wait(command, vms):
            return None
        if command.kind == CommandKind.MIGRATE:
            return leaving.objection(durable, command.uuid, vms.boot_id, vms.facts[command.uuid], with_disks)
        return None if _runs(command, vms) else "the VM does not run"

    def done(self, event: Acted) -> None:
        """A reboot returned."""
        outcome = Outcome.FAILED if event.error or event.refused else Outcome.DONE
        self._ended(self._running.pop(event.uuid), event.uuid, outcome, event.error or event.refused)

    def _ended(self, command_id: str, uuid: str, outcome: Outcome, detail: str) -> None:
        result = CommandResult(id=command_id, outcome=outcome, detail=clean_text(detail, 500))
        self._outcomes[command_id] = (uuid, result)

    def unacked(self, durable: Durable) -> bool:
        """Whether a result waits to be told."""
        return any(entry.result is not None and not entry.acked for entry in durable.journal.values())

    def results(self, durable: Durable, seq: int) -> tuple[CommandResult, ...]:
        """The results for report `seq`."""
        unacked = [entry.result for entry in durable.journal.values() if entry.result is not None and not entry.acked]
        results = tuple(unacked[:MAX_RESULTS_PER_REPORT])
        self._sent = (seq, frozenset(result.id for result in results))
        return results

    def acked(self, seq: int, durable: Durable) -> Durable:
        """Report `seq` is recorded."""
        if seq != self._sent[0]:
            return durable
        for command_id in self._sent[1]:
            entry = durable.journal[command_id]  # only what is acknowledged is ever dropped
            durable = durable.with_journal(command_id, msgspec.structs.replace(entry, acked=True))
        return durable


def _rejected(durable: Durable, command: Command, why: str) -> Durable:
    result = CommandResult(id=command.id, outcome=Outcome.REJECTED, detail=clean_text(why, 500))
    if command.kind == CommandKind.MIGRATE:
        durable = leaving.rejected(durable, command.uuid, command.id, why)
    return durable.with_journal(command.id, Journaled(uuid=command.uuid, result=result))


def _must_wait(command: Command, vms: Vms) -> bool:
    """Something else is being done to the VM, or it is not known now whether it runs."""
    seen = vms.facts.get(command.uuid)
    return command.uuid in vms.in_flight or seen is None or not seen.libvirt_ok


def _runs(command: Command, vms: Vms) -> bool:
    domain = vms.facts[command.uuid].domain
    return domain is not None and domain.active
