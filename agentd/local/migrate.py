"""`chime-agent migrate`: by the agent if it runs, else directly on libvirt and the snapshot.

Rules: the target is checked before anything begins; one VM after the other; an attempt is named here, so that asking
twice begins nothing twice; if this dies, the agent or the next `chime-agent` goes on from what is recorded.
"""

from __future__ import annotations

import json
import time
import uuid as uuids
from typing import TYPE_CHECKING, Any, NamedTuple

from agentd.config import Config
from agentd.hypervisor import HypervisorError
from agentd.local.progress import ProgressLine
from agentd.local.running import ask_agent, node_status, refused_by_person, some
from agentd.local_socket import Question
from agentd.snapshot import SnapshotError
from wire.errors import ChimeError
from wire.local.usage import say, show
from wire.messages import MigrationOptions, MigrationOrder
from wire.text import counted
from wire.types import MigrationPhase
from wire.words import FaultCode

if TYPE_CHECKING:
    from agentd.libvirt.target_check import Findings

FOLLOW_S = 0.3
BUSY_S = 30.0
GRACE_S = 60.0
"""After the time-out of a VM, until libvirt has given its migration up."""
ALONE_S = 10.0
"""So long the agent may be away, for a restart, before its work is taken over."""


class Wanted(NamedTuple):
    """What was asked for. An empty `uuid`: all VMs."""

    interface: str
    address: str
    uuid: str
    timeout_s: float
    bandwidth_mib_s: int
    local_disks: bool
    dry_run: bool
    yes: bool
    json: bool

    @property
    def order(self) -> MigrationOrder:
        """The same for the agent."""
        options = MigrationOptions(
            bandwidth_mib_s=self.bandwidth_mib_s, timeout_s=self.timeout_s, local_disks=self.local_disks
        )
        return MigrationOrder(target="", address=self.address, options=options)


class Outcome(NamedTuple):
    """What became of one VM: left, failed or refused; `open`: not decided at the time-out."""

    uuid: str
    name: str
    outcome: str
    detail: str
    open: bool = False


def migrate(config: Config, wanted: Wanted) -> int:
    """Checks, asks, migrates, waits for the ends; returns the exit code."""
    status = _status(config, wanted)
    chosen, outcomes = _choose(status, wanted)
    problems, notes = _check(config, wanted, list(chosen))[:2] if chosen else ((), ())
    what, names = counted(len(chosen), "VM"), some(list(chosen.values()))
    say(f"migrates {what} to {wanted.address} over {wanted.interface}: {names}")
    for outcome in outcomes:
        say(f"{outcome.name or outcome.uuid}: {outcome.outcome}: {outcome.detail}")
    for line in (*notes, *(f"problem: {problem}" for problem in problems)):
        say(line)
    if problems:
        outcomes += [Outcome(uuid, name, "refused", "the target check failed") for uuid, name in chosen.items()]
    if wanted.dry_run:
        return _planned(wanted, chosen, outcomes, problems)
    if chosen and not problems:
        refused = refused_by_person(wanted.yes)
        if refused is not None:
            return refused
        outcomes += [_one(config, wanted, uuid, name) for uuid, name in chosen.items()]
    return _ended(wanted, outcomes)


def _status(config: Config, wanted: Wanted) -> dict[str, Any]:
    """The node's state, after what an earlier command has left undecided was brought to an end."""
    status = node_status(config)
    if any(fault["code"] == FaultCode.LIBVIRT_UNREACHABLE for fault in status["faults"]):
        raise ChimeError("unreachable", "libvirt on this node does not answer")
    undecided = any(vm["phase"] == "leaving" for vm in status["migrations"])
    if status["agent_running"] or wanted.dry_run:
        return status
    if undecided or any(not vm["handed_over"] for vm in status["left"]):
        _go_on(config, time.monotonic() + wanted.timeout_s)
        return node_status(config)
    return status


def _go_on(config: Config, until: float) -> None:
    from agentd.local import offline_migration
    from agentd.local.offline import Offline

    with Offline(config) as offline:
        offline_migration.go_on(offline, until, say)


def _choose(status: dict[str, Any], wanted: Wanted) -> tuple[dict[str, str], list[Outcome]]:
    """The VMs that can be migrated, by UUID, and what is known already of those that cannot."""
    names = {vm["uuid"]: vm["name"] for vm in status["vms"]}
    runs = {vm["uuid"] for vm in status["vms"] if vm["observed"] not in ("stopped", "failed", "crashed")}
    objections, left = status["objections"], {vm["uuid"]: vm for vm in status["left"]}
    if wanted.uuid in left:
        vm = left[wanted.uuid]
        return {}, [Outcome(wanted.uuid, vm["name"], "left", vm["detail"] or "it has left already")]
    if wanted.uuid:
        objections = {wanted.uuid: objections.get(wanted.uuid, "this node does not own the VM")}
        runs = {wanted.uuid}
    chosen = {uuid: names.get(uuid, "") for uuid, why in objections.items() if why is None}
    refused = [
        Outcome(uuid, names.get(uuid, ""), "refused", why)
        for uuid, why in objections.items()
        if why is not None and uuid in runs
    ]
    return chosen, refused


