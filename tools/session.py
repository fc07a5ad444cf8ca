"""What a command gets to work with: the options, the terminal, and a client.

The client is a Protocol, so that the commands run in tests against one in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from tools.options import Options, UsageError
from tools.terminal import Terminal
from wire import messages as m
from wire.types import IN_WORDS

Row = Mapping[str, Any]

FIELD_WORDS = {
    "graceful_s": "graceful", "memory_mib": "memory", "size_mib": "size", "bandwidth_mib_s": "bandwidth",
    "timeout_s": "migration-timeout",
}  # fmt: skip


class Client(Protocol):
    """What the commands need of `wire.client.Client`."""

    def request(self, body: m.Base) -> Any:
        """Sends a request and returns its result. Raises ChimeError."""

    def items(self, body: m.Base) -> Iterator[Any]:
        """All rows of a list, page after page. Raises ChimeError."""

    def wait_operation(
        self,
        operation_id: str,
        timeout_s: float,
        on_progress: Callable[[m.OperationView], None] | None = None,
    ) -> m.OperationView:
        """Waits until an operation has ended or the time is over, and returns it as it is then."""


@dataclass(frozen=True)
class Connection:
    """A client, and what its key file says of the server. `new_key` makes idempotency
    keys, `new_pair` key pairs (public, secret)."""

    client: Client
    endpoint: str
    server_public_key: str
    new_key: Callable[[], str]
    new_pair: Callable[[], tuple[str, str]]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Session:
    """One run of a command."""

    options: Options
    terminal: Terminal
    connection: Connection

    @property
    def client(self) -> Client:
        """The client of the server."""
        return self.connection.client

    def mutation(self, kind: type[m.Mutation], /, **values: Any) -> Any:
        """The body of a request that changes something, with a new idempotency key. Raises UsageError."""
        return body(kind, key=self.connection.new_key(), **values)


def body(kind: type[m.Base], /, **values: Any) -> Any:
    """A message body, checked as the server will check it. Raises UsageError: which value is wrong."""
    try:
        return msgspec.convert(values, type=kind)
    except msgspec.ValidationError as error:
        raise UsageError(_in_words(str(error), values)) from None


def _in_words(text: str, values: Mapping[str, Any]) -> str:
    """msgspec's message with the value, and patterns in words. It ends in ' - at `$.spec.disks[0].path`'."""
    said, _, path = text.partition(" - at `$.")
    path = path.rstrip("`")
    value: Any = values
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdigit():
            value = value[int(part)]
    for pattern, words in IN_WORDS.items():
        if said.endswith(f"matching regex {pattern!r}"):
            said = f"expected text {words}"
    said = said.replace("`", "")
    for kind, word in (("int", "a whole number"), ("float", "a number"), ("str", "text")):
        said = said.replace(f"Expected {kind}", f"expected {word}")
    name = path.rsplit(".", 1)[-1].split("[")[0]
    shown = repr(value) if len(repr(value)) <= 120 else repr(value)[:117] + "..."
    return f"{FIELD_WORDS.get(name, name).replace('_', ' ')} {shown}: {said[:1].lower() + said[1:]}"
