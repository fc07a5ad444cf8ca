"""A real agentd in a host of its own (namespaces), with a real chimed outside."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.fleet import Server
from tests.bench.processes import command
from tests.hosts import Cluster, Host, wait_until
from wire import keys
from wire import messages as m
from wire.client import Client
from wire.types import VirtType

READY_S = 60.0
VM_MEMORY_MIB = 16  # a guest that sits in its firmware


def start_agent(host: Host, bundle: keys.KeyFile, **settings: Any) -> None:
    """agentd as a service of the host."""
    state = host.dir / "state"
    state.mkdir()
    keys.save(state / "node.key", bundle)
    values = {"state_dir": str(state), "socket": str(host.run_dir / "agent.sock"), "libvirt_uri": host.hyp_uri}
    values |= {"virt_type": "qemu", "log_format": "console", **settings}
    config = host.etc / "agentd.toml"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    host.service("agentd", command("agentd.main", "--config", str(config))).start()


@contextlib.contextmanager
def cluster_of_one(directory: Path, names: tuple[str, ...], **agent: Any) -> Iterator[tuple[Cluster, Client]]:
    """Hosts of which the first has an agent, in session with a chimed that runs outside; and an operator."""
    with Cluster(names) as cluster:
        server = Server(directory, 1, address=cluster.address, memory_reserve_mib=0, vcpu_overcommit=100.0)
        with server.started(), server.client() as client:
            start_agent(cluster[names[0]], server.bundle(0), **agent)
            wait_until(lambda: _ready(client), READY_S, "the agent is in session")
            yield cluster, client


def _ready(client: Client) -> bool:
    return all(node["schedulable"] for node in client.items(m.NodeList()))


def create_vm(client: Client, name: str) -> str:
    """Asks for a small VM; returns its UUID."""
    spec = m.VmSpec(vcpus=1, memory_mib=VM_MEMORY_MIB, virt_type=VirtType.QEMU)
    client.request(m.VmCreate(key=secrets.token_hex(8), name=name, spec=spec))
    return str(client.request(m.VmShow(vm=name))["vm"]["uuid"])
