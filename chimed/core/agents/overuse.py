"""What keys do that they may not, or more often than they may: told once, then with a count, and kept from others.

Rules: a node's events and changes have a budget; what is beyond it is dropped or refused and counted, never kept. A
line of the audit trail, a line of the log and an alarm say so when it begins; then one line each minute says how often.
Nothing here is durable: after a restart of the server it is told again.
"""

from __future__ import annotations

from collections.abc import Sequence

from chimed.core.agents.health import NodeHealth
from chimed.core.state.budgets import Bucket
from chimed.core.state.liveness import NEVER
from chimed.core.state.turn import Context
from wire import messages as m
from wire.errors import ChimeError
from wire.verbs import Role
from wire.words import AlarmCode

TOLD_EVERY_S = 60.0

_WORDS = {
    "requests-forbidden": "requests that are not for this key",
    "messages-over-budget": "messages beyond its budget were not looked at",
    "events-dropped": "events beyond its budget were dropped",
    "changes-refused": "messages that change something were refused: more changes than its budget",
}
"""Action in the audit trail, and what was counted."""
_OVER = AlarmCode.NODE_OVER_BUDGET
_ALARMS = {
    "requests-forbidden": (
        AlarmCode.KEY_MISUSED, "the key of node {} is used to ask for what only others may: see who has it"
    ),
    "messages-over-budget": (_OVER, "node {} sends more than its budget; the rest is not looked at"),
    "events-dropped": (_OVER, "node {} sends more events than its budget; the rest is dropped"),
    "changes-refused": (_OVER, "node {} reports more changes than its budget; the rest has to wait"),
}  # fmt: skip
"""Code and text of the alarm, when a node does it."""


class Overuse:
    """Counts it, by who does what."""

    def __init__(self, ctx: Context, health: NodeHealth) -> None:
        self._ctx, self._health = ctx, health
        self._events: dict[str, Bucket] = {}
        self._changes: dict[str, Bucket] = {}
        self._open: dict[tuple[str, str], tuple[float, int, str]] = {}
        """(who, action) -> when to tell again, how often since, and the newest of it."""

    # --- what is too much ---------------------------------------------------------------------------------------------

    def forbidden(self, role: Role, name: str, kind: str, now: float) -> None:
        """A key asked for what is not for its role."""
        self._note(role, name, "requests-forbidden", 1, now, f", the newest {kind}")

    def unseen(self, role: Role, name: str, count: int, now: float) -> None:
        """So many messages of a key were not looked at."""
        self._note(role, name, "messages-over-budget", count, now)

    def events(self, node: str, events: Sequence[m.AgentEvent], now: float) -> Sequence[m.AgentEvent]:
        """Those that are within the node's budget, the oldest first."""
        if not events:
            return events
        policy = self._ctx.policy
        bucket = self._events.setdefault(node, Bucket(policy.node_events_per_s, policy.node_events_burst))
        granted = bucket.take(len(events), now)
        if granted < len(events):
            self._note(Role.AGENT, node, "events-dropped", len(events) - granted, now)
        return events[:granted]

    def may_change(self, node: str, now: float) -> bool:
        """Whether the node has not used up its changes of rows and lines."""
        bucket = self._changes.get(node)
        if bucket is None or bucket.room(now) > 0:
            return True
        self._note(Role.AGENT, node, "changes-refused", 1, now)
        return False

    def check_change(self, node: str, now: float) -> None:
        """Raises `ChimeError` (overloaded) when it has."""
        if not self.may_change(node, now):
            text = f"node {node} has changed more than its budget: try again later"
            raise ChimeError("overloaded", text, retry_after_s=self._ctx.policy.heartbeat_s)

    def changed(self, node: str, count: int, now: float) -> None:
        """The node's message has changed so many rows and lines."""
        if count > 0:
            policy = self._ctx.policy
            bucket = self._changes.setdefault(node, Bucket(policy.node_changes_per_s, policy.node_changes_burst))
            bucket.spend(count, now)

    # --- telling ------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return min((due for due, _, _ in self._open.values()), default=NEVER)

    def tick(self, now: float) -> None:
        """Tells what was counted since it was told last. What did not go on begins anew."""
        for (who, action), (due, count, newest) in list(self._open.items()):
            if now < due:
                continue
            if count:
                self._open[(who, action)] = (now + TOLD_EVERY_S, 0, "")
                self._tell(who, action, count, newest)
            else:
                del self._open[(who, action)]

    def untold(self) -> None:
        """What this turn told is undone: all of it is told again."""
        self._open.clear()

    def forget(self, node: str) -> None:
        """The node was removed."""
        self._events.pop(node, None)
        self._changes.pop(node, None)
        for action in _WORDS:
            self._open.pop((node, action), None)

    def _note(self, role: Role, name: str, action: str, count: int, now: float, newest: str = "") -> None:
        if self._ctx.read_only:
            return
        of_node, self._ctx.of_node = self._ctx.of_node, False  # few lines, which its other ones must not push out
        due, before, _ = self._open.get((name, action), (0.0, -1, ""))
        if before >= 0:
            self._open[(name, action)] = (due, before + count, newest)
        else:
            self._open[(name, action)] = (now + TOLD_EVERY_S, 0, "")
            self._tell(name, action, count, newest)
        if role is Role.AGENT:
            code, text = _ALARMS[action]
            self._health.suspect(name, code, text.format(name), now)
        self._ctx.of_node = of_node

    def _tell(self, who: str, action: str, count: int, newest: str) -> None:
        text = f"{count} {_WORDS[action]}{newest}"
        self._ctx.audit("chimed", action, who, text)
        self._ctx.log("warning", f"{who}: {text}")
