"""Taking over VMs that a person made, and giving them back: on the node."""

from __future__ import annotations

import msgspec
import pytest

from agentd.core import adoption, guard, leaving, planner
from agentd.core import effects as fx
from agentd.core.drain import DrainWatch
from agentd.core.durable import Attempt, Durable, Held, Tombstone
from agentd.core.facts import Domain, DomainState, HostScan, Process, VmFacts
from agentd.hypervisor import HypervisorError
from agentd.libvirt import domain_xml
from agentd.local import offline
from tests.unit.agent.server import VM_1, VM_2, assignment
from tests.unit.agent.world import BOOT_1, PEER, World
from wire import messages as m
from wire.types import AdminState, Desired, Observed
from wire.words import Problem

NAME = "theirs"
XML = f"<domain><name>{NAME}</name><uuid>{VM_1}</uuid><on_crash>restart</on_crash></domain>"


def imported(**changes: object) -> m.Assignment:
    spec = m.VmSpec(vcpus=1, memory_mib=64, xml=XML)
    return assignment(**{"name": NAME, "epoch": 7, "spec": spec, "adopt": True, **changes})


def give(world: World, vm: m.Assignment) -> None:
    world.server.assign(vm)
    world.poke()


def problem(world: World) -> str:
    report = world.server.reports.get(VM_1)
    return report.problem if report else "nothing"


@pytest.fixture
def theirs(world: World) -> World:
    """A node with a VM of somebody else, which runs."""
    world.hv.person_define(VM_1, NAME)
    world.hv.domains[VM_1].xml = XML
    world.hv.person_start(VM_1)
    world.run(1.0)
    world.hv.calls.clear()
    return world


def changing(world: World) -> list[str]:
    """What was done to VMs."""
    return [call for call, _ in world.hv.calls if call not in ("scan", "inspect", "connect", "version", "survey")]


def taken(world: World) -> None:
    give(world, imported())
    world.run_until(lambda: world.hv.domains[VM_1].stamp is not None)
    world.run(6.0)


def given_back(world: World, epoch: int = 7) -> None:
    world.server.release(VM_1, epoch, keep=True)
    world.poke()
    world.run_until(lambda: bool(world.server.confirmed))
    world.run(6.0)


def test_a_running_vm_is_taken_over_without_being_touched(theirs: World) -> None:
    pid = theirs.hv.domains[VM_1].pid
    taken(theirs)
    domain = theirs.hv.domains[VM_1]
    assert (domain.pid, domain.xml, changing(theirs)) == (pid, XML, ["adopt"])
    assert theirs.server.reports[VM_1].observed == Observed.RUNNING and problem(theirs) == ""


def test_an_imported_vm_that_crashes_is_defined_as_chimes_and_started(theirs: World) -> None:
    taken(theirs)
    theirs.hv.kill(VM_1)
    theirs.run_until(lambda: theirs.runs(VM_1))
    assert changing(theirs) == ["adopt", "define", "start"]
    assert "<on_crash>destroy</on_crash>" in theirs.hv.domains[VM_1].xml
    assert not theirs.facts(VM_1).domain.adopted  # type: ignore[union-attr]


def test_an_imported_vm_that_is_off_stays_as_it_is(world: World) -> None:
    world.hv.person_define(VM_1, NAME)
    world.hv.domains[VM_1].xml = XML
    give(world, imported(desired=Desired.STOPPED))
    world.run(100.0)
    assert changing(world) == ["adopt"] and world.server.reports[VM_1].observed == Observed.STOPPED


def test_a_higher_epoch_changes_the_mark_only(theirs: World) -> None:
    taken(theirs)
    theirs.server.change(VM_1, epoch=9)
    theirs.poke()
    theirs.run_until(lambda: theirs.facts(VM_1).domain.epoch == 9)  # type: ignore[union-attr]
    assert changing(theirs) == ["adopt", "adopt"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda world: world.hv.domains.pop(VM_1), "defined here any more"),
        (lambda world: world.hv.person_undefine(VM_1), "transient"),
        (lambda world: world.hv.kill(VM_1), "does not run any more"),
        (lambda world: setattr(world.hv.domains[VM_1], "xml", "<domain><vcpu>9</vcpu></domain>"), "was changed"),
        (lambda world: setattr(world.hv.domains[VM_1], "name", "renamed"), "is named renamed"),
    ],
)
def test_what_changed_since_the_survey_is_refused_and_left_alone(theirs: World, change: object, says: str) -> None:
    change(theirs)  # type: ignore[operator]
    theirs.run(1.0)
    give(theirs, imported())
    theirs.run_until(lambda: problem(theirs) == Problem.ADOPTION_REFUSED)
    assert says in theirs.server.reports[VM_1].detail
    before = dict(theirs.hv.domains)
    given_back(theirs)
    assert theirs.hv.domains == before and not {"destroy", "undefine", "define", "start"} & set(changing(theirs))


