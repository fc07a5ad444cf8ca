"""What a line of the log is: on stderr, as JSON or for people, and not below the level that is wanted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from wire.local.logs import set_up


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Logging belongs to the whole process: what other tests have of it is put back."""
    handlers, level = logging.root.handlers, logging.root.level
    logging.root.handlers = []
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_lines_are_json_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "auto")
    structlog.get_logger("a").info("begun", node="n1")
    structlog.get_logger("b").debug("not wanted")
    logging.getLogger("imported").warning("foreign")
    seen = capsys.readouterr()
    assert seen.out == ""
    first, second = map(json.loads, seen.err.splitlines())
    assert (first["event"], first["node"], first["level"]) == ("begun", "n1", "info")
    assert (second["event"], second["level"]) == ("foreign", "warning")


def test_lines_are_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("debug", "console")
    structlog.get_logger("c").debug("begun", node="n1")
    (line,) = capsys.readouterr().err.splitlines()
    assert "[debug" in line
    assert "begun" in line
    assert "node=n1" in line
