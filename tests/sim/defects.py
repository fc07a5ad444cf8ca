"""The deliberate defects: mistakes that somebody could make, each of which would break a promise. They exist only here.

`old` occurs exactly once in the source of its module, and `new` stands in its place. `also`: further places, where one
mistake alone would be caught by a second defence. `seed`: a random run that found it.
"""

from __future__ import annotations

from typing import NamedTuple

Edit = tuple[str, str, str]


class Mutant(NamedTuple):
    """One defect. `breaks`: the promise, and how."""

    name: str
    module: str
    old: str
    new: str
    breaks: str
    also: tuple[Edit, ...] = ()
    seed: int = 0

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All places that change."""
        return ((self.module, self.old, self.new), *self.also)


_GUARD, _AGENT, _ACTING = "agentd.core.guard", "agentd.core.agent", "agentd.acting"

DEFECTS: tuple[Mutant, ...] = (
    # --- the guard ----------------------------------------------------------------------------------------------------
    Mutant(
        "guard-without-process-scan",
        _GUARD,
        "    if facts.processes:\n",
        "    if False:\n",
        "S1: starts beside a qemu that libvirt does not know",
    ),
    Mutant(
        "guard-without-boot-check",
        _GUARD,
        "    if durable.confirmed_boot != boot_id:\n",
        "    if not durable.confirmed_boot:\n",
        "S1: a host that boots starts what was rebuilt elsewhere",
    ),
    Mutant(
        "guard-without-release-check",
        _GUARD,
        "    if tombstone is not None and tombstone.epoch >= held.vm.epoch:\n",
        "    if False:\n",
        "S1: starts a VM that it was told to release",
        also=(
            (
                "agentd.core.inventory",
                "    if held is not None and held.vm.epoch <= release.epoch:\n",
                "    if False:\n",
            ),
            (
                "agentd.core.planner",
                "tombstone is not None and (held is None or held.vm.epoch <= tombstone.epoch)",
                "tombstone is not None and held is None",
            ),
        ),
    ),
    Mutant(
        "newer-domain-taken-for-an-old-one",
        "agentd.core.planner",
        "domain is not None and domain.epoch is not None and domain.epoch > held.vm.epoch",
        "False",
        "S4: a node that forgot its snapshot uses an epoch below that of its domain",
    ),
    Mutant(
        "guard-without-hold",
        _GUARD,
        "    if durable.order.hold:\n",
        "    if False:\n",
        "S1: a restored database gives a VM to a node that lost it since",
    ),
    Mutant(
        "guard-not-asked-again",
        _GUARD,
        "            return refusal(durable, act.uuid, boot_id, facts)\n",
        "            return None\n",
        "S1: what changed between order and start is not seen",
    ),
    Mutant(
        "acts-without-asking",
        _ACTING,
        "    return guard(act, hypervisor.inspect(act.uuid)) or \"\"\n",
        "    return \"\"\n",
        "S1: the workers ask no guard at all",
    ),
    Mutant(
        "moved-away-is-started",
        _GUARD,
        "    if held.moved:\n",
        "    if False:\n",
        "S1: a VM that was migrated away by hand is started here again",
        also=(
            (
                "agentd.core.planner",
                "    ended = held.halted or held.failed or held.moved\n",
                "    ended = held.halted or held.failed\n",
            ),
            (_GUARD, "facts.domain.reason == OffReason.MIGRATED and held.moved_serial < 0", "False"),
        ),
    ),
    Mutant(
        "stopped-vm-is-started",
        _GUARD,
        "    if held.vm.desired != Desired.RUNNING:\n",
        "    if False:\n",
        "L1: a VM that should be stopped runs",
        also=(
            (
                "agentd.core.planner",
                "    return held.vm.desired == Desired.RUNNING and not durable.drained and not ended\n",
                "    return not durable.drained and not ended\n",
            ),
        ),
    ),
    Mutant(
        "failed-look-taken-for-an-empty-host",
        "agentd.core.sightings",
        "VmFacts(uuid, scan.libvirt_ok, domains",
        "VmFacts(uuid, True, domains",
        "S2: libvirt does not answer, so nothing is there: unknown is taken for stopped",
        also=(
            (
                "agentd.core.sightings",
                "    if not scan.libvirt_ok:\n        known |=",
                "    if False:\n        known |=",
            ),
            (_AGENT, "        if not event.scan.libvirt_ok:\n", "        if False:\n"),
        ),
    ),
    # --- the drain's proof --------------------------------------------------------------------------------------------
    Mutant(
        "drain-proven-without-settling",
        "agentd.core.vms",
        "        return NEVER if self.starting else max(self._last_start_ended, self.settled_at)\n",
        "        return NEVER if self.starting else self._last_start_ended\n",
        "S2: a start that a dead agent ordered is under way",
        seed=1156,
    ),
    Mutant(
        "drain-proven-while-starting",
        "agentd.core.vms",
        "        return NEVER if self.starting else max(self._last_start_ended, self.settled_at)\n",
        "        return max(self._last_start_ended, self.settled_at)\n",
        "S2: the process of a start under way is not seen by a look at the host",
    ),
    Mutant(
        "drain-proven-by-an-old-look",
        "agentd.core.drain",
        "        quiet_since = max(self._doubt, busy_until)\n",
        "        quiet_since = busy_until\n",
        "S2: the look began before the last start had ended",
        also=(
            (
                "agentd.core.vms",
                "        return NEVER if self.starting else max(self._last_start_ended, self.settled_at)\n",
                "        return self.settled_at\n",
            ),
        ),
    ),
    Mutant(
        "evidence-without-clean-proof",
        "chimed.core.evidence",
        "    if proof.clean and node.evidence is None and session.reported:\n",
        "    if node.evidence is None and session.reported:\n",
        "S2: nothing seen is taken for nothing there",
    ),
    Mutant(
        "evidence-of-another-boot",
        "chimed.core.evidence",
        "    if node.evidence == Evidence.AGENT and node.evidence_boot_id != node.boot_id:\n",
        "    if False:\n",
        "S2: what an agent saw before its host booted counts after it",
    ),
    Mutant(
        "evidence-survives-enabling",
        "chimed.core.evidence",
        "        msgspec.structs.replace(\n            _without(node),\n",
        "        msgspec.structs.replace(\n            node,\n",
        "S2: the node runs VMs again, and the next drain is proven before it began",
        also=(
            (
                "chimed.core.evidence",
                "replace(_without(node), admin_state=state, held=False)",
                "replace(node, admin_state=state)",
            ),
        ),
    ),
    Mutant(
        "evidence-survives-a-running-vm",
        "chimed.core.evidence",
        "    if running and node.evidence is not None:\n",
        "    if False:\n",
        "S2: the node's own agent tells that a VM runs, and it is given away",
    ),
    Mutant(
        "word-taken-for-a-living-node",
        "chimed.core.evidence",
        "    if not lost:\n",
        "    if False:\n",
        "S2: a person's word is believed against the agent",
    ),
    Mutant(
        "unknown-counts-as-off",
        "chimed.core.evidence",
        "OFF = frozenset({Observed.STOPPED, Observed.FAILED, Observed.CRASHED})\n",
        "OFF = frozenset(Observed) - {Observed.RUNNING}\n",
        "S2: a paused VM, or one that nobody can see, is no obstacle to a rebuild",
    ),
    # --- rebuild ------------------------------------------------------------------------------------------------------
    Mutant(
        "rebuild-without-evidence",
        "chimed.core.node_requests",
        "        if node.evidence is None and body.evidence is None:\n",
        "        if False:\n",
        "S2: an unreachable node is taken for a dead one",
    ),
    Mutant(
        "rebuild-goes-on-without-evidence",
        "chimed.core.rebuild",
        '    if node.evidence is None:\n        text = f"the evidence that',
        '    if False:\n        text = f"the evidence that',
        "S2: a VM that waited for room is moved after the evidence was withdrawn",
    ),
    Mutant(
        "rebuild-before-the-report",
        "chimed.core.rebuild",
        "    if facts.is_live(node.name) and not facts.in_session(node.name):\n",
        "    if False:\n",
        "S2: the node is back, and has not said yet what runs on it",
    ),
    Mutant(
        "rebuild-while-recovering",
        "chimed.core.request_parts",
        "        if waiting:\n",
        "        if False:\n",
        "S2: a restored database moves VMs that are elsewhere",
    ),
    Mutant(
        "rebuild-moves-local-disks",
        "chimed.core.rebuild",
        "        if vm.spec.storage == Storage.LOCAL:\n",
        "        if False:\n",
        "S2: a VM starts where its data is not",
    ),
    Mutant(
        "move-without-release",
        "chimed.core.inventory",
        "    release(ctx, old, moved, vm.epoch)\n",
        "",
        "S2: the old owner is never told",
    ),
    Mutant(
        "release-forgotten-when-sent",
        "chimed.core.inventory",
        "    changed.sort(key=lambda entry: entry[0])\n",
        "    changed.sort(key=lambda entry: entry[0])\n"
        '    for sent in tables.releases.by("node", node_name):\n'
        "        tables.releases.delete(sent)\n",
        "S1: an answer that is lost takes the release with it",
    ),
    Mutant(
        "disks-made-again-after-a-move",
        "chimed.core.inventory",
        "        create_disks=not vm.exists,\n",
        "        create_disks=True,\n",
        "S5: the new owner makes empty disks where the old ones are not found",
    ),
    Mutant(
        "new-owner-not-told",
        "chimed.core.inventory",
        "    revision = ctx.bump(target)\n    moved =",
        "    revision = vm.revision\n    moved =",
        "L1: its agent never pulls the VM",
    ),
    # --- releases -----------------------------------------------------------------------------------------------------
    Mutant(
        "release-confirmed-at-once",
        "agentd.core.inventory",
        "        tombstone = Tombstone(epoch=release.epoch, keep=release.keep, left_to=left_to, seal=seal)\n",
        "        tombstone = Tombstone(epoch=release.epoch, done=True)\n",
        "S2: confirmed before the domain is gone",
    ),
    Mutant(
        "release-confirmed-without-settling",
        "agentd.core.vms",
        "            if _is_open(durable, uuid) and now < self.settled_at:\n",
        "            if False:\n",
        "S2: a start that a dead agent ordered is under way, and the VM is said to be gone",
        also=(("agentd.core.vms", "            until = max(until, self.settled_at)\n", "            pass\n"),),
    ),
    Mutant(
        "tombstone-forgotten",
        _AGENT,
        "                self._draft = self._draft.with_tombstone(\n"
        "                    release.uuid, msgspec.structs.replace(tombstone, acked=True)\n"
        "                )\n",
        "                rest = {u: t for u, t in self._draft.tombstones.items() if u != release.uuid}\n"
        "                self._draft = msgspec.structs.replace(self._draft, tombstones=rest)\n",
        "S4: an old assignment would be taken again",
    ),
    Mutant(
        "deleted-vm-forgotten-by-another-node",
        "chimed.core.inventory",
        "    if vm is not None and vm.desired == Desired.DELETED and vm.node == node_name:\n",
        "    if vm is not None and vm.desired == Desired.DELETED:\n",
        "S2: a former owner's confirmation ends the deletion, while the owner runs it",
    ),
    Mutant(
        "deleted-vm-forgotten-unheard",
        "chimed.core.vm_requests",
        "        absent = proven and not self._facts.is_live(node.name)\n",
        "        absent = not self._facts.is_live(node.name)\n",
        "S2: a VM on a node that cannot be heard is forgotten while it runs",
    ),
    # --- epochs -------------------------------------------------------------------------------------------------------
    Mutant(
        "epoch-not-compared-by-agent",
        "agentd.core.inventory",
        "    if held is not None and held.vm.epoch > vm.epoch:\n",
        "    if False:\n",
        "S4: a restored database makes an agent go back",
    ),
    Mutant(
        "epoch-not-compared-by-server",
        "chimed.core.copies",
        "    if report.epoch > vm.epoch:\n",
        "    if False:\n",
        "S4: a restored database does not learn the epoch that the owner holds",
    ),
    Mutant(
        "epoch-without-generation",
        "chimed.core.context",
        "        return max(vm.epoch + 1, (self.tables.meta.generation - 1) * EPOCHS_PER_GENERATION + 1)\n",
        "        return vm.epoch + 1\n",
        "S4: an epoch that the restore has undone is given again",
    ),
    Mutant(
        "epoch-used-again-after-deletion",
        "chimed.core.vm_requests",
        "            epoch=self._ctx.known_epoch() if body.uuid is not None else 0,\n",
        "            epoch=0,\n",
        "S4: a VM that is made anew with its UUID gets the epochs of the old one",
    ),
    Mutant(
        "forgotten-epochs-not-kept",
        "chimed.core.context",
        "        return max(self.tables.meta.forgotten_epoch, self.tables.meta.next_operation)\n",
        "        return self.tables.meta.next_operation\n",
        "S4, L1: after a restore a VM that comes again with its UUID has an epoch that it had before",
    ),
    Mutant(
        "restore-ends-no-generation",
        "chimed.core.recovery",
        "generation=generation, history=history, waiting_for=tuple(names), ",
        "history=history, waiting_for=tuple(names), ",
        "S4: the restored history is not told from the one it replaces",
    ),
    Mutant(
        "recovery-waits-for-nobody",
        "chimed.core.recovery",
        "waiting_for=tuple(names), ",
        "waiting_for=(), ",
        "S1: after a restore VMs start before all nodes have reported",
    ),
    Mutant(
        "restored-owner-kept",
        "chimed.core.copies",
        "        inventory.adopt(ctx, vm, node_name, report.epoch)\n",
        "        pass\n",
        "S1: after a restore the node that lost the VM is its owner again",
    ),
    # --- sessions -----------------------------------------------------------------------------------------------------
    Mutant(
        "old-inventory-believed",
        "agentd.core.link",
        " or body.session != self.session or body.nonce != self._nonce or now >= self._answer_by:\n",
        " or body.session != self.session:\n",
        "S1: an answer to an earlier question takes a drain back",
    ),
    Mutant(
        "late-inventory-believed",
        "agentd.core.link",
        " or body.nonce != self._nonce or now >= self._answer_by:\n",
        " or body.nonce != self._nonce:\n",
        "S3: an agent that slept carries out what is over",
        also=((_AGENT, "self._draft, self.link.asked_at)\n", "self._draft, now)\n"),),
    ),
    Mutant(
        "cloned-key-admitted",
        "chimed.core.sessions",
        "        if old is None or old.boot_id == hello.boot_id or now - old.heard > alive_s:\n",
        "        if True:\n",
        "S1: a second host with a node's key takes over from the living one",
    ),
    Mutant(
        "grace-period-dropped",
        "chimed.core.liveness",
        "        self._last_heard[node] = now\n        self._phases[node] = Phase.GRACE",
        "        self._last_heard[node] = now - self._limit_s\n        self._phases[node] = Phase.GRACE",
        "rule 6: a server that restarts judges nodes that had no time to be heard",
    ),
    # --- what is recorded first ---------------------------------------------------------------------------------------
    Mutant(
        "sent-before-commit",
        "chimed.daemon",
        "        if self._commit(now):\n            self._carry_out(effects)\n        else:\n"
        "            messages: list",
        "        self._carry_out(effects)\n        if not self._commit(now):\n            messages: list",
        "S3: an answer promises what a crash undoes",
    ),
    Mutant(
        "turn-not-undone",
        "chimed.core.server",
        "        self.tables.rollback()\n",
        "",
        "S3: what could not be saved is done all the same",
    ),
    Mutant(
        "answer-not-saved",
        "chimed.core.requests",
        "            self._ctx.tables.answers.put(answer)\n",
        "",
        "S3: a repeated request is done twice",
    ),
    Mutant(
        "saved-answer-ignored",
        "chimed.core.requests",
        "            if saved is not None:\n",
        "            if False:\n",
        "S3: a repeated request is done twice",
    ),
    Mutant(
        "inventory-not-saved",
        _AGENT,
        "        if not self._must_save and (self._draft is self.durable or self._draft == self.durable):\n"
        "            self._draft = self.durable\n",
        "        if not self._must_save and self._draft.held == self.durable.held:\n"
        "            self.durable = self._draft\n",
        "S4: a release that is acted upon is forgotten in a crash",
    ),
    Mutant(
        "told-before-it-is-recorded",
        _AGENT,
        "        return isinstance(effect.body, m.Heartbeat | m.Hello | m.Pull | m.Surveyed)\n",
        "        return True\n",
        "S3: a result is told that a crash makes forgotten",
    ),
    Mutant(
        "done-before-it-is-recorded",
        _AGENT,
        "        return effect.action == fx.Action.START\n",
        "        return True\n",
        "S3: a command is carried out that is not in the journal",
    ),
    Mutant(
        "command-not-in-the-journal",
        "agentd.core.commands",
        "        durable = durable.with_journal(command.id, Journaled(uuid=command.uuid))\n",
        "",
        "S3: an agent that dies does the command again",
    ),
    Mutant(
        "command-done-again-after-restart",
        "agentd.core.commands",
        "            if entry.result is None:  # a predecessor began it and did not finish\n",
        "            if False:\n",
        "S3: what a predecessor began is begun again",
        also=(
            (
                "agentd.core.commands",
                "            if known is not None:\n",
                "            if known is not None and known.result:\n",
            ),
        ),
    ),
    Mutant(
        "late-command-carried-out",
        "agentd.core.commands",
        "        if now >= deadline:\n",
        "        if False:\n",
        "S3: a command whose operation has failed takes effect",
    ),
    Mutant(
        "local-drain-forgotten",
        "agentd.core.inventory",
        "        local_drain=durable.local_drain and not clear_local_drain,\n",
        "        local_drain=False,\n",
        "S3: a drain that was accepted on the node is undone by a server that has not heard of it",
    ),
    # --- how VMs end --------------------------------------------------------------------------------------------------
    Mutant(
        "power-off-taken-for-a-crash",
        "agentd.core.endings",
        "    return stays_off and domain.reason == OffReason.SHUTDOWN and held",
        "    return False and held",
        "L1: a guest that powered itself off is started again",
    ),
    Mutant(
        "signal-taken-for-a-power-off",
        "agentd.core.endings",
        " and held.vm.uuid not in sightings.host_signal\n",
        "\n",
        "L1: a VM that the host ended stays off",
    ),
    Mutant(
        "own-stop-taken-for-the-guests",
        "agentd.core.vms",
        "            durable = durable.with_held(msgspec.structs.replace(held, started_serial=-1, ending=True))\n",
        "            pass\n",
        "L1: a VM that was asked to power off in a drain stays off when the node is enabled",
    ),
    Mutant(
        "old-power-off-stops-a-new-start",
        "chimed.core.copies",
        "    halted = report.halted and report.epoch == vm.epoch and report.start_serial == vm.start_serial\n",
        "    halted = report.halted\n",
        "S3: a start that was acknowledged is undone",
    ),
    Mutant(
        "restart-budget-ignored",
        "agentd.core.vms",
        "        if again and budget.spent(self._policy):\n",
        "        if False:\n",
        "L1: a VM that cannot run is started for ever, and nobody is told",
    ),
    # --- imports ------------------------------------------------------------------------------------------------------
    Mutant(
        "given-back-is-ended",
        "agentd.core.planner",
        "        if tombstone.keep:\n",
        "        if False:\n",
        "S5: a VM that was given back is ended",
    ),
    Mutant(
        "keeping-forgotten-when-carried-out",
        "agentd.core.vms",
        "    return durable.with_tombstone(event.uuid, msgspec.structs.replace(tombstone, done=True))\n",
        "    return durable.with_tombstone(event.uuid, type(tombstone)(epoch=tombstone.epoch, done=True))\n",
        "S5: a VM that was given back is ended when its agent looks again",
    ),
    Mutant(
        "import-without-a-mark",
        "agentd.core.adoption",
        "    if not held.vm.adopt or held.leaving:\n",
        "    if True:\n",
        "S5: a VM that is imported is defined anew while it runs",
    ),
    # --- live migration -----------------------------------------------------------------------------------------------
    Mutant(
        "guard-forgets-that-it-leaves",
        _GUARD,
        "    if held.leaving:\n",
        "    if False:\n",
        "S1: a VM whose copy arrives is started at its source",
        also=(("agentd.core.planner", "    if held.leaving:\n", "    if False:\n"),),
    ),
    Mutant(
        "left-though-it-is-defined",
        "agentd.core.leaving",
        "    return MigrationPhase.LEAVING if facts.domain.job else MigrationPhase.FAILED\n",
        "    return MigrationPhase.LEFT\n",
        "S1: a source that goes on hands its VM over",
    ),
    Mutant(
        "left-is-no-release",
        "agentd.core.leaving",
        "    gone = durable.without_held(uuid).with_tombstone(",
        "    gone = durable.with_tombstone(",
        "S1: what has left stays this node's, and is started again",
        also=(
            (
                "agentd.core.leaving",
                "Tombstone(epoch=epoch, done=True, acked=not asked))",
                "Tombstone(epoch=0, done=True, acked=True))",
            ),
        ),
    ),
    Mutant(
        "moved-while-it-leaves",
        "chimed.core.attempts",
        "    if said is not None and said.phase == MigrationPhase.LEFT:\n",
        "    if said is not None and said.phase != MigrationPhase.FAILED:\n",
        "S2: the target becomes the owner while the source runs the VM",
    ),
    Mutant(
        "paused-copy-of-a-lost-source-adopted",
        "chimed.core.arrivals",
        "    if report.observed == Observed.RUNNING and (is_gone or report.epoch > vm.epoch):\n",
        "    if is_gone or report.epoch > vm.epoch:\n",
        "S2: nobody knows whether the source has left",
    ),
    Mutant(
        "stale-copy-stays",
        "chimed.core.arrivals",
        "        return Verdict.RELEASE if is_over else Verdict.WAIT\n",
        "        return Verdict.WAIT\n",
        "L1: a copy that nobody wants stays on the target for ever",
        also=(("chimed.core.copies", "        _has_failed(facts, session.node, report)\n", ""),),
    ),
    Mutant(
        "copy-released-while-it-comes",
        "chimed.core.arrivals",
        "    if is_gone or is_open or not _speaks(facts, vm):\n",
        "    if False:\n",
        "S3: the copy of a migration that is under way is ended",
        also=(
            (
                "chimed.core.arrivals",
                "        return Verdict.RELEASE if is_over else Verdict.WAIT\n",
                "        return Verdict.RELEASE\n",
            ),
        ),
    ),
    Mutant(
        "rebuild-asks-no-target",
        "chimed.core.rebuild",
        "    if row is not None and (awaited := attempts.give_up(facts, row)):\n",
        "    if False:\n",
        "S1: a copy that is about to be let run runs beside the rebuilt VM",
        also=(("chimed.core.rebuild", "    if awaited := _copies_elsewhere(facts, vm):\n", '    if awaited := "":\n'),),
    ),
    Mutant(
        "evidence-holds-for-a-newcomer",
        "chimed.core.attempts",
        "    evidence.drained_again(ctx, target, vm)\n",
        "",
        "S2: a rebuild of a drained node starts a VM elsewhere that has just come there",
    ),
    Mutant(
        "given-away-while-it-starts",
        "chimed.core.migration",
        "        return report.observed == Observed.STOPPED and not report.problem\n",
        "        return report.observed == Observed.STOPPED\n",
        "S2: a stopped VM appears after it was given to another node",
    ),
    Mutant(
        "attempt-begun-again",
        "agentd.core.leaving",
        "        if not name or held.leaving or name in waiting or name in durable.journal:\n",
        "        if True:\n",
        "S1: an agent that lost its snapshot starts what is leaving",
    ),
    Mutant(
        "left-though-libvirt-is-silent",
        "agentd.core.leaving",
        "    if not facts.libvirt_ok or leaves_definition(facts):\n",
        "    if leaves_definition(facts):\n",
        "S1: what cannot be seen is taken for gone, and its copy is let run",
    ),
    Mutant(
        "handed-over-before-it-is-recorded",
        _AGENT,
        "        return effect.action == fx.Action.START\n",
        "        return effect.action in (fx.Action.START, fx.Action.HAND_OVER)\n",
        "S1: the copy runs, and a source that dies now does not know that the VM has left",
    ),
    Mutant(
        "never-handed-over",
        "agentd.core.migrations",
        "            if left.handed_over or uuid in self._handing:\n",
        "            if True:\n",
        "L1: a VM that was migrated without the server stays paused",
    ),
    Mutant(
        "copy-judged-by-an-old-report",
        "chimed.core.arrivals",
        "    return Verdict.RELEASE if _has_looked(facts, vm, attempt) else Verdict.ASK\n",
        "    return Verdict.RELEASE\n",
        "S3: the copy is ended because its source had not spoken of it yet",
    ),
    Mutant(
        "higher-epoch-ends-left",
        "agentd.core.inventory",
        "    if left is not None:  #",
        "    if left is not None and vm.epoch <= left.epoch:  #",
        "S1: a VM that has left is started at its source by an epoch that crossed the news",
    ),
    Mutant(
        "forgotten-in-a-new-epoch",
        "agentd.core.inventory",
        "Held(vm=vm) if held is None else held.assigned(vm)",
        "Held(vm=vm) if held is None or held.vm.epoch != vm.epoch else held.assigned(vm)",
        "S1: a VM that leaves is started at its source when a new epoch comes meanwhile",
    ),
    Mutant(
        "resumed-again-and-again",
        "agentd.core.leaving",
        "or attempt is None or attempt.phase != MigrationPhase.FAILED or attempt.resumed:\n",
        "or True:\n",
        "a person's pause is undone",
    ),
    Mutant(
        "cancelled-and-not-aborted",
        "agentd.core.migrations",
        "        return attempt is None or attempt.id in self._cancelled\n",
        "        return attempt is None\n",
        "L1: a migration that was cancelled goes on",
    ),
    Mutant(
        "copy-of-an-older-epoch-is-stale",
        "chimed.core.arrivals",
        "MigrationPhase.LEAVING: Verdict.WAIT}\n",
        "MigrationPhase.LEAVING: Verdict.RELEASE}\n",
        "S3: a migration that is under way is ended when a new epoch comes meanwhile",
    ),
    Mutant(
        "order-on-the-node-ignored-while-another-is-open",
        "chimed.core.copies",
        "(row is not None and row.attempt == said.attempt):",
        "row is not None:",
        "L1: a VM that left by an order on its node belongs to nobody that could start it",
    ),
    Mutant(
        "deletion-does-not-follow",
        "chimed.core.inventory",
        "        if target is not None:\n",
        "        if False:\n",
        "L1: a VM that left before its node heard that it is deleted runs on",
    ),
    Mutant(
        "brought-copy-ended-while-the-source-cannot-tell",
        "chimed.core.arrivals",
        " or leaving(owners):\n",
        ":\n",
        "L1: what a person migrated runs nowhere",
    ),
    Mutant(
        "copy-of-a-failed-migration-forgotten",
        "chimed.core.copies",
        "        _has_failed(facts, session.node, report)\n",
        "",
        "L1: a paused copy of a VM that was deleted meanwhile stays for ever",
    ),
    Mutant(
        "import-lasts-for-ever",
        "chimed.core.imports",
        "replace(vm, adopt=False, ",
        "replace(vm, ",
        "L1: an imported VM that has left a node without a snapshot is never made anew",
    ),
    Mutant(
        "released-epoch-is-no-word",
        "chimed.core.arrivals",
        "    return owners.problem == Problem.STALE_EPOCH or (facts",
        "    return (facts",
        "S1: after a restore a VM is started beside the copy that runs where it had left to",
    ),
    Mutant(
        "given-back-vm-not-told-after-a-restore",
        "agentd.core.reporting",
        "    if not tombstone.keep or (durable.order.hold and seen.processes):\n",
        "    if not tombstone.keep:\n",
        "S1: a VM that runs without Chime since it was given back is started beside that",
    ),
    Mutant(
        "older-holder-keeps-what-the-database-does-not-know",
        "chimed.core.copies",
        "        _settle_unknown(facts, uuid)\n",
        "        pass\n",
        "S1: after a restore two nodes run a VM that was created and moved since the backup",
    ),
    Mutant(
        "ignored-for-ever",
        _AGENT,
        "        over = self._draft.held.keys() | {release.uuid for page in pages for release in page.releases}\n",
        "        over = self._draft.held.keys()\n",
        "L1: after a restore the drain of a node is never proven",
    ),
    # --- faults of nodes ----------------------------------------------------------------------------------------------
    Mutant(
        "faults-forgotten-with-the-session",
        "chimed.core.health",
        "        if session.seq == 0 and node.health == Health.ERROR and _is_heard(node):\n",
        "        if False:\n",
        "one alarm, not a storm: a fault that lasts is cleared and raised again at each restart",
        also=(
            (
                "chimed.core.health",
                "        if (session is None or session.seq == 0) and _is_heard(node):",
                "        if False:",
            ),
        ),
    ),
    Mutant(
        "notice-closes-the-node",
        "chimed.core.health",
        " for fault in session.faults if fault.severity != Severity.INFO})\n",
        " for fault in session.faults})\n",
        "one node that is off closes all that watch it to the rebuild of its VMs",
    ),
    Mutant(
        "removed-with-a-copy-nobody-can-judge",
        "chimed.core.node_requests",
        "        if open_copies:\n",
        "        if False:\n",
        "L1: when the source tells where the VM has left to, nobody knows that node any more",
    ),
    Mutant(
        "silence-of-libvirt-ends-its-fault",
        "agentd.core.agent",
        "        self._faults.returned(fx.Call.CONNECT, now)\n        self._faults.returned(fx.Call.SCAN, now)\n",
        "        self._faults.returned(fx.Call.CONNECT, now)\n        self._faults.returned(fx.Call.SCAN, now)\n"
        "        self._faults.over(FaultCode.LIBVIRT_UNREACHABLE, now)\n",
        "a node that sees nothing flaps between well and broken, and gets VMs that it cannot start",
    ),
)
"""Every defect; each must be found."""
