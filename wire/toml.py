"""TOML from files that anybody may have written: bounded, and refused in one line, whatever is in them.

The parser of Python goes into nested values by recursion and refuses to make integers of thousands of digits, each with
an error of its own; for a key of n parts it takes memory that grows with the square of n. What was read may be too
large or too deep to be shown: `text.shown_value`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

MAX_DOTS = 250
"""In one line: a key may not span lines."""


def read_text(path: Path | str, max_bytes: int) -> str:
    """The text in the file at `path`. Raises OSError, or ValueError that says what is wrong with it."""
    with open(path, "rb") as file:
        return decoded(file.read(max_bytes + 1), max_bytes)


def decoded(content: bytes, max_bytes: int) -> str:
    """`content` as text. Raises ValueError when it is too large or no text."""
    if len(content) > max_bytes:
        raise ValueError(f"is larger than {max_bytes} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not text") from None


def parse(text: str) -> dict[str, Any]:
    """What `text` says. Raises ValueError that says what is wrong with it."""
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"has a line with more than {MAX_DOTS} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not TOML: {error}") from None
    except ValueError:
        raise ValueError("is not TOML: a number in it has too many digits") from None
    except RecursionError:
        raise ValueError("is not TOML: its values are nested too deeply") from None
