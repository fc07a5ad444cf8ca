"""A real chimed that dies at a chosen system call, a client that repeats what was not answered, and what must be true.

The judge is `verdict`: from a copy of the database file alone it replays the recorded answers, and every row and every
line of the audit trail must be exactly what they say. Nothing of Chime's own code takes part in the judgement.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tests.hosts import HostError, wait_until
from tests.hosts.strace import KILL, Attached, Fault, place_of_death
from tests.integration.plain_peer import Agent, Body, Keys, Peer, frame
from tests.integration.real_server import ROOT, Server, token

SETTINGS: dict[str, Any] = {"heartbeat_s": 0.2, "challenge_s": 0.1, "ping_timeout_s": 0.1, "vcpu_overcommit": 1000.0}
ADDRESS = "127.0.0.2"
"""A peer that finds nobody there cannot connect to itself by chance, as to a free port of 127.0.0.1."""
NODES = ("a1", "a2")
"""Nodes with an agent. Any other node of these tests is only a row."""
ENVIRONMENT = {**os.environ, "PYTHONFAULTHANDLER": "1"}
"""SIGABRT shows where it hangs."""
ANSWER_S = 20.0
SEND_S = 0.1
BURST = 6
QUEUE = 10
"""Requests on their way at once, at most: the server drops answers that a peer does not fetch."""
NOT_NOW = frozenset(
    {"no-room", "node-unreachable", "locked", "refused-unsafe", "no-evidence", "conflict", "not-found"}
)
"""Refusals that a client may well get. Any other is a bug, `exists` above all: an effect without its answer."""
UNKNOWN = "storage-unavailable"
"""Not recorded now; whether it will be found after a crash is not known."""


class Dying(Server):
    """A server that may die by a fault. `start` with one; `fell` when its process is gone."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ADDRESS, **SETTINGS)
        self.trace = directory / "trace"
        self._attached: Attached | None = None

    def launch(self, fault: Fault | None = None, early: bool = False) -> bool:
        """Starts it, with a fault from the first moment (`early`) or from when it listens. False: it is gone."""
        argv = [sys.executable, "-m", "chimed.main", "--config", str(self.config)]
        self.trace.write_bytes(b"")
        around = fault.around(self.trace) if fault and early else []
        with open(self.log, "wb") as log:
            streams = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            self.process = subprocess.Popen([*around, *argv], cwd=ROOT, env=ENVIRONMENT, **streams)
        try:
            wait_until(lambda: self.gone or "listens at" in self.log.read_text(), 30, "chimed listens", 0.005)
        except HostError as error:
            raise AssertionError(f"{error}\n{self.where_it_hangs()}") from None
        if fault and not early:
            self.attach(fault)
        return not self.gone

    def attach(self, fault: Fault) -> Attached:
        """A fault in the running server, until it is detached."""
        assert self.process is not None
        self._attached = Attached(fault, self.process.pid, self.trace)
        return self._attached

    @property
    def gone(self) -> bool:
        """Whether its process has ended."""
        return self.process is None or self.process.poll() is not None

    def fell(self) -> str:
        """The call at which it was killed."""
        assert self.process is not None
        code, self.process = self.process.wait(10), None
        text = self.log.read_text()
        assert code == -signal.SIGKILL and "Traceback" not in text, f"chimed ended with {code}:\n{text[-3000:]}"
        wait_until(lambda: "+++ killed" in self.trace.read_text(errors="replace"), 10, "strace has noted it", 0.002)
        self._release()
        return place_of_death(self.trace)

    def ended(self) -> tuple[int, str]:
        """Exit code and log of a server that has ended by itself."""
        assert self.process is not None
        code, self.process = self.process.wait(30), None
        return code, self.log.read_text()

    def where_it_hangs(self) -> str:
        """The end of its log, with the stacks of its threads. It dies of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(10)
        return self.log.read_text()[-6000:]

    def kill(self) -> None:
        """SIGKILL at no place in particular."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self._release()

    def _release(self) -> None:
        if self._attached is not None:
            self._attached.detach()
            self._attached = None

    def random_fault(self, rng: random.Random) -> tuple[Fault, bool]:
        """A kill in any write to the log or its sync, while the log is moved into the database, or in the start (True:
        it is to be there from the first moment)."""
        database, log, index = (self.state / f"chime.db{suffix}" for suffix in ("", "-wal", "-shm"))
        paths, call, last, early = rng.choice(
            [((log,), "pwrite64", 100, False)] * 8
            + [((log,), "fdatasync", 8, False)] * 4
            + [((database,), "pwrite64", 20, False), ((database,), "fdatasync", 1, False)]
            + [((database, log, index), "openat", 3, True), ((index,), "pwrite64", 8, True)]
        )
        return Fault(paths, call, str(rng.randint(1, last)), KILL), early

    def copy(self) -> sqlite3.Connection:
        """The database as a start would find it, in a copy. Only while the server is gone."""
        place = self.dir / "copy"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copy(f"{self.database}{suffix}", place / f"chime.db{suffix}")
        return sqlite3.connect(place / "chime.db")


