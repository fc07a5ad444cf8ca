"""Attacks on a real chimed while an agent beats and an operator lists: neither may notice, and memory stays bounded.

One server serves all tests of this module. After each of them the agent must have missed no acknowledgement, the
operator no answer, and the server must be alive; at the end its memory must be about what it was.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import secrets
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from chimed.history import PRUNE_STEP
from tests.integration.plain_peer import Agent, Body, Keys, Peer, Refused, frame
from tests.integration.real_server import ROOT, Server, token, until

VECTORS = json.loads((ROOT / "wire/vectors/invalid.json").read_text())
VALID = json.loads((ROOT / "wire/vectors/valid.json").read_text())
ANSWERS_KEPT = 100
TIMES = {"heartbeat_s": 2.0, "challenge_s": 1.8}  # the machine is small and shared; an agent gives up after 6 s
PATIENCE_S = 6.0
GROWTH_MIB = 96.0


class Lister(threading.Thread):
    """An operator that lists nodes all the time. `slowest_s`: the longest that it waited for an answer."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(daemon=True)
        self.keys, self.count, self.slowest_s, self.problem = keys, 0, 0.0, ""
        self._stopping = threading.Event()

    def run(self) -> None:
        with Peer(self.keys) as peer:
            while not self._stopping.wait(0.05):
                started = time.monotonic()
                try:
                    assert any(row["name"] == "steady" for row in peer.request("node.list", {})["items"])
                except Exception as error:
                    self.problem = f"{type(error).__name__}: {error}"
                    return
                self.count += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def stop(self) -> None:
        self._stopping.set()
        self.join(15)


class Scene:
    """The server under attack, and those who must not notice."""

    def __init__(self, directory: Path) -> None:
        self.server = Server(directory, answers_kept=ANSWERS_KEPT, **TIMES)
        self.server.start()
        self.admin = self.server.new_peer()
        self.agent = Agent(self.server.add_node(self.admin, "steady"), beat_s=0.5)
        self.agent.start()
        self.lister = Lister(self.server.add_operator(self.admin, "lister"))
        self.lister.start()
        self.node_keys = self.server.add_node(self.admin, "hostile")
        self.operator_keys = self.server.add_operator(self.admin, "mallory")
        until(lambda: self.agent.acks and self.lister.count, "the agent and the operator are served")
        self.rss_mib = self.server.rss_mib()
        self.begin()

    def begin(self) -> None:
        """A test begins: what was before is not its fault."""
        self.before = (self.agent.sessions, self.agent.missed)
        self.agent.errors.clear()
        self.agent.slowest_ack_s = self.lister.slowest_s = 0.0

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.admin.request("server.status", {})["counters"]
        return counters

    def active_alarms(self) -> set[tuple[str, str]]:
        return {(a["code"], a["subject"]) for a in self.admin.request("alarm.list", {})["items"]}

    def check(self) -> None:
        """Nobody noticed, and both are served now."""
        acks, lists = self.agent.acks, self.lister.count
        until(lambda: self.agent.acks > acks and self.lister.count > lists, "both are served", 5)
        assert self.server.process is not None and self.server.process.poll() is None
        assert (self.agent.sessions, self.agent.missed) == self.before, "the agent had to connect again"
        assert (self.agent.errors, self.agent.crash) == ([], None)
        assert self.lister.problem == ""
        assert self.agent.slowest_ack_s < PATIENCE_S
        assert self.lister.slowest_s < PATIENCE_S
        assert self.server.rss_mib() - self.rss_mib < GROWTH_MIB

    def close(self) -> None:
        self.lister.stop()
        self.agent.stop()
        self.admin.close()
        self.server.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    scene = Scene(tmp_path_factory.mktemp("attacks"))
    try:
        yield scene
    finally:
        scene.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Traceback" not in scene.server.log.read_text()


@pytest.fixture
def scene(whole: Scene) -> Iterator[Scene]:
    whole.begin()
    yield whole
    whole.check()


def hello(node: str, **changes: Any) -> Body:
    body = {"versions": [1], "node": node, "boot_id": str(uuid.uuid4()), "incarnation": token(), "nonce": token()}
    return {**body, **changes}


