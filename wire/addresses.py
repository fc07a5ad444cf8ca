"""What an address in a message must be, beyond its pattern. Pure.

An address names one host: no text that only looks like an address (`::::`), no unspecified, multicast or broadcast
address, none with a scope (`fe80::1%eth0` means something only on the host that wrote it), and IPv4 is written as
IPv4, not mapped into IPv6. Loopback and link-local addresses are addresses of hosts; who looks for a way from another
host leaves them out. The codec asks for each message that it reads; what is stored or made here is not asked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from wire import messages as m

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def ip(text: str) -> Ip | None:
    """The address of a host that `text` is, or None."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if _odd(found) else found


def problem(text: str) -> str:
    """Why `text` is no address of a host, as the end of a sentence about it; empty when it is one."""
    try:
        return _odd(ipaddress.ip_address(text))
    except ValueError:
        return "is no IPv4 or IPv6 address"


def _odd(found: Ip) -> str:
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return f"is an IPv4 address in IPv6: write {found.ipv4_mapped}"
        if found.scope_id is not None:
            return "has a scope, which only one host knows"
    if found.is_unspecified:
        return "is the unspecified address, which is no host's"
    return "belongs to many hosts" if found.is_multicast or found == _BROADCAST else ""


def _hello(body: m.Hello) -> str:
    for number, network in enumerate(body.host.networks):
        at = f"host.networks[{number}]"
        why = problem(network.address)
        if why:
            return f"address {network.address} {why} (at {at}.address)"
        if network.prefix > 32 and "." in network.address:
            return f"a prefix of {network.prefix} bits is too long for {network.address} (at {at}.prefix)"
    return ""


def _node_add(body: m.NodeAdd) -> str:
    why = problem(body.address) if body.address is not None else ""
    return f"address {body.address} {why} (at address)" if why else ""


def _inventory(body: m.Inventory) -> str:
    for number, command in enumerate(body.commands):
        why = problem(command.migration.address) if command.migration is not None else ""
        if why and command.migration is not None:
            return f"address {command.migration.address} {why} (at commands[{number}].migration.address)"
    return ""


CHECKS: dict[type[m.Base], Callable[[Any], str]] = {m.Hello: _hello, m.NodeAdd: _node_add, m.Inventory: _inventory}
"""For each message that carries addresses: what is wrong with them, or nothing."""
