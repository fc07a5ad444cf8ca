"""What an agent and the server say to each other."""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from wire import types as w
from wire.messages.base import Base
from wire.messages.vm import VmSpec


class HostNetwork(Base, frozen=True, kw_only=True):
    """An address of a node, on which interface, with the length of its network's prefix in bits."""

    interface: w.Bridge
    address: w.Address
    prefix: w.Prefix


class HostFacts(Base, frozen=True, kw_only=True):
    """What a node is: constant within a session. `networks`: its addresses, loopback left out; `business_interface`:
    the interface of the network that its VMs are reached by, if it is configured."""

    hostname: w.Line = ""
    vcpus: w.Count = 0
    memory_mib: w.Count = 0
    kvm: bool = False
    hypervisor: w.Line = ""
    agent_version: w.Line = ""
    networks: Annotated[tuple[HostNetwork, ...], w.Few] = ()
    business_interface: w.Line = ""


class Point(Base, frozen=True, kw_only=True):
    """Where in the server's history an inventory stands: `history`, a random name that goes with the number
    `generation`; `life`, the name of one life of the server's process; the node's `revision`. `seal`: by which a server
    knows later that one with its key said so, also when its own database is older. Opaque to an agent but for the
    order: a higher generation is newer; in the same generation and history, a higher revision."""

    history: w.Opaque
    generation: w.Count
    life: w.Opaque
    revision: w.Count
    seal: w.Opaque


class Hello(Base, frozen=True, kw_only=True):
    """First message of an agent on a connection. `newest`: where the newest inventory stands that it has applied."""

    versions: Annotated[tuple[w.Count, ...], w.Few]
    node: w.Name
    boot_id: w.Uuid
    incarnation: w.Token
    nonce: w.Token
    host: HostFacts = field(default_factory=HostFacts)
    newest: Point | None = None


class Welcome(Base, frozen=True, kw_only=True):
    """Answer to hello: opens a session. Every later message of the agent names it. An agent that has applied something
    newer than `generation`, `history` and `revision` say takes no inventory from this server."""

    version: w.Count
    session: w.Token
    nonce: w.Token
    heartbeat_s: w.Seconds
    max_frame_bytes: w.Count
    generation: w.Count
    revision: w.Count
    server_version: w.Line = ""
    history: w.Opaque = ""


class Fault(Base, frozen=True, kw_only=True):
    """A fault that a node reports of itself. Of severity `info` it is worth knowing, and the node stays normal."""

    code: w.Name
    text: w.Text = ""
    severity: w.Severity = w.Severity.WARNING


class Load(Base, frozen=True, kw_only=True):
    """Host load: percent of all cores, MiB that are available, number of running VMs."""

    cpu_percent: w.Percent = 0.0
    memory_available_mib: w.Count = 0
    vms_running: w.Count = 0


class Heartbeat(Base, frozen=True, kw_only=True):
    """Small and constant. `digest` names the VM states last reported; `revision` the inventory applied; `faults` is all
    that is wrong now (until the first heartbeat of a session the server keeps what the one before said).
    Its strings are only compared with those of the session, so they need no pattern: this message is the hot
    one."""

    session: w.Opaque
    seq: w.Count
    nonce: w.Opaque
    boot_id: w.Opaque
    incarnation: w.Opaque
    revision: w.Count
    digest: w.Opaque
    faults: Annotated[tuple[Fault, ...], w.Few] = ()
    load: Load = field(default_factory=Load)


class HeartbeatAck(Base, frozen=True, kw_only=True):
    """Echoes the nonce; a larger `revision` than the agent's asks for a pull, `report` for a full report."""

    session: w.Token
    nonce: w.Token
    revision: w.Count
    report: bool = False


class Pull(Base, frozen=True, kw_only=True):
    """Asks for everything of this node that changed after `since` (0: everything)."""

    session: w.Token
    nonce: w.Token
    since: w.Count = 0


class NodeOrder(Base, frozen=True, kw_only=True):
    """What the server wants of the node. `drain_serial` grows by one at each drain. `hold`: start and stop nothing for
    now (what runs goes on; releases are carried out): the server recovers from a restore and may not know who owns
    what."""

    admin_state: w.AdminState
    drain_serial: w.Count
    drain_graceful_s: w.Seconds = 60.0
    hold: bool = False


