"""libvirt's domains as facts, and what is done alike to each of them.

Rules: a domain that libvirt is busy with holds nobody up; what cannot be told of it is never taken for over. Functions
raise libvirtError: who calls them says what was being tried.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from agentd.core.facts import Domain, DomainState, OffReason
from agentd.libvirt import domain_xml
from agentd.libvirt.connection import libvirt
from agentd.libvirt.words import OFF_REASONS, STATES

log = logging.getLogger(__name__)

NO_ANSWER = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT)
PATIENCE_S, PATIENCE_ALONE_S = 0.1, 0.5  # with a busy domain; libvirt is busy for moments in a migration too


def all_domains(conn: Any) -> tuple[Domain, ...]:
    """One call lists, two say what is transient and what has autostart, then some for each domain."""
    transient = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
    autostart = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
    found = []
    for handle in conn.listAllDomains(0):
        try:
            domain = domain_of(handle, handle.UUIDString() not in transient)
            if domain.epoch is not None and domain.uuid in autostart:
                never_autostart(handle)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        else:
            found.append(domain)
    return tuple(found)


def _uuids(conn: Any, flags: int) -> frozenset[str]:
    return frozenset(domain.UUIDString() for domain in conn.listAllDomains(flags))


def domain_of(handle: Any, persistent: bool, alone: bool = False) -> Domain:
    """A domain as facts; `alone`: it is the only one that is looked at. Raises libvirtError."""
    job = _job(handle, alone)  # first: a domain that ends meanwhile must not look like one that stays without a job
    code, reason = handle.state()
    state, off = STATES.get(code, DomainState.OTHER), OffReason.UNKNOWN
    if code == libvirt.VIR_DOMAIN_SHUTOFF:
        off = OFF_REASONS.get(reason, OffReason.UNKNOWN)
    elif code == libvirt.VIR_DOMAIN_CRASHED and not handle.isActive():
        state, off = DomainState.OFF, OffReason.CRASHED
    stamp = read_stamp(handle)
    return Domain(
        uuid=handle.UUIDString().lower(),
        name=handle.name(),
        state=state,
        reason=off,
        epoch=None if stamp is None else stamp.epoch,
        revision=None if stamp is None else stamp.revision,
        persistent=persistent,
        io_error=(code, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR),
        attempt="" if stamp is None else stamp.attempt,
        origin="" if stamp is None else stamp.origin,
        job=job,
        adopted=stamp is not None and stamp.adopted,
        seal="" if stamp is None else stamp.seal,
        voucher="" if stamp is None else stamp.voucher,
        address="" if stamp is None else stamp.address,
    )


def read_stamp(domain: Any, where: int = 0) -> domain_xml.Stamp | None:
    """Chime's metadata of a domain: as it is now, or `where` (flags of libvirt). Raises libvirtError."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE, where)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    return domain_xml.read_metadata(text)


def resume(domain: Any) -> None:
    """Lets a paused domain run; one that runs is let be. Raises libvirtError."""
    if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
        return
    try:
        domain.resume()
    except libvirt.libvirtError:
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            raise


def _job(domain: Any, alone: bool) -> bool:
    """Whether libvirt is migrating a domain, in or out. To ask one that is busy would wait for half a minute. One that
    stays busy is taken for migrating if it is paused for that; or in any case when it is looked at `alone`, since what
    is unknown is not over. Raises libvirtError."""
    if not domain.isActive():
        return False
    deadline = time.monotonic() + (PATIENCE_ALONE_S if alone else PATIENCE_S)
    while is_busy(domain):
        if time.monotonic() >= deadline:
            return alone or domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]
        time.sleep(0.02)
    return is_migrating(domain)


def is_busy(domain: Any) -> bool:
    """Whether libvirt waits for the domain's qemu, or would not say. Raises libvirtError."""
    try:
        return bool(domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK)
    except libvirt.libvirtError as error:
        if error.get_error_code() in NO_ANSWER:
            return False  # it has just ended, or this driver has no such thing
        raise


def is_migrating(domain: Any) -> bool:
    """Asks libvirt for the job of a domain. Raises libvirtError."""
    try:
        stats = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True  # "only available on the source host": it is coming
        if error.get_error_code() in NO_ANSWER:
            return False
        raise
    ways = (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
    return stats.get("type") != libvirt.VIR_DOMAIN_JOB_NONE and stats.get("operation") in ways


def never_autostart(domain: Any) -> None:
    """libvirt must not start it by itself. Raises libvirtError."""
    if domain.isPersistent() and domain.autostart():
        log.warning("%s: autostart is switched off: only the agent may start it", domain.UUIDString())
        domain.setAutostart(0)
