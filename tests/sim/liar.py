"""Who has the key of a registered node, and says with it whatever he likes, in real frames: one bad node.

He knows all that the server knows, and what a root of that host can do to the frames of its agent he does. He lies in
answer to nothing and without end. What he cannot do is speak with another's key, or make a seal. Rules: his randomness
is his own, so that a run without his lies is the same; what he says of the VMs that are his own is nobody's business
(`trust`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tests.fakes.names import address_of, uuid_of
from tests.sim.story import in_words, is_noise
from wire import codec
from wire import messages as m
from wire.errors import ChimeError
from wire.types import MigrationPhase, Observed, Outcome, Severity

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.host import Host

BEAT_S = 5.0
AGAIN_S = 6.0
HELLO_S = (0.2, 3.0)
GAPS_S = ((0.0, 0.05), (0.05, 1.0), (1.0, 10.0))
REMEMBERED = 50  # frames that he may say again
ODD_ADDRESSES = ("::::", "0.0.0.0", "255.255.255.255", "::1", "127.0.0.1", "1.2.3", "fe80::1", "10.0.0.0")
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
        self._nonces = self._seq = self._report_seq = self._greetings = 0
        self._said: list[bytes] = []
        self.seals: list[str] = []
        self.points: list[dict[str, Any]] = []
        if not beside:
            self._socket = cluster.network.open(host.name, host.key, self._on_frame, self._greet_soon)
            self._greet_soon()
            self._beat()

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
        self._seq += 1
        values: dict[str, Any] = {"session": self.session, "seq": self._seq, "nonce": self.nonce(),
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
            self.session, self._seq, self._report_seq = body.session, 0, 0
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
        self._said = [*self._said, frame][-REMEMBERED:]
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
            lie: Callable[[Liar], m.Base | bytes] = self.rng.choices(lies, weights)[0]
            self.say(lie(self))
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


def _point(liar: Liar) -> dict[str, Any]:
    """An inventory that he has, an old one, or one that nobody gave him."""
    rng = liar.rng
    invented = {"history": "h", "generation": 1, "life": "l", "revision": 1, "seal": "0" * 32}
    point = rng.choice([*liar.points, invented])
    lies = ({}, {"revision": point["revision"] + 5}, {"generation": point["generation"] + 1}, {"history": "another"},
            {"life": "another"}, {"revision": 2**53, "seal": ""})  # fmt: skip
    return {**point, **rng.choice(lies)}


def _reports(liar: Liar) -> m.Base:
    rng = liar.rng
    return liar.report(*(liar.vm_report() for _ in range(rng.choice((1, 1, 2, 5)))), full=rng.random() < 0.4)


def _releases(liar: Liar) -> m.Base:
    row, vm = liar.any_row("releases"), liar.any_row("vms")
    uuid, epoch = (row.uuid, row.epoch) if row is not None else (vm.uuid if vm else uuid_of("x"), 1)
    return liar.report(released=(m.Release(uuid=uuid, epoch=epoch, left_to=liar.rng.choice(("", liar.peer()))),))


def _results(liar: Liar) -> m.Base:
    row = liar.any_row("commands")
    result = m.CommandResult(id=row.id if row is not None else "invented", outcome=liar.rng.choice(list(Outcome)))
    return liar.report(results=(result,))


def _drains(liar: Liar) -> m.Base:
    node, rng = liar.any_row("nodes"), liar.rng
    serial = rng.choice((node.drain_serial, 1, 10**6)) if node is not None else 1
    boot_id = rng.choice((liar.hello().boot_id, uuid_of("other-boot")))
    proof = m.DrainProof(drain_serial=serial, clean=rng.random() < 0.8, boot_id=boot_id)
    return liar.report(drain=proof, local_drain=rng.random() < 0.3)


def _events(liar: Liar) -> m.Base:
    vm, rng = liar.any_row("vms"), liar.rng
    codes = ("vm-stopped", "vm-moved", "node-drained", "vm-crashed")
    uuid = vm.uuid if vm is not None else None
    events = [
        m.AgentEvent(id=f"e{rng.randint(1, 9)}", code=rng.choice(codes), uuid=uuid, text="a lie")
        for _ in range(rng.choice((1, 5, 50)))
    ]
    return liar.report(events=tuple(events))


def _hellos(liar: Liar) -> m.Base:
    rng = liar.rng
    addresses = [*map(address_of, sorted(liar._cluster.hosts)), *ODD_ADDRESSES]
    networks = tuple(
        m.HostNetwork(interface="eth0", address=rng.choice(addresses), prefix=rng.choice((0, 8, 32, 128)))
        for _ in range(rng.choice((1, 2, 5)))
    )
    host = m.HostFacts(hostname="x", vcpus=rng.choice((0, 64, 2**53)), memory_mib=rng.choice((0, 131_072, 2**53)),
                       networks=networks, business_interface=rng.choice(("", "eth0")))  # fmt: skip
    fields: dict[str, Any] = {"host": host}
    if "newest" in m.Hello.__struct_fields__ and rng.random() < 0.5:
        fields["newest"] = m.Point(**_point(liar))
    if rng.random() < 0.2:
        fields["node"] = rng.choice(sorted(liar._cluster.hosts))
    if rng.random() < 0.3:
        fields["boot_id"] = uuid_of(f"boot-{rng.randint(1, 5)}")
    if rng.random() < 0.1:
        fields["versions"] = (0, 7)
    return liar.hello(**fields)


def _heartbeats(liar: Liar) -> m.Base:
    rng = liar.rng
    faults = tuple(m.Fault(code=code, severity=rng.choice(list(Severity))) for code in ("agent-lost", "server-behind"))
    return liar.heartbeat(seq=rng.choice((1, liar._seq, 2**53)), revision=rng.choice((0, 10**9, 2**53)),
                          faults=rng.choice(((), faults)), session=rng.choice((liar.session, "another")))  # fmt: skip


def _pulls(liar: Liar) -> m.Base:
    since = liar.rng.choice((0, 1, 10**9))
    return m.Pull(session=liar.session or "none", nonce=liar.nonce(), since=since)


def _surveys(liar: Liar) -> m.Base:
    vm = liar.any_row("vms")
    foreign = m.ForeignVm(uuid=vm.uuid if vm else uuid_of("x"), name="odd", observed=Observed.RUNNING, xml="<domain/>")
    return m.Surveyed(session=liar.session or "none", nonce=liar.nonce(), vms=(foreign,), more=liar.rng.random() < 0.5)


def _orders(liar: Liar) -> m.Base:
    """What is an operator's."""
    vm, rng = liar.any_row("vms"), liar.rng
    name, key, node = vm.name if vm else "x", liar.nonce(), rng.choice(sorted(liar._cluster.hosts))
    return rng.choice((
        m.VmDelete(key=key, vm=name), m.VmStop(key=key, vm=name, force=True), m.NodeDrain(key=key, name=node),
        m.RecoveryConfirm(key=key, comment="a lie"), m.NodeRemove(key=key, name=node),
    ))  # fmt: skip