def join(peer: Peer, node: str, **changes: Any) -> Body:
    """The welcome of a session. A boot id of its own each time is a clone: it keeps trying, as it must."""
    body = hello(node, **changes)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        answer = peer.ask("hello", {**body, "nonce": token()})
        if answer["t"] == "welcome":
            return {**body, **dict(answer["b"])}
        assert answer["b"]["code"] == "node-busy", answer
        time.sleep(answer["b"]["details"]["retry_after_s"])
    raise TimeoutError("never admitted")


def heartbeat(session: Body, seq: int, **changes: Any) -> Body:
    kept = {name: session[name] for name in ("session", "boot_id", "incarnation")}
    return {**kept, "seq": seq, "nonce": token(), "revision": 0, "digest": "", **changes}


# --- frames -----------------------------------------------------------------------------------------------------------


def payload_of(vector: Body) -> bytes:
    if "hex" in vector:
        return bytes.fromhex(vector["hex"])
    parts = [part if isinstance(part, str) else part["repeat"] * part["times"] for part in vector["parts"]]
    return bytes.fromhex("".join(parts))


def readable_id(payload: bytes) -> str | None:
    """The correlation id, if an ordinary msgpack library reads the frame; None when it cannot say."""
    try:
        found = msgpack.unpackb(payload, strict_map_key=False)["id"]
    except Exception:
        return None
    return found if isinstance(found, str) and len(found) <= 64 else None


@pytest.mark.parametrize("role", ["agent", "operator"])
def test_every_invalid_vector_is_refused_and_counted(scene: Scene, role: str) -> None:
    before = scene.counters()
    expected: dict[str, int] = {}
    with Peer(scene.node_keys if role == "agent" else scene.operator_keys) as peer:
        for vector in VECTORS:
            payload = payload_of(vector)
            peer.send(payload)
            answer = peer.receive()
            assert answer is not None, vector["name"]
            assert (answer["v"], answer["t"], answer["b"]["code"]) == (1, "error", vector["code"]), vector["name"]
            if vector["code"] != "bad-frame":
                assert answer["id"] == readable_id(payload), vector["name"]
            assert answer["b"]["message"].isprintable() and len(answer["b"]["message"]) < 500
            expected[vector["code"]] = expected.get(vector["code"], 0) + 1
        assert peer.receive(0) is None
    after = scene.counters()
    for code, count in expected.items():
        assert after[f"refused-{code}"] - before.get(f"refused-{code}", 0) >= count


def test_many_frames_are_dropped_whole(scene: Scene) -> None:
    before = scene.counters().get("many-frames", 0)
    good = frame("server.status", {}, "inside")
    with Peer(scene.operator_keys) as peer:
        for parts in ([b"", good], [good, good], [b""] * 500, [good, b""], [b"x" * 100_000] * 20):
            peer.socket.send_multipart(parts)
        assert peer.ask("server.status", {})["t"] == "ok"
        assert peer.receive(0) is None
    assert scene.counters()["many-frames"] - before == 5


def test_a_frame_too_large_ends_only_its_connection(scene: Scene) -> None:
    before = scene.server.rss_mib()
    for size in (2 << 20, 64 << 20):
        with Peer(scene.operator_keys) as peer:
            peer.send(b"\0" * size)
            peer.socket.linger = 1000
            assert peer.receive(0.3) is None
    assert scene.server.rss_mib() - before < 32
    with Peer(scene.operator_keys) as peer:
        assert peer.ask("server.status", {})["t"] == "ok"


def test_random_bytes_and_broken_frames(scene: Scene) -> None:
    """5,000 frames: random bytes, and valid frames that were cut, flipped, or glued. A node may not send as many."""
    dice = random.Random(7)
    good = [bytes.fromhex(vector["hex"]) for vector in VALID]
    before = sum(count for name, count in scene.counters().items() if name.startswith(("refused-", "over-budget")))
    with Peer(scene.operator_keys, sndhwm=100_000) as operator, Peer(scene.node_keys, sndhwm=100_000) as agent:
        for number in range(5_000):
            payload = _broken(dice, dice.choice(good))
            (operator, agent)[number % 2].send(payload)
        for peer in (operator, agent):
            peer.send(frame("x", {}, "last"))

        def refused() -> int:
            told = ("refused-", "over-budget")
            return sum(count for name, count in scene.counters().items() if name.startswith(told)) - before

        until(lambda: refused() > 4_000, "nearly all are refused")


