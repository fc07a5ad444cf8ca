"""Writes the tables of `docs/configuration.md` from the configuration Structs.

Run it after a change of a setting: `python -m tests.tools.make_config_tables`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

import agentd.config
import chimed.config
from tests.tools.make_protocol_tables import table
from wire.local.settings import Order

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
BLOCK = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

CHIMED = {
    "endpoint": "where to listen",
    "public_endpoint": "what key files tell nodes and operators to connect to (empty: `endpoint`, or this host's name)",
    "state_dir": "folder of the server's files",
    "database": "the database (empty: `chime.db` in `state_dir`)",
    "key_file": "the server's key (empty: `server.key` in `state_dir`)",
    "heartbeat_s": "interval of the agents' heartbeats",
    "missed_heartbeats": "so many missed heartbeats, then ping",
    "ping_tries": "pings of a silent node before it is called unreachable",
    "ping_timeout_s": "wait for each ping",
    "challenge_s": "time for a node's session to answer when another host uses its key",
    "command_timeout_s": "deadline of a command (reboot)",
    "operation_timeout_s": "an operation that is not done by then has failed; what it asked for stays",
    "memory_overcommit": "VM memory that a node may hold, as a multiple of its memory",
    "vcpu_overcommit": "vCPUs that a node may hold, as a multiple of its CPUs",
    "memory_reserve_mib": "memory of each node that VMs never get",
    "vcpu_reserve": "CPUs of each node that VMs never get",
    "migration_network": "the network of migrations that name none: `management`, `business`, an interface or a subnet",
    "migrations_per_node": "live migrations that a node takes part in at a time, as source or target",
    "migrations_per_cluster": "live migrations at a time",
    "mass_fraction": "more than this share of all nodes unreachable together is one alarm `mass-unreachable`",
    "mass_min": "and at least so many",
    "connections_per_node": "connections of one node's key; a further one ends the oldest",
    "connections_per_operator": "the same of an operator's key",
    "node_messages_per_s": "messages of one node's key on average; what is beyond is refused, not looked at",
    "node_kib_per_s": "KiB of one node's key on average",
    "operator_messages_per_s": "messages of one operator's key on average",
    "operator_kib_per_s": "KiB of one operator's key on average",
    "budget_burst_s": "so many seconds of its average may a key send at once",
    "node_events_per_s": "events of one node in the audit trail on average; what is beyond is dropped and counted",
    "node_events_burst": "and so many at once",
    "node_changes_per_s": "rows and lines that one node's reports change on average; beyond, they have to wait",
    "node_changes_burst": "and so many at once",
    "reported_vms": "VMs that one node may report",
    "reported_mib": "and MiB of text in these reports",
    "events_kept": "lines of the audit trail about operators and the server itself that are kept",
    "node_events_kept": "lines about what nodes told that are kept",
    "operations_kept": "ended operations that are kept",
    "alarms_kept": "cleared alarms that are kept",
    "answers_kept": "saved answers (idempotency keys) that are kept",
    "answers_kept_s": "and for how long, in time that the server has run",
    "log_level": "debug, info, warning or error",
    "log_format": "console, json, or auto: console on a terminal",
}
AGENTD = {
    "key_file": "the node's key (empty: `node.key` in `state_dir`); `agentd join` writes it",
    "state_dir": "folder of the snapshot",
    "socket": "unix socket for `chime-agent`",
    "libvirt_uri": "`qemu:///system`, or `qemu:///embed?root=DIR` for a hypervisor without libvirtd",
    "virt_type": "auto (KVM where there is one), kvm or qemu",
    "migration_uri": "of the libvirt of another node, for live migration, with `{host}` for its address: `qemu+tls`, "
    "`qemu+ssh`, or `qemu+tcp` (unencrypted and open to everyone: for a lab)",
    "shared_paths": "folders with VM disks that all nodes share although the file system does not tell (NFS, CephFS, "
    "GlusterFS and their like do): a disk elsewhere is local, and is copied in a migration or keeps its VM here",
    "emulators": "programs that VMs may be run by; `*` stands within a name",
    "forbidden_paths": "folders whose files no VM gets; of `/dev` VMs get volumes, of `/boot`, `/usr/share`, "
    "`/usr/lib` and `/lib/firmware` what they boot from, of `/usr/share` CD images; `state_dir` is always one of them",
    "vm_paths": "folders within those that VMs may use all the same",
    "vm_allow": "what else a VM may reach on this node: `qemu-arguments`, `host-devices`, `host-folders`, "
    "`host-network`, `unconfined` (below)",
    "audit_s": "interval of the look at all domains and processes; events are followed at once",
    "call_timeout_s": "a libvirt call that takes longer is reported as a fault",
    "workers": "libvirt calls at a time",
    "restart_backoff_s": "pause before the second restart of a VM; it doubles. The first is immediate",
    "restart_backoff_max_s": "longest pause",
    "restart_budget": "so many restarts within the window, then the VM is `failed` until an operator starts it",
    "restart_window_s": "the window",
    "settle_s": "a drain is not proven earlier than this after libvirt was connected",
    "storage_paths": "folders with VM disks: watched for room (as `state_dir` is), and written to now and then",
    "storage_min_free_percent": "less free space is the fault `storage-full`",
    "storage_slow_s": "a write with fsync of 4 KiB that takes longer is the fault `storage-slow`",
    "storage_check_s": "interval of the checks of storage",
    "memory_min_free_percent": "less available memory is the fault `memory-full`",
    "business_interface": "interface of the business network (empty: it is not checked)",
    "business_targets": "addresses (gateway, peers) of which at least one must answer over it",
    "business_check_s": "interval of that check",
    "links": "interfaces that must have a link, with their least speed in Mb/s (0: any): `links = {eno1 = 10000}`",
    "network_error_percent": "more damaged packets of an interface are the fault `network-errors`",
    "network_drop_percent": "more dropped packets of an interface are the fault `network-drops`",
    "checks_dir": "folder of the site's own check scripts",
    "script_interval_s": "interval at which each is run",
    "script_timeout_s": "and killed if it has not ended",
    "checks_off": "names of checks that are not run, such as `clock`, `smart` or a script",
    "severities": "how urgent a fault is, by code: `severities = {clock-unsynchronised = \"warning\"}`",
    "log_level": CHIMED["log_level"],
    "log_format": CHIMED["log_format"],
}


def settings(kind: type[msgspec.Struct], words: dict[str, str]) -> str:
    """Key, default and meaning of each setting."""
    rows = []
    for field in msgspec.structs.fields(kind):
        factory = field.default_factory
        value = field.default if factory is msgspec.NODEFAULT else factory()
        default = msgspec.json.encode(value).decode()
        rows.append((f"`{field.name}`", f"`{default}`", words[field.name]))
    return table(("key", "default", "meaning"), rows)


def orders(rules: tuple[Order, ...]) -> str:
    """The order that the timings must keep."""
    return table(("rule", "because"), [(f"`{rule.left} {rule.relation} {rule.right}`", rule.why) for rule in rules])


TABLES = {
    "chimed": lambda: settings(chimed.config.Config, CHIMED),
    "agentd": lambda: settings(agentd.config.Config, AGENTD),
    "chimed order": lambda: orders(chimed.config.ORDERS),
    "agentd order": lambda: orders(agentd.config.ORDERS),
}


def updated(text: str) -> str:
    """The document with its tables as they should be."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
