"""Deliberate defects in what one bad node may do, and in what keeps time running forward. See `defects`."""

from __future__ import annotations

from tests.sim.mutant import Mutant

_COPIES, _RECOVERY, _PROOFS = "chimed.core.agents.copies", "chimed.core.rules.recovery", "chimed.core.rules.proofs"
_AGENT, _INVENTORY, _GUARD, _PLANNER = (
    "agentd.core.agent", "agentd.core.inventory", "agentd.core.guard", "agentd.core.planner"
)  # fmt: skip
_SEAL_FITS = (
    "    return seals.fits(report.seal, seals.of_assignment(ctx.seal_key, report.uuid, report.epoch, node_name))\n"
)

OF_TRUST: tuple[Mutant, ...] = (
    Mutant(
        "seals-are-not-compared",
        _PROOFS,
        _SEAL_FITS,
        "    return True\n",
        "S7: a node gets a VM by saying that it was given it in a later epoch",
    ),
    Mutant(
        "vouchers-are-not-compared",
        _PROOFS,
        "    if not seals.fits(said.voucher, seals.voucher(right, said.attempt, said.address)):\n"
        "        return False\n",
        "    return True\n",
        "S7: a node gets a VM by saying that it arrived there, while its owner is away",
    ),
    Mutant(
        "anybody-speaks-for-the-source",
        "chimed.core.rules.arrivals",
        "        if not proofs.speaks_for(facts.ctx, vm, session.node, report):\n            continue\n",
        "",
        "S7: a third node says that a migration is over, and the VM is taken from where it runs",
    ),
    Mutant(
        "sighting-takes-the-vm-in-a-rebuild",
        "chimed.core.work.rebuild",
        "        is_sent = arrivals.is_proven(facts, vm, session.node, report)\n",
        "        is_sent = True\n",
        "S7: in a rebuild a VM goes to whoever says that he runs it",
    ),
    Mutant(
        "sighting-holds-a-rebuild-up",
        "chimed.core.work.rebuild",
        "    return ctx.now < since + SIGHTED_S\n",
        "    return True\n",
        "S7: a rebuild waits for ever for a copy that is not there",
    ),
    Mutant(
        "epochs-are-followed-at-any-time",
        _PROOFS,
        _SEAL_FITS,
        "    return True\n",
        "S7: long after a restore a node gets a VM by a later epoch",
        also=(
            (_COPIES, "    elif report.epoch > vm.epoch and not ctx.tables.meta.recovering:\n", "    elif False:\n"),
        ),
    ),
    Mutant(
        "sighting-raises-the-owners-epoch",
        _COPIES,
        "    if sent:\n",
        "    if report.epoch == vm.epoch:\n",
        "S7: whoever says that he has a copy ends the owner's migration",
    ),
    Mutant(
        "older-inventory-is-followed",
        _AGENT,
        "            why = inventory.older(self.durable, body.generation, body.history, body.revision)\n",
        '            why = ""\n',
        "S1: agents obey a server whose database is older than what they have followed",
        also=(
            (
                _AGENT,
                "        if why := inventory.older(self.durable, last.generation, last.history, last.revision):\n",
                '        if why := "":\n',
            ),
        ),
    ),
    Mutant(
        "what-is-not-named-is-started",
        _INVENTORY,
        "    if full:\n        durable = _only_named(",
        "    if False:\n        durable = _only_named(",
        "S1: a node that was added again, or whose state was put back, starts what others have now",
    ),
    Mutant(
        "put-back-state-counts",
        "agentd.snapshot",
        "    if serial >= noted:\n",
        "    if True:\n",
        "S1: yesterday's state is put back, and starts what has moved since",
    ),
    Mutant(
        "another-key-and-the-same-state",
        "agentd.snapshot",
        '    return msgspec.structs.replace(durable, put_back=True, confirmed_boot="")\n',
        "    return durable\n",
        "S1: a node that was added again starts what it had, before it hears the server",
    ),
    Mutant(
        "hold-stops-all-the-same",
        _PLANNER,
        "    if durable.order.hold or held.vm.hold:\n",
        "    if False:\n",
        "a restore stops VMs that were started since the backup",
    ),
    Mutant(
        "restored-rows-are-believed",
        _RECOVERY,
        "    return msgspec.structs.replace(vm, held=_WANTS[vm.desired])\n",
        "    return vm\n",
        "after the recovery VMs are stopped that were started since the backup",
    ),
    Mutant(
        "restored-drain-is-believed",
        _RECOVERY,
        "    if node.admin_state != AdminState.DRAINED:\n        return node\n",
        "    return node\n",
        "after the recovery a node is drained that was enabled since the backup",
    ),
    Mutant(
        "newer-inventories-are-not-noticed",
        "chimed.core.rules.behind",
        "    if point.revision > node.given:\n",
        "    if False:\n",
        "S1: a database that was put back gives orders",
        also=(("agentd.core.inventory", "    if revision < durable.revision:\n", "    if False:\n"),),
    ),
    Mutant(
        "mark-beside-the-database-not-read",
        "chimed.core.rules.behind",
        "    if not ctx.read_only and ctx.tables.meta.generation <= found.generation:\n",
        "    if False:\n",
        "S1: a database was put back by a copy, and the old owner starts the VM while the new one is not heard",
    ),
    Mutant(
        "restored-and-what-is-off-after-a-boot-is-started",
        "chimed.core.agents.handlers",
        "            copies.hold_what_is_off(self._facts, node)\n",
        "            pass\n",
        "S1: the backup is of before a node was added, and the old owner of what runs there boots",
    ),
    Mutant(
        "what-a-node-has-not-any-more-is-not-declined",
        "agentd.core.inventory",
        "declined=vm.epoch <= undone",
        "declined=False",
        "S1: the backup is of before a node was added, and the old owner of what runs there lost its snapshot since",
    ),
    Mutant(
        "found-on-a-node-that-was-added-again-and-ended",
        "chimed.core.agents.copies",
        "    return is_sought and node_name != vm.node",
        "    return False and node_name != vm.node",
        "L1: a VM that runs on a node which the backup did not know is ended when that node is added again",
    ),
    Mutant(
        "removed-while-it-may-know-better",
        "chimed.core.operators.nodes",
        "        if self._ctx.tables.meta.holding:\n            text",
        "        if False:\n            text",
        "S1: a node that a restored database knows as empty is removed, and the recovery goes on without it",
    ),
    Mutant(
        "met-while-nothing-can-be-recorded",
        "chimed.core.rules.known",
        "        return self.ctx.meeting.is_over() and not self.ctx.read_only\n",
        "        return self.ctx.meeting.is_over()\n",
        "S1: a server that was put back has a full disk, and gives orders before who knows better can be recorded",
        also=(
            (
                "chimed.core.server",
                "        if self.ctx.read_only:\n            return\n        self.ctx.meeting.tick(now)\n",
                "        self.ctx.meeting.tick(now)\n        if self.ctx.read_only:\n            return\n",
            ),
        ),
    ),
    Mutant(
        "given-something-before-it-is-recorded",
        "chimed.core.agents.handlers",
        "        self._record_fresh(session)\n",
        "        pass\n",
        "S1: an agent that has begun anew while nothing can be recorded is given what the database says, without hold",
    ),
    Mutant(
        "first-come-starts",
        "chimed.core.rules.known",
        "        return self.ctx.meeting.is_over() and not self.ctx.read_only\n",
        "        return True\n",
        "S1: a database was put back, and the old owner starts the VM before the new one is heard",
    ),
    Mutant(
        "who-waits-is-forgotten",
        "chimed.core.agents.handlers",
        "        if fresh and self._facts.has_met_all():\n",
        "        if fresh:\n",
        "S1: the server dies while an old owner waits for the others, and lets it start when it is back",
    ),
    Mutant(
        "an-old-departure-counts",
        "chimed.core.rules.arrivals",
        "    return left(report) if report is not None and report.epoch >= vm.since else None\n",
        "    return left(report)\n",
        "S1: an agent's state is put back from when the VM had left, and the VM came back since",
        also=(("agentd.core.inventory", "    if left is not None and vm.since > left.epoch:\n", "    if False:\n"),),
    ),
    Mutant(
        "settled-before-the-owner-is-known",
        _RECOVERY,
        "    report = facts.report(vm) if not facts.ctx.tables.meta.holding else None\n",
        "    report = facts.report(vm)\n",
        "an old owner says that the VM is off, and then it is stopped where it runs",
    ),
    Mutant(
        "behind-and-takes-orders",
        "chimed.core.operators.checks",
        "        if why:\n",
        "        if why and not self.ctx.tables.meta.behind:\n",
        "a database that is behind says what should become of VMs that are not where it thinks",
    ),
    Mutant(
        "recovery-before-all-are-heard",
        _RECOVERY,
        "    return tables.meta.behind and all(",
        "    return tables.meta.behind or all(",
        "E5: an older server takes the nodes from the newer one",
    ),
    Mutant(
        "revisions-begin-anew",
        "chimed.core.operators.nodes",
        "            revision=forgotten + 2,\n            given=forgotten + 1,\n",
        "",
        "L1: a node that is added again takes its own server for an older one",
    ),
    Mutant(
        "gone-since-the-backup-is-started",
        _COPIES,
        "        held = msgspec.structs.replace(vm, held=r.Held.START)\n",
        "        held = vm\n",
        "S1: after a restore a VM is started that may be on a node which the backup does not know",
    ),
)