def _broken(dice: random.Random, good: bytes) -> bytes:
    way = dice.randrange(4)
    if way == 0:
        return dice.randbytes(dice.randrange(300))
    if way == 1:
        return good[: dice.randrange(len(good))]
    if way == 2:
        changed = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)
    return good + dice.choice((good, b"\xc0", dice.randbytes(9)))


def test_greedy_frames(scene: Scene) -> None:
    """Frames within the size limit that cost most to read: many keys, equal hashes, deep, many small values."""
    many = {f"k{number}": number for number in range(9_999)}
    bomb: Any = 1
    for _ in range(4):
        bomb = [bomb] * 15
    bodies = [many, {"name": many}, {"spec": bomb}, {"name": [[]] * 10_000}, {"name": [[[]] * 90] * 9_999},
              {"x" * 500_000: "y" * 500_000}, {"name": "\U0001f4a5" * 200_000}, {"name": 2**63}]  # fmt: skip
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    with Peer(scene.operator_keys) as peer:
        for body in [*bodies, deep]:
            for kind in ("node.show", "vm.create", "report", "hello", "ok", "x" * 1000):
                peer.send(frame(kind, body))
                answer = peer.receive()
                assert answer is not None and answer["t"] == "error"
                assert answer["b"]["code"] in ("bad-frame", "invalid", "unknown-verb", "forbidden"), answer
                assert len(answer["b"]["message"]) < 500
        for raw in (b"\x91" * 1_000_000, b"\x81\xa1a" * 300_000, b"\xdc\x27\x10" * 300_000, b"\xde\x27\x10" * 300_000,
                    b"\x90" * 1_000_000, b"\xdd\x00\x0f\xff\xff" + b"\x90" * 1_040_000):  # fmt: skip
            peer.send(raw)
            answer2 = peer.receive()
            assert answer2 is not None and answer2["b"]["code"] == "bad-frame"


def test_giant_correlation_ids(scene: Scene) -> None:
    with Peer(scene.operator_keys) as peer:
        for length, code in ((64, None), (65, "bad-frame"), (1_000_000, "bad-frame")):
            peer.send(frame("server.status", {}, "i" * length))
            answer = peer.receive()
            assert answer is not None
            assert answer["b"].get("code") == code
            assert answer["id"] == ("i" * 64 if code is None else "")


# --- roles ------------------------------------------------------------------------------------------------------------


def test_each_type_from_the_wrong_role(scene: Scene) -> None:
    """The whole table: what agents say from an operator's key, what operators and the server say from both."""
    operators = {v["type"] for v in VALID if "." in v["type"] or v["type"] == "explain"}
    agents = {"hello", "heartbeat", "pull", "report", "surveyed", "bye"}
    servers = {v["type"] for v in VALID} - operators - agents
    assert (len(operators), len(servers)) == (33, 8)
    before, tried = scene.counters()["refused-forbidden"], 0
    rows = scene.server.rows()
    with Peer(scene.operator_keys) as operator, Peer(scene.node_keys) as agent:
        for vector in VALID:
            for peer, forbidden in ((operator, agents | servers), (agent, operators | servers)):
                if vector["type"] in forbidden:
                    peer.send(bytes.fromhex(vector["hex"]))
                    answer = peer.receive()
                    assert answer is not None
                    assert (answer["id"], answer["b"]["code"]) == (vector["id"], "forbidden"), vector["name"]
                    tried += 1
    assert scene.counters()["refused-forbidden"] - before == tried
    assert scene.server.rows() == rows


def test_an_agent_that_names_another_node(scene: Scene) -> None:
    with Peer(scene.node_keys) as peer:
        for name in ("steady", "nobody"):
            answer = peer.ask("hello", hello(name, boot_id=scene.agent.boot_id))
            assert answer["b"]["code"] == "wrong-node"
    assert ("wrong-node", "hostile") in scene.active_alarms()


