"""The server's socket with real peers: who gets in, who does not, and that nobody hurts anybody else."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq

from chimed.transport import CURVE_OVERHEAD_BYTES, Incoming, Router, SendOutcome, TransportError, WakeUp
from wire.codec import MAX_FRAME_BYTES
from wire.curve import KeyPair, new_pair

SERVER = new_pair()
ALICE, BOB, STRANGER = new_pair(), new_pair(), new_pair()
DEADLINE_S = 10.0
DEADLINE_MS = 10_000


class Server:
    """A tested and bound router that answers nothing by itself."""

    def __init__(self) -> None:
        self.router = Router(SERVER, handshake_ms=500)
        self.router.self_test()
        self.router.allow([ALICE.public, BOB.public])
        self.endpoint = self.router.bind("tcp://127.0.0.1:*")
        self.port = int(self.endpoint.rpartition(":")[2])

    def until(self, condition: Callable[[list[Incoming]], bool]) -> list[Incoming]:
        """Turns the loop until the condition holds for all that has arrived."""
        found: list[Incoming] = []
        end = time.monotonic() + DEADLINE_S
        while not condition(found):
            assert time.monotonic() < end, f"not in {DEADLINE_S} s; arrived: {found}, {self.router.counters}"
            self.router.poll(0.02)
            found += self.router.receive()
        return found

    def next(self) -> Incoming:
        [message] = self.until(lambda found: len(found) >= 1)
        return message


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.router.close()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Gives sockets that are connected to the server with a key pair, or without CURVE."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peers: list[zmq.Socket[bytes]] = []

    def connected(keys: KeyPair | None, kind: int = zmq.DEALER, **options: int | bytes) -> zmq.Socket[bytes]:
        peer = context.socket(kind)
        peers.append(peer)  # pyzmq warns of a socket that is forgotten open
        if keys is not None:
            peer.curve_serverkey = SERVER.public.encode()
            peer.curve_publickey = keys.public.encode()
            peer.curve_secretkey = keys.secret.encode()
        for name, value in options.items():
            peer.set(getattr(zmq, name.upper()), value)
        peer.connect(server.endpoint)
        return peer

    yield connected
    for peer in peers:
        peer.close(linger=0)
    context.term()


Connect = Callable[..., zmq.Socket[bytes]]


def assert_alive(server: Server, connect: Connect) -> None:
    """A new honest peer gets a message through, and its answer."""
    peer = connect(BOB)
    peer.send(b"are you alive?")
    found = server.until(lambda found: any(m.payload == b"are you alive?" for m in found))
    message = found[-1]
    assert message.user_id == BOB.public
    assert server.router.send(message.routing_id, b"yes") is SendOutcome.SENT
    assert peer.poll(DEADLINE_MS)
    assert peer.recv() == b"yes"


def tries_to_send(peer: zmq.Socket[bytes], payload: bytes) -> None:
    """A peer that may be refused already has nobody to send to, and would wait for ever."""
    with contextlib.suppress(zmq.Again):
        peer.send(payload, zmq.NOBLOCK)


# --- who gets in
# ------------------------------------------------------------------------------------------------------


def test_a_registered_key_gets_in_under_its_own_name(server: Server, connect: Connect) -> None:
    connect(ALICE).send(b"hello")
    message = server.next()
    assert (message.user_id, message.payload) == (ALICE.public, b"hello")
    assert message.peer_address == "127.0.0.1"


def test_an_unregistered_key_is_refused_and_counted(server: Server, connect: Connect) -> None:
    tries_to_send(connect(STRANGER), b"let me in")
    assert server.until(lambda _: server.router.counters.unknown_keys == 1) == []
    assert_alive(server, connect)


def test_a_peer_without_curve_is_refused_and_counted(server: Server, connect: Connect) -> None:
    tries_to_send(connect(None), b"let me in")
    assert server.until(lambda _: server.router.counters.bad_handshakes >= 1) == []
    assert_alive(server, connect)


def test_a_peer_that_takes_another_key_for_the_servers_gets_nothing_through(
    server: Server, connect: Connect
) -> None:
    tries_to_send(connect(ALICE, curve_serverkey=STRANGER.public.encode()), b"to somebody else")
    assert server.until(lambda _: server.router.counters.bad_handshakes >= 1) == []
    assert_alive(server, connect)


def test_a_key_is_admitted_once_it_is_allowed(server: Server, connect: Connect) -> None:
    server.router.allow([BOB.public, STRANGER.public])
    connect(STRANGER).send(b"hello")
    assert server.next().user_id == STRANGER.public
    tries_to_send(connect(ALICE), b"hello")
    assert server.until(lambda _: server.router.counters.unknown_keys == 1) == []
    assert_alive(server, connect)


def test_messages_of_a_revoked_key_are_refused_and_its_connection_ends_when_it_goes_on(
    server: Server, connect: Connect
) -> None:
    peer = connect(ALICE)
    peer.send(b"before")
    assert server.next().user_id == ALICE.public
    server.router.allow([BOB.public])
    with closing(peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor:
        peer.send(b"after")
        assert server.until(lambda _: server.router.counters.over_budget == 1) == []
        [refused] = server.router.refusals()
        assert (refused.user_id, refused.head) == (ALICE.public, b"after")
        assert not monitor.poll(0)
        for _ in range(20):
            tries_to_send(peer, b"after all")
        assert server.until(lambda _: bool(monitor.poll(0))) == []
        peer.disable_monitor()
    assert len(server.router.refusals()) < 13  # ten at once, and two a second; the others were too much
    tries_to_send(connect(ALICE), b"again")
    assert server.until(lambda _: server.router.counters.unknown_keys == 1) == []
    assert_alive(server, connect)


def test_a_routing_id_that_a_peer_chooses_does_not_change_who_it_is(server: Server, connect: Connect) -> None:
    alice = connect(ALICE, routing_id=b"n1")
    alice.send(b"1")
    first = server.next()
    assert (first.routing_id, first.user_id) == (b"n1", ALICE.public)
    alice.close()
    server.until(lambda _: server.router.send(b"n1", b"gone?") is SendOutcome.UNROUTABLE)
    connect(BOB, routing_id=b"n1").send(b"2")
    second = server.next()
    assert (second.routing_id, second.user_id) == (b"n1", BOB.public)


def test_a_routing_id_in_use_cannot_be_taken(server: Server, connect: Connect) -> None:
    alice = connect(ALICE, routing_id=b"n1")
    alice.send(b"1")
    server.next()
    connect(BOB, routing_id=b"n1").send(b"mine now")
    alice.send(b"2")
    assert_alive(server, connect)
    assert server.router.send(b"n1", b"for alice") is SendOutcome.SENT
    assert alice.poll(DEADLINE_MS)
    assert alice.recv() == b"for alice"


def test_two_peers_with_one_key_are_two_connections(server: Server, connect: Connect) -> None:
    peers = [connect(ALICE), connect(ALICE)]
    for peer in peers:
        peer.send(b"hello")
    found = server.until(lambda found: len(found) == 2)
    assert {message.user_id for message in found} == {ALICE.public}
    assert len({message.routing_id for message in found}) == 2
    for message in found:
        server.router.send(message.routing_id, b"welcome")
    assert all(peer.poll(DEADLINE_MS) for peer in peers)


# --- what is refused
# --------------------------------------------------------------------------------------------------


def test_a_message_of_many_frames_is_dropped_whole_and_counted(server: Server, connect: Connect) -> None:
    peer = connect(ALICE)
    for frames in ([b"a", b"b"], [b""] * 5000, [b"", b"empty delimiter"]):
        peer.send_multipart(frames)
    peer.send(b"plain")
    assert server.next().payload == b"plain"
    assert server.router.counters.many_frames == 3
    assert_alive(server, connect)


def test_a_frame_over_the_limit_cuts_off_its_sender_only(server: Server, connect: Connect) -> None:
    bob, alice = connect(BOB), connect(ALICE)
    bob.send(b"first")
    server.next()
    alice.send(b"x" * MAX_FRAME_BYTES)
    assert len(server.next().payload) == MAX_FRAME_BYTES
    with closing(alice.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor:
        alice.send(b"x" * (MAX_FRAME_BYTES + CURVE_OVERHEAD_BYTES))
        assert monitor.poll(DEADLINE_MS), "the sender was not cut off"
        alice.disable_monitor()
    bob.send(b"second")
    assert server.next().payload == b"second"
    assert_alive(server, connect)


def test_idle_and_talkative_tcp_connections_are_closed_and_disturb_nobody(
    server: Server, connect: Connect
) -> None:
    honest = connect(ALICE)
    peers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    try:
        for number, peer in enumerate(peers):
            if number % 3 == 1:
                peer.sendall(os.urandom(200))
            elif number % 3 == 2:
                peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        honest.send(b"meanwhile")
        assert server.next().payload == b"meanwhile"
        assert_alive(server, connect)
        for peer in peers:
            wait_until_closed(server, peer)
    finally:
        for peer in peers:
            peer.close()
    assert server.router.counters.bad_handshakes >= 100
    assert_alive(server, connect)


def wait_until_closed(server: Server, peer: socket.socket) -> None:
    """The server's greeting may come first."""
    peer.setblocking(False)
    end = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < end, "the connection was not closed"
        server.router.poll(0.02, [peer.fileno()])
        server.router.receive()
        try:
            if not peer.recv(4096):
                return
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return


