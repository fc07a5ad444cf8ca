"""`chime-agent migrate` with the server gone: real agents, real libvirtd on two hosts, a guest that counts (row 53)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Guest, guest_cmdline
from tests.hosts.guest import GUEST_MEMORY_MIB
from tests.integration.chime import Chime, environment
from tests.integration.libvirtd import start_libvirtd
from wire import messages as m
from wire.types import VirtType

pytestmark = pytest.mark.integration

NODES = ("s", "t")


@pytest.fixture
def chime(needs_hosts: None) -> Iterator[Chime]:
    with Chime(NODES) as chime:
        for name in NODES:
            chime.stop_agent(name)
            start_libvirtd(chime[name], listen=True)
            chime.wait(lambda name=name: virsh(chime, name, "list") is not None, "libvirtd answers")
            chime.write_agent_config(
                name, libvirt_uri="qemu:///system", migration_uri="qemu+tcp://{host}/system", audit_s=6.0
            )
            chime.agent(name).start()
        chime.wait_nodes(*NODES)
        yield chime
        print(chime.logs())
        assert chime.watch.violations == [], "a VM had two runnable processes at once"


class Vm:
    """A guest on `s` that counts into a file on storage that both hosts see."""

    def __init__(self, chime: Chime, guest: tuple[Path, Path]) -> None:
        self.chime, self.guest = chime, Guest("g", chime.cluster.dir / "count.log")
        kernel, initrd = guest
        spec = m.VmSpec(
            vcpus=1,
            memory_mib=GUEST_MEMORY_MIB,
            virt_type=VirtType.QEMU,
            boot=m.Boot(kernel=str(kernel), initrd=str(initrd), cmdline=guest_cmdline("g", 0.1)),
            serial_log=str(self.guest.serial),
        )
        self.uuid = chime.create("g", spec, node="s")
        chime.wait(lambda: self.guest.counts()[5:], "the guest counts")

    def counts_on(self) -> None:
        """And it never began anew, nor counted twice."""
        before = len(self.guest.counts())
        self.chime.wait(lambda: len(self.guest.counts()) > before + 5, "the guest counts on")
        self.guest.ran_once(self.chime.process(self.uuid).incoming)

    def state(self, node: str) -> str | None:
        return virsh(self.chime, node, "domstate", self.uuid)


@pytest.fixture
def vm(chime: Chime, guest: tuple[Path, Path]) -> Vm:
    made = Vm(chime, guest)
    chime.stop_server()
    return made


def virsh(chime: Chime, node: str, *words: str) -> str | None:
    """What a person sees on a node; None when it failed."""
    done = chime[node].run(["virsh", "-q", "-c", "qemu:///system", *words], timeout_s=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def migrate(chime: Chime, *argv: object, code: int = 0) -> dict[str, Any]:
    return chime.local("s", "migrate", "--interface", "eth0", "--dest", chime["t"].address, *argv, code=code)


@pytest.mark.parametrize("agent", [True, False])
def test_row_53_a_guest_moves_without_the_server_and_without_the_agent(chime: Chime, vm: Vm, agent: bool) -> None:
    if not agent:
        chime.stop_agent("s")
        chime.stop_agent("t")
    assert migrate(chime, "--all", "--dry-run")["problems"] == []
    document = migrate(chime, "--all", "--yes")
    assert [(one["uuid"], one["outcome"]) for one in document["vms"]] == [(vm.uuid, "left")]
    assert vm.state("s") is None and vm.state("t") == "running"
    vm.counts_on()
    assert [left["handed_over"] for left in chime.local("s", "status")["left"]] == [True]
    if not agent:
        chime.agent("s").start()
        chime.agent("t").start()
    pid = vm.chime.process(vm.uuid).pid
    chime.stays(lambda: vm.chime.pids(vm.uuid) == [pid], 3.0, "the target's agent leaves it alone")


def test_a_target_that_is_not_reached_is_exit_4_and_nothing_happens(chime: Chime, vm: Vm) -> None:
    chime["t"].power_off()
    error = migrate(chime, "--all", "--yes", code=4)["error"]
    assert "cannot be reached" in error and vm.state("s") == "running"
    vm.counts_on()


def test_row_51_chime_agent_killed_in_the_middle(chime: Chime, vm: Vm) -> None:
    """The attempt is on disk; the next agent decides it by what it finds."""
    argv = ["--interface", "eth0", "--dest", chime["t"].address, "--all", "--yes", "--bandwidth", "4"]
    words = [sys.executable, "-m", "agentd.local.main", "migrate", *argv, "--config", str(chime.agent_toml("s"))]
    chime.stop_agent("s")
    with chime["s"].popen(words, env=environment(), stderr=subprocess.PIPE) as run:
        chime.wait(lambda: vm.state("t") is not None, "the copy begins")
        os.killpg(run.pid, signal.SIGKILL)
    chime.agent("s").start()

    def decided() -> bool:
        status = chime.local("s", "status")
        return bool(status["agent_running"]) and not any(one["phase"] == "leaving" for one in status["migrations"])

    chime.wait(decided, "the attempt is decided")
    chime.wait(lambda: [vm.state("s"), vm.state("t")].count("running") == 1, "it runs on one of both")
    vm.counts_on()
