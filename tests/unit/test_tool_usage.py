"""The command line: what is refused, what help says, that every text is a grammar docopt can read."""

from __future__ import annotations

import pytest

from tests.unit.tool_stand_in import StandIn, event, node, operation, tool
from tools import help
from tools.main import COMMANDS
from tools.terminal import CLEAR
from tools.usage import options_of, positionals_of
from wire.errors import Unreachable

NAMES = [(noun, verb) for noun, verbs in COMMANDS.items() for verb in verbs]


@pytest.mark.parametrize(("noun", "verb"), NAMES)
def test_help_of_every_command_is_short_and_fits_a_terminal(noun: str, verb: str) -> None:
    ran = tool([noun, *([verb] if verb else []), "--help"])
    assert ran.code == 0 and not ran.err and not ran.sent
    assert f"chime-tool {noun}" in ran.out
    assert len(ran.out.splitlines()) < 35 and max(map(len, ran.out.splitlines())) <= 110


def test_top_and_noun_help_name_every_command() -> None:
    top = tool("--help").out
    for noun, verbs in COMMANDS.items():
        assert noun in top
        if "" not in verbs:
            text = tool([noun, "--help"]).out
            assert all(verb in text and verb in top for verb in verbs)
    for code in range(6):
        assert f"{code} " in top.split("Exit codes:")[1]


def test_version() -> None:
    ran = tool("--version")
    assert ran.code == 0 and ran.out.startswith("chime-tool ")


def test_an_option_has_one_shape_everywhere() -> None:
    shapes = options_of(help.GLOBAL)
    assert shapes["-o"] and not shapes["--yes"] and shapes["--timeout"]
    for verbs in COMMANDS.values():
        for command in verbs.values():
            for option, takes_value in options_of(command.text).items():
                assert shapes.setdefault(option, takes_value) == takes_value, option


def test_positionals_are_read_from_the_usage() -> None:
    assert positionals_of(help.VM_CREATE) == ["NAME"]
    assert positionals_of(help.OP_WAIT) == ["ID"]
    assert positionals_of(help.STATUS) == []


BAD_LINES = [
    ("", "a command is needed: node, vm"),
    ("nod list", "unknown command 'nod', did you mean node?"),
    ("vm lst", "unknown command 'vm lst', did you mean list?"),
    ("vm", "vm needs a command: list, show"),
    ("vm show", "vm show needs VM"),
    ("vm show a b", "unexpected argument 'b'"),
    ("node list --yse", "unknown option --yse for node list, did you mean --yes?"),
    ("node list --y", "unknown option --y"),
    ("node drain n1 --evidenc operator", "unknown option --evidenc"),
    ("node list --force", "unknown option --force"),
    ("node list --output json", "the format is -o FORMAT"),
    ("node list -o", "-o needs a value"),
    ("node list -o xml", "-o xml: allowed are table, wide, json, yaml"),
    ("node list --key a --key b", "--key is given twice"),
    ("node list --yes=1", "--yes takes no value"),
    ("node list --timeout x", "--timeout 'x': give seconds"),
    ("node list --timeout nan", "--timeout 'nan': give seconds"),
    ("node list --timeout 0", "more than 0 seconds"),
    ("node list --watch=0", "at least 0.1 seconds"),
    ("node list --watch -o json", "json is one document"),
    ("node drain n1 --watch", "--watch is for commands that show something"),
    ("node enable n1 --wait --no-wait", "exclude each other"),
    ("recovery confirm", "recovery confirm needs --comment=TEXT"),
    ("recovery confirm --comment=", "--comment is empty: say how you know"),
    ("alarm ack 1 --comment=", "--comment is empty: say how you know"),
    ("node drain n1 --evidence operator --comment=", "--comment is empty: say how you know"),
    ("vm create a --vcpus 1", "vm create needs --memory=SIZE, or --xml=FILE"),
    ("vm create a --vcpus 1 --memory 1G --xml f", "do not go together"),
    ("event list --limit x", "--limit 'x': give a whole number"),
    ("event list --limit 0", "limit 0: expected a whole number >= 1"),
    ("alarm ack x", "alarm ID 'x': give a whole number"),
    ("node drain n1 --graceful -1", "--graceful '-1': give seconds"),
    ("node drain n1 --graceful 999999", "graceful 999999.0: expected a number <= 86400"),
    ("node drain n1 --evidence agent --comment x", "only 'operator' can be given by hand"),
    ("node rebuild n1 --comment x", "--comment goes with --evidence operator"),
    ("node show -n1", "unknown option -n1"),
    ("node show n/1", "name 'n/1': expected text of at most 63 letters, digits"),
    ("node add n1 --public-key short", "public key 'short': expected text that is a CURVE key"),
    ("node add n1 --address here", "address 'here': expected text that is an IPv4 or IPv6 address"),
    ("vm list --node ../x", "node '../x': expected text of at most 63"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES)
def test_a_bad_line_is_refused_in_one_line_and_nothing_is_sent(line: str, said: str) -> None:
    ran = tool(line)
    assert ran.code == 2
    assert ran.err.startswith("chime-tool: ") and ran.err.count("\n") == 1
    assert said in ran.err
    assert not ran.out and not ran.sent


def test_bytes_that_are_not_utf8_are_refused() -> None:
    ran = tool(["alarm", "ack", "1", "--comment", "\udcff"])
    assert ran.code == 2 and "not valid UTF-8" in ran.err


@pytest.mark.parametrize(
    "line", ["-o json node list", "node -o json list", "node list -ojson", "node list -o json"]
)
def test_global_options_stand_anywhere(line: str) -> None:
    ran = tool(line, StandIn({"node.list": {"items": [], "next": None}}))
    assert (ran.code, ran.out) == (0, "[]\n")


def test_a_vm_may_be_called_like_a_command() -> None:
    client = StandIn({"vm.start": {"operation": None, "changed": True, "warnings": [], "plan": []}})
    ran = tool("vm start start", client)
    assert ran.code == 0 and ran.sent[0].vm == "start"


def test_durations_have_units() -> None:
    client = StandIn({"op.show": {"operation": operation()}}, [operation("succeeded")])
    assert tool("op wait op-7 --timeout 2m", client).code == 0
    assert client.waited_s == [120.0]


def test_watch_shows_again_until_interrupted() -> None:
    ran = tool("node list --watch=7", StandIn({"node.list": {"items": [node()], "next": None}}), pauses=2)
    assert ran.code == 0 and ran.pauses_s == [7.0, 7.0] and ran.out.count("NAME") == 2


def test_watch_clears_a_terminal_and_outlives_a_server_that_is_away() -> None:
    answers = iter([Unreachable("no answer"), {"items": [node()], "next": None}])
    client = StandIn({"node.list": lambda body: next(answers)})
    ran = tool("node list --watch", client, pauses=2, out_terminal=True)
    assert ran.code == 0 and ran.pauses_s == [2.0, 2.0]
    assert "no answer; trying again" in ran.err and ran.out.count(CLEAR) == 2 and "n1" in ran.out


def test_watched_events_follow_without_repeating() -> None:
    client = StandIn(
        {"event.list": lambda body: {"items": [event(i) for i in (1, 2, 3) if i > body.after_id][:2]}}
    )
    ran = tool("event list --watch=1", client, pauses=3)
    assert ran.code == 0
    assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == ["why-1", "why-2", "why-3"]
    assert [body.after_id for body in ran.sent] == [0, 2, 3]