# --- sending
# ----------------------------------------------------------------------------------------------------------


def test_a_send_to_nobody_is_an_outcome(server: Server, connect: Connect) -> None:
    assert server.router.send(b"nobody", b"x") is SendOutcome.UNROUTABLE
    peer = connect(ALICE)
    peer.send(b"hello")
    message = server.next()
    peer.close()
    server.until(lambda _: server.router.send(message.routing_id, b"x") is SendOutcome.UNROUTABLE)
    assert server.router.counters.unroutable == 2
    assert_alive(server, connect)


def test_a_peer_that_does_not_read_blocks_nobody(server: Server, connect: Connect) -> None:
    slow = connect(ALICE, rcvhwm=1, rcvbuf=4096)
    slow.send(b"hello")
    slow_id = server.next().routing_id
    page = b"x" * 500_000
    started = time.monotonic()
    sent = 0
    while (outcome := server.router.send(slow_id, page)) is SendOutcome.SENT:
        sent += 1
        assert sent < 1000, "the queue for a peer has no limit"
    assert outcome is SendOutcome.WOULD_BLOCK
    assert time.monotonic() - started < DEADLINE_S
    assert_alive(server, connect)
    received = 0
    while received < sent:
        assert slow.poll(DEADLINE_MS)
        assert len(slow.recv()) == len(page)
        received += 1
    assert server.router.send(slow_id, b"again") is SendOutcome.SENT


