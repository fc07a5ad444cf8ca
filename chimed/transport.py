"""The server's socket: a ROUTER on CURVE, and the poll loop around it.

Rules: - Only registered keys get in: ZAP with an enforced domain, tested on the socket itself (`self_test`)
before it may be bound (`admission`). - Who speaks is read from each
message (`User-Id`, the public key that CURVE proved, 0.2 us). It is not kept by routing id: a peer can choose
its own id, also one that another connection had a moment ago and whose end the ROUTER does not tell; what was
kept for that id would then lend one node's identity to another. - Each frame is judged by its key and its size before
it is copied or looked at (`budgets`): what is over its key's budget, or of a key that is not registered any more, costs
a few microseconds. - A connection is ended from outside by shutting its descriptor down, which libzmq takes for the
peer's doing: that of a revoked key, of one far beyond its budget, the oldest of too many, and one that says nothing
(`connections`). - Nothing here blocks. A message that cannot be
delivered is an outcome, not an exception. - A payload is one frame; a message of more is dropped whole and
counted. - A libzmq client whose handshake was refused does not connect again by itself: its owner must make a
new socket.

No message is decoded here, and what is too much is decided in `budgets` and `connections`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum

import msgspec
import zmq

from chimed.admission import LATER, ZAP_DOMAIN, Admission, Authenticator
from chimed.connections import FRAME_BYTES, Connection, Connections
from chimed.core.state.budgets import OPERATOR, Accounts, Limits, Verdict
from wire.codec import MAX_FRAME_BYTES
from wire.curve import KeyPair, new_pair

HANDSHAKE_MS = 10_000
QUEUED_RECEIVED = 4
"""Messages that libzmq reads ahead for each peer. Each may be a whole frame, and reading ahead cannot be stopped: this
times the connections of a key is the memory that its sender can fill."""
QUEUED_UNSENT = 32
"""Unsent messages that libzmq keeps for each peer; small is faster under overload and bounds memory. libzmq may count
half of them twice, and sixteen must find room. (ZMTP heartbeats are not used: libzmq asserts with small queues.)"""
CURVE_OVERHEAD_BYTES = 64
"""libzmq's limit is for the encrypted frame, 33 bytes longer than the payload; the codec has the exact
limit."""
BACKLOG = 4096
TURN_BYTES = 256 << 10
LARGE_BYTES = 32 << 10
"""A frame of more counts as that much in a turn: it is copied now, and looked at when the others are answered."""
MONITORED = 500  # events of libzmq's monitor in one turn
RECEIVE_BUFFER_BYTES = 512 << 10  # of the kernel; left alone it grows to several MiB for each connection
MEMORY_LOOK_S = 0.1
MEMORY_STEP_BYTES = 24 << 20
PAGE_BYTES = resource.getpagesize()
HEAD_BYTES = 160  # of a refused frame: enough for its correlation id
SELF_TEST_S = 5.0
_NOW, _MORE = (
    int(zmq.NOBLOCK),
    int(zmq.NOBLOCK | zmq.SNDMORE),
)  # plain integers: an enum costs half a microsecond
_USER_ID = b"User-Id"
_EVENT = struct.Struct("=Hi")  # of libzmq's monitor: kind and value
_ACCEPTED, _CLOSED, _FAILED_AUTH = (
    int(zmq.EVENT_ACCEPTED),
    int(zmq.EVENT_DISCONNECTED),
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH),
)
_WATCHED = _ACCEPTED | _CLOSED | _FAILED_AUTH | (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_RECEIVED = struct.Struct("=128xQ")  # the kernel's tcp_info up to tcpi_bytes_received
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
    """One message. `user_id`: the public key (Z85) of the connection that it came on. `waits`: others go before it."""

    routing_id: bytes
    user_id: str
    payload: bytes
    frame: zmq.Frame
    waits: bool = False

    @property
    def peer_address(self) -> str:
        """The address that the peer speaks from, as text without port."""
        return _address_of(self.frame)


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A frame that was not taken, whose sender is to be told so. `head`: its first bytes."""

    routing_id: bytes
    user_id: str
    head: bytes


class Counters(msgspec.Struct):
    """Totals since the start."""

    received: int = 0
    sent: int = 0
    unroutable: int = 0
    would_block: int = 0
    many_frames: int = 0
    unknown_keys: int = 0  # refused by ZAP
    too_many_handshakes: int = 0  # refused by ZAP for now
    over_budget: int = 0  # messages that were not looked at
    cut: int = 0  # connections ended from here
    bad_handshakes: int = 0  # no CURVE, junk, closed or idle during the handshake


