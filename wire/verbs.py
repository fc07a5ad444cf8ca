"""The table verb x role: which message types exist, who may send each, and what each carries.

`docs/protocol.md` shows this table; a test holds the two together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from wire import messages as m


class Role(StrEnum):
    """Whose key speaks."""

    AGENT = "agent"
    OPERATOR = "operator"
    SERVER = "server"


class Verb(NamedTuple):
    """`reply`: the type that answers it (besides `error`), or None if nothing does."""

    sender: Role
    body: type[m.Base]
    reply: str | None


VERBS: dict[str, Verb] = {
    # agent
    "hello": Verb(Role.AGENT, m.Hello, "welcome"),
    "heartbeat": Verb(Role.AGENT, m.Heartbeat, "heartbeat-ack"),
    "pull": Verb(Role.AGENT, m.Pull, "inventory"),
    "report": Verb(Role.AGENT, m.Report, "report-ack"),
    "surveyed": Verb(Role.AGENT, m.Surveyed, None),
    "bye": Verb(Role.AGENT, m.Bye, None),
    # server
    "welcome": Verb(Role.SERVER, m.Welcome, None),
    "heartbeat-ack": Verb(Role.SERVER, m.HeartbeatAck, None),
    "inventory": Verb(Role.SERVER, m.Inventory, None),
    "report-ack": Verb(Role.SERVER, m.ReportAck, None),
    "poke": Verb(Role.SERVER, m.Poke, None),
    "survey": Verb(Role.SERVER, m.Survey, "surveyed"),
    "ok": Verb(Role.SERVER, m.Ok, None),
    "error": Verb(Role.SERVER, m.ErrorBody, None),
    # operator
    "server.status": Verb(Role.OPERATOR, m.ServerStatus, "ok"),
    "node.list": Verb(Role.OPERATOR, m.NodeList, "ok"),
    "node.show": Verb(Role.OPERATOR, m.NodeShow, "ok"),
    "node.add": Verb(Role.OPERATOR, m.NodeAdd, "ok"),
    "node.rekey": Verb(Role.OPERATOR, m.NodeRekey, "ok"),
    "node.remove": Verb(Role.OPERATOR, m.NodeRemove, "ok"),
    "node.enable": Verb(Role.OPERATOR, m.NodeEnable, "ok"),
    "node.disable": Verb(Role.OPERATOR, m.NodeDisable, "ok"),
    "node.drain": Verb(Role.OPERATOR, m.NodeDrain, "ok"),
    "node.rebuild": Verb(Role.OPERATOR, m.NodeRebuild, "ok"),
    "node.evacuate": Verb(Role.OPERATOR, m.NodeEvacuate, "ok"),
    "node.survey": Verb(Role.OPERATOR, m.NodeSurvey, "ok"),
    "vm.list": Verb(Role.OPERATOR, m.VmList, "ok"),
    "vm.show": Verb(Role.OPERATOR, m.VmShow, "ok"),
    "vm.create": Verb(Role.OPERATOR, m.VmCreate, "ok"),
    "vm.import": Verb(Role.OPERATOR, m.VmImport, "ok"),
    "vm.release": Verb(Role.OPERATOR, m.VmRelease, "ok"),
    "vm.start": Verb(Role.OPERATOR, m.VmStart, "ok"),
    "vm.stop": Verb(Role.OPERATOR, m.VmStop, "ok"),
    "vm.reboot": Verb(Role.OPERATOR, m.VmReboot, "ok"),
    "vm.migrate": Verb(Role.OPERATOR, m.VmMigrate, "ok"),
    "vm.delete": Verb(Role.OPERATOR, m.VmDelete, "ok"),
    "op.list": Verb(Role.OPERATOR, m.OpList, "ok"),
    "op.show": Verb(Role.OPERATOR, m.OpShow, "ok"),
    "op.cancel": Verb(Role.OPERATOR, m.OpCancel, "ok"),
    "event.list": Verb(Role.OPERATOR, m.EventList, "ok"),
    "alarm.list": Verb(Role.OPERATOR, m.AlarmList, "ok"),
    "alarm.ack": Verb(Role.OPERATOR, m.AlarmAck, "ok"),
    "operator.add": Verb(Role.OPERATOR, m.OperatorAdd, "ok"),
    "operator.list": Verb(Role.OPERATOR, m.OperatorList, "ok"),
    "operator.remove": Verb(Role.OPERATOR, m.OperatorRemove, "ok"),
    "explain": Verb(Role.OPERATOR, m.Explain, "ok"),
    "recovery.confirm": Verb(Role.OPERATOR, m.RecoveryConfirm, "ok"),
}

TYPE_OF: dict[type[m.Base], str] = {verb.body: name for name, verb in VERBS.items()}
"""Message type by body class."""
