"""The world that the tests of migration begin with."""

from __future__ import annotations

import pytest

from tests.unit.server.world import World, running


@pytest.fixture
def world() -> World:
    """Three nodes, and the VM `web` that runs on n1."""
    return running("n1", "n2", "n3")
