"""Who decided what, why, caused by which message: written down only when someone wants to read it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from wire import messages as m
from wire.verbs import TYPE_OF


class Line(NamedTuple):
    """`who` did or saw `text` at `time`; `subjects`: the VMs and nodes that it concerns."""

    time: float
    who: str
    text: str
    subjects: frozenset[str]

    def __str__(self) -> str:
        return f"{self.time:10.3f}  {self.who:<10} {self.text}"


class Story:
    """The lines of one run. `on` False: nothing is written, so that ordinary runs are fast."""

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.lines: list[Line] = []
        self.names: dict[str, str] = {}

    def tell(self, time: float, who: str, text: str, *subjects: str) -> None:
        """A line, if anyone reads."""
        if self.on:
            for uuid, name in self.names.items():
                text = text.replace(uuid, name)
            about = frozenset(self.names.get(subject, subject) for subject in (who, *subjects))
            self.lines.append(Line(time, who, text, about))

    def of(self, subject: str) -> list[Line]:
        """The lines that concern a VM or node; all without a subject. Heartbeats are left out."""
        subject = self.names.get(subject, subject)
        return [
            line for line in self.lines if not subject or subject in line.subjects or f" {subject} " in f" {line.text} "
        ]


def in_words(body: m.Base) -> str:
    """A message, short: its kind and what matters of it."""
    kind = TYPE_OF[type(body)]
    if isinstance(body, m.Inventory):
        parts = [f"{vm.name}@{vm.epoch} {vm.desired}" for vm in body.vms]
        parts += [f"release {release.uuid}@{release.epoch}" for release in body.releases]
        parts += [f"{command.kind} {command.uuid}" for command in body.commands]
        hold = ", hold" if body.node.hold else ""
        return f"{kind} r{body.revision} {body.node.admin_state}{hold}: {', '.join(parts) or 'nothing new'}"
    if isinstance(body, m.Report):
        parts = [f"{vm.name or vm.uuid}@{vm.epoch} {vm.observed} {vm.problem}".rstrip() for vm in body.vms]
        parts += [f"released {release.uuid}@{release.epoch}" for release in body.released]
        parts += [f"{result.id} {result.outcome}" for result in body.results]
        drain = "" if body.drain is None else f", drain {body.drain.drain_serial} clean={body.drain.clean}"
        return f"{kind} #{body.seq}{' full' if body.full else ''}{drain}: {', '.join(parts) or 'nothing new'}"
    if isinstance(body, m.Mutation):
        values = {k: v for k, v in msgspec.structs.asdict(body).items() if k not in ("key", "spec")}
        return f"{kind} " + " ".join(f"{k}={v}" for k, v in values.items() if v not in (None, "", False))
    if isinstance(body, m.ErrorBody):
        return f"{kind} {body.code}: {body.message}"
    return kind


def is_noise(body: m.Base) -> bool:
    """Heartbeats and their acknowledgements tell nothing."""
    return isinstance(body, m.Heartbeat | m.HeartbeatAck)
