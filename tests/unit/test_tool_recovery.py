"""`chime-tool recovery show`, and what `status` says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.tool_stand_in import VM_UUID, StandIn, mutation, tool
from wire import messages as m

SETTLED = {
    "version": "0.1.0", "generation": 3, "history": "b2c4", "recovering": False, "behind": "", "recovery": "held-1",
    "waiting_for": [],
    "held_vms": [], "held_nodes": [], "read_only": False, "uptime_s": 60.0, "nodes": 3, "vms": 2, "counters": {},
}  # fmt: skip
WHY = "the restored database wants it stopped"
HELD = {"name": "web-1", "uuid": VM_UUID, "node": "n1", "wants": "stop", "why": WHY}
CASES: dict[str, dict[str, Any]] = {
    "behind": {"recovering": True, "behind": "n2 has an inventory of generation 4", "waiting_for": ["n3"]},
    "recovering": {"recovering": True, "waiting_for": ["n3"], "held_vms": [HELD]},
    "held": {"held_vms": [HELD], "held_nodes": ["n2"]},
    "settled": {},
}
ADD = "chime-tool node add NODE --public-key KEY: add again each node that was added since the backup"
SAYS = {
    "behind": ("n2 has an inventory of generation 4", "waiting for  n3", "stop the older one", "begins a recovery"),
    "recovering": ("waiting for  n3", "web-1", "without them", "begins a recovery"),
    "held": ("held nodes  n2", "web-1  n1    stop", "wants it stopped", "vm start|stop|delete VM", "begins a recovery"),
    "settled": ("nothing is waited for", "chime-tool status"),
}
IN_STATUS = {
    "behind": "recovery    not begun, and this database is behind: n2 has an inventory of generation 4 (chime-tool",
    "recovering": "recovery    under way, waiting for n3 (chime-tool recovery show)",
    "held": "recovery    over, but 1 VM and 1 node are held (chime-tool recovery show)",
    "settled": "recovery    none\n",
}


def _client(state: str) -> StandIn:
    plan = mutation(plan=["begins a recovery"])
    return StandIn({"server.status": SETTLED | CASES[state], "recovery.confirm": plan})


@pytest.mark.parametrize("state", CASES)
def test_e4_it_says_why_who_is_waited_for_what_is_held_and_what_to_do(state: str) -> None:
    ran = tool("recovery show", _client(state))
    assert ran.code == 0 and not ran.err
    assert ran.out.startswith("state")
    words = " ".join(ran.out.split())
    for said in SAYS[state]:
        assert " ".join(said.split()) in words, ran.out
    assert all(body.dry_run for body in ran.sent if isinstance(body, m.RecoveryConfirm))


@pytest.mark.parametrize("state", CASES)
def test_nodes_that_were_added_since_are_to_be_added_again(state: str) -> None:
    assert (ADD in tool("recovery show", _client(state)).out) is (state != "settled")


@pytest.mark.parametrize("state", CASES)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, ""),
        (1, "1 connection was refused, its key is not in this database (nodes or operators that were added since?)"),
        (3, "3 connections were refused, their keys are not in this database (nodes or operators that"),
    ],
)
def test_it_says_that_somebody_knocks_who_is_not_known(state: str, number: int, said: str) -> None:
    status = SETTLED | CASES[state] | {"counters": {"unknown-keys": number}}
    client = StandIn({"server.status": status, "recovery.confirm": mutation(plan=["begins a recovery"])})
    ran = tool("recovery show", client)
    assert ("unknown keys" in ran.out) is (bool(number) and state != "settled")
    assert said in ran.out or state == "settled"
    assert json.loads(tool("recovery show -o json", client).out)["unknown_keys"] == number


def test_what_the_state_means_is_true_however_it_came_about() -> None:
    said = {state: tool("recovery show", _client(state)).out for state in ("behind", "recovering")}
    assert "nodes or the mark beside it show more than this database knows" in said["behind"]
    assert "the database was restored or put back: " in said["recovering"]


@pytest.mark.parametrize("state", CASES)
def test_as_json_it_is_one_document(state: str) -> None:
    document = json.loads(tool("recovery show -o json", _client(state)).out)
    assert document["state"] == state and document["next"]
    assert document["confirm"] == ([] if state == "settled" else ["begins a recovery"])
    assert document["held_vms"] == CASES[state].get("held_vms", [])
    assert document["waiting_for"] == CASES[state].get("waiting_for", [])


@pytest.mark.parametrize("state", CASES)
def test_status_says_it_in_a_line(state: str) -> None:
    assert IN_STATUS[state] in tool("status", _client(state)).out


@pytest.mark.parametrize("yes", ["", " --yes"])
def test_where_nothing_waits_there_is_nothing_to_attest_to_agree_to_or_to_send(yes: str) -> None:
    said = "the server is not recovering, and nothing waits for a word"
    client = StandIn({"recovery.confirm": mutation(plan=[said], about="")})
    ran = tool(f"recovery confirm --comment x{yes}", client)
    assert (ran.code, ran.out, ran.err) == (0, "confirm recovery: nothing to change\n", f"{said}\n")
    assert [body.dry_run for body in ran.sent] == [True]


def test_nothing_is_asked_of_a_server_that_waits_for_nothing() -> None:
    assert [type(body) for body in tool("recovery show", _client("settled")).sent] == [m.ServerStatus]
