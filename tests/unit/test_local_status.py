"""`chime-agent status` beside an agent that comes and goes."""

from __future__ import annotations

from typing import Any

import pytest

from agentd.config import Config
from agentd.local import drain, offline, running
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
