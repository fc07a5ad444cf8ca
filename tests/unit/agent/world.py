"""A node in memory around the real `AgentCore`: the fake hypervisor, a disk, a server, a network and a clock that moves
only when told. Effects are executed as `agentd/daemon.py` does it, and VMs are acted upon by `agentd/acting.py`; the
invariants of design.md section 2 that concern one node are checked after every event. No I/O, no real time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable

import msgspec

from agentd import acting
from agentd.core import effects as fx
from agentd.core.agent import AgentCore, AgentPolicy
from agentd.core.budget import RestartPolicy
from agentd.core.durable import Durable
from agentd.core.facts import DomainState, Lifecycle, VmFacts
from agentd.core.link import LinkState
from agentd.hypervisor import HypervisorError
from agentd.snapshot import aged
from tests.fakes.hypervisor import FakeHypervisor, Move
from tests.unit.agent.checked import CheckedHypervisor
from tests.unit.agent.server import Server
from wire import codec
from wire import messages as m

BOOT_1 = "00000000-0000-4000-8000-00000000b001"
BOOT_2 = "00000000-0000-4000-8000-00000000b002"
POLICY = AgentPolicy(audit_s=60.0, settle_s=5.0, restart=RestartPolicy(1.0, 60.0, 5, 600.0))
PEER = "10.0.0.2"
ACT_S, SCAN_S, NET_S, HEAR_S = 0.05, 0.05, 0.01, 0.002
OVERDUE_S = 10.0
MAX_TICKS_AT_ONCE = 40


def _late(what: str, uuid: str) -> fx.Overdue:
    return fx.Overdue(fx.Call.ACT, f"{what} {uuid}", uuid)


class KilledError(Exception):
    """The agent dies here."""


class World:
    """One node. `core` is None while no agent runs."""

    def __init__(self, seed: int = 1, files: Iterable[str] | None = None, server: Server | None = None) -> None:
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.hv = FakeHypervisor(files)
        self.peer = FakeHypervisor(files)  # another node, where VMs go and come from
        self.peer.connect(lambda event: None, lambda why: None)
        self.hv.peers[PEER] = self.peer
        self.peer.peers["10.0.0.1"] = self.hv
        self.transfer_s = 2.0  # how long a migration takes
        self.migrations: list[tuple[str, str]] = []
        self.resumes: list[str] = []
        self.hand_overs: list[str] = []
        self.server = server or Server()
        self.saved = Durable(node="n1")
        self.boot_id = BOOT_1
        self.core: AgentCore | None = None
        self.disk_full = self.network_down = self.hung = False
        self.mangle: Callable[[m.Base], int] = lambda body: 1  # how often an answer of the server arrives
        self.kill_after: int | None = None  # die after that many effects
        self.effects = 0
        self.starts: list[str] = []
        self.reboots: list[str] = []
        self.answers: list[dict[str, object]] = []
        self.sent: list[tuple[float, m.Base]] = []
        self.logs: list[str] = []
        self.ticks = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._stuck: list[Callable[[], None]] = []
        self._count = 0
        self._life = 0
        self._connection = 0
        self._ticks_at: tuple[float, int] = (0.0, 0)
        self._epochs: dict[str, int] = {}

    # --- life and death -----------------------------------------------------------------------------------

    def start_agent(self) -> None:
        self._life += 1
        self._connection += 1
        incarnation = f"life{self._life}"
        self.core = AgentCore(self.saved, self.boot_id, incarnation, POLICY, self.rng, self.now)

    def kill_agent(self) -> None:
        self.core = None
        self._life += 1
        self._connection += 1
        self.hv.close()

    def restart_agent(self) -> None:
        self.kill_agent()
        self.start_agent()

    def power_loss(self) -> None:
        self.kill_agent()
        self.hv.power_loss()
        self.boot_id = BOOT_2 if self.boot_id == BOOT_1 else BOOT_1
        self._queue.clear()
        self._stuck.clear()

    def put_back(self, saved: Durable) -> str:
        """The state of then takes the place of the snapshot, and the agent starts; returns what it says of that."""
        self.kill_agent()
        self.saved, why = aged(saved, 1, 2)
        self._epochs.clear()
        self.server.results.clear()  # what became of commands is not known any more
        self.start_agent()
        return why

    @property
    def agent(self) -> AgentCore:
        assert self.core is not None
        return self.core

    # --- time ---------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> None:
        """Lets everything happen that is due in the next seconds; ticks only when `next_deadline` says so."""
        end = self.now + duration_s
        while True:
            due = self._queue[0][0] if self._queue else float("inf")
            deadline = self.core.next_deadline() if self.core else float("inf")
            at = max(self.now, min(due, deadline))
            if at > end:
                self.now = end
                return
            self.now = at
            if due <= at:
                _, _, action = heapq.heappop(self._queue)
                action()
            else:
                self._tick()

    def run_until(self, condition: Callable[[], bool], limit_s: float = 120.0) -> float:
        """Runs until the condition holds; returns the seconds it took."""
        began = self.now
        while not condition():
            assert self.now - began < limit_s, f"not within {limit_s} s; log: {self.logs[-12:]}"
            self.run(0.05)
        return self.now - began

    def _tick(self) -> None:
        at, count = self._ticks_at
        self._ticks_at = (self.now, count + 1 if at == self.now else 1)
        assert self._ticks_at[1] < MAX_TICKS_AT_ONCE, "the core spins: next_deadline lies in the past"
        self.ticks += 1
        self.give(fx.Tick())

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def tell(self, delay_s: float, event: fx.Event) -> None:
        """The event reaches this life of the agent later."""
        life = self._life
        self.later(delay_s, lambda: self.give(event) if life == self._life and self.core else None)

    # --- the shell ----------------------------------------------------------------------------------------

    def give(self, event: fx.Event) -> None:
        try:
            self._do(self.agent.handle(event, self.now))
        except KilledError:
            self.restart_agent()
        self.check()

    def _do(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Save):
                self._do(self.agent.handle(self._save(effect), self.now))
            else:
                self._do_one(effect)
            self.effects += 1
            if self.kill_after is not None and self.effects >= self.kill_after:
                self.kill_after = None
                raise KilledError

    def _save(self, effect: fx.Save) -> fx.Event:
        if self.disk_full:
            return fx.SaveFailed("no space left on device")
        for uuid in {*self.saved.held, *self.saved.tombstones}:
            assert effect.durable.highest_epoch(uuid) >= self.saved.highest_epoch(uuid), "an epoch fell (S4)"
        for uuid, tombstone in self.saved.tombstones.items():
            assert effect.durable.tombstones[uuid].epoch >= tombstone.epoch, "a tombstone fell or vanished"
        self.saved = msgspec.json.decode(msgspec.json.encode(effect.durable), type=Durable)
        return fx.Saved()

    def _do_one(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Send):
            self._send(effect)
        elif isinstance(effect, fx.Act):
            self._do_act(effect)
        elif isinstance(effect, fx.AbortMigration):
            self._call(ACT_S, _late("abort of", effect.uuid), lambda: self.hv.abort_migration(effect.uuid))
        elif isinstance(effect, fx.Scan):
            self._call(SCAN_S, fx.Overdue(fx.Call.SCAN, "scan"), self._scan)
        elif isinstance(effect, fx.LookForeign):
            self._call(SCAN_S, fx.Overdue(fx.Call.SURVEY, "survey"), lambda: self._survey(effect.survey))
        elif isinstance(effect, fx.ConnectHypervisor):
            self._call(SCAN_S, fx.Overdue(fx.Call.CONNECT, "connect"), self._connect)
        elif isinstance(effect, fx.CheckHost):
            self.tell(0.01, fx.HostChecked((), m.Load(), m.HostFacts(hostname="n1")))
        elif isinstance(effect, fx.Reconnect):
            self._connection += 1
        elif isinstance(effect, fx.Answer):
            self.answers.append(effect.result)
        elif isinstance(effect, fx.Log):
            self.logs.append(effect.text)

    # --- libvirt ------------------------------------------------------------------------------------------

    def _call(self, delay_s: float, late: fx.Overdue, call: Callable[[], None]) -> None:
        life, done = self._life, [False]

        def run() -> None:
            if life != self._life:
                return
            if self.hung:
                self._stuck.append(run)
                return
            done[0] = True
            call()

        def overdue() -> None:
            if not done[0] and life == self._life and self.core:
                self.give(late)

        self.later(delay_s, run)
        self.later(delay_s + OVERDUE_S, overdue)

    def unhang(self) -> None:
        self.hung = False
        stuck, self._stuck = self._stuck, []
        for call in stuck:
            self.later(0.01, call)

    def _do_act(self, act: fx.Act) -> None:
        call = {fx.Action.MIGRATE: self._migrate, fx.Action.SETTLE: self._settle_move}.get(act.action, self._act)
        self._call(ACT_S, _late(f"{act.action} of", act.uuid), lambda: call(act))

    def _act(self, act: fx.Act) -> None:
        self._acted(act, self._carry_out(act))

    def _carry_out(self, act: fx.Act) -> acting.Outcome:
        def tell(event: fx.Progressed) -> None:
            self.tell(HEAR_S, event)

        return acting.carry_out(act, CheckedHypervisor(self), self.agent.may, "n1", tell)

    def _acted(self, act: fx.Act, outcome: acting.Outcome) -> None:
        self.tell(HEAR_S, acting.acted(act, outcome, self.hv.inspect(act.uuid)))

    # --- migrations: they are libvirt's, and go on when the agent dies ------------------------------------------------

    def _migrate(self, act: fx.Act) -> None:
        outcome = self._carry_out(act)
        if outcome == acting.Outcome():
            self._copy(act, self.hv.moves[act.uuid], self._life, self.now + self.transfer_s)
        else:
            self._acted(act, outcome)

    def _copy(self, act: fx.Act, move: Move, life: int, until: float) -> None:
        if self.now < until and self.hv.moves.get(act.uuid) is move:
            if life == self._life and act.attempt is not None:
                progress = m.MigrationProgress(total_mib=64, elapsed_s=until - self.now)
                self.tell(HEAR_S, fx.Progressed(act.uuid, act.attempt.id, progress))
            self.later(min(0.5, until - self.now), lambda: self._copy(act, move, life, until))
            return
        outcome = acting.outcome_of(lambda: self._arrive_there(act.uuid, move))
        if outcome.error:
            self.hv.migrate_fail(act.uuid, self.stays_paused)
        if life == self._life and self.core is not None:
            self._acted(act, outcome)

    def _arrive_there(self, uuid: str, move: Move) -> None:
        if self.hv.moves.get(uuid) is not move:
            raise HypervisorError("cancelled")
        self.hv.migrate_arrive(uuid)
        self.hv.migrate_confirm(uuid)

    stays_paused = False  # a migration that fails at its end leaves the source paused

    def _settle_move(self, act: fx.Act) -> None:
        life = self._life
        if act.uuid in self.hv.moves and self.hv._connected:
            self.later(0.1, lambda: self._settle_move(act) if life == self._life else None)
        else:
            self._act(act)

    def _scan(self) -> None:
        started, scan = self.now, self.hv.scan()
        self.tell(HEAR_S, fx.Scanned(scan, started))

    def _survey(self, survey: m.Survey) -> None:
        try:
            event = fx.Surveyed(survey, *self.hv.survey(survey.after, survey.uuid))
        except HypervisorError as problem:
            event = fx.Surveyed(survey, error=str(problem))
        self.tell(HEAR_S, event)

    def _connect(self) -> None:
        life = self._life
        try:
            self.hv.connect(
                lambda event: self._happened(event, life), lambda why: self.tell(HEAR_S, fx.HypervisorDown(why))
            )
        except HypervisorError as problem:
            self.tell(HEAR_S, fx.HypervisorDown(str(problem)))
        else:
            self.tell(HEAR_S, fx.HypervisorUp(self.hv.version()))

    def _happened(self, event: Lifecycle, life: int) -> None:
        if life == self._life:
            self.tell(HEAR_S / 2, fx.Happened(event))

    # --- the network --------------------------------------------------------------------------------------

    def _send(self, effect: fx.Send) -> None:
        body = effect.body
        assert codec.decode(codec.encode(body, effect.id)).body == body
        self._check_claims(body)
        self.sent.append((self.now, body))
        if self.network_down:
            return
        connection = self._connection
        self.later(NET_S, lambda: self._arrive(body, effect.id, connection))

    def _arrive(self, body: m.Base, correlation_id: str, connection: int) -> None:
        for answer in self.server.receive(body):
            for copy in range(0 if self.network_down else self.mangle(answer)):
                self._deliver(answer, correlation_id, connection, NET_S * (1 + 7 * copy))

    def _deliver(self, body: m.Base, correlation_id: str, connection: int, delay_s: float) -> None:
        def arrive() -> None:
            if connection == self._connection and self.core:
                self.give(fx.Received(body, correlation_id))

        self.later(delay_s, arrive)

    def poke(self) -> None:
        """The server hints at news."""
        body = m.Poke(session=self.server.session or "none", revision=self.server.revision)
        if not self.network_down:
            self._deliver(body, "", self._connection, NET_S)

    # --- questions ----------------------------------------------------------------------------------------

    def runs(self, uuid: str) -> bool:
        return any(process.uuid == uuid for process in self.hv._processes())

    def runs_on_peer(self, uuid: str) -> bool:
        domain = self.peer.domains.get(uuid)
        return domain is not None and domain.state == DomainState.RUNNING

    def bodies(self, kind: type[m.Base]) -> list[m.Base]:
        return [body for _, body in self.sent if isinstance(body, kind)]

    def events(self) -> list[str]:
        """Codes of the agent's events that the server has."""
        return [event.code for event in self.server.events.values()]

    def facts(self, uuid: str) -> VmFacts:
        return self.hv.inspect(uuid)

    @property
    def ready(self) -> bool:
        return self.core is not None and self.core.link.state == LinkState.READY

    # --- invariants ---------------------------------------------------------------------------------------

    def _check_claims(self, body: m.Base) -> None:
        """Nothing is told that is not on disk; a drain is proven, a release confirmed, only when it is true."""
        if not isinstance(body, m.Report):
            return
        assert body.revision <= self.saved.revision and body.local_drain == self.saved.local_drain
        for result in body.results:
            assert self.saved.journal[result.id].result == result, "a result was told before it was recorded"
        for release in body.released:
            tombstone = self.saved.tombstones[release.uuid]
            assert tombstone.done and tombstone.epoch == release.epoch
            domain = self.hv.domains.get(release.uuid)
            if domain is not None and release.uuid not in self.hand_started:
                later = domain.stamp is not None and domain.stamp.epoch > release.epoch
                assert later or (tombstone.keep and domain.stamp is None), "confirmed, but still here"
        if body.drain is not None and body.drain.clean:
            alive = {process.uuid for process in self.hv._processes()} - self.hand_started
            kept = {uuid for uuid, tombstone in self.saved.tombstones.items() if tombstone.keep}
            ours = {*self.saved.held, *(self.saved.tombstones.keys() - kept)}
            assert self.saved.drained and body.drain.boot_id == self.boot_id
            assert not alive & ours, "a drain was proven while a VM runs"
            assert not self.agent.vms.starting, "a drain was proven while a VM is being started"

    hand_started: frozenset[str] = frozenset()  # by a person so lately that the agent cannot know

    def check(self) -> None:
        for uuid, domain in self.hv.domains.items():
            both = domain.state == DomainState.RUNNING and self.runs_on_peer(uuid)
            assert not both, "it runs on two nodes (S1)"
        if self.core is None:
            return
        assert self.core.durable == self.saved or self.disk_full
        for uuid in {*self.saved.held, *self.saved.tombstones}:
            assert self.saved.highest_epoch(uuid) >= self._epochs.get(uuid, 0)
            self._epochs[uuid] = self.saved.highest_epoch(uuid)