def test_a_cloned_key_is_refused_and_raises_an_alarm(scene: Scene) -> None:
    with Peer(scene.agent.keys) as clone:
        first = clone.ask("hello", hello("steady"))
        assert first["b"]["code"] == "node-busy"
        boot_id = str(uuid.uuid4())
        codes = []
        for _ in range(6):
            answer = clone.ask("hello", hello("steady", boot_id=boot_id))
            codes.append(answer["b"]["code"])
            assert answer["t"] == "error", answer
            if codes[-1] == "cloned-key":
                break
            time.sleep(answer["b"]["details"]["retry_after_s"])
        assert codes[-1] == "cloned-key", codes
        assert clone.ask("heartbeat", heartbeat({"session": "0" * 16, **hello("steady")}, 1))["b"]["code"] == (
            "stale-session"
        )
    assert ("node-key-cloned", "steady") in scene.active_alarms()


def test_sessions_of_others_are_useless(scene: Scene) -> None:
    """The session of one node in the mouth of another, and of its own key on another connection."""
    with Peer(scene.node_keys) as first, Peer(scene.node_keys) as second:
        mine = join(first, "hostile")
        theirs = scene.agent._session
        for peer, session in ((first, theirs), (second, theirs), (second, mine["session"])):
            for kind, body in (("heartbeat", heartbeat({**mine, "session": session}, 9)),
                               ("pull", {"session": session, "nonce": "n"}),
                               ("bye", {"session": session})):  # fmt: skip
                answer = peer.ask(kind, body)
                assert answer["b"].get("code") == "stale-session", (kind, answer)
        assert first.ask("heartbeat", heartbeat(mine, 1))["t"] == "heartbeat-ack"


# --- replay -----------------------------------------------------------------------------------------------------------


def test_replayed_and_duplicated_frames(scene: Scene) -> None:
    """Frames of an old session, old sequence numbers, and each frame twice."""
    boot_id = str(uuid.uuid4())
    with Peer(scene.node_keys) as peer:
        old = join(peer, "hostile", boot_id=boot_id)
        saved = [frame("heartbeat", heartbeat(old, seq), "old") for seq in range(1, 4)]
        for payload in saved:
            peer.send(payload)
            assert peer.answer("old")["t"] == "heartbeat-ack"
        stale = scene.counters().get("heartbeats-stale", 0)
        for payload in saved:
            peer.send(payload)
            peer.send(payload)
        now = join(peer, "hostile", boot_id=boot_id)
        assert scene.counters()["heartbeats-stale"] - stale == 6
        for payload in saved:
            peer.send(payload)
            assert peer.answer("old")["b"]["code"] == "stale-session"
        report = {"session": now["session"], "seq": 2, "revision": 0, "generation": now["generation"], "digest": "new",
                  "full": True}  # fmt: skip
        assert peer.ask("report", report)["t"] == "report-ack"
        for seq in (2, 1):
            peer.send(frame("report", {**report, "seq": seq, "digest": "old"}, "twice"))
        ack = peer.ask("heartbeat", heartbeat(now, 1, digest="new"))["b"]
        assert ack["report"] is False, "an old report was taken for news"


def test_duplicated_requests_take_effect_once(scene: Scene) -> None:
    public_key = scene.server.new_keys("x")["public_key"]
    payload = frame("node.add", {"key": token(), "name": "twice", "public_key": public_key}, "dup")
    with Peer(scene.operator_keys) as peer:
        answers = []
        for _ in range(5):
            for _ in range(10):
                peer.send(payload)
            answers += [peer.answer("dup") for _ in range(10)]
    assert all(answer["t"] == "ok" for answer in answers)
    assert all(answer == answers[0] for answer in answers)
    events = scene.admin.request("event.list", {"subject": "twice"})["items"]
    assert [event["action"] for event in events] == ["node-added"]


# --- connections ------------------------------------------------------------------------------------------------------


def address(scene: Scene) -> tuple[str, int]:
    host, _, port = scene.server.endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def test_plain_tcp_junk(scene: Scene) -> None:
    dice = random.Random(3)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
    lies = [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, greeting, greeting + dice.randbytes(300), greeting[:20],
            b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32,
            greeting + b"\x04\xff" + b"\x05HELLO" + bytes(249),
            greeting + b"\x06" + b"\x7f" * 8 + b"x" * 1000]  # fmt: skip
    before = scene.counters().get("bad-handshakes", 0)
    for number in range(100):
        with socket.create_connection(address(scene), 5) as junk, contextlib.suppress(OSError):
            junk.sendall(lies[number] if number < len(lies) else dice.randbytes(dice.randrange(1, 4000)))
    until(lambda: scene.counters()["bad-handshakes"] > before, "failed handshakes are counted")


