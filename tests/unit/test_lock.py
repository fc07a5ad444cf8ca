"""What Chime is installed with is pinned: `contrib/requirements` fits `setup.py`, is complete, and names no place."""

from __future__ import annotations

import re
import runpy
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("base", "agent", "dev", "build")
PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.+!]*)")
HASH = re.compile(r" +--hash=sha256:[0-9a-f]{64}")


def lines_of(name: str) -> list[str]:
    text = (ROOT / "contrib" / "requirements" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins_of(name: str) -> dict[str, str]:
    return dict(found.groups() for line in lines_of(name) if (found := PIN.match(line)))  # type: ignore[misc]


def wanted() -> dict[str, list[str]]:
    """The requirements in `setup.py`, by the file that must meet them."""
    given: dict[str, Any] = {}
    stand_in = ModuleType("setuptools")
    vars(stand_in).update(setup=lambda **values: given.update(values), find_packages=lambda **_: [])
    before, sys.modules["setuptools"] = sys.modules.get("setuptools"), stand_in
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        del sys.modules["setuptools"]
        if before is not None:
            sys.modules["setuptools"] = before
    base, extras = given["install_requires"], given["extras_require"]
    build = re.search(r"^requires = \[\"(.*)\"\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert build is not None
    return {"base": base, "agent": base + extras["agent"], "dev": base + extras["dev"], "build": build[1].split('", "')}


@pytest.mark.parametrize("name", FILES)
def test_the_lock_meets_what_setup_asks_for(name: str) -> None:
    pins = pins_of(name)
    for text in wanted()[name]:
        requirement = Requirement(text)
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned and requirement.specifier.contains(pinned), f"{text}: pinned is {pinned}; run make lock"


@pytest.mark.parametrize("name", FILES)
def test_each_line_is_a_version_with_hashes_and_nothing_else(name: str) -> None:
    """No index, no link, no path, no option: only what must be the same everywhere."""
    entries = "\n".join(lines_of(name)).replace(" \\\n", "\n").split("\n")
    hashes: dict[str, int] = {}
    last = ""
    for line in entries:
        if HASH.fullmatch(line):
            hashes[last] += 1
        else:
            assert PIN.fullmatch(line), line
            last = line
            assert last not in hashes
            hashes[last] = 0
    assert hashes and 0 not in hashes.values()


@pytest.mark.parametrize("name", ["base", "agent", "dev"])
def test_the_lock_is_complete(name: str) -> None:
    """What a pinned package needs is pinned too, in a version that it takes: pip looks for nothing more."""
    pins = pins_of(name)
    for package, version in pins.items():
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        for text in found.requires or [] if found.version == version else []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                pinned = pins.get(canonicalize_name(needed.name))
                assert pinned and needed.specifier.contains(pinned, prereleases=True), f"{package} needs {text}"


def test_all_files_pin_the_same_versions() -> None:
    dev = pins_of("dev")
    for name in ("base", "agent"):
        assert pins_of(name).items() <= dev.items()
    assert pins_of("base").items() <= pins_of("agent").items()
