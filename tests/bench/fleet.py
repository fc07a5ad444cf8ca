"""A real chimed and a thousand agents that are no more than their messages: sockets with keys of their own.

The agents keep the protocol (hello, full report, heartbeats with growing numbers), so that the server takes the same
way as with real ones. They must cost little, since they share the machine with what is measured: a heartbeat is two
halves encoded once, with a number between them that always takes three bytes.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zmq

from chimed.core.state import rows as r
from chimed.store import Store
from chimed.transport import raise_file_limit
from tests.bench.processes import command, run, running
from wire import codec, curve, keys
from wire import messages as m
from wire.client import Client
from wire.errors import Unreachable
from wire.types import Desired, Observed

ANSWER_MS = 60_000
WINDOW = 2  # unanswered heartbeats of each agent: the server always has work
FIRST_SEQ, LAST_SEQ = 300, 65_000  # three bytes each in msgpack


class Server:
    """A chimed of the command line, with `nodes` registered nodes of `vms_each` VMs each in its database."""

    def __init__(
        self, directory: Path, nodes: int, vms_each: int = 0, address: str = "127.0.0.1", **settings: float
    ) -> None:
        self.log = directory / "chimed.log"
        self.endpoint = f"tcp://{address}:{free_port(address)}"
        self.database = directory / "state" / "chime.db"
        self._config = directory / "chimed.toml"
        lines = [f'endpoint = "{self.endpoint}"', f'state_dir = "{directory}/state"', 'log_format = "console"']
        lines += [f"{name} = {value}" for name, value in settings.items()]
        self._config.write_text("\n".join(lines) + "\n")
        run(command("chimed.main", "init", "--config", str(self._config)))
        self.keys = keys.load(directory / "state" / "server.key").pair()
        self.operator = keys.load(directory / "state" / "operator.key").pair()
        self.nodes = [(f"node-{number:04}", curve.new_pair()) for number in range(nodes)]
        self.vms = {name: [_vm(name, index) for index in range(vms_each)] for name, _ in self.nodes}
        self._fill()

    def _fill(self) -> None:
        rows: list[tuple[str, str, r.Row]] = []
        for name, pair in self.nodes:
            revision = 1 + len(self.vms[name])
            node = r.Node(name=name, public_key=pair.public, revision=revision, given=revision, created=1.0)
            rows.append(("nodes", name, node))
            rows += [("vms", vm.uuid, vm) for vm in self.vms[name]]
        with Store.open(self.database) as store:
            store.commit([r.Change(table, (key,), row) for table, key, row in rows], [])

    @contextlib.contextmanager
    def started(self) -> Iterator[int]:
        """Runs it; gives its process id once it answers."""
        with running(command("chimed.main", "--config", str(self._config)), self.log) as process, self.client() as ask:
            deadline = time.monotonic() + 60.0
            while True:
                try:
                    ask.request(m.ServerStatus(), 0.2)
                    break
                except Unreachable:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"chimed does not answer: {self.log.read_text()[-2000:]}") from None
            yield process.pid

    def bundle(self, number: int) -> keys.KeyFile:
        """What an agent needs to be that node."""
        name, pair = self.nodes[number]
        return keys.KeyFile(
            kind=keys.Kind.NODE, name=name, public_key=pair.public, secret_key=pair.secret,
            server_public_key=self.keys.public, endpoint=self.endpoint,
        )  # fmt: skip

    def client(self) -> Client:
        """An operator."""
        return Client(self.endpoint, self.keys.public, self.operator, 30.0)


class Agents:
    """Sockets of all nodes in one context, and what they say."""

    def __init__(self, endpoint: str, server_key: str, nodes: Iterable[tuple[str, curve.KeyPair]]) -> None:
        raise_file_limit()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 10_000)
        self.sockets: list[Any] = []
        self.names: list[str] = []
        for name, pair in nodes:
            self.names.append(name)
            self.sockets.append(self._connect(endpoint, server_key, pair))
        self._halves: list[tuple[bytes, bytes]] = []
        self._seq = FIRST_SEQ
        self.frame_bytes = self.answer_bytes = 0

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def _connect(self, endpoint: str, server_key: str, pair: curve.KeyPair) -> Any:
        one = self._context.socket(zmq.DEALER)
        one.setsockopt(zmq.RCVTIMEO, ANSWER_MS)
        one.setsockopt(zmq.SNDTIMEO, ANSWER_MS)
        one.curve_serverkey = server_key.encode()
        one.curve_publickey, one.curve_secretkey = pair.public.encode(), pair.secret.encode()
        one.connect(endpoint)
        return one

    def say_hello(self, vms: dict[str, list[r.Vm]]) -> None:
        """Opens every session and reports its VMs in full."""
        for name, one in zip(self.names, self.sockets, strict=True):
            one.send(codec.encode(_hello(name)))
        sessions = [self._answer(one, m.Welcome) for one in self.sockets]
        for name, one, session in zip(self.names, self.sockets, sessions, strict=True):
            one.send(codec.encode(_report(session, vms[name])))
        for one in self.sockets:
            self._answer(one, m.ReportAck)
        self._halves = [
            _halves(session, name, len(vms[name])) for session, name in zip(sessions, self.names, strict=True)
        ]
        self.frame_bytes = len(self._frame(0, self._seq))
        for index in range(len(self.sockets)):  # one heartbeat each, looked at: they must be taken as unchanged
            self.sockets[index].send(self._frame(index, self._seq))
            answer = self._answer(self.sockets[index], m.HeartbeatAck)
            if answer.report or answer.nonce != _nonce(sessions[index].session):
                raise RuntimeError(f"the server wants more than a heartbeat: {answer}")
            self.answer_bytes = len(codec.encode(answer))
        self._seq += 1

    def say_nothing(self, frame_bytes: int) -> None:
        """For a server that only echoes: frames of that size, and one to wait for each connection."""
        self._halves = [(bytes(frame_bytes - 2), b"")] * len(self.sockets)
        self.frame_bytes = frame_bytes
        for one in self.sockets:
            one.send(bytes(frame_bytes))
        for one in self.sockets:
            one.recv()

    def _answer(self, one: Any, kind: type[m.Base]) -> Any:
        while True:
            body = codec.decode(one.recv()).body
            if isinstance(body, kind):
                return body
            if not isinstance(body, m.Poke):
                raise RuntimeError(f"expected {kind.__name__}, the server answered {body}")

    def _frame(self, index: int, seq: int) -> bytes:
        head, tail = self._halves[index]
        return head + seq.to_bytes(2, "big") + tail

    def send_beat(self, index: int, later: int) -> None:
        """One heartbeat of one agent, `later` numbers after the last that all have sent."""
        self.sockets[index].send(self._frame(index, self._seq + later))

    def skip(self, numbers: int) -> None:
        """So many numbers are used up."""
        self._seq += numbers

    def beat(self, rounds: int) -> float:
        """Heartbeats of all, `rounds` each, `WINDOW` of each unanswered. Returns the seconds that it took."""
        if self._seq + rounds > LAST_SEQ:
            raise RuntimeError("more heartbeats than their numbers allow")
        pairs = list(zip(self.sockets, self._halves, strict=True))
        numbers = [(self._seq + step).to_bytes(2, "big") for step in range(rounds)]
        self._seq += rounds
        began = time.perf_counter()
        for step, number in enumerate(numbers):
            for one, (head, tail) in pairs:
                if step >= WINDOW:
                    one.recv()
                one.send(head + number + tail)
        for _ in range(min(WINDOW, rounds)):
            for one, _ in pairs:
                one.recv()
        return time.perf_counter() - began

    def beat_slowly(self, seconds: float, interval_s: float) -> int:
        """Heartbeats spread evenly, each agent one in `interval_s`. Returns how many."""
        began, sent = time.monotonic(), 0
        pause = interval_s / len(self.sockets)
        while time.monotonic() - began < seconds:
            index = sent % len(self.sockets)
            self.sockets[index].send(self._frame(index, self._seq + sent // len(self.sockets)))
            self.sockets[index].recv()
            sent += 1
            time.sleep(max(0.0, began + sent * pause - time.monotonic()))
        self._seq += sent // len(self.sockets) + 1
        return sent


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _boot_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def _nonce(session: str) -> str:
    return session[:16].rjust(16, "0")


def _vm(node: str, index: int) -> r.Vm:
    name = f"vm-{node[5:]}-{index:02}"
    spec = m.VmSpec(vcpus=2, memory_mib=4096, disks=(m.Disk(path=f"/srv/vm/{name}.qcow2", size_mib=20_480),))
    return r.Vm(
        uuid=_boot_id(name), name=name, spec=spec, node=node, epoch=1, desired=Desired.RUNNING, revision=2 + index,
        created=1.0,
    )  # fmt: skip


def _hello(name: str) -> m.Hello:
    host = m.HostFacts(hostname=name, vcpus=64, memory_mib=262_144, hypervisor="QEMU 7.2.0", agent_version="1.0.0")
    return m.Hello(
        versions=(1,), node=name, boot_id=_boot_id(name), incarnation="0123456789abcdef", nonce="0123456789abcdef",
        host=host,
    )  # fmt: skip


DIGEST = "0123456789abcdef"


def _report(session: m.Welcome, vms: list[r.Vm]) -> m.Report:
    seen = tuple(
        m.VmReport(
            uuid=vm.uuid, epoch=1, revision=vm.revision, observed=Observed.RUNNING, start_serial=1, name=vm.name
        )
        for vm in vms
    )
    return m.Report(
        session=session.session, seq=1, revision=session.revision, generation=session.generation, digest=DIGEST,
        full=True, vms=seen,
    )  # fmt: skip


def _halves(session: m.Welcome, name: str, vms: int) -> tuple[bytes, bytes]:
    """A heartbeat before and after the two bytes of its number."""
    body = m.Heartbeat(
        session=session.session, seq=FIRST_SEQ, nonce=_nonce(session.session), boot_id=_boot_id(name),
        incarnation="0123456789abcdef", revision=session.revision, digest=DIGEST,
        load=m.Load(cpu_percent=12.5, memory_available_mib=131_072, vms_running=vms),
    )  # fmt: skip
    head, _, tail = codec.encode(body).partition(b"\xcd" + FIRST_SEQ.to_bytes(2, "big"))
    return head + b"\xcd", tail
