"""What a guest counted: the serial file to which it prints, on storage that all nodes share.

A second oracle that is nothing of Chime: two runs of one guest at the same time show as interleaved lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COUNTER = re.compile(r"chime-guest (\S+) counter (\d+) run ([0-9a-f]+)$")


class Count(NamedTuple):
    """A line that a guest printed: `run` is another one for every boot of the guest."""

    number: int
    run: str


@dataclass(frozen=True)
class Guest:
    """A VM seen from outside: its name, and the serial file that it writes."""

    name: str
    serial: Path

    def counts(self) -> list[Count]:
        """All that it has printed, in the order of the file."""
        if not self.serial.exists():
            return []
        lines = self.serial.read_text(errors="replace").splitlines()
        found = [match for match in map(COUNTER.search, lines) if match]
        return [Count(int(match[2]), match[3]) for match in found if match[1] == self.name]

    def last(self) -> Count:
        """The newest line, (0, "") before the first."""
        return (self.counts() or [Count(0, "")])[-1]

    def runs(self) -> list[str]:
        """The runs in the order in which they print; a run that is there twice was interleaved with another."""
        found: list[str] = []
        for count in self.counts():
            if found[-1:] != [count.run]:
                found.append(count.run)
        return found
