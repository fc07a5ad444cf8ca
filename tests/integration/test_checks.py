"""The node's fault checks on real things: threads that hang, scripts, file systems, interfaces, and up to the operator.

Fault row 24 and the seed's scenario 4 as far as one machine can have them: the rest of each check is a table in
`tests/unit/checks`.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentd.checks import bounded
from agentd.checks.clock import ClockCheck
from agentd.checks.interface import Check, CheckFailed, CheckStuck, Code, Key, Symptom
from agentd.checks.runner import Runner
from agentd.checks.scripts import ScriptCheck
from agentd.checks.smart import SmartCheck
from agentd.checks.storage import StorageCheck, StorageReading
from tests.hosts import Cluster
from tests.hosts.frozen import frozen_disk
from tests.hosts.network import delete_device, free_subnet, ip_batch
from tests.hosts.service import succeeds, wait_until
from tests.integration.chime import Chime, environment, tiny, unique
from wire import messages as m
from wire.types import Severity

pytestmark = pytest.mark.integration
WAIT_S = 20.0


@dataclass
class Scripted:
    """A check that does as a test says."""

    name: str = "scripted"
    interval_s: float = 0.02
    timeout_s: float = 0.2
    look: Callable[[], str] = lambda: ""
    reads: int = 0
    codes: Mapping[str, Code] = field(default_factory=lambda: {"bad": Code(Severity.CRITICAL)})

    def read(self) -> str:
        self.reads += 1
        return self.look()

    def symptoms(self, reading: str, before: str | None, raised: frozenset[Key]) -> list[Symptom]:
        return [Symptom("bad", self.name, reading)] if reading else []


@pytest.fixture
def run() -> Iterator[Callable[..., Runner]]:
    """Starts checks, and stops them after the test."""
    runners: list[Runner] = []

    def start(*checks: Check, on_change: Callable[[], None] = lambda: None, **more: Any) -> Runner:
        runners.append(Runner(checks, on_change, **more))
        runners[-1].start()
        return runners[-1]

    yield start
    for runner in runners:
        runner.stop()


def codes(runner: Runner) -> dict[str, str]:
    return {fault.code: fault.text for fault in runner.faults()}


def symptoms(check: Check) -> dict[str, str]:
    """One reading, judged with nothing before it."""
    return {symptom.code: symptom.text for symptom in check.symptoms(check.read(), None, frozenset())}


# --- the runner -------------------------------------------------------------------------------------------------------


def test_a_check_that_hangs_is_named_and_stops_no_other(run: Callable[..., Runner]) -> None:
    release = threading.Event()
    hung = Scripted("hung", look=lambda: "" if release.wait(WAIT_S) else "never")
    other = Scripted("other", look=lambda: "other is bad")
    runner = run(hung, other)
    wait_until(lambda: "check-stuck" in codes(runner), WAIT_S, "the check is stuck")
    assert codes(runner) == {"bad": "other is bad", "check-stuck": "the check hung has not returned within 0.2 s"}
    seen = other.reads
    wait_until(lambda: other.reads > seen + 3, WAIT_S, "the other goes on")
    assert hung.reads == 1, "at most one reading is under way"
    began = time.monotonic()
    runner.faults()
    assert time.monotonic() - began < 1.0, "nobody waits for it"
    release.set()
    wait_until(lambda: codes(runner) == {"bad": "other is bad"}, WAIT_S, "the fault clears by itself")


def test_a_check_that_raises_is_a_fault_and_what_it_had_found_stays(run: Callable[..., Runner]) -> None:
    state = {"now": "disk is bad"}

    def look() -> str:
        if state["now"] == "raise":
            raise RuntimeError("no such device")
        return state["now"]

    runner = run(Scripted(look=look))
    wait_until(lambda: codes(runner) == {"bad": "disk is bad"}, WAIT_S, "the fault")
    state["now"] = "raise"
    expected = {"bad": "disk is bad", "check-failed": "scripted: RuntimeError: no such device"}
    wait_until(lambda: codes(runner) == expected, WAIT_S, "the failed check")
    state["now"] = ""
    wait_until(lambda: codes(runner) == {}, WAIT_S, "both clear")


def test_the_shell_is_told_once_of_what_has_changed(run: Callable[..., Runner]) -> None:
    told: list[float] = []
    check = Scripted(look=lambda: "bad")
    run(check, on_change=lambda: told.append(time.monotonic()))
    wait_until(lambda: check.reads > 10, WAIT_S, "readings")
    assert len(told) == 1


def test_what_could_not_be_made_stays_a_fault(run: Callable[..., Runner]) -> None:
    runner = run(problems={"ups": "cannot be used: ImportError: x"}, severities={"check-failed": Severity.INFO})
    (fault,) = runner.faults()
    assert (fault.code, fault.text, fault.severity) == (
        "check-failed", "ups: cannot be used: ImportError: x", Severity.INFO,
    )  # fmt: skip


def test_the_first_answer_has_the_first_readings() -> None:
    begun = threading.Event()

    def look() -> str:
        begun.set()
        time.sleep(0.3)  # a reading that takes a while
        return "bad"

    runner = Runner([Scripted(look=look, timeout_s=WAIT_S)], lambda: None)
    runner.start()
    assert begun.wait(WAIT_S) and codes(runner) == {"bad": "bad"}
    runner.stop()


# --- scripts ----------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str, name: str = "ups.sh") -> ScriptCheck:
    path = folder / name
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return ScriptCheck(path, 0.05, 1.0)


def test_exit_codes_of_scripts(short_dir: Path) -> None:
    assert symptoms(script(short_dir, "echo fine")) == {}
    assert symptoms(script(short_dir, "echo 'on battery|load=1'; echo more; exit 1")) == {"ups": "ups.sh: on battery"}
    (critical,) = script(short_dir, "exit 2").symptoms(bounded.Output(2, ""), None, frozenset())
    assert critical.severity == Severity.CRITICAL
    for text, expected in (("echo what; exit 3", "exit 3: what"), ("kill -9 $$", "signal 9: ")):
        with pytest.raises(CheckFailed, match=expected):
            script(short_dir, text).read()


def test_a_script_that_hangs_is_ended_with_all_that_it_started(short_dir: Path, run: Callable[..., Runner]) -> None:
    check = script(short_dir, f"echo $$ >>{short_dir}/pids; sleep 600 & echo $! >>{short_dir}/pids; wait")
    runner = run(check)
    expected = {"check-stuck": "the check ups.sh has not returned within 1 s"}
    wait_until(lambda: codes(runner) == expected, WAIT_S, "the script is given up")
    runner.stop()
    first = [int(pid) for pid in (short_dir / "pids").read_text().split()][:2]
    wait_until(lambda: not any(_lives(pid) for pid in first), WAIT_S, "its processes are gone")
    ended = [thread for thread in threading.enumerate() if thread.name == "check ups.sh"]
    wait_until(lambda: not any(thread.is_alive() for thread in ended), WAIT_S, "the thread ends")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_is_bounded_and_a_child_that_keeps_the_pipe_is_not_waited_for(short_dir: Path) -> None:
    output = bounded.run(["/bin/sh", "-c", "yes | head -c 3000000; echo; echo end; exit 1"], WAIT_S)
    assert output.code == 1 and len(output.text) == 4096
    began = time.monotonic()
    output = bounded.run(["/bin/sh", "-c", f"sleep 600 & echo $! >{short_dir}/pid; echo done"], WAIT_S)
    assert output == bounded.Output(0, "done\n") and time.monotonic() - began < WAIT_S / 2
    pid = int((short_dir / "pid").read_text())
    wait_until(lambda: not _lives(pid), WAIT_S, "the child that was left is ended")
    with pytest.raises(CheckStuck):
        bounded.run(["/usr/bin/yes"], 0.2)


def test_what_others_may_write_is_not_run(short_dir: Path) -> None:
    check = script(short_dir, f"touch {short_dir}/ran; exit 2")
    check.path.chmod(0o777)
    with pytest.raises(CheckFailed, match="others than root may write"):
        check.read()
    check.path.chmod(0o755)
    os.chown(check.path, 65534, 65534)
    with pytest.raises(CheckFailed, match="others than root may write"):
        check.read()
    assert not (short_dir / "ran").exists()
    with pytest.raises(CheckFailed, match="cannot be run"):
        bounded.run([str(short_dir / "none")], 1.0)


def test_smartctl_is_asked_for_each_disk(short_dir: Path) -> None:
    """With a smartctl that answers as the real one does: this machine's disks have no SMART."""
    path = script(short_dir, """
        case "$*" in
        *--scan*) echo '{"devices": [{"name": "/dev/sda", "type": "sat"}, {"name": "/dev/sdb", "type": "sat"}]}' ;;
        *sda) echo '{"smart_status": {"passed": true}}' ;;
        *"-H -n standby -d sat /dev/sdb") echo '{"smart_status": {"passed": false}}'; exit 8 ;;
        esac
        """, "smartctl").path
    assert symptoms(SmartCheck(str(path))) == {"smart-failing": "/dev/sdb says that it is failing (SMART)"}


# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(needs_hosts: None, short_dir: Path) -> Iterator[Path]:
    """A small file system."""
    folder = short_dir / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    wait_until(lambda: succeeds("umount", folder), WAIT_S, "the last probe has ended")


def storage(folder: Path) -> StorageCheck:
    return StorageCheck(str(folder), 5.0, 5.0, probe=True, interval_s=0.05, timeout_s=0.5)


def test_storage_that_becomes_read_only_and_fills_up(mounted: Path, run: Callable[..., Runner]) -> None:
    runner = run(storage(mounted))
    assert codes(runner) == {}
    wait_until(lambda: succeeds("mount", "-o", "remount,ro", mounted), WAIT_S, "no probe is under way")
    expected = {"storage-read-only": f"{mounted} is read-only"}
    wait_until(lambda: codes(runner) == expected, WAIT_S, "it is read-only")
    subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
    wait_until(lambda: codes(runner) == {}, WAIT_S, "it is well again")
    (mounted / "big").write_bytes(bytes(248 * 1024))  # all but 3 %: there is room for a probe
    wait_until(lambda: set(codes(runner)) == {"storage-full"}, WAIT_S, "it is full")
    (mounted / "big").unlink()
    wait_until(lambda: codes(runner) == {}, WAIT_S, "there is room again")
    assert not [name for name in os.listdir(mounted) if not name.startswith(".chime-probe-")]


