"""chime-agent: Chime on this node, when the network or the server is gone.

Usage:
  chime-agent status [--config FILE] [-o FORMAT]
  chime-agent drain [--config FILE] [-o FORMAT] [--graceful SECONDS] [--timeout SECONDS] [--yes] [--dry-run]
  chime-agent migrate --interface IF --dest IP (--uuid UUID | --all) [--dry-run] [--yes | --confirm]
                      [--config FILE] [-o FORMAT] [--timeout SECONDS] [--bandwidth MIB] [--local-disks]
  chime-agent (-h | --help)
  chime-agent --version

  status   what the agent knows: session, VMs, migrations, faults; from the snapshot and libvirt when the agent does
           not run
  drain    stops all VMs of Chime on this node and keeps them stopped, also when the agent or the host starts again,
           until the node is enabled at the server. Works without the server and without the agent.
  migrate  moves running VMs live to the node whose libvirt is at IP, through interface IF. Works without the server
           and without the agent: the server gives them to the other node when it hears of it.

Options:
  --config FILE       the agent's configuration; else /etc/chime/agentd.toml, if it is there
  -o FORMAT           table or json [default: table]
  --graceful SECONDS  time for guests to power off before they are ended [default: 60]
  --timeout SECONDS   how long to wait for the end; for migrate: of each VM, which stays if it takes longer
                      [default: 300]
  --interface IF      the network interface of this node that leads to the target
  --dest IP           the address of the target
  --uuid UUID         the VM to migrate
  --all               migrate all VMs that this node owns and that run, one after the other
  --bandwidth MIB     at most so many MiB a second; 0: no limit [default: 0]
  --local-disks       copy disks that only this node has
  --yes               do not ask
  --confirm           do not ask
  --dry-run           only check, and say what would be done

Exit codes: 0 done, 1 failed (a VM stayed), 2 usage, 3 refused by a safety rule, 4 libvirt or the target not reachable,
5 not over at the time-out
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from pathlib import Path
from typing import Any

from agentd import __version__
from agentd.config import Config, load_config
from agentd.local.progress import in_words
from agentd.local.running import node_status
from agentd.snapshot import SnapshotError
from wire.addresses import problem
from wire.errors import ChimeError
from wire.local import program
from wire.local.usage import show
from wire.text import escaped_line
from wire.types import UUID_PATTERN

INSTALLED = Path("/etc/chime/agentd.toml")
UNCONFIRMED = "nothing is started before the server has confirmed it"
REFUSED = ("refused by the server: the node was removed, or has another key by now; chime-tool node rekey (or add) "
           "makes one, agentd join --force installs it")  # fmt: skip
MAX_SECONDS = 86_400
MAX_MIB_S = 1_000_000


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    failures, grammar = (SnapshotError,), __doc__ or ""
    return program.run(
        "chime-agent", __version__, grammar, _command, argv, failures, lambda error: error.exit_code
    )  # fmt: skip


def _command(args: dict[str, Any]) -> int:
    if args["-o"] not in ("table", "json"):
        raise ChimeError("invalid", f"-o {args['-o']}: expected table or json")
    config = load_config(args["--config"] or _installed())
    if args["status"]:
        _show(node_status(config), args["-o"])
        return 0
    timeout_s = _number(args, "--timeout", "seconds", MAX_SECONDS)
    if args["migrate"]:
        return _migrate(config, args, timeout_s)
    from agentd.local.drain import drain

    return drain(config, args, _number(args, "--graceful", "seconds", MAX_SECONDS), timeout_s)


def _installed() -> Path | None:
    """Where the agent of an installed node has its configuration: in an emergency nobody should have to know."""
    return INSTALLED if INSTALLED.exists() else None


def _migrate(config: Config, args: dict[str, Any], timeout_s: float) -> int:
    from agentd.local.migrate import Wanted, migrate

    try:
        address = str(ipaddress.ip_address(args["--dest"]))
    except ValueError:
        raise ChimeError("invalid", f"--dest {args['--dest']}: expected an IPv4 or IPv6 address") from None
    if why := problem(address):
        raise ChimeError("invalid", f"--dest {address} {why}")
    uuid = (args["--uuid"] or "").lower()
    if not args["--all"] and re.match(UUID_PATTERN, uuid) is None:
        raise ChimeError("invalid", f"--uuid {args['--uuid']}: expected a UUID")
    wanted = Wanted(
        interface=args["--interface"],
        address=address,
        uuid=uuid,
        timeout_s=timeout_s,
        bandwidth_mib_s=int(_number(args, "--bandwidth", "MiB a second", MAX_MIB_S)),
        local_disks=args["--local-disks"],
        dry_run=args["--dry-run"],
        yes=args["--yes"] or args["--confirm"],
        json=args["-o"] == "json",
    )
    return migrate(config, wanted)


def _number(args: dict[str, Any], option: str, unit: str, limit: int) -> float:
    try:
        value = float(args[option])
    except ValueError:
        value = -1.0
    if not 0 <= value <= limit:
        raise ChimeError("invalid", f"{option} {args[option]}: expected {unit} from 0 to {limit}")
    return value


# --- status -----------------------------------------------------------------------------------------------------------


def _show(status: dict[str, Any], form: str) -> None:
    if form == "json":
        show(json.dumps(status))
        return
    show("\n".join(_lines(status)))


def _lines(status: dict[str, Any]) -> list[str]:
    agent = f"agent {status.get('session', '')}" if status["agent_running"] else "agent NOT RUNNING"
    drained = ", drained on this node" if status["local_drain"] else ""
    lines = [f"node {status['node']}: {agent}, {status['admin_state']}{drained}"]
    if status.get("put_back"):
        lines.append(f"state: unconfirmed, and may be older than what this node has had: {UNCONFIRMED}")
    elif status.get("confirmed_in_this_boot") is False:
        lines.append(f"state: unconfirmed since this host booted: {UNCONFIRMED}")
    if status.get("key_refused"):
        lines.append(f"key: {REFUSED}")
    if status.get("last_error"):
        lines.append(f"link: {status['last_error']}")
    lines += [f"fault {fault['code']} ({fault['severity']}): {fault['text']}" for fault in status.get("faults", [])]
    rows = [("VM", "UUID", "OBSERVED", "EPOCH", "RESTARTS", "DETAIL")]
    rows += [
        (vm["name"], vm["uuid"], vm["observed"], str(vm["epoch"]), str(vm["restarts"]), vm["detail"])
        for vm in status["vms"]
    ]
    cells = [[escaped_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return lines + _migrations(status)


def _migrations(status: dict[str, Any]) -> list[str]:
    lines = []
    for vm in status.get("migrations", []):
        done = f", {in_words(vm['progress'])}" if vm["progress"] else ""
        detail = f": {vm['detail']}" if vm["detail"] else ""
        lines.append(f"migration of {vm['name']} to {vm['target'] or 'another node'}: {vm['phase']}{done}{detail}")
    for vm in status.get("left", []):
        over = vm["detail"] or ("it was told to run there" if vm["handed_over"] else "it is not yet told to run there")
        lines.append(f"{vm['name']} has left to {vm['target'] or 'another node'}: {over}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
