"""What goes into the server's core and what comes out of it.

The shell handles a batch of events, commits what `Tables.changes()` names in one transaction, and only then carries out
the effects. When the commit fails the turn has not happened (`ServerCore.rolled_back`).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from wire.errors import ChimeError
from wire.messages import Base, EventList


class Event(Struct, frozen=True):
    """An input of the core."""


class Tick(Event, frozen=True):
    """Time has passed; all messages that were there have been handled."""


class Received(Event, frozen=True, gc=False):
    """A message. `key`: CURVE public key that spoke; `route`: the connection; `address`: looks up the peer's IP."""

    key: str
    route: bytes
    body: Base
    id: str
    address: Callable[[], str]


class Garbage(Event, frozen=True):
    """A frame that could not be decoded. `id` may be empty."""

    key: str
    route: bytes
    error: ChimeError
    id: str


class OverBudget(Event, frozen=True):
    """So many messages of this key were not looked at: more than its budget."""

    key: str
    count: int


class PingAnswered(Event, frozen=True):
    """A ping reply for `token` (the node's name) came."""

    token: str


class PingUnsent(Event, frozen=True):
    """A ping could not be sent: no answer is known."""

    token: str
    why: str


class Unroutable(Event, frozen=True):
    """The connection is gone."""

    route: bytes


class Effect(Struct, frozen=True):
    """An order to the shell."""


class Send(Effect, frozen=True, gc=False):
    """Send `body` to the connection `route`, answering message `id`."""

    route: bytes
    body: Base
    id: str = ""


class Ping(Effect, frozen=True):
    """Send one ICMP echo to `address`; the answer names `token`."""

    address: str
    token: str


class ReadEvents(Effect, frozen=True):
    """Answer `id` on `route` with audit lines from the store."""

    route: bytes
    id: str
    query: EventList
    subjects: tuple[str, ...] = ()


class Log(Effect, frozen=True):
    """A line for the log."""

    level: str
    text: str
