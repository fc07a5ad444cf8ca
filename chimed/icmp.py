"""Ping, without waiting: one socket per IP version in the poll loop.

`ping` sends an echo request, `read` gives the replies that are there; who waits how long for which is the
core's affair. A ping that cannot be sent is an outcome of its own ("no answer known"), never "down"; only an
echo reply from the address that was asked counts as an answer, an ICMP error does not.

The payload names the caller's token and the address asked, under a keyed hash: a host that we once pinged
cannot make up another's reply, and nothing is remembered for each ping. The kernel drops all other ICMP
(filter). Without CAP_NET_RAW the unprivileged ICMP socket is used where `net.ipv4.ping_group_range` allows
it.

icmplib is not used: its packets are made by its sockets, which wait for each reply. These are 15 lines.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from enum import Enum
from hashlib import blake2s
from typing import NamedTuple

RECEIVE_BUFFER_BYTES = 16 << 20
SEND_BUFFER_BYTES = 16 << 20  # requests to dead hosts of our own subnet stay in it until ARP gives up (3 s)
MAC_BYTES = 16
_TOKEN = struct.Struct("!Q")
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence
_PAYLOAD_BYTES = _TOKEN.size + MAC_BYTES
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class PingOutcome(Enum):
    """What became of a request."""

    SENT = "sent"
    BUSY = "busy"  # no room in the kernel at the moment: try again a little later
    CANNOT = "cannot"  # no socket, no route, not permitted, not an address: no answer can be known


class Reply(NamedTuple):
    """An echo reply: `address` as the kernel writes it, `token` as given to `ping`."""

    address: str
    token: int


class _Family(NamedTuple):
    family: int
    protocol: int
    request: int
    reply: int


_V4 = _Family(socket.AF_INET, socket.IPPROTO_ICMP, 8, 0)
_V6 = _Family(socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)


class Pinger:
    """`available` says whether IPv4 can be pinged at all; `reason` why not. Use from one thread."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._id = int.from_bytes(os.urandom(2), "big")
        self._sequence = 0
        self._sockets: dict[int, socket.socket] = {}
        self.reason = ""
        for version, family in ((4, _V4), (6, _V6)):
            try:
                self._sockets[version] = _open(family)
            except OSError as error:
                if version == 4:
                    self.reason = (
                        f"no ICMP socket: {error.strerror} (CAP_NET_RAW or net.ipv4.ping_group_range)"
                    )

    @property
    def available(self) -> bool:
        """Whether IPv4 addresses can be pinged."""
        return 4 in self._sockets

    def fds(self) -> list[int]:
        """For the poll loop: readable means `read` has something."""
        return [each.fileno() for each in self._sockets.values()]

    def ping(self, address: str, token: int) -> PingOutcome:
        """Sends one request; `token` (0 to 2**64 - 1) comes back with the reply. Never blocks."""
        try:
            target = ipaddress.ip_address(address)
        except ValueError:
            return PingOutcome.CANNOT
        sender = self._sockets.get(target.version)
        if sender is None:
            return PingOutcome.CANNOT
        kind = _V4.request if target.version == 4 else _V6.request
        try:
            sender.sendto(self._packet(kind, target.packed, token), (address, 0))
        except OSError as error:
            return PingOutcome.BUSY if error.errno in _BUSY else PingOutcome.CANNOT
        return PingOutcome.SENT

    def read(self, budget: int = 1000) -> list[Reply]:
        """Up to `budget` packets' worth of valid replies that are there."""
        found: list[Reply] = []
        for version, each in self._sockets.items():
            for _ in range(budget):
                try:
                    packet, source = each.recvfrom(2048)
                except BlockingIOError:
                    break
                except OSError:  # a pending error of the socket, read and gone; no reply
                    continue
                reply = self._parse(version, packet, source[0])
                if reply is not None:
                    found.append(reply)
        return found

    def close(self) -> None:
        """Closes the sockets; every ping from now on cannot be sent."""
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()

    def _packet(self, kind: int, target: bytes, token: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFF
        name = _TOKEN.pack(token)
        payload = name + self._mac(name, target)
        checksum = _checksum(_HEADER.pack(kind, 0, 0, self._id, self._sequence) + payload)
        return _HEADER.pack(kind, 0, checksum, self._id, self._sequence) + payload

    def _mac(self, name: bytes, target: bytes) -> bytes:
        return blake2s(name + target, key=self._key, digest_size=MAC_BYTES).digest()

    def _parse(self, version: int, packet: bytes, source: str) -> Reply | None:
        if version == 4 and packet[:1] > b"\x3f":  # a raw IPv4 socket shows the IP header, the others do not
            packet = packet[(packet[0] & 0x0F) * 4 :]
        if len(packet) != _HEADER.size + _PAYLOAD_BYTES:
            return None
        if packet[0] != (_V4.reply if version == 4 else _V6.reply):
            return None
        name, mac = packet[8:16], packet[16:]
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        address = source.partition("%")[0]
        if self._mac(name, socket.inet_pton(family, address)) != mac:
            return None
        return Reply(address, _TOKEN.unpack(name)[0])


def _open(family: _Family) -> socket.socket:
    """A raw socket, or else an unprivileged one. Raises OSError when the system permits neither."""
    try:
        opened = socket.socket(family.family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family.protocol)
    except PermissionError:
        opened = socket.socket(family.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, family.protocol)
    else:
        _only_replies(opened, family)
    for size, plain, force in (
        (RECEIVE_BUFFER_BYTES, socket.SO_RCVBUF, _SO_RCVBUFFORCE),
        (SEND_BUFFER_BYTES, socket.SO_SNDBUF, _SO_SNDBUFFORCE),
    ):
        opened.setsockopt(socket.SOL_SOCKET, plain, size)  # up to the system's limit
        with contextlib.suppress(PermissionError):
            opened.setsockopt(socket.SOL_SOCKET, force, size)  # beyond it, with CAP_NET_ADMIN
    return opened


def _only_replies(opened: socket.socket, family: _Family) -> None:
    """Has the kernel drop everything but echo replies. In both filters a set bit blocks a type."""
    if family is _V4:
        opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", 0xFFFFFFFF ^ (1 << family.reply)))
    else:
        words = [0xFFFFFFFF] * 8
        words[family.reply >> 5] ^= 1 << (family.reply & 31)
        opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("8I", *words))


def _checksum(packet: bytes) -> int:
    """RFC 1071, of an even number of bytes. (For IPv6 and unprivileged sockets the kernel puts its own
    in.)"""
    words: tuple[int, ...] = struct.unpack(f"!{len(packet) // 2}H", packet)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
