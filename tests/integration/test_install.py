"""`make install` into a directory that then is the root of a host; its units as systemd sees them; `make uninstall`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("agentd", "chime-agent", "chime-tool", "chimed")
UNITS = ("chimed.service", "chime-agentd.service")
EXPOSURE = {"chimed.service": 16, "chime-agentd.service": 37}
"""Highest allowed `systemd-analyze security`, in tenths: what was reached. It may be lowered."""

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("needs_hosts")]

Run = Callable[..., subprocess.CompletedProcess[str]]


def make(target: str, destination: Path, *words: str, code: int = 0, checkout: Path = ROOT) -> str:
    """`make TARGET DESTDIR=destination ...`; what it printed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    argv = ["make", "--no-print-directory", target, f"DESTDIR={destination}", *words]
    done = subprocess.run(argv, cwd=checkout, env=environ, capture_output=True, text=True, timeout=600)
    assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    return done.stdout + done.stderr


def copied(checkout: Path) -> Path:
    """A checkout of its own."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("contrib", "docs", "chimed", "agentd", "wire", "tools"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    return checkout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with everything installed in it; the tests of this module share it, in their order."""
    destination = tmp_path_factory.mktemp("install")
    destination.chmod(0o755)
    checkout = copied(tmp_path_factory.mktemp("checkout"))
    subprocess.run(["chmod", "-R", "go-rwx", checkout], check=True)
    make("install", destination, checkout=checkout)
    yield destination
    shutil.rmtree(destination)


@pytest.fixture
def as_root_of_host(installed: Path, tmp_path: Path) -> Run:
    """Runs words where the installed files lie over this machine's, in mounts that go with the command."""
    space = tmp_path / "space"
    space.mkdir()
    script = """set -e; space=$2; root=$2/root
        mount -t tmpfs none "$space"  # a layer may not lie within another
        cp -a "$1" "$space/up"; mkdir "$space/work" "$root"
        mount -t overlay none -o "lowerdir=/,upperdir=$space/up,workdir=$space/work" "$root"
        for each in proc:proc run:tmpfs tmp:tmpfs; do mount -t ${each#*:} none "$root/${each%:*}"; done
        shift 2; exec chroot "$root" "$@"
        """

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(installed), str(space), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120)

    return run


