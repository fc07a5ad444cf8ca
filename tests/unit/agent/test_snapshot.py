"""What the agent reads that may have been damaged: its snapshot, and questions on its local socket."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import snapshot
from agentd.core.durable import Durable, Held, Tombstone
from agentd.local_socket import LocalSocket, Question
from agentd.snapshot import Note, Snapshot, SnapshotError
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


# --- numbers ----------------------------------------------------------------------------------------------------------

LATER = msgspec.structs.replace(SAVED, generation=2, confirmed_boot="b1", local_drain=True)


class Places:
    """The state directory, and the directory that a boot clears."""

    def __init__(self, path: Path) -> None:
        self.state, self.run = path / "state", path / "run"
        self.run.mkdir()
        self.note, self.file = self.run / "agentd.newest", self.state / "snapshot"

    def life(self, boot: str = "b1") -> Snapshot:
        """One life of the agent."""
        return Snapshot(self.state, "n1", self.note, boot)

    def noted(self) -> Note:
        return msgspec.json.decode(self.note.read_bytes(), type=Note)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_e2_each_save_has_a_higher_number_and_the_newest_is_noted(places: Places) -> None:
    first = places.life()
    for number in (1, 2, 3):
        first.save(LATER)
        assert snapshot.decode(places.file.read_bytes(), "n1") == (LATER, number)
        assert places.noted() == Note("b1", number)
    second = places.life()
    assert second.load() == (LATER, "")
    second.save(SAVED)
    assert snapshot.decode(places.file.read_bytes(), "n1") == (SAVED, 4) and places.noted() == Note("b1", 4)


def test_e2_a_lower_number_than_this_boot_has_seen_was_put_back(places: Places) -> None:
    life = places.life()
    life.save(LATER)
    old = places.file.read_bytes()
    life.save(SAVED)
    places.file.write_bytes(old)
    again = places.life()
    durable, why = again.load()
    assert durable == msgspec.structs.replace(LATER, put_back=True, confirmed_boot="", local_drain=False)
    assert why.endswith("it is number 1, and this boot has seen number 2: an older state was put back")
    again.save(durable)
    assert snapshot.decode(places.file.read_bytes(), "n1") == (durable, 3), "above all that this boot has seen"
    assert places.life().load() == (durable, ""), "it says of itself that it was put back"


def test_e2_an_older_state_of_the_next_life_is_known_too(places: Places) -> None:
    """Though it did not save anything yet."""
    life = places.life()
    life.save(LATER)
    old = places.file.read_bytes()
    life.save(SAVED)
    for _ in range(2):
        places.file.write_bytes(old)
        assert places.life().load()[0].put_back


NOTES: dict[str, bytes | None] = {
    "missing": None,
    "of another boot": msgspec.json.encode(Note("b0", 99)),
    "empty": b"",
    "cut off": b'{"boot_id":"b1","ser',
    "no text": b"\xff\xfe",
    "of something else": b'{"boot_id":"b1","serial":"many"}',
}


@pytest.mark.parametrize("case", NOTES)
def test_e2_without_a_note_of_this_boot_any_state_is_the_newest(places: Places, case: str) -> None:
    """After a boot nothing is started before the server has answered, whatever the state."""
    places.life().save(LATER)
    content = NOTES[case]
    places.note.unlink()
    if content is not None:
        places.note.write_bytes(content)
    life = places.life()
    assert life.load() == (LATER, "")
    life.save(SAVED)
    assert places.noted() == Note("b1", 2)


def test_a_boot_counts_on_from_the_file(places: Places) -> None:
    places.life().save(LATER)
    after = places.life("b2")
    assert after.load() == (LATER, "")
    after.save(LATER)
    assert places.noted() == Note("b2", 2)


def test_e2_a_state_that_is_gone_is_none_and_the_next_is_still_above_the_note(places: Places) -> None:
    life = places.life()
    for _ in range(3):
        life.save(LATER)
    places.file.unlink()
    again = places.life()
    assert again.load() == (Durable(node="n1"), "")
    again.save(SAVED)
    assert places.noted() == Note("b1", 4)


def test_without_a_place_for_the_note_nothing_is_noted(tmp_path: Path) -> None:
    life = Snapshot(tmp_path, "n1")
    life.save(LATER)
    life.save(LATER)
    (tmp_path / "snapshot").write_bytes(snapshot.encode(LATER, 1))
    assert Snapshot(tmp_path, "n1").load() == (LATER, "") and sorted(p.name for p in tmp_path.iterdir()) == ["snapshot"]


def test_a_note_that_cannot_be_written_stops_nothing(places: Places) -> None:
    places.life().save(LATER)
    places.note.unlink()
    places.run.rmdir()
    life = places.life()
    assert life.load() == (LATER, "")
    life.save(SAVED)
    assert places.life().load() == (SAVED, "")


def test_the_number_is_under_the_checksum() -> None:
    header, _, body = snapshot.encode(SAVED, 5).partition(b"\n")
    raised = header.replace(b'"serial":5', b'"serial":9')
    assert raised != header
    with pytest.raises(SnapshotError, match="its checksum is wrong"):
        snapshot.decode(raised + b"\n" + body, "n1")


# --- saves that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_state_its_number_and_its_note(
    places: Places, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    life = places.life()
    life.save(LATER)

    def full(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(SnapshotError, match="No space left on device"):
        life.save(SAVED)
    monkeypatch.undo()
    assert places.life().load() == (LATER, "") and places.noted() == Note("b1", 1)
    life.save(SAVED)
    assert snapshot.decode(places.file.read_bytes(), "n1") == (SAVED, 2) and places.noted() == Note("b1", 2)


def test_a_save_whose_last_sync_fails_has_its_number_all_the_same(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new content may be there: the next one has a higher number, and what is there is not taken for put back."""
    life = places.life()
    life.save(LATER)
    monkeypatch.setattr(life, "_sync_directory", lambda: os.stat("/nowhere/at/all"))
    with pytest.raises(SnapshotError):
        life.save(SAVED)
    monkeypatch.undo()
    assert snapshot.decode(places.file.read_bytes(), "n1") == (SAVED, 2) and places.noted() == Note("b1", 1)
    assert places.life().load() == (SAVED, "")
    life.save(LATER)
    assert snapshot.decode(places.file.read_bytes(), "n1") == (LATER, 3) and places.noted() == Note("b1", 3)