def test_half_open_and_reset_connections(scene: Scene) -> None:
    for _ in range(200):
        with socket.create_connection(address(scene), 5) as half:
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            half.send(b"\xff")
    with Peer(scene.operator_keys) as peer:
        assert peer.ask("server.status", {})["t"] == "ok"


def test_a_thousand_idle_connections(scene: Scene) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(1_000):
            held.enter_context(socket.create_connection(address(scene), 10))
        scene.check()
        with Peer(scene.operator_keys) as peer:
            assert peer.ask("server.status", {})["t"] == "ok"


@pytest.mark.parametrize("mechanism", ["null", "plain", "curve unregistered", "curve wrong server key"])
def test_foreign_mechanisms_and_keys(scene: Scene, mechanism: str) -> None:
    """Nothing that they send is answered, and what can be told apart is counted."""
    before = scene.counters()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        peers = [context.socket(zmq.DEALER) for _ in range(20)]
        for peer in peers:
            peer.linger = 0
            if mechanism == "plain":
                peer.plain_username, peer.plain_password = b"admin", b"admin"
            elif mechanism.startswith("curve"):
                public, secret = zmq.curve_keypair()
                wrong = zmq.curve_keypair()[0] if "wrong" in mechanism else None
                keys = scene.operator_keys if wrong else {"public_key": public.decode(), "secret_key": secret.decode()}
                peer.curve_serverkey = wrong or scene.operator_keys["server_public_key"].encode()
                peer.curve_publickey, peer.curve_secretkey = keys["public_key"].encode(), keys["secret_key"].encode()
            peer.connect(scene.server.endpoint)
            with contextlib.suppress(zmq.Again):  # it may be refused already
                peer.send(frame("server.status", {}, "x"), zmq.NOBLOCK)
        counter = "unknown-keys" if mechanism == "curve unregistered" else "bad-handshakes"
        until(lambda: scene.counters().get(counter, 0) > before.get(counter, 0), f"{counter} are counted")
        assert not any(peer.poll(0) for peer in peers)
    finally:
        context.destroy(linger=0)


def test_a_key_that_is_revoked_while_connected(scene: Scene) -> None:
    """Removed or replaced: the very next message is refused, and so is a new connection."""
    gone = scene.server.add_operator(scene.admin, "leaving")
    with Peer(gone) as peer:
        assert peer.ask("node.list", {})["t"] == "ok"
        scene.admin.change("operator.remove", name="leaving")
        assert peer.ask("node.list", {})["b"]["code"] == "unknown-key"
        peer.send(b"\xc1")
        assert (peer.receive() or {})["t"] == "error"
    old = scene.server.add_node(scene.admin, "rekeyed")
    with Peer(old) as peer:
        session = join(peer, "rekeyed")
        new = scene.server.new_keys("rekeyed")
        scene.admin.change("node.rekey", name="rekeyed", public_key=new["public_key"])
        assert peer.ask("heartbeat", heartbeat(session, 1))["b"]["code"] == "unknown-key"
        with Peer(new) as right:
            assert join(right, "rekeyed", boot_id=session["boot_id"])["session"] != session["session"]
    unknown = scene.counters().get("unknown-keys", 0)
    with Peer(gone) as peer:
        peer.socket.sndtimeo = 300
        with contextlib.suppress(zmq.Again):
            peer.send(frame("node.list", {}, "x"))
        until(lambda: scene.counters().get("unknown-keys", 0) > unknown, "the old key is turned away")


