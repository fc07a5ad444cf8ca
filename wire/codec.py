"""Frames to typed messages and back, within fixed limits.

A frame is one msgpack map `{v, t, id, b}`. Two ways lead to the same result: a frame that decodes typed and
encodes again to the same bytes needs no further check (this is what our own peers send, and it costs a
microsecond); any other frame is unpacked with msgpack under limits, looked at for duplicate keys, extension
types, depth and non-finite numbers, and converted. Nothing here raises anything but `ChimeError`.

The first way is safe only for types without an `Any` field (`_is_closed`): what `Any` holds would encode
again to the same bytes whatever it is. A float that may be NaN would too, so floats have bounds (`types.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import msgpack
import msgspec

from wire import PROTOCOL_VERSION
from wire.addresses import CHECKS
from wire.errors import ChimeError
from wire.messages import Base
from wire.text import clean_line
from wire.types import IN_WORDS
from wire.verbs import TYPE_OF, VERBS

MAX_FRAME_BYTES = 1 << 20
MAX_DEPTH = 12
"""Maps and arrays within each other, the outer map included."""
MAX_ITEMS = 10_000
"""Entries of one map or array."""
MAX_CONTAINERS = 50_000
"""Maps and arrays of one frame in all: a million empty ones fit into its bytes, and would cost a second to make."""
MAX_ID_CHARS = 64


class Message(NamedTuple):
    """A decoded frame. `id` correlates an answer with its request; the sender of the request chooses it."""

    type: str
    id: str
    body: Base


class _Outgoing(msgspec.Struct, frozen=True, gc=False):
    v: int
    t: str
    id: str
    b: Base


def _is_closed(kind: Any) -> bool:
    """Whether a type, as `msgspec.inspect` describes it, holds no `Any`."""
    if isinstance(kind, msgspec.inspect.AnyType):
        return False
    if isinstance(kind, msgspec.inspect.StructType):
        return all(_is_closed(part.type) for part in kind.fields)
    if isinstance(kind, msgspec.inspect.UnionType):
        return all(_is_closed(part) for part in kind.types)
    if isinstance(kind, msgspec.inspect.DictType):
        return _is_closed(kind.key_type) and _is_closed(kind.value_type)
    return _is_closed(kind.item_type) if hasattr(kind, "item_type") else True


def _quick_decoder(body: type[Base]) -> Callable[[bytes], Any]:
    """Decodes a whole frame that carries `body`."""
    short = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]
    fields = [("v", Literal[PROTOCOL_VERSION]), ("t", str), ("id", short), ("b", body)]
    shape = msgspec.defstruct("Frame", fields, frozen=True, gc=False, forbid_unknown_fields=True)
    return msgspec.msgpack.Decoder(shape).decode


_encode = msgspec.msgpack.Encoder().encode
_message: Callable[[type[Message], tuple[str, str, Base]], Message] = tuple.__new__
# By the type's name as our own encoder writes it, length byte first; it stands behind `84 a1 v 01 a1 t`.
_TYPE_AT = 6
_quick = {
    bytes([0xA0 | len(name)]) + name.encode(): _quick_decoder(verb.body)
    for name, verb in VERBS.items()
    if _is_closed(msgspec.inspect.type_info(verb.body))
}

_CHECKS = {TYPE_OF[body]: check for body, check in CHECKS.items()}


def encode(body: Base, correlation_id: str = "") -> bytes:
    """The frame that carries `body`. Raises `ChimeError` (bad-frame) when it would exceed the limits."""
    try:
        frame = _encode(_Outgoing(PROTOCOL_VERSION, TYPE_OF[type(body)], correlation_id, body))
    except (UnicodeEncodeError, OverflowError) as error:
        raise ChimeError("bad-frame", f"cannot be encoded: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise ChimeError("bad-frame", f"message of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}")
    return frame


def decode(frame: bytes) -> Message:
    """The message in `frame`. Raises `ChimeError`: bad-frame, unsupported-version, unknown-verb or invalid.

    When the frame's correlation id could be read the error's details hold it as `id`, so that an answer can
    be sent."""
    if _TYPE_AT < len(frame) <= MAX_FRAME_BYTES:
        quick = _quick.get(frame[_TYPE_AT : _TYPE_AT + 1 + (frame[_TYPE_AT] & 0x1F)])
        if quick is not None:
            try:
                outer = quick(frame)
                check = _CHECKS.get(outer.t)
                if _encode(outer) == frame and (check is None or not check(outer.b)):
                    return _message(Message, (outer.t, outer.id, outer.b))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # the other way finds out what is wrong, or that nothing is
    return _decode_strictly(frame)


def glance(head: bytes) -> str:
    """The correlation id of a frame, from its first bytes and without decoding it; empty when its keys do not come in
    the order `v`, `t`, `id`, `b`. For an answer to a frame that is not worth more."""
    if head[:_TYPE_AT] != b"\x84\xa1v\x01\xa1t":
        return ""
    at = _TYPE_AT + 1 + (head[_TYPE_AT] & 0x1F if len(head) > _TYPE_AT else 0)
    if head[at : at + 3] != b"\xa2id" or len(head) < at + 5:
        return ""
    kind, at = head[at + 3], at + 4
    length = kind & 0x1F if kind & 0xE0 == 0xA0 else head[at]
    at += kind == 0xD9
    text = head[at : at + length]
    if len(text) != length or (kind & 0xE0 != 0xA0 and kind != 0xD9):
        return ""
    try:
        found = text.decode()
    except UnicodeDecodeError:
        return ""
    return found if len(found) <= MAX_ID_CHARS else ""


def _decode_strictly(frame: bytes) -> Message:
    if len(frame) > MAX_FRAME_BYTES:
        raise ChimeError("bad-frame", f"frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}")
    raw = _unpack(frame)
    version, kind, correlation_id, body = _open_envelope(raw)
    verb = VERBS.get(kind)
    if version != PROTOCOL_VERSION:
        text = f"protocol version {version} is not spoken here, {PROTOCOL_VERSION} is"
        raise ChimeError("unsupported-version", text, id=correlation_id, versions=[PROTOCOL_VERSION])
    if verb is None:
        raise ChimeError("unknown-verb", f"message type {kind!r} does not exist", id=correlation_id)
    try:
        message = Message(kind, correlation_id, msgspec.convert(body, verb.body))
    except msgspec.ValidationError as error:
        raise ChimeError("invalid", f"{kind}: {plain(error)}", id=correlation_id) from None
    check = _CHECKS.get(kind)
    if check is not None and (why := check(message.body)):
        raise ChimeError("invalid", f"{kind}: {why}", id=correlation_id)
    return message


def plain(error: msgspec.ValidationError) -> str:
    """msgspec's text in words an operator understands. It may quote what the peer sent, so it is cut and
    cleaned."""
    text = str(error)
    for pattern, words in IN_WORDS.items():
        text = text.replace(f"matching regex {pattern!r}", words)
    text = text.replace(" - at `$.", " (at ").replace(" - at `$`", "").replace("`", "")
    text = clean_line(text.replace("Object ", "the message "), 300)
    return text + ")" if " (at " in text else text


def _open_envelope(raw: Any) -> tuple[int, str, str, Any]:
    if not isinstance(raw, dict):
        raise ChimeError("bad-frame", "a message is a map with the keys v, t, id and b")
    correlation_id = raw.get("id")
    if not isinstance(correlation_id, str) or len(correlation_id) > MAX_ID_CHARS:
        raise ChimeError("bad-frame", f"id must be a string of at most {MAX_ID_CHARS} characters")
    version, kind = raw.get("v"), raw.get("t")
    if type(version) is not int or not isinstance(kind, str):
        raise ChimeError("bad-frame", "v must be an integer and t a string", id=correlation_id)
    if version == PROTOCOL_VERSION and raw.keys() != {"v", "t", "id", "b"}:
        raise ChimeError("bad-frame", "a message has exactly the keys v, t, id and b", id=correlation_id)
    return version, kind[:MAX_ID_CHARS], correlation_id, raw.get("b")


def _unpack(frame: bytes) -> Any:
    count = _Count()
    try:
        raw = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=count.unique,
            list_hook=count.one,
            ext_hook=_no_extension,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        what = clean_line(str(error), 100) or "malformed"
        raise ChimeError("bad-frame", f"not a valid msgpack map: {what}") from None
    _check_tree(raw)
    return raw


class _Count:
    """Sees every map and array of a frame as soon as it is complete."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def one(self, container: Any) -> Any:
        """An array."""
        self._left -= 1
        if self._left < 0:
            raise ChimeError("bad-frame", f"more than {MAX_CONTAINERS} maps and arrays")
        return container

    def unique(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """A map; a key may come once."""
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ChimeError("bad-frame", "a map has the same key twice")
        if not all(isinstance(key, str) for key in result):
            raise ChimeError("bad-frame", "a map's keys must be strings")
        self.one(result)
        return result


def _no_extension(code: int, _data: bytes) -> Any:
    raise ChimeError("bad-frame", f"msgpack extension type {code} is not used in this protocol")


def _check_tree(root: Any) -> None:
    """Refuses what msgpack can say and this protocol does not use. Level by level and by types, not value by value: a
    frame may hold a million of them."""
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if bytes in kinds:
            raise ChimeError("bad-frame", "binary values are not used in this protocol")
        if float in kinds and not all(math.isfinite(value) for value in level if type(value) is float):
            raise ChimeError("bad-frame", "numbers must be finite")
        if not kinds & {dict, list}:
            return
        inner: list[Any] = []
        for value in level:
            if type(value) is list:
                inner += value
            elif type(value) is dict:
                inner += value.values()
        level = inner
    raise ChimeError("bad-frame", f"nested deeper than {MAX_DEPTH}")
