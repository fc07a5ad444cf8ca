"""Peers of a server, written from docs/protocol.md alone with pyzmq and msgpack: nothing of Chime is imported here.

`Peer` sends frames and reads answers. `Agent` is a whole agent (sections 5 and 6) in a thread, its hypervisor a dict.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

import msgpack
import zmq

Keys = dict[str, str]
Body = dict[str, Any]


def frame(kind: str, body: Any, correlation_id: str = "", version: int = 1) -> bytes:
    """One frame of the protocol."""
    return bytes(msgpack.packb({"v": version, "t": kind, "id": correlation_id, "b": body}))


class Refused(Exception):
    """The server answered with `error`."""

    def __init__(self, body: Body) -> None:
        super().__init__(f"{body['code']}: {body['message']}")
        self.body = body
        self.code = body["code"]


class Peer:
    """A DEALER with the keys of a key file. `routing_id`: what section 1 forbids."""

    def __init__(self, keys: Keys, routing_id: bytes | None = None, **options: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.immediate = 1
        self.socket.sndtimeo = 10_000
        for name, value in options.items():
            setattr(self.socket, name, value)
        if routing_id is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.curve_serverkey = keys["server_public_key"].encode()
        self.socket.curve_publickey = keys["public_key"].encode()
        self.socket.curve_secretkey = keys["secret_key"].encode()
        self.socket.connect(keys["endpoint"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._context.destroy(linger=0)

    def send(self, payload: bytes) -> None:
        """Sends one frame as it is."""
        self.socket.send(payload)

    def receive(self, timeout_s: float = 10.0) -> Body | None:
        """The next message, or None when none comes in time."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        answer: Body = msgpack.unpackb(self.socket.recv())
        return answer

    def request(self, kind: str, body: Body, timeout_s: float = 10.0) -> Any:
        """The `result` of a request. Raises Refused, or TimeoutError."""
        answer = self.ask(kind, body, timeout_s)
        if answer["t"] == "error":
            raise Refused(answer["b"])
        return answer["b"]["result"]

    def ask(self, kind: str, body: Body, timeout_s: float = 10.0) -> Body:
        """The answer, whatever it is; what does not belong to the request is dropped. Raises TimeoutError."""
        correlation_id = secrets.token_hex(8)
        self.send(frame(kind, body, correlation_id))
        return self.answer(correlation_id, timeout_s)

    def answer(self, correlation_id: str, timeout_s: float = 10.0) -> Body:
        """Waits for the message with this correlation id. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if message is not None and message["id"] == correlation_id:
                return message
        raise TimeoutError(f"no answer to {correlation_id!r}")

    def change(self, kind: str, **body: Any) -> Any:
        """A request with a new idempotency key."""
        return self.request(kind, {"key": secrets.token_hex(16), **body})

    def finish(self, result: Body, timeout_s: float = 20.0) -> Body:
        """Waits for the operation in the result of a request, as section 8 says, and returns it."""
        deadline, pause_s = time.monotonic() + timeout_s, 0.05
        while time.monotonic() < deadline:
            operation: Body = self.request("op.show", {"id": result["operation"]["id"]})["operation"]
            if operation["state"] != "running":
                return operation
            time.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)
        raise TimeoutError(f"operation {operation}")


class Agent(threading.Thread):
    """An agent. `machines` is its hypervisor: uuid -> running. `fail`: why a start fails, by VM name. `beat_s`: more
    heartbeats than the server asks for."""

    ANSWER_S = 5.0

    def __init__(self, keys: Keys, boot_id: str | None = None, vcpus: int = 4, memory_mib: int = 8192,
                 beat_s: float = 60.0) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.beat_s = beat_s
        self.keys, self.node = keys, keys["name"]
        self.boot_id, self.incarnation = boot_id or str(uuid.uuid4()), secrets.token_hex(8)
        self.host = {"hostname": self.node, "vcpus": vcpus, "memory_mib": memory_mib}
        self.machines: dict[str, bool] = {}
        self.fail: dict[str, str] = {}
        self.resets: list[str] = []
        self.acks = self.missed = self.sessions = 0
        self.slowest_ack_s = 0.0
        self.errors: list[str] = []
        self.crash: BaseException | None = None
        self.tap: Callable[[bytes], None] = lambda _: None
        # What section 6 wants kept for ever.
        self._held: dict[str, Body] = {}
        self._highest: dict[str, int] = {}
        self._tombs: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._results: dict[str, Body] = {}
        self._applied = self._generation = 0
        self._order: Body = {"admin_state": "enabled", "drain_serial": 0, "drain_graceful_s": 0}
        self._confirmed = False
        self._stopping = threading.Event()
        self._peer: Peer | None = None

    def stop(self) -> None:
        """Says bye and ends."""
        self._stopping.set()
        self.join(10)
        assert not self.is_alive()
        if self.crash is not None:
            raise self.crash

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._connect()
                self._converse()
        except BaseException as error:
            self.crash = error
        finally:
            if self._peer is not None:
                self._peer.close()

    # --- connection ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = Peer(self.keys, rcvhwm=1000, sndhwm=1000)
        self._session = ""
        self._outstanding: Body | None = None  # the pull
        self._pages: list[Body] = []
        self._report_sent: Body | None = None
        self._next_report = 0.0
        self._full = True
        self._beats: dict[str, float] = {}
        self._beat_seq = self._report_seq = 0
        self._acked_digest = ""
        self._next_beat = self._next_hello = 0.0

    def _say(self, kind: str, body: Body) -> None:
        assert self._peer is not None
        payload = frame(kind, body)
        self.tap(payload)
        self._peer.send(payload)

    def _converse(self) -> None:
        """Until the connection must be made anew."""
        assert self._peer is not None
        while not self._stopping.is_set():
            now = time.monotonic()
            if not self._session:
                if now >= self._next_hello:
                    self._hello(now)
            elif self._outstanding is not None and now - self._outstanding["at"] > self.ANSWER_S:
                self._pull(0 if not self._confirmed else self._applied)
            elif now >= self._next_beat:
                if any(now - sent > 3 * self._heartbeat_s for sent in self._beats.values()):
                    self.missed += 1
                    return
                self._beat(now)
            message = self._peer.receive(0.02)
            while message is not None:
                self._on_message(message)
                message = self._peer.receive(0)
            if self._session and self._confirmed:
                self._report()
        if self._session:
            self._say("bye", {"session": self._session})

    def _hello(self, now: float) -> None:
        self._nonce, self._next_hello = secrets.token_hex(8), now + self.ANSWER_S
        self._say("hello", {"versions": [1], "node": self.node, "boot_id": self.boot_id, "nonce": self._nonce,
                            "incarnation": self.incarnation, "host": self.host})  # fmt: skip

    def _pull(self, since: int) -> None:
        if self._outstanding is None or time.monotonic() - self._outstanding["at"] > self.ANSWER_S:
            self._outstanding = {"nonce": secrets.token_hex(8), "since": since, "at": time.monotonic()}
            self._say("pull", {"session": self._session, "nonce": self._outstanding["nonce"], "since": since})

    def _beat(self, now: float) -> None:
        self._beat_seq += 1
        nonce = secrets.token_hex(8)
        self._beats[nonce], self._next_beat = now, now + min(self._heartbeat_s, self.beat_s)
        digest = self._report_sent["digest"] if self._report_sent else self._acked_digest
        revision = self._applied if self._confirmed else 0
        self._say("heartbeat", {"session": self._session, "seq": self._beat_seq, "nonce": nonce, "digest": digest,
                                "boot_id": self.boot_id, "incarnation": self.incarnation, "revision": revision,
                                "load": {"vms_running": sum(self.machines.values())}})  # fmt: skip

    # --- messages of the server ---------------------------------------------------------------------------------------

    def _on_message(self, message: Body) -> None:
        kind, body = message["t"], message["b"]
        if kind == "error":
            self.errors.append(body["code"])
            if body["code"] == "stale-session":
                self._session, self._next_hello = "", 0.0
            elif self._session and body["code"] == "overloaded":  # it says it again later
                self._report_sent, self._full = None, True
                self._next_report = time.monotonic() + body["details"].get("retry_after_s", 1.0)
            elif not self._session:
                wait_s = body["details"].get("retry_after_s", 0.2) if body["retriable"] else 60.0
                self._next_hello = time.monotonic() + wait_s
        elif kind == "welcome":
            if not self._session and body["nonce"] == self._nonce:
                self._welcome(body)
        elif self._session and body.get("session") == self._session:
            handlers = {"heartbeat-ack": self._on_ack, "inventory": self._on_inventory,
                        "report-ack": self._on_report_ack, "poke": lambda _: self._pull(self._applied)}  # fmt: skip
            handlers[kind](body)

    def _welcome(self, body: Body) -> None:
        self._session, self._heartbeat_s = body["session"], body["heartbeat_s"]
        self.sessions += 1
        self._confirmed = False
        self._pull(0)

    def _on_ack(self, body: Body) -> None:
        sent = self._beats.pop(body["nonce"], None)
        if sent is None:
            return
        self.acks += 1
        self.slowest_ack_s = max(self.slowest_ack_s, time.monotonic() - sent)
        if body["revision"] > self._applied:
            self._pull(self._applied if self._confirmed else 0)
        self._full = self._full or body["report"]

    def _on_inventory(self, body: Body) -> None:
        if self._outstanding is None or body["nonce"] != self._outstanding["nonce"]:
            return
        self._outstanding = None
        self._pages.append(body)
        if body["more"]:
            self._pull(body["revision"])
            return
        pages, self._pages = self._pages, []
        for page in pages:
            self._apply(page)
        self._full = self._full or not self._confirmed or self._generation != body["generation"]
        self._applied, self._generation = body["revision"], body["generation"]
        self._order, self._confirmed = body["node"], True
        self._act()

    def _on_report_ack(self, body: Body) -> None:
        sent = self._report_sent
        if sent is None or body["seq"] != sent["seq"]:
            return
        self._report_sent, self._acked_digest = None, sent["digest"]
        for result in sent["results"]:
            self._results[result["id"]]["acked"] = True
        for release in sent["released"]:
            if self._unconfirmed.get(release["uuid"]) == release["epoch"]:
                del self._unconfirmed[release["uuid"]]

    # --- the hypervisor -----------------------------------------------------------------------------------------------

    _unconfirmed: dict[str, int]

    def _apply(self, page: Body) -> None:
        self._unconfirmed = getattr(self, "_unconfirmed", {})
        for vm in page["vms"]:
            if vm["epoch"] < self._highest.get(vm["uuid"], 0) or vm["epoch"] <= self._tombs.get(vm["uuid"], 0):
                continue
            old = self._held.get(vm["uuid"])
            if old is None or old["start_serial"] != vm["start_serial"]:
                self._failed.pop(vm["uuid"], None)
            self._held[vm["uuid"]], self._highest[vm["uuid"]] = vm, vm["epoch"]
        for release in page["releases"]:
            name, epoch = release["uuid"], release["epoch"]
            self._tombs[name] = max(epoch, self._tombs.get(name, 0))
            if self._held.get(name, {"epoch": 0})["epoch"] <= epoch:
                self._held.pop(name, None)
                self.machines.pop(name, None)
            self._unconfirmed[name] = epoch
        for command in page["commands"]:
            if command["id"] not in self._results:
                self._results[command["id"]] = {**self._carry_out(command), "acked": False}

    def _carry_out(self, command: Body) -> Body:
        held = self._held.get(command["uuid"])
        if command["kind"] != "reboot" or held is None or held["epoch"] != command["epoch"]:
            return {"id": command["id"], "outcome": "rejected", "detail": "not possible"}
        self.resets.append(command["uuid"])
        return {"id": command["id"], "outcome": "done", "detail": ""}

    def _act(self) -> None:
        """The levels: what should run runs, nothing else does."""
        for name, vm in self._held.items():
            wanted = vm["desired"] == "running" and self._order["admin_state"] != "drained"
            if wanted and not self.machines.get(name) and name not in self._failed:
                if why := self.fail.get(vm["name"]):
                    self._failed[name] = why
                else:
                    self.machines[name] = True
            elif not wanted:
                self.machines[name] = False

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        if self._report_sent is not None or self._outstanding is not None or time.monotonic() < self._next_report:
            return
        vms = self.vm_reports()
        drain = None
        if self._order["admin_state"] == "drained":
            running = [name for name, on in self.machines.items() if on]
            drain = {"drain_serial": self._order["drain_serial"], "boot_id": self.boot_id, "clean": not running,
                     "running": running}  # fmt: skip
        released = [{"uuid": name, "epoch": epoch} for name, epoch in self._unconfirmed.items()]
        results = [{k: v for k, v in r.items() if k != "acked"} for r in self._results.values() if not r["acked"]]
        digest = hashlib.sha256(repr((vms, drain)).encode()).hexdigest()[:16]
        if not (self._full or digest != self._acked_digest or released or results):
            return
        self._full = False
        self._report_seq += 1
        body = {"session": self._session, "seq": self._report_seq, "revision": self._applied, "digest": digest,
                "generation": self._generation, "full": True, "vms": vms, "released": released, "results": results,
                "drain": drain}  # fmt: skip
        self._report_sent = body
        self._say("report", body)

    def vm_reports(self) -> list[Body]:
        """What it says of VMs."""
        return [self._vm_report(name, vm) for name, vm in self._held.items()]

    def _vm_report(self, name: str, vm: Body) -> Body:
        failed = self._failed.get(name, "")
        observed = "failed" if failed else "running" if self.machines.get(name) else "stopped"
        return {"uuid": name, "epoch": self._highest[name], "revision": vm["revision"], "observed": observed,
                "start_serial": vm["start_serial"], "problem": "start-failed" if failed else "", "detail": failed,
                "name": vm["name"]}  # fmt: skip
