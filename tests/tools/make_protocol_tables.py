"""Writes the tables of `docs/protocol.md` between `<!-- table: NAME -->` and `<!-- end -->` from the schema.

Run it after a change of the schema: `python -m tests.tools.make_protocol_tables`.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect as i

from tests.tools.protocol_words import CHANGED, FIELDS, RESULTS
from wire import codec, messages, types, words
from wire.errors import CODES
from wire.verbs import VERBS, Role

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
BLOCK = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCALARS = {
    name: alias
    for name, alias in vars(types).items()
    if any(isinstance(meta, msgspec.Meta) for meta in get_args(alias)[1:])
}
VIEWS = ("NodeView", "VmView", "OperationView", "Step", "EventView", "AlarmView")
used: set[str] = set()
"""Entries of FIELDS that a table used."""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def limits() -> str:
    """The codec's limits."""
    return table(
        ("limit", "value"),
        [
            ("frame", f"{codec.MAX_FRAME_BYTES} bytes"),
            ("maps and arrays within each other, the outer map included", str(codec.MAX_DEPTH)),
            ("entries of one map or array", str(codec.MAX_ITEMS)),
            ("maps and arrays of a frame in all", str(codec.MAX_CONTAINERS)),
            ("correlation id", f"{codec.MAX_ID_CHARS} characters"),
        ],
    )


def scalars() -> str:
    """The constrained types."""
    rows = []
    for name, alias in SCALARS.items():
        base, meta = get_args(alias)[:2]
        rows.append((name, {str: "string", int: "integer", float: "number"}[base], _constraint(meta)))
    return table(("type", "msgpack", "constraint"), rows)


def _constraint(meta: msgspec.Meta) -> str:
    parts = []
    if meta.ge is not None:
        parts.append(f"{meta.ge} to {meta.le}")
    if meta.max_length is not None:
        parts.append(f"{meta.min_length or 0} to {meta.max_length} characters")
    if meta.pattern is not None:
        portable = meta.pattern.replace(r"\Z", "$")
        parts.append(f"{types.IN_WORDS[meta.pattern]}: `{portable}`")
    return "; ".join(parts)


def enums() -> str:
    """The values of each enum, with the meaning that stands beside them in the code."""
    rows = [
        (name, f"`{value}`", meaning)
        for name, kind in vars(types).items()
        if isinstance(kind, type) and issubclass(kind, enum.StrEnum) and kind is not enum.StrEnum
        for value, meaning in meanings(kind).items()
    ]
    return table(("type", "value", "meaning"), rows)


def meanings(kind: type[enum.StrEnum]) -> dict[str, str]:
    """What stands beside each value of an enum in the code."""
    return dict(re.findall(r'^ +[A-Z]\w* = "(.+?)"(?:  # (.*))?$', inspect.getsource(kind), re.M))


def codes(kind: type[enum.StrEnum]) -> str:
    """A set of the vocabulary."""
    return table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in meanings(kind).items()])


def alarms() -> str:
    """The alarms: of what, and how urgent."""
    known = meanings(words.AlarmCode)
    rows = [
        (f"`{code}`", info.subject, info.severity or "of the worst fault", known[code])
        for code, info in words.ALARMS.items()
    ]
    return table(("code", "of", "severity", "meaning"), rows)


def verbs() -> str:
    """Who may send what."""
    rows = []
    for name, verb in VERBS.items():
        may = ["yes" if verb.sender is role else "no" for role in (Role.AGENT, Role.OPERATOR, Role.SERVER)]
        rows.append((f"`{name}`", *may, f"`{verb.reply}`" if verb.reply else "none"))
    return table(("type", "agent", "operator", "server", "answer"), rows)


def errors() -> str:
    """The error codes."""
    rows = [
        (f"`{code}`", "yes" if info.retriable else "no", str(info.exit_code), info.meaning)
        for code, info in CODES.items()
    ]
    return table(("code", "retriable", "exit", "meaning"), rows)


def of_role(role: Role) -> str:
    """Each message that `role` sends."""
    parts = []
    for name, verb in VERBS.items():
        if verb.sender is role:
            parts.append(f"#### `{name}`\n\n{_about(verb.body)}{_fields(verb.body)}")
            if role is Role.OPERATOR:
                parts.append(f"Result: {RESULTS.get(name, CHANGED)}\n")
    return "\n".join(parts)


def parts() -> str:
    """The maps within messages."""
    bodies = {verb.body for verb in VERBS.values()}
    found = [
        kind
        for name, kind in vars(messages).items()
        if isinstance(kind, type)
        and issubclass(kind, messages.Base)
        and kind not in bodies
        and name not in (*VIEWS, "Base", "Mutation", "Page")
    ]
    return "\n".join(f"#### {kind.__name__}\n\n{_about(kind)}{_fields(kind)}" for kind in found)


def views() -> str:
    """What results hold."""
    kinds = [getattr(messages, name) for name in VIEWS]
    return "\n".join(f"#### {kind.__name__}\n\n{_about(kind)}{_fields(kind)}" for kind in kinds)


def _about(kind: type[messages.Base]) -> str:
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return " ".join(text.split()) + "\n\n" if text else ""


def _fields(kind: type[messages.Base]) -> str:
    info = i.type_info(kind)
    assert isinstance(info, i.StructType)
    rows = []
    annotations = _annotations(kind)
    for field in info.fields:
        default = "required" if field.required else _default(field)
        rows.append((f"`{field.name}`", annotations[field.name], default, _meaning(kind, field.name)))
    return table(("field", "type", "default", "meaning"), rows) if rows else "No fields.\n"


def _annotations(kind: type[messages.Base]) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found |= {name: _type(str(text)) for name, text in inspect.get_annotations(base).items()}
    return found


def _type(text: str) -> str:
    """An annotation of the schema in the document's words."""
    text = text.replace("w.", "").replace(" | None", " or null")
    text = re.sub(
        r"Annotated\[tuple\[(\w+), \.\.\.\], (\w+)\]", lambda found: _array(found[1], found[2]), text
    )
    text = (
        re.sub(r"list\[(\w+)\]", r"array of \1", text)
        .replace("dict[str, Any]", "map")
        .replace("Any", "any value")
    )
    return re.sub(r"\bstr\b", "string", re.sub(r"\bint\b", "integer", re.sub(r"\bfloat\b", "number", text)))


def _array(item: str, bound: str) -> str:
    meta: msgspec.Meta = getattr(types, bound)
    return f"array of at most {meta.max_length} {item}"


def _default(field: Any) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:  # it has a factory
        return "empty map"
    plain = msgspec.to_builtins(value)
    return {"": "empty", (): "empty", None: "null"}.get(plain) or f"`{msgspec.json.encode(plain).decode()}`"


def _meaning(kind: type[messages.Base], name: str) -> str:
    key = f"{kind.__name__}.{name}" if f"{kind.__name__}.{name}" in FIELDS else name
    used.add(key)
    return FIELDS[key]


TABLES = {
    "limits": limits,
    "scalars": scalars,
    "enums": enums,
    "problems": lambda: codes(words.Problem),
    "events": lambda: codes(words.EventCode),
    "commands": lambda: codes(words.CommandKind),
    "operations": lambda: codes(words.OperationKind),
    "node faults": lambda: codes(words.FaultCode),
    "alarms": alarms,
    "verbs": verbs,
    "errors": errors,
    "agent messages": lambda: of_role(Role.AGENT),
    "server messages": lambda: of_role(Role.SERVER),
    "operator messages": lambda: of_role(Role.OPERATOR),
    "parts": parts,
    "views": views,
}


def updated(text: str) -> str:
    """The document with current tables."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
