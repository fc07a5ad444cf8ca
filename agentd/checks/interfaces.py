"""Network interfaces: packets lost to errors or dropped, links that are down or slower than they should be.

Watched are real devices (not the VMs' taps), and whatever the configuration names. A link that is down is a fault when
the configuration names it, or when it is a port of a bond or bridge: an unused socket is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

ERRORS, DROPS = "network-errors", "network-drops"
DOWN, SLOW = "link-down", "link-slow"
MIN_ERRORS, MIN_DROPS = 10, 100
"""So many in one reading at least: of a handful of packets one is a large share and no fault."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. `carrier` False: no link; `speed_mbps` 0: not known. Counters are since it was made."""

    carrier: bool
    speed_mbps: int = 0
    is_port: bool = False
    packets: int = 0
    errors: int = 0
    drops: int = 0


@dataclass(frozen=True, slots=True)
class InterfaceCheck:
    """`links`: interfaces that must have a link, with the least speed in Mb/s (0: any)."""

    links: Mapping[str, int]
    error_percent: float
    drop_percent: float
    sys: Path = Path("/sys/class/net")
    name: str = "interfaces"
    interval_s: float = 30.0
    timeout_s: float = 10.0
    codes: ClassVar[Mapping[str, Code]] = {
        ERRORS: Code(Severity.WARNING, raise_after=2, clear_after=10),
        DROPS: Code(Severity.WARNING, raise_after=2, clear_after=10),
        DOWN: Code(Severity.CRITICAL),
        SLOW: Code(Severity.WARNING, raise_after=2),
    }

    def read(self) -> dict[str, Interface]:
        """What is watched, by name."""
        counters, stats = psutil.net_io_counters(pernic=True), psutil.net_if_stats()
        found = {}
        for name, count in counters.items():
            if name in self.links or (self.sys / name / "device").exists():
                found[name] = Interface(
                    carrier=_carrier(self.sys / name),
                    speed_mbps=stats[name].speed if name in stats else 0,
                    is_port=(self.sys / name / "master").exists(),
                    packets=count.packets_recv + count.packets_sent,
                    errors=count.errin + count.errout,
                    drops=count.dropin + count.dropout,
                )
        return found

    def symptoms(
        self, reading: Mapping[str, Interface], before: Mapping[str, Interface] | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """What is wrong with each interface."""
        for name, least_mbps in self.links.items():
            if name not in reading:
                yield Symptom(DOWN, name, f"{name} does not exist")
            elif 0 < reading[name].speed_mbps < least_mbps and reading[name].carrier:
                text = f"{name} runs at {reading[name].speed_mbps} Mb/s instead of {least_mbps} Mb/s"
                yield Symptom(SLOW, name, text)
        for name, now in reading.items():
            if not now.carrier and (name in self.links or now.is_port):
                yield Symptom(DOWN, name, f"{name} has no link")
            if before is not None and name in before:
                yield from self._losses(name, before[name], now)

    def _losses(self, name: str, was: Interface, now: Interface) -> Iterable[Symptom]:
        errors, drops = now.errors - was.errors, now.drops - was.drops
        seen = max(now.packets - was.packets, 0) + max(errors, 0) + max(drops, 0)
        for code, lost, least, limit in (
            (ERRORS, errors, MIN_ERRORS, self.error_percent),
            (DROPS, drops, MIN_DROPS, self.drop_percent),
        ):
            if lost >= least and 100.0 * lost > limit * seen:
                what = "damaged" if code == ERRORS else "dropped"
                share = 100.0 * lost / seen
                yield Symptom(code, name, f"{name}: {lost} of {seen} packets {what} ({share:.3g} %, limit {limit:g} %)")


def _carrier(device: Path) -> bool:
    """Whether there is a link; an interface that was taken down has none (reading its carrier is an error then)."""
    try:
        return (device / "carrier").read_text().strip() == "1"
    except OSError:
        return False


def checks(config: Config) -> list[InterfaceCheck]:
    """The check, for `chime.checks`."""
    return [InterfaceCheck(config.links, config.network_error_percent, config.network_drop_percent)]
