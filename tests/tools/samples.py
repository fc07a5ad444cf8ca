"""One example of each message type, made from the schema: the vectors, the tables and the tests use it."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from msgspec import inspect as i

from wire import messages as m
from wire import types as w

KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
TEXT_BY_PATTERN = {
    w.NAME_PATTERN: "node-1",
    w.UUID_PATTERN: "6f0d3f6e-0e0c-4b0e-9a55-0f6c1d2e3f40",
    w.PATH_PATTERN: "/var/lib/chime/disk.qcow2",
    w.TEXT_PATTERN: "two\nlines",
    w.LINE_PATTERN: "one line",
    w.BRIDGE_PATTERN: "br0",
    w.MAC_PATTERN: "52:54:00:12:34:56",
    w.Z85_PATTERN: KEY,
    w.ADDRESS_PATTERN: "192.0.2.7",
}
ANY = {"items": [{"name": "node-1", "vms": 2, "load": 0.5, "last": None}], "next": ""}


def raw_sample(body: type[msgspec.Struct], *, minimal: bool = False) -> dict[str, Any]:
    """The fields of one valid message: all of them, or only the required ones."""
    info = i.type_info(body)
    assert isinstance(info, i.StructType)
    fields = [field for field in info.fields if field.required or not minimal]
    return {field.encode_name: _value(field.type, minimal) for field in fields}


def sample(body: type[m.Base], *, minimal: bool = False) -> m.Base:
    """One valid message."""
    return msgspec.convert(raw_sample(body, minimal=minimal), body)


def _value(kind: Any, minimal: bool) -> Any:
    if isinstance(kind, i.Metadata):
        kind = kind.type
    if isinstance(kind, i.StructType):
        return raw_sample(kind.cls, minimal=minimal)
    if isinstance(kind, i.UnionType):
        return _value(next(part for part in kind.types if not isinstance(part, i.NoneType)), minimal)
    if isinstance(kind, i.VarTupleType | i.ListType):
        return [_value(kind.item_type, minimal)]
    if isinstance(kind, i.EnumType):
        members: list[enum.Enum] = list(kind.cls)
        return members[0].value
    if isinstance(kind, i.StrType):
        return TEXT_BY_PATTERN[kind.pattern] if kind.pattern else "text"
    if isinstance(kind, i.DictType):
        return {"detail": 1}
    if isinstance(kind, i.IntType):
        return max(kind.ge or 0, 17)
    simple: dict[type, Any] = {i.FloatType: 2.5, i.BoolType: True, i.AnyType: ANY}
    return simple[type(kind)]
