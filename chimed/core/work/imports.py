"""What an import and a release of a VM wait for.

Rules: a domain that its node cannot take over is given back, never ended: the release of an import that failed is one
that keeps the domain. A VM that is given back stays in the database until its node has confirmed it.
"""

from __future__ import annotations

import msgspec

from chimed.core.rules import arrivals, ownership
from chimed.core.rules.known import Facts
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from chimed.core.work.operations import fail, succeed
from wire import messages as m
from wire.types import Desired, Observed
from wire.words import Problem


def is_pending(report: m.VmReport) -> bool:
    """Whether its owner has not taken the VM over yet, or cannot."""
    return report.problem in (Problem.NOT_ADOPTED, Problem.ADOPTION_REFUSED)


def give_back(ctx: Context, vm: r.Vm) -> None:
    """The node is told to forget the VM and to leave its domain as it is."""
    leaving = msgspec.structs.replace(vm, desired=Desired.DELETED)
    ctx.tables.vms.put(leaving)
    ownership.release(ctx, vm.node, leaving, vm.epoch, keep=True)


def progress_import(facts: Facts, op: r.Operation) -> None:
    """Done when the owner reports the VM in its epoch, given up when it cannot take it over."""
    vm = facts.ctx.tables.vms.get(op.subject)
    if vm is None:
        fail(facts.ctx, op, "the VM was deleted")
        return
    report = facts.report(vm)
    if report is None or report.revision < op.serial or report.observed == Observed.UNKNOWN:
        return
    if report.problem == Problem.ADOPTION_REFUSED:
        fail(facts.ctx, op, f"{report.detail}; nothing was touched")
        give_back(facts.ctx, facts.ctx.tables.vms.get(vm.uuid) or vm)
    elif report.problem != Problem.NOT_ADOPTED:
        if not arrivals.leaving(report):
            _end_adoption(facts.ctx, vm)
        succeed(facts.ctx, op, f"managed on {vm.node}, {report.observed}")


def _end_adoption(ctx: Context, vm: r.Vm) -> None:
    """It is taken over, and from now on a VM like any other: if its domain is lost, one is made."""
    ctx.tables.vms.put(msgspec.structs.replace(vm, adopt=False, revision=ctx.bump(vm.node)))


def progress_release(facts: Facts, op: r.Operation) -> None:
    """Done when the node has confirmed it."""
    if facts.ctx.tables.vms.get(op.subject) is None:
        succeed(facts.ctx, op, "given back as it is: Chime does not touch it any more")
