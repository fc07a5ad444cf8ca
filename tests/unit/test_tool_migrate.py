"""`vm migrate` and `node evacuate`: their options, and what is shown of VMs that are being copied."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from tests.unit.tool_stand_in import StandIn, mutation, operation, tool
from tools import progress
from wire import messages as m
from wire.types import OnTimeout, Tls

LINES = ["vm migrate web-1", "node evacuate n1"]
VERBS = {"vm.migrate": mutation(plan=["moves web-1 to n2"]), "node.evacuate": mutation(plan=["moves 20 VMs"])}


def _step(name: str, state: str, remaining_mib: int | None = None, detail: str = "") -> dict[str, Any]:
    copied = None
    if remaining_mib is not None:
        copied = {"total_mib": 2000, "remaining_mib": remaining_mib, "rate_mib_s": 112, "iteration": 3,
                  "downtime_ms": 45, "elapsed_s": 65.0}  # fmt: skip
    return {"name": name, "state": state, "detail": detail, "progress": copied}


def _evacuation(*steps: dict[str, Any], state: str = "running", outcome: str = "") -> dict[str, Any]:
    return operation(state, kind="evacuate", steps=list(steps), outcome=outcome)


def _drawn(shown: dict[str, Any], columns: int = 80, lines: int = 24) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=columns, height=lines, color_system=None, force_terminal=True)
    console.print(progress.display(shown, 72.0, columns, lines))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES)
def test_every_option_reaches_the_request(line: str) -> None:
    ran = tool(f"{line} --to n2 --network 10.2.0.0/24 --bandwidth 100 --no-auto-converge --tls on "
               "--migration-timeout 5m --on-timeout force --with-local-disks --yes", StandIn(VERBS))  # fmt: skip
    assert ran.code == 0, ran.err
    assert [body.dry_run for body in ran.sent] == [True, False]
    for body in ran.sent:
        assert (body.to, body.network) == ("n2", "10.2.0.0/24")
        assert body.options == m.MigrationOptions(
            bandwidth_mib_s=100, auto_converge=False, tls=Tls.ON, timeout_s=300.0,
            on_timeout=OnTimeout.FORCE, local_disks=True)  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_without_options_they_are_those_of_the_protocol(line: str) -> None:
    body = tool(f"{line} --yes", StandIn(VERBS)).sent[-1]
    assert (body.to, body.network, body.options) == (None, "", m.MigrationOptions())


BAD = [
    ("--tls maybe", "--tls 'maybe': allowed are auto, on, off"),
    ("--on-timeout wait", "--on-timeout 'wait': allowed are cancel, force"),
    ("--bandwidth fast", "--bandwidth 'fast': give a whole number"),
    ("--bandwidth -1", "--bandwidth '-1': give a whole number"),
    ("--migration-timeout 0", "--migration-timeout 0: more than 0 seconds"),
    ("--migration-timeout 90000", "migration-timeout 90000.0: expected a number <= 86400"),
    ("--migration-timeout soon", "--migration-timeout 'soon': give seconds"),
    ("--to n/2", "to 'n/2': expected text of at most 63"),
    ("--network=", "--network is empty"),
    ("--network a --network b", "--network is given twice"),
    ("--timeout 0", "--timeout 0: more than 0 seconds"),
    ("--bandwith 5", "unknown option --bandwith"),
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("options", "said"), BAD)
def test_a_bad_value_is_refused_before_anything_is_sent(line: str, options: str, said: str) -> None:
    ran = tool(f"{line} {options}")
    assert (ran.code, ran.out, ran.sent) == (2, "", [])
    assert said in ran.err and ran.err.count("\n") == 1


def test_a_vm_has_a_priority() -> None:
    client = StandIn({"vm.create": mutation()})
    assert tool("vm create a --vcpus 1 --memory 1G --priority 7", client).sent[-1].spec.priority == 7
    assert tool("vm create a --vcpus 1 --memory 1G", client).sent[-1].spec.priority == 0
    ran = tool("vm create a --vcpus 1 --memory 1G --priority 1001")
    assert ran.code == 2 and "priority 1001: expected a whole number <= 1000" in ran.err


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("states", "code"), [
    ([_evacuation(state="succeeded")], 0),
    ([_evacuation(state="failed", outcome="web-1 stays on n1")], 1),
    ([_evacuation(state="failed", outcome="node-unreachable: n1")], 4),
    ([_evacuation(state="failed", outcome="locked: n1 is being drained")], 3),
    ([_evacuation(state="cancelled", outcome="cancelled by bob")], 1),
    ([_evacuation()], 5),
    ([_evacuation(), KeyboardInterrupt()], 5),
])  # fmt: skip
def test_exit_codes(line: str, states: list[Any], code: int) -> None:
    begun = mutation(_evacuation())
    client = StandIn({"vm.migrate": begun, "node.evacuate": begun}, states)
    assert tool(f"{line} --yes", client).code == code
    assert client.waited_s == [3600.0]
    ran = tool(f"{line} --yes -o json --timeout 7", client)
    assert ran.code == code and set(json.loads(ran.out)) == {"operation", "changed", "warnings", "plan"}
    assert client.waited_s[-1] == 7.0


def test_a_failed_evacuation_names_the_vms_that_stay() -> None:
    steps = [_step("web-1", "done"), _step("web-2", "failed", detail="the CPU\nof n2"), _step("web-3", "failed")]
    begun = mutation(_evacuation(*steps, state="failed", outcome="2 of 3 VMs stay on n1"))
    ran = tool("node evacuate n1 --yes", StandIn({"node.evacuate": begun}))
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "web-2: the CPU of n2",
        "chime-tool: evacuate node n1: failed in 4 s: 2 of 3 VMs stay on n1 (operation op-7)",
    ]


# --- where there is no terminal -----------------------------------------------------------------------------------


def test_a_log_gets_quarters_and_not_seconds() -> None:
    states = [_evacuation(_step("web-1", "running", 2000 - copied), _step("web-2", "pending"))
              for copied in range(0, 2000, 20)]  # fmt: skip
    done = [_step("web-1", "done"), _step("web-2", "waiting", detail="no room")]
    states += [_evacuation(*done), _evacuation(*done, outcome="cancelling"), _evacuation(*done, state="succeeded")]
    ran = tool("op wait op-7", StandIn({"op.show": {"operation": states[0]}}, states))
    assert ran.err.splitlines() == [
        "evacuate n1: 0 of 2 migrated, 1 under way, 1 to go",
        "evacuate n1: web-1 running, 0 % copied",
        "evacuate n1: web-1 running, 25 % copied",
        "evacuate n1: web-1 running, 50 % copied",
        "evacuate n1: web-1 running, 75 % copied",
        "evacuate n1: web-1 done: 1 of 2 migrated",
        "evacuate n1: web-2 waiting (no room)",
        "evacuate n1: cancelling, 1 of 2 migrated, 1 waiting",
    ]
    assert (ran.code, ran.out) == (0, "evacuate n1: done in 4 s\n")


def test_a_guest_that_changes_its_memory_adds_no_lines() -> None:
    lines = progress.Lines()
    seen = [lines.new(_evacuation(_step("web-1", "running", left_mib))) for left_mib in (900, 1100, 900, 1100)]
    assert [len(new) for new in seen] == [2, 0, 0, 0]


def test_a_step_that_is_being_cancelled_shows_in_the_line_for_the_whole() -> None:
    shown = _evacuation(_step("web-1", "running", 900, "cancelling; to n2"), _step("web-2", "done"))
    whole = "evacuate n1: cancelling, 1 of 2 migrated, 1 under way"
    assert progress.Lines().new(shown)[0] == whole and _drawn(shown)[0].startswith(whole)


def test_steps_of_the_same_name_are_told_apart() -> None:
    lines, shown = progress.Lines(), _evacuation(_step("on n1", "done"), _step("on n1", "running"))
    assert len(lines.new(shown)) == 3 and lines.new(shown) == []


def test_an_operation_without_steps_has_a_line_too() -> None:
    assert progress.Lines().new(_evacuation()) == ["evacuate n1: running"]


# --- on a terminal ------------------------------------------------------------------------------------------------


def test_a_bar_for_each_vm_that_is_copied_and_a_line_for_the_whole() -> None:
    steps = [
        _step("web-1", "done"),
        _step("web-2", "running", 500),
        _step("web-3", "failed", detail="no avx512f"),
        _step("web-4", "waiting", detail="no\x1b[2J room"),
        _step("web-5", "pending"),
    ]
    whole, failed, head, bar, waiting = _drawn(_evacuation(*steps), 90)
    assert whole == "evacuate n1: 1 of 5 migrated, 1 failed, 1 under way, 1 waiting, 1 to go (1 min 12 s)"
    assert failed == "web-3  failed: no avx512f"
    assert head.split() == ["VM", "COPIED", "LEFT", "RATE", "ITERATION", "DOWNTIME", "TIME"]
    assert bar.startswith("web-2  ━━━") and " ".join(bar.split()).endswith("75 % 500 MiB 112 MiB/s 3 45 ms 1 min 05 s")
    assert waiting.startswith("web-4  waiting: no") and "\x1b" not in waiting


@pytest.mark.parametrize("columns", [30, 40, 52, 60, 75, 80, 120, 200])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5, 8, 24])
@pytest.mark.parametrize("number", [1, 3, 20, 200])
def test_it_is_never_larger_than_the_terminal(columns: int, lines: int, number: int) -> None:
    for states in (["running"], ["waiting"], ["failed"], ["failed", "running", "waiting", "done", "pending"]):
        steps = [
            _step(f"database-{i}-with-a-long-name", states[i % len(states)], i if i % 2 else None, "d" * 99)
            for i in range(number)
        ]
        drawn = _drawn(_evacuation(*steps), columns, lines)
        assert len(drawn) <= lines and max(map(len, drawn)) <= columns, "\n".join(drawn)
        assert drawn[0].startswith("evacuate n1: ")


def test_what_does_not_fit_is_counted() -> None:
    steps = [_step(f"bad-{i}", "failed", detail="x") for i in range(9)]
    steps += [_step(f"web-{i}", "running", 100) for i in range(30)] + [_step("web-99", "waiting")]
    drawn = _drawn(_evacuation(*steps), lines=16)
    assert "and 5 more failed: chime-tool op show op-7" in drawn
    assert len(drawn) == 16 and drawn[-1] == "and 22 more are being copied"
    assert len([line for line in drawn if line.startswith("web-")]) == 8


def test_a_copy_that_libvirt_says_nothing_of_yet_is_at_nought() -> None:
    step = _step("web-1", "running", 0)
    step["progress"] = dict.fromkeys(step["progress"], 0)
    assert "0 %" in _drawn(_evacuation(step))[-1]


# --- op show ------------------------------------------------------------------------------------------------------


def _shown(line: str, *steps: dict[str, Any], **how: Any) -> Any:
    return tool(line, StandIn({"op.show": {"operation": _evacuation(*steps)}}), **how)


def test_op_show_has_columns_for_what_is_copied() -> None:
    steps = [_step("web-1", "done"), _step("web-2", "running", 500, "to n2")]
    rows = _shown("op show op-7", *steps).out.split("\n\n")[1].splitlines()
    assert rows[0].split() == ["STEP", "STATE", "COPIED", "LEFT", "DETAIL"]
    assert rows[1].split() == ["web-1", "done", "-", "-", "-"]
    assert rows[2].split("  ")[-1] == "to n2" and "75 %" in rows[2] and "500 MiB" in rows[2]
    wide = _shown("op show op-7 -o wide", *steps).out
    assert "112 MiB/s" in wide and "45 ms" in wide and "1 min 05 s" in wide and "ITERATION" in wide
    document = json.loads(_shown("op show op-7 -o json", *steps).out)
    assert document["operation"]["steps"][1]["progress"]["remaining_mib"] == 500
    assert "COPIED" not in _shown("op show op-7", steps[0]).out


def test_op_show_with_watch_shows_bars_on_a_terminal() -> None:
    step = _step("web-2", "running", 500)
    ran = _shown("op show op-7 --watch", step, out_terminal=True, environ={"NO_COLOR": "1"})
    assert "evacuate n1: 0 of 1 migrated, 1 under way\n" in ran.out and "━" in ran.out and "75 %" in ran.out
    assert "━" not in _shown("op show op-7 --watch", step).out
    assert "━" not in _shown("op show op-7", step, out_terminal=True).out
