"""Real processes that die, or cannot write, at the n-th system call of their writes: rows 15, 31, 36 and 37, S3 and S4.

chimed is killed at random calls on its database, agentd at random calls on its snapshot. CHIME_CRASH_KILLS says how
many kills of real daemons (a fifth of them of agentd), CHIME_CRASH_SEED repeats the same choices (not the same timing).
The long run, which prints a line `crashes: 1000 kills (...), 0 violations, N s` at its end:

    CHIME_CRASH_KILLS=1000 python -m pytest -q tests/integration/test_crashes.py
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentd.snapshot import Snapshot
from tests.hosts import strace, wait_until
from tests.hosts.strace import Attached, Fault
from tests.integration.chime import Chime, tiny, unique
from tests.integration.crashing import Dying, Known, Load, Node, start_agents, verdict
from tests.integration.crashing_agent import Killer, Owner
from tests.integration.real_server import ROOT
from wire import messages as m

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KILLS = int(os.environ.get("CHIME_CRASH_KILLS", "25"))
SEED = int(os.environ.get("CHIME_CRASH_SEED", "0")) or time.time_ns() % (1 << 32)
AGENT_KILLS = KILLS // 5
SERVER_KILLS = KILLS - AGENT_KILLS
WRITER_KILLS = KILLS * 10
LONG = 200
"""From so many kills on the other tests are thorough too."""
WRITER_KILLS_AT_ONE_PLACE = 20
KILLS_PER_SERVER = 200


@dataclass
class Tally:
    """What was done in all tests of this module."""

    kills: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    violations: int = 0

    @contextmanager
    def step(self, *about: object) -> Iterator[None]:
        """One step; what goes wrong in it says where it was."""
        try:
            yield
        except BaseException as error:
            self.violations += 1
            error.add_note(f"CHIME_CRASH_SEED={SEED}: " + ", ".join(str(part) for part in about))
            raise


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Iterator[Tally]:
    """Printed when the module is done."""
    began, result = time.monotonic(), Tally()
    yield result
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nseed {SEED}")
        for title, counter in (("killed at", result.places), ("seen", result.counts)):
            print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counter.most_common()))
        kills = ", ".join(f"{name} {count}" for name, count in result.kills.items())
        total, took = sum(result.kills.values()), time.monotonic() - began
        print(f"crashes: {total} kills ({kills}), {result.violations} violations, {took:.0f} s")


@pytest.fixture(scope="module", autouse=True)
def needs_strace() -> None:
    """Skip where processes cannot be traced."""
    if not strace.usable():
        pytest.skip("needs strace, and leave to trace processes")


def test_the_server_is_killed_at_its_writes(tmp_path: Path, tally: Tally) -> None:
    """Row 31. After each death: what was acknowledged is there and the same key gives the same answer, what was not is
    wholly there or not at all, no effect is there twice, no epoch falls, and no agent was told what is not recorded."""
    rng = random.Random(SEED)
    for first in range(0, SERVER_KILLS, KILLS_PER_SERVER):
        with served(tmp_path / str(first), rng, tally) as (server, load, agents):
            known = Known()
            server.kill()
            for number in range(first, min(first + KILLS_PER_SERVER, SERVER_KILLS)):
                fault, early = server.random_fault(rng)
                with tally.step(f"kill {number}", fault):
                    if server.launch(fault, early):
                        load.connect()
                        load.ask_again(5)
                        if rng.random() < 0.6:
                            wait_until(lambda: server.gone or settled(agents), 30, "agents in session", 0.005)
                    deadline = time.monotonic() + 60
                    while not server.gone:
                        assert time.monotonic() < deadline, "the call never came"
                        load.burst()
                    tally.places[server.fell()] += 1
                    tally.kills["chimed"] += 1
                    verdict(server, load.requests, known, agents)
            with tally.step("afterwards"):
                server.launch()
                load.connect()
                load.ask_again(len(load.requests))


@contextmanager
def served(directory: Path, rng: random.Random, tally: Tally) -> Iterator[tuple[Dying, Load, list[Node]]]:
    """A server, a client and two nodes with agents; at the end the agents must be well and in session."""
    directory.mkdir()
    server = Dying(directory)
    load, agents = Load(server, rng, counts=tally.counts), list[Node]()
    try:
        server.launch()
        load.connect()
        agents += start_agents(server, load)
        yield server, load, agents
        with tally.step("afterwards"):
            wait_until(lambda: settled(agents), 30, "agents in session")
            for agent in agents:
                agent.stop()
    finally:
        for agent in agents:
            agent.abandon()
        load.close()
        server.kill()


def settled(agents: list[Node]) -> bool:
    """Whether all are in session."""
    return all(agent.settled for agent in agents)


LOG, DATABASE = "chime.db-wal", "chime.db"
ERRORS = {
    "log-full": (LOG, "pwrite64", "ENOSPC"),
    "log-fails": (LOG, "pwrite64", "EIO"),
    "sync-fails": (LOG, "fdatasync", "EIO"),
    "database-fails": (DATABASE, "pwrite64", "EIO"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_server_cannot_write(name: str, tmp_path: Path, tally: Tally) -> None:
    """Row 36: it grants nothing that it cannot record, says so, hears its nodes all the same, and recovers by itself.
    What it refused may be found after a crash in the middle (the last sync failed): then wholly, as its key says."""
    file, call, error = ERRORS[name]
    rng = random.Random(f"{SEED} {name}")
    with served(tmp_path / "server", rng, tally) as (server, load, agents):
        known = Known()
        for number in range(2):
            when = f"{rng.randint(1, 30 if call == 'pwrite64' else 3)}+"
            fault = Fault((server.state / file,), call, when, f"error={error}")
            with tally.step(name, number, fault):
                wait_until(lambda: settled(agents), 30, "agents in session")
                _fail(server, load, agents, fault)
                tally.counts["errors injected"] += len(strace.injected(server.trace))
                if number:
                    load.burst()
                    wait_until(lambda: not load.look("server.status")["read_only"], 30, "it recovers")
                    load.burst()
                    assert not load.open
                server.kill()
                verdict(server, load.requests, known, agents)
                server.launch()
                load.connect()
                load.ask_again(5)


def _fail(server: Dying, load: Load, agents: list[Node], fault: Fault) -> None:
    """Until something could not be written and was noticed: the log of changes cannot grow, or (which hurts nobody yet)
    not be moved into the database."""
    with server.attach(fault):
        wait_until(lambda: load.burst() or strace.injected(server.trace), 60, "a write fails", 0)
        assert not server.gone, server.log.read_text()
        if fault.paths[0].name == DATABASE:
            return
        assert load.look("server.status")["read_only"]
        assert "storage-unavailable" in [alarm["code"] for alarm in load.look("alarm.list")["items"]]
        acks = [agent.acks for agent in agents]
        granted = load.counts["acknowledged"]
        wait_until(lambda: load.burst() or all(a.acks > n for a, n in zip(agents, acks, strict=True)), 30, "acks", 0.05)
        assert load.counts["acknowledged"] == granted and load.open


INDEX = "chime.db-shm"
CALLS_OF_A_START = (
    (DATABASE, "openat", 1), (LOG, "openat", 1), (LOG, "pwrite64", 30), (INDEX, "openat", 1), (INDEX, "ftruncate", 1),
    (INDEX, "pwrite64", 8), ("chime.db.lock", "openat", 1),
)  # fmt: skip
"""File, call, and how often it comes about."""


def test_the_server_starts_where_it_cannot_write(tmp_path: Path, tally: Tally) -> None:
    """Row 36: it serves, or it ends with one clear line; the next start has everything."""
    rng = random.Random(f"{SEED} start")
    with served(tmp_path / "server", rng, tally) as (server, load, agents):
        for number in range(3 if KILLS < LONG else 30):
            load.burst()
            server.kill()
            file, call, last = rng.choice(CALLS_OF_A_START)
            what = f"error={rng.choice(('EIO', 'ENOSPC'))}"
            fault = Fault((server.state / file,), call, f"{rng.randint(1, last)}+", what)
            with tally.step(f"start {number}", fault):
                if server.launch(fault, early=True):
                    load.connect()
                    load.burst()
                    assert not server.gone
                    server.kill()
                else:
                    code, text = server.ended()
                    assert code == 1 and len(text.strip().splitlines()) == 1, f"exit {code}\n{text}"
                    assert text.startswith("chimed: ") and str(server.database) in text, text
                    tally.counts["starts refused"] += 1
                verdict(server, load.requests, Known(), agents)
                server.launch()
                load.connect()
                load.ask_again(5)


# --- the agent ------------------------------------------------------------------------------------------------------


TORN = "write snapshot.part, half of it"


def test_a_snapshot_is_whole_wherever_its_writer_dies(tmp_path: Path, tally: Tally) -> None:
    """Rows 15 and 38: the file is what was saved last, or what was just being saved; it is never refused, and what
    stays behind of a save that was cut off is in no one's way."""
    rng = random.Random(f"{SEED} writer")
    snapshot = Snapshot(tmp_path / "state", "n1")
    paths = (snapshot.path, snapshot.path.with_name("snapshot.part"), snapshot.path.parent)
    for start in range(0, WRITER_KILLS, WRITER_KILLS_AT_ONE_PLACE):
        call = rng.choice(("openat", "write", "fsync", "rename", "torn"))
        fault = Fault(paths, call, str(rng.randint(1, 5)))
        around = [] if call == "torn" else fault.around(tmp_path / "trace", children=True)
        with tally.step("writer", start, fault):
            _kill_writers(snapshot, around, f"{SEED} {start}")
            places = strace.places_of_death(tmp_path / "trace") if around else [TORN] * WRITER_KILLS_AT_ONE_PLACE
            tally.places.update(places)
            tally.kills["snapshot writer"] += WRITER_KILLS_AT_ONE_PLACE


