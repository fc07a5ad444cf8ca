"""Which connections the socket has, as far as libzmq tells: its monitor says which descriptors were accepted and
closed, a message on which descriptor and with which key it came.

Rules: a connection that says nothing for long is ended; so is the oldest of a key that has too many, or of an address
that only begins to connect again and again; so is one of which libzmq holds much that never becomes a message.
Nothing here touches a descriptor: it names those to cut. A message may come out of the queue after its connection was
closed and its number was given to another one: whoever cuts compares the peer's address first.
"""

from __future__ import annotations

from collections.abc import Callable

from chimed.core.state.budgets import STRANGER, Account, Bucket

SILENT_S = 60.0
"""A peer speaks as soon as it is connected. One that does not loses nothing: libzmq connects again by itself."""
REFUSED_PER_S, REFUSED_BURST = 5.0, 100.0
"""Handshakes of one address that are refused, before its new connections are ended at once: a handshake takes libzmq's
thread the time of ten heartbeats."""
OPENED_PER_S, OPENED_BURST = 20.0, 20.0
"""Connections of such an address that are let be, for whoever shares it."""
REFUSING_S = 10.0
ADDRESSES_MAX = 10_000
BEGUN_MAX = 2000
"""Connections of one address on which nothing was said yet."""
LOOK_EVERY_S = 1.0
HELD_MAX_BYTES = 8 << 20
"""Of one connection, received and not come out as a message: more than the frames that libzmq reads ahead."""
FRAME_BYTES = 42
"""What a frame has on its way besides its payload: CURVE's 33 bytes, and libzmq's 9 of a large one."""


_NOBODY = Account(STRANGER, known=False)


class Connection:
    """One of them. `key` and `route` are empty while nothing was said. `taken`: bytes that came out as messages.
    `account`: of the key."""

    __slots__ = ("account", "address", "fd", "key", "route", "since", "taken")

    def __init__(self, fd: int, address: str, since: float) -> None:
        self.fd, self.address, self.since = fd, address, since
        self.key, self.route, self.taken = "", b"", 0
        self.account = _NOBODY


class Connections:
    """All of them. `by_route`: those on which something was said."""

    def __init__(self) -> None:
        self.by_route: dict[bytes, Connection] = {}
        self._open: dict[int, Connection] = {}
        self._begun: dict[int, Connection] = {}
        self._of_key: dict[str, dict[int, Connection]] = {}
        self._begun_from: dict[str, dict[int, Connection]] = {}
        self._refused: dict[str, Bucket] = {}
        self._bad: dict[str, tuple[float, Bucket]] = {}
        self._next_look = 0.0

    def refused(self, address: str, now: float) -> None:
        """A handshake from that address was refused."""
        if len(self._refused) > ADDRESSES_MAX:
            self._refused.clear()
            self._bad.clear()
        bucket = self._refused.get(address) or self._refused.setdefault(address, Bucket(REFUSED_PER_S, REFUSED_BURST))
        if not bucket.take(1, now):
            _, allowed = self._bad.get(address, (0.0, Bucket(OPENED_PER_S, OPENED_BURST)))
            self._bad[address] = (now + REFUSING_S, allowed)

    def _is_bad(self, address: str, now: float) -> bool:
        """Whether a new connection of the address is one too many."""
        until, allowed = self._bad.get(address, (now, None))
        if allowed is None or now >= until:
            self._bad.pop(address, None)
            return False
        return not allowed.take(1, now)

    def opened(self, fd: int, address: str, now: float) -> list[Connection]:
        """It was accepted. Returns what is too much for its address."""
        self.closed(fd)
        new = self._open[fd] = self._begun[fd] = Connection(fd, address, now)
        same = self._begun_from.setdefault(address, {})
        same[fd] = new
        if self._bad and self._is_bad(address, now):
            return [new]
        if len(same) <= BEGUN_MAX:
            return []
        oldest = next(iter(same.values()))
        self._no_longer_begun(oldest)
        return [oldest]

    def closed(self, fd: int) -> str:
        """It has ended. Returns its key if that was the last connection of the key."""
        gone = self._open.pop(fd, None)
        if gone is None:
            return ""
        self._no_longer_begun(gone)
        if self.by_route.get(gone.route) is gone:
            del self.by_route[gone.route]
        same = self._of_key.get(gone.key, {})
        same.pop(fd, None)
        if same or not gone.key:
            return ""
        del self._of_key[gone.key]
        return gone.key

    def spoke(self, route: bytes, key: str, fd: int, account: Account) -> list[Connection]:
        """The first message of a route, with this key, came on `fd`. Returns what is too much for the key."""
        known = self._open.get(fd)
        if known is None:
            return []  # it has ended already
        if known.key:
            self.opened(fd, known.address, known.since)
            known = self._open[fd]
        self._no_longer_begun(known)
        known.route, known.key, known.account = route, key, account
        self.by_route[route] = known
        same = self._of_key.setdefault(key, {})
        same[fd] = known
        return list(same.values())[: max(0, len(same) - account.limits.connections)]

    def of(self, key: str) -> list[Connection]:
        """All of that key."""
        return list(self._of_key.get(key, {}).values())

    def silent(self, now: float) -> list[Connection]:
        """Those that have said nothing for too long; looks once a second."""
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_EVERY_S
        found = []
        for connection in self._begun.values():  # in the order in which they came
            if connection.since + SILENT_S > now:
                break
            found.append(connection)
        for connection in found:
            self._no_longer_begun(connection)
        return found

    def hoarders(self, received: Callable[[Connection], int]) -> list[Connection]:
        """Those of which much is held that never became a message. `received`: bytes that came in on one."""
        return [c for c in list(self._open.values()) if received(c) - c.taken > HELD_MAX_BYTES]

    def _no_longer_begun(self, connection: Connection) -> None:
        if self._begun.get(connection.fd) is connection:
            del self._begun[connection.fd]
            same = self._begun_from[connection.address]
            del same[connection.fd]
            if not same:
                del self._begun_from[connection.address]
