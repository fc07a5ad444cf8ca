"""agentd on `qemu:///system`: a real libvirtd of the host's own, and people who use virsh beside Chime.

Rows 6 to 9, 17 and 18 of the fault table, and that domains of others are never touched (S5). The host's libvirtd has
private folders, so that the machine's own libvirt is not involved.
"""

from __future__ import annotations

import os
import re
import signal
import uuid as uuids
from collections.abc import Iterator

import pytest

from tests.integration.chime import Chime, unique
from tests.integration.libvirtd import start_libvirtd
from wire import messages as m

pytestmark = pytest.mark.integration

NODE = "n1"
FOREIGN = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>"""


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime((NODE,)) as chime:
        chime.stop_agent(NODE)
        start_libvirtd(chime[NODE])
        chime.wait(lambda: virsh(chime, "list", check=False) is not None, "libvirtd answers")
        chime.write_agent_config(NODE, libvirt_uri="qemu:///system")
        chime.agent(NODE).start()
        chime.wait_nodes(NODE)
        yield chime


@pytest.fixture
def chime(whole: Chime) -> Iterator[Chime]:
    yield whole
    print(whole.logs())
    whole.tidy()


def virsh(chime: Chime, *words: str, check: bool = True) -> str | None:
    """What a person does on the node; None when it failed."""
    done = chime[NODE].run(["virsh", "-q", "-c", "qemu:///system", *words], timeout_s=30, check=False)
    if check:
        assert done.returncode == 0, f"virsh {words}: {done.stderr}"
    return done.stdout if done.returncode == 0 else None


def domains(chime: Chime) -> list[str]:
    """The UUIDs of all domains of the node."""
    return (virsh(chime, "list", "--all", "--uuid") or "").split()


def define_foreign(chime: Chime, name: str, uuid: str) -> None:
    """A person defines a domain by hand."""
    path = chime[NODE].dir / f"{name}.xml"
    path.write_text(FOREIGN.format(name=name, uuid=uuid))
    virsh(chime, "define", str(path))


def test_a_vm_that_a_person_destroys_runs_again(chime: Chime) -> None:
    """Row 6."""
    name = unique("destroyed")
    uuid = chime.create(name)
    first = chime.process(uuid)
    virsh(chime, "destroy", name)
    chime.other_process(uuid, first)
    chime.observed(name, "running")
    chime.wait(lambda: "vm-restarted" in chime.actions(name), "the restart is in the audit trail")


def test_a_definition_that_a_person_removes_comes_back(chime: Chime) -> None:
    """Row 7: undefined while running (it goes on), and while stopped."""
    name = unique("undefined")
    uuid = chime.create(name)
    first = chime.process(uuid)
    virsh(chime, "undefine", name)
    chime.wait(lambda: "yes" in (virsh(chime, "dominfo", name) or "").split("Persistent:")[1][:12], "defined again")
    assert chime.pids(uuid) == [first.pid]
    chime.do(m.VmStop, vm=name, force=True)
    virsh(chime, "undefine", name)
    chime.wait(lambda: virsh(chime, "dominfo", name, check=False), "defined again while stopped")
    chime.do(m.VmStart, vm=name)
    chime.process(uuid)


def test_a_released_vm_that_a_person_starts_is_removed(chime: Chime) -> None:
    """Row 8: this node holds the release of a deleted VM; a person starts it, then defines it, by hand."""
    name = unique("released")
    uuid = chime.create(name)
    chime.do(m.VmDelete, vm=name)
    path = chime[NODE].dir / f"{name}.xml"
    path.write_text(FOREIGN.format(name=name, uuid=uuid))
    virsh(chime, "create", str(path))
    chime.no_process(uuid)
    define_foreign(chime, name, uuid)
    chime.wait(lambda: uuid not in domains(chime), "the domain is removed")


def test_a_vm_that_a_person_pauses_stays_paused(chime: Chime) -> None:
    """Row 9: neither restarted nor killed."""
    name = unique("paused")
    uuid = chime.create(name)
    first = chime.process(uuid)
    virsh(chime, "suspend", name)
    chime.observed(name, "paused")
    chime.stays(lambda: chime.pids(uuid) == [first.pid], 3.0, "the paused qemu is left alone")
    virsh(chime, "resume", name)
    chime.observed(name, "running")


def test_domains_of_others_are_never_touched(chime: Chime) -> None:
    """S5: neither a running nor a stopped foreign domain, also not in a drain."""
    running, stopped = str(uuids.uuid4()), str(uuids.uuid4())
    define_foreign(chime, "mine-1", running)
    define_foreign(chime, "mine-2", stopped)
    virsh(chime, "start", "mine-1")
    pid = chime.process(running).pid
    uuid = chime.create(unique("ours"))
    chime.do(m.NodeDrain, name=NODE, graceful_s=0.0)
    chime.no_process(uuid)
    assert chime.node(NODE)["drain_evidence"] == "agent"
    assert chime.pids(running) == [pid]
    assert stopped in domains(chime)
    assert not [alarm for alarm in chime.alarms() if alarm["subject"] in (running, stopped)]
    virsh(chime, "destroy", "mine-1")
    for name in ("mine-1", "mine-2"):
        virsh(chime, "undefine", name)


def test_a_libvirtd_that_dies_takes_no_vm_with_it(chime: Chime) -> None:
    """Row 17: VMs live, observed is unknown meanwhile, events are followed again afterwards."""
    name = unique("orphan")
    uuid = chime.create(name)
    first = chime.process(uuid)
    service = chime[NODE].service("libvirtd")
    chime[NODE].ask_init("stop", name="libvirtd")
    chime.observed(name, "unknown")
    chime.wait(lambda: "libvirt-unreachable" in chime.node(NODE)["reasons"], "the fault is reported")
    assert chime.pids(uuid) == [first.pid]
    service.start()
    chime.observed(name, "running")
    chime.wait_nodes(NODE)
    assert chime.pids(uuid) == [first.pid]
    chime.kill(first)
    chime.other_process(uuid, first)


def test_a_libvirtd_that_hangs_is_a_fault_and_no_reason_to_start(chime: Chime) -> None:
    """Row 18: calls time out, health is error, heartbeats go on, nothing is started twice."""
    name = unique("hung")
    uuid = chime.create(name)
    first = chime.process(uuid)
    libvirtd = chime[NODE].service("libvirtd").pid
    assert libvirtd is not None
    signals(libvirtd, signal.SIGSTOP)
    try:
        chime.wait_nodes(NODE, health="error")
        reasons = " ".join(chime.node(NODE)["reasons"])
        assert re.search("libvirt-(slow|unreachable)", reasons)
        age = chime.node(NODE)["last_heartbeat_age_s"]
        assert age is not None and age < 10
        chime.observed(name, "unknown")
        assert chime.pids(uuid) == [first.pid]
    finally:
        signals(libvirtd, signal.SIGCONT)
    chime.wait_nodes(NODE)
    chime.observed(name, "running")
    assert chime.pids(uuid) == [first.pid]


def signals(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process of ours."""
    os.kill(pid, number)
