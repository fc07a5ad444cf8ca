"""What the definition of a VM reaches on its node beyond the VM itself. Pure: server, agent and tools ask the same.

Rules:
- What is not known to be a VM's own is named: an emulator of somebody's, arguments for qemu, host devices and folders,
  sockets and scripts, no confinement, and every path (any attribute or text that begins with `/`) of the system's.
- Nothing is opened here. `resolve` follows links where that is possible (on the node); `..` is refused as it stands.
- XML is read without document type or entities, and not deeper than 64 levels.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from wire.messages import VmSpec
from wire.text import clean_line

MAX_DEPTH = 64
MAX_FINDINGS = 20
MAX_WORDS = 200


class Reach(StrEnum):
    """A way by which a VM reaches beyond itself."""

    EMULATOR = "emulator"  # a program that is no emulator of this node's
    QEMU_ARGUMENTS = "qemu-arguments"  # arguments that libvirt passes on unread
    PATHS = "paths"  # files of the system
    HOST_DEVICES = "host-devices"  # devices of the host, given to the VM
    HOST_FOLDERS = "host-folders"  # folders of the host, shown to the VM
    HOST_NETWORK = "host-network"  # scripts, sockets and interfaces of the host
    UNCONFINED = "unconfined"  # without the confinement that libvirt gives, or with one of its own


class Finding(NamedTuple):
    """One thing that reaches further. `text`: in words."""

    reach: Reach
    text: str


class Limits(NamedTuple):
    """What is a VM's own. `vm_paths` are folders that VMs may use though they lie in `forbidden_paths`; both may have
    `*` within a name."""

    emulators: tuple[str, ...]
    forbidden_paths: tuple[str, ...]
    vm_paths: tuple[str, ...] = ()
    allowed: frozenset[Reach] = frozenset()


EMULATORS = (
    "/usr/bin/qemu-system-*", "/usr/bin/qemu-kvm", "/usr/bin/kvm", "/usr/libexec/qemu-kvm", "/usr/lib/qemu/qemu-kvm",
)  # fmt: skip
FORBIDDEN = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr", "/var/lib/chime*", "/var/run", "/var/spool",
)  # fmt: skip
DEFAULT = Limits(EMULATORS, FORBIDDEN)

_OWN = ("/run/libvirt/qemu/channel", "/var/run/libvirt/qemu/channel")  # sockets of guest agents
_BOOT = ("/boot", "/usr/share", "/usr/lib", "/lib/firmware")
_MEDIA = ("/usr/share",)
_USES = {"boot": _BOOT, "medium": _MEDIA}
"""What may be read of the system: firmware and kernels to boot from; drivers on a read-only medium."""
_SECRETS = (".ssh", ".gnupg")
_BLOCK = (
    "dm-*", "drbd*", "loop[0-9]*", "md*", "nbd[0-9]*", "nvme*", "rbd*", "sd*", "sr[0-9]*", "vd*", "vg*", "xvd*", "zd*",
)  # fmt: skip
_HARMLESS = ("kvm", "net/tun", "null", "random", "urandom", "vhost-net", "zero")
_NO_VOLUMES = (
    "block", "bsg", "bus", "char", "cpu", "dma_heap", "dri", "fd", "hugepages", "infiniband", "input", "mqueue", "net",
    "pts", "shm", "snd", "usb", "vfio", "vhost*",
)  # fmt: skip
"""Folders of /dev that are no volume group."""

Resolve = Callable[[str], str]


def of_spec(spec: VmSpec, limits: Limits = DEFAULT, resolve: Resolve = str) -> tuple[Finding, ...]:
    """What a VM's definition reaches, the disks that Chime would make for it included. Raises ValueError for XML that
    cannot be read."""
    found = [*_of_domain(parse(spec.xml), limits, resolve)] if spec.xml is not None else []
    used = [("disk", disk.path, "") for disk in spec.disks]
    if spec.boot is not None:
        used += [("kernel", spec.boot.kernel, "boot"), ("initrd", spec.boot.initrd or "", "boot")]
    used.append(("serial log", spec.serial_log or "", ""))
    found += [f for what, path, use in used if path for f in _of_path(what, path, use, limits, resolve)]
    return _some(found, limits)


def of_xml(text: str, limits: Limits = DEFAULT, resolve: Resolve = str) -> tuple[Finding, ...]:
    """What a libvirt domain reaches. Raises ValueError for XML that cannot be read."""
    return _some(_of_domain(parse(text), limits, resolve), limits)


def words(found: tuple[Finding, ...]) -> str:
    """The findings in one line."""
    return "; ".join(finding.text for finding in found)


def _some(found: list[Finding] | Iterator[Finding], limits: Limits) -> tuple[Finding, ...]:
    """Those that are not allowed, each once, and not without end."""
    kept = list(dict.fromkeys(f for f in found if f.reach not in limits.allowed))
    if len(kept) <= MAX_FINDINGS:
        return tuple(kept)
    more = Finding(kept[MAX_FINDINGS].reach, f"and {len(kept) - MAX_FINDINGS} more")
    return (*kept[:MAX_FINDINGS], more)


# --- the XML ----------------------------------------------------------------------------------------------------------


class _StrictBuilder(ET.TreeBuilder):
    """Refuses document types (so no entity is ever expanded) and deep nesting."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type or entities")

    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ET.Element:
        self.depth -= 1
        return super().end(tag)