def _kill_writers(snapshot: Snapshot, around: list[str], seed: str) -> None:
    words = [sys.executable, "-m", "tests.integration.snapshot_writer", str(snapshot.path.parent), seed]
    words += [] if around else ["torn"]
    with subprocess.Popen([*around, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdin and writer.stdout
        try:
            for _ in range(WRITER_KILLS_AT_ONE_PLACE):
                saved = snapshot.load()[0].revision
                writer.stdin.write(b"%d\n" % saved)
                writer.stdin.flush()
                for line in iter(writer.stdout.readline, b"dead\n"):
                    assert int(line) == saved + 1
                    saved += 1
                known, why = snapshot.load()
                sound = not why and known.revision in (saved, saved + 1)
                assert sound, f"{saved} was saved, found {known.revision} {why}"
                assert {stone.epoch for stone in known.tombstones.values()} <= {known.revision}
        finally:
            writer.kill()


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1", "n2"), agent_config={"restart_budget": 1000}) as chime:
        yield chime


def written_by(chime: Chime, name: str) -> tuple[Path, ...]:
    """The paths that the agent of a node saves its state with."""
    state = chime.agent_state(name)
    return state / "snapshot", state / "snapshot.part", state


def test_agents_are_killed_at_their_snapshots(chime: Chime, tally: Tally) -> None:
    """Row 15, S1, S3, S4: after each death the snapshot is whole and knows all that was acknowledged, no epoch has
    fallen, and the VMs ran on. In the end all is as the last requests say, and nothing ever ran twice."""
    owners = [Owner(chime, name, f"{SEED} {name}", tally.counts) for name in chime.names]
    killers = [Killer(owner, written_by(chime, owner.node), AGENT_KILLS // len(owners), tally) for owner in owners]
    for thread in (*owners, *killers):
        thread.start()
    try:
        for killer in killers:
            killer.join()
    finally:
        for owner in owners:
            owner.stop.set()
        for thread in (*owners, *killers):
            thread.join()
    with tally.step("agents", *(thread.trouble for thread in (*owners, *killers))):
        assert not any(thread.trouble for thread in (*owners, *killers)), chime.logs()
        chime.wait_nodes(*chime.names)
        for owner in owners:
            chime.wait(lambda owner=owner: owner.kept(), f"VMs of {owner.node} are as acknowledged", 90.0)
        assert not chime.watch.violations, "a VM had two runnable processes at once"


AGENT_ERRORS = {
    "no-new-file": (("snapshot.part",), "openat", "ENOSPC"),
    "full": (("snapshot.part",), "write", "ENOSPC"),
    "file-sync": (("snapshot.part",), "fsync", "EIO"),
    "rename": (("snapshot.part",), "rename", "EIO"),
    "directory-sync": (("",), "fsync", "EIO"),
}


def test_an_agent_cannot_write(chime: Chime, tally: Tally, tmp_path: Path) -> None:
    """Row 37: VMs run on, nothing is done that is not recorded, the node says why; it recovers by itself."""
    names = random.Random(f"{SEED} errors").sample(list(AGENT_ERRORS), 3 if KILLS < LONG else len(AGENT_ERRORS))
    uuid = chime.create(unique("before"), node="n1")
    seen, pid = chime.process(uuid), chime.agent("n1").pid
    assert pid
    for name in names:
        files, call, error = AGENT_ERRORS[name]
        fault = Fault(tuple(chime.agent_state("n1") / file for file in files), call, what=f"error={error}")
        with tally.step(name, fault):
            with Attached(fault, pid, tmp_path / "trace"):
                new = chime.do(m.VmCreate, wait=False, name=unique(name), spec=tiny(), node="n1")["vm"]
                chime.wait(lambda: "snapshot-not-writable" in chime.node("n1")["reasons"], "the fault is reported")
                chime.stays(lambda uuid=new["uuid"]: not chime.pids(uuid), 0.5, "nothing is done that is not recorded")
                assert chime.pids(uuid) == [seen.pid] and chime.node("n1")["health"] == "error"
            tally.counts["errors injected"] += len(strace.injected(tmp_path / "trace"))
            chime.process(new["uuid"])
            chime.wait_nodes("n1")
            assert chime.pids(uuid) == [seen.pid] and chime.agent("n1").pid == pid


def test_an_agent_starts_on_a_full_disk(chime: Chime, tally: Tally, tmp_path: Path) -> None:
    """Row 37: it minds its VMs as far as it can, and says what is wrong, rather than not to be there."""
    uuid = chime.create(unique("before"), node="n1")
    seen, service = chime.process(uuid), chime.agent("n1")
    state, argv = chime.agent_state("n1"), service.spec["argv"]
    files = (state / "agentd.lock", state / "snapshot.part")
    fault = Fault(files, "write,pwrite64", what="error=ENOSPC")
    with tally.step(fault):
        chime.stop_agent("n1")
        try:
            service.spec["argv"] = [*fault.around(tmp_path / "trace"), *argv]
            service.start()
            chime.wait(lambda: "snapshot-not-writable" in chime.node("n1")["reasons"], "the fault is reported")
            assert chime.pids(uuid) == [seen.pid]
        finally:
            chime.stop_agent("n1")
            service.spec["argv"] = argv
            service.start()
        chime.wait_nodes("n1")
        assert chime.pids(uuid) == [seen.pid]
