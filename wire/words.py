"""The vocabulary: stable codes that one side writes and the other decides by, each with its meaning.

Rules: a code is spelled here and nowhere else (a test looks); it is never renamed. On the wire codes are plain strings
in tolerant fields: one that is not known here, of a later version or of another program, is no error.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from wire.types import Severity


class Problem(StrEnum):
    """What keeps a VM from its desired state, or what the server must not overlook (`VmReport.problem`)."""

    IO_ERROR = "io-error"  # paused by a disk error
    FOREIGN_PROCESS = "foreign-process"  # a qemu process of it runs that libvirt does not account for
    START_FAILED = "start-failed"  # its last start or definition failed; it is tried again later
    CRASH_LOOP = "crash-loop"  # given up after too many restarts, until it is started again
    MIGRATED_AWAY = "migrated-away"  # it was migrated away from the node: it may run elsewhere
    STALE_EPOCH = "stale-epoch"  # its assignment is in an epoch that the node has released or declined: not followed
    NEWER_EPOCH = "newer-epoch"  # its domain carries a higher epoch than its assignment
    NOT_ADOPTED = "not-adopted"  # imported, and not taken over yet
    ADOPTION_REFUSED = "adoption-refused"  # imported, and cannot be taken over
    START_PENDING = "start-pending"  # off now, but a start may be under way: it must not be given to another node


class FaultCode(StrEnum):
    """Faults of a node that Chime itself knows (`Fault.code`, `NodeView.reasons`); checks and scripts have others."""

    AGENT_LOST = "agent-lost"  # said by the server: no heartbeats, though ping is not known to fail
    PING_UNAVAILABLE = "ping-unavailable"  # said by the server: whether the node answers ping is not known
    LIBVIRT_UNREACHABLE = "libvirt-unreachable"  # libvirt does not answer
    LIBVIRT_SLOW = "libvirt-slow"  # a call of libvirt has not returned in time
    SERVER_BEHIND = "server-behind"  # the server that answers knows less than the agent was told before
    SNAPSHOT_NOT_WRITABLE = "snapshot-not-writable"  # the agent cannot record changes


class EventCode(StrEnum):
    """What an agent tells of a node (`AgentEvent.code`). The server records it and decides nothing by it."""

    VM_RESTARTED = "vm-restarted"  # it ended by itself and was started again
    VM_HALTED = "vm-halted"  # its guest powered itself off, and it stays off
    VM_FAILED = "vm-failed"  # given up after too many restarts
    VM_START_FAILED = "vm-start-failed"  # a start, definition or take-over failed
    VM_REMOVED = "vm-removed"  # its process is ended, since another node owns it or it was deleted
    VM_STARTED_OUTSIDE = "vm-started-outside"  # it was started by someone else, and is kept running
    VM_FOREIGN_PROCESS = "vm-foreign-process"  # a qemu process outside libvirt runs it: it is not started
    VM_MIGRATED_AWAY = "vm-migrated-away"  # it was migrated away without Chime
    VM_LEFT = "vm-left"  # it was migrated to another node
    VM_MIGRATION_FAILED = "vm-migration-failed"  # an attempt to migrate it failed: it stays
    EVENTS_LOST = "events-lost"  # too many events waited, and the oldest were dropped


class CommandKind(StrEnum):
    """Kinds of one-time commands (`Command.kind`)."""

    REBOOT = "reboot"  # resets the guest, gently or by force
    MIGRATE = "migrate"  # moves the VM to another node; its id names the attempt
    CANCEL_MIGRATION = "cancel-migration"  # gives up an attempt


class OperationKind(StrEnum):
    """Kinds of operations (`OperationView.kind`), with what ends them well."""

    CREATE = "create"  # the new VM runs, or is defined
    START = "start"  # the VM runs
    STOP = "stop"  # the VM is off
    REBOOT = "reboot"  # its agent has rebooted the VM
    DELETE = "delete"  # the VM is gone from its node
    IMPORT = "import"  # the VM's node has taken it over
    RELEASE = "release"  # the VM's node has given it back
    MIGRATE = "migrate"  # the VM is on another node
    DRAIN = "drain"  # it is proven that the node runs no VM
    REBUILD = "rebuild"  # the drained node's VMs are on other nodes
    EVACUATE = "evacuate"  # the node's VMs are migrated to other nodes


class AlarmCode(StrEnum):
    """Conditions that are alarms (`AlarmView.code`)."""

    MASS_UNREACHABLE = "mass-unreachable"  # so many nodes are lost together that it is likely the server's network
    SERVER_BEHIND = "server-behind"  # agents have shown something newer than the server's database
    RECOVERY_HELD = "recovery-held"  # what a restored database wants waits for a person; critical while VMs stay off
    NODE_UNREACHABLE = "node-unreachable"  # the node sends no heartbeats and does not answer ping
    AGENT_LOST = "agent-lost"  # the node sends no heartbeats, though ping is not known to fail
    NODE_ERROR = "node-error"  # the node reports faults
    NODE_NOTICE = "node-notice"  # the node reports something worth knowing that is no fault
    NODE_KEY_CLONED = "node-key-cloned"  # a second host that is alive uses the node's key
    WRONG_NODE = "wrong-node"  # the node's key is used to speak as another node
    FALSE_WORD = "false-word"  # the node shows a seal that no server with this key has made
    KEY_MISUSED = "key-misused"  # the node's key is used to ask for what only others may
    NODE_OVER_BUDGET = "node-over-budget"  # the node sends or changes more than its budget
    VM_DUPLICATE = "vm-duplicate"  # the VM runs on its owner and on another node
    VM_MISPLACED = "vm-misplaced"  # the VM runs on a node that does not own it
    VM_UNKNOWN = "vm-unknown"  # a node has a managed VM that the database does not know
    VM_FAILED = "vm-failed"  # the VM cannot be started, or ended too often
    VM_IO_ERROR = "vm-io-error"  # the VM is paused by a disk error
    VM_FOREIGN_PROCESS = "vm-foreign-process"  # a qemu process outside libvirt runs the VM


class AlarmSubject(StrEnum):
    """What an alarm is about."""

    SERVER = "server"
    NODE = "node"
    VM = "vm"


class AlarmInfo(NamedTuple):
    """`severity` None: that of the worst fault that the node reports."""

    subject: AlarmSubject
    severity: Severity | None


ALARMS: dict[AlarmCode, AlarmInfo] = {
    AlarmCode.MASS_UNREACHABLE: AlarmInfo(AlarmSubject.SERVER, Severity.CRITICAL),
    AlarmCode.SERVER_BEHIND: AlarmInfo(AlarmSubject.SERVER, Severity.CRITICAL),
    AlarmCode.RECOVERY_HELD: AlarmInfo(AlarmSubject.SERVER, Severity.WARNING),
    AlarmCode.NODE_UNREACHABLE: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.AGENT_LOST: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.NODE_ERROR: AlarmInfo(AlarmSubject.NODE, None),
    AlarmCode.NODE_NOTICE: AlarmInfo(AlarmSubject.NODE, Severity.INFO),
    AlarmCode.NODE_KEY_CLONED: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.WRONG_NODE: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.FALSE_WORD: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.KEY_MISUSED: AlarmInfo(AlarmSubject.NODE, Severity.CRITICAL),
    AlarmCode.NODE_OVER_BUDGET: AlarmInfo(AlarmSubject.NODE, Severity.WARNING),
    AlarmCode.VM_DUPLICATE: AlarmInfo(AlarmSubject.VM, Severity.CRITICAL),
    AlarmCode.VM_MISPLACED: AlarmInfo(AlarmSubject.VM, Severity.CRITICAL),
    AlarmCode.VM_UNKNOWN: AlarmInfo(AlarmSubject.VM, Severity.WARNING),
    AlarmCode.VM_FAILED: AlarmInfo(AlarmSubject.VM, Severity.CRITICAL),
    AlarmCode.VM_IO_ERROR: AlarmInfo(AlarmSubject.VM, Severity.CRITICAL),
    AlarmCode.VM_FOREIGN_PROCESS: AlarmInfo(AlarmSubject.VM, Severity.CRITICAL),
}
"""What each alarm is about, and how urgent it is."""

ALARM_OF: dict[str, AlarmCode] = {
    Problem.IO_ERROR: AlarmCode.VM_IO_ERROR,
    Problem.FOREIGN_PROCESS: AlarmCode.VM_FOREIGN_PROCESS,
    Problem.START_FAILED: AlarmCode.VM_FAILED,
    Problem.CRASH_LOOP: AlarmCode.VM_FAILED,
}
"""The problems of a VM that are alarms, if its owner reports them. It may report some that are not known here."""
