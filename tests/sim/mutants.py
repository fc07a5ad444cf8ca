"""Tests of the tests: deliberate defects in the cores and in `agentd/acting.py`, one at a time; the simulator must find
each.

Usage:
  mutants [NAME...] [--list] [--processes P]

Each defect of `defects.py` is put into its module in a process of its own, before anything else is imported; no file
is changed. Then all scenarios run, then random runs: the seed that found it before, and others. The first detection
ends it. A run that finds something without any defect too is named as WRONG, and counts for nothing.

Options:
  --list         name the defects and what they break
  --processes P  how many at a time; else one for each core
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docopt

from tests.sim.defects import DEFECTS, Mutant

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FIRST_SEED = 1
MAX_SEEDS = 1500
MAX_CPU_S = 300.0
"""Against a search that never ends; what decides is `MAX_SEEDS`, on a busy machine too."""


class Unfit(Exception):
    """A defect that cannot be put in: its place in the source is not there, or not the only one."""


class Found(NamedTuple):
    """What happened to one defect. `run` empty: nothing has found it. `error`: it does not fit any more."""

    name: str
    run: str = ""
    why: str = ""
    took_s: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"UNFIT   {self.name}: {self.error}"
        if not self.run:
            return f"ALIVE   {self.name} after {self.took_s:.1f} s"
        return f"killed  {self.name}  by {self.run} ({self.why}) after {self.took_s:.1f} s"


# --- putting a defect in ----------------------------------------------------------------------------------------------


def put_in(mutant: Mutant) -> None:
    """Loads the modules of the defect from their changed source. Raises Unfit. Call it before they are imported."""
    changed: dict[str, str] = {}
    for module, old, new in mutant.edits:
        source = changed.get(module) or _source(module)
        if source.count(old) != 1:
            raise Unfit(f"{module} has {source.count(old)} times, instead of once:\n{old}")
        changed[module] = source.replace(old, new)
    for module, source in changed.items():
        _load(module, source)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise Unfit(f"there is no module {module}")
    return Path(spec.origin).read_text()


def _load(module: str, source: str) -> None:
    """The module comes from `source`, whoever imports it."""
    if module in sys.modules:
        raise Unfit(f"{module} was imported before it could be changed")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    exec(compile(source, spec.origin, "exec"), loaded.__dict__)
    package, _, name = module.rpartition(".")
    setattr(sys.modules[package], name, loaded)


# --- looking for it ---------------------------------------------------------------------------------------------------


def check(mutant: Mutant, scenarios: dict[str, str], distrusted: frozenset[str]) -> Found:
    """What finds the defect. In a process of its own. `distrusted`: runs that fail without any defect."""
    began = time.process_time()
    try:
        put_in(mutant)
    except Unfit as problem:
        return Found(mutant.name, error=str(problem))
    for run, why in _runs(scenarios, [mutant.seed] if mutant.seed else [], distrusted):
        took_s = time.process_time() - began
        if why:
            return Found(mutant.name, run, why, took_s)
        if took_s > MAX_CPU_S:
            break
    return Found(mutant.name, took_s=time.process_time() - began)


def _runs(scenarios: dict[str, str], known: list[int], distrusted: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Every run that is tried, and what it finds: scenarios, the seeds that are known, then others."""
    for name, text in scenarios.items():
        if name not in distrusted:
            yield name, scenario_run(text)
    for seed in [*known, *range(FIRST_SEED, FIRST_SEED + MAX_SEEDS)]:
        if f"seed {seed}" not in distrusted:
            yield f"seed {seed}", random_run(seed)


def scenario_run(text: str) -> str:
    """What is otherwise than the scenario says, if anything is."""
    from tests.sim import runner, scenario

    runner.prepare()
    return _failure(lambda: scenario.run(scenario.parse(text)))


def random_run(seed: int) -> str:
    """What goes wrong in a random run, if anything does."""
    from tests.sim import chaos, runner

    runner.prepare()
    return _failure(lambda: chaos.run(chaos.scenario_of(seed)))


def _failure(run: Callable[[], Any]) -> str:
    """How the run fails, in a line. Empty: it does not."""
    try:
        run()
    except AssertionError as violation:  # an invariant, an expectation, or an assertion of the cores
        return (str(violation) or _last_line())[:150]
    except Exception:
        return _last_line()
    return ""


def _last_line() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    return f"{sys.exc_info()[1]!r} in {frames[-1].name}"[:150]


def check_sound(scenarios: dict[str, str], seeds: list[int]) -> dict[str, str]:
    """What is found where there is no defect: must be nothing."""
    found = {name: scenario_run(text) for name, text in scenarios.items()}
    found |= {f"seed {seed}": random_run(seed) for seed in seeds}
    return {run: why for run, why in found.items() if why}


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """The exit code."""
    args = docopt.docopt(__doc__, argv)
    unknown = set(args["NAME"]) - {mutant.name for mutant in DEFECTS}
    if unknown:
        print(f"no such defect: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in DEFECTS if not args["NAME"] or mutant.name in args["NAME"]]
    if args["--list"]:
        for mutant in chosen:
            print(f"{mutant.name:44} {mutant.breaks}")
        return 0
    return _run(chosen, int(args["--processes"] or os.cpu_count() or 1))


def _run(chosen: list[Mutant], processes: int) -> int:
    """One process for each defect, since its modules are loaded once."""
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        search = Search(pool, processes)
        search.begin()
        killed = sum(search.find(chosen))
    print(f"mutants: {killed} killed of {len(chosen)}")
    return 0 if not search.distrusted and killed == len(chosen) else 1


class Search:
    """All defects, and the runs that cannot be trusted, since they fail without any."""

    def __init__(self, pool: Any, processes: int) -> None:
        self._pool, self._processes = pool, processes
        self._scenarios = {f"scenario {path.stem}": path.read_text() for path in sorted(SCENARIOS.glob("*.txt"))}
        self.distrusted: frozenset[str] = frozenset()

    def begin(self) -> None:
        """All scenarios and known seeds, without a defect."""
        items, seeds = list(self._scenarios.items()), sorted({mutant.seed for mutant in DEFECTS if mutant.seed})
        parts = [(dict(items[n :: self._processes]), seeds[n :: self._processes]) for n in range(self._processes)]
        for wrong in self._pool.starmap(check_sound, parts, chunksize=1):
            self._distrust(wrong)

    def find(self, chosen: list[Mutant]) -> Iterator[bool]:
        """For each defect whether it was found. A random run that finds it must find nothing without it."""
        by_name = {mutant.name: mutant for mutant in chosen}
        for found in self._pool.imap(self._check(), chosen, chunksize=1):
            while found.run.startswith("seed") and self._is_false(found.run):
                found = self._pool.apply(self._check(), (by_name[found.name],))
            print(found, flush=True)
            yield bool(found.run)

    def _check(self) -> Callable[[Mutant], Found]:
        return functools.partial(check, scenarios=self._scenarios, distrusted=self.distrusted)

    def _is_false(self, run: str) -> bool:
        if run not in self.distrusted:
            self._distrust(self._pool.apply(check_sound, ({}, [int(run.removeprefix("seed "))])))
        return run in self.distrusted

    def _distrust(self, wrong: dict[str, str]) -> None:
        for run, why in wrong.items():
            print(f"WRONG   without any defect: {run} ({why})", flush=True)
        self.distrusted |= wrong.keys()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
