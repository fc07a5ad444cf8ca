"""The host's own faults: raised at the limit, cleared a margin above it."""

from __future__ import annotations

import pytest

from agentd import host
from wire.messages import Fault

LIMITS = host.Limits(memory_free_percent=5.0, storage_free_percent=10.0, margin_percent=2.0)


@pytest.mark.parametrize(
    ("free", "before", "after"),
    [(50.0, False, False), (5.0, False, False), (4.9, False, True), (6.9, True, True), (7.0, True, False)],
)
def test_memory_full(free: float, before: bool, after: bool) -> None:
    was = Fault(code=host.MEMORY_FULL, text="earlier") if before else None
    fault = host.memory_full(free, LIMITS, was)
    assert (fault is not None) == after
    assert fault is None or (fault.code == host.MEMORY_FULL and fault.text)


def test_text_of_a_lasting_memory_fault_does_not_change() -> None:
    first = host.memory_full(1.0, LIMITS, None)
    assert host.memory_full(3.0, LIMITS, first) == first


def test_storage_full_names_the_paths_and_has_a_margin_for_each() -> None:
    fault = host.storage_full({"/a": 9.0, "/b": 11.0}, LIMITS, None)
    assert fault is not None and fault.code == host.STORAGE_FULL
    assert "/a: 9 % free" in fault.text and "/b" not in fault.text
    fault = host.storage_full({"/a": 11.0, "/b": 11.0}, LIMITS, fault)
    assert fault is not None and "/a" in fault.text and "/b" not in fault.text
    assert host.storage_full({"/a": 12.0, "/b": 11.0}, LIMITS, fault) is None


def test_path_that_cannot_be_read_is_a_fault_that_says_so() -> None:
    fault = host.storage_full({"/a": None}, LIMITS, None)
    assert fault is not None and "/a: cannot be read" in fault.text
    assert host.storage_full({"/a": 11.0}, LIMITS, fault) is None


def test_no_paths_no_fault() -> None:
    assert host.storage_full({}, LIMITS, None) is None
