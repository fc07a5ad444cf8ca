"""Rows for tests, with everything that a test does not care about filled in."""

from __future__ import annotations

import uuid
from typing import Any

from chimed.core.state import rows as r
from chimed.core.state.tables import KEYS
from wire.messages import Disk, MigrationOptions, VmSpec
from wire.types import Desired, OperationState, Severity


def change(row: r.Row) -> r.Change:
    """That saves `row`."""
    table, fields = KEYS[type(row)]
    return r.Change(table, tuple(getattr(row, name) for name in fields), row)


def deletion(row: r.Row) -> r.Change:
    """That deletes `row`."""
    return change(row)._replace(row=None)


def node(name: str, **fields: Any) -> r.Node:
    """A node with a key of its own."""
    return r.Node(name=name, **{"public_key": f"key-of-{name}", **fields})


def vm(name: str, owner: str, **fields: Any) -> r.Vm:
    """A VM on node `owner`; its UUID follows from its name."""
    values = {
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        "spec": VmSpec(vcpus=2, memory_mib=2048, disks=(Disk(path=f"/srv/{name}.qcow2"),)),
        "epoch": 1,
        "desired": Desired.RUNNING,
        "revision": 1,
    }
    return r.Vm(name=name, node=owner, **{**values, **fields})


def migration(vm_name: str, op_id: str, **fields: Any) -> r.Migration:
    """An open attempt of the operation to move the VM from n1 to n2."""
    values: dict[str, Any] = {
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, vm_name)),
        "attempt": f"{op_id}-1",
        "source": "n1",
        "target": "n2",
        "epoch": 1,
        "address": "10.0.0.2",
        "options": MigrationOptions(local_disks=True),
    }
    return r.Migration(operation=op_id, **{**values, **fields})


def event(subject: str, text: str = "", source_id: str = "", actor: str = "server", of_node: bool = False) -> r.Event:
    """A line of the audit trail."""
    return r.Event(
        time=1.5, actor=actor, action="test", subject=subject, text=text, source_id=source_id, of_node=of_node
    )


def operation(number: int, **fields: Any) -> r.Operation:
    """An operation; running unless told."""
    values: dict[str, Any] = {
        "kind": "drain",
        "subject": "n1",
        "label": "n1",
        "state": OperationState.RUNNING,
        "steps": (),
        "actor": "op",
        "created": float(number),
        "timeout_s": 300.0,
    }
    return r.Operation(id=f"op-{number}", number=number, **{**values, **fields})


def alarm(number: int, **fields: Any) -> r.Alarm:
    """An alarm; true unless told."""
    values: dict[str, Any] = {
        "code": "node-error",
        "subject": f"n{number}",
        "severity": Severity.CRITICAL,
        "text": "text",
        "raised": float(number),
    }
    return r.Alarm(id=number, **{**values, **fields})


def answer(key: str, created: float) -> r.Answer:
    """A saved answer; bytes that are not text."""
    return r.Answer(operator="op", key=key, digest="d", answer=b"\x00\xff" + key.encode(), created=created)
