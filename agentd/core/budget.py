"""How often and how soon a VM may be started again after it ended by itself.

The first restart is immediate; then 1, 2, 4 ... seconds up to a maximum; after `limit` restarts within `window_s`
the VM is failed until an operator starts it.
"""

from __future__ import annotations

from msgspec import Struct, field


class RestartPolicy(Struct, frozen=True):
    """Durations in seconds."""

    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    limit: int = 5
    window_s: float = 600.0


class Budget(Struct):
    """The recent restarts of one VM (times in CLOCK_BOOTTIME seconds) under one start request. A further attempt after
    a start that failed counts as a restart too. `key`: epoch and start request."""

    key: tuple[int, int]
    tried: bool = False
    restarts: list[float] = field(default_factory=list)

    def forget_old(self, now: float, policy: RestartPolicy) -> None:
        """Drops restarts that left the window."""
        self.restarts = [when for when in self.restarts if now - when < policy.window_s]

    def spent(self, policy: RestartPolicy) -> bool:
        """No restart is left in the window."""
        return len(self.restarts) >= policy.limit

    def next_at(self, policy: RestartPolicy) -> float:
        """The time before which the next restart must wait; 0: at once."""
        if not self.restarts:
            return 0.0
        delay = min(policy.backoff_s * 2 ** min(len(self.restarts) - 1, 30), policy.backoff_max_s)
        return self.restarts[-1] + float(delay)