def test_a_failed_call_is_tried_again_and_is_no_refusal(theirs: World) -> None:
    theirs.hv.fail_next("adopt")
    give(theirs, imported())
    theirs.run_until(lambda: problem(theirs) == Problem.NOT_ADOPTED)
    theirs.run(60.0)
    assert problem(theirs) == "" and changing(theirs) == ["adopt", "adopt"]


def test_nothing_is_done_to_an_imported_vm_before_it_is_taken_over(theirs: World) -> None:
    """Also when it should stop by then, or the node is drained."""
    theirs.hv.fail_next("adopt")
    theirs.server.drain(0.0)
    give(theirs, imported())
    theirs.run_until(lambda: "adopt" in changing(theirs))
    theirs.run(2.0)
    assert theirs.runs(VM_1) and changing(theirs) == ["adopt"]
    theirs.run_until(lambda: not theirs.runs(VM_1))
    assert changing(theirs) == ["adopt", "adopt", "destroy"]


def test_an_agent_that_dies_while_it_takes_over_goes_on(theirs: World) -> None:
    pid = theirs.hv.domains[VM_1].pid
    give(theirs, imported())
    theirs.run_until(lambda: VM_1 in theirs.saved.held)
    theirs.restart_agent()
    theirs.run(30.0)
    assert theirs.hv.domains[VM_1].pid == pid and problem(theirs) == ""
    assert not {"define", "destroy", "start"} & set(changing(theirs))


def test_a_vm_is_given_back_running_and_never_touched_again(theirs: World) -> None:
    taken(theirs)
    pid = theirs.hv.domains[VM_1].pid
    given_back(theirs)
    domain = theirs.hv.domains[VM_1]
    assert (domain.pid, domain.stamp, changing(theirs)) == (pid, None, ["adopt", "give_back"])
    assert VM_1 not in theirs.server.reports
    theirs.server.drain(0.0)
    theirs.poke()
    theirs.run(10.0)
    assert theirs.server.proof is not None and theirs.server.proof.clean
    theirs.hv.kill(VM_1)
    theirs.restart_agent()
    theirs.run(200.0)
    assert not theirs.runs(VM_1) and changing(theirs) == ["adopt", "give_back"]


def test_a_release_that_comes_again_or_late_never_ends_what_was_given_back(theirs: World) -> None:
    taken(theirs)
    given_back(theirs)
    for epoch, keep in ((7, True), (7, False), (3, False)):
        theirs.server.confirmed.clear()
        theirs.server.release(VM_1, epoch, keep=keep)
        theirs.poke()
        theirs.run(30.0)
        assert theirs.runs(VM_1) and theirs.server.confirmed
    theirs.server.assign(imported())  # of the epoch that was given back
    theirs.poke()
    theirs.run(10.0)
    assert theirs.hv.domains[VM_1].stamp is None


def test_a_vm_that_was_given_back_can_be_imported_again_and_deleted_then(theirs: World) -> None:
    taken(theirs)
    given_back(theirs)
    give(theirs, imported(epoch=8))
    theirs.run_until(lambda: theirs.hv.domains[VM_1].stamp is not None)
    theirs.server.release(VM_1, 8)
    theirs.poke()
    theirs.run_until(lambda: VM_1 not in theirs.hv.domains)


def test_an_agent_that_dies_while_it_gives_back_goes_on(theirs: World) -> None:
    taken(theirs)
    pid = theirs.hv.domains[VM_1].pid
    theirs.hv.fail_next("give_back")
    theirs.server.release(VM_1, 7, keep=True)
    theirs.poke()
    theirs.run_until(lambda: "give_back" in changing(theirs))
    theirs.restart_agent()
    theirs.run_until(lambda: bool(theirs.server.confirmed))
    assert theirs.hv.domains[VM_1].pid == pid and theirs.hv.domains[VM_1].stamp is None


def test_a_give_back_that_returns_late_does_not_confirm_a_later_release(theirs: World) -> None:
    """The mark of a higher epoch is still on it."""
    taken(theirs)
    give(theirs, imported(epoch=9))
    theirs.run(6.0)
    core, durable = theirs.agent, theirs.saved
    durable = durable.without_held(VM_1).with_tombstone(VM_1, Tombstone(epoch=9, keep=True))
    core.vms.in_flight[VM_1] = (99, fx.Action.GIVE_BACK)
    acted = fx.Acted(VM_1, fx.Action.GIVE_BACK, 99, theirs.hv.inspect(VM_1))
    assert core.vms.acted(acted, durable, theirs.now)[0].tombstones[VM_1].done is False


