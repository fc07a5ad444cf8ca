"""`chime-tool recovery ...`: what a server waits for after a restore, or because its database is behind.

Rules: what a person's word would do is asked of the server (a dry run) and never worked out here; the tool shows it
before it asks for that word.
"""

from __future__ import annotations

from typing import Any

from tools import columns, help
from tools.change import change, planned
from tools.options import Args, comment
from tools.render import facts, show_document, table
from tools.session import Row, Session, body
from tools.usage import Command
from wire import messages as m
from wire.text import counted

ATTEST = ("you attest what is said here; if it is wrong, VMs can run twice and data is lost, or VMs are stopped "
          "that are needed")  # fmt: skip
SHOW, CONFIRM = "chime-tool recovery show", "chime-tool recovery confirm --comment TEXT"
ADD = "chime-tool node add NODE --public-key KEY: add again each node that was added since the backup, then confirm"
STATES = {
    "behind": "nodes or the mark beside it show more than this database knows: nothing is started, stopped or moved",
    "recovering": (
        "the database was restored or put back: until all nodes have reported nothing is started, stopped or moved"
    ),
    "held": "the recovery is over; what is listed here waits for a person's word",
    "settled": "nothing is waited for, and nothing is held",
}
"""Where a recovery is, and what that means."""
NEXT = {
    "behind": (
        "stop the older one, if two chimed run with this key",
        ADD,
        "chime-tool node list: when every node is heard, the recovery begins by itself",
        f"{CONFIRM}: begin it without the nodes that cannot be heard",
    ),
    "recovering": (
        ADD,
        "chime-tool node list: get the nodes that are waited for heard, and the recovery ends by itself",
        f"{CONFIRM}: end it without them",
    ),
    "held": (
        ADD,
        "chime-tool vm start|stop|delete VM, node enable|disable|drain NODE: decide one of them",
        f"{CONFIRM}: do what the restored database says, all of it",
    ),
    "settled": ("chime-tool status",),
}
"""What to do in each state."""


def state_of(status: Row) -> str:
    """Where the recovery is: a key of `STATES`."""
    if status["behind"]:
        return "behind"
    if status["recovering"]:
        return "recovering"
    return "held" if status["held_vms"] or status["held_nodes"] else "settled"


def in_words(status: Row) -> str:
    """The same in one line, for `chime-tool status`."""
    state, waiting = state_of(status), ", ".join(status["waiting_for"])
    if state == "behind":
        return f"not begun, and this database is behind: {status['behind']} ({SHOW})"
    if state == "recovering":
        return f"under way, waiting for {waiting or 'nodes'} ({SHOW})"
    if state == "held":
        vms, nodes = counted(len(status["held_vms"]), "VM"), counted(len(status["held_nodes"]), "node")
        return f"over, but {vms} and {nodes} are held ({SHOW})"
    return "none"


def show(session: Session, args: Args) -> int:
    """Who is waited for, what is held, what a word would do, and what to do next."""
    status = session.client.request(body(m.ServerStatus))
    state, plan = state_of(status), list[str]()
    if state != "settled":
        plan = list(planned(session, session.mutation(m.RecoveryConfirm, comment=SHOW)).get("plan") or [])
    if session.options.output in ("json", "yaml"):
        named = ("generation", "history", "recovering", "behind", "waiting_for", "held_vms", "held_nodes")
        document = {"state": state, **{name: status[name] for name in named}, "unknown_keys": _unknown_keys(status)}
        document |= {"confirm": plan, "next": NEXT[state]}
        show_document(session, document)
        return 0
    parts = [facts(session.terminal, _facts(status, state))]
    if status["held_vms"]:
        parts.append(table(session.terminal, status["held_vms"], columns.HELD, session.options.output == "wide"))
    if plan:
        parts.append(facts(session.terminal, [("recovery confirm", line) for line in plan]))
    parts.append(facts(session.terminal, [("next", line) for line in NEXT[state]]))
    session.terminal.write("\n".join(parts))
    return 0


def _unknown_keys(status: Row) -> int:
    """Connections that were refused since the server's start, since their keys are not in the database."""
    return int(status["counters"].get("unknown-keys", 0))


def _who_knocks(status: Row) -> str:
    """That somebody wants in whom the database does not know: it may have been added since the backup."""
    number = _unknown_keys(status)
    refused = counted(number, "connection was refused, its key is", "connections were refused, their keys are")
    return f"{refused} not in this database (nodes or operators that were added since?)" if number else ""


def _facts(status: Row, state: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, Any]] = [
        ("state", f"{state}: {STATES[state]}"),
        ("behind", status["behind"]),
        ("waiting for", ", ".join(status["waiting_for"])),
        ("held VMs", str(len(status["held_vms"]) or "")),
        ("held nodes", ", ".join(status["held_nodes"])),
        ("unknown keys", _who_knocks(status) if state != "settled" else ""),
    ]
    known = [(name, value) for name, value in pairs if value]
    return [*known, ("generation", f"{status['generation']}, history {status['history']}")]


def confirm(session: Session, args: Args) -> int:
    """Goes on with the word of a person."""
    request = session.mutation(m.RecoveryConfirm, comment=comment(args))
    return change(session, request, "confirm recovery", ask=True, attest=ATTEST)


COMMANDS = {
    "show": Command(show, help.RECOVERY_SHOW, watch=True),
    "confirm": Command(confirm, help.RECOVERY_CONFIRM),
}
