"""What the demo prints, the checks that it is made of, and `build/demo.json`."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

INDENT = " " * 11
COLOURS = {"green": "32", "red": "31", "bold": "1", "dim": "2", "cyan": "36"}


class Failed(Exception):
    """A check did not hold: what was expected, what was seen."""

    def __init__(self, expected: str, seen: object) -> None:
        super().__init__(f"expected: {expected}; seen: {seen}")
        self.expected = expected
        self.seen = str(seen)


class Look(NamedTuple):
    """One look at something: is it as expected, and what was seen."""

    ok: bool
    seen: object


class Timeline:
    """Prints steps, commands and checks with the seconds since the start; keeps the result of every step."""

    def __init__(self, report: Path) -> None:
        self._began = self._step_began = time.monotonic()
        self._colour = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._report = report
        self._step = ""
        self._title = ""
        self.steps: list[dict[str, Any]] = []
        self.write_report(ok=False)  # an earlier run's result must not be taken for this one's

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str, colour: str = "") -> None:
        """A line of the timeline, with its second."""
        print(f"{self._paint('dim', f'[{self.elapsed_s:6.1f} s]')} {self._paint(colour, text)}", flush=True)

    def note(self, text: str) -> None:
        """Lines without a time, below the last one."""
        print(textwrap.indent(text.rstrip("\n"), INDENT), flush=True)

    def command(self, words: str, output: str, prompt: str = "$") -> None:
        """What a person would type, and what it answers."""
        print(f"{INDENT}{self._paint('cyan', f'{prompt} {words}')}", flush=True)
        if output.strip():
            self.note(textwrap.indent(output.rstrip("\n"), "  "))

    def begin(self, title: str) -> None:
        """A step begins."""
        self._step = f"step {len(self.steps) + 1}"
        self._title = title
        self._step_began = time.monotonic()
        print(flush=True)
        self.say(f"{self._step}: {title}", "bold")

    def end(self, detail: str) -> None:
        """The step is done, and everything in it was checked."""
        seconds = self._record(True, detail)
        self.say(f"{self._step}: ok ({seconds:.2f} s): {detail}", "green")

    def fail(self, error: BaseException) -> None:
        """The step failed, or was interrupted."""
        if not self._title:
            self.begin("prepare")
        interrupted = isinstance(error, KeyboardInterrupt)
        detail = "interrupted" if interrupted else str(error) or type(error).__name__
        seconds = self._record(False, detail)
        self.say(f"{self._step}: {'INTERRUPTED' if interrupted else 'FAILED'} ({seconds:.2f} s)", "red")
        if isinstance(error, Failed):
            self.note(f"expected: {error.expected}\nseen:     {error.seen}")
        elif not interrupted:
            self.note(f"{type(error).__name__}: {error}")

    def expect(self, what: str, look: Callable[[], Look], timeout_s: float = 0.0, period_s: float = 0.05) -> object:
        """Look until it is as expected, and give what was seen. Raises Failed when it is not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            ok, seen = look()
            if ok:
                self.say(f"  checked: {what}")
                return seen
            if time.monotonic() >= deadline:
                raise Failed(what + (f" within {timeout_s:g} s" if timeout_s else ""), seen)
            time.sleep(period_s)

    def logs(self, files: Iterable[Path], lines: int = 15) -> None:
        """The ends of log files."""
        for file in files:
            if file.exists():
                tail = file.read_text(errors="replace").splitlines()[-lines:]
                print(f"\n--- the end of {file.parent.parent.name}/{file.name}", flush=True)
                print("\n".join(tail), flush=True)

    def write_report(self, ok: bool) -> None:
        """`{"ok", "steps": [{"name", "ok", "seconds", "detail"}]}`."""
        self._report.parent.mkdir(parents=True, exist_ok=True)
        self._report.write_text(json.dumps({"ok": ok, "steps": self.steps}, indent=2) + "\n")

    def _record(self, ok: bool, detail: str) -> float:
        seconds = time.monotonic() - self._step_began
        self.steps.append({"name": self._title, "ok": ok, "seconds": round(seconds, 3), "detail": detail})
        self._title = ""
        return seconds

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self._colour and colour else text
