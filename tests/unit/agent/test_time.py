"""Time runs forward only (E): servers that are older or forked, a state that was put back, inventories that no longer
name a VM, and what is held after a restore."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agentd.core import inventory, planner
from agentd.core.durable import DECLINED, Attempt, Durable, Held, Left, Tombstone
from agentd.core.effects import Act, Action, Asked, Received
from agentd.core.facts import DomainState, Process, VmFacts
from agentd.core.guard import may, refusal, resume_refusal
from agentd.core.link import LinkState
from agentd.core.reporting import Reporter
from agentd.snapshot import unconfirmed
from tests.unit.agent.server import VM_1, VM_2, Server, assignment
from tests.unit.agent.test_guard import FACTS, GOOD, HELD, OFF
from tests.unit.agent.world import PEER, World
from wire import messages as m
from wire.types import EPOCHS_PER_GENERATION, AdminState, Desired, MigrationPhase, Observed, Outcome, Severity
from wire.words import FaultCode, Problem

replace = msgspec.structs.replace


def held(world: World, uuid: str = VM_1) -> Held:
    return world.saved.held[uuid]


def stays(world: World, uuid: str = VM_1, seconds: float = 120.0) -> None:
    """For that long nothing is done with the VM, and its process is the same."""
    calls = [call for call in world.hv.calls if call[1] == uuid and call[0] != "inspect"]
    before = world.hv._processes()
    world.run(seconds)
    assert [call for call in world.hv.calls if call[1] == uuid and call[0] != "inspect"] == calls
    assert world.hv._processes() == before


# --- what is older ----------------------------------------------------------------------------------------------------

KNOWN = Durable(node="n1", generation=3, history="h", life="l", revision=7, seal="s")
JUDGED = {
    "the same": (3, "h", 7, ""),
    "later": (3, "h", 8, ""),
    "a later generation": (4, "h", 0, ""),
    "a later generation of another history": (4, "x", 0, ""),
    "a lower generation": (2, "h", 99, "the server is of generation 2, and this node has followed generation 3"),
    "another history": (3, "x", 99, "another history with the same generation 3: there are two databases"),
    "a lower revision": (3, "h", 6, "the server has given revision 6, and this node has followed revision 7"),
    "of a server that knows no histories": (3, "", 7, ""),
    "less of a server that knows no histories": (3, "", 6, "has given revision 6"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_e4_what_is_older_is_not_followed(case: str) -> None:
    generation, history, revision, why = JUDGED[case]
    told = inventory.older(KNOWN, generation, history, revision)
    assert why in told and bool(told) is bool(why)


def test_e4_nothing_is_older_than_nothing_and_a_history_may_be_learned() -> None:
    assert inventory.older(Durable(node="n1"), 1, "x", 0) == ""
    assert inventory.older(replace(KNOWN, history=""), 3, "x", 7) == ""


def test_e4_the_point_is_saved_and_shown(running: World) -> None:
    server, saved = running.server, running.saved
    newest = m.Point(
        history="h1", generation=1, life="l1", revision=server.revision, seal=server.seal(server.revision)
    )
    assert saved.newest == newest
    running.restart_agent()
    running.run_until(lambda: running.ready)
    hello = running.bodies(m.Hello)[-1]
    assert isinstance(hello, m.Hello) and hello.newest == newest


def test_e4_of_a_server_of_an_earlier_version_there_is_no_point(world: World) -> None:
    world.server.seal = lambda revision: ""  # type: ignore[method-assign]
    world.server.history = world.server.life = ""
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: world.runs(VM_1))
    assert world.saved.newest is None


# --- a server that is older -------------------------------------------------------------------------------------------


def _put_back(server: Server) -> None:
    server.revision -= 1


def _forked(server: Server) -> None:
    server.history, server.revision = "fork", server.revision + 9


def _generation_before(server: Server) -> None:
    server.generation, server.revision = server.generation - 1, server.revision + 9


OLDER: dict[str, Callable[[Server], None]] = {
    "e4-put-back": _put_back, "e5-forked": _forked, "e5-before-the-restore": _generation_before,
}  # fmt: skip


@pytest.fixture
def second(running: World) -> World:
    """In the second generation, with VM_1 running."""
    running.server.recover()
    running.restart_agent()
    running.run_until(lambda: running.ready and running.saved.generation == 2)
    running.run(10.0)
    return running


@pytest.fixture(params=list(OLDER))
def older(request: pytest.FixtureRequest, second: World) -> World:
    """The same, and the server that answers is older: it wants VM_1 stopped, and VM_2 started."""
    second.real = second.server  # type: ignore[attr-defined]
    second.server = copy.deepcopy(second.server)
    second.server._sessions, second.server.session = second.server._sessions + 100, "of its own"
    second.server.change(VM_1, desired=Desired.STOPPED, graceful_s=0.0)
    second.server.assign(assignment(VM_2))
    second.server.revision = second.saved.revision
    OLDER[request.param](second.server)
    second.sent.clear()
    second.run_until(lambda: second.agent.link.state == LinkState.OLDER)
    return second


def test_e4_an_older_server_is_not_followed(older: World) -> None:
    before = older.saved
    stays(older)
    assert older.saved == before and not older.runs(VM_2) and older.agent.link.state == LinkState.OLDER
    assert any("older than what this node has followed" in line for line in older.logs)


def test_e4_it_hears_that_the_node_lives_and_no_more(older: World) -> None:
    older.sent.clear()
    older.run(100.0)
    beats = older.bodies(m.Heartbeat)
    assert len(beats) >= 6 and {type(body) for _, body in older.sent} == {m.Heartbeat}
    for beat in beats:
        assert isinstance(beat, m.Heartbeat) and beat.revision == 0
        (fault,) = [fault for fault in beat.faults if fault.code == FaultCode.SERVER_BEHIND]
        assert fault.severity == Severity.CRITICAL and fault.text.endswith("nothing of what it says is followed")


def test_e4_it_is_told_at_once(older: World) -> None:
    older.run(2.0)
    assert FaultCode.SERVER_BEHIND in older.server.faults


def test_e4_pokes_of_an_older_server_are_not_heard(older: World) -> None:
    older.run(1.0)
    older.sent.clear()
    older.poke()
    older.run(5.0)
    assert not older.bodies(m.Pull)


def test_e4_the_node_goes_on_from_what_it_knows(older: World) -> None:
    older.hv.kill(VM_1)
    older.run_until(lambda: older.runs(VM_1), 30.0)
    assert not older.bodies(m.Report), "its reports are of another time"


def test_e4_also_after_a_restart_of_the_agent(older: World) -> None:
    older.hv.kill(VM_1)
    older.restart_agent()
    older.run_until(lambda: older.runs(VM_1), 30.0)
    older.run_until(lambda: older.agent.link.state == LinkState.OLDER)
    assert not older.runs(VM_2)


def test_e2_after_a_boot_it_is_not_the_answer_that_confirms(older: World) -> None:
    """Nothing is started before a server that is not older has answered."""
    older.power_loss()
    older.start_agent()
    older.run(120.0)
    assert not older.runs(VM_1) and older.agent.link.state == LinkState.OLDER


def test_e4_it_is_followed_again_when_its_generation_rises(older: World) -> None:
    older.server.generation = 3
    older.server.session = "dropped"
    older.run_until(lambda: older.saved.generation == 3, 30.0)
    older.run_until(lambda: older.runs(VM_2) and not older.runs(VM_1))
    older.run(20.0)
    assert FaultCode.SERVER_BEHIND not in older.server.faults and older.ready
    assert older.server.reports[VM_1].observed == Observed.STOPPED


def test_e5_the_right_server_is_followed_again_at_once(older: World) -> None:
    older.server = older.real  # type: ignore[attr-defined]
    older.run_until(lambda: older.ready, 60.0)
    older.run(20.0)
    assert FaultCode.SERVER_BEHIND not in older.server.faults and older.runs(VM_1)
    assert older.server.reports[VM_1].observed == Observed.RUNNING


def test_e4_a_lost_heartbeat_ends_that_session_as_any_other(older: World) -> None:
    older.run(1.0)
    older.server.deaf = True
    older.run_until(lambda: older.agent.link.state == LinkState.IDLE, 60.0)
    older.server.deaf = False
    older.run_until(lambda: older.agent.link.state == LinkState.OLDER, 60.0)
    older.give(Received(m.ErrorBody(code="internal", message="a bug", retriable=True)))
    assert older.agent.link.state == LinkState.IDLE


@pytest.mark.parametrize("case", OLDER)
def test_e4_an_inventory_that_is_older_than_its_welcome_is_not_followed(second: World, case: str) -> None:
    """The server was reverted with its memory between the two: the session is the same, and it does not know. The next
    hello tells it."""
    before = second.saved
    page = second.server.page

    def reverted(body: m.Pull) -> m.Inventory:
        then = copy.deepcopy(second.server)
        OLDER[case](then)
        then.vms.clear()
        return Server.page(then, replace(body, since=0))

    second.server.page = reverted  # type: ignore[method-assign]
    second.sent.clear()
    second.poke()
    second.run_until(lambda: bool(second.bodies(m.Hello)))
    (hello,) = second.bodies(m.Hello)
    assert isinstance(hello, m.Hello) and hello.newest == second.saved.newest
    pulls = [pull for pull in second.bodies(m.Pull) if isinstance(pull, m.Pull) and pull.session == "s2"]
    assert (len(pulls) == 2) is (case != "e4-put-back"), "of another line everything is asked for first"
    stays(second, seconds=60.0)
    assert second.saved == before and FaultCode.SERVER_BEHIND in {fault.code for fault in second.agent._faults.all()}
    assert len(second.bodies(m.Hello)) < 20, "it does not storm"
    second.server.page = page  # type: ignore[method-assign]
    second.run_until(lambda: second.ready, 60.0)
    second.run(20.0)
    assert FaultCode.SERVER_BEHIND not in second.server.faults


def test_another_line_is_pulled_whole_before_it_is_followed(second: World) -> None:
    """The server has recovered in the same session: what changed since is not enough."""
    second.server.recover()
    second.server.vms.clear()
    second.sent.clear()
    second.poke()
    second.run_until(lambda: second.saved.generation == 3)
    assert [pull.since for pull in second.bodies(m.Pull) if isinstance(pull, m.Pull)][-1] == 0
    assert not held(second).named


def test_a_pull_of_more_pages_across_a_recovery_begins_anew(second: World) -> None:
    second.server.page_size = 1
    for number in range(2, 5):
        second.server.assign(assignment(f"00000000-0000-4000-8000-00000000000{number}", desired=Desired.STOPPED))
    page, asked = second.server.page, 0

    def recovered(body: m.Pull) -> m.Inventory:
        nonlocal asked
        asked += 1
        if asked == 2:
            second.server.recover()
        return page(body)

    second.server.page = recovered  # type: ignore[method-assign]
    second.poke()
    second.run_until(lambda: second.saved.generation == 3 and len(second.saved.held) == 4)
    assert all(entry.named for entry in second.saved.held.values())


# --- what a restored server gives, and this node had not --------------------------------------------------------------


@pytest.fixture
def restored(running: World) -> World:
    """The server was restored, and gives VM_2 in an epoch of before; it does nothing about what is declined."""
    running.server._raise_ignored = lambda report: None  # type: ignore[method-assign]
    running.server.assign(assignment(VM_2))
    running.server.recover()
    running.restart_agent()
    running.run_until(lambda: running.ready and running.saved.generation == 2)
    running.run(60.0)
    return running


def is_declined(world: World) -> bool:
    report = world.server.reports[VM_2]
    told = (report.problem, report.revision, report.detail) == (Problem.STALE_EPOCH, 0, DECLINED)
    return told and held(world, VM_2).declined and not world.runs(VM_2) and VM_2 not in world.hv.domains


def test_e7_what_this_node_did_not_have_is_declined(restored: World) -> None:
    assert is_declined(restored)
    assert restored.runs(VM_1) and not held(restored).declined, "what it has goes on"


def test_e7_it_is_declined_also_after_a_restart_and_when_it_is_given_again(restored: World) -> None:
    restored.restart_agent()
    restored.run(60.0)
    assert is_declined(restored)
    restored.server.change(VM_2, start_serial=2)
    restored.poke()
    restored.run(60.0)
    assert is_declined(restored)


def test_e7_in_a_later_epoch_it_is_followed(restored: World) -> None:
    restored.server.change(VM_2, epoch=EPOCHS_PER_GENERATION + 1)
    restored.poke()
    restored.run_until(lambda: restored.runs(VM_2))
    assert not held(restored, VM_2).declined and not restored.server.reports[VM_2].problem


@pytest.mark.parametrize(
    ("followed", "generation", "epoch", "declined"),
    [
        (1, 2, EPOCHS_PER_GENERATION, True),
        (1, 2, EPOCHS_PER_GENERATION + 1, False),
        (2, 2, 1, False),  # it is not restored since
        (0, 2, 1, False),  # an agent without a past knows of nothing that it might have had
    ],
)
def test_e7_what_is_declined_is_what_an_undone_epoch_gives(
    followed: int, generation: int, epoch: int, declined: bool
) -> None:
    had = Durable(node="n1", generation=followed)
    page = m.Inventory(
        session="s", nonce="n", generation=generation, revision=1, more=False,
        node=m.NodeOrder(admin_state=AdminState.ENABLED, drain_serial=0),
        vms=(assignment(epoch=epoch),),
    )  # fmt: skip
    merged, ignored = inventory.merge(had, [page], "b", False, full=True)
    assert merged.held[VM_1].declined is declined and not ignored


# --- what the newest full inventory does not name ---------------------------------------------------------------------


def _forgotten(world: World) -> None:
    """The server does not know the VM any more, and has no release for it."""
    del world.server.vms[VM_1]
    world.server.recover()
    world.restart_agent()
    world.run_until(lambda: world.ready)
    world.run(5.0)
    assert not held(world).named


def test_e3_what_is_not_named_and_runs_is_left_alone(running: World) -> None:
    _forgotten(running)
    stays(running)
    assert running.server.reports[VM_1].observed == Observed.RUNNING, "it is told of"


@pytest.mark.parametrize("how", ["crash", "boot", "guest"])
def test_e3_what_is_not_named_is_not_started(running: World, how: str) -> None:
    _forgotten(running)
    if how == "boot":
        running.power_loss()
        running.start_agent()
        running.run_until(lambda: running.ready)
    else:
        {"crash": running.hv.kill, "guest": running.hv.guest_shutdown}[how](VM_1)
    running.run(200.0)
    assert not running.runs(VM_1)
    report = running.server.reports[VM_1]
    assert report.observed == Observed.STOPPED
    if how != "guest":
        assert report.detail == "the newest inventory of the server does not name it"


def test_e3_what_is_named_again_is_started(running: World) -> None:
    _forgotten(running)
    running.hv.kill(VM_1)
    running.run(30.0)
    assert not running.runs(VM_1)
    running.server.assign(assignment(epoch=2))
    running.poke()
    running.run_until(lambda: running.runs(VM_1))
    assert held(running).named and running.server.reports[VM_1].epoch == 2


def test_e3_only_a_release_removes_what_is_not_named(running: World) -> None:
    _forgotten(running)
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: not running.runs(VM_1) and not running.server.releases)
    assert VM_1 not in running.saved.held


def test_e3_news_alone_forget_nothing(running: World) -> None:
    """Only what holds everything says what is not there any more."""
    del running.server.vms[VM_1]
    running.server.assign(assignment(VM_2, desired=Desired.STOPPED))
    running.poke()
    running.run_until(lambda: VM_2 in running.saved.held)
    assert held(running).named


def test_e3_a_full_inventory_may_come_in_pages(running: World) -> None:
    running.server.page_size = 1
    for number in range(2, 6):
        running.server.assign(assignment(f"00000000-0000-4000-8000-00000000000{number}", desired=Desired.STOPPED))
    running.restart_agent()
    running.run_until(lambda: running.ready and len(running.saved.held) == 5)
    assert all(entry.named for entry in running.saved.held.values())


# --- a state that was put back ----------------------------------------------------------------------------------------


@pytest.fixture
def old(running: World) -> World:
    """The state of now is put back later in the same boot, without the network: VM_1 has gone since."""
    saved = running.saved
    running.server.release(VM_1, 1)
    running.poke()
    running.run_until(lambda: not running.runs(VM_1) and not running.server.releases)
    running.network_down = True
    assert "an older state was put back" in running.put_back(saved)
    running.run(10.0)
    assert running.saved.put_back and VM_1 in running.saved.held
    return running


def test_e2_nothing_is_started_from_a_state_that_was_put_back(old: World) -> None:
    stays(old)
    assert not old.runs(VM_1)
    old.restart_agent()
    stays(old)
    assert not old.runs(VM_1), "also not by the next life of the agent"


def test_e2_what_the_server_confirms_is_so_again(old: World) -> None:
    old.network_down = False
    old.run_until(lambda: old.ready and not old.saved.put_back, 90.0)
    old.run(60.0)
    assert not old.runs(VM_1) and not held(old).named
    old.server.assign(assignment(epoch=2))
    old.poke()
    old.run_until(lambda: old.runs(VM_1))


def test_e2_an_older_server_confirms_nothing(old: World) -> None:
    old.network_down = False
    old.server.revision = 0
    old.run_until(lambda: old.agent.link.state == LinkState.OLDER, 90.0)
    old.run(60.0)
    assert old.saved.put_back and not old.runs(VM_1)


def test_e2_what_runs_is_neither_stopped_nor_defined_anew(running: World) -> None:
    """In the state that is put back it should be off."""
    before = running.saved
    running.server.change(VM_1, desired=Desired.STOPPED, graceful_s=0.0)
    running.poke()
    running.run_until(lambda: not running.runs(VM_1))
    stopped = running.saved
    running.server.begin(VM_1)
    running.poke()
    running.run_until(lambda: running.runs(VM_1))
    running.run(10.0)
    running.network_down = True
    running.put_back(stopped)
    stays(running)
    running.put_back(replace(before, held={VM_1: replace(held(running), vm=assignment(epoch=9))}))
    stays(running)
    assert running.runs(VM_1)
    running.network_down = False
    running.run_until(lambda: running.ready, 90.0)
    assert running.runs(VM_1)


def test_e2_commands_are_answered_and_not_carried_out(running: World) -> None:
    """Whether they were carried out before is not known any more."""
    saved = running.saved
    running.server.command("c1")
    running.network_down = True
    running.put_back(saved)
    running.run(1.0)
    running.network_down = False
    running.run_until(lambda: "c1" in running.server.results, 90.0)
    assert running.server.results["c1"].outcome == Outcome.INTERRUPTED and not running.reboots
    assert "the journal was lost" in running.server.results["c1"].detail
    running.server.command("c2")
    running.poke()
    running.run_until(lambda: "c2" in running.server.results)
    assert running.server.results["c2"].outcome == Outcome.DONE and len(running.reboots) == 1


def test_e2_a_drain_on_the_node_that_was_ended_since_does_not_count(running: World) -> None:
    running.network_down = True
    running.give(Asked(1, "drain", 0.0))
    running.run_until(lambda: not running.runs(VM_1))
    drained = running.saved
    running.network_down = False
    running.run_until(lambda: not running.saved.local_drain, 90.0)
    running.server.enable()
    running.poke()
    running.run_until(lambda: running.runs(VM_1))
    running.network_down = True
    running.put_back(drained)
    stays(running)
    assert running.runs(VM_1) and not running.saved.local_drain


def test_e2_a_person_drains_the_node_all_the_same(old: World) -> None:
    """What a person says on the node now is not of then."""
    old.hv.define(assignment())
    old.hv.start(VM_1)
    old.run(2.0)
    stays(old, seconds=30.0)
    assert old.runs(VM_1)
    old.give(Asked(1, "drain", 0.0))
    old.run_until(lambda: not old.runs(VM_1))


def test_a_node_that_has_another_key_has_its_state_confirmed() -> None:
    state = unconfirmed(GOOD)
    assert state.put_back and state.confirmed_boot == "" and state.held == GOOD.held
    assert refusal(replace(state, confirmed_boot="b"), VM_1, "b", FACTS)


# --- held -------------------------------------------------------------------------------------------------------------


def _order(**changes: Any) -> Durable:
    return replace(GOOD, order=replace(GOOD.order, **changes))


DOUBTS: dict[str, Durable] = {
    "the server recovers": _order(hold=True),
    "the VM waits for a person": replace(GOOD, held={VM_1: replace(HELD, vm=assignment(epoch=3, hold=True))}),
    "it is declined": replace(GOOD, held={VM_1: replace(HELD, declined=True)}),
    "it is not named": replace(GOOD, held={VM_1: replace(HELD, named=False)}),
    "put back": replace(GOOD, put_back=True),
}
RUNS = VmFacts(VM_1, True, replace(OFF, state=DomainState.RUNNING), (Process(VM_1, 7, "S"),))
SEEN = {
    "off": FACTS,
    "not defined": VmFacts(VM_1, True),
    "runs": RUNS,
    "runs by an old definition": replace(RUNS, domain=replace(OFF, state=DomainState.RUNNING, epoch=2)),
    "has arrived paused": replace(RUNS, domain=replace(OFF, state=DomainState.PAUSED, attempt="a")),
    "is still coming": replace(RUNS, domain=replace(OFF, state=DomainState.PAUSED, attempt="a", job=True)),
}


@pytest.mark.parametrize("doubt", DOUBTS)
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("wish", ["run", "stop", "delete", "drained"])
def test_e7_while_it_is_not_certain_nothing_is_done(doubt: str, seen: str, wish: str) -> None:
    """Not started, stopped, ended, defined or resumed, whatever the rows say."""
    durable = DOUBTS[doubt]
    entry, order = durable.held[VM_1], durable.order
    desired = {"stop": Desired.STOPPED, "delete": Desired.DELETED}.get(wish, Desired.RUNNING)
    if wish == "drained":
        order = replace(order, admin_state=AdminState.DRAINED, drain_serial=1, drain_graceful_s=0.0)
    vm = replace(entry.vm, desired=desired, graceful_s=0.0, arrival="a")
    durable = replace(durable, order=order, held={VM_1: replace(entry, vm=vm)})
    step = planner.plan(durable, SEEN[seen], "b", None, 1000.0)
    assert step.action is None and step.why
    certain = replace(GOOD, order=replace(order, hold=False), held={VM_1: replace(HELD, vm=replace(vm, hold=False))})
    does = planner.plan(certain, SEEN[seen], "b", None, 1000.0).action is not None
    assert does or (seen in ("off", "not defined") and wish != "run") or seen in ("runs", "is still coming")


@pytest.mark.parametrize("doubt", DOUBTS)
def test_e7_what_a_person_drains_on_the_node_is_stopped_all_the_same(doubt: str) -> None:
    durable = replace(DOUBTS[doubt], local_drain=True, local_drain_graceful_s=0.0)
    assert planner.held_back(durable, durable.held[VM_1]) == ""
    assert planner.plan(durable, RUNS, "b", None, 1000.0).action == Action.DESTROY
    assert planner.plan(durable, FACTS, "b", None, 1000.0).action is None, "and nothing is started"


@pytest.mark.parametrize("doubt", DOUBTS)
def test_e7_the_guard_refuses_by_itself(doubt: str) -> None:
    durable = DOUBTS[doubt]
    words = {
        "the server recovers": "the server recovers from a restore",
        "the VM waits for a person": "a person has to confirm what it wants of this VM",
        "it is declined": DECLINED,
        "it is not named": "the newest inventory of the server does not name it",
        "put back": "this node's state is older than what this boot has seen",
    }[doubt]
    assert words in (refusal(durable, VM_1, "b", FACTS) or "")
    entry = durable.held[VM_1]
    arrived = replace(durable, held={VM_1: replace(entry, vm=replace(entry.vm, arrival="a"))})
    assert words in (resume_refusal(arrived, VM_1, "b", SEEN["has arrived paused"]) or "")


@pytest.mark.parametrize("doubt", DOUBTS)
def test_e7_a_leftover_of_a_release_is_ended_all_the_same(doubt: str) -> None:
    """That this node gave the epoch up is certain."""
    durable = replace(DOUBTS[doubt], tombstones={VM_1: Tombstone(epoch=2)})
    assert planner.plan(durable, SEEN["runs by an old definition"], "b", None, 1.0).action == Action.DESTROY


def test_a_held_vm_of_a_person_is_told_of_as_such() -> None:
    sight = planner.observe(DOUBTS["the VM waits for a person"], FACTS, "")
    assert (sight.observed, sight.problem) == (Observed.STOPPED, "")
    assert sight.detail == "the server was restored: what it wants of the VM is not certain"
    failed = planner.observe(DOUBTS["it is not named"], FACTS, "no room")
    assert failed.observed == Observed.STOPPED and "does not name it" in failed.detail
    drained = replace(DOUBTS["it is not named"], local_drain=True)
    assert planner.observe(drained, FACTS, "").detail == ""


@pytest.mark.parametrize("graceful_s", [0.0, 60.0])
def test_e7_a_server_that_holds_stops_nothing(running: World, graceful_s: float) -> None:
    running.server.hold(True)
    running.server.change(VM_1, desired=Desired.STOPPED, graceful_s=graceful_s)
    running.server.drain(graceful_s)
    running.server.order = replace(running.server.order, hold=True)
    running.poke()
    running.run_until(lambda: running.saved.order.hold)
    stays(running)
    proof = running.server.proof
    assert proof is None or not proof.clean, "nothing is proven either"
    running.server.hold(False)
    running.poke()
    running.run_until(lambda: not running.runs(VM_1))


def test_e7_a_vm_that_is_held_is_left_alone_and_another_is_not(running: World) -> None:
    running.server.change(VM_1, desired=Desired.STOPPED, graceful_s=0.0, hold=True)
    running.server.assign(assignment(VM_2))
    running.poke()
    running.run_until(lambda: running.runs(VM_2))
    stays(running)
    running.hv.kill(VM_1)
    running.run(60.0)
    assert not running.runs(VM_1)
    running.server.change(VM_1, desired=Desired.RUNNING)
    running.poke()
    running.run(60.0)
    assert not running.runs(VM_1), "it is held until a person says so"
    running.server.change(VM_1, hold=False)
    running.poke()
    running.run_until(lambda: running.runs(VM_1))


def test_e7_a_migration_is_not_begun_of_what_has_gone(running: World) -> None:
    """The guard of a migration asks only whether it is under way: the server orders none while it holds."""
    attempt = Attempt(id="a", target="n2", address="", phase=MigrationPhase.LEAVING)
    durable = replace(DOUBTS["it is not named"], held={VM_1: replace(HELD, named=False, attempt=attempt)})
    assert may(Act(VM_1, Action.MIGRATE, 1, attempt=attempt), durable, "b", FACTS, frozenset()) is None


# --- seals ------------------------------------------------------------------------------------------------------------


def test_the_seal_of_the_assignment_is_echoed(world: World) -> None:
    world.server.assign(assignment(seal="s1"))
    world.poke()
    world.run_until(lambda: VM_1 in world.server.reports and world.runs(VM_1))
    world.run(5.0)
    assert world.server.reports[VM_1].seal == "s1"
    world.server.change(VM_1, epoch=2, seal="s2")
    world.poke()
    world.run_until(lambda: world.server.reports[VM_1].epoch == 2)
    assert world.server.reports[VM_1].seal == "s2"


def test_a_domain_shows_its_seal_when_the_snapshot_is_lost(running: World) -> None:
    running.server.change(VM_1, seal="s1", desired=Desired.STOPPED, graceful_s=0.0)
    running.poke()
    running.run_until(lambda: not running.runs(VM_1))
    running.server.change(VM_1, epoch=2, seal="s2", desired=Desired.STOPPED)
    running.poke()
    running.run(10.0)
    running.kill_agent()
    running.saved = Durable(node="n1")
    running._epochs.clear()
    running.server.vms.clear()
    running.server.reports = {}
    running.start_agent()
    running.run_until(lambda: VM_1 in running.server.reports)
    report = running.server.reports[VM_1]
    domain = running.facts(VM_1).domain
    assert domain is not None and (report.epoch, report.seal) == (domain.epoch, domain.seal) and report.revision == 0


def test_a_release_keeps_the_seal_of_what_it_ended() -> None:
    """A server that was restored may not know that this node had the VM."""
    page = m.Inventory(
        session="s", nonce="n", generation=1, history="h", life="l", seal="p", revision=4, node=GOOD.order,
        releases=(m.Release(uuid=VM_1, epoch=3),),
    )  # fmt: skip
    had = replace(GOOD, held={VM_1: replace(HELD, vm=assignment(epoch=3, seal="mine"))})
    merged, _ = inventory.merge(had, [page], "b", False)
    assert merged.tombstones[VM_1].seal == "mine" and VM_1 not in merged.held
    again, _ = inventory.merge(merged, [page], "b", False)
    assert again.tombstones[VM_1].seal == "mine", "also when it is asked again"
    other = replace(had, held={VM_1: replace(HELD, vm=assignment(epoch=2, seal="older"))})
    assert inventory.merge(other, [page], "b", False)[0].tombstones[VM_1].seal == "", "it is of another epoch"
    nothing = inventory.merge(Durable(node="n1"), [page], "b", False)[0]
    assert nothing.tombstones[VM_1].seal == ""


def test_what_is_not_owned_any_more_is_told_of_with_its_seal() -> None:
    """What has left, what runs here after its release though nothing marks it, and what bears a mark."""
    gone = Left(attempt="a", epoch=3, name="vm", target="n2", address="", seal="of what left")
    stone = Tombstone(epoch=3, seal="of what was released")
    process = VmFacts(VM_1, True, None, (Process(VM_1, 7, "S"),))
    marked = VmFacts(VM_1, True, replace(OFF, epoch=2, seal="of the domain"))
    nothing = replace(GOOD, held={}, tombstones={VM_1: stone})
    for durable, facts, told in (
        (replace(nothing, left={VM_1: gone}), {}, (3, "of what left")),
        (nothing, {VM_1: process}, (3, "of what was released")),
        (nothing, {VM_1: marked}, (2, "of the domain")),
        (replace(nothing, tombstones={}), {VM_1: marked}, (2, "of the domain")),
    ):
        report = Reporter().reports(durable, facts, {}, {}, {}, lambda uuid: False)[VM_1]
        assert (report.epoch, report.seal) == told and report.revision == 0


def test_what_is_owned_is_told_of_with_the_seal_of_the_epoch_that_is_told() -> None:
    newer = VmFacts(VM_1, True, replace(OFF, epoch=5, seal="of the domain"))
    mine = replace(GOOD, held={VM_1: replace(HELD, vm=assignment(epoch=3, seal="mine"))})
    for durable, facts, told in (
        (mine, {VM_1: FACTS}, (3, "mine")),
        (mine, {}, (3, "mine")),
        (mine, {VM_1: newer}, (5, "of the domain")),
        (replace(mine, tombstones={VM_1: Tombstone(epoch=4)}), {VM_1: FACTS}, (4, "")),
        (replace(mine, tombstones={VM_1: Tombstone(epoch=4)}), {}, (4, "")),
    ):
        report = Reporter().reports(durable, facts, {}, {}, {}, lambda uuid: False)[VM_1]
        assert (report.epoch, report.seal) == told


def test_what_leaves_takes_its_seal_along(running: World) -> None:
    running.server.change(VM_1, seal="mine")
    running.server.change(VM_1, epoch=2, seal="mine")
    order = m.MigrationOrder(target="n2", address=PEER)
    running.server.command("a1", kind="migrate", epoch=2, migration=order)
    running.poke()
    running.run_until(lambda: VM_1 in running.saved.left)
    assert running.saved.left[VM_1].seal == "mine" and running.saved.tombstones[VM_1].epoch == 2
    running.run(5.0)
    assert running.server.reports[VM_1].seal == "mine"


def test_a_full_inventory_marks_and_a_later_one_takes_the_mark_away() -> None:
    page = m.Inventory(session="s", nonce="n", generation=1, revision=4, node=GOOD.order)
    two = replace(GOOD, held={VM_1: HELD, VM_2: Held(vm=assignment(VM_2))})
    named = replace(page, vms=(assignment(VM_2),))
    merged, _ = inventory.merge(two, [named, page], "b", False, full=True)
    assert not merged.held[VM_1].named and merged.held[VM_2].named
    partly, _ = inventory.merge(merged, [page], "b", False)
    assert not partly.held[VM_1].named and partly.held[VM_2].named
    whole, _ = inventory.merge(merged, [replace(page, vms=(assignment(epoch=3), assignment(VM_2)))], "b", False, True)
    assert whole.held[VM_1].named and whole.held[VM_2].named
    ignored, why = inventory.merge(merged, [replace(page, vms=(assignment(epoch=2),))], "b", False, full=True)
    assert why and ignored.held[VM_1].named and not ignored.held[VM_2].named


def test_what_is_put_back_is_confirmed_by_any_inventory_that_is_not_older() -> None:
    page = m.Inventory(
        session="s", nonce="n", generation=1, history="h", life="l", seal="p", revision=4, node=GOOD.order
    )
    merged, _ = inventory.merge(replace(GOOD, put_back=True, confirmed_boot=""), [page], "b2", False, full=True)
    assert not merged.put_back and merged.confirmed_boot == "b2"
    assert merged.newest == m.Point(history="h", generation=1, life="l", revision=4, seal="p")
