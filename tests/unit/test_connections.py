"""Which connections there are, and which of them are too many."""

from __future__ import annotations

import pytest

from chimed import connections as c
from chimed.connections import Connection, Connections
from chimed.core.state.budgets import Account, Limits

TWO = Account(Limits(10, 1000, 2, 2, 1, 2), known=True)
HOME, AWAY = "10.0.0.1", "10.0.0.2"


def fds(found: list[Connection]) -> list[int]:
    return [connection.fd for connection in found]


def opened(*numbers: int, address: str = HOME) -> Connections:
    known = Connections()
    for fd in numbers:
        assert known.opened(fd, address, float(fd)) == []
    return known


def test_h6_the_oldest_connections_of_a_key_are_too_many() -> None:
    known = opened(1, 2, 3, 4)
    assert [fds(known.spoke(b"%d" % fd, "key", fd, TWO)) for fd in (1, 2, 3)] == [[], [], [1]]
    assert known.spoke(b"4", "other", 4, TWO) == []
    assert fds(known.of("key")) == [1, 2, 3]
    assert (known.closed(1), known.closed(2), known.closed(3), known.closed(3)) == ("", "", "key", "")
    assert known.of("key") == [] and set(known.by_route) == {b"4"}


def test_a_message_of_a_connection_that_has_ended_makes_none() -> None:
    known = opened(1)
    assert known.closed(1) == ""
    assert known.spoke(b"1", "key", 1, TWO) == []
    assert known.by_route == {} and known.of("key") == []


def test_a_number_that_is_used_again_is_another_connection() -> None:
    known = opened(1)
    known.spoke(b"a", "key", 1, TWO)
    known.opened(1, AWAY, 5.0)
    assert known.by_route == {} and known.of("key") == []
    known.spoke(b"b", "other", 1, TWO)
    known.spoke(b"c", "third", 1, TWO)
    assert {route: one.key for route, one in known.by_route.items()} == {b"c": "third"}
    assert known.of("other") == []


def test_a_route_that_another_connection_took_over_stays_its_own() -> None:
    known = opened(1, 2)
    known.spoke(b"chosen", "key", 1, TWO)
    known.spoke(b"chosen", "other", 2, TWO)
    known.closed(1)
    assert known.by_route[b"chosen"].key == "other"


def test_h6_connections_without_a_word_end_after_a_while() -> None:
    known = opened(1, 2, 50)
    known.spoke(b"1", "key", 1, TWO)
    assert fds(known.silent(c.SILENT_S + 1.9)) == []
    assert fds(known.silent(c.SILENT_S + 2.0)) == [], "it looks once a second"
    assert fds(known.silent(c.SILENT_S + 3.0)) == [2]
    assert fds(known.silent(c.SILENT_S + 60.0)) == [50]


def test_h6_an_address_that_only_begins_to_connect_loses_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "BEGUN_MAX", 3)
    known = opened(1, 2, 3)
    assert known.opened(4, AWAY, 4.0) == []
    assert fds(known.opened(5, HOME, 5.0)) == [1]
    known.spoke(b"2", "key", 2, TWO)
    assert known.opened(6, HOME, 6.0) == []


def test_h6_an_address_whose_handshakes_are_refused_again_and_again_is_ended_before_the_next() -> None:
    known = Connections()
    for _ in range(int(c.REFUSED_BURST)):
        known.refused(AWAY, 0.0)
    assert known.opened(1, AWAY, 0.0) == []
    known.refused(AWAY, 0.0)
    known.refused(AWAY, 0.0)
    cut = [bool(known.opened(100 + n, AWAY, 0.0)) for n in range(30)]
    assert cut == [False] * int(c.OPENED_BURST) + [True] * 10
    assert known.opened(2, HOME, 0.0) == []
    assert known.opened(3, AWAY, 1.0) == []
    assert [known.opened(200 + n, AWAY, c.REFUSING_S) for n in range(30)] == [[]] * 30


def test_addresses_that_were_refused_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "ADDRESSES_MAX", 3)
    known = Connections()
    for number in range(50):
        known.refused(str(number), 0.0)
    assert len(known._refused) <= 4


def test_h6_a_connection_that_is_given_much_and_says_nothing_is_found() -> None:
    known = opened(1, 2, 3)
    known.spoke(b"2", "key", 2, TWO)
    known.by_route[b"2"].taken = 30 << 20
    received = {1: c.HELD_MAX_BYTES + 1, 2: (30 << 20) + c.HELD_MAX_BYTES, 3: 0}
    assert fds(known.hoarders(lambda one: received[one.fd])) == [1]
