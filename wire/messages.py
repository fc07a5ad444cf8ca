"""The message types: one frozen Struct per message, and the parts that they share.

This is the schema of the protocol (`docs/protocol.md` is its prose). A frame is a map `{v, t, id, b}`:
protocol version, message type, correlation id, body. A field with a default may be left out by the sender; an
unknown field is refused. No behaviour lives here beyond small derived properties."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct, field

from wire import types as w


class Base(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Common settings of every part of a message. (`kw_only` is not inherited; mypy wants `frozen`
    repeated. Messages hold no circles, so the garbage collector need not look at them.)"""


# --- the definition of a VM ---------------------------------------------------------------------------------


class Disk(Base, frozen=True, kw_only=True):
    """One disk of a VM. `size_mib` asks the agent to create the image when the path does not exist."""

    path: w.Path
    format: w.DiskFormat = w.DiskFormat.QCOW2
    storage: w.Storage = w.Storage.SHARED
    size_mib: w.DiskMiB | None = None


class Network(Base, frozen=True, kw_only=True):
    """One network card. A bridge needs `bridge`; a user network needs nothing."""

    kind: w.NetworkKind
    bridge: w.Bridge | None = None
    mac: w.Mac | None = None


class Boot(Base, frozen=True, kw_only=True):
    """Direct kernel boot."""

    kernel: w.Path
    initrd: w.Path | None = None
    cmdline: w.Line = ""


class VmSpec(Base, frozen=True, kw_only=True):
    """The definition of a VM: structured, or a whole libvirt domain XML (`xml`) of which Chime owns UUID,
    name, metadata and power actions. With `xml`, `vcpus` and `memory_mib` say what it reserves and `disks`
    names the disks that the XML uses; nothing else is used. `priority`: VMs with a higher one are evacuated first."""

    vcpus: w.VCpus
    memory_mib: w.MemoryMiB
    disks: Annotated[tuple[Disk, ...], w.Few] = ()
    networks: Annotated[tuple[Network, ...], w.Few] = ()
    boot: Boot | None = None
    serial_log: w.Path | None = None
    virt_type: w.VirtType = w.VirtType.AUTO
    on_guest_shutdown: w.OnGuestShutdown = w.OnGuestShutdown.STOP
    priority: w.Priority = 0
    xml: w.Xml | None = None

    @property
    def storage(self) -> w.Storage:
        """Local if any disk is local, none if there is no disk, else shared."""
        if any(disk.storage == w.Storage.LOCAL for disk in self.disks):
            return w.Storage.LOCAL
        return w.Storage.SHARED if self.disks else w.Storage.NONE


# --- agent <-> server ---------------------------------------------------------------------------------------


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


# --- operator -> server -------------------------------------------------------------------------------------


class Mutation(Base, frozen=True, kw_only=True):
    """Common part of requests that change something. `key` (idempotency): the same key returns the saved
    answer. `dry_run`: say what would happen, change nothing."""

    key: w.Token
    dry_run: bool = False


class Page(Base, frozen=True, kw_only=True):
    """Common part of lists: at most `limit` rows after the row that `after` names."""

    after: w.Line = ""
    limit: w.Limit = 500


class ServerStatus(Base, frozen=True, kw_only=True):
    """Asks for the server's version, generation, counters and state. `recovering`: nothing is started, stopped or moved
    now, since the database was restored or is behind; `behind`: what agents have that it has not, in words, empty if it
    is not. `recovery`: a name for what waits for a person's word, for `recovery.confirm` to say what it is about;
    empty: nothing. `waiting_for`: the nodes that have to report before the recovery ends; while the database is behind,
    those that have to be heard before it begins. `held_vms`, `held_nodes`: what waits for a person's word (at most 500
    each): `wants` is what the restored database wants of the VM, `stop`, `delete` or `start`."""


class NodeList(Page, frozen=True, kw_only=True):
    """Asks for all nodes, by name."""


class NodeShow(Base, frozen=True, kw_only=True):
    """Asks for one node with its VMs and last operations."""

    name: w.Name


class NodeAdd(Mutation, frozen=True, kw_only=True):
    """Registers a node. Whoever asks makes the key pair: the server never sees a secret. `address`: to
    ping; else the one that the node speaks from."""

    name: w.Name
    public_key: w.PublicKey
    address: w.Address | None = None


class NodeRekey(Mutation, frozen=True, kw_only=True):
    """Gives a node a new key; the old one is refused from the next message on."""

    name: w.Name
    public_key: w.PublicKey


class NodeRemove(Mutation, frozen=True, kw_only=True):
    """Forgets a drained node that owns no VM, and has no copy of one that may have been migrated to it unheard; its
    key is refused from the next message on."""

    name: w.Name


class NodeEnable(Mutation, frozen=True, kw_only=True):
    """The node takes new VMs again; after a drain it starts the VMs that should run."""

    name: w.Name


class NodeDisable(Mutation, frozen=True, kw_only=True):
    """The node takes no new VM; those that it has are managed as before."""

    name: w.Name


class NodeDrain(Mutation, frozen=True, kw_only=True):
    """Stops all VMs of the node. `evidence`: only `operator` can be given."""

    name: w.Name
    graceful_s: w.Seconds = 60.0
    evidence: w.Evidence | None = None
    comment: w.Text = ""


class NodeRebuild(Mutation, frozen=True, kw_only=True):
    """Starts the VMs of a drained node on other nodes. Refused without evidence."""

    name: w.Name
    evidence: w.Evidence | None = None
    comment: w.Text = ""


