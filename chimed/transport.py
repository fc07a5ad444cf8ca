"""The server's socket: a ROUTER on CURVE, and the poll loop around it.

Rules: - Only registered keys get in: ZAP with an enforced domain, tested on the socket itself (`self_test`)
before it may be bound. Without the authenticator's answer nobody gets in. - Who speaks is read from each
message (`User-Id`, the public key that CURVE proved, 0.2 us). It is not kept by routing id: a peer can choose
its own id, also one that another connection had a moment ago and whose end the ROUTER does not tell; what was
kept for that id would then lend one node's identity to another. - A key that is revoked keeps its connection
(libzmq cannot end one): the core refuses its next message. - Nothing here blocks. A message that cannot be
delivered is an outcome, not an exception. - A payload is one frame; a message of more is dropped whole and
counted. - A libzmq client whose handshake was refused does not connect again by itself: its owner must make a
new socket.

No message is decoded and nothing is decided here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Callable, Iterable
from enum import Enum

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from wire.codec import MAX_FRAME_BYTES
from wire.curve import KeyPair, new_pair

ZAP_DOMAIN = "chime"
HANDSHAKE_MS = 10_000
QUEUED_MESSAGES = 16
"""Received or unsent messages that libzmq keeps for each peer; small is faster under overload and bounds
memory. (ZMTP heartbeats are not used: libzmq asserts with small queues.)"""
CURVE_OVERHEAD_BYTES = 64
"""libzmq's limit is for the encrypted frame, 33 bytes longer than the payload; the codec has the exact
limit."""
BACKLOG = 4096
TURN_BYTES = 1 << 20
SELF_TEST_S = 5.0
_NOW, _MORE = (
    int(zmq.NOBLOCK),
    int(zmq.NOBLOCK | zmq.SNDMORE),
)  # plain integers: an enum costs half a microsecond
_USER_ID = b"User-Id"
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_Context = zmq.Context[zmq.Socket[bytes]]
_numbers = itertools.count()


class TransportError(Exception):
    """The socket cannot be made, bound, or does not keep strangers out: the server must not start."""


class SendOutcome(Enum):
    """What became of a message."""

    SENT = "sent"  # handed to libzmq; not proof of arrival
    UNROUTABLE = "unroutable"  # the connection is gone
    WOULD_BLOCK = "would-block"  # the peer does not read


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """One message. `user_id`: the public key (Z85) of the connection that it came on."""

    routing_id: bytes
    user_id: str
    payload: bytes
    frame: zmq.Frame

    @property
    def peer_address(self) -> str:
        """The address that the peer speaks from, as text without port."""
        address = str(self.frame.get("Peer-Address"))
        return address.removeprefix("::ffff:")


class Counters(msgspec.Struct):
    """Totals since the start."""

    received: int = 0
    sent: int = 0
    unroutable: int = 0
    would_block: int = 0
    many_frames: int = 0
    unknown_keys: int = 0  # refused by ZAP
    bad_handshakes: int = 0  # no CURVE, junk, closed or idle during the handshake


class Admission:
    """The keys that may connect; asked from the authenticator's thread. The set is replaced, never
    changed."""

    def __init__(self) -> None:
        self.keys: frozenset[bytes] = frozenset()

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by pyzmq for each CURVE handshake."""
        return domain == ZAP_DOMAIN and key in self.keys


