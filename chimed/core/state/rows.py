"""The durable facts: one frozen Struct per table. A change replaces the whole row.

What is here survives a crash; what is not (sessions, last heartbeats, observed states) is learned again. Times are
wall-clock seconds and only shown. The store keeps these rows in SQLite without knowing what they mean.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from wire import messages as m
from wire.messages import HostNetwork, MigrationOptions, MigrationOrder, VmSpec
from wire.types import AdminState, Desired, Evidence, Health, OperationState, Severity, StepState
from wire.words import CommandKind, OperationKind


class Row(Struct, frozen=True, kw_only=True):
    """A durable row."""


class Meta(Row, frozen=True, kw_only=True):
    """One row. `generation` grows at each restore, and `history` is a random name that goes with it: the same number
    may be given twice. `waiting_for`: after a restore, the nodes that have not reported yet; until it is empty nothing
    is started, stopped or moved. `ahead`: the generation in which an agent has shown something newer than this
    database, or of another history; 0: none; `ahead_text` says what it was. `forgotten_epoch`, `forgotten_revision`:
    the highest that a VM or a node had which is not in the database any more."""

    generation: int = 1
    history: str = ""
    waiting_for: tuple[str, ...] = ()
    ahead: int = 0
    ahead_text: str = ""
    next_operation: int = 1
    next_alarm: int = 1
    forgotten_epoch: int = 0
    forgotten_revision: int = 0

    @property
    def recovering(self) -> bool:
        """Whether a restore is being recovered from: owners follow what agents have."""
        return bool(self.waiting_for)

    @property
    def behind(self) -> bool:
        """Whether agents know more than this database: it must not decide anything before a recovery."""
        return self.ahead > 0

    @property
    def holding(self) -> bool:
        """Whether nothing may be started or stopped and no VM may change its owner by this database alone."""
        return self.recovering or self.behind


class Held(StrEnum):
    """What a restored database wants of a VM that waits for a person's word."""

    NOTHING = ""
    STOP = "stop"  # it is said to be stopped, and may run
    DELETE = "delete"  # it is said to be deleted, and may run
    START = "start"  # its node gave it up, or began anew, after the backup: it may be on a node that is not known here


class Node(Row, frozen=True, kw_only=True):
    """A compute node. `revision` grows with each change of what its agent should know; `given`: the highest of which
    its agent was sent an inventory, and `given_by` in which life of the server's process. The evidence belongs to
    `drain_serial`, and evidence `agent` to `evidence_boot_id` too. `held`: a restored database wants it drained, which
    waits for a person's word. `fresh`: its agent has begun anew, and starts nothing before every node was met.
    `restored`: it has not been heard since a restore, or has begun anew since the backup: what it does not run is not
    certain to be its own."""

    name: str
    public_key: str
    admin_state: AdminState = AdminState.ENABLED
    health: Health = Health.UNKNOWN
    reasons: tuple[str, ...] = ()
    revision: int = 1
    given: int = 0
    given_by: str = ""
    order_revision: int = 1
    drain_serial: int = 0
    drain_graceful_s: float = 60.0
    evidence: Evidence | None = None
    evidence_boot_id: str = ""
    evidence_comment: str = ""
    boot_id: str = ""
    address: str = ""
    ping_address: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    kvm: bool = False
    agent_version: str = ""
    networks: tuple[HostNetwork, ...] = ()
    business_interface: str = ""
    held: bool = False
    fresh: bool = False
    restored: bool = False
    lock: str = ""
    last_operation: str = ""
    created: float = 0.0


class Vm(Row, frozen=True, kw_only=True):
    """A virtual machine. `node` is its owner; only the owner may run it, in this `epoch`.
    `exists`: it ran once or had another owner, so that its disks exist and are never made again. `adopt`: it was
    imported where it is: its owner takes over the domain that is there. `attempt`: the open migration away from its
    owner; `arrival`: the attempt by which it came to its owner; `doubt`: one that its owner was asked about, because
    another node has a copy that names it; `failed`: the newest that failed, whose target was told to end its copy.
    `held`: what is not done with it before a person has confirmed it. `since`: the epoch in which its owner got it."""

    uuid: str
    name: str
    spec: VmSpec
    node: str
    epoch: int
    desired: Desired
    revision: int
    start_serial: int = 1
    graceful_s: float = 60.0
    exists: bool = False
    adopt: bool = False
    attempt: str = ""
    arrival: str = ""
    doubt: str = ""
    failed: str = ""
    held: Held = Held.NOTHING
    operation: str = ""
    last_operation: str = ""
    since: int = 0
    created: float = 0.0


