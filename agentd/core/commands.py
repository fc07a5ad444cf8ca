"""One-time commands: each takes effect at most once, whatever is repeated, late, or cut short.

A command is recorded before it is begun. What was begun by an agent that died is `interrupted`: it is not done again.
Late ones, and those for another epoch, are rejected without effect.
"""

from __future__ import annotations

from agentd.core.durable import Durable, Journaled
from agentd.core.effects import Act, Acted
from agentd.core.vms import NEVER, Vms
from wire.messages import Command, CommandResult
from wire.types import Outcome

MAX_WAITING = 100
REBOOT = "reboot"


class Commands:
    """Commands that wait for their turn, and which results the server has not acknowledged."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Command, float]] = {}
        self._running: dict[str, str] = {}
        self._unacked: set[str] = set()
        self._sent: tuple[int, set[str]] = (0, set())

    def interrupted(self, durable: Durable) -> Durable:
        """At the start: what a predecessor began and did not finish will not be done again."""
        for command_id, entry in durable.journal.items():
            if entry.result is None:
                result = CommandResult(
                    id=command_id, outcome=Outcome.INTERRUPTED, detail="the agent died while it carried this out"
                )
                durable = durable.with_journal(command_id, Journaled(uuid=entry.uuid, result=result))
        return durable

    def arrived(self, commands: tuple[Command, ...], durable: Durable, now: float) -> Durable:
        """Commands came with an inventory. Known ones are answered again, new ones queued until their deadline."""
        for command in commands:
            known = durable.journal.get(command.id)
            if known is not None:
                if known.result is not None:
                    self._unacked.add(command.id)
            elif command.id not in self._waiting and len(self._waiting) < MAX_WAITING:
                self._waiting[command.id] = (command, now + command.deadline_s)
        return durable

    def plan(self, durable: Durable, vms: Vms, now: float) -> tuple[Durable, list[Act], float]:
        """Begins what can begin, rejects what cannot. Returns also when to look again."""
        acts: list[Act] = []
        wake = NEVER
        for command, deadline in list(self._waiting.values()):
            why = self._objection(command, deadline, durable, vms, now)
            if why is None and command.uuid in vms.in_flight:
                wake = min(wake, deadline)
                continue
            del self._waiting[command.id]
            if why is not None:
                durable = self._ended(durable, command.id, command.uuid, Outcome.REJECTED, why)
                continue
            durable = durable.with_journal(command.id, Journaled(uuid=command.uuid))
            self._running[command.uuid] = command.id
            acts.append(vms.order_reboot(durable, command.uuid, command.force))
        return durable, acts, wake

    def _objection(self, command: Command, deadline: float, durable: Durable, vms: Vms, now: float) -> str | None:
        held = durable.held.get(command.uuid)
        if command.kind != REBOOT:
            return f"command {command.kind} is not known here"
        if now >= deadline:
            return "its deadline has passed"
        if held is None or held.vm.epoch != command.epoch:
            return f"epoch {command.epoch} is not the one held here"
        seen = vms.facts.get(command.uuid)
        if command.uuid in vms.in_flight:
            return None
        if seen is None or not seen.libvirt_ok or seen.domain is None or not seen.domain.active:
            return "the VM does not run"
        return None

    def done(self, event: Acted, durable: Durable) -> Durable:
        """A reboot returned."""
        command_id = self._running.pop(event.uuid, None)
        if command_id is None:
            return durable
        outcome = Outcome.FAILED if event.error or event.refused else Outcome.DONE
        return self._ended(durable, command_id, event.uuid, outcome, event.error or event.refused)

    def _ended(self, durable: Durable, command_id: str, uuid: str, outcome: Outcome, detail: str) -> Durable:
        self._unacked.add(command_id)
        result = CommandResult(id=command_id, outcome=outcome, detail=detail[:500])
        return durable.with_journal(command_id, Journaled(uuid=uuid, result=result))

    def unacked(self, durable: Durable) -> bool:
        """Whether a result waits to be told."""
        return any(key in durable.journal for key in self._unacked)

    def results(self, durable: Durable, seq: int) -> tuple[CommandResult, ...]:
        """The results for report `seq`."""
        entries = [(key, durable.journal[key].result) for key in self._unacked if key in durable.journal]
        results = tuple(result for _, result in entries if result is not None)
        self._sent = (seq, {result.id for result in results})
        return results

    def acked(self, seq: int) -> None:
        """Report `seq` is recorded."""
        if seq == self._sent[0]:
            self._unacked -= self._sent[1]
