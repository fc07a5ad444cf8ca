"""Two hypervisors of one contract suite, between which VMs are migrated."""

from __future__ import annotations

from typing import Any, Protocol

from agentd.hypervisor import Hypervisor
from tests.contract.harness import Events
from tests.fakes.hypervisor import FakeHypervisor
from wire.messages import MigrationOptions, MigrationOrder


def order(address: str, **options: Any) -> MigrationOrder:
    """Go to that address."""
    return MigrationOrder(target="t", address=address, options=MigrationOptions(**options))


class Pair(Protocol):
    """A source and a target. `target_address`: under which the source finds the target."""

    source: Hypervisor
    target: Hypervisor
    source_events: Events
    target_events: Events
    target_address: str
    nowhere: str  # an address at which nothing answers
    slow: dict[str, Any]  # options of a migration that takes long

    def vm(self) -> dict[str, Any]:
        """The spec of a VM that can be migrated."""

    def slow_down(self) -> None:
        """From now on a transfer with the options `slow` takes long."""

    def kill_target(self) -> None:
        """The target loses its power."""


class FakePair:
    """Both in memory."""

    target_address, nowhere = "target", "nowhere"

    def __init__(self) -> None:
        self.fake_source, self.fake_target = FakeHypervisor(), FakeHypervisor()
        self.source: Hypervisor = self.fake_source
        self.target: Hypervisor = self.fake_target
        self.source_events, self.target_events = Events(), Events()
        self.source.connect(self.source_events.seen.append, self.source_events.lost.append)
        self.target.connect(self.target_events.seen.append, self.target_events.lost.append)
        self.fake_source.peers[self.target_address] = self.fake_target
        self.slow: dict[str, Any] = {}

    def vm(self) -> dict[str, Any]:
        return {}

    def slow_down(self) -> None:
        self.fake_source.slow_transfers = True

    def kill_target(self) -> None:
        self.fake_target.lose()
        self.fake_target.power_loss()
        self.fake_source.slow_transfers = False  # libvirt sees that nobody listens
        self.fake_source.tell_moves()