def test_a_given_back_vm_whose_domain_is_gone_is_confirmed(theirs: World) -> None:
    taken(theirs)
    del theirs.hv.domains[VM_1]
    theirs.hv.outside.append(Process(VM_1, 4242, "S"))  # a person runs it without libvirt
    given_back(theirs)
    assert theirs.server.confirmed


def test_the_guard_does_not_start_what_is_not_taken_over() -> None:
    held = Held(vm=imported())
    durable = Durable(node="n1", confirmed_boot=BOOT_1, held={VM_1: held})
    seen = VmFacts(VM_1, True, Domain(VM_1, NAME, DomainState.OFF))
    assert guard.refusal(durable, VM_1, BOOT_1, seen) == "it is imported, and not taken over yet"
    unconfirmed = msgspec.structs.replace(durable, confirmed_boot="")
    assert planner.plan(unconfirmed, seen, BOOT_1, None, 0.0).action is None
    transient = Domain(VM_1, NAME, DomainState.RUNNING, persistent=False)
    assert adoption.next_action(transient) is None


def test_what_was_given_back_is_no_leftover_and_does_not_count_in_a_drain() -> None:
    domain = Domain(VM_1, NAME, DomainState.RUNNING, epoch=7)
    keep = Tombstone(epoch=7, keep=True)
    assert not planner.is_leftover(domain, keep) and planner.is_leftover(domain, Tombstone(epoch=7))
    order = m.NodeOrder(admin_state=AdminState.DRAINED, drain_serial=1)
    durable = Durable(node="n1", confirmed_boot=BOOT_1, order=order, tombstones={VM_1: keep})
    for marked, clean in ((7, True), (None, True), (8, False)):
        seen = VmFacts(VM_1, True, msgspec.structs.replace(domain, epoch=marked), (Process(VM_1, 9, "S"),))
        watch = DrainWatch(BOOT_1)
        watch.judge(durable, {VM_1: seen}, 0.0, 5.0, 6.0)
        assert watch.proof is not None and watch.proof.clean is clean
        scan = HostScan(True, (seen.domain,) if seen.domain else (), seen.processes)
        assert offline._alive(durable, scan) == (set() if clean else {VM_1})


def test_a_survey_tells_what_is_not_managed(running: World) -> None:
    running.hv.person_define(VM_2, "other")
    session = running.server.session
    for nonce, ask in (("a", {}), ("b", {"uuid": VM_2}), ("c", {"uuid": VM_1}), ("d", {"after": "other"})):
        running.give(fx.Received(m.Survey(session=session, nonce=nonce, **ask)))
        running.run(1.0)
    answers = {body.nonce: body for body in running.server.surveyed}
    assert [vm.name for vm in answers["a"].vms] == ["other"] and answers["a"].vms[0].xml is None
    assert [vm.xml for vm in answers["b"].vms] == [running.hv.domains[VM_2].xml]
    assert answers["c"].vms == answers["d"].vms == ()


def test_a_survey_that_fails_says_so_and_one_of_another_session_is_dropped(running: World) -> None:
    running.hv.fail_next("survey", HypervisorError("libvirt is busy"))
    session = running.server.session
    running.give(fx.Received(m.Survey(session=session, nonce="a")))
    running.give(fx.Received(m.Survey(session="old", nonce="b")))
    running.give(fx.Surveyed(m.Survey(session="old", nonce="c")))
    running.run(1.0)
    assert [(body.nonce, body.error) for body in running.server.surveyed] == [("a", "libvirt is busy")]


# --- imports and migrations -------------------------------------------------------------------------------------------


def look(world: World) -> None:
    """The agent sees how things are."""
    world.agent._look_soon(world.now)
    world.run(1.0)


def copy_of_theirs(world: World, epoch: int = 7) -> None:
    """What a migration brings of a VM that was taken over on another node: its maker's definition, marked."""
    world.hv.person_define(VM_1, NAME)
    world.hv.person_start(VM_1)
    domain = world.hv.domains[VM_1]
    domain.xml, domain.state = XML, DomainState.PAUSED
    domain.stamp = domain_xml.Stamp(epoch, 1, "a1", "n0", adopted=True)
    look(world)
    world.hv.calls.clear()


