"""How far a migration is, on standard error: a line that is written over on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

import msgspec

from wire.local.usage import say
from wire.messages import MigrationProgress
from wire.text import escaped_line

WIDTH = 30
PLAIN_S = 5.0


def percent(progress: MigrationProgress) -> int:
    """How much is done."""
    done = progress.total_mib - progress.remaining_mib
    return max(0, min(100, 100 * done // progress.total_mib)) if progress.total_mib else 0


def in_words(progress: dict[str, Any]) -> str:
    """The same of what the agent's status has."""
    return text_of(msgspec.convert(progress, MigrationProgress))


def text_of(progress: MigrationProgress) -> str:
    """One line."""
    return (
        f"{percent(progress)} %, {progress.remaining_mib} of {progress.total_mib} MiB left, "
        f"{progress.rate_mib_s} MiB/s, pass {progress.iteration}"
    )


class ProgressLine:
    """Of one VM; use as a context manager. `show` may be called from another thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic() - PLAIN_S
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)

    def show_plain(self, progress: dict[str, Any]) -> None:
        """The same, as the agent's status has it."""
        self.show(msgspec.convert(progress, MigrationProgress))

    def show(self, progress: MigrationProgress) -> None:
        """Shows how far it is."""
        if self._terminal:
            filled = WIDTH * percent(progress) // 100
            line = f"{escaped_line(self._name)} [{'#' * filled}{'.' * (WIDTH - filled)}] {text_of(progress)}"
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        elif time.monotonic() >= self._shown_at + PLAIN_S:
            self._shown_at = time.monotonic()
            say(f"{self._name}: {text_of(progress)}")
