"""Finds the node's checks by entry points: the built-in ones, and those that a site has installed.

Rule: a check that cannot be loaded or made is a problem to be shown as a fault, and hinders no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from agentd.checks.interface import GROUP, Check
from agentd.config import Config


@dataclass(slots=True)
class Found:
    """Checks to run, and what could not be made: why, by name."""

    checks: list[Check] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def find(config: Config) -> Found:
    """The checks of this node, without those that `checks_off` names (by entry point or by check)."""
    found = Found()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name not in config.checks_off:
            _make(entry, config, found)
    return found


def _make(entry: EntryPoint, config: Config, found: Found) -> None:
    taken = {check.name for check in found.checks}
    try:
        for check in entry.load()(config):
            if check.name in taken:
                found.problems[entry.name] = f"there is a check {check.name} already"
            elif check.name not in config.checks_off:
                taken.add(check.name)
                found.checks.append(check)
    except Exception as error:  # whatever a site's module does when it is loaded
        found.problems[entry.name] = f"cannot be used: {type(error).__name__}: {error}"
