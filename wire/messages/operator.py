"""What operators ask of the server, and how it answers."""

from __future__ import annotations

from typing import Any

from msgspec import field

from wire import types as w
from wire.messages.agent import MigrationOptions
from wire.messages.base import Base
from wire.messages.vm import VmSpec


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
    VM that may run elsewhere: it was migrated away without Chime, or is held after a restore since its node has it
    not (`no-evidence` without)."""

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
    """Ends an operation; what it has done so far stays, and what it asked for too: a VM's desired state, a drain.
    `warnings` says which."""

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
    """Says that a person knows of the alarm. A `comment` of blanks is refused (`invalid`)."""

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
    refused (`conflict`); empty: whatever it is. A blank `comment` is refused (`invalid`)."""

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
