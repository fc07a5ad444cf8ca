"""A simulated compute host, and the process of its agent around the real `AgentCore`.

The process carries out effects as `agentd/daemon.py` does, in the core's order, and may die between any two of them;
what it does to VMs is `agentd/acting.py`'s, with the hypervisor of `calls.py`. What survives the process is the disk,
the hypervisor, and the frames that left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd import acting
from agentd.core import effects as fx
from agentd.core.agent import AgentCore, AgentPolicy
from agentd.core.durable import Durable
from agentd.core.facts import Lifecycle
from agentd.hypervisor import HypervisorError
from agentd.snapshot import SnapshotError, aged, decode, encode, unconfirmed
from tests.fakes.names import address_of, key_of, uuid_of
from tests.sim.calls import Calls, late_act
from tests.sim.engine import Clock, Engine, Violation
from tests.sim.hypervisor import SimHypervisor
from tests.sim.network import Network
from tests.sim.story import in_words, is_noise
from wire import codec
from wire import messages as m

if TYPE_CHECKING:
    from tests.sim.liar import Liar
    from tests.sim.oracle import Oracle

POLICY = AgentPolicy()
CALL_S = (0.005, 0.1)
CALL_TIMEOUT_S = 30.0
EVENT_S = 0.002  # lifecycle events keep their order; what else comes from libvirt may overtake them
LATER_S = (0.0005, 0.01)
RESTART_S = (1.0, 5.0)  # systemd
BOOT_S = (5.0, 20.0)
MAX_TICKS_AT_ONCE = 50
KEEP_EVERY_S = 2.0  # backups of a snapshot
TICK = fx.Tick()
TICK_S = 1e-6  # a timer never fires early


class DeadError(Exception):
    """The agent dies here."""


class SnapshotDisk:
    """The snapshot file, as bytes. A save that is cut short leaves the old content or the new one. `earlier`: what it
    was, as backups of the host have it (in true seconds); `kept`: what a person has laid aside."""

    def __init__(self, node: str, now: Callable[[], float] = lambda: 0.0) -> None:
        self._node, self._now = node, now
        self.content: bytes | None = None
        self.full = False
        self.serial = 0
        self.noted = 0  # under /run: what this boot has seen
        self.joined = False  # the node got another key, and no agent has begun since
        self.earlier: list[tuple[float, bytes]] = []
        self.kept: bytes | None = None

    def load(self) -> tuple[Durable, str]:
        """As `Snapshot.load`."""
        if self.content is None:
            return Durable(node=self._node), ""
        try:
            durable, serial = decode(self.content, self._node)
            self.serial = max(serial, self.noted)
            durable, why = aged(durable, serial, self.noted)
            return unconfirmed(durable) if self.joined else durable, why
        except SnapshotError as error:
            self.content = None
            return Durable(node=self._node), f"snapshot refused: {error}"

    def save(self, durable: Durable) -> None:
        """Raises SnapshotError."""
        if self.full:
            raise SnapshotError("no space left on device")
        if self.content is not None and (not self.earlier or self.earlier[-1][0] < self._now() - KEEP_EVERY_S):
            self.earlier.append((self._now(), self.content))
        self.serial += 1
        self.content = encode(durable, self.serial)
        self.noted, self.joined = self.serial, False

    def at(self, time: float) -> bytes | None:
        """What a backup of `time` has."""
        later = [content for saved, content in self.earlier if saved > time]
        return later[0] if later else self.content

    def decoded(self, content: bytes | None) -> Durable:
        """What an earlier content says."""
        return Durable(node=self._node) if content is None else decode(content, self._node)[0]


class Host:
    """One compute host. `agent` None: no agent runs. `wanted`: systemd restarts it. `liar`: who speaks with its
    key, instead of its agent or beside it."""

    def __init__(self, name: str, engine: Engine, network: Network, oracle: Oracle) -> None:
        self.name, self.engine, self.network, self.oracle = name, engine, network, oracle
        self.hypervisor = SimHypervisor(oracle.touched, self._copy_runs)
        self.hypervisor.route = self._route
        self.disk = SnapshotDisk(name, lambda: engine.now)
        self.keys = 1
        self.liar: Liar | None = None
        self.key = key_of(name)
        self.clock = Clock(engine)
        self.powered = self.wanted = True
        self.agent: Agent | None = None
        self.hung: list[Callable[[], None]] | None = None  # calls that libvirt does not answer
        self.hangs_in_start = self.finish_lost = False
        self.peers: dict[str, Host] = {}
        self.boots, self.lives = 0, 0
        self.boot_id = ""
        self.faults: tuple[m.Fault, ...] = ()
        self.vcpus, self.memory_mib = 64, 131_072
        self._new_boot()

    def tell(self, text: str, *subjects: str) -> None:
        """A line of the story."""
        if self.engine.story.on:
            self.engine.story.tell(self.engine.now, self.name, text, *subjects)

    def is_undecided(self, uuid: str) -> bool:
        """Whether the VM is on its way: it leaves this host, or has come and is not the host's yet."""
        held = self.disk.load()[0].held.get(uuid)
        return held is None or held.leaving

    # --- power --------------------------------------------------------------------------------------------------------

    def _new_boot(self) -> None:
        self.boots += 1
        self.boot_id = uuid_of(f"{self.name}-boot-{self.boots}")
        self.clock = Clock(self.engine)

    def power_off(self) -> None:
        """Everything on the host ends at once, and tells nobody."""
        if self.powered:
            self.powered = False
            self.tell("loses power")
            if self.agent is not None:
                self.agent.die(silently=True)
            self.hung, self.hangs_in_start, self.disk.noted = None, False, 0
            self.hypervisor.power_loss()

    def power_on(self) -> None:
        """The host boots; its agent starts a little later."""
        if not self.powered:
            self.powered = True
            self._new_boot()
            self.tell("boots")
            self.hypervisor.restore()
            self._agent_after(self.engine.rng.uniform(*BOOT_S))

    # --- the agent ----------------------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """systemd starts it, if it does not run and can."""
        taken = self.liar is not None and not self.liar.beside
        if self.powered and self.wanted and self.agent is None and not taken:
            self.lives += 1
            durable, why = self.disk.load()
            if why:
                self.tell(why)
            self.tell(f"agentd starts with {len(durable.held)} VMs in its snapshot")
            self.agent = Agent(self, durable)
            self.agent.look_ahead()

    def agent_died(self) -> None:
        """systemd restarts it soon."""
        self.agent = None
        self.tell("agentd is dead")
        self.hypervisor.close()
        if self.powered and self.wanted:
            self._agent_after(self.engine.rng.uniform(*RESTART_S))

    def _agent_after(self, delay_s: float) -> None:
        self.engine.after(delay_s, self._start_in_boot, self.boots)

    def _start_in_boot(self, boots: int) -> None:
        if boots == self.boots:
            self.start_agent()

    # --- people and its files -----------------------------------------------------------------------------------------

    def put_back(self, content: bytes | None) -> None:
        """The agent's state directory is that of an earlier moment; its process ends."""
        try:
            older = self.disk.decoded(content)
        except SnapshotError:  # it was damaged then
            older = Durable(node=self.name)
        self.oracle.snapshot_put_back(self, self.disk.load()[0], older)
        self.disk.content = content
        if self.agent is not None:
            self.agent.die()

    def join(self) -> None:
        """`agentd join --force`: a new key, which nobody knows yet. The process ends."""
        if self.liar is not None:
            return  # he keeps the old one
        self.keys += 1
        self.key = key_of(f"{self.name}-{self.keys}")
        self.disk.joined = True
        if self.agent is not None:
            self.agent.die()

    # --- libvirt ------------------------------------------------------------------------------------------------------

    def at(self, address: str) -> Host | None:
        """The host that has the address."""
        return next((host for host in self.peers.values() if address_of(host.name) == address), None)

    def _route(self, address: str) -> SimHypervisor | None:
        host = self.at(address)
        linked = host is not None and host.powered and self.network.carries_data(self.name, host.name)
        return host.hypervisor if host is not None and linked else None

    def _copy_runs(self, uuid: str, attempt: str) -> None:
        self.tell(f"the copy of {uuid} that came by {attempt} runs", uuid)
        self.oracle.copy_runs(self, uuid, attempt)

    def hang(self) -> None:
        """libvirt answers nothing any more."""
        if self.hung is None:
            self.hung = []

    def unhang(self) -> None:
        """It answers what it was asked."""
        stuck, self.hung = self.hung or [], None
        for call in stuck:
            self.engine.after(self.engine.rng.uniform(*CALL_S), call)


