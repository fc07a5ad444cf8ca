"""Software RAID: `raid-degraded`, from /proc/mdstat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

DEGRADED = "raid-degraded"
ARRAY = re.compile(r"^(?P<name>md\S*) : (?P<state>active|inactive)(?P<rest>.*)$")
DISKS = re.compile(r"\[(?P<wanted>\d+)/(?P<there>\d+)\] \[[U_]+\]")
FAILED_DISK = re.compile(r"(\S+?)\[\d+\](?:\([A-Z]\))*\(F\)")


@dataclass(frozen=True, slots=True)
class RaidCheck:
    """Arrays that lack a disk or are not active. A rebuild that is under way still lacks one."""

    mdstat: Path = Path("/proc/mdstat")
    name: str = "raid"
    interval_s: float = 30.0
    timeout_s: float = 10.0
    codes: ClassVar[Mapping[str, Code]] = {DEGRADED: Code(Severity.CRITICAL)}

    def read(self) -> str:
        """The kernel's text; empty where there is no software RAID."""
        try:
            return self.mdstat.read_text()
        except FileNotFoundError:
            return ""

    def symptoms(self, reading: str, before: str | None, raised: frozenset[Key]) -> Iterable[Symptom]:
        """Arrays that are degraded."""
        name = failed = ""
        for line in reading.splitlines():
            if array := ARRAY.match(line):
                name, failed = array["name"], ", ".join(FAILED_DISK.findall(array["rest"]))
                if array["state"] == "inactive":
                    yield Symptom(DEGRADED, name, f"{name} is not active")
            elif name and (disks := DISKS.search(line)) and int(disks["there"]) < int(disks["wanted"]):
                which = f", failed: {failed}" if failed else ""
                text = f"{name} has {disks['there']} of {disks['wanted']} disks{which}"
                yield Symptom(DEGRADED, name, text)


def checks(config: Config) -> list[RaidCheck]:
    """The check, for `chime.checks`."""
    return [RaidCheck()]
