"""One key at full speed, as a process of its own: `python -m tests.bench.attack KIND KEY_FILE SECONDS`.

KIND: `frames` (as large as allowed, on 150 connections), `parts` (messages of a thousand frames each), `reports` (as
many VMs as a frame holds, other ones each time), `copies` (reports of VMs that others own), `faults` (heartbeats with
other faults each time), `events`, `connections`, `handshakes` (connections without a word), `forbidden`, `requests` (an
operator's, on 16 connections), `deaf` (the same without reading an answer). It prints how much it sent. Whatever it is
answered it goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import zmq

from wire import codec, keys
from wire import messages as m
from wire.types import Observed, Severity

ADDRESS = "127.0.0.66"  # its own, as an attacker has
CONNECTIONS = 150
MESSAGES_OF_PARTS = 1000
VMS, VMS_EACH = 2000, 20
EVENTS = 5000


class Attacker:
    """Sockets of one key."""

    def __init__(self, file: keys.KeyFile, seconds: float) -> None:
        self.file, self.ends, self.sent = file, time.monotonic() + seconds, 0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 20_000)

    def connect(self, **options: int) -> zmq.Socket[bytes]:
        """A connection that waits for nothing."""
        one = self.context.socket(zmq.DEALER)
        for name, value in {"linger": 0, "sndhwm": 8, "rcvhwm": 8, "immediate": 1, **options}.items():
            setattr(one, name, value)
        one.curve_serverkey = self.file.server_public_key.encode()
        one.curve_publickey, one.curve_secretkey = self.file.public_key.encode(), self.file.secret_key.encode()
        one.connect(self.file.endpoint.replace("tcp://", f"tcp://{ADDRESS}:0;"))
        return one

    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.ends

    def send(self, one: zmq.Socket[bytes], payload: bytes) -> None:
        """Sends if there is room, and drops what was answered."""
        with contextlib.suppress(zmq.Again):
            while True:
                one.recv(zmq.NOBLOCK)
        with contextlib.suppress(zmq.Again):
            one.send(payload, zmq.NOBLOCK)
            self.sent += 1

    def pour(self, sockets: list[zmq.Socket[bytes]], payload: Callable[[], bytes]) -> None:
        """As much as goes, on all of them."""
        while self.goes_on():
            before = self.sent
            for one in sockets:
                self.send(one, payload())
            if self.sent == before:
                time.sleep(0.001)

    def session(self) -> tuple[zmq.Socket[bytes], m.Welcome, str]:
        """A session of the node, whenever it is given one."""
        one, boot = self.connect(), str(uuid.uuid5(uuid.NAMESPACE_DNS, self.file.name))
        one.rcvtimeo = one.sndtimeo = 3000
        while self.goes_on():
            hello = m.Hello(versions=(1,), node=self.file.name, boot_id=boot, incarnation="i", nonce="n")
            with contextlib.suppress(zmq.Again):
                one.send(codec.encode(hello))
                answer = codec.decode(one.recv()).body
                if isinstance(answer, m.Welcome):
                    return one, answer, boot
                time.sleep(0.1)
        sys.exit("no session")


def nothing(attacker: Attacker) -> None:
    """What the others see without an attack."""
    time.sleep(max(0.0, attacker.ends - time.monotonic()))


def frames(attacker: Attacker) -> None:
    payload = os.urandom(codec.MAX_FRAME_BYTES)
    attacker.pour([attacker.connect() for _ in range(CONNECTIONS)], lambda: payload)


def parts(attacker: Attacker) -> None:
    one, part = attacker.connect(), os.urandom(1_000_000)
    while attacker.goes_on():
        if not one.poll(100, zmq.POLLOUT):
            continue
        for _ in range(MESSAGES_OF_PARTS):
            one.send(part, zmq.SNDMORE)
            attacker.sent += 1
        one.send(b"")


def reports(attacker: Attacker) -> None:
    """Also what cannot be told apart from honest work, but for how often it comes."""
    _report_vms(attacker, lambda seq, i: str(uuid.UUID(int=(seq << 64) + i)))


def copies(attacker: Attacker) -> None:
    """It claims to run what the others run, now the one half and now the other."""
    half = VMS // VMS_EACH
    _report_vms(attacker, lambda seq, i: vm_uuid(seq % 2 * half + i // VMS_EACH, i % VMS_EACH))


def vm_uuid(node: int, index: int) -> str:
    """The VM of that number of the node of that number (`tests.bench.fleet`)."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"vm-{node:04}-{index:02}"))


