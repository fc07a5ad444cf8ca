"""Writes `wire/vectors/*.json`: frames that every implementation must read, and frames that it must refuse.

Run it after a change of the schema (`python -m tests.tools.make_vectors`) and read the difference: a changed
line of a message that already existed is a change of the protocol."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from tests.tools.samples import raw_sample, sample
from wire.codec import MAX_CONTAINERS, MAX_DEPTH, MAX_FRAME_BYTES, MAX_ID_CHARS, MAX_ITEMS, decode, encode
from wire.verbs import VERBS

FOLDER = Path(__file__).resolve().parents[2] / "wire" / "vectors"
UUID = "6f0d3f6e-0e0c-4b0e-9a55-0f6c1d2e3f40"


def pack(value: Any) -> bytes:
    """Plain msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def frame(kind: str, body: Any, v: Any = 1, correlation_id: Any = "c1") -> bytes:
    """A frame of the usual shape with any content."""
    return pack({"v": v, "t": kind, "id": correlation_id, "b": body})


def with_body(kind: str, body: bytes) -> bytes:
    """A frame around a body that is packed already."""
    return b"\x84" + pack("v") + b"\x01" + pack("t") + pack(kind) + pack("id") + pack("c1") + pack("b") + body


def show(value: bytes) -> bytes:
    """`node.show` with any packed value as the name."""
    return with_body("node.show", b"\x81" + pack("name") + value)


def ack(**changes: Any) -> bytes:
    """`report-ack` with changed fields."""
    return frame("report-ack", {"session": "s1", "seq": 1, **changes})


def valid() -> list[dict[str, Any]]:
    """Each type full and with its required fields only, then other encodings of the same."""
    made = []
    for kind, verb in VERBS.items():
        made.append((kind, encode(sample(verb.body), "c1")))
        made.append((f"{kind}: required fields only", frame(kind, raw_sample(verb.body, minimal=True))))
    made += [(f"encoding: {name}", data) for name, data in other_encodings().items()]
    return [_valid_entry(name, data) for name, data in made]


def _valid_entry(name: str, data: bytes) -> dict[str, Any]:
    message = decode(data)
    body = msgspec.to_builtins(message.body)
    entry = {"name": name, "type": message.type, "id": message.id, "body": body}
    return {**entry, "canonical": encode(message.body, message.id) == data, "hex": data.hex()}


def other_encodings() -> dict[str, bytes]:
    """Valid frames that our own encoder would not write."""
    usual = {"v": 1, "t": "node.show", "id": "c1", "b": {"name": "node-1"}}
    string32 = b"\xdb" + struct.pack(">I", 6) + b"node-1"
    seq = b"\x82" + pack("session") + pack("s1") + pack("seq")
    load = {"cpu_percent": 3, "memory_available_mib": 1, "vms_running": 0}
    return {
        "keys in another order": pack(dict(reversed(usual.items()))),
        "str 8 for a short string": show(b"\xd9\x06node-1"),
        "str 16 for a short string": show(b"\xda\x00\x06node-1"),
        "str 32 for a short string": show(string32),
        "map 16 outside": b"\xde\x00\x04" + pack(usual)[1:],
        "map 32 inside": with_body("node.show", b"\xdf\x00\x00\x00\x01" + pack("name") + pack("node-1")),
        "v as uint 8": pack(usual).replace(b"\xa1v\x01", b"\xa1v\xcc\x01", 1),
        "v as int 64": pack(usual).replace(b"\xa1v\x01", b"\xa1v\xd3" + struct.pack(">q", 1), 1),
        "seq as uint 64": with_body("report-ack", seq + b"\xcf" + struct.pack(">Q", 5)),
        "seq as int 16": with_body("report-ack", seq + b"\xd1\x00\x05"),
        "whole number for a float": frame("heartbeat", {**raw_sample(VERBS["heartbeat"].body), "load": load}),
        "float 32": with_body(
            "vm.stop",
            b"\x83"
            + pack("key")
            + pack("k")
            + pack("vm")
            + pack("vm-1")
            + pack("graceful_s")
            + b"\xca\x3f\x00\x00\x00",
        ),
        "array 32": with_body(
            "hello",
            pack(raw_sample(VERBS["hello"].body)).replace(
                b"\xa8versions\x91\x11", b"\xa8versions\xdd\x00\x00\x00\x01\x11"
            ),
        ),
        "empty id": frame("node.show", {"name": "node-1"}, correlation_id=""),
        "id of the greatest length": frame(
            "node.show", {"name": "node-1"}, correlation_id="i" * MAX_ID_CHARS
        ),
        "name of the greatest length": frame("node.show", {"name": "n" * 63}),
        "text beyond ASCII": frame("recovery.confirm", {"key": "k", "comment": "überprüft ✓ 是"}),
        "greatest count": ack(seq=2**53),
        "deepest": frame("ok", {"result": nested(MAX_DEPTH - 2)}),
    }


