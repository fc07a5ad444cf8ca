"""`docs/faults-reported.md` lists the faults as the checks have them."""

from __future__ import annotations

import re
import tomllib

import msgspec

from agentd.config import Config
from tests.tools import make_fault_tables as made

TEXT = made.DOCUMENT.read_text()


def test_the_table_is_current() -> None:
    assert made.updated(TEXT) == TEXT, "run python -m tests.tools.make_fault_tables"


def test_no_word_is_left_over() -> None:
    made_rows = made.made()
    assert all(code in made_rows for code in made.WORDS)


def test_the_agents_own_faults_are_listed() -> None:
    for code in ("libvirt-unreachable", "libvirt-slow", "server-behind", "snapshot-not-writable"):
        assert f"| `{code}` |" in TEXT


def test_the_example_is_a_configuration() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert msgspec.convert(tomllib.loads(example), Config).business_interface == "bond1"