def parse(text: str) -> ET.Element:
    """The `<domain>` element of XML that somebody wrote. Raises ValueError with one line."""
    parser = ET.XMLParser(target=_StrictBuilder())
    try:
        parser.feed(text)
        domain: ET.Element = parser.close()
    except ET.ParseError as error:
        raise ValueError(f"the domain XML is malformed: {error}") from None
    except ValueError as error:  # of the builder, or text that is none (a lone surrogate)
        raise ValueError(f"the domain XML is refused: {error}") from None
    if domain.tag != "domain":
        raise ValueError(f"the domain XML is refused: its root is <{domain.tag}>, not <domain>")
    return domain


def _of_domain(domain: ET.Element, limits: Limits, resolve: Resolve) -> Iterator[Finding]:
    for child in domain:
        if child.tag == "devices":
            for device in child:
                yield from _device(device, limits, resolve)
        elif child.tag == "seclabel":
            yield from _seclabel(child)
        elif child.tag not in _WORDS_ONLY:
            yield from _walk(child, child.tag, "boot" if child.tag in _BOOTS else "", limits, resolve)


_WORDS_ONLY = ("metadata", "title", "description", "name", "uuid")
_BOOTS = ("os", "sysinfo")
_PATH_ATTRIBUTES = ("dir", "file", "path", "socket")
_PATH_TEXTS = ("dtb", "initrd", "kernel", "loader", "nvram")


def _walk(element: ET.Element, what: str, use: str, limits: Limits, resolve: Resolve) -> Iterator[Finding]:
    """Every path below and in an element, and what belongs to qemu alone."""
    if element.tag.startswith("{"):
        space, _, name = element.tag[1:].partition("}")
        yield _finding(Reach.QEMU_ARGUMENTS, f"{name} of {space} ({_arguments(element)})")
        return
    if element.tag == "cmdline":
        return  # for the guest's kernel
    for key, value in element.attrib.items():
        is_path = key in _PATH_ATTRIBUTES or (key == "dev" and what == "disk" and element.tag == "source")
        of_remote = key == "name" and "protocol" in element.attrib
        if value and not of_remote and (is_path or value.strip().startswith("/")):
            yield from _of_path(what, value, use, limits, resolve)
    text = (element.text or "").strip()
    if text.startswith("/") or (text and element.tag in _PATH_TEXTS):
        yield from _of_path(element.tag, text, use, limits, resolve)
    for child in element:
        yield from _walk(child, what, "boot" if child.tag == "rom" else use, limits, resolve)


def _arguments(element: ET.Element) -> str:
    values = [value for part in element.iter() for value in part.attrib.values()]
    return " ".join(values)


def _seclabel(element: ET.Element) -> Iterator[Finding]:
    kind, model = element.get("type", "dynamic"), element.get("model", "any")
    if kind != "dynamic" or element.get("relabel") == "no" or element.find("baselabel") is not None:
        text = f"seclabel of type {kind}, model {model}: not the confinement that libvirt gives"
        yield _finding(Reach.UNCONFINED, text)


# --- devices ----------------------------------------------------------------------------------------------------------

_GIVEN = {
    "hostdev": Reach.HOST_DEVICES,
    "filesystem": Reach.HOST_FOLDERS,
    "shmem": Reach.HOST_DEVICES,
}
"""Devices that are the host's, whatever else they say."""
_TYPES: dict[str, tuple[tuple[str, ...], Reach]] = {
    "disk": (("file", "block", "network"), Reach.HOST_DEVICES),
    "interface": (("bridge", "network", "user", "null", "internal"), Reach.HOST_NETWORK),
    "serial": (
        ("pty", "file", "null", "vc", "stdio", "spicevmc", "spiceport", "qemu-vdagent", "dbus", "unix"),
        Reach.HOST_NETWORK,
    ),
    "input": (("mouse", "tablet", "keyboard"), Reach.HOST_DEVICES),
}
_TYPES |= dict.fromkeys(("console", "channel", "parallel", "redirdev", "smartcard"), _TYPES["serial"])
"""The types of a device that are the VM's own, and what another is."""
_BACKENDS = (("tpm", "passthrough"), ("tpm", "external"), ("rng", "egd"))
_SHOWN = {Reach.HOST_DEVICES: "a device of the host", Reach.HOST_FOLDERS: "a folder of the host"}