def _old_frames(liar: Liar) -> bytes:
    return liar.rng.choice(liar._said) if liar._said else b""


def _wrong_session(liar: Liar) -> m.Base:
    return liar.report(liar.vm_report(), session=liar.rng.choice(("another", "s1", liar.nonce())))


def _wrong_generation(liar: Liar) -> m.Base:
    return liar.report(liar.vm_report(), generation=liar.rng.choice((0, 1, 2, 3, 2**53)), revision=2**53)


def _noise(liar: Liar) -> bytes:
    frame = bytearray(_old_frames(liar))
    for _ in range(liar.rng.randint(1, 5)):
        if frame:
            frame[liar.rng.randrange(len(frame))] = liar.rng.randrange(256)
    return bytes(frame[: liar.rng.choice((len(frame), len(frame) // 2))])


LIES: list[tuple[Callable[[Liar], m.Base | bytes], float]] = [
    (_reports, 12), (_releases, 2), (_results, 2), (_drains, 2), (_events, 1), (_hellos, 1.5), (_heartbeats, 1),
    (_pulls, 1), (_surveys, 1), (_orders, 1), (_old_frames, 2), (_wrong_session, 1), (_wrong_generation, 1),
    (_noise, 1),
]  # fmt: skip
"""What he says, and how often."""


def runs(liar: Liar, vm: str, epoch: int) -> m.Base:
    """That the VM runs on his node in that epoch."""
    uuid = liar._cluster.uuid(vm)
    return liar.report(m.VmReport(uuid=uuid, epoch=epoch, revision=1, observed=Observed.RUNNING, name=vm))


def says_of_attempt(liar: Liar, vm: str, phase: MigrationPhase, attempt: str, epoch: int) -> m.Base:
    """A word of his about an attempt of the VM in that epoch."""
    uuid = liar._cluster.uuid(vm)
    observed = Observed.RUNNING if phase == MigrationPhase.ARRIVED else Observed.STOPPED
    said = m.MigrationReport(attempt=attempt, phase=phase, peer=address_of(liar._host.name))
    return liar.report(m.VmReport(uuid=uuid, epoch=epoch, revision=0, observed=observed, name=vm, migration=said))

