"""Checks are found by entry points: the built-in ones, a site's own, and what to say of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.checks.finding import find
from agentd.checks.storage import StorageCheck
from agentd.config import Config

BUILT_IN = {"block-devices", "clock", "edac", "interfaces", "memory", "raid", "storage /var/lib/chime-agent"}
SITE = '''
from agentd.checks.interface import Code, Symptom
from wire.types import Severity


class Ups:
    name, interval_s, timeout_s = "ups", 10.0, 2.0
    codes = {"ups-on-battery": Code(Severity.CRITICAL)}

    def read(self):
        return 40

    def symptoms(self, reading, before, raised):
        if reading < 50:
            yield Symptom("ups-on-battery", "", f"{reading} % left")


def checks(config):
    return [Ups()]


def broken(config):
    raise RuntimeError("no such device")
'''
ENTRY_POINTS = """[chime.checks]
ups = site_of_a_test:checks
twice = site_of_a_test:checks
broken = site_of_a_test:broken
missing = site_of_a_test_that_is_not_there:checks
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with checks."""
    (tmp_path / "site_of_a_test.py").write_text(SITE)
    info = tmp_path / "site_of_a_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-of-a-test\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


def names(config: Config) -> set[str]:
    return {check.name for check in find(config).checks}


def test_the_built_in_checks_are_found() -> None:
    found = find(Config(checks_dir="/nowhere", checks_off=("smart",)))  # smartctl may be here or not
    assert {check.name for check in found.checks} == BUILT_IN and not found.problems


def test_checks_can_be_turned_off() -> None:
    off = Config(checks_dir="/nowhere", checks_off=("smart", "clock", "storage", "block-devices"))
    assert names(off) == {"edac", "interfaces", "memory", "raid"}


def test_a_business_interface_makes_its_check() -> None:
    assert "business" in names(Config(business_interface="biz0"))


def test_each_folder_has_a_check_of_its_own() -> None:
    found = find(Config(storage_paths=("/srv/a", "/srv/b", "/srv/a"), checks_dir="/nowhere"))
    checks = {check.name for check in found.checks}
    probed = [check.path for check in found.checks if isinstance(check, StorageCheck) and check.probe]
    assert probed == ["/srv/a", "/srv/b"] and "storage /var/lib/chime-agent" in checks
    assert not found.problems


def test_a_check_of_the_site_is_found_and_a_broken_one_is_named(site: None) -> None:
    found = find(Config(checks_dir="/nowhere"))
    (ups,) = (check for check in found.checks if check.name == "ups")
    assert [symptom.text for symptom in ups.symptoms(ups.read(), None, frozenset())] == ["40 % left"]
    assert found.problems == {
        "broken": "cannot be used: RuntimeError: no such device",
        "missing": "cannot be used: ModuleNotFoundError: No module named 'site_of_a_test_that_is_not_there'",
        "ups": "there is a check ups already",
    }
    assert {"clock", "memory"} <= {check.name for check in found.checks}


def test_scripts_are_the_executable_files_of_the_folder(tmp_path: Path) -> None:
    for name, mode in (("ups.sh", 0o755), ("README", 0o644), ("off", 0o755)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir()
    config = Config(checks_dir=str(tmp_path), checks_off=("off",))
    assert {"ups.sh"} == names(config) - names(Config(checks_dir="/nowhere"))


def test_too_many_scripts_are_refused(tmp_path: Path) -> None:
    for number in range(33):
        (tmp_path / f"s{number}").touch(0o755)
    found = find(Config(checks_dir=str(tmp_path)))
    assert "has 33 scripts, 32 are allowed" in found.problems["scripts"]