class Agent:
    """One agent process. `frozen`: a signal has stopped it. `crash_in`: it dies after so many effects."""

    def __init__(self, host: Host, durable: Durable) -> None:
        self.host, self.engine = host, host.engine
        self.core = AgentCore(
            durable, host.boot_id, f"{host.name}-life-{host.lives}", POLICY, host.engine.rng, host.clock.now()
        )
        self.alive, self.frozen = True, False
        self.crash_in = 0
        self.answers: list[dict[str, object]] = []
        self._late: list[Callable[[], None]] = []
        self._wake_at = self._deadline = float("inf")
        self._ticks: tuple[float, int] = (0.0, 0)
        self._asks = 0
        self._event_at = 0.0  # the newest event of libvirt comes then
        self._socket = self._open()

    def die(self, silently: bool = False) -> None:
        """SIGKILL, or the host's end."""
        if self.alive:
            self.alive = False
            self.host.network.close(self._socket, silently)
            self.host.agent_died()

    def _open(self):  # type: ignore[no-untyped-def]
        return self.host.network.open(self.host.name, self.host.key, self._on_frame, self._on_lost)

    # --- events -------------------------------------------------------------------------------------------------------

    def give(self, event: fx.Event) -> None:
        """The core handles it, and what follows is done."""
        if not self.alive:
            return
        if self.frozen:
            self._late.append(lambda: self.give(event))
            return
        try:
            self._do(self.core.handle(event, self.host.clock.now()))
        except DeadError:
            self.die()
            return
        self.look_ahead()

    def thaw(self) -> None:
        """SIGCONT: everything that waited comes at once."""
        self.frozen = False
        late, self._late = self._late, []
        for call in late:
            call()
        self._wake_at = float("inf")
        self.look_ahead()

    def look_ahead(self) -> None:
        """The next tick is due when the core says so."""
        if not self.alive or self.frozen:
            return
        self._deadline = self.core.next_deadline()
        at = max(self.engine.now, self.host.clock.true(self._deadline) + TICK_S)
        if at < self._wake_at:
            self._wake_at = at
            self.engine.at(at, self._wake, at)

    def _wake(self, at: float) -> None:
        if at != self._wake_at or not self.alive or self.frozen:
            return
        self._wake_at = float("inf")
        if self._deadline <= self.host.clock.now():
            self._no_spinning()
            self.give(TICK)
        else:
            self.look_ahead()

    def _no_spinning(self) -> None:
        at, count = self._ticks
        self._ticks = (self.engine.now, count + 1 if at == self.engine.now else 1)
        if self._ticks[1] > MAX_TICKS_AT_ONCE:
            raise Violation("L1", f"the agent of {self.host.name} spins", self.host.name)

    def ask(self, verb: str, graceful_s: float = 60.0) -> None:
        """`chime-agent` on the node."""
        self._asks += 1
        self.give(fx.Asked(self._asks, verb, graceful_s))

    def ask_to_migrate(self, uuid: str, target: str) -> None:
        """`chime-agent migrate` on the node."""
        self._asks += 1
        attempt = f"{self.host.name}-{self.host.lives}-{self._asks}"
        order = m.MigrationOrder(target="", address=address_of(target))
        self.give(fx.Asked(self._asks, "migrate", uuid=uuid, attempt=attempt, migration=order))

    def _later(self, event: fx.Event) -> None:
        """What a thread has found reaches the loop, perhaps long after it was found."""
        self.engine.after(self.engine.rng.uniform(*LATER_S) + self.engine.delays.tail(), self.give, event)

    def _soon(self, event: fx.Event) -> None:
        """As `_later`, of things that keep their order."""
        self.engine.after(self.engine.rng.uniform(*LATER_S), self.give, event)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _do(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is fx.Save:
                self._do(self.core.handle(self._save(effect), self.host.clock.now()))  # type: ignore[arg-type]
            else:
                _EFFECTS[kind](self, effect)
            if self.crash_in:
                self._count_down()

    def _count_down(self) -> None:
        self.crash_in -= 1
        if self.crash_in == 0:
            self.host.tell("agentd is killed between two effects")
            raise DeadError

    def _save(self, effect: fx.Save) -> fx.Event:
        if self.crash_in == 1:  # in the middle of it: the old content is there, or the new one
            if self.engine.rng.random() < 0.5 and not self.host.disk.full:
                self.host.disk.save(effect.durable)
                self.host.oracle.agent_saved(self.host, effect.durable)
            self.host.tell("agentd is killed while it writes its snapshot")
            raise DeadError
        try:
            self.host.disk.save(effect.durable)
        except SnapshotError as error:
            return fx.SaveFailed(str(error))
        self.host.oracle.agent_saved(self.host, effect.durable)
        return fx.Saved()

    def _send(self, effect: fx.Send) -> None:
        body = effect.body
        if isinstance(body, m.Report):
            self.host.oracle.agent_claims(self.host, body)
        if self.engine.story.on and not is_noise(body):
            self.host.tell(f"-> {in_words(body)}", *_subjects(body))
        self.host.network.send_up(self._socket, codec.encode(body, effect.id))

    def smuggle(self, frame: bytes) -> None:
        """Somebody else with its key sends a frame over its connection."""
        self.host.network.send_up(self._socket, frame)

    def _on_frame(self, frame: bytes) -> None:
        _, correlation_id, body = codec.decode(frame)
        if self.engine.story.on and not is_noise(body):
            self.host.tell(f"<- {in_words(body)}", *_subjects(body))
        self.give(fx.Received(body, correlation_id))

    def _on_lost(self) -> None:
        self.give(fx.Disconnected("the connection broke"))

    def _reconnect(self, _effect: fx.Reconnect) -> None:
        self.host.network.close(self._socket)
        self._socket = self._open()

    def _check_host(self, _effect: fx.CheckHost) -> None:
        host = self.host
        address = m.HostNetwork(interface="eth0", address=address_of(host.name), prefix=8)
        facts = m.HostFacts(
            hostname=host.name, vcpus=host.vcpus, memory_mib=host.memory_mib, networks=(address,)
        )
        self._later(fx.HostChecked(host.faults, m.Load(), facts))

    def _answer(self, effect: fx.Answer) -> None:
        self.answers.append(effect.result)
        if effect.result.get("accepted"):
            self.host.oracle.drain_accepted(self.host)

    def _log(self, effect: fx.Log) -> None:
        if self.engine.story.on:
            self.host.tell(effect.text, *(uuid for uuid in self.core.durable.held if uuid in effect.text))

    # --- libvirt ------------------------------------------------------------------------------------------------------

    def call(self, late: fx.Overdue, call: Callable[[], None]) -> None:
        """`call` reaches libvirt a little later; while libvirt hangs it waits there, also when the agent dies, and is
        overdue at some time."""
        host, boots, waits = self.host, self.host.boots, [False]

        def run() -> None:
            if boots != host.boots or not host.powered or not (self.alive or waits[0]):
                return
            if self.frozen:
                self._late.append(run)
            elif host.hung is None:
                call()
            else:
                waits[0] = True
                host.hung.append(run)
                self.engine.after(CALL_TIMEOUT_S, overdue)

        def overdue() -> None:
            if host.hung is not None and run in host.hung:
                self.give(late)

        self.engine.after(self.engine.rng.uniform(*CALL_S) + self.engine.delays.tail(), run)

    def _act(self, act: fx.Act) -> None:
        self.host.oracle.agent_orders(self.host, act)
        if act.left is not None:
            self.host.oracle.agent_hands_over(self.host, act.uuid, act.left)
        if act.action == fx.Action.MIGRATE and act.attempt is not None:
            self.host.oracle.agent_migrates(self.host, act.uuid, act.attempt.id)
        self.call(late_act(f"{act.action} of", act.uuid), Calls(self, act).carry_out)

    def acted(self, act: fx.Act, outcome: acting.Outcome) -> None:
        """It has ended: the agent sees what is there, and hears of it, if it is alive."""
        if self.alive:
            self._later(acting.acted(act, outcome, self.host.hypervisor.inspect(act.uuid)))

    def progressed(self, event: fx.Progressed) -> None:
        """News of a migration."""
        if self.alive:
            self._later(event)

    def _abort(self, effect: fx.AbortMigration) -> None:
        self.call(late_act("abort of", effect.uuid), lambda: self._abort_now(effect.uuid))

    def _abort_now(self, uuid: str) -> None:
        try:
            self.host.hypervisor.abort_migration(uuid)
        except HypervisorError as problem:
            self.host.tell(f"abort: {problem}", uuid)

    def _scan(self, _effect: fx.Scan) -> None:
        self.call(fx.Overdue(fx.Call.SCAN, "scan"), self._scan_now)

    def _scan_now(self) -> None:
        started = self.host.clock.now()
        self._later(fx.Scanned(self.host.hypervisor.scan(), started))

    def _connect(self, _effect: fx.ConnectHypervisor) -> None:
        self.call(fx.Overdue(fx.Call.CONNECT, "connect"), self._connect_now)

    def _connect_now(self) -> None:
        if not self.alive:
            return  # its connection ended with it
        hypervisor = self.host.hypervisor
        try:
            hypervisor.connect(self._happened, lambda why: self._soon(fx.HypervisorDown(why)))
        except HypervisorError as problem:
            self._soon(fx.HypervisorDown(str(problem)))
        else:
            self._soon(fx.HypervisorUp(hypervisor.version()))

    def _happened(self, event: Lifecycle) -> None:
        self.host.tell(f"libvirt: {event.uuid} {event.happening} {event.reason}", event.uuid)
        self._event_at = max(self._event_at, self.engine.now + EVENT_S + self.engine.delays.tail())
        self.engine.at(self._event_at, self.give, fx.Happened(event))


_EFFECTS = {
    fx.Send: Agent._send,
    fx.AbortMigration: Agent._abort,
    fx.Act: Agent._act,
    fx.Scan: Agent._scan,
    fx.ConnectHypervisor: Agent._connect,
    fx.CheckHost: Agent._check_host,
    fx.Reconnect: Agent._reconnect,
    fx.Answer: Agent._answer,
    fx.Log: Agent._log,
}
"""What is done for each effect; `Save` is special, since its outcome is handled before anything else."""


def _subjects(body: m.Base) -> tuple[str, ...]:
    """The VMs that a message is about."""
    if isinstance(body, m.Inventory):
        return tuple(part.uuid for part in (*body.vms, *body.releases, *body.commands))
    if isinstance(body, m.Report):
        return tuple(part.uuid for part in (*body.vms, *body.released))
    return ()
