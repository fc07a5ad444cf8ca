"""libvirt's part of a live migration between two simulated hosts, from its first step to its last.

It goes on when the agent that ordered it is dead. The copy on the target is made first and stays paused; the source's
process is paused when all is copied; then the target's "it is there" comes back and the source's process and definition
go, or it is lost on the way and the source goes on (or stays paused), while the copy stands on the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.hypervisor import HypervisorError
from wire.messages import MigrationProgress

if TYPE_CHECKING:
    from tests.sim.host import Host

COPY_S = (1.0, 15.0)
FINISH_S = (0.01, 0.3)
PARTS = 4  # news of the progress while it copies
LOST_SHARE = 0.15  # of the answers at the end, when nobody ordered that one be lost


class Transfer:
    """`done(error)` is called at the end, once; empty: the source is gone."""

    def __init__(
        self, source: Host, target: Host, uuid: str, attempt: str, progressed: Callable[[MigrationProgress], None],
        done: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.source, self.target, self.uuid, self.attempt = source, target, uuid, attempt
        self._progressed, self._done = progressed, done
        self._engine = source.engine
        self._boots = (source.boots, target.boots)
        self._losses = source.hypervisor.losses
        self.aborted = ""
        self._over = False

    def begin(self) -> None:
        """The copy appears on the target. Raises HypervisorError."""
        source, target = self.source, self.target
        if not source.hypervisor.is_running(self.uuid):
            raise HypervisorError("it does not run")
        if self.uuid in source.transfers:
            raise HypervisorError("it is being migrated already")
        if not self._linked() or target.hung is not None or not target.hypervisor.reachable:
            raise HypervisorError(f"{target.name}: cannot connect to its libvirt")
        target.hypervisor.incoming(source.hypervisor.domains[self.uuid], self.attempt, source.name)
        source.hypervisor.domains[self.uuid].job = True
        source.transfers[self.uuid] = self
        took_s = self._engine.rng.uniform(*COPY_S)
        for part in range(1, PARTS):
            self._engine.after(took_s * part / PARTS, self._copying, part)
        self._engine.after(took_s, self._when_libvirt_answers, self._copied)

    def abort(self, why: str) -> None:
        """Somebody wants it ended; it does so while it copies."""
        self.aborted = why

    # --- steps --------------------------------------------------------------------------------------------------------

    def _copying(self, part: int) -> None:
        if self._over:
            return
        if self.aborted or not self._has_both() or self._was_lost():
            self._when_libvirt_answers(self._copied)
        else:
            self._progressed(MigrationProgress(total_mib=1024, remaining_mib=1024 * (PARTS - part) // PARTS))

    def _copied(self) -> None:
        """All memory is there, if both ends still are."""
        if self.aborted or not self._has_both() or self._was_lost():
            self._fail(self.aborted or "an end or the connection between them was lost")
            return
        self.source.hypervisor.pause_for_handover(self.uuid)
        self.target.hypervisor.complete(self.uuid)
        lost = self.source.finish_lost or self._engine.rng.random() < LOST_SHARE
        self.source.finish_lost = False
        delay_s = self._engine.rng.uniform(*FINISH_S)
        self._engine.after(delay_s, self._when_libvirt_answers, self._not_heard if lost else self._confirmed)

    def _confirmed(self) -> None:
        """The source knows that the copy is there: its own process and definition go."""
        if not self._linked():
            self._not_heard()
        elif not self.source.hypervisor.is_paused(self.uuid):
            self._end("its process has ended")
        elif self._was_lost():
            self._not_heard()
        else:
            self.source.hypervisor.migrated_away(self.uuid)
            self.source.hypervisor.undefined(self.uuid)
            self._end("")

    def _not_heard(self) -> None:
        """The source does not know; libvirt lets it go on, or leaves it paused. The copy is worth nothing then."""
        if self.source.powered and self.source.boots == self._boots[0]:
            if self.source.hypervisor.is_paused(self.uuid) and self._engine.rng.random() < 0.7:
                self.source.hypervisor.person_resume(self.uuid)
            self.source.oracle.source_goes_on(self.uuid, self.attempt)
        self._end("the target's answer was lost")

    def _fail(self, why: str) -> None:
        if self.target.powered and self.target.boots == self._boots[1]:
            self.target.hypervisor.throw_away(self.uuid, self.attempt)
        self._end(why)

    def _end(self, error: str) -> None:
        if self._over:
            return
        self._over = True
        if self.source.transfers.get(self.uuid) is self:
            del self.source.transfers[self.uuid]
        domain = self.source.hypervisor.domains.get(self.uuid)
        if domain is not None:
            domain.job = False
        self._done(error)

    # --- what is true -------------------------------------------------------------------------------------------------

    def _linked(self) -> bool:
        both = self.source.powered and self.target.powered
        return both and self.source.network.carries_data(self.source.name, self.target.name)

    def _has_both(self) -> bool:
        """Both processes are the ones with which it began."""
        same = self._boots == (self.source.boots, self.target.boots)
        runs = self.source.hypervisor.is_running(self.uuid) or self.source.hypervisor.is_paused(self.uuid)
        return same and self._linked() and runs and self.target.hypervisor.has_copy(self.uuid, self.attempt)

    def _was_lost(self) -> bool:
        """The source's libvirtd has died since it began."""
        return self._losses != self.source.hypervisor.losses

    def _when_libvirt_answers(self, step: Callable[[], None]) -> None:
        """A libvirtd that hangs does its part when it goes on."""
        if self._over or self.source.boots != self._boots[0]:
            return
        for host in (self.source, self.target):
            if host.powered and host.hung is not None:
                host.hung.append(lambda: self._when_libvirt_answers(step))
                return
        step()
