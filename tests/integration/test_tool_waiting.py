"""`chime-tool` while it waits, as a real process on a real terminal: the picture, Ctrl-C, one JSON document."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pexpect
import pytest

from tests.terminal import end, on_terminal
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


@contextlib.contextmanager
def _terminal(argv: list[str], stdout: Path | None = None) -> Iterator[pexpect.spawn]:
    """Only its stdout may be something else."""
    words = argv if stdout is None else ["sh", "-c", 'exec "$@" > "$0"', str(stdout), *argv]
    terminal = on_terminal(words, {**os.environ, "LC_ALL": "C.UTF-8"}, (LINES, COLUMNS), DEADLINE_S)
    terminal.logfile_read = io.StringIO()
    try:
        yield terminal
    finally:
        terminal.close(force=True)


def _text(terminal: pexpect.spawn) -> str:
    """All that was written on it."""
    return str(terminal.logfile_read.getvalue())


def _pictures(text: str) -> list[list[str]]:
    """What was drawn, picture by picture, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")
    return [["evacuate n1: " + line for line in part.split("\n")[:1]] + part.split("\n")[1:]
            for part in re.split(r"evacuate n1: ", plain)[1:]]  # fmt: skip


def test_bars_are_drawn_in_their_place_and_are_gone_at_the_end(tmp_path: Path) -> None:
    with _server(len(VMS), tmp_path) as tool, _terminal([*tool, "node", "evacuate", "n1"]) as ran:
        ran.expect_exact("evacuate node n1: continue? [y/N]")
        assert "migrates 20 VMs of n1: 12 to n2, 8 to n3" in _text(ran)
        ran.send("y\n")
        ran.expect_exact("3 of 20 migrated, 3 under way, 14 to go")
        ran.kill(signal.SIGINT)
        assert end(ran) == 5
    drawn = [picture for picture in _pictures(_text(ran)) if "3 of 20" in picture[0]]
    assert drawn and [line.split()[0] for line in drawn[0][1:5]] == ["VM", "web-4", "web-5", "web-6"]
    assert all("━" in line and "90 MiB/s" in line and len(line.rstrip()) <= COLUMNS for line in drawn[0][2:5])
    assert "\x1b[?25l" not in _text(ran), "the cursor is hidden: who would show it after a SIGKILL?"


@pytest.mark.parametrize("command", ["node evacuate n1 --yes", "vm migrate web-1 --yes", "op wait op-17"])
def test_ctrl_c_leaves_the_operation_running_and_says_how_to_go_on(tmp_path: Path, command: str) -> None:
    with _server(2, tmp_path) as tool, _terminal([*tool, *command.split()]) as ran:
        ran.expect_exact("2 of 20 migrated")
        ran.send("\x03")  # what the key sends: the terminal makes it a SIGINT
        assert end(ran) == 5
    said = _text(ran).replace("\r\n", "\n").rsplit("chime-tool: ", 1)[1]
    assert said.strip().endswith(f"interrupted; {HINT}") and "Traceback" not in _text(ran)


def test_the_time_out_says_the_same(tmp_path: Path) -> None:
    with _server(2, tmp_path) as tool, _terminal([*tool, "op", "wait", "op-17", "--timeout", "1"]) as ran:
        assert end(ran) == 5
    assert f"still running after 1 s; {HINT}" in _text(ran)


def test_cancelling_waits_until_it_has_ended(tmp_path: Path) -> None:
    with _server(2, tmp_path) as tool, _terminal([*tool, "op", "cancel", "op-17"]) as ran:
        assert end(ran) == 0
    assert "op-17 is being cancelled\r\n" in _text(ran)
    assert "evacuate n1: cancelling, " in _text(ran)
    assert _text(ran).endswith("cancel operation op-17: cancelled by ann\r\n")


def test_standard_output_has_one_json_document_also_when_interrupted(tmp_path: Path) -> None:
    with (
        _server(2, tmp_path) as tool,
        _terminal([*tool, "node", "evacuate", "n1", "--yes", "-o", "json"], tmp_path / "out") as ran,
    ):
        ran.expect_exact("2 of 20 migrated")
        ran.expect_exact("━")
        ran.send("\x03")
        assert end(ran) == 5
        document = json.loads((tmp_path / "out").read_text())
    assert document["operation"]["state"] == "running"
    assert document["operation"]["steps"][2]["progress"]["total_mib"] == 2000
    assert HINT in _text(ran)


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
