"""An operator with a client that repeats a request under its key until it is answered, as `chime-tool` does."""

from __future__ import annotations

import msgspec

from tests.fakes.names import key_of
from tests.sim.engine import Engine, Violation
from tests.sim.network import Network
from tests.sim.story import in_words
from wire import codec
from wire import messages as m

NAME = "op"
ANSWER_S = 5.0
PATIENCE_S = 3600.0


class Request:
    """`text`: what was typed. `answer` None: none has come yet, nobody knows whether it took effect."""

    def __init__(self, text: str, body: m.Mutation, asked: float) -> None:
        self.text, self.body, self.asked = text, body, asked
        self.answer: m.Ok | m.ErrorBody | None = None
        self.answered = float("inf")

    @property
    def operation(self) -> str:
        """The id of the operation that it began, if it did."""
        result = self.answer.result if isinstance(self.answer, m.Ok) else None
        operation = result.get("operation") if result else None
        return operation["id"] if operation else ""


class Operator:
    """All requests of a run, in order."""

    def __init__(self, engine: Engine, network: Network) -> None:
        self._engine, self._network = engine, network
        self.requests: list[Request] = []
        self._open: dict[str, Request] = {}
        self._socket = network.open(NAME, key_of(NAME), self._on_frame, lambda: None)

    def request(self, text: str, kind: type[m.Mutation], **fields: object) -> Request:
        """Sends a request with a new key, and goes on until an answer comes."""
        key = f"k{len(self.requests) + 1}"
        request = Request(text, kind(key=key, **fields), self._engine.now)
        self.requests.append(request)
        self._open[key] = request
        self._send(request)
        return request

    @property
    def unanswered(self) -> set[str]:
        """Keys of requests without an answer yet."""
        return set(self._open)

    def again(self, request: Request) -> None:
        """The same request once more, with its key."""
        self._open[request.body.key] = request
        self._send(request)

    def _send(self, request: Request) -> None:
        key = request.body.key
        if key not in self._open or self._engine.now - request.asked > PATIENCE_S:
            return
        self._engine.story.tell(self._engine.now, NAME, f"-> {in_words(request.body)}")
        self._network.send_up(self._socket, codec.encode(request.body, key))
        self._engine.after(ANSWER_S * self._engine.rng.uniform(1.0, 2.0), self._send, request)

    def _on_frame(self, frame: bytes) -> None:
        _, key, body = codec.decode(frame)
        request = self._open.pop(key, None)
        if request is None or not isinstance(body, m.Ok | m.ErrorBody):
            return
        self._engine.story.tell(self._engine.now, NAME, f"<- {in_words(body)} (answers {in_words(request.body)})")
        if isinstance(body, m.ErrorBody) and body.code == "storage-unavailable":
            self._open[key] = request  # it is asked again
            return
        if isinstance(request.answer, m.Ok) and body != request.answer:
            raise Violation("S3", f"{request.text!r} ({key}) was answered otherwise before: {_plain(body)}", "")
        if request.answer is None:
            request.answer, request.answered = body, self._engine.now


def _plain(body: m.Base) -> object:
    return msgspec.to_builtins(body)
