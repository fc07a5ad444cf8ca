"""Whatever happens in whatever order: the invariants of `World` hold at every step, and when faults stop everything
that should run runs once, everything else does not, and the server knows."""

from __future__ import annotations

import copy
import random

import pytest

from agentd.core import effects as fx
from agentd.core.durable import Durable
from agentd.core.facts import DomainState
from tests.unit.agent.server import VM_1, VM_2, VM_3, Server, assignment
from tests.unit.agent.world import World
from wire import messages as m
from wire.types import AdminState, Desired, Observed, OnGuestShutdown

VMS = (VM_1, VM_2, VM_3)


class Chaos:
    """Throws one random thing after another at a node."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(seed)
        self.epochs = dict.fromkeys(VMS, 0)
        self.commands = 0
        self.old: list[Durable] = []  # states that may be put back
        self.past: list[Server] = []  # of which a second one may answer
        self.unnamed: set[str] = set()  # the server has forgotten them, and has no release for them
        self.world.start_agent()
        self.world.mangle = self.mangle

    def mangle(self, _body: m.Base) -> int:
        return self.rng.choices((0, 1, 2), (1, 12, 2))[0]

    def step(self) -> None:
        name = self.rng.choice([name for name in dir(self) if name.startswith("do_")])
        getattr(self, name)(self.rng.choice(VMS))
        if self.rng.random() < 0.7:
            self.world.poke()
        self.world.run(self.rng.choice((0.001, 0.01, 0.06, 0.3, 2.0, 20.0)))

    def alive(self, uuid: str) -> bool:
        domain = self.world.hv.domains.get(uuid)
        return domain is not None and domain.state != DomainState.OFF

    def do_assign(self, uuid: str) -> None:
        if uuid not in self.world.server.vms:
            self.epochs[uuid] += 1
            self.world.server.assign(assignment(uuid, epoch=self.epochs[uuid], graceful_s=5.0))

    def do_release(self, uuid: str) -> None:
        if uuid in self.world.server.vms:
            self.world.server.release(uuid, self.epochs[uuid])

    def do_stop(self, uuid: str) -> None:
        if uuid in self.world.server.vms:
            self.world.server.change(uuid, desired=Desired.STOPPED, graceful_s=self.rng.choice((0.0, 5.0)))

    def do_begin(self, uuid: str) -> None:
        if uuid in self.world.server.vms:
            self.world.server.begin(uuid)

    def do_policy(self, uuid: str) -> None:
        if uuid in self.world.server.vms:
            self.world.server.on_guest_shutdown(uuid, self.rng.choice(list(OnGuestShutdown)))

    def do_drain(self, _uuid: str) -> None:
        self.world.server.drain(self.rng.choice((0.0, 5.0)))

    def do_enable(self, _uuid: str) -> None:
        self.world.server.enable()

    def do_command(self, uuid: str) -> None:
        self.commands += 1
        self.world.server.command(f"c{self.commands}", uuid, epoch=self.epochs[uuid])

    def do_kill(self, uuid: str) -> None:
        if self.alive(uuid):
            self.world.hv.kill(uuid)

    def do_sigterm(self, uuid: str) -> None:
        if self.alive(uuid):
            self.world.hv.host_sigterm(uuid)

    def do_guest_off(self, uuid: str) -> None:
        if self.alive(uuid):
            self.world.hv.guest_shutdown(uuid)

    def do_disobey(self, uuid: str) -> None:
        if uuid in self.world.hv.domains:
            self.world.hv.domains[uuid].obeys = self.rng.random() < 0.5

    def do_undefine(self, uuid: str) -> None:
        if uuid in self.world.hv.domains:
            self.world.hv.person_undefine(uuid)

    def do_fail(self, _uuid: str) -> None:
        self.world.hv.fail_next(self.rng.choice(("start", "define", "destroy", "shutdown", "undefine", "scan")))

    def do_crash(self, _uuid: str) -> None:
        self.world.kill_after = self.world.effects + self.rng.randrange(1, 8)

    def do_restart(self, _uuid: str) -> None:
        self.world.restart_agent()

    def do_power(self, _uuid: str) -> None:
        self.world.power_loss()
        self.world.start_agent()

    def do_disk(self, _uuid: str) -> None:
        self.world.disk_full = not self.world.disk_full

    def do_network(self, _uuid: str) -> None:
        self.world.network_down = not self.world.network_down

    def do_hang(self, _uuid: str) -> None:
        if self.world.hung:
            self.world.unhang()
        else:
            self.world.hung = True

    def do_lose(self, _uuid: str) -> None:
        self.world.hv.lose()
        self.world.run(self.rng.choice((0.1, 5.0)))
        self.world.hv.restore()

    def do_local_drain(self, _uuid: str) -> None:
        if self.rng.random() < 0.3:
            self.world.give(fx.Asked(1, "drain", self.rng.choice((0.0, 5.0))))

    # --- time that does not run forward -------------------------------------------------------------------

    def do_keep(self, _uuid: str) -> None:
        self.old.append(self.world.saved)
        self.past.append(copy.deepcopy(self.world.server))

    def do_put_back(self, _uuid: str) -> None:
        """An older state of this boot, which is known for what it is."""
        if self.old:
            self.world.put_back(self.rng.choice(self.old))

    def do_older_server(self, _uuid: str) -> None:
        """A second server answers for a while, of then or of another line; what it had the node follow makes the first
        one recover."""
        if not self.past:
            return
        real, other = self.world.server, copy.deepcopy(self.rng.choice(self.past))
        other.session, other._sessions = "of another", other._sessions + 1000
        if self.rng.random() < 0.5:
            other.history += "-fork"
        self.world.server = other
        self.world.run(self.rng.choice((1.0, 20.0, 90.0)))
        self.world.server = real
        real.session = ""
        saved = self.world.saved
        if (saved.generation, saved.history) != (real.generation, real.history) or saved.revision > real.revision:
            real.recover(above=saved.generation)

    def do_recover(self, _uuid: str) -> None:
        self.world.server.recover()
        self.world.server.session = ""

    def do_hold(self, _uuid: str) -> None:
        self.world.server.hold(self.rng.random() < 0.5)

    def do_hold_vm(self, uuid: str) -> None:
        if uuid in self.world.server.vms:
            self.world.server.change(uuid, hold=self.rng.random() < 0.5)

    def do_forget(self, uuid: str) -> None:
        """A database that was restored does not know it."""
        if uuid in self.world.server.vms and self.rng.random() < 0.3:
            del self.world.server.vms[uuid]
            self.unnamed.add(uuid)
            self.do_recover(uuid)

    def end_faults(self) -> None:
        world = self.world
        world.server.hold(False)
        for uuid in self.unnamed - world.server.vms.keys():
            world.server.release(uuid, self.epochs[uuid])
        world.disk_full = world.network_down = False
        world.mangle = lambda body: 1
        world.hv._failures.clear()
        world.unhang()
        world.kill_after = None
        for domain in world.hv.domains.values():
            domain.obeys = True
        for uuid in list(world.server.vms):
            world.server.change(uuid, hold=False)
            if world.server.vms[uuid].desired == Desired.RUNNING:
                world.server.begin(uuid)  # clears what a guest or the budget ended

    def settled(self) -> bool:
        world = self.world
        server = world.server
        drained = server.order.admin_state == AdminState.DRAINED or world.saved.local_drain
        for uuid in VMS:
            vm = server.vms.get(uuid)
            should = vm is not None and vm.desired == Desired.RUNNING and not drained
            if world.runs(uuid) != should:
                return False
            report = server.reports.get(uuid)
            if vm is not None and (
                report is None or (report.observed == Observed.RUNNING) != should or report.revision != vm.revision
            ):
                return False
        proof = server.proof
        proven = proof is not None and proof.clean and proof.drain_serial == server.order.drain_serial
        return not server.releases and not server.commands and (not drained or proven)


@pytest.mark.parametrize("seed", [*range(40), 1479])
def test_invariants_hold_under_chaos_and_everything_converges_afterwards(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(120):
        chaos.step()
    chaos.end_faults()
    took = chaos.world.run_until(chaos.settled, limit_s=150.0)
    assert took < 90.0 + 60.0  # L1, and the back-off of the session after a long loss
    assert len(chaos.world.reboots) <= chaos.commands
    ended = len(chaos.world.starts)
    chaos.world.run(300.0)
    assert chaos.settled() and len(chaos.world.starts) == ended
