"""From a daemon's command line to its exit code."""

from __future__ import annotations

from typing import Any

import pytest

from wire.errors import ChimeError
from wire.local import program

GRAMMAR = """Usage:
  x run [--fast]
"""


class BrokenError(Exception):
    """What the program knows to fail with."""


ENDS: dict[str, tuple[Exception | None, int, str]] = {
    "well": (None, 0, ""),
    "refused": (ChimeError("no-evidence", "nothing proves it"), 3, "x: nothing proves it\n"),
    "badly configured": (ChimeError("invalid", "a: b"), 2, "x: a: b\n"),
    "broken": (BrokenError("it is damaged"), 1, "x: it is damaged\n"),
    "without a file": (FileNotFoundError(2, "no such file", "/a"), 1, "x: /a: no such file\n"),
    "without a word": (OSError("odd"), 1, "x: cannot go on: odd\n"),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_it_ends(capsys: pytest.CaptureFixture[str], end: str) -> None:
    error, code, words = ENDS[end]

    def command(args: dict[str, Any]) -> int:
        assert args["--fast"] is True
        if error is not None:
            raise error
        return 0

    failures = (BrokenError,)
    assert program.run("x", "1", GRAMMAR, command, ["run", "--fast"], failures, lambda e: e.exit_code) == code
    assert capsys.readouterr().err == words


def test_a_bug_is_not_hidden() -> None:
    def command(_: dict[str, Any]) -> int:
        raise KeyError("a")

    with pytest.raises(KeyError):
        program.run("x", "1", GRAMMAR, command, ["run"], (BrokenError,))


def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run("x", "1", GRAMMAR, lambda args: 0, ["run", "--fest"]) == 2
    assert capsys.readouterr().err == "x: unknown option --fest, did you mean --fast?; see x --help\n"
