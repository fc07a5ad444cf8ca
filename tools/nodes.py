"""`chime-tool node ...`."""

from __future__ import annotations

from tools import columns, help, migration, units
from tools.change import change
from tools.keyout import issue
from tools.options import Args, evidence
from tools.render import facts, show_document, show_list, table
from tools.session import Row, Session, body
from tools.units import seconds
from tools.usage import Command
from wire import keys
from wire import messages as m

ATTEST = ("you attest that {node} is powered off, or was drained on the node itself (chime-agent drain), "
          "and that nothing was migrated away from it (chime-agent migrate) that is not seen on its new node; "
          "if this is wrong, VMs can run twice and data is lost")  # fmt: skip


def list_nodes(session: Session, args: Args) -> int:
    """All nodes."""
    show_list(
        session,
        list(session.client.items(body(m.NodeList))),
        columns.NODES,
        "no nodes: chime-tool node add NAME",
    )
    return 0


def show(session: Session, args: Args) -> int:
    """One node, its VMs and last operations."""
    result = session.client.request(body(m.NodeShow, name=args["NAME"]))
    if session.options.output in ("json", "yaml"):
        show_document(session, result)
        return 0
    terminal, wide = session.terminal, session.options.output == "wide"
    parts = [facts(terminal, _facts(result["node"]))]
    if result["vms"]:
        parts.append(table(terminal, result["vms"], columns.VMS, wide))
    if result["last_operations"]:
        parts.append(table(terminal, result["last_operations"], columns.OPERATIONS, wide))
    terminal.draw("\n".join(parts))
    return 0


def _facts(node: Row) -> list[tuple[str, str]]:
    pairs = [
        ("name", node["name"]),
        ("admin state", node["admin_state"]),
        ("drained by", f"evidence: {node['drain_evidence']}" if node["drain_evidence"] else ""),
        ("health", node["health"] + (f" ({', '.join(node['reasons'])})" if node["reasons"] else "")),
        ("heartbeat", _heartbeat(node)),
        ("schedulable", "yes" if node["schedulable"] else "no"),
        ("takes commands", "yes" if node["commandable"] else "no"),
        ("operation", node["operation"] or ""),
        ("VMs", f"{node['vms']}, {node['vms_running']} of them running"),
        ("vCPUs", f"{node['vcpus_used']} given of {node['vcpus']}"),
        ("memory", f"{units.size(node['memory_used_mib'])} given of {units.size(node['memory_mib'])}"),
        ("CPU load", f"{node['cpu_percent']:.0f} %"),
        ("address", node["address"] or ""),
        ("boot id", node["boot_id"] or ""),
        ("agent", node["agent_version"]),
        ("public key", node["public_key"]),
    ]
    pairs += [("fault", f"{fault['code']} ({fault['severity']}): {fault['text']}") for fault in node["faults"]]
    return pairs


def _heartbeat(node: Row) -> str:
    said = columns.heartbeat(node)
    if said == "not yet":
        return f"{said} since the server's start; health is what it was before"
    return f"{said} ago" if node["last_heartbeat_age_s"] is not None else said


def add(session: Session, args: Args) -> int:
    """Registers a node and hands over its bundle."""
    what, address = f"add node {args['NAME']}", args["--address"]
    return issue(session, keys.Kind.NODE, m.NodeAdd, args, what, address=address)


def rekey(session: Session, args: Args) -> int:
    """Replaces a node's key."""
    return issue(session, keys.Kind.NODE, m.NodeRekey, args, f"rekey node {args['NAME']}", ask=True)


def enable(session: Session, args: Args) -> int:
    """Back to normal."""
    return change(session, session.mutation(m.NodeEnable, name=args["NAME"]), f"enable node {args['NAME']}")


def disable(session: Session, args: Args) -> int:
    """No new VMs."""
    return change(session, session.mutation(m.NodeDisable, name=args["NAME"]), f"disable node {args['NAME']}")


def drain(session: Session, args: Args) -> int:
    """Stops all VMs of the node."""
    request = session.mutation(
        m.NodeDrain,
        name=args["NAME"],
        graceful_s=seconds("--graceful", args["--graceful"]),
        **evidence(args),
    )
    return change(session, request, f"drain node {args['NAME']}", ask=True, attest=_attest(args))


def rebuild(session: Session, args: Args) -> int:
    """Starts its VMs elsewhere."""
    request = session.mutation(m.NodeRebuild, name=args["NAME"], **evidence(args))
    return change(session, request, f"rebuild node {args['NAME']}", ask=True, attest=_attest(args))


def evacuate(session: Session, args: Args) -> int:
    """Migrates its VMs away."""
    request = session.mutation(m.NodeEvacuate, name=args["NAME"], **migration.fields(args))
    return change(session, request, f"evacuate node {args['NAME']}", ask=True)


def remove(session: Session, args: Args) -> int:
    """Forgets the node."""
    return change(
        session, session.mutation(m.NodeRemove, name=args["NAME"]), f"remove node {args['NAME']}", ask=True
    )


def _attest(args: Args) -> str:
    return ATTEST.format(node=args["NAME"]) if args["--evidence"] else ""


COMMANDS = {
    "list": Command(list_nodes, help.NODE_LIST, watch=True),
    "show": Command(show, help.NODE_SHOW, watch=True),
    "add": Command(add, help.NODE_ADD),
    "rekey": Command(rekey, help.NODE_REKEY),
    "enable": Command(enable, help.NODE_ENABLE),
    "disable": Command(disable, help.NODE_DISABLE),
    "drain": Command(drain, help.NODE_DRAIN),
    "rebuild": Command(rebuild, help.NODE_REBUILD),
    "evacuate": Command(evacuate, help.NODE_EVACUATE),
    "remove": Command(remove, help.NODE_REMOVE),
}
