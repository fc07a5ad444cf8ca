"""`docs/operations.md` and the README: the commands that they tell a person to type exist, and links lead somewhere.
That the commands do what is said is a matter of the lab, which runs every block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tools.main import COMMANDS
from tools.usage import Line, parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TYPED = [line[2:] for block in BLOCKS for line in block.splitlines()[1:]]
README = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    chime-tool ")]


def test_every_block_says_where_it_is_typed_and_holds_only_commands() -> None:
    assert len(BLOCKS) == PAGE.count("```") / 2 > 20
    for block in BLOCKS:
        where, *typed = block.splitlines()
        assert where in ("# on the server", "# on srv", "# on n1"), block
        assert typed and all(line.startswith("$ ") for line in typed), block
        names = {shlex.split(line[2:])[0] for line in typed}
        assert ("chime-tool" in names) == (where == "# on the server") and names.isdisjoint({"sudo", "ssh"})


@pytest.mark.parametrize("line", sorted({line for line in [*TYPED, *README] if line.startswith("chime-tool ")}))
def test_the_command_exists(line: str) -> None:
    read = parse(shlex.split(line, comments=True)[1:], COMMANDS)
    assert isinstance(read, Line), "it is only help"


def test_what_would_ask_a_person_is_answered_on_the_line() -> None:
    tool = r"chime-tool (node (drain|re|evacuate)|vm migrate|recovery confirm)"
    asked = re.compile(rf"({tool}|chime-agent (drain|migrate)|chimed restore)")
    lines = [line for line in TYPED if asked.match(line)]
    assert len(lines) > 15
    assert all("--yes" in line or "--dry-run" in line for line in lines)


def test_links_lead_somewhere() -> None:
    heads = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert len(links) > 6 and set(links) <= anchors
