"""A node whose agent is in session."""

from __future__ import annotations

import pytest

from tests.unit.agent.server import VM_1, assignment
from tests.unit.agent.world import World


@pytest.fixture
def world() -> World:
    """A node with a running agent in session and no VM."""
    made = World()
    made.start_agent()
    made.run_until(lambda: made.ready and not made.agent._has_news())
    return made


@pytest.fixture
def running(world: World) -> World:
    """The same with VM_1 running and reported."""
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: world.runs(VM_1))
    world.run(6.0)
    return world
