"""What a fault check is. Built-in checks and those of a site have the same interface.

Rules: `read` looks at the host and may block or raise, it has a thread of its own; `symptoms` is pure. A check reports
what is bad in this reading, and never what it remembers: raising and clearing is `judging`'s. The text of a symptom
says what was seen, and does not change while nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from wire.types import Severity

GROUP = "chime.checks"
"""The group of entry points: each a callable that takes the agent's `Config` and returns checks."""


class CheckStuck(Exception):
    """A reading was given up after so many seconds: the fault `check-stuck`."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s


class CheckFailed(Exception):
    """A reading could not be had; the text says why: the fault `check-failed`."""


class Key(NamedTuple):
    """What hysteresis is kept for: a fault code, and the disk, path or interface that it is about."""

    code: str
    subject: str


@dataclass(frozen=True, slots=True)
class Code:
    """A fault code that a check may raise: how urgent it is, after how many bad readings in a row it is raised, and
    after how many good ones it is cleared."""

    severity: Severity
    raise_after: int = 1
    clear_after: int = 2


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something that is bad in one reading. `severity` None: as its code has it."""

    code: str
    subject: str
    text: str
    severity: Severity | None = None

    @property
    def key(self) -> Key:
        """What it is about."""
        return Key(self.code, self.subject)


class Check(Protocol):
    """A fault check. `name` is what `checks_off` and faults about the check itself name it by."""

    @property
    def name(self) -> str:
        """Unique among the node's checks."""

    @property
    def codes(self) -> Mapping[str, Code]:
        """The fault codes it may raise."""

    @property
    def interval_s(self) -> float:
        """From the start of one reading to the start of the next."""

    @property
    def timeout_s(self) -> float:
        """A reading that takes longer is the fault `check-stuck`."""

    def read(self) -> Any:
        """Looks at the host. Any exception is the fault `check-failed`."""

    def symptoms(self, reading: Any, before: Any, raised: frozenset[Key]) -> Iterable[Symptom]:
        """What is bad in `reading`; `before` is the reading before it (None: there is none), `raised` what is raised
        now. Pure."""
