"""Requests of operators that are there and not handled yet. Nodes are served first, and operators in turns.

Rules: what waits of one key is bounded, and what is beyond it is refused; keys take turns, however much each has sent;
the order within a key is kept.
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

    def __bool__(self) -> bool:
        return bool(self._queues)

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
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        message = queue.popleft()
        if queue:
            self._queues[key] = queue
            self._bytes[key] -= len(message.payload)
        else:
            del self._bytes[key]
        return message
