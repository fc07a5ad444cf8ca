"""Processes that are measured: their CPU time, memory and disk traffic as the kernel counts them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MIB = 1024 * 1024
STOP_S = 10.0
ROOT = Path(__file__).resolve().parents[2]


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond: `clock_getcpuclockid` of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory (`rss`), the part of shared pages that is its own (`pss`), and what only it has (`own`)."""
    totals = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in totals:
            totals[name] = int(rest.split()[0])
    own = totals["Private_Clean"] + totals["Private_Dirty"]
    return {"rss": totals["Rss"] / 1024, "pss": totals["Pss"] / 1024, "own": own / 1024}


def written_bytes(pid: int) -> dict[str, int]:
    """What the process has written so far: bytes given to `write` and the like, and bytes for the disk."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {name: int(fields[name]) for name in ("wchar", "write_bytes")}


def command(module: str, *arguments: str) -> list[str]:
    """How to run a module of this project with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


@contextlib.contextmanager
def running(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file, ended at the end of the block."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(argv: Sequence[str]) -> None:
    """A command that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
