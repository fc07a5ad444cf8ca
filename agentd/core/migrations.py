"""What goes on around the migrations away from here, besides the lane of each VM: progress, cancelling, handing over.

Volatile: all of it begins again after a death. Rules: progress is told at most once a second and never recorded; a
cancelled attempt is given up until its migration returns; a copy is told to run until it does or is not there. Handing
over acts on another node's libvirt only, so that whatever the server wants of the VM here goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Set

from agentd.core import leaving
from agentd.core.durable import Durable
from agentd.core.effects import AbortMigration, Act, Acted, Action, Progressed
from wire.messages import MigrationProgress

NEVER = float("inf")
TELL_S = 1.0
ABORT_S = 1.0
RETRY_S = 0.5
RETRY_MAX_S = 30.0


class Migrations:
    """Times in CLOCK_BOOTTIME seconds."""

    def __init__(self) -> None:
        self.progress: dict[str, MigrationProgress] = {}
        self._newest: dict[str, Progressed] = {}
        self._tell_at = -NEVER
        self._cancelled: set[str] = set()
        self._abort_at: dict[str, float] = {}
        self._handing: dict[str, int] = {}
        self._tried: dict[str, tuple[int, float]] = {}
        self._token = 0

    # --- progress -----------------------------------------------------------------------------------------------------

    def progressed(self, event: Progressed) -> float:
        """How far one is. Returns when that is to be told."""
        self._newest[event.uuid] = event
        return self._tell_at

    def tell(self, durable: Durable, now: float) -> float:
        """Brings `progress`, which reports are made from, up to date if it is time. Returns when it is again."""
        self._newest = {u: e for u, e in self._newest.items() if leaving.is_open(durable, u, e.attempt)}
        self.progress = {uuid: told for uuid, told in self.progress.items() if uuid in self._newest}
        newest = {uuid: event.progress for uuid, event in self._newest.items()}
        if newest == self.progress:
            return NEVER
        if now < self._tell_at:
            return self._tell_at
        self.progress, self._tell_at = newest, now + TELL_S
        return NEVER

    # --- cancelling ---------------------------------------------------------------------------------------------------

    def cancel(self, attempt_id: str) -> None:
        """The attempt is to be given up."""
        self._cancelled.add(attempt_id)

    @property
    def cancelled(self) -> Set[str]:
        """Attempts that must not be begun any more. Another thread may ask whether one is in it."""
        return self._cancelled

    def aborts(
        self, durable: Durable, in_flight: dict[str, tuple[int, Action]], now: float
    ) -> tuple[list[AbortMigration], float]:
        """Migrations that libvirt is to give up: cancelled, or of a VM that was released meanwhile. One may be about to
        begin in its worker, so this is repeated until it returns. The second part: when to look again."""
        due: list[AbortMigration] = []
        unwanted = {uuid for uuid, (_, action) in in_flight.items() if self._is_unwanted(durable, uuid, action)}
        self._abort_at = {uuid: at for uuid, at in self._abort_at.items() if uuid in unwanted}
        for uuid in sorted(unwanted):
            if now >= self._abort_at.get(uuid, -NEVER):
                due.append(AbortMigration(uuid))
                self._abort_at[uuid] = now + ABORT_S
        return due, min(self._abort_at.values(), default=NEVER)

    def _is_unwanted(self, durable: Durable, uuid: str, action: Action) -> bool:
        if action not in (Action.MIGRATE, Action.SETTLE):
            return False
        held = durable.held.get(uuid)
        attempt = held.attempt if held is not None and held.leaving else None
        return attempt is None or attempt.id in self._cancelled

    # --- handing over -------------------------------------------------------------------------------------------------

    def hand_overs(self, durable: Durable, now: float) -> tuple[list[Act], float]:
        """The copies that are to be told to run now, and when to look again."""
        acts: list[Act] = []
        wake = NEVER
        self._tried = {uuid: tried for uuid, tried in self._tried.items() if uuid in durable.left}
        for uuid, left in durable.left.items():
            if left.handed_over or uuid in self._handing:
                continue
            at = self._tried.get(uuid, (0, -NEVER))[1]
            if now < at:
                wake = min(wake, at)
                continue
            self._token += 1
            self._handing[uuid] = self._token
            acts.append(Act(uuid, Action.HAND_OVER, self._token, left=left))
        return acts, wake

    def handed(self, event: Acted, durable: Durable, now: float) -> Durable:
        """An attempt to hand over returned."""
        left = durable.left.get(event.uuid)
        if self._handing.get(event.uuid) != event.token:
            return durable
        del self._handing[event.uuid]
        if left is None:
            return durable
        if not event.error or event.invalid:
            return leaving.handed_over(durable, event.uuid, left.attempt, event.error)
        tries = self._tried.get(event.uuid, (0, 0.0))[0] + 1
        pause = float(min(RETRY_S * 2 ** min(tries - 1, 10), RETRY_MAX_S))
        self._tried[event.uuid] = (tries, now + pause)
        return durable

    def dropped(self, acts: list[Act]) -> None:
        """These orders were not given: what they depended on could not be recorded."""
        for act in acts:
            if act.action == Action.HAND_OVER and self._handing.get(act.uuid) == act.token:
                del self._handing[act.uuid]
