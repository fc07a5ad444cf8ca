"""What each check takes for bad: tables of readings, and samples of what kernels and tools really write."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from agentd.checks.block_devices import BlockDeviceCheck, ErrorCounters
from agentd.checks.bounded import Output
from agentd.checks.business import BusinessCheck, BusinessReading
from agentd.checks.clock import ClockCheck
from agentd.checks.edac import EdacCheck, MemoryErrors
from agentd.checks.interface import Check, Key
from agentd.checks.interfaces import Interface, InterfaceCheck
from agentd.checks.memory import MemoryCheck
from agentd.checks.raid import RaidCheck
from agentd.checks.scripts import ScriptCheck
from agentd.checks.smart import SmartCheck
from agentd.checks.storage import StorageCheck, StorageReading
from wire.types import Severity


def found(check: Check, reading: Any, before: Any = None, raised: frozenset[Key] = frozenset()) -> dict[Key, str]:
    """The texts of the symptoms; each code must be one that the check names."""
    symptoms = list(check.symptoms(reading, before, raised))
    assert {symptom.code for symptom in symptoms} <= set(check.codes)
    return {symptom.key: symptom.text for symptom in symptoms}


# --- memory and storage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "raised", "bad"),
    [(50.0, False, False), (5.0, False, False), (4.9, False, True), (6.9, True, True), (7.0, True, False)],
)
def test_memory_has_a_margin(free: float, raised: bool, bad: bool) -> None:
    key = Key("memory-full", "")
    symptoms = found(MemoryCheck(5.0), free, raised=frozenset({key}) if raised else frozenset())
    assert (key in symptoms) is bad


STORAGE = StorageCheck("/srv", 10.0, slow_s=5.0, probe=True)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (StorageReading(50.0, write_s=0.01), {}),
        (StorageReading(10.0), {}),
        (StorageReading(9.4), {"storage-full": "/srv: 9 % free, limit 10 %"}),
        (StorageReading(50.0, write_s=7.0), {"storage-slow": "/srv: 7.0 s to write 4096 bytes, limit 5 s"}),
        (StorageReading(50.0, read_only=True), {"storage-read-only": "/srv is read-only"}),
        (StorageReading(50.0, True, "cannot be written: Read-only file system"),
         {"storage-read-only": "/srv is read-only"}),
        (StorageReading(50.0, error="cannot be written: Input/output error", cause=errno.EIO),
         {"storage-failed": "/srv cannot be written: Input/output error"}),
        (StorageReading(None, error="cannot be read: No such file or directory"),
         {"storage-failed": "/srv cannot be read: No such file or directory"}),
        (StorageReading(50.0, error="cannot be written: No space left on device", cause=errno.ENOSPC),
         {"storage-full": "/srv cannot be written: No space left on device"}),
    ],
)  # fmt: skip
def test_storage(reading: StorageReading, expected: dict[str, str]) -> None:
    assert found(STORAGE, reading) == {Key(code, "/srv"): text for code, text in expected.items()}


def test_storage_that_the_agent_may_not_write_to_is_only_worth_knowing() -> None:
    reading = StorageReading(50.0, error="cannot be written: Permission denied", cause=errno.EACCES)
    (symptom,) = STORAGE.symptoms(reading, None, frozenset())
    assert (symptom.code, symptom.severity) == ("storage-failed", Severity.INFO)


@pytest.mark.parametrize(("free", "bad"), [(11.9, True), (12.0, False)])
def test_storage_has_a_margin(free: float, bad: bool) -> None:
    full = Key("storage-full", "/srv")
    assert (full in found(STORAGE, StorageReading(free), raised=frozenset({full}))) is bad


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "raised", "bad"),
    [
        (None, 900, False, False),  # from before the agent started
        (900, 902, False, False),
        (900, 903, False, True),
        (900, 901, True, True),
        (900, 900, True, False),
        (900, 0, False, False),  # another disk in its place
    ],
)
def test_new_errors_of_a_disk(before: int | None, now: int, raised: bool, bad: bool) -> None:
    key = Key("disk-errors", "sda")
    was = None if before is None else ErrorCounters({"sda": before}, {})
    reading = ErrorCounters({"sda": now}, {})
    symptoms = found(BlockDeviceCheck(), reading, was, frozenset({key}) if raised else frozenset())
    assert (key in symptoms) is bad


def test_errors_of_a_file_system_last() -> None:
    reading = ErrorCounters({}, {"dm-0": 2, "sda1": 0})
    assert found(BlockDeviceCheck(), reading, reading).keys() == {Key("filesystem-errors", "dm-0")}


def test_counters_as_the_kernel_writes_them(tmp_path: Path) -> None:
    for name, text in (
        ("block/sda/device/ioerr_cnt", "0x1f\n"),
        ("block/sdb/device/ioerr_cnt", "nonsense"),
        ("fs/ext4/sda1/errors_count", "3\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert BlockDeviceCheck(tmp_path).read() == ErrorCounters({"sda": 31, "sdb": 0}, {"sda1": 3})


HEALTHY = """Personalities : [raid1] [raid6] [raid5] [raid4] [raid0]
md1 : active raid0 sdc1[1] sdb1[0]
      1953260544 blocks super 1.2 512k chunks

