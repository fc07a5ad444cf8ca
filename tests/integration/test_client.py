"""The client library against a stand-in server: real sockets, real CURVE, real ZAP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.tools.stand_in import StandIn
from wire import messages as m
from wire.client import Client, new_key
from wire.codec import Message
from wire.curve import KeyPair, new_pair
from wire.errors import ChimeError, Unreachable

OPERATOR = new_pair()
VIEW = {
    "id": "op1", "kind": "drain", "subject": "n1", "steps": [], "outcome": "", "actor": "operator:a",
    "created": 1.0, "ended": None,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn([OPERATOR.public]) as stand_in:
        yield stand_in


@pytest.fixture
def client(server: StandIn) -> Iterator[Client]:
    with Client(server.endpoint, server.keys.public, OPERATOR, timeout_s=5) as connected:
        yield connected


def test_result_and_error(server: StandIn, client: Client) -> None:
    server.answer = lambda message: m.Ok(result={"items": [message.type]})
    assert client.request(m.NodeList()) == {"items": ["node.list"]}
    server.answer = lambda _: m.ErrorBody(
        code="locked", message="op1", retriable=True, details={"code": "x", "a": 1}
    )
    with pytest.raises(ChimeError) as caught:
        client.request(m.NodeDrain(key=new_key(), name="n1"))
    error = caught.value
    assert (error.code, error.message, error.exit_code, error.details) == (
        "locked",
        "op1",
        3,
        {"code": "x", "a": 1},
    )


def test_pages_are_followed(server: StandIn, client: Client) -> None:
    def page(message: Message) -> m.Base:
        assert isinstance(message.body, m.VmList)
        start = int(message.body.after or 0)
        return m.Ok(result={"items": [start, start + 1], "next": str(start + 2) if start < 4 else ""})

    server.answer = page
    assert list(client.items(m.VmList(limit=2))) == [0, 1, 2, 3, 4, 5]


def test_late_and_foreign_answers_are_dropped(server: StandIn, client: Client) -> None:
    server.answer = lambda _: None
    with pytest.raises(Unreachable, match="connected but does not answer"):
        client.request(m.NodeList(), timeout_s=0.3)
    late = server.seen[-1].id
    server.before = [(late, m.Ok(result="late")), ("", m.Ok(result="nobody's")), (late, b"\xc1 junk")]
    server.answer = lambda _: m.Ok(result="right")
    assert client.request(m.NodeList()) == "right"


def test_server_restart_resends_with_the_same_key(server: StandIn, client: Client) -> None:
    server.answer = lambda _: m.Ok(result=1)
    assert client.request(m.ServerStatus()) == 1
    server.answer = lambda _: None  # swallows the first
    body = m.NodeEnable(key=new_key(), name="n1")

    def restart() -> None:
        server.wait_for(2)
        server.stop()
        server.answer = lambda _: m.Ok(result="done")
        server.start()

    other = threading.Thread(target=restart)
    other.start()
    assert client.request(body, timeout_s=10) == "done"
    other.join()
    first, second = server.seen[-2:]
    assert first.body == second.body == body
    assert first.id != second.id


def refused(make: Callable[[], Client], request_s: float = 0.5) -> ChimeError:
    with make() as client, pytest.raises(ChimeError) as caught:
        client.request(m.ServerStatus(), timeout_s=request_s)
    return caught.value


def test_unregistered_key_is_said_at_once(server: StandIn) -> None:
    stranger = new_pair()
    started = time.monotonic()
    with Client(server.endpoint, server.keys.public, stranger) as client:
        for _ in range(2):
            with pytest.raises(ChimeError) as caught:
                client.request(m.ServerStatus(), timeout_s=10)
            assert caught.value.code == "unknown-key"
            assert stranger.public in caught.value.message
    assert time.monotonic() - started < 5
    assert server.seen == []


def test_wrong_server_key(server: StandIn) -> None:
    error = refused(lambda: Client(server.endpoint, new_pair().public, OPERATOR))
    assert (error.code, error.exit_code) == ("unreachable", 4)
    assert "server_public_key" in error.message
    assert "\n" not in error.message


class Failing(StandIn):
    """Its authenticator is broken: that says nothing about the key."""

    def _authenticate(self, zap: zmq.Socket[bytes]) -> None:
        version, request, *_ = zap.recv_multipart()
        zap.send_multipart([version, request, b"500", b"internal error", b"", b""])


def test_a_server_that_cannot_authenticate_is_not_one_that_refuses_the_key() -> None:
    with Failing([OPERATOR.public]) as server:
        error = refused(lambda: Client(server.endpoint, server.keys.public, OPERATOR))
    assert error.code == "unreachable" and "ends the handshake" in error.message


def test_a_connection_that_is_lost_while_sending_costs_only_time(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, failures = zmq.Socket.send, [zmq.Again()]

    def flaky(self: zmq.Socket[bytes], *args: Any, **more: Any) -> Any:
        if self.type == zmq.DEALER and failures:
            raise failures.pop()
        return send(self, *args, **more)

    monkeypatch.setattr(zmq.Socket, "send", flaky)
    server.answer = lambda _: m.Ok(result={"items": []})
    assert client.request(m.NodeList()) == {"items": []}
    assert not failures and len(server.seen) == 1


def test_an_answer_that_is_none_is_refused(server: StandIn, client: Client) -> None:
    server.answer = lambda _: m.HeartbeatAck(session="s", nonce="n", revision=1)
    with pytest.raises(ChimeError, match="answered with HeartbeatAck") as caught:
        client.request(m.NodeList())
    assert caught.value.code == "bad-frame"


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    error = refused(lambda: Client(endpoint, new_pair().public, OPERATOR))
    assert error.code == "unreachable"
    assert "is chimed running" in error.message


def test_something_silent_listens() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        error = refused(lambda: Client(endpoint, new_pair().public, OPERATOR))
    assert error.code == "unreachable"
    assert "handshake" in error.message


@pytest.mark.parametrize("endpoint", ["tcp://", "nonsense", "tcp://127.0.0.1:99999999"])
def test_bad_endpoint(endpoint: str) -> None:
    with pytest.raises(ChimeError) as caught:
        Client(endpoint, new_pair().public, OPERATOR)
    assert caught.value.code == "invalid"


def test_bad_keys() -> None:
    with pytest.raises(ChimeError) as caught:
        Client("tcp://127.0.0.1:1", "short", KeyPair("a", "b"))
    assert caught.value.code == "invalid"


def operation(state: str, progress: float) -> dict[str, Any]:
    return {"operation": {**VIEW, "state": state, "progress": progress}}


def test_wait_operation(server: StandIn, client: Client) -> None:
    answers: list[m.Base] = [
        m.Ok(result=operation("running", 0.0)),
        m.ErrorBody(code="overloaded", message="later", retriable=True),
        m.Ok(result=operation("running", 0.0)),
        m.Ok(result=operation("running", 0.5)),
        m.Ok(result=operation("succeeded", 1.0)),
    ]
    server.answer = lambda _: answers.pop(0)
    seen: list[float] = []
    ended = client.wait_operation("op1", 10, lambda view: seen.append(view.progress))
    assert ended.state == "succeeded"
    assert seen == [0.0, 0.5, 1.0]


def test_wait_operation_gives_up_in_time(server: StandIn, client: Client) -> None:
    server.answer = lambda _: m.Ok(result=operation("running", 0.2))
    started = time.monotonic()
    assert client.wait_operation("op1", 0.5).state == "running"
    assert 0.4 < time.monotonic() - started < 2


def test_wait_operation_ends_at_a_refusal(server: StandIn, client: Client) -> None:
    server.answer = lambda _: m.ErrorBody(code="not-found", message="no operation op1", retriable=False)
    with pytest.raises(ChimeError, match="no operation"):
        client.wait_operation("op1", 5)


def test_revoked_connection_is_cut_and_said(server: StandIn, client: Client) -> None:
    server.answer = lambda _: m.Ok(result=1)
    assert client.request(m.ServerStatus()) == 1
    server.stop()
    server.allowed = []
    server.start()
    with pytest.raises(ChimeError) as caught:
        client.request(m.ServerStatus())
    assert caught.value.code == "unknown-key"


def test_closing_leaves_nothing_behind(server: StandIn) -> None:
    before = threading.active_count()
    for _ in range(5):
        Client(server.endpoint, server.keys.public, OPERATOR).close()
    assert threading.active_count() == before
    assert zmq.zmq_version_info() >= (4, 3)
