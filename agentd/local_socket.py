"""The node-local socket: one question at a time from `chime-agent`, over a unix socket that only root can open."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as unix
import stat
from pathlib import Path
from typing import Any

import msgspec
import zmq

from wire.messages import MigrationOrder

MAX_BYTES = 65_536


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `chime-agent` asks: status; drain, with `graceful_s`; migrate, with the rest, where `attempt` names the
    question too: it may be asked again."""

    verb: str
    graceful_s: float = 60.0
    uuid: str = ""
    attempt: str = ""
    migration: MigrationOrder | None = None


class LocalSocket:
    """The agent's end. A question must be answered before the next one is received."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_way(path)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        before = os.umask(0o177)
        try:
            self.socket.bind(f"ipc://{path}")
        finally:
            os.umask(before)

    def receive(self) -> Question | None:
        """The next question; a bad one is answered here."""
        with contextlib.suppress(zmq.Again):
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
            try:
                return msgspec.json.decode(frames[0], type=Question)
            except (ValueError, RecursionError) as error:
                self.answer({"error": f"not understood: {error}"})
        return None

    def answer(self, result: dict[str, Any]) -> None:
        """Answers the question that was received last."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send(msgspec.json.encode(result), zmq.NOBLOCK)

    def close(self) -> None:
        """Closes the socket."""
        self._context.destroy(linger=0)


def _make_way(path: Path) -> None:
    """Refuses to take the place of anything but a socket, which a dead agent has left: zmq removes what is there."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "it is not a socket: remove it, or choose another path for `socket`", str(path))


def _listens(path: Path) -> bool:
    """Whether an agent is there; one that was killed leaves its socket behind, and zmq would wait for it. Nobody else's
    socket is asked."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, "it is not a socket of root or of yours, and is not asked", str(path))
    with unix.socket(unix.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def ask(path: Path, question: Question, timeout_s: float) -> dict[str, Any] | None:
    """Asks the agent that listens at `path`; None when none answers in time."""
    if not _listens(path):
        return None
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{path}")
        socket.send(msgspec.json.encode(question))
        if not socket.poll(int(timeout_s * 1000)):
            return None
        answer: dict[str, Any] = msgspec.json.decode(socket.recv())
        return answer
