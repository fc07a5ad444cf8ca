"""Kill -9 of the server, of agents, of both, under load: nothing acknowledged is lost, nothing runs twice.

CHIME_KILL_SECONDS says how long (60), CHIME_KILL_SEED repeats the same choices (not the same timing). The oracle is the
process table: all the time for "never twice", and at the end for "as the last acknowledged request of each VM says".
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.integration.chime import SERVER, Chime, new_key, tiny, unique
from wire import messages as m
from wire.client import Client
from wire.errors import ChimeError
from wire.types import Desired

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SECONDS = float(os.environ.get("CHIME_KILL_SECONDS", "60"))
SEED = int(os.environ.get("CHIME_KILL_SEED", "0")) or random.randrange(1, 1 << 32)
NODES = ("n1", "n2")
CLIENTS = 4
VMS_PER_CLIENT = 2
CONVERGE_S = 90.0  # L1
ANSWER_S = 3.0
GIVE_UP_S = 120.0
NOT_NOW = frozenset({"node-unreachable", "no-room", "locked", "overloaded"})


@dataclass
class Promise:
    """A VM as the last acknowledged request left it. `desired` deleted: it must be gone."""

    name: str
    uuid: str
    desired: Desired


@dataclass
class Load(threading.Thread):
    """One client with VMs of its own: what it was told is done is exactly what must be true at the end."""

    chime: Chime
    rng: random.Random
    stop: threading.Event
    counts: Counter[str]
    mine: dict[str, Promise] = field(default_factory=dict)
    gone: list[Promise] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name="load")

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        with self.chime.new_client(ANSWER_S) as client:
            try:
                while not self.stop.is_set():
                    self.step(client)
                    self.stop.wait(self.rng.choice((0.0, 0.0, 0.05, 0.3, 0.8)))
            except Exception as error:
                self.trouble.append(repr(error))

    def step(self, client: Client) -> None:
        """One request of a random kind."""
        if len(self.mine) < VMS_PER_CLIENT:
            self.create(client)
            return
        promise = self.rng.choice(list(self.mine.values()))
        kind = self.rng.choices(("stop", "start", "delete"), (4, 4, 2))[0]
        if kind == "stop":
            body: m.Mutation = m.VmStop(key=new_key(), vm=promise.name, force=True)
        elif kind == "start":
            body = m.VmStart(key=new_key(), vm=promise.name)
        else:
            body = m.VmDelete(key=new_key(), vm=promise.name)
        if self.ask(client, kind, body) is None:
            return
        promise.desired = {"stop": Desired.STOPPED, "start": Desired.RUNNING, "delete": Desired.DELETED}[kind]
        if kind == "delete":
            self.gone.append(self.mine.pop(promise.name))

    def create(self, client: Client) -> None:
        """A new VM under a new name."""
        name, desired = unique("kill"), self.rng.choice((Desired.RUNNING, Desired.RUNNING, Desired.STOPPED))
        result = self.ask(client, "create", m.VmCreate(key=new_key(), name=name, spec=tiny(), desired=desired))
        if result is not None:
            self.mine[name] = Promise(name, result["vm"]["uuid"], desired)

    def ask(self, client: Client, kind: str, body: m.Mutation) -> dict[str, object] | None:
        """The acknowledged result, or None for a refusal. While the outcome is not known it asks again with the key."""
        self.counts["requests"] += 1
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:
                result = dict(client.request(body))
            except ChimeError as error:
                if error.code == "unreachable" and time.monotonic() < deadline:
                    self.counts["asked again"] += 1
                    continue
                if error.code not in NOT_NOW:
                    raise
                self.counts["refused"] += 1
                self.stop.wait(0.2)
                return None
            self.counts["acknowledged"] += 1
            self.counts[kind] += 1
            return result


def kill_something(chime: Chime, rng: random.Random, counts: Counter[str]) -> None:
    """The server, an agent, both or all; sometimes a qemu too, as it happens."""
    what = rng.choice(("server", "agent", "agent", "both", "all", "qemu"))
    victims = {"server": 0, "agent": 1, "both": 1, "all": len(NODES), "qemu": 0}[what]
    targets = [(name, "agentd") for name in rng.sample(NODES, victims)]
    if what in ("server", "both", "all"):
        targets.append((SERVER, "chimed"))
    rng.shuffle(targets)
    for host, service in targets:
        hit = chime[host].ask_init("kill", name=service, signal=int(signal.SIGKILL))["pid"]
        counts[f"{service} killed" if hit else "kills missed"] += 1  # missed: it was not back yet
    running = [seen for group in chime.processes().values() for seen in group]
    if what == "qemu" and running:
        try:
            chime.kill(rng.choice(running))
            counts["qemu killed"] += 1
        except ProcessLookupError:
            pass


def differences(chime: Chime, promises: list[Promise]) -> list[str]:
    """Where reality, or the server's picture of it, is not what was promised."""
    real, shown = chime.processes(), chime.vms()
    known = {promise.uuid for promise in promises}
    found = [f"{uuid} has a process and nobody asked for it" for uuid in real.keys() - known]
    found += [f"{row['name']} is shown and nobody asked for it" for uuid, row in shown.items() if uuid not in known]
    for promise in promises:
        hosts, row = [seen.host for seen in real.get(promise.uuid, [])], shown.get(promise.uuid)
        files = [name for name in NODES if chime.domain_file(name, promise.name).exists()]
        is_now = f"{promise.name} ({promise.desired}): processes on {hosts}, definitions on {files}, shown as {row}"
        if promise.desired == Desired.DELETED:
            fine = not hosts and not files and row is None
        else:
            off = promise.desired == Desired.STOPPED
            fine = row is not None and files == [row["node"]] and hosts == ([] if off else [row["node"]])
            fine = fine and row is not None and row["desired"] == row["observed"] == promise.desired
        if not fine:
            found.append(is_now)
    return found


