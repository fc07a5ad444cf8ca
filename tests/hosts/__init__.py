"""Lightweight hosts on one machine: namespaces with an init, a boot id and a link each, and an oracle.

    with Cluster(["n1", "n2"]) as cluster:
        agent = cluster["n1"].service("agentd", [sys.executable, "-m", "agentd.main", "--config", ...])
        agent.start()
        cluster["n1"].power_off()
        assert not cluster.processes()

Needs root. Used by the demo, the integration tests and the bench.
"""

from tests.hosts.cluster import Cluster, down, forget_directory, kept_clusters, left_behind, short_directory, sweep
from tests.hosts.counter import Count, Guest
from tests.hosts.guest import GuestError, build_guest, guest_cmdline, guest_xml
from tests.hosts.host import Host, embed_conf
from tests.hosts.network import NetworkError
from tests.hosts.oracle import Qemu, Watch
from tests.hosts.service import HostError, Service, wait_until

__all__ = [
    "Cluster",
    "Count",
    "Guest",
    "GuestError",
    "Host",
    "HostError",
    "NetworkError",
    "Qemu",
    "Service",
    "Watch",
    "build_guest",
    "down",
    "embed_conf",
    "forget_directory",
    "guest_cmdline",
    "guest_xml",
    "kept_clusters",
    "left_behind",
    "short_directory",
    "sweep",
    "wait_until",
]
