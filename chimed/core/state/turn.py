"""What every part of the server's core shares: the tables, the policy, the audit trail, alarms and effects.

Rules: a change of a node's inventory takes a new revision of that node, and its agent is poked after the commit; an
alarm is raised once while its condition holds; every change by a person or the system leaves an audit line.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable

import msgspec
from msgspec import Struct

from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.meeting import Meeting
from chimed.core.state.tables import Tables
from wire.types import EPOCHS_PER_GENERATION, Severity
from wire.words import ALARMS, AlarmCode, AlarmSubject

_OF_VMS = frozenset(code for code, info in ALARMS.items() if info.subject is AlarmSubject.VM)
ALARM_TEXT_CHARS = 1000
"""A node chooses parts of it, and all that were cleared lately are kept in memory."""


class Policy(Struct, frozen=True):
    """Settings of the core; seconds and MiB."""

    heartbeat_s: float = 15.0
    missed_heartbeats: int = 3
    ping_tries: int = 3
    ping_timeout_s: float = 1.0
    challenge_s: float = 2.0
    command_timeout_s: float = 60.0
    operation_timeout_s: float = 300.0
    memory_overcommit: float = 1.0
    vcpu_overcommit: float = 4.0
    memory_reserve_mib: int = 512
    vcpu_reserve: int = 0
    migration_network: str = "management"
    migrations_per_node: int = 2
    migrations_per_cluster: int = 8
    mass_fraction: float = 1 / 3
    mass_min: int = 3
    max_frame_bytes: int = 1 << 20
    node_events_per_s: float = 2.0
    node_events_burst: int = 2_000
    node_changes_per_s: float = 20.0
    node_changes_burst: int = 10_000
    reported_vms: int = 2_000
    reported_mib: int = 4
    version: str = ""


class Context:
    """Shared state of one server process. `wall` is the wall clock for display, `seal_key` the key of its seals.
    `life`: the random name of this process' life."""

    def __init__(
        self,
        tables: Tables,
        policy: Policy,
        rng: random.Random,
        wall: Callable[[], float],
        seal_key: bytes,
        now: float,
    ) -> None:
        self.tables, self.policy, self.rng, self.wall, self.seal_key = tables, policy, rng, wall, seal_key
        self.life = self.token()
        self.counters: Counter[str] = Counter()
        self.read_only = ""  # why nothing can be recorded now; empty while all is well
        self.read_only_since = 0.0  # wall clock
        self.out: list[fx.Effect] = []
        self.touched: set[str] = set()
        self.cause: str | None = None  # the operation at hand, for the audit trail
        self.now = now  # monotonic seconds of the event at hand
        longest_s = policy.heartbeat_s * (policy.missed_heartbeats + 1) + policy.ping_tries * policy.ping_timeout_s
        self.meeting = Meeting((node.name for node in tables.nodes), now, longest_s)
        self.said_to_leave_for: dict[str, set[str]] = {}  # node that is proven off: VMs whose owners say so
        self.sighted: dict[tuple[str, str], float] = {}  # (node, VM): since when a rebuild waits for a copy to go
        self.of_node = False  # whether the message at hand is a node's
        self.deadlines: dict[str, float] = {}  # of running operations, monotonic seconds

    # --- effects ------------------------------------------------------------------------------------------------------

    def emit(self, effect: fx.Effect) -> None:
        """Adds an effect to this turn."""
        self.out.append(effect)

    def log(self, level: str, text: str) -> None:
        """A line for the log."""
        self.emit(fx.Log(level, text))

    def token(self) -> str:
        """A fresh opaque name."""
        return f"{self.rng.getrandbits(64):016x}"

    def contained(self, what: str, do: Callable[[], object]) -> bool:
        """Does one thing of many. An exception in it is a bug of ours and fails this thing alone: what it has changed
        is undone, it is told, and the rest goes on. Returns whether it was done."""
        wanted, cause = len(self.out), self.cause
        try:
            with self.tables.part():
                do()
        except Exception as bug:
            del self.out[wanted:]
            self.cause = cause
            self.counters["internal-errors"] += 1
            self.log("error", f"{what}: a bug in the server: {''.join(traceback.format_exception(bug)[-3:])}")
            return False
        return True

    # --- audit --------------------------------------------------------------------------------------------------------

    def audit(
        self, actor: str, action: str, subject: str, text: str = "", source_id: str = "", of_node: bool = False
    ) -> None:
        """A line of the audit trail, caused by the operation at hand if there is one, else perhaps by a node's word
        (`of_node`: by what nodes have said before, whatever is at hand)."""
        event = r.Event(
            time=self.wall(),
            actor=actor,
            action=action,
            subject=subject,
            text=text,
            operation=self.cause,
            source_id=source_id,
            of_node=(self.of_node or of_node) and self.cause is None,
        )
        self.tables.append(event)

    # --- revisions and epochs -----------------------------------------------------------------------------------------

    def bump(self, node_name: str) -> int:
        """A new revision of the node's inventory; its agent will be poked."""
        node = self.tables.nodes.get(node_name)
        assert node is not None  # nothing refers to a node that was removed
        self.tables.nodes.put(msgspec.structs.replace(node, revision=node.revision + 1))
        self.touched.add(node_name)
        return node.revision + 1

    def next_epoch(self, vm: r.Vm) -> int:
        """An epoch that was never used for this VM, also not in a history that a restore has undone."""
        return max(vm.epoch + 1, (self.tables.meta.generation - 1) * EPOCHS_PER_GENERATION + 1)

    def known_epoch(self) -> int:
        """No VM that was here before, and comes again with its UUID, had a higher epoch. A database from before that
        was kept has only its operations to go by."""
        return max(self.tables.meta.forgotten_epoch, self.tables.meta.next_operation)

    # --- alarms -------------------------------------------------------------------------------------------------------

    def sync_alarms(
        self, subject: str, wanted: dict[AlarmCode, tuple[Severity, str]], codes: frozenset[AlarmCode]
    ) -> None:
        """Makes the active alarms of `subject` among `codes` exactly `wanted` (code -> severity, text)."""
        active = {a.code: a for a in self.tables.alarms.by("subject", subject) if a.cleared is None and a.code in codes}
        for code, alarm in active.items():
            if code not in wanted:
                self.tables.alarms.put(msgspec.structs.replace(alarm, cleared=self.wall()))
                follows = code in _OF_VMS  # from what nodes say
                self.audit("chimed", "alarm-cleared", subject, f"{code}: {alarm.text}", of_node=follows)
        for code, (severity, text) in wanted.items():
            known, text = active.get(code), text[:ALARM_TEXT_CHARS]
            if known is None:
                self._raise(code, subject, severity, text)
            elif (known.severity, known.text) != (severity, text):
                self.tables.alarms.put(msgspec.structs.replace(known, severity=severity, text=text))
                if known.severity != severity:
                    self._tell_severity(known, severity, text)

    def alarm_active(self, code: AlarmCode, subject: str) -> bool:
        """Whether the alarm is raised and not cleared."""
        return any(a.code == code and a.cleared is None for a in self.tables.alarms.by("subject", subject))

    def _raise(self, code: AlarmCode, subject: str, severity: Severity, text: str) -> None:
        meta = self.tables.meta
        self.tables.meta = msgspec.structs.replace(meta, next_alarm=meta.next_alarm + 1)
        alarm = r.Alarm(
            id=meta.next_alarm, code=code, subject=subject, severity=severity, text=text, raised=self.wall()
        )
        self.tables.alarms.put(alarm)
        self.audit("chimed", "alarm-raised", subject, f"{code} ({severity}): {text}")
        self.log("warning", f"alarm {code} {subject} ({severity}): {text}")

    def _tell_severity(self, known: r.Alarm, severity: Severity, text: str) -> None:
        what = f"{known.code} ({known.severity} -> {severity}): {text}"
        self.audit("chimed", "alarm-severity", known.subject, what)
        self.log("warning", f"alarm {known.subject}: {what}")

    # --- names --------------------------------------------------------------------------------------------------------

    def vm_name(self, uuid: str) -> str:
        """The VM's name, or its UUID when it is not known."""
        vm = self.tables.vms.get(uuid)
        return vm.name if vm else uuid
