"""Values as people write and read them: sizes, ages, times, disks, networks."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from tools.options import UsageError

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
MIB_OF = {"": 1, "M": 1, "G": 1024, "T": 1024 * 1024}


def mib(what: str, text: str) -> int:
    """A size such as 512, 512M, 2G, 1.5GiB or 1T, in MiB."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([MGT]?)(?:iB)?", text.strip())
    size = float(match[1]) * MIB_OF[match[2]] if match else 0.0
    if size <= 0 or size != int(size):
        raise UsageError(f"{what} {text!r}: give whole MiB: 2048, 512M, 2G or 1T")
    return int(size)


def whole(what: str, text: str) -> int:
    """A number without sign or fraction."""
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise UsageError(f"{what} {text!r}: give a whole number")
    return int(text)


def seconds(option: str, text: str) -> float:
    """A duration such as 90, 2.5, 90s, 5m or 1h, in seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smh]?)", text)
    if not match:
        raise UsageError(f"{option} {text!r}: give seconds (90), or 90s, 5m, 1h")
    return float(match[1]) * UNITS_S[match[2]]


def disk(text: str) -> dict[str, Any]:
    """PATH[,format=F][,storage=S][,size=SIZE] as the fields of a Disk. The path holds no comma."""
    path, _, rest = text.partition(",")
    words = _words("--disk", text, rest, ("format", "storage", "size"))
    fields: dict[str, Any] = {"path": path}
    fields.update({name: words[name] for name in ("format", "storage") if name in words})
    if "size" in words:
        fields["size_mib"] = mib("--disk size", words["size"])
    if fields.get("storage") not in (None, "shared", "local"):
        raise UsageError(f"--disk {text!r}: storage is shared or local")
    if fields.get("format") not in (None, "qcow2", "raw"):
        raise UsageError(f"--disk {text!r}: format is qcow2 or raw")
    return fields


def network(text: str) -> dict[str, Any]:
    """bridge=BRIDGE[,mac=MAC] or user[,mac=MAC] as the fields of a Network."""
    head, _, rest = text.partition(",")
    fields: dict[str, Any] = {}
    if head == "user":
        fields = {"kind": "user"}
    elif head.startswith("bridge=") and head != "bridge=":
        fields = {"kind": "bridge", "bridge": head[len("bridge=") :]}
    else:
        raise UsageError(f"--network {text!r}: give bridge=NAME[,mac=MAC] or user")
    words = _words("--network", text, rest, ("mac",))
    if "mac" in words:
        fields["mac"] = words["mac"].lower()
    return fields


def _words(option: str, text: str, rest: str, known: tuple[str, ...]) -> dict[str, str]:
    """`a=1,b=2` as a dict; each name once."""
    words: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        name, equals, value = part.partition("=")
        if name not in known or not equals or not value:
            raise UsageError(
                f"{option} {text!r}: {part!r} is not one of {', '.join(f'{word}=...' for word in known)}"
            )
        if name in words:
            raise UsageError(f"{option} {text!r}: {name} is given twice")
        words[name] = value
    return words


def age(seconds: float | None) -> str:
    """3 s, 5 min, 4 h, 2 d: the largest unit that fits."""
    if seconds is None:
        return "never"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def span(seconds: float) -> str:
    """A duration that grows as one looks: 7 s, 2 min 05 s, 1 h 02 min."""
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest_s:02} s" if minutes else f"{rest_s} s"


def local_time(epoch_s: float | None) -> str:
    """ISO, local, to the second."""
    if epoch_s is None:
        return "-"
    try:
        return datetime.fromtimestamp(epoch_s).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return str(epoch_s)


def size(mib_count: float) -> str:
    """MiB as 512 MiB, 2 GiB, 1.5 TiB."""
    for factor, unit in ((1024 * 1024, "TiB"), (1024, "GiB")):
        if mib_count >= factor:
            return f"{mib_count / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{mib_count:.0f} MiB"
