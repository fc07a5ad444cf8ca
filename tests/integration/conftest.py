"""What tests with real hosts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.chime import Chime


@pytest.fixture
def chime(whole: Chime) -> Iterator[Chime]:
    """The hosts of the module (its fixture `whole`), tidied after each test."""
    yield whole
    print(whole.logs())  # pytest shows it when the test failed
    whole.tidy()
