"""The snapshot file: what the agent must still know after a crash.

One line of header (format, version, checksum) and the body as JSON. Written to a temporary file, synced, renamed, and
the directory synced: a reader finds the old content or the new, never a mix. A file that is damaged, newer, or of
another node is put aside and refused: the agent then adopts what runs and starts nothing before the server confirms.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from pathlib import Path

import msgspec

from agentd.core.durable import SNAPSHOT_VERSION, Durable
from wire import files

MAGIC = "chime-agent-snapshot"
MAX_BYTES = 64 << 20
LOCK_FILE = "agentd.lock"
AGENT = "agentd"
AGENT_S = 0.5  # its name may be that of a dead one, which whoever has the lock now is about to replace
PATIENCE_S = 30.0
POLL_S = 0.05
_FLOCK = struct.Struct("@hhqqi0q")
"""`struct flock` of fcntl(2): kind, whence, start, length, pid."""
_EXCLUSIVE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class SnapshotError(Exception):
    """The snapshot cannot be used or written; one line says why."""


class SnapshotLocked(SnapshotError):
    """Another process has the node's state: an agent, or `chime-agent` at work."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First line of the file."""

    magic: str
    version: int
    checksum: str


def encode(durable: Durable) -> bytes:
    """The content of the file."""
    body = msgspec.json.encode(durable)
    header = Header(MAGIC, SNAPSHOT_VERSION, hashlib.blake2b(body, digest_size=32).hexdigest())
    return msgspec.json.encode(header) + b"\n" + body + b"\n"


def decode(content: bytes, node: str) -> Durable:
    """The snapshot in `content`. Raises SnapshotError."""
    first, _, rest = content.partition(b"\n")
    try:
        header = msgspec.json.decode(first, type=Header)
    except (ValueError, RecursionError):  # no JSON, no text, not a header; nested too deeply
        raise SnapshotError("it has no valid header") from None
    if header.magic != MAGIC:
        raise SnapshotError("it is not a snapshot of agentd")
    if header.version > SNAPSHOT_VERSION:
        raise SnapshotError(f"it has version {header.version}, this agentd knows {SNAPSHOT_VERSION}")
    body = rest.removesuffix(b"\n")
    if hashlib.blake2b(body, digest_size=32).hexdigest() != header.checksum:
        raise SnapshotError("its checksum is wrong: it was cut off or changed")
    try:
        durable = msgspec.json.decode(body, type=Durable)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"its content is not valid: {error}") from None
    if durable.node != node:
        raise SnapshotError(f"it belongs to node {durable.node}, this is {node}")
    return durable


def locked(state_dir: Path) -> bool:
    """Whether some process has the state in `state_dir` now."""
    try:
        fd = files.open_own(state_dir / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:  # only asked, not taken: an agent that starts in this moment must not find it taken
        kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _EXCLUSIVE))[0]
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK)


def _taken(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _EXCLUSIVE)
    except OSError:
        return False
    return True


class Snapshot:
    """The file in the agent's state directory, and the lock that keeps a second agent out."""

    def __init__(self, state_dir: Path, node: str) -> None:
        self.path = state_dir / "snapshot"
        self._node = node
        self._lock: int | None = None
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lock(self, who: str = AGENT) -> None:
        """Held until the process ends. Waits while a `chime-agent` has it, for the time of its command. Raises
        SnapshotLocked when another agentd has it, or a `chime-agent` for too long."""
        fd = files.open_own(self.path.with_name(LOCK_FILE), os.O_RDWR | os.O_CREAT)
        began, before = time.monotonic(), ""
        while not _taken(fd):
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or AGENT
            if owner != before:  # each has its own time; who gives it up has no name for a moment
                began, before = time.monotonic(), owner
            if time.monotonic() - began >= (AGENT_S if owner.startswith(AGENT) else PATIENCE_S):
                os.close(fd)
                raise SnapshotLocked(f"another {owner} uses {self.path.parent}")
            time.sleep(POLL_S)
        with contextlib.suppress(OSError):  # only for the words above: an agent starts on a full disk too
            os.pwrite(fd, f"{who} (pid {os.getpid()})".ljust(31).encode() + b"\n", 0)
        self._lock = fd

    def unlock(self) -> None:
        """Gives the lock up. Does nothing when it is not held."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def load(self) -> tuple[Durable, str]:
        """What was saved, or an empty state with the reason why it could not be used (it is kept beside)."""
        empty = Durable(node=self._node)
        try:
            with os.fdopen(files.open_own(self.path, os.O_RDONLY), "rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise SnapshotError("it is too large")
            return decode(content, self._node), ""
        except FileNotFoundError:
            return empty, ""
        except (SnapshotError, OSError) as error:
            aside = self.path.with_name(f"snapshot.refused-{time.time_ns()}")
            os.replace(self.path, aside)
            return empty, f"snapshot {self.path} refused: {error}; kept as {aside.name}"

    def save(self, durable: Durable) -> None:
        """Durable when this returns. Raises SnapshotError; the old content is then still there, or, when only the very
        last sync failed, the new."""
        part = self.path.with_name("snapshot.part")
        try:
            with os.fdopen(files.make_own(part), "wb") as file:
                file.write(encode(durable))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
            self._sync_directory()
        except OSError as error:
            raise SnapshotError(f"{self.path}: {error.strerror or error}") from None

    def _sync_directory(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
