"""What one key at full speed costs the others: 200 honest nodes that beat, an operator that asks, and chimed's memory.

The attacker is a process beside the server and the fleet, so it takes their processor too: on its own machine it would
send more, and they would have more. So two things are measured: how long a heartbeat took, and how much of that time
chimed's loop worked, by its own processor clock: for that the heartbeat waited, whatever else the machine does. Each
attack lasts some seconds; then the trail must hold every line of the operator.
"""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from tests.bench.attack import KINDS, VMS_EACH
from tests.bench.figures import Figure
from tests.bench.fleet import Agents, Server
from tests.bench.processes import ROOT, command
from wire import curve, keys
from wire import messages as m
from wire.client import Client
from wire.errors import ChimeError

NODES = 200
INTERVAL_S = 1.0  # so that there are more to see; their real interval is 15 s
SECONDS = 6.0
HEARTBEAT_MS, OPERATOR_S, MEMORY_MIB = 100.0, 1.0, 512.0
KEPT = 2_000  # lines of the trail: few, so that they could be pushed out in that time
REVOKED = "revoked"  # frames of a key that is not registered any more


@dataclass
class Seen:
    """What the honest ones waited for, in seconds, and the most memory in MiB. `work`: of chimed's loop, while a
    heartbeat was on its way. `sent`: what the attacker says."""

    beats: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    asks: list[float] = field(default_factory=list)
    missing: int = 0
    memory_mib: float = 0.0
    sent: str = ""
    error: str = ""

    def detail(self) -> dict[str, object]:
        """For the file."""
        return {
            "heartbeats": len(self.beats),
            "heartbeat_ms_median_p99_most": _spread_ms(self.beats),
            "work_ms_median_p99_most": _spread_ms(self.work),
            "requests": len(self.asks),
            "request_ms_median_p99_most": _spread_ms(self.asks),
            "memory_mib": round(self.memory_mib),
            "attacker_sent": self.sent,
            "unanswered": self.missing,
        }


class Scene:
    """A server with its honest fleet, and keys for a node and an operator that are hostile."""

    def __init__(self, directory: Path, nodes: int = NODES) -> None:
        self.directory = directory
        self.server = Server(
            directory, nodes + 1, VMS_EACH, vcpu_overcommit=100.0, memory_overcommit=100.0, events_kept=KEPT,
            node_events_kept=KEPT,
        )  # fmt: skip
        self.hostile = self.server.nodes[-1][0]
        self.honest = self.server.nodes[:-1]
        self.pid = 0
        self.lines = 0

    @contextmanager
    def running(self) -> Iterator[Agents]:
        """The server and the fleet in session."""
        with self.server.started() as pid, Agents(self.server.endpoint, self.server.keys.public, self.honest) as agents:
            self.pid = pid
            agents.say_hello(self.server.vms)
            keys.save(self.directory / "node.key", self.server.bundle(len(self.server.nodes) - 1))
            self._add_operator()
            yield agents

    def _add_operator(self) -> None:
        pair = curve.new_pair()
        with self.server.client() as client:
            client.request(m.OperatorAdd(key="add-mallory", name="mallory", public_key=pair.public))
        bundle = keys.KeyFile(
            kind=keys.Kind.OPERATOR, name="mallory", public_key=pair.public, secret_key=pair.secret,
            endpoint=self.server.endpoint, server_public_key=self.server.keys.public,
        )  # fmt: skip
        keys.save(self.directory / "operator.key", bundle)

    def attack(self, agents: Agents, kind: str, seconds: float = SECONDS) -> Seen:
        """One attack, and what the honest ones saw."""
        seen = Seen()
        program = "frames" if kind == REVOKED else kind
        who = "operator" if kind in ("requests", "deaf") else "node"
        argv = command("tests.bench.attack", program, str(self.directory / f"{who}.key"), str(seconds))
        stop = threading.Event()
        asker = threading.Thread(target=self._ask, args=(seen, stop), daemon=True)
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as attacker:
            asker.start()
            if kind == REVOKED:
                time.sleep(seconds / 3)
                self._revoke()
            Beats(agents, seen, self.pid).run(attacker)
            seen.sent = (attacker.stdout.read() if attacker.stdout else "").strip()
        stop.set()
        asker.join(30)
        return seen

    def _ask(self, seen: Seen, stop: threading.Event) -> None:
        """An operator who asks and changes in turn, and notes how many lines that must have left."""
        with Client(self.server.endpoint, self.server.keys.public, self.server.operator, 60.0) as client:
            while not stop.wait(0.1):
                began, self.lines = time.monotonic(), self.lines + 1
                name = self.honest[self.lines % len(self.honest)][0]
                try:
                    client.request(m.NodeList())
                    client.request(m.NodeDisable(key=f"off-{self.lines}", name=name))
                    client.request(m.NodeEnable(key=f"on-{self.lines}", name=name))
                except ChimeError as error:
                    seen.error = str(error)
                    return
                seen.asks.append((time.monotonic() - began) / 3)

    def _revoke(self) -> None:
        pair = curve.new_pair()
        with self.server.client() as client:
            client.request(m.NodeRekey(key="revoke", name=self.hostile, public_key=pair.public))

    def trail(self) -> tuple[int, int]:
        """How many of the operator's lines are in the trail, and how many must be."""
        with closing(sqlite3.connect(f"file:{self.server.database}?mode=ro", uri=True)) as database:
            sql = "SELECT count(*) FROM events WHERE action IN ('node-disabled', 'node-enabled')"
            return int(database.execute(sql).fetchone()[0]), min(2 * self.lines, KEPT)


