"""Nothing of a lab stays on the machine, also when its process is killed. One that is kept works, and can be ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import wait_until
from tests.lab import remains
from tests.lab.conftest import Keeper
from tests.lab.layers import ROOT

# A lab that is made by a process of its own; it says its directory and waits.
MAKE = """
import sys
from tests.lab.lab import Lab
lab = Lab(nodes=("n1",))
if sys.argv[1] == "hang":
    lab.host("n1").break_disk("hang")
print(lab.dir, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def possible(keeper: Keeper) -> None:
    """Skips, with the reason, where no lab can be made. Two labs at once are none of this test's business."""
    keeper.drop()


def lab_command(*words: str) -> str:
    """`python -m tests.lab WORDS`; what it printed."""
    argv = [sys.executable, "-m", "tests.lab", *words]
    done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def traces(run: str, directory: Path) -> list[str]:
    """What there is of a lab on this machine."""
    return [*remains.traces(run), *remains.loop_devices(directory), *([str(directory)] if directory.exists() else [])]


@pytest.mark.parametrize("disk", ["fine", "hang"])
def test_a_lab_whose_process_is_killed(disk: str) -> None:
    """Its hosts die with it (unless a disk hangs); the next run sweeps networks, mounts and control groups."""
    with subprocess.Popen([sys.executable, "-c", MAKE, disk], cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        run = dict(remains.states())[directory]["run"]
        assert traces(run, directory)
        process.send_signal(signal.SIGKILL)
    if disk == "fine":
        wait_until(lambda: not remains.processes_of(run), 30, "the hosts die with their maker")
    remains.sweep()
    assert traces(run, directory) == []


@pytest.fixture
def kept() -> Iterator[Path]:
    """A lab that a person has left running, if there is none yet."""
    if remains.kept():
        pytest.skip(f"a lab is up in {remains.kept()[0]}; make lab-down ends it")
    lab_command("up")
    yield remains.kept()[0]
    lab_command("down")


def test_a_lab_for_people(kept: Path) -> None:
    """What `make lab-up` promises: it lives on, has a working chime-tool, takes faults, and goes without a trace."""
    run = dict(remains.states())[kept]["run"]
    assert "n3" in lab_command("shell", "srv", "chime-tool", "node", "list")
    lab_command("power-off", "n1")
    assert "inactive" not in lab_command("shell", "n2", "systemctl", "is-active", "chime-agentd", "libvirtd")
    lab_command("power-on", "n1")
    lab_command("cut", "n2", "biz", "in")
    lab_command("heal", "n2")
    wait_until(_all_normal, 60, "all nodes are normal")
    remains.sweep()
    assert remains.kept() == [kept], "a sweep leaves it alone"
    lab_command("down")
    assert traces(run, kept) == []


def _all_normal() -> bool:
    return lab_command("shell", "srv", "chime-tool", "node", "list").count("normal") == 3
