"""`chime-tool` while it waits, as a real process on a real terminal: the picture, Ctrl-C, one JSON document."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tools.stand_in import StandIn
from wire import keys
from wire import messages as m
from wire.codec import Message
from wire.curve import new_pair

pytestmark = pytest.mark.integration

ANN = new_pair()
VMS = [f"web-{number}" for number in range(1, 21)]
DEADLINE_S = 20
HINT = "op-17 goes on: follow it with chime-tool op wait op-17, cancel it with chime-tool op cancel op-17"
COLUMNS, LINES = 90, 12


class Evacuation:
    """A server on which an evacuation of 20 VMs goes on a little each time somebody looks, until VM number `stop`."""

    def __init__(self, stop: int) -> None:
        self.stop, self.looks, self.cancelled = stop, 0, 0

    def view(self) -> m.OperationView:
        done = min(self.looks // 2, self.stop)
        steps = [m.Step(name=name, state="done") for name in VMS[:done]]  # type: ignore[arg-type]
        for number, name in enumerate(VMS[done:], done):
            under_way = number < done + 3 and not self.cancelled
            left_mib = 1000 - 100 * (number - done) - self.looks % 2
            copied = m.MigrationProgress(total_mib=2000, remaining_mib=left_mib, rate_mib_s=90) if under_way else None
            steps.append(m.Step(name=name, state="running" if under_way else "pending",  # type: ignore[arg-type]
                                progress=copied))  # fmt: skip
        ended = done == len(VMS) or self.cancelled > 2
        state = ("cancelled" if self.cancelled else "succeeded") if ended else "running"
        outcome = "cancelling" if self.cancelled and not ended else "cancelled by ann" if self.cancelled else ""
        return m.OperationView(
            id="op-17", kind="evacuate", subject="n1", state=state, steps=steps, outcome=outcome,  # type: ignore[arg-type]
            actor="ann", created=1000.0, ended=1060.0 if ended else None, progress=done / len(VMS))  # fmt: skip

    def answer(self, message: Message) -> m.Base:
        body = message.body
        self.looks += 1
        self.cancelled += bool(self.cancelled) or isinstance(body, m.OpCancel)
        if isinstance(body, m.OpShow):
            return m.Ok(result={"operation": msgspec.to_builtins(self.view())})
        planned = isinstance(body, m.NodeEvacuate) and body.dry_run
        operation = None if planned else msgspec.to_builtins(self.view())
        plan = ["migrates 20 VMs of n1: 12 to n2, 8 to n3"]
        return m.Ok(result={"operation": operation, "changed": not planned, "warnings": [], "plan": plan})


@contextlib.contextmanager
def _server(stop: int, directory: Path) -> Iterator[list[str]]:
    """The command line of a tool that talks to it."""
    with StandIn([ANN.public]) as server:
        server.answer = Evacuation(stop).answer
        file = keys.KeyFile(kind=keys.Kind.OPERATOR, name="ann", public_key=ANN.public, secret_key=ANN.secret,
                            server_public_key=server.keys.public, endpoint=server.endpoint)  # fmt: skip
        keys.save(directory / "ann.key", file)
        yield [sys.executable, "-m", "tools.main", "--key", str(directory / "ann.key")]


class OnTerminal:
    """A process whose controlling terminal is `screen`. Only its stdout may be something else."""

    def __init__(self, argv: list[str], stdout: Any = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.text = ""
        # Sizes in the environment would count for more than that of the terminal.
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv], stdin=slave, stdout=stdout or slave, stderr=slave,
            env=environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, seen: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not seen(self.text):
            assert self._read(deadline), f"not seen in time:\n{self.text}"

    def end(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline):
            pass
        return self.process.wait(DEADLINE_S)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def _pictures(text: str) -> list[list[str]]:
    """What was drawn, picture by picture, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")
    return [["evacuate n1: " + line for line in part.split("\n")[:1]] + part.split("\n")[1:]
            for part in re.split(r"evacuate n1: ", plain)[1:]]  # fmt: skip


