"""A whole Chime with its world: hosts, a server, an operator, and what the oracle knows of them."""

from __future__ import annotations

from typing import Any

import msgspec

from chimed.core.state import effects as sfx
from chimed.core.state import rows as r
from chimed.core.state.turn import Policy
from tests.fakes.names import key_of, uuid_of
from tests.fakes.rows import change
from tests.sim import operators
from tests.sim.engine import Engine, Violation
from tests.sim.host import Host
from tests.sim.network import SERVER, Network
from tests.sim.operators import Operator
from tests.sim.oracle import Oracle
from tests.sim.server import ServerHost
from tests.sim.story import Story
from wire import messages as m
from wire.types import Desired, OnGuestShutdown, OperationState, Storage

SECOND = "second"  # the name of the second server
SETTLE_S = 90.0  # L1
CONFIRM_S = 5.0  # how often a person looks whether something waits for a word, when all faults have stopped


class VmPlan(msgspec.Struct):
    """A VM that is there at the beginning."""

    name: str
    node: str
    desired: Desired = Desired.RUNNING
    storage: Storage = Storage.SHARED
    memory_mib: int = 1024
    on_guest_shutdown: OnGuestShutdown = OnGuestShutdown.STOP
    priority: int = 0


class Plan(msgspec.Struct):
    """How a run begins. `delays`: a key of `delays.KINDS`."""

    nodes: list[str]
    vms: list[VmPlan]
    memory_mib: int = 131_072
    policy: Policy = Policy()
    delays: str = "short"


