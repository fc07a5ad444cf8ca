"""A whole server core with a store in memory, agents and operators, on a virtual clock. No I/O, no sleeping.

`World.turn` keeps the shell's protocol: handle, tick, flush, commit, then carry out. After each turn the invariants
of the design are checked on what is committed. `crash()` forgets everything that was not.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import msgspec

from chimed.core.server import ServerCore
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.tables import Tables
from chimed.core.state.turn import Policy
from chimed.database import StoreError
from tests.fakes.names import key_of, uuid_of
from tests.fakes.store import FakeDisk, FakeStore
from wire import messages as m
from wire import seals
from wire.types import MigrationPhase, Observed, OperationState

WALL = 1_800_000_000.0
ADDRESS = "10.0.0.1"
SEAL_KEY = seals.key_from("the server's secret key")


SPEC = m.VmSpec(vcpus=1, memory_mib=1024, disks=(m.Disk(path="/srv/shared.qcow2"),))
LOCAL = m.VmSpec(vcpus=1, memory_mib=1024, disks=(m.Disk(path="/var/local.qcow2", storage="local"),))  # type: ignore[arg-type]


def import_of(name: str, node: str, **fields: Any) -> m.VmImport:
    """The import of a running VM."""
    uuid = uuid_of(name)
    spec = m.VmSpec(vcpus=1, memory_mib=64, xml=f"<domain><name>{name}</name><uuid>{uuid}</uuid></domain>")
    values: dict[str, Any] = {"key": name, "node": node, "name": name, "uuid": uuid, "spec": spec, "desired": "running"}
    return m.VmImport(**{**values, **fields})


class Refused(Exception):
    """An error answer."""

    def __init__(self, body: m.ErrorBody) -> None:
        super().__init__(f"{body.code}: {body.message}")
        self.code, self.body = body.code, body


def seal_of(uuid: str, epoch: int, node: str) -> str:
    """What the server gave the node with the VM."""
    return seals.of_assignment(SEAL_KEY, uuid, epoch, node)


class World:
    """`nodes`: names of nodes that are registered; their agents are not up before `start`."""

    def __init__(self, *nodes: str, policy: Policy | None = None, seed: int = 1) -> None:
        self.policy = policy or Policy()
        self.now, self.wall_shift = 1000.0, 0.0
        self.disk = FakeDisk()
        self.store = FakeStore(self.disk)
        self.rng = random.Random(seed)
        self.agents: dict[str, Agent] = {}
        self.deaf: set[str] = set()  # nodes whose traffic and pings are lost
        self.pings: dict[str, int] = {}
        self.unping: set[str] = set()  # nodes that no ping can be sent to
        self.logs: list[str] = []
        self.may_trip = False  # a bug of the server was put in
        self.answers: dict[bytes, list[tuple[m.Base, str]]] = {}
        self._serial = 0
        rows: list[r.Row] = [r.Operator(name="op", public_key=key_of("op"), created=0.0)]
        rows += [r.Node(name=name, public_key=key_of(name)) for name in nodes]
        tables = Tables()
        for row in rows:
            (tables.nodes if isinstance(row, r.Node) else tables.operators).put(row)  # type: ignore[attr-defined]
        self.store.commit(*tables.changes())
        self.owners: dict[str, tuple[str, int]] = {}
        self.revisions: dict[str, int] = {}
        self.epochs: dict[str, int] = {}
        self.core = self._boot()
        for name in nodes:
            self.agents[name] = Agent(self, name)

    # --- the server ---------------------------------------------------------------------------------------------------

    def _boot(self) -> ServerCore:
        tables = Tables()
        self.store = FakeStore(self.disk)
        tables.load(self.store.load())
        return ServerCore(
            tables, self.policy, random.Random(self.rng.random()), lambda: WALL + self.now + self.wall_shift, self.now,
            SEAL_KEY, self.store.put_back,
        )

    def crash(self) -> None:
        """The server dies and starts again; every connection is new."""
        self.answers.clear()
        self.core = self._boot()
        for agent in self.agents.values():
            agent.session = None

    def put_back(self, saved: dict[str, dict[Any, r.Row]]) -> None:
        """The database of then is put back by a copy, and the server starts on it."""
        self.disk.tables = {name: dict(rows) for name, rows in saved.items()}
        self._forget()

    def restore(self, saved: dict[str, dict[Any, r.Row]], history: str = "restored") -> None:
        """The same by `chimed restore`."""
        self.disk.restore(saved, history)
        self._forget()

    def _forget(self) -> None:
        """What is true of one line of the database does not bind another."""
        self.epochs.clear()
        self.revisions.clear()
        self.owners.clear()
        self.crash()

    def turn(self, *events: fx.Event, save: bool = True, send: bool = True) -> list[fx.Effect]:
        """One turn. `save` False: dies before the commit; `send` False: dies after it."""
        core, effects = self.core, []
        for event in (*events, fx.Tick()):
            effects += core.handle(event, self.now)
        effects += core.flush()
        if not save:
            self.crash()
            return []
        changes, lines = core.tables.changes()
        try:
            if changes or lines:
                self.store.commit(changes, lines)
            core.tables.committed()
        except StoreError as error:
            effects = core.rolled_back(str(error), [e for e in events if isinstance(e, fx.Received | fx.Garbage)])
        self.check()
        if not send:
            self.crash()
            return []
        self._carry_out(effects)
        return effects

    def recover_storage(self) -> None:
        """What the shell does when the store is writable again."""
        self.disk.fault = ""
        effects = self.core.writable_again(self.now)
        self.store.commit(*self.core.tables.changes())
        self.core.tables.committed()
        self.check()
        self._carry_out(effects)

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Send):
                self.answers.setdefault(effect.route, []).append((effect.body, effect.id))
                agent = next((a for a in self.agents.values() if a.route == effect.route), None)
                if agent is not None and isinstance(effect.body, m.Poke) and agent.up and agent.name not in self.deaf:
                    agent.poked = True
            elif isinstance(effect, fx.Ping):
                self.pings[effect.token] = self.pings.get(effect.token, 0) + 1
                agent = self.agents.get(effect.token)
                if effect.token in self.unping:
                    self.turn(fx.PingUnsent(effect.token, "not permitted"))
                elif agent is not None and agent.host_up and effect.token not in self.deaf:
                    self.turn(fx.PingAnswered(effect.token))
            elif isinstance(effect, fx.Log):
                self.logs.append(effect.text)

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> int:
        """Lets time pass: agents beat, the server ticks at its deadlines. Returns the number of turns."""
        end, turns = self.now + seconds, 0
        while True:
            beats = [a.next_beat for a in self.agents.values() if a.up]
            due = min([self.core.next_deadline(), *beats])
            if due > end:
                self.now = end
                return turns
            self.now = max(self.now, due)
            turns += 1
            assert turns < 20_000, "the server spins"
            for agent in list(self.agents.values()):
                if agent.up and agent.next_beat <= self.now:
                    agent.beat()
            self.turn()

    # --- messages -----------------------------------------------------------------------------------------------------

    def say(self, who: str, body: m.Base, route: bytes | None = None, **turn: bool) -> m.Base | None:
        """Sends one message with the key of `who` and returns its answer, if one comes. Raises Refused."""
        self._serial += 1
        route, correlation = route or who.encode(), f"c{self._serial}"
        self.answers.pop(route, None)
        self.turn(fx.Received(key_of(who), route, body, correlation, lambda: ADDRESS), **turn)
        for answer, answered in self.answers.get(route, []):
            if answered == correlation:
                if isinstance(answer, m.ErrorBody):
                    raise Refused(answer)
                return answer
        return None

    def ask(self, body: m.Base, who: str = "op", **turn: bool) -> Any:
        """An operator's request; the result as it is on the wire."""
        answer = self.say(who, body, **turn)
        assert isinstance(answer, m.Ok)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(answer.result))

    def key(self) -> str:
        """A fresh idempotency key."""
        self._serial += 1
        return f"k{self._serial}"

    def do(self, kind: type[m.Mutation], /, **fields: Any) -> Any:
        """A changing request with a fresh key."""
        return self.ask(kind(**{"key": self.key(), **fields}))

    def refuse(self, kind: type[m.Base], /, **fields: Any) -> m.ErrorBody:
        """The error that the request gets; it must not have changed a thing."""
        before = self.saved()
        if issubclass(kind, m.Mutation):
            fields = {"key": self.key(), **fields}
        try:
            self.ask(kind(**fields))
        except Refused as refusal:
            assert self.saved() == before, "a refusal changed something"
            return refusal.body
        raise AssertionError(f"{kind.__name__} was not refused")

    # --- looking ------------------------------------------------------------------------------------------------------

    def saved(self) -> dict[str, dict[Any, r.Row]]:
        """What is committed."""
        return {name: dict(rows) for name, rows in self.disk.tables.items()}

    def node(self, name: str) -> Any:
        """The node as an operator sees it."""
        return self.ask(m.NodeShow(name=name))["node"]

    def vm(self, name: str) -> Any:
        """The VM as an operator sees it."""
        return self.ask(m.VmShow(vm=name))["vm"]

    def op(self, answer: Any) -> Any:
        """The operation that an answer names, as it is now."""
        return self.ask(m.OpShow(id=answer["operation"]["id"]))["operation"]

    def alarms(self, all: bool = False) -> list[tuple[str, str]]:
        """(code, subject) of active alarms."""
        return sorted((a["code"], a["subject"]) for a in self.ask(m.AlarmList(all=all))["items"])

    def actions(self, subject: str | None = None) -> list[str]:
        """The audit trail."""
        return [e.action for _, e in self.disk.events if subject in (None, e.subject)]

    def tables(self) -> Tables:
        """The core's rows."""
        return self.core.tables

    def start(self, *names: str) -> None:
        """Agents come up, get their inventory and report."""
        for name in names or tuple(self.agents):
            self.agents[name].start()

    def settle(self, rounds: int = 4) -> None:
        """Agents that were poked pull, act and report until nothing changes."""
        for _ in range(rounds):
            for agent in self.agents.values():
                if agent.up and agent.poked and agent.name not in self.deaf:
                    agent.sync()

    def create(self, name: str, node: str | None = None, **fields: Any) -> Any:
        """A VM that has started."""
        answer = self.do(m.VmCreate, **{"name": name, "spec": SPEC, "node": node, "uuid": uuid_of(name), **fields})
        self.settle()
        return answer

    # --- invariants ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The invariants of the design, on what is committed."""
        tables = self.disk.tables
        if not self.may_trip:
            assert self.core.ctx.counters["internal-errors"] == 0, self.logs[-1:]
        if not self.disk.fault:
            for name, rows in tables.items():
                table = {row_key: row for row_key, row in self._memory(name).items()}
                assert table == rows, f"{name} in memory differs from the store"
        evident = [e for _, e in self.disk.events if e.action in ("vm-moved", "vm-adopted", "vm-deleted")]
        for vm in tables["vms"].values():
            assert isinstance(vm, r.Vm)
            self._check_vm(vm, evident)
        for release in tables["releases"].values():
            assert isinstance(release, r.Release)
            vm = tables["vms"].get((release.uuid,))  # type: ignore[assignment]
            if vm is not None and vm.node == release.node and vm.desired != "deleted":
                assert release.epoch < vm.epoch, "a release of the owner's present epoch"
        names = [vm.name for vm in tables["vms"].values()]  # type: ignore[attr-defined]
        assert len(names) == len(set(names))
        for node in tables["nodes"].values():
            assert isinstance(node, r.Node)
            assert node.revision >= self.revisions.get(node.name, 0), "a revision fell"
            self.revisions[node.name] = node.revision
            assert node.evidence is None or node.admin_state == "drained"
            if node.lock:
                self._check_running(node.lock)
        for table in ("nodes", "vms"):
            self._check_revisions(table)
        self._check_migrations()

    def _memory(self, name: str) -> dict[Any, r.Row]:
        tables = self.core.tables
        if name == "meta":
            return {(): tables.meta}
        table = getattr(tables, name)
        return {table.key_of(row): row for row in table}

    def _check_vm(self, vm: r.Vm, evident: list[r.Event]) -> None:
        assert vm.epoch >= self.epochs.get(vm.uuid, 0), "an epoch fell"
        self.epochs[vm.uuid] = vm.epoch
        owner, epoch = self.owners.get(vm.uuid, (vm.node, 0))
        if owner != vm.node:
            assert vm.epoch > epoch, "a new owner in an old epoch"
            story = [e for e in evident if e.subject == vm.uuid]
            assert story, "a new owner without a word"
            if story[-1].action == "vm-moved":
                old, text = self.disk.tables["nodes"][(owner,)], story[-1].text
                if "evidence" in text:
                    assert isinstance(old, r.Node) and old.evidence is not None, "moved without evidence"
                else:
                    whys = ("migrated: ", "says that it is stopped", "was given it after the backup")
                    assert any(why in text for why in whys), "moved without recording why"
                    assert vm.uuid not in self.agents[owner].running, "moved while it runs there"
            if story[-1].action != "vm-deleted":
                assert (owner, vm.uuid) in self.disk.tables["releases"], "moved without a release"
        self.owners[vm.uuid] = (vm.node, vm.epoch)
        if vm.operation:
            self._check_running(vm.operation)

    def _check_running(self, op_id: str) -> None:
        op = self.disk.tables["operations"].get((op_id,))
        assert isinstance(op, r.Operation) and op.state == OperationState.RUNNING, f"{op_id} does not run"

    def _check_migrations(self) -> None:
        """A VM names the attempt that is open, its source owns it, and its operation runs."""
        tables = self.disk.tables
        open_ = {row.uuid: row for row in tables["migrations"].values() if isinstance(row, r.Migration)}
        for row in open_.values():
            self._check_running(row.operation)
        for vm in tables["vms"].values():
            assert isinstance(vm, r.Vm)
            row_ = open_.get(vm.uuid)
            if row_ is not None and vm.epoch == row_.epoch:
                assert (vm.attempt, vm.node) == (row_.attempt, row_.source)
            assert not vm.attempt or row_ is not None, "an attempt that nobody follows"

    def _check_revisions(self, _table: str) -> None:
        seen: set[tuple[str, int]] = set()
        for name in ("vms", "releases", "commands"):
            for row in self.disk.tables[name].values():
                if getattr(row, "desired", "") == "deleted":
                    continue
                mark = (row.node, row.revision)  # type: ignore[attr-defined]
                assert mark not in seen, f"revision {mark} twice"
                known = self.revisions.get(row.node, self.core.tables.meta.forgotten_revision)  # type: ignore[attr-defined]
                assert row.revision <= known  # type: ignore[attr-defined]
                seen.add(mark)