class Node(Agent):
    """An agent that holds the server to what it was told: epochs and revisions never fall, whatever server it is."""

    ANSWER_S = 1.0

    def _connect(self) -> None:
        super()._connect()
        assert self._peer is not None
        self._peer.socket.sndtimeo = 2000

    def _converse(self) -> None:
        with suppress(zmq.Again):  # nobody is there: it connects anew
            super()._converse()

    def _apply(self, page: Body) -> None:
        fell = page["revision"] < self._applied and not page["more"]
        assert not fell, f"{self.node}: revision {self._applied} fell to {page['revision']}"
        for vm in page["vms"]:
            known = max(self._highest.get(vm["uuid"], 0), self._tombs.get(vm["uuid"], 0))
            assert vm["epoch"] >= known, f"{self.node}: {vm['name']}: epoch {known} fell to {vm['epoch']}"
        super()._apply(page)

    def told(self) -> tuple[int, dict[str, int]]:
        """The revision that it was brought to, and the highest epoch of each VM."""
        return self._applied, dict(self._highest)

    def abandon(self) -> None:
        """It need not be there any more, and nobody waits for that."""
        self._stopping.set()

    @property
    def settled(self) -> bool:
        """Whether it is in session and has its inventory."""
        assert self.crash is None, f"{self.node}: {self.crash}"
        return bool(self._session) and self._confirmed


@dataclass
class Request:
    """One change that is asked for, and the answer once there is one (None: not known yet)."""

    verb: str
    body: Body
    answer: Any = None
    refused: str = ""

    @property
    def key(self) -> str:
        return str(self.body["key"])


