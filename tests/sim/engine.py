"""Simulated time: one heap of things to do, one random source, and whoever wants to look after every event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from tests.sim.delays import Delays
from tests.sim.story import Story


class Violation(AssertionError):
    """An invariant does not hold. `subject`: the VM or node whose story tells why."""

    def __init__(self, rule: str, text: str, subject: str = "") -> None:
        super().__init__(f"{rule}: {text}")
        self.rule, self.subject = rule, subject


class Engine:
    """`now`: true seconds since the beginning, which no host knows. `watch`: called after every event. `delays`: what
    things take beyond their usual time."""

    def __init__(self, seed: int, story: Story) -> None:
        self.now = 0.0
        self.seed, self.rng, self.delays = seed, random.Random(seed), Delays(seed)
        self.story = story
        self.events = 0
        self.watch: Callable[[], None] = lambda: None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        """`action(*args)` happens at `time`; things of one moment happen in the order in which they were ordered."""
        self._serial += 1
        heapq.heappush(self._heap, (time, self._serial, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        """`action(*args)` happens `delay` seconds from now."""
        self.at(self.now + delay, action, *args)

    def run_until(self, end: float) -> None:
        """Everything that is due until `end`."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            time, _, action, args = heapq.heappop(heap)
            self.now = max(self.now, time)
            action(*args)
            self.events += 1
            self.watch()
        self.now = end


class Clock:
    """A host's clock: starts anywhere and runs a little fast or slow. Never jumps back for who lives on: it is
    CLOCK_BOOTTIME (the wall clock, which does jump, is `wall`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._since, self._base = engine.now, engine.rng.uniform(1.0, 1000.0)
        self._rate = engine.rng.uniform(0.998, 1.002)
        self.wall_shift = 0.0

    def now(self) -> float:
        """What the host reads."""
        return self._base + (self._engine.now - self._since) * self._rate

    def rewind(self, reading: float) -> None:
        """The machine goes on from an earlier moment of its own, when its clock showed `reading`."""
        self._since, self._base = self._engine.now, reading

    def true(self, reading: float) -> float:
        """When the clock will show `reading`, in true time."""
        return self._since + (reading - self._base) / self._rate

    def wall(self) -> float:
        """Time of day."""
        return 1_800_000_000.0 + self.now() + self.wall_shift
