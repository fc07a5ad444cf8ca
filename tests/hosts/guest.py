"""The test guest: a Debian cloud kernel and an initramfs of busybox that prints a counter.

Both files are made once and kept under a build directory. The kernel package is downloaded with apt and
unpacked, never installed. What the guest does is in `guest_init.sh`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# Modules that make the ACPI power button an input device; both are alone, without dependencies.
GUEST_MODULES = ("kernel/drivers/acpi/button.ko", "kernel/drivers/input/evdev.ko")
GUEST_CMDLINE = (
    "console=ttyS0 quiet panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check random.trust_cpu=on"
)
GUEST_MEMORY_MIB = 96

_INIT_SCRIPT = Path(__file__).with_name("guest_init.sh")


class GuestError(RuntimeError):
    """The guest image could not be made; the message says which command failed and how."""


def build_guest(build_dir: Path) -> tuple[Path, Path]:
    """Return (kernel, initrd) under `build_dir`, making them when they are missing or outdated.

    Safe to call from several processes at once. Raises GuestError.
    """
    build_dir = Path(build_dir).resolve()
    build_dir.mkdir(parents=True, exist_ok=True)
    kernel, initrd, stamp = build_dir / "vmlinuz", build_dir / "initrd.gz", build_dir / "stamp"
    recipe = hashlib.sha256(_INIT_SCRIPT.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    with open(build_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == recipe and kernel.exists() and initrd.exists()):
            tree = _unpack_kernel(build_dir)
            shutil.copy(_only(tree, "boot/vmlinuz-*"), kernel)
            _pack_initrd(tree, build_dir, initrd)
            shutil.rmtree(tree)
            stamp.write_text(recipe)
    return kernel, initrd


def guest_cmdline(name: str, interval_s: float = 1.0, extra: str = "") -> str:
    """Kernel command line of a guest that prints `chime-guest NAME counter N ...` every `interval_s`."""
    return f"{GUEST_CMDLINE} chime.name={name} chime.interval={interval_s:g} {extra}".strip()


def guest_xml(name: str, uuid: str, kernel: Path, initrd: Path, serial: Path, interval_s: float = 1.0) -> str:
    """Domain XML of such a guest outside Chime: TCG, serial output appended to the file `serial`."""
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>{GUEST_MEMORY_MIB}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
    <cmdline>{guest_cmdline(name, interval_s)}</cmdline></os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <serial type='file'><source path='{serial}' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>"""


def _unpack_kernel(build_dir: Path) -> Path:
    package = _downloaded(build_dir)
    tree = build_dir / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    _run(["dpkg-deb", "-x", str(package), str(tree)])
    return tree


def _downloaded(build_dir: Path) -> Path:
    """The kernel's .deb, from an earlier run or from the Debian mirror (apt checks its hash)."""
    present = sorted(build_dir.glob("linux-image-*.deb"))
    if present:
        return present[-1]
    partial = build_dir / "download"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _fetch(partial)
    except GuestError:
        _run(["apt-get", "-qq", "update"])  # no lists yet, or lists older than the mirror
        _fetch(partial)
    package = _only(partial, "linux-image-*.deb")
    return package.rename(build_dir / package.name)


def _fetch(into: Path) -> None:
    listing = _run(["apt-cache", "depends", "--important", KERNEL_META_PACKAGE])
    fields = [line.split(":", 1) for line in listing.splitlines() if line.strip().startswith("Depends:")]
    kernels = [name.strip() for _, name in fields if name.strip().startswith("linux-image-")]
    if not kernels:
        raise GuestError(f"apt knows no package that {KERNEL_META_PACKAGE} depends on")
    _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", kernels[0]], cwd=into)


def _pack_initrd(tree: Path, build_dir: Path, initrd: Path) -> None:
    root = build_dir / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "lib", "proc", "sys", "dev"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    shutil.copy(_INIT_SCRIPT, root / "init")
    (root / "init").chmod(0o755)
    for module in GUEST_MODULES:
        shutil.copy(_only(tree, f"lib/modules/*/{module}"), root / "lib")
    files = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
        cwd=root,
        input=files.encode(),
        capture_output=True,
    )
    if packed.returncode:
        raise GuestError(f"cpio failed: {packed.stderr.decode().strip()}")
    initrd.write_bytes(gzip.compress(packed.stdout, mtime=0))
    shutil.rmtree(root)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern)) or sorted(folder.glob("usr/" + pattern))
    if len(found) != 1:
        raise GuestError(f"expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def _run(argv: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise GuestError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
