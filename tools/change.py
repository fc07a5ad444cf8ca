"""How every change runs: show what it would do, ask, send, wait, report.

A destructive request is first sent with `dry_run`; what the server says it would do is shown on stderr, and
a person or --yes has to agree. Nothing is sent for real before that. Ctrl-C and the time-out leave an
operation running.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from tools import progress
from tools.options import UsageError
from tools.render import show_document
from tools.session import Row, Session
from tools.terminal import Terminal
from wire import messages as m
from wire.errors import CODES, ChimeError
from wire.text import escaped_line
from wire.words import OperationKind

DEFAULT_WAIT_S = 300.0
WAIT_S = {OperationKind.MIGRATE: 3600.0, OperationKind.EVACUATE: 3600.0}
"""How long an operation of a kind is waited for."""
FAILED, REFUSED, UNREACHABLE, RUNNING = 1, 3, 4, 5
Report = Callable[[Session, Row, str], int]
"""Shows a result; returns the exit code."""


def change(session: Session, request: Any, what: str, *, ask: bool = False, attest: str = "") -> int:
    """Runs a mutation whose result is {operation, changed, warnings, plan}; returns the exit code.

    `what` names it ("drain node n1"). `ask`: destructive. `attest`: what the person who agrees vouches for.
    """
    if session.options.dry_run:
        return _show_plan(session, planned(session, request), what)
    said: list[str] = []
    shown: dict[str, Any] = {}
    if ask and not agreed(session, request, what, attest, said, shown):
        return FAILED
    if shown.get("about") == "":
        return report(session, {**shown, "changed": False}, what)
    if "about" in shown:  # the word is for what was shown, and for nothing that came meanwhile
        request = msgspec.structs.replace(request, about=shown["about"])
    result = dict(session.client.request(request))
    for warning in result.get("warnings") or []:
        if warning not in said:
            session.terminal.say(f"warning: {warning}")
    operation = result.get("operation")
    if operation is None or not session.options.wait or operation.get("state") != "running":
        return report(session, result, what)
    return follow(session, operation, result, what)


def planned(session: Session, request: Any) -> dict[str, Any]:
    """What the server says it would do. Changes nothing. Raises ChimeError where the server would refuse."""
    return dict(
        session.client.request(
            msgspec.structs.replace(request, key=session.connection.new_key(), dry_run=True)
        )
    )


def agreed(
    session: Session, request: Any, what: str, attest: str = "", said: list[str] | None = None,
    shown: dict[str, Any] | None = None,
) -> bool:  # fmt: skip
    """Shows the plan and asks; True with --yes. Raises UsageError where nobody can be asked.

    The warnings that were shown are added to `said`, so that they need not be said again, and the whole answer to
    `shown`.
    """
    terminal = session.terminal
    plan = planned(session, request)
    if shown is not None:
        shown.update(plan)
    for line in plan.get("plan") or []:
        terminal.say(line)
    for warning in plan.get("warnings") or []:
        terminal.say(f"warning: {warning}")
        if said is not None:
            said.append(warning)
    if plan.get("about") == "":  # nothing waits for a word: there is nothing to attest, and nothing to ask
        return True
    if attest:
        terminal.say(attest)
    return confirmed(session, what)


def confirmed(session: Session, what: str) -> bool:
    """Asks once all is said; True with --yes. Raises UsageError where nobody can be asked."""
    terminal = session.terminal
    if session.options.yes:
        return True
    if not terminal.can_ask:
        raise UsageError(f"{what}: not on a terminal, so nobody can agree: nothing was changed; add --yes")
    if terminal.ask(f"{what}: continue?"):
        return True
    terminal.say("nothing was changed")
    return False


def follow(session: Session, operation: Row, result: dict[str, Any], what: str, ended: Report | None = None) -> int:
    """Waits for an operation, and reports how it ended, with `ended` if it is given; returns the exit code."""
    op_id = str(operation["id"])
    timeout_s = session.options.timeout_s or WAIT_S.get(operation["kind"], DEFAULT_WAIT_S)
    last: dict[str, Any] = dict(operation)

    try:
        show_progress = _shower(session.terminal, last)

        def on_progress(seen: m.OperationView) -> None:
            last.update(msgspec.to_builtins(seen))
            show_progress()

        last.update(msgspec.to_builtins(session.client.wait_operation(op_id, timeout_s, on_progress)))
        why = f"still running after {timeout_s:g} s"
    except KeyboardInterrupt:
        why = "interrupted"
    except ChimeError as error:
        raise ChimeError(error.code, f"{error.message}; {_hint(op_id)}") from None
    finally:
        session.terminal.end_progress()
    result["operation"] = last
    if last["state"] == "running":
        show_result(session, result, "")
        session.terminal.say(f"chime-tool: {what}: {why}; {_hint(op_id)}")
        return RUNNING
    return (ended or report)(session, result, what)


def _shower(terminal: Terminal, operation: Row) -> Callable[[], None]:
    """Shows the progress of `operation`, which the caller keeps up to date, at each call."""
    if not terminal.err_is_terminal:
        lines = progress.Lines()

        def say_new() -> None:
            for line in lines.new(operation):
                terminal.say(line)

        return say_new
    began = time.monotonic()
    terminal.live_progress(
        lambda columns, lines: progress.display(operation, time.monotonic() - began, columns, lines)
    )
    return terminal.redraw


def report(session: Session, result: Row, what: str) -> int:
    """Shows the result of a mutation; returns the exit code."""
    operation = result.get("operation")
    if operation is None:
        show_result(
            session, result, f"{what}: {'done' if result.get('changed', True) else 'nothing to change'}"
        )
        return 0
    took = f" in {operation['ended'] - operation['created']:.0f} s" if operation.get("ended") else ""
    outcome = operation.get("outcome") or ""
    if operation["state"] == "running":
        show_result(session, result, f"{what}: begun, operation {operation['id']}")
        return 0
    if operation["state"] == "succeeded":
        show_result(session, result, f"{what}: done{took}{f': {outcome}' if outcome else ''}")
        return 0
    show_result(session, result, "")
    if len(operation["steps"]) > 1:
        for step in operation["steps"]:
            if step["state"] == "failed" and step["detail"]:
                session.terminal.say(f"{escaped_line(step['name'])}: {escaped_line(step['detail'])}")
    session.terminal.say(
        f"chime-tool: {what}: {operation['state']}{took}: {outcome or 'no reason given'} "
        f"(operation {operation['id']})"
    )
    return failure_code(outcome)


def show_result(session: Session, result: Row, line: str) -> None:
    """The one document of a mutation, or `line` where tables are wanted."""
    if session.options.output in ("json", "yaml"):
        show_document(
            session, {"operation": None, "changed": False, "warnings": [], "plan": []} | dict(result)
        )
    elif line:
        session.terminal.write(line + "\n")


def failure_code(outcome: str) -> int:
    """The exit code of a failed operation: an outcome may begin with an error code and a colon."""
    info = CODES.get(outcome.split(":", 1)[0])
    return info.exit_code if info and info.exit_code in (REFUSED, UNREACHABLE) else FAILED


def _show_plan(session: Session, result: dict[str, Any], what: str) -> int:
    if session.options.output in ("json", "yaml"):
        show_result(session, result, "")
        return 0
    plan = result.get("plan") or []
    for line in plan or [f"{what}: nothing to change"]:
        session.terminal.write(f"{line}\n")
    for warning in result.get("warnings") or []:
        session.terminal.say(f"warning: {warning}")
    return 0


def _hint(op_id: str) -> str:
    return f"{op_id} goes on: follow it with chime-tool op wait {op_id}, cancel it with chime-tool op cancel {op_id}"