# --- the loop
# ---------------------------------------------------------------------------------------------------------


def test_the_budget_leaves_the_rest_for_the_next_turn(server: Server, connect: Connect) -> None:
    peer = connect(ALICE)
    for number in range(10):
        peer.send(b"%d" % number)
    found: list[Incoming] = []
    end = time.monotonic() + DEADLINE_S
    while len(found) < 10:
        assert time.monotonic() < end
        server.router.poll(1.0)
        part = server.router.receive(budget=3)
        assert len(part) <= 3
        found += part
    assert [message.payload for message in found] == [b"%d" % number for number in range(10)]


def test_other_descriptors_and_the_time_wake_the_loop(server: Server) -> None:
    wake_up = WakeUp()
    assert server.router.poll(0.01, [wake_up.fd]) == set()
    wake_up.wake()
    wake_up.wake()
    assert server.router.poll(None, [wake_up.fd]) == {wake_up.fd}
    wake_up.clear()
    assert server.router.poll(0, [wake_up.fd]) == set()
    assert server.router.poll(0) == set()
    wake_up.close()


def test_a_socket_that_was_not_tested_cannot_be_bound() -> None:
    router = Router(SERVER)
    with pytest.raises(TransportError, match="not tested"):
        router.bind("tcp://127.0.0.1:*")
    router.close()
    router.close()


@pytest.mark.parametrize("hole", ["anybody", "nobody", "no authenticator"])
def test_the_self_test_finds_a_socket_that_lets_strangers_in_or_nobody(
    hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chimed.transport.SELF_TEST_S", 0.5)
    router = Router(SERVER, handshake_ms=300)
    if hole == "anybody":
        monkeypatch.setattr(router._admission, "judge", lambda *_: ((b"200", b"OK"), "anybody"))
    elif hole == "nobody":
        monkeypatch.setattr(router._admission, "judge", lambda *_: ((b"400", b"no"), ""))
    else:
        monkeypatch.setattr(router._authenticator, "answer", lambda: None)
    with pytest.raises(TransportError, match="self-test"):
        router.self_test()
    with pytest.raises(TransportError, match="not tested"):
        router.bind("tcp://127.0.0.1:*")
    router.close()


def test_an_address_in_use_is_refused_in_one_line(server: Server) -> None:
    router = Router(SERVER)
    router.self_test()
    with pytest.raises(TransportError, match=f"cannot listen at {server.endpoint}: Address already in use"):
        router.bind(server.endpoint)
    router.close()


def test_ipv6(connect: Connect) -> None:
    router = Router(SERVER)
    router.self_test()
    router.allow([ALICE.public])
    try:
        endpoint = router.bind("tcp://[::1]:*")
    except TransportError as error:
        router.close()
        pytest.skip(f"no IPv6 here: {error}")
    peer = connect(ALICE, ipv6=1)
    peer.connect(endpoint)
    for _ in range(2):  # one goes to each of the two endpoints
        peer.send(b"hello")
    end = time.monotonic() + DEADLINE_S
    found: list[Incoming] = []
    while not found:
        assert time.monotonic() < end
        router.poll(0.05)
        found = router.receive()
    assert (found[0].user_id, found[0].peer_address) == (ALICE.public, "::1")
    router.close()
