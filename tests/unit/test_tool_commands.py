"""Every command: the request it sends, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.tool_stand_in import (
    ENDPOINT,
    NODE_KEY,
    VM_UUID,
    StandIn,
    event,
    mutation,
    node,
    operation,
    refused,
    tool,
    vm,
)
from wire import messages as m
from wire.errors import CODES, Unreachable
from wire.verbs import TYPE_OF, VERBS, Role

ALARM = {
    "id": 4, "code": "node-unreachable", "subject": "n1", "severity": "critical", "text": "no ping reply",
    "raised": 1000.0, "cleared": None, "acked_by": None, "comment": "",
}  # fmt: skip
SPEC = {
    "vcpus": 2, "memory_mib": 2048,
    "disks": [{"path": "/srv/a.qcow2", "format": "qcow2", "storage": "shared"}],
    "networks": [{"kind": "bridge", "bridge": "br0", "mac": None}],
    "boot": {"kernel": "/k", "cmdline": "quiet"},
}  # fmt: skip
STATUS = {
    "version": "0.1.0", "generation": 2, "history": "b2c4", "recovering": True, "behind": "",
    "recovery": "recovering-2", "held_vms": [],
    "held_nodes": [], "waiting_for": ["n1", "n2"], "read_only": False,
    "uptime_s": 7200.0, "nodes": {"normal": 2, "unreachable": 1}, "vms": 40, "counters": {"heartbeats": 12},
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "server.status": STATUS,
    "node.list": {"items": [node(), node("n2", health="error", reasons=["agent-lost"])], "next": None},
    "node.show": {"node": node(), "vms": [vm()], "last_operations": [operation("succeeded")]},
    "node.add": {"node": node(), "plan": ["adds node n1"]},
    "node.rekey": {"node": node(), "plan": ["ends the session of n1"]},
    "vm.list": {"items": [vm()], "next": None},
    "vm.show": {"vm": vm(), "spec": SPEC, "last_operations": []},
    "op.list": {"items": [operation()], "next": None},
    "op.show": {"operation": operation("succeeded")},
    "event.list": {"items": [event(1)]},
    "alarm.list": {"items": [ALARM]},
    "operator.list": {"items": [{"name": "ann", "public_key": NODE_KEY}]},
    "operator.add": {"operator": "bob", "public_key": NODE_KEY},
    "explain": {"lines": ["n1 is unreachable: 3 heartbeats missed", "do: look at its power"]},
}

BODIES: list[tuple[str, m.Base]] = [
    ("status", m.ServerStatus()),
    ("node list", m.NodeList()),
    ("node show n1", m.NodeShow(name="n1")),
    ("node add n1 --address 10.0.0.11",
     m.NodeAdd(key="k", name="n1", public_key=NODE_KEY, address="10.0.0.11")),
    ("node rekey n1 --yes", m.NodeRekey(key="k", name="n1", public_key=NODE_KEY)),
    ("node enable n1", m.NodeEnable(key="k", name="n1")),
    ("node disable n1", m.NodeDisable(key="k", name="n1")),
    ("node drain n1 --yes", m.NodeDrain(key="k", name="n1")),
    ("node drain n1 --yes --graceful 2m", m.NodeDrain(key="k", name="n1", graceful_s=120.0)),
    ("node drain n1 --yes --evidence operator --comment off",
     m.NodeDrain(key="k", name="n1", evidence="operator", comment="off")),  # type: ignore[arg-type]
    ("node rebuild n1 --yes", m.NodeRebuild(key="k", name="n1")),
    ("node rebuild n1 --yes --evidence operator --comment off",
     m.NodeRebuild(key="k", name="n1", evidence="operator", comment="off")),  # type: ignore[arg-type]
    ("node evacuate n1 --yes", m.NodeEvacuate(key="k", name="n1")),
    ("node remove n1 --yes", m.NodeRemove(key="k", name="n1")),
    ("vm list", m.VmList()),
    ("vm list --node n1", m.VmList(node="n1")),
    ("vm show web-1", m.VmShow(vm="web-1")),
    ("vm start web-1", m.VmStart(key="k", vm="web-1")),
    ("vm stop web-1 --yes --graceful 5", m.VmStop(key="k", vm="web-1", graceful_s=5.0)),
    ("vm stop web-1 --yes --force", m.VmStop(key="k", vm="web-1", force=True)),
    ("vm reboot web-1 --yes", m.VmReboot(key="k", vm="web-1")),
    ("vm migrate web-1 --yes", m.VmMigrate(key="k", vm="web-1")),
    ("vm delete web-1 --yes", m.VmDelete(key="k", vm="web-1")),
    ("op list", m.OpList()),
    ("op list --active", m.OpList(active=True)),
    ("op show op-7", m.OpShow(id="op-7")),
    ("op wait op-7", m.OpShow(id="op-7")),
    ("op cancel op-7 --no-wait", m.OpCancel(key="k", id="op-7")),
    ("event list --subject n1 --limit 5", m.EventList(subject="n1", limit=5)),
    ("alarm list", m.AlarmList()),
    ("alarm list --all", m.AlarmList(all=True)),
    ("alarm ack 4 --comment mine", m.AlarmAck(key="k", id=4, comment="mine")),
    ("operator list", m.OperatorList()),
    ("operator add bob", m.OperatorAdd(key="k", name="bob", public_key=NODE_KEY)),
    ("operator remove bob --yes", m.OperatorRemove(key="k", name="bob")),
    ("explain node n1", m.Explain(kind="node", name="n1")),
    ("explain vm web-1", m.Explain(kind="vm", name="web-1")),
    ("recovery show", m.RecoveryConfirm(key="k", dry_run=True, comment="chime-tool recovery show")),
    ("recovery confirm --yes --comment checked", m.RecoveryConfirm(key="k", comment="checked")),
]  # fmt: skip


def _client() -> StandIn:
    operators = {name: mutation() for name, verb in VERBS.items() if verb.sender is Role.OPERATOR}
    return StandIn(operators | RESULTS)


@pytest.mark.parametrize(("line", "body"), BODIES, ids=[line for line, _ in BODIES])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
def test_a_command_sends_its_request_and_prints_its_answer(line: str, body: m.Base, form: str) -> None:
    ran = tool(f"{line} -o {form}", _client())
    assert ran.code == 0, ran.err
    sent = ran.sent[-1]
    if isinstance(sent, m.Mutation):
        assert sent.key.startswith("key-")
        sent = type(sent)(**{name: getattr(sent, name) for name in sent.__struct_fields__} | {"key": "k"})
    assert sent == body
    assert ran.out.endswith("\n") and not ran.out.endswith("\n\n")
    if form == "json":
        document = json.loads(ran.out)
        assert isinstance(document, list if " list" in line else dict)


def test_every_verb_of_operators_has_a_command() -> None:
    covered = {TYPE_OF[type(body)] for _, body in BODIES} | {"vm.create", "vm.import", "vm.release", "node.survey"}
    assert covered == {name for name, verb in VERBS.items() if verb.sender is Role.OPERATOR}


def test_json_of_nodes_and_vms_has_the_fields_of_the_contract() -> None:
    nodes = json.loads(tool("node list -o json", _client()).out)
    assert {
        "name",
        "admin_state",
        "health",
        "reasons",
        "drain_evidence",
        "operation",
        "vms",
        "last_heartbeat_age_s",
        "schedulable",
    } <= set(nodes[0])
    vms = json.loads(tool("vm list -o json", _client()).out)
    assert {"name", "uuid", "node", "epoch", "desired", "observed", "storage", "restarts"} <= set(vms[0])
    assert set(json.loads(tool("vm start web-1 -o json", _client()).out)) == {
        "operation", "changed", "warnings", "plan"}  # fmt: skip


def test_plain_tables_are_aligned_and_never_cut() -> None:
    long = "x" * 300
    rows = [
        node(),
        node("n2", health="error", reasons=["agent-lost"], last_heartbeat_age_s=None, operation=long),
    ]
    ran = tool("node list", StandIn({"node.list": {"items": rows, "next": None}}))
    head, first, second = ran.out.splitlines()
    assert head.split() == ["NAME", "ADMIN", "HEALTH", "VMS", "SCHEDULABLE", "HEARTBEAT", "OPERATION"]
    assert head.index("HEALTH") == first.index("normal") == second.index("error (agent-lost)")
    assert "3 s" in first and "not yet" in second and second.endswith(long)
    assert "\x1b" not in ran.out


def test_a_terminal_gets_colour_unless_it_is_not_wanted() -> None:
    assert "\x1b[32mnormal" in tool("node list", _client(), out_terminal=True).out
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in tool("node list", _client(), out_terminal=True, environ=environ).out
    assert "\x1b" not in tool("node list -o json", _client(), out_terminal=True).out


def test_words_from_guests_cannot_reach_the_terminal_as_commands() -> None:
    row = vm(detail="boom\x1b]0;owned\x07\n\x9b2Jline two [bold]x[/bold]")
    for on_terminal in (False, True):
        client = StandIn({"vm.list": {"items": [row], "next": None}})
        out = tool("vm list", client, out_terminal=on_terminal, environ={"NO_COLOR": "1"}).out
        assert not set("\x1b\x07\x9b") & set(out) and "[bold]x[/bold]" in " ".join(out.split())


def test_wide_shows_more() -> None:
    assert VM_UUID not in tool("vm list", _client()).out
    assert VM_UUID in tool("vm list -o wide", _client()).out


def test_an_empty_list_says_so_on_stderr() -> None:
    ran = tool("vm list --node n1", StandIn({"vm.list": {"items": [], "next": None}}))
    assert (ran.code, ran.out, ran.err) == (0, "", "no VMs on n1\n")


def test_show_texts() -> None:
    text = tool("node show n1", _client()).out
    assert "VMs             2, 2 of them running" in text and "web-1" in text and "op-7" in text
    text = tool("vm show web-1", _client()).out
    assert "/srv/a.qcow2 (qcow2, shared)" in text and "bridge br0" in text and "kernel" in text
    text = tool("status", _client()).out
    assert "2 normal, 1 unreachable" in text and "under way, waiting for n1, n2" in text and ENDPOINT in text
    assert "3 heartbeats missed" in tool("explain node n1", _client()).out
    assert "stop web-2  pending" in tool("op show op-7", _client()).out


def test_yaml_is_what_json_is() -> None:
    text = tool("vm show web-1 -o yaml", _client()).out
    assert text.startswith("vm:\n  name: web-1\n") and '  detail: ""\n' in text and "  node: n1\n" in text
    assert "disks:\n    - path: " in text and "last_operations: []" in text and "mac: null" in text


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_refusal_ends_with_its_exit_code_in_one_line(code: str) -> None:
    client = StandIn({"vm.start": refused(code, "n1 says\nno")})
    ran = tool("vm start web-1 -o json", client)
    assert ran.code == CODES[code].exit_code
    assert (ran.out, ran.err) == ("", "chime-tool: n1 says no\n")


def test_an_unreachable_server_is_exit_code_4() -> None:
    assert tool("node list", StandIn({"node.list": Unreachable("no answer")})).code == 4


def test_a_bug_is_one_line_too() -> None:
    ran = tool("node list", StandIn({"node.list": {"items": [{"surprise": 1}]}}))
    assert ran.code == 1 and ran.err.count("\n") == 1 and "unexpected KeyError" in ran.err


@pytest.mark.parametrize(("health", "age_s", "listed", "shown"), [
    ("normal", 3.0, "3 s", "3 s ago"),
    ("normal", None, "not yet", "not yet since the server's start; health is what it was before"),
    ("unreachable", None, "not yet", "not yet since the server's start; health is what it was before"),
    ("unknown", None, "never", "never"),
])  # fmt: skip
def test_a_node_that_was_heard_before_the_server_started_was_not_never_heard(
    health: str, age_s: float | None, listed: str, shown: str
) -> None:
    row = node(health=health, last_heartbeat_age_s=age_s)
    client = StandIn({"node.list": {"items": [row]}, "node.show": {"node": row, "vms": [], "last_operations": []}})
    line = tool("node list", client).out.splitlines()[1]
    assert f"  {listed}  " in line
    facts = tool("node show n1", client).out.splitlines()
    assert f"heartbeat       {shown}" in facts
