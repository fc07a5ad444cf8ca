"""`docs/states.md` shows the transitions that the code allows."""

from __future__ import annotations

from tests.tools import make_state_diagrams as made


def test_the_page_is_current() -> None:
    assert made.DOCUMENT.read_text() == made.document(), "run python -m tests.tools.make_state_diagrams"


def test_every_state_has_a_meaning() -> None:
    for kind in (made.liveness.Phase, made.link.LinkState):
        assert all(made.meanings(kind).values())
