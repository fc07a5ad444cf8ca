"""Rules for all tests: in CI a skipped test is a failure, and no run leaves anything on the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import Cluster, build_guest, left_behind, short_directory

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CHIME_CI") == "1" or os.environ.get("CI", "").lower() in ("1", "true")
HOST_COMMANDS = ("ip", "nsenter", "unshare", "qemu-system-x86_64", "busybox", "cpio", "dpkg-deb")

_skipped: list[str] = []

# Who is started in the background by a shell ignores ^C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped (not what was expected to fail)."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(f"{report.nodeid}: {_reason(report.longrepr)}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember whole modules that were skipped."""
    if report.skipped:
        _skipped.append(f"{report.nodeid}: {_reason(report.longrepr)}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a run in which a test was skipped is a failed run."""
    if IN_CI and _skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that were skipped."""
    if IN_CI and _skipped:
        terminalreporter.section("skipped tests are failures in CI", red=True)
        for line in _skipped:
            terminalreporter.line(f"SKIPPED {line}")


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail at the end when a process, network device, mount or directory of this run is still there."""
    yield
    left = left_behind()
    assert not left, "left behind by the tests:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def needs_hosts() -> None:
    """Skip where hosts cannot be made: not root, a command is missing, or namespaces are forbidden."""
    missing = [command for command in HOST_COMMANDS if shutil.which(command) is None]
    if os.geteuid() != 0:
        pytest.skip("hosts need root")
    if missing:
        pytest.skip(f"hosts need the commands {', '.join(missing)} (make test installs them)")
    if subprocess.run(["unshare", "-n", "-m", "-p", "-u", "-f", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces")


@pytest.fixture(scope="session")
def guest(needs_hosts: None) -> tuple[Path, Path]:
    """(kernel, initrd) of the test guest, built once and kept in build/guest."""
    return build_guest(ROOT / "build" / "guest")


@pytest.fixture
def make_cluster(needs_hosts: None) -> Iterator[Callable[..., Cluster]]:
    """`make_cluster("n1", "n2")`: a cluster with those hosts powered on, closed after the test."""
    made: list[Cluster] = []

    def make(*names: str) -> Cluster:
        made.append(Cluster(names))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a path short enough for libvirt's unix sockets."""
    path = short_directory()
    yield path
    shutil.rmtree(path)
