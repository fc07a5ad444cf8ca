"""`chime-agent` and an agent that is just starting: it has its state, but does not listen yet."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from agentd.local_main import main
from agentd.local_socket import LocalSocket
from agentd.snapshot import Snapshot, locked
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
