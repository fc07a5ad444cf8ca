"""`chime-tool op ...`."""

from __future__ import annotations

from tools import columns, help, progress, units
from tools.change import FAILED, change, follow, report, show_result
from tools.options import Args
from tools.render import drawn, facts, show_document, show_list, table
from tools.session import Row, Session, body
from tools.usage import Command
from wire import messages as m


def list_operations(session: Session, args: Args) -> int:
    """All operations, or those that run."""
    rows = list(session.client.items(body(m.OpList, active=args["--active"])))
    show_list(
        session, rows, columns.OPERATIONS, "no operation is running" if args["--active"] else "no operations"
    )
    return 0


def show(session: Session, args: Args) -> int:
    """One operation and its steps."""
    result = session.client.request(body(m.OpShow, id=args["ID"]))
    if session.options.output in ("json", "yaml"):
        show_document(session, result)
        return 0
    operation = result["operation"]
    pairs = [(name, str(operation[name])) for name in ("id", "kind", "subject", "state", "outcome")]
    pairs += [
        ("by", operation["actor"]),
        ("progress", f"{100 * operation['progress']:.0f} %"),
        ("begun", units.local_time(operation["created"])),
        ("ended", units.local_time(operation["ended"])),
    ]
    text = facts(session.terminal, pairs)
    if operation["steps"]:
        text += "\n" + _steps(session, operation, text.count("\n") + 2)
    session.terminal.draw(text)
    return 0


def _steps(session: Session, operation: Row, above: int) -> str:
    """The steps: a table, or the picture of those under way when it is watched on a terminal, `above` lines down."""
    terminal, steps = session.terminal, operation["steps"]
    if session.options.watch_s is not None and terminal.out_is_terminal and operation["state"] == "running":
        lines = max(1, terminal.height - above)
        return drawn(progress.display(operation, None, terminal.width, lines), terminal.width, terminal.colour)
    copied = columns.COPIED if any(step.get("progress") for step in steps) else ()
    return table(terminal, steps, (*columns.STEPS[:-1], *copied, columns.STEPS[-1]), session.options.output == "wide")


def wait(session: Session, args: Args) -> int:
    """Waits for an operation; its exit code."""
    operation = session.client.request(body(m.OpShow, id=args["ID"]))["operation"]
    what = f"{operation['kind']} {operation['subject']}"
    result = {"operation": operation, "changed": False, "warnings": [], "plan": []}
    if operation["state"] == "running":
        return follow(session, operation, result, what)
    return report(session, result, what)


def cancel(session: Session, args: Args) -> int:
    """Cancels an operation, and waits until it has ended: what a migration has begun takes its time to undo."""
    request, what = session.mutation(m.OpCancel, id=args["ID"]), f"cancel operation {args['ID']}"
    if session.options.dry_run:
        return change(session, request, what)
    result = dict(session.client.request(request))
    for warning in result.get("warnings") or []:
        session.terminal.say(f"warning: {warning}")
    operation = result.get("operation") or {}
    if operation.get("state") == "running" and session.options.wait:
        session.terminal.say(f"{args['ID']} is being cancelled")
        return follow(session, operation, result, what, _cancelled)
    return _cancelled(session, result, what)


def _cancelled(session: Session, result: Row, what: str) -> int:
    """A cancelled one is what was asked for, so that is exit code 0; one that has ended in another way is not."""
    operation = result.get("operation") or {}
    state, outcome = operation.get("state", "done"), operation.get("outcome") or ""
    if state == "running":
        text = f"asked for: chime-tool op wait {operation['id']}"
    else:
        text = outcome if outcome.startswith(state) else f"{state}: {outcome}".removesuffix(": ")
    ended = state in ("succeeded", "failed")
    show_result(session, result, "" if ended else f"{what}: {text}")
    if ended:
        session.terminal.say(f"chime-tool: {what}: too late, it has ended: {text}")
    return FAILED if ended else 0


COMMANDS = {
    "list": Command(list_operations, help.OP_LIST, watch=True),
    "show": Command(show, help.OP_SHOW, watch=True),
    "wait": Command(wait, help.OP_WAIT),
    "cancel": Command(cancel, help.OP_CANCEL),
}