def test_kill_9_at_random_moments(needs_hosts: None, capsys: pytest.CaptureFixture[str]) -> None:
    """S1, S3 and L1 of the safety model; rows 13, 15 and 31."""
    rng, counts, stop = random.Random(SEED), Counter[str](), threading.Event()
    with Chime(NODES, agent_config={"restart_budget": 1000}) as chime:
        loads = [Load(chime, random.Random(rng.random()), stop, counts) for _ in range(CLIENTS)]
        for load in loads:
            load.start()
        deadline = time.monotonic() + SECONDS
        try:
            while time.monotonic() < deadline and not any(load.trouble for load in loads):
                time.sleep(rng.uniform(0.2, 3.0))
                kill_something(chime, rng, counts)
        finally:
            stop.set()
            for load in loads:
                load.join()
        began = time.monotonic()
        promises = [promise for load in loads for promise in (*load.mine.values(), *load.gone)]
        trouble = [line for load in loads for line in load.trouble]
        left: list[str] = ["never looked"]
        while left and time.monotonic() - began < CONVERGE_S:
            try:
                left = differences(chime, promises)
            except ChimeError as error:
                left = [str(error)]
            time.sleep(0.2)
        with capsys.disabled():
            took = time.monotonic() - began
            print(f"\nkill test: seed {SEED}, {SECONDS:g} s, {chime.watch.samples} looks, all well {took:.1f} s later")
            print("  " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
        crashes = [host.log / "agentd.log" for host in map(chime.cluster.__getitem__, NODES)]
        crashes = [log for log in (*crashes, chime[SERVER].log / "chimed.log") if "Traceback" in log.read_text()]
        assert not trouble, f"{trouble}\n{chime.logs()}"
        assert not left, "\n".join([f"seed {SEED}: after {CONVERGE_S:g} s:", *left, chime.logs()])
        assert chime.watch.violations == [], f"seed {SEED}: a VM had two processes at once"
        assert not crashes, f"seed {SEED}: a daemon died by itself\n{chime.logs()}"
        assert counts["acknowledged"] > SECONDS / 4 and counts["agentd killed"] and counts["chimed killed"]
