"""`docs/protocol.md` says what the code does: its tables are current, its examples work."""

from __future__ import annotations

import hashlib
import re

from agentd.libvirt.domain_xml import Stamp
from tests.tools import make_protocol_tables as made
from tests.tools.protocol_words import FIELDS, RESULTS
from wire import seals
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


def test_the_voucher_of_the_page_is_made_as_it_says() -> None:
    found = re.search(r"<!-- example: voucher -->\n```\n(.*?)```", TEXT, re.DOTALL)
    assert found
    said = dict(line.split() for line in found[1].splitlines())
    key = hashlib.blake2b(said["seal"].encode(), digest_size=32).digest()
    assert said["text"] == "".join(f"{len(part)}:{part}" for part in ("copy", said["attempt"], said["address"]))
    assert said["voucher"] == hashlib.blake2b(said["text"].encode(), key=key, digest_size=16).hexdigest()
    assert said["voucher"] == seals.voucher(said["seal"], said["attempt"], said["address"])


def test_the_metadata_of_the_page_has_every_attribute_that_the_agent_writes() -> None:
    stamp = Stamp(7, 31, "op-17-1", "n1", True, "seal", "voucher", "10.2.0.12")
    first_cells = " ".join(re.findall(r"^\| (`.+?) \| ", _metadata(), re.M))
    assert stamp.attributes().keys() == set(re.findall("`(.+?)`", first_cells))


def _metadata() -> str:
    return TEXT.split("**Metadata.**")[1].split("**Vouchers.**")[0]
