"""What a deliberate defect is: an edit of a module, and the promise that it breaks."""

from __future__ import annotations

from typing import NamedTuple

Edit = tuple[str, str, str]


class Mutant(NamedTuple):
    """One defect. `breaks`: the promise, and how."""

    name: str
    module: str
    old: str
    new: str
    breaks: str
    also: tuple[Edit, ...] = ()
    seed: int = 0

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All places that change."""
        return ((self.module, self.old, self.new), *self.also)