def test_a_vm_that_is_not_taken_over_is_not_migrated(theirs: World) -> None:
    durable = Durable(node="n1", confirmed_boot=BOOT_1, held={VM_1: Held(vm=imported())})
    seen = theirs.hv.inspect(VM_1)
    assert leaving.objection(durable, VM_1, BOOT_1, seen) == "it is imported, and not taken over yet"
    theirs.hv.domains[VM_1].stamp = domain_xml.Stamp(7, 1, adopted=True)
    assert leaving.objection(durable, VM_1, BOOT_1, theirs.hv.inspect(VM_1)) is None


def test_an_imported_vm_leaves_with_its_makers_definition(theirs: World) -> None:
    taken(theirs)
    order = m.MigrationOrder(target="n2", address=PEER)
    theirs.server.change(VM_1, attempt="a1")
    theirs.server.command("a1", kind="migrate", migration=order, epoch=7)
    theirs.poke()
    theirs.run_until(lambda: theirs.runs_on_peer(VM_1))
    copy = theirs.peer.domains[VM_1]
    assert copy.xml == XML and copy.stamp is not None and (copy.stamp.attempt, copy.stamp.adopted) == ("a1", True)
    theirs.run(3.0)
    assert VM_1 in theirs.saved.left and changing(theirs) == ["adopt", "migrate", "hand_over"]


def test_a_makers_definition_that_a_migration_brought_is_kept_until_chime_starts_the_vm(world: World) -> None:
    copy_of_theirs(world)
    give(world, imported(epoch=8, adopt=False, arrival="a1"))
    world.run_until(lambda: world.facts(VM_1).domain.epoch == 8)  # type: ignore[union-attr]
    world.run(6.0)
    domain = world.hv.domains[VM_1]
    assert changing(world) == ["resume", "adopt"] and domain.xml == XML and problem(world) == ""
    assert domain.stamp == domain_xml.Stamp(8, world.server.vms[VM_1].revision, adopted=True)
    world.hv.kill(VM_1)
    world.run_until(lambda: world.runs(VM_1))
    assert changing(world) == ["resume", "adopt", "define", "start"] and "<on_crash>destroy" in domain.xml
    assert domain.stamp is not None and not domain.stamp.adopted


def test_a_makers_definition_that_is_off_and_stays_off_is_marked_anew(world: World) -> None:
    copy_of_theirs(world)
    world.hv.kill(VM_1)
    look(world)
    give(world, imported(epoch=8, adopt=False, desired=Desired.STOPPED))
    world.run(100.0)
    assert changing(world) == ["adopt"] and world.hv.domains[VM_1].xml == XML


def test_a_transient_copy_is_defined() -> None:
    copy = Domain(VM_1, NAME, DomainState.RUNNING, epoch=7, persistent=False, adopted=True)
    assert adoption.renewal(copy) == fx.Action.DEFINE


def test_after_a_lost_snapshot_an_imported_vm_that_is_gone_has_left(world: World) -> None:
    give(world, imported(attempt="a1"))
    world.run_until(lambda: VM_1 in world.saved.left)
    assert set(changing(world)) == {"settle"} and problem(world) == "migrated-away"


def test_a_vm_that_may_have_left_is_not_called_one_that_cannot_be_taken_over() -> None:
    held = Held(vm=imported(), attempt=Attempt(id="a1", target="n2", address=PEER))
    assert adoption.problem(held, VmFacts(VM_1, True), "") == ("", "")


def test_giving_back_means_no_newer_copy_and_none_that_came_since(theirs: World) -> None:
    taken(theirs)
    given_back(theirs)
    theirs.hv.domains[VM_1].stamp = domain_xml.Stamp(9, 1, "a1", "n0")
    look(theirs)
    theirs.hv.calls.clear()
    given_back(theirs, epoch=8)
    assert theirs.saved.tombstones[VM_1] == Tombstone(epoch=8, done=True, acked=True, keep=True)
    theirs.hv.domains[VM_1].stamp = domain_xml.Stamp(8, 1, "a1", "n0")
    look(theirs)
    theirs.run(6.0)
    assert changing(theirs) == [], "what came by a migration is its target's to judge"


@pytest.mark.parametrize(("hold", "state"), [(True, "running"), (False, "running"), (True, "off")])
def test_what_was_given_back_is_told_only_after_a_restore_and_while_it_runs(
    theirs: World, hold: bool, state: str
) -> None:
    """A server that has forgotten that would start the VM elsewhere."""
    taken(theirs)
    given_back(theirs)
    if state == "off":
        theirs.hv.destroy(VM_1)
    theirs.server.order = msgspec.structs.replace(theirs.server.order, hold=hold)
    theirs.server.revision += 1
    theirs.poke()
    theirs.run(3.0)
    assert (VM_1 in theirs.server.reports) == (hold and state == "running")
