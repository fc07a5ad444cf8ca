"""Foreign text made fit for a message: what libvirt, the kernel or a guest says may hold anything.

A field of free text is refused when it holds control characters or is too long (`types.py`), and a refused
report is worse than a shortened word: whoever puts text from outside into a message passes it through here.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

from wire.types import UNSEEN

_NOT_TEXT = re.compile(rf"[\x00-\x08\x0b-\x1f{UNSEEN}\ud800-\udfff]")
_value = reprlib.Repr()
_value.maxstring = _value.maxlong = _value.maxother = 200
_NOT_LINE = re.compile(rf"[\x00-\x1f{UNSEEN}\ud800-\udfff]+")


def clean_text(text: str, max_chars: int = 2000) -> str:
    """`text` with what `types.Text` refuses shown as `?`, cut to `max_chars`."""
    return _cut(_NOT_TEXT.sub("?", text[: max_chars + 1].replace("\r\n", "\n")), max_chars)


def clean_line(text: str, max_chars: int = 4096) -> str:
    """`text` as one line: line breaks and other control characters become spaces, cut to `max_chars`."""
    return _cut(_NOT_LINE.sub(" ", text[: max_chars + 1]).strip(), max_chars)


def shown_value(value: Any) -> str:
    """A value from a file for a message: cut where it is long or deep."""
    try:
        return _value.repr(value)
    except ValueError:  # an integer that was written in another base, and has too many digits in ours
        return "a number of too many digits"


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
