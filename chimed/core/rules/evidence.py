"""Why the server may believe that a drained node runs none of its VMs. Without it nothing is rebuilt.

Rules: evidence belongs to one drain (its serial); evidence `agent` also to one boot, and ends with it; a VM that the
node's agent does not report as stopped ends it ("unknown" is not stopped); enabling the node ends it. A ping proves
nothing.
"""

from __future__ import annotations

import msgspec

from chimed.core.state import rows as r
from chimed.core.state.sessions import Session
from chimed.core.state.turn import Context
from wire.errors import ChimeError
from wire.messages import DrainProof
from wire.types import AdminState, Evidence, Observed
from wire.words import FaultCode, OperationKind

OFF = frozenset({Observed.STOPPED, Observed.FAILED, Observed.CRASHED})
"""Observed states that say: no process."""


def drained(ctx: Context, node: r.Node, graceful_s: float) -> r.Node:
    """The node begins a new drain: what was believed before does not count."""
    ctx.tables.nodes.put(
        msgspec.structs.replace(
            _without(node),
            admin_state=AdminState.DRAINED,
            held=False,
            drain_serial=node.drain_serial + 1,
            drain_graceful_s=graceful_s,
        )
    )
    ctx.bump(node.name)
    changed = ctx.tables.nodes.get(node.name)
    assert changed is not None
    return changed


def drained_again(ctx: Context, node_name: str, vm: r.Vm) -> None:
    """What was proven of a drained node does not hold for a VM that comes there: it is drained once more."""
    node = ctx.tables.nodes.get(node_name)
    if node is None or node.admin_state != AdminState.DRAINED:
        return
    ctx.audit("chimed", "drained-again", node_name, f"{vm.name} has come there by a migration, and is to be stopped")
    node = drained(ctx, node, node.drain_graceful_s)
    op = ctx.tables.operations.get(node.lock)
    if op is not None and op.kind == OperationKind.DRAIN:
        ctx.tables.operations.put(msgspec.structs.replace(op, serial=node.drain_serial))


def opened(ctx: Context, node: r.Node, state: AdminState) -> r.Node:
    """The node leaves the drain."""
    ctx.tables.nodes.put(msgspec.structs.replace(_without(node), admin_state=state, held=False))
    ctx.bump(node.name)
    changed = ctx.tables.nodes.get(node.name)
    assert changed is not None
    return changed


def after_boot(ctx: Context, node: r.Node) -> r.Node:
    """The node as it is after a hello: evidence that an agent gave in another boot is void."""
    if node.evidence == Evidence.AGENT and node.evidence_boot_id != node.boot_id:
        ctx.audit("chimed", "evidence-withdrawn", node.name, "it has booted since its agent proved the drain")
        return _without(node)
    return node


def judge(ctx: Context, node: r.Node, session: Session, proof: DrainProof | None) -> r.Node:
    """The node after a report: the agent's proof is taken, or evidence that the facts contradict is withdrawn."""
    if node.admin_state != AdminState.DRAINED:
        return node
    fits = (
        proof is not None
        and proof.drain_serial == node.drain_serial
        and proof.boot_id == session.boot_id == node.boot_id
    )
    running = {uuid for uuid, report in session.reports.items() if report.observed not in OFF}
    if proof is not None:
        running |= set(proof.running)
    if running and node.evidence is not None:
        names = ", ".join(sorted(ctx.vm_name(uuid) for uuid in running)[:10])
        ctx.audit("chimed", "evidence-withdrawn", node.name, f"its agent does not report as stopped: {names}")
        return _without(node)
    if proof is None or not fits or running:
        return node
    if proof.clean and node.evidence is None and session.reported:
        ctx.audit(f"agentd@{node.name}", "drain-proven", node.name, "no process of a managed VM is left")
        return msgspec.structs.replace(node, evidence=Evidence.AGENT, evidence_boot_id=session.boot_id)
    if not proof.clean and node.evidence == Evidence.AGENT:
        ctx.audit("chimed", "evidence-withdrawn", node.name, "its agent cannot tell any more")
        return _without(node)
    return node


def check_word(given: Evidence | None) -> None:
    """Raises `ChimeError` when a request gives evidence other than a person's word."""
    if given not in (None, Evidence.OPERATOR):
        raise ChimeError("invalid", f"evidence {given} cannot be given by a request, only operator")


def check_attestable(node: r.Node, lost: bool) -> None:
    """Raises `ChimeError` when a person's word cannot be taken: the node's own agent knows better, or may be heard yet.
    `lost`: the node was judged, and its agent is not heard."""
    if not lost:
        raise ChimeError(
            "no-evidence",
            f"the agent of {node.name} is alive, or was a moment ago: it proves the drain itself when nothing runs "
            f"there any more (chime-tool node show {node.name}); your word is for nodes that cannot be heard",
        )


def doubts(node: r.Node) -> list[str]:
    """What speaks against a person's word for the node, to be said before it is given."""
    if FaultCode.AGENT_LOST not in node.reasons or FaultCode.PING_UNAVAILABLE in node.reasons:
        return []
    return [
        f"{node.name} ANSWERS PING: its host is not powered off, and its VMs may run. Give your word only if it was "
        "drained on the node itself (chime-agent drain): else VMs can run twice and data is lost"
    ]


def attest(ctx: Context, node: r.Node, actor: str, comment: str) -> r.Node:
    """A person says that the node runs none of its VMs."""
    ctx.audit(actor, "evidence-operator", node.name, comment or "attested that it runs none of its VMs")
    return msgspec.structs.replace(
        node, evidence=Evidence.OPERATOR, evidence_boot_id=node.boot_id, evidence_comment=comment
    )


def missing(node: r.Node) -> str:
    """What would be evidence for this node, for the refusal."""
    return (
        f"nothing proves that {node.name} runs none of its VMs. Any of these would: its agent comes back and reports "
        "the drain; or `chime-agent drain` on the node, once it reaches the server; or, if you know that it is powered "
        "off, your word: --evidence operator"
    )


def _without(node: r.Node) -> r.Node:
    return msgspec.structs.replace(node, evidence=None, evidence_boot_id="", evidence_comment="")
