"""What the daemons say of a command line that they do not understand, in one line."""

from __future__ import annotations

import os

import pytest
from docopt import DocoptExit, docopt

from wire.local.usage import show, usage_line

GRAMMAR = """A daemon.

Usage:
  daemon [--config FILE]
  daemon restore BACKUP [--config FILE] [--yes]
  daemon check-config

  check-config  reads it
  restore       replaces it

Options:
  --config FILE  settings
  --yes          do not ask
"""
CASES = {
    "frob": "unexpected argument 'frob'",
    "restor x": "unexpected argument 'restor', did you mean restore?",
    "restore": "restore needs more, or other arguments",
    "--confg x": "unknown option --confg, did you mean --config?",
    "--frobnicate": "unknown option --frobnicate",
    "--config": "--config requires argument",
    "restore a b": "unexpected argument 'b'",
    "check-config --yes": "--yes needs more, or other arguments",
}


@pytest.mark.parametrize("line", CASES)
def test_the_word_that_does_not_fit_is_named_with_the_nearest_known(line: str) -> None:
    with pytest.raises(DocoptExit) as caught:
        docopt(GRAMMAR, line.split())
    assert usage_line(str(caught.value), GRAMMAR) == CASES[line]


@pytest.mark.parametrize("text", ["", "Usage:\n  daemon"])
def test_something_is_said_also_when_docopt_names_no_word(text: str) -> None:
    assert usage_line(text, GRAMMAR) == "these arguments do not go together"


def test_a_reader_that_goes_away_ends_the_output_and_not_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        show("x" * 100_000)
        show("more")
    assert capsys.readouterr() == ("", "")


def test_a_result_is_shown_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\x1bb")
    assert capsys.readouterr().out == "a\\x1bb\n"