def test_bars_are_drawn_in_their_place_and_are_gone_at_the_end(tmp_path: Path) -> None:
    with _server(len(VMS), tmp_path) as tool, OnTerminal([*tool, "node", "evacuate", "n1"]) as ran:
        ran.until(lambda text: "evacuate node n1: continue? [y/N]" in text)
        assert "migrates 20 VMs of n1: 12 to n2, 8 to n3" in ran.text
        ran.type("y\n")
        ran.until(lambda text: "3 of 20 migrated, 3 under way, 14 to go" in text)
        ran.process.send_signal(signal.SIGINT)
        assert ran.end() == 5
    drawn = [picture for picture in _pictures(ran.text) if "3 of 20" in picture[0]]
    assert drawn and [line.split()[0] for line in drawn[0][1:5]] == ["VM", "web-4", "web-5", "web-6"]
    assert all("━" in line and "90 MiB/s" in line and len(line.rstrip()) <= COLUMNS for line in drawn[0][2:5])
    assert "\x1b[?25l" not in ran.text, "the cursor is hidden: who would show it after a SIGKILL?"


@pytest.mark.parametrize("command", ["node evacuate n1 --yes", "vm migrate web-1 --yes", "op wait op-17"])
def test_ctrl_c_leaves_the_operation_running_and_says_how_to_go_on(tmp_path: Path, command: str) -> None:
    with _server(2, tmp_path) as tool, OnTerminal([*tool, *command.split()]) as ran:
        ran.until(lambda text: "2 of 20 migrated" in text)
        ran.type("\x03")  # what the key sends: the terminal makes it a SIGINT
        assert ran.end() == 5
    said = ran.text.replace("\r\n", "\n").rsplit("chime-tool: ", 1)[1]
    assert said.strip().endswith(f"interrupted; {HINT}") and "Traceback" not in ran.text


def test_the_time_out_says_the_same(tmp_path: Path) -> None:
    with _server(2, tmp_path) as tool, OnTerminal([*tool, "op", "wait", "op-17", "--timeout", "1"]) as ran:
        assert ran.end() == 5
    assert f"still running after 1 s; {HINT}" in ran.text


def test_cancelling_waits_until_it_has_ended(tmp_path: Path) -> None:
    with _server(2, tmp_path) as tool, OnTerminal([*tool, "op", "cancel", "op-17"]) as ran:
        assert ran.end() == 0
    assert "op-17 is being cancelled\r\n" in ran.text
    assert "evacuate n1: cancelling, " in ran.text
    assert ran.text.endswith("cancel operation op-17: cancelled by ann\r\n")


def test_standard_output_has_one_json_document_also_when_interrupted(tmp_path: Path) -> None:
    with (
        open(tmp_path / "out", "w+") as out,
        _server(2, tmp_path) as tool,
        OnTerminal([*tool, "node", "evacuate", "n1", "--yes", "-o", "json"], out) as ran,
    ):
        ran.until(lambda text: "2 of 20 migrated" in text and "━" in text)
        ran.type("\x03")
        assert ran.end() == 5
        document = json.loads((tmp_path / "out").read_text())
    assert document["operation"]["state"] == "running"
    assert document["operation"]["steps"][2]["progress"]["total_mib"] == 2000
    assert HINT in ran.text


def test_without_a_terminal_progress_is_lines_on_standard_error(tmp_path: Path) -> None:
    with _server(len(VMS), tmp_path) as tool:
        ran = subprocess.run([*tool, "node", "evacuate", "n1", "--yes", "-o", "json", "--timeout", "4"],
                             capture_output=True, text=True, timeout=DEADLINE_S)  # fmt: skip
    assert json.loads(ran.stdout)["operation"]["id"] == "op-17" and ran.returncode == 5
    lines = ran.stderr.splitlines()
    assert lines[:3] == ["migrates 20 VMs of n1: 12 to n2, 8 to n3",
                         "evacuate n1: 1 of 20 migrated, 3 under way, 16 to go",
                         "evacuate n1: web-1 done: 1 of 20 migrated"]  # fmt: skip
    assert len(set(lines)) == len(lines) and "\x1b" not in ran.stderr
