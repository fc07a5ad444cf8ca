"""What goes into the agent's core and what comes out of it.

Events are facts and outcomes; effects are orders to the shell, in the order in which they are to be done. After a
`Save` the shell reports `Saved` or `SaveFailed` before anything else: the effects that depend on it come out then.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

from agentd.core.durable import Attempt, Durable, Left
from agentd.core.facts import HostScan, Lifecycle, VmFacts
from wire.messages import (
    Assignment,
    Base,
    Fault,
    ForeignVm,
    HostFacts,
    Load,
    MigrationOrder,
    MigrationProgress,
    Survey,
)


class Action(StrEnum):
    """What can be done to a VM. One at a time for each VM."""

    DEFINE = "define"
    START = "start"
    SHUTDOWN = "shutdown"
    DESTROY = "destroy"
    UNDEFINE = "undefine"
    REBOOT = "reboot"
    MIGRATE = "migrate"
    SETTLE = "settle"  # waits until libvirt migrates the VM no more
    HAND_OVER = "hand-over"  # lets the copy on the target run
    RESUME = "resume"
    ADOPT = "adopt"  # puts our mark on a domain, and changes nothing else
    GIVE_BACK = "give-back"  # takes our mark off again


# --- events -----------------------------------------------------------------------------------------------------------


class Event(Struct, frozen=True):
    """An input of the core."""


class Tick(Event, frozen=True):
    """Time has passed."""


class Received(Event, frozen=True):
    """A message from the server."""

    body: Base
    id: str = ""


class Disconnected(Event, frozen=True):
    """The connection to the server ended: a new session is needed."""

    why: str


class Scanned(Event, frozen=True):
    """The answer to `Scan`. `started_at`: when it began (CLOCK_BOOTTIME seconds)."""

    scan: HostScan
    started_at: float


class Happened(Event, frozen=True):
    """libvirt told of a lifecycle event."""

    lifecycle: Lifecycle


class Acted(Event, frozen=True):
    """The outcome of `Act`, with what was seen of the VM afterwards. `invalid`: it cannot work as it is defined;
    with HAND_OVER: the target has no such copy. `refused`: the guard's reason, nothing was done."""

    uuid: str
    action: Action
    token: int
    facts: VmFacts
    error: str = ""
    invalid: bool = False
    refused: str = ""


class Progressed(Event, frozen=True):
    """How far a migration is."""

    uuid: str
    attempt: str
    progress: MigrationProgress


class Call(StrEnum):
    """What the shell has been asked for."""

    ACT = "act"
    SCAN = "scan"
    SURVEY = "survey"
    CONNECT = "connect"
    CHECK = "check"


class Overdue(Event, frozen=True):
    """A call has not returned within its time-out. It still may. `uuid`: the VM that it acts on, if it is an `ACT`;
    `what`: the call in words, for the log."""

    call: Call
    what: str
    uuid: str = ""


class Surveyed(Event, frozen=True):
    """The answer to `Survey`: domains that are not Chime's. `more`: there are others."""

    survey: Survey
    vms: tuple[ForeignVm, ...] = ()
    more: bool = False
    error: str = ""


class HypervisorUp(Event, frozen=True):
    """Connected to libvirt."""

    version: str


class HypervisorDown(Event, frozen=True):
    """The connection to libvirt broke, or could not be made."""

    error: str


class Saved(Event, frozen=True):
    """The snapshot is on disk."""


class SaveFailed(Event, frozen=True):
    """The snapshot could not be written."""

    error: str


class HostChecked(Event, frozen=True):
    """Host load and faults."""

    faults: tuple[Fault, ...]
    load: Load
    host: HostFacts


class Asked(Event, frozen=True):
    """A request over the node-local socket. `graceful_s`: with drain; the rest: with migrate, where the asker names the
    attempt, so that a question that is repeated begins nothing anew."""

    ask: int
    verb: str
    graceful_s: float = 60.0
    uuid: str = ""
    attempt: str = ""
    migration: MigrationOrder | None = None


# --- effects ----------------------------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """An order to the shell."""


class Save(Effect, frozen=True):
    """Write the snapshot durably."""

    durable: Durable


class Send(Effect, frozen=True):
    """Send to the server."""

    body: Base
    id: str = ""


class Reconnect(Effect, frozen=True):
    """Drop the connection with everything queued, and make a new one."""


class Act(Effect, frozen=True):
    """Do one thing to a VM in a worker; START, RESUME and MIGRATE are guarded again there. `attempt`: for MIGRATE and
    SETTLE; `left`: for HAND_OVER; `epoch`: for GIVE_BACK, up to which the mark is taken off."""

    uuid: str
    action: Action
    token: int
    vm: Assignment | None = None
    force: bool = False
    attempt: Attempt | None = None
    left: Left | None = None
    epoch: int = 0


class AbortMigration(Effect, frozen=True):
    """Ask libvirt to give up the VM's migration, which goes on in a worker; its `Acted` tells the end."""

    uuid: str


class LookForeign(Effect, frozen=True):
    """Look at the domains that are not Chime's, as the server asks."""

    survey: Survey


class Scan(Effect, frozen=True):
    """Look at all domains and processes."""


class ConnectHypervisor(Effect, frozen=True):
    """Connect to libvirt."""


class CheckHost(Effect, frozen=True):
    """Measure host load and look for faults."""


class Answer(Effect, frozen=True):
    """Answer a node-local request."""

    ask: int
    result: dict[str, Any]


class Log(Effect, frozen=True):
    """A line for the log."""

    level: str
    text: str
