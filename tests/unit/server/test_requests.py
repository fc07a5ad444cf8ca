"""What every changing request keeps: idempotency, dry runs, refusals, crashes before and after the commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.unit.server.world import SPEC, Refused, World, import_of, key_of, uuid_of
from wire import messages as m
from wire.types import Desired, Evidence
from wire.verbs import VERBS

Make = Callable[[World], m.Mutation]

MUTATIONS: dict[str, Make] = {
    "node.add": lambda w: m.NodeAdd(key="k", name="n9", public_key=key_of("n9")),
    "node.rekey": lambda w: m.NodeRekey(key="k", name="n2", public_key=key_of("n9")),
    "node.remove": lambda w: m.NodeRemove(key="k", name="spare"),
    "node.enable": lambda w: m.NodeEnable(key="k", name="off"),
    "node.disable": lambda w: m.NodeDisable(key="k", name="n1"),
    "node.drain": lambda w: m.NodeDrain(key="k", name="n1"),
    "node.rebuild": lambda w: m.NodeRebuild(key="k", name="dead", evidence=Evidence.OPERATOR, comment="off"),
    "node.evacuate": lambda w: m.NodeEvacuate(key="k", name="n1"),
    "vm.migrate": lambda w: m.VmMigrate(key="k", vm="web", to="n2"),
    "vm.create": lambda w: m.VmCreate(key="k", name="new", spec=SPEC, uuid=uuid_of("new")),
    "vm.import": lambda w: import_of("theirs", "n1", key="k"),
    "vm.release": lambda w: m.VmRelease(key="k", vm="web"),
    "vm.start": lambda w: m.VmStart(key="k", vm="web"),
    "vm.stop": lambda w: m.VmStop(key="k", vm="web"),
    "vm.reboot": lambda w: m.VmReboot(key="k", vm="web"),
    "vm.delete": lambda w: m.VmDelete(key="k", vm="web"),
    "op.cancel": lambda w: m.OpCancel(key="k", id=w.tables().operations.by("state", "running")[0].id),
    "alarm.ack": lambda w: m.AlarmAck(key="k", id=w.tables().alarms.by("cleared", None)[0].id),
    "operator.add": lambda w: m.OperatorAdd(key="k", name="second", public_key=key_of("second")),
    "operator.remove": lambda w: m.OperatorRemove(key="k", name="other"),
    "recovery.confirm": lambda w: m.RecoveryConfirm(key="k", comment="sure"),
}


def prepared(kind: str = "") -> World:
    """Nodes in every state: n1 with VMs, n2 free, off disabled, dead lost and drained with a VM, spare drained."""
    world = World("n1", "n2", "off", "dead", "spare")
    world.start()
    world.create("web", "n1")
    world.create("lost", "dead")
    world.do(m.NodeDisable, name="off")
    world.do(m.OperatorAdd, name="other", public_key=key_of("other"))
    world.do(m.NodeDrain, name="spare")
    world.settle()
    world.agents["dead"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="dead")
    world.agents["n2"].stuck = True
    world.do(m.VmCreate, name="slow", spec=SPEC, node="n2")
    if kind == "recovery.confirm":
        world.disk.tables["meta"][()] = msgspec.structs.replace(
            world.tables().meta, generation=2, waiting_for=("dead",)
        )
        world.crash()
        world.start("n1", "n2", "off", "spare")
    return world


def test_the_table_is_complete() -> None:
    assert set(MUTATIONS) == {name for name, verb in VERBS.items() if issubclass(verb.body, m.Mutation)}


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_one_key_has_one_effect_also_after_a_crash(kind: str) -> None:
    world = prepared(kind)
    body = MUTATIONS[kind](world)
    first = world.ask(body)
    assert first["changed"] is True
    saved, events = world.saved(), len(world.disk.events)
    assert world.ask(body) == first
    assert (world.saved(), len(world.disk.events)) == (saved, events)
    world.crash()
    assert world.ask(body) == first
    assert (world.saved(), len(world.disk.events)) == (saved, events)


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_a_key_with_another_body_is_a_conflict(kind: str) -> None:
    world = prepared(kind)
    world.ask(MUTATIONS[kind](world))
    assert world.refuse(m.OperatorAdd, key="k", name="third", public_key=key_of("third")).code == "key-conflict"


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_a_dry_run_changes_and_saves_nothing(kind: str) -> None:
    world = prepared(kind)
    body = msgspec.structs.replace(MUTATIONS[kind](world), dry_run=True)
    saved, events = world.saved(), len(world.disk.events)
    answer = world.ask(body)
    assert answer["plan"] and answer["operation"] is None and answer["changed"] is False
    assert (world.saved(), len(world.disk.events)) == (saved, events)
    assert world.ask(msgspec.structs.replace(body, dry_run=False))["changed"] is True, "the plan took the key"


@pytest.mark.parametrize("how", ["save", "send"])
@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_a_crash_at_the_commit_leaves_one_effect_of_the_retry(kind: str, how: str) -> None:
    world, twin = prepared(kind), prepared(kind)
    body = MUTATIONS[kind](world)
    assert world.say("op", body, **{how: False}) is None
    world.start("n1", "n2", "off", "spare")
    if how == "save":  # until every node was heard or judged since the server's start
        world.run(60)
        twin.run(60)
    world.ask(body)
    twin.ask(body)
    world.settle()
    twin.settle()
    assert {n: set(rows) for n, rows in world.saved().items()} == {n: set(rows) for n, rows in twin.saved().items()}
    done = [e.action for _, e in world.disk.events if e.actor == "op"]
    assert done == [e.action for _, e in twin.disk.events if e.actor == "op"]


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_every_change_leaves_a_line(kind: str) -> None:
    world = prepared(kind)
    before = len(world.disk.events)
    world.ask(MUTATIONS[kind](world))
    assert "op" in [e.actor for _, e in world.disk.events[before:]]


@pytest.mark.parametrize("how", ["save", "send"])
def test_a_crash_at_a_report_loses_nothing(how: str) -> None:
    """The report is not acknowledged, so it comes again: one event, one release confirmed, the operation ends."""
    world = prepared()
    answer = world.do(m.VmDelete, vm="web")
    agent = world.agents["n1"]
    for page in agent.pull():
        agent.apply(page)
    agent.act()
    event = m.AgentEvent(id="e1", code="vm-ended", uuid=uuid_of("web"))
    values: dict[str, Any] = {"events": (event,)}
    agent.say(report := _report(agent, values), **{how: False})
    assert agent.releases, "acknowledged though it was not sent"
    agent.connect()
    for page in agent.pull():
        agent.apply(page)
    agent.report(events=report.events)
    assert world.op(answer)["state"] == "succeeded"
    assert world.actions(uuid_of("web")).count("vm-ended") == 1
    assert not world.tables().releases.by("node", "n1")


def _report(agent: Any, values: dict[str, Any]) -> m.Report:
    agent.report_seq += 1
    return m.Report(
        session=agent.session, seq=agent.report_seq, revision=agent.revision, generation=agent.generation, digest="d",
        full=True, vms=tuple(agent.vm_report(u) for u in agent.held), released=tuple(agent.releases), **values,
    )  # fmt: skip


def test_refusals_change_nothing() -> None:
    world = prepared()
    cases: list[tuple[type[m.Base], dict[str, Any], str]] = [
        (m.NodeShow, {"name": "none"}, "not-found"),
        (m.VmShow, {"vm": "none"}, "not-found"),
        (m.NodeAdd, {"name": "n1", "public_key": key_of("q")}, "exists"),
        (m.NodeAdd, {"name": "q", "public_key": key_of("op")}, "exists"),
        (m.NodeRemove, {"name": "n1"}, "refused-unsafe"),
        (m.NodeRemove, {"name": "dead"}, "refused-unsafe"),
        (m.NodeDrain, {"name": "n1", "evidence": "operator", "comment": "x"}, "no-evidence"),
        (m.NodeDrain, {"name": "dead", "evidence": "fence", "comment": "x"}, "invalid"),
        (m.NodeRebuild, {"name": "n1"}, "refused-unsafe"),
        (m.NodeRebuild, {"name": "dead"}, "no-evidence"),
        (m.VmCreate, {"name": "web", "spec": SPEC}, "exists"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "uuid": uuid_of("web")}, "exists"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "node": "none"}, "not-found"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "node": "dead"}, "node-unreachable"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "node": "off"}, "no-room"),
        (m.VmCreate, {"name": "w2", "spec": m.VmSpec(vcpus=1, memory_mib=9_000_000)}, "no-room"),
        (m.VmStart, {"vm": "lost"}, "refused-unsafe"),
        (m.VmStop, {"vm": "lost"}, "node-unreachable"),
        (m.VmReboot, {"vm": "lost"}, "node-unreachable"),
        (m.VmDelete, {"vm": "lost"}, "node-unreachable"),
        (m.OpCancel, {"id": "op-999"}, "not-found"),
        (m.AlarmAck, {"id": 999}, "not-found"),
        (m.OperatorRemove, {"name": "nobody"}, "not-found"),
        (m.Explain, {"kind": "cat", "name": "n1"}, "invalid"),
        (m.NodeRemove, {"name": "off"}, "refused-unsafe"),
        (m.OperatorAdd, {"name": "other", "public_key": key_of("q")}, "exists"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "desired": Desired.DELETED}, "invalid"),
        (m.VmCreate, {"name": uuid_of("w2").upper(), "spec": SPEC}, "invalid"),
        (m.VmCreate, {"name": "w2", "spec": SPEC, "uuid": "11111111-1111-1111-1111-111111111111"}, "invalid"),
        (m.VmReboot, {"vm": "slow"}, "conflict"),
    ]
    for kind, fields, code in cases:
        assert world.refuse(kind, **fields).code == code, (kind, fields)
    text = world.refuse(m.VmCreate, name="w2", spec=SPEC, node="off").message
    assert "off is disabled" in text


def test_the_last_operator_stays() -> None:
    world = World()
    assert world.refuse(m.OperatorRemove, name="op").code == "refused-unsafe"


def test_an_error_is_not_saved_under_its_key() -> None:
    world = prepared()
    body = m.VmCreate(key="again", name="late", spec=SPEC, node="off")
    with pytest.raises(Refused):
        world.ask(body)
    world.do(m.NodeEnable, name="off")
    assert world.ask(body)["changed"]


def test_what_is_so_already_is_said_and_changes_nothing() -> None:
    world = prepared()
    ended = world.ask(m.OpList())["items"][0]
    assert ended["state"] == "succeeded"
    cases: list[tuple[type[m.Mutation], dict[str, Any], str]] = [
        (m.NodeEnable, {"name": "n1"}, "n1 is enabled already"),
        (m.NodeDisable, {"name": "off"}, "off is disabled already"),
        (m.NodeDrain, {"name": "spare"}, "spare is drained already (evidence agent)"),
        (m.NodeDrain, {"name": "dead"}, "dead is drained already (no evidence yet)"),
        (m.OpCancel, {"id": ended["id"]}, f"{ended['id']} has ended already: succeeded"),
        (m.RecoveryConfirm, {"comment": "sure"}, "the server is not recovering, and nothing waits for a word"),
    ]
    for kind, fields, words in cases:
        before, lines = world.saved(), len(world.disk.events)
        answer = world.do(kind, **fields)
        assert answer["plan"] == [words] and answer["changed"] is False
        after = world.saved()
        assert {**after, "answers": {}} == {**before, "answers": {}} and len(world.disk.events) == lines


def test_a_dry_run_of_the_operators_word_is_not_the_word() -> None:
    world = prepared()
    word = {"name": "dead", "evidence": Evidence.OPERATOR, "comment": "unplugged"}
    answer = world.do(m.NodeDrain, **word, dry_run=True)
    assert answer["plan"] == ["records your word that dead runs none of its VMs"]
    assert world.node("dead")["drain_evidence"] is None
    world.do(m.NodeDrain, **word)
    assert world.node("dead")["drain_evidence"] == "operator"


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(("kind", "fields", "stays"), [
    (m.VmCreate, {"name": "web", "spec": SPEC, "node": "n1"}, "the desired state of web stays running: chime-tool"),
    (m.VmStop, {"vm": "db"}, "the desired state of db stays stopped: chime-tool vm start db changes it"),
    (m.VmStart, {"vm": "db"}, "the desired state of db stays running: chime-tool vm stop db changes it"),
    (m.NodeDrain, {"name": "n1"}, "n1 stays drained: chime-tool node enable n1 changes that"),
    (m.VmReboot, {"vm": "db"}, ""),
])  # fmt: skip
def test_what_a_cancelled_operation_asked_for_stays(
    kind: type[m.Mutation], fields: dict[str, Any], stays: str, dry_run: bool
) -> None:
    world = World("n1")
    world.start()
    world.create("db", "n1")
    world.agents["n1"].stuck = True
    begun = world.do(kind, **fields)["operation"]
    assert begun["state"] == "running"
    warnings = world.do(m.OpCancel, id=begun["id"], dry_run=dry_run)["warnings"]
    assert len(warnings) == bool(stays) and "".join(warnings).startswith(stays)
    if not dry_run:
        assert world.do(m.OpCancel, id=begun["id"])["warnings"] == [], "it has ended"


@pytest.mark.parametrize("comment", ["", " ", "\t \n"])
def test_a_blank_comment_is_none(comment: str) -> None:
    for kind in ("recovery.confirm", "alarm.ack"):
        world = prepared(kind)
        body = msgspec.structs.replace(MUTATIONS[kind](world), comment=comment)
        if kind == "alarm.ack" and not comment:
            assert world.ask(body)["changed"], "it says none"
            continue
        with pytest.raises(Refused, match="the comment is empty") as refusal:
            world.ask(body)
        assert refusal.value.code == "invalid"


def test_a_node_that_is_there_already_is_given_a_new_key_by_another_request() -> None:
    refusal = prepared().refuse(m.NodeAdd, name="n1", public_key=key_of("new"))
    assert (refusal.code, "chime-tool node rekey n1" in refusal.message) == ("exists", True)
