"""What a lab leaves on the machine when its process is killed, and how to remove it. A lab kept on purpose stays.

Its directory holds `lab.json` from its first moment to its last: owner, and the names of all that is not a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.hosts import oracle, wait_until
from tests.hosts.network import NetworkError, delete_device
from tests.lab.host import CGROUPS, remove_cgroup
from tests.lab.layers import ROOT
from tests.lab.wires import Wires, delete_wires

STATE_FILE = "lab.json"
NSPAWN_PROPAGATE = Path("/run/systemd/nspawn/propagate")
END_TIMEOUT_S = 30.0
ROOTS = (CGROUPS, CGROUPS / "systemd", CGROUPS / "unified")

_runs: list[str] = []


def record(directory: Path, wires: Wires, kept: bool, hosts: Sequence[str] = ()) -> None:
    """Write down what there will be, before it is made; and once more when it is made, for those who come later."""
    stat = oracle.state_and_start(os.getpid())
    state = {
        "run": wires.run,
        "table": wires.table,
        "devices": wires.devices,
        "subnets": {net: str(subnet) for net, subnet in wires.subnets.items()},
        "hosts": list(hosts),
        "kept": kept,
        "checkout": str(ROOT),
        "owner": [os.getpid(), stat[1] if stat else 0],
    }
    (directory / STATE_FILE).write_text(json.dumps(state))
    if wires.run not in _runs:
        _runs.append(wires.run)


def states() -> list[tuple[Path, dict[str, Any]]]:
    """(directory, state) of every lab on this machine."""
    found = []
    for base in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for path in base.glob(f"chime-*/{STATE_FILE}"):
            with contextlib.suppress(OSError, ValueError):
                found.append((path.parent, json.loads(path.read_text())))
    return found


def kept() -> list[Path]:
    """Directories of labs that were left running on purpose, of this checkout."""
    return [directory for directory, state in states() if state["kept"] and state.get("checkout") == str(ROOT)]


def sweep() -> None:
    """Remove labs whose process is dead and that nobody wanted to keep."""
    for directory, state in states():
        pid, started = state["owner"]
        now = oracle.state_and_start(pid)
        if not state["kept"] and (now is None or now[1] != started):
            remove(directory)


def remove(directory: Path) -> None:
    """End a lab's hosts and remove all of it; what is gone already is fine."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((directory / STATE_FILE).read_text())
        for device in loop_devices(directory):
            _thaw(device)
        wait_until(lambda: _ended(state["run"]), END_TIMEOUT_S, f"the hosts in {directory} are off")
        delete_wires(state["table"], state["devices"])
        wait_until(
            lambda: _removed(state["run"]), END_TIMEOUT_S, f"nothing is left of {directory}"
        )  # the last die slowly
    for mount in sorted(_mounts_below(directory), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


def forget(run: str) -> None:
    """What is left of this lab is left on purpose."""
    _runs.remove(run)


def left_behind() -> list[str]:
    """What labs of this process have left on the machine."""
    return [trace for run in _runs for trace in traces(run)]


def traces(run: str) -> list[str]:
    """What there is of a lab on this machine, but for its directory."""
    found = [f"network device {path.name}" for path in Path("/sys/class/net").glob(f"cl{run}*")]
    found += [f"cgroup {path}" for root in ROOTS for path in root.glob(f"chime-lab-{run}-*")]
    found += [f"filter {table}" for table in _tables() if table.endswith(run)]
    return found + [f"process {pid}: {' '.join(oracle.cmdline(pid))[:200]}" for pid in processes_of(run)]


def _tables() -> list[str]:
    done = subprocess.run(["nft", "list", "tables", "bridge"], capture_output=True, text=True)
    return [line.split()[-1] for line in done.stdout.splitlines() if line]


def processes_of(run: str) -> list[int]:
    """All processes of a lab's hosts: their control groups know them, whoever else has died."""
    found = set()
    for root in ROOTS:
        for path in root.glob(f"chime-lab-{run}-*/**/cgroup.procs"):
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in path.read_text().split()}
    return sorted(found)


def _ended(run: str) -> bool:
    """Kill all processes of a lab's hosts; True when there are none."""
    pids = processes_of(run)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids


def loop_devices(directory: Path) -> list[str]:
    """Loop devices whose file is in a lab's directory."""
    argv = ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]
    lines = subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if f"{directory}/" in line]


def _thaw(device: str) -> None:
    """Who writes to a frozen file system cannot even be killed. Mounted once more it can be thawed."""
    with tempfile.TemporaryDirectory() as place:
        for argv in (["mount", device, place], ["fsfreeze", "--unfreeze", place], ["umount", place]):
            subprocess.run(argv, capture_output=True)


def _removed(run: str) -> bool:
    """Remove what hosts leave; True when nothing is left."""
    for path in Path("/sys/class/net").glob(f"cl{run}*"):
        with contextlib.suppress(NetworkError):
            delete_device(path.name)
    for root in ROOTS:
        for path in root.glob(f"chime-lab-{run}-*"):
            remove_cgroup(path)
    for path in NSPAWN_PROPAGATE.glob(f"chimelab-{run}-*"):
        shutil.rmtree(path, ignore_errors=True)
    return not traces(run)


def _mounts_below(directory: Path) -> list[str]:
    with open("/proc/self/mounts") as mounts:
        targets = [line.split()[1] for line in mounts]
    return [target for target in targets if f"{target}/".startswith(f"{directory}/")]
