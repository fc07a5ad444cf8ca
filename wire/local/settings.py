"""From a TOML file to a frozen Struct of settings: the one way in which chimed and agentd read their
configuration.

Rules: every key has a default; an unknown key is refused, naming the one that was probably meant; a value of
the wrong kind, out of range or out of order with another one is refused in one line that names file, key,
value and why.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Sequence
from enum import EnumMeta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from wire import toml
from wire.errors import ChimeError
from wire.text import shown_value

S = TypeVar("S", bound=msgspec.Struct)

Interval = Annotated[float, Meta(gt=0, le=86_400, description="seconds")]
Percent = Annotated[float, Meta(ge=0, le=100)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]

MAX_FILE_BYTES = 1 << 18
MAX_KEY_SHOWN = 64
_COMPARE: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "<": (operator.lt, "less than"),
    "<=": (operator.le, "at most"),
}
_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


class Order(NamedTuple):
    """`left` must be less than (or at most) `right`, because of `why`. A side is a key or a product `a * b`
    of keys."""

    left: str
    relation: Literal["<", "<="]
    right: str
    why: str


def load_settings(path: Path | str | None, kind: type[S], orders: Sequence[Order] = ()) -> S:
    """The settings in the file at `path`; all defaults when it is None. Raises `ChimeError` (invalid)."""
    if path is None:
        return parse_settings("", kind, orders)
    try:
        text = toml.read_text(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ChimeError("invalid", f"cannot read configuration {path}: {error.strerror}") from None
    except ValueError as error:
        raise ChimeError("invalid", f"configuration {path} {error}") from None
    return parse_settings(text, kind, orders, f"configuration {path}")


def parse_settings(
    text: str, kind: type[S], orders: Sequence[Order] = (), source: str = "configuration"
) -> S:
    """The settings in `text`. Raises `ChimeError` (invalid) that names `source`."""
    try:
        raw = toml.parse(text)
    except ValueError as error:
        raise ChimeError("invalid", f"{source} {error}") from None
    known = kind.__struct_fields__
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.6)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ChimeError("invalid", f"{source}: unknown key {key[:MAX_KEY_SHOWN]}{hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ChimeError("invalid", f"{source}: {key} = {value}: expected a finite number")
    try:
        settings = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ChimeError("invalid", f"{source}: {_explain(error, raw, kind)}") from None
    for order in orders:
        _check(settings, order, source)
    return settings


def _check(settings: msgspec.Struct, order: Order, source: str) -> None:
    left, right = _value(settings, order.left), _value(settings, order.right)
    holds, words = _COMPARE[order.relation]
    if not holds(left, right):
        raise ChimeError(
            "invalid",
            f"{source}: {order.left} ({left:g}) must be {words} {order.right} ({right:g}): {order.why}",
        )


def _value(settings: msgspec.Struct, product: str) -> float:
    return math.prod(float(getattr(settings, key)) for key in product.split(" * "))


def _explain(error: msgspec.ValidationError, raw: dict[str, Any], kind: type[msgspec.Struct]) -> str:
    """msgspec's text in words of the file."""
    found = re.match(r"(.*?)(?: - at `\$\.(\w+)(.*)`)?$", str(error), re.DOTALL)
    text, key = (found[1], found[2]) if found else (str(error), None)
    if key is None:
        return text
    meant = get_type_hints(kind, include_extras=True)[key]
    if get_origin(meant) is Literal:
        text = "expected one of " + ", ".join(get_args(meant))
    elif isinstance(meant, EnumMeta):
        text = "expected one of " + ", ".join(meant.__members__.values())
    elif "matching regex" in text:
        notes = [note.description for note in get_args(meant)[1:] if isinstance(note, Meta)]
        text = f"expected an {notes[0]}" if notes and notes[0] else "a value in it is not of the right form"
    else:
        text = re.sub(r"`(\w+)`", lambda word: _KINDS.get(word[1], word[1]), text)
        text = text[:1].lower() + text[1:]
    return f"{key} = {shown_value(raw[key])}: {text}"