def _check(config: Config, wanted: Wanted, names: list[str]) -> Findings:
    """What speaks against the target. Raises ChimeError (unreachable)."""
    from agentd.libvirt.driver import configured

    driver = configured(config)
    try:
        driver.connect(lambda _event: None, lambda _why: None)
        found = driver.check_target(wanted.address, wanted.interface, names, wanted.local_disks)
    except HypervisorError as error:
        raise ChimeError("unreachable", f"libvirt at {config.libvirt_uri}: {error}") from None
    finally:
        driver.close()
    if not found.reached:
        raise ChimeError("unreachable", "; ".join(found.problems))
    return found


# --- one VM -----------------------------------------------------------------------------------------------------------


def _one(config: Config, wanted: Wanted, uuid: str, name: str) -> Outcome:
    attempt_id = uuids.uuid4().hex
    question = Question("migrate", uuid=uuid, attempt=attempt_id, migration=wanted.order)
    deadline = time.monotonic() + BUSY_S
    while (answer := ask_agent(config, question)) is not None and "busy" in answer and time.monotonic() < deadline:
        time.sleep(FOLLOW_S)
    with ProgressLine(name or uuid) as line:
        if answer is None:
            outcome = _offline(config, wanted, uuid, name, attempt_id, line)
        elif "begun" in answer:
            outcome = _follow(config, wanted, uuid, name, attempt_id, line)
        else:
            refused = answer.get("refused") or answer.get("busy")
            why = refused or answer.get("error", "the agent did not understand the question")
            outcome = Outcome(uuid, name, "refused" if refused else "failed", why)
    say(f"{name or uuid}: {outcome.outcome}: {outcome.detail}")
    return outcome


def _offline(config: Config, wanted: Wanted, uuid: str, name: str, attempt_id: str, line: ProgressLine) -> Outcome:
    from agentd.local import offline_migration
    from agentd.local.offline import Offline

    until = time.monotonic() + wanted.timeout_s + GRACE_S
    with Offline(config) as offline:
        ended = offline_migration.migrate(offline, uuid, attempt_id, wanted.order, until, line.show)
    if ended.phase is None:
        return Outcome(uuid, name, "refused", ended.detail)
    left = ended.phase == MigrationPhase.LEFT
    return Outcome(uuid, name, "left" if left else "failed", ended.detail, ended.phase == MigrationPhase.LEAVING)


def _follow(config: Config, wanted: Wanted, uuid: str, name: str, attempt_id: str, line: ProgressLine) -> Outcome:
    """Waits for what the agent makes of it; if the agent goes away for long, its work is taken over."""
    now = seen_at = time.monotonic()
    until = now + wanted.timeout_s + GRACE_S
    while True:
        status = _peek(config)
        now = time.monotonic()
        outcome = _told(status, uuid, name, attempt_id, line, now >= until) if status is not None else None
        if outcome is not None:
            return outcome
        if now >= until:
            return Outcome(uuid, name, "failed", "not decided yet: agentd goes on", open=True)
        if status is None or status["agent_running"]:
            seen_at = now
        elif now >= seen_at + ALONE_S:
            _go_on(config, until)
            seen_at = now
        time.sleep(FOLLOW_S)


def _peek(config: Config) -> dict[str, Any] | None:
    """None: an agent is starting in this moment."""
    try:
        return node_status(config)
    except SnapshotError:
        return None


def _told(
    status: dict[str, Any], uuid: str, name: str, attempt_id: str, line: ProgressLine, late: bool
) -> Outcome | None:
    left = next((vm for vm in status["left"] if vm["uuid"] == uuid and vm["attempt"] == attempt_id), None)
    if left is not None:
        if not left["handed_over"] and not late:
            return None
        over = "it runs there" if left["handed_over"] else "it has left, and is paused there: agentd goes on trying"
        return Outcome(uuid, name, "left", left["detail"] or over)
    vm = next((vm for vm in status["migrations"] if vm["uuid"] == uuid and vm["attempt"] == attempt_id), None)
    if vm is None:
        return _superseded(status, uuid, name)
    if vm["phase"] == "failed":
        return Outcome(uuid, name, "failed", vm["detail"])
    if vm["progress"] is not None:
        line.show_plain(vm["progress"])
    return None


def _superseded(status: dict[str, Any], uuid: str, name: str) -> Outcome:
    """The server has drawn its conclusion before it was seen here: a VM that left is not owned here any more."""
    if uuid in status["objections"]:
        return Outcome(uuid, name, "failed", "the server has ended it")
    return Outcome(uuid, name, "left", "the server has given it to its new node")


# --- the end ----------------------------------------------------------------------------------------------------------


def _documents(outcomes: list[Outcome]) -> list[dict[str, str]]:
    return [{"uuid": o.uuid, "name": o.name, "outcome": o.outcome, "detail": o.detail} for o in outcomes]


def _planned(wanted: Wanted, chosen: dict[str, str], outcomes: list[Outcome], problems: tuple[str, ...]) -> int:
    if wanted.json:
        plan = [f"migrates {name or uuid} to {wanted.address}" for uuid, name in chosen.items()]
        show(json.dumps({"plan": plan, "problems": problems, "vms": _documents(outcomes), "changed": False}))
    return 3 if problems or any(outcome.outcome == "refused" for outcome in outcomes) else 0


def _ended(wanted: Wanted, outcomes: list[Outcome]) -> int:
    if wanted.json:
        show(json.dumps({"vms": _documents(outcomes)}))
    kinds = {outcome.outcome for outcome in outcomes}
    if any(outcome.open for outcome in outcomes):
        return 5
    if "failed" in kinds or {"left", "refused"} <= kinds:
        return 1
    return 3 if "refused" in kinds else 0
