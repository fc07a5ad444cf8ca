"""Writes the table of `docs/faults-reported.md` from the checks themselves.

Run it after a change of a check: `python -m tests.tools.make_fault_tables`.
"""

from __future__ import annotations

import re
from pathlib import Path

from agentd.checks import (
    block_devices,
    business,
    clock,
    edac,
    interfaces,
    memory,
    raid,
    runner,
    scripts,
    smart,
    storage,
)
from agentd.checks.interface import Check
from agentd.config import Config
from tests.tools.make_protocol_tables import table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults-reported.md"
BLOCK = re.compile(r"(<!-- table: faults -->\n).*?(<!-- end -->)", re.DOTALL)

WORDS = {
    "business-network-down": (
        "the business interface has no link or no address, or none of the targets answers over it (three pings each)",
        "look at cable, switch port and addresses; VMs can be migrated over the management network",
    ),
    "business-target": (
        "single targets do not answer over the business interface, others do",
        "look at that target; the node itself is well",
    ),
    "clock-unsynchronised": ("the kernel's clock is not disciplined by NTP", "look at chronyd or timesyncd"),
    "disk-errors": (
        "3 or more new I/O errors of a disk within an interval (`ioerr_cnt`)",
        "read the kernel log, migrate what uses the disk, replace it",
    ),
    "filesystem-errors": (
        "ext4 has found errors on a device (`errors_count`)",
        "migrate, unmount, `e2fsck`; the counter is cleared by it",
    ),
    "link-down": (
        "no link on an interface that `links` names, or on a real device that is a port of a bond or bridge",
        "look at cable, switch port, `ip link`",
    ),
    "link-slow": ("less speed than `links` demands", "look at cable, optics and the switch port's settings"),
    "memory-errors-corrected": (
        "10 or more corrected errors of a memory controller within an interval (EDAC)",
        "plan the replacement of the module",
    ),
    "memory-errors-uncorrected": (
        "a memory controller has counted an uncorrected error (EDAC), also one from before the agent started",
        "migrate everything, replace the module",
    ),
    "memory-full": (
        "less memory available than `memory_min_free_percent`; cleared 2 % above",
        "migrate VMs away, or end what else uses memory",
    ),
    "network-drops": (
        "100 or more dropped packets within an interval, and more than `network_drop_percent`",
        "look at load, ring buffers (`ethtool -g`) and the switch",
    ),
    "network-errors": (
        "10 or more damaged packets within an interval, and more than `network_error_percent`",
        "look at cable, optics and the switch port",
    ),
    "raid-degraded": (
        "a software RAID lacks a disk (also while it is rebuilt) or is not active (`/proc/mdstat`)",
        "replace the disk, `mdadm --add`",
    ),
    "smart-failing": ("a disk says that it is failing (`smartctl -H`)", "migrate what uses it, replace it"),
    "storage-failed": (
        "a folder cannot be looked at, or a file cannot be written to it and synced (only `info` when the agent may "
        "not write there: root on NFS)",
        "look at the mount and at the storage behind it",
    ),
    "storage-full": (
        "less room or inodes than `storage_min_free_percent`, cleared 2 % above; or a write finds no room",
        "make room",
    ),
    "storage-read-only": (
        "the file system of a folder is mounted read-only, often by the kernel after an I/O error",
        "read the kernel log; check the file system before it is mounted again",
    ),
    "storage-slow": (
        "writing 4 KiB with fsync takes longer than `storage_slow_s`",
        "look at the load of the storage and the path to it",
    ),
    "check-failed": (
        "a check cannot look, or cannot be loaded; what it had found before stays",
        "the text names the check and says why",
    ),
    "check-stuck": (
        "a check does not return (a dead disk or mount), or a script had to be killed; what it had found before stays",
        "look at what the check looks at: often that hangs too",
    ),
    "(its file's name)": (
        "a script of the site in `checks_dir` exits with 1 or 2; the text is the first line that it writes",
        "as the site has it",
    ),
}


def built_in() -> list[Check]:
    """One of each check, with the defaults."""
    config = Config(business_interface="biz0", storage_paths=("/srv",), state_dir="/srv")
    modules = (block_devices, business, clock, edac, interfaces, memory, raid, storage)
    return [*(check for module in modules for check in module.checks(config)), smart.SmartCheck("smartctl")]


def made() -> str:
    """A row for each code."""
    rows = []
    for check in built_in():
        for code, how in check.codes.items():
            turns = (_seconds(check.interval_s), _times(how.raise_after), _times(how.clear_after))
            rows.append((f"`{code}`", how.severity.value, *turns, *WORDS[code]))
    own, script = runner.OWN_CODES, scripts.ScriptCheck(Path("/x"), Config().script_interval_s, 1.0)
    for code, how in own.items():
        turns = ("as the check's", _times(how.raise_after), _times(how.clear_after))
        rows.append((f"`{code}`", how.severity.value, *turns, *WORDS[code]))
    (how,) = script.codes.values()
    turns = (_seconds(script.interval_s), _times(how.raise_after), _times(how.clear_after))
    rows.append(("(its file's name)", "1: warning, 2: critical", *turns, *WORDS["(its file's name)"]))
    columns = ("code", "severity", "read every", "raised after", "cleared after", "raised when", "what to do")
    return table(columns, sorted(rows))


def _seconds(interval_s: float) -> str:
    return f"{interval_s:g} s"


def _times(readings: int) -> str:
    return "1 reading" if readings == 1 else f"{readings} readings"


def updated(text: str) -> str:
    """The document with its table as it should be."""
    return BLOCK.sub(lambda found: found[1] + made() + found[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
