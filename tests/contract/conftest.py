"""The fake and the real hypervisor, by turns."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.harness import FakeHarness, Harness, RealHarness, real_hypervisor_missing
from tests.hosts import short_directory


@pytest.fixture(scope="package")
def real_root() -> Iterator[Path]:
    """A process has one embedded libvirt, so all contract tests share its root. It is gone when they are over: tests of
    the hosts look for what is left behind."""
    reason = real_hypervisor_missing()
    if reason:
        pytest.skip(reason)
    root = short_directory()
    yield root
    shutil.rmtree(root)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def host(request: pytest.FixtureRequest) -> Iterator[Harness]:
    harness: Any
    if request.param == "fake":
        harness = FakeHarness()
    else:
        harness = RealHarness(request.getfixturevalue("real_root"))
    harness.driver.connect(harness.events.seen.append, harness.events.lost.append)
    yield harness
    if isinstance(harness, RealHarness):
        harness.close()
    harness.driver.close()
    assert harness.events.lost == []
