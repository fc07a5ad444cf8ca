"""The faults that this node reports: what its checks have found, and what the agent has met itself. Volatile.

Rules: a code stands once, with its newest text; that something else is wrong, or nothing any more, is told at once, a
new text with the next heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from wire import messages as m
from wire.text import clean_text
from wire.types import Severity
from wire.words import FaultCode

MAX_TEXT = 500
MAX_CHECKED = 200


class Faults:
    """`hurry(now)` lets the next heartbeat go at once."""

    def __init__(self, hurry: Callable[[float], None]) -> None:
        self._hurry = hurry
        self._own: dict[str, m.Fault] = {}
        self._checked: tuple[m.Fault, ...] = ()
        self._overdue: set[str] = set()

    def all(self) -> tuple[m.Fault, ...]:
        """What is to be reported."""
        return (*self._own.values(), *self._checked)

    def __contains__(self, code: str) -> bool:
        """Whether the agent has met this itself, and it lasts."""
        return code in self._own

    def met(self, code: str, text: str, now: float) -> bool:
        """The agent has met a fault. Returns whether it is a new one."""
        new = code not in self._own
        severity = Severity.WARNING if code == FaultCode.LIBVIRT_SLOW else Severity.CRITICAL
        self._own[code] = m.Fault(code=code, text=clean_text(text, MAX_TEXT), severity=severity)
        if new:
            self._hurry(now)
        return new

    def over(self, code: str, now: float | None) -> None:
        """It is over; `now` None: that may wait for the next heartbeat."""
        if self._own.pop(code, None) is not None and now is not None:
            self._hurry(now)

    def overdue(self, what: str, text: str, now: float) -> bool:
        """A call of libvirt (`what` names it) has not returned in time. Returns whether that is new."""
        self._overdue.add(what)
        return self.met(FaultCode.LIBVIRT_SLOW, text, now)

    def returned(self, what: str, now: float) -> None:
        """That call has returned."""
        self._overdue.discard(what)
        if not self._overdue:
            self.over(FaultCode.LIBVIRT_SLOW, now)

    def checked(self, faults: Iterable[m.Fault], now: float) -> None:
        """What all checks of the host say now."""
        new = tuple(msgspec.structs.replace(f, text=clean_text(f.text, MAX_TEXT)) for f in list(faults)[:MAX_CHECKED])
        if {(f.code, f.severity) for f in new} != {(f.code, f.severity) for f in self._checked}:
            self._hurry(now)
        self._checked = new
