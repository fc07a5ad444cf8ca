"""chime-agent: Chime on this node, when the network or the server is gone.

Usage:
  chime-agent status [--config FILE] [-o FORMAT]
  chime-agent drain [--config FILE] [-o FORMAT] [--graceful SECONDS] [--timeout SECONDS] [--yes] [--dry-run]
  chime-agent (-h | --help)
  chime-agent --version

  status  what the agent knows: session, VMs, faults; from the snapshot and libvirt when the agent does not run
  drain   stops all VMs of Chime on this node and keeps them stopped, also when the agent or the host starts again,
          until the node is enabled at the server. Works without the server and without the agent.

Options:
  --config FILE       the agent's configuration
  -o FORMAT           table or json [default: table]
  --graceful SECONDS  time for guests to power off before they are ended [default: 60]
  --timeout SECONDS   how long to wait for the end [default: 300]
  --yes               do not ask
  --dry-run           only say what would be done

Exit codes: 0 done, 1 failed, 2 usage, 4 libvirt not reachable, 5 VMs still run at the time-out
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from docopt import DocoptExit, docopt

from agentd import __version__
from agentd.config import Config, load_config
from agentd.local_socket import Question, ask
from agentd.snapshot import SnapshotError, locked
from wire.errors import ChimeError
from wire.usage import usage_line

ANSWER_S = 5.0
STARTING_S = 10.0
POLL_S = 0.2


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        args = docopt(__doc__ or "", argv, version=f"chime-agent {__version__}")
    except DocoptExit as error:
        print(f"chime-agent: {usage_line(str(error), __doc__ or '')}; see chime-agent --help", file=sys.stderr)
        return 2
    try:
        return _command(args)
    except ChimeError as error:
        print(f"chime-agent: {error.message}", file=sys.stderr)
        return 2 if error.code == "invalid" else error.exit_code
    except (SnapshotError, OSError) as error:
        print(f"chime-agent: {error}", file=sys.stderr)
        return 1


def _command(args: dict[str, Any]) -> int:
    if args["-o"] not in ("table", "json"):
        raise ChimeError("invalid", f"-o {args['-o']}: expected table or json")
    config = load_config(args["--config"])
    if args["status"]:
        _show(_status(config), args["-o"])
        return 0
    graceful_s, timeout_s = _seconds(args, "--graceful"), _seconds(args, "--timeout")
    return _drain(config, args, graceful_s, timeout_s)


def _seconds(args: dict[str, Any], option: str) -> float:
    try:
        value = float(args[option])
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise ChimeError("invalid", f"{option} {args[option]}: expected seconds from 0 to 86400")
    return value


def _ask(config: Config, question: Question) -> dict[str, Any] | None:
    """The agent's answer; None when no agent runs. One that has its state but no ears yet is just starting."""
    deadline = time.monotonic() + STARTING_S
    while True:
        answer = ask(Path(config.socket), question, ANSWER_S)
        if answer is not None or not locked(Path(config.state_dir)) or time.monotonic() >= deadline:
            return answer
        time.sleep(POLL_S)


# --- status -----------------------------------------------------------------------------------------------------------


def _status(config: Config) -> dict[str, Any]:
    answer = _ask(config, Question("status"))
    if answer is not None:
        return {"agent_running": True, **answer}
    from agentd.offline import Offline

    with Offline(config) as offline:
        return {"agent_running": False, **offline.status()}


def _show(status: dict[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(status))
        return
    agent = f"agent {status.get('session', '')}" if status["agent_running"] else "agent NOT RUNNING"
    drained = ", drained on this node" if status["local_drain"] else ""
    print(f"node {status['node']}: {agent}, {status['admin_state']}{drained}")
    if status.get("last_error"):
        print(f"link: {status['last_error']}")
    for fault in status.get("faults", []):
        print(f"fault {fault['code']} ({fault['severity']}): {fault['text']}")
    rows = [("VM", "OBSERVED", "EPOCH", "RESTARTS", "DETAIL")]
    rows += [
        (vm["name"] or vm["uuid"], vm["observed"], str(vm["epoch"]), str(vm["restarts"]), vm["detail"])
        for vm in status["vms"]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --- drain ------------------------------------------------------------------------------------------------------------


def _alive(status: dict[str, Any]) -> list[str]:
    return [vm["name"] or vm["uuid"] for vm in status["vms"] if vm["observed"] in ("running", "paused", "unknown")]


def _drain(config: Config, args: dict[str, Any], graceful_s: float, timeout_s: float) -> int:
    status = _status(config)
    running = _alive(status)
    names = ", ".join(running[:12]) + (f" and {len(running) - 12} more" if len(running) > 12 else "")
    plan = f"stops {len(running)} VMs on {status['node']}" + (f": {names}" if running else "")
    print(plan, file=sys.stderr)
    print("nothing is started here again until the node is enabled at the server", file=sys.stderr)
    if args["--dry-run"]:
        if args["-o"] == "json":
            print(json.dumps({"plan": [plan], "changed": False}))
        return 0
    if not args["--yes"] and not _confirmed():
        return 2 if not sys.stdin.isatty() else 1
    return _finish(config, args["-o"], graceful_s, timeout_s)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        print("chime-agent: not a terminal: give --yes to go on; nothing was changed", file=sys.stderr)
        return False
    print("continue? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was changed", file=sys.stderr)
    return False


def _finish(config: Config, form: str, graceful_s: float, timeout_s: float) -> int:
    answer = _ask(config, Question("drain", graceful_s))
    if answer is None:
        from agentd.offline import Offline

        print("the agent does not run: working on libvirt and the snapshot directly", file=sys.stderr)
        with Offline(config) as offline:
            left = offline.drain(graceful_s, timeout_s, lambda text: print(text, file=sys.stderr))
    elif "error" in answer:
        raise ChimeError("internal", f"the agent could not record the drain: {answer['error']}")
    else:
        left = _follow(config, timeout_s)
    if form == "json":
        print(json.dumps({"drained": not left, "still_running": left, "changed": True}))
    if left:
        print(f"chime-agent: still running after {timeout_s:g} s: {', '.join(left)}", file=sys.stderr)
        return 5
    print("drained: no VM of Chime runs on this node", file=sys.stderr)
    return 0


def _follow(config: Config, timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    shown: list[str] | None = None
    while True:
        status = _status(config)
        left = _alive(status)
        if status.get("drain_clean") or (not left and not status["agent_running"]):
            return []
        if left != shown:
            print(f"{len(left)} left: {', '.join(left[:12])}" if left else "being verified", file=sys.stderr)
            shown = left
        if time.monotonic() >= deadline:
            return left or ["not verified yet"]
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
