"""Each code is spelled once, in the vocabulary: a typo anywhere else would silently disable an alarm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec
import pytest

from chimed.core.state import rows as r
from tests.tools.make_protocol_tables import meanings
from wire import words as w
from wire.errors import CODES
from wire.types import OperationState, Severity, StepState

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("chimed", "agentd", "tools") for path in (ROOT / package).rglob("*.py"))
SETS: tuple[type[StrEnum], ...] = (
    w.Problem, w.FaultCode, w.EventCode, w.CommandKind, w.OperationKind, w.AlarmCode
)  # fmt: skip
KINDS = {kind.value for kind in (*w.OperationKind, *w.CommandKind)}
DISTINCT = {code.value for codes in SETS for code in codes if "-" in code.value}
"""Codes that are no word of anything else; the others, as `start`, are only looked for where a kind stands."""
OF_ERRORS = ("ChimeError", "Failure", "fail")


def bare(source: str) -> Iterator[str]:
    """The codes that the source spells, with their lines."""
    tree = ast.parse(source)
    skipped = {id(node) for allowed in ast.walk(tree) for node in _of_another_vocabulary(allowed)}
    kinds = {id(node) for place in ast.walk(tree) for node in _as_kind(place)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in skipped:
            continue
        if node.value in DISTINCT or (node.value in KINDS and id(node) in kinds):
            yield f"{node.lineno}: {node.value}"


def errors(source: str) -> Iterator[str]:
    """The error codes that the source spells."""
    for node in ast.walk(ast.parse(source)):
        for constant in _error_codes(node):
            assert isinstance(constant.value, str)
            yield constant.value


def _of_another_vocabulary(node: ast.AST) -> Iterator[ast.AST]:
    """Error codes, and the values of other enums: they may be the same words."""
    yield from _error_codes(node)
    if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
        yield from (part.value for part in node.body if isinstance(part, ast.Assign))
    if isinstance(node, ast.Compare) and ast.unparse(node.left) == "error.code":
        yield from ast.walk(node)


def _error_codes(node: ast.AST) -> Iterator[ast.Constant]:
    if not (isinstance(node, ast.Call) and _name(node.func) in OF_ERRORS):
        return
    first = node.args[:1] if _name(node.func) == "ChimeError" else []
    for value in (*first, *(keyword.value for keyword in node.keywords if keyword.arg == "code")):
        if isinstance(value, ast.Constant):
            yield value


def _as_kind(node: ast.AST) -> Iterator[ast.AST]:
    """What stands where a kind of operation or command stands."""
    if isinstance(node, ast.Compare) and any(_name(side) == "kind" for side in (node.left, *node.comparators)):
        yield from ast.walk(node)
    elif isinstance(node, ast.Call) and _name(node.func) == "begin":
        yield from node.args
    elif isinstance(node, ast.keyword) and node.arg == "kind":
        yield from ast.walk(node.value)
    elif isinstance(node, ast.Dict):
        yield from (key for key in node.keys if key is not None and len(node.keys) > 1 and _all_kinds(node))


def _all_kinds(node: ast.Dict) -> bool:
    return all(isinstance(key, ast.Constant) and key.value in KINDS for key in node.keys)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript):
        return str(node.slice.value) if isinstance(node.slice, ast.Constant) else ""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_code_is_spelled_outside_the_vocabulary() -> None:
    found = [f"{path.relative_to(ROOT)}:{code}" for path in SOURCES for code in bare(path.read_text())]
    assert SOURCES and found == [], "use wire.words"


def test_every_error_code_that_is_spelled_exists() -> None:
    assert {code for path in SOURCES for code in errors(path.read_text())} <= CODES.keys()


@pytest.mark.parametrize(
    "source",
    [
        'report.problem == "io-error"',
        'if "agent-lost" in node.reasons: pass',
        'ALARMS = {"vm-failed": 1}',
        'suspect(name, "wrong-node", text)',
        'op.kind == "drain"',
        'operation["kind"] in ("migrate", "other")',
        'parts.begin("start", vm)',
        'Command(kind="reboot")',
        'WAIT_S = {"migrate": 1.0, "evacuate": 2.0}',
        'fail(ctx, op, "node-unreachable")',
    ],
)
def test_a_bare_code_is_found(source: str) -> None:
    assert len(list(bare(source))) >= 1


@pytest.mark.parametrize(
    "source",
    [
        'raise ChimeError("node-unreachable", "n1")',
        'fail(ctx, op, text, code="node-unreachable")',
        'class Phase(StrEnum):\n    AGENT_LOST = "agent-lost"',
        'error.code in ("unreachable", "node-unreachable")',
        'verb = "start"',
    ],
)
def test_words_of_another_vocabulary_are_left_alone(source: str) -> None:
    assert list(bare(source)) == []


def test_an_unknown_error_code_is_found() -> None:
    assert list(errors('ChimeError("node-unreachabel", text)')) == ["node-unreachabel"]


def test_every_code_has_a_meaning_in_one_line() -> None:
    for kind in SETS:
        assert set(meanings(kind)) == set(kind) and all(meanings(kind).values())


def test_every_alarm_has_a_subject_and_a_severity() -> None:
    assert set(w.ALARMS) == set(w.AlarmCode) and set(w.ALARM_OF) <= set(w.Problem)
    assert [code for code, info in w.ALARMS.items() if info.severity is None] == [w.AlarmCode.NODE_ERROR]
    assert all(w.ALARMS[code].severity == Severity.CRITICAL for code in w.ALARM_OF.values())


def test_an_operation_that_an_older_server_saved_is_told_as_it_was() -> None:
    old = (
        b'{"id":"op-1","number":1,"kind":"drain","subject":"n1","label":"drain n1","state":"failed","steps":'
        b'[{"name":"stop all VMs","state":"failed","detail":"","progress":null}],"actor":"ops","created":1.0,'
        b'"timeout_s":300.0,"outcome":"node-unreachable: n1 is not heard"}'
    )
    op = msgspec.json.decode(old, type=r.Operation)
    assert op.told == "node-unreachable: n1 is not heard" and op.kind is w.OperationKind.DRAIN
    assert op.state == OperationState.FAILED and op.steps[0].view().state == StepState.FAILED