@dataclass
class Load:
    """A client: it asks for random changes, several at a time, and again with the same key what was not answered."""

    server: Dying
    rng: random.Random
    requests: dict[str, Request] = field(default_factory=dict)
    open: list[Request] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    vms: dict[str, str] = field(default_factory=dict)
    """uuid -> name, of VMs whose creation was acknowledged and whose deletion was not asked for."""
    rows: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    _peer: Peer | None = None
    _made: int = 0

    def connect(self) -> None:
        """Anew, to a server that was started."""
        self.close()
        self._peer = Peer(self.server.operator, sndtimeo=round(SEND_S * 1000))

    def close(self) -> None:
        """Ends the connection."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def burst(self) -> None:
        """Asks for what is open, or for something new, and takes the answers that come before the server dies."""
        if not self.open:
            self.open = [self._new() for _ in range(self.rng.randint(1, BURST))]
            self.requests.update((request.key, request) for request in self.open)
        self._exchange(self.open)
        self.open = [request for request in self.open if request.answer is None and not request.refused]

    def look(self, verb: str) -> Any:
        """The result of a request that changes nothing."""
        assert self._peer is not None
        return self._peer.request(verb, {}, ANSWER_S)

    def ask_again(self, count: int) -> None:
        """The same key gives the same answer."""
        known = [request for request in self.requests.values() if request.answer is not None]
        some = known[-count:] + self.rng.sample(known, min(count, len(known)))
        again = [Request(request.verb, request.body) for request in some]
        for start in range(0, len(again), QUEUE):
            self._exchange(again[start : start + QUEUE])
        for first, second in zip(some, again, strict=True):
            assert second.answer in (None, first.answer), f"{first}: another answer: {second}"
            assert not second.refused, f"{first}: was acknowledged and is now refused: {second.refused}"
        self.counts["asked again"] += len(again)

    def _exchange(self, requests: list[Request]) -> None:
        assert self._peer is not None
        waiting = {token(): request for request in requests}
        for correlation_id, request in waiting.items():
            self._send(frame(request.verb, request.body, correlation_id))
        patience = round(ANSWER_S / 0.01)
        while waiting and patience:
            message = self._peer.receive(0.01)
            if message is not None and message["id"] in waiting:
                self._answered(waiting.pop(message["id"]), message)
            elif message is None and self.server.gone:
                return
            elif message is None:
                patience -= 1
        assert not waiting, f"no answer from a server that lives:\n{self.server.where_it_hangs()}"

    def _send(self, payload: bytes) -> None:
        """Waits for the connection, unless the server is gone."""
        assert self._peer is not None
        for _ in range(round(ANSWER_S / SEND_S)):
            with suppress(zmq.Again):
                return self._peer.send(payload)
            if self.server.gone:
                return
        raise AssertionError(f"no connection to a server that lives:\n{self.server.where_it_hangs()}")

    def _answered(self, request: Request, message: Body) -> None:
        if message["t"] == "ok":
            request.answer = message["b"]["result"]
            self.counts["acknowledged"] += 1
            if request.verb == "vm.create":
                self.vms[request.answer["vm"]["uuid"]] = request.answer["vm"]["name"]
            return
        code = message["b"]["code"]
        self.counts[code] += 1
        assert code == UNKNOWN or code in NOT_NOW, f"{request}: {message['b']}"
        if code != UNKNOWN:
            request.refused = code

    # What is asked for

    def _new(self) -> Request:
        kinds = (self._for_vm, self._for_operator, self._for_row, self._for_node)
        verb, body = self.rng.choices(kinds, (8, 3, 3, 2))[0]()
        return Request(verb, {"key": token(), **body})

    def _name(self, word: str) -> str:
        self._made += 1
        return f"{word}-{self._made}"

    def _for_vm(self) -> tuple[str, Body]:
        if len(self.vms) < 4 or self.rng.random() < 0.2:
            return "vm.create", self._vm()
        uuid = self.rng.choice(list(self.vms))
        verb = self.rng.choices(("vm.start", "vm.stop", "vm.delete"), (4, 4, 3))[0]
        if verb == "vm.delete":
            del self.vms[uuid]
        return verb, {"vm": uuid}

    def _vm(self) -> Body:
        spec = {"vcpus": 1, "memory_mib": 16}
        return {"name": self._name("vm"), "spec": spec, "desired": self.rng.choice(("running", "stopped"))}

    def _for_operator(self) -> tuple[str, Body]:
        if self.people and self.rng.random() < 0.4:
            return "operator.remove", {"name": self.people.pop(0)}
        self.people.append(self._name("person"))
        return "operator.add", self._keyed(self.people[-1])

    def _for_row(self) -> tuple[str, Body]:
        """A node without an agent."""
        if len(self.rows) < 2:
            self.rows.append(self._name("row"))
            return "node.add", self._keyed(self.rows[-1])
        if self.rng.random() < 0.2:
            return "node.remove", {"name": self.rows.pop(0)}
        return self.rng.choice(("node.enable", "node.disable", "node.drain")), {"name": self.rng.choice(self.rows)}

    def _for_node(self) -> tuple[str, Body]:
        """Moves VMs to and fro: this raises their epochs."""
        verb = self.rng.choices(("node.drain", "node.rebuild", "node.enable"), (1, 3, 4))[0]
        return verb, {"name": self.rng.choice(NODES)}

    def _keyed(self, name: str) -> Body:
        return {"name": name, "public_key": zmq.curve_keypair()[0].decode()}


# --- the judge ------------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What the client has seen of the world so far, over all lives of the server."""

    epochs: dict[str, int] = field(default_factory=dict)

    def rises(self, uuid: str, epoch: int) -> None:
        """An epoch never falls."""
        assert epoch >= self.epochs.get(uuid, 0), f"{uuid}: epoch {self.epochs[uuid]} fell to {epoch}"
        self.epochs[uuid] = epoch


EVENTS = {
    "operator.add": "operator-added", "operator.remove": "operator-removed", "node.add": "node-added",
    "node.remove": "node-removed", "node.enable": "node-enabled", "node.disable": "node-disabled",
}  # fmt: skip


def _event(request: Request, answer: Body) -> tuple[str, str]:
    """The line of the audit trail that the request must have left, exactly once."""
    action = EVENTS.get(request.verb, f"{request.verb.partition('.')[2]}-requested")
    made = answer["vm"]["uuid"] if request.verb == "vm.create" else ""
    return action, str(made or request.body.get("vm") or request.body["name"])


