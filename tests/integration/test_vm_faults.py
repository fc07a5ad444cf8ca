"""What happens to VMs: fault rows 1 to 11 on real qemu under real daemons. The oracle is the process table.

An embedded libvirt lets no second program in while agentd runs: what a person would do with virsh is done here by a
second QMP monitor, or while the agent is away. With virsh itself it is in `test_system_libvirt.py`.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import guest_cmdline
from tests.integration.chime import Chime, monitored, qmp, tiny, unique
from wire import messages as m
from wire.types import OnGuestShutdown, VirtType

pytestmark = pytest.mark.integration

@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1", "n2"), agent_config={"vm_allow": ["qemu-arguments"]}) as chime:  # a second monitor is one
        yield chime


def linux(guest: tuple[Path, Path], serial: Path, extra: str, **values: object) -> m.VmSpec:
    """A VM whose Linux does as `extra` on its command line says."""
    kernel, initrd = (str(path) for path in guest)
    boot = m.Boot(kernel=kernel, initrd=initrd, cmdline=guest_cmdline("guest", extra=extra))
    return m.VmSpec(vcpus=1, memory_mib=96, virt_type=VirtType.QEMU, boot=boot, serial_log=str(serial), **values)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_qemu_that_is_killed_runs_again(chime: Chime, number: signal.Signals) -> None:
    """Rows 1 and 2: SIGKILL, and SIGTERM, which is not a guest's own power-off."""
    name = unique("killed")
    uuid = chime.create(name)
    first = chime.process(uuid)
    epoch = chime.vm(name)["epoch"]
    chime.kill(first, number)
    second = chime.other_process(uuid, first)
    assert second.host == first.host
    chime.wait(lambda: chime.vm(name)["restarts"] == 1, "the restart is counted")
    vm = chime.observed(name, "running")
    assert (vm["epoch"], vm["desired"]) == (epoch, "running")
    assert "vm-restarted" in chime.actions(name)


def test_a_guest_that_powers_itself_off_stays_off(chime: Chime, guest: tuple[Path, Path]) -> None:
    """Row 3: the default policy; a start by an operator brings it back."""
    name = unique("halted")
    uuid = chime.create(name, linux(guest, chime.cluster.dir / f"{name}.log", "chime.poweroff_after=1"))
    vm = chime.observed(name, "stopped")
    assert vm["desired"] == "stopped"
    chime.no_process(uuid)
    assert "vm-halted" in chime.actions(name)
    chime.stays(lambda: not chime.processes().get(uuid), 2.0, "it stays off")
    chime.do(m.VmStart, vm=name)


def test_a_guest_that_powers_itself_off_starts_again_if_wanted(chime: Chime, guest: tuple[Path, Path]) -> None:
    """Row 3, policy `restart`."""
    name = unique("restarted")
    spec = linux(
        guest,
        chime.cluster.dir / f"{name}.log",
        "chime.poweroff_after=1",
        on_guest_shutdown=OnGuestShutdown.RESTART,
    )
    uuid = chime.create(name, spec)
    chime.other_process(uuid, chime.process(uuid))
    assert chime.vm(name)["desired"] == "running"


def test_a_guest_that_reboots_is_left_alone(chime: Chime, guest: tuple[Path, Path]) -> None:
    """Row 4: the same process goes on."""
    name = unique("rebooting")
    serial = chime.cluster.dir / f"{name}.log"
    uuid = chime.create(name, linux(guest, serial, "chime.reboot_after=1"))
    first = chime.process(uuid)

    def runs() -> int:
        words = serial.read_text(errors="replace").split() if serial.exists() else []
        return len({after for word, after in itertools.pairwise(words) if word == "run"})

    chime.wait(lambda: runs() >= 2, "the guest has booted twice")
    assert chime.pids(uuid) == [first.pid]
    assert chime.vm(name)["restarts"] == 0


def test_a_guest_obeys_stop_and_reboot(chime: Chime, guest: tuple[Path, Path]) -> None:
    """A graceful stop asks the guest; a forced reboot keeps the process."""
    name = unique("obeying")
    serial = chime.cluster.dir / f"{name}.log"
    uuid = chime.create(name, linux(guest, serial, ""))
    first = chime.process(uuid)
    chime.wait(lambda: serial.exists() and " counter 2 " in serial.read_text(errors="replace"), "the guest counts")
    chime.do(m.VmReboot, vm=name, force=True)
    assert chime.pids(uuid) == [first.pid]
    chime.wait(lambda: serial.read_text(errors="replace").count(" counter 2 ") >= 2, "it has booted twice, and counts")
    chime.do(m.VmStop, vm=name, graceful_s=40.0)
    chime.no_process(uuid)
    assert "stopping" in serial.read_text(errors="replace")
    chime.stays(lambda: not chime.processes().get(uuid), 1.0, "a stopped VM stays off")


