"""The synchronous client of the operator protocol: one DEALER, one request at a time, no thread.

Rules: an answer counts only if it carries the newest correlation id of the request. A request that a lost
connection may have swallowed is sent again, with the same idempotency key, so it takes effect once. Silence
ends in `Unreachable`, which says what is likely wrong: libzmq itself keeps silent about a wrong key."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Self

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from wire import messages as m
from wire.codec import MAX_FRAME_BYTES, decode, encode
from wire.curve import KeyPair
from wire.errors import ChimeError, Unreachable
from wire.keys import check_endpoint
from wire.types import OperationState

REFUSED = 400
"""The ZAP status of an unknown key."""
RECONNECT_MS = 100
RECONNECT_MAX_MS = 2000
POLL_MIN_S = 0.2
POLL_MAX_S = 1.0


class _Link(Enum):
    """What is known of the connection; the value is what silence then means."""

    DOWN = "nothing accepts connections there: is chimed running, and is the endpoint right?"
    OPEN = "it accepts connections but ends the handshake: is server_public_key right, and is it a chimed?"
    READY = "it is connected but does not answer: whether the request took effect is not known"


_EVENTS: dict[int, _Link] = {
    zmq.EVENT_CONNECTED: _Link.OPEN,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: _Link.READY,
    zmq.EVENT_DISCONNECTED: _Link.DOWN,
}


def new_key() -> str:
    """A new idempotency key (128 random bits)."""
    return secrets.token_hex(16)


class Client:
    """A connection to a server, as the operator whose key pair it is. Not for use by several threads at once.

    `endpoint`: `tcp://host:port`; `timeout_s`: how long `request` waits for an answer, in seconds.
    """

    def __init__(self, endpoint: str, server_key: str, key_pair: KeyPair, timeout_s: float = 10.0) -> None:
        check_endpoint(endpoint)
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._link = _Link.DOWN
        self._was_open = False
        self._refused = False
        self._public_key = key_pair.public
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.immediate = 1  # nothing is queued for a connection that is not there
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._monitor = self._socket.get_monitor_socket(sum(_EVENTS) | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        try:
            self._socket.curve_serverkey = server_key.encode()
            self._socket.curve_publickey, self._socket.curve_secretkey = (key.encode() for key in key_pair)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ChimeError("invalid", f"cannot connect to {endpoint!r} with these keys: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; what was not sent yet is dropped."""
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    def request(self, body: m.Base, timeout_s: float | None = None) -> Any:
        """Sends `body` and returns the `result` of its answer. Raises `ChimeError` (what the server refused,
        or an unregistered key: unknown-key) or `Unreachable`; after that one ask again with the same
        `body.key`."""
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        correlation_id = ""  # of the frame that is on its way, if any
        while True:
            self._follow_link()
            if self._link is not _Link.READY:
                correlation_id = ""
            elif not correlation_id:
                correlation_id = self._send(body)
            answer = self._receive(correlation_id)
            if answer is not None:
                return _result(answer)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._unreachable(wait_s)
            self._wait(left_s)

    def items(self, body: m.Base) -> Iterator[Any]:
        """All rows of a list request (`NodeList`, `VmList`, ...): follows `next` over the pages."""
        while True:
            page = self.request(body)
            yield from page["items"]
            if not page.get("next"):
                return
            body = msgspec.structs.replace(body, after=page["next"])

    def wait_operation(
        self,
        operation_id: str,
        timeout_s: float,
        on_progress: Callable[[m.OperationView], None] | None = None,
    ) -> m.OperationView:
        """Asks for an operation until it has ended, or `timeout_s` is over: its `state` is then still
        `running`.

        `on_progress` is called whenever it changed. An unreachable server is asked again until the time is
        over."""
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_MIN_S
        last: m.OperationView | None = None
        while True:
            left_s = deadline - time.monotonic()
            try:
                result = self.request(m.OpShow(id=operation_id), min(self.timeout_s, max(left_s, POLL_MIN_S)))
            except ChimeError as error:
                if not error.retriable or left_s <= 0:
                    raise
            else:
                seen = msgspec.convert(result["operation"], m.OperationView)
                if seen != last and on_progress is not None:
                    on_progress(seen)
                last = seen
                if seen.state != OperationState.RUNNING or left_s <= 0:
                    return seen
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(POLL_MAX_S, pause_s * 1.5)

    def _follow_link(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            kind = event["event"]
            if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and event["value"] == REFUSED:
                self._refused = True  # libzmq does not connect again after this
            elif kind in _EVENTS:
                self._link = _EVENTS[kind]
            self._was_open = self._was_open or self._link is _Link.OPEN
        if self._refused:
            text = f"the server at {self.endpoint} does not know the key {self._public_key}"
            raise ChimeError("unknown-key", text)

    def _send(self, body: m.Base) -> str:
        correlation_id = secrets.token_hex(8)
        try:
            self._socket.send(encode(body, correlation_id), zmq.NOBLOCK)
        except zmq.Again:  # the connection was lost just now: the monitor will say so
            return ""
        return correlation_id

    def _receive(self, correlation_id: str) -> m.Base | None:
        """The answer to `correlation_id` if it is there; anything else is dropped."""
        while self._socket.poll(0):
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                message = decode(frames[0])
            except ChimeError:
                continue  # a request without an answer ends in Unreachable
            if len(frames) == 1 and correlation_id and message.id == correlation_id:
                return message.body
        return None

    def _wait(self, left_s: float) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.poll(int(min(1000.0, max(1.0, left_s * 1000))))

    def _unreachable(self, wait_s: float) -> Unreachable:
        link = self._link
        if link is _Link.DOWN and self._was_open:
            link = _Link.OPEN
        return Unreachable(f"no answer from {self.endpoint} within {wait_s:g} s: {link.value}")


def _result(answer: m.Base) -> Any:
    if isinstance(answer, m.Ok):
        return answer.result
    if isinstance(answer, m.ErrorBody):
        error = ChimeError(answer.code, answer.message)
        error.details = dict(answer.details)
        raise error
    raise ChimeError("bad-frame", f"the server answered with {type(answer).__name__}, neither ok nor error")
