"""Checks the models of the ownership protocol: every state that it can reach, and that it sees deliberate defects.

Usage: run.py. Needs spin and gcc. The exit code is 0 if every property holds, no search was cut short, no step of a
model is dead, and each defect is found.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
OWNERSHIP, HISTORY = "ownership.pml", "history.pml"
MEMORY_MIB = 2800
COMPILE = ("gcc", "-DSAFETY", "-DBFS", "-DNOREDUCE", "-DPEG", f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c")

_PUT_BACK = (HISTORY, "OLD_DATABASE", "REVISIONS=3", "GENERATIONS=2", "NAMES=2", "MOVES=2")
_LINE = (HISTORY, "OLD_DATABASE", "CHANGES", "REVISIONS=3", "GENERATIONS=1", "NAMES=1", "MOVES=2")
_TWO = (HISTORY, "TWO_SERVERS", "CHANGES", "REVISIONS=4", "GENERATIONS=1", "NAMES=1", "MOVES=2")

PROPERTIES: dict[str, tuple[str, ...]] = {
    "S1 S2: drain, rebuild, crashes, loss, duplication": (OWNERSHIP,),
    "S1 S2: the VM comes back to its first owner": (OWNERSHIP, "EPOCHS=3"),
    "S1 S2: drains on the node, lost snapshots": (OWNERSHIP, "LOCAL_DRAIN", "LOST_SNAPSHOT"),
    "S1 S2 R1: live migration": (OWNERSHIP, "MIGRATION"),
    "S1 S2 R1: live migration, lost snapshots": (OWNERSHIP, "MIGRATION", "LOST_SNAPSHOT"),
    "S1 S2 R1: live migration, ordered on the node too": (OWNERSHIP, "MIGRATION", "WITHOUT_SERVER"),
    "S1 S2 R1: live migration, a third node says anything": (OWNERSHIP, "MIGRATION", "LIAR"),
    "S1 S2 S4: nodes are removed and added again": (HISTORY, "READDED"),
    "S1 S2 S4: an agent's state is put back": (HISTORY, "OLD_STATE", "REVISIONS=4"),
    "S1 S2 S4: the database is put back by cp, or restored": (
        HISTORY, "OLD_DATABASE", "REVISIONS=4", "GENERATIONS=2", "NAMES=2", "MOVES=3"
    ),
    "S1 S2 S4: the same, and restored twice": (
        HISTORY, "OLD_DATABASE", "REVISIONS=3", "GENERATIONS=3", "NAMES=3", "MOVES=2"
    ),
    "S1 S2 S4: put back by cp, and other things change": _LINE,
    "S1 S2 S4: put back, a server that holds from its start": (*_PUT_BACK, "HOLD_AT_START"),
    "S1 S2 S7: put back, a third node says anything": (*_PUT_BACK, "LIAR"),
    "S1 S2: a second server with a copy of the database": (
        HISTORY, "TWO_SERVERS", "REVISIONS=4", "GENERATIONS=3", "NAMES=3", "MOVES=3"
    ),
    "S1 S2: the same, and other things change": (
        HISTORY, "TWO_SERVERS", "CHANGES", "REVISIONS=3", "GENERATIONS=2", "NAMES=2", "MOVES=2"
    ),
}
"""What must hold: the names of the properties, in which world; its model and macros."""

DEFECTS: dict[str, tuple[str, ...]] = {
    "the guard starts after a boot without a confirmed inventory": (OWNERSHIP, "NO_BOOT_CHECK"),
    "the guard starts while a process is alive": (OWNERSHIP, "NO_SCAN"),
    "a drain is proven while a start is under way": (OWNERSHIP, "NO_SETTLING"),
    "any answer to a pull is believed, however old": (OWNERSHIP, "NO_NONCE"),
    "the agent acts on a drain that it has not recorded": (OWNERSHIP, "DRAIN_NOT_RECORDED"),
    "the server sends before it commits": (OWNERSHIP, "SEND_BEFORE_COMMIT"),
    "a release is forgotten before it is confirmed": (OWNERSHIP, "RELEASE_UNTIL_SENT"),
    "a rebuild without evidence": (OWNERSHIP, "REBUILD_WITHOUT_EVIDENCE"),
    "evidence of another drain counts": (OWNERSHIP, "EVIDENCE_OF_ANOTHER_DRAIN"),
    "a person attests what is not true": (OWNERSHIP, "FALSE_WORD"),
    "a person attests that nothing runs, of a host that is on": (OWNERSHIP, "WORD_ABOUT_NOW"),
    "the copy is let run before the source is known to be gone": (OWNERSHIP, "MIGRATION", "HANDOVER_TOO_EARLY"),
    "the guard starts while a migration is undecided": (OWNERSHIP, "MIGRATION", "START_WHILE_UNDECIDED"),
    "what has left is not released at its source": (OWNERSHIP, "MIGRATION", "LEFT_IS_NO_RELEASE"),
    "a dead source is taken for one that has left": (OWNERSHIP, "MIGRATION", "LEFT_WITHOUT_A_LOOK"),
    "any paused copy is taken for the VM": (OWNERSHIP, "MIGRATION", "ANY_COPY_IS_THE_VM"),
    "what was said in another epoch is believed": (OWNERSHIP, "MIGRATION", "EPOCHS=3", "ATTEMPTS=1", "NO_EPOCH"),
    "a rebuild does not ask where the VM may have migrated to": (OWNERSHIP, "MIGRATION", "NO_CENSUS"),
    "a snapshot is lost in a migration that the server does not know of": (
        OWNERSHIP, "MIGRATION", "WITHOUT_SERVER", "LOST_SNAPSHOT"
    ),
    "that it arrived is believed of a node that is not the target": (
        OWNERSHIP, "MIGRATION", "LIAR", "ARRIVED_FROM_ANYONE"
    ),
    "that it arrived is believed without order or voucher": (OWNERSHIP, "MIGRATION", "LIAR", "ARRIVED_WITHOUT_VOUCHER"),
    "that it left is believed of a node that is not the source": (OWNERSHIP, "MIGRATION", "LIAR", "LEFT_FROM_ANYONE"),
    "that it failed is believed of a node that is not the source": (
        OWNERSHIP, "MIGRATION", "LIAR", "LOST_SNAPSHOT", "FAILED_FROM_ANYONE"
    ),
    "releases die with the node": (HISTORY, "READDED", "RELEASES_DIE_WITH_THE_NODE"),
    "revisions begin anew when a node is added again": (HISTORY, "READDED", "REVISION_BEGINS_ANEW"),
    "what the full inventory does not name is started": (HISTORY, "OLD_STATE", "REVISIONS=4", "UNNAMED_IS_STARTED"),
    "that a snapshot is older than this boot saw is not known": (HISTORY, "OLD_STATE", "REVISIONS=4", "NO_SERIAL"),
    "older state starts after a boot without a confirmed inventory": (
        HISTORY, "OLD_STATE", "REVISIONS=4", "NO_BOOT_CHECK"
    ),
    "a boot is confirmed by what changed, not by a full inventory": (
        HISTORY, "OLD_STATE", "REVISIONS=4", "DELTA_AFTER_A_BOOT"
    ),
    "the server does not compare the agent's point": (*_PUT_BACK, "NO_POINT"),
    "the point is compared with the newest revision": (*_LINE, "NEWEST_REVISION_COMPARED"),
    "the point is compared with the revision at the server's start": (*_LINE, "START_OF_LIFE"),
    "a server that is behind holds nothing": (*_PUT_BACK, "BEHIND_HOLDS_NOTHING"),
    "the guard starts while the server holds": (*_PUT_BACK, "GUARD_WITHOUT_HOLD"),
    "a recovery waits for nobody": (*_PUT_BACK, "RECOVERY_WAITS_FOR_NOBODY"),
    "a recovery does not follow the highest epoch": (*_PUT_BACK, "HOLDER_IS_NOT_FOLLOWED"),
    "a recovery does not wait for the end of what the loser runs": (*_PUT_BACK, "LOSER_IS_NOT_ASKED"),
    "a new generation uses epochs of an older one": (*_PUT_BACK, "EPOCHS_DO_NOT_LEAP"),
    "the agent believes an older inventory": (*_PUT_BACK, "OLDER_IS_BELIEVED"),
    "after a restore unnamed VMs are started": (*_PUT_BACK, "UNNAMED_IS_STARTED"),
    "an epoch is believed without its seal": (*_PUT_BACK, "LIAR", "UNSEALED_WORD_COUNTS"),
    "a point is believed without its seal": (*_PUT_BACK, "LIAR", "UNSEALED_POINT_COUNTS"),
    "two servers: the agent's point is not compared": (*_TWO, "NO_POINT"),
    "two servers: one that is behind holds nothing": (*_TWO, "BEHIND_HOLDS_NOTHING"),
    "a database is put back, and the node that knows is not heard first": (*_PUT_BACK, "UNHEARD"),
    "two servers, and a person attests that a host is off": (
        HISTORY, "TWO_SERVERS", "REVISIONS=3", "GENERATIONS=3", "NAMES=3", "MOVES=2", "WORD"
    ),
}
"""What must be found: the model, and the macros that make it so. The last two, and the word and the snapshot above, are
limits: what Chime does not promise (docs/safety.md)."""


class Search(NamedTuple):
    """One search. `violated`: the property that does not hold, or empty; `trail`: the steps that lead there; `problem`:
    why the search shows nothing, or empty; `taken`: the model and the lines of the steps that were taken."""

    states: int
    seconds: float
    violated: str
    trail: list[str]
    problem: str
    taken: set[tuple[str, int]]


def search(world: tuple[str, ...], optimise: str) -> Search:
    """Looks at every state of the model with these macros, breadth first, until something is violated: so that the
    trail is a shortest one."""
    model, flags = world[0], [f"-D{macro}" for macro in world[1:]]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / model).write_bytes((HERE / model).read_bytes())

        def call(*command: str) -> str:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        call("spin", "-a", "-o3", *flags, model)
        call(*COMPILE, optimise)
        said = call("./pan", "-E")
        violated = re.search(r"assertion violated (\w+)", said)
        steps = call("spin", "-t", "-T", *flags, model) if violated else ""
    states = re.search(r"(\d+) states, stored", said)
    complete = "errors: 0" in said and "not completed" not in said and "too small" not in said
    return Search(
        states=int(states[1]) if states else 0,
        seconds=time.monotonic() - began,
        violated=violated[1] if violated else "",
        trail=re.findall(r"^(?:server(?: \d)?|[AB]|[AB] -> [AB]): .*$", steps, re.MULTILINE),
        problem="" if violated or complete else f"the search is not complete\n{said}",
        taken={(model, int(line)) for line in re.findall(rf"trans +\d+ {model}:(\d+)", said)},
    )


def main() -> int:
    """Return the exit code."""
    began, states, held, caught = time.monotonic(), 0, 0, 0
    dead = {step for model in (OWNERSHIP, HISTORY) for step in _steps(model)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        properties = pool.map(lambda world: search(world, "-O2"), PROPERTIES.values())
        defects = pool.map(lambda world: search(world, "-O0"), DEFECTS.values())
        for name, found in zip(PROPERTIES, properties, strict=True):
            _print(name, found, f"{found.violated} IS VIOLATED" if found.violated else found.problem or "holds")
            for number, step in enumerate(found.trail, 1):
                print(f"  {number:3} {step}")
            states += found.states
            held += not (found.violated or found.problem)
            dead -= found.taken
        for name, found in zip(DEFECTS, defects, strict=True):
            _print(f"defect: {name}", found, f"violates {found.violated}" if found.violated else "NOT FOUND")
            caught += bool(found.violated)
            dead -= found.taken
    if dead:
        never = ", ".join(f"{model}:{line}" for model, line in sorted(dead))
        print(f"steps of the models that are never taken: {never}")
    print(f"model mutants: {caught} caught of {len(DEFECTS)}")
    failed = "" if held == len(PROPERTIES) else f", {len(PROPERTIES) - held} DO NOT"
    print(f"model: {held} properties hold{failed}, {states} states, {time.monotonic() - began:.0f} s")
    return 0 if held == len(PROPERTIES) and caught == len(DEFECTS) and not dead else 1


def _steps(model: str) -> list[tuple[str, int]]:
    lines = (HERE / model).read_text().splitlines()
    return [(model, number) for number, line in enumerate(lines, 1) if line.strip().startswith(":: d_step")]


def _print(name: str, found: Search, verdict: str) -> None:
    print(f"{name:68} {found.states:8} states {found.seconds:6.1f} s  {verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
