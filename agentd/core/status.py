"""What `chime-agent status` shows of the running agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentd.core.durable import Durable
from agentd.core.link import Link
from wire.messages import DrainProof, Fault, VmReport


def show(
    durable: Durable,
    boot_id: str,
    link: Link,
    proof: DrainProof | None,
    faults: Sequence[Fault],
    reports: dict[str, VmReport],
) -> dict[str, Any]:
    """A document of plain values."""
    return {
        "node": durable.node,
        "session": link.state.value,
        "last_error": link.last_error,
        "confirmed_in_this_boot": durable.confirmed_boot == boot_id,
        "admin_state": durable.order.admin_state.value,
        "local_drain": durable.local_drain,
        "drain_clean": proof.clean if proof else None,
        "revision": durable.revision,
        "faults": [{"code": f.code, "severity": f.severity.value, "text": f.text} for f in faults],
        "vms": [_vm(report) for report in reports.values()],
    }


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
