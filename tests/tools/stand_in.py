"""A server that answers as a test says: a ROUTER with CURVE and ZAP in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

import zmq
import zmq.utils.z85

from wire import messages as m
from wire.codec import Message, decode, encode
from wire.curve import new_pair

ZAP_DOMAIN = b"chime"


class StandIn:
    """`answer` gets each message and returns the body to send, or None for silence; `before` is sent ahead of
    the next answer. Only keys in `allowed` may connect."""

    def __init__(self, allowed: list[str]) -> None:
        self.keys = new_pair()
        self.allowed = allowed
        self.answer: Callable[[Message], m.Base | None] = lambda _: None
        self.before: list[tuple[str, m.Base | bytes]] = []
        self.seen: list[Message] = []
        self.endpoint = "tcp://127.0.0.1:*"
        self._stopping = threading.Event()
        self._thread = threading.Thread()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._stopping.clear()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        zap = context.socket(zmq.REP)
        zap.linger = 0
        zap.bind("inproc://zeromq.zap.01")
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.curve_server = True
        router.curve_secretkey = self.keys.secret.encode()
        router.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        _bind(router, self.endpoint)
        self.endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, args=(context, router, zap), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def wait_for(self, count: int) -> None:
        """Until `count` messages were seen."""
        deadline = time.monotonic() + 5
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"{len(self.seen)} of {count} messages came"
            time.sleep(0.005)

    def _run(
        self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], zap: zmq.Socket[bytes]
    ) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(zap, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(10))
            if zap in ready:
                self._authenticate(zap)
            if router in ready:
                self._serve(router)
        context.destroy(linger=0)

    def _authenticate(self, zap: zmq.Socket[bytes]) -> None:
        version, request, domain, _address, _identity, _mechanism, key = zap.recv_multipart()
        public = zmq.utils.z85.encode(key).decode()
        known = domain == ZAP_DOMAIN and public in self.allowed
        status = [b"200", b"OK", public.encode()] if known else [b"400", b"unknown key", b""]
        zap.send_multipart([version, request, *status, b""])

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        peer, payload = router.recv_multipart()
        message = decode(payload)
        self.seen.append(message)
        for correlation_id, body in self.before:
            router.send_multipart([peer, body if isinstance(body, bytes) else encode(body, correlation_id)])
        self.before = []
        answer = self.answer(message)
        if answer is not None:
            router.send_multipart([peer, encode(answer, message.id)])


def _bind(router: zmq.Socket[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            router.bind(endpoint)
            return
        except zmq.ZMQError as error:  # the stopped one's socket may live a moment longer
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
