"""The words of scenarios: patterns such as `power {node} off`, each with the function that carries it out.

A pattern's placeholders match one word each (`{node}`, `{vm}`, `{seconds}`...), `{rest}` all that is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Usage(ValueError):
    """A line that means nothing: the text says what would."""


class Word(NamedTuple):
    """One pattern."""

    pattern: str
    regex: re.Pattern[str]
    do: Callable[..., Any]


class Vocabulary:
    """Patterns of one kind. Of those that fit a line the one with the fewest placeholders wins (`stop chimed` stops no
    VM of that name)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.words: list[Word] = []

    def word(self, *patterns: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers a function for patterns; its docstring is the help."""

        def register(do: Callable[..., Any]) -> Callable[..., Any]:
            self.words += [Word(pattern, _regex(pattern), do) for pattern in patterns]
            return do

        return register

    def find(self, text: str) -> tuple[Callable[..., Any], dict[str, str]]:
        """What a line means, with its words. Raises Usage."""
        fits = [(word, found) for word in self.words if (found := word.regex.fullmatch(text))]
        if fits:
            word, found = min(fits, key=lambda fit: fit[0].regex.groups)
            return word.do, {k: v for k, v in found.groupdict().items() if v is not None}
        first = text.split(" ", 1)[0]
        near = [word.pattern for word in self.words if word.pattern.split(" ", 1)[0] == first]
        near = near or [word.pattern for word in self.words]
        raise Usage(f"no {self.kind} is written as {text!r}; there is: {'; '.join(near)}")

    def help(self) -> list[str]:
        """One line for each pattern."""
        return [f"{word.pattern:44} {(word.do.__doc__ or '').strip()}" for word in self.words]


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    text = ""
    for number, part in enumerate(parts):
        if number % 2 == 0:
            text += re.escape(part)
        else:
            text += f"(?P<{part}>{'.+' if part == 'rest' else '[^ ]+'})"
    return re.compile(text)