class Arrival(NamedTuple):
    """A copy of a VM that a migration brought."""

    epoch: int
    attempt: str
    observed: str
    origin: str


class Agent:
    """A stand-in for agentd: does at once what its inventory says."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.boot, self.lives = uuid_of(f"{name}-boot-1"), 1
        self.route = name.encode()
        self.up = self.host_up = False
        self.poked = False
        self.session: str | None = None
        self.seq = self.report_seq = self.revision = self.generation = 0
        self.newest: m.Point | None = None  # what it has followed
        self.older = False  # the server that answers is older than that: heartbeats only
        self.faults: tuple[m.Fault, ...] = ()
        self.held: dict[str, m.Assignment] = {}
        self.unnamed: set[str] = set()  # held, and not in the newest full inventory
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}
        self.why_failed = "start-failed"
        self.unadopted: dict[str, tuple[str, str]] = {}  # imports that are not taken over: problem, detail
        self.halted: set[str] = set()
        self.highest: dict[str, int] = {}
        self.releases: list[m.Release] = []
        self.commands: list[m.Command] = []
        self.order = m.NodeOrder(admin_state="enabled", drain_serial=0)  # type: ignore[arg-type]
        self.strays: dict[str, tuple[int, str]] = {}
        self.origins: dict[str, str] = {}  # whose the stray was, if not this node's
        self.said: dict[str, m.MigrationReport] = {}  # of migrations away from here
        self.gone: dict[str, int] = {}  # VMs that have left, and their epoch
        self.arrivals: dict[str, Arrival] = {}
        self.taken: set[str] = set()  # ids of commands: each takes effect once
        self.cancels: list[m.Command] = []
        self.host: dict[str, Any] = {}
        self.stuck = False  # nothing that should stop does
        self.digest = ""
        self.next_beat = 0.0
        self.vcpus, self.memory_mib = 16, 16384 + 512

    # --- the host -----------------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """The host loses power."""
        self.up = self.host_up = False
        self.running.clear()

    def boot_again(self) -> None:
        """The host boots: another boot id, nothing runs."""
        self.lives += 1
        self.boot = uuid_of(f"{self.name}-boot-{self.lives}")
        self.running.clear()
        self.start()

    def start(self) -> None:
        """The agent comes up and says everything."""
        self.up = self.host_up = True
        self.next_beat = self.world.now
        if self.connect():
            self.sync(full=True)

    def kill(self) -> None:
        """The agent dies; its VMs live."""
        self.up = False

    # --- the wire -----------------------------------------------------------------------------------------------------

    def say(self, body: m.Base, **turn: bool) -> m.Base | None:
        """Sends with this node's key."""
        return self.world.say(self.name, body, route=self.route, **turn)

    def hello(self, **fields: Any) -> m.Base | None:
        """Says hello; no more."""
        values = {
            "versions": (1,), "node": self.name, "boot_id": self.boot, "incarnation": f"i{self.lives}", "nonce": "n",
            "newest": self.newest,
            "host": m.HostFacts(hostname=self.name, vcpus=self.vcpus, memory_mib=self.memory_mib, **self.host),
        }  # fmt: skip
        return self.say(m.Hello(**{**values, **fields}))

    def connect(self) -> bool:
        """A session; False when the server cannot be reached or refuses."""
        self.session = None
        if self.name in self.world.deaf:
            return False
        try:
            welcome = self.hello()
        except Refused:
            return False
        if not isinstance(welcome, m.Welcome):
            return False
        self.session, self.seq, self.report_seq, self.revision = welcome.session, 0, 0, 0
        self.older = self._is_older(welcome)
        return not self.older

    def _is_older(self, welcome: m.Welcome) -> bool:
        """Time runs forward only."""
        known = self.newest
        if known is None or welcome.generation != known.generation:
            return known is not None and welcome.generation < known.generation
        return welcome.history != known.history or welcome.revision < known.revision

    def beat(self) -> m.Base | None:
        """A heartbeat; reconnects when the session is gone."""
        self.next_beat = self.world.now + self.world.policy.heartbeat_s
        if self.name in self.world.deaf:
            return None
        if self.session is None:
            self._again()
            return None
        self.seq += 1
        try:
            ack = self.say(self.heartbeat())
        except Refused:
            self.session = None
            self._again()
            return None
        if isinstance(ack, m.HeartbeatAck) and not self.older and (ack.report or ack.revision > self.revision):
            self.sync(full=ack.report)
        return ack

    def _again(self) -> None:
        if self.connect():
            self.sync(full=True)

    def heartbeat(self, **fields: Any) -> m.Heartbeat:
        """The present heartbeat."""
        values = {
            "session": self.session or "none", "seq": self.seq, "nonce": f"b{self.seq}", "boot_id": self.boot,
            "incarnation": f"i{self.lives}", "revision": self.revision, "digest": self.digest, "faults": self.faults,
        }  # fmt: skip
        return m.Heartbeat(**{**values, **fields})

    def pull(self, since: int | None = None) -> list[m.Inventory]:
        """All pages after `since`."""
        pages, at = [], self.revision if since is None else since
        while True:
            page = self.say(m.Pull(session=self.session or "none", nonce="p", since=at))
            assert isinstance(page, m.Inventory)
            pages.append(page)
            at = page.revision
            if not page.more:
                return pages

    def sync(self, full: bool = False) -> None:
        """Pull, act, report."""
        self.poked = False
        if self.older:
            return
        try:
            is_full, pages = self.revision == 0, self.pull()
            for page in pages:
                self.apply(page)
            if is_full:
                self.unnamed = self.held.keys() - {vm.uuid for page in pages for vm in page.vms}
            self.act()
            self.report(full=True if full else None)
        except Refused as refusal:
            if refusal.code != "storage-unavailable":
                self.session = None

    def apply(self, page: m.Inventory) -> None:
        """Takes a page as `docs/protocol.md` says."""
        self.order, self.revision, self.generation = page.node, page.revision, page.generation
        self.newest = m.Point(
            history=page.history, generation=page.generation, life=page.life, revision=page.revision, seal=page.seal
        )
        for release in page.releases:
            self.highest[release.uuid] = max(self.highest.get(release.uuid, 0), release.epoch)
            held = self.held.get(release.uuid)
            if held is None or held.epoch <= release.epoch:
                self.held.pop(release.uuid, None)
                if not self.stuck:
                    self.running.discard(release.uuid)
                    self.strays.pop(release.uuid, None)
                    self.arrivals.pop(release.uuid, None)
            if self.gone.get(release.uuid, release.epoch + 1) <= release.epoch:
                del self.gone[release.uuid], self.said[release.uuid]
            self.releases.append(release)
        for vm in page.vms:
            held = self.held.get(vm.uuid)
            floor = self.highest.get(vm.uuid, 0)
            if vm.epoch < floor or (vm.epoch == floor and held is None and floor):
                continue
            if held is not None and held.start_serial != vm.start_serial:
                self.failed.pop(vm.uuid, None)
                self.halted.discard(vm.uuid)
            self.held[vm.uuid] = vm
            self.unnamed.discard(vm.uuid)
            self.highest[vm.uuid] = vm.epoch
            if self.gone.pop(vm.uuid, None) is not None:
                del self.said[vm.uuid]
            arrival = self.arrivals.pop(vm.uuid, None)
            if arrival is not None and arrival.attempt == vm.arrival:
                self.running.add(vm.uuid)
        for command in page.commands:
            if command.id in self.taken:
                continue
            self.taken.add(command.id)
            if command.migration is not None:
                self.said[command.uuid] = m.MigrationReport(
                    attempt=command.id, phase=MigrationPhase.LEAVING, peer=command.migration.target
                )
            elif command.attempt:
                self.cancels.append(command)
            else:
                self.commands.append(command)

    def act(self) -> None:
        """Makes what is what should be."""
        if self.stuck:
            return
        for uuid, vm in self.held.items():
            if uuid in self.said and self.said[uuid].phase == MigrationPhase.LEAVING:
                continue
            if self.order.hold or vm.hold or uuid in self.unnamed:
                continue
            may = self.order.admin_state != "drained" and uuid not in self.failed and uuid not in self.halted
            if vm.desired == "running" and may:
                self.running.add(uuid)
            else:
                self.running.discard(uuid)

    def vm_report(self, uuid: str) -> m.VmReport:
        """What this agent says of a VM that it holds."""
        held, failed = self.held[uuid], self.failed.get(uuid)
        if uuid in self.unadopted:
            return m.VmReport(
                uuid=uuid, epoch=held.epoch, revision=held.revision, observed=Observed.STOPPED, name=held.name,
                problem=self.unadopted[uuid][0], detail=self.unadopted[uuid][1], seal=held.seal,
            )  # fmt: skip
        observed = Observed.FAILED if failed else Observed.RUNNING if uuid in self.running else Observed.STOPPED
        return m.VmReport(
            uuid=uuid, epoch=held.epoch, revision=held.revision, observed=observed, start_serial=held.start_serial,
            problem=self.why_failed if failed else "", detail=failed or "", name=held.name, halted=uuid in self.halted,
            migration=self.said.get(uuid), seal=held.seal,
        )  # fmt: skip

    # --- migration ----------------------------------------------------------------------------------------------------

    def progress(self, uuid: str, **fields: int) -> None:
        """The copying goes on."""
        self.said[uuid] = msgspec.structs.replace(self.said[uuid], progress=m.MigrationProgress(**fields))

    def leave(self, uuid: str, epoch: int | None = None) -> None:
        """The process and the definition are gone from here: recorded."""
        vm, said = self.held.pop(uuid), self.said[uuid]
        self.running.discard(uuid)
        self.gone[uuid] = vm.epoch if epoch is None else epoch
        self.said[uuid] = msgspec.structs.replace(said, phase=MigrationPhase.LEFT, progress=None)

    def stay(self, uuid: str, why: str) -> None:
        """The attempt has failed here."""
        said = self.said[uuid]
        self.said[uuid] = msgspec.structs.replace(said, phase=MigrationPhase.FAILED, detail=why, progress=None)

    def begin_alone(self, uuid: str, attempt: str, peer: str) -> None:
        """Somebody migrates on the node, without the server."""
        self.said[uuid] = m.MigrationReport(attempt=attempt, phase=MigrationPhase.LEAVING, peer=peer)

    def arrive(self, uuid: str, epoch: int, attempt: str, observed: str = "paused", origin: str = "n1") -> None:
        """A copy that names the attempt is here."""
        self.arrivals[uuid] = Arrival(epoch, attempt, observed, origin)

    def _others(self) -> list[m.VmReport]:
        """What this node has of VMs that it does not hold."""
        reports = [
            m.VmReport(
                uuid=uuid, epoch=epoch, revision=0, observed=Observed(state), name="stray",
                seal=seal_of(uuid, epoch, self.origins.get(uuid, self.name)),
            )
            for uuid, (epoch, state) in self.strays.items()
        ]
        reports += [
            m.VmReport(
                uuid=uuid, epoch=epoch, revision=0, observed=Observed.STOPPED, migration=self.said[uuid],
                seal=seal_of(uuid, epoch, self.name),
            )
            for uuid, epoch in self.gone.items()
        ]
        reports += [
            m.VmReport(
                uuid=uuid, epoch=arrival.epoch, revision=0, observed=Observed(arrival.observed),
                migration=m.MigrationReport(
                    attempt=arrival.attempt, phase=MigrationPhase.ARRIVED, peer=arrival.origin, address=ADDRESS,
                    voucher=seals.voucher(seal_of(uuid, arrival.epoch, arrival.origin), arrival.attempt, ADDRESS),
                ),
            )
            for uuid, arrival in self.arrivals.items()
            if uuid not in self.held
        ]  # fmt: skip
        return reports

    def proof(self) -> m.DrainProof | None:
        """State of the drain."""
        if self.order.admin_state != "drained":
            return None
        running = tuple(sorted(self.running | set(self.strays)))
        return m.DrainProof(drain_serial=self.order.drain_serial, boot_id=self.boot, clean=not running, running=running)

    def report(self, full: bool | None = True, **fields: Any) -> m.Base | None:
        """A full report, whatever is asked for: it is always right."""
        self.report_seq = fields.pop("seq", self.report_seq + 1)
        vms = [self.vm_report(uuid) for uuid in self.held]
        vms += self._others()
        results = tuple(m.CommandResult(id=c.id, outcome="done") for c in self.commands)  # type: ignore[arg-type]
        self.digest = f"{hash(tuple(vms)) & 0xFFFFFF:x}"
        values: dict[str, Any] = {
            "session": self.session or "none", "seq": self.report_seq, "revision": self.revision,
            "generation": self.generation, "digest": self.digest, "full": True, "vms": tuple(vms),
            "released": tuple(self.releases), "results": results, "drain": self.proof(),
        }  # fmt: skip
        ack = self.say(m.Report(**{**values, **fields}))
        if isinstance(ack, m.ReportAck):
            self.releases, self.commands = [], []
        return ack


def running(*nodes: str) -> World:
    """These nodes, and the VM `web` that runs on n1."""
    world = World(*nodes)
    world.start()
    world.create("web", "n1")
    return world
