"""Figures with their targets, the table that shows them and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass
class Figure:
    """One measured number. `limit` with `relation` (`<=`, `>=`, or empty: told, not judged)."""

    name: str
    value: float
    unit: str
    relation: str = ""
    limit: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return f"{self.relation} {self.limit:g}" if self.relation else ""

    @property
    def ok(self) -> bool:
        if self.relation == "<=":
            return self.value <= self.limit
        return self.value >= self.limit if self.relation == ">=" else True

    def as_json(self) -> dict[str, Any]:
        kept = {"name": self.name, "value": round(self.value, 4), "unit": self.unit}
        return {**kept, "target": self.target, "ok": self.ok, "detail": self.detail}


@dataclass
class Runs:
    """Repeats of one measurement."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def most(self) -> float:
        """What four of five do not exceed: also with values of two kinds it is of the longer kind."""
        return sorted(self.values)[math.ceil(0.8 * len(self.values)) - 1]

    def rounded(self, digits: int = 3) -> list[float]:
        return [round(value, digits) for value in self.values]


def show(figures: Iterable[Figure]) -> str:
    """The table."""
    rows = [("", "figure", "value", "target")]
    rows += [("ok" if f.ok else "MISSED", f.name, f"{f.value:.4g} {f.unit}", f.target or "-") for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])


def save(path: Path, figures: list[Figure], errors: dict[str, str]) -> bool:
    """Writes the file; returns whether every target is met and every part ran."""
    ok = all(figure.ok for figure in figures) and not errors
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"ok": ok, "figures": [figure.as_json() for figure in figures], "errors": errors}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return ok