def nested(depth: int) -> Any:
    """Arrays within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def invalid() -> list[dict[str, Any]]:
    """What must be refused, each with the code of the refusal."""
    made = [("bad-frame", name, data) for name, data in {**not_messages(), **not_used()}.items()]
    made += [("unsupported-version", name, data) for name, data in wrong_versions().items()]
    made += [("unknown-verb", name, data) for name, data in wrong_types().items()]
    made += [("invalid", name, data) for name, data in wrong_bodies().items()]
    short = [{"name": name, "code": code, "hex": data.hex()} for code, name, data in made]
    return short + [{"name": name, "code": code, "parts": parts} for code, name, parts in long_ones()]


def not_messages() -> dict[str, bytes]:
    """Not msgpack, or not the outer map."""
    usual = frame("node.show", {"name": "node-1"})
    return {
        "empty": b"",
        "one zero byte": b"\x00",
        "never used byte c1": b"\xc1",
        "text": b"GET / HTTP/1.1\r\n\r\n",
        "truncated by one byte": usual[:-1],
        "only a map header": b"\x84",
        "a byte more": usual + b"\x00",
        "two messages": usual + usual,
        "nil": b"\xc0",
        "an array": pack([1, "node.show", "c1", {}]),
        "a string": pack("node.show"),
        "an empty map": pack({}),
        "v missing": pack({"t": "node.show", "id": "c1", "b": {"name": "n"}}),
        "t missing": pack({"v": 1, "id": "c1", "b": {"name": "n"}}),
        "id missing": pack({"v": 1, "t": "node.show", "b": {"name": "n"}}),
        "b missing": pack({"v": 1, "t": "node.show", "id": "c1"}),
        "a fifth key": pack({"v": 1, "t": "node.show", "id": "c1", "b": {"name": "n"}, "x": 1}),
        "v is text": frame("node.show", {"name": "n"}, v="1"),
        "v is true": frame("node.show", {"name": "n"}, v=True),
        "v is a float": frame("node.show", {"name": "n"}, v=1.0),
        "v is nil": frame("node.show", {"name": "n"}, v=None),
        "t is a number": pack({"v": 1, "t": 5, "id": "c1", "b": {}}),
        "id is a number": frame("node.show", {"name": "n"}, correlation_id=7),
        "id is nil": frame("node.show", {"name": "n"}, correlation_id=None),
        "id too long": frame("node.show", {"name": "n"}, correlation_id="i" * (MAX_ID_CHARS + 1)),
    }


def not_used() -> dict[str, bytes]:
    """msgpack that this protocol does not use, wherever it stands."""
    twice = b"\x82" + pack("name") + pack("a") + pack("name") + pack("b")
    double = b"\x85" + pack("v") + b"\x01" + frame("node.show", {"name": "n"})[1:]
    in_result = {"nan": float("nan"), "infinity": float("inf"), "minus infinity": float("-inf")}
    wrong = {f"{name} in a result": frame("ok", {"result": value}) for name, value in in_result.items()}
    load = {"cpu_percent": float("nan"), "memory_available_mib": 1, "vms_running": 0}
    return {
        **wrong,
        "nan as a load": frame("heartbeat", {**raw_sample(VERBS["heartbeat"].body), "load": load}),
        "an outer key twice": double,
        "an inner key twice": with_body("node.show", twice),
        "a key twice in a result": with_body("ok", b"\x81" + pack("result") + twice),
        "the same key twice, other encoding": with_body(
            "node.show", b"\x82" + pack("name") + pack("a") + b"\xd9\x04name" + pack("b")
        ),
        "extension type": show(b"\xd4\x05\x00"),
        "extension type in a result": with_body("ok", b"\x81" + pack("result") + b"\xd4\x05\x00"),
        "timestamp 32": show(b"\xd6\xff\x00\x00\x00\x01"),
        "timestamp in a result": with_body("ok", b"\x81" + pack("result") + b"\xd6\xff\x00\x00\x00\x01"),
        "binary": show(pack(b"node-1")),
        "binary in a result": frame("ok", {"result": b"x"}),
        "empty binary in a result": frame("ok", {"result": b""}),
        "binary as a key": with_body("node.show", b"\x81" + pack(b"name") + pack("n")),
        "number as a key": with_body("node.show", b"\x81\x01" + pack("n")),
        "number as a key in a result": with_body("ok", b"\x81" + pack("result") + b"\x81\x01\x01"),
        "array as a key": with_body("node.show", b"\x81\x91\x01" + pack("n")),
        "broken UTF-8": show(b"\xa2\xc3\x28"),
        "overlong UTF-8": show(b"\xa2\xc0\xaf"),
        "surrogate in UTF-8": show(b"\xa3\xed\xa0\x80"),
        "too deep": frame("ok", {"result": nested(MAX_DEPTH - 1)}),
        "array header without the array": with_body("hello", b"\xdd\xff\xff\xff\xff"),
        "map header without the map": with_body("hello", b"\xdf\xff\xff\xff\xff"),
        "string header without the string": show(b"\xdb\xff\xff\xff\xff"),
    }


def wrong_versions() -> dict[str, bytes]:
    """Versions that are not spoken."""
    return {
        "version 0": frame("node.show", {"name": "n"}, v=0),
        "version 2": frame("node.show", {"name": "n"}, v=2),
        "version -1": frame("node.show", {"name": "n"}, v=-1),
        "version 2 of another shape": pack({"v": 2, "t": "x", "id": "c1", "more": 1}),
        "version 2**64 - 1": frame("node.show", {"name": "n"}, v=2**64 - 1),
    }


def wrong_types() -> dict[str, bytes]:
    """Message types that do not exist."""
    return {
        "unknown type": frame("node.explode", {}),
        "empty type": frame("", {}),
        "type in capitals": frame("Hello", {}),
        "type with a space": frame("node.show ", {"name": "n"}),
        "type with a zero byte": frame("node.show\x00", {"name": "n"}),
        "long type": frame("t" * 300, {}),
    }


def wrong_bodies() -> dict[str, bytes]:
    """Bodies that do not fit their type."""
    hello = raw_sample(VERBS["hello"].body)
    create = raw_sample(VERBS["vm.create"].body)
    bad_values = {
        "body is nil": frame("node.show", None),
        "body is an array": frame("node.show", ["n"]),
        "field missing": frame("node.show", {}),
        "field unknown": frame("node.show", {"name": "n", "colour": "red"}),
        "field of another type": frame("node.show", {"name": "n", "key": "k"}),
        "nil for a required field": frame("node.show", {"name": None}),
        "number for text": frame("node.show", {"name": 5}),
        "seq negative": ack(seq=-1),
        "seq too large": ack(seq=2**53 + 1),
        "seq of 64 bits": ack(seq=2**64 - 1),
        "true for a number": ack(seq=True),
        "float for a number": ack(seq=1.0),
        "text for a number": ack(seq="1"),
        "number for true": frame("op.list", {"active": 1}),
        "empty session": ack(session=""),
        "line break in a session": ack(session="a\nb"),
        "line break at the end of a session": ack(session="a\n"),
        "session too long": ack(session="s" * 65),
        "graceful_s negative": frame("vm.stop", {"key": "k", "vm": "v", "graceful_s": -1.0}),
        "graceful_s above a day": frame("vm.stop", {"key": "k", "vm": "v", "graceful_s": 86401}),
        "limit 0": frame("node.list", {"limit": 0}),
        "limit too large": frame("node.list", {"limit": 1001}),
        "key missing": frame("node.enable", {"name": "n"}),
        "UUID in capitals": frame("hello", {**hello, "boot_id": UUID.upper()}),
        "UUID without hyphens": frame("hello", {**hello, "boot_id": UUID.replace("-", "")}),
        "UUID with a line break": frame("hello", {**hello, "boot_id": UUID + "\n"}),
        "negative memory": frame("vm.create", {**create, "spec": {**create["spec"], "memory_mib": -5}}),
        "no memory": frame("vm.create", {**create, "spec": {"vcpus": 1}}),
        "relative path": frame("vm.create", {**create, "spec": {**create["spec"], "serial_log": "etc/x"}}),
        "zero byte in a path": frame(
            "vm.create", {**create, "spec": {**create["spec"], "serial_log": "/a\x00b"}}
        ),
        "unknown desired": frame("vm.create", {**create, "desired": "exploded"}),
        "unknown field deep inside": frame("vm.create", {**create, "spec": {**create["spec"], "gpu": 1}}),
        "evidence of another kind": frame("node.drain", {"key": "k", "name": "n", "evidence": "hope"}),
        "key not in Z85": frame("operator.add", {"key": "k", "name": "n", "public_key": '"' * 40}),
        "key too short": frame("operator.add", {"key": "k", "name": "n", "public_key": "a" * 39}),
        "terminal escape in a comment": frame("alarm.ack", {"key": "k", "id": 1, "comment": "\x1b[2J"}),
        "invisible character in a comment": frame("alarm.ack", {"key": "k", "id": 1, "comment": "ab\u200bc"}),
        "tag character in a comment": frame("alarm.ack", {"key": "k", "id": 1, "comment": "\U000e0041"}),
        "C1 control character in a comment": frame("alarm.ack", {"key": "k", "id": 1, "comment": "\x9b2J"}),
        "address that is none": frame("node.add", {**raw_sample(VERBS["node.add"].body), "address": "::::"}),
        "address of many hosts": frame("node.add", {**raw_sample(VERBS["node.add"].body), "address": "224.0.0.1"}),
        "no host's address": frame("hello", {**hello, "host": _at("0.0.0.0", 8)}),
        "IPv4 in an IPv6 address": frame("hello", {**hello, "host": _at("::ffff:192.0.2.7", 128)}),
        "prefix longer than the address": frame("hello", {**hello, "host": _at("192.0.2.7", 33)}),
        "text turned around": frame("alarm.ack", {"key": "k", "id": 1, "comment": "\u202etxt"}),
    }
    names = {
        "empty": "",
        "too long": "n" * 64,
        "with a slash": "a/b",
        "with a space": "a b",
        "with a dot first": ".a",
    }
    names |= {
        "with a line break": "a\n",
        "with an escape": "a\x1b[31m",
        "with a zero byte": "a\x00",
        "not ASCII": "ä",
    }
    return bad_values | {f"name {what}": frame("node.show", {"name": name}) for what, name in names.items()}


def _at(address: str, prefix: int) -> dict[str, Any]:
    """The facts of a host with one address."""
    return {"networks": [{"interface": "eth0", "address": address, "prefix": prefix}]}


def long_ones() -> list[tuple[str, str, list[Any]]]:
    """Frames too long to print: parts, each hex text or `{"repeat": hex, "times": n}`, one after the
    other."""
    start = with_body("ok", b"\x81" + pack("result"))
    size = MAX_FRAME_BYTES
    string = start + b"\xdb" + struct.pack(">I", size)
    array = start + b"\xdc" + struct.pack(">H", MAX_ITEMS + 1)
    faults = pack(raw_sample(VERBS["heartbeat"].body)).split(pack("faults"))[0] + pack("faults")
    many = b"\xdc" + struct.pack(">H", 257)
    tail = pack("load") + pack({})
    one_fault = pack({"code": "disk-io", "text": ""})
    return [
        ("bad-frame", "larger than a frame may be", [string.hex(), {"repeat": "61", "times": size}]),
        ("bad-frame", "zero bytes beyond the limit", [{"repeat": "00", "times": size + 1}]),
        (
            "bad-frame",
            "too many entries in an array",
            [array.hex(), {"repeat": "01", "times": MAX_ITEMS + 1}],
        ),
        (
            "bad-frame",
            "too many arrays in all",
            [start.hex() + "dc0064", {"repeat": "dc01f4" + "90" * 500, "times": MAX_CONTAINERS // 500}],
        ),
        (
            "bad-frame",
            "nested a hundred thousand times",
            [start.hex(), {"repeat": "91", "times": 100_000}, "01"],
        ),
        (
            "bad-frame",
            "maps nested a thousand times",
            [start.hex(), {"repeat": "81a161", "times": 1000}, "01"],
        ),
        (
            "invalid",
            "more faults than a heartbeat holds",
            [
                with_body("heartbeat", faults + many).hex(),
                {"repeat": one_fault.hex(), "times": 257},
                tail.hex(),
            ],
        ),
        (
            "invalid",
            "text longer than a text may be",
            [
                with_body(
                    "alarm.ack", b"\x83" + pack("key") + pack("k") + pack("id") + b"\x01" + pack("comment")
                ).hex(),
                "da07d1",
                {"repeat": "61", "times": 2001},
            ],
        ),
    ]


def joined(vector: dict[str, Any]) -> bytes:
    """The frame of a vector."""
    if "hex" in vector:
        return bytes.fromhex(vector["hex"])
    parts = [part if isinstance(part, str) else part["repeat"] * part["times"] for part in vector["parts"]]
    return bytes.fromhex("".join(parts))


def render(vectors: list[dict[str, Any]]) -> str:
    """The file's text: one vector a line."""
    lines = ",\n".join(json.dumps(vector, ensure_ascii=True, allow_nan=False) for vector in vectors)
    return f"[\n{lines}\n]\n"


FILES = {"valid.json": valid, "invalid.json": invalid}


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in FILES.items():
        (FOLDER / name).write_text(render(make()))
    print(f"written: {', '.join(FILES)} in {FOLDER}")


if __name__ == "__main__":
    main()
