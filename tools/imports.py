"""`chime-tool vm import` and `vm release`: VMs that run already come into management as they are, and leave it so.

What a node has is asked of the node; vCPUs, memory and disks are read from the XML that comes with it; whether the
server would take a VM is asked with a dry run. What was shown is what is imported: the node compares before it takes
over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tools import columns, domain_xml
from tools.change import DEFAULT_WAIT_S, FAILED, RUNNING, change, confirmed, failure_code, planned
from tools.options import Args, UsageError
from tools.render import show_list
from tools.session import Session, body
from wire import messages as m
from wire import reach
from wire.errors import ChimeError

LOCAL_NOTE = (
    "note: the disks count as local to the node: the VMs are not rebuilt when the node is lost; "
    "with --storage shared they are"
)
AUTOSTART_NOTE = "libvirt's autostart is switched off"

Row = dict[str, Any]


def import_vms(session: Session, args: Args) -> int:
    """Takes VMs of a node into management."""
    node, wanted = args["NODE"], list(args["NAME"])
    storage = args["--storage"] or "local"
    if storage not in ("local", "shared"):
        raise UsageError(f"--storage {storage!r}: shared or local")
    if wanted and args["--all"]:
        raise UsageError("--all and names exclude each other")
    if not wanted and not args["--all"] and not session.options.dry_run:
        raise UsageError(f"which VMs? Name them, or --all; chime-tool vm import {node} --dry-run shows what {node} has")
    unsafe = bool(args["--allow-unsafe"])
    found = [_look(session, node, vm, storage, unsafe) for vm in _foreign(session, node, wanted)]
    rows = [row for row, _, _ in found]
    for row in rows:
        for warning in row["warnings"]:
            session.terminal.say(f"warning: {row['name']} reaches beyond itself: {warning}")
    if any(row["disks"] for row in rows) and not args["--storage"]:
        session.terminal.say(LOCAL_NOTE)
    if session.options.dry_run or not any(request for _, request, _ in found):
        show_list(session, rows, columns.IMPORTS, f"{node} has no VM that Chime does not manage")
        return 0 if session.options.dry_run else max((code for _, _, code in found), default=0)
    if not _agreed(session, node, rows):
        return FAILED
    codes = [code if request is None else _import(session, row, request) for row, request, code in found]
    show_list(session, rows, columns.IMPORTS, "")
    return RUNNING if RUNNING in codes else max(codes)


def _foreign(session: Session, node: str, wanted: list[str]) -> list[Mapping[str, Any]]:
    """What the node has and Chime does not manage: all of it, or what is wanted. Raises ChimeError not-found."""
    every = list(session.client.items(body(m.NodeSurvey, name=node)))
    if not wanted:
        return every
    missing = [name for name in wanted if name not in {vm["name"] for vm in every}]
    if missing:
        raise ChimeError("not-found", f"{node} has no VM named {', '.join(missing)} that Chime does not manage")
    return [vm for vm in every if vm["name"] in wanted]


def _look(session: Session, node: str, vm: Mapping[str, Any], storage: str, unsafe: bool) -> tuple[Row, Any, int]:
    """What there is to show of a VM, and the request that imports it; None if that would be refused, with the exit code
    of that."""
    row: Row = {
        "name": vm["name"], "uuid": vm["uuid"], "node": node, "observed": vm["observed"], "vcpus": 0, "memory_mib": 0,
        "disks": [], "storage": storage, "autostart": vm["autostart"], "operation": None,
        "state": "refused", "detail": vm["problem"], "warnings": [],
    }  # fmt: skip
    if row["detail"]:
        return row, None, FAILED
    try:
        request = _request(session, row, storage, unsafe)
        planned(session, request)
    except (UsageError, ChimeError) as error:
        if isinstance(error, ChimeError) and error.code in ("unreachable", "node-unreachable"):
            raise
        row["detail"] = str(error)
        return row, None, error.exit_code if isinstance(error, ChimeError) else FAILED
    row |= {"state": "importable", "detail": AUTOSTART_NOTE if vm["autostart"] else ""}
    return row, request, 0


def _request(session: Session, row: Row, storage: str, unsafe: bool) -> Any:
    """The import of the VM as its XML says. Fills `row`. Raises UsageError."""
    whole = list(session.client.items(body(m.NodeSurvey, name=row["node"], uuid=row["uuid"])))
    if not whole or not whole[0]["xml"]:
        raise UsageError("it is gone")
    row["warnings"] = _warnings(whole[0]["xml"])
    domain = domain_xml.read_text(row["name"], whole[0]["xml"], storage)
    row |= {"vcpus": domain.vcpus, "memory_mib": domain.memory_mib, "disks": [disk["path"] for disk in domain.disks]}
    spec = {"vcpus": domain.vcpus, "memory_mib": domain.memory_mib, "disks": domain.disks, "xml": domain.xml}
    desired = "stopped" if whole[0]["observed"] == "stopped" else "running"
    return session.mutation(
        m.VmImport, node=row["node"], name=row["name"], uuid=row["uuid"], spec=spec, desired=desired,
        allow_unsafe=unsafe,
    )  # fmt: skip


def _warnings(xml: str) -> list[str]:
    """What the domain reaches beyond itself, as the server will see it too."""
    try:
        return [finding.text for finding in reach.of_xml(xml)]
    except ValueError:
        return []  # it is refused for that


def _agreed(session: Session, node: str, rows: list[Row]) -> bool:
    terminal = session.terminal
    for row in rows:
        text = f": {row['detail']}" if row["detail"] else ""
        terminal.say(f"{row['name']} ({row['observed']}): {row['state']}{text}")
    terminal.say("they run on as they are; from then on Chime starts them again when they end")
    return confirmed(session, f"import VMs of {node}")


def _import(session: Session, row: Row, request: Any) -> int:
    """Sends one import and waits for its end. One that fails does not keep the others from being tried."""
    try:
        operation = dict(session.client.request(request)["operation"])
    except ChimeError as error:
        row |= {"state": "refused", "detail": error.message}
        return error.exit_code
    row |= {"state": operation["state"], "operation": operation["id"]}
    if not session.options.wait:
        return 0
    ended = _wait(session, operation)
    row |= {"state": ended["state"], "detail": ended["outcome"] or row["detail"]}
    if ended["state"] == "running":
        return RUNNING
    return 0 if ended["state"] == "succeeded" else failure_code(ended["outcome"])


def _wait(session: Session, operation: Row) -> Row:
    session.terminal.say(f"import of {operation['subject']}: operation {operation['id']}")
    try:
        seen = session.client.wait_operation(operation["id"], session.options.timeout_s or DEFAULT_WAIT_S)
        return dict(msgspec.to_builtins(seen))
    except (KeyboardInterrupt, ChimeError) as why:
        goes_on = f"operation {operation['id']} goes on: chime-tool op wait {operation['id']}"
        return {"state": "running", "outcome": f"{str(why) or 'interrupted'}; {goes_on}"}


def release(session: Session, args: Args) -> int:
    """Gives a VM back."""
    return change(session, session.mutation(m.VmRelease, vm=args["VM"]), f"release VM {args['VM']}", ask=True)
