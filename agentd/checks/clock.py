"""The wall clock: `clock-unsynchronised`, as the kernel has it from whichever NTP daemon disciplines it.

It is of severity `info`: Chime measures time by clocks that need no synchronisation, guests and logs may care.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from agentd.checks.interface import Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

UNSYNCHRONISED = "clock-unsynchronised"
STA_UNSYNC = 0x0040


class Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as far as it is used; the rest is room."""

    _fields_: ClassVar = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """Whether the kernel says that its clock is not synchronised."""

    name: str = "clock"
    interval_s: float = 60.0
    timeout_s: float = 5.0
    codes: ClassVar[Mapping[str, Code]] = {UNSYNCHRONISED: Code(Severity.INFO, raise_after=10, clear_after=1)}

    def read(self) -> bool:
        """Synchronised or not: a read-only adjtimex(2). Raises OSError."""
        timex = Timex()
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
        if state < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return not timex.status & STA_UNSYNC

    def symptoms(self, reading: bool, before: bool | None, raised: frozenset[Key]) -> Iterable[Symptom]:
        """Not synchronised."""
        if not reading:
            yield Symptom(UNSYNCHRONISED, "", "the kernel says that the wall clock is not synchronised (NTP)")


def checks(config: Config) -> list[ClockCheck]:
    """The check, for `chime.checks`."""
    return [ClockCheck()]
