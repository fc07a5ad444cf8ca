"""Real qemu processes of this host, whoever started them: the second opinion beside libvirt.

Rules:
- A process that may still run or write counts: stopped (T), in disk sleep (D), also one that was killed and
  whose last thread hangs in the kernel. A zombie does not.
- In doubt a process counts: a false one only delays a start, a missed one could be a second copy of a VM.
- A process that vanishes or cannot be read never ends the scan.

It reads `/proc` directly: for every process one small file, and psutil's way costs several times that.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentd.core.facts import Process

PROC = Path("/proc")
QEMU_NAME = re.compile(r"^(qemu|kvm)([-_].*)?$")
QEMU_OPTIONS = frozenset(("machine", "M", "accel", "name", "cpu", "enable-kvm"))
ENDED = ("Z", "X", "x")


def scan(proc: Path = PROC) -> tuple[Process, ...]:
    """All live qemu processes that name a UUID."""
    return tuple(_processes(proc))


def of_vm(uuid: str, proc: Path = PROC) -> tuple[Process, ...]:
    """Those of one VM."""
    return tuple(process for process in _processes(proc) if process.uuid == uuid)


def vm_uuid(argv: Sequence[str]) -> str | None:
    """The UUID, in lower case, if `argv` (one word at least) is that of a qemu, else None."""
    uuid = None
    options = set()
    for option, value in zip(argv[1:], [*argv[2:], ""], strict=False):
        name = option.lstrip("-") if option.startswith("-") else ""
        options.add(name)
        if name == "uuid":
            uuid = _canonical(value) or uuid
    named = QEMU_NAME.match(argv[0].rsplit("/", 1)[-1])
    return uuid if named or options & QEMU_OPTIONS else None


def _canonical(text: str) -> str | None:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        return None


def _processes(proc: Path) -> Iterator[Process]:
    for entry in _entries(proc):
        raw = _read(f"{proc}/{entry}/cmdline")
        uuid = vm_uuid(_argv(raw)) if b"-uuid" in raw else None
        if raw and uuid is None:
            continue  # another program
        state, threads = _state(f"{proc}/{entry}/stat")
        if uuid is not None and state and state not in ENDED:
            yield Process(uuid, int(entry), state)
        elif threads > 1 and (found := _left_over(proc, entry)) is not None:
            yield found


def _left_over(proc: Path, pid: str) -> Process | None:
    """A killed process: its leader has ended, also since its arguments were read, and a thread still has them."""
    tasks = f"{proc}/{pid}/task"
    for task in _entries(Path(tasks)):
        uuid = vm_uuid(_argv(_read(f"{tasks}/{task}/cmdline")))
        state, _ = _state(f"{tasks}/{task}/stat")
        if uuid is not None and state and state not in ENDED:
            return Process(uuid, int(pid), state)
    return None


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def _argv(raw: bytes) -> list[str]:
    return raw.decode("utf-8", "replace").rstrip("\0").split("\0")


def _state(path: str) -> tuple[str, int]:
    """State letter and number of threads; ("", 0) if it is gone. The name may hold blanks and brackets."""
    fields = _read(path).rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[17])) if len(fields) > 17 else ("", 0)
