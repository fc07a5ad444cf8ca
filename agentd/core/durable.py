"""What the agent remembers across its own death: the content of the snapshot.

Rules: an epoch never falls; a tombstone is never forgotten; only `confirmed_boot` equal to the present boot id allows
starts. Reading and writing the file is the snapshot module's work.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from wire.messages import Assignment, CommandResult, MigrationOptions, NodeOrder, Point
from wire.types import AdminState, MigrationPhase

SNAPSHOT_VERSION = 3
"""1 knew no migrations: an older agent would start what is leaving. 2 did not know what the server's newest inventory
no longer names: an older agent would start that."""
MAX_JOURNAL = 200


class Attempt(Struct, frozen=True, kw_only=True):
    """A try to migrate a VM away from here; recorded before it begins. `phase`: leaving, or failed. `target`: the
    node's name if it is known; `address`: of its libvirt. `resumed`: after a failure the guest was seen going on."""

    id: str
    target: str
    address: str
    options: MigrationOptions = MigrationOptions()
    phase: MigrationPhase = MigrationPhase.LEAVING
    detail: str = ""
    resumed: bool = False

    @property
    def peer(self) -> str:
        """How the target is named to others."""
        return self.target or self.address


class Left(Struct, frozen=True, kw_only=True):
    """A VM that has left by `attempt`, in `epoch`: its process and definition here are gone, and a tombstone stands.
    `handed_over`: its copy on the target was told to run, or is not there (`detail`). `seal`: of its assignment."""

    attempt: str
    epoch: int
    name: str
    target: str
    address: str
    handed_over: bool = False
    detail: str = ""
    seal: str = ""

    @property
    def peer(self) -> str:
        """How the target is named to others."""
        return self.target or self.address


DECLINED = "the server was restored, and this node did not have the VM any more: it may have moved since the backup"


class Held(Struct, frozen=True, kw_only=True):
    """A VM that this node owns, and what happened to it under this ownership.

    `halted_serial`: the start request under which its guest powered itself off. `failed_serial`: the start request
    under which the restart budget ran out. `started_serial`: the start request under which it was seen running and
    since then not stopped by this agent. `restarts`: automatic restarts in this epoch.
    `ending`: it was asked to power off by this agent and was not seen off since: its end is no one else's doing.
    `moved_serial`: the start request under which it was seen leaving by a migration that Chime did not order: it may
    run elsewhere, and only another start request, or seeing it run here, ends that doubt.
    `defined`: it was defined here once, so that its disks exist and are never made again.
    `attempt`: the last try to migrate it away.
    `named`: the newest full inventory names it. One that it does not name is not started any more: what became of it
    was decided without this node. Only a release removes it.
    `declined`: a server that was restored gave it in an epoch of before, and this node, which had followed that server,
    did not have it: it may have moved since the backup. It is not started before a later epoch.
    """

    vm: Assignment
    halted_serial: int = -1
    failed_serial: int = -1
    started_serial: int = -1
    moved_serial: int = -1
    ending: bool = False
    restarts: int = 0
    defined: bool = False
    detail: str = ""
    attempt: Attempt | None = None
    named: bool = True
    declined: bool = False

    @property
    def halted(self) -> bool:
        """The guest powered itself off and no one asked for a start since."""
        return self.halted_serial == self.vm.start_serial

    @property
    def started(self) -> bool:
        """It ran under the present start request: if it is off, it ended by itself."""
        return self.started_serial == self.vm.start_serial

    @property
    def failed(self) -> bool:
        """The restart budget ran out and no one asked for a start since."""
        return self.failed_serial == self.vm.start_serial

    @property
    def moved(self) -> bool:
        """It left by a migration that no one told Chime of, and no one asked for a start since."""
        return self.moved_serial == self.vm.start_serial

    @property
    def leaving(self) -> bool:
        """An attempt to migrate it away has begun and is not decided: whether it is here is not known."""
        return self.attempt is not None and self.attempt.phase == MigrationPhase.LEAVING

    def assigned(self, vm: Assignment) -> Held:
        """The same VM as the server wants it now, without a release in between: what happened to it counts, also in
        another epoch. Another start request clears what ended it."""
        same = vm.epoch == self.vm.epoch
        now = msgspec.structs.replace(
            self, vm=vm, restarts=self.restarts if same else 0, named=True, declined=self.declined and same
        )
        if vm.start_serial == self.vm.start_serial:
            return now
        return msgspec.structs.replace(now, halted_serial=-1, failed_serial=-1, started_serial=-1, detail="")


