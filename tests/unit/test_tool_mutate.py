"""Changes: what is asked first, what waiting shows, and the exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.tool_stand_in import StandIn, mutation, operation, refused, tool
from wire import messages as m
from wire.errors import Unreachable

PLAN = ["stops 12 running VMs on n1: web-1, web-2 and 10 more"]
DESTRUCTIVE = [
    "node drain n1", "node rebuild n1", "node remove n1", "node rekey n1", "vm stop a", "vm reboot a",
    "vm delete a", "operator remove bob", "recovery confirm --comment x",
]  # fmt: skip
VERBS = ["node.drain", "node.rebuild", "node.remove", "node.rekey", "vm.stop", "vm.reboot", "vm.delete",
         "operator.remove", "recovery.confirm", "vm.start", "node.enable"]  # fmt: skip


def _client(**results: Any) -> StandIn:
    return StandIn({verb: mutation(plan=PLAN) for verb in VERBS} | results)


@pytest.mark.parametrize("line", DESTRUCTIVE)
def test_without_a_terminal_a_destructive_command_needs_yes(line: str) -> None:
    ran = tool(line, _client())
    assert ran.code == 2 and not ran.out
    assert ran.err.startswith(PLAN[0] + "\n") and "nothing was changed; add --yes" in ran.err
    assert [body.dry_run for body in ran.sent] == [True]


@pytest.mark.parametrize("line", DESTRUCTIVE)
@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False),
                                                ("", False), ("yess\n", False)])  # fmt: skip
def test_on_a_terminal_it_asks(line: str, answer: str, agreed: bool) -> None:
    ran = tool(line, _client(), answer=answer)
    assert "continue? [y/N] " in ran.err and PLAN[0] in ran.err
    assert [body.dry_run for body in ran.sent] == ([True, False] if agreed else [True])
    assert ran.code == (0 if agreed else 1)
    if agreed:
        assert len({body.key for body in ran.sent}) == 2
    else:
        assert "nothing was changed" in ran.err


@pytest.mark.parametrize("line", [*DESTRUCTIVE, "vm start a", "node enable n1"])
def test_a_dry_run_prints_the_plan_and_changes_nothing(line: str) -> None:
    ran = tool(f"{line} --dry-run", _client())
    assert (ran.code, ran.out) == (0, PLAN[0] + "\n")
    assert [body.dry_run for body in ran.sent] == [True]
    document = json.loads(tool(f"{line} --dry-run -o json", _client()).out)
    assert document["plan"] == PLAN and document["operation"] is None


def test_what_the_server_would_refuse_is_not_asked() -> None:
    client = _client(**{"node.rebuild": refused("no-evidence", "n1: needs evidence: fence or operator")})
    ran = tool("node rebuild n1", client, answer="y\n")
    assert ran.code == 3 and "needs evidence" in ran.err and "continue" not in ran.err
    assert len(ran.sent) == 1


def test_the_question_says_what_is_attested() -> None:
    words = ["node", "drain", "n1", "--evidence", "operator", "--comment", "pulled the plug"]
    ran = tool(words, _client(), answer="y\n")
    assert ran.code == 0
    assert ran.err.index("you attest that n1 is powered off, or was drained on the node itself") < ran.err.index(
        "continue?"
    )
    assert "VMs can run twice and data is lost" in ran.err
    assert ran.sent[-1].comment == "pulled the plug"
    assert "attest" in tool("recovery confirm --comment x", _client(), answer="n\n").err


def test_a_change_that_is_not_destructive_is_sent_at_once() -> None:
    ran = tool("node enable n1", _client())
    assert [body.dry_run for body in ran.sent] == [False]
    assert ran.out == "enable node n1: done\n"
    ran = tool(
        "node enable n1", StandIn({"node.enable": mutation(changed=False, warnings=["n1 is not heard from"])})
    )
    assert (ran.out, ran.err) == ("enable node n1: nothing to change\n", "warning: n1 is not heard from\n")


def _drain(states: list[Any], **kwargs: Any) -> Any:
    line = kwargs.pop("line", "node drain n1 --yes")
    return tool(line, StandIn({"node.drain": mutation(operation())}, states), **kwargs)


def test_it_waits_and_shows_each_change_once() -> None:
    done = operation("succeeded", outcome="2 VMs stopped")
    ran = _drain([operation(), operation(progress=0.6), done])
    assert (ran.code, ran.out) == (0, "drain node n1: done in 4 s: 2 VMs stopped\n")
    assert ran.err.splitlines() == [
        "drain n1: 0 of 2 done, 1 under way, 1 to go",
        "drain n1: stop web-1 running",
    ]
    ran = _drain([operation(), done], answer="")
    assert "drain n1: 0 of 2 done" in ran.err and ran.out.endswith("2 VMs stopped\n")


@pytest.mark.parametrize(("state", "outcome", "code"), [
    ("failed", "the agent could not stop web-1", 1),
    ("failed", "no-room: web-1 fits on no node", 1),
    ("failed", "refused-unsafe: web-1 may still run on n1", 3),
    ("failed", "no-evidence: n1 came back", 3),
    ("failed", "node-unreachable: n1", 4),
    ("failed", "", 1),
    ("cancelled", "by ann", 1),
])  # fmt: skip
def test_an_operation_that_fails(state: str, outcome: str, code: int) -> None:
    ran = _drain([operation(state, outcome=outcome)])
    assert (ran.code, ran.out) == (code, "")
    last = ran.err.splitlines()[-1]
    assert last.startswith(f"chime-tool: drain node n1: {state} in 4 s: {outcome or 'no reason given'}")
    assert "op-7" in last
    ran = _drain([operation(state, outcome=outcome)], line="node drain n1 --yes -o json")
    assert ran.code == code and json.loads(ran.out)["operation"]["state"] == state


@pytest.mark.parametrize(("states", "why"), [
    ([operation()], "still running after 9 s"),
    ([operation(), KeyboardInterrupt()], "interrupted"),
])  # fmt: skip
def test_what_still_runs_at_the_end_is_exit_code_5_with_a_hint(states: list[Any], why: str) -> None:
    ran = _drain(states, line="node drain n1 --yes --timeout 9")
    assert (ran.code, ran.out) == (5, "")
    last = ran.err.splitlines()[-1]
    assert why in last
    assert last.endswith(
        "op-7 goes on: follow it with chime-tool op wait op-7, cancel it with chime-tool op cancel op-7"
    )
    ran = _drain(states, line="node drain n1 --yes --timeout 9 -o json")
    assert ran.code == 5 and json.loads(ran.out)["operation"]["state"] == "running"


def test_losing_the_server_while_waiting_names_the_operation() -> None:
    ran = _drain([operation(), Unreachable("no answer")])
    assert ran.code == 4 and "no answer; op-7 goes on" in ran.err


def test_no_wait() -> None:
    client = StandIn({"node.drain": mutation(operation())})
    ran = tool("node drain n1 --yes --no-wait", client)
    assert (ran.code, ran.out) == (0, "drain node n1: begun, operation op-7\n")
    assert not client.waited_s
    assert json.loads(tool("node drain n1 --yes --no-wait -o json", client).out)["operation"]["id"] == "op-7"


def test_op_wait_has_the_codes_of_the_operation() -> None:
    def wait(shown: Any, states: list[Any]) -> Any:
        return tool("op wait op-7", StandIn({"op.show": {"operation": shown}}, states))

    assert wait(operation("succeeded"), []).code == 0
    assert wait(operation(), [operation("succeeded")]).code == 0
    assert wait(operation("failed", outcome="no-evidence: x"), []).code == 3
    assert wait(operation(), [operation("failed")]).code == 1
    assert wait(operation(), [operation()]).code == 5
    assert tool("op wait op-7", StandIn({"op.show": refused("not-found")})).code == 1


def test_op_cancel_is_done_when_it_is_cancelled() -> None:
    ran = tool("op cancel op-7", StandIn({"op.cancel": mutation(operation("cancelled"))}))
    assert (ran.code, ran.out) == (0, "cancel operation op-7: cancelled\n")
    ran = tool("op cancel op-7 --no-wait", StandIn({"op.cancel": mutation(operation())}))
    assert ran.code == 0 and ran.out == "cancel operation op-7: asked for: chime-tool op wait op-7\n"


def test_op_cancel_waits_until_it_has_ended() -> None:
    def cancel(states: list[Any], line: str = "op cancel op-7") -> Any:
        return tool(line, StandIn({"op.cancel": mutation(operation(outcome="cancelling"))}, states))

    ran = cancel([operation(outcome="cancelling"), operation("cancelled", outcome="cancelled by ann")])
    assert (ran.code, ran.out) == (0, "cancel operation op-7: cancelled by ann\n")
    assert ran.err.splitlines()[:2] == [
        "op-7 is being cancelled",
        "drain n1: cancelling, 0 of 2 done, 1 under way, 1 to go",
    ]
    ran = cancel([operation("succeeded", outcome="web-1 runs on n2")])
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("cancel operation op-7: too late, it has ended: succeeded: web-1 runs on n2\n")
    ran = cancel([operation("cancelled")], "op cancel op-7 -o json")
    assert ran.code == 0 and json.loads(ran.out)["operation"]["state"] == "cancelled"
    ran = cancel([operation(), KeyboardInterrupt()])
    assert ran.code == 5 and "op-7 goes on" in ran.err
    assert tool("op cancel op-7", StandIn({"op.cancel": mutation(operation("failed"), changed=False)})).code == 1
    planned = StandIn({"op.cancel": mutation(plan=["cancels op-7"])})
    assert tool("op cancel op-7 --dry-run", planned).out == "cancels op-7\n"


def test_the_default_time_out_is_five_minutes() -> None:
    client = StandIn({"node.drain": mutation(operation())}, [operation("succeeded")])
    tool("node drain n1 --yes", client)
    assert client.waited_s == [300.0]


def test_the_bodies_that_are_sent_are_those_that_were_planned() -> None:
    ran = tool("vm stop a --graceful 7 --force --yes", _client())
    first, second = ran.sent
    assert isinstance(first, m.VmStop) and (first.vm, first.graceful_s, first.force) == ("a", 7.0, True)
    assert (second.vm, second.graceful_s, second.force) == ("a", 7.0, True)


@pytest.mark.parametrize("line", ["op cancel op-7", "op cancel op-7 --dry-run", "op cancel op-7 -o json"])
def test_op_cancel_says_what_stays(line: str) -> None:
    stays = "the desired state of web-1 stays stopped: chime-tool vm start web-1 changes it"
    ran = tool(line, StandIn({"op.cancel": mutation(operation("cancelled"), warnings=[stays])}))
    assert ran.code == 0
    if line.endswith("json"):
        assert json.loads(ran.out)["warnings"] == [stays]
    else:
        assert ran.err == f"warning: {stays}\n"
