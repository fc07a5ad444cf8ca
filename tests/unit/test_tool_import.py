"""`chime-tool vm import` and `vm release`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.tool_stand_in import StandIn, mutation, operation, refused, tool
from wire import messages as m

UUIDS = {name: f"00000000-0000-4000-8000-00000000000{n}" for n, name in enumerate(("web", "db", "odd", "taken"))}
XML = (
    "<domain><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>2</vcpu><devices>"
    "<disk type='file'><driver type='qcow2'/><source file='/srv/{name}.qcow2'/></disk></devices></domain>"
)
DISKS = {"odd": "<domain><name>odd</name><memory>65536</memory><devices><disk type='vhostuser'><source/></disk>"
                "</devices></domain>"}  # fmt: skip


def foreign(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": UUIDS[name], "name": name, "observed": "running", "autostart": False, "problem": "", "xml": None,
    } | changes  # fmt: skip


def node_with(*vms: dict[str, Any], **results: Any) -> StandIn:
    """A client of a server whose node n1 has these."""

    def survey(body: m.NodeSurvey) -> dict[str, Any]:
        found = [vm for vm in vms if body.uuid in (None, vm["uuid"])]
        if body.uuid is not None:
            names = {vm["name"] for vm in found}
            found = [vm | {"xml": DISKS.get(vm["name"], XML.format(**vm))} for vm in found if vm["name"] in names]
        return {"items": found, "next": ""}

    def take(body: m.VmImport) -> Any:
        if body.name == "taken":
            raise refused("exists", "a VM named taken exists already on n2")
        done = None if body.dry_run else operation(kind="import", id="op-1")
        return mutation(done, plan=[f"takes {body.name}"])

    states = [operation("succeeded", kind="import", id="op-1", outcome="managed on n1, running", ended=2.0)]
    return StandIn({"node.survey": survey, "vm.import": take, **results}, states)


def imports(ran: Any) -> list[m.VmImport]:
    return [body for body in ran.sent if isinstance(body, m.VmImport) and not body.dry_run]


def test_a_dry_run_shows_what_would_be_owned_and_what_refused_and_changes_nothing() -> None:
    hidden = foreign("db", problem="it is transient")
    ran = tool(
        "vm import n1 --dry-run -o json",
        node_with(foreign("web", autostart=True), hidden, foreign("odd"), foreign("taken")),
    )
    rows = {row["name"]: row for row in json.loads(ran.out)}
    assert ran.code == 0 and not imports(ran) and "--storage shared" in ran.err
    web = rows["web"]
    assert (web["state"], web["vcpus"], web["memory_mib"], web["disks"]) == ("importable", 2, 64, ["/srv/web.qcow2"])
    assert "autostart" in web["detail"]
    assert {name: row["state"] for name, row in rows.items()} == {
        "web": "importable", "db": "refused", "odd": "refused", "taken": "refused",
    }  # fmt: skip
    assert (rows["db"]["detail"], "vhostuser" in rows["odd"]["detail"]) == ("it is transient", True)
    assert rows["taken"]["detail"] == "a VM named taken exists already on n2"


def test_an_import_sends_what_was_shown() -> None:
    ran = tool("vm import n1 web --storage shared --yes", node_with(foreign("web"), foreign("db")))
    (request,) = imports(ran)
    assert (ran.code, request.name, request.node, request.desired) == (0, "web", "n1", "running")
    assert request.spec.xml == XML.format(**foreign("web")) and request.spec.disks[0].storage == "shared"
    assert "succeeded" in ran.out and "managed on n1, running" in ran.out and "note:" not in ran.err


def test_a_vm_that_is_off_stays_off_and_a_paused_one_counts_as_running() -> None:
    client = node_with(foreign("web", observed="stopped"), foreign("db", observed="paused"))
    ran = tool("vm import n1 --all --yes", client)
    assert [request.desired for request in imports(ran)] == ["stopped", "running"]


def test_one_that_is_refused_does_not_keep_the_others_but_shows_in_the_exit_code() -> None:
    ran = tool("vm import n1 --all --yes", node_with(foreign("taken"), foreign("web")))
    assert ran.code == 1 and [request.name for request in imports(ran)] == ["web"]


def test_nothing_is_sent_without_consent() -> None:
    client = node_with(foreign("web"))
    assert tool("vm import n1 web", client, answer="n\n").code == 1
    assert "nothing was changed" in tool("vm import n1 web", client, answer="n\n").err
    assert tool("vm import n1 web", client).code == 2
    assert not any(isinstance(body, m.VmImport) and not body.dry_run for body in client.sent)
    assert tool("vm import n1 web", client, answer="y\n").code == 0


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("vm import n1", 2, "which VMs?"),
        ("vm import n1 web --all", 2, "exclude each other"),
        ("vm import n1 --all --storage tape", 2, "shared or local"),
        ("vm import", 2, "vm import needs NODE"),
        ("vm import n1 nobody", 1, "n1 has no VM named nobody"),
        ("vm list n1 n2", 2, "unexpected argument"),
    ],
)
def test_mistakes(line: str, code: int, says: str) -> None:
    ran = tool(line, node_with(foreign("web")))
    assert ran.code == code and says in ran.err


def test_a_node_that_has_none() -> None:
    assert json.loads(tool("vm import n1 --all -o json", node_with()).out) == []
    assert tool("vm import n1 --all", node_with()).code == 0


def test_a_node_that_is_not_heard_ends_it() -> None:
    gone = refused("node-unreachable", "n1 is not heard")
    assert tool("vm import n1 --all --yes", node_with(**{"node.survey": gone})).code == 4
    assert tool("vm import n1 --all --yes", node_with(foreign("web"), **{"vm.import": gone})).code == 4


def test_a_vm_that_is_gone_when_it_is_looked_at_is_refused() -> None:
    answers = iter([{"items": [foreign("web")], "next": ""}, {"items": [], "next": ""}])
    ran = tool("vm import n1 --all --yes", node_with(**{"node.survey": lambda body: next(answers)}))
    assert ran.code == 1 and "it is gone" in ran.out


def test_a_server_that_refuses_after_the_plan() -> None:
    def take(body: m.VmImport) -> Any:
        if not body.dry_run:
            raise refused("exists", "somebody was faster")
        return mutation(None)

    ran = tool("vm import n1 web --yes", node_with(foreign("web"), **{"vm.import": take}))
    assert ran.code == 1 and "somebody was faster" in ran.out


@pytest.mark.parametrize(
    ("states", "code", "says"),
    [
        ([operation("failed", kind="import", outcome="it does not run; nothing was touched")], 1, "not run"),
        ([operation("failed", kind="import", outcome="node-unreachable: late")], 4, "late"),
        ([operation(kind="import")], 5, "running"),
        ([KeyboardInterrupt()], 5, "goes on: chime-tool op wait op-1"),
        ([refused("unreachable", "no answer")], 5, "no answer; operation op-1 goes on"),
    ],
)
def test_ends_of_an_import(states: list[Any], code: int, says: str) -> None:
    client = node_with(foreign("web"))
    client.states = states
    ran = tool("vm import n1 web --yes", client)
    assert ran.code == code and says in ran.out


def test_no_wait_leaves_it_to_the_server() -> None:
    client = node_with(foreign("web"))
    ran = tool("vm import n1 web --yes --no-wait -o json", client)
    assert ran.code == 0 and json.loads(ran.out)[0]["operation"] == "op-1" and not client.waited_s


def test_release_asks_first() -> None:
    plan = mutation(None, plan=["gives web back"], warnings=["nothing starts it again"])
    client = StandIn({"vm.release": plan})
    ran = tool("vm release web", client, answer="n\n")
    assert ran.code == 1 and "gives web back" in ran.err and "nothing starts it again" in ran.err
    assert all(body.dry_run for body in client.sent)
    assert tool("vm release web --yes", client).code == 0


# --- what reaches beyond the VM ---------------------------------------------------------------------------------------

EVIL = (
    "<domain><name>odd</name><memory unit='MiB'>64</memory><devices><emulator>/tmp/e</emulator>"
    "<disk type='file'><source file='/etc/shadow'/></disk></devices></domain>"
)
WARNINGS = ["emulator /tmp/e", "disk /etc/shadow: a path of the system"]


def with_evil(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The node has a domain that reaches beyond itself; the server refuses it without the flag."""
    monkeypatch.setitem(DISKS, "odd", EVIL)

    def take(body: m.VmImport) -> Any:
        if body.name == "odd" and not body.allow_unsafe:
            raise refused("refused-unsafe", f"odd reaches beyond itself: {'; '.join(WARNINGS)}")
        return mutation(None if body.dry_run else operation(kind="import", id="op-1"), plan=["takes it"])

    return node_with(foreign("web"), foreign("odd"), **{"vm.import": take})


