"""What the agent reads that may have been damaged: its snapshot, and questions on its local socket."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from agentd import snapshot
from agentd.core.durable import Durable, Held, Tombstone
from agentd.local_socket import LocalSocket, Question
from agentd.snapshot import SnapshotError
from tests.unit.agent.server import VM_1, VM_2, assignment

SAVED = Durable(node="n1", revision=7, held={VM_1: Held(vm=assignment())}, tombstones={VM_2: Tombstone(epoch=3)})


def test_snapshot_is_read_as_it_was_written() -> None:
    assert snapshot.decode(snapshot.encode(SAVED, 5), "n1") == (SAVED, 5)


def test_each_flipped_bit_is_refused_or_changes_nothing() -> None:
    """Also where the header or the body is no text any more."""
    content = snapshot.encode(SAVED, 5)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert snapshot.decode(bytes(damaged), "n1") == (SAVED, 5)
        except SnapshotError:
            pass


@pytest.mark.parametrize("cut", [0, 1, 20, 60, -2])
def test_snapshot_that_was_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(SnapshotError):
        snapshot.decode(snapshot.encode(SAVED, 5)[:cut], "n1")


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"\xff\xfe", "no valid header"),
        (b'{"magic":"chime-agent-snapshot\xff","version":1,"checksum":""}', "no valid header"),
        (b'{"magic":"other","version":1,"checksum":""}', "not a snapshot of agentd"),
        (b'{"magic":"chime-agent-snapshot","version":99,"checksum":""}', "it has version 99"),
        (b'{"magic":"chime-agent-snapshot","version":1,"checksum":""}', "its checksum is wrong"),
    ],
)
def test_snapshot_that_cannot_be_trusted_is_refused_with_the_reason(header: bytes, why: str) -> None:
    body = snapshot.encode(SAVED, 5).partition(b"\n")[2]
    with pytest.raises(SnapshotError, match=why):
        snapshot.decode(header + b"\n" + body, "n1")


def test_snapshot_of_an_agent_that_knew_no_migrations_is_read() -> None:
    body = msgspec.json.decode(msgspec.json.encode(SAVED))
    del body["left"], body["held"][VM_1]["attempt"]
    del body["held"][VM_1]["vm"]["attempt"], body["held"][VM_1]["vm"]["arrival"]
    old = msgspec.json.encode(body)
    header = snapshot.Header(snapshot.MAGIC, 1, hashlib.blake2b(old, digest_size=32).hexdigest())
    assert snapshot.decode(msgspec.json.encode(header) + b"\n" + old + b"\n", "n1") == (SAVED, 0)


def test_snapshot_of_another_node_is_refused() -> None:
    with pytest.raises(SnapshotError, match="belongs to node n1, this is n2"):
        snapshot.decode(snapshot.encode(SAVED, 5), "n2")


class Socket:
    """Stands in for the zmq socket: one question, and what it was answered."""

    def __init__(self, question: bytes) -> None:
        self.question, self.answers = question, []  # type: tuple[bytes, list[Any]]

    def recv_multipart(self, _flags: int) -> list[bytes]:
        return [self.question]

    def send(self, answer: bytes, _flags: int) -> None:
        self.answers.append(msgspec.json.decode(answer))


def asked(question: bytes) -> tuple[Question | None, list[Any]]:
    local = object.__new__(LocalSocket)  # without opening a socket
    local.socket = socket = Socket(question)  # type: ignore[assignment]
    return local.receive(), socket.answers


def test_question_is_understood() -> None:
    assert asked(b'{"verb":"drain","graceful_s":5}') == (Question("drain", 5.0), [])


@pytest.mark.parametrize("question", [b"", b"{", b"\xff\xfe", b'{"verb":"\xff"}', b'{"verb":1}', b'{"verb":"x","y":1}'])
def test_question_that_makes_no_sense_is_answered_and_not_heard(question: bytes) -> None:
    heard, answers = asked(question)
    assert heard is None and len(answers) == 1 and answers[0]["error"].startswith("not understood: ")
