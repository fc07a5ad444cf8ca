"""How far an operation is, while somebody waits for it.

On a terminal: one line for the whole, a bar for each VM that is being copied, a line for each step that
failed or waits; what is done is only counted, and nothing is ever longer than the screen. Elsewhere: a line
for each change that a log should have. That is not each second in which a copy goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tools import units
from tools.session import Row
from wire.text import escaped, escaped_line
from wire.words import OperationKind

FAILED_LINES = 5
QUARTER = 25
ACTIVE = ("running", "waiting")
CANCELLING = "cancelling"
MIGRATIONS = (OperationKind.MIGRATE, OperationKind.EVACUATE)
"""The kinds of operations whose steps are migrations."""


def percent(copied: Row) -> int:
    """How much of a VM's memory and disks is copied. It falls when the guest changes memory that was copied."""
    total = copied["total_mib"]
    return int(100 * max(0, total - copied["remaining_mib"]) / total) if total else 0


CELLS: tuple[tuple[str, Callable[[Row], str], bool, int], ...] = (
    ("COPIED", lambda copied: f"{percent(copied)} %", False, 0),
    ("LEFT", lambda copied: units.size(copied["remaining_mib"]), False, 34),
    ("RATE", lambda copied: f"{copied['rate_mib_s']} MiB/s", True, 46),
    ("ITERATION", lambda copied: str(copied["iteration"]), True, 58),
    ("DOWNTIME", lambda copied: f"{copied['downtime_ms']} ms", True, 70),
    ("TIME", lambda copied: units.span(copied["elapsed_s"]), True, 80),
)
"""What is shown of a copy: title, text, whether only where wide tables are wanted, and the least columns of a terminal
for the bars to have it beside them."""


def summary(operation: Row) -> str:
    """`evacuate n1: 3 of 20 migrated, 2 under way, 15 to go`."""
    steps = operation.get("steps") or []
    text = f"{operation['kind']} {operation['subject']}: "
    if not steps:
        return text + _state(operation)
    states = [step["state"] for step in steps]
    counts = [
        f"{states.count(state)} {word}"
        for state, word in (("failed", "failed"), ("skipped", "skipped"), ("running", "under way"),
                            ("waiting", "waiting"), ("pending", "to go"))
        if state in states
    ]  # fmt: skip
    state = _state(operation)
    return text + ", ".join(([] if state == "running" else [state]) + [_done(operation)] + counts)


def _done(operation: Row) -> str:
    steps = operation["steps"]
    done = sum(step["state"] == "done" for step in steps)
    return f"{done} of {len(steps)} {'migrated' if operation['kind'] in MIGRATIONS else 'done'}"


def _state(operation: Row) -> str:
    """The state; of an operation that runs, what the server says of it or of a step: that it is being cancelled."""
    if operation["state"] != "running":
        return str(operation["state"])
    details = [step["detail"] for step in operation.get("steps") or [] if step["state"] in ACTIVE]
    is_cancelling = any(detail.startswith(CANCELLING) for detail in details)
    return escaped_line(operation["outcome"]) or (CANCELLING if is_cancelling else "running")


# --- without a terminal -----------------------------------------------------------------------------------


class Lines:
    """What is new since the last look, as lines of a log: of a copy only each quarter, and only forward."""

    def __init__(self) -> None:
        self._said: dict[tuple[int, str], tuple[str, int, str]] = {}  # by step: state, quarter, detail
        self._state = ""

    def new(self, operation: Row) -> list[str]:
        """The lines to add for `operation` as it is now."""
        head, lines = f"{operation['kind']} {operation['subject']}: ", []
        if operation["state"] == "running" and _state(operation) != self._state:
            self._state = _state(operation)
            lines = [summary(operation)]
        for number, step in enumerate(operation.get("steps") or []):
            key = number, step["name"]  # names may be equal
            said = self._said.get(key, ("pending", 0, ""))
            self._said[key] = now = _loggable(step, said[1])
            if now != said and now[0] != "pending":
                lines.append(head + _step_text(step, now[1]) + (f": {_done(operation)}" if now[0] == "done" else ""))
        return lines


