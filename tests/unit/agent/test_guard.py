"""The one check in front of every start."""

from __future__ import annotations

import random
from typing import cast

import msgspec
import pytest

from agentd.core.agent import AgentCore, AgentPolicy
from agentd.core.budget import RestartPolicy
from agentd.core.durable import Attempt, Durable, Held, Tombstone
from agentd.core.effects import Act, Action
from agentd.core.facts import Domain, DomainState, OffReason, Process, VmFacts
from agentd.core.guard import UNGUARDED, may, refusal
from agentd.core.reporting import Outbox
from agentd.core.vms import Vms
from tests.unit.agent.server import VM_1, assignment
from wire.messages import NodeOrder
from wire.types import AdminState, Desired

HELD = Held(vm=assignment(epoch=3))
GOOD = Durable(node="n1", confirmed_boot="b", held={VM_1: HELD})
OFF = Domain(VM_1, "vm", DomainState.OFF, epoch=3)
FACTS = VmFacts(VM_1, True, OFF)
replace = msgspec.structs.replace


def held(**changes: object) -> Durable:
    return replace(GOOD, held={VM_1: replace(HELD, **changes)})


def test_nothing_objects_to_a_vm_that_should_run_and_is_off() -> None:
    assert refusal(GOOD, VM_1, "b", FACTS) is None