class Assignment(Base, frozen=True, kw_only=True):
    """A VM that this node owns. `start_serial` grows with each start an operator asks for: a new one clears
    `failed`. `create_disks`: it is new, so disks with a size may be made if they do not exist; never afterwards.
    `attempt`: a migration away from here that the server holds for undecided: nothing is started meanwhile. `arrival`:
    the attempt whose paused copy here is the VM; a paused copy of any other attempt is not. `adopt`: it is imported:
    the domain that is there is taken over as it is, its metadata apart. `hold`: it is neither started nor stopped for
    now, whatever `desired` says: a person has to confirm what a restored database wants. `seal`: shows later that this
    node was given the VM in this epoch; known to the server and the node alone."""

    uuid: w.Uuid
    name: w.Name
    epoch: w.Epoch
    revision: w.Count
    desired: w.Desired
    start_serial: w.Count
    graceful_s: w.Seconds
    create_disks: bool = False
    adopt: bool = False
    attempt: w.Line = ""
    arrival: w.Line = ""
    hold: bool = False
    seal: w.Opaque = ""
    spec: VmSpec


class MigrationOptions(Base, frozen=True, kw_only=True):
    """How a VM is migrated. `bandwidth_mib_s` 0: no limit. `auto_converge`: a guest that changes its memory faster
    than it can be copied is slowed down. `timeout_s`: after that follows `on_timeout`. `local_disks`: disks that are
    local to the source are copied; else a VM that has some is not migrated."""

    bandwidth_mib_s: w.Count = 0
    auto_converge: bool = True
    tls: w.Tls = w.Tls.AUTO
    timeout_s: w.Seconds = 600.0
    on_timeout: w.OnTimeout = w.OnTimeout.CANCEL
    local_disks: bool = False


class MigrationOrder(Base, frozen=True, kw_only=True):
    """Where a VM goes: the target's node name (empty where it is not known), and its address, by which the source's
    libvirt reaches the target's and through which the data goes."""

    target: w.Line
    address: w.Address
    options: MigrationOptions = field(default_factory=MigrationOptions)


class MigrationProgress(Base, frozen=True, kw_only=True):
    """How far a migration is. Memory and disks together; `downtime_ms`: what libvirt expects of the last step."""

    total_mib: w.Count = 0
    remaining_mib: w.Count = 0
    rate_mib_s: w.Count = 0
    iteration: w.Count = 0
    downtime_ms: w.Count = 0
    elapsed_s: w.Seconds = 0.0


class MigrationReport(Base, frozen=True, kw_only=True):
    """What a node says of an attempt to migrate a VM. `peer`: the other end, a node's name or an address. Of a copy
    that has arrived, from its metadata: `voucher`, and the `address` of the target that it was made out for."""

    attempt: w.Token
    phase: w.MigrationPhase
    peer: w.Line = ""
    detail: w.Text = ""
    voucher: w.Opaque = ""
    address: w.Line = ""
    progress: MigrationProgress | None = None


class Release(Base, frozen=True, kw_only=True):
    """This node no longer owns the VM up to `epoch`: remove its domain (never a disk), then confirm. `keep`: the VM is
    given back: only Chime's metadata is removed, the domain stays as it is, also running. `left_to`: in a confirmation,
    the peer (a node's name or an address) to which the VM had left the node by a migration."""

    uuid: w.Uuid
    epoch: w.Epoch
    keep: bool = False
    left_to: w.Line = ""


class Command(Base, frozen=True, kw_only=True):
    """A one-time instruction: takes effect at most once, and not after `deadline_s` from the pull that brought it.
    Kinds: `reboot`; `migrate`, with `migration`, whose id names the attempt; `cancel-migration`, with `attempt`."""

    id: w.Token
    kind: w.Name
    uuid: w.Uuid
    epoch: w.Epoch
    deadline_s: w.Seconds
    force: bool = False
    attempt: w.Line = ""
    migration: MigrationOrder | None = None


