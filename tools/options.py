"""What every command gets from the command line: arguments, global options, and the error for bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = ("table", "wide", "json", "yaml")

Args = Mapping[str, Any]
"""What docopt found: argument or option -> value."""


class UsageError(Exception):
    """The command line or a value on it is not acceptable: exit code 2. The message is one line."""


@dataclass(frozen=True, slots=True)
class Options:
    """The global options, checked. Durations in seconds; `watch_s` is None without --watch."""

    output: str = "table"
    watch_s: float | None = None
    dry_run: bool = False
    yes: bool = False
    wait: bool = True
    timeout_s: float | None = None
    server: str | None = None
    key: str | None = None
    config: str | None = None


def evidence(args: Args) -> dict[str, Any]:
    """The fields of a request for `--evidence` and `--comment`. Raises UsageError."""
    given, text = args["--evidence"], comment(args)
    if given is None and text:
        raise UsageError("--comment goes with --evidence operator")
    if given is None:
        return {}
    if given != "operator":
        raise UsageError(f"--evidence {given!r}: only 'operator' can be given by hand")
    return {"evidence": given, "comment": text}


def comment(args: Args) -> str:
    """The value of `--comment`; empty if it is not given. Raises UsageError if nothing is to be read there."""
    given = args["--comment"]
    if given is not None and not given.strip():
        raise UsageError("--comment is empty: say how you know, or what is being done")
    return (given or "").strip()
