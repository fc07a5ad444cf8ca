"""`chime-agent` and an agent that is just starting: it has its state, but does not listen yet."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from agentd.local.main import main
from agentd.local_socket import LocalSocket
from agentd.snapshot import LOCK_FILE, Snapshot, SnapshotLocked, locked
from tests.hosts import wait_until

STATUS = {"node": "n1", "session": "ready", "admin_state": "enabled", "local_drain": False, "faults": [], "vms": []}


def test_an_agent_that_is_just_starting_is_waited_for(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = short_dir / "agentd.toml"
    config.write_text(f'state_dir = "{short_dir}/state"\nsocket = "{short_dir}/a.sock"\n')
    snapshot = Snapshot(short_dir / "state", "n1")
    snapshot.lock()
    assert locked(short_dir / "state")
    codes: list[int] = []
    asking = threading.Thread(target=lambda: codes.append(main(["status", "--config", str(config), "-o", "json"])))
    asking.start()
    asking.join(0.5)
    assert not codes, "it waits"
    socket = LocalSocket(short_dir / "a.sock")
    try:
        wait_until(lambda: socket.receive() is not None, 10, "the question comes")
        socket.answer(STATUS)
        asking.join(10)
    finally:
        socket.close()
        snapshot.unlock()
    assert codes == [0]
    assert json.loads(capsys.readouterr().out)["agent_running"] is True
    assert not locked(short_dir / "state")


def test_an_agent_waits_for_the_command_of_a_chime_agent(short_dir: Path) -> None:
    """It does not end with an error that its supervisor would count; asking whether the lock is held never holds it."""
    command, agent, other = (Snapshot(short_dir / "state", "n1") for _ in range(3))
    command.lock("chime-agent")
    assert locked(short_dir / "state")
    waiting = threading.Thread(target=agent.lock)
    waiting.start()
    waiting.join(0.8)
    assert waiting.is_alive()
    os.truncate(short_dir / "state" / LOCK_FILE, 0)  # who gives it up takes the name away first
    waiting.join(0.2)
    assert waiting.is_alive()
    command.unlock()
    waiting.join(10)
    assert not waiting.is_alive() and locked(short_dir / "state")
    with pytest.raises(SnapshotLocked, match=f"another agentd .pid {os.getpid()}. uses"):
        other.lock()
    agent.unlock()
    assert not locked(short_dir / "state")
