"""What a guest counted: the serial file to which it prints, on storage that all nodes share.

A second oracle that is nothing of Chime: two runs of one guest at the same time show as interleaved lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COUNTER = re.compile(r"chime-guest (\S+) counter (\d+) run ([0-9a-f]+)$")
CRASH = re.compile(r"Kernel panic|general protection fault|BUG:|Oops|segfault")
PRINTED = 8000  # characters of a console, for a message


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

    def ran_once(self, incoming: bool) -> bool:
        """It counted every number once: nobody started it anew. `incoming`: its process came by a live migration.
        False: the emulation ended it, and it booted again by itself.

        While memory is copied in several rounds, qemu's emulation (TCG) now and then misses what the guest has written:
        its kernel panics on the target, and boots again in the same process. That is no doing of Chime's.
        """
        numbers = [count.number for count in self.counts()]
        if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return True
        printed = self.serial.read_text(errors="replace")
        assert incoming and CRASH.search(printed), f"{self.name} lost count, or was started again: {printed[-PRINTED:]}"
        print(f"{self.name}: the guest's kernel died of the emulation")
        return False