def test_a_crash_loop_ends_in_failed(chime: Chime) -> None:
    """Row 5: back-off, then `failed` and an alarm; `vm start` clears both."""
    name = unique("looping")
    uuid = chime.create(name)
    seen = chime.process(uuid)
    for _ in range(5):
        chime.kill(seen)
        seen = chime.other_process(uuid, seen)
    chime.kill(seen)
    chime.observed(name, "failed")
    [alarm] = chime.wait(lambda: [a for a in chime.alarms("vm-failed") if a["subject"] == name], "the alarm")
    assert alarm["severity"] == "critical"
    chime.wait(lambda: "restarted 5 times" in chime.vm(name)["detail"], "its budget is spent, not one start failed")
    chime.no_process(uuid)
    chime.stays(lambda: not chime.processes().get(uuid), 2.0, "it is not started again")
    chime.do(m.VmStart, vm=name)
    chime.process(uuid)
    chime.wait(lambda: not [a for a in chime.alarms("vm-failed") if a["subject"] == name], "the alarm is cleared")


def test_a_qemu_that_a_person_quits_runs_again(chime: Chime, short_dir: Path) -> None:
    """Row 6, as far as the embedded libvirt allows: a person ends it on purpose, behind libvirt's back."""
    name = unique("quit")
    uuid = chime.create(name, monitored(short_dir / "qmp"), allow_unsafe=True)
    first = chime.process(uuid)
    qmp(short_dir / "qmp", "quit")
    chime.other_process(uuid, first)
    chime.observed(name, "running")
    chime.wait(lambda: "vm-restarted" in chime.actions(name), "the restart is in the audit trail")


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_lost_definition_is_made_again(chime: Chime, running: bool) -> None:
    """Row 7: the definition is gone when the agent comes back; a running VM is not touched."""
    name = unique("undefined")
    uuid = chime.create(name, node="n1", desired="running" if running else "stopped")
    pids = chime.pids(uuid)
    file = chime.domain_file("n1", name)
    chime.wait(file.exists, "it is defined")
    chime.stop_agent("n1")
    file.unlink()
    chime.agent("n1").start()
    chime.wait(file.exists, "the definition is there again")
    assert f"<uuid>{uuid}</uuid>" in file.read_text()
    chime.observed(name, "running" if running else "stopped")
    assert chime.pids(uuid) == pids
    if running:
        chime.kill(chime.process(uuid))
        chime.wait(lambda: chime.pids(uuid) not in ([], pids), "and it is kept running")


def test_a_person_starts_a_vm_that_is_released(chime: Chime) -> None:
    """Row 8 (and 12, for a moment): the older copy is ended and removed, with an alarm; the owner's stays."""
    name = unique("released")
    uuid = chime.create(name, node="n1")
    chime.stop_agent("n1")
    chime.kill(chime.process(uuid))
    chime.no_process(uuid)
    chime.wait_nodes("n1", health="error")
    chime.do(m.NodeDrain, name="n1", evidence="operator", comment="it was seen dead")
    chime.do(m.NodeRebuild, name="n1")
    owner = chime.process(uuid)
    assert owner.host == "n2"
    chime.as_a_person("n1", f"connection.lookupByUUIDString({uuid!r}).create()")
    assert {seen.host for seen in chime.processes()[uuid]} == {"n1", "n2"}
    chime.agent("n1").start()
    chime.wait(lambda: [seen.host for seen in chime.processes().get(uuid, [])] == ["n2"], "one copy is left")
    assert chime.process(uuid).pid == owner.pid
    chime.wait(lambda: not chime.domain_file("n1", name).exists(), "the released definition is removed")
    chime.wait(lambda: "vm-removed" in chime.actions(name), "it is in the audit trail")
    raised = {row["code"] for row in chime.ask(m.AlarmList(all=True))["items"] if row["subject"] == name}
    assert raised & {"vm-duplicate", "vm-misplaced"}
    chime.wait(lambda: not [a for a in chime.alarms() if a["subject"] == name], "the alarm is cleared")
    chime.watch.violations.clear()  # that person's doing


def test_a_vm_that_a_person_pauses_is_left_alone(chime: Chime, short_dir: Path) -> None:
    """Row 9: paused is not crashed."""
    name = unique("paused")
    uuid = chime.create(name, monitored(short_dir / "qmp"), allow_unsafe=True)
    first = chime.process(uuid)
    qmp(short_dir / "qmp", "stop")
    chime.observed(name, "paused")
    chime.stays(lambda: chime.pids(uuid) == [first.pid], 7.0, "over an audit, it is neither ended nor doubled")
    qmp(short_dir / "qmp", "cont")
    chime.observed(name, "running")


