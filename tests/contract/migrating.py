"""The contract of migrations, for a pair of hypervisors."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest

from agentd.core.facts import Domain, DomainState, Happening, OffReason
from agentd.hypervisor import Hypervisor, HypervisorError, NoArrival
from tests.contract.harness import new_vm, wait
from tests.contract.pair import Pair, order
from wire.messages import Assignment, MigrationOrder, MigrationProgress
from wire.types import OnTimeout

END_S = 90.0  # a host without power says nothing: libvirt misses it by its keep-alive, in 30 s


def running(pair: Pair, epoch: int = 3) -> Assignment:
    """A VM that runs on the source."""
    vm = new_vm(epoch=epoch, revision=7, **pair.vm())
    pair.source.define(vm)
    pair.source.start(vm.uuid)
    return vm


def moved(pair: Pair, uuid: str, attempt: str = "a1") -> None:
    """Migrates the VM."""
    pair.source.migrate(uuid, order(pair.target_address), attempt, "n1", lambda progress: None)


def here(pair: Pair, uuid: str) -> Domain:
    """The VM's domain on the source."""
    domain = pair.source.inspect(uuid).domain
    assert domain is not None
    return domain


def there(pair: Pair, uuid: str) -> Domain:
    """The VM's domain on the target."""
    domain = pair.target.inspect(uuid).domain
    assert domain is not None
    return domain


def under_way(driver: Hypervisor, uuid: str) -> bool:
    """Whether a scan says that the VM is being migrated."""
    return [domain.job for domain in driver.scan().domains if domain.uuid == uuid] == [True]


