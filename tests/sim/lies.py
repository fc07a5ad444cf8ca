"""What a liar says: words at random, and those that scenarios name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.fakes.names import address_of, uuid_of
from wire import messages as m
from wire.types import MigrationPhase, Observed, Outcome, Severity

if TYPE_CHECKING:
    from tests.sim.liar import Liar

ODD_ADDRESSES = ("::::", "0.0.0.0", "255.255.255.255", "::1", "127.0.0.1", "1.2.3", "fe80::1", "10.0.0.0")


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
    addresses = [*map(address_of, liar.hosts), *ODD_ADDRESSES]
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
        fields["node"] = rng.choice(liar.hosts)
    if rng.random() < 0.3:
        fields["boot_id"] = uuid_of(f"boot-{rng.randint(1, 5)}")
    if rng.random() < 0.1:
        fields["versions"] = (0, 7)
    return liar.hello(**fields)


def _heartbeats(liar: Liar) -> m.Base:
    rng = liar.rng
    faults = tuple(m.Fault(code=code, severity=rng.choice(list(Severity))) for code in ("agent-lost", "server-behind"))
    return liar.heartbeat(seq=rng.choice((1, liar.seq, 2**53)), revision=rng.choice((0, 10**9, 2**53)),
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
    name, key, node = vm.name if vm else "x", liar.nonce(), rng.choice(liar.hosts)
    return rng.choice((
        m.VmDelete(key=key, vm=name), m.VmStop(key=key, vm=name, force=True), m.NodeDrain(key=key, name=node),
        m.RecoveryConfirm(key=key, comment="a lie"), m.NodeRemove(key=key, name=node),
    ))  # fmt: skip


def _old_frames(liar: Liar) -> bytes:
    return liar.rng.choice(liar.said) if liar.said else b""


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
    uuid = uuid_of(vm)
    return liar.report(m.VmReport(uuid=uuid, epoch=epoch, revision=1, observed=Observed.RUNNING, name=vm))


def says_of_attempt(liar: Liar, vm: str, phase: MigrationPhase, attempt: str, epoch: int) -> m.Base:
    """A word of his about an attempt of the VM in that epoch."""
    uuid = uuid_of(vm)
    observed = Observed.RUNNING if phase == MigrationPhase.ARRIVED else Observed.STOPPED
    said = m.MigrationReport(attempt=attempt, phase=phase, peer=address_of(liar.node))
    return liar.report(m.VmReport(uuid=uuid, epoch=epoch, revision=0, observed=observed, name=vm, migration=said))

