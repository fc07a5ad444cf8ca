"""Which addresses answer a ping that leaves by a given interface.

Rules: every socket is bound to the interface (SO_BINDTODEVICE), so that no answer comes by another way; all addresses
are asked at once, again each second, and nothing outlasts the call. An answer proves both directions between this
node's interface and that address. icmplib is not used: it waits for each address in turn, and cannot bind to a device
on every kernel that it runs on; these are a few lines.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterable

TRY_S = 1.0
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence
_TOKEN_BYTES = 16
_V4, _V6 = (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0), (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)


def answering(interface: str, targets: Iterable[str], tries: int) -> frozenset[str]:
    """Those of `targets` that answered one of `tries` pings, a second apart. Raises OSError when no socket of this kind
    can be made (CAP_NET_RAW), or the interface does not exist."""
    waiting = {ipaddress.ip_address(target): target for target in targets}
    tokens = {address: os.urandom(_TOKEN_BYTES) for address in waiting}
    answered: set[str] = set()
    with contextlib.ExitStack() as stack:
        sockets = {
            version: stack.enter_context(_open(interface, family))
            for version, family in ((4, _V4), (6, _V6))
            if any(address.version == version for address in waiting)
        }
        for sequence in range(tries):
            for address, target in waiting.items():
                if target not in answered:
                    _send(sockets[address.version], address, sequence, tokens[address])
            until = time.monotonic() + TRY_S
            while len(answered) < len(waiting) and (left_s := until - time.monotonic()) > 0:
                for ready in select.select(list(sockets.values()), [], [], left_s)[0]:
                    source, token = _receive(ready)
                    if source in waiting and tokens[source] == token:
                        answered.add(waiting[source])
            if len(answered) == len(waiting):
                break
    return frozenset(answered)


def _open(interface: str, family: tuple[int, int, int, int]) -> socket.socket:
    """A raw socket, or else an unprivileged one."""
    try:
        opened = socket.socket(family[0], socket.SOCK_RAW | socket.SOCK_NONBLOCK, family[1])
    except PermissionError:
        opened = socket.socket(family[0], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, family[1])
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except OSError:
        opened.close()
        raise
    return opened


def _send(
    opened: socket.socket, address: ipaddress.IPv4Address | ipaddress.IPv6Address, sequence: int, token: bytes
) -> None:
    kind = (_V4 if address.version == 4 else _V6)[2]
    checksum = _checksum(_HEADER.pack(kind, 0, 0, os.getpid() & 0xFFFF, sequence) + token)
    with contextlib.suppress(OSError):  # no route, network down: no answer will come, which says the same
        opened.sendto(_HEADER.pack(kind, 0, checksum, os.getpid() & 0xFFFF, sequence) + token, (str(address), 0))


def _receive(opened: socket.socket) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address | None, bytes]:
    """Source and token of an echo reply; anything else gives no source."""
    try:
        packet, (source, *_) = opened.recvfrom(2048)
    except OSError:  # an ICMP error of the socket, read and gone
        return None, b""
    if opened.family == socket.AF_INET and packet[:1] > b"\x3f":  # a raw IPv4 socket shows the IP header
        packet = packet[(packet[0] & 0x0F) * 4 :]
    if len(packet) != _HEADER.size + _TOKEN_BYTES or packet[0] != (_V4 if opened.family == socket.AF_INET else _V6)[3]:
        return None, b""
    return ipaddress.ip_address(source.partition("%")[0]), packet[_HEADER.size :]


def _checksum(packet: bytes) -> int:
    """RFC 1071, of an even number of bytes. (For IPv6 and unprivileged sockets the kernel puts its own in.)"""
    words: tuple[int, ...] = struct.unpack(f"!{len(packet) // 2}H", packet)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
