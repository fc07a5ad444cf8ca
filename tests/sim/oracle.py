"""What is true, and whether it may be. Knows hosts, processes, disks; of Chime only what it commits, claims and does.

S1 and S5 are judged when a process begins, ends, or is touched; S2 and S4 at each commit; S3 when answers are repeated;
L1 when all faults have stopped (`picture`); S7 by `trust`. Excused are only what people made with their own hands, and
what follows from their false word: those are remembered here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentd.core import effects as fx
from agentd.core.durable import Durable, Left
from chimed.core.state import rows as r
from chimed.core.state.turn import EPOCHS_PER_GENERATION
from tests.fakes.store import FakeDisk
from tests.sim.engine import Engine, Violation
from tests.sim.trust import Trust
from wire import messages as m
from wire.types import AdminState, Desired, Evidence, Health, Observed, Storage

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.server import ServerHost

AWAY = "migrated away"


class Oracle:
    """Raises `Violation`. `words`: nodes for which a person gave his word. `lies`: those where it was not so.
    `excused`: VMs that a person moved by hand. `may_halt`: VMs that ended in a way that may look like the guest's own.
    `split`: two servers run, with one key; `was_split`: they did, and what a person has said of a host holds on.
    `_server`: the one whose turn it is.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.hosts: dict[str, Host] = {}
        self.words: set[str] = set()
        self.lies: set[str] = set()
        self.may_halt: set[str] = set()
        self.split = self.was_split = False
        self._unconfirmed: set[str] = set()  # hosts whose agent has an older state, and not been answered since
        self.trust = Trust(self.spoil)
        self._undecidable: set[str] = set()  # VMs that were given away by who could not know better
        self._may_repeat: set[str] = set()  # commands that were carried out, and the agent's record of it put back
        self._server: ServerHost | None = None
        self._newest: dict[str, tuple[int, str]] = {}  # each VM's highest epoch, and its owner
        self.excused: set[str] = set()
        self._spoilt: set[str] = set()
        self._out_of_sight: set[str] = set()
        self.managed: set[str] = set()
        self.foreign: set[str] = set()
        self.on_the_node: set[tuple[str, str]] = set()  # (node, VM): migrated there without the server
        self._attempts: dict[str, set[str]] = {}
        self._stale: set[str] = set()  # attempts whose copy is older than the VM's disk
        self.starts: Counter[str] = Counter()
        self.reboots_asked: Counter[str] = Counter()
        self.events: list[r.Event] = []
        self.hand_started: dict[tuple[str, str], float] = {}
        self.restored_from: list[float] = []
        self._kept: set[str] = set()  # VMs of which a node was told to give them back
        self._taken_over: set[str] = set()
        self._dirty: set[str] = set()
        self._owners: dict[tuple[str, int], str] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._ran_on: dict[str, set[str]] = {}
        self._halts: set[tuple[str, int]] = set()
        self._drained: set[tuple[str, str]] = set()  # (server, node)
        self._drained_on_node: set[str] = set()
        self._inventories: dict[str, tuple[int, int]] = {}
        self._nodes_before: dict[str, r.Node] = {}  # what a turn began with: it may use evidence and then withdraw it

    def spoil(self, uuid: str) -> None:
        """A person has done with the VM what no program can mend: nothing is demanded of it any more."""
        self.excused.add(uuid)
        self._spoilt.add(uuid)

    def has_gone_out_of_sight(self, uuid: str) -> None:
        """It was migrated to a host that is none of Chime's, or not any more: it may run there, so that a person has to
        say what became of it before it is started elsewhere."""
        self._out_of_sight.add(uuid)

    # --- S1, S3, S5: what is done to VMs ------------------------------------------------------------------------------

    def registered(self, vm: r.Vm) -> None:
        """It is there at the beginning."""
        self.managed.add(vm.uuid)
        self._owners[(vm.uuid, vm.epoch)] = vm.node

    def begins_to_lie(self, node: str, disk: FakeDisk) -> None:
        """Somebody has the node's key from now on."""
        owned = [uuid for (uuid, _), owner in self._owners.items() if owner == node]
        on_the_node = [uuid for name, uuid in self.on_the_node if name == node]
        self.trust.begins_to_lie(node, disk, (*owned, *on_the_node))

    def touched(self, uuid: str) -> None:
        """A process of the VM may have begun or ended."""
        self._dirty.add(uuid)

    def check(self) -> None:
        """S1, for every VM that was touched since the last time."""
        if self._dirty:
            for uuid in self._dirty:
                self._at_most_one(uuid)
            self._dirty.clear()

    def running_on(self, uuid: str) -> list[str]:
        """The hosts with a process of the VM that can run; a host with two is named twice."""
        return [name for name, host in self.hosts.items() for _ in range(host.hypervisor.processes_of(uuid))]

    def _at_most_one(self, uuid: str) -> None:
        by_chime = [
            name for name in self.running_on(uuid)
            if uuid not in self.hosts[name].hypervisor.by_hand and name not in self.lies
        ]  # fmt: skip
        if len(by_chime) < 2 or uuid in self.excused:
            return
        if self._server is not None and self._server.ahead:
            self.spoil(uuid)  # a person has put an older server in place, and nobody who knows better is heard
        else:
            raise Violation("S1", f"two qemus of one VM: {uuid} on {' and '.join(by_chime)}", uuid)

    def started(self, host: Host, uuid: str, looked_at: float) -> None:
        """Chime has started the VM there: copies that have not run yet are worth nothing. `looked_at`: when its guard
        looked; what a person starts until libvirt has made the process cannot be known."""
        self.starts[uuid] += 1
        self._stale |= self._attempts.get(uuid, set())
        self._ran_on.setdefault(uuid, set()).add(host.name)
        was_there = self.hand_started.get((host.name, uuid), -1e9) < looked_at
        if host.hypervisor.processes_of(uuid) > 1 and was_there:
            raise Violation("S1", f"{uuid} was started on {host.name} beside a process that was there", uuid)

    def agent_orders(self, host: Host, act: fx.Act) -> None:
        """The agent orders something to be done to a VM, which libvirt may do much later."""
        saved, domain = host.disk.load()[0], host.hypervisor.domains.get(act.uuid)
        stone, stamp = saved.tombstones.get(act.uuid), domain.stamp if domain is not None else None
        given_back = stone is not None and stone.keep and act.uuid not in saved.held
        if given_back:
            if act.action != fx.Action.GIVE_BACK:
                raise Violation("S5", f"{act.action} of {act.uuid} on {host.name}, which was given back", act.uuid)
            return
        # row 8: what bears the UUID of a release and no mark is ended too, also if it was given back elsewhere (ADR 16)
        left_over = stone is not None and (stamp is None or stamp.epoch <= stone.epoch)
        is_known = left_over or act.uuid in saved.held  # it may not have heard yet that the VM is given back
        if not is_known and (act.uuid in self.foreign or act.uuid not in self.managed):
            raise Violation("S5", f"{act.action} of {act.uuid}, which is not Chime's, on {host.name}", act.uuid)

    def agent_acts(self, host: Host, act: fx.Act) -> None:
        """Something is about to be done to a VM."""
        is_theirs = act.vm is not None and act.vm.adopt and act.uuid not in self._taken_over
        if is_theirs and act.action != fx.Action.ADOPT and act.uuid in host.hypervisor.domains:
            raise Violation("S5", f"{act.action} of {act.uuid} on {host.name}, which is not taken over", act.uuid)
        if act.action == fx.Action.DEFINE and act.vm is not None:
            self._defines(host, act.vm)
        if act.action == fx.Action.REBOOT:
            done = 1 + sum(h.hypervisor.reboots.count(act.uuid) for h in self.hosts.values())
            if done > self.reboots_asked[act.uuid]:
                raise Violation("S3", f"{act.uuid} is rebooted more often than anyone asked", act.uuid)

    def agent_took_over(self, host: Host, uuid: str) -> None:
        """A person's VM is Chime's from now on, but for a process that they have beside libvirt's."""
        self._taken_over.add(uuid)
        if not any(process.uuid == uuid for process in host.hypervisor.outside):
            host.hypervisor.by_hand.discard(uuid)

    # --- S1, R1, S3: live migration -----------------------------------------------------------------------------------

    def agent_migrates(self, host: Host, uuid: str, attempt: str) -> None:
        """The agent orders a migration from libvirt: it has recorded that, and does it once."""
        held = host.disk.load()[0].held.get(uuid)
        recorded = held is not None and held.attempt is not None and held.attempt.id == attempt
        if not recorded:
            raise Violation("S3", f"{host.name} migrates {uuid} away, and has not recorded {attempt}", uuid)
        if attempt in self._may_repeat:
            self._may_repeat.discard(attempt)
            self._stale.discard(attempt)  # libvirt refuses it while the first copy is there
        elif attempt in self._attempts.setdefault(uuid, set()):
            raise Violation("S3", f"{host.name} begins {attempt} of {uuid} once more", uuid)
        self._attempts[uuid].add(attempt)

    def agent_hands_over(self, host: Host, uuid: str, left: Left) -> None:
        """The agent lets the copy on the target run: it has recorded that the VM is gone, and it is. One that is paused
        here came by another attempt: it is on its way back."""
        if uuid not in host.disk.load()[0].left:
            raise Violation("S3", f"{host.name} hands {uuid} over, and has not recorded that it left", uuid)
        here = host.hypervisor.processes_of(uuid) > 0 or uuid in host.hypervisor.creating
        if here and uuid not in host.hypervisor.by_hand | self.excused:
            raise Violation("S1", f"{host.name} hands {uuid} over by {left.attempt}, which is there", uuid)

    def source_goes_on(self, attempt: str) -> None:
        """The source of the attempt runs on: its copy is worth nothing."""
        self._stale.add(attempt)

    def copy_runs(self, host: Host, uuid: str, attempt: str) -> None:
        """A copy is about to run."""
        if attempt in self._stale and uuid not in self.excused and not self.lies:
            raise Violation("R1", f"the copy of {uuid} on {host.name} runs, and is older than its disk", uuid)

    def _defines(self, host: Host, vm: m.Assignment) -> None:
        domain = host.hypervisor.domains.get(vm.uuid)
        if domain is not None and domain.stamp is not None and domain.stamp.epoch > vm.epoch:
            text = f"{host.name} defines {vm.name} in epoch {vm.epoch} over {domain.stamp.epoch}"
            raise Violation("S4", text, vm.uuid)
        elsewhere = self._ran_on.get(vm.uuid, set()) - {host.name}
        is_excused = bool(self.restored_from) or vm.uuid in self._spoilt or host.name in self.lies
        if vm.create_disks and elsewhere and not is_excused:
            raise Violation("S5", f"{host.name} may make disks of {vm.name}, which has run on {elsewhere}", vm.uuid)

    # --- S2, S4: what the server commits ------------------------------------------------------------------------------

    def committed(
        self, server: ServerHost, before: list[tuple[r.Change, r.Row | None]], events: list[r.Event]
    ) -> None:
        """A transaction is on the server's disk; `before`: its changes, with the rows that they replaced."""
        for event in events:
            self.events.append(event)
            text = f"{event.actor}: {event.action} {event.subject}: {event.text}"
            self._engine.story.tell(self._engine.now, "chimed", text, event.subject)
        self._server, disk = server, server.disk
        self._nodes_before = {old.name: old for _, old in before if isinstance(old, r.Node)}
        self.trust.committed(server, before)
        for change, old in before:
            if isinstance(change.row or old, r.Vm | r.Release) and (change.row or old).uuid in self.trust.theirs:
                continue  # nothing is demanded of it
            if change.table == "vms":
                self._vm_committed(disk, old, change.row)  # type: ignore[arg-type]
                self._stopped_by_guest(events, old, change.row)  # type: ignore[arg-type]
            elif change.table == "nodes":
                self._node_committed(old, change.row)  # type: ignore[arg-type]
            elif isinstance(change.row, r.Release) and change.row.keep:
                self._kept.add(change.row.uuid)

    def _vm_committed(self, disk: FakeDisk, old: r.Vm | None, new: r.Vm | None) -> None:
        if new is None:
            assert old is not None
            self._ran_on.pop(old.uuid, None)
            if old.uuid in self._kept:
                self._given_back(old.uuid)
                return
            self._must_not_run(old.uuid, old.node, "forgotten")
            return
        self.managed.add(new.uuid)
        if new.uuid in self._undecidable or self._cannot_know(old, new):
            self._undecidable.add(new.uuid)
            self.spoil(new.uuid)
            return
        if new.uuid in self.foreign and not new.adopt:
            self.spoil(new.uuid)  # a person has used the UUID of a VM that was given back once more
        self.foreign.discard(new.uuid)  # if it was one, it is imported
        self._newest[new.uuid] = max(self._newest.get(new.uuid, (0, "")), (new.epoch, new.node))
        owner = self._owners.setdefault((new.uuid, new.epoch), new.node)
        if owner != new.node:
            raise Violation("S4", f"epoch {new.epoch} of {new.name} belongs to {owner} and to {new.node}", new.uuid)
        if old is None:
            return
        if new.epoch < old.epoch:
            raise Violation("S4", f"the epoch of {new.name} falls from {old.epoch} to {new.epoch}", new.uuid)
        if new.node != old.node:
            self._moved(disk, old, new)

    def _cannot_know(self, old: r.Vm | None, new: r.Vm) -> bool:
        """A person has put an old database in place, or runs two servers, and nobody who knows better is heard: what is
        decided then, on that person's word, is his."""
        if old is not None and (old.node, old.epoch) == (new.node, new.epoch):
            return False
        process = self._server.process if self._server is not None else None
        if process is not None and process.in_the_dark:
            return True
        if not self.was_split:
            return False
        if old is None:
            return self.split and new.uuid in self._newest
        known = self._newest.get(new.uuid, (old.epoch, old.node)) if self.split else (old.epoch, old.node)
        node: Any = self._server.disk.tables["nodes"].get((old.node,)) if self._server else None
        nodes = (node, self._nodes_before.get(old.node))
        by_word = any(_is_proven(row) and row.evidence == Evidence.OPERATOR for row in nodes)
        return by_word or known != (old.epoch, old.node)

    def _given_back(self, uuid: str) -> None:
        """It is a person's from now on, with all that runs of it."""
        self.managed.discard(uuid)
        self.foreign.add(uuid)
        self._kept.discard(uuid)
        self._taken_over.discard(uuid)
        for host in self.hosts.values():
            if uuid in host.hypervisor.alive():
                host.hypervisor.by_hand.add(uuid)

    def _stopped_by_guest(self, events: list[r.Event], old: r.Vm | None, new: r.Vm | None) -> None:
        if old is None or new is None or not any(e.action == "vm-stopped" and e.subject == new.uuid for e in events):
            return
        if new.uuid not in self.may_halt:
            raise Violation("S3", f"{new.name} is to stay off, though its guest did not power off", new.uuid)
        if not {(new.uuid, old.start_serial), (new.uuid, new.start_serial)} & self._halts:
            raise Violation("S3", f"{new.name} is to stay off for what its guest did before it was started", new.uuid)

    def _moved(self, disk: FakeDisk, old: r.Vm, new: r.Vm) -> None:
        generation = disk.tables["meta"][()].generation  # type: ignore[attr-defined]
        if new.epoch == old.epoch:
            raise Violation("S4", f"{new.name} changes its owner within epoch {new.epoch}", new.uuid)
        node: Any = disk.tables["nodes"].get((old.node,))
        found = old.held == r.Held.START  # its node has it not, and starts it by a person's word only
        adopted = found or (generation > 1 and old.epoch <= (generation - 1) * EPOCHS_PER_GENERATION)
        proven = _is_proven(node) or _is_proven(self._nodes_before.get(old.node))
        migrated = not proven and self._cannot_run(old)
        if not adopted and not migrated and self._server is not None and self._server.hears(old.node, new.uuid):
            text = f"{new.name} moves from {old.node}, which is heard and has not said that it is off"
            raise Violation("S2", text, new.uuid)
        if not proven and not adopted and not migrated:
            raise Violation("S2", f"{new.name} moves from {old.node} to {new.node} without evidence", new.uuid)
        release: Any = disk.tables["releases"].get((old.node, new.uuid))
        if release is None or release.epoch < old.epoch:
            raise Violation("S2", f"{new.name} moves from {old.node} without a release", new.uuid)
        if not adopted and old.spec.storage == Storage.LOCAL and new.uuid not in self.excused:
            raise Violation("S2", f"{new.name} moves to {new.node}, and its disks do not", new.uuid)
        if proven or migrated or found:
            self._must_not_run(new.uuid, old.node, f"given to {new.node}")

    def _cannot_run(self, vm: r.Vm) -> bool:
        """Whether its old owner has recorded that it left, or that it should not run: then a move needs no drain."""
        host = self.hosts.get(vm.node)
        if host is None or vm.uuid in self.excused:
            return host is not None
        if host.name in self._unconfirmed:
            return True  # it starts nothing before the server has answered
        saved = host.disk.load()[0]
        held = saved.held.get(vm.uuid)
        return held is None or held.vm.desired != Desired.RUNNING or held.failed or held.halted

    def _must_not_run(self, uuid: str, node: str, what: str) -> None:
        host = self.hosts.get(node)
        if host is None or node in self.lies or uuid in host.hypervisor.by_hand or uuid in self.excused:
            return
        runs = uuid in host.hypervisor.alive() and uuid not in host.hypervisor.handed_over  # else a copy that comes
        if runs or uuid in host.hypervisor.creating:
            raise Violation("S2", f"{uuid} is {what} while it runs on {node}", uuid)

    def _node_removed(self, name: str) -> None:
        """Whoever removes a node that is not heard answers for what was migrated to it while nobody heard of that."""
        host = self.hosts[name]
        assert self._server is not None
        if not self._server.in_session(name):
            for uuid, domain in host.hypervisor.domains.items():
                if domain.stamp is not None and domain.stamp.attempt:
                    self.has_gone_out_of_sight(uuid)

    def _node_committed(self, old: r.Node | None, new: r.Node | None) -> None:
        if old is not None and new is None:
            self._node_removed(old.name)
        if old is None or new is None:
            return
        assert self._server is not None
        self._note_drained(self._server.name, new)
        if new.name in self.trust.liars:
            return
        if _is_lost(new) and not _is_lost(old) and self._engine.now < self._server.judges_from:
            raise Violation("rule 6", f"{new.name} is called lost before it had time to be heard", new.name)
        if new.evidence is None:
            return
        if new.evidence == Evidence.AGENT and new.evidence_boot_id != new.boot_id:
            raise Violation("S2", f"the evidence for {new.name} is of another boot", new.name)
        if (old.evidence, old.drain_serial) == (new.evidence, new.drain_serial):
            return
        host = self.hosts[new.name]
        if new.evidence == Evidence.OPERATOR and new.name not in self.words:
            raise Violation("S2", f"nobody gave his word for {new.name}", new.name)
        if new.evidence == Evidence.OPERATOR:  # whoever gives it knows of what was migrated away on the node
            self.excused |= {uuid for node, uuid in self.on_the_node if node == new.name}
        if new.evidence == Evidence.OPERATOR and host.powered:
            self._engine.story.tell(self._engine.now, "oracle", f"the word given for {new.name} is false", new.name)
            self.lies.add(new.name)
        if new.evidence == Evidence.AGENT:
            ours = (host.hypervisor.alive() | host.hypervisor.creating) & self.managed - host.hypervisor.by_hand
            ours -= host.hypervisor.handed_over  # they came by a migration, and do not run
            if ours - self.excused - self._kept:
                text = f"{new.name} is believed to run nothing, and runs {', '.join(sorted(ours))}"
                raise Violation("S2", text, new.name)

    def _note_drained(self, server: str, node: r.Node) -> None:
        if node.admin_state == AdminState.DRAINED:
            self._drained.add((server, node.name))
            self._drained_on_node.discard(node.name)
        else:
            self._drained.discard((server, node.name))

    def restored(self, taken: float) -> None:
        """An older database was put in place: what was acknowledged since it was taken may be gone."""
        self.restored_from.append(taken)

    def doubled(self, disk: FakeDisk) -> None:
        """Two servers go on from this database: what it was doing both do."""
        operations = {row.id: row for row in disk.tables["operations"].values() if row.state == "running"}  # type: ignore[attr-defined]
        for vm in disk.tables["vms"].values():
            node: Any = disk.tables["nodes"].get((vm.node,))  # type: ignore[attr-defined]
            if vm.operation or (node is not None and node.lock) or any(op.moving for op in operations.values()):  # type: ignore[attr-defined]
                self.spoil(vm.uuid)  # type: ignore[attr-defined]

    def forget_unheard(self, disk: FakeDisk) -> None:
        """Epochs that this older database does not know, and that no agent has ever heard of: they never were."""
        rows: dict[Any, Any] = disk.tables["vms"]
        saved = [host.disk.load()[0] for host in self.hosts.values()]
        for uuid, epoch in list(self._owners):
            known = rows[(uuid,)].epoch if (uuid,) in rows else 0
            if epoch > known and all(durable.highest_epoch(uuid) < epoch for durable in saved):
                del self._owners[(uuid, epoch)]
        self._newest = {}
        for (uuid, epoch), node in self._owners.items():
            self._newest[uuid] = max(self._newest.get(uuid, (0, "")), (epoch, node))

    def ahead_of(self, disk: FakeDisk) -> set[str]:
        """The nodes that hold a newer inventory than the database has given them."""
        generation = disk.tables["meta"][()].generation  # type: ignore[attr-defined]
        rows: dict[str, r.Node] = {row.name: row for row in disk.tables["nodes"].values()}  # type: ignore[attr-defined]
        held = {name: host.disk.load()[0] for name, host in self.hosts.items()}
        given = {name: (generation, rows[name].revision) if name in rows else (generation, 0) for name in held}
        return {name for name, saved in held.items() if (saved.generation, saved.revision) > given[name]}

    # --- S3, S4: what agents record and claim -------------------------------------------------------------------------

    def agent_saved(self, host: Host, durable: Durable) -> None:
        """A snapshot is on disk."""
        if host.name in self.trust.liars:
            return
        if not durable.put_back:
            self._unconfirmed.discard(host.name)
        if host.name in self._drained_on_node and not durable.local_drain:
            text = f"{host.name} forgets a drain that it accepted and the server does not know"
            raise Violation("S3", text, host.name)
        inventory = (durable.generation, durable.revision)
        if inventory < self._inventories.get(host.name, (0, 0)):
            raise Violation("S4", f"the inventory of {host.name} goes back to {inventory}", host.name)
        self._inventories[host.name] = inventory
        epochs = self._epochs
        for uuid in (*durable.held, *durable.tombstones):
            epoch, key = durable.highest_epoch(uuid), (host.name, uuid)
            if epoch < epochs.get(key, 0):
                raise Violation("S4", f"the epoch of {uuid} falls on {host.name} to {epoch}", uuid)
            epochs[key] = epoch

    def drain_accepted(self, host: Host) -> None:
        """The agent has told a person on the node that it is drained."""
        if host.name not in {node for _, node in self._drained}:
            self._drained_on_node.add(host.name)

    def snapshot_lost(self, host: Host) -> None:
        """Its epochs are forgotten with it, and a drain."""
        self._drained_on_node.discard(host.name)
        self._inventories.pop(host.name, None)
        self.excused |= {uuid for node, uuid in self.on_the_node if node == host.name}  # the server cannot know
        for key in [key for key in self._epochs if key[0] == host.name]:
            del self._epochs[key]

    def snapshot_put_back(self, host: Host, newer: Durable, older: Durable) -> None:
        """An older one is there: what the server has not heard yet of what is only in the newer one, nobody knows any
        more. A command that was carried out since may come again."""
        self.snapshot_lost(host)
        self._unconfirmed.add(host.name)
        self.excused |= newer.left.keys() - older.left.keys()
        self._may_repeat |= newer.journal.keys() - older.journal.keys()
        for key in newer.journal.keys() - older.journal.keys():
            self.reboots_asked[newer.journal[key].uuid] += 1

    def agent_claims(self, host: Host, report: m.Report) -> None:
        """What an agent tells must be recorded, and true."""
        if host.name in self.trust.liars:
            return
        saved = host.disk.load()[0]
        for result in report.results:
            entry = saved.journal.get(result.id)
            if entry is None or entry.result != result:
                text = f"{host.name} tells the result of {result.id}, which it has not recorded"
                raise Violation("S3", text, host.name)
        for vm in report.vms:
            held = saved.held.get(vm.uuid)
            if vm.halted and (held is None or not held.halted):
                raise Violation("S3", f"{host.name} tells that {vm.name} is halted, and has not recorded it", vm.uuid)
        self._halts |= {(vm.uuid, vm.start_serial) for vm in report.vms if vm.halted}
        if report.local_drain and not saved.local_drain:
            raise Violation("S3", f"{host.name} tells of a drain that it has not recorded", host.name)
        for release in report.released:
            domain = host.hypervisor.domains.get(release.uuid)
            stamped = domain is not None and domain.stamp is not None and domain.stamp.epoch <= release.epoch
            coming = release.uuid in host.hypervisor.handed_over  # since: it does not run
            if stamped and not coming and release.uuid not in host.hypervisor.by_hand:
                text = f"{host.name} confirms the release of {release.uuid}, which is there"
                raise Violation("S2", text, release.uuid)

    # --- L1 -----------------------------------------------------------------------------------------------------------

    def picture(self, vms: Iterable[m.VmView], nodes: Iterable[m.NodeView], disk: FakeDisk) -> list[str]:
        """What is not as it should be, though all faults have stopped. Empty: all is well."""
        by_name, vms = {node.name: node for node in nodes}, list(vms)
        shown = {vm.uuid for vm in vms}
        lost: set[str] = self.managed - shown if self.restored_from else set()  # a restored database may not know them
        doubtful = self.excused | self.foreign | lost  # a copy of what was given back while it was migrated stays, say
        rows: Iterable[r.Vm] = disk.tables["vms"].values()  # type: ignore[assignment]
        refused = {row.uuid for row in rows if row.adopt} - self._taken_over  # an import whose end nobody has awaited
        unsure = {vm.node for vm in vms if AWAY in vm.detail or vm.uuid in self.excused | refused}
        unsure |= {vm.node for vm in vms if set(self.running_on(vm.uuid)) - by_name.keys()}
        for name, host in self.hosts.items():
            if (host.hypervisor.alive() | host.disk.load()[0].left.keys()) & doubtful:
                unsure.add(name)
        liars = self.trust.liars
        honest = [node for node in by_name.values() if node.name not in liars]
        wrong = [text for node in honest for text in self._node_wrong(node, node.name in unsure)]
        judged = [vm for vm in vms if vm.uuid not in refused | self._spoilt | self._out_of_sight]
        wrong += [text for vm in judged for text in self._vm_wrong(vm, by_name)]
        for uuid in self.managed - shown - lost - self.excused:
            wrong += [f"{uuid} is deleted, but runs on {name}" for name in self.running_on(uuid)]
        for host in (host for name, host in self.hosts.items() if name in by_name and name not in liars):
            left = host.hypervisor.handed_over - doubtful
            wrong += [f"a paused copy of {uuid} is left on {host.name}" for uuid in sorted(left)]
        releases: list[Any] = [row for row in disk.tables["releases"].values() if row.node not in liars]  # type: ignore[attr-defined]
        releases = [row for row in releases if (row.node,) in disk.tables["nodes"]]  # they wait for who comes again
        releases = [row for row in releases if row.uuid not in self.trust.theirs]  # a liar sends its own to and fro
        wrong += [f"{row.node} has not confirmed the release of {row.uuid}" for row in releases]
        return wrong

    def _node_wrong(self, node: m.NodeView, unsure: bool) -> list[str]:
        """`unsure`: a person has migrated one of its VMs away, which may run anywhere, also where no node is, or it has
        or had one that the restored database does not know: that is no evidence."""
        wrong = []
        if node.health != "normal":
            wrong.append(f"{node.name} is {node.health} {node.reasons}")
        if node.admin_state == AdminState.DRAINED and node.drain_evidence is None and not unsure:
            wrong.append(f"{node.name} is drained without evidence")
        return wrong

    def _vm_wrong(self, vm: m.VmView, nodes: dict[str, m.NodeView]) -> list[str]:
        node, running = nodes[vm.node or ""], self.running_on(vm.uuid)
        if set(running) - nodes.keys():
            return []  # a person has migrated it to a host that is no node any more
        gave_up = vm.observed == Observed.FAILED or AWAY in vm.detail
        should = vm.desired == Desired.RUNNING and node.admin_state != AdminState.DRAINED and not gave_up
        if running != ([vm.node] if should else []):
            shown = f"{vm.name} ({vm.desired}, {vm.observed}, {vm.detail!r}) on {vm.node}"
            return [f"{shown} runs on {running or 'no host'}"]
        told = vm.observed in (Observed.RUNNING, Observed.PAUSED)
        if told != should:
            return [f"{vm.name} is shown as {vm.observed}, and runs on {running or 'no host'}"]
        return []


def _is_proven(node: r.Node | None) -> bool:
    return node is not None and node.admin_state == AdminState.DRAINED and node.evidence is not None


def _is_lost(node: r.Node) -> bool:
    return node.health == Health.UNREACHABLE or "agent-lost" in node.reasons
