"""What disks say of themselves: `smart-failing`, where smartctl is installed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from agentd.checks import bounded
from agentd.checks.interface import CheckFailed, Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

FAILING = "smart-failing"
MAX_DISKS = 64
MAX_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class SmartCheck:
    """The overall health of each disk that smartctl finds; a disk that sleeps is not woken."""

    smartctl: str
    name: str = "smart"
    interval_s: float = 3600.0
    timeout_s: float = 120.0
    codes: ClassVar[Mapping[str, Code]] = {FAILING: Code(Severity.CRITICAL, clear_after=1)}

    def read(self) -> dict[str, Any]:
        """smartctl's JSON by device. Raises CheckFailed, CheckStuck."""
        deadline = time.monotonic() + self.timeout_s
        found = self._ask(deadline, "--scan").get("devices", [])
        names = [(device["name"], device.get("type", "auto")) for device in found[:MAX_DISKS]]
        return {name: self._ask(deadline, "-H", "-n", "standby", "-d", kind, name) for name, kind in names}

    def _ask(self, deadline: float, *words: str) -> dict[str, Any]:
        output = bounded.run([self.smartctl, "-j", *words], max(deadline - time.monotonic(), 0.1), MAX_BYTES)
        try:
            answer = json.loads(output.text)
        except (ValueError, RecursionError):
            raise CheckFailed(f"smartctl {' '.join(words)}: no JSON in its output") from None
        return answer if isinstance(answer, dict) else {}

    def symptoms(
        self, reading: Mapping[str, Any], before: Mapping[str, Any] | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """Disks that say they are failing; one that slept or could not be asked keeps what it said before."""
        for device, answer in reading.items():
            passed = answer.get("smart_status", {}).get("passed")
            if passed is False or (passed is None and Key(FAILING, device) in raised):
                about = " ".join(str(answer[key]) for key in ("model_name", "serial_number") if key in answer)
                yield Symptom(FAILING, device, f"{device} {about}".strip() + " says that it is failing (SMART)")


def checks(config: Config) -> list[SmartCheck]:
    """The check where there is a smartctl, for `chime.checks`."""
    smartctl = shutil.which("smartctl", path=bounded.ENVIRONMENT["PATH"])
    return [SmartCheck(smartctl)] if smartctl else []