class Beats:
    """Heartbeats of the fleet, spread evenly, whether or not the ones before are answered."""

    def __init__(self, agents: Agents, seen: Seen, pid: int) -> None:
        self._agents, self._seen, self._pid = agents, seen, pid
        self._at: dict[int, tuple[float, float]] = {}
        self._index = {one: index for index, one in enumerate(agents.sockets)}
        self._poller = zmq.Poller()
        for one in agents.sockets:
            self._poller.register(one, zmq.POLLIN)

    def run(self, attacker: subprocess.Popen[str]) -> None:
        """Until the attacker ends, and what is on its way is answered."""
        began, sent, pause_s = time.monotonic(), 0, INTERVAL_S / len(self._agents.sockets)
        while attacker.poll() is None:
            while began + sent * pause_s <= time.monotonic():
                self._send(sent)
                sent += 1
            self._take(max(1, int(1000 * (began + sent * pause_s - time.monotonic()))))
            if sent % 10 == 0:
                self._seen.memory_mib = max(self._seen.memory_mib, _rss_mib(self._pid))
        ends = time.monotonic() + 30.0
        while self._at and time.monotonic() < ends:
            self._take(100)
        self._seen.missing = len(self._at)
        self._agents.skip(sent // len(self._agents.sockets) + 1)

    def _send(self, number: int) -> None:
        index, round_ = number % len(self._agents.sockets), number // len(self._agents.sockets)
        if index in self._at:  # the last one is not answered: what counts is since when
            return
        self._at[index] = (time.monotonic(), _worked_s(self._pid))
        self._agents.send_beat(index, round_)

    def _take(self, timeout_ms: int) -> None:
        for one, _ in self._poller.poll(timeout_ms):
            one.recv()
            began = self._at.pop(self._index[one], None)
            if began is not None:
                self._seen.beats.append(time.monotonic() - began[0])
                self._seen.work.append(_worked_s(self._pid) - began[1])


def measure(directory: Path) -> list[Figure]:
    """Each attack's worst."""
    scene, figures = Scene(directory), []
    with scene.running() as agents:
        for kind in (*KINDS, REVOKED):
            seen = scene.attack(agents, kind)
            if seen.error:
                raise RuntimeError(f"{kind}: the operator was refused: {seen.error}")
            figures += _figures(kind, seen)
            time.sleep(1.0)
        there, must = scene.trail()
    return [*figures, Figure("operators' lines missing in the trail", must - there, "lines", "<=", 0)]


def _figures(kind: str, seen: Seen) -> list[Figure]:
    slowest, detail = 1000 * max(seen.beats), seen.detail()
    work = 1000 * max(seen.work)
    return [
        Figure(f"one key, {kind}: chimed's work while a heartbeat waits, most", work, "ms", "<=", HEARTBEAT_MS),
        Figure(f"one key, {kind}: heartbeat of {NODES} others, slowest", slowest, "ms", "<=", HEARTBEAT_MS, detail),
        Figure(f"one key, {kind}: operator's request, slowest", max(seen.asks), "s", "<=", OPERATOR_S),
        Figure(f"one key, {kind}: chimed's memory, most", seen.memory_mib, "MiB", "<=", MEMORY_MIB),
    ]


def _spread_ms(seconds: list[float]) -> list[float]:
    found = sorted(seconds)
    return [round(1000 * found[int(part * (len(found) - 1))], 1) for part in (0.5, 0.99, 1.0)]


def _worked_s(pid: int) -> float:
    """Processor time of the process' first thread, which is chimed's loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)
