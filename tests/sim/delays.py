"""How long things take beyond their usual time: mostly nothing, sometimes up to half a second (a busy disk, a busy
libvirtd, a scheduler), and rarely some seconds, between an agent's plan, its guard and the server's answer.

They have a random source of their own: without tails a run is the same, event for event, as if there were none.
"""

from __future__ import annotations

import random

KINDS: dict[str, tuple[float, float]] = {"short": (0.0, 0.0), "usual": (0.05, 0.003), "long": (0.3, 0.02)}
"""The shares of things that take longer, and of those that take some seconds, by what a run may say of its delays."""

SLOW_S = 0.5
RARE_S = 1.5  # the mean beyond `SLOW_S`
LONGEST_S = 8.0


class Delays:
    """`tail()`: seconds that the next thing takes beyond its usual time."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"delays of {seed}")
        self._slow = self._rare = 0.0

    def become(self, kind: str) -> None:
        """From now on they are short, usual or long. Raises KeyError."""
        self._slow, self._rare = KINDS[kind]

    def tail(self) -> float:
        """Mostly nothing."""
        if not self._slow:
            return 0.0
        drawn = self._rng.random()
        if drawn < self._rare:
            return min(LONGEST_S, SLOW_S + self._rng.expovariate(1.0 / RARE_S))
        return self._rng.uniform(0.0, SLOW_S) if drawn < self._rare + self._slow else 0.0
