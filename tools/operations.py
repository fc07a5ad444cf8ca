"""`chime-tool op ...`."""

from __future__ import annotations

from tools import columns, texts, units
from tools.mutate import change, follow, report, show_result
from tools.options import Args
from tools.render import facts, show_document, show_list, table
from tools.session import Session, body
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
        text += "\n" + table(session.terminal, operation["steps"], columns.STEPS)
    session.terminal.write(text)
    return 0


def wait(session: Session, args: Args) -> int:
    """Waits for an operation; its exit code."""
    operation = session.client.request(body(m.OpShow, id=args["ID"]))["operation"]
    what = f"{operation['kind']} {operation['subject']}"
    result = {"operation": operation, "changed": False, "warnings": [], "plan": []}
    if operation["state"] == "running":
        return follow(session, operation, result, what)
    return report(session, result, what)


def cancel(session: Session, args: Args) -> int:
    """Cancels an operation. A cancelled one is what was asked for, so that is exit code 0."""
    request, what = session.mutation(m.OpCancel, id=args["ID"]), f"cancel operation {args['ID']}"
    if session.options.dry_run:
        return change(session, request, what)
    result = session.client.request(request)
    state = (result.get("operation") or {}).get("state", "done")
    if state == "running":
        state = f"asked for; it ends after its present step: chime-tool op wait {args['ID']}"
    show_result(session, result, f"{what}: {state}")
    return 0


COMMANDS = {
    "list": Command(list_operations, texts.OP_LIST, watch=True),
    "show": Command(show, texts.OP_SHOW, watch=True),
    "wait": Command(wait, texts.OP_WAIT),
    "cancel": Command(cancel, texts.OP_CANCEL),
}
