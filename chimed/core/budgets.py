"""How much one key may ask of the server: a bound on average, and how far ahead of it a burst may go.

Rules: nothing here knows what a frame says; judging one is a look-up and a few additions, because every heartbeat
passes here. What is refused costs the key nothing of what it may send later. A key that goes on far beyond its budget
loses its connections. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

TOLD_EVERY_S = 1.0


class Limits(Struct, frozen=True):
    """What one key may do. `burst_s`: so many seconds of its average at once; `handshakes`: so many at once."""

    messages_per_s: float
    bytes_per_s: float
    burst_s: float
    connections: int
    handshakes_per_s: float
    handshakes: float


NODE = Limits(100.0, 1 << 20, 10.0, 4, 1.0, 60.0)
OPERATOR = Limits(1000.0, 8 << 20, 10.0, 16, 20.0, 400.0)
STRANGER = Limits(2.0, 64 << 10, 5.0, 4, 0.0, 0.0)
"""A key that is not registered any more, on a connection that it still has."""


class Bucket:
    """So many a second on average, `burst` at once."""

    __slots__ = ("_due", "_each_s", "_most_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._each_s, self._most_s, self._due = 1.0 / per_s, burst / per_s, float("-inf")

    def room(self, now: float) -> int:
        """How many may come now."""
        return int((self._most_s - max(0.0, self._due - now)) / self._each_s + 1e-6)

    def spend(self, count: int, now: float) -> None:
        """They came, also when there was no room for all: then the next ones wait for longer."""
        self._due = max(self._due, now) + count * self._each_s

    def take(self, count: int, now: float) -> int:
        """How many of these may come; they have."""
        granted = max(0, min(count, self.room(now)))
        self.spend(granted, now)
        return granted


class Verdict(Enum):
    """What becomes of a frame that is over its key's budget."""

    ANSWER = "answer"  # refused, and its sender is told
    DROP = "drop"  # refused; it was told a moment ago
    CUT = "cut"  # refused, and its connection ends


class Account:
    """What one key has used: each frame moves `due`, when its use is back at the average, into the future."""

    __slots__ = ("burst_s", "due", "limits", "over", "per_byte_s", "per_message_s", "refused_due", "told")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.per_message_s, self.per_byte_s = 1.0 / limits.messages_per_s, 1.0 / limits.bytes_per_s
        self.burst_s = limits.burst_s
        self.due = self.refused_due = self.told = float("-inf")
        self.over = 0

    def judge(self, size: int, now: float) -> Verdict:
        """A frame is refused. What is refused counts against the same limits once more; beyond them the key is not
        listened to any longer."""
        self.over += 1
        self.refused_due = max(self.refused_due, now) + self.per_message_s + size * self.per_byte_s
        if self.refused_due > now + self.burst_s:
            self.refused_due = now
            return Verdict.CUT
        if now < self.told + TOLD_EVERY_S:
            return Verdict.DROP
        self.told = now
        return Verdict.ANSWER


class Accounts:
    """The account of every key that may speak, and of those that may not any more but still have a connection. Set
    `now` once a turn."""

    def __init__(self, stranger: Limits = STRANGER) -> None:
        self.now = 0.0
        self._stranger = stranger
        self._known: dict[str, Account] = {}
        self._strangers: dict[str, Account] = {}

    def register(self, limits: Mapping[str, Limits]) -> None:
        """These keys may speak, and no other. What a key has used already stays used."""
        known = self._known
        self._known = {
            key: account if (account := known.get(key)) is not None and account.limits == mine else Account(mine)
            for key, mine in limits.items()
        }
        for key in self._known:
            self._strangers.pop(key, None)

    def known(self, key: str) -> bool:
        """Whether the key may speak."""
        return key in self._known

    def takes(self, key: str, size: int) -> bool:
        """Whether a frame of that size is looked at. The hot path; what is not is for `judge`."""
        account = self._known.get(key)
        if account is None:
            return False
        now, due = self.now, account.due
        due = (due if due > now else now) + account.per_message_s + size * account.per_byte_s
        if due > now + account.burst_s:
            return False
        account.due = due
        return True

    def judge(self, key: str, size: int) -> Verdict:
        """What becomes of a frame that is not looked at."""
        return self._of(key).judge(size, self.now)

    def connections(self, key: str) -> int:
        """How many connections the key may have."""
        return self._of(key).limits.connections

    def over(self) -> dict[str, int]:
        """How many frames of which registered key were refused since the last call."""
        found = {key: account.over for key, account in self._known.items() if account.over}
        for key in found:
            self._known[key].over = 0
        return found

    def forget(self, key: str) -> None:
        """The stranger has no connection any more."""
        self._strangers.pop(key, None)

    def _of(self, key: str) -> Account:
        account = self._known.get(key) or self._strangers.get(key)
        if account is None:
            account = self._strangers[key] = Account(self._stranger)
        return account
