"""Blocking libvirt calls off the main loop, with time-outs that tell but never interrupt.

A call that does not return keeps its thread; the core is told once that it is overdue, and hears the outcome when it
comes. The guard is asked here, with facts looked at in this moment, immediately before a VM is started.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agentd.core import effects as fx
from agentd.core.facts import HostScan, VmFacts
from agentd.host import boottime
from agentd.hypervisor import Hypervisor, HypervisorError, InvalidVm
from wire.messages import Assignment, Survey

Guard = Callable[[str, VmFacts], str | None]


class Workers:
    """`wake` is called from worker threads when an event is ready for `take`."""

    def __init__(
        self, hypervisor: Hypervisor, guard: Guard, wake: Callable[[], None], count: int, timeout_s: float
    ) -> None:
        self._hypervisor, self._guard, self._wake, self._timeout_s = hypervisor, guard, wake, timeout_s
        self._events: queue.SimpleQueue[fx.Event] = queue.SimpleQueue()
        self._acts = ThreadPoolExecutor(count, thread_name_prefix="act")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._surveys = ThreadPoolExecutor(1, thread_name_prefix="survey")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._connects = ThreadPoolExecutor(1, thread_name_prefix="connect")
        self._running: dict[int, tuple[str, float]] = {}
        self._told: set[int] = set()
        self._lock = threading.Lock()
        self._next_id = 0

    # --- orders -------------------------------------------------------------------------------------------------------

    def act(self, act: fx.Act) -> None:
        """Does one thing to a VM; `Acted` follows."""
        self._submit(self._acts, f"{act.action} of {act.uuid}", lambda: self._act(act))

    def scan(self) -> None:
        """Looks at the host; `Scanned` follows."""
        self._submit(self._looks, "scan", self._scan)

    def look_foreign(self, effect: fx.LookForeign) -> None:
        """Looks at domains that are not Chime's; `Surveyed` follows."""
        self._submit(self._surveys, "survey", lambda: self._survey(effect.survey))

    def connect(self, on_event: Callable[[fx.Event], None]) -> None:
        """Connects to libvirt; `HypervisorUp` or `HypervisorDown` follows, and lifecycle events after it."""
        self._submit(self._connects, "connect", lambda: self._connect(on_event))

    def check(self, look: Callable[[], fx.Event]) -> None:
        """Looks at the host itself; its event follows."""
        self._submit(self._checks, "check of the host", look)

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
            late = [k for k, (_, since) in self._running.items() if now - since > self._timeout_s]
            for key in late:
                if key not in self._told:
                    self._told.add(key)
                    found.append(fx.Overdue(self._running[key][0]))
        return found

    def next_overdue_s(self) -> float:
        """Seconds until a running call becomes overdue."""
        now = time.monotonic()
        with self._lock:
            waits = [since + self._timeout_s - now for k, (_, since) in self._running.items() if k not in self._told]
        return max(0.0, min(waits, default=float("inf")))

    # --- in worker threads --------------------------------------------------------------------------------------------

    def _submit(self, pool: ThreadPoolExecutor, what: str, call: Callable[[], fx.Event]) -> None:
        self._next_id += 1
        key = self._next_id
        with self._lock:
            self._running[key] = (what, time.monotonic())

        def run() -> None:
            try:
                self.post(call())
            finally:
                with self._lock:
                    self._running.pop(key, None)
                    self._told.discard(key)

        pool.submit(run)

    def _act(self, act: fx.Act) -> fx.Event:
        error, invalid, refused = "", False, ""
        try:
            if act.action == fx.Action.START:
                refused = self._guard(act.uuid, self._hypervisor.inspect(act.uuid)) or ""
            if not refused:
                _CALLS[act.action](self._hypervisor, act)
        except InvalidVm as problem:
            error, invalid = str(problem), True
        except HypervisorError as problem:
            error = str(problem)
        except Exception as problem:  # a bug in the driver must not leave the VM's lane blocked for ever
            error = f"internal: {problem!r}"
        facts = self._hypervisor.inspect(act.uuid)
        return fx.Acted(act.uuid, act.action, act.token, facts, error=error, invalid=invalid, refused=refused)

    def _survey(self, survey: Survey) -> fx.Event:
        try:
            vms, more = self._hypervisor.survey(survey.after, survey.uuid)
        except HypervisorError as problem:
            return fx.Surveyed(survey, error=str(problem))
        except Exception as problem:
            return fx.Surveyed(survey, error=f"internal: {problem!r}")
        return fx.Surveyed(survey, vms, more)

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


def _define(hypervisor: Hypervisor, act: fx.Act) -> None:
    vm: Assignment | None = act.vm
    if vm is None:
        raise HypervisorError(f"nothing to {act.action}")
    if act.action == fx.Action.ADOPT:
        hypervisor.adopt(vm)
    else:
        hypervisor.define(vm)


_CALLS: dict[fx.Action, Callable[[Hypervisor, fx.Act], None]] = {
    fx.Action.DEFINE: _define,
    fx.Action.ADOPT: _define,
    fx.Action.GIVE_BACK: lambda hypervisor, act: hypervisor.give_back(act.uuid, act.epoch),
    fx.Action.START: lambda hypervisor, act: hypervisor.start(act.uuid),
    fx.Action.SHUTDOWN: lambda hypervisor, act: hypervisor.shutdown(act.uuid),
    fx.Action.DESTROY: lambda hypervisor, act: hypervisor.destroy(act.uuid),
    fx.Action.UNDEFINE: lambda hypervisor, act: hypervisor.undefine(act.uuid),
    fx.Action.REBOOT: lambda hypervisor, act: hypervisor.reboot(act.uuid, act.force),
}
"""What is called for each action."""
