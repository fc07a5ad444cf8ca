"""Real qemu processes of this host, whoever started them: the second opinion beside libvirt.

Rules:
- A process that may still run or write counts: stopped (T), in disk sleep (D), also one that was killed and
  hangs in the kernel. A zombie does not.
- In doubt a process counts: a false one only delays a start, a missed one could be a second copy of a VM.
- A process that vanishes never ends the scan. If this process lacks the means to look (descriptors, memory), that is
  an error, not "nothing there".

A killed process loses its arguments before its last writes are done (the kernel frees its memory and waits there for
asynchronous ones, `exit_aio`). Whose it is must be known from before: so whoever looks keeps one `Processes`.

It reads `/proc` directly: for every process one small file, and psutil's way costs several times that.
"""

from __future__ import annotations

import errno
import os
import re
import uuid as uuids
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agentd.core.facts import Process
from agentd.hypervisor import HypervisorError

PROC = Path("/proc")
QEMU_NAME = re.compile(r"^(qemu|kvm)([-_].*)?$")
QEMU_OPTIONS = frozenset(("machine", "M", "accel", "name", "cpu", "enable-kvm"))
ENDED = ("", "Z", "X", "x")
NO_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Processes:
    """The qemu processes of this host. It may be used by several threads."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[_Identity, Process] = {}

    def scan(self) -> tuple[Process, ...]:
        """All live qemu processes that name a UUID. Raises HypervisorError if they cannot be looked at."""
        before = set(self._known)
        try:
            found = dict(self._found())
        except OSError as error:
            raise HypervisorError(f"cannot look at the processes: {error.strerror}") from None
        for identity in before - found.keys():
            self._known.pop(identity, None)
        return tuple(found.values())

    def last_seen(self) -> tuple[Process, ...]:
        """Those that were seen last: what is to be believed of them while they cannot be looked at."""
        return tuple(self._known.copy().values())

    def _found(self) -> Iterator[tuple[_Identity, Process]]:
        for entry in filter(str.isdigit, os.listdir(self._proc)):
            look = self._look_at(entry)
            if look is not None:
                identity, process = look
                self._known[identity] = process
                yield look

    def _look_at(self, entry: str) -> tuple[_Identity, Process] | None:
        raw = _read(f"{self._proc}/{entry}/cmdline")
        uuid = _uuid_in(raw)
        if raw and uuid is None:
            return None  # another program
        stat = _stat(f"{self._proc}/{entry}/stat")
        state = stat.state
        if stat.threads > 1 and (uuid is None or state in ENDED):
            found, state = _last_thread(f"{self._proc}/{entry}/task")
            uuid = found or uuid
        identity = _Identity(int(entry), stat.start)
        if uuid is None:
            uuid = self._uuid_before(identity)
        if uuid is None or state in ENDED:  # a kernel thread or a zombie, or gone
            return None
        return identity, Process(uuid, identity.pid, state)

    def _uuid_before(self, identity: _Identity) -> str | None:
        before = self._known.get(identity)
        return before.uuid if before is not None else None


class _Identity(NamedTuple):
    """No two processes of one boot have the same: process ids return, but not within a tick of the clock."""

    pid: int
    start: str


class _Stat(NamedTuple):
    state: str
    threads: int
    start: str


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


def _uuid_in(raw: bytes) -> str | None:
    return vm_uuid(raw.decode("utf-8", "replace").rstrip("\0").split("\0")) if b"-uuid" in raw else None


def _canonical(text: str) -> str | None:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        return None


def _last_thread(tasks: str) -> tuple[str | None, str]:
    """State of a thread that has not ended, and the UUID if one of them still has the arguments."""
    last = None, ""
    for task in _entries(tasks):
        uuid, state = _uuid_in(_read(f"{tasks}/{task}/cmdline")), _stat(f"{tasks}/{task}/stat").state
        if state in ENDED:
            continue
        if uuid is not None:
            return uuid, state
        last = None, state
    return last


def _entries(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.isdigit()]
    except OSError as error:
        _raise_without_means(error)
        return []


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        _raise_without_means(error)
        return b""


def _raise_without_means(error: OSError) -> None:
    if error.errno in NO_MEANS:
        raise error


def _stat(path: str) -> _Stat:
    """State letter, number of threads, time of start; empty if it is gone. The name may hold blanks and brackets."""
    fields = _read(path).rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), int(fields[17]), fields[19].decode()) if len(fields) > 19 else _Stat("", 0, "")
