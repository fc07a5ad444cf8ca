"""`docs/configuration.md` lists the settings as they are."""

from __future__ import annotations

from tests.tools import make_config_tables as made


def test_the_tables_are_current() -> None:
    text = made.DOCUMENT.read_text()
    assert made.updated(text) == text, "run python -m tests.tools.make_config_tables"


def test_every_table_is_shown() -> None:
    text = made.DOCUMENT.read_text()
    assert all(f"<!-- table: {name} -->" in text for name in made.TABLES)
