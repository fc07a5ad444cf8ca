"""S7: no word of a node moves, ends or blocks a VM that it neither owns nor was sent.

With a liar in the run each turn of the server handles one message, or none, so that what a commit follows from is
known. Judged is each commit: in a turn of the liar's nothing of another's may change, and in any turn no VM may come to
the liar that neither a person nor an operation of his sent there. Rules: what the liar has ever owned or was sent is
`theirs`, and nothing is demanded of it any more; what an operation goes on with, because the liar was heard, is that
operation's (its evidence is judged by S2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from chimed.core.state import rows as r
from tests.fakes.store import FakeDisk
from tests.sim.engine import Violation
from tests.sim.operators import NAME as OPERATOR
from wire.types import OperationState

if TYPE_CHECKING:
    from tests.sim.server import ServerHost

Before = list[tuple[r.Change, r.Row | None]]
OF_VM = ("node", "epoch", "desired", "start_serial", "attempt", "arrival", "doubt", "failed", "adopt", "spec", "held")
OF_NODE = ("public_key", "admin_state", "drain_serial", "evidence", "boot_id", "address", "networks", "held")
OF_META = ("generation", "history", "ahead")
WIDE = ("rebuild", "evacuate", "migrate")


def _turns_to_recovery(row: r.Row | None, old: r.Row | None) -> bool:
    return isinstance(row, r.Meta) and isinstance(old, r.Meta) and row.recovering != old.recovering


class Trust:
    """`liars`: nodes whose key somebody else has. `theirs`: VMs that a liar has owned or was sent. `spoil(uuid)` is
    called when one becomes that."""

    def __init__(self, spoil: Callable[[str], None]) -> None:
        self._spoil = spoil
        self.liars: set[str] = set()
        self.theirs: set[str] = set()
        self._sent: set[tuple[str, str]] = set()

    def begins_to_lie(self, node: str, disk: FakeDisk, owned: Iterable[str]) -> None:
        """Somebody has the node's key from now on. `owned`: what it owned at any time before."""
        self.liars.add(node)
        rows: Any = disk.tables
        here = [vm.uuid for vm in rows["vms"].values() if vm.node == node]
        coming = [row.uuid for row in rows["migrations"].values() if node in (row.target, row.source)]
        left = [row.uuid for row in rows["releases"].values() if row.node == node]
        sent = [uuid for name, uuid in self._sent if name == node]
        for uuid in sorted({*here, *coming, *left, *owned, *sent}):
            self.sent(node, uuid)

    def sent(self, node: str, uuid: str) -> None:
        """Somebody who may has sent the VM to the node."""
        self._sent.add((node, uuid))
        if node in self.liars and uuid not in self.theirs:
            self.theirs.add(uuid)
            self._spoil(uuid)

    def committed(self, server: ServerHost, before: Before) -> None:
        """What was committed, judged. Raises Violation."""
        if not self.liars:
            return
        speaker = server.process.speaker if server.process is not None else ""
        operated = _operated(server.disk, before)
        going_on = {uuid for change, old in before if (uuid := _goes_on(old, change.row)) in operated}
        for change, old in before:
            self._note_sent(old, change.row, going_on, speaker)
        takers = {c.row.node for c, _ in before if isinstance(c.row, r.Vm) and c.row.uuid in self.theirs}
        begins_or_ends = any(_turns_to_recovery(change.row, old) for change, old in before)
        for change, old in before:
            if isinstance(change.row or old, r.Vm):
                self._arrives(old, change.row, speaker)
            if begins_or_ends:
                continue  # he was the last to be heard: what follows is what the others have said before
            if speaker in self.liars and not (isinstance(old, r.Node) and old.name in takers):
                self._judge(speaker, change, old, going_on)

    def _note_sent(self, old: r.Row | None, row: r.Row | None, going_on: set[str], speaker: str) -> None:
        if isinstance(row, r.Migration):
            self.sent(row.target, row.uuid)
        elif isinstance(row, r.Vm):
            asked = speaker == OPERATOR and not row.arrival
            placed = row.uuid in going_on or asked or (old is None and speaker not in self.liars)
            if placed:
                self.sent(row.node, row.uuid)

    def _arrives(self, old: r.Row | None, new: r.Row | None, speaker: str) -> None:
        if isinstance(new, r.Vm) and new.node in self.liars and new.uuid not in self.theirs:
            where = old.node if isinstance(old, r.Vm) else "nowhere"
            told = f", in a turn of {speaker}'s" if speaker else ""
            raise Violation("S7", f"{new.name} comes from {where} to {new.node}, where nobody sent it{told}", new.uuid)

    def _judge(self, speaker: str, change: r.Change, old: r.Row | None, going_on: set[str]) -> None:
        row: Any = change.row if change.row is not None else old
        uuid = getattr(row, "uuid", "")
        if uuid in self.theirs or (uuid in going_on and (old is None or isinstance(row, r.Vm | r.Release))):
            return
        what = _changed(old, change.row)
        concerns = {getattr(row, "node", ""), getattr(row, "source", ""), getattr(row, "target", "")}
        is_others = isinstance(row, r.Release | r.Command) and row.node not in self.liars
        is_others |= isinstance(row, r.Migration) and not concerns & self.liars
        is_others |= isinstance(row, r.Vm) and bool(what & set(OF_VM))
        is_others |= isinstance(row, r.Node) and row.name not in self.liars and bool(what & set(OF_NODE))
        if isinstance(row, r.Meta) and isinstance(old, r.Meta):
            is_others = bool(what & set(OF_META)) or bool(set(old.waiting_for) - set(row.waiting_for) - self.liars)
        if is_others:
            text = f"a word of {speaker} changes {change.table} {change.key}: {', '.join(sorted(what)) or 'gone'}"
            raise Violation("S7", text, uuid or getattr(row, "name", ""))


def _changed(old: r.Row | None, new: r.Row | None) -> set[str]:
    """The fields that differ; all of a row that comes or goes."""
    fields = set((new or old).__struct_fields__)  # type: ignore[union-attr]
    if old is None or new is None:
        return fields
    return {name for name in fields if getattr(old, name) != getattr(new, name)}


def _goes_on(old: r.Row | None, new: r.Row | None) -> str:
    """The VM, if that is how an operation goes on with it: it is started elsewhere, or its migration begins."""
    if not isinstance(old, r.Vm) or not isinstance(new, r.Vm):
        return ""
    elsewhere = new.node != old.node and not new.arrival
    begins = new.node == old.node and new.epoch == old.epoch and bool(new.attempt) and not old.attempt
    return new.uuid if elsewhere or begins else ""


def _operated(disk: FakeDisk, before: Before) -> set[str]:
    """VMs that an operation moves, or has moved with this commit."""
    operations: list[Any] = list(disk.tables["operations"].values())
    operations += [old for _, old in before if isinstance(old, r.Operation)]
    running = {op.id: op for op in operations if op.state == OperationState.RUNNING and op.kind in WIDE}
    return {name for op in running.values() for name in (op.subject, *(step.name for step in op.steps))}