# --- another key ------------------------------------------------------------------------------------------------------

MARK = "joined"


def test_e1_joined_again_the_state_has_to_be_confirmed(places: Places) -> None:
    """The same node and server: who runs now goes on, the next life starts nothing before the server's word."""
    life = places.life()
    life.save(LATER)
    places.life().joined(foreign=False)
    durable, why = places.life().load()
    assert durable == msgspec.structs.replace(LATER, put_back=True, confirmed_boot="")
    assert "the node has another key since: the server has to confirm it" in why
    assert not (places.state / MARK).exists() and places.life().load() == (durable, "")


def test_e1_joined_elsewhere_the_state_is_put_aside(places: Places) -> None:
    places.life().save(LATER)
    places.life().joined(foreign=True)
    durable, why = places.life().load()
    assert durable == Durable(node="n1") and "is of another node or server: kept as snapshot.refused-" in why
    (kept,) = places.state.glob("snapshot.refused-*")
    assert snapshot.decode(kept.read_bytes(), "n1") == (LATER, 1)
    assert not (places.state / MARK).exists() and places.life().load() == (Durable(node="n1"), "")


def test_e1_a_mark_that_is_damaged_counts_as_foreign(places: Places) -> None:
    for content in (b"", b"\xff\xfe", b"sam"):
        places.life().save(LATER)
        (places.state / MARK).write_bytes(content)
        assert places.life().load()[0] == Durable(node="n1")


def test_joined_for_the_first_time_there_is_nothing_to_confirm(places: Places) -> None:
    places.life().joined(foreign=True)
    assert not (places.state / MARK).exists() and places.life().load() == (Durable(node="n1"), "")
    (places.state / MARK).write_text("foreign")  # the state went after it was written
    assert places.life().load() == (Durable(node="n1"), "")
    assert not (places.state / MARK).exists()


def test_joined_again_before_any_inventory_was_followed(places: Places) -> None:
    places.life().save(Durable(node="n1"))
    places.life().joined(foreign=False)
    assert places.life().load() == (Durable(node="n1"), "")


def test_e1_joined_again_and_put_back(places: Places) -> None:
    """Both count, and the first reason is told."""
    life = places.life()
    life.save(LATER)
    old = places.file.read_bytes()
    life.save(LATER)
    places.file.write_bytes(old)
    life.joined(foreign=False)
    durable, why = places.life().load()
    assert durable.put_back and durable.confirmed_boot == "" and "an older state was put back" in why


def test_e1_when_it_cannot_be_recorded_it_counts_again_at_the_next_start(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.life().save(LATER)
    places.life().joined(foreign=False)
    monkeypatch.setattr(os, "replace", lambda *_: os.stat("/nowhere/at/all"))
    assert places.life().load()[0].put_back
    monkeypatch.undo()
    assert (places.state / MARK).exists() and places.life().load()[0].put_back


# --- files that cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["damaged", "too large", "of another node"])
def test_what_cannot_be_used_is_kept_beside_and_told(
    places: Places, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    places.life().save(LATER)
    if how == "damaged":
        places.file.write_bytes(places.file.read_bytes()[:-9])
    elif how == "too large":
        monkeypatch.setattr(snapshot, "MAX_BYTES", 10)
    life = Snapshot(places.state, "n2" if how == "of another node" else "n1", places.note, "b1")
    durable, why = life.load()
    assert durable.held == {} and "refused: it" in why and "kept as snapshot.refused-" in why
    assert len(list(places.state.glob("snapshot.refused-*"))) == 1
    life.save(durable)
    assert places.noted().serial == 2, "above what this boot has seen"


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
