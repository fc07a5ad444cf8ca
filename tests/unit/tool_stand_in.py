"""A stand-in for the client, and one call that runs `chime-tool` against it with captured streams."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from tools.config import Settings
from tools.main import run
from tools.session import Connection
from tools.terminal import Terminal
from wire import messages as m
from wire.codec import decode, encode
from wire.errors import ChimeError
from wire.verbs import TYPE_OF

SERVER_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
NODE_KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
NODE_SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
ENDPOINT = "tcp://10.0.0.1:7400"
VM_UUID = "6f1c7f9e-52a4-4c0e-9a53-0d8c7a1e2b3c"


def node(name: str = "n1", **changes: Any) -> dict[str, Any]:
    """A NodeView as it comes from the wire."""
    view = {
        "name": name, "admin_state": "enabled", "health": "normal", "reasons": [], "drain_evidence": None,
        "operation": None, "last_operation": None, "vms": 2, "vms_running": 2, "last_heartbeat_age_s": 3.2,
        "schedulable": True, "commandable": True, "address": "10.0.0.11", "vcpus": 16, "memory_mib": 65536,
        "vcpus_used": 4, "memory_used_mib": 4096, "cpu_percent": 7.0, "boot_id": None,
        "agent_version": "0.1.0", "faults": [], "public_key": NODE_KEY,
    }  # fmt: skip
    return view | changes


def vm(name: str = "web-1", **changes: Any) -> dict[str, Any]:
    """A VmView as it comes from the wire."""
    view = {
        "name": name, "uuid": VM_UUID, "node": "n1", "epoch": 3, "desired": "running", "observed": "running",
        "storage": "shared", "restarts": 0, "vcpus": 2, "memory_mib": 2048, "operation": None, "detail": "",
    }  # fmt: skip
    return view | changes


def operation(state: str = "running", **changes: Any) -> dict[str, Any]:
    """An OperationView as it comes from the wire."""
    view = {
        "id": "op-7", "kind": "drain", "subject": "n1", "state": state, "outcome": "", "actor": "ann",
        "steps": [{"name": "stop web-1", "state": "running", "detail": ""},
                  {"name": "stop web-2", "state": "pending", "detail": ""}],
        "created": 1000.0, "ended": None if state == "running" else 1004.0, "progress": 0.5,
    }  # fmt: skip
    return view | changes


def mutation(op: Any = None, **changes: Any) -> dict[str, Any]:
    """The result of a mutation."""
    return {"operation": op, "changed": True, "warnings": [], "plan": []} | changes


def event(number: int) -> dict[str, Any]:
    """An EventView as it comes from the wire."""
    return {"id": number, "time": 1000.0, "actor": "ann", "action": "drain", "subject": "n1",
            "text": f"why-{number}", "operation": None}  # fmt: skip


class StandIn:
    """Answers requests from `results` (by verb: a value, an exception, or a function of the body).

    Every body passes through the real codec, so that one the server would refuse fails here too."""

    def __init__(self, results: dict[str, Any] | None = None, states: list[Any] | None = None) -> None:
        self.results = results or {}
        self.states = states or []
        self.sent: list[m.Base] = []
        self.waited_s: list[float] = []

    def request(self, body: m.Base) -> Any:
        self.sent.append(decode(encode(body, "c1")).body)
        result = self.results[TYPE_OF[type(body)]]
        if isinstance(result, Callable):  # type: ignore[arg-type]
            result = result(body)
        if isinstance(result, BaseException):
            raise result
        return result

    def items(self, body: m.Base) -> Iterator[Any]:
        yield from self.request(body)["items"]

    def wait_operation(
        self,
        operation_id: str,
        timeout_s: float,
        on_progress: Callable[[m.OperationView], None] | None = None,
    ) -> m.OperationView:
        self.waited_s.append(timeout_s)
        seen = None
        for state in self.states:
            if isinstance(state, BaseException):
                raise state
            seen = msgspec.convert(state, m.OperationView)
            if on_progress:
                on_progress(seen)
        assert seen is not None
        return seen


class Stream(io.StringIO):
    """A stream in memory that may claim to be a terminal."""

    def __init__(self, text: str = "", terminal: bool = False) -> None:
        super().__init__(text)
        self._terminal = terminal

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return self._terminal


class Ran(NamedTuple):
    """How a command ended. `sent`: the bodies, in order."""

    code: int
    out: str
    err: str
    sent: list[Any]
    pauses_s: list[float]


class _Terminal(Terminal):
    """Does not sleep; the pause after the last is Ctrl-C."""

    pauses = 0
    pauses_s: list[float]

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        if len(self.pauses_s) >= self.pauses:
            raise KeyboardInterrupt


def tool(
    line: str | list[str],
    client: StandIn | None = None,
    *,
    answer: str | None = None,
    out_terminal: bool = False,
    environ: dict[str, str] | None = None,
    pauses: int = 1,
) -> Ran:
    """Runs a command line. With `answer` standard input and error are a terminal on which that is typed."""
    client = client or StandIn()
    interactive = answer is not None
    stdin, out, err = Stream(answer or "", interactive), Stream("", out_terminal), Stream("", interactive)
    keys = iter(f"key-{i}" for i in range(100))

    def connect(settings: Settings) -> Connection:
        return Connection(
            client,
            settings.server or ENDPOINT,
            SERVER_KEY,
            lambda: next(keys),
            lambda: (NODE_KEY, NODE_SECRET),
        )

    settings = {"CHIME_KEY": "/nowhere/operator.key", "HOME": "/nowhere", "TZ": "UTC"} | (environ or {})
    argv = line.split() if isinstance(line, str) else line
    terminal = _Terminal(stdin, out, err, settings)
    terminal.pauses, terminal.pauses_s = pauses, []
    code = run(argv, terminal, settings, connect)
    return Ran(code, out.getvalue(), err.getvalue(), client.sent, terminal.pauses_s)


def refused(code: str, text: str = "no") -> ChimeError:
    """What the server refuses with."""
    return ChimeError(code, text)
