"""Messages that are there and not handled yet, since others go before: requests of operators, and large messages.

Rules: what waits of one key is bounded, and what is beyond it is refused; keys take turns, however much each has sent;
the order within a key is kept. A key whose messages took long rests before its next one.
"""

from __future__ import annotations

from collections import deque

from chimed.transport import Incoming

MOST = 256  # messages of one key: sixteen on each of as many connections
MOST_BYTES = 8 << 20


class Waiting:
    """A queue for each key that has sent something."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Incoming]] = {}
        self._bytes: dict[str, int] = {}
        self._rests: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def holds(self, message: Incoming) -> bool:
        """Whether a message that came before on the same connection waits: this one must not overtake it."""
        queue = self._queues.get(message.user_id, ())
        return any(waiting.routing_id == message.routing_id for waiting in queue)

    def add(self, message: Incoming) -> bool:
        """Returns whether there is room for it."""
        queue = self._queues.setdefault(message.user_id, deque())
        size = self._bytes.get(message.user_id, 0) + len(message.payload)
        if len(queue) >= MOST or (queue and size > MOST_BYTES):
            return False
        queue.append(message)
        self._bytes[message.user_id] = size
        return True

    def take(self) -> Incoming:
        """The next one, of the key whose turn it is."""
        return self._take(next(iter(self._queues)))

    def take_rested(self, now: float) -> Incoming | None:
        """The next one, of the key whose turn it is and that does not rest."""
        self._rests = {key: until for key, until in self._rests.items() if until > now}
        key = next((key for key in self._queues if key not in self._rests), None)
        return self._take(key) if key is not None else None

    def rest(self, key: str, until: float) -> None:
        """Nothing of the key is taken before."""
        self._rests[key] = until

    def due(self) -> float:
        """When `take_rested` has something; infinite when nothing waits."""
        return min((self._rests.get(key, 0.0) for key in self._queues), default=float("inf"))

    def _take(self, key: str) -> Incoming:
        queue = self._queues.pop(key)
        message = queue.popleft()
        if queue:
            self._queues[key] = queue
            self._bytes[key] -= len(message.payload)
        else:
            del self._bytes[key]
        return message
