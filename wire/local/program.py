"""A program with a small grammar: from its command line to its exit code. (`chime-tool` has its own reader.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docopt import DocoptExit, docopt

from wire.errors import ChimeError
from wire.local.usage import say, usage_line

Command = Callable[[dict[str, Any]], int]


def run(
    name: str, version: str, grammar: str, command: Command, argv: list[str] | None,
    failures: tuple[type[Exception], ...] = (), code_of: Callable[[ChimeError], int] = lambda error: 1,
) -> int:  # fmt: skip
    """What `command` gives for the arguments that `grammar` (docopt's) reads from `argv`, or from the command line; 2
    for a usage or configuration that is wrong; 1 if it failed, by an OSError or one of `failures`; `code_of` says
    what it is for another refusal. What was wrong is said in one line on stderr."""
    try:
        args = docopt(grammar, argv, version=f"{name} {version}")
    except DocoptExit as error:
        say(f"{name}: {usage_line(str(error), grammar)}; see {name} --help")
        return 2
    try:
        return command(args)
    except ChimeError as error:
        say(f"{name}: {error.message}")
        return 2 if error.code == "invalid" else code_of(error)
    except failures as error:
        say(f"{name}: {error}")
        return 1
    except OSError as error:
        say(f"{name}: {error.filename or 'cannot go on'}: {error.strerror or error}")
        return 1
