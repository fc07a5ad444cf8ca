"""A site's own checks: executable files in `checks_dir`, in the manner of Nagios plugins.

Exit 0 is well, 1 a warning, 2 critical; anything else, and what cannot be run, is the fault `check-failed`; one that
does not end in time is killed, and is the fault `check-stuck`. The first line of standard output is the text, up to a
`|`; the file's name without its extension is the fault's code.

Rule: what others than root (or the agent's user) may write is not run.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentd.checks import bounded
from agentd.checks.interface import CheckFailed, Code, Key, Symptom
from agentd.config import Config
from wire.types import Severity

MAX_SCRIPTS = 32
SEVERITIES = {1: Severity.WARNING, 2: Severity.CRITICAL}


@dataclass(frozen=True, slots=True)
class ScriptCheck:
    """One script. Raised at its first bad reading, cleared after two good ones."""

    path: Path
    interval_s: float
    run_s: float

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def code(self) -> str:
        """The fault's code: the name without extension, and without what a code may not have."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.path.stem).lstrip("._-")[:63] or "script"

    @property
    def codes(self) -> Mapping[str, Code]:
        """One code; its severity is the exit code's."""
        return {self.code: Code(Severity.WARNING)}

    @property
    def timeout_s(self) -> float:
        """The script is killed before; only one that cannot be killed takes longer."""
        return self.run_s + 2.0

    def read(self) -> bounded.Output:
        """Runs it. Raises CheckFailed, CheckStuck."""
        refuse_if_others_may_write(self.path.parent)
        refuse_if_others_may_write(self.path)
        output = bounded.run([str(self.path)], self.run_s)
        if output.code not in (0, *SEVERITIES):
            ended = f"signal {-output.code}" if output.code < 0 else f"exit {output.code}"
            raise CheckFailed(f"{ended}: {_first_line(output.text)}")
        return output

    def symptoms(
        self, reading: bounded.Output, before: bounded.Output | None, raised: frozenset[Key]
    ) -> Iterable[Symptom]:
        """What its exit code says."""
        if reading.code in SEVERITIES:
            text = _first_line(reading.text) or f"exit {reading.code}"
            yield Symptom(self.code, "", f"{self.name}: {text}", SEVERITIES[reading.code])


def refuse_if_others_may_write(path: Path) -> None:
    """Raises CheckFailed for what the agent must not trust, or cannot look at."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckFailed(f"{path}: {error.strerror}") from None
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CheckFailed(f"not run: others than root may write {path}")


def _first_line(text: str) -> str:
    return text.partition("\n")[0].partition("|")[0].strip()


def checks(config: Config) -> list[ScriptCheck]:
    """A check for each executable file in `checks_dir`, for `chime.checks`. Raises CheckFailed for too many."""
    folder = Path(config.checks_dir)
    if not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and os.access(path, os.X_OK)]
    if len(paths) > MAX_SCRIPTS:
        raise CheckFailed(f"{folder} has {len(paths)} scripts, {MAX_SCRIPTS} are allowed")
    return [ScriptCheck(path, config.script_interval_s, config.script_timeout_s) for path in paths]
