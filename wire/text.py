"""Foreign text made fit to be sent and shown: what libvirt, the kernel, a guest or a peer says may hold anything.

A field of free text is refused when it holds control or invisible characters or is too long (`types.py`), and a
refused report is worse than a changed word: whoever puts text from outside into a message passes it through here. So
does whoever shows text to a person, wherever it came from: what is not seen is shown as the escape that Python has for
it, such as `\\x1b` or `\\u202e`, and changes neither the terminal nor the order of what is read. What is counted for a
person is said with `counted`.
"""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

from wire.types import UNSEEN

_NOT_TEXT = re.compile(rf"[\x00-\x08\x0b-\x1f{UNSEEN}\ud800-\udfff]")
_BREAKS = re.compile(r"[\t-\r\x85\u2028\u2029]+")
_value = reprlib.Repr()
_value.maxstring = _value.maxlong = _value.maxother = 200


def escaped(text: str) -> str:
    """`text`, of any number of lines, with the escape of each character that is not seen."""
    return _NOT_TEXT.sub(_escape, text.replace("\r\n", "\n"))


def escaped_line(text: str) -> str:
    """The same as one line: line breaks and tabs become a space."""
    return escaped(_BREAKS.sub(" ", text).strip())


def escaped_json(document: str) -> str:
    """A JSON document, of which a reader makes the same values, with `\\u` escapes for what is not seen."""
    return _NOT_TEXT.sub(lambda found: json.dumps(found[0])[1:-1], document)


def clean_text(text: str, max_chars: int = 2000) -> str:
    """`text` as `types.Text` takes it: escaped, and cut to `max_chars`."""
    return _cut(escaped(text[: max_chars + 1]), max_chars)


def clean_line(text: str, max_chars: int = 4096) -> str:
    """`text` as `types.Line` takes it: escaped, of one line, and cut to `max_chars`."""
    return _cut(escaped_line(text[: max_chars + 1]), max_chars)


def shown_value(value: Any) -> str:
    """A value from a file for a message: cut where it is long or deep."""
    try:
        return _value.repr(value)
    except ValueError:  # an integer that was written in another base, and has too many digits in ours
        return "a number of too many digits"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with what is counted: `1 VM`, `0 VMs`. `many`: where that is more than an s: `1 VM is`, `2 VMs are`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
