"""What the lab's hosts are made of: three read-only layers that all share, and one of each host's own.

From below: this machine's root; `common`, the services of a lab host whatever this machine has enabled; Chime,
installed once with `make install DESTDIR=...` as on any node and kept in `build/lab`; and what the host itself writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.hosts.host import QEMU_CONF

ROOT = Path(__file__).resolve().parents[2]
SHARED = "/srv/shared"  # storage that all hosts share, as they see it
LOCAL = "/srv/local"  # a small disk of the host's own, that can be broken
INSTALL_TIMEOUT_S = 600
INSTALLED_FROM = ("chimed", "agentd", "wire", "tools", "contrib", "docs", "setup.py", "pyproject.toml", "Makefile")

UNITS = Path("/lib/systemd/system")
WANTS: Mapping[str, tuple[str, ...]] = {
    "multi-user.target.wants": ("systemd-networkd.service", "libvirtd.service"),
    "network-online.target.wants": ("systemd-networkd-wait-online.service",),
    "sockets.target.wants": (
        "libvirtd.socket",
        "libvirtd-ro.socket",
        "libvirtd-tcp.socket",  # plain TCP for migrations: in the lab only
        "virtlogd.socket",
        "virtlockd.socket",
    ),
}
# No consoles (nobody is there), and nothing that wakes up by itself in the middle of a measurement.
MASKED = ("console-getty.service", "getty.target", "systemd-logind.service", "systemd-tmpfiles-clean.timer")
OPAQUE = ("etc/systemd/system", "etc/systemd/network", "etc/chime", "etc/libvirt/qemu/autostart")
OPAQUE_MARK = "trusted.overlay.opaque"

# systemd-nspawn mounts a boot id for each boot, which the unit's own /proc/sys (ProtectKernelTunables) would hide.
BOOT_ID_UNIT = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/cp /proc/sys/kernel/random/boot_id /run/boot_id
"""
AGENT_DROP_IN = """[Unit]
Requires=lab-boot-id.service
After=lab-boot-id.service
[Service]
BindReadOnlyPaths=/run/boot_id:/proc/sys/kernel/random/boot_id
"""
JOURNALD = "[Journal]\nStorage=persistent\nRateLimitBurst=0\nSyncIntervalSec=1s\nSystemMaxUse=64M\n"
NETWORK = """[Match]
Name={interface}
[Network]
Address={address}/{prefix}
LinkLocalAddressing=no
# What is configured stays when the cable is pulled, as on most servers.
ConfigureWithoutCarrier=yes
"""
LIBVIRTD_CONF = 'auth_tcp = "none"\nhost_uuid = "{uuid}"\n'


def installed() -> Path:
    """The layer with Chime in it, made when it is missing or the sources changed. Safe in several processes at once."""
    build = ROOT / "build" / "lab"
    build.mkdir(parents=True, exist_ok=True)
    layer, stamp, wanted = build / "install", build / "stamp", _digest(INSTALLED_FROM)
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(layer, ignore_errors=True)
            layer.mkdir()
            argv = ["make", "-s", "install", f"DESTDIR={layer}"]
            done = subprocess.run(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stdout}{done.stderr}")
            stamp.write_text(wanted)
    return layer


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)} {file.stat().st_mode}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def make_common(layer: Path, names: Mapping[str, str]) -> None:
    """The layer below all hosts; `names` maps addresses to host names."""
    for path in OPAQUE:  # nothing of what this machine has there
        (layer / path).mkdir(parents=True)
        os.setxattr(layer / path, OPAQUE_MARK, b"y")
    system = layer / "etc/systemd/system"
    (system / "default.target").symlink_to(UNITS / "multi-user.target")
    for wants, units in WANTS.items():
        (system / wants).mkdir()
        for unit in units:
            (system / wants / unit).symlink_to(UNITS / unit)
    for unit in MASKED:
        (system / unit).symlink_to("/dev/null")
    _write(system / "lab-boot-id.service", BOOT_ID_UNIT)
    _write(system / "chime-agentd.service.d/lab.conf", AGENT_DROP_IN)
    _write(layer / "etc/systemd/journald.conf", JOURNALD)
    _write(layer / "etc/libvirt/qemu.conf", QEMU_CONF)
    hosts = "".join(f"{address} {name}\n" for address, name in names.items())
    _write(layer / "etc/hosts", f"127.0.0.1 localhost\n{hosts}")
    _write(layer / "etc/resolv.conf", "")
    for path in (SHARED, LOCAL):
        (layer / path.lstrip("/")).mkdir(parents=True)
    (layer / "var/log/journal").mkdir(parents=True)


def make_own(layer: Path, name: str, networks: Mapping[str, tuple[str, int]]) -> None:
    """What a host has of its own at its first boot; `networks` maps interfaces to address and prefix."""
    _write(layer / "etc/hostname", f"{name}\n")
    _write(layer / "etc/machine-id", f"{uuid.uuid4().hex}\n")
    _write(layer / "etc/libvirt/libvirtd.conf", LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
    for interface, (address, prefix) in networks.items():
        text = NETWORK.format(interface=interface, address=address, prefix=prefix)
        _write(layer / f"etc/systemd/network/{interface}.network", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
