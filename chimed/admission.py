"""Who may connect: the answers to libzmq's questions (ZAP, RFC 27) about each CURVE handshake, given by the loop.

Rules: a key that is registered, in our domain, gets in under its own name, and nobody else does. A registered key that
connects more often than its budget is told "later". Without an answer nobody gets in. There is no thread: one that is
busy with the handshakes of a stranger would take the interpreter from the loop at each of its calls.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from chimed.core.state.budgets import Bucket, Limits

ZAP_DOMAIN = "chime"
LATER = 300
"""The ZAP status for "not now": libzmq's client waits for the end of the handshake's time, and connects again."""
ANSWERS = 50  # of one turn
_OK, _LATER, _NO = (b"200", b"OK"), (b"%d" % LATER, b"Too many connections"), (b"400", b"Unknown key")
_VERSION = b"1.0"
_NOW = int(zmq.NOBLOCK)


class Admission:
    """The keys that may connect, by what CURVE shows of them (32 bytes)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._buckets: dict[bytes, tuple[str, Bucket]] = {}

    def allow(self, limits: Mapping[str, Limits]) -> None:
        """These keys (Z85) and no others. What a key has used already stays used."""
        for key in self._keys.keys() - limits.keys():
            del self._buckets[self._keys.pop(key)]
        for key, mine in limits.items():
            if key not in self._keys:
                raw = self._keys[key] = z85.decode(key)
                self._buckets[raw] = (key, Bucket(mine.handshakes_per_s, mine.handshakes))

    def judge(self, domain: bytes, mechanism: bytes, credentials: list[bytes]) -> tuple[tuple[bytes, bytes], str]:
        """The answer to one handshake: status and its text, and the name (Z85) of who gets in."""
        if domain != ZAP_DOMAIN.encode() or mechanism != b"CURVE" or len(credentials) != 1:
            return _NO, ""
        key, bucket = self._buckets.get(credentials[0], ("", None))
        if bucket is None:
            return _NO, ""
        return (_OK, key) if bucket.take(1, self._clock()) else (_LATER, "")


class Authenticator:
    """The socket that libzmq asks. It is there before the socket that it guards, or libzmq would ask nobody.
    `refused` is told the address of each who does not get in."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], admission: Admission, refused: Callable[[str], None]
    ) -> None:
        self._admission, self._refused = admission, refused
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self, most: int = ANSWERS) -> None:
        """Answers what is asked, up to `most`; the rest waits for the next turn."""
        with contextlib.suppress(zmq.Again):
            for _ in range(most):
                self._answer(self.socket.recv_multipart(_NOW))

    def close(self) -> None:
        """From now on nobody gets in."""
        self.socket.close(linger=0)

    def _answer(self, question: list[bytes]) -> None:
        if len(question) < 6:
            self.socket.send_multipart([_VERSION, b"", *_NO, b"", b""], _NOW)
            return
        _, request_id, domain, address, _, mechanism, *credentials = question
        (status, text), key = self._admission.judge(domain, mechanism, credentials)
        self.socket.send_multipart([_VERSION, request_id, status, text, key.encode("ascii"), b""], _NOW)
        if not key:
            self._refused(address.decode("ascii", "replace"))
