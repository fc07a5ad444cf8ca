"""The codec: what is sent arrives, nothing but `ChimeError` comes out, both ways of reading agree."""

from __future__ import annotations

import struct
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.make_vectors import frame, joined, nested, valid
from tests.tools.samples import raw_sample, sample
from wire import codec, messages, types
from wire import messages as m
from wire.errors import CODES, ChimeError, Unreachable
from wire.text import clean_line, clean_text
from wire.verbs import TYPE_OF, VERBS

FRAMES = [joined(vector) for vector in valid()]
settings.register_profile("chime", deadline=None)
settings.load_profile("chime")

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
TREES = st.recursive(LEAVES, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=12)


def outcome(read: Any, data: bytes) -> Any:
    """The message, or the refusal's code; any other exception is a failure of the test."""
    try:
        return read(data)
    except ChimeError as error:
        assert error.code in CODES
        assert len(error.message) < 400
        assert clean_line(error.message) == error.message
        return error.code


def agree(data: bytes) -> None:
    assert outcome(codec.decode, data) == outcome(codec._decode_strictly, data)


@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("minimal", [False, True])
def test_round_trip(kind: str, minimal: bool) -> None:
    body = sample(VERBS[kind].body, minimal=minimal)
    data = codec.encode(body, "c-7")
    assert codec.decode(data) == codec.Message(kind, "c-7", body)
    assert codec.encode(codec.decode(data).body, "c-7") == data
    agree(data)


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    agree(data)


@given(st.sampled_from(FRAMES), st.data())
@settings(max_examples=400)
def test_damaged_frames(data: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 8)))
    agree(data[:start] + draw.draw(st.binary(max_size=8)) + data[end:])


@given(st.sampled_from(sorted(VERBS)), st.data())
@settings(max_examples=400)
def test_fields_with_any_value(kind: str, draw: st.DataObject) -> None:
    body = raw_sample(VERBS[kind].body)
    if body:
        body[draw.draw(st.sampled_from(sorted(body)))] = draw.draw(TREES)
    agree(frame(kind, body))


@given(TREES)
def test_any_tree(tree: Any) -> None:
    agree(msgpack.packb(tree))
    agree(frame("ok", {"result": tree}))


@given(st.dictionaries(st.text(max_size=8), TREES.filter(lambda tree: not _unusable(tree)), max_size=4))
def test_results_arrive_as_sent(result: dict[str, Any]) -> None:
    data = codec.encode(m.Ok(result=result), "1")
    assert codec.decode(data).body == m.Ok(result=result)


def _unusable(tree: Any) -> bool:
    """What the protocol has no words for."""
    if isinstance(tree, dict):
        return any(_unusable(item) for item in tree.values())
    if isinstance(tree, list):
        return any(_unusable(item) for item in tree) or _depth(tree) > codec.MAX_DEPTH - 3
    return isinstance(tree, bytes) or (isinstance(tree, float) and not abs(tree) < float("inf"))


def _depth(tree: Any) -> int:
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)


def test_the_quick_way_is_taken_for_all_but_open_types() -> None:
    names = {key[1:].decode() for key in codec._quick}
    assert names == set(VERBS) - {"ok", "error"}


def test_no_received_float_is_unbounded() -> None:
    """NaN encodes again to the same bytes: only a bound refuses it on the quick way."""
    seen: set[type] = set()

    def visit(kind: Any) -> None:
        if isinstance(kind, msgspec.inspect.FloatType):
            assert kind.ge is not None, seen
            assert kind.le is not None, seen
        for part in getattr(kind, "types", ()):
            visit(part)
        if hasattr(kind, "item_type"):
            assert kind.max_length is not None, (kind, seen)
            visit(kind.item_type)
        if isinstance(kind, msgspec.inspect.StructType) and kind.cls not in seen:
            seen.add(kind.cls)
            for field in kind.fields:
                visit(field.type)

    for verb in VERBS.values():
        visit(msgspec.inspect.type_info(verb.body))
    assert messages.Load in seen


@pytest.mark.parametrize("pattern", types.IN_WORDS)
def test_patterns_cover_the_whole_text(pattern: str) -> None:
    assert pattern.startswith("^")
    assert pattern.endswith(r"\Z")


def test_every_pattern_has_words() -> None:
    metas = [meta for alias in vars(types).values() for meta in get_args(alias)[1:]]
    patterns = {meta.pattern for meta in metas if isinstance(meta, msgspec.Meta) and meta.pattern}
    assert patterns == set(types.IN_WORDS)


def test_refusals_say_what_is_wrong() -> None:
    cases = {
        ("node.show", ()): "missing required field name",
        (
            "node.show",
            (("name", "a b"),),
        ): "letters, digits, '.', '_' and '-', the first a letter or digit (at name)",
        ("op.list", (("active", 1),)): "Expected bool, got int (at active)",
    }
    for (kind, body), words in cases.items():
        with pytest.raises(ChimeError) as caught:
            codec.decode(frame(kind, dict(body)))
        assert words in caught.value.message
        assert "regex" not in caught.value.message
        assert caught.value.details == {"id": "c1"}


