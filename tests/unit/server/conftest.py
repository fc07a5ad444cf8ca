"""The world that most tests of the server begin with; a module that needs another has a fixture of its own."""

from __future__ import annotations

import pytest

from tests.unit.server.world import World


@pytest.fixture
def world() -> World:
    """Two nodes, and the VM `web` that runs on n1."""
    world = World("n1", "n2")
    world.start()
    world.create("web", "n1")
    return world
