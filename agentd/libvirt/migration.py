"""Live migration by libvirt: from this node's libvirt to the target's (peer to peer), as one watched call.

Rules:
- The copy stays paused on the target and its metadata names the attempt; only a handover lets it run.
- What a call returns says nothing about what runs where: the core looks. An error is one line for the operator.
- Before it begins, the target's libvirt has answered: the source's would wait for ever for one that hangs.
- The call has a connection of its own: libvirt 9 lets other calls on its connection wait for seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agentd.hypervisor import HypervisorError, NoArrival
from agentd.libvirt import domain_xml, storage
from agentd.libvirt.connection import libvirt, one_line
from agentd.libvirt.domains import is_busy, is_migrating, read_stamp, resume
from agentd.libvirt.qemu_tls import NEEDED, has_migration_keys, key_folder
from agentd.libvirt.target import Settings, bracketed, is_ip, opened, uri_of
from wire.messages import MigrationOptions, MigrationOrder, MigrationProgress
from wire.types import OnTimeout, Tls

log = logging.getLogger(__name__)

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_PAUSED
)
WATCH_PERIOD_S = 1.0
SETTLE_PERIOD_S = 0.5
BUSY_TIMEOUT_S = 30.0
FORCED_MIN_S = 60.0  # a migration that is forced gets its time-out once more, or this
NO_LIMIT_MIB_S = 1_000_000
MIB = 1024 * 1024


def hand_over(settings: Settings, uuid: str, attempt: str, address: str) -> None:
    """See `Hypervisor.hand_over`."""
    with opened(settings.uri, address) as conn:
        try:
            copy = conn.lookupByUUIDString(uuid)
            stamp, (state, _) = read_stamp(copy), copy.state()
            if stamp is None or stamp.attempt != attempt or state == libvirt.VIR_DOMAIN_SHUTOFF:
                raise NoArrival(f"{address} has no copy of {uuid} that came by {attempt}")
            if is_migrating(copy):
                raise HypervisorError(f"cannot resume {uuid} on {address}: it is still coming")
            resume(copy)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise NoArrival(f"{address} has no domain {uuid}") from None
            raise HypervisorError(f"cannot resume {uuid} on {address}: {one_line(error)}") from None


def settle(find: Callable[[], Any | None]) -> None:
    """Returns when the domain that `find` gives is not migrated (any more). Raises libvirtError, and HypervisorError
    when libvirt is busy with it for other reasons for too long."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while (domain := find()) is not None:
        try:
            if not is_busy(domain):
                if not domain.isActive() or not is_migrating(domain):
                    return
                deadline = time.monotonic() + BUSY_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise HypervisorError(f"libvirt has been busy with it for {BUSY_TIMEOUT_S:g} s")
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return  # it has left between two questions
            raise
        time.sleep(SETTLE_PERIOD_S)


# --- migrating --------------------------------------------------------------------------------------------------------


def migrate(
    domain: Any,
    settings: Settings,
    order: MigrationOrder,
    marks: tuple[str, str, str],
    find: Callable[[], Any | None],
    on_progress: Callable[[MigrationProgress], None],
) -> None:
    """Migrates `domain`, a handle on a connection of its own. `marks`: the attempt, this node, the target's
    address. `find` gives a handle on another connection. Raises HypervisorError."""
    uuid, address = domain.UUIDString(), order.address
    flags, parameters = FLAGS | _flags(order.options), _parameters(domain, order, marks)
    with opened(settings.uri, address) as conn, storage.prepared(domain, settings, order, conn) as copied:
        flags |= copied.flags
        parameters.update(copied.parameters)
        with _Watcher(find, order.options, on_progress) as watcher:
            try:
                domain.migrateToURI3(uri_of(settings.uri, address), parameters, flags)
            except libvirt.libvirtError as error:
                text = f"cannot migrate {uuid} to {address}: {watcher.explain(error)}"
                raise HypervisorError(text) from None


def _flags(options: MigrationOptions) -> int:
    """Raises HypervisorError when what is demanded is not there."""
    flags = libvirt.VIR_MIGRATE_AUTO_CONVERGE if options.auto_converge else 0
    if options.tls == Tls.OFF:
        return int(flags)
    if has_migration_keys():
        return int(flags | libvirt.VIR_MIGRATE_TLS)
    if options.tls == Tls.ON:
        raise HypervisorError(f"TLS is demanded, and {key_folder()} of this node lacks {' or '.join(NEEDED)}")
    return int(flags)


def _parameters(domain: Any, order: MigrationOrder, marks: tuple[str, str, str]) -> dict[str, Any]:
    secure = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
    live = domain.XMLDesc(secure)
    defined = domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
    parameters: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{bracketed(order.address)}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: domain_xml.marked(live, *marks),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: domain_xml.marked(defined, *marks),
    }
    if is_ip(order.address):  # nobody listens on the target's other networks
        parameters[libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS] = order.address
    if order.options.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = order.options.bandwidth_mib_s
    return parameters


class _Watcher:
    """A thread beside the call: tells how far it is, and does what the time-out asks for; nothing after the call."""

    def __init__(
        self,
        find: Callable[[], Any | None],
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        self._find, self._options, self._on_progress = find, options, on_progress
        self._over = threading.Event()
        self._timed_out = False
        self._forced = False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="migration-watch", daemon=True)

    def __enter__(self) -> _Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()  # else it might still pause a guest that has stayed here

    def explain(self, error: Any) -> str:
        """Why the migration ended."""
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_ABORTED:
            return one_line(error)
        if self._timed_out:
            return f"timed out after {self._limit_s():g} s"
        return f"cancelled: {one_line(error)}"

    def _limit_s(self) -> float:
        timeout_s = self._options.timeout_s
        return timeout_s + max(timeout_s, FORCED_MIN_S) if self._forced else timeout_s

    def _watch(self) -> None:
        while not self._over.wait(WATCH_PERIOD_S):
            try:
                domain = self._find()
                if domain is not None and not self._over.is_set():
                    self._look(domain)
            except (libvirt.libvirtError, HypervisorError) as error:  # the next look is soon
                log.debug("a migration cannot be watched: %s", error)

    def _look(self, domain: Any) -> None:
        stats = domain.jobStats()
        if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
            return
        if stats.get("data_total"):  # not yet known at the very beginning
            self._on_progress(progress_of(stats))
        if time.monotonic() - self._began >= self._limit_s():
            if self._options.on_timeout == OnTimeout.FORCE and not self._forced:
                domain.suspend()
                self._forced = True
                domain.migrateSetMaxSpeed(NO_LIMIT_MIB_S)  # it stands still now: nothing is worse than slow
            else:
                self._timed_out = True
                domain.abortJob()


def progress_of(stats: dict[str, Any]) -> MigrationProgress:
    """libvirt's statistics of a migration in Chime's words."""
    return MigrationProgress(
        total_mib=-(-int(stats.get("data_total", 0)) // MIB),
        remaining_mib=-(-int(stats.get("data_remaining", 0)) // MIB),
        rate_mib_s=(int(stats.get("memory_bps", 0)) + int(stats.get("disk_bps", 0))) // MIB,
        iteration=int(stats.get("memory_iteration", 0)),
        downtime_ms=int(stats.get("downtime", 0)),
        elapsed_s=min(86_400.0, int(stats.get("time_elapsed", 0)) / 1000.0),
    )
