"""Addresses are checked where messages are decoded, and stored ones that are none trip nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chimed.core.rules import networks
from chimed.core.state import rows as r
from tests.tools.make_vectors import frame
from tests.tools.samples import raw_sample
from tests.unit.server.world import running
from wire import addresses, codec
from wire import messages as m
from wire.errors import ChimeError

NONE = {
    "::::": "is no IPv4 or IPv6 address",
    "..": "is no IPv4 or IPv6 address",
    "10.0.0.256": "is no IPv4 or IPv6 address",
    "010.0.0.1": "is no IPv4 or IPv6 address",
    "10.0.1": "is no IPv4 or IPv6 address",
    "0.0.0.0": "is the unspecified address",
    "::": "is the unspecified address",
    "224.0.0.1": "belongs to many hosts",
    "ff02::1": "belongs to many hosts",
    "255.255.255.255": "belongs to many hosts",
    "::ffff:10.0.0.1": "is an IPv4 address in IPv6: write 10.0.0.1",
}
HOSTS = ("10.0.0.1", "127.0.0.1", "169.254.1.1", "fe80::1", "::1", "FD00::1", "fd00:0:0::1")


def hello(address: str, prefix: int = 8) -> tuple[str, dict[str, Any]]:
    body = raw_sample(m.Hello)
    body["host"] = {"networks": [{"interface": "eth0", "address": address, "prefix": prefix}]}
    return "hello", body


def node_add(address: str) -> tuple[str, dict[str, Any]]:
    return "node.add", {**raw_sample(m.NodeAdd), "address": address}


def inventory(address: str) -> tuple[str, dict[str, Any]]:
    body = raw_sample(m.Inventory)
    body["commands"][0]["migration"]["address"] = address
    return "inventory", body


@pytest.mark.parametrize("message", [hello, node_add, inventory])
@pytest.mark.parametrize("address", NONE)
def test_h2_what_is_no_address_of_a_host_is_refused_where_it_is_decoded(message: Any, address: str) -> None:
    kind, body = message(address)
    for read in (codec.decode, codec._decode_strictly):
        with pytest.raises(ChimeError) as caught:
            read(frame(kind, body))
        assert caught.value.code == "invalid" and caught.value.details == {"id": "c1"}
        assert f"{kind}: address {address} {NONE[address]}" in caught.value.message
        assert "address)" in caught.value.message, "it says where"


@pytest.mark.parametrize("message", [hello, node_add, inventory])
@pytest.mark.parametrize("address", HOSTS)
def test_h2_addresses_of_hosts_are_taken(message: Any, address: str) -> None:
    kind, body = message(address)
    typed = msgspec.convert(body, codec.VERBS[kind].body)
    assert codec.decode(codec.encode(typed, "c1")).body == typed


def test_h2_addresses_that_may_be_left_out_may() -> None:
    for kind, body in (("node.add", raw_sample(m.NodeAdd, minimal=True)), ("hello", raw_sample(m.Hello, minimal=True))):
        codec.decode(frame(kind, body))
    body = raw_sample(m.Inventory)
    body["commands"][0]["migration"] = None
    codec.decode(frame("inventory", body))


def test_h2_a_scope_is_refused() -> None:
    assert addresses.problem("fe80::1%eth0") == "has a scope, which only one host knows"
    with pytest.raises(ChimeError, match="that is an IPv4 or IPv6 address"):
        codec.decode(frame(*hello("fe80::1%eth0")))


@pytest.mark.parametrize(
    ("address", "prefix", "fits"), [("10.0.0.1", 32, True), ("10.0.0.1", 33, False), ("fd00::1", 128, True)]
)
def test_h2_a_prefix_fits_its_address(address: str, prefix: int, fits: bool) -> None:
    if fits:
        codec.decode(frame(*hello(address, prefix)))
        return
    with pytest.raises(
        ChimeError, match=r"a prefix of 33 bits is too long for 10.0.0.1 \(at host.networks\[0\].prefix"
    ):
        codec.decode(frame(*hello(address, prefix)))


def network(address: str) -> m.HostNetwork:
    return m.HostNetwork(interface="eth0", address=address, prefix=8)


@pytest.mark.parametrize("address", [*NONE, "fe80::1%eth0", "fe80::1", "127.0.0.1", "::1", ""])
def test_h2_a_stored_address_that_is_of_no_use_trips_nothing(address: str) -> None:
    odd = r.Node(name="n1", public_key="k", address=address, ping_address=address, networks=(network(address),))
    for name in ("management", "business", "eth0", "10.0.0.0/8", "::/0", "0.0.0.0/0", "::::", ""):
        assert networks.address_on(odd, name) is None
    good = msgspec.structs.replace(odd, address="10.0.0.1", networks=(network(address), network("10.0.0.2")))
    assert networks.address_on(good, "management") == "10.0.0.1"
    assert networks.address_on(good, "eth0") == "10.0.0.2"
    assert networks.address_on(good, "10.0.0.0/24") == "10.0.0.2"
    assert networks.other_node_at([odd, good], "10.0.0.2", "n9") == good
    assert networks.other_node_at([odd, good], "", "n9") is None
    assert networks.listed(odd)


def test_a_peer_is_found_by_any_way_to_write_its_address() -> None:
    node = r.Node(name="n1", public_key="k", networks=(network("fd00::a"),))
    assert networks.other_node_at([node], "FD00:0::A", "n2") == node


def test_h2_an_evacuation_by_a_network_whose_address_is_none_goes_on() -> None:
    """As it was found: the address is in the database, a step waits, and the server sweeps."""
    world = running("n1", "n2", "n3")
    world.agents["n2"].host = {"networks": (network("::::"),)}
    world.agents["n3"].host = {"networks": (network("::::"), network("10.0.0.3"))}
    world.start()
    error = world.refuse(m.VmMigrate, vm="web", to="n2", network="eth0")
    assert error.code == "invalid"
    answer = world.do(m.NodeEvacuate, name="n1", network="10.2.0.0/16")
    for _ in range(2):
        world.run(30)
        assert world.op(answer)["steps"][0]["detail"].endswith("has no address on the network 10.2.0.0/16")
        world.crash()
        world.start()
    world.do(m.OpCancel, id=answer["operation"]["id"])
    world.do(m.NodeEvacuate, name="n1", network="eth0")
    assert [row.address for row in world.tables().migrations] == ["10.0.0.3"]
