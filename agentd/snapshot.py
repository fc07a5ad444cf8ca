"""The snapshot file: what the agent must still know after a crash.

One line of header (format, version, checksum) and the body as JSON. Written to a temporary file, synced, renamed, and
the directory synced: a reader finds the old content or the new, never a mix. A file that is damaged, newer, or of
another node is put aside and refused: the agent then adopts what runs and starts nothing before the server confirms.
Each content has a number, one higher than the one before, and the newest is noted with the boot id in a file where a
boot clears it: a lower one was put back by somebody, and counts only when the server has confirmed the inventory anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Annotated

import msgspec

from agentd.boot import boot_id
from agentd.config import Config
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
    serial: Annotated[int, msgspec.Meta(ge=0)] = 0


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this boot has seen: the number of the newest snapshot."""

    boot_id: str
    serial: int


def encode(durable: Durable, serial: int) -> bytes:
    """The content of the file, with its number."""
    body = msgspec.json.encode(durable)
    header = Header(MAGIC, SNAPSHOT_VERSION, _checksum(body, serial), serial)
    return msgspec.json.encode(header) + b"\n" + body + b"\n"


def unconfirmed(durable: Durable) -> Durable:
    """The state after the node got another key: the server has to confirm it anew."""
    return msgspec.structs.replace(durable, put_back=True, confirmed_boot="")


def _checksum(body: bytes, serial: int) -> str:
    """Of the content and its number; content of an earlier version has none."""
    return hashlib.blake2b(body, digest_size=32, salt=serial.to_bytes(16, "big")).hexdigest()


def aged(durable: Durable, serial: int, noted: int) -> tuple[Durable, str]:
    """The state as it counts, and why it does not count as it is: it is older than what this boot has `noted`. What
    was drained on the node by then may have been ended since: the server knows."""
    if serial >= noted:
        return durable, ""
    old = msgspec.structs.replace(durable, put_back=True, confirmed_boot="", local_drain=False)
    return old, f"it is number {serial}, and this boot has seen number {noted}: an older state was put back"


def decode(content: bytes, node: str) -> tuple[Durable, int]:
    """The snapshot in `content`, and its number. Raises SnapshotError."""
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
    if _checksum(body, header.serial) != header.checksum:
        raise SnapshotError("its checksum is wrong: it was cut off or changed")
    try:
        durable = msgspec.json.decode(body, type=Durable)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"its content is not valid: {error}") from None
    if durable.node != node:
        raise SnapshotError(f"it belongs to node {durable.node}, this is {node}")
    return durable, header.serial


def of(config: Config, node: str) -> Snapshot:
    """The snapshot of the node with this configuration. What a boot clears is beside the local socket."""
    return Snapshot(Path(config.state_dir), node, Path(config.socket).with_suffix(".newest"), boot_id())


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
    """The file in the agent's state directory, and the lock that keeps a second agent out. `note`: where the number of
    the newest is noted for this boot, in a directory that a boot clears; None: nowhere."""

    def __init__(self, state_dir: Path, node: str, note: Path | None = None, boot_id: str = "") -> None:
        self.path, self._joined = state_dir / "snapshot", state_dir / "joined"
        self._node, self._note, self._boot_id = node, note, boot_id
        self._serial = 0
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

    def joined(self, foreign: bool) -> None:
        """The node has a key anew, so that somebody may have given its VMs to others: from the next start on what is
        here starts nothing before the server has confirmed it, or (`foreign`: it is of another node or server) is put
        aside. An agent that runs now goes on with the key that it has."""
        if self.path.exists():
            with os.fdopen(files.make_own(self._joined), "w") as file:
                file.write("foreign" if foreign else "same")
            self._sync_directory()

    def _left(self, durable: Durable, why: str) -> tuple[Durable, str]:
        """The state as it counts after the node got another key."""
        try:
            foreign = self._joined.read_text(encoding="ascii", errors="replace") != "same"
        except FileNotFoundError:
            return durable, why
        if foreign and self.path.exists():
            why = f"snapshot {self.path} is of another node or server: kept as {self._put_aside()}"
        if foreign:
            durable = Durable(node=self._node)
        elif durable.generation:
            durable = unconfirmed(durable)
            why = why or f"snapshot {self.path}: the node has another key since: the server has to confirm it"
        with contextlib.suppress(SnapshotError):  # else it counts so again at the next start
            self.save(durable)
            self._joined.unlink()
        return durable, why

    def _put_aside(self) -> str:
        aside = self.path.with_name(f"snapshot.refused-{time.time_ns()}")
        os.replace(self.path, aside)
        return aside.name

    def load(self) -> tuple[Durable, str]:
        """The state as it counts now, and in a line why it does not count as it was saved, if so. Call it with the
        lock."""
        return self._left(*self._read())

    def _read(self) -> tuple[Durable, str]:
        """What was saved, or an empty state with the reason why it could not be used (it is kept beside); or what was
        put back, with the reason why it does not count as it is."""
        empty = Durable(node=self._node)
        noted = self._serial = self._noted()
        try:
            with os.fdopen(files.open_own(self.path, os.O_RDONLY), "rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise SnapshotError("it is too large")
            durable, serial = decode(content, self._node)
            self._serial = max(serial, noted)
            durable, why = aged(durable, serial, noted)
            return durable, f"snapshot {self.path}: {why}" if why else ""
        except FileNotFoundError:
            return empty, ""
        except (SnapshotError, OSError) as error:
            return empty, f"snapshot {self.path} refused: {error}; kept as {self._put_aside()}"

    def save(self, durable: Durable) -> None:
        """Durable when this returns. Raises SnapshotError; the old content is then still there, or, when only the very
        last sync failed, the new."""
        part = self.path.with_name("snapshot.part")
        try:
            with os.fdopen(files.make_own(part), "wb") as file:
                file.write(encode(durable, self._serial + 1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
            self._serial += 1
            self._sync_directory()
        except OSError as error:
            raise SnapshotError(f"{self.path}: {error.strerror or error}") from None
        self._note_it()

    def _noted(self) -> int:
        """The number of the newest snapshot that this boot has seen; 0: none."""
        if self._note is None:
            return 0
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=Note)
        except (OSError, ValueError):
            return 0
        return note.serial if note.boot_id == self._boot_id else 0

    def _note_it(self) -> None:
        """Without a sync: what is noted has to survive this process, and not the boot. When it cannot be noted, an
        older state is recognised that much worse; that is no reason to stop guarding VMs."""
        if self._note is None:
            return
        part = self._note.with_name(f"{self._note.name}.part")
        with contextlib.suppress(OSError):
            with os.fdopen(files.make_own(part), "wb") as file:
                file.write(msgspec.json.encode(Note(self._boot_id, self._serial)))
            os.replace(part, self._note)

    def _sync_directory(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
