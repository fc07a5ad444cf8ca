"""The network of a cluster: one bridge beside the machine's own networks, one veth link for each host."""

from __future__ import annotations

import ipaddress
import random
import subprocess
import time
from pathlib import Path

BRIDGE_PORT_FORWARDING = "3"  # BR_STATE_FORWARDING of linux/if_bridge.h


class NetworkError(RuntimeError):
    """An `ip` command failed; the message holds it and what it said."""


def ip_batch(*commands: str, pid: int | None = None) -> None:
    """Run `ip` commands, inside the network namespace of `pid` when given. Raises NetworkError."""
    argv = ["ip", "-batch", "-"]
    if pid is not None:
        argv = ["nsenter", "-t", str(pid), "-n", *argv]
    done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")


def device_exists(name: str) -> bool:
    """True when the machine has a network device of that name."""
    return subprocess.run(["ip", "link", "show", "dev", name], capture_output=True).returncode == 0


def delete_device(name: str) -> None:
    """Delete a network device; one that is gone already is fine."""
    done = subprocess.run(["ip", "link", "del", "dev", name], capture_output=True, text=True)
    if done.returncode and device_exists(name):
        raise NetworkError(f"ip link del {name}: {done.stderr.strip()}")


def free_subnet(tries: int = 200) -> ipaddress.IPv4Network:
    """A /24 out of 10.64.0.0/11 that overlaps no address and no route of this machine."""
    taken = _networks_in_use()
    for _ in range(tries):
        subnet = ipaddress.IPv4Network(f"10.{random.randrange(64, 96)}.{random.randrange(256)}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise NetworkError("no free subnet in 10.64.0.0/11")


def _networks_in_use() -> list[ipaddress.IPv4Network]:
    argv = ["ip", "-4", "route", "show", "table", "all"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = []
    for line in done.stdout.splitlines():
        for word in line.split()[:2]:
            try:
                found.append(ipaddress.IPv4Network(word, strict=False))
            except ValueError:
                continue
    return found


class Bridge:
    """The switch that all hosts and the machine itself are plugged into."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.subnet = free_subnet()

    @property
    def address(self) -> str:
        """The machine's own address on the bridge: .1 of the subnet."""
        return str(self.subnet[1])

    def create(self) -> None:
        """Make the bridge. Raises NetworkError."""
        ip_batch(
            f"link add {self.name} type bridge stp_state 0 forward_delay 0",
            f"link set {self.name} addrgenmode none",
            f"addr add {self.address}/{self.subnet.prefixlen} dev {self.name}",
            f"link set {self.name} up",
        )

    def delete(self) -> None:
        """Remove the bridge if it is there."""
        delete_device(self.name)


class Link:
    """The cable from a host's `eth0` to the bridge; a cut survives a power cycle of the host."""

    def __init__(self, bridge: Bridge, device: str, index: int) -> None:
        self.bridge = bridge
        self.device = device
        self.address = str(bridge.subnet[index])
        self.mac = f"02:c4:{bridge.subnet[0].packed[1]:02x}:{bridge.subnet[0].packed[2]:02x}:00:{index:02x}"
        self.is_cut = False

    def plug(self, pid: int) -> None:
        """Connect the network namespace of `pid`. Raises NetworkError."""
        ip_batch(
            f"link add {self.device} type veth peer name eth0 address {self.mac} netns {pid}",
            f"link set {self.device} addrgenmode none",
            f"link set {self.device} master {self.bridge.name}",
            f"link set {self.device} {'down' if self.is_cut else 'up'}",
        )
        ip_batch(
            "link set lo up",
            "link set eth0 addrgenmode none",
            f"addr add {self.address}/{self.bridge.subnet.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {self.bridge.address}",
            pid=pid,
        )
        self._wait_forwarding()

    def unplug(self) -> None:
        """Remove the cable, both ends."""
        delete_device(self.device)

    def silence(self) -> None:
        """Stop all traffic at once without remembering it (loss of power, not of the cable)."""
        ip_batch(f"link set {self.device} down")

    def cut(self) -> None:
        """Cut the cable."""
        self.is_cut = True
        if device_exists(self.device):
            self.silence()

    def heal(self) -> None:
        """Repair the cable."""
        self.is_cut = False
        if device_exists(self.device):
            ip_batch(f"link set {self.device} up")
            self._wait_forwarding()

    def _wait_forwarding(self, timeout_s: float = 15.0) -> None:
        """The kernel tells the bridge about the carrier a little later; until then it forwards nothing."""
        state = Path(f"/sys/class/net/{self.device}/brport/state")
        deadline = time.monotonic() + timeout_s
        while not self.is_cut and state.read_text().strip() != BRIDGE_PORT_FORWARDING:
            if time.monotonic() > deadline:
                raise NetworkError(f"{self.device} carries no traffic after {timeout_s:g} s")
            time.sleep(0.01)
