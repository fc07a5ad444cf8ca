"""`docs/protocol.md` says what the code does: its tables are current, its examples work."""

from __future__ import annotations

import re

from tests.tools import make_protocol_tables as made
from tests.tools.protocol_words import FIELDS, RESULTS
from wire.codec import decode, encode
from wire.errors import CODES
from wire.messages import NodeShow
from wire.verbs import VERBS, Role

TEXT = made.DOCUMENT.read_text()


def test_the_tables_are_current() -> None:
    assert made.updated(TEXT) == TEXT, "run python -m tests.tools.make_protocol_tables"


def test_every_table_is_shown_once() -> None:
    assert sorted(re.findall("<!-- table: (.*) -->", TEXT)) == sorted(made.TABLES)


def test_no_word_is_left_over() -> None:
    made.updated(TEXT)
    assert set(FIELDS) == made.used
    assert {name for name, verb in VERBS.items() if verb.sender is Role.OPERATOR} >= set(RESULTS)


def test_every_type_and_code_is_named() -> None:
    for name in [*VERBS, *CODES]:
        assert f"`{name}`" in TEXT
    for code in re.findall(r"[Ee]rror `([a-z-]+)`", TEXT):
        assert code in CODES


def test_byte_example() -> None:
    found = re.search(r"<!-- example: node.show 7 -->\n```\n([0-9a-f \n]+)```", TEXT)
    assert found
    frame = bytes.fromhex(found[1].replace("\n", " "))
    assert frame == encode(NodeShow(name="n1"), "7")
    assert decode(frame).body == NodeShow(name="n1")