def test_routing_ids_chosen_by_peers(scene: Scene) -> None:
    """A node with the routing id that another connection has, or had a moment ago, speaks only for itself."""
    chosen = b"chosen-id"
    with Peer(scene.operator_keys, routing_id=chosen) as owner:
        assert owner.ask("node.list", {})["t"] == "ok"
        with Peer(scene.node_keys, routing_id=chosen) as twin:
            twin.send(frame("node.list", {}, "twin"))
            assert owner.ask("node.list", {})["t"] == "ok"
            answer = twin.receive(0.3)
            assert answer is None or answer["b"]["code"] == "forbidden"
    for _ in range(5):
        assert heir_asks(scene.node_keys, chosen, "node.list", {})["b"]["code"] == "forbidden"
    with Peer(scene.node_keys, routing_id=chosen + b"-late") as late:
        mine = join(late, "hostile")
    assert heir_asks(scene.operator_keys, chosen, "heartbeat", heartbeat(mine, 1))["b"]["code"] == "forbidden"


def heir_asks(keys: Keys, routing_id: bytes, kind: str, body: Body) -> Body:
    """The answer to a connection with a routing id that another one had. While the server has not seen that one go, it
    leaves the new one without an answer, for ever: then another one is tried."""
    for _ in range(10):
        with Peer(keys, routing_id=routing_id) as heir, contextlib.suppress(TimeoutError):
            return heir.ask(kind, body, 2)
    raise TimeoutError(f"no answer to {kind}")


# --- load -------------------------------------------------------------------------------------------------------------


def test_slow_readers(scene: Scene) -> None:
    """Peers that ask without reading: what they do not take is dropped, nobody waits for them."""
    ask = frame("event.list", {"limit": 1000}, "slow")
    with contextlib.ExitStack() as open_peers:
        for _ in range(10):
            peer = open_peers.enter_context(Peer(scene.operator_keys, rcvhwm=1, sndhwm=10_000, rcvbuf=4096))
            for _ in range(300):
                peer.send(ask)
        scene.check()
    assert scene.counters().get("would-block", 0) >= 0


def test_a_flood_of_valid_requests(scene: Scene) -> None:
    """One operator sends as fast as it can for a while; the others are served meanwhile."""
    ask = frame("node.list", {}, "flood")
    ends = time.monotonic() + 2.0
    sent = answered = 0
    with Peer(scene.operator_keys, sndhwm=1000, rcvhwm=100_000) as peer:
        while time.monotonic() < ends:
            with contextlib.suppress(zmq.Again):
                peer.socket.send(ask, zmq.NOBLOCK)
                sent += 1
            while peer.socket.poll(0):
                peer.socket.recv()
                answered += 1
    assert answered > 500


def test_many_idempotency_keys(scene: Scene) -> None:
    """Changes that change nothing are recorded for their keys; memory for them is bounded by the retention."""
    scene.admin.change("node.disable", name="hostile")
    before = scene.server.rss_mib()
    with Peer(scene.server.add_operator(scene.admin, "busy"), sndhwm=10_000, rcvhwm=10_000) as peer:
        for _ in range(340):
            for _ in range(16):
                peer.send(frame("node.disable", {"key": secrets.token_hex(16), "name": "hostile"}, "k"))
            for _ in range(16):
                assert peer.answer("k")["b"]["result"]["changed"] is False
        for key in ("", "k" * 65, "line\nbreak", "\x00", 5, None):
            with pytest.raises(Refused, match="invalid"):
                peer.request("node.disable", {"key": key, "name": "hostile"})
    assert scene.server.rss_mib() - before < 16
    most = ANSWERS_KEPT + PRUNE_STEP  # that much is left alone until the next hour
    until(lambda: len(scene.server.rows()["answers"]) <= most, "answers beyond the retention are dropped")


def test_hostile_reports(scene: Scene) -> None:
    """A node that reports VMs that do not exist, again and again others, fills neither memory nor the alarm list."""
    with Peer(scene.node_keys) as peer:
        session = join(peer, "hostile")
        base = {"session": session["session"], "revision": 0, "generation": session["generation"], "digest": "d",
                "full": False}  # fmt: skip
        before = scene.server.rss_mib()
        for seq in range(1, 16):
            vms = [{"uuid": str(uuid.uuid4()), "epoch": 1, "revision": 0, "observed": "running"} for _ in range(2_000)]
            peer.ask("report", {**base, "seq": seq, "vms": vms}, 30)
        assert scene.server.rss_mib() - before < 32
        assert len(scene.admin.request("alarm.list", {"limit": 1000})["items"]) < 1000
        peer.ask("report", {**base, "seq": 100, "full": True, "vms": []})
