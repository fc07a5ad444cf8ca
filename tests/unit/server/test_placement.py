"""Each reason alone keeps a VM off a node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chimed.core.rules import placement
from chimed.core.state import rows as r
from chimed.core.state.turn import Policy
from tests.unit.server.world import key_of
from wire.messages import VmSpec
from wire.types import AdminState, Health, VirtType

NODE = r.Node(name="n1", public_key=key_of("n1"), health=Health.NORMAL, vcpus=2, memory_mib=4096 + 512)
SPEC = VmSpec(vcpus=2, memory_mib=1024)
POLICY = Policy(vcpu_overcommit=1.0)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int], bool]] = {
    "is disabled": ({"admin_state": AdminState.DISABLED}, {}, (0, 0), True),
    "is error (agent-lost)": ({"health": Health.ERROR, "reasons": ("agent-lost",)}, {}, (0, 0), True),
    "is unreachable": ({"health": Health.UNREACHABLE}, {}, (0, 0), True),
    "has no session with the server yet": ({}, {}, (0, 0), False),
    "is locked by op-1": ({"lock": "op-1"}, {}, (0, 0), True),
    "has no KVM": ({}, {"virt_type": VirtType.KVM}, (0, 0), True),
    "has 1023 MiB of memory left, 1024 are needed": ({}, {}, (0, 3073), True),
    "has 0 MiB of memory left, 1024 are needed": ({}, {}, (0, 9000), True),
    "has 1 vCPU left, 2 are needed": ({}, {}, (1, 0), True),
    "has 0 vCPUs left, 2 are needed": ({}, {}, (3, 0), True),
}


def why_not(node: dict[str, Any], spec: dict[str, Any], used: tuple[int, int], in_session: bool) -> str | None:
    changed = msgspec.structs.replace(NODE, **node)
    room = placement.room_of(changed, used, POLICY)
    return placement.objection(changed, room, in_session, msgspec.structs.replace(SPEC, **spec))


@pytest.mark.parametrize("why", CASES)
def test_each_reason_alone_keeps_a_vm_off(why: str) -> None:
    assert why_not(*CASES[why]) == why


def test_the_last_room_may_be_used() -> None:
    assert why_not({}, {}, (0, 3072), True) is None


def test_nodes_that_cannot_take_it_are_named_and_the_best_of_the_others_is_chosen() -> None:
    def candidate(name: str, used_mib: int, **changes: Any) -> placement.Candidate:
        node = msgspec.structs.replace(NODE, name=name, **changes)
        return node, placement.room_of(node, (0, used_mib), POLICY), True

    full, off = candidate("full", 4000), candidate("off", 0, admin_state=AdminState.DISABLED)
    choice = placement.choose(SPEC, [full, candidate("b", 1024), candidate("c", 0), candidate("a", 0), off])
    assert choice.node == "a" and choice.objections.keys() == {"full", "off"}
    assert placement.choose(SPEC, [full, off]).why_not() == (
        "full has 96 MiB of memory left, 1024 are needed; off is disabled"
    )
    assert placement.choose(SPEC, []).why_not() == "there is no node"
    many = placement.choose(SPEC, [candidate(f"n{i}", 4096) for i in range(12)])
    assert many.node is None and many.why_not().endswith("; and 2 more")
