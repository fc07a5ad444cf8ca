"""Imports, releases and surveys: what the server makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from chimed.core.agents import surveys
from chimed.core.state import effects as fx
from tests.unit.server.world import SPEC, Agent, Refused, World, import_of, uuid_of
from wire import messages as m
from wire.types import Evidence, MigrationPhase, Observed

NAME, UUID = "theirs", uuid_of("theirs")


@pytest.fixture
def world() -> World:
    made = World("n1", "n2")
    made.start()
    return made


def bring(world: World, name: str = NAME, node: str = "n1", **fields: Any) -> Any:
    answer = world.ask(import_of(name, node, **{"key": world.key(), **fields}))
    world.settle()
    return answer


def row(world: World, name: str = NAME) -> Any:
    """What is saved of the VM."""
    return world.tables().vms.first("name", name)


def refused(world: World, name: str = NAME, node: str = "n1", **fields: Any) -> m.ErrorBody:
    before = world.saved()
    with pytest.raises(Refused) as refusal:
        bring(world, name, node, **fields)
    assert world.saved() == before
    return refusal.value.body


def test_an_import_is_an_order_to_take_over_what_is_there(world: World) -> None:
    answer = bring(world)
    op, vm = world.op(answer), row(world)
    assert (op["state"], op["outcome"]) == ("succeeded", "managed on n1, running")
    assert (vm.desired, vm.epoch, vm.exists) == ("running", 2, True)
    held = world.agents["n1"].held[UUID]
    assert not held.create_disks and held.spec.xml == import_of(NAME, "n1").spec.xml


@pytest.mark.parametrize("leaves", [False, True])
def test_an_import_that_is_taken_over_is_a_vm_like_any_other(world: World, leaves: bool) -> None:
    """If its domain is lost, one is made. Of one that may be leaving it is not known that it is taken over."""
    agent = world.agents["n1"]
    agent.unadopted[UUID] = ("not-adopted", "about to be taken over")
    answer = bring(world)
    assert row(world).adopt and agent.held[UUID].adopt
    agent.unadopted.clear()
    if leaves:
        agent.begin_alone(UUID, "alone", "n2")
    agent.report()
    world.settle()
    assert world.op(answer)["state"] == "succeeded"
    assert (row(world).adopt, agent.held[UUID].adopt) == (leaves, leaves)


def test_an_import_needs_no_room(world: World) -> None:
    spec = m.VmSpec(vcpus=1000, memory_mib=1_000_000, xml="<domain/>")
    assert world.op(bring(world, spec=spec))["state"] == "succeeded"


def test_an_import_is_done_when_its_node_says_that_it_is_managed(world: World) -> None:
    agent = world.agents["n1"]
    agent.unadopted[UUID] = ("not-adopted", "about to be taken over")
    answer = bring(world)
    assert world.op(answer)["state"] == "running"
    agent.unadopted.clear()
    agent.sync()
    assert world.op(answer)["state"] == "succeeded"


def test_what_cannot_be_taken_over_is_given_back_and_never_removed(world: World) -> None:
    agent = world.agents["n1"]
    agent.unadopted[UUID] = ("adoption-refused", "its definition was changed")
    answer = world.ask(import_of(NAME, "n1"))
    agent.sync()
    op = world.op(answer)
    assert (op["state"], op["outcome"]) == ("failed", "its definition was changed; nothing was touched")
    assert [(row.epoch, row.keep) for row in world.tables().releases] == [(2, True)]
    agent.unadopted.clear()
    world.settle()
    assert not len(world.tables().vms) and not len(world.tables().releases)
    assert "vm-released" in world.actions(UUID) and "vm-deleted" not in world.actions(UUID)
    assert world.op(bring(world))["state"] == "succeeded" and row(world).epoch > 2


@pytest.mark.parametrize("kind", [m.VmStart, m.VmStop, m.VmReboot, m.VmDelete, m.VmRelease, m.VmMigrate])
def test_nothing_else_is_asked_of_it_before_the_import_has_ended(world: World, kind: type[m.Mutation]) -> None:
    """It could be a domain that cannot be taken over, which is given back by the end of the import."""
    agent = world.agents["n1"]
    agent.unadopted[UUID] = ("not-adopted", "about to be taken over")
    bring(world)
    error = world.refuse(kind, vm=NAME)
    assert (error.code, error.retriable) == ("locked", True) and "is being imported" in error.message


def test_an_import_of_which_nothing_is_known_waits(world: World) -> None:
    world.deaf.add("n1")
    answer = bring(world)
    world.run(20)
    assert world.op(answer)["state"] == "running"
    world.run(400)
    assert world.op(answer)["outcome"].startswith("node-unreachable")
    world.deaf.clear()
    world.run(60)
    assert row(world).adopt, "it is managed when the node comes back: the operator asked for it"


def test_a_report_from_before_the_import_does_not_end_it(world: World) -> None:
    world.agents["n1"].unadopted[UUID] = ("not-adopted", "")
    answer = bring(world)
    for report in (
        m.VmReport(uuid=UUID, epoch=2, revision=1, observed=Observed.RUNNING),
        m.VmReport(uuid=UUID, epoch=2, revision=row(world).revision, observed=Observed.UNKNOWN),
    ):
        world.agents["n1"].report(vms=(report,))
        assert world.op(answer)["state"] == "running"


def test_an_import_whose_vm_is_gone_has_failed(world: World) -> None:
    world.agents["n1"].unadopted[UUID] = ("not-adopted", "")
    answer = bring(world)
    world.tables().vms.delete(row(world))
    world.turn(fx.Tick())
    world.run(2)
    assert world.op(answer)["outcome"] == "the VM was deleted"


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"desired": "deleted"}, "invalid", "running or stopped"),
        ({"spec": SPEC}, "invalid", "XML"),
        ({"spec": m.VmSpec(vcpus=1, memory_mib=64, xml="<!DOCTYPE x><domain/>")}, "invalid", "DOCTYPE"),
        ({"node": "n9"}, "not-found", "n9"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "invalid", "UUID"),
    ],
)
def test_what_is_no_import_is_refused(world: World, fields: Any, code: str, says: str) -> None:
    body = refused(world, **fields)
    assert body.code == code and says in body.message


def test_a_name_or_uuid_that_is_taken_is_refused(world: World) -> None:
    bring(world)
    same = refused(world, node="n2", name=NAME)
    assert (same.code, same.message) == ("exists", f"a VM with UUID {UUID} exists already: {NAME} on n1")
    assert "named theirs exists already on n1" in refused(world, uuid=uuid_of("other")).message
    world.agents["n1"].stuck = True
    world.do(m.VmDelete, vm=NAME)
    assert refused(world).code == "exists"


def test_a_vm_that_a_node_still_has_to_give_up_is_refused(world: World) -> None:
    world.create("web", "n1")
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.VmDelete, vm="web")
    assert "has not confirmed yet" in refused(world, "web", "n2").message


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_vm_that_a_node_knows_as_chimes_is_refused(world: World, state: str) -> None:
    agent = world.agents["n2"]
    agent.strays[UUID] = (3, state)
    agent.report()
    assert "on n2 there is a VM with UUID" in refused(world).message
    assert "vm create --uuid" in refused(world, node="n2").message


def test_a_node_that_is_drained_locked_or_not_heard_takes_no_import(world: World) -> None:
    world.agents["n1"].stuck = True
    world.create("web", "n1")
    world.do(m.NodeDrain, name="n1")
    assert refused(world).code == "refused-unsafe"
    world.agents["n2"].power_off()
    assert world.node("n2")["admin_state"] == "enabled"
    world.run(60)
    assert refused(world, node="n2").code == "node-unreachable"


# --- release ----------------------------------------------------------------------------------------------------------


def test_a_vm_is_given_back_and_forgotten(world: World) -> None:
    bring(world)
    plan = world.do(m.VmRelease, vm=NAME, dry_run=True)
    assert plan["plan"] == [f"gives {NAME} back: it stays on n1 as it is, and Chime forgets it"] and plan["warnings"]
    answer = world.do(m.VmRelease, vm=NAME)
    assert [(row.node, row.epoch, row.keep) for row in world.tables().releases] == [("n1", 2, True)]
    again = world.do(m.VmRelease, vm=NAME)
    assert again["changed"] is False and again["operation"]["id"] == answer["operation"]["id"]
    assert world.refuse(m.OpCancel, id=answer["operation"]["id"]).message == "a release cannot be cancelled"
    world.deaf.add("n1")
    world.run(2)
    assert world.op(answer)["state"] == "running"
    world.deaf.clear()
    world.settle()
    assert world.op(answer)["outcome"].startswith("given back") and not len(world.tables().vms)


def test_a_deletion_after_a_release_removes_nothing(world: World) -> None:
    world.create("web", "n1")
    world.deaf.add("n1")
    world.do(m.VmRelease, vm="web")
    world.do(m.VmDelete, vm="web")
    assert [row.keep for row in world.tables().releases] == [True]


def test_a_release_after_a_deletion_is_refused(world: World) -> None:
    world.create("web", "n1")
    world.deaf.add("n1")
    answer = world.do(m.VmDelete, vm="web")
    assert world.refuse(m.VmRelease, vm="web").code == "conflict"
    assert world.refuse(m.OpCancel, id=answer["operation"]["id"]).message == "a deletion cannot be cancelled"


def test_a_release_needs_its_node(world: World) -> None:
    bring(world)
    world.agents["n1"].power_off()
    world.run(60)
    assert world.refuse(m.VmRelease, vm=NAME).code == "node-unreachable"


def test_a_vm_that_is_rebuilt_elsewhere_is_an_ordinary_one(world: World) -> None:
    shared = import_of(NAME, "n1").spec.xml
    disk = m.Disk(path="/srv/shared.qcow2")
    bring(world, spec=m.VmSpec(vcpus=1, memory_mib=64, xml=shared, disks=(disk,)))
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1")
    world.do(m.NodeRebuild, name="n1", evidence=Evidence.OPERATOR, comment="off")
    world.settle()
    vm = row(world)
    assert (vm.node, vm.adopt) == ("n2", False)
    assert [(row.node, row.keep) for row in world.tables().releases] == [("n1", False)]


# --- surveys ----------------------------------------------------------------------------------------------------------


def question(world: World, agent: Agent, **fields: Any) -> m.Survey:
    """An operator asks; what reaches the agent."""
    world.answers.pop(agent.route, None)
    assert world.say("op", m.NodeSurvey(name=agent.name, **fields)) is None
    asked = [body for body, _ in world.answers[agent.route] if isinstance(body, m.Survey)]
    return asked[-1]


def test_a_survey_is_passed_on_and_its_answer_back(world: World) -> None:
    agent = world.agents["n1"]
    asked = question(world, agent, after="a")
    assert asked.after == "a" and asked.session == agent.session
    vm = m.ForeignVm(uuid=UUID, name=NAME, observed=Observed.RUNNING)
    for more in (True, False):
        asked = question(world, agent)
        world.answers.clear()
        agent.say(m.Surveyed(session=asked.session, nonce=asked.nonce, vms=(vm,), more=more))
        ((answer, _),) = world.answers[b"op"]
        assert isinstance(answer, m.Ok) and answer.result == {"items": (vm,), "next": NAME if more else ""}
    asked = question(world, agent)
    agent.say(m.Surveyed(session=asked.session, nonce=asked.nonce, error="libvirt is away"))
    answer = world.answers[b"op"][-1][0]
    assert isinstance(answer, m.ErrorBody) and answer.message == "n1 cannot tell what it has: libvirt is away"


def test_a_survey_of_an_agent_that_begins_anew_is_to_be_asked_again(world: World) -> None:
    agent, other = world.agents["n1"], world.agents["n2"]
    asked = question(world, agent)
    world.answers.clear()
    other.hello()
    assert b"op" not in world.answers
    agent.hello()
    answer = world.answers[b"op"][-1][0]
    assert isinstance(answer, m.ErrorBody) and answer.code == "node-unreachable" and "ask again" in answer.message
    with pytest.raises(Refused, match="stale-session"):
        agent.say(m.Surveyed(session=asked.session, nonce=asked.nonce))


def test_only_the_node_that_was_asked_answers_and_once(world: World) -> None:
    asked = question(world, world.agents["n1"])
    other = world.agents["n2"]
    other.say(m.Surveyed(session=other.session or "", nonce=asked.nonce))
    agent = world.agents["n1"]
    for _ in range(2):
        agent.say(m.Surveyed(session=asked.session, nonce=asked.nonce))
    assert world.ask(m.ServerStatus())["counters"]["surveys-stale"] == 2
    with pytest.raises(Refused, match="stale-session"):
        agent.say(m.Surveyed(session="old", nonce=asked.nonce))


def test_a_survey_needs_a_node_that_is_heard_and_not_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.refuse(m.NodeSurvey, name="n9").code == "not-found"
    monkeypatch.setattr(surveys, "MAX_OPEN", 2)
    question(world, world.agents["n1"])
    question(world, world.agents["n1"])
    assert world.refuse(m.NodeSurvey, name="n1").code == "overloaded"
    world.run(surveys.OPEN_S)
    question(world, world.agents["n1"])
    world.agents["n1"].power_off()
    world.run(60)
    assert world.refuse(m.NodeSurvey, name="n1").code == "node-unreachable"


# --- imports and migrations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["not-adopted", "adoption-refused"])
def test_what_is_not_taken_over_is_not_migrated_nor_moved(world: World, problem: str) -> None:
    agent = world.agents["n1"]
    bring(world)
    agent.unadopted[UUID] = (problem, "about to be taken over")
    agent.report()
    with pytest.raises(Refused) as refusal:
        world.do(m.VmMigrate, vm=NAME, to="n2")
    assert refusal.value.code == "locked" and refusal.value.body.retriable
    assert "n1 has not taken it over: about to be taken over" in refusal.value.body.message
    evacuation = world.do(m.NodeEvacuate, name="n1")
    world.settle()
    assert world.op(evacuation)["steps"][0]["state"] == "waiting" and not len(world.tables().migrations)
    agent.unadopted.clear()
    agent.report()
    world.run(2)
    assert world.tables().migrations.get(UUID) is not None


def test_a_new_owner_takes_nothing_over(world: World) -> None:
    bring(world)
    world.do(m.VmMigrate, vm=NAME, to="n2")
    world.settle()
    source, order = world.agents["n1"], world.agents["n1"].said[UUID]
    world.agents["n2"].arrive(UUID, source.held[UUID].epoch, order.attempt)
    source.leave(UUID)
    source.report()
    world.settle()
    assert (row(world).node, row(world).adopt, row(world).exists) == ("n2", False, True)
    held = world.agents["n2"].held[UUID]
    assert held.arrival == order.attempt and not held.adopt


def test_what_is_being_migrated_is_not_given_back(world: World) -> None:
    bring(world)
    world.do(m.VmMigrate, vm=NAME, to="n2")
    world.settle()
    with pytest.raises(Refused) as refusal:
        world.do(m.VmRelease, vm=NAME)
    assert refusal.value.code == "locked" and not len(world.tables().releases)


def test_what_leaves_by_an_order_on_its_node_is_not_given_back(world: World) -> None:
    bring(world)
    agent = world.agents["n1"]
    agent.said[UUID] = m.MigrationReport(attempt="l1", phase=MigrationPhase.LEAVING, peer="n2")
    agent.report()
    with pytest.raises(Refused) as refusal:
        world.do(m.VmRelease, vm=NAME)
    assert refusal.value.code == "locked" and "by an order on the node" in refusal.value.body.message
    assert not len(world.tables().releases)


def test_a_copy_of_what_is_given_back_is_not_ended(world: World) -> None:
    """Its node's operator migrated it in the moment in which another gave it back."""
    bring(world)
    epoch = row(world).epoch
    world.agents["n1"].stuck = True
    world.deaf.add("n1")
    world.do(m.VmRelease, vm=NAME)
    world.agents["n2"].arrive(UUID, epoch, "l1", "paused")
    world.agents["n2"].report()
    assert [(row.node, row.keep) for row in world.tables().releases] == [("n1", True)]
    world.agents["n2"].arrivals.clear()
    world.agents["n2"].strays[UUID] = (epoch, "running")
    world.agents["n2"].report()
    assert ("n2", False) in [(row.node, row.keep) for row in world.tables().releases], "a copy that is no arrival is"


