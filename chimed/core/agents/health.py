"""Health of nodes: derived from liveness and reported faults, saved and told when it changes, and its alarms.

Rules: ping and heartbeats name a state and prove nothing about VMs; many nodes lost together are one alarm; a suspicion
about a node's key is an alarm while it is fresh, however often it is repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import msgspec

from chimed.core.rules import alarms
from chimed.core.state import rows as r
from chimed.core.state.liveness import NEVER, Liveness, Phase
from chimed.core.state.sessions import Sessions
from chimed.core.state.turn import Context
from wire.types import Health, Severity
from wire.words import AlarmCode, FaultCode

SUSPICION_S = 60.0
AGAIN_S = 10.0


class NodeHealth:
    """Keeps `health`, `reasons` and the alarms of nodes true. `progress(node, now)` is called after a change."""

    def __init__(
        self, ctx: Context, sessions: Sessions, liveness: Liveness, progress: Callable[[str, float], None]
    ) -> None:
        self._ctx, self._sessions, self._liveness, self._progress = ctx, sessions, liveness, progress
        self._suspicions: dict[tuple[str, AlarmCode], tuple[float, str]] = {}
        self._again: dict[str, float] = {}

    def sync(self, names: Iterable[str], now: float) -> None:
        """Looks at these nodes again; of others too when the judgement about many of them changes."""
        if self._ctx.read_only:
            return
        todo = dict.fromkeys(names)
        for name in todo:
            self._contained(name, now, functools.partial(self._sync_health, name, now))
        before = self._ctx.alarm_active(AlarmCode.MASS_UNREACHABLE, alarms.SERVER)
        mass = alarms.sync_mass(self._ctx)
        if mass != before:
            lost = self._ctx.tables.nodes.by("health", Health.UNREACHABLE)
            todo.update(dict.fromkeys(node.name for node in lost))
        for name in todo:
            self._contained(name, now, functools.partial(self._sync_alarms, name, mass))

    def _contained(self, node_name: str, now: float, do: Callable[[], None]) -> None:
        """What trips over one node is tried again for that node, and the others are looked at all the same."""
        if not self._ctx.contained(f"health of {node_name}", do):
            self._again[node_name] = now + AGAIN_S

    def suspect(self, node_name: str, code: AlarmCode, text: str, now: float) -> None:
        """Something wrong was tried with the node's key: an alarm, until it has not been tried for a while."""
        lasting_s = max(SUSPICION_S, 4 * self._ctx.policy.heartbeat_s)
        _, known = self._suspicions.get((node_name, code), (0.0, ""))
        self._suspicions[(node_name, code)] = (now + lasting_s, text)
        if text != known or not self._ctx.alarm_active(code, node_name):
            self.sync([node_name], now)

    def forget(self, node_name: str) -> None:
        """The node was removed."""
        for code in alarms.SUSPICIONS:
            self._suspicions.pop((node_name, code), None)
        self._again.pop(node_name, None)

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        ends = (until for until, _ in self._suspicions.values())
        return min((*ends, *self._again.values()), default=NEVER)

    def tick(self, now: float) -> None:
        """Ends suspicions that are old, and looks again at nodes that were tripped over."""
        if now < self.next_deadline():
            return
        old = [key for key, (until, _) in self._suspicions.items() if now >= until]
        again = [name for name, at in self._again.items() if now >= at]
        for key in old:
            del self._suspicions[key]
        for name in again:
            del self._again[name]
        self.sync([*(name for name, _ in old), *again], now)

    def of(self, node: r.Node) -> tuple[Health, tuple[str, ...]]:
        """Health and reasons of a node as of now."""
        phase = self._liveness.phase(node.name)
        if phase is None or phase is Phase.GRACE or phase is Phase.ASKING:
            return node.health, node.reasons
        if phase is Phase.SILENT:
            return Health.UNREACHABLE, ()
        if phase is Phase.AGENT_LOST:
            extra = (FaultCode.PING_UNAVAILABLE,) if self._liveness.ping_unavailable(node.name) else ()
            return Health.ERROR, (FaultCode.AGENT_LOST, *extra)
        session = self._sessions.get(node.name)
        if session is None:  # it said bye: nothing is known to be wrong until it is missed
            return node.health, node.reasons
        if session.seq == 0 and node.health == Health.ERROR and _is_heard(node):
            return node.health, node.reasons  # an agent that restarted has not yet said what is wrong now
        codes = sorted({fault.code for fault in session.faults if fault.severity != Severity.INFO})
        return (Health.ERROR, tuple(codes)) if codes else (Health.NORMAL, ())

    def _sync_health(self, node_name: str, now: float) -> None:
        node = self._ctx.tables.nodes.get(node_name)
        if node is None:
            return
        health, reasons = self.of(node)
        if (health, reasons) == (node.health, node.reasons):
            return
        text = f"{node.health} -> {health}" + (f" ({', '.join(reasons)})" if reasons else "")
        self._ctx.audit("chimed", "node-health", node_name, text)
        self._ctx.log("info" if health == Health.NORMAL else "warning", f"node {node_name}: {text}")
        self._ctx.tables.nodes.put(msgspec.structs.replace(node, health=health, reasons=reasons))
        self._ctx.contained(f"what waits for {node_name}", functools.partial(self._progress, node_name, now))

    def _sync_alarms(self, node_name: str, mass: bool) -> None:
        node, session = self._ctx.tables.nodes.get(node_name), self._sessions.get(node_name)
        if node is None:
            return
        wanted, codes = alarms.node_alarms(node, session.faults if session else (), mass), alarms.NODE_CODES
        if (session is None or session.seq == 0) and _is_heard(node):  # of faults nothing has been said yet
            codes -= alarms.OF_FAULTS
            wanted = {code: what for code, what in wanted.items() if code in codes}
        for code in alarms.SUSPICIONS:
            if (node_name, code) in self._suspicions:
                wanted |= alarms.raised(code, self._suspicions[(node_name, code)][1])
        self._ctx.sync_alarms(node_name, wanted, codes)


def _is_heard(node: r.Node) -> bool:
    """Whether its health is what its agent has said, and not that it says nothing."""
    return node.health in (Health.NORMAL, Health.ERROR) and FaultCode.AGENT_LOST not in node.reasons
