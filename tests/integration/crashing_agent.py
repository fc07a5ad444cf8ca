"""Real agents that die at chosen system calls of their saves, and a client that remembers what it was promised."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd import snapshot
from agentd.core.durable import Durable
from tests.hosts import HostError, wait_until
from tests.hosts.strace import Attached, Fault, place_of_death
from tests.integration.chime import Chime, new_key, tiny, unique
from wire import messages as m
from wire.client import Client
from wire.errors import ChimeError
from wire.types import Desired

VMS = 2
ANSWER_S = 10.0
OPERATION_S = 90.0
NOT_NOW = frozenset({"node-unreachable", "no-room", "locked", "unreachable", "conflict"})
AFTER = {m.VmStop: Desired.STOPPED, m.VmDelete: Desired.DELETED}


@dataclass
class Promise:
    """A VM as the last finished operation left it; `busy` while another one runs. `pid` of its process, 0: none.
    `reboot`: the id of the last command."""

    name: str
    uuid: str
    desired: Desired
    busy: bool = False
    pid: int = 0
    reboot: str = ""


class Owner(threading.Thread):
    """The client of one node: it changes the node and its VMs, one thing after the other, and waits for each."""

    def __init__(self, chime: Chime, node: str, seed: str, counts: Counter[str]) -> None:
        super().__init__(name=f"owner of {node}")
        self.chime, self.node, self.rng, self.counts = chime, node, random.Random(seed), counts
        self.promises: dict[str, Promise] = {}
        self.stop = threading.Event()
        self.trouble = ""

    def run(self) -> None:
        """Until `stop`, or trouble."""
        try:
            with self.chime.new_client(ANSWER_S) as client:
                while not self.stop.is_set():
                    self._step(client)
                self._change(client, m.NodeEnable, name=self.node)
        except BaseException as error:
            self.trouble = repr(error)

    def _step(self, client: Client) -> None:
        if self.rng.random() < 0.6:  # quick, and saved by the agent all the same
            self._change(client, self.rng.choice((m.NodeEnable, m.NodeDisable)), name=self.node)
            return
        mine = [promise for promise in self.promises.values() if promise.desired != Desired.DELETED]
        if len(mine) < VMS:
            self._create(client)
            return
        promise = self.rng.choice(mine)
        kind = self.rng.choice((m.VmReboot, m.VmReboot, m.VmStart, m.VmStop, m.VmDelete))
        if kind is m.VmReboot and promise.desired != Desired.RUNNING:
            kind = m.VmStart
        promise.busy = True
        values = {"force": True} if kind in (m.VmReboot, m.VmStop) else {}
        result = self._change(client, kind, vm=promise.uuid, **values)
        if result is not None:
            self._finish(client, result, may_fail=kind is m.VmReboot)
            promise.desired = AFTER.get(kind, Desired.RUNNING)
            promise.pid = self._pid(promise)
            if kind is m.VmReboot:
                promise.reboot = f"{result['operation']['id']}-1"
        promise.busy = False

    def _create(self, client: Client) -> None:
        name, desired = unique("crash"), self.rng.choice((Desired.RUNNING, Desired.STOPPED))
        result = self._change(client, m.VmCreate, name=name, spec=tiny(), desired=desired, node=self.node)
        if result is None:
            return
        self._finish(client, result)
        promise = Promise(name, result["vm"]["uuid"], desired)
        promise.pid = self._pid(promise)
        self.promises[promise.uuid] = promise

    def _change(self, client: Client, kind: type[m.Mutation], **values: Any) -> dict[str, Any] | None:
        """The acknowledged result, or None where it is refused for now."""
        self.stop.wait(0.01)
        try:
            result = dict(client.request(kind(key=new_key(), **values)))
        except ChimeError as error:
            if error.code not in NOT_NOW:
                raise
            self.stop.wait(0.05)
            return None
        self.counts["agent's changes"] += 1
        return result

    def _finish(self, client: Client, result: dict[str, Any], may_fail: bool = False) -> None:
        """`may_fail`: a command that was begun when its agent died is not repeated, and one just after is rejected."""
        op = client.wait_operation(result["operation"]["id"], OPERATION_S)
        assert op.state == "succeeded" or (may_fail and op.state == "failed"), f"{op}"
        self.counts[f"{op.kind} {op.state}"] += 1

    def _pid(self, promise: Promise) -> int:
        if promise.desired != Desired.RUNNING:
            assert not self.chime.pids(promise.uuid), f"{promise}: it runs"
            return 0
        (pid,) = self.chime.pids(promise.uuid)
        return pid

    def kept(self) -> bool:
        """Whether the processes and what the server shows are as promised."""
        shown, real = self.chime.vms(), self.chime.processes()
        for promise in self.promises.values():
            row, pids = shown.get(promise.uuid), [seen.pid for seen in real.get(promise.uuid, [])]
            if promise.desired == Desired.DELETED:
                fine = row is None and not pids
            else:
                fine = row is not None and row["observed"] == promise.desired == row["desired"]
            if not fine or pids != [promise.pid] * bool(promise.pid):
                return False
        return True


class Killer(threading.Thread):
    """Kills the agent of a node again and again, each time at a random call of its saves, and looks at what is left."""

    def __init__(self, owner: Owner, paths: tuple[Path, ...], kills: int, tally: Any) -> None:
        super().__init__(name=f"killer of {owner.node}")
        self.owner, self.paths, self.kills, self.tally = owner, paths, kills, tally
        self.trouble = ""
        self._rng = random.Random(owner.rng.random())
        self._before = Durable(node=owner.node)
        self._trace = paths[-1].with_name("trace")

    def run(self) -> None:
        """To the last kill, or to the first trouble."""
        number = 0
        while number < self.kills:
            call = self._rng.choice(("openat", "write", "fsync", "rename"))
            fault = Fault(self.paths, call, str(self._rng.randint(1, 6)))
            try:
                if self.owner.trouble:
                    return
                number += self._kill(fault)
                self._look()
            except BaseException as error:
                self.trouble = f"{self.owner.node}, kill {number}, {fault}: {error!r}"
                return

    def _kill(self, fault: Fault) -> bool:
        """Whether the fault was what ended it: it may just be ending of the one before."""
        chime, node = self.owner.chime, self.owner.node
        pid = wait_until(lambda: chime.agent(node).pid, 30, f"agentd of {node} is back", 0.01)
        with Attached(fault, pid, self._trace) as attached:
            try:
                wait_until(lambda: attached.over or self.owner.trouble, OPERATION_S, "the call comes", 0.01)
            except HostError as error:
                raise AssertionError(f"{error}\n{chime.logs()}") from None
        place = place_of_death(self._trace)
        if place:
            self.tally.places[place] += 1
            self.tally.kills["agentd"] += 1
        return bool(place)

    def _look(self) -> None:
        """The snapshot is sound and knows all that was acknowledged; the VMs run on."""
        promises = [promise for promise in [*self.owner.promises.values()] if not promise.busy]
        kept = [(promise, promise.desired, promise.pid) for promise in promises]
        now, _ = snapshot.decode(self.paths[0].read_bytes(), self.owner.node)
        assert not list(self.paths[-1].glob("snapshot.refused-*")), "a snapshot was refused"
        before, self._before = self._before, now
        fell = (now.generation, now.revision) < (before.generation, before.revision)
        assert not fell, f"revision {before.revision} fell to {now.revision}"
        assert before.tombstones.keys() <= now.tombstones.keys(), "a tombstone was forgotten"
        for uuid in before.held.keys() | before.tombstones.keys():
            assert now.highest_epoch(uuid) >= before.highest_epoch(uuid), f"{uuid}: its epoch fell"
        real = {uuid: [seen.pid for seen in group] for uuid, group in self.owner.chime.processes().items()}
        for promise, desired, pid in kept:
            if not promise.busy:
                _check_record(now, promise, desired)
                assert real.get(promise.uuid, []) == [pid] * bool(pid), f"{promise}: its processes are {real}"


def _check_record(now: Durable, promise: Promise, desired: Desired) -> None:
    """Whatever the client knows, the agent has told; so it must have been recorded before."""
    held, tombstone = now.held.get(promise.uuid), now.tombstones.get(promise.uuid)
    if desired == Desired.DELETED:
        recorded = held is None and tombstone is not None and tombstone.done
    else:
        recorded = held is not None and held.vm.desired == desired and held.started == (desired == Desired.RUNNING)
    assert recorded, f"{promise}: the snapshot says {held} {tombstone}"
    if promise.reboot:
        entry = now.journal.get(promise.reboot)
        assert entry is not None and entry.result is not None, f"{promise}: its command is not in the snapshot: {entry}"