def test_storage_that_is_gone(short_dir: Path) -> None:
    expected = {"storage-failed": f"{short_dir}/none cannot be read: No such file or directory"}
    assert symptoms(storage(short_dir / "none")) == expected


def test_storage_that_hangs(needs_hosts: None, short_dir: Path, run: Callable[..., Runner]) -> None:
    """A frozen file system: the write sits in D state, as on a dead disk. Others are checked on."""
    with frozen_disk(short_dir) as disk:
        hung, other = storage(disk.folder), Scripted("other")
        runner = run(hung, other)
        assert codes(runner) == {}
        disk.freeze()
        wait_until(lambda: "check-stuck" in codes(runner), WAIT_S, "the write hangs")
        assert codes(runner) == {"check-stuck": f"the check storage {disk.folder} has not returned within 0.5 s"}
        seen = other.reads
        wait_until(lambda: other.reads > seen + 3, WAIT_S, "the other goes on")
        disk.thaw()
        wait_until(lambda: codes(runner) == {}, WAIT_S, "it writes again")
        runner.stop()
        wait_until(lambda: not _threads(hung.name), WAIT_S, "its thread ends")


def _threads(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"check {name}"[:60])]


def test_a_probe_leaves_nothing(short_dir: Path) -> None:
    reading = storage(short_dir).read()
    assert isinstance(reading, StorageReading) and reading.write_s is not None and not list(short_dir.iterdir())


def test_the_kernel_tells_about_its_clock() -> None:
    assert ClockCheck().read() in (True, False)


