"""Words shared by every message: states as enums, and constrained scalar types.

Each enum value carries the meaning that `design.md` gives it. The constraints here are what the codec
enforces, so that no invalid name, path or size reaches a decision."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

# Every pattern ends in \Z, not $: in Python `$` also matches before a final newline. "No control characters"
# covers C0, DEL and C1 (which hold terminal escapes), the Unicode line breaks, the codes that reverse writing
# direction, and all that Unicode calls default-ignorable: it is not seen, and makes two names look like one.
UNSEEN = (
    r"\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"
PATH_PATTERN = rf"^/[^\x00-\x1f{UNSEEN}]*\Z"
TEXT_PATTERN = rf"^[^\x00-\x08\x0b-\x1f{UNSEEN}]*\Z"
LINE_PATTERN = rf"^[^\x00-\x1f{UNSEEN}]*\Z"
BRIDGE_PATTERN = r"^[A-Za-z0-9._-]{1,15}\Z"
MAC_PATTERN = r"^([0-9a-f]{2}:){5}[0-9a-f]{2}\Z"
Z85_PATTERN = r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z"
ADDRESS_PATTERN = r"^[0-9A-Fa-f:.]{2,45}\Z"

EPOCHS_PER_GENERATION = 1_000_000_000
"""Generation g gives the epochs from (g - 1) times as many, plus one, to g times as many: so an epoch tells in which
line of the database a node was given the VM."""

IN_WORDS = {
    NAME_PATTERN: "of at most 63 letters, digits, '.', '_' and '-', the first a letter or digit",
    UUID_PATTERN: "that is a UUID in lower case with hyphens",
    PATH_PATTERN: "that is an absolute path without control or invisible characters",
    TEXT_PATTERN: "without control or invisible characters but tab and newline",
    LINE_PATTERN: "of one line without control or invisible characters",
    BRIDGE_PATTERN: "of 1 to 15 letters, digits, '.', '_' and '-'",
    MAC_PATTERN: "that is a MAC address in lower case with colons",
    Z85_PATTERN: "that is a CURVE key: 40 characters of Z85",
    ADDRESS_PATTERN: "that is an IPv4 or IPv6 address",
}
"""What each pattern asks for, as the end of "Expected str ..."."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=63, description="letters, digits, . _ -")]
Uuid = Annotated[str, Meta(pattern=UUID_PATTERN, max_length=36, description="lower case, canonical form")]
Path = Annotated[str, Meta(pattern=PATH_PATTERN, max_length=1024, description="absolute path")]
Text = Annotated[str, Meta(pattern=TEXT_PATTERN, max_length=2000, description="free text")]
Line = Annotated[str, Meta(pattern=LINE_PATTERN, max_length=4096, description="one line of text")]
Token = Annotated[
    str, Meta(pattern=LINE_PATTERN, min_length=1, max_length=64, description="opaque, one line")
]
Opaque = Annotated[str, Meta(max_length=64, description="compared, never shown")]
Xml = Annotated[str, Meta(min_length=1, max_length=262_144)]
Bridge = Annotated[str, Meta(pattern=BRIDGE_PATTERN)]
Mac = Annotated[str, Meta(pattern=MAC_PATTERN)]
PublicKey = Annotated[str, Meta(pattern=Z85_PATTERN, description="CURVE public key, Z85")]
Address = Annotated[str, Meta(pattern=ADDRESS_PATTERN, description="IPv4 or IPv6 address")]

Count = Annotated[int, Meta(ge=0, le=2**53)]
Epoch = Annotated[int, Meta(ge=0, le=2**53)]
VCpus = Annotated[int, Meta(ge=1, le=1024)]
MemoryMiB = Annotated[int, Meta(ge=16, le=67_108_864)]
DiskMiB = Annotated[int, Meta(ge=1, le=1_073_741_824)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Priority = Annotated[int, Meta(ge=0, le=1000, description="higher goes first")]
Prefix = Annotated[int, Meta(ge=0, le=128, description="length of a network's prefix in bits")]
Percent = Annotated[float, Meta(ge=0, le=1000)]  # bounds refuse NaN too: every float of a message needs them
Limit = Annotated[int, Meta(ge=1, le=1000)]

Few = Meta(max_length=256)  # faults, disks, network cards
Many = Meta(max_length=10_000)  # any other list: the frame's size is then the nearer limit


class AdminState(StrEnum):
    """What the operator wants of a node."""

    ENABLED = "enabled"  # takes new VMs, runs its own
    DISABLED = "disabled"  # takes no new VM, its own are managed
    DRAINED = "drained"  # takes no new VM and runs none


class Health(StrEnum):
    """What the server knows of a node."""

    UNKNOWN = "unknown"  # never heard from
    NORMAL = "normal"  # heartbeats arrive and report no fault, or only such of severity info
    ERROR = "error"  # heartbeats report a fault, or none arrive though ping is not known to fail
    UNREACHABLE = "unreachable"  # no heartbeat and no ping reply


class Desired(StrEnum):
    """What the operator wants of a VM."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class Observed(StrEnum):
    """What an agent sees of a VM, or the server of an agent."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"  # defined, and no process
    CRASHED = "crashed"  # ended abnormally, about to be restarted
    MIGRATING = "migrating"
    FAILED = "failed"  # will not be started again until an operator starts it
    UNKNOWN = "unknown"  # nobody can tell now: not the same as stopped


class DiskFormat(StrEnum):
    """Format of a disk image."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Storage(StrEnum):
    """Where a VM's data lives."""

    SHARED = "shared"  # on storage that every node sees: the VM can be rebuilt elsewhere
    LOCAL = "local"  # on its node: it is lost with the node
    NONE = "none"  # the VM has no disk


class NetworkKind(StrEnum):
    """What a network card is connected to."""

    BRIDGE = "bridge"
    USER = "user"


class VirtType(StrEnum):
    """How a VM's processor is run."""

    AUTO = "auto"  # kvm where the node has it, else qemu
    KVM = "kvm"
    QEMU = "qemu"


class OnGuestShutdown(StrEnum):
    """What follows when a guest powers itself off."""

    STOP = "stop"
    RESTART = "restart"


class Evidence(StrEnum):
    """Why the server believes that a drained node runs none of its VMs."""

    AGENT = "agent"  # its agent, in this boot, applied the drain and sees no such process
    FENCE = "fence"  # its power was verified off
    LEASE = "lease"  # its self-fence deadline passed
    OPERATOR = "operator"  # a person attested it


class OperationState(StrEnum):
    """Where an operation is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """Where a step of an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"  # cannot go on now and will be retried
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


class Severity(StrEnum):
    """How urgent an alarm is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class MigrationPhase(StrEnum):
    """What a node says of an attempt to migrate a VM."""

    LEAVING = "leaving"  # the source has begun, and nothing is decided
    LEFT = "left"  # the source's process and definition are gone: the copy on the target is the VM
    FAILED = "failed"  # the source has kept the VM
    ARRIVED = "arrived"  # the target has a copy that names the attempt


class OnTimeout(StrEnum):
    """What follows when a migration takes longer than its time-out."""

    CANCEL = "cancel"  # it is given up, and the VM stays
    FORCE = "force"  # the guest is paused, so that the rest can be copied


class Tls(StrEnum):
    """Whether a migration's data is encrypted by qemu."""

    AUTO = "auto"  # where the source has keys for it
    ON = "on"
    OFF = "off"


class Outcome(StrEnum):
    """How a command ended on the agent."""

    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"  # past its deadline, wrong epoch, or not possible now: no effect
    INTERRUPTED = "interrupted"  # the agent died after it began: the effect is unknown and not repeated