def test_refusal_of_a_hostile_field_name_is_printable_and_short() -> None:
    for name in ("\x1b[2J" * 50_000, "\u202e", "\ud7ff" * 1000):
        with pytest.raises(ChimeError) as caught:
            codec.decode(frame("node.show", {"name": "n", name: 1}))
        assert len(caught.value.message) < 400
        assert "\x1b" not in caught.value.message
        assert "\u202e" not in caught.value.message


def test_a_refusal_can_be_sent() -> None:
    error = ChimeError("locked", "busy", operation="op1")
    body = codec.decode(codec.encode(error.body(), "c1")).body
    assert body == m.ErrorBody(code="locked", message="busy", retriable=True, details={"operation": "op1"})
    assert Unreachable("no answer").exit_code == 4


def test_too_large_to_send() -> None:
    with pytest.raises(ChimeError, match="larger"):
        codec.encode(m.Ok(result="x" * codec.MAX_FRAME_BYTES))


@pytest.mark.parametrize("result", ["\ud800", 2**70])
def test_not_encodable(result: Any) -> None:
    with pytest.raises(ChimeError):
        codec.encode(m.Ok(result=result))


def test_depth_counts_maps_and_arrays() -> None:
    codec.decode(frame("ok", {"result": nested(codec.MAX_DEPTH - 2)}))
    with pytest.raises(ChimeError, match="deeper"):
        codec.decode(frame("ok", {"result": nested(codec.MAX_DEPTH - 1)}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\x81\xc4\x00\x01", "a map's keys must be strings"),
        (b"\xc7\x00\x05", "msgpack extension type 5 is not used"),
        (b"\xd6\xff\x00\x00\x00\x01", "not a valid msgpack map"),  # a timestamp
        (b"\xc4\x00", "binary values are not used"),
        (struct.pack(">Bd", 0xCB, float("nan")), "numbers must be finite"),
    ],
)
def test_what_the_protocol_does_not_use_is_refused_in_words(value: bytes, words: str) -> None:
    with pytest.raises(ChimeError, match=words):
        codec.decode(frame("ok", 0)[:-1] + b"\x81\xa6result" + value)


def test_huge_headers_cost_nothing() -> None:
    for header in (b"\xdd", b"\xdf", b"\xdb", b"\xc6"):
        for start in (
            b"",
            FRAMES[0][:20],
            frame("heartbeat", 0)[:-1],
            frame("ok", 0)[:-1] + b"\x81\xa6result",
        ):
            agree(start + header + struct.pack(">I", 2**32 - 1))


def test_type_names_fit_the_quick_way() -> None:
    assert all(len(name) < 32 for name in VERBS)
    assert len(TYPE_OF) == len(VERBS)


@given(st.text())
def test_cleaned_text_is_accepted(text: str) -> None:
    line, block = clean_line(text, 100), clean_text(text, 100)
    assert msgspec.convert(line, types.Line) == line
    assert msgspec.convert(block, types.Text) == block
    assert len(line) <= 100 >= len(block)
    codec.encode(m.Fault(code="x", text=block) and m.AlarmAck(key="k", id=1, comment=block))


def test_clean_keeps_what_is_fine() -> None:
    assert clean_text("a\tb\nc ü 是") == "a\tb\nc ü 是"
    assert clean_line("a\r\nb\x1b[2Jc\ud800") == r"a b\x1b[2Jc\ud800"
    assert clean_text("x" * 10, 5) == "xx..."


@pytest.mark.parametrize("correlation_id", ["", "a", "i" * 31, "i" * 32, "i" * 64, "é\U0001f600"])
def test_the_correlation_id_is_found_at_a_glance(correlation_id: str) -> None:
    frame = codec.encode(m.NodeList(), correlation_id)
    assert codec.glance(frame) == codec.glance(frame[:100]) == correlation_id
    assert codec.glance(msgpack.packb({"v": 1, "t": "x", "id": correlation_id, "b": {}})) == correlation_id


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\xc1", b"\x84\xa1v\x01\xa1t", b"\x84\xa1v\x01\xa1t\xa1x", b"\x84\xa1v\x01\xa1t\xa1x\xa2id",
        b"\x84\xa1v\x01\xa1t\xa1x\xa2id\xa5abc", b"\x84\xa1v\x01\xa1t\xa1x\xa2id\xa2\xff\xff",
        b"\x84\xa1v\x01\xa1t\xa1x\xa2id\xd9\x41" + b"i" * 65, b"\x84\xa1v\x01\xa1t\xa1x\xa2id\x03abcd",
        b"\x84\xa2id\xa1i\xa1v\x01\xa1t\xa1x\xa1b\x80",
    ],
)  # fmt: skip
def test_what_has_no_correlation_id_where_it_should_be_has_none(head: bytes) -> None:
    assert codec.glance(head) == ""