def _device(device: ET.Element, limits: Limits, resolve: Resolve) -> Iterator[Finding]:
    tag, kind = device.tag, device.get("type", "")
    if tag == "emulator":
        yield from _emulator((device.text or "").strip(), limits)
        return
    if tag in _GIVEN:
        yield _finding(_GIVEN[tag], f"{tag} {kind}".strip() + f": {_SHOWN[_GIVEN[tag]]} ({_arguments(device)})")
        return
    own, reach = _TYPES.get(tag, ((), Reach.HOST_DEVICES))
    if own and kind and kind not in own:
        yield _finding(reach, f"{tag} of type {kind} ({_arguments(device)})")
    yield from _special(device)
    if kind == "pty" and own:  # the path of its source, and `tty`, say where libvirt has put it
        for part in device:
            if part.tag != "source":
                yield from _walk(part, tag, "", limits, resolve)
        return
    use = "medium" if device.get("device") == "cdrom" else ""
    yield from _walk(device, tag, use, limits, resolve)


def _special(device: ET.Element) -> Iterator[Finding]:
    """What makes a device of a usual type unusual."""
    if device.tag == "disk" and device.get("device") == "lun":
        yield _finding(Reach.HOST_DEVICES, "disk as a lun: SCSI commands reach the device itself")
    if device.tag == "smartcard" and device.get("mode", "").startswith("host"):
        yield _finding(Reach.HOST_DEVICES, f"smartcard of the host ({_arguments(device)})")
    for part in device.findall("backend"):
        if (device.tag, part.get("type" if device.tag == "tpm" else "model")) in _BACKENDS:
            yield _finding(Reach.HOST_DEVICES, f"{device.tag} with a backend of the host ({_arguments(part)})")
    if device.tag == "interface":
        for part in [*device.findall("script"), *device.findall("downscript")]:
            yield _finding(Reach.HOST_NETWORK, f"interface with a script: {part.get('path', '')}")


def _emulator(path: str, limits: Limits) -> Iterator[Finding]:
    if path and not _under(_parts(path), limits.emulators, whole=True):
        yield _finding(Reach.EMULATOR, f"emulator {path}")


# --- paths ------------------------------------------------------------------------------------------------------------


def _of_path(what: str, path: str, use: str, limits: Limits, resolve: Resolve) -> Iterator[Finding]:
    written = path.strip()
    if not written.startswith("/"):
        yield _finding(Reach.PATHS, f"{what} {written}: not an absolute path")
    elif ".." in written.split("/"):
        yield _finding(Reach.PATHS, f"{what} {written}: a path with ..")
    elif _forbidden(_parts(written), use, limits):
        yield _finding(Reach.PATHS, f"{what} {written}: a path of the system")
    elif _forbidden(_parts(real := resolve(written)), use, limits):
        yield _finding(Reach.PATHS, f"{what} {written}: it leads to {real}, a path of the system")


def _forbidden(parts: list[str], use: str, limits: Limits) -> bool:
    if _under(parts, limits.vm_paths) or _under(parts, _OWN):
        return False
    if any(part in _SECRETS for part in parts) or not parts:
        return True
    if not _under(parts, limits.forbidden_paths) or _under(parts, _USES.get(use, ())):
        return False
    return parts[0] != "dev" or not _is_volume(parts[1:])


def _is_volume(parts: list[str]) -> bool:
    """Whether it is a block device, by its name in /dev."""
    if "/".join(parts) in _HARMLESS:
        return True
    if len(parts) > 1:
        return not any(fnmatchcase(parts[0], name) for name in _NO_VOLUMES)
    return any(fnmatchcase(part, name) for part in parts for name in _BLOCK)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _under(parts: list[str], folders: tuple[str, ...], whole: bool = False) -> bool:
    """Whether a path lies in one of the folders, or is one of them."""
    for folder in folders:
        names = _parts(folder)
        fits = len(parts) == len(names) if whole else len(parts) >= len(names)
        if fits and all(fnmatchcase(part, name) for part, name in zip(parts, names, strict=False)):
            return True
    return False


def _finding(reach: Reach, text: str) -> Finding:
    return Finding(reach, clean_line(text, MAX_WORDS))
