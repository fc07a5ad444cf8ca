"""Memory errors that the memory controllers have counted: `memory-errors-corrected`, `memory-errors-uncorrected`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

CORRECTED, UNCORRECTED = "memory-errors-corrected", "memory-errors-uncorrected"
MANY_CORRECTED = 10


@dataclass(frozen=True, slots=True)
class MemoryErrors:
    """Errors of one memory controller since the host booted."""

    corrected: int
    uncorrected: int


@dataclass(frozen=True, slots=True)
class EdacCheck:
    """New errors of each controller. An uncorrected one from before the agent started counts as new."""

    controllers: Path = Path("/sys/devices/system/edac/mc")
    name: str = "edac"
    interval_s: float = 60.0
    timeout_s: float = 10.0
    codes: ClassVar[Mapping[str, Code]] = {
        CORRECTED: Code(Severity.WARNING, clear_after=60),
        UNCORRECTED: Code(Severity.CRITICAL, clear_after=1440),
    }

    def read(self) -> dict[str, MemoryErrors]:
        """The counters by controller; empty where there are none."""
        found = sorted(self.controllers.glob("mc[0-9]*"))
        return {path.name: MemoryErrors(_count(path / "ce_count"), _count(path / "ue_count")) for path in found}

    def symptoms(
        self, reading: Mapping[str, MemoryErrors], before: Mapping[str, MemoryErrors] | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """Controllers with new errors."""
        for name, now in reading.items():
            was = (before or {}).get(name, MemoryErrors(now.corrected, 0))
            if now.corrected - was.corrected >= MANY_CORRECTED:
                text = f"{name}: {now.corrected - was.corrected} corrected errors within {self.interval_s:g} s"
                yield Symptom(CORRECTED, name, text)
            if now.uncorrected > was.uncorrected:
                yield Symptom(UNCORRECTED, name, f"{name}: {now.uncorrected} uncorrected errors since the host booted")


def _count(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0  # the driver was unloaded meanwhile, or does not count these


def checks(config: Config) -> list[EdacCheck]:
    """The check, for `chime.checks`."""
    return [EdacCheck()]