def _report_vms(attacker: Attacker, name: Callable[[int, int], str]) -> None:
    one, welcome, _ = attacker.session()
    seq = 0

    def payload() -> bytes:
        nonlocal seq
        seq += 1
        vms = tuple(
            m.VmReport(uuid=name(seq, i), epoch=1, revision=0, observed=Observed.RUNNING, name="n" * 100,
                       problem="io-error", detail="d" * 200)
            for i in range(VMS)
        )  # fmt: skip
        return codec.encode(_report(welcome, seq, vms=vms))

    attacker.pour([one], payload)


def faults(attacker: Attacker) -> None:
    one, welcome, boot = attacker.session()
    seq = 0

    def payload() -> bytes:
        nonlocal seq
        seq += 1
        fault = m.Fault(code=f"fault-{seq}", severity=Severity.CRITICAL, text="x" * 200)
        return codec.encode(
            m.Heartbeat(session=welcome.session, seq=seq, nonce="n", boot_id=boot, incarnation="i", revision=0,
                        digest="", faults=(fault,))
        )  # fmt: skip

    attacker.pour([one], payload)


def events(attacker: Attacker) -> None:
    one, welcome, _ = attacker.session()
    seq = 0

    def payload() -> bytes:
        nonlocal seq
        seq += 1
        lines = tuple(m.AgentEvent(id=f"{seq}-{i}", code="spam", text="x" * 100) for i in range(EVENTS))
        return codec.encode(_report(welcome, seq, events=lines))

    attacker.pour([one], payload)


def _report(welcome: m.Welcome, seq: int, **fields: Any) -> m.Report:
    return m.Report(
        session=welcome.session, seq=seq, revision=0, generation=welcome.generation, digest=f"{seq}", full=True,
        **fields,
    )  # fmt: skip


def connections(attacker: Attacker) -> None:
    payload, held = codec.encode(m.Bye(session="x")), []
    while attacker.goes_on():
        held.append(attacker.connect())
        if held[-1].poll(20, zmq.POLLOUT):
            attacker.send(held[-1], payload)
        if len(held) > 1000:
            held.pop(0).close()


def handshakes(attacker: Attacker) -> None:
    held = []
    while attacker.goes_on():
        held.append(attacker.connect())
        attacker.sent += 1
        time.sleep(0.0005)
        if len(held) > 4000:
            held.pop(0).close()


def forbidden(attacker: Attacker) -> None:
    payload = codec.encode(m.NodeList(), "x")
    attacker.pour([attacker.connect()], lambda: payload)


def requests(attacker: Attacker) -> None:
    payload = codec.encode(m.VmList(limit=1000), "x")
    attacker.pour([attacker.connect() for _ in range(16)], lambda: payload)


def deaf(attacker: Attacker) -> None:
    """An operator who asks for much and reads nothing."""
    payload = codec.encode(m.VmList(limit=1000), "x")
    sockets = [attacker.connect(rcvhwm=1, rcvbuf=4096) for _ in range(16)]
    while attacker.goes_on():
        for one in sockets:
            with contextlib.suppress(zmq.Again):
                one.send(payload, zmq.NOBLOCK)
                attacker.sent += 1
        time.sleep(0.001)


KINDS: dict[str, Callable[[Attacker], None]] = {
    kind.__name__: kind
    for kind in (
        nothing, frames, parts, faults, events, connections, handshakes, forbidden, requests, deaf, reports, copies
    )
}  # fmt: skip

if __name__ == "__main__":
    os.nice(10)  # it would have a machine of its own
    attacker = Attacker(keys.load(sys.argv[2]), float(sys.argv[3]))
    KINDS[sys.argv[1]](attacker)
    print(attacker.sent, flush=True)
    os._exit(0)
