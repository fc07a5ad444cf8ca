"""`docs/trust.md` speaks of what is there: files, commands, settings, codes and fields of messages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest

import agentd.config
import chimed.config
from tools.main import COMMANDS
from tools.usage import Line, parse
from wire import reach, types, words
from wire.errors import CODES
from wire.messages import VmReport
from wire.verbs import VERBS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/trust.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`]+)`", TEXT)))
SETTINGS = {
    field.name for kind in (agentd.config.Config, chimed.config.Config) for field in msgspec.structs.fields(kind)
}
CODE = {*words.AlarmCode, *words.FaultCode, *CODES, *reach.Reach, *types.MigrationPhase, *types.Evidence}
FIELDS = {f"{name}.{field}" for name, verb in VERBS.items() for field in verb.body.__struct_fields__}
OTHERS = {
    "/etc/shadow", "server.key", "agentd.toml", "libvirt", "hello.node", "MigrationReport", "impossible-epochs",
    "contained", "chime-tool", "--allow-unsafe",
}  # fmt: skip
"""What is no file, command, setting, code or field; the rest of the page has to be one."""


def _commands() -> list[str]:
    return [text for text in QUOTED if text.startswith("chime-tool ")]


@pytest.mark.parametrize("line", _commands())
def test_the_command_exists(line: str) -> None:
    assert isinstance(parse(shlex.split(line)[1:], COMMANDS), Line)


def test_what_is_named_exists() -> None:
    known = SETTINGS | CODE | FIELDS | set(VERBS) | OTHERS
    known |= {f"VmReport.{field}" for field in VmReport.__struct_fields__}
    missing = [
        text
        for text in QUOTED
        if text not in known and text not in _commands() and not (text.endswith(".py") and (ROOT / text).is_file())
    ]
    assert not missing


def test_nothing_is_excused_that_is_not_named() -> None:
    assert set(QUOTED) >= OTHERS - FIELDS


def test_every_alarm_about_a_word_is_on_the_page() -> None:
    about = {code for code in words.AlarmCode if code.startswith(("vm-dup", "vm-mis", "vm-unk", "false", "wrong"))}
    assert about and all(f"`{code}`" in TEXT for code in {*about, "node-key-cloned", "server-behind"})


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 3 and all((ROOT / "docs" / link).is_file() for link in links)


def test_it_is_found_from_the_readme() -> None:
    assert "(docs/trust.md)" in (ROOT / "README.md").read_text()
