"""How far a database has come, and which file it is: it tells one that was put back in the place of a newer one.

The newest mark is kept beside the database, in a file that a copy which is put back does not bring along. It follows
each commit and is never ahead of it, so a crash can only leave one that says too little. The file bears the number of
its present life, which is another one after each start: a copy from before has an old one, whatever was done to it
since.
"""

from __future__ import annotations

from msgspec import Struct


class Mark(Struct, frozen=True):
    """`turn`: commits since the database was made. `history` is empty where none is known. `lives`: what the file may
    bear as its life, more than one while it changes; empty: not known, and nothing is compared with it."""

    generation: int = 0
    history: str = ""
    turn: int = 0
    lives: tuple[int, ...] = ()


class PutBack(Struct, frozen=True):
    """A newer database was here before: above which generation all is new, and how that is known."""

    generation: int
    text: str


def put_back(mine: Mark, newest: Mark) -> PutBack | None:
    """What is known of a database that is newer than the one with the mark `mine`; None: it is the newest."""
    text = _newer(mine, newest) or _another(mine.lives, newest.lives)
    return PutBack(max(mine.generation, newest.generation), f"it was put back: {text}") if text else None


def _newer(mine: Mark, newest: Mark) -> str:
    if newest.generation != mine.generation:
        if newest.generation < mine.generation:
            return ""
        return f"one of generation {newest.generation} was in its place, and it is of generation {mine.generation}"
    if newest.history and mine.history and newest.history != mine.history:
        return f"one of another history with the same generation {mine.generation} was in its place"
    if newest.turn > mine.turn:
        return f"{newest.turn} changes were saved in its place, and it has {mine.turn} of them"
    return ""


def _another(mine: tuple[int, ...], newest: tuple[int, ...]) -> str:
    if mine and newest and not set(mine) & set(newest):
        return "the file is not the one that was open here last"
    return ""