class Router:
    """Make it, `self_test()`, `allow(keys)`, `bind(endpoint)`; then `poll`, `receive` and `send` from one
    thread."""

    def __init__(self, keys: KeyPair, handshake_ms: int = HANDSHAKE_MS) -> None:
        raise_file_limit()
        self.counters = Counters()
        self._keys = keys
        self._tested = False
        self._admission = Admission()
        self._context: _Context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=self._admission)
        self._socket = self._context.socket(zmq.ROUTER)
        _configure(self._socket, keys, handshake_ms)
        self._send = super(zmq.Socket, self._socket).send
        """Without pyzmq's layer for options that are not used here: 0.2 us less for each frame."""
        self._monitor = _watch_refusals(self._context, self._socket)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._extra: frozenset[int] = frozenset()
        self.more = False

    def allow(self, keys: Iterable[str]) -> None:
        """Replaces the set of public keys (Z85) that may connect. Connections that exist stay."""
        self._admission.keys = frozenset(key.encode("ascii") for key in keys)

    def bind(self, endpoint: str) -> str:
        """Listens at `endpoint` and returns it, with the port chosen for `*`. Raises TransportError."""
        if not self._tested:
            raise TransportError("the socket was not tested: call self_test first")
        try:
            self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot listen at {endpoint}: {error}") from None
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def poll(self, timeout_s: float | None, extra_fds: Iterable[int] = ()) -> set[int]:
        """Waits until a message is there, one of `extra_fds` is readable or the time is up (None: no limit).
        Returns the readable ones of `extra_fds`; call `receive` in any case. A signal's handler runs and
        waiting goes on: let it write to a pipe among `extra_fds`."""
        wanted = frozenset(extra_fds)
        for fd in self._extra - wanted:
            self._poller.unregister(fd)
        for fd in wanted - self._extra:
            self._poller.register(fd, zmq.POLLIN)
        self._extra = wanted
        # Rounded up: a loop that wakes before its deadline would spin until it comes.
        timeout_ms = None if timeout_s is None else max(0, -int(-timeout_s * 1000 // 1))
        ready = {item for item, _ in self._poller.poll(timeout_ms)}
        if self._monitor in ready:
            self._count_refusals()
        return {fd for fd in ready if isinstance(fd, int)}

    def receive(self, budget: int = 1000, max_bytes: int = TURN_BYTES) -> list[Incoming]:
        """Messages that are there: up to `budget`, and until they hold `max_bytes`. `more` says whether others may
        wait: large ones take long to look at, and the ROUTER lets the peers take turns."""
        found: list[Incoming] = []
        receive = self._socket.recv
        taken = size = 0
        self.more = True
        try:
            while taken < budget and size < max_bytes:
                routing_id = receive(_NOW)
                frame = receive(_NOW, copy=False)
                taken += 1
                size += len(frame)
                if frame.more:
                    self._drop_rest()
                else:
                    found.append(Incoming(routing_id, frame.get(_USER_ID), frame.bytes, frame))
        except zmq.Again:
            self.more = False
        self.counters.received += taken
        return found

    def send(self, routing_id: bytes, payload: bytes) -> SendOutcome:
        """Hands the message to libzmq if its queue for this peer has room. Never blocks."""
        try:
            self._send(routing_id, _MORE)
            self._send(payload, _NOW)
        except zmq.Again:
            self.counters.would_block += 1
            return SendOutcome.WOULD_BLOCK
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.counters.unroutable += 1
            return SendOutcome.UNROUTABLE
        self.counters.sent += 1
        return SendOutcome.SENT

    def refused(self) -> dict[str, int]:
        """How often what was refused here, where no message came of it. Call it each turn: a loop that is never idle
        does not poll, and libzmq's queue of failed handshakes has no limit."""
        self._count_refusals()
        seen = self.counters
        return {
            "bad-handshakes": seen.bad_handshakes,
            "many-frames": seen.many_frames,
            "unknown-keys": seen.unknown_keys,
            "would-block": seen.would_block,
        }

    def alive(self) -> bool:
        """Whether the authenticator runs: without it connections stay, but nobody new gets in."""
        return self._authenticator.is_alive()

    def close(self) -> None:
        """Ends all connections. A second call does nothing."""
        if self._context.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._authenticator.stop()
        self._context.term()

    def self_test(self) -> None:
        """Tries the socket on a port of the loopback, before it is bound where others can reach it: a
        registered throw-away key must get through, an unregistered key and a peer without CURVE must not.
        Raises TransportError."""
        known, stranger = new_pair(), new_pair()
        self.allow([known.public])
        context: _Context = zmq.Context()
        try:
            self._socket.bind("tcp://127.0.0.1:*")
            endpoint = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
            self._expect_refused(context, endpoint, stranger, "an unregistered key")
            self._expect_refused(context, endpoint, None, "a peer without CURVE")
            self._expect_admitted(context, endpoint, known)
            self._socket.unbind(endpoint)
        except zmq.ZMQError as error:
            raise TransportError(f"self-test of the socket failed: {error}") from None
        finally:
            context.destroy(linger=0)
            self.allow([])
        self.counters = Counters()
        self._tested = True

    def _expect_refused(self, context: _Context, endpoint: str, keys: KeyPair | None, who: str) -> None:
        before = self._refused()
        peer = _test_peer(context, endpoint, keys, self._keys.public)
        self._poll_until(lambda: self._refused() > before)
        leaked = self.receive()
        peer.close()
        if leaked:
            raise TransportError(f"self-test: {who} was let in: the server does not start")
        if self._refused() == before:
            raise TransportError(f"self-test: {who} was not refused in {SELF_TEST_S:g} s")

    def _expect_admitted(self, context: _Context, endpoint: str, keys: KeyPair) -> None:
        peer = _test_peer(context, endpoint, keys, self._keys.public)
        found: list[Incoming] = []

        def arrived() -> bool:
            found.extend(self.receive())
            return bool(found)

        self._poll_until(arrived)
        peer.close()
        if [message.user_id for message in found] != [keys.public]:
            raise TransportError("self-test: a registered key was not let in under its own name")

    def _refused(self) -> int:
        self._count_refusals()
        return self.counters.unknown_keys + self.counters.bad_handshakes

    def _poll_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(int(SELF_TEST_S * 100)):
            if condition():
                return
            self._poller.poll(10)

    def _drop_rest(self) -> None:
        self.counters.many_frames += 1
        while self._socket.recv(zmq.NOBLOCK, copy=False).more:
            pass

    def _count_refusals(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                message = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                if message["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self.counters.unknown_keys += 1
                else:
                    self.counters.bad_handshakes += 1


class WakeUp:
    """A pipe for signal handlers: `wake` from anywhere, `fd` in the poll loop, `clear` when it was seen."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(self, *_: object) -> None:
        """Makes `fd` readable; fits as a signal handler."""
        with contextlib.suppress(BlockingIOError):  # full: readable already
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """Makes `fd` unreadable again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                pass

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self.fd)
        os.close(self._write)


def raise_file_limit() -> int:
    """Allows as many open files (connections) as the system lets us; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _configure(socket: zmq.Socket[bytes], keys: KeyPair, handshake_ms: int) -> None:
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
    socket.zap_domain = ZAP_DOMAIN.encode()
    options = {
        zmq.ZAP_ENFORCE_DOMAIN: 1,
        zmq.ROUTER_MANDATORY: 1,
        zmq.LINGER: 0,
        zmq.RCVHWM: QUEUED_MESSAGES,
        zmq.SNDHWM: QUEUED_MESSAGES,
        zmq.MAXMSGSIZE: MAX_FRAME_BYTES + CURVE_OVERHEAD_BYTES,
        zmq.HANDSHAKE_IVL: handshake_ms,
        zmq.BACKLOG: BACKLOG,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 60,
        zmq.TCP_KEEPALIVE_INTVL: 10,
        zmq.TCP_KEEPALIVE_CNT: 3,
    }
    for option, value in options.items():
        socket.setsockopt(option, value)


def _watch_refusals(context: _Context, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket with libzmq's events of failed handshakes only; those of normal operation would cost more than
    they tell. Its queue has no limit, because libzmq's I/O thread blocks when it is full; the loop empties it
    each turn."""
    address = f"inproc://chime-refusals-{next(_numbers)}"
    socket.monitor(address, _REFUSALS)
    monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor


def _test_peer(context: _Context, endpoint: str, keys: KeyPair | None, server_key: str) -> zmq.Socket[bytes]:
    peer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        peer.curve_serverkey = server_key.encode()
        peer.curve_publickey = keys.public.encode()
        peer.curve_secretkey = keys.secret.encode()
    peer.connect(endpoint)
    with contextlib.suppress(zmq.Again):  # it is refused already: then there is nobody to send to, and never will be
        peer.send(b"self-test", zmq.NOBLOCK)
    return peer
