"""Worker threads around migrations: guarded, never overdue, not in the way of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.core import effects as fx
from agentd.core.durable import Attempt, Left
from agentd.core.facts import DomainState, VmFacts
from agentd.workers import Workers
from tests.contract.harness import new_vm, wait
from tests.fakes.hypervisor import FakeHypervisor
from wire.messages import MigrationOptions

ATTEMPT = Attempt(id="a1", target="n2", address="target", options=MigrationOptions())
LEFT = Left(attempt="a1", epoch=1, name="v", target="n2", address="target")


class World:
    """Workers on a fake hypervisor with a peer; a guard that is set by the test."""

    def __init__(self, count: int = 1, timeout_s: float = 0.0) -> None:
        self.here, self.there = FakeHypervisor(), FakeHypervisor()
        for hypervisor in (self.here, self.there):
            hypervisor.connect(lambda lifecycle: None, lambda why: None)
        self.here.peers["target"] = self.there
        self.refusal: str | None = None
        self.asked: list[fx.Action] = []
        self._woken = threading.Event()
        self._seen: list[fx.Event] = []
        self.workers = Workers(self.here, "n1", self._guard, self._woken.set, count, timeout_s)
        self.uuid = new_vm().uuid
        self.here.define(new_vm(uuid=self.uuid))
        self.here.start(self.uuid)

    def _guard(self, act: fx.Act, facts: VmFacts) -> str | None:
        assert facts.uuid == act.uuid
        self.asked.append(act.action)
        return self.refusal

    def act(self, action: fx.Action, **what: Any) -> None:
        self.workers.act(fx.Act(self.uuid, action, 7, **what))

    def seen(self, kind: type[fx.Event]) -> list[Any]:
        self._seen += self.workers.take()
        return [event for event in self._seen if isinstance(event, kind)]

    def acted(self, action: fx.Action) -> fx.Acted:
        def found() -> list[fx.Acted]:
            return [event for event in self.seen(fx.Acted) if event.action == action]

        (only,) = wait(found, f"the end of {action}")
        assert isinstance(only, fx.Acted) and only.token == 7
        return only

    def end(self) -> None:
        self.here.slow_transfers = False
        self.here.tell_moves()
        self.here.release()


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def world(*arguments: Any, **named: Any) -> World:
        made.append(World(*arguments, **named))
        return made[-1]

    yield world
    for one in made:
        one.end()


def test_migration_is_guarded_told_of_and_marked_with_this_node(make: Callable[..., World]) -> None:
    world = make()
    world.act(fx.Action.MIGRATE, attempt=ATTEMPT)
    acted = world.acted(fx.Action.MIGRATE)
    assert (acted.error, acted.refused, acted.facts.domain) == ("", "", None)
    assert world.asked == [fx.Action.MIGRATE]
    (told,) = world.seen(fx.Progressed)
    assert (told.uuid, told.attempt, told.progress.total_mib) == (world.uuid, "a1", 32)
    copy = world.there.inspect(world.uuid).domain
    assert copy is not None and (copy.attempt, copy.origin) == ("a1", "n1")
    world.act(fx.Action.HAND_OVER, left=LEFT)
    assert world.acted(fx.Action.HAND_OVER).error == ""
    assert world.there.inspect(world.uuid).domain.state == DomainState.RUNNING


@pytest.mark.parametrize("action", [fx.Action.MIGRATE, fx.Action.RESUME, fx.Action.START])
def test_what_the_guard_refuses_is_not_done(make: Callable[..., World], action: fx.Action) -> None:
    world = make()
    if action == fx.Action.START:
        world.here.destroy(world.uuid)
    world.refusal = "no"
    before = world.here.inspect(world.uuid).domain
    world.act(action, attempt=ATTEMPT)
    acted = world.acted(action)
    assert (acted.refused, acted.error) == ("no", "") and acted.facts.domain == before
    assert not world.there.domains


def test_long_migrations_are_not_overdue_and_leave_the_pool_free(make: Callable[..., World]) -> None:
    world = make(count=1, timeout_s=0.05)
    world.here.slow_transfers = True
    world.act(fx.Action.MIGRATE, attempt=ATTEMPT)
    wait(lambda: world.here.moves, "the transfer")
    world.act(fx.Action.SETTLE, attempt=ATTEMPT)
    world.act(fx.Action.SHUTDOWN)  # by the only thread of the pool, after which nothing is left that may be overdue
    assert world.acted(fx.Action.SHUTDOWN).error == ""
    wait(lambda: world.workers.next_overdue_s() == float("inf"), "only what is never overdue is under way")
    assert not [event for event in world.seen(fx.Overdue) if "migrate" in event.what or "settle" in event.what]
    assert "cancelled" in world.acted(fx.Action.MIGRATE).error  # its VM has ended
    assert world.acted(fx.Action.SETTLE).error == ""


def test_abort_ends_a_migration_that_holds_its_thread(make: Callable[..., World]) -> None:
    world = make()
    world.here.slow_transfers = True
    world.act(fx.Action.MIGRATE, attempt=ATTEMPT)
    wait(lambda: world.here.moves, "the transfer")
    world.here.fail_next("abort_migration")  # is logged; the core asks again
    world.workers.abort_migration(world.uuid)
    wait(lambda: world.here.calls.count(("abort_migration", world.uuid)) == 1, "the abort that fails")
    wait(lambda: (world.workers.abort_migration(world.uuid), not world.here.moves)[1], "one that is heard")
    acted = world.acted(fx.Action.MIGRATE)
    assert "cancelled" in acted.error and acted.facts.domain is not None and not acted.facts.domain.job


def test_aborts_of_one_vm_do_not_pile_up_while_libvirt_hangs(make: Callable[..., World]) -> None:
    world = make()
    world.here.hang()
    for _ in range(50):
        world.workers.abort_migration(world.uuid)
    world.here.release()
    world.act(fx.Action.SETTLE, attempt=ATTEMPT)
    world.acted(fx.Action.SETTLE)
    wait(lambda: ("abort_migration", world.uuid) in world.here.calls, "the abort")
    assert world.here.calls.count(("abort_migration", world.uuid)) == 1


def test_copy_that_is_not_there_is_told_as_such(make: Callable[..., World]) -> None:
    world = make()
    world.act(fx.Action.HAND_OVER, left=LEFT)
    acted = world.acted(fx.Action.HAND_OVER)
    assert acted.invalid and acted.error


def test_target_that_does_not_answer_is_not_taken_for_one_without_a_copy(make: Callable[..., World]) -> None:
    world = make()
    world.there.lose()
    world.act(fx.Action.HAND_OVER, left=LEFT)
    acted = world.acted(fx.Action.HAND_OVER)
    assert not acted.invalid and "cannot be reached" in acted.error


@pytest.mark.parametrize("action", [fx.Action.MIGRATE, fx.Action.HAND_OVER, fx.Action.DEFINE])
def test_order_without_its_words_is_an_error(make: Callable[..., World], action: fx.Action) -> None:
    world = make()
    world.act(action)
    assert world.acted(action).error
