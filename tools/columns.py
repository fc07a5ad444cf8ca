"""The columns of every table."""

from __future__ import annotations

import time
from collections.abc import Callable

from tools import units
from tools.progress import CELLS
from tools.render import Column
from tools.session import Row


def _reasons(row: Row) -> str:
    reasons = row["reasons"] or []
    return f"{row['health']} ({', '.join(reasons)})" if reasons else str(row["health"])


def _admin(row: Row) -> str:
    evidence = row.get("drain_evidence")
    return f"{row['admin_state']} ({evidence})" if evidence else str(row["admin_state"])


def _share(row: Row, used: str, total: str) -> str:
    return f"{row[used]}/{row[total]}"


def _op_progress(row: Row) -> str:
    return f"{100 * row['progress']:.0f} %"


def _took(row: Row) -> str:
    return units.age((row["ended"] or time.time()) - row["created"])


def heartbeat(row: Row) -> str:
    """How long ago it was heard; one that was heard in an earlier life of the server need not have been in this."""
    is_known = row["last_heartbeat_age_s"] is None and row["health"] != "unknown"
    return "not yet" if is_known else units.age(row["last_heartbeat_age_s"])


NODES = (
    Column("NAME", lambda row: row["name"]),
    Column("ADMIN", _admin, state=True),
    Column("HEALTH", _reasons, state=True),
    Column("VMS", lambda row: f"{row['vms_running']}/{row['vms']}"),
    Column("SCHEDULABLE", lambda row: "yes" if row["schedulable"] else "no"),
    Column("HEARTBEAT", heartbeat),
    Column("OPERATION", lambda row: row["operation"] or ""),
    Column("ADDRESS", lambda row: row["address"] or "", wide=True),
    Column("VCPUS", lambda row: _share(row, "vcpus_used", "vcpus"), wide=True),
    Column(
        "MEMORY",
        lambda row: f"{units.size(row['memory_used_mib'])}/{units.size(row['memory_mib'])}",
        wide=True,
    ),
    Column("CPU", lambda row: f"{row['cpu_percent']:.0f} %", wide=True),
    Column("AGENT", lambda row: row["agent_version"], wide=True),
)

VMS = (
    Column("NAME", lambda row: row["name"]),
    Column("NODE", lambda row: row["node"] or ""),
    Column("DESIRED", lambda row: row["desired"]),
    Column("OBSERVED", lambda row: row["observed"], state=True),
    Column("STORAGE", lambda row: row["storage"]),
    Column("RESTARTS", lambda row: str(row["restarts"])),
    Column("OPERATION", lambda row: row["operation"] or ""),
    Column("UUID", lambda row: row["uuid"], wide=True),
    Column("EPOCH", lambda row: str(row["epoch"]), wide=True),
    Column("VCPUS", lambda row: str(row["vcpus"]), wide=True),
    Column("MEMORY", lambda row: units.size(row["memory_mib"]), wide=True),
    Column("DETAIL", lambda row: row["detail"], free=True),
)

IMPORTS = (
    Column("NAME", lambda row: row["name"]),
    Column("OBSERVED", lambda row: row["observed"], state=True),
    Column("VCPUS", lambda row: str(row["vcpus"] or "")),
    Column("MEMORY", lambda row: units.size(row["memory_mib"]) if row["memory_mib"] else ""),
    Column("STORAGE", lambda row: row["storage"] if row["disks"] else ""),
    Column("STATE", lambda row: row["state"], state=True),
    Column("UUID", lambda row: row["uuid"], wide=True),
    Column("DISKS", lambda row: ", ".join(row["disks"]), wide=True, free=True),
    Column("DETAIL", lambda row: row["detail"], free=True),
)

OPERATIONS = (
    Column("ID", lambda row: row["id"]),
    Column("KIND", lambda row: row["kind"]),
    Column("SUBJECT", lambda row: row["subject"]),
    Column("STATE", lambda row: row["state"], state=True),
    Column("PROGRESS", _op_progress),
    Column("BEGUN", lambda row: units.local_time(row["created"])),
    Column("TOOK", _took),
    Column("BY", lambda row: row["actor"], wide=True),
    Column("ENDED", lambda row: units.local_time(row["ended"]), wide=True),
    Column("OUTCOME", lambda row: row["outcome"], free=True),
)

STEPS = (
    Column("STEP", lambda row: row["name"]),
    Column("STATE", lambda row: row["state"], state=True),
    Column("DETAIL", lambda row: row["detail"], free=True),
)


def _copied(cell: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: cell(row["progress"]) if row.get("progress") else ""


COPIED = tuple(Column(title, _copied(cell), wide) for title, cell, wide, _ in CELLS)
"""How far the migration is that a step is."""

EVENTS = (
    Column("TIME", lambda row: units.local_time(row["time"])),
    Column("ID", lambda row: str(row["id"]), wide=True),
    Column("WHO", lambda row: row["actor"]),
    Column("DID", lambda row: row["action"]),
    Column("TO", lambda row: row["subject"]),
    Column("OPERATION", lambda row: row["operation"] or "", wide=True),
    Column("WHY", lambda row: row["text"], free=True),
)

ALARMS = (
    Column("ID", lambda row: str(row["id"])),
    Column("SEVERITY", lambda row: row["severity"], state=True),
    Column("CODE", lambda row: row["code"]),
    Column("SUBJECT", lambda row: row["subject"]),
    Column("RAISED", lambda row: units.local_time(row["raised"])),
    Column(
        "CLEARED",
        lambda row: units.local_time(row["cleared"]) if row["cleared"] is not None else "",
        wide=True,
    ),
    Column("ACKED BY", lambda row: row["acked_by"] or ""),
    Column("COMMENT", lambda row: row["comment"], wide=True, free=True),
    Column("TEXT", lambda row: row["text"], free=True),
)

HELD = (
    Column("VM", lambda row: row["name"]),
    Column("NODE", lambda row: row["node"]),
    Column("CONFIRM DOES", lambda row: row["wants"]),
    Column("UUID", lambda row: row["uuid"], wide=True),
    Column("WHY IT IS HELD", lambda row: row["why"], free=True),
)

OPERATORS = (
    Column("NAME", lambda row: row["name"]),
    Column("PUBLIC KEY", lambda row: row.get("public_key") or ""),
)
