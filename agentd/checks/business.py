"""The business network: carrier and address of the node's interface, and which targets answer over it.

Rules: one target of several that answers is enough for the network to be up: a peer may be off, which is no fault of
this node, so `business-target` is of severity `info`. An answer proves both directions between here and that target.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from agentd.checks import echo
from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

DOWN, TARGET = "business-network-down", "business-target"
TRIES = 3


@dataclass(frozen=True, slots=True)
class BusinessReading:
    """The interface (`problem`: why it cannot carry anything), and the targets that answered."""

    problem: str
    answered: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BusinessCheck:
    """The node's business interface. Three pings before a target counts as silent, so one reading raises the fault;
    two good ones clear it, so a link that flaps is one fault."""

    interface: str
    targets: tuple[str, ...]
    interval_s: float
    sys: Path = Path("/sys/class/net")
    name: str = "business"
    timeout_s: float = 15.0
    codes: ClassVar[Mapping[str, Code]] = {
        DOWN: Code(Severity.CRITICAL),
        TARGET: Code(Severity.INFO, raise_after=2),
    }

    def read(self) -> BusinessReading:
        """Looks at the interface and pings the targets. Raises OSError when it may not ping."""
        problem = self._problem()
        if problem or not self.targets:
            return BusinessReading(problem)
        try:
            return BusinessReading("", echo.answering(self.interface, self.targets, TRIES))
        except OSError as error:
            return BusinessReading(self._raise_unless_gone(error))

    def _problem(self) -> str:
        if not (self.sys / self.interface).exists():
            return "does not exist"
        try:
            carrier = (self.sys / self.interface / "carrier").read_text().strip() == "1"
        except OSError:
            return "is down"
        if not carrier:
            return "has no link"
        addresses = psutil.net_if_addrs().get(self.interface, [])
        if not any(address.family in (socket.AF_INET, socket.AF_INET6) for address in addresses):
            return "has no address"
        return ""

    def _raise_unless_gone(self, error: OSError) -> str:
        problem = self._problem()
        if not problem:
            raise error
        return problem

    def symptoms(
        self, reading: BusinessReading, before: BusinessReading | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """The network is down, or single targets do not answer."""
        silent = [target for target in self.targets if target not in reading.answered]
        if reading.problem:
            yield Symptom(DOWN, "", f"business interface {self.interface} {reading.problem}")
        elif silent and not reading.answered:
            yield Symptom(DOWN, "", f"over business interface {self.interface} none answers of {', '.join(silent)}")
        else:
            for target in silent:
                yield Symptom(TARGET, target, f"{target} does not answer over {self.interface}")


def checks(config: Config) -> list[BusinessCheck]:
    """The check where a business interface is configured, for `chime.checks`."""
    if not config.business_interface:
        return []
    timeout_s = TRIES * echo.TRY_S + 5.0
    return [
        BusinessCheck(
            config.business_interface, config.business_targets, config.business_check_s, timeout_s=timeout_s
        )
    ]
