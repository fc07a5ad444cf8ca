"""The world that most tests of the server begin with; a module that needs another has a fixture of its own."""

from __future__ import annotations

import pytest

from tests.unit.server.world import World, running


@pytest.fixture
def world() -> World:
    """Two nodes, and the VM `web` that runs on n1."""
    return running("n1", "n2")
