"""The golden vectors are current, and the codec agrees with each of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.tools.make_vectors import FILES, FOLDER, joined, render
from wire.codec import decode, encode
from wire.errors import ChimeError
from wire.verbs import VERBS

VALID: list[dict[str, Any]] = json.loads((FOLDER / "valid.json").read_text())
INVALID: list[dict[str, Any]] = json.loads((FOLDER / "invalid.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_current(name: str) -> None:
    assert (FOLDER / name).read_text() == render(FILES[name]()), "run python -m tests.tools.make_vectors"


@pytest.mark.parametrize("vector", VALID, ids=lambda vector: str(vector["name"]))
def test_valid(vector: dict[str, Any]) -> None:
    frame = joined(vector)
    message = decode(frame)
    assert (message.type, message.id) == (vector["type"], vector["id"])
    assert json.loads(msgspec.json.encode(message.body)) == vector["body"]
    assert (encode(message.body, message.id) == frame) is vector["canonical"]


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: str(vector["name"]))
def test_invalid(vector: dict[str, Any]) -> None:
    with pytest.raises(ChimeError) as caught:
        decode(joined(vector))
    assert caught.value.code == vector["code"], caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


def test_every_message_type_has_a_vector() -> None:
    assert {vector["type"] for vector in VALID} == set(VERBS)
    names = [vector["name"] for vector in VALID + INVALID]
    assert len(names) == len(set(names))