def test_h5_a_dry_run_shows_what_a_vm_reaches_beyond_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tool("vm import n1 --dry-run -o json", with_evil(monkeypatch))
    rows = {row["name"]: row for row in json.loads(ran.out)}
    assert (rows["odd"]["state"], rows["odd"]["warnings"]) == ("refused", WARNINGS)
    assert "reaches beyond itself" in rows["odd"]["detail"]
    assert (rows["web"]["state"], rows["web"]["warnings"]) == ("importable", [])
    for warning in WARNINGS:
        assert f"warning: odd reaches beyond itself: {warning}" in ran.err


def test_h5_it_is_imported_with_the_flag_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    client = with_evil(monkeypatch)
    ran = tool("vm import n1 odd --yes", client)
    assert ran.code == 3 and not imports(ran)
    ran = tool("vm import n1 --all --yes", client)
    assert ran.code == 3 and [request.name for request in imports(ran)] == ["web"]
    ran = tool("vm import n1 odd --yes --allow-unsafe", client)
    request = imports(ran)[-1]
    assert ran.code == 0 and request.allow_unsafe and f"warning: odd reaches beyond itself: {WARNINGS[0]}" in ran.err


def test_xml_that_nobody_can_judge_warns_of_nothing_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISKS, "odd", "<domain")
    ran = tool("vm import n1 --dry-run -o json", node_with(foreign("odd")))
    (row,) = json.loads(ran.out)
    assert (row["state"], row["warnings"]) == ("refused", []) and "not well formed" in row["detail"]
