"""What `vm create --xml` and `vm import` take from a libvirt domain: UUID, vCPUs, memory, and the disks that
the VM needs.

The XML goes to the node as it is; libvirt checks the rest. A document type is refused: entities can swell
or read files.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET
from xml.parsers import expat

from tools.options import UsageError
from wire.text import shown_value

MAX_CHARS = 262_144
KIB = 1024
UNIT_BYTES = {
    "b": 1, "bytes": 1, "KB": 1000, "k": KIB, "KiB": KIB, "MB": 1000**2, "M": KIB**2, "MiB": KIB**2,
    "GB": 1000**3, "G": KIB**3, "GiB": KIB**3, "TB": 1000**4, "T": KIB**4, "TiB": KIB**4,
}  # fmt: skip


class Domain(NamedTuple):
    """`uuid` is None if the XML names none. `disks`: the fields of `wire.messages.Disk`."""

    xml: str
    name: str
    uuid: str | None
    vcpus: int
    memory_mib: int
    disks: list[dict[str, Any]]


def read(file: str, storage: str) -> Domain:
    """Reads a domain XML file; its disks get `storage`. Raises UsageError with the line of a fault."""
    try:
        with Path(file).open("rb") as stream:
            raw = stream.read(4 * MAX_CHARS + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--xml {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--xml {file}: it is not UTF-8 text") from None
    return read_text(f"--xml {file}", text, storage)


def read_text(source: str, text: str, storage: str) -> Domain:
    """Reads a domain XML; `source` is what it is called in errors. Raises UsageError with the line of a fault."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"{source}: longer than {MAX_CHARS} characters")
    root = _parse(source, text)
    if root.tag != "domain":
        raise UsageError(f"{source}: the root is <{root.tag[:64]}>, needed is <domain>")
    return Domain(
        text,
        (root.findtext("name") or "").strip(),
        _uuid(source, root),
        _vcpus(source, root),
        _memory_mib(source, root),
        _disks(source, root, storage),
    )


def _parse(source: str, text: str) -> ET.Element:
    parser = expat.ParserCreate("UTF-8")  # whatever the declaration says: the text is UTF-8

    def refuse(*_: object) -> None:
        raise UsageError(
            f"{source}: line {parser.CurrentLineNumber}: a DOCTYPE or ENTITY is not accepted"
        )

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
        return ET.fromstring(text.encode(), parser=ET.XMLParser(encoding="UTF-8"))
    except (expat.ExpatError, ET.ParseError) as error:
        reason = expat.ErrorString(error.code)
        raise UsageError(
            f"{source}: line {getattr(error, 'lineno', '?')}: not well formed: {reason}"
        ) from None


def _uuid(source: str, root: ET.Element) -> str | None:
    found = root.findtext("uuid")
    if found is None:
        return None
    text = found.strip()
    if not text:
        raise UsageError(f"{source}: <uuid> is empty: leave it out, or give the VM's")
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"{source}: <uuid> {shown_value(text)} is not a UUID") from None


def _vcpus(source: str, root: ET.Element) -> int:
    text = (root.findtext("vcpu") or "1").strip()
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 6):
        raise UsageError(f"{source}: <vcpu> {shown_value(text)} is not a whole number")
    return int(text)


def _memory_mib(source: str, root: ET.Element) -> int:
    element = root.find("memory")
    text = (element.text or "").strip() if element is not None else ""
    if element is None or not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"{source}: <memory> is needed, a whole number")
    unit = element.get("unit", "KiB")
    if unit not in UNIT_BYTES:
        raise UsageError(f"{source}: <memory unit={shown_value(unit)}>: known are {', '.join(UNIT_BYTES)}")
    return -(-int(text) * UNIT_BYTES[unit] // KIB**2)


def _disks(source: str, root: ET.Element, storage: str) -> list[dict[str, Any]]:
    """Disks by file or block device. Network disks live on no node; other kinds are refused: who can tell?"""
    disks = []
    for element in root.iterfind("devices/disk"):
        kind, medium = element.get("type", "file"), element.find("source")
        if kind == "network" or medium is None:
            continue
        path = medium.get({"file": "file", "block": "dev"}.get(kind, ""))
        if kind not in ("file", "block"):
            raise UsageError(f"{source}: <disk type={shown_value(kind)}>: known are file, block and network")
        if path is None:
            continue  # an empty drive
        driver = element.find("driver")
        form = driver.get("type", "raw") if driver is not None else "raw"
        if form not in ("raw", "qcow2"):
            raise UsageError(f"{source}: disk {path[:300]} has format {shown_value(form)}: known are raw and qcow2")
        disks.append({"path": path, "format": form, "storage": storage})
    return disks
