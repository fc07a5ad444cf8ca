"""What is known besides the tables: who is heard, what the owner of a VM reports, how much room there is."""

from __future__ import annotations

from chimed.core.rules import placement, proofs
from chimed.core.state import rows as r
from chimed.core.state.liveness import Liveness, Phase
from chimed.core.state.sessions import Sessions
from chimed.core.state.turn import Context
from wire import messages as m
from wire.types import Health
from wire.words import FaultCode


class Facts:
    """Reads only."""

    def __init__(self, ctx: Context, sessions: Sessions, liveness: Liveness) -> None:
        self.ctx, self.sessions, self.liveness = ctx, sessions, liveness

    def is_live(self, node_name: str) -> bool:
        """Whether the node's agent is in session and heard: its VMs take commands, its reports count."""
        return self.liveness.phase(node_name) is Phase.ALIVE and self.sessions.get(node_name) is not None

    def is_lost(self, node: r.Node) -> bool:
        """Whether the node was judged not to be heard; between this and `is_live` nobody knows yet. What an earlier
        life of the server found holds until the node is heard again."""
        phase = self.liveness.phase(node.name)
        if phase is Phase.GRACE:
            return node.health == Health.UNREACHABLE or FaultCode.AGENT_LOST in node.reasons
        return phase in (None, Phase.AGENT_LOST, Phase.SILENT)

    def in_session(self, node_name: str) -> bool:
        """The node's agent is in session and has reported."""
        session = self.sessions.get(node_name)
        return session is not None and session.reported and self.is_live(node_name)

    def has_met_all(self) -> bool:
        """Whether every node has reported or was judged since the server's start. Before that one may be about to show
        that the database is older than what it was given: nothing is given to another node, and none starts anew.
        While nothing can be recorded nobody is met."""
        return self.ctx.meeting.is_over() and not self.ctx.read_only

    def report(self, vm: r.Vm) -> m.VmReport | None:
        """What the owner reports of the VM in its present epoch, while the owner is heard from."""
        session = self.sessions.get(vm.node)
        if session is None or self.liveness.phase(vm.node) is not Phase.ALIVE:
            return None
        report = session.reports.get(vm.uuid)
        return report if report is not None and report.revision > 0 and report.epoch == vm.epoch else None

    def said(self, node_name: str, uuid: str) -> m.VmReport | None:
        """What the node says of the VM, owner or not, in whatever epoch, while it is in session and has reported."""
        session = self.sessions.get(node_name)
        return session.reports.get(uuid) if session is not None and self.in_session(node_name) else None

    def holders(self, uuid: str, but: str) -> list[str]:
        """Nodes that have a VM of Chime's that the database does not know, by name. What is neither on the node `but`
        nor shown to be Chime's is a sighting, and counts for nothing."""
        nodes, said = [node.name for node in self.ctx.tables.nodes], self.sessions.sightings(uuid)
        return sorted({s.node for s, report in said if s.node == but or proofs.is_ours(self.ctx, report, nodes)})

    def room(self, node: r.Node) -> placement.Room:
        """What the node can hold, and holds or is about to: VMs that are being migrated to it count on both ends."""
        vcpus, memory_mib = self.ctx.tables.used(node.name)
        rows = self.ctx.tables.migrations.by("target", node.name)
        for vm in [vm for row in rows if (vm := self.ctx.tables.vms.get(row.uuid)) is not None]:
            vcpus, memory_mib = vcpus + vm.spec.vcpus, memory_mib + vm.spec.memory_mib
        return placement.room_of(node, (vcpus, memory_mib), self.ctx.policy)

    def candidates(self, without: str = "") -> list[placement.Candidate]:
        """All nodes but `without`, as placement wants them."""
        nodes = self.ctx.tables.nodes
        return [(n, self.room(n), self.in_session(n.name)) for n in nodes if n.name != without]
