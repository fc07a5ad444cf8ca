"""Who has the key of a registered node, and says with it whatever he likes, in real frames: one bad node.

He knows all that the server knows, and what a root of that host can do to the frames of its agent he does. He lies in
answer to nothing and without end. What he cannot do is speak with another's key, or make a seal. Rules: his randomness
is his own, so that a run without his lies is the same; what he says of the VMs that are his own is nobody's business
(`trust`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from tests.fakes.names import address_of, uuid_of
from tests.sim.lies import LIES, ODD_ADDRESSES
from tests.sim.story import in_words, is_noise
from wire import codec
from wire import messages as m
from wire.errors import ChimeError
from wire.types import MigrationPhase, Observed

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.host import Host

BEAT_S = 5.0
AGAIN_S = 6.0
HELLO_S = (0.2, 3.0)
GAPS_S = ((0.0, 0.05), (0.05, 1.0), (1.0, 10.0))
REMEMBERED = 50  # frames that he may say again
ODD_EPOCHS = (0, 1, 10**9, 10**9 + 1, 5 * 10**9, 2**53)
ODD_PROBLEMS = ("", "", "migrated-away", "stale-epoch", "disk-missing", "\u00fc")


class Liar:
    """Speaks with the key of `host`: instead of its agent, or `beside` it, over its connection and in its session."""

    def __init__(self, cluster: Cluster, host: Host, beside: bool = False) -> None:
        self._cluster, self._host, self.beside = cluster, host, beside
        self._engine = cluster.engine
        self.rng = random.Random(f"lies of {host.name} in {self._engine.seed}")
        self.session = ""
        self.at_random = False
        self._nonces = self.seq = self._report_seq = self._greetings = 0
        self.said: list[bytes] = []
        self.seals: list[str] = []
        self.points: list[dict[str, Any]] = []
        if not beside:
            self._socket = cluster.network.open(host.name, host.key, self._on_frame, self._greet_soon)
            self._greet_soon()
            self._beat()

    @property
    def node(self) -> str:
        """Whose key he has."""
        return self._host.name

    @property
    def hosts(self) -> list[str]:
        """All hosts that there are."""
        return sorted(self._cluster.hosts)

    # --- his session --------------------------------------------------------------------------------------------------

    def nonce(self) -> str:
        """A new one."""
        self._nonces += 1
        return f"{self._host.name}-liar-{self._nonces}"

    def _greet_soon(self) -> None:
        self.session = ""
        self._greetings += 1
        self._engine.after(self.rng.uniform(*HELLO_S), self._greet, self._greetings)

    def _greet(self, greeting: int) -> None:
        if not self.session and greeting == self._greetings:
            self.say(self.hello())
            self._engine.after(AGAIN_S, self._greet, greeting)

    def hello(self, **fields: Any) -> m.Hello:
        """A proper one."""
        facts = m.HostFacts(hostname=self._host.name, vcpus=64, memory_mib=131_072)
        values: dict[str, Any] = {"versions": (1,), "node": self._host.name, "boot_id": self._host.boot_id,
                                  "incarnation": "liar", "nonce": self.nonce(), "host": facts}  # fmt: skip
        return m.Hello(**{**values, **fields})

    def _beat(self) -> None:
        if self.session:
            self.say(self.heartbeat())
        self._engine.after(BEAT_S, self._beat)

    def heartbeat(self, **fields: Any) -> m.Heartbeat:
        """A proper one."""
        self.seq += 1
        values: dict[str, Any] = {"session": self.session, "seq": self.seq, "nonce": self.nonce(),
                                  "boot_id": self._host.boot_id, "incarnation": "liar", "revision": 1,
                                  "digest": ""}  # fmt: skip
        return m.Heartbeat(**{**values, **fields})

    def report(self, *vms: m.VmReport, full: bool = False, **fields: Any) -> m.Report:
        """In his session, newer than all that he has reported."""
        self._report_seq += 1
        meta: Any = self.tables["meta"][()]
        values: dict[str, Any] = {"session": self.session, "seq": self._report_seq, "revision": 1, "full": full,
                                  "generation": meta.generation, "digest": "", "vms": vms}  # fmt: skip
        return m.Report(**{**values, **fields})

    def _on_frame(self, frame: bytes) -> None:
        _, _, body = codec.decode(frame)
        if self._engine.story.on and not is_noise(body):
            self._host.tell(f"liar <- {in_words(body)}")
        if isinstance(body, m.Welcome):
            self.session, self.seq, self._report_seq = body.session, 0, 0
            self.say(self.report(full=True))
        elif isinstance(body, m.ErrorBody) and body.code == "stale-session":
            self._greet_soon()
        elif isinstance(body, m.Inventory):
            self._note(body)

    def _note(self, body: m.Inventory) -> None:
        """What proves something, to be shown where it proves nothing."""
        self.seals = [*self.seals, *(seal for vm in body.vms if (seal := getattr(vm, "seal", "")))][-REMEMBERED:]
        if getattr(body, "seal", ""):
            point = {name: getattr(body, name) for name in ("history", "generation", "life", "revision", "seal")}
            self.points = [*self.points, point][-REMEMBERED:]

    # --- speaking -----------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[str, dict[Any, Any]]:
        """What the server has recorded: he knows it all."""
        return self._cluster.server.disk.tables

    def say(self, body: m.Base | bytes) -> None:
        """One frame, whatever is in it."""
        if isinstance(body, bytes):
            self._send(body)
            return
        if self._engine.story.on and not is_noise(body):
            self._host.tell(f"liar -> {in_words(body)}")
        try:
            frame = codec.encode(body, self.nonce())
        except ChimeError:
            return  # too large
        self.said = [*self.said, frame][-REMEMBERED:]
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        if not self.beside:
            self._cluster.network.send_up(self._socket, frame)
        elif self._host.agent is not None:
            self._host.agent.smuggle(frame)

    # --- lies without end ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on he says anything at any time."""
        if not self.at_random:
            self.at_random = True
            self._lie()

    def _lie(self) -> None:
        if self.beside and self._host.agent is not None:
            self.session = self._host.agent.core.link.session
            self._report_seq = self.rng.choice((self._report_seq, 10**6))
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            lies, weights = zip(*LIES, strict=True)
            self.say(self.rng.choices(lies, weights)[0](self))
        self._engine.after(self.rng.uniform(*self.rng.choice(GAPS_S)), self._lie)

    # --- what he may say ----------------------------------------------------------------------------------------------

    def any_row(self, table: str) -> Any:
        """A row, or None where there is none."""
        rows = sorted(self.tables[table].items(), key=lambda item: str(item[0]))
        return self.rng.choice(rows)[1] if rows else None

    def peer(self) -> str:
        """Another node's name or address, or an odd one."""
        name = self.rng.choice(sorted(self._cluster.hosts))
        own = address_of(self._host.name)
        return self.rng.choice((name, address_of(name), address_of(name), own, *ODD_ADDRESSES[:2]))

    def attempt(self, uuid: str) -> str:
        """The id of an attempt: the open one of the VM, one of another, one that is over, or an invented one."""
        own, vm = self.tables["migrations"].get((uuid,)), self.tables["vms"].get((uuid,))
        other = self.any_row("migrations")
        known = [row.attempt for row in (own, own, other) if row is not None]
        known += [text for text in (vm.arrival, vm.attempt, vm.doubt, vm.failed) if text] if vm is not None else []
        return self.rng.choice([*known, "invented-1"])

    def migration(self, uuid: str) -> m.MigrationReport | None:
        """A word about an attempt."""
        if self.rng.random() < 0.35:
            return None
        return m.MigrationReport(**self.filled(m.MigrationReport, {
            "attempt": self.attempt(uuid), "phase": self.rng.choice(list(MigrationPhase)), "peer": self.peer(),
        }))  # fmt: skip

    def vm_report(self) -> m.VmReport:
        """A word about a VM, mostly another's."""
        vm, rng = self.any_row("vms"), self.rng
        if vm is None or rng.random() < 0.05:
            uuid, epoch, revision, serial, name = uuid_of(f"invented{rng.randint(1, 5)}"), 1, 1, 1, "invented"
        else:
            uuid, epoch, revision, serial, name = vm.uuid, vm.epoch, vm.revision, vm.start_serial, vm.name
        return m.VmReport(**self.filled(m.VmReport, {
            "uuid": uuid, "name": rng.choice((name, name, "")),
            "epoch": rng.choice((epoch, epoch, epoch + 1, epoch + 1, epoch + 2, max(0, epoch - 1), *ODD_EPOCHS[:4],
                                 rng.choice(ODD_EPOCHS))),
            "revision": rng.choice((0, 0, 1, revision, 10**6)),
            "observed": rng.choice((Observed.RUNNING, Observed.RUNNING, *Observed)),
            "start_serial": rng.choice((serial, 0, 10**6)), "halted": rng.random() < 0.2,
            "problem": rng.choice(ODD_PROBLEMS), "migration": self.migration(uuid),
        }))  # fmt: skip

    def filled(self, kind: type[m.Base], values: dict[str, Any]) -> dict[str, Any]:
        """With what he has for the fields that prove something: a seal of something else, or none."""
        proofs = {"seal": self.seals, "voucher": self.seals, "address": [address_of(self._host.name)]}
        for field in msgspec.structs.fields(kind):
            if field.name in proofs and field.name not in values:
                values[field.name] = self.rng.choice([*proofs[field.name], "", "0" * 32])
        return values
