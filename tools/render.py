"""Rows to text: aligned columns, JSON, YAML.

On a terminal rich draws the table (colour, fitted to the width). Elsewhere columns are aligned, never
wrapped, never cut: what is piped can be searched. Text that came from nodes and guests is made one harmless
line.

YAML is written here rather than with PyYAML: only plain data is written and nothing is read, which takes 25
lines and no further dependency. Every string that is not a plain word is quoted as JSON, which YAML 1.2
includes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tools.session import Row, Session
from tools.terminal import Terminal
from wire.text import escaped_json, escaped_line

STYLES = {
    "normal": "green", "running": "green", "succeeded": "green", "enabled": "green", "done": "green",
    "disabled": "yellow", "drained": "yellow", "unknown": "yellow", "paused": "yellow", "waiting": "yellow",
    "warning": "yellow", "migrating": "cyan", "cancelled": "yellow",
    "error": "red", "crashed": "red", "failed": "bold red", "unreachable": "bold red", "critical": "bold red",
}  # fmt: skip
"""Colour by the first word of a cell."""


class Column(NamedTuple):
    """`cell` gives the text of a row. `wide`: only with -o wide. `state`: coloured by its first word.
    `free`: long text, which may be folded on a terminal."""

    title: str
    cell: Callable[[Row], str]
    wide: bool = False
    state: bool = False
    free: bool = False


def show_list(session: Session, rows: Sequence[Row], columns: Sequence[Column], none: str) -> None:
    """A list as the user wants it; `none` is said on stderr when a table would be empty."""
    if session.options.output in ("json", "yaml"):
        show_document(session, list(rows))
    elif rows:
        session.terminal.draw(table(session.terminal, rows, columns, session.options.output == "wide"))
    else:
        session.terminal.say(none)


def show_document(session: Session, value: Any) -> None:
    """A value as JSON or YAML."""
    if session.options.output == "json":
        document = json.dumps(value, indent=2, ensure_ascii=session.terminal.ascii_only)
        session.terminal.write(escaped_json(document) + "\n")
    else:
        session.terminal.write("\n".join(_yaml(value, 0)) + "\n")


def table(terminal: Terminal, rows: Sequence[Row], columns: Sequence[Column], wide: bool = False) -> str:
    """Rows as a table."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[escaped_line(column.cell(row)) or "-" for column in shown] for row in rows]
    return _drawn(terminal, shown, cells) if terminal.out_is_terminal else _plain(shown, cells)


def facts(terminal: Terminal, pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    known = [(name, escaped_line(value) or "-") for name, value in pairs]
    width = max(len(name) for name, _ in known)
    lines = []
    for name, value in known:
        style = STYLES.get(_first_word(value))
        lines.append(f"{name:<{width}}  " + (_coloured(value, style) if style and terminal.colour else value))
    return "\n".join(lines) + "\n"


def _plain(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    grid = [[column.title for column in columns], *cells]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )
    return "\n".join(lines) + "\n"


def _drawn(terminal: Terminal, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(
            column.title,
            no_wrap=not column.free,
            overflow="fold" if column.free else "ignore",
            min_width=12 if column.free else None,
        )
    for line in cells:
        grid.add_row(
            *(
                Text(cell, style=STYLES.get(_first_word(cell), "") if column.state else "")
                for column, cell in zip(columns, line, strict=True)
            )
        )
    needed = sum(
        max([len(c.title)] + [len(line[i]) for line in cells]) + 2
        for i, c in enumerate(columns)
        if not c.free
    )
    width = max(terminal.width, needed + 14)
    return drawn(grid, width, terminal.colour)


def drawn(value: RenderableType, width: int, colour: bool) -> str:
    """What rich makes of `value`, as text."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=True,
        width=width,
        no_color=not colour,
        highlight=False,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )
    console.print(value, soft_wrap=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _coloured(text: str, style: str) -> str:
    return drawn(Text(text, style=style), len(text) + 1, True).rstrip("\n")


def _first_word(text: str) -> str:
    return text.split(" ", 1)[0]


_PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NOT_ASCII = re.compile(r"[^ -~]")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def _yaml(value: Any, depth: int) -> list[str]:
    pad = "  " * depth
    lines: list[str] = []
    if isinstance(value, dict) and value:
        for key, item in value.items():
            lines += _yaml_item(f"{pad}{_scalar(key)}:", item, depth)
    elif isinstance(value, list | tuple) and value:
        for item in value:
            if isinstance(item, dict | list | tuple) and item:
                inner = _yaml(item, depth + 1)
                lines += [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
            else:
                lines.append(f"{pad}- {_scalar(item)}")
    else:
        lines.append(pad + _scalar(value))
    return lines


def _yaml_item(head: str, item: Any, depth: int) -> list[str]:
    if isinstance(item, dict | list | tuple) and item:
        return [head, *_yaml(item, depth + 1)]
    return [f"{head} {_scalar(item)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return _NOT_ASCII.sub(_escape, json.dumps(value, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    """YAML escapes characters, where JSON escapes the halves that UTF-16 makes of some."""
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
