"""Runs the checks: each in a thread of its own, so that one that hangs (a disk in D state) stops no other.

Rules: at most one reading of a check is under way; one that does not return is the fault `check-stuck`, one that raises
`check-failed`, and what was raised before stays until it can be read again. Nothing here waits for a check but the
first call of `faults`, and that not for long. Nothing is decided here: see `judging`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentd.checks import judging
from agentd.checks.interface import Check, CheckFailed, CheckStuck, Code, Symptom
from wire.messages import Fault
from wire.types import Severity

MAX_CHECKS = 128
FIRST_WAIT_S = 5.0
"""So long the first call of `faults` waits for the first readings: an agent that has restarted shall not say that
there are no faults, only to find them a moment later."""
RARE_S = 300.0
"""But not for checks that are this rare: they take long (SMART), and the VMs of a host that boots wait too."""
CHECK_FAILED, CHECK_STUCK = "check-failed", "check-stuck"
OWN_CODES = {CHECK_FAILED: Code(Severity.WARNING), CHECK_STUCK: Code(Severity.WARNING)}


class Running:
    """One check, its thread and what it has found."""

    def __init__(self, check: Check, on_change: Callable[[], None], stopping: threading.Event) -> None:
        self.check, self._on_change, self._stopping = check, on_change, stopping
        self.tracks: judging.Tracks = {}
        self.own: judging.Tracks = {}
        self.has_read = threading.Event()
        self._before: Any = None
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"check {check.name}"[:60], daemon=True)

    def start(self) -> None:
        """Starts its thread."""
        self._thread.start()

    def stuck(self, now: float) -> judging.Tracks:
        """The fault of a reading that is under way for too long."""
        since = self._since  # read once: the check's thread may change it
        return judging.judge({}, self._stuck_since(since, now), OWN_CODES) if since is not None else {}

    def _stuck_since(self, since: float, now: float) -> list[Symptom]:
        return [self._stuck(self.check.timeout_s)] if now - since > self.check.timeout_s else []

    def _stuck(self, after_s: float) -> Symptom:
        text = f"the check {self.check.name} has not returned within {after_s:g} s"
        return Symptom(CHECK_STUCK, self.check.name, text)

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            self._since = began
            tracks, own = self._look(began)
            self._since = None
            changed = judging.faults((tracks, own), {}) != judging.faults((self.tracks, self.own), {})
            self.tracks, self.own = tracks, own
            self.has_read.set()
            if changed:
                self._on_change()
            self._stopping.wait(max(began + self.check.interval_s - time.monotonic(), 0.05))

    def _look(self, began: float) -> tuple[judging.Tracks, judging.Tracks]:
        """One reading and what follows from it; whatever the check does, this returns."""
        try:
            reading = self.check.read()
            late = self._stuck_since(began, time.monotonic())
            symptoms = list(self.check.symptoms(reading, self._before, judging.raised(self.tracks)))
            self._before = reading
            tracks = judging.judge(self.tracks, symptoms, self.check.codes)
            return tracks, judging.judge(self.own, late, OWN_CODES)
        except CheckStuck as error:
            own = self._stuck(error.after_s)
        except CheckFailed as error:
            own = Symptom(CHECK_FAILED, self.check.name, f"{self.check.name}: {error}")
        except Exception as error:  # a site's check may do anything; the agent goes on, and says it
            text = f"{self.check.name}: {type(error).__name__}: {error}"
            own = Symptom(CHECK_FAILED, self.check.name, text)
        return self.tracks, judging.judge(self.own, [own], OWN_CODES)


class Runner:
    """All checks of the node. `on_change` is called from their threads when a fault may have come or gone.
    `problems`: checks that could not be made, by name; they are the fault `check-failed` for as long as this runs."""

    def __init__(
        self,
        checks: Iterable[Check],
        on_change: Callable[[], None],
        problems: Mapping[str, str] | None = None,
        severities: Mapping[str, Severity] | None = None,
    ) -> None:
        self._stopping = threading.Event()
        self._running = [Running(check, on_change, self._stopping) for check in list(checks)[:MAX_CHECKS]]
        self._severities = severities or {}
        symptoms = [Symptom(CHECK_FAILED, name, f"{name}: {text}") for name, text in (problems or {}).items()]
        self._problems = judging.judge({}, symptoms, OWN_CODES)
        self._first = True

    def start(self) -> None:
        """Starts the checks."""
        for each in self._running:
            each.start()

    def stop(self) -> None:
        """No further readings; one that hangs is left alone."""
        self._stopping.set()

    def faults(self) -> tuple[Fault, ...]:
        """The faults of now. The first call waits for the first readings, `FIRST_WAIT_S` at most."""
        if self._first:
            self._first, until = False, time.monotonic() + FIRST_WAIT_S
            for each in (each for each in self._running if each.check.interval_s <= RARE_S):
                each.has_read.wait(max(until - time.monotonic(), 0.0))
        now = time.monotonic()
        tracks: list[judging.Tracks] = [self._problems]
        for each in self._running:
            tracks += [each.tracks, each.own, each.stuck(now)]
        return judging.faults(tracks, self._severities)
