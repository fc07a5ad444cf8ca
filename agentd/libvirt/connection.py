"""Connections to libvirt, and the one thread of a process on which its events arrive.

Rules: the event loop starts before the first connection. After `Link.close` no callback comes; a broken
connection is told once. libvirt's errors come as exceptions: nothing of libvirt writes on stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agentd.core.facts import Lifecycle
from agentd.hypervisor import HypervisorError
from agentd.libvirt.processes import Processes
from agentd.libvirt.words import lifecycle

os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")  # read when libvirt is first imported
import libvirt  # type: ignore[import-not-found,unused-ignore]

__all__ = ["Link", "libvirt", "one_line", "open_connection", "own_connection"]

log = logging.getLogger(__name__)

KEEPALIVE_S = 5
KEEPALIVE_COUNT = 3
EMBED_CONF = (
    'stdio_handler = "file"\nuser = "root"\ngroup = "root"\nsecurity_driver = "none"\n'
    "namespaces = []\ncgroup_controllers = []\ndynamic_ownership = 0\n"
)
_UNBORN = re.compile(r"<domstatus [^>]*\bpid='0'")
_UUID = re.compile(r"<uuid>([0-9a-f-]{36})</uuid>")
_event_loop_lock = threading.Lock()
_event_loop_runs = False
_embedded_lock = threading.Lock()
_embedded: dict[str, Any] = {}


class Link:
    """One open connection with its callbacks; dies once."""

    def __init__(
        self, uri: str, on_lifecycle: Callable[[Lifecycle], None], on_lost: Callable[[str], None]
    ) -> None:
        self._on_lifecycle = on_lifecycle
        self._on_lost = on_lost
        self._ended = False
        self._event_id: int | None = None
        self._embedded = _embedded_root(uri) is not None
        self.conn: Any = open_connection(uri)
        try:
            self._register(self.conn)
        except libvirt.libvirtError:
            self.close()
            raise

    def _register(self, conn: Any) -> None:
        lifecycle_event = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._event_id = conn.domainEventRegisterAny(None, lifecycle_event, self._event, None)
        if self._embedded:
            return  # part of this process: it cannot be lost
        conn.registerCloseCallback(self._closed, None)
        conn.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)

    def close(self) -> None:
        """No callback comes for what happens after this."""
        self._ended = True
        if self._event_id is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self.conn.domainEventDeregisterAny(self._event_id)
        if self._embedded:
            return
        with contextlib.suppress(libvirt.libvirtError):
            self.conn.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            self.conn.close()

    def _event(self, conn: Any, domain: Any, event: int, detail: int, opaque: Any) -> None:
        found = None if self._ended else lifecycle(domain.UUIDString(), event, detail)
        if found is not None:
            _guarded(self._on_lifecycle, found)

    def _closed(self, conn: Any, reason: int, opaque: Any) -> None:
        if self._ended:
            return
        self._ended = True
        reasons = {
            libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "input/output error",
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirt closed it",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirt does not answer",
        }
        _guarded(self._on_lost, f"the connection to libvirt broke: {reasons.get(reason, f'reason {reason}')}")


def _guarded(callback: Callable[[Any], None], argument: Any) -> None:
    try:
        callback(argument)
    except Exception:  # a fault of the agent must not end libvirt's event thread
        log.exception("a callback failed on %r", argument)


def _start_event_loop() -> None:
    """Once for a process, before the first connection: events and keepalive live on this thread."""
    global _event_loop_runs
    with _event_loop_lock:
        if _event_loop_runs:
            return
        libvirt.registerErrorHandler(lambda context, error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _event_loop_runs = True


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            log.error("libvirt's event loop failed: %s", one_line(error))
            time.sleep(1.0)  # never spin on an error that stays


def open_connection(uri: str) -> Any:
    """A libvirt connection. An embedded one is opened once and kept: libvirt 9 registers its driver anew at
    each open, and refuses after some twenty."""
    _start_event_loop()
    root = _embedded_root(uri)
    if root is None:
        return libvirt.open(uri)
    with _embedded_lock:
        if uri not in _embedded:
            _write_embedded_conf(root)
            _forget_unborn(root)
            _embedded[uri] = libvirt.open(uri)
        return _embedded[uri]


@contextlib.contextmanager
def own_connection(uri: str) -> Iterator[Any]:
    """A connection for one long call: on libvirt 9 others on the same one would wait for it at times."""
    conn = open_connection(uri)
    try:
        yield conn
    finally:
        if _embedded_root(uri) is None:
            with contextlib.suppress(libvirt.libvirtError):
                conn.close()


def _embedded_root(uri: str) -> Path | None:
    parts = urlsplit(uri)
    roots = parse_qs(parts.query).get("root")
    return Path(roots[0]) if parts.path.endswith("/embed") and roots else None


def _write_embedded_conf(root: Path) -> None:
    """Settings that an embedded hypervisor needs, written once; a file that is there is the operator's."""
    conf = root / "etc" / "qemu.conf"
    try:
        conf.parent.mkdir(parents=True, exist_ok=True)
        if not conf.exists():
            with conf.open("x", encoding="utf-8") as file:  # a link to nowhere is not followed
                file.write(EMBED_CONF)
    except OSError as error:
        raise HypervisorError(f"cannot write {conf}: {error.strerror}") from None


def _forget_unborn(root: Path) -> None:
    """Removes the state of domains whose start was cut off, with the process that was this hypervisor, before they had
    a qemu. libvirt 9 would take them for running and hold their job for ever: no call on them would end.
    What has a process, or may have one, is left to libvirt."""
    unborn = [file for file in root.glob("run/qemu/*.xml") if _UNBORN.search(_text(file))]
    if not unborn:
        return
    alive = {process.uuid for process in Processes().scan()}
    for file in unborn:
        found = _UUID.search(_text(file))
        if found is not None and found[1] not in alive:
            log.warning("%s: the start of this domain was cut off before it had a process", file)
            file.unlink(missing_ok=True)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def one_line(error: Any) -> str:
    """The message of a libvirtError."""
    return " ".join(str(error.get_error_message() or error).split())
