"""Requests of operators wait in turns, and not without bound."""

from __future__ import annotations

from typing import Any

from chimed import waiting as w
from chimed.transport import Incoming
from chimed.waiting import Waiting

NO_FRAME: Any = None


def of(key: str, text: bytes = b"") -> Incoming:
    return Incoming(b"route", key, text, NO_FRAME, True)


def test_h6_keys_take_turns_and_keep_their_order() -> None:
    waiting = Waiting()
    for text in (b"1", b"2", b"3"):
        assert waiting.add(of("busy", text))
    assert waiting.add(of("other", b"a"))
    taken = []
    while waiting:
        taken.append(waiting.take())
    assert [(m.user_id, m.payload) for m in taken] == [("busy", b"1"), ("other", b"a"), ("busy", b"2"), ("busy", b"3")]


def test_h6_what_waits_of_a_key_is_bounded_in_number_and_bytes() -> None:
    waiting = Waiting()
    assert [waiting.add(of("a")) for _ in range(w.MOST + 1)] == [True] * w.MOST + [False]
    assert waiting.add(of("b", bytes(w.MOST_BYTES)))
    assert not waiting.add(of("b", b"x"))
    assert waiting.add(of("c", bytes(w.MOST_BYTES + 1))), "one always finds room"
    waiting.take()
    assert waiting.add(of("a"))


def test_h6_a_key_whose_messages_took_long_rests_and_others_go_on() -> None:
    waiting = Waiting()
    assert waiting.take_rested(0.0) is None and waiting.due() == float("inf")
    for key in ("busy", "busy", "other"):
        waiting.add(of(key))
    first = waiting.take_rested(10.0)
    assert first is not None and first.user_id == "busy"
    waiting.rest("busy", 11.0)
    second = waiting.take_rested(10.0)
    assert second is not None and second.user_id == "other"
    assert waiting.take_rested(10.5) is None and waiting.due() == 11.0
    third = waiting.take_rested(11.0)
    assert third is not None and third.user_id == "busy"


def test_nothing_overtakes_on_the_same_connection() -> None:
    waiting = Waiting()
    waiting.add(of("a"))
    assert waiting.holds(of("a")) and not waiting.holds(of("b"))
    assert not waiting.holds(Incoming(b"another", "a", b"", NO_FRAME))