REFUSED = {
    "owner elsewhere": (replace(GOOD, held={}), FACTS),
    "released in this epoch": (replace(GOOD, tombstones={VM_1: Tombstone(epoch=3)}), FACTS),
    "released long ago and done": (replace(GOOD, tombstones={VM_1: Tombstone(epoch=9, done=True, acked=True)}), FACTS),
    "not confirmed": (replace(GOOD, confirmed_boot=""), FACTS),
    "confirmed in another boot": (replace(GOOD, confirmed_boot="a"), FACTS),
    "held back": (replace(GOOD, order=NodeOrder(admin_state=AdminState.ENABLED, drain_serial=0, hold=True)), FACTS),
    "drained": (replace(GOOD, order=NodeOrder(admin_state=AdminState.DRAINED, drain_serial=1)), FACTS),
    "drained on the node": (replace(GOOD, local_drain=True), FACTS),
    "should be stopped": (held(vm=assignment(epoch=3, desired=Desired.STOPPED)), FACTS),
    "should be deleted": (held(vm=assignment(epoch=3, desired=Desired.DELETED)), FACTS),
    "halted": (held(halted_serial=1), FACTS),
    "failed": (held(failed_serial=1), FACTS),
    "moved": (held(moved_serial=1), FACTS),
    "libvirt unknown": (GOOD, VmFacts(VM_1, False)),
    "libvirt unknown, last seen off": (GOOD, VmFacts(VM_1, False, OFF)),
    "not defined": (GOOD, VmFacts(VM_1, True)),
    "newer domain": (GOOD, VmFacts(VM_1, True, replace(OFF, epoch=4))),
    "left by migration": (GOOD, VmFacts(VM_1, True, replace(OFF, reason=OffReason.MIGRATED))),
    "process outside": (GOOD, VmFacts(VM_1, True, OFF, (Process(VM_1, 7, "S"),))),
    "process in disk sleep": (GOOD, VmFacts(VM_1, True, OFF, (Process(VM_1, 7, "D"),))),
    **{
        f"libvirt says {state}": (GOOD, VmFacts(VM_1, True, replace(OFF, state=state)))
        for state in DomainState
        if state != DomainState.OFF
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_clause_alone_refuses(case: str) -> None:
    durable, facts = REFUSED[case]
    assert refusal(durable, VM_1, "b", facts)


def test_lower_release_does_not_object() -> None:
    assert refusal(replace(GOOD, tombstones={VM_1: Tombstone(epoch=2)}), VM_1, "b", FACTS) is None


def test_start_asked_again_clears_what_ended_it() -> None:
    ended = replace(HELD, halted_serial=1, failed_serial=1, moved_serial=1)
    again = replace(GOOD, held={VM_1: ended.assigned(assignment(epoch=3, start_serial=2))})
    assert refusal(again, VM_1, "b", FACTS) is None


NOTHING = Durable(node="n1")  # this node owns no VM
UNSEEN = VmFacts(VM_1, False)
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize("action", Action)
def test_every_action_is_guarded_or_listed_as_needing_no_guard(action: Action) -> None:
    is_guarded = may(Act(VM_1, action, 1), NOTHING, "b", UNSEEN, NONE) == "this node does not own the VM"
    assert is_guarded == (action in {Action.START, Action.RESUME, Action.MIGRATE})
    assert is_guarded != (action in UNGUARDED)


def test_what_needs_no_guard_is_not_hindered() -> None:
    assert {may(Act(VM_1, action, 1), NOTHING, "b", UNSEEN, NONE) for action in UNGUARDED} == {None}


def test_an_unknown_action_is_refused_whatever_is_owned() -> None:
    refused = may(Act(VM_1, cast(Action, "teleport"), 1), GOOD, "b", FACTS, NONE)
    assert refused == "the guard has no rule for teleport: this is a bug in Chime"


def test_each_guarded_action_has_its_own_rule() -> None:
    attempt = Attempt(id="a1", target="n2", address="")
    paused = VmFacts(VM_1, True, replace(OFF, state=DomainState.PAUSED, attempt="a1"), (Process(VM_1, 7, "S"),))
    arrived, leaving = held(vm=assignment(epoch=3, arrival="a1")), held(attempt=attempt)
    start, resume = Act(VM_1, Action.START, 1), Act(VM_1, Action.RESUME, 1)
    migrate = Act(VM_1, Action.MIGRATE, 1, attempt=attempt)
    assert may(start, GOOD, "b", FACTS, NONE) is None and may(start, arrived, "b", paused, NONE)
    assert may(resume, arrived, "b", paused, NONE) is None and may(resume, GOOD, "b", FACTS, NONE)
    assert may(migrate, leaving, "b", UNSEEN, NONE) is None and may(migrate, GOOD, "b", FACTS, NONE)
    assert may(migrate, leaving, "b", UNSEEN, {"a1"}) == "it was cancelled before it began"
    assert may(Act(VM_1, Action.MIGRATE, 1), leaving, "b", FACTS, NONE) == "the attempt is over"


def test_a_resume_that_the_guard_would_refuse_is_not_tried() -> None:
    """It has come here and is paused, but more than one process has its UUID."""
    paused = replace(OFF, state=DomainState.PAUSED, attempt="a1")
    processes = (Process(VM_1, 7, "S"), Process(VM_1, 8, "S"))
    for count, tried in ((1, [Action.RESUME]), (2, [])):
        vms = Vms("b", RestartPolicy(), Outbox("life1"))
        vms.connected(0.0)
        vms.facts[VM_1] = VmFacts(VM_1, True, paused, processes[:count])
        _, acts, _ = vms.plan_all(held(vm=assignment(epoch=3, arrival="a1")), 1.0)
        assert [act.action for act in acts] == tried


def test_the_agent_asks_by_what_is_saved_and_what_was_cancelled() -> None:
    attempt = Attempt(id="a1", target="n2", address="")
    core = AgentCore(held(attempt=attempt), "b", "life1", AgentPolicy(), random.Random(1), 0.0)
    migrate = Act(VM_1, Action.MIGRATE, 1, attempt=attempt)
    assert core.may(migrate, FACTS) is None
    assert core.may(Act(VM_1, Action.START, 1), FACTS) == "it is being migrated away"
    core.migrations.cancel("a1")
    assert core.may(migrate, FACTS) == "it was cancelled before it began"
    core.durable = NOTHING
    assert core.may(Act(VM_1, Action.START, 1), FACTS) == "this node does not own the VM"
