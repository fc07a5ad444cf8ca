"""The three streams: what is on a terminal, what may have colour, one question, progress that redraws itself.

Results go to stdout, everything said to a person to stderr. A reader that goes away (`| head`) ends the
output, not the command: what was begun is still finished, and its exit code is still right. All text passes through
here, and none of it does anything to the terminal but what `render` has drawn.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live

from wire.text import escaped

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
REDRAWS_PER_S = 2
Draw = Callable[[int, int], RenderableType]
"""Makes a picture of at most so many columns and lines."""


class Terminal:
    """Standard input, output and error of one command."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> None:
        self._in, self._out, self._err = stdin, stdout, stderr
        self._environ = environ
        self._live: Live | None = None
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

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return shutil.get_terminal_size((120, 40)).lines

    def write(self, text: str) -> None:
        """Part of the result, to stdout, with escapes for what is not seen."""
        self.draw(escaped(text))

    def draw(self, text: str) -> None:
        """The same of what `render` made, which may hold colours and has escaped what is not its own."""
        if self.closed:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            self.closed = True
            _forget(self._out)

    def say(self, text: str) -> None:
        """A line for a person, to stderr, with escapes for what is not seen."""
        self.end_progress()
        try:
            self._err.write(escaped(text) + "\n")
            self._err.flush()
        except BrokenPipeError:
            _forget(self._err)

    def live_progress(self, draw: Draw) -> None:
        """How far it is, on a terminal: a picture, drawn again and again in its place until `end_progress`."""
        console = _Console(file=self._err, force_terminal=True, highlight=False, _environ=self._environ)

        def picture() -> RenderableType:
            return draw(console.width, console.height - 1)

        self.end_progress()
        self._live = Live(console=console, get_renderable=picture, refresh_per_second=REDRAWS_PER_S,
                          transient=True, redirect_stdout=False, redirect_stderr=False,
                          vertical_overflow="crop")  # fmt: skip
        self._live.start(refresh=True)

    def redraw(self) -> None:
        """Draws the picture of `live_progress` now."""
        if self._live:
            self._live.refresh()

    def end_progress(self) -> None:
        """Removes the picture."""
        live, self._live = self._live, None
        if live:
            live.stop()

    def pause(self, seconds: float) -> None:
        """Waits between two showings."""
        time.sleep(seconds)

    def ask(self, question: str) -> bool:
        """Asks; only y and yes are a yes. Call it only if `can_ask`."""
        self._err.write(f"{escaped(question)} [y/N] ")
        self._err.flush()
        try:
            answer = self._in.readline()
        except KeyboardInterrupt:
            answer = ""
        if not answer.endswith("\n"):
            self.say("")
        return answer.strip().lower() in ("y", "yes")


class _Console(Console):
    """Leaves the cursor alone: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def _forget(stream: TextIO) -> None:
    """Lets the interpreter flush `stream` at exit without an error."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
    except (OSError, ValueError):
        pass