class Cluster:
    """Begins with agents and server that start, and VMs that are defined nowhere yet. `server`: the one that facts and
    commands mean; `keeps`: the one that goes on when all faults stop."""

    def __init__(self, plan: Plan, seed: int, story: Story | None = None) -> None:
        self.story = story or Story()
        self.engine = Engine(seed, self.story)
        self.engine.delays.become(plan.delays)
        self.network = Network(self.engine)
        self.oracle = Oracle(self.engine)
        self.server = self._new_server(plan.policy, SERVER)
        self.servers = {SERVER: self.server}
        self.keeps = SERVER
        self.split_since = 0.0
        self.hosts = {name: Host(name, self.engine, self.network, self.oracle) for name in plan.nodes}
        self.oracle.hosts = self.hosts
        for host in self.hosts.values():
            host.peers = self.hosts
        self.engine.watch = self.oracle.check
        self.uuids = {vm.name: uuid_of(vm.name) for vm in plan.vms}
        self._register(plan)
        self.operator = Operator(self.engine, self.network)
        self.server.start()
        for host in self.hosts.values():
            host.memory_mib = plan.memory_mib
            host.start_agent()

    def _new_server(self, policy: Policy, name: str) -> ServerHost:
        return ServerHost(self.engine, self.network, self.oracle, policy, self._is_up, name)

    def begin_second_server(self) -> ServerHost | None:
        """A second machine for chimed, with the key of the first, its disk empty. None: there is one already. What the
        first is doing now both will do: whoever begins a second one answers for that."""
        if SECOND in self.servers:
            return None
        first = self.servers[SERVER]
        second = self.servers[SECOND] = self._new_server(first.policy, SECOND)
        second.know_keys_of(first)
        self.oracle.split = self.oracle.was_split = True
        self.split_since = self.engine.now
        self.oracle.doubled(first.disk)
        return second

    def _is_up(self, name: str) -> bool:
        return name in self.hosts and self.hosts[name].powered

    def _register(self, plan: Plan) -> None:
        rows: list[r.Row] = [r.Operator(name=operators.NAME, public_key=key_of(operators.NAME), created=0.0)]
        for name in plan.nodes:
            owned = sum(vm.node == name for vm in plan.vms)
            rows.append(r.Node(name=name, public_key=key_of(name), revision=1 + owned))
            self.server.add_key(name, key_of(name))
        self.server.add_key(operators.NAME, key_of(operators.NAME))
        revisions = dict.fromkeys(plan.nodes, 1)
        for vm in plan.vms:
            revisions[vm.node] += 1
            uuid, revision = self.uuid(vm.name), revisions[vm.node]
            rows.append(
                r.Vm(
                    uuid=uuid, name=vm.name, spec=spec(vm), node=vm.node, epoch=1, desired=vm.desired,
                    revision=revision,
                )
            )
        for row in rows:
            saved = change(row)
            self.server.disk.tables[saved.table][saved.key] = row
            if isinstance(row, r.Vm):
                self.oracle.registered(row)
        self.story.names.update({uuid: name for name, uuid in self.uuids.items()})

    # --- names --------------------------------------------------------------------------------------------------------

    def uuid(self, vm: str) -> str:
        """The UUID of a VM."""
        if vm not in self.uuids:
            self.uuids[vm] = uuid_of(vm)
            self.story.names[self.uuids[vm]] = vm
        return self.uuids[vm]

    def host(self, node: str) -> Host:
        """A host. Raises KeyError."""
        return self.hosts[node]

    def where(self, vm: str) -> Host | None:
        """The host on which the VM has a process now, by whomever."""
        uuid = self.uuid(vm)
        return next((host for host in self.hosts.values() if uuid in host.hypervisor.alive()), None)

    # --- questions ----------------------------------------------------------------------------------------------------

    def ask(self, body: m.Base) -> Any:
        """The server's answer to an operator's question, without the network. None: it does not run, or refuses."""
        process = self.server.process
        if process is None:
            return None
        event = sfx.Received(key_of(operators.NAME), b"", body, "q", lambda: "")
        for effect in process.core.handle(event, self.server.clock.now()):
            if isinstance(effect, sfx.Send) and isinstance(effect.body, m.Ok):
                return effect.body.result
        return None

    def vm_view(self, vm: str) -> m.VmView | None:
        """A VM as operators see it."""
        return next((v for v in self.vm_views() if v.name == vm), None)

    def vm_views(self) -> list[m.VmView]:
        """All VMs as operators see them."""
        found = self.ask(m.VmList())
        return found["items"] if found else []

    def node_views(self) -> list[m.NodeView]:
        """All nodes as operators see them."""
        found = self.ask(m.NodeList())
        return found["items"] if found else []

    def alarms(self) -> list[m.AlarmView]:
        """The active alarms."""
        found = self.ask(m.AlarmList())
        return found["items"] if found else []

    def is_behind(self) -> bool:
        """Whether the server has found that its database is older than what nodes hold, and does not recover yet."""
        return bool((self.ask(m.ServerStatus()) or {}).get("behind"))

    def waits_for_a_person(self) -> bool:
        """Whether the server holds something until somebody who has looked confirms, as the documentation says."""
        status = self.ask(m.ServerStatus()) or {}
        return any(status.get(name) for name in ("recovering", "behind", "held_vms", "held_nodes"))

    def is_evacuating(self) -> bool:
        """Whether VMs are still to be migrated away from a node."""
        operations = self.server.disk.tables["operations"].values()
        return any(op.kind == "evacuate" and op.state == OperationState.RUNNING for op in operations)  # type: ignore[attr-defined]

    # --- the end of a run ---------------------------------------------------------------------------------------------

    def end_faults(self) -> None:
        """Everything works again; people undo what they did by hand."""
        self.story.tell(self.engine.now, "world", "all faults stop")
        self._one_server()
        server = self.server
        server.disk.fault, server.wanted, server.pings_fail = "", True, False
        if server.process is not None:
            server.process.stalled_until = 0.0
            server.process.crash_at.clear()
        server.start()
        self.network.without_data.clear()
        for name in [*self.hosts, operators.NAME]:
            path = self.network.path(name)
            path.loss = path.duplicates = path.reorders = path.delay_s = 0.0
            path.ping = True
            self.network.heal(name)
        for host in self.hosts.values():
            self._end_faults_of(host)
        self._confirm_until = self.engine.now + SETTLE_S - 1.0
        self.engine.after(CONFIRM_S, self._confirm_held)

        self.add_keys()

    def _confirm_held(self) -> None:
        """What a restored database wants, and nobody has confirmed yet: a person reads the list, and wants it too."""
        status = self.ask(m.ServerStatus())
        if status and not status["recovering"] and (status["held_vms"] or status["held_nodes"]):
            self.operator.request("recovery confirm", m.RecoveryConfirm, comment="the list was read")
        if self.engine.now < self._confirm_until:
            self.engine.after(CONFIRM_S, self._confirm_held)

    def _one_server(self) -> None:
        """Of two servers one goes on, and everybody connects to it."""
        for name, server in self.servers.items():
            if name != self.keeps:
                server.wanted = False
                server.kill()
        if self.keeps != self.server.name:
            self.oracle.restored(self.split_since)
        self.server = self.servers[self.keeps]
        for name in [*self.hosts, operators.NAME]:
            self.network.flip(name, self.keeps)
        self.oracle.split = False

    def add_keys(self, times: int = 5) -> None:
        """Whoever has joined a node again tells the server its key, and looks whether it has it."""
        if times > 1:
            self.engine.after(SETTLE_S / 10, self.add_keys, times - 1)  # a request may have waited, and come late
        nodes = self.server.disk.tables["nodes"]
        for name, host in self.hosts.items():
            row: Any = nodes.get((name,))
            if row is not None and row.public_key != host.key and host.keys > 1:
                self.know_key(host)
                self.operator.request(f"rekey {name}", m.NodeRekey, name=name, public_key=host.key)

    def know_key(self, host: Host) -> None:
        """Where frames with the host's present key come from."""
        for server in self.servers.values():
            server.add_key(host.name, host.key)

    def _end_faults_of(self, host: Host) -> None:
        host.wanted, host.disk.full, host.faults = True, False, ()
        host.power_on()
        hypervisor = host.hypervisor
        hypervisor.restore()
        hypervisor.end_failures()
        hypervisor.blind = False
        host.hangs_in_start = host.finish_lost = False
        host.unhang()
        for uuid in {process.uuid for process in hypervisor.outside}:
            hypervisor.person_end(uuid)
        for uuid, domain in list(hypervisor.domains.items()):
            domain.obeys = domain.killable = True
            domain.letter = "S"
            if uuid not in hypervisor.handed_over and hypervisor.is_paused(uuid):
                hypervisor.person_resume(uuid)
        if host.agent is not None:
            host.agent.crash_in = 0
            host.agent.thaw()
        else:
            host.start_agent()

    def check_picture(self) -> None:
        """L1: reality is as it should be, and the server knows. Raises Violation."""
        if self.server.process is None:
            raise Violation("L1", "chimed does not run", "chimed")
        wrong = self.oracle.picture(self.vm_views(), self.node_views(), self.server.disk)
        if wrong:
            raise Violation("L1", "; ".join(wrong[:5]), next((w for w in wrong[0].split() if self._is_name(w)), ""))

    def _is_name(self, word: str) -> bool:
        return word in self.hosts or word in self.uuids or word in self.uuids.values()

    def check_answers(self) -> None:
        """S3: what was acknowledged is answered the same again. Raises Violation."""
        since = min(self.oracle.restored_from, default=float("inf"))
        again = [q for q in self.operator.requests if isinstance(q.answer, m.Ok) and q.answered < since]
        for request in again:
            request.asked = self.engine.now
            self.operator.again(request)
        self.engine.run_until(self.engine.now + 15.0)
        if any(request.body.key in self.operator.unanswered for request in again):
            raise Violation("S3", "an acknowledged request is not answered again", "")


def spec(vm: VmPlan) -> m.VmSpec:
    """What the VM is made of."""
    disk = m.Disk(path=f"/srv/{vm.name}.qcow2", storage="local" if vm.storage == Storage.LOCAL else "shared")  # type: ignore[arg-type]
    return m.VmSpec(
        vcpus=1, memory_mib=vm.memory_mib, disks=(disk,), on_guest_shutdown=vm.on_guest_shutdown, priority=vm.priority
    )