def test_check_host_looks_once(short_dir: Path) -> None:
    folder = short_dir / "checks.d"
    folder.mkdir()
    script(folder, "echo on battery; exit 2", "ups")
    script(folder, "sleep 600", "slow")
    config = short_dir / "agentd.toml"
    config.write_text(
        f'state_dir = "{short_dir}"\nchecks_dir = "{folder}"\n'
        f'storage_paths = ["{short_dir}/none"]\nscript_timeout_s = 2.0\n'
    )
    argv = [sys.executable, "-m", "agentd.main", "check-host", "--config", config]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, env=environment())
    assert done.returncode == 1 and not done.stderr
    lines = done.stdout.splitlines()
    assert "ups: ups (critical): ups: on battery" in lines
    assert "slow: check-stuck: has not returned within 2 s" in lines
    gone = f"storage-failed (critical): {short_dir}/none cannot be read: No such file or directory"
    assert f"storage {short_dir}/none: {gone}" in lines and "raid: nothing is wrong" in lines
    (folder / "slow").unlink()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, env=environment())
    assert done.returncode == 0


# --- networks ---------------------------------------------------------------------------------------------------------

INSIDE = """
import json, sys
from agentd.checks.business import BusinessCheck
from agentd.checks.interfaces import InterfaceCheck
business = BusinessCheck(sys.argv[1], tuple(sys.argv[2:]), 30.0)
links = InterfaceCheck({sys.argv[1]: 0}, 0.1, 1.0)
found = []
for check in (business, links):
    found += [(s.code, s.text) for s in check.symptoms(check.read(), None, frozenset())]
print(json.dumps(found))
"""


def inside(cluster: Cluster, name: str, *words: str) -> dict[str, str]:
    """Symptoms of the network checks inside a host."""
    done = cluster[name].run([sys.executable, "-c", INSIDE, *words], timeout_s=WAIT_S, env=environment())
    return dict(json.loads(done.stdout))