class NodeEvacuate(Mutation, frozen=True, kw_only=True):
    """Migrates all VMs of a node to others, or to the node `to`; stopped ones are moved without copying anything.
    `network`: as in `vm.migrate`."""

    name: w.Name
    to: w.Name | None = None
    network: w.Line = ""
    options: MigrationOptions = field(default_factory=MigrationOptions)


class NodeSurvey(Page, frozen=True, kw_only=True):
    """Asks for the domains of a node that Chime does not manage; with `uuid`: for one of them, with its XML."""

    name: w.Name
    uuid: w.Uuid | None = None


class VmList(Page, frozen=True, kw_only=True):
    """Asks for all VMs, by name, or for those of one node."""

    node: w.Name | None = None


class VmShow(Base, frozen=True, kw_only=True):
    """`vm` is a name or a UUID."""

    vm: w.Name


class VmCreate(Mutation, frozen=True, kw_only=True):
    """`node`: place it there; else the server chooses. A VM that reaches beyond itself on its node (a foreign emulator,
    arguments for qemu, files of the system, devices of the host) is refused unless `allow_unsafe` is given."""

    name: w.Name
    spec: VmSpec
    uuid: w.Uuid | None = None
    node: w.Name | None = None
    desired: w.Desired = w.Desired.RUNNING
    allow_unsafe: bool = False


class VmImport(Mutation, frozen=True, kw_only=True):
    """Takes a domain that is on `node` into management as it is. Name, UUID, and the XML in `spec` are those of a
    survey: if the domain has changed since, nothing is taken over. `desired`: running if it runs. `allow_unsafe`: as in
    `vm.create`."""

    node: w.Name
    name: w.Name
    uuid: w.Uuid
    spec: VmSpec
    desired: w.Desired
    allow_unsafe: bool = False


class VmRelease(Mutation, frozen=True, kw_only=True):
    """Gives a VM back: Chime forgets it and removes its metadata; the domain stays as it is, also running."""

    vm: w.Name


class VmStart(Mutation, frozen=True, kw_only=True):
    """Asks for a start; it clears `failed` and a guest's own power-off. `evidence`: only `operator` can be given, for a
    VM that was migrated away without Chime and may run elsewhere."""

    vm: w.Name
    evidence: w.Evidence | None = None
    comment: w.Text = ""


class VmStop(Mutation, frozen=True, kw_only=True):
    """Asks the guest to power off, and ends it after `graceful_s`; `force`: at once."""

    vm: w.Name
    graceful_s: w.Seconds = 60.0
    force: bool = False


class VmReboot(Mutation, frozen=True, kw_only=True):
    """Asks the guest to reboot, or resets it with `force`. At most once."""

    vm: w.Name
    force: bool = False


class VmMigrate(Mutation, frozen=True, kw_only=True):
    """Moves a VM to the node `to`, or to one that the server chooses: live if it runs. `network`: `management`,
    `business`, an interface, a subnet (`10.2.0.0/24`) or an address of the target; empty: the server's default."""

    vm: w.Name
    to: w.Name | None = None
    network: w.Line = ""
    options: MigrationOptions = field(default_factory=MigrationOptions)


class VmDelete(Mutation, frozen=True, kw_only=True):
    """Stops the VM, removes its definition, forgets it. Disks stay."""

    vm: w.Name


class OpList(Page, frozen=True, kw_only=True):
    """Asks for operations, oldest first; `active`: only those that run."""

    active: bool = False


class OpShow(Base, frozen=True, kw_only=True):
    """Asks for one operation."""

    id: w.Token


class OpCancel(Mutation, frozen=True, kw_only=True):
    """Ends an operation; what it has done so far stays."""

    id: w.Token


class EventList(Base, frozen=True, kw_only=True):
    """Newest last. `subject`: a node or VM; `after_id`: only later ones."""

    subject: w.Name | None = None
    after_id: w.Count = 0
    limit: w.Limit = 100


class AlarmList(Base, frozen=True, kw_only=True):
    """`all`: cleared ones too."""

    all: bool = False
    limit: w.Limit = 500


class AlarmAck(Mutation, frozen=True, kw_only=True):
    """Says that a person knows of the alarm."""

    id: w.Count
    comment: w.Text = ""


class OperatorAdd(Mutation, frozen=True, kw_only=True):
    """Registers an operator. Whoever asks makes the key pair."""

    name: w.Name
    public_key: w.PublicKey


class OperatorList(Base, frozen=True, kw_only=True):
    """Asks for all operators and their public keys."""


class OperatorRemove(Mutation, frozen=True, kw_only=True):
    """Forgets an operator; its key is refused from the next message on. The last one cannot be removed."""

    name: w.Name


class Explain(Base, frozen=True, kw_only=True):
    """Asks why a node or VM is as it is. `kind` is `node` or `vm`."""

    kind: w.Name
    name: w.Name


class RecoveryConfirm(Mutation, frozen=True, kw_only=True):
    """A person's word for what `server.status` says that the server waits for. While the database is behind: no other
    chimed gives orders with this key; a recovery begins though not all nodes are heard. While it recovers: no node that
    has not reported yet runs a VM that this database gives to another; the recovery ends. After that: what the restored
    database wants of all that is held is done. A dry run says which. `about`: of the dry run, or
    the `recovery` of the `server.status`, that the word is given for: if it is about something else by now, it is
    refused (`conflict`); empty: whatever it is."""

    comment: w.Text
    about: w.Opaque = ""


class Ok(Base, frozen=True, kw_only=True):
    """The answer to an operator's request; `result` is described with each verb."""

    result: Any = None


class ErrorBody(Base, frozen=True, kw_only=True):
    """The answer to anything that was refused."""

    code: w.Name
    message: str
    retriable: bool
    details: dict[str, Any] = field(default_factory=dict)


# --- what operators see -------------------------------------------------------------------------------------


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
