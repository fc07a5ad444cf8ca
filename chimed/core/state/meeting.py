"""Whom the server has met since its start: who has said all that it has, or was judged not to be heard.

The database may be an older one that was put back, and only the nodes can tell. So nothing is given to another node,
and none starts anew, before everybody was met who may know better; one that is heard and does not report is waited for
only so long.
"""

from __future__ import annotations

from collections.abc import Iterable

from chimed.core.state.liveness import NEVER


class Meeting:
    """Begins with the names of all nodes. `longest_s`: for how long one that is heard and does not report is waited
    for. Times in monotonic seconds."""

    def __init__(self, names: Iterable[str], now: float, longest_s: float) -> None:
        self._unmet, self._longest_s, self._until = set(names), longest_s, now + longest_s

    def goes_on(self, now: float) -> None:
        """For a time nothing could be recorded, and nobody be met: who is still waited for has all the time again."""
        self._until = now + self._longest_s

    def met(self, name: str) -> None:
        """The node has reported all that it has, was judged, or is gone."""
        self._unmet.discard(name)

    def unmet(self) -> list[str]:
        """Who is waited for, by name."""
        return sorted(self._unmet)

    def tick(self, now: float) -> None:
        """Who is heard and has said nothing until now is waited for no more."""
        if now >= self._until:
            self._unmet.clear()

    def is_over(self) -> bool:
        """Whether nobody is waited for any more."""
        return not self._unmet

    def next_deadline(self) -> float:
        """When it ends at the latest, as long as somebody is waited for."""
        return self._until if self._unmet else NEVER
