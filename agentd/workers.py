"""Blocking libvirt calls off the main loop, with time-outs that tell but never interrupt.

A call that does not return keeps its thread; the core is told once that it is overdue, and hears the outcome when it
comes. What is done to a VM, and that the guard is asked before it, is `acting`'s.

What belongs to a migration has threads of its own, and is never overdue: a migration ends by its own time-out, and a
target that does not answer says nothing about this node's libvirt.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agentd import acting
from agentd.core import effects as fx
from agentd.core.facts import HostScan
from agentd.host import boottime
from agentd.hypervisor import Hypervisor, HypervisorError
from wire.messages import Survey

log = logging.getLogger(__name__)

MIGRATIONS = 16  # at once; more wait
HAND_OVERS = 8
ABORTS = 2
NEVER = float("inf")


class Workers:
    """`node`: this node's name. `wake` is called from worker threads when an event is ready for `take`."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        node: str,
        guard: acting.Guard,
        wake: Callable[[], None],
        count: int,
        timeout_s: float,
    ) -> None:
        self._hypervisor, self._node, self._guard, self._wake = hypervisor, node, guard, wake
        self._timeout_s = timeout_s
        self._events: queue.SimpleQueue[fx.Event] = queue.SimpleQueue()
        self._acts = ThreadPoolExecutor(count, thread_name_prefix="act")
        self._migrations = ThreadPoolExecutor(MIGRATIONS, thread_name_prefix="migrate")
        self._hand_overs = ThreadPoolExecutor(HAND_OVERS, thread_name_prefix="hand-over")
        self._aborts = ThreadPoolExecutor(ABORTS, thread_name_prefix="abort")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._surveys = ThreadPoolExecutor(1, thread_name_prefix="survey")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._connects = ThreadPoolExecutor(1, thread_name_prefix="connect")
        self._running: dict[int, tuple[fx.Overdue, float]] = {}
        self._told: set[int] = set()
        self._aborting: set[str] = set()
        self._lock = threading.Lock()
        self._next_id = 0

    # --- orders -------------------------------------------------------------------------------------------------------

    def act(self, act: fx.Act) -> None:
        """Does one thing to a VM; `Acted` follows."""
        pool, timeout_s = self._acts, self._timeout_s
        if act.action in (fx.Action.MIGRATE, fx.Action.SETTLE):
            pool, timeout_s = self._migrations, NEVER
        elif act.action == fx.Action.HAND_OVER:
            pool, timeout_s = self._hand_overs, NEVER
        late = fx.Overdue(fx.Call.ACT, f"{act.action} of {act.uuid}", act.uuid)
        self._submit(pool, late, lambda: self._act(act), timeout_s)

    def abort_migration(self, uuid: str) -> None:
        """Asks libvirt to give up a migration; the `Acted` of the migration tells its end."""
        with self._lock:
            if uuid in self._aborting:
                return  # libvirt has not answered the last one yet
            self._aborting.add(uuid)
        self._aborts.submit(self._abort, uuid)

    def scan(self) -> None:
        """Looks at the host; `Scanned` follows."""
        self._submit(self._looks, fx.Overdue(fx.Call.SCAN, "scan"), self._scan, self._timeout_s)

    def look_foreign(self, effect: fx.LookForeign) -> None:
        """Looks at domains that are not Chime's; `Surveyed` follows."""
        late = fx.Overdue(fx.Call.SURVEY, "survey")
        self._submit(self._surveys, late, lambda: self._survey(effect.survey), self._timeout_s)

    def connect(self, on_event: Callable[[fx.Event], None]) -> None:
        """Connects to libvirt; `HypervisorUp` or `HypervisorDown` follows, and lifecycle events after it."""
        late = fx.Overdue(fx.Call.CONNECT, "connect")
        self._submit(self._connects, late, lambda: self._connect(on_event), self._timeout_s)

    def check(self, look: Callable[[], fx.Event]) -> None:
        """Looks at the host itself; its event follows."""
        late = fx.Overdue(fx.Call.CHECK, "check of the host")
        self._submit(self._checks, late, look, self._timeout_s)

    def post(self, event: fx.Event) -> None:
        """An event from another thread."""
        self._events.put(event)
        self._wake()

    # --- for the loop -------------------------------------------------------------------------------------------------

    def take(self) -> list[fx.Event]:
        """The events that are ready, and `Overdue` once for each call that has not returned in time."""
        found: list[fx.Event] = []
        while not self._events.empty():
            found.append(self._events.get())
        now = time.monotonic()
        with self._lock:
            late = [k for k, (_, at) in self._running.items() if now > at]
            for key in late:
                if key not in self._told:
                    self._told.add(key)
                    found.append(self._running[key][0])
        return found

    def next_overdue_s(self) -> float:
        """Seconds until a running call becomes overdue."""
        now = time.monotonic()
        with self._lock:
            waits = [at - now for k, (_, at) in self._running.items() if k not in self._told]
        return max(0.0, min(waits, default=NEVER))

    # --- in worker threads --------------------------------------------------------------------------------------------

    def _submit(
        self, pool: ThreadPoolExecutor, late: fx.Overdue, call: Callable[[], fx.Event], timeout_s: float
    ) -> None:
        self._next_id += 1
        key = self._next_id
        with self._lock:
            self._running[key] = (late, time.monotonic() + timeout_s)

        def run() -> None:
            try:
                self.post(call())
            finally:
                with self._lock:
                    self._running.pop(key, None)
                    self._told.discard(key)

        pool.submit(run)

    def _act(self, act: fx.Act) -> fx.Event:
        try:
            outcome = acting.carry_out(act, self._hypervisor, self._guard, self._node, self.post)
        except Exception as problem:  # a bug in the driver must not leave the VM's lane blocked for ever
            outcome = acting.Outcome(f"internal: {problem!r}")
        return acting.acted(act, outcome, self._hypervisor.inspect(act.uuid))

    def _survey(self, survey: Survey) -> fx.Event:
        try:
            vms, more = self._hypervisor.survey(survey.after, survey.uuid)
        except HypervisorError as problem:
            return fx.Surveyed(survey, error=str(problem))
        except Exception as problem:
            return fx.Surveyed(survey, error=f"internal: {problem!r}")
        return fx.Surveyed(survey, vms, more)

    def _abort(self, uuid: str) -> None:
        try:
            self._hypervisor.abort_migration(uuid)
        except HypervisorError as problem:  # the core asks again until the migration has ended
            log.warning("%s", problem)
        except Exception:
            log.exception("a migration could not be cancelled")
        finally:
            with self._lock:
                self._aborting.discard(uuid)

    def _scan(self) -> fx.Event:
        started = boottime()
        try:
            scan = self._hypervisor.scan()
        except Exception as problem:  # scan never raises by contract; were it to, it must still answer
            scan = HostScan(libvirt_ok=False, error=f"internal: {problem!r}")
        return fx.Scanned(scan, started)

    def _connect(self, on_event: Callable[[fx.Event], None]) -> fx.Event:
        try:
            self._hypervisor.connect(
                lambda lifecycle: on_event(fx.Happened(lifecycle)), lambda why: on_event(fx.HypervisorDown(why))
            )
            return fx.HypervisorUp(self._hypervisor.version())
        except HypervisorError as problem:
            return fx.HypervisorDown(str(problem))
        except Exception as problem:
            return fx.HypervisorDown(f"internal: {problem!r}")