@dataclass
class Replay:
    """What the recorded answers, in their order, amount to."""

    people: set[str] = field(default_factory=lambda: {"admin"})
    nodes: dict[str, tuple[str, int]] = field(default_factory=dict)
    """name -> (administrative state, drains)"""
    vms: dict[str, tuple[str, int]] = field(default_factory=dict)
    """uuid -> (desired, starts)"""
    events: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, request: Request, answer: Body) -> None:
        """The next recorded answer."""
        if not answer["changed"]:
            return
        verb, name = request.verb, str(request.body.get("vm") or request.body["name"])
        if verb != "node.rebuild" or answer["operation"] is not None:
            self.events[_event(request, answer)] += 1
        state, count = self.nodes.get(name) or self.vms.get(name) or ("enabled", 0)
        if verb == "operator.add":
            self.people.add(name)
        elif verb == "operator.remove":
            self.people.remove(name)
        elif verb == "node.remove":
            del self.nodes[name]
        elif verb == "vm.create":
            self.vms[answer["vm"]["uuid"]] = (request.body["desired"], 1)
        elif verb.startswith("node.") and verb != "node.rebuild":
            state = {"node.disable": "disabled", "node.drain": "drained"}.get(verb, "enabled")
            self.nodes[name] = (state, count + (verb == "node.drain"))
        elif verb.startswith("vm."):
            desired = {"vm.start": "running", "vm.stop": "stopped", "vm.delete": "deleted"}[verb]
            self.vms[name] = (desired, count + (verb == "vm.start"))


def verdict(server: Dying, requests: dict[str, Request], known: Known, agents: list[Node]) -> int:
    """Judges the database of a server that is gone. Returns how many answers are recorded."""
    with closing(server.copy()) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        recorded = _recorded(database)
        for request in requests.values():
            assert request.answer in (None, recorded.get(request.key)), f"acknowledged and lost or changed: {request}"
            assert not request.refused or request.key not in recorded, f"refused and recorded: {request}"
        replay = Replay()
        for key, answer in recorded.items():
            replay.add(requests[key], answer)
        _compare(database, replay)
        _epochs(database, known, agents, replay)
    return len(recorded)


def _recorded(database: sqlite3.Connection) -> dict[str, Any]:
    rows = database.execute("SELECT key, row FROM answers WHERE operator = 'admin' ORDER BY rowid")
    return {key: msgpack.unpackb(b64decode(json.loads(row)["answer"])) for key, row in rows}


def _compare(database: sqlite3.Connection, replay: Replay) -> None:
    """Wholly there, or not at all; and once."""
    wants = "SELECT action, subject, count(*) FROM events WHERE actor = 'admin' GROUP BY action, subject"
    events = {(action, subject): count for action, subject, count in database.execute(wants)}
    assert events == dict(replay.events), f"the audit trail differs: {set(events.items()) ^ set(replay.events.items())}"
    assert {name for (name,) in database.execute("SELECT name FROM operators")} == replay.people
    nodes = {row["name"]: (row["admin_state"], row["drain_serial"]) for row in _rows(database, "nodes")}
    assert nodes == replay.nodes, f"nodes differ: {nodes} {replay.nodes}"
    vms = {row["uuid"]: (row["desired"], row["start_serial"]) for row in _rows(database, "vms")}
    gone = {uuid for uuid, (desired, _) in replay.vms.items() if desired == "deleted"} - vms.keys()
    wanted = {uuid: value for uuid, value in replay.vms.items() if uuid not in gone}
    assert vms == wanted, f"VMs differ: {set(vms.items()) ^ set(wanted.items())}"


def _rows(database: sqlite3.Connection, table: str) -> list[Body]:
    defaults: Body = {"nodes": {"admin_state": "enabled", "drain_serial": 0}, "vms": {"start_serial": 1}}[table]
    return [{**defaults, **json.loads(row)} for (row,) in database.execute(f"SELECT row FROM {table}")]


def _epochs(database: sqlite3.Connection, known: Known, agents: list[Node], replay: Replay) -> None:
    """They never fall, and no agent was told what is not recorded."""
    epochs = {row["uuid"]: row["epoch"] for row in _rows(database, "vms")}
    for uuid, epoch in epochs.items():
        known.rises(uuid, epoch)
    revisions = {row["name"]: row.get("revision", 1) for row in _rows(database, "nodes")}
    for agent in agents:
        assert agent.crash is None, f"{agent.node}: {agent.crash}"
        revision, told = agent.told()
        assert revision <= revisions[agent.node], f"{agent.node} was told revision {revision}, not recorded"
        for uuid, epoch in told.items():
            assert uuid in replay.vms, f"{agent.node} was told of {uuid}, not recorded"
            assert epoch <= epochs.get(uuid, epoch), f"{agent.node} was told epoch {epoch} of {uuid}, not recorded"


def start_agents(server: Dying, load: Load) -> list[Node]:
    """Two nodes with their agents, registered like everything else: by requests that are repeated until answered."""
    agents = []
    for name in NODES:
        keys: Keys = server.new_keys(name)
        body = {"key": token(), "name": name, "public_key": keys["public_key"]}
        load.open.append(Request("node.add", body))
        agents.append(Node(keys, vcpus=64, memory_mib=65536))
    load.requests.update((request.key, request) for request in load.open)
    load.burst()
    assert not load.open
    for agent in agents:
        agent.start()
    return agents
