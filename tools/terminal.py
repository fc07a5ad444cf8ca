"""The three streams: what is on a terminal, what may have colour, one question, one line of progress.

Results go to stdout, everything said to a person to stderr. A reader that goes away (`| head`) ends the
output, not the command: what was begun is still finished, and its exit code is still right.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import TextIO

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
ERASE_LINE = "\r\x1b[K"


class Terminal:
    """Standard input, output and error of one command."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> None:
        self._in, self._out, self._err = stdin, stdout, stderr
        self._progress = ""
        self.closed = False  # nobody reads stdout any more
        self.out_is_terminal = stdout.isatty() and environ.get("TERM") != "dumb"
        self.err_is_terminal = stderr.isatty() and environ.get("TERM") != "dumb"
        self.can_ask = stdin.isatty() and stderr.isatty()
        self.colour = self.out_is_terminal and not environ.get("NO_COLOR")
        self.ascii_only = (stdout.encoding or "ascii").lower().replace("-", "") != "utf8"

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return shutil.get_terminal_size((120, 40)).columns

    def write(self, text: str) -> None:
        """Part of the result, to stdout."""
        if self.closed:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            self.closed = True
            _forget(self._out)

    def say(self, text: str) -> None:
        """A line for a person, to stderr."""
        try:
            if self._progress and self.err_is_terminal:
                self._err.write(ERASE_LINE)
            self._progress = ""
            self._err.write(text + "\n")
            self._err.flush()
        except BrokenPipeError:
            _forget(self._err)

    def progress(self, text: str, seconds: float) -> None:
        """How far it is: one line that changes on a terminal, else a line per change."""
        if not self.err_is_terminal:
            if text != self._progress:
                self.say(text)
                self._progress = text
            return
        self._progress = text
        self._err.write(ERASE_LINE + f"{text} ({seconds:.0f} s)"[: max(20, self.width - 1)])
        self._err.flush()

    def end_progress(self) -> None:
        """Removes the changing line."""
        if self._progress and self.err_is_terminal:
            self._err.write(ERASE_LINE)
            self._err.flush()
        self._progress = ""

    def pause(self, seconds: float) -> None:
        """Waits between two showings."""
        time.sleep(seconds)

    def ask(self, question: str) -> bool:
        """Asks; only y and yes are a yes. Call it only if `can_ask`."""
        self._err.write(f"{question} [y/N] ")
        self._err.flush()
        try:
            answer = self._in.readline()
        except KeyboardInterrupt:
            answer = ""
        if not answer.endswith("\n"):
            self.say("")
        return answer.strip().lower() in ("y", "yes")


def _forget(stream: TextIO) -> None:
    """Lets the interpreter flush `stream` at exit without an error."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
    except (OSError, ValueError):
        pass
