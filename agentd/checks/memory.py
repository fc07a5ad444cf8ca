"""Memory that runs out: `memory-full`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import psutil

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

MEMORY_FULL = "memory-full"
MARGIN_PERCENT = 2.0


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """Memory available without swapping. Cleared only `MARGIN_PERCENT` above the limit."""

    limit_percent: float
    name: str = "memory"
    interval_s: float = 15.0
    timeout_s: float = 5.0
    codes: ClassVar[Mapping[str, Code]] = {MEMORY_FULL: Code(Severity.WARNING, clear_after=1)}

    def read(self) -> float:
        """Percent of all memory that is available."""
        memory = psutil.virtual_memory()
        return 100.0 * memory.available / memory.total

    def symptoms(self, reading: float, before: float | None, raised: frozenset[Key]) -> Iterable[Symptom]:
        """Whether it is too little."""
        limit = self.limit_percent + (MARGIN_PERCENT if Key(MEMORY_FULL, "") in raised else 0.0)
        if reading < limit:
            yield Symptom(MEMORY_FULL, "", f"memory {reading:.0f} % free, limit {self.limit_percent:g} %")


def checks(config: Config) -> list[MemoryCheck]:
    """The check, for `chime.checks`."""
    return [MemoryCheck(config.memory_min_free_percent)]
