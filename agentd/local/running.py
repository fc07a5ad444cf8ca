"""What the commands of `chime-agent` share: the agent's answers, its state with or without it, and questions to people.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from agentd.config import Config
from agentd.local_socket import Question, ask
from agentd.snapshot import SnapshotLocked, locked
from wire.local.usage import say

ANSWER_S = 5.0
STARTING_S = 10.0
POLL_S = 0.2


def ask_agent(config: Config, question: Question) -> dict[str, Any] | None:
    """The agent's answer; None when no agent runs. One that has its state but no ears yet is just starting."""
    deadline = time.monotonic() + STARTING_S
    while True:
        answer = ask(Path(config.socket), question, ANSWER_S)
        if answer is not None or not locked(Path(config.state_dir)) or time.monotonic() >= deadline:
            return answer
        time.sleep(POLL_S)


def node_status(config: Config) -> dict[str, Any]:
    """What the agent knows; from the snapshot and libvirt when it does not run."""
    try:
        return _status_now(config)
    except SnapshotLocked:  # an agent has begun to start in this moment
        return _status_now(config)


def _status_now(config: Config) -> dict[str, Any]:
    answer = ask_agent(config, Question("status"))
    if answer is not None:
        return {"agent_running": True, **answer}
    from agentd.local.offline import Offline

    with Offline(config) as offline:
        return {"agent_running": False, **offline.status()}


def refused_by_person(yes: bool) -> int | None:
    """Asks whether to go on: None if so, else the exit code."""
    if yes:
        return None
    if not sys.stdin.isatty():
        say("chime-agent: not a terminal: give --yes to go on; nothing was changed")
        return 2
    print("continue? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return None
    say("nothing was changed")
    return 1


def some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
