"""libvirt on the target of a migration: its URI, whether it can be reached, a connection to it.

Rules: nothing waits for an address that does not answer: its port is tried first, with a time-out. Errors are
`HypervisorError` with one line that names the target.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agentd.hypervisor import HypervisorError
from agentd.libvirt.connection import KEEPALIVE_COUNT, KEEPALIVE_S, libvirt, one_line, open_connection

PORTS = {"qemu+tcp": 16509, "qemu+tls": 16514, "qemu": 16514, "qemu+ssh": 22, "qemu+libssh2": 22, "qemu+libssh": 22}
CONNECT_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 15.0
MAX_OPENING = 64  # attempts to open one target that are under way: of a libvirtd that hangs, most of them

_opening: Counter[str] = Counter()
_opening_lock = threading.Lock()


class Settings(NamedTuple):
    """How this node reaches others. `uri`: of a target's libvirt, with `{host}`. `shared_paths`: folders that all nodes
    share though their file system does not say so."""

    uri: str = "qemu+tls://{host}/system"
    shared_paths: tuple[str, ...] = ()


def bracketed(address: str) -> str:
    """An address as URIs want it."""
    return f"[{address}]" if ":" in address else address


def uri_of(template: str, address: str) -> str:
    """The URI of libvirt at an address."""
    return template.replace("{host}", bracketed(address))


def probe(uri: str, address: str, interface: str = "") -> None:
    """Connects to the port of libvirt and leaves; over `interface` only, if one is given. Raises HypervisorError."""
    parts = urlsplit(uri)
    port = parts.port or PORTS.get(parts.scheme, PORTS["qemu+tls"])
    try:
        _connect(address, port, interface)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        over = f" over {interface}" if interface else ""
        raise HypervisorError(f"target {address} cannot be reached{over}: port {port}: {why}") from None


def _connect(address: str, port: int, interface: str) -> None:
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe_socket:
        probe_socket.settimeout(CONNECT_TIMEOUT_S)
        if interface:
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        probe_socket.connect(where)


@contextlib.contextmanager
def opened(template: str, address: str) -> Iterator[Any]:
    """A connection to libvirt at an address. Raises HypervisorError."""
    uri = uri_of(template, address)
    probe(uri, address)
    conn = _open_in_time(uri, address)
    try:
        with contextlib.suppress(libvirt.libvirtError):  # a driver without it has no network in between
            conn.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        yield conn
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            conn.close()


def _open_in_time(uri: str, address: str) -> Any:
    with _opening_lock:
        if _opening[uri] >= MAX_OPENING:
            raise HypervisorError(f"target {address} cannot be reached: libvirt does not answer")
        _opening[uri] += 1
    future: Future[Any] = Future()
    threading.Thread(target=_open, args=(uri, future), name="open-target", daemon=True).start()
    try:
        return future.result(OPEN_TIMEOUT_S)
    except TimeoutError:
        if future.cancel():
            raise HypervisorError(
                f"target {address} cannot be reached: libvirt does not answer in {OPEN_TIMEOUT_S:g} s"
            ) from None
        return future.result()
    except libvirt.libvirtError as error:
        raise HypervisorError(f"target {address} cannot be reached: libvirt: {one_line(error)}") from None


def _open(uri: str, future: Future[Any]) -> None:
    """libvirt may block for ever in this, when the other libvirtd hangs; what comes too late is closed."""
    try:
        conn = open_connection(uri)
    except Exception as error:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(conn)
        else:
            with contextlib.suppress(libvirt.libvirtError):
                conn.close()
    finally:
        with _opening_lock:
            _opening[uri] -= 1


def is_ip(address: str) -> bool:
    """Whether it is a literal address, no name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
