"""The harness itself: hosts are separate machines, the oracle sees what runs, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pexpect.popen_spawn import PopenSpawn

from tests.hosts import Cluster, Host, HostError, guest_xml, left_behind, wait_until
from tests.hosts.network import device_exists

pytestmark = pytest.mark.integration

HEARD_S = 60.0
MakeCluster = Callable[..., Cluster]

# Runs in a host: defines a guest with the embedded driver, obeys one word per line, tells every event.
HYPERVISOR = """
import os, sys, threading, time, libvirt
def say(*words):  # in one piece: two threads speak
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
uri, xml = sys.argv[1], open(sys.argv[2]).read()
libvirt.virEventRegisterDefaultImpl()
def loop():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=loop, daemon=True).start()
connection = libvirt.open(uri)
started = [time.monotonic()]
def told(connection, domain, event, detail, opaque):
    say("event", event, detail, round(time.monotonic() - started[-1], 2))
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
domain = connection.defineXML(xml)
for word in sys.stdin:
    started.append(time.monotonic())
    {"start": domain.create, "shutdown": domain.shutdown, "destroy": domain.destroy}[word.strip()]()
    say("did", word.strip())
"""


class Hypervisor:
    """The little program above, running in a host."""

    def __init__(self, host: Host, guest: tuple[Path, Path]) -> None:
        self.uuid = str(uuid.uuid4())
        self.serial = host.log / "guest.log"
        script, xml = host.etc / "hypervisor.py", host.etc / "guest.xml"
        script.write_text(HYPERVISOR)
        xml.write_text(guest_xml("guest1", self.uuid, *guest, self.serial, interval_s=0.2))
        command = ["nsenter", "-t", str(host.init_pid), "-n", "-m", "-p", "-u", "-r", "-w", sys.executable]
        argv = [*command, str(script), host.hyp_uri, str(xml)]
        self.process = PopenSpawn(argv, timeout=HEARD_S, encoding="utf-8")

    def tell(self, word: str) -> None:
        self.process.sendline(word)

    def heard(self, start: str) -> str:
        """The next line that begins so."""
        self.process.expect(rf"(?m)^{re.escape(start)}.*\n")
        return str(self.process.after).strip()

    def close(self) -> None:
        with self.process.proc as process:
            process.kill()

    def counted(self, at_least: int) -> bool:
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        return text.count(" counter ") >= at_least


def pings(address: str, host: Host | None = None) -> bool:
    argv = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", address]
    if host is not None:
        return host.run(argv, check=False).returncode == 0
    return subprocess.run(argv, capture_output=True).returncode == 0


def test_two_hosts_are_two_machines(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("n1", "n2")
    n1, n2 = cluster["n1"], cluster["n2"]
    assert (
        pings(n2.address, n1) and pings(n1.address, n2) and pings(n1.address) and pings(cluster.address, n1)
    )
    inside = [host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip() for host in (n1, n2)]
    outside = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert inside == [n1.boot_id, n2.boot_id] and len({*inside, outside}) == 3
    assert n1.run(["hostname"]).stdout.strip() == "n1"
    assert len(n1.run(["ps", "-e", "-o", "pid="]).stdout.split()) == 2  # its init and this ps
    assert set(os.listdir("/sys/class/net")) > {cluster.bridge.name}
    assert sorted(n1.run(["ls", "/sys/class/net"]).stdout.split()) == ["eth0", "lo"]


def test_power_and_cables(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("n1", "n2")
    n1, n2 = cluster["n1"], cluster["n2"]
    first_boot, first_init = n1.boot_id, n1.init_pid
    n1.power_off()
    assert not n1.is_on and not pings(n1.address) and not os.path.exists(f"/proc/{first_init}")
    with pytest.raises(HostError, match="is off"):
        n1.run(["true"])
    n1.power_on()
    assert n1.boot_id != first_boot and pings(n1.address) and pings(n1.address, n2)
    n1.cut()
    assert n1.is_on and not pings(n1.address) and not pings(n2.address, n1)
    n1.power_off()
    n1.power_on()
    assert not pings(n1.address), "a cut cable stays cut over a power cycle"
    n1.heal()
    assert pings(n1.address)


def test_services_are_supervised(make_cluster: MakeCluster) -> None:
    host = make_cluster("n1")["n1"]
    service = host.service("sleeper", ["sh", "-c", "echo hello; exec sleep 1000"], restart_delay_s=0.1)

    def begins(times: int) -> None:
        wait_until(lambda: service.log.read_text().count("hello") == times, 5, f"it has begun {times} times")

    service.start()
    first = wait_until(lambda: service.pid, 5, "service runs")
    with pytest.raises(HostError, match="already runs"):
        service.start()
    begins(1)
    service.kill()
    wait_until(lambda: service.pid not in (None, first), 5, "service runs again")
    assert service.status()["last_exit"] == -signal.SIGKILL
    begins(2)
    host.power_off()
    host.power_on()
    wait_until(lambda: service.pid, 5, "service runs after power on")
    begins(3)
    service.stop()
    assert service.pid is None
    time.sleep(0.3)
    assert service.pid is None and service.status()["wanted"] is False
    host.power_off()
    host.power_on()
    with pytest.raises(HostError, match="never started"):
        service.status()
    begins(3)


def test_service_that_cannot_start_says_so(make_cluster: MakeCluster) -> None:
    service = make_cluster("n1")["n1"].service("nothing", ["/nonexistent"], restart=False)
    service.start()
    assert service.status() == {"pid": None, "wanted": False, "starts": 1, "last_exit": 127}
    assert "cannot start" in service.log.read_text()


def test_orphans_are_reaped_and_commands_time_out(make_cluster: MakeCluster) -> None:
    host = make_cluster("n1")["n1"]
    host.run(["sh", "-c", "(sleep 0.1 &) ; exit 0"])
    wait_until(
        lambda: len(host.run(["ps", "-e", "-o", "pid="]).stdout.split()) == 2, 5, "the orphan is reaped"
    )
    with pytest.raises(HostError, match="still running"):
        host.run(["sleep", "1000"], timeout_s=0.3)
    wait_until(lambda: "sleep" not in host.run(["ps", "-e"]).stdout, 5, "the command is killed")
    with pytest.raises(HostError, match="exit 3: oh"):
        host.run(["sh", "-c", "echo oh >&2; exit 3"])


def test_oracle_sees_guests_and_power_off_ends_them(
    make_cluster: MakeCluster, guest: tuple[Path, Path]
) -> None:
    cluster = make_cluster("n1", "n2")
    host = cluster["n1"]
    hypervisor = Hypervisor(host, guest)
    try:
        hypervisor.tell("start")
        hypervisor.heard("did start")
        [seen] = cluster.processes()[hypervisor.uuid]
        assert (seen.host, seen.name, seen.runnable, seen.incoming) == ("n1", "guest1", True, False)
        os.kill(seen.pid, signal.SIGSTOP)
        wait_until(lambda: not cluster.processes()[hypervisor.uuid][0].runnable, 5, "a stopped process")
        os.kill(seen.pid, signal.SIGCONT)
        assert wait_until(lambda: hypervisor.counted(3), 30, "the guest counts")
        os.kill(seen.pid, signal.SIGKILL)
        event = hypervisor.heard("event 5")
        assert event.split()[2] == "5", "stopped, failed"
        hypervisor.tell("start")
        hypervisor.heard("did start")
        with cluster.watch(0.02) as watch:
            wait_until(lambda: watch.samples > 5, 10, "some samples")
        assert watch.violations == []
        host.power_off()
        assert cluster.processes() == {}
    finally:
        hypervisor.close()


def test_guest_obeys_the_power_button(make_cluster: MakeCluster, guest: tuple[Path, Path]) -> None:
    cluster = make_cluster("n1")
    hypervisor = Hypervisor(cluster["n1"], guest)
    try:
        hypervisor.tell("start")
        wait_until(lambda: hypervisor.counted(5), 60, "the guest counts")
        hypervisor.tell("shutdown")
        _, detail, seconds = hypervisor.heard("event 5").split()[1:]
        assert detail == "0", "stopped by the guest itself"
        assert float(seconds) < 10
        assert cluster.processes() == {}
    finally:
        hypervisor.close()


def test_close_removes_everything(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("n1", "n2")
    cluster["n1"].service("sleeper", ["sleep", "1000"]).start()
    cluster["n2"].cut()
    directory, bridge = cluster.dir, cluster.bridge.name
    devices = [host.link.device for host in cluster.hosts.values()]
    assert device_exists(bridge) and any(str(directory) in line for line in left_behind())
    cluster.close()
    cluster.close()
    assert not directory.exists() and not any(device_exists(device) for device in [bridge, *devices])
    assert left_behind() == []


def test_a_half_built_cluster_is_removed(needs_hosts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hosts.host.BOOT_SCRIPT", "exit 7")
    with pytest.raises(HostError, match="did not boot"):
        Cluster(["n1"])
    assert left_behind() == []


def test_hosts_die_with_their_owner_and_are_swept(needs_hosts: None) -> None:
    script = (
        "import os; from tests.hosts import Cluster\n"
        "cluster = Cluster(['n1']); print(cluster.dir, flush=True); os._exit(9)"
    )
    owner = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    directory = Path(owner.stdout.strip())
    assert owner.returncode == 9 and directory.exists(), owner.stderr
    Cluster().close()  # making one sweeps
    assert not directory.exists()