def files(directory: Path) -> set[str]:
    """Everything in it that is not a directory."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_symlink() or not p.is_dir()}


def texts(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def test_the_directory_works_as_the_root_of_a_host(as_root_of_host: Run) -> None:
    for name in COMMANDS:
        done = as_root_of_host(f"/usr/local/bin/{name}", "--version")
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(rf"{name} \d+\.\d+\.\d+\n", done.stdout), done
    python = "import libvirt, agentd, sys; print(agentd.__file__, sys.prefix)"
    done = as_root_of_host("/opt/chime/bin/python", "-c", python)
    assert done.stdout == "/opt/chime/lib/python3.11/site-packages/agentd/__init__.py /opt/chime\n", done
    for name in ("chimed", "agentd"):
        done = as_root_of_host(f"/opt/chime/bin/{name}", "check-config", "--config", f"/etc/chime/{name}.toml")
        assert done.returncode == 0, done.stderr


def test_nothing_remembers_where_it_was_built(installed: Path) -> None:
    """Bytecode included: a traceback in the journal names the file that is there."""
    found = [p for p in texts(installed) if str(installed).encode() in p.read_bytes()]
    assert found == []


def test_every_user_can_run_it(installed: Path) -> None:
    """Also where the checkout is private (DESTDIR was filled from a private one here)."""
    assert os.readlink(installed / "opt/chime/bin/python3") == "/usr/bin/python3"
    closed = [p for p in (installed / "opt").rglob("*") if not p.is_symlink() and not p.stat().st_mode & 0o004]
    assert closed == []


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_has_few_rights(unit: str) -> None:
    path = ROOT / "contrib" / "systemd" / unit
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE[unit]}", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, re.findall("✗.*|→.*", done.stdout)


def test_systemd_finds_no_fault_in_the_units(as_root_of_host: Run) -> None:
    paths = [f"/usr/local/lib/systemd/system/{unit}" for unit in UNITS]
    done = as_root_of_host("systemd-analyze", "verify", "--man=no", *paths)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "chime" in line]
    assert done.returncode == 0 and ours == [], done
    broken = as_root_of_host("systemd-analyze", "verify", "--man=no", "/opt/chime/pyvenv.cfg")
    assert broken.returncode != 0, "it does look"


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_never_given_up_and_is_watched(unit: str) -> None:
    text = (ROOT / "contrib" / "systemd" / unit).read_text()
    for line in ("Type=notify", "Restart=always", "RestartSec=1", "StartLimitIntervalSec=0", "WatchdogSec=30"):
        assert f"\n{line}\n" in text
    assert unit != "chime-agentd.service" or "\nKillMode=process\n" in text


def test_the_user_and_the_state_directories_are_made(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "usr", tmp_path / "usr", symlinks=True)
    (tmp_path / "etc").mkdir()
    for argv in (["systemd-sysusers", f"--root={tmp_path}"], ["systemd-tmpfiles", "--create", f"--root={tmp_path}"]):
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    uid = int(re.search(r"^chime:x:(\d+):", (tmp_path / "etc/passwd").read_text(), re.M)[1])  # type: ignore[index]
    for name, owner in (("chime", uid), ("chime-agent", 0)):
        status = (tmp_path / "var/lib" / name).stat()
        assert (status.st_uid, status.st_mode & 0o7777) == (owner, 0o700), name


def test_a_foreign_directory_is_not_replaced(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "opt/chime").mkdir(parents=True)
    (tmp_path / "opt/chime/mine").touch()
    for target in ("install", "uninstall"):
        assert "was not made by make install" in make(target, tmp_path, code=1)
    assert files(tmp_path) == {"opt/chime/mine"}
    assert "expected an absolute path" in make("install", tmp_path, "PREFIX=/", code=1)
    assert "unknown part agnet" in make("install", tmp_path, "PARTS=agnet", code=1)


def test_an_installation_that_fails_changes_nothing(installed: Path) -> None:
    before = files(installed)
    assert "is not Python 3.11 or newer" in make("install", installed, "PYTHON=/bin/false", code=1)
    os.environ["PIP_NO_INDEX"] = "1"
    try:
        assert "nothing was changed" in make("install", installed, code=1)
    finally:
        del os.environ["PIP_NO_INDEX"]
    assert files(installed) == before


def test_the_packages_are_those_that_are_pinned(installed: Path, as_root_of_host: Run) -> None:
    text = (ROOT / "contrib/requirements/agent.txt").read_text() + (ROOT / "contrib/requirements/build.txt").read_text()
    pins = {name.replace("-", "_"): version for name, version in re.findall(r"^([\w-]+)==([\w.]+)", text, re.M)}
    found = (installed / "opt/chime/lib/python3.11/site-packages").glob("*.dist-info")
    there = dict(path.name.removesuffix(".dist-info").lower().split("-") for path in found)
    assert there.pop("chime_ha") and there == pins
    done = as_root_of_host("/opt/chime/bin/python", "-m", "pip", "check")
    assert done.returncode == 0, done


def test_another_file_under_the_name_of_a_package_is_not_installed(installed: Path, tmp_path: Path) -> None:
    before, checkout = files(installed), copied(tmp_path)
    pinned = checkout / "contrib/requirements/base.txt"
    text = re.sub(r"(?<=sha256:)[0-9a-f]{64}", "0" * 64, pinned.read_text())
    for broken in (text, text.replace("    --hash", "    # --hash")):
        pinned.write_text(broken)
        assert "nothing was changed" in make("install", tmp_path / "to", "PARTS=tool", code=1, checkout=checkout)
    assert files(installed) == before and not (tmp_path / "to/opt/chime").exists()


def test_again_is_an_upgrade(installed: Path) -> None:
    """Of what is there, whatever part is named; what a person wrote is kept, what the new version lacks is gone."""
    config = installed / "etc/chime/chimed.toml"
    config.write_text("heartbeat_s = 10.0\n")
    stale = installed / "opt/chime/lib/python3.11/site-packages/chimed/stale.py"
    stale.touch()
    (installed / "usr/local/bin/chimed").unlink()
    make("install", installed, "PARTS=tool")
    assert config.read_text() == "heartbeat_s = 10.0\n"
    assert not stale.exists()
    assert {p.name for p in (installed / "usr/local/bin").iterdir()} == set(COMMANDS)
    assert (installed / "opt/chime/lib/python3.11/site-packages/libvirt.py").exists()
    assert {p.name for p in (installed / "opt").iterdir()} == {"chime"}


def test_uninstall_leaves_state_and_purge_leaves_nothing(installed: Path) -> None:
    state = installed / "var/lib/chime/chime.db"
    wanted = installed / "etc/systemd/system/multi-user.target.wants/chimed.service"
    for path in (state, wanted):
        path.parent.mkdir(parents=True)
    state.touch()
    wanted.symlink_to("/usr/local/lib/systemd/system/chimed.service")
    (installed / "usr/local/bin/other").touch()
    told = make("uninstall", installed)
    kept = {"etc/chime/agentd.toml", "etc/chime/chimed.toml", "var/lib/chime/chime.db", "usr/local/bin/other"}
    assert files(installed) == kept
    assert f"left, with keys and the database: {installed}/etc/chime {installed}/var/lib/chime" in told
    assert "removed state" in make("uninstall", installed, "PURGE=1")
    assert files(installed) == {"usr/local/bin/other"}
    for name in ("opt/chime", "etc/chime", "var/lib/chime", "usr/local/lib/systemd", "usr/local/lib/sysusers.d"):
        assert not (installed / name).exists(), name