class Inventory(Base, frozen=True, kw_only=True):
    """Answer to pull: one page, ordered by revision. `more`: pull again since `revision`. `history`, `life` and `seal`,
    with `generation` and `revision`, are the point that the agent has reached when it has applied the last page."""

    session: w.Token
    nonce: w.Token
    generation: w.Count
    node: NodeOrder
    revision: w.Count
    history: w.Opaque = ""
    life: w.Opaque = ""
    seal: w.Opaque = ""
    more: bool = False
    vms: Annotated[tuple[Assignment, ...], w.Many] = ()
    releases: Annotated[tuple[Release, ...], w.Many] = ()
    commands: Annotated[tuple[Command, ...], w.Many] = ()


class VmReport(Base, frozen=True, kw_only=True):
    """What the agent sees of one VM. `revision` is that of the assignment it acts upon; 0: it holds none.
    `epoch` is the highest epoch of the VM that this node ever held. `start_serial`: the start request it
    acted upon. `halted`: the guest powered itself off and its policy is to stay off. `restarts`: after
    crashes, in this epoch. `migration`: the last attempt to migrate it, while it matters. `seal`: of the assignment in
    this epoch, or of the domain's metadata: without it a word about a VM that the server's database gives to another
    node is no more than a sighting."""

    uuid: w.Uuid
    epoch: w.Epoch
    revision: w.Count
    observed: w.Observed
    start_serial: w.Count = 0
    restarts: w.Count = 0
    halted: bool = False
    problem: w.Line = ""
    detail: w.Text = ""
    name: w.Line = ""
    migration: MigrationReport | None = None
    seal: w.Opaque = ""


class AgentEvent(Base, frozen=True, kw_only=True):
    """Something that happened on the node. `id` is unique for the node: it may be sent again."""

    id: w.Token
    code: w.Name
    uuid: w.Uuid | None = None
    text: w.Text = ""


class DrainProof(Base, frozen=True, kw_only=True):
    """State of a drain on the node: `clean` if the agent applied it in this boot and sees no process of a
    managed VM."""

    drain_serial: w.Count
    boot_id: w.Uuid
    clean: bool
    running: Annotated[tuple[w.Uuid, ...], w.Many] = ()


class CommandResult(Base, frozen=True, kw_only=True):
    """How a command ended. The same id is answered with the same outcome again."""

    id: w.Token
    outcome: w.Outcome
    detail: w.Text = ""


class Report(Base, frozen=True, kw_only=True):
    """Details, sent on change. `full`: these are all VMs that the agent knows; else only those that changed.
    `digest` names the VM states after this report. `local_drain`: an operator drained the node on the node
    itself."""

    session: w.Token
    seq: w.Count
    revision: w.Count
    generation: w.Count
    digest: w.Line
    full: bool
    vms: Annotated[tuple[VmReport, ...], w.Many] = ()
    released: Annotated[tuple[Release, ...], w.Many] = ()
    results: Annotated[tuple[CommandResult, ...], w.Many] = ()
    events: Annotated[tuple[AgentEvent, ...], w.Many] = ()
    drain: DrainProof | None = None
    local_drain: bool = False


class ReportAck(Base, frozen=True, kw_only=True):
    """The report `seq` is recorded: what it carried need not be sent again."""

    session: w.Token
    seq: w.Count


class Poke(Base, frozen=True, kw_only=True):
    """A hint to pull now. It carries no authority: losing it costs only time."""

    session: w.Token
    revision: w.Count


class Survey(Base, frozen=True, kw_only=True):
    """Asks which domains the node has that Chime does not manage: a page of them by name, from after the one named
    `after`, or the one with `uuid` and its XML. It changes nothing."""

    session: w.Token
    nonce: w.Token
    after: w.Line = ""
    uuid: w.Uuid | None = None


class ForeignVm(Base, frozen=True, kw_only=True):
    """A domain that Chime does not manage. `problem`: why it cannot be imported as it is. `xml`: its definition, if
    that was asked for. `autostart`: libvirt starts it when the host boots."""

    uuid: w.Uuid
    name: w.Line
    observed: w.Observed
    autostart: bool = False
    problem: w.Text = ""
    xml: w.Xml | None = None


class Surveyed(Base, frozen=True, kw_only=True):
    """The answer to a survey. `more`: there are others after the last one. `error`: why there is no answer."""

    session: w.Token
    nonce: w.Token
    vms: Annotated[tuple[ForeignVm, ...], w.Many] = ()
    more: bool = False
    error: w.Text = ""


class Bye(Base, frozen=True, kw_only=True):
    """The agent is about to exit by itself; the session ends."""

    session: w.Token