def _loggable(step: Row, quarter: int) -> tuple[str, int, str]:
    """What of a step makes a new line when it changes. `quarter`: the percent that were said already."""
    copied = step.get("progress")
    if not copied:
        return step["state"], quarter, step["detail"]
    return step["state"], max(quarter, QUARTER * (percent(copied) // QUARTER)), ""


def _step_text(step: Row, quarter: int) -> str:
    text = f"{escaped_line(step['name'])} {step['state']}"
    if step.get("progress") and step["state"] == "running":
        text += f", {quarter} % copied"
    return text + (f" ({escaped_line(step['detail'])})" if step["detail"] else "")


# --- on a terminal ----------------------------------------------------------------------------------------


def display(operation: Row, waited_s: float | None, columns: int, lines: int) -> RenderableType:
    """A picture of at most `lines` lines. `waited_s`: how long somebody has waited for it, if anybody does."""
    steps = operation.get("steps") or []
    failed = [step for step in steps if step["state"] == "failed"]
    active = [step for step in steps if step["state"] in ACTIVE]
    copying = [step for step in active if step.get("progress")]
    others = [step for step in active if not step.get("progress")]
    parts = [_line(summary(operation) + (f" ({units.span(waited_s)})" if waited_s is not None else ""), "bold")]
    shown, more = _fitting(failed, min(FAILED_LINES, lines - 1), f"failed: chime-tool op show {operation['id']}")
    parts += [*map(_step_line, shown), *more]
    shown, more = _fitting(copying, lines - len(parts) - 1, "are being copied")
    bars = [_bars(shown, columns)] if shown else []
    left = lines - len(parts) - len(shown) - len(bars) - len(more)
    waiting, more_waiting = _fitting(others, left, "under way or waiting")
    return Group(*parts, *bars, *more, *map(_step_line, waiting), *more_waiting)


def _fitting(steps: Sequence[Row], lines: int, what: str) -> tuple[Sequence[Row], list[Text]]:
    """As many as fit into so many lines; if not all do, the last line says how many more there are."""
    if len(steps) <= lines:
        return steps, []
    shown = steps[: max(0, lines - 1)]
    return shown, [_line(f"and {len(steps) - len(shown)} more {what}", "dim")] if lines > 0 else []


def _line(text: str, style: str = "") -> Text:
    return Text(escaped(text), style=style, no_wrap=True, overflow="ellipsis")


def _step_line(step: Row) -> Text:
    text = _line(f"{escaped_line(step['name'])}  ")
    text.append(step["state"], "bold red" if step["state"] == "failed" else "yellow")
    return text.append(f": {escaped_line(step['detail'])}" if step["detail"] else "")


def _bars(steps: Sequence[Row], columns: int) -> Table:
    """A row for each VM. A narrow terminal gets fewer columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("VM", no_wrap=True, overflow="ellipsis", max_width=max(8, columns // 5))
    table.add_column("", ratio=1, min_width=6)
    shown = [(title, cell) for title, cell, _, least in CELLS if columns >= least]
    for title, _ in shown:
        table.add_column(title, no_wrap=True, justify="right")
    detailed = columns >= 110
    if detailed:
        table.add_column("DETAIL", no_wrap=True, overflow="ellipsis", max_width=columns // 3)
    for step in steps:
        copied = step["progress"]
        done = max(0, copied["total_mib"] - copied["remaining_mib"])
        bar = ProgressBar(max(1, copied["total_mib"]), done, complete_style="cyan", finished_style="green")
        cells = [Text(cell(copied)) for _, cell in shown]
        detail = [Text(escaped_line(step["detail"]))] if detailed else []
        table.add_row(Text(escaped_line(step["name"])), bar, *cells, *detail)
    return table
