"""One thing is done to a VM: the guard is asked, the hypervisor is called, and what came of it is put into words.

The workers, the unit tests' node and the simulator all act by `carry_out`: what is proven is what ships. Rules: the
guard is asked with facts inspected in this moment, and nothing is called that it refuses; it is asked for whatever is
not listed as needing none, also for what nobody knows. Nothing is decided here, and no thread is started. What is no
`HypervisorError` is a bug, and is raised.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from agentd.core import effects as fx
from agentd.core import guard as rules
from agentd.core.facts import VmFacts
from agentd.hypervisor import Hypervisor, HypervisorError, InvalidVm, NoArrival
from wire.messages import Assignment, MigrationOrder, MigrationProgress

Guard = Callable[[fx.Act, VmFacts], str | None]
"""Why not, or None."""

Tell = Callable[[fx.Progressed], None]
"""Where the progress of a migration goes, from any thread."""


class Outcome(Struct, frozen=True):
    """What came of it, as in `effects.Acted`. All empty: it was done."""

    error: str = ""
    invalid: bool = False
    refused: str = ""


def carry_out(act: fx.Act, hypervisor: Hypervisor, guard: Guard, node: str, tell: Tell) -> Outcome:
    """Does it, unless the guard refuses. Returns when the hypervisor does. `node`: the name of this one."""
    refused = _refusal(act, hypervisor, guard)
    return Outcome(refused=refused) if refused else outcome_of(lambda: _call(act, hypervisor, node, tell))


def outcome_of(call: Callable[[], None]) -> Outcome:
    """What came of a call of the hypervisor."""
    try:
        call()
    except (InvalidVm, NoArrival) as problem:
        return Outcome(str(problem), invalid=True)
    except HypervisorError as problem:
        return Outcome(str(problem))
    return Outcome()


def acted(act: fx.Act, outcome: Outcome, facts: VmFacts) -> fx.Acted:
    """What the core hears. `facts`: seen afterwards."""
    return fx.Acted(act.uuid, act.action, act.token, facts, outcome.error, outcome.invalid, outcome.refused)


def _refusal(act: fx.Act, hypervisor: Hypervisor, guard: Guard) -> str:
    if act.action in rules.UNGUARDED:
        return ""  # and no look at the host
    return guard(act, hypervisor.inspect(act.uuid)) or ""


def _call(act: fx.Act, hypervisor: Hypervisor, node: str, tell: Tell) -> None:
    if act.action == fx.Action.MIGRATE:
        _migrate(act, hypervisor, node, tell)
    else:
        _CALLS[act.action](hypervisor, act)


def _migrate(act: fx.Act, hypervisor: Hypervisor, node: str, tell: Tell) -> None:
    attempt = act.attempt
    if attempt is None:
        raise HypervisorError("no attempt to migrate by")

    def progressed(progress: MigrationProgress) -> None:
        tell(fx.Progressed(act.uuid, attempt.id, progress))

    order = MigrationOrder(target=attempt.target, address=attempt.address, options=attempt.options)
    hypervisor.migrate(act.uuid, order, attempt.id, node, progressed)


def _define(hypervisor: Hypervisor, act: fx.Act) -> None:
    vm: Assignment | None = act.vm
    if vm is None:
        raise HypervisorError(f"nothing to {act.action}")
    if act.action == fx.Action.ADOPT:
        hypervisor.adopt(vm)
    else:
        hypervisor.define(vm)


def _hand_over(hypervisor: Hypervisor, act: fx.Act) -> None:
    if act.left is None:
        raise HypervisorError("nothing to hand over")
    hypervisor.hand_over(act.uuid, act.left.attempt, act.left.address)


_CALLS: dict[fx.Action, Callable[[Hypervisor, fx.Act], None]] = {
    fx.Action.DEFINE: _define,
    fx.Action.ADOPT: _define,
    fx.Action.GIVE_BACK: lambda hypervisor, act: hypervisor.give_back(act.uuid, act.epoch),
    fx.Action.START: lambda hypervisor, act: hypervisor.start(act.uuid),
    fx.Action.SHUTDOWN: lambda hypervisor, act: hypervisor.shutdown(act.uuid),
    fx.Action.DESTROY: lambda hypervisor, act: hypervisor.destroy(act.uuid),
    fx.Action.UNDEFINE: lambda hypervisor, act: hypervisor.undefine(act.uuid),
    fx.Action.REBOOT: lambda hypervisor, act: hypervisor.reboot(act.uuid, act.force),
    fx.Action.SETTLE: lambda hypervisor, act: hypervisor.settle(act.uuid),
    fx.Action.HAND_OVER: _hand_over,
    fx.Action.RESUME: lambda hypervisor, act: hypervisor.resume(act.uuid),
}
"""What is called for each action but MIGRATE, which tells its progress."""
