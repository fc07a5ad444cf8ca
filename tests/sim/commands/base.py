"""The vocabulary of commands, and what several kinds of them need."""

from __future__ import annotations

from tests.sim.cluster import Cluster
from tests.sim.host import Host
from tests.sim.words import Vocabulary

COMMANDS = Vocabulary("command")
word = COMMANDS.word


def kill_agent(host: Host) -> None:
    """SIGKILL, if it runs; systemd starts it again if it is to run."""
    if host.agent is not None:
        host.agent.die()


def on(c: Cluster, vm: str) -> tuple[Host | None, str]:
    """Where libvirt runs the VM."""
    uuid = c.uuid(vm)
    for host in c.hosts.values():
        if host.hypervisor.is_running(uuid) or host.hypervisor.is_paused(uuid):
            return host, uuid
    return None, uuid