def test_business_network_of_a_host(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("n1", "n2")
    gateway, peer = cluster.bridge.address, cluster["n2"].address
    assert inside(cluster, "n1", "eth0", gateway, peer) == {}
    cluster["n2"].cut()
    assert inside(cluster, "n1", "eth0", gateway, peer) == {"business-target": f"{peer} does not answer over eth0"}
    text = f"over business interface eth0 none answers of {peer}"
    assert inside(cluster, "n1", "eth0", peer) == {"business-network-down": text}
    assert inside(cluster, "n2", "eth0", peer) == {  # its own address answers only by lo
        "business-network-down": "business interface eth0 has no link", "link-down": "eth0 has no link",
    }  # fmt: skip
    ip_batch("link set eth0 down", pid=cluster["n2"].init_pid)
    assert inside(cluster, "n2", "eth0")["business-network-down"] == "business interface eth0 is down"
    assert inside(cluster, "n1", "eth7", peer) == {
        "business-network-down": "business interface eth7 does not exist", "link-down": "eth7 does not exist",
    }  # fmt: skip
    ip_batch(f"addr del {cluster['n1'].address}/24 dev eth0", pid=cluster["n1"].init_pid)
    assert inside(cluster, "n1", "eth0") == {"business-network-down": "business interface eth0 has no address"}


def test_an_address_behind_another_interface_does_not_answer(make_cluster: Callable[..., Cluster]) -> None:
    """The route by another interface must not make the business network look well."""
    cluster = make_cluster("n1")
    host = cluster["n1"]
    pid = host.init_pid
    ip_batch("link add biz0 type veth peer name biz1", pid=pid)
    ip_batch("link set biz0 up", "link set biz1 up", "addr add 10.63.0.1/24 dev biz0", pid=pid)
    gateway = cluster.bridge.address
    assert inside(cluster, "n1", "eth0", gateway) == {}
    text = f"over business interface biz0 none answers of {gateway}"
    assert inside(cluster, "n1", "biz0", gateway) == {"business-network-down": text}


def test_ipv6_targets(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("n1", "n2")
    for name, address in (("n1", "fd77::1"), ("n2", "fd77::2")):
        ip_batch(f"addr add {address}/64 dev eth0 nodad", pid=cluster[name].init_pid)
    assert inside(cluster, "n1", "eth0", "fd77::2") == {}
    assert "business-target" in inside(cluster, "n1", "eth0", "fd77::2", "fd77::3")


# --- the whole way: host, agent, server, operator ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1",)) as chime:
        yield chime


@pytest.fixture
def cable(chime: Chime) -> Iterator[tuple[str, str]]:
    """A second cable of n1, to its `biz0`: the outer end and its address."""
    outer, subnet = f"cb{secrets.token_hex(3)}", free_subnet()
    ip_batch(
        f"link add {outer} type veth peer name biz0 netns {chime['n1'].init_pid}",
        f"addr add {subnet[1]}/24 dev {outer}",
        f"link set {outer} up",
    )
    ip_batch(f"addr add {subnet[2]}/24 dev biz0", "link set biz0 up", pid=chime["n1"].init_pid)
    yield outer, str(subnet[1])
    delete_device(outer)


def restart_agent(chime: Chime, **config: Any) -> None:
    chime.write_agent_config("n1", **config)
    pid = chime.agent("n1").pid
    chime.agent("n1").kill()
    chime.wait(lambda: chime.agent("n1").pid not in (None, pid), "the agent is back")


def test_business_network_down_reaches_the_operator_and_clears(chime: Chime, cable: tuple[str, str]) -> None:
    """Row 24."""
    outer, peer = cable
    restart_agent(chime, business_interface="biz0", business_targets=[peer], business_check_s=1.0)
    chime.wait_nodes("n1")
    name = unique("biz")
    uuid = chime.create(name, tiny())
    pids = [chime.process(uuid).pid]
    ip_batch(f"link set {outer} down")
    chime.wait(lambda: chime.node("n1")["health"] == "error", "the node is in error", 15.0)
    node = chime.node("n1")
    assert node["reasons"] == ["business-network-down"] and not node["schedulable"] and node["commandable"]
    (fault,) = node["faults"]
    assert fault["text"] == "business interface biz0 has no link" and fault["severity"] == "critical"
    (alarm,) = chime.alarms("node-error")
    assert alarm["severity"] == "critical" and "biz0 has no link" in alarm["text"]
    assert chime.pids(uuid) == pids, "the VM runs on"
    chime.do(m.VmStop, vm=name, force=True)  # commands still work
    ip_batch(f"link set {outer} up")
    chime.wait_nodes("n1")
    assert not chime.alarms("node-error")
    restart_agent(chime)
    chime.wait_nodes("n1")


def test_a_lasting_fault_stays_one_alarm_when_the_agent_restarts(chime: Chime, short_dir: Path) -> None:
    state = short_dir / "exit"
    state.write_text("1")
    script(short_dir, f"echo 'fan 2 stands still'; exit $(cat {state})", "fans.sh")
    settings = {"checks_dir": str(short_dir), "script_interval_s": 1.0, "script_timeout_s": 1.0}
    restart_agent(chime, **settings)
    chime.wait(lambda: chime.node("n1")["reasons"] == ["fans"], "the site's own check is a reason")
    assert [alarm["severity"] for alarm in chime.alarms("node-error")] == ["warning"]
    (alarm,) = chime.alarms("node-error")
    assert "fans.sh: fan 2 stands still" in alarm["text"]
    assert chime.local("n1", "status")["faults"] == [
        {"code": "fans", "severity": "warning", "text": "fans.sh: fan 2 stands still"}
    ]
    restart_agent(chime, **settings)
    state.write_text("2")
    chime.wait(lambda: [a["severity"] for a in chime.alarms("node-error")] == ["critical"], "it becomes worse")
    assert [a["id"] for a in chime.alarms("node-error")] == [alarm["id"]], "it is the same alarm"
    assert "alarm-severity" in chime.actions("n1")
    state.write_text("0")
    chime.wait_nodes("n1")
    assert not chime.alarms()
    restart_agent(chime)
    chime.wait_nodes("n1")
