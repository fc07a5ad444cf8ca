"""What operators see: the results of their questions."""

from __future__ import annotations

from wire import types as w
from wire.messages.agent import Fault, MigrationProgress
from wire.messages.base import Base


class NodeView(Base, frozen=True, kw_only=True):
    """A node as shown. `operation`: id of the one that locks it, if any. Ages in seconds."""

    name: str
    admin_state: w.AdminState
    health: w.Health
    reasons: list[str]
    drain_evidence: w.Evidence | None
    operation: str | None
    last_operation: str | None
    vms: int
    vms_running: int
    last_heartbeat_age_s: float | None
    schedulable: bool
    commandable: bool
    address: str | None
    vcpus: int
    memory_mib: int
    vcpus_used: int
    memory_used_mib: int
    cpu_percent: float
    boot_id: str | None
    agent_version: str
    faults: list[Fault]
    public_key: str


class VmView(Base, frozen=True, kw_only=True):
    """A VM as shown. `operation`: id of the one that runs for it, if any."""

    name: str
    uuid: str
    node: str | None
    epoch: int
    desired: w.Desired
    observed: w.Observed
    storage: w.Storage
    restarts: int
    vcpus: int
    memory_mib: int
    operation: str | None
    detail: str


class Step(Base, frozen=True, kw_only=True):
    """One step of an operation; for a rebuild or an evacuation, one per VM. `progress`: of a VM under migration."""

    name: str
    state: w.StepState
    detail: str = ""
    progress: MigrationProgress | None = None


class OperationView(Base, frozen=True, kw_only=True):
    """An operation as shown. `subject` is a name; times are wall-clock seconds; `progress` is from 0 to 1."""

    id: str
    kind: str
    subject: str
    state: w.OperationState
    steps: list[Step]
    outcome: str
    actor: str
    created: float
    ended: float | None
    progress: float


class EventView(Base, frozen=True, kw_only=True):
    """One line of the audit trail. `actor` did `action` to `subject`, why, caused by which operation."""

    id: int
    time: float
    actor: str
    action: str
    subject: str
    text: str
    operation: str | None


class AlarmView(Base, frozen=True, kw_only=True):
    """A condition; `cleared` is None while it is true."""

    id: int
    code: str
    subject: str
    severity: w.Severity
    text: str
    raised: float
    cleared: float | None
    acked_by: str | None
    comment: str