md0 : active raid1 sdb2[1] sda2[0]
      976630464 blocks super 1.2 [2/2] [UU]
      bitmap: 2/8 pages [8KB], 65536KB chunk

unused devices: <none>
"""
ONE_LOST = HEALTHY.replace("sdb2[1] sda2[0]", "sdb2[1](F) sda2[0]").replace("[2/2] [UU]", "[2/1] [U_]")
REBUILDING = """Personalities : [raid6] [raid5] [raid4]
md127 : active raid5 sdd1[4] sdc1[2] sdb1[1] sda1[0]
      2929891328 blocks super 1.2 level 5, 512k chunk, algorithm 2 [4/3] [UUU_]
      [==>..................]  recovery = 12.6% (123456789/976630464) finish=91.2min speed=155821K/sec
      bitmap: 0/8 pages [0KB], 65536KB chunk

unused devices: <none>
"""
INACTIVE = """Personalities :
md5 : inactive sdb[1](S) sda[0](S)
      1953260976 blocks super 1.2

unused devices: <none>
"""
READ_ONLY = HEALTHY.replace("active raid1", "active (auto-read-only) raid1")


@pytest.mark.parametrize(
    ("mdstat", "expected"),
    [
        ("", {}),
        (HEALTHY, {}),
        (READ_ONLY, {}),
        (ONE_LOST, {"md0": "md0 has 1 of 2 disks, failed: sdb2"}),
        (REBUILDING, {"md127": "md127 has 3 of 4 disks"}),
        (INACTIVE, {"md5": "md5 is not active"}),
    ],
)
def test_raid(mdstat: str, expected: dict[str, str]) -> None:
    assert found(RaidCheck(), mdstat) == {Key("raid-degraded", name): text for name, text in expected.items()}


def test_no_mdstat_is_no_raid(tmp_path: Path) -> None:
    assert RaidCheck(tmp_path / "mdstat").read() == ""


PASSED = json.loads("""{"json_format_version": [1, 0], "smartctl": {"version": [7, 3], "exit_status": 0},
  "device": {"name": "/dev/sda", "info_name": "/dev/sda [SAT]", "type": "sat", "protocol": "ATA"},
  "smart_status": {"passed": true}}""")
FAILED = json.loads("""{"json_format_version": [1, 0], "smartctl": {"version": [7, 3], "exit_status": 8},
  "device": {"name": "/dev/nvme0", "type": "nvme", "protocol": "NVMe"}, "model_name": "ACME 1",
  "serial_number": "S1", "smart_status": {"passed": false, "nvme": {"value": 4}}}""")
ASLEEP = json.loads("""{"smartctl": {"version": [7, 3], "messages": [
  {"string": "Device is in STANDBY mode, exit(2)", "severity": "information"}], "exit_status": 2}}""")


@pytest.mark.parametrize(
    ("answer", "raised", "bad"),
    [(PASSED, False, False), (PASSED, True, False), (FAILED, False, True), (ASLEEP, False, False),
     (ASLEEP, True, True), ({}, False, False)],
)  # fmt: skip
def test_smart(answer: dict[str, Any], raised: bool, bad: bool) -> None:
    key = Key("smart-failing", "/dev/sda")
    symptoms = found(SmartCheck("smartctl"), {"/dev/sda": answer}, raised=frozenset({key}) if raised else frozenset())
    assert (key in symptoms) is bad


def test_smart_names_the_disk() -> None:
    texts = found(SmartCheck("smartctl"), {"/dev/nvme0": FAILED})
    assert texts == {Key("smart-failing", "/dev/nvme0"): "/dev/nvme0 ACME 1 S1 says that it is failing (SMART)"}


# --- memory errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, MemoryErrors(900, 0), set()),
        (None, MemoryErrors(0, 1), {"memory-errors-uncorrected"}),
        (MemoryErrors(5, 0), MemoryErrors(14, 0), set()),
        (MemoryErrors(5, 0), MemoryErrors(15, 0), {"memory-errors-corrected"}),
        (MemoryErrors(5, 1), MemoryErrors(5, 1), set()),
        (MemoryErrors(5, 1), MemoryErrors(5, 2), {"memory-errors-uncorrected"}),
        (MemoryErrors(5, 1), MemoryErrors(0, 0), set()),  # the driver was loaded anew
    ],
)
def test_memory_errors(before: MemoryErrors | None, now: MemoryErrors, expected: set[str]) -> None:
    symptoms = found(EdacCheck(), {"mc0": now}, None if before is None else {"mc0": before})
    assert {key.code for key in symptoms} == expected


def test_memory_errors_as_the_kernel_writes_them(tmp_path: Path) -> None:
    assert EdacCheck(tmp_path).read() == {}
    (tmp_path / "mc0").mkdir()
    (tmp_path / "mc0" / "ce_count").write_text("12\n")
    assert EdacCheck(tmp_path).read() == {"mc0": MemoryErrors(12, 0)}


# --- networks ---------------------------------------------------------------------------------------------------------

INTERFACES = InterfaceCheck({"eno1": 10_000, "eno2": 0}, error_percent=0.1, drop_percent=1.0)
UP = {"eno1": Interface(True, 10_000), "eno2": Interface(True)}


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (UP, {}),
        ({**UP, "eno1": Interface(True, 0)}, {}),  # a speed that is not known is not slow
        ({**UP, "eno1": Interface(True, 25_000)}, {}),
        ({**UP, "eno1": Interface(True, 10)}, {("link-slow", "eno1"): "eno1 runs at 10 Mb/s instead of 10000 Mb/s"}),
        ({**UP, "eno1": Interface(False, 1000)}, {("link-down", "eno1"): "eno1 has no link"}),
        ({**UP, "eno2": Interface(False)}, {("link-down", "eno2"): "eno2 has no link"}),
        ({"eno1": UP["eno1"]}, {("link-down", "eno2"): "eno2 does not exist"}),
        ({**UP, "eno3": Interface(False)}, {}),  # an unused socket
        ({**UP, "eno3": Interface(False, is_port=True)}, {("link-down", "eno3"): "eno3 has no link"}),
    ],
)
def test_links(reading: dict[str, Interface], expected: dict[tuple[str, str], str]) -> None:
    assert found(INTERFACES, reading, reading) == expected


@pytest.mark.parametrize(
    ("packets", "errors", "drops", "expected"),
    [
        (10_000, 9, 0, {}),
        (1000, 10, 0, {"network-errors": "eno3: 10 of 1010 packets damaged (0.99 %, limit 0.1 %)"}),
        (1_000_000, 900, 0, {}),
        (0, 10, 0, {"network-errors": "eno3: 10 of 10 packets damaged (100 %, limit 0.1 %)"}),
        (1000, 0, 99, {}),
        (9000, 0, 1000, {"network-drops": "eno3: 1000 of 10000 packets dropped (10 %, limit 1 %)"}),
        (1_000_000, 0, 9000, {}),
        (-500, -500, -500, {}),  # the counters began anew
    ],
)
def test_losses(packets: int, errors: int, drops: int, expected: dict[str, str]) -> None:
    was = Interface(True, packets=500, errors=500, drops=500)
    now = Interface(True, packets=500 + packets, errors=500 + errors, drops=500 + drops)
    symptoms = found(INTERFACES, {**UP, "eno3": now}, {"eno3": was})
    assert symptoms == {Key(code, "eno3"): text for code, text in expected.items()}


def test_losses_need_a_reading_before() -> None:
    assert found(INTERFACES, {**UP, "eno3": Interface(True, packets=9, errors=999)}) == {}


BUSINESS = BusinessCheck("biz0", ("10.0.0.1", "10.0.0.2"), 30.0)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (BusinessReading("", frozenset({"10.0.0.1", "10.0.0.2"})), {}),
        (BusinessReading("", frozenset({"10.0.0.1"})),
         {("business-target", "10.0.0.2"): "10.0.0.2 does not answer over biz0"}),
        (BusinessReading(""),
         {("business-network-down", ""): "over business interface biz0 none answers of 10.0.0.1, 10.0.0.2"}),
        (BusinessReading("has no link"), {("business-network-down", ""): "business interface biz0 has no link"}),
    ],
)  # fmt: skip
def test_business_network(reading: BusinessReading, expected: dict[tuple[str, str], str]) -> None:
    assert found(BUSINESS, reading) == expected


def test_business_interface_alone_may_be_checked() -> None:
    assert found(BusinessCheck("biz0", (), 30.0), BusinessReading("")) == {}


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("synchronised", "bad"), [(True, False), (False, True)])
def test_clock(synchronised: bool, bad: bool) -> None:
    assert (Key("clock-unsynchronised", "") in found(ClockCheck(), synchronised)) is bad


@pytest.mark.parametrize(
    ("name", "code"),
    [("ups", "ups"), ("check_ups.sh", "check_ups"), ("10 raid card.py", "10-raid-card"), ("_x", "x"), ("..", "script")],
)
def test_code_of_a_script(name: str, code: str) -> None:
    assert ScriptCheck(Path("/c") / name, 60.0, 10.0).code == code


@pytest.mark.parametrize(
    ("output", "severity", "text"),
    [
        (Output(1, "WARNING - on battery|load=3\nmore"), Severity.WARNING, "ups.sh: WARNING - on battery"),
        (Output(2, "empty"), Severity.CRITICAL, "ups.sh: empty"),
        (Output(2, ""), Severity.CRITICAL, "ups.sh: exit 2"),
    ],
)
def test_script(output: Output, severity: Severity, text: str) -> None:
    check = ScriptCheck(Path("/c/ups.sh"), 60.0, 10.0)
    (symptom,) = check.symptoms(output, None, frozenset())
    assert (symptom.code, symptom.severity, symptom.text) == ("ups", severity, text)
    assert not list(check.symptoms(Output(0, "OK"), None, frozenset()))
