"""Error codes: what each means, whether the same request may succeed later, and the tool's exit code for it.

Codes are part of the protocol: they are never renamed. A refusal names the value that was wrong and what to
do."""

from __future__ import annotations

from typing import Any, NamedTuple

from wire.messages import ErrorBody


class CodeInfo(NamedTuple):
    """`exit_code`: what `chime-tool` ends with."""

    retriable: bool
    exit_code: int
    meaning: str


CODES: dict[str, CodeInfo] = {
    # the frame or the peer
    "bad-frame": CodeInfo(
        False, 1, "not msgpack, too large, too deep, a key twice, or not of a message's shape"
    ),
    "unsupported-version": CodeInfo(False, 1, "the protocol version is not spoken here"),
    "unknown-verb": CodeInfo(False, 1, "the message type does not exist"),
    "forbidden": CodeInfo(False, 1, "this key may not send this message type"),
    "unknown-key": CodeInfo(False, 4, "the key is not registered any more"),
    "wrong-node": CodeInfo(False, 1, "the key belongs to another node than the message names"),
    "stale-session": CodeInfo(True, 4, "the session is not the newest of this node: say hello again"),
    "node-busy": CodeInfo(True, 4, "another host uses this node's key: it is being asked if it is alive"),
    "cloned-key": CodeInfo(True, 4, "another host that is alive uses this node's key"),
    # the request
    "invalid": CodeInfo(False, 2, "a value is not acceptable"),
    "not-found": CodeInfo(False, 1, "no such node, VM, operation, alarm or operator"),
    "exists": CodeInfo(False, 1, "the name or UUID is taken"),
    "key-conflict": CodeInfo(False, 1, "the idempotency key was used with another request"),
    "no-room": CodeInfo(True, 1, "no node can take the VM now"),
    "conflict": CodeInfo(False, 1, "the request does not fit the present state"),
    # the state of the world
    "node-unreachable": CodeInfo(True, 4, "the node takes no commands now"),
    "locked": CodeInfo(True, 3, "an operation holds the node or VM"),
    "refused-unsafe": CodeInfo(False, 3, "a safety rule forbids it now"),
    "no-evidence": CodeInfo(False, 3, "nothing proves that the node runs none of its VMs"),
    "recovering": CodeInfo(True, 3, "after a restore, until all nodes have reported or an operator confirms"),
    "storage-unavailable": CodeInfo(True, 1, "the server cannot record changes now and grants nothing"),
    "overloaded": CodeInfo(True, 4, "a bound was reached: try again later"),
    "internal": CodeInfo(True, 1, "a bug in the server: see its log"),
    # never sent: made by a client
    "unreachable": CodeInfo(True, 4, "no answer came in time: whether the request took effect is not known"),
}


class ChimeError(Exception):
    """A refusal with a code from `CODES`; travels as an `error` message."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later."""
        info = CODES.get(self.code)
        return info.retriable if info else False

    @property
    def exit_code(self) -> int:
        """The exit code of a tool that ends with this error."""
        info = CODES.get(self.code)
        return info.exit_code if info else 1

    def body(self) -> ErrorBody:
        """The message body that tells a peer of this error."""
        return ErrorBody(code=self.code, message=self.message, retriable=self.retriable, details=self.details)


class Unreachable(ChimeError):
    """No answer came in time (made by a client, never sent). Whether the request took effect is not known:
    ask again with the same idempotency key."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__("unreachable", message, **details)