class Router:
    """Make it, `self_test()`, `allow(keys)`, `bind(endpoint)`; then `poll`, `receive` and `send` from one
    thread."""

    def __init__(self, keys: KeyPair, handshake_ms: int = HANDSHAKE_MS) -> None:
        raise_file_limit()
        self.counters = Counters()
        self.accounts = Accounts()
        self._connections = Connections()
        self._refusals: list[Refused] = []
        self._next_look, self._pages = 0.0, 1 << 62
        self._keys = keys
        self._tested = False
        self._admission = Admission()
        self._context: _Context = zmq.Context()
        self._authenticator = Authenticator(self._context, self._admission, self._note_refused)
        self._socket = self._context.socket(zmq.ROUTER)
        _configure(self._socket, keys, handshake_ms)
        self._send = super(zmq.Socket, self._socket).send
        """Without pyzmq's layer for options that are not used here: 0.2 us less for each frame."""
        self._monitor = _watch(self._context, self._socket)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self._authenticator.socket, zmq.POLLIN)
        self._extra: frozenset[int] = frozenset()
        self.more = False

    def allow(self, keys: Iterable[str] | Mapping[str, Limits]) -> None:
        """Replaces the set of public keys (Z85) that may connect, and what each may use (an operator's limits where
        none are given). A connection that exists stays, and ends when its key is not among them and goes on."""
        limits = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, OPERATOR)
        self._admission.allow(limits)
        self.accounts.register(limits)

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
        if self._monitor in ready or self._authenticator.socket in ready:
            self._watch_connections()
        return {fd for fd in ready if isinstance(fd, int)}

    def receive(self, budget: int = 1000, max_bytes: int = TURN_BYTES) -> list[Incoming]:
        """Messages that are there: up to `budget`, and until they hold `max_bytes`, where a large one counts as
        `LARGE_BYTES`. `more` says whether others may wait: the ROUTER lets the peers take turns."""
        found: list[Incoming] = []
        receive, routes, now = self._socket.recv, self._connections.by_route, time.monotonic()
        taken = size = 0
        self.more = True
        try:
            while taken < budget and size < max_bytes:
                routing_id = receive(_NOW)
                frame = receive(_NOW, copy=False)
                taken += 1
                user_id, length = frame.get(_USER_ID), len(frame)
                peer = routes.get(routing_id)
                if peer is None or peer.key != user_id:
                    peer = self._meet(routing_id, user_id, frame)
                peer.taken += length + FRAME_BYTES
                account = peer.account  # what follows is `Account.takes`, without the call
                due = account.due
                due = (due if due > now else now) + account.per_message_s + length * account.per_byte_s
                if frame.more:
                    self._drop(peer, length, now)
                elif due - now > account.most_s:
                    self._refuse(peer, frame, now)
                else:
                    account.due = due
                    size += length if length < LARGE_BYTES else LARGE_BYTES
                    found.append(Incoming(routing_id, user_id, frame.bytes, frame, account.waits))
        except zmq.Again:
            self.more = False
        self.counters.received += taken
        return found

    def refusals(self) -> list[Refused]:
        """Frames that were not taken, whose senders are to be told: since the last call."""
        found, self._refusals = self._refusals, []
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
        does not poll, and libzmq's queue of what became of connections has no limit."""
        self._watch_connections()
        self._look_after(time.monotonic())
        seen = self.counters
        return {
            "bad-handshakes": seen.bad_handshakes,
            "connections-cut": seen.cut,
            "many-frames": seen.many_frames,
            "over-budget": seen.over_budget,
            "too-many-handshakes": seen.too_many_handshakes,
            "unknown-keys": seen.unknown_keys,
            "would-block": seen.would_block,
        }

    def close(self) -> None:
        """Ends all connections. A second call does nothing."""
        if self._context.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._authenticator.close()
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
        before, self.counters.received = self._refused(), 0
        peer = _test_peer(context, endpoint, keys, self._keys.public)
        self._poll_until(lambda: self._refused() > before)
        self.receive()
        peer.close()
        if self.counters.received:
            raise TransportError(f"self-test: {who} was let in: the server does not start")
        if self._refused() == before:
            raise TransportError(f"self-test: {who} was not refused in {SELF_TEST_S:g} s")

    def _expect_admitted(self, context: _Context, endpoint: str, keys: KeyPair) -> None:
        peer = _test_peer(context, endpoint, keys, self._keys.public)
        found: list[Incoming] = []

        def arrived() -> bool:
            self._watch_connections()
            found.extend(self.receive())
            return bool(found)

        self._poll_until(arrived)
        peer.close()
        if [message.user_id for message in found] != [keys.public]:
            raise TransportError("self-test: a registered key was not let in under its own name")

    def _refused(self) -> int:
        self._watch_connections()
        return self.counters.unknown_keys + self.counters.bad_handshakes

    def _poll_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(int(SELF_TEST_S * 100)):
            if condition():
                return
            self._poller.poll(10)

    def _drop(self, peer: Connection, size: int, now: float) -> None:
        """A message of many frames, which count for its key. The first of them is read already."""
        self.counters.many_frames += 1
        more, rest = True, 0
        while more:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            more, rest = frame.more, rest + len(frame) + FRAME_BYTES
        peer.taken += rest
        peer.account.charge(size + rest, now)

    # --- too much -----------------------------------------------------------------------------------------------------

    def _meet(self, routing_id: bytes, user_id: str, frame: zmq.Frame) -> Connection:
        """The first message of a connection. libzmq told of the connection before it gave its message."""
        self._watch_connections()
        account = self.accounts.of(user_id)
        self._cut(self._connections.spoke(routing_id, user_id, int(frame.get(zmq.SRCFD)), account))
        peer = self._connections.by_route.get(routing_id)
        if peer is None:  # it has ended already
            peer = Connection(-1, "", 0.0)
            peer.route, peer.key, peer.account = routing_id, user_id, account
        return peer

    def _refuse(self, peer: Connection, frame: zmq.Frame, now: float) -> None:
        """The frame is not looked at; it was not even copied."""
        self.counters.over_budget += 1
        verdict = peer.account.judge(len(frame), now)
        if verdict is Verdict.ANSWER:
            self._refusals.append(Refused(peer.route, peer.key, bytes(frame.buffer[:HEAD_BYTES])))
        else:
            self._cut(self._connections.of(peer.key))

    def _note_refused(self, address: str) -> None:
        self._connections.refused(_plain(address), time.monotonic())

    def _cut(self, connections: Iterable[Connection]) -> None:
        """Ends connections. The number may be another connection's by now: that of another peer is left alone."""
        for one in connections:
            with contextlib.suppress(OSError), _borrowed(one.fd) as connection:
                if _plain(connection.getpeername()[0]) == one.address:
                    connection.shutdown(socket.SHUT_RDWR)
                    self.counters.cut += 1

    def _look_after(self, now: float) -> None:
        """Ends connections that are good for nothing. A message of many frames is kept by libzmq until it is whole,
        and no option of its own bounds that: so the process's memory is watched, and when it grows, who makes it."""
        self._cut(self._connections.silent(now))
        if now < self._next_look:
            return
        self._next_look = now + MEMORY_LOOK_S
        pages = _resident_pages()
        self._pages = min(self._pages, pages)
        if (pages - self._pages) * PAGE_BYTES > MEMORY_STEP_BYTES:
            self._pages = pages
            self._watch_connections()
            self._cut(self._connections.hoarders(_received_bytes))

    def _watch_connections(self) -> None:
        """Answers what libzmq asks about new connections, and reads what it tells of all of them."""
        self._authenticator.answer()
        seen, receive, now = self.counters, self._monitor.recv_multipart, time.monotonic()
        with contextlib.suppress(zmq.Again):
            for _ in range(MONITORED):
                kind, value = _EVENT.unpack(receive(_NOW)[0])
                if kind == _ACCEPTED:
                    self._cut(self._connections.opened(value, _peer_of(value), now))
                elif kind == _CLOSED:
                    self.accounts.forget(self._connections.closed(value))
                elif kind != _FAILED_AUTH:
                    seen.bad_handshakes += 1
                elif value == LATER:
                    seen.too_many_handshakes += 1
                else:
                    seen.unknown_keys += 1


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
        zmq.RCVHWM: QUEUED_RECEIVED,
        zmq.SNDHWM: QUEUED_UNSENT,
        zmq.RCVBUF: RECEIVE_BUFFER_BYTES,
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


def _watch(context: _Context, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket with libzmq's events of connections: accepted, closed, and failed handshakes. Its queue has no limit,
    because libzmq's I/O thread blocks when it is full; the loop empties it each turn."""
    address = f"inproc://chime-connections-{next(_numbers)}"
    socket.monitor(address, _WATCHED)
    monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A descriptor of libzmq's as a socket; it is not closed. Raises OSError."""
    borrowed = socket.socket(fileno=fd)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _received_bytes(connection: Connection) -> int:
    """What the kernel has taken in on it, also what libzmq has not read yet; 0 when it has ended."""
    try:
        with _borrowed(connection.fd) as borrowed:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
    except OSError:
        return 0
    return int(_RECEIVED.unpack(info)[0]) if len(info) == _RECEIVED.size else 0


def _resident_pages() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1])


def _peer_of(fd: int) -> str:
    try:
        with _borrowed(fd) as connection:
            return _plain(connection.getpeername()[0])
    except OSError:  # it has ended already
        return ""


def _address_of(frame: zmq.Frame) -> str:
    return _plain(str(frame.get("Peer-Address")))


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


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
