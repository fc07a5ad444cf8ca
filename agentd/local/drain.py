"""`chime-agent drain`: by the agent if it runs, else directly on libvirt and the snapshot."""

from __future__ import annotations

import json
import time
from typing import Any

from agentd.config import Config
from agentd.local.running import ask_agent, node_status, refused_by_person, some
from agentd.local_socket import Question
from wire.errors import ChimeError
from wire.local.usage import say, show
from wire.text import counted
from wire.words import FaultCode

FOLLOW_S = 0.3


def drain(config: Config, args: dict[str, Any], graceful_s: float, timeout_s: float) -> int:
    """Asks, drains, waits for the end; returns the exit code."""
    status = node_status(config)
    running = _alive(status)
    plan = f"stops {counted(len(running), 'VM')} on {status['node']}" + (f": {some(running)}" if running else "")
    say(plan)
    say("nothing is started here again until the node is enabled at the server")
    if args["--dry-run"]:
        if args["-o"] == "json":
            show(json.dumps({"plan": [plan], "changed": False}))
        return 0
    refused = refused_by_person(args["--yes"])
    return refused if refused is not None else _finish(config, args["-o"], graceful_s, timeout_s)


def _alive(status: dict[str, Any]) -> list[str]:
    """VMs that run, or may run, on this node."""
    left = {vm["uuid"] for vm in status["left"]}
    alive = ("running", "paused", "migrating", "unknown")
    return [vm["name"] or vm["uuid"] for vm in status["vms"] if vm["observed"] in alive and vm["uuid"] not in left]


def _finish(config: Config, form: str, graceful_s: float, timeout_s: float) -> int:
    answer = ask_agent(config, Question("drain", graceful_s))
    if answer is None:
        from agentd.local.offline import Offline

        say("the agent does not run: working on libvirt and the snapshot directly")
        with Offline(config) as offline:
            left = offline.drain(graceful_s, timeout_s, say)
    elif "error" in answer:
        raise ChimeError("internal", f"the agent could not record the drain: {answer['error']}")
    else:
        left = _follow(config, timeout_s)
    if form == "json":
        show(json.dumps({"drained": not left, "still_running": left, "changed": True}))
    if left:
        say(f"chime-agent: still running after {timeout_s:g} s: {', '.join(left)}")
        return 5
    say("drained: no VM of Chime runs on this node")
    return 0


def _follow(config: Config, timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    shown: list[str] | None = None
    while True:
        status = node_status(config)
        left = _alive(status)
        seen = not any(fault["code"] == FaultCode.LIBVIRT_UNREACHABLE for fault in status["faults"])
        if status.get("drain_clean") or (seen and not left and not status["agent_running"]):
            return []
        if left != shown:
            say(f"{counted(len(left), 'VM')} left: {some(left)}" if left else "being verified")
            shown = left
        if time.monotonic() >= deadline:
            return left or ["not verified yet"]
        time.sleep(FOLLOW_S)
