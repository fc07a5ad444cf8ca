"""The hypervisor as a worker of an agent calls it by `agentd/acting.py`, in its own time: what a real call waits for
only begins here, and its end is told later.

Rule: whether something may be done, and what an error means, is said by `acting` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentd import acting
from agentd.core import effects as fx
from agentd.core.facts import VmFacts
from agentd.hypervisor import HypervisorError
from tests.sim.transfer import Transfer
from wire.messages import Assignment, MigrationOrder, MigrationProgress

if TYPE_CHECKING:
    from tests.sim.host import Agent, Host

CREATE_S = (0.05, 3.0)  # less than AgentPolicy.settle_s
POLL_S = 0.2  # how often a settling migration, or a target that hangs, is looked at


def late_act(what: str, uuid: str) -> fx.Overdue:
    """What the core hears when an action on the VM does not return."""
    return fx.Overdue(fx.Call.ACT, f"{what} {uuid}", uuid)


class Calls:
    """The calls of one action. What has no time of its own is done at once."""

    def __init__(self, agent: Agent, act: fx.Act) -> None:
        self._agent, self._act, self._host = agent, act, agent.host
        self._hypervisor, self._engine = agent.host.hypervisor, agent.host.engine
        self._goes_on = False

    def carry_out(self) -> None:
        """Does it. Its agent hears what came of it, now or later."""
        core, node = self._agent.core, self._host.name
        self._ended(acting.carry_out(self._act, self, core.may, node, self._agent.progressed))

    def _ended(self, outcome: acting.Outcome) -> None:
        if not self._goes_on:
            self._agent.acted(self._act, outcome)

    def _again(self, call: Callable[[], None]) -> None:
        """One more part of what has begun."""
        self._goes_on = False
        self._ended(acting.outcome_of(call))

    # --- done at once -------------------------------------------------------------------------------------------------

    def inspect(self, uuid: str) -> VmFacts:
        """Fresh facts."""
        return self._hypervisor.inspect(uuid)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            self._host.oracle.agent_acts(self._host, self._act)
            getattr(self._hypervisor, name)(*args)

        return call

    def adopt(self, vm: Assignment) -> None:
        """A person's VM becomes Chime's."""
        self._host.oracle.agent_acts(self._host, self._act)
        self._hypervisor.adopt(vm)
        self._host.oracle.agent_took_over(self._host, vm.uuid)

    # --- a start ------------------------------------------------------------------------------------------------------

    def start(self, uuid: str) -> None:
        """The order is on its way to libvirt, which makes the process in its own time."""
        self._host.oracle.agent_acts(self._host, self._act)
        if self._host.hangs_in_start:
            self._host.hangs_in_start = False
            self._host.hang()
        self._goes_on, looked_at = True, self._engine.now
        self._agent.call(late_act("start of", uuid), lambda: self._again(lambda: self._create(uuid, looked_at)))

    def _create(self, uuid: str, looked_at: float) -> None:
        self._hypervisor.begin_start(uuid)
        self._goes_on, boots = True, self._hypervisor.boots
        self._engine.after(
            self._engine.rng.uniform(*CREATE_S), self._again, lambda: self._started(uuid, boots, looked_at)
        )

    def _started(self, uuid: str, boots: int, looked_at: float) -> None:
        self._hypervisor.finish_start(uuid, boots)
        vm = self._act.vm
        self._host.tell(f"qemu of {uuid} begins, epoch {vm.epoch if vm else 0}", uuid)
        self._host.oracle.started(self._host, uuid, looked_at)

    # --- a migration --------------------------------------------------------------------------------------------------

    def migrate(
        self,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        _origin: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """libvirt copies it, whoever waits for that."""
        Transfer(self._host, uuid, order, attempt, on_progress, self._transferred)
        self._goes_on = True

    def _transferred(self, error: str) -> None:
        self._agent.acted(self._act, acting.Outcome(error))

    def settle(self, uuid: str) -> None:
        """Ends when libvirt migrates the VM no more."""
        if uuid in self._hypervisor.moves:
            self._goes_on = True
            late = late_act("settling of", uuid)
            self._engine.after(POLL_S, self._agent.call, late, lambda: self._again(lambda: self.settle(uuid)))
        else:
            self._hypervisor.settle(uuid)

    def hand_over(self, uuid: str, attempt: str, address: str) -> None:
        """The order reaches the target's libvirt, which may hang, and carry it out much later."""
        self._hypervisor.reach(address)
        target = self._host.at(address)
        assert target is not None
        self._hand_over_there(uuid, attempt, target, target.boots)

    def _hand_over_there(self, uuid: str, attempt: str, target: Host, boots: int) -> None:
        """libvirt of the target has the order, whatever becomes of the source."""
        if target.hung is not None and target.boots == boots:
            self._goes_on = True
            self._engine.after(
                POLL_S, self._again, lambda: self._hand_over_there(uuid, attempt, target, boots)
            )
            return
        if not target.powered or target.boots != boots:
            raise HypervisorError("the target went down")
        target.hypervisor.take_over_copy(uuid, attempt)
