"""A Pacemaker cluster in a host of the lab that keeps one libvirt domain running, as its VirtualDomain agent does it.

It gets its best: one node, so nothing waits for peers, quorum or fencing; the domain's failures are never too many
(Pacemaker's default); its monitor runs at the interval that the agent itself advertises. That is all there is to set.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.hosts import HostError, oracle, wait_until
from tests.lab.host import LabHost

RESOURCE = "ocf:heartbeat:VirtualDomain"
READY_S = 120.0  # it takes 20 s to elect the only node there is
COROSYNC_CONF = """totem {{
    version: 2
    cluster_name: bench
    transport: udpu
    crypto_cipher: none
    crypto_hash: none
}}
quorum {{
    provider: corosync_votequorum
}}
nodelist {{
    node {{
        name: {name}
        nodeid: 1
        ring0_addr: 127.0.0.1
    }}
}}
logging {{
    to_syslog: yes
}}
"""
PROPERTIES = {"stonith-enabled": "false", "no-quorum-policy": "ignore"}
PRIMITIVE = """<primitive id="vm" class="ocf" provider="heartbeat" type="VirtualDomain">
  <instance_attributes id="vm-attributes">
    <nvpair id="vm-config" name="config" value="{config}"/>
    <nvpair id="vm-hypervisor" name="hypervisor" value="qemu:///system"/>
  </instance_attributes>
  <operations>
    <op id="vm-monitor" name="monitor" interval="{interval_s:g}s" timeout="30s"/>
    <op id="vm-start" name="start" interval="0" timeout="90s"/>
    <op id="vm-stop" name="stop" interval="0" timeout="90s"/>
  </operations>
</primitive>
"""


def start(host: LabHost, domain_file: str) -> float:
    """Let Pacemaker keep the domain of this file (as the host sees it) running; gives the monitor interval."""
    _write(host, "/etc/corosync/corosync.conf", COROSYNC_CONF.format(name=host.name))
    host.systemctl("start", "corosync", "pacemaker")
    wait_until(lambda: _is_online(host), READY_S, f"Pacemaker on {host.name} is online", 0.5)
    for name, value in PROPERTIES.items():
        host.run("crm_attribute", "--name", name, "--update", value)
    interval_s = monitor_interval_s(host)
    _write(host, "/root/vm.xml", PRIMITIVE.format(config=domain_file, interval_s=interval_s))
    host.run("cibadmin", "--create", "--scope", "resources", "--xml-file", "/root/vm.xml")
    return interval_s


def monitor_interval_s(host: LabHost) -> float:
    """The interval that the agent's meta-data recommends: what one gets without a wish of one's own."""
    root = ET.fromstring(host.run("crm_resource", "--show-metadata", RESOURCE).stdout)
    monitor = root.find("./actions/action[@name='monitor']")
    if monitor is None:
        raise HostError(f"{RESOURCE} advertises no monitor")
    return float(monitor.get("interval", "").removesuffix("s"))


def wait_for_monitor(host: LabHost, interval_s: float) -> None:
    """Until the agent begins to look at the domain, as its processes in the machine's process table show."""
    before = _monitors(host)
    wait_until(lambda: _monitors(host) - before, 3 * interval_s, "Pacemaker monitors the domain", 0.01)


def _monitors(host: LabHost) -> set[int]:
    return {
        pid
        for pid in oracle.pids()
        if _is_monitor(oracle.cmdline(pid)) and oracle.pid_namespace(pid) == host.pid_namespace
    }


def _is_monitor(words: list[str]) -> bool:
    return words[-1:] == ["monitor"] and any(word.endswith("/VirtualDomain") for word in words)


def _is_online(host: LabHost) -> bool:
    done = host.run("crm_mon", "--one-shot", "--output-as=xml", check=False)
    if done.returncode:
        return False
    nodes = ET.fromstring(done.stdout).findall("./nodes/node")
    return any(node.get("name") == host.name and node.get("online") == "true" for node in nodes)


def _write(host: LabHost, path: str, text: str) -> None:
    host.run("sh", "-c", 'printf %s "$2" >"$1"', "write", path, text)
