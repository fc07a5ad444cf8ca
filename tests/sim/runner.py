"""Many random runs, on all cores."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator

import structlog
from msgspec import Struct

from tests.sim import chaos, shrink
from tests.sim.engine import Violation
from tests.sim.story import Story

STORY_LINES = 60


class Outcome(Struct):
    """One run. `violation` empty: all invariants held."""

    seed: int
    hours: float
    events: int
    violation: str = ""


class Summary(Struct):
    """Many of them."""

    seeds: int = 0
    hours: float = 0.0
    events: int = 0
    violations: int = 0

    def add(self, outcome: Outcome) -> None:
        """Counts one."""
        self.seeds += 1
        self.hours += outcome.hours
        self.events += outcome.events
        self.violations += bool(outcome.violation)


def prepare() -> None:
    """Silences the daemon's log, which nobody would read, and keeps the garbage collector from looking at everything
    all the time: a run makes much, and little of it in circles."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def run_seed(seed: int, nodes: int = 0, vms: int = 0, duration_s: float = 0.0) -> Outcome:
    """One random run; an error in the cores, or in the simulator, is a violation too."""
    scenario = chaos.scenario_of(seed, nodes, vms, duration_s)
    try:
        cluster = chaos.run(scenario)
    except Violation as violation:
        return Outcome(seed, 0.0, 0, str(violation))
    except Exception:
        return Outcome(seed, 0.0, 0, f"bug: {traceback.format_exc(limit=-6)}")
    return Outcome(seed, cluster.engine.now / 3600, cluster.engine.events)


def run_seeds(seeds: range, processes: int = 0) -> Iterator[Outcome]:
    """The outcomes, as they come."""
    count = processes or os.cpu_count() or 1
    if count == 1:
        prepare()
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(count, prepare) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=8)


def explain(seed: int, write: Callable[[str], None]) -> None:
    """The violation of a seed again: what it needs, as a scenario, and the story of whom it concerns."""
    prepare()
    scenario = chaos.scenario_of(seed)
    if shrink.failure(scenario) is not None:
        scenario = shrink.shrink(scenario)
    story = Story(on=True)
    write(f"\nseed {seed}, shortened; save this and run it with `make sim SCENARIO=FILE`:\n")
    write(shrink.as_text(scenario))
    try:
        chaos.run(scenario, story)
    except Violation as violation:
        subject = violation.subject
        write(f"the story of {story.names.get(subject, subject) or 'everything'} until: {_named(violation, story)}\n")
        for line in story.of(subject)[-STORY_LINES:]:
            write(str(line))
    except Exception:
        for line in story.lines[-STORY_LINES:]:
            write(str(line))
        write(traceback.format_exc())


def _named(violation: Violation, story: Story) -> str:
    text = str(violation)
    for uuid, name in story.names.items():
        text = text.replace(uuid, name)
    return text


def today() -> int:
    """The first seed of today's fresh ones."""
    return int(time.strftime("%Y%m%d", time.gmtime())) * 1_000_000 + int(time.time()) % 86_400 * 10
