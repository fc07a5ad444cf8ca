"""How much one key may ask: on average, at once, and what becomes of more."""

from __future__ import annotations

from chimed.core.state.budgets import Account, Accounts, Bucket, Limits, Verdict

MINE = Limits(messages_per_s=8, bytes_per_s=1024, burst_s=2, connections=4, handshakes_per_s=1, handshakes=2)
NOW = 1000.0


def taken(account: Account, size: int, now: float, tries: int = 1000) -> int:
    """How many frames of that size are looked at."""
    return sum(account.takes(size, now) for _ in range(tries))


def test_h6_a_burst_is_taken_and_then_the_average() -> None:
    account = Account(MINE, known=True)
    assert taken(account, 0, NOW) == 16
    assert taken(account, 0, NOW) == 0
    assert taken(account, 0, NOW + 1.0) == 8
    assert taken(account, 0, NOW + 1000.0) == 16, "what was not used long ago is no credit"


def test_h6_bytes_count_as_messages_do() -> None:
    account = Account(MINE, known=True)
    assert taken(account, 384, NOW) == 4
    account.charge(1024, NOW)
    assert taken(account, 384, NOW + 1.25) == 0
    assert taken(account, 384, NOW + 1.5) == 1


def test_h6_what_is_refused_costs_nothing_and_its_sender_is_cut_off_when_it_goes_on() -> None:
    account = Account(MINE, known=True)
    taken(account, 0, NOW)
    verdicts = [account.judge(0, NOW) for _ in range(17)]
    assert verdicts == [Verdict.ANSWER] * 16 + [Verdict.CUT]
    assert account.judge(0, NOW) is Verdict.CUT, "its next connection is no better"
    assert account.judge(0, NOW + 1.0) is Verdict.ANSWER
    assert taken(account, 0, NOW + 1.0) == 8


def test_h6_a_key_that_is_not_registered_any_more_says_nothing() -> None:
    accounts = Accounts(stranger=MINE)
    accounts.register({"a": MINE, "b": MINE})
    before = accounts.of("a")
    assert before.takes(1, NOW)
    accounts.register({"b": MINE})
    assert accounts.of("a") is before and not before.takes(1, NOW)
    assert not accounts.of("never known").takes(1, NOW)
    before.judge(1, NOW)
    accounts.of("b").judge(1, NOW)
    assert accounts.over() == {"b": 1}
    assert accounts.over() == {}


def test_what_a_key_has_used_stays_used_when_others_come_and_go() -> None:
    accounts, more = Accounts(), Limits(16, 1024, 2, 4, 1, 2)
    accounts.register({"a": MINE})
    assert taken(accounts.of("a"), 0, NOW) == 16
    accounts.register({"a": MINE, "b": MINE})
    assert taken(accounts.of("a"), 0, NOW) == 0
    accounts.register({"a": more})
    assert accounts.of("a").limits == more
    accounts.register({})
    accounts.register({"a": more})
    assert taken(accounts.of("a"), 0, NOW + 2.0) == 32


def test_a_stranger_is_forgotten_with_its_last_connection_and_nobody_else() -> None:
    accounts = Accounts()
    accounts.register({"a": MINE})
    mine, gone = accounts.of("a"), accounts.of("gone")
    for key in ("a", "gone", "never seen"):
        accounts.forget(key)
    assert accounts.of("a") is mine
    assert accounts.of("gone") is not gone


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(per_s=2.0, burst=10)
    assert (bucket.room(NOW), bucket.take(7, NOW), bucket.take(7, NOW), bucket.take(7, NOW)) == (10, 7, 3, 0)
    assert (bucket.room(NOW + 1.0), bucket.take(7, NOW + 1.0)) == (2, 2)


def test_a_bucket_that_was_overdrawn_waits_for_longer() -> None:
    bucket = Bucket(per_s=2.0, burst=10)
    bucket.spend(14, NOW)
    assert (bucket.room(NOW), bucket.take(1, NOW + 2.0), bucket.take(1, NOW + 2.5)) == (0, 0, 1)
