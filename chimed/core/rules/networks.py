"""By which address of a node the data of a migration goes. Pure.

A network is named by what people know: `management` (the address that the server knows the node by), `business` (the
network of the VMs), an interface, a subnet, or one of the node's addresses. Link-local and loopback addresses are never
used, and neither is what is no address of a host: that is refused where it is decoded, and stored all the same is none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from chimed.core.state import rows as r
from wire.addresses import Ip, ip

MANAGEMENT = "management"
BUSINESS = "business"


def address_on(node: r.Node, network: str) -> str | None:
    """The node's address on that network, or None."""
    if network == MANAGEMENT:
        return node.ping_address if _usable(node.ping_address) else node.address if _usable(node.address) else None
    interface = node.business_interface if network == BUSINESS else network
    known = [n for n in node.networks if _usable(n.address)]
    for candidate in known:
        if candidate.interface == interface:
            return candidate.address
    subnet = _subnet(network)
    if subnet is None:
        return None
    addresses = [*(candidate.address for candidate in known), node.ping_address, node.address]
    return next((text for text in addresses if (found := _usable(text)) is not None and found in subnet), None)


def other_node_at(nodes: Iterable[r.Node], peer: str, node_name: str) -> r.Node | None:
    """The one node of that name, or with that address; None: nobody knows which it is, or it is `node_name` itself."""
    wanted = ip(peer)
    found = [node for node in nodes if peer == node.name or (wanted is not None and wanted in addresses(node))]
    return found[0] if len(found) == 1 and found[0].name != node_name else None


def addresses(node: r.Node) -> set[Ip | None]:
    """Every address that the node is known by; None stands for none."""
    return {ip(text) for text in (node.address, node.ping_address, *(known.address for known in node.networks))}


def _usable(address: str) -> Ip | None:
    """The address of a host, if others may reach it by it."""
    found = ip(address)
    return found if found is not None and not found.is_link_local and not found.is_loopback else None


def _subnet(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A subnet, or an address as the subnet that holds nothing else."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def listed(node: r.Node) -> str:
    """The node's networks, for a refusal."""
    names = [f"{MANAGEMENT} ({node.ping_address or node.address or 'unknown'})"]
    names += [
        f"{BUSINESS if n.interface == node.business_interface else n.interface} ({n.address}/{n.prefix})"
        for n in node.networks
    ]
    return ", ".join(names)