def test_a_qemu_that_hangs_counts_as_alive(chime: Chime) -> None:
    """Rows 10 and 18: SIGSTOP. No second start; calls to it time out, which is a fault; heartbeats and others go on."""
    name, other = unique("hanging"), unique("other")
    uuid = chime.create(name, node="n1")
    first = chime.process(uuid)
    chime.kill(first, signal.SIGSTOP)
    chime.stays(lambda: chime.pids(uuid) == [first.pid], 7.0, "over an audit it has one process")
    chime.do(m.VmReboot, wait=False, vm=name, force=True)  # a call that hangs
    chime.wait(lambda: "libvirt-slow" in chime.node("n1")["reasons"], "the hanging call is a fault of the node")
    boot, age = chime.node("n1")["boot_id"], chime.node("n1")["last_heartbeat_age_s"]
    assert boot and age < 3.0 and chime.node("n1")["commandable"]
    assert chime.alarms("node-error")
    running = chime.create(other, node="n2")
    chime.process(running)
    assert chime.pids(uuid) == [first.pid]
    chime.kill(first, signal.SIGCONT)
    chime.wait_nodes("n1")
    chime.observed(name, "running")
    assert chime.pids(uuid) == [first.pid]


def test_a_hanging_qemu_is_no_evidence(chime: Chime) -> None:
    """Rows 10 and 47: a drained node with a hung process is not clean, and is not rebuilt."""
    name = unique("hanging")
    uuid = chime.create(name, node="n1")
    first = chime.process(uuid)
    chime.kill(first, signal.SIGSTOP)
    chime.do(m.NodeDrain, wait=False, name="n1", graceful_s=8.0)
    chime.wait(lambda: chime.node("n1")["admin_state"] == "drained", "the drain is recorded")
    words = chime.tool("node", "rebuild", "n1", "--yes", code=3)
    assert "n1" in words
    chime.stays(lambda: chime.node("n1")["drain_evidence"] is None, 3.0, "nothing proves the drain")
    assert chime.pids(uuid) == [first.pid]
    op = chime.node("n1")["operation"]
    assert op, "the drain goes on"
    chime.kill(first, signal.SIGCONT)
    chime.wait(lambda: chime.node("n1")["drain_evidence"] == "agent", "the drain is proven", 90.0)
    assert not chime.processes().get(uuid)


def test_a_qemu_outside_libvirt_is_seen(chime: Chime) -> None:
    """Row 11: a process with the VM's UUID that libvirt does not know: no start, an alarm, until it is gone."""
    name, uuid = unique("foreign"), str(uuids.uuid4())
    argv = ["qemu-system-x86_64", "-name", name, "-uuid", uuid, "-machine", "pc,accel=tcg", "-m", "32"]
    process = chime["n1"].popen([*argv, "-nodefaults", "-display", "none"], stderr=subprocess.DEVNULL)
    try:
        foreign = chime.process(uuid)
        chime.do(m.VmCreate, wait=False, name=name, spec=tiny(), uuid=uuid, node="n1")
        chime.wait(lambda: [a for a in chime.alarms("vm-foreign-process") if a["subject"] == name], "the alarm")
        chime.stays(lambda: chime.pids(uuid) == [foreign.pid], 3.0, "no second process")
        chime.kill(foreign)
    finally:
        process.kill()
        process.wait()
    assert chime.other_process(uuid, foreign).host == "n1"
    chime.observed(name, "running")
    chime.wait(lambda: not [a for a in chime.alarms() if a["subject"] == name], "the alarm is cleared")


def test_an_unmanaged_domain_is_never_touched(chime: Chime) -> None:
    """S5: a domain that Chime did not make runs on, through an agent's life, a drain and all."""
    uuid = str(uuids.uuid4())
    xml = (
        f"<domain type='qemu'><name>mine</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
        "<os><type>hvm</type></os></domain>"
    )
    chime.stop_agent("n1")
    chime.as_a_person("n1", f"connection.defineXML({xml!r}).create()")
    chime.agent("n1").start()
    mine = chime.process(uuid)
    chime.in_session("n1")
    chime.wait_nodes("n1")
    chime.do(m.NodeDrain, name="n1", graceful_s=0.0)
    assert chime.node("n1")["drain_evidence"] == "agent"
    chime.do(m.NodeEnable, name="n1")
    assert chime.pids(uuid) == [mine.pid] and not chime.alarms()
    chime.kill(mine)
    chime.no_process(uuid)
    chime.stays(lambda: not chime.processes().get(uuid), 2.0, "nor is it started again")


