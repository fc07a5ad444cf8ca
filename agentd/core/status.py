"""What `chime-agent status` shows of the running agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.core import leaving
from agentd.core.durable import Durable
from agentd.core.facts import VmFacts
from agentd.core.link import Link
from wire.messages import DrainProof, Fault, VmReport


def show(
    durable: Durable,
    boot_id: str,
    link: Link,
    proof: DrainProof | None,
    faults: Sequence[Fault],
    reports: dict[str, VmReport],
    facts: dict[str, VmFacts],
) -> dict[str, Any]:
    """A document of plain values."""
    return {
        "node": durable.node,
        "session": link.state.value,
        "last_error": link.last_error,
        "key_refused": link.key_refused,
        **state(durable, boot_id),
        "admin_state": durable.order.admin_state.value,
        "local_drain": durable.local_drain,
        "drain_clean": proof.clean if proof else None,
        "revision": durable.revision,
        "faults": [{"code": f.code, "severity": f.severity.value, "text": f.text} for f in faults],
        "vms": [_vm(report) for report in reports.values()],
        **migrations(durable, boot_id, reports, facts),
    }


def state(durable: Durable, boot_id: str) -> dict[str, bool]:
    """Whether the server has confirmed the agent's state since the host booted, and whether it may be an older one."""
    return {"confirmed_in_this_boot": durable.confirmed_boot == boot_id, "put_back": durable.put_back}


def migrations(
    durable: Durable, boot_id: str, reports: dict[str, VmReport], facts: dict[str, VmFacts]
) -> dict[str, Any]:
    """The attempts to migrate VMs away that are known here, the VMs that have left, and why those that are owned here
    cannot be migrated now (null: they can, with the disks that only this node has)."""
    objections = {uuid: leaving.objection(durable, uuid, boot_id, facts.get(uuid), True) for uuid in durable.held}
    attempts = [
        {
            "uuid": uuid,
            "name": held.vm.name,
            "attempt": held.attempt.id,
            "phase": held.attempt.phase.value,
            "target": held.attempt.peer,
            "detail": held.attempt.detail,
            "progress": _progress(reports.get(uuid)),
        }
        for uuid, held in durable.held.items()
        if held.attempt is not None
    ]
    left = [
        {
            "uuid": uuid,
            "name": gone.name,
            "attempt": gone.attempt,
            "target": gone.peer,
            "handed_over": gone.handed_over,
            "detail": gone.detail,
        }
        for uuid, gone in durable.left.items()
    ]
    return {"migrations": attempts, "left": left, "objections": objections}


def _progress(report: VmReport | None) -> dict[str, Any] | None:
    if report is None or report.migration is None or report.migration.progress is None:
        return None
    return dict(msgspec.structs.asdict(report.migration.progress))


def _vm(report: VmReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "uuid": report.uuid,
        "epoch": report.epoch,
        "observed": report.observed.value,
        "owned": report.revision > 0,
        "restarts": report.restarts,
        "detail": report.detail,
    }
