"""The agent's DEALER socket on CURVE. Reconnecting means a new socket: nothing queued survives it."""

from __future__ import annotations

import contextlib

import zmq
from zmq.utils.monitor import parse_monitor_message

from agentd.core.link import KEY_REFUSED
from wire import codec
from wire.client import REFUSED
from wire.errors import ChimeError
from wire.keys import KeyFile
from wire.messages import Base

QUEUE = 64
_LOST = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class LinkSocket:
    """Never blocks. `socket` and `monitor` go into the poll loop; they change with `reconnect`."""

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys
        self._context = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.garbage = 0
        self.reconnect()

    def reconnect(self) -> None:
        """Drops the connection with everything queued in it, and makes a new one."""
        self._close()
        socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, QUEUE),
            (zmq.RCVHWM, QUEUE),
            (zmq.MAXMSGSIZE, codec.MAX_FRAME_BYTES + 64),
            (zmq.RECONNECT_IVL, 200),
            (zmq.RECONNECT_IVL_MAX, 2000),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.IPV6, 1),
        ):
            socket.setsockopt(option, value)
        pair = self._keys.pair()
        socket.curve_serverkey = (self._keys.server_public_key or "").encode()
        socket.curve_publickey = pair.public.encode()
        socket.curve_secretkey = pair.secret.encode()
        self.monitor = socket.get_monitor_socket(_LOST)
        socket.connect(self._keys.endpoint or "")
        self.socket = socket

    def _close(self) -> None:
        if self.socket is not None:
            self.socket.disable_monitor()
            self.socket.close(linger=0)
            self.socket = None

    def send(self, body: Base, correlation_id: str) -> bool:
        """Queues a message; False when the queue is full."""
        assert self.socket is not None
        try:
            self.socket.send(codec.encode(body, correlation_id), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[tuple[Base, str]]:
        """The messages that are there; what cannot be decoded is counted and dropped."""
        found: list[tuple[Base, str]] = []
        assert self.socket is not None
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                try:
                    if len(frames) != 1:
                        raise ChimeError("bad-frame", "more than one frame")
                    _, correlation_id, body = codec.decode(frames[0])
                    found.append((body, correlation_id))
                except ChimeError:
                    self.garbage += 1
        return found

    def lost(self) -> str:
        """Why the connection ended since the last call, or nothing."""
        why = ""
        assert self.monitor is not None
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
                if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH and event["value"] == REFUSED:
                    why = KEY_REFUSED
                else:
                    why = why or "the connection was lost"
        return why

    def close(self) -> None:
        """Ends the connection."""
        self._close()
        self._context.destroy(linger=0)
