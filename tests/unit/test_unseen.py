"""Characters that are not seen: nobody sends them in a name, a path or a word; who shows text shows their escapes."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import unicodedata
from typing import Any

import msgspec
import pytest

from agentd.local import main
from agentd.local import progress as local_progress
from chimed import main as chimed
from tests.unit.test_tool_commands import BODIES, RESULTS
from tests.unit.tool_stand_in import StandIn, mutation, refused, tool
from wire import types as w
from wire.local import logs as agent_logs
from wire.local import logs as server_logs
from wire.local.usage import say
from wire.messages import MigrationProgress
from wire.text import clean_line, clean_text, escaped, escaped_json, escaped_line
from wire.verbs import VERBS, Role

NAMED = {
    "escape": "\x1b", "delete": "\x7f", "C1": "\x9b", "soft hyphen": "\xad", "arabic mark": "\u061c",
    "mongolian": "\u180e", "zero width": "\u200b", "joiner": "\u200d", "right to left": "\u202e", "isolate": "\u2066",
    "word joiner": "\u2060", "times": "\u2062", "byte order mark": "\ufeff",
    "variation": "\ufe0f", "filler": "\u3164", "tag": "\U000e0041",
    "annotation": "\ufff9", "line": "\u2028",
}  # fmt: skip
HOSTILE = "\x1b[35m\x1b[2J\x07" + "".join(NAMED.values())
SEEN_ONLY = re.compile(rf"[\x00-\x08\x0b-\x1f{w.UNSEEN}\ud800-\udfff]")
OURS = re.compile(r"\x1b\[(?:0|1|2|3[1236]|1;31)?m|\x1b\[H\x1b\[2J\x1b\[3J")


@pytest.mark.parametrize("char", NAMED.values(), ids=NAMED.keys())
def test_h9_what_is_not_seen_is_refused_where_it_is_decoded(char: str) -> None:
    for kind, text in ((w.Path, "/srv/a"), (w.Line, "a"), (w.Text, "a"), (w.Token, "a"), (w.Name, "a")):
        assert msgspec.convert(text, kind) == text
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text + char, kind)
        assert re.search(rf"[\x00-\x1f{w.UNSEEN}]", char)


def test_h9_every_format_character_that_is_not_seen_is_known() -> None:
    """All of Unicode's category Cf but the signs that are drawn: of numbers and of verses, in Arabic, Syriac, Kaithi
    and among the hieroglyphs."""
    drawn = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    cf = {code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"}
    assert {code for code in cf - drawn if not SEEN_ONLY.match(chr(code))} == set()


def test_h9_escapes_say_what_is_there() -> None:
    assert escaped("a\x1b[2J\tb\r\nc\u202e\U000e0041\ud800") == "a\\x1b[2J\tb\nc\\u202e\\U000e0041\\ud800"
    assert escaped_line(" a\r\n\tb\x85\u2028c\x07 ") == "a b c\\x07"
    assert clean_text("\u200b" * 3, 9) == "\\u200b..." and clean_line("a\nb") == "a b"
    document = json.dumps({HOSTILE: HOSTILE + "\ud800é"}, ensure_ascii=False)
    assert json.loads(escaped_json(document)) == json.loads(document) and not SEEN_ONLY.search(escaped_json(document))
    assert "é" in escaped_json(document)


def hostile(value: Any, key: str = "") -> Any:
    """The same result with all free words made hostile."""
    if isinstance(value, dict):
        return {name: hostile(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in ("state", "next") else value


@pytest.mark.parametrize("on_terminal", [False, True])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
@pytest.mark.parametrize("line", [line for line, _ in BODIES])
def test_h9_no_command_of_the_tool_shows_them_raw(line: str, form: str, on_terminal: bool) -> None:
    every = {name: mutation(warnings=["w"], plan=["p"]) for name, verb in VERBS.items() if verb.sender is Role.OPERATOR}
    results = hostile({name: result for name, result in (every | RESULTS).items() if not callable(result)})
    ran = tool(f"{line} -o {form}", StandIn(every | RESULTS | results), out_terminal=on_terminal)
    assert ran.code == 0, ran.err
    assert not SEEN_ONLY.search(OURS.sub("", ran.out)) and not SEEN_ONLY.search(ran.err)
    assert "\x1b[2J" not in ran.out and "\x1b[35m" not in ran.out
    if form == "json":
        json.loads(ran.out)


def test_h9_json_and_yaml_hold_the_true_string() -> None:
    rows = [hostile(dict(row)) for row in RESULTS["node.list"]["items"]]
    client = StandIn({"node.list": {"items": rows, "next": None}})
    assert json.loads(tool("node list -o json", client).out)[0]["name"] == rows[0]["name"]
    text = tool("node list -o yaml", client).out
    assert "\\u202e" in text and "\\U000e0041" in text and "\\ud" not in text


def test_h9_messages_are_escaped() -> None:
    ran = tool("vm start web-1", StandIn({"vm.start": refused("conflict", f"n1 says {HOSTILE}")}))
    assert not SEEN_ONLY.search(ran.err) and "\\u202e" in ran.err
    ran = tool(["vm", "start", f"x{HOSTILE}"])
    assert ran.code == 2 and not SEEN_ONLY.search(ran.err)
    ran = tool("vm delete web-1", StandIn({"vm.delete": mutation(plan=[HOSTILE], warnings=[HOSTILE])}), answer="n\n")
    assert not SEEN_ONLY.search(ran.err) and "\\u202e" in ran.err


def test_h9_programs_of_the_node_escape(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    vm = {"name": HOSTILE, "uuid": "u", "observed": "running", "epoch": 1, "restarts": 0, "detail": HOSTILE + "\nx"}
    left = {"name": HOSTILE, "target": HOSTILE, "detail": HOSTILE, "handed_over": False}
    status = {
        "agent_running": True, "session": HOSTILE, "local_drain": False, "node": "n1", "admin_state": "enabled",
        "last_error": HOSTILE, "faults": [{"code": "c", "severity": "s", "text": HOSTILE}], "vms": [vm], "left": [left],
    }  # fmt: skip
    main._show(status, "table")
    main._show(status, "json")
    say(f"drained {HOSTILE}")
    assert chimed.main([HOSTILE]) == 2 and chimed.main(["check-config", "--config", f"/none/{HOSTILE}"]) == 2
    assert main.main(["status", "--config", f"/none/{HOSTILE}"]) == 2
    progress = MigrationProgress(total_mib=1, remaining_mib=1, rate_mib_s=1, iteration=1, downtime_ms=1, elapsed_s=1.0)
    local_progress.ProgressLine(HOSTILE).show(progress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    local_progress.ProgressLine(HOSTILE).show(progress)
    shown = capsys.readouterr()
    assert not SEEN_ONLY.search(shown.out) and not SEEN_ONLY.search(shown.err.replace("\r", ""))
    assert json.loads(shown.out.splitlines()[-1]) == status


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("logs", [server_logs, agent_logs])
def test_h9_logs_are_escaped(logs: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, before = io.StringIO(), logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up("info", form)
    try:
        logging.getLogger("x").error("from outside: %s\nnext", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("x").exception(HOSTILE)
    finally:
        logging.getLogger().handlers[:] = before
    assert not SEEN_ONLY.search(stream.getvalue()) and "202e" in stream.getvalue()
