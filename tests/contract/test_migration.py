"""What every hypervisor driver does in a migration. The fake shows it here; two real libvirtd show the same tests in
`tests/integration/test_migration_driver.py`."""

from __future__ import annotations

import pytest

from agentd.core.facts import DomainState, Happening, OffReason
from agentd.hypervisor import HypervisorError
from tests.contract.migrating import MigrationContract, moved, running
from tests.contract.pair import FakePair, Pair, order


class TestFake(MigrationContract):
    """The contract, kept by the fake."""

    @pytest.fixture
    def pair(self) -> Pair:
        return FakePair()


def test_source_whose_finish_reply_is_lost_goes_on_and_the_copy_stays_paused() -> None:
    pair = FakePair()
    vm = running(pair)
    pair.fake_source.fail_next("migrate_confirm")
    with pytest.raises(HypervisorError):
        pair.source.migrate(vm.uuid, order("target"), "a1", "s", lambda progress: None)
    here, there = pair.source.inspect(vm.uuid).domain, pair.target.inspect(vm.uuid).domain
    assert here is not None and here.state == DomainState.RUNNING and not here.job
    assert there is not None and there.state == DomainState.PAUSED and there.attempt == "a1" and there.persistent


def test_copy_whose_source_is_gone_is_ended_by_the_target() -> None:
    pair = FakePair()
    vm = running(pair)
    pair.fake_source.migrate_begin(vm.uuid, order("target"), "a1", "s")
    pair.fake_source.power_loss()
    there = pair.target.inspect(vm.uuid).domain
    assert there is not None and there.job and there.attempt == "a1"
    pair.fake_target.incoming_lost(vm.uuid)
    assert pair.target.inspect(vm.uuid).domain is None
    assert pair.target_events.of(vm.uuid)[-1] == (Happening.STOPPED, OffReason.CRASHED)


def test_definition_under_a_copy_that_did_not_arrive_is_there_again() -> None:
    pair = FakePair()
    vm = running(pair)
    moved(pair, vm.uuid)
    pair.target.define(vm)
    pair.target.destroy(vm.uuid)
    pair.source.define(vm)
    pair.source.start(vm.uuid)
    pair.fake_source.migrate_begin(vm.uuid, order("target"), "a2", "s")
    assert pair.target.inspect(vm.uuid).domain.attempt == "a2"  # type: ignore[union-attr]
    pair.source.destroy(vm.uuid)  # its end is that of the migration
    there = pair.target.inspect(vm.uuid).domain
    assert there is not None and (there.state, there.attempt) == (DomainState.OFF, "")
    assert not pair.target.inspect(vm.uuid).processes