class Moving:
    """A migration in a thread of its own."""

    def __init__(self, pair: Pair, uuid: str, where: MigrationOrder) -> None:
        self.error = ""
        self.progress: list[MigrationProgress] = []
        self._call = lambda: pair.source.migrate(uuid, where, "a1", "n1", self.progress.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except HypervisorError as error:
            self.error = str(error)

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> str:
        """Waits; gives the error, or an empty text."""
        wait(lambda: self.over, "the end of the migration", END_S)
        return self.error


class MigrationContract:
    """Tests; a subclass has a fixture `pair`."""

    def test_copy_arrives_paused_and_marked_and_the_source_is_gone(self, pair: Pair) -> None:
        vm = running(pair)
        moved(pair, vm.uuid)
        facts = pair.source.inspect(vm.uuid)
        assert facts.libvirt_ok and facts.domain is None
        copy = there(pair, vm.uuid)
        assert (copy.state, copy.attempt, copy.origin) == (DomainState.PAUSED, "a1", "n1")
        assert (copy.epoch, copy.revision, copy.persistent, copy.job) == (3, 7, True, False)
        assert copy in pair.target.scan().domains
        assert pair.source_events.wait_for(vm.uuid, Happening.STOPPED) == OffReason.MIGRATED
        pair.target_events.wait_for(vm.uuid, Happening.PAUSED)
        told = [happening for happening, _ in pair.target_events.of(vm.uuid)]
        assert told == [Happening.STARTED, Happening.DEFINED, Happening.PAUSED]

    def test_copy_of_a_vm_that_was_taken_over_says_so_until_it_is_defined(self, pair: Pair) -> None:
        vm = running(pair)
        pair.source.adopt(vm)
        assert here(pair, vm.uuid).adopted
        moved(pair, vm.uuid)
        assert (there(pair, vm.uuid).adopted, there(pair, vm.uuid).attempt) == (True, "a1")
        pair.target.resume(vm.uuid)
        pair.target.adopt(msgspec.structs.replace(vm, epoch=4, revision=9))
        for state in (DomainState.RUNNING, DomainState.OFF):  # the process's mark, then the definition's
            if state == DomainState.OFF:
                pair.target.destroy(vm.uuid)
            copy = there(pair, vm.uuid)
            assert (copy.epoch, copy.revision, copy.attempt, copy.origin, copy.adopted) == (4, 9, "", "", True)
            assert copy.state == state
        pair.target.define(msgspec.structs.replace(vm, epoch=4, revision=9))
        assert not there(pair, vm.uuid).adopted

    def test_handover_lets_the_copy_run_and_can_be_repeated(self, pair: Pair) -> None:
        vm = running(pair)
        moved(pair, vm.uuid)
        for _ in range(2):
            pair.source.hand_over(vm.uuid, "a1", pair.target_address)
            assert there(pair, vm.uuid).state == DomainState.RUNNING
        pair.target_events.wait_for(vm.uuid, Happening.RESUMED)

    def test_definition_takes_the_mark_away(self, pair: Pair) -> None:
        vm = running(pair)
        moved(pair, vm.uuid)
        pair.target.resume(vm.uuid)
        pair.target.define(new_vm(epoch=4, revision=8, uuid=vm.uuid, **pair.vm()))
        copy = there(pair, vm.uuid)
        assert (copy.state, copy.epoch, copy.attempt, copy.origin) == (DomainState.RUNNING, 4, "", "")
        with pytest.raises(NoArrival):
            pair.source.hand_over(vm.uuid, "a1", pair.target_address)

    def test_handover_of_what_is_not_there(self, pair: Pair) -> None:
        vm = running(pair)
        with pytest.raises(NoArrival):
            pair.source.hand_over(vm.uuid, "a1", pair.target_address)
        moved(pair, vm.uuid)
        with pytest.raises(NoArrival):
            pair.source.hand_over(vm.uuid, "a2", pair.target_address)
        assert there(pair, vm.uuid).state == DomainState.PAUSED

    def test_handover_to_an_address_that_does_not_answer_says_nothing_of_the_copy(self, pair: Pair) -> None:
        with pytest.raises(HypervisorError, match="cannot be reached") as raised:
            pair.source.hand_over(new_vm().uuid, "a1", pair.nowhere)
        assert not isinstance(raised.value, NoArrival)

    def test_target_that_cannot_be_reached_leaves_the_vm_as_it_was(self, pair: Pair) -> None:
        vm = running(pair)
        with pytest.raises(HypervisorError, match=f"target {pair.nowhere} cannot be reached") as raised:
            pair.source.migrate(vm.uuid, order(pair.nowhere), "a1", "n1", lambda progress: None)
        assert "\n" not in str(raised.value)
        domain = here(pair, vm.uuid)
        assert (domain.state, domain.attempt, domain.job) == (DomainState.RUNNING, "", False)

    def test_what_is_not_there_cannot_be_migrated(self, pair: Pair) -> None:
        uuid = new_vm().uuid
        with pytest.raises(HypervisorError, match=uuid):
            moved(pair, uuid)
        pair.source.settle(uuid)
        pair.source.abort_migration(uuid)

    def test_job_is_seen_at_both_ends_and_abort_ends_it(self, pair: Pair) -> None:
        vm = running(pair)
        pair.slow_down()
        moving = Moving(pair, vm.uuid, order(pair.target_address, **pair.slow))
        self.until_under_way(pair, vm.uuid)
        copy = there(pair, vm.uuid)
        assert (copy.state, copy.attempt) == (DomainState.PAUSED, "a1")
        for driver in (pair.source, pair.target):
            wait(lambda driver=driver: under_way(driver, vm.uuid), "the scan tells it too")
        assert wait(lambda: moving.progress, "progress")[0].total_mib > 0
        settled = self.settling(pair, vm.uuid)
        assert not settled()
        pair.source.abort_migration(vm.uuid)
        assert "cancelled" in moving.end()
        wait(settled, "settled")
        self.goes_on(pair, vm.uuid)

    def test_migration_that_takes_too_long_is_given_up(self, pair: Pair) -> None:
        vm = running(pair)
        pair.slow_down()
        moving = Moving(pair, vm.uuid, order(pair.target_address, **pair.slow, timeout_s=1.0))
        assert "timed out after 1 s" in moving.end()
        self.goes_on(pair, vm.uuid)

    def test_migration_that_takes_too_long_is_forced(self, pair: Pair) -> None:
        vm = running(pair)
        pair.slow_down()
        force = {"timeout_s": 1.0, "on_timeout": OnTimeout.FORCE}
        moving = Moving(pair, vm.uuid, order(pair.target_address, **pair.slow, **force))
        assert moving.end() == ""
        assert pair.source.inspect(vm.uuid).domain is None
        assert there(pair, vm.uuid).state == DomainState.PAUSED

    def test_source_goes_on_when_the_target_dies(self, pair: Pair) -> None:
        vm = running(pair)
        pair.slow_down()
        moving = Moving(pair, vm.uuid, order(pair.target_address, **pair.slow))
        self.until_under_way(pair, vm.uuid)
        pair.kill_target()
        assert moving.end()
        pair.source.settle(vm.uuid)
        domain = here(pair, vm.uuid)
        if domain.state == DomainState.PAUSED:
            pair.source.resume(vm.uuid)
        assert here(pair, vm.uuid).state == DomainState.RUNNING

    def test_resume_of_what_runs_is_done(self, pair: Pair) -> None:
        vm = running(pair)
        pair.source.resume(vm.uuid)
        assert here(pair, vm.uuid).state == DomainState.RUNNING

    def until_under_way(self, pair: Pair, uuid: str) -> None:
        """Waits until both ends say that it is being migrated."""
        for driver in (pair.source, pair.target):
            wait(lambda driver=driver: (seen := driver.inspect(uuid).domain) is not None and seen.job, "under way")

    def settling(self, pair: Pair, uuid: str) -> Callable[[], bool]:
        """Whether `settle` has returned, called from now on."""
        thread = threading.Thread(target=pair.source.settle, args=(uuid,), daemon=True)
        thread.start()
        return lambda: not thread.is_alive()

    def goes_on(self, pair: Pair, uuid: str) -> None:
        """The source runs as before, and the target has nothing of it."""
        domain = here(pair, uuid)
        assert (domain.state, domain.attempt, domain.job, domain.persistent) == (DomainState.RUNNING, "", False, True)
        wait(lambda: pair.target.inspect(uuid).domain is None, "the copy is gone")
