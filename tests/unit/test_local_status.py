"""`chime-agent status` beside an agent that comes and goes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import zmq

from agentd.config import Config
from agentd.core import status
from agentd.core.durable import Durable
from agentd.core.link import KEY_REFUSED
from agentd.link_socket import LinkSocket
from agentd.local import drain, main, offline, running
from agentd.snapshot import SnapshotLocked


def test_an_agent_that_starts_between_the_question_and_the_look_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, Any] | None] = [None, {"node": "n1"}]

    def locked(_config: Config) -> None:
        raise SnapshotLocked("another agentd (pid 161) uses it")

    monkeypatch.setattr(running, "ask_agent", lambda _config, _question: answers.pop(0))
    monkeypatch.setattr(offline, "Offline", locked)
    assert running.node_status(Config()) == {"agent_running": True, "node": "n1"}
    answers += [None, None]
    with pytest.raises(SnapshotLocked):
        running.node_status(Config())


def test_a_node_that_cannot_be_looked_at_is_not_called_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent that was to drain it has died, and libvirt tells nothing: no VM is seen. That is not none."""
    seen = {"agent_running": False, "vms": [], "left": [], "faults": []}
    blind = {**seen, "faults": [{"code": "libvirt-unreachable", "severity": "critical", "text": "it hangs"}]}
    statuses = [blind, seen]
    monkeypatch.setattr(drain, "node_status", lambda _config: statuses.pop(0))
    monkeypatch.setattr(drain, "FOLLOW_S", 0.0)
    assert drain._follow(Config(), 60.0) == [] and not statuses
    statuses.append(blind)
    assert drain._follow(Config(), 0.0) == ["not verified yet"]


BASE = {"node": "n1", "agent_running": True, "session": "idle", "admin_state": "enabled", "local_drain": False,
        "vms": [], "confirmed_in_this_boot": True, "put_back": False, "key_refused": False}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "put back": ({"put_back": True, "confirmed_in_this_boot": False}, "state: unconfirmed, and may be older than what"),
    "after a boot": ({"confirmed_in_this_boot": False}, "state: unconfirmed since this host booted: nothing is"),
    "revoked": ({"key_refused": True}, "key: refused by the server: the node was removed, or has another key"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_keeps_a_node_from_starting_anything_is_a_line(case: str) -> None:
    shown, said = CASES[case]
    lines = main._lines(BASE | shown)
    assert sum(line.startswith(("state:", "key:")) for line in lines) == 1 and any(said in line for line in lines)


def test_a_node_that_is_well_says_nothing_of_it() -> None:
    assert not any(line.startswith(("state:", "key:")) for line in main._lines(BASE))


def test_without_the_agent_the_state_is_told_as_well() -> None:
    durable = Durable(node="n1", put_back=True)
    assert status.state(durable, "boot") == {"confirmed_in_this_boot": False, "put_back": True}
    durable = Durable(node="n1", confirmed_boot="boot")
    assert status.state(durable, "boot") == {"confirmed_in_this_boot": True, "put_back": False}


class Monitor:
    """Events of a connection: kind and value."""

    def __init__(self, *events: tuple[int, int]) -> None:
        self._events = [[struct.pack("=hi", *event), b"tcp://192.0.2.1:7440"] for event in events]

    def recv_multipart(self, _flags: int) -> list[bytes]:
        if not self._events:
            raise zmq.Again
        return self._events.pop(0)


@pytest.mark.parametrize(("value", "why"), [(400, KEY_REFUSED), (300, "the connection was lost")])
def test_a_key_is_refused_for_good_and_not_for_now(value: int, why: str) -> None:
    link = LinkSocket.__new__(LinkSocket)
    link.monitor = Monitor((zmq.EVENT_HANDSHAKE_FAILED_AUTH, value), (zmq.EVENT_DISCONNECTED, 0))  # type: ignore[assignment]
    assert link.lost() == why and link.lost() == ""
