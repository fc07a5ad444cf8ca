"""Ping on real networks: the loopback, and a network namespace of our own for hosts that are dead."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chimed.icmp import Pinger, PingOutcome, Reply

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 5.0


@pytest.fixture
def pinger() -> Pinger:
    pinger = Pinger()
    if not pinger.available:
        pytest.skip(pinger.reason)
    return pinger


def replies(pinger: Pinger, count: int, within_s: float = DEADLINE_S) -> list[Reply]:
    found: list[Reply] = []
    end = time.monotonic() + within_s
    while len(found) < count and (left := end - time.monotonic()) > 0:
        select.select(pinger.fds(), [], [], left)
        found += pinger.read()
    return found


def test_a_living_host_answers(pinger: Pinger) -> None:
    assert pinger.ping("127.0.0.1", 7) is PingOutcome.SENT
    assert replies(pinger, 1) == [Reply("127.0.0.1", 7)]
    pinger.close()


def test_replies_are_told_apart_by_token_and_address(pinger: Pinger) -> None:
    wanted = {Reply(f"127.0.{i}.1", 2**64 - 1 - i) for i in range(200)}
    for address, token in wanted:
        assert pinger.ping(address, token) is PingOutcome.SENT
    assert set(replies(pinger, 200)) == wanted
    pinger.close()


def test_ipv6(pinger: Pinger) -> None:
    if pinger.ping("::1", 3) is not PingOutcome.SENT:
        pytest.skip("no IPv6 here")
    assert replies(pinger, 1) == [Reply("::1", 3)]
    pinger.close()


@pytest.mark.parametrize(
    "address", ["", "no-address", "127.0.0.1/8", "255.255.255.255", "1.2.3", "127.0.0.1\0"]
)
def test_what_cannot_be_sent_is_an_outcome(pinger: Pinger, address: str) -> None:
    assert pinger.ping(address, 1) is PingOutcome.CANNOT
    pinger.close()


def test_after_close_nothing_can_be_sent(pinger: Pinger) -> None:
    pinger.close()
    assert pinger.fds() == []
    assert pinger.ping("127.0.0.1", 1) is PingOutcome.CANNOT


def test_without_any_icmp_socket_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("chimed.icmp.socket.socket", forbidden)
    pinger = Pinger()
    assert not pinger.available
    assert "Operation not permitted" in pinger.reason
    assert pinger.ping("127.0.0.1", 1) is PingOutcome.CANNOT
    assert pinger.read() == []


def test_replies_that_we_did_not_ask_for_do_not_count(pinger: Pinger) -> None:
    other = Pinger()  # its replies reach our raw socket too
    assert other.ping("127.0.0.1", 1) is PingOutcome.SENT
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as forger:
        for payload in (b"", b"x" * 24, os.urandom(24), b"y" * 1400):
            forger.sendto(struct.pack("!BBHHH", 0, 0, 0, pinger._id, 1) + payload, ("127.0.0.1", 0))
        genuine = bytearray(pinger._packet(0, socket.inet_aton("127.0.0.1"), 5))
        forger.sendto(genuine, ("127.0.0.2", 0))  # its source is 127.0.0.1, and so it is valid
        stolen = pinger._packet(0, socket.inet_aton("10.1.2.3"), 6)  # a reply in the name of another host
        forger.sendto(stolen, ("127.0.0.1", 0))
    assert pinger.ping("127.0.0.1", 2) is PingOutcome.SENT
    tokens: set[int] = set()
    end = time.monotonic() + DEADLINE_S
    while 2 not in tokens and time.monotonic() < end:
        tokens |= {reply.token for reply in replies(pinger, 1)}
    assert tokens == {5, 2}
    other.close()
    pinger.close()


NETWORK = """
set -e
ip link set lo up
ip link add lan0 type veth peer name lan1
ip addr add 10.99.0.1/16 dev lan0
ip link set lan0 up
ip link set lan1 up
ip link add far0 type veth peer name far1
ip link set far0 arp off
ip addr add 10.98.0.1/16 dev far0
ip link set far0 up
ip link set far1 up
ip route add prohibit 10.97.0.0/16
exec "$0" -c "$1"
"""

PROBE = """
import json, select, time
from chimed.icmp import Pinger
pinger = Pinger()
result = {
    "no route": pinger.ping("192.0.2.1", 1).value,
    "prohibited": pinger.ping("10.97.0.1", 2).value,
    "dead on our network": pinger.ping("10.99.0.77", 3).value,
    "alive": pinger.ping("10.99.0.1", 4).value,
}
replies, end = [], time.monotonic() + 4  # longer than ARP tries
while (left := end - time.monotonic()) > 0:
    select.select(pinger.fds(), [], [], left)
    replies += pinger.read()
result["replies"] = replies
dead = [f"10.98.{i >> 8}.{i & 255}" for i in range(10, 5010)]
started, cpu = time.monotonic(), time.process_time()
outcomes = [pinger.ping(address, i).value for i, address in enumerate(dead)]
result["seconds for 5000"], result["cpu"] = time.monotonic() - started, time.process_time() - cpu
result["outcomes"] = sorted(set(outcomes))
print(json.dumps(result))
"""

UNPRIVILEGED = """
import json, select, socket
from pathlib import Path
Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
plain = socket.socket
def no_raw(family, kind, protocol):
    if kind & 0xF == socket.SOCK_RAW:
        raise PermissionError(1, "Operation not permitted")
    return plain(family, kind, protocol)
socket.socket = no_raw
from chimed.icmp import Pinger
pinger = Pinger()
sent = [pinger.ping("127.0.0.1", 9).value, pinger.ping("192.0.2.1", 1).value]
select.select(pinger.fds(), [], [], 5)
print(json.dumps([pinger.available, sent, pinger.read()]))
"""


def in_a_network_of_its_own(code: str) -> Any:
    """What `code` prints, run in a network namespace where 10.99/16 is a LAN and 10.98/16 swallows
    everything."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", NETWORK, sys.executable, code],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_dead_hosts_do_not_answer_and_cost_little() -> None:
    result = in_a_network_of_its_own(PROBE)
    assert result["no route"] == result["prohibited"] == "cannot"
    assert result["dead on our network"] == result["alive"] == "sent"
    assert result["replies"] == [["10.99.0.1", 4]], "only the living host answers; ICMP errors are no replies"
    assert result["outcomes"] == ["sent"]
    assert result["cpu"] < 0.5


def test_the_unprivileged_socket_does_as_well() -> None:
    assert in_a_network_of_its_own(UNPRIVILEGED) == [True, ["sent", "cannot"], [["127.0.0.1", 9]]]
