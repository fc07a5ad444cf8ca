"""What programs say to people: results on stdout, lines on stderr, and what is wrong with a command line that docopt
refused, in one. (The daemons' grammar is small; `chime-tool` has its own reader and its own terminal.)"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence

from wire.text import escaped


def say(text: str) -> None:
    """Lines for a person, on stderr, with escapes for what is not seen."""
    print(escaped(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result, on stdout, with escapes for what is not seen. A reader that goes away (`| head`) ends the output, not
    the command."""
    try:
        print(escaped(text), flush=True)
    except BrokenPipeError:  # what is left would be flushed at the end
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def usage_line(text: str, grammar: str) -> str:
    """`text` is docopt's; `grammar` the text that it read. Names the words that do not fit, and the nearest known."""
    first = text.splitlines()[0] if text else ""
    words = re.findall(r"(?:Argument|Option)\((?:None|'[^']*'), '([^']*)'", first)
    if not words:
        return first if "requires" in first else "these arguments do not go together"
    known = set(re.findall(r"--?[a-z][a-z-]*|(?<=  )[a-z][a-z-]+(?= )", grammar))
    for word in words:
        if word.startswith("-") and word not in known:
            return f"unknown option {word}{_nearest(word, known)}"
    if words[0] in known:
        return f"{words[0]} needs more, or other arguments"
    return f"unexpected argument {words[0]!r}{_nearest(words[0], known)}"


def _nearest(word: str, known: set[str]) -> str:
    close: Sequence[str] = difflib.get_close_matches(word, sorted(known), 1, 0.6)
    return f", did you mean {close[0]}?" if close else ""
