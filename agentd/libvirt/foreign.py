"""Domains that a person made: what a survey tells of them, and what taking one over and giving it back do to them.

Rules: only Chime's metadata element is ever written, into the running domain and its definition in one call; a domain
that is not exactly what was asked for is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from agentd.core.facts import DomainState
from agentd.hypervisor import InvalidVm
from agentd.libvirt import domain_xml
from agentd.libvirt.connection import libvirt
from agentd.libvirt.domains import read_stamp
from agentd.libvirt.words import STATES
from wire.messages import Assignment, ForeignVm
from wire.text import clean_line
from wire.types import NAME_PATTERN, Desired, Observed

PAGE = 500
MAX_XML_BYTES = 262_144
MAX_NAME = 200

_ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
_OBSERVED = {DomainState.OFF: Observed.STOPPED, DomainState.PAUSED: Observed.PAUSED}


def page(handles: Iterable[Any], after: str) -> tuple[tuple[ForeignVm, ...], bool]:
    """The domains without our mark by name, from after the one named `after`, and whether there are more."""
    later = sorted(((handle.name(), handle) for handle in handles), key=lambda pair: str(pair[0]))
    found: list[ForeignVm] = []
    for _, handle in (pair for pair in later if pair[0] > after):
        if len(found) == PAGE:
            return tuple(found), True
        try:
            if read_stamp(handle) is None:
                found.append(tell(handle, with_xml=False))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return tuple(found), False


def tell(handle: Any, with_xml: bool) -> ForeignVm:
    """What there is to know of a domain before it is imported."""
    xml = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    state = STATES.get(handle.state()[0], DomainState.OTHER) if handle.isActive() else DomainState.OFF
    fits = len(xml.encode()) <= MAX_XML_BYTES
    return ForeignVm(
        uuid=handle.UUIDString().lower(),
        name=clean_line(handle.name(), MAX_NAME),
        observed=_OBSERVED.get(state, Observed.RUNNING),
        autostart=bool(handle.isPersistent() and handle.autostart()),
        problem=_objection(handle, xml),
        xml=xml if with_xml and fits else None,
    )


def _objection(handle: Any, xml: str) -> str:
    """Why the domain cannot be taken over, and what to do; empty if it can."""
    if not handle.isPersistent():
        return "it is transient: libvirt forgets it when it ends; give it a definition first (virsh define)"
    if not re.search(NAME_PATTERN, handle.name()):
        return "its name is none for Chime (letters, digits, . _ -): rename it while it is off (virsh domrename)"
    if len(xml.encode()) > MAX_XML_BYTES:
        return f"its definition is longer than {MAX_XML_BYTES} bytes"
    if handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE) != xml:
        return "its definition holds a password, which Chime does not keep: remove it first (virsh edit)"
    if not handle.isActive() and handle.hasManagedSaveImage(0):
        return "its memory is saved on disk: start it, or discard that, first (virsh managedsave-remove)"
    try:
        domain_xml.parse(xml)
    except InvalidVm as problem:
        return str(problem)
    return ""


def check(handle: Any, vm: Assignment) -> None:
    """Raises InvalidVm unless the domain is what the assignment was made of."""
    xml = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    if objection := _objection(handle, xml):
        raise InvalidVm(f"{vm.name} cannot be taken over: {objection}")
    if handle.name() != vm.name:
        raise InvalidVm(f"the domain is named {clean_line(handle.name(), MAX_NAME)} now, not {vm.name}")
    if xml != vm.spec.xml:
        raise InvalidVm("its definition was changed since it was looked at: import it again")
    if vm.desired == Desired.RUNNING and not handle.isActive():
        raise InvalidVm("it does not run any more: import it again")


def stamp(handle: Any, vm: Assignment) -> None:
    """Puts our mark on the domain, as one that was taken over."""
    element = domain_xml.metadata_element(vm, adopted=True)
    handle.setMetadata(_ELEMENT, element, "chime", domain_xml.NAMESPACE, sum(_places(handle)))


def strip(handle: Any, epoch: int) -> None:
    """Takes our mark off, wherever it names `epoch` or a lower one."""
    for where in _places(handle):
        found = read_stamp(handle, where)
        if found is not None and found.epoch <= epoch:
            handle.setMetadata(_ELEMENT, None, "chime", domain_xml.NAMESPACE, where)


def _places(handle: Any) -> list[int]:
    """Where the domain keeps metadata: in its process, in its definition."""
    return [*([_LIVE] if handle.isActive() else []), *([_CONFIG] if handle.isPersistent() else [])]
