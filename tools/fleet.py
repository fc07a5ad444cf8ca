"""`chime-tool event|alarm|operator|explain|status ...`."""

from __future__ import annotations

from typing import Any

from tools import columns, help, recovery, units
from tools.change import change
from tools.keyout import issue
from tools.options import Args, comment
from tools.render import facts, show_document, show_list, table
from tools.session import Session, body
from tools.usage import Command
from wire import keys
from wire import messages as m
from wire.errors import ChimeError


def list_events(session: Session, args: Args) -> int:
    """The newest events. With --watch, later ones follow as they come."""
    limit = units.whole("--limit", args["--limit"])
    rows = _events(session, args, 0, limit)
    show_list(session, rows, columns.EVENTS, "no events")
    while session.options.watch_s is not None and not session.terminal.closed:
        session.terminal.pause(session.options.watch_s)
        last_id = max((row["id"] for row in rows), default=0)
        try:
            rows = _events(session, args, last_id, 1000) or rows
        except ChimeError as error:
            if not error.retriable:
                raise
            session.terminal.say(f"chime-tool: {error.message}; trying again")
        new = [row for row in rows if row["id"] > last_id]
        if new:
            text = table(session.terminal, new, columns.EVENTS, session.options.output == "wide")
            session.terminal.draw(text.split("\n", 1)[1])
    return 0


def _events(session: Session, args: Args, after_id: int, limit: int) -> list[Any]:
    request = body(m.EventList, subject=args["--subject"], after_id=after_id, limit=limit)
    return list(session.client.request(request)["items"])


def list_alarms(session: Session, args: Args) -> int:
    """Alarms that are raised, or all."""
    rows = list(session.client.request(body(m.AlarmList, all=args["--all"]))["items"])
    show_list(session, rows, columns.ALARMS, "no alarms")
    return 0


def acknowledge(session: Session, args: Args) -> int:
    """Somebody is on it."""
    request = session.mutation(m.AlarmAck, id=units.whole("alarm ID", args["ID"]), comment=comment(args))
    return change(session, request, f"acknowledge alarm {args['ID']}")


def list_operators(session: Session, args: Args) -> int:
    """Whose keys may operate."""
    rows = list(session.client.request(body(m.OperatorList))["items"])
    show_list(session, rows, columns.OPERATORS, "no operators")
    return 0


def add_operator(session: Session, args: Args) -> int:
    """Registers an operator and hands over the key file."""
    return issue(session, keys.Kind.OPERATOR, m.OperatorAdd, args, f"add operator {args['NAME']}")


def remove_operator(session: Session, args: Args) -> int:
    """Refuses an operator's key from now on."""
    name = args["NAME"]
    return change(session, session.mutation(m.OperatorRemove, name=name), f"remove operator {name}", ask=True)


def explain_node(session: Session, args: Args) -> int:
    """Why a node is as it is."""
    return _explain(session, "node", args["NAME"])


def explain_vm(session: Session, args: Args) -> int:
    """Why a VM is as it is."""
    return _explain(session, "vm", args["NAME"])


def _explain(session: Session, kind: str, name: str) -> int:
    result = session.client.request(body(m.Explain, kind=kind, name=name))
    if session.options.output in ("json", "yaml"):
        show_document(session, result)
    else:
        session.terminal.write("".join(f"{line}\n" for line in result["lines"]))
    return 0


def status(session: Session, args: Args) -> int:
    """The server and the fleet."""
    result = session.client.request(body(m.ServerStatus))
    if session.options.output in ("json", "yaml"):
        show_document(session, result)
        return 0
    pairs = [
        ("server", session.connection.endpoint),
        ("version", str(result["version"])),
        ("up", units.age(result["uptime_s"])),
        ("nodes", _words(result["nodes"])),
        ("VMs", _words(result["vms"])),
        ("recovery", recovery.in_words(result)),
        ("read only", "yes: it cannot record changes" if result["read_only"] else "no"),
        ("generation", str(result["generation"])),
    ]
    if session.options.output == "wide":
        pairs += [(str(name), str(value)) for name, value in result["counters"].items()]
    session.terminal.draw(facts(session.terminal, pairs))
    return 0


def _words(value: Any) -> str:
    """Numbers by state, a list, or one value, as words."""
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


EVENT_COMMANDS = {"list": Command(list_events, help.EVENT_LIST, watch=True)}
ALARM_COMMANDS = {
    "list": Command(list_alarms, help.ALARM_LIST, watch=True),
    "ack": Command(acknowledge, help.ALARM_ACK),
}
OPERATOR_COMMANDS = {
    "list": Command(list_operators, help.OPERATOR_LIST, watch=True),
    "add": Command(add_operator, help.OPERATOR_ADD),
    "remove": Command(remove_operator, help.OPERATOR_REMOVE),
}
EXPLAIN_COMMANDS = {
    "node": Command(explain_node, help.EXPLAIN_NODE, watch=True),
    "vm": Command(explain_vm, help.EXPLAIN_VM, watch=True),
}
STATUS_COMMANDS = {"": Command(status, help.STATUS, watch=True)}
