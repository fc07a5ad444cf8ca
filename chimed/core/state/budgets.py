"""How much one key may ask of the server: a bound on average, and how far ahead of it a burst may go.

Rules: nothing here knows what a frame says; judging one is a look-up and a few additions, because every heartbeat
passes here. What is refused costs the key nothing of what it may send later. A key that goes on far beyond its budget
loses its connections. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct


class Limits(Struct, frozen=True):
    """What one key may do. `burst_s`: so many seconds of its average at once; `handshakes`: so many at once.
    `waits`: its messages are served after those of keys that do not."""

    messages_per_s: float
    bytes_per_s: float
    burst_s: float
    connections: int
    handshakes_per_s: float
    handshakes: float
    waits: bool = False


NODE = Limits(100.0, 1 << 20, 10.0, 4, 1.0, 60.0)
OPERATOR = Limits(1000.0, 8 << 20, 10.0, 16, 20.0, 400.0, waits=True)
STRANGER = Limits(2.0, 64 << 10, 5.0, 4, 0.0, 0.0)
"""A key that is not registered any more, on a connection that it still has."""


class Bucket:
    """So many a second on average, `burst` at once."""

    __slots__ = ("_due", "_each_s", "_most_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._each_s, self._most_s, self._due = 1.0 / per_s, burst / per_s, float("-inf")

    def room(self, now: float) -> int:
        """How many may come now."""
        return max(0, int((self._most_s - max(0.0, self._due - now)) / self._each_s + 1e-6))

    def spend(self, count: int, now: float) -> None:
        """They came, also when there was no room for all: then the next ones wait for longer."""
        self._due = max(self._due, now) + count * self._each_s

    def take(self, count: int, now: float) -> int:
        """How many of these may come; they have."""
        granted = min(count, self.room(now))
        self.spend(granted, now)
        return granted


class Verdict(Enum):
    """What becomes of a frame that is over its key's budget."""

    ANSWER = "answer"  # refused, and its sender is told
    CUT = "cut"  # refused, and its connection ends


class Account:
    """What one key has used: each frame moves `due`, when its use is back at the average, into the future. While it
    would be later than `most_s` from now, frames are refused."""

    __slots__ = (
        "due", "known", "limits", "most_s", "over", "per_byte_s", "per_message_s", "refused_due", "waits"
    )  # fmt: skip

    def __init__(self, limits: Limits, known: bool) -> None:
        self.due = self.refused_due = float("-inf")
        self.over = 0
        self.set(limits, known)

    def set(self, limits: Limits, known: bool) -> None:
        """The key has these limits. One that is not `known` may say nothing; they are for its patience."""
        self.limits, self.known, self.waits = limits, known, limits.waits
        self.per_message_s, self.per_byte_s = 1.0 / limits.messages_per_s, 1.0 / limits.bytes_per_s
        self.most_s = limits.burst_s if known else -1.0

    def takes(self, size: int, now: float) -> bool:
        """Whether a frame of that size is looked at. (`Router.receive` has these lines itself.)"""
        due = max(self.due, now) + self.per_message_s + size * self.per_byte_s
        if due - now > self.most_s:
            return False
        self.due = due
        return True

    def charge(self, size: int, now: float) -> None:
        """So many bytes came that were not asked about."""
        self.due = max(self.due, now) + size * self.per_byte_s

    def judge(self, size: int, now: float) -> Verdict:
        """A frame is refused. What is refused counts against the same limits once more; beyond them the key is not
        listened to any longer."""
        self.over += 1
        due = max(self.refused_due, now) + self.per_message_s + size * self.per_byte_s
        if due > now + self.limits.burst_s:
            return Verdict.CUT
        self.refused_due = due
        return Verdict.ANSWER


class Accounts:
    """The account of every key that may speak, and of those that may not any more but still have a connection."""

    def __init__(self, stranger: Limits = STRANGER) -> None:
        self._stranger = stranger
        self._of: dict[str, Account] = {}
        self._known: frozenset[str] = frozenset()

    def register(self, limits: Mapping[str, Limits]) -> None:
        """These keys may speak, and no other. What a key has used already stays used."""
        for key in self._known - limits.keys():
            self._of[key].set(self._stranger, known=False)
        for key, mine in limits.items():
            account = self._of.get(key)
            if account is None:
                self._of[key] = Account(mine, known=True)
            elif account.limits != mine or not account.known:
                account.set(mine, known=True)
        self._known = frozenset(limits)

    def of(self, key: str) -> Account:
        """The account of a key that speaks."""
        account = self._of.get(key)
        if account is None:
            account = self._of[key] = Account(self._stranger, known=False)
        return account

    def over(self) -> dict[str, int]:
        """How many frames of which registered key were refused since the last call."""
        found = {key: account.over for key in self._known if (account := self._of[key]).over}
        for key in found:
            self._of[key].over = 0
        return found

    def forget(self, key: str) -> None:
        """The key has no connection any more."""
        if key not in self._known:
            self._of.pop(key, None)