class Release(Row, frozen=True, kw_only=True):
    """Node `node` no longer owns the VM up to `epoch`. Lives until a node of that name confirms, also when it was
    removed and may come back. `keep`: its domain stays."""

    node: str
    uuid: str
    epoch: int
    revision: int
    name: str = ""
    keep: bool = False


class Command(Row, frozen=True, kw_only=True):
    """A one-time instruction to a node, until its result is known or its deadline has passed."""

    id: str
    node: str
    uuid: str
    epoch: int
    kind: CommandKind
    force: bool
    revision: int
    timeout_s: float
    operation: str
    attempt: str = ""
    migration: MigrationOrder | None = None


class Migration(Row, frozen=True, kw_only=True):
    """A try to move a VM from `source`, its owner in `epoch`, to `target`, that is not decided; then the row goes.
    `attempt` is the id of the command. `refused`: its result, if that says that the VM stayed. `asked`: the source is
    proven not to run it, and the target was told to remove its copy."""

    uuid: str
    attempt: str
    source: str
    target: str
    epoch: int
    operation: str
    address: str
    options: MigrationOptions
    cancelled: bool = False
    refused: str = ""
    asked: bool = False


class Moving(Row, frozen=True, kw_only=True):
    """What a `migrate` or `evacuate` was asked for. `to` empty: to where there is room. `cancelled_by`: who wants it to
    end."""

    source: str
    to: str
    network: str
    options: MigrationOptions
    cancelled_by: str = ""


class StepEnd(StrEnum):
    """What is to be known of how a step went besides its state."""

    MOVED = "moved"  # the VM was given to another node while it was stopped
    CANCELLED = "cancelled"  # somebody did not want it any more


class Step(Row, frozen=True, kw_only=True):
    """One step of an operation. `detail` is for people; what is decided by is `state` and `end`."""

    name: str
    state: StepState
    detail: str = ""
    end: StepEnd | None = None

    def view(self) -> m.Step:
        """The step as peers see it."""
        return m.Step(name=self.name, state=self.state, detail=self.detail)


class Operation(Row, frozen=True, kw_only=True):
    """Durable long work. `subject` is a node name or VM UUID, `name` what people
    call it, also when the VM is gone; `serial` ties it to the request that it carries out
    (start_serial, drain_serial or the VM's revision). `code`: the error of `wire.errors` that it ended with, if it is
    one of those."""

    id: str
    number: int
    kind: OperationKind
    subject: str
    label: str
    state: OperationState
    steps: tuple[Step, ...]
    actor: str
    created: float
    timeout_s: float
    serial: int = 0
    name: str = ""
    moving: Moving | None = None
    outcome: str = ""
    code: str = ""
    ended: float | None = None

    @property
    def told(self) -> str:
        """How it ended, as peers see it: the code of an error comes first."""
        return f"{self.code}: {self.outcome}" if self.code else self.outcome

    @property
    def open_kind(self) -> str:
        """`kind` while it runs, to find what waits for something; then empty."""
        return self.kind if self.state == OperationState.RUNNING else ""


class Alarm(Row, frozen=True, kw_only=True):
    """A condition; raised once per (code, subject) while it is true."""

    id: int
    code: str
    subject: str
    severity: Severity
    text: str
    raised: float
    cleared: float | None = None
    acked_by: str | None = None
    comment: str = ""


class Operator(Row, frozen=True, kw_only=True):
    """A person or program with a key of its own."""

    name: str
    public_key: str
    created: float


class Answer(Row, frozen=True, kw_only=True):
    """The saved answer to a mutating request. `digest` is of the request's body; `answer` the frame's body as bytes."""

    operator: str
    key: str
    digest: str
    answer: bytes
    created: float


class Event(Row, frozen=True, kw_only=True):
    """A line of the audit trail; the store numbers it. `source_id` tells repeated reports of one event apart.
    `of_node`: a node's word brought it about; such lines are kept apart, and never push out the others."""

    time: float
    actor: str
    action: str
    subject: str
    text: str
    operation: str | None = None
    source_id: str = ""
    of_node: bool = False


class Change(NamedTuple):
    """One thing to save: `row` None deletes `key`."""

    table: str
    key: tuple[str | int, ...]
    row: Row | None