class Tombstone(Struct, frozen=True, kw_only=True):
    """A release: this node may never run the VM in `epoch` or below. `done`: domain and process are gone.
    `acked`: the server has recorded that. `keep`: the VM was given back: only our metadata has to be gone. `left_to`:
    the node or address to which it had left when the release came; the server may not have heard of that. `seal`: of
    the assignment that it ended: a restored server may not know that this node had the VM."""

    epoch: int
    done: bool = False
    acked: bool = False
    keep: bool = False
    left_to: str = ""
    seal: str = ""


class Journaled(Struct, frozen=True, kw_only=True):
    """A command that was begun; `result` is None until its outcome is known. `acked`: the server has recorded it."""

    uuid: str
    result: CommandResult | None = None
    acked: bool = False


class Durable(Struct, frozen=True, kw_only=True):
    """Everything the agent must still know after a crash. `generation`, `history`, `life`, `revision` and `seal` say
    where the newest inventory stands that was applied. `put_back`: this state is older than what this boot has seen."""

    node: str
    generation: int = 0
    history: str = ""
    life: str = ""
    revision: int = 0
    seal: str = ""
    confirmed_boot: str = ""
    put_back: bool = False
    order: NodeOrder = NodeOrder(admin_state=AdminState.ENABLED, drain_serial=0)
    local_drain: bool = False
    local_drain_graceful_s: float = 60.0
    held: dict[str, Held] = {}
    tombstones: dict[str, Tombstone] = {}
    left: dict[str, Left] = {}
    journal: dict[str, Journaled] = {}

    @property
    def newest(self) -> Point | None:
        """Where the newest inventory stands, for the server; None if a server of an earlier version gave it."""
        if not self.seal:
            return None
        return Point(
            history=self.history, generation=self.generation, life=self.life, revision=self.revision, seal=self.seal
        )

    @property
    def drained(self) -> bool:
        """No VM may run here: the server says so, or an operator said so on the node."""
        return self.local_drain or self.order.admin_state == AdminState.DRAINED

    @property
    def graceful_drain_s(self) -> float:
        """How long guests get to power off in a drain."""
        if self.order.admin_state == AdminState.DRAINED:
            return self.order.drain_graceful_s
        return self.local_drain_graceful_s

    def highest_epoch(self, uuid: str) -> int:
        """The highest epoch of the VM that this node ever held or was told to release; 0: none."""
        held, tombstone = self.held.get(uuid), self.tombstones.get(uuid)
        return max(held.vm.epoch if held else 0, tombstone.epoch if tombstone else 0)

    def with_held(self, held: Held) -> Durable:
        """A copy with `held` added or replaced."""
        return msgspec.structs.replace(self, held={**self.held, held.vm.uuid: held})

    def without_held(self, uuid: str) -> Durable:
        """A copy that does not own the VM."""
        return msgspec.structs.replace(self, held={k: v for k, v in self.held.items() if k != uuid})

    def with_tombstone(self, uuid: str, tombstone: Tombstone) -> Durable:
        """A copy with the tombstone added or replaced."""
        return msgspec.structs.replace(self, tombstones={**self.tombstones, uuid: tombstone})

    def with_left(self, uuid: str, left: Left) -> Durable:
        """A copy with the VM that has left added or replaced."""
        return msgspec.structs.replace(self, left={**self.left, uuid: left})

    def without_left(self, uuid: str) -> Durable:
        """A copy in which no more is to be said of how the VM left."""
        return msgspec.structs.replace(self, left={k: v for k, v in self.left.items() if k != uuid})

    def with_journal(self, command_id: str, entry: Journaled) -> Durable:
        """A copy with the command begun or ended. Beyond a bound the oldest are dropped whose result is recorded by the
        server: no other, since it would be carried out again."""
        journal = {**self.journal, command_id: entry}
        settled = [key for key, value in journal.items() if value.acked]
        for key in settled[: max(0, len(journal) - MAX_JOURNAL)]:
            del journal[key]
        return msgspec.structs.replace(self, journal=journal)
