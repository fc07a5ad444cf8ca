"""The world that the tests of migration begin with."""

from __future__ import annotations

import pytest

from tests.unit.server.world import World


@pytest.fixture
def world() -> World:
    """Three nodes, and the VM `web` that runs on n1."""
    world = World("n1", "n2", "n3")
    world.start()
    world.create("web", "n1")
    return world
