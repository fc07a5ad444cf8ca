"""Checks the model of the ownership protocol: every state that it can reach, and that it sees deliberate defects.

Usage: run.py. Needs spin and gcc. The exit code is 0 if every property holds, no search was cut short, no step of the
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

MODEL = Path(__file__).with_name("ownership.pml")
MEMORY_MIB = 2800
COMPILE = ("gcc", "-DSAFETY", "-DBFS", "-DNOREDUCE", "-DPEG", f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c")

PROPERTIES: dict[str, tuple[str, ...]] = {
    "S1 S2: drain, rebuild, crashes, loss, duplication": (),
    "S1 S2: the VM comes back to its first owner": ("EPOCHS=3",),
    "S1 S2: drains on the node, lost snapshots": ("LOCAL_DRAIN", "LOST_SNAPSHOT"),
    "S1 S2 R1: live migration": ("MIGRATION",),
    "S1 S2 R1: live migration, lost snapshots": ("MIGRATION", "LOST_SNAPSHOT"),
    "S1 S2 R1: live migration, ordered on the node too": ("MIGRATION", "WITHOUT_SERVER"),
}
"""What must hold: the names of the properties, in which world; its macros."""

DEFECTS: dict[str, tuple[str, ...]] = {
    "the guard starts after a boot without a confirmed inventory": ("NO_BOOT_CHECK",),
    "the guard starts while a process is alive": ("NO_SCAN",),
    "a drain is proven while a start is under way": ("NO_SETTLING",),
    "any answer to a pull is believed, however old": ("NO_NONCE",),
    "the agent acts on a drain that it has not recorded": ("DRAIN_NOT_RECORDED",),
    "the server sends before it commits": ("SEND_BEFORE_COMMIT",),
    "a release is forgotten before it is confirmed": ("RELEASE_UNTIL_SENT",),
    "a rebuild without evidence": ("REBUILD_WITHOUT_EVIDENCE",),
    "evidence of another drain counts": ("EVIDENCE_OF_ANOTHER_DRAIN",),
    "a person attests what is not true": ("FALSE_WORD",),
    "a person attests that nothing runs, of a host that is on": ("WORD_ABOUT_NOW",),
    "the copy is let run before the source is known to be gone": ("MIGRATION", "HANDOVER_TOO_EARLY"),
    "the guard starts while a migration is undecided": ("MIGRATION", "START_WHILE_UNDECIDED"),
    "what has left is not released at its source": ("MIGRATION", "LEFT_IS_NO_RELEASE"),
    "a dead source is taken for one that has left": ("MIGRATION", "LEFT_WITHOUT_A_LOOK"),
    "any paused copy is taken for the VM": ("MIGRATION", "ANY_COPY_IS_THE_VM"),
    "what was said in another epoch is believed": ("MIGRATION", "EPOCHS=3", "ATTEMPTS=1", "NO_EPOCH"),
    "a rebuild does not ask where the VM may have migrated to": ("MIGRATION", "NO_CENSUS"),
    "a snapshot is lost in a migration that the server does not know of": (
        "MIGRATION", "WITHOUT_SERVER", "LOST_SNAPSHOT"
    ),
}
"""What must be found, and the macros that make it so."""


class Search(NamedTuple):
    """One search. `violated`: the property that does not hold, or empty; `trail`: the steps that lead there; `problem`:
    why the search shows nothing, or empty; `taken`: the lines of the steps that were taken."""

    states: int
    seconds: float
    violated: str
    trail: list[str]
    problem: str
    taken: set[int]


def search(macros: tuple[str, ...], optimise: str) -> Search:
    """Looks at every state of the model with these macros, breadth first, until something is violated: so that the
    trail is a shortest one."""
    flags = [f"-D{macro}" for macro in macros]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MODEL.name).write_bytes(MODEL.read_bytes())

        def call(*command: str) -> str:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        call("spin", "-a", "-o3", *flags, MODEL.name)
        call(*COMPILE, optimise)
        said = call("./pan", "-E")
        violated = re.search(r"assertion violated (\w+)", said)
        steps = call("spin", "-t", "-T", *flags, MODEL.name) if violated else ""
    states = re.search(r"(\d+) states, stored", said)
    complete = "errors: 0" in said and "not completed" not in said and "too small" not in said
    return Search(
        states=int(states[1]) if states else 0,
        seconds=time.monotonic() - began,
        violated=violated[1] if violated else "",
        trail=re.findall(r"^(?:server|[AB]|[AB] -> [AB]): .*$", steps, re.MULTILINE),
        problem="" if violated or complete else f"the search is not complete\n{said}",
        taken={int(line) for line in re.findall(rf"trans +\d+ {MODEL.name}:(\d+)", said)},
    )


def main() -> int:
    """Return the exit code."""
    began, states, held, caught = time.monotonic(), 0, 0, 0
    lines = MODEL.read_text().splitlines()
    dead = {number for number, line in enumerate(lines, 1) if line.strip().startswith(":: d_step")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        properties = pool.map(lambda macros: search(macros, "-O2"), PROPERTIES.values())
        defects = pool.map(lambda macros: search(macros, "-O0"), DEFECTS.values())
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
        print(f"steps of the model that are never taken: lines {', '.join(map(str, sorted(dead)))}")
    print(f"model mutants: {caught} caught of {len(DEFECTS)}")
    failed = "" if held == len(PROPERTIES) else f", {len(PROPERTIES) - held} DO NOT"
    print(f"model: {held} properties hold{failed}, {states} states, {time.monotonic() - began:.0f} s")
    return 0 if held == len(PROPERTIES) and caught == len(DEFECTS) and not dead else 1


def _print(name: str, found: Search, verdict: str) -> None:
    print(f"{name:68} {found.states:8} states {found.seconds:6.1f} s  {verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
