"""libvirt's part of a live migration between two simulated hosts, in its own time, whoever ordered it and still waits.

The steps are those of the fake hypervisor. The copy on the target comes first and stays paused; when all is copied the
source is paused; then it hears that the copy is there, and its process and definition go, or the answer is lost, and it
goes on or stays paused while the copy stands on the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.hypervisor import HypervisorError
from wire.messages import MigrationOrder, MigrationProgress

if TYPE_CHECKING:
    from tests.fakes.hypervisor import Move
    from tests.sim.host import Host

COPY_S = (1.0, 15.0)
FINISH_S = (0.01, 0.3)
RETRY_S = 0.5
NOTICE_S = 0.5  # an abort
PARTS = 4  # news of the progress while it copies
PAUSED_SHARE = 0.3  # of the sources that do not hear it: libvirt leaves them paused


class Transfer:
    """`done(error)` is called at the end, once; empty: the source is gone."""

    def __init__(
        self,
        host: Host,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        progressed: Callable[[MigrationProgress], None],
        done: Callable[[str], None],
    ) -> None:
        """The copy appears on the target. Raises HypervisorError."""
        self._host, self._uuid, self._attempt = host, uuid, attempt
        self._progressed, self._done = progressed, done
        self._losses, self._boots = host.hypervisor.losses, host.boots
        self._arriving = self._ended = False
        target = host.at(order.address)
        if target is None or target is host or target.hung is not None:
            raise HypervisorError(f"target {order.address} does not answer")
        self._target = target
        self._move: Move = host.hypervisor.migrate_begin(uuid, order, attempt, host.name)
        took_s = host.engine.rng.uniform(*COPY_S)
        for part in range(1, PARTS):
            host.engine.after(took_s * part / PARTS, self._copying, part)
        host.engine.after(took_s, self._when_libvirt_answers, self._copied)
        host.engine.after(NOTICE_S, self._look_for_an_abort)

    @property
    def _over(self) -> bool:
        """It was aborted, or the host has lost its power."""
        return self._host.hypervisor.moves.get(self._uuid) is not self._move

    def _copying(self, part: int) -> None:
        if not self._over:
            self._progressed(MigrationProgress(total_mib=1024, remaining_mib=1024 * (PARTS - part) // PARTS))

    def _look_for_an_abort(self) -> None:
        if self._ended or self._arriving:
            return
        if self._over and self._host.boots == self._boots and self._host.hung is None:
            self._fail("cancelled")
        else:
            self._host.engine.after(NOTICE_S, self._look_for_an_abort)

    def _copied(self) -> None:
        if self._ended:
            return
        self._arriving = True
        hypervisor, uuid = self._host.hypervisor, self._uuid
        try:
            if self._over:
                raise HypervisorError("cancelled")
            hypervisor.reach(self._move.address)
            if self._losses != hypervisor.losses or not (hypervisor.is_running(uuid) or hypervisor.is_paused(uuid)):
                raise HypervisorError("the source's process or libvirtd has ended")
            hypervisor.migrate_arrive(uuid)
        except HypervisorError as error:
            self._fail(str(error))
            return
        self._host.engine.after(self._host.engine.rng.uniform(*FINISH_S), self._when_libvirt_answers, self._answered)

    def _answered(self) -> None:
        """The source hears that the copy is there, or does not."""
        host, rng = self._host, self._host.engine.rng
        lost, host.finish_lost = host.finish_lost, False
        try:
            if self._over:
                raise HypervisorError("cancelled")
            host.hypervisor.reach(self._move.address)
            if lost or self._losses != host.hypervisor.losses:
                raise HypervisorError("the target's answer was lost")
            if not host.hypervisor.is_paused(self._uuid):
                raise HypervisorError("the source's process has ended")
            host.hypervisor.migrate_confirm(self._uuid)
        except HypervisorError as error:
            self._fail(str(error), paused=rng.random() < PAUSED_SHARE)
        else:
            self._done("")

    def _fail(self, why: str, paused: bool = False) -> None:
        """The source keeps the VM: from now on its copy, if it stands, is worth nothing."""
        self._ended = True
        if not self._over:
            self._host.hypervisor.migrate_fail(self._uuid, paused)
        self._host.oracle.source_goes_on(self._attempt)
        self._host.engine.after(self._host.engine.rng.uniform(0.0, 30.0), self._target_notices, self._target.boots)
        self._done(why)

    def _target_notices(self, boots: int) -> None:
        """A copy that never arrived ends, at the latest when the target misses the source."""
        target = self._target
        if target.boots == boots and target.hypervisor.has_copy(self._uuid, self._attempt):
            target.hypervisor.incoming_lost(self._uuid)

    def _when_libvirt_answers(self, step: Callable[[], None]) -> None:
        """A libvirtd that hangs does its part when it goes on."""
        if self._host.boots != self._boots or not self._host.powered:
            self._host.engine.after(self._host.engine.rng.uniform(1.0, 30.0), self._target_notices, self._target.boots)
            return
        if any(host.powered and host.hung is not None for host in (self._host, self._target)):
            self._host.engine.after(RETRY_S, self._when_libvirt_answers, step)
        else:
            step()
