"""The hypervisor of a `World` as its agent's workers call it by `agentd/acting.py`: what must hold in the moment of
each call is asserted, and what is done is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.core.facts import VmFacts
from wire.messages import Assignment, MigrationOrder, MigrationProgress

if TYPE_CHECKING:
    from tests.unit.agent.world import World


class CheckedHypervisor:
    def __init__(self, world: World) -> None:
        self._world = world

    def inspect(self, uuid: str) -> VmFacts:
        return self._world.hv.inspect(uuid)

    def define(self, vm: Assignment) -> None:
        self._world.hv.define(vm)

    def adopt(self, vm: Assignment) -> None:
        self._world.hv.adopt(vm)

    def give_back(self, uuid: str, epoch: int) -> None:
        self._ours(uuid).hv.give_back(uuid, epoch)

    def start(self, uuid: str) -> None:
        world = self._world
        assert not world.runs_on_peer(uuid), "a start was allowed while it runs elsewhere (S1)"
        assert not world.runs(uuid), "a start was allowed while a process is alive (S1)"
        world.starts.append(uuid)
        world.hv.start(uuid)

    def shutdown(self, uuid: str) -> None:
        self._ours(uuid).hv.shutdown(uuid)

    def destroy(self, uuid: str) -> None:
        self._ours(uuid).hv.destroy(uuid)

    def undefine(self, uuid: str) -> None:
        self._ours(uuid).hv.undefine(uuid)

    def reboot(self, uuid: str, force: bool) -> None:
        self._world.reboots.append(uuid)
        self._world.hv.reboot(uuid, force)

    def resume(self, uuid: str) -> None:
        self._world.resumes.append(uuid)
        self._world.hv.resume(uuid)

    def migrate(
        self,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        origin: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Begins: the world copies it in its own time."""
        held = self._world.saved.held.get(uuid)
        known = held.attempt if held is not None else None
        assert known is not None and known.id == attempt, "a migration was begun before it was recorded"
        self._world.migrations.append((uuid, attempt))
        self._world.hv._enter("migrate", uuid)
        self._world.hv.migrate_begin(uuid, order, attempt, origin)

    def settle(self, uuid: str) -> None:
        self._world.hv.settle(uuid)

    def hand_over(self, uuid: str, attempt: str, address: str) -> None:
        assert self._world.saved.left[uuid].attempt == attempt
        assert not self._world.runs(uuid), "handed over while a process is alive (S1)"
        self._world.hand_overs.append(uuid)
        self._world.hv.hand_over(uuid, attempt, address)

    def _ours(self, uuid: str) -> World:
        saved = self._world.saved
        assert uuid in saved.held or uuid in saved.tombstones, "a foreign VM was touched (S5)"
        return self._world
