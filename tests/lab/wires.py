"""The lab's two networks: a bridge each for management and business traffic, and faults on single cables.

A host hangs on each bridge with one veth pair, whose inner end is `mgmt0` or `biz0`. Two kinds of fault: a
direction in which frames vanish while the link stays up (`cut`; nftables, by the name of the outer end, so it survives
a power cycle), and a pulled cable (`pull`; the host sees no carrier).
"""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.hosts.network import (
    BRIDGE_PORT_FORWARDING,
    NetworkError,
    delete_device,
    device_exists,
    free_subnet,
    ip_batch,
)

Net = Literal["mgmt", "biz"]
Direction = Literal["in", "out", "both"]  # as seen by the host: "in" = it hears nothing, "out" = nobody hears it
NETS: tuple[Net, ...] = ("mgmt", "biz")
CARRIER_TIMEOUT_S = 10.0

# no_out: frames that come from these devices are dropped; no_in: frames that would leave through them.
TABLE = """
table bridge {table} {{
    set no_out {{ type ifname; }}
    set no_in {{ type ifname; }}
    chain forward {{ type filter hook forward priority 0; iifname @no_out drop; oifname @no_in drop; }}
    chain input {{ type filter hook input priority 0; iifname @no_out drop; }}
    chain output {{ type filter hook output priority 0; oifname @no_in drop; }}
}}
"""
SETS = {"out": ("no_out",), "in": ("no_in",), "both": ("no_in", "no_out")}


@dataclass(frozen=True)
class Plug:
    """One host's place on one network. `device` is the outer end of its cable."""

    net: Net
    device: str
    address: str
    prefix: int

    @property
    def inner(self) -> str:
        """The interface inside the host."""
        return f"{self.net}0"


class Wires:
    """Both bridges. The machine itself is on the management network, with the first address, for tests and people."""

    def __init__(self, run: str, subnets: Mapping[str, str] | None = None) -> None:
        self.run = run
        self.table = f"chimelab{run}"
        self.subnets = {net: ipaddress.IPv4Network(subnets[net]) for net in NETS} if subnets else {}
        self._pulled: set[str] = set()

    def bridge(self, net: Net) -> str:
        """Name of a bridge."""
        return f"cl{self.run}{net}"

    @property
    def devices(self) -> list[str]:
        """What `delete` deletes (cables go with their hosts)."""
        return [self.bridge(net) for net in NETS]

    def create(self) -> None:
        """Make bridges and filter. Raises NetworkError."""
        for net in NETS:
            name, subnet = self.bridge(net), free_subnet()
            self.subnets[net] = subnet
            ip_batch(
                f"link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {name} addrgenmode none",
                # the business bridge gets its address too, so that no other cluster takes the same subnet
                f"addr add {subnet[1]}/{subnet.prefixlen} dev {name}",
                f"link set {name} up",
            )
        _nft(TABLE.format(table=self.table))

    def delete(self) -> None:
        """Remove all of it; what is gone already is fine."""
        delete_wires(self.table, self.devices)

    def plug(self, net: Net, number: int) -> Plug:
        """The place of host `number` (from 10) on a network."""
        subnet = self.subnets[net]
        return Plug(net, f"cl{self.run}{number}{net[0]}", str(subnet[number]), subnet.prefixlen)

    def connect(self, plugs: Iterable[Plug]) -> None:
        """Put the outer ends of a host's cables, made by its boot, on the bridges."""
        for plug in plugs:
            ip_batch(
                f"link set {plug.device} addrgenmode none",
                f"link set {plug.device} master {self.bridge(plug.net)}",
                f"link set {plug.device} {'down' if plug.device in self._pulled else 'up'}",
            )
        for plug in plugs:
            self._wait_forwarding(plug.device)

    def cut(self, plug: Plug, direction: Direction) -> None:
        """Let frames of a direction vanish; the carrier stays."""
        for name in SETS[direction]:
            _nft(f"add element bridge {self.table} {name} {{ {plug.device} }}")

    def pull(self, plug: Plug) -> None:
        """Pull the cable: no carrier."""
        self._pulled.add(plug.device)
        self.silence([plug])

    def silence(self, plugs: Iterable[Plug]) -> None:
        """Stop all traffic at once without remembering it (loss of power, not of the cable)."""
        for plug in plugs:
            with contextlib.suppress(NetworkError):  # the host is off, its cables are gone
                ip_batch(f"link set {plug.device} down")

    def heal(self, plug: Plug) -> None:
        """All traffic flows again."""
        _nft(
            f"add element bridge {self.table} no_in {{ {plug.device} }}\n"  # deleting wants it to be there
            f"add element bridge {self.table} no_out {{ {plug.device} }}\n"
            f"delete element bridge {self.table} no_in {{ {plug.device} }}\n"
            f"delete element bridge {self.table} no_out {{ {plug.device} }}"
        )
        self._pulled.discard(plug.device)
        if device_exists(plug.device):
            ip_batch(f"link set {plug.device} up")
            self._wait_forwarding(plug.device)

    def _wait_forwarding(self, device: str) -> None:
        state = Path(f"/sys/class/net/{device}/brport/state")
        deadline = time.monotonic() + CARRIER_TIMEOUT_S
        while device not in self._pulled and state.read_text().strip() != BRIDGE_PORT_FORWARDING:
            if time.monotonic() > deadline:
                raise NetworkError(f"{device} carries no traffic after {CARRIER_TIMEOUT_S:g} s")
            time.sleep(0.01)


def delete_wires(table: str, devices: Iterable[str]) -> None:
    """Remove a filter and bridges, also those of a dead run."""
    for device in devices:
        with contextlib.suppress(NetworkError):
            delete_device(device)
    _nft(f"table bridge {table}\ndelete table bridge {table}")


def _nft(commands: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=commands, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"nft: {commands.strip()}: {done.stderr.strip()}")
