"""One lab for all tests: each gets it clean. After a test that leaves it broken the next one gets a new lab."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab import remains
from tests.lab.lab import Lab

COMMANDS = {
    "systemd-nspawn": "systemd-container",
    "systemctl": "systemd",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mkfs.ext4": "e2fsprogs",
}
MAX_FAILED = 2  # so often in a row a lab may fail to come up; then no test tries again


class Keeper:
    """Makes a lab when one is needed."""

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._failed = 0

    def get(self) -> Lab:
        """The lab, in working order."""
        if self._lab is None:
            assert self._failed < MAX_FAILED, "no lab could be made, see above"
            self._failed += 1
            self._lab = Lab()
            self._failed = 0
        return self._lab

    def drop(self) -> None:
        """End it."""
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.close()


def _reason_against() -> str:
    """Why there can be no lab here; empty when there can."""
    if os.geteuid() != 0:
        return "the lab needs root"
    missing = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    if missing:
        return f"the lab needs the Debian packages {', '.join(sorted(missing))} (make lab installs them)"
    if subprocess.run(["unshare", "-n", "-m", "-p", "-u", "-f", "true"], capture_output=True).returncode:
        return "this machine allows no namespaces"
    return ""


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """Whoever needs a lab gets it here. At the end nothing of any lab of this run may be left."""
    reason = _reason_against()
    if reason:
        pytest.skip(reason)
    keeper = Keeper()
    yield keeper
    keeper.drop()
    left = remains.left_behind()
    assert not left, "left behind by the lab:\n" + "\n".join(left)


@pytest.fixture
def lab(keeper: Keeper) -> Iterator[Lab]:
    """The lab: hosts on, networks whole, daemons running, no VM. What it wrote is shown when the test fails."""
    lab = keeper.get()
    yield lab
    print(lab.logs())
    try:
        lab.reset()
    except BaseException:
        print(lab.logs())
        keeper.drop()
        raise
