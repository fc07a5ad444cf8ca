"""Writes `docs/states.md` from the literal transition tables of the code.

Run it after a change of a table: `python -m tests.tools.make_state_diagrams`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from agentd.core import link
from chimed.core.state import liveness
from chimed.core.work import operations
from wire import types

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "states.md"
HEAD = """# States

Made from the transition tables in the code by `python -m tests.tools.make_state_diagrams`; a test holds both together.
"""
WORDS = (types.AdminState, types.Health, types.Desired, types.Observed, types.Evidence, types.Outcome)


def meanings(kind: type[StrEnum]) -> dict[str, str]:
    """The one-line meaning of each value, from the comment beside it."""
    source = inspect.getsource(kind)
    found = dict(re.findall(r'^    \w+ = "([a-z-]+)"(?:  # (.*))?$', source, re.MULTILINE))
    return {member.value: found.get(member.value, "") for member in kind}


def glossary(kind: type[StrEnum]) -> str:
    """The values of an enum and what they mean."""
    return "".join(f"- `{value}`" + (f": {text}\n" if text else "\n") for value, text in meanings(kind).items())


def diagram(table: Mapping[StrEnum, Mapping[StrEnum, str]]) -> str:
    """A Mermaid state diagram of a transition table."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for before, after in table.items():
        lines.append(f"    state \"{before.value}\" as {before.name}")
        lines += [f"    {before.name} --> {to.name}: {why}" for to, why in after.items()]
    return "\n".join([*lines, "```", ""])


def section(title: str, where: str, table: Mapping[StrEnum, Mapping[StrEnum, str]]) -> str:
    """A diagram with its words."""
    kind = type(next(iter(table)))
    return f"\n## {title}\n`{where}`\n\n{diagram(table)}\n{glossary(kind)}"


def document() -> str:
    """The whole page."""
    parts = [
        HEAD,
        section("Is a node heard?", "chimed/core/state/liveness.py", liveness.TRANSITIONS),
        section("The agent's session", "agentd/core/link.py", link.TRANSITIONS),
        section("An operation", "chimed/core/work/operations.py", operations.TRANSITIONS),
        "\n## Words\n",
        *(f"\n**{kind.__name__}**: {(kind.__doc__ or '').splitlines()[0]}\n\n{glossary(kind)}" for kind in WORDS),
    ]
    return "".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
