"""`chime-tool`: one command of an operator, from the command line to the exit code.

It speaks the wire protocol and nothing else. Whatever happens ends in an exit code and at most one line of
error.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata

from tools import config, fleet, nodes, operations, recovery, vms
from tools.options import UsageError
from tools.session import Connection, Session
from tools.terminal import CLEAR, Terminal
from tools.usage import Help, Line, Table, parse
from wire import keys
from wire.client import Client, new_key
from wire.curve import new_pair
from wire.errors import ChimeError

DISTRIBUTION = "chime-ha"

COMMANDS: Table = {
    "node": nodes.COMMANDS,
    "vm": vms.COMMANDS,
    "op": operations.COMMANDS,
    "event": fleet.EVENT_COMMANDS,
    "alarm": fleet.ALARM_COMMANDS,
    "operator": fleet.OPERATOR_COMMANDS,
    "explain": fleet.EXPLAIN_COMMANDS,
    "status": fleet.STATUS_COMMANDS,
    "recovery": recovery.COMMANDS,
}

Connect = Callable[[config.Settings], Connection]


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, os.environ)
    return run(sys.argv[1:] if argv is None else argv, terminal, os.environ, connect)


def run(argv: list[str], terminal: Terminal, environ: Mapping[str, str], connect: Connect) -> int:
    """One command line; returns the exit code."""
    try:
        line = parse(argv, COMMANDS)
        if isinstance(line, Help):
            terminal.write(f"chime-tool {_version()}\n" if line.text == "version" else line.text)
            return 0
        options, settings = config.resolve(line.options, line.output_given, environ)
        connection = connect(settings)
        try:
            return _run(line, Session(options, terminal, connection))
        finally:
            connection.close()
    except UsageError as error:
        return _fail(terminal, str(error), 2)
    except ChimeError as error:
        return _fail(terminal, error.message, error.exit_code)
    except OSError as error:
        return _fail(terminal, f"cannot read or write: {error}", 1)
    except KeyboardInterrupt:
        return _interrupted(argv, terminal)
    except Exception as error:  # the last resort: a bug, or an answer that does not fit
        if environ.get("CHIME_DEBUG"):
            traceback.print_exc()
        text = f"unexpected {type(error).__name__}: {error}; set CHIME_DEBUG=1 to see where"
        return _fail(terminal, text, 1)


def _run(line: Line, session: Session) -> int:
    if session.options.watch_s is not None and line.command.run is not fleet.list_events:
        return _watch(line, session, session.options.watch_s)
    return line.command.run(session, line.args)


def connect(settings: config.Settings) -> Connection:
    """A client for the operator whose key file it is. Raises ChimeError, UsageError."""
    file = keys.load(settings.key_file, keys.Kind.OPERATOR)
    endpoint = settings.server or file.endpoint
    if settings.server and not re.search(keys.ENDPOINT_PATTERN, settings.server):
        raise UsageError(f"server {settings.server!r}: give tcp://HOST:PORT")
    if endpoint is None or file.server_public_key is None:
        raise UsageError(
            f"key file {settings.key_file} does not say where its server is: endpoint, server_public_key"
        )
    client = Client(endpoint, file.server_public_key, file.pair(), settings.request_s)
    return Connection(client, endpoint, file.server_public_key, new_key, new_pair, client.close)


def _watch(line: Line, session: Session, watch_s: float) -> int:
    """Shows the same again and again until Ctrl-C. A server that is away is waited for."""
    terminal = session.terminal
    while not terminal.closed:
        page = _Page(terminal)
        try:
            line.command.run(replace(session, terminal=page), line.args)
        except ChimeError as error:
            if not error.retriable:
                raise
            page.say(f"chime-tool: {error.message}; trying again")
        page.flush()
        terminal.pause(watch_s)
    return 0


class _Page(Terminal):
    """A terminal that collects one showing, so that the screen does not flicker."""

    def __init__(self, terminal: Terminal) -> None:
        self.__dict__.update(terminal.__dict__)
        self._terminal = terminal
        self._result: list[str] = []
        self._said: list[str] = []

    def draw(self, text: str) -> None:
        self._result.append(text)

    def say(self, text: str) -> None:
        self._said.append(text)

    def flush(self) -> None:
        """Shows what was collected: on a terminal on a cleared screen, else after an empty line."""
        head = CLEAR if self.out_is_terminal else ""
        tail = "" if self.out_is_terminal or not self._result else "\n"
        self._terminal.draw(head + "".join(self._result) + tail)
        for text in self._said:
            self._terminal.say(text)


def _interrupted(argv: list[str], terminal: Terminal) -> int:
    """Ctrl-C: the normal end of --watch; elsewhere, a request that is on its way may have taken effect."""
    terminal.end_progress()
    if any(arg.startswith("--watch") for arg in argv):
        return 0
    return _fail(
        terminal, "interrupted; a request that was sent already may have taken effect: chime-tool op list", 1
    )


def _fail(terminal: Terminal, text: str, exit_code: int) -> int:
    terminal.end_progress()
    terminal.say("chime-tool: " + " ".join(text.split()))
    return exit_code


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
