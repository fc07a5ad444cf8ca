"""The one check in front of every start."""

from __future__ import annotations

import msgspec
import pytest

from agentd.core.durable import Durable, Held, Tombstone
from agentd.core.facts import Domain, DomainState, OffReason, Process, VmFacts
from agentd.core.guard import refusal
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