# --- what reaches beyond the VM ---------------------------------------------------------------------------------------

EVIL = m.VmSpec(
    vcpus=1, memory_mib=64,
    xml="<domain><devices><emulator>/tmp/e</emulator><disk><source file='/etc/shadow'/></disk></devices></domain>",
)  # fmt: skip
WORDS = "emulator /tmp/e; disk /etc/shadow: a path of the system"


@pytest.mark.parametrize("dry_run", [False, True])
def test_h5_an_import_that_reaches_beyond_the_vm_is_refused_without_a_flag(world: World, dry_run: bool) -> None:
    body = refused(world, spec=EVIL, dry_run=dry_run)
    assert body.code == "refused-unsafe" and not body.retriable
    assert body.message == f"{NAME} reaches beyond itself on its node: {WORDS}; if that is meant: --allow-unsafe"


def test_h5_an_import_that_is_allowed_is_audited_with_what_it_reaches(world: World) -> None:
    warned = [f"{NAME} reaches beyond itself: {words}" for words in WORDS.split("; ")]
    planned = world.ask(import_of(NAME, "n1", spec=EVIL, allow_unsafe=True, dry_run=True, key="d"))
    assert planned["warnings"] == warned and "unsafe-allowed" not in world.actions(UUID)
    answer = bring(world, spec=EVIL, allow_unsafe=True)
    assert answer["warnings"] == warned and world.op(answer)["state"] == "succeeded"
    (line,) = [event for _, event in world.disk.events if event.action == "unsafe-allowed"]
    assert (line.actor, line.subject, line.text) == ("op", UUID, "; ".join(warned))


@pytest.mark.parametrize("spec", [EVIL, m.VmSpec(vcpus=1, memory_mib=64, disks=(m.Disk(path="/etc/cron.d/x"),))])
def test_h5_a_vm_that_is_made_so_is_refused_without_a_flag(world: World, spec: m.VmSpec) -> None:
    body = world.refuse(m.VmCreate, name="evil", spec=spec)
    assert body.code == "refused-unsafe" and "--allow-unsafe" in body.message
    answer = world.do(m.VmCreate, name="evil", spec=spec, allow_unsafe=True)
    assert answer["warnings"] and world.actions(answer["vm"]["uuid"]).count("unsafe-allowed") == 1
    fine = world.do(m.VmCreate, name="fine", spec=SPEC, allow_unsafe=True)
    assert not fine["warnings"] and "unsafe-allowed" not in world.actions(fine["vm"]["uuid"])


def test_h5_xml_that_cannot_be_read_is_refused(world: World) -> None:
    body = refused(world, spec=m.VmSpec(vcpus=1, memory_mib=64, xml="<domain"))
    assert body.code == "invalid" and "malformed" in body.message
