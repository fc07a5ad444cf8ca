"""After a restore old rows stop, delete, drain and start nothing before a person has seen the list (E7); and nodes that
are removed and come back under their name (E1)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chimed import main
from chimed.core.rules import recovery
from chimed.core.state import rows as r
from tests.fakes.names import key_of
from tests.unit.server.migration.steps import owner, state, step
from tests.unit.server.test_storage import moved
from tests.unit.server.world import SPEC, Agent, World, import_of, running, uuid_of
from wire import messages as m
from wire.types import EPOCHS_PER_GENERATION, AdminState, Desired, Evidence, Observed

WEB = uuid_of("web")
ALARM = ("recovery-held", "server")


def row(world: World, name: str = "web") -> r.Vm:
    vm = world.tables().vms.get(uuid_of(name))
    assert vm is not None
    return vm


def node(world: World, name: str = "n1") -> r.Node:
    found = world.tables().nodes.get(name)
    assert found is not None
    return found


def come_back(world: World, saved: Any) -> World:
    """That backup is restored, and everybody has reported."""
    world.restore(saved)
    assert world.tables().meta.recovering
    world.start()
    world.run(40)
    assert not world.tables().meta.holding
    return world


def to_stop() -> World:
    """The backup wants web stopped; it was started since."""
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = world.saved()
    world.do(m.VmStart, vm="web")
    world.settle()
    return come_back(world, saved)


def to_delete() -> World:
    """The backup was taken when web was just being deleted, and it was not carried out: n1 could not be reached."""
    world = running("n1", "n2")
    world.do(m.VmDelete, vm="web")
    saved = world.saved()
    assert world.agents["n1"].poked and WEB in world.agents["n1"].held
    return come_back(world, saved)


def to_start() -> World:
    """n1 gave web up after the backup; the node that got it is gone, and its operator says so."""
    world = running("n1", "n2")
    saved = moved(world)
    world.agents["n2"].power_off()
    world.restore(saved)
    world.start("n1")
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(40)
    return world


HELD = {r.Held.STOP: to_stop, r.Held.DELETE: to_delete, r.Held.START: to_start}
RUNS = {r.Held.STOP: True, r.Held.DELETE: True, r.Held.START: False}


@pytest.fixture(params=list(HELD))
def what(request: pytest.FixtureRequest) -> r.Held:
    """What the restored database wants."""
    return r.Held(request.param)


@pytest.fixture
def world(what: r.Held) -> World:
    """A VM with which nothing is done before a person has said so."""
    return HELD[what]()


# --- held -------------------------------------------------------------------------------------------------------------


def test_e7_nothing_is_done_with_a_vm_that_is_held(world: World, what: r.Held) -> None:
    assert row(world).held == what
    world.run(300)
    assert (WEB in world.agents["n1"].running) is RUNS[what] and row(world).held == what
    if what != r.Held.DELETE:
        assert world.agents["n1"].held[WEB].hold, "its agent is told to leave it as it is"
    for page in world.agents["n1"].pull(since=0):
        assert not [release for release in page.releases if release.epoch >= row(world).epoch]


def test_e7_what_is_held_is_shown(world: World, what: r.Held) -> None:
    status = world.ask(m.ServerStatus())
    words = recovery.IN_WORDS[what]
    assert status["held_vms"] == [{"name": "web", "uuid": WEB, "node": "n1", "wants": what, "why": words}]
    assert status["held_nodes"] == [] and status["recovering"] is False
    assert f"held until a person confirms: {words}" in str(world.vm("web"))
    (alarm,) = [a for a in world.ask(m.AlarmList())["items"] if a["code"] == "recovery-held"]
    assert alarm["text"].startswith("1 VM and 0 nodes wait for a person's word")
    assert ("stay off" in alarm["text"]) is (what == r.Held.START)
    assert alarm["severity"] == ("critical" if what == r.Held.START else "warning")


def test_e7_a_crash_forgets_nothing_of_it(world: World, what: r.Held) -> None:
    world.crash()
    world.agents["n1"].start()
    world.run(60)
    assert row(world).held == what and ALARM in world.alarms()
    assert (WEB in world.agents["n1"].running) is RUNS[what]


@pytest.mark.parametrize("request_", ["migrate", "reboot", "release"])
def test_e7_a_vm_that_is_held_is_refused_for_what_needs_to_know_better(
    world: World, what: r.Held, request_: str
) -> None:
    kind = {"migrate": m.VmMigrate, "reboot": m.VmReboot, "release": m.VmRelease}[request_]
    error = world.refuse(kind, vm="web")
    assert error.code == "recovering" and f"web is held: {recovery.IN_WORDS[what]}" in error.message
    assert "Start, stop or delete it" in error.message


# --- a person decides -------------------------------------------------------------------------------------------------


def _is_free(world: World) -> None:
    assert row(world).held == r.Held.NOTHING and ALARM not in world.alarms()
    assert world.ask(m.ServerStatus())["held_vms"] == []
    assert not world.agents["n1"].held[WEB].hold


def word(what: r.Held) -> dict[str, str]:
    """What a person has to say for the VM to be started."""
    return {"evidence": "operator", "comment": "it is nowhere"} if what == r.Held.START else {}


def test_e7_start(world: World, what: r.Held) -> None:
    epoch = row(world).epoch
    if what == r.Held.START:
        assert world.refuse(m.VmStart, vm="web").code == "no-evidence", "it may run elsewhere"
    answer = world.do(m.VmStart, vm="web", **word(what))
    world.run(60)
    _is_free(world)
    assert state(world, answer)[0] == "succeeded" and world.agents["n1"].running == {WEB}
    assert (row(world).epoch > epoch) is (what == r.Held.DELETE), "it begins anew where a release was on its way"
    assert not world.tables().releases.get("n1", WEB)


def test_e7_stop(world: World, what: r.Held) -> None:
    epoch = row(world).epoch
    answer = world.do(m.VmStop, vm="web")
    world.settle()
    _is_free(world)
    assert state(world, answer)[0] == "succeeded" and not world.agents["n1"].running
    assert row(world).desired == Desired.STOPPED and (row(world).epoch > epoch) is (what == r.Held.DELETE)


def test_e7_delete(world: World, what: r.Held) -> None:
    answer = world.do(m.VmDelete, vm="web")
    world.settle()
    assert state(world, answer)[0] == "succeeded" and world.tables().vms.get(WEB) is None
    assert not world.agents["n1"].running and not world.agents["n1"].held and ALARM not in world.alarms()
    assert not world.tables().releases.get("n1", WEB)


@pytest.mark.parametrize("kind", [m.VmStart, m.VmStop, m.VmDelete])
def test_e7_a_dry_run_decides_nothing(world: World, what: r.Held, kind: type[m.Mutation]) -> None:
    before = world.saved()
    words = word(what) if kind is m.VmStart else {}
    assert world.do(kind, vm="web", dry_run=True, **words)["plan"]
    assert world.saved() == before and row(world).held == what


def test_e7_confirm_does_what_the_database_says(world: World, what: r.Held) -> None:
    does = {r.Held.STOP: "stops", r.Held.DELETE: "deletes", r.Held.START: "starts"}[what]
    before = world.saved()
    plan = world.do(m.RecoveryConfirm, comment="as it says", dry_run=True)["plan"]
    assert plan[0] == f"{does} web on n1" and world.saved() == before
    attested = ["added since the backup" in line for line in plan[1:]]
    assert attested == [True] * (what == r.Held.START), "it may be on a node that is not known"
    assert world.do(m.RecoveryConfirm, comment="as it says")["plan"] == plan
    world.run(60)
    assert ALARM not in world.alarms() and "recovery-confirmed" in world.actions("server")
    assert (WEB in world.agents["n1"].running) is (what == r.Held.START)
    assert (world.tables().vms.get(WEB) is None) is (what == r.Held.DELETE)
    again = world.do(m.RecoveryConfirm, comment="and again")
    assert again["changed"] is False and "nothing waits for a word" in again["plan"][0]


def test_e7_a_deletion_that_is_held_is_not_taken_for_one_under_way() -> None:
    world = to_delete()
    assert world.do(m.VmDelete, vm="web", dry_run=True)["plan"][0].startswith("stops web on n1 by force")
    world.agents["n1"].stuck = True
    world.do(m.VmDelete, vm="web")
    again = world.do(m.VmDelete, vm="web")
    assert again["plan"] == ["web is being deleted already"] and again["changed"] is False
    assert world.refuse(m.VmStop, vm="web").code == "conflict"


def test_e7_a_deletion_that_is_held_and_has_no_release_is_taken_back_all_the_same() -> None:
    """Of a database that somebody has mended by hand."""
    world = to_delete()
    release = world.tables().releases.get("n1", WEB)
    assert release is not None
    world.tables().releases.delete(release)
    world.turn()
    epoch = row(world).epoch
    world.do(m.VmStart, vm="web")
    world.settle()
    _is_free(world)
    assert row(world).epoch > epoch and world.agents["n1"].running == {WEB}


def test_e7_a_deletion_that_is_confirmed_comes_in_a_revision_that_is_read() -> None:
    """The agent has long passed the revision of the release that was held back."""
    world = to_delete()
    held_back = world.tables().releases.get("n1", WEB)
    assert held_back is not None and held_back.revision <= world.agents["n1"].revision
    world.do(m.RecoveryConfirm, comment="so be it")
    release = world.tables().releases.get("n1", WEB)
    assert release is not None and release.revision > world.agents["n1"].revision


# --- what need not be asked -------------------------------------------------------------------------------------------


def test_e7_its_owner_says_that_it_does_not_run() -> None:
    world = to_stop()
    agent = world.agents["n1"]
    for observed in (Observed.RUNNING, Observed.PAUSED, Observed.UNKNOWN):
        agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), observed=observed),))
        assert row(world).held == r.Held.STOP
    off = msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.STOPPED)
    world.agents["n2"].report(vms=(msgspec.structs.replace(off, seal=""),))
    assert row(world).held == r.Held.STOP, "the word of another is none"
    agent.report(vms=(off,))
    assert row(world).held == r.Held.NOTHING and ALARM not in world.alarms()


@pytest.mark.parametrize("what", [r.Held.DELETE, r.Held.START], indirect=True)
def test_e7_whether_it_runs_does_not_decide_what_is_lost_or_started(world: World, what: r.Held) -> None:
    agent = world.agents["n1"]
    agent.running.clear()
    agent.report()
    assert row(world).held == what and ALARM in world.alarms()


def test_e7_a_vm_that_was_off_all_the_time_is_not_asked_about() -> None:
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    come_back(world, world.saved())
    assert row(world).held == r.Held.NOTHING and "recovery-held" not in str(world.alarms(all=True))


# --- nodes ------------------------------------------------------------------------------------------------------------


def drained(*others: str) -> World:
    """The backup wants n1 drained; it was enabled since, and its VMs run: web, and others."""
    world = running("n1", "n2")
    for name in others:
        world.create(name, "n1")
    world.settle()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    assert node(world).evidence == Evidence.AGENT
    saved = world.saved()
    world.do(m.NodeEnable, name="n1")
    world.settle()
    assert world.agents["n1"].running
    return come_back(world, saved)


def test_e7_a_node_that_is_held_is_not_drained_and_nothing_is_proven_of_it() -> None:
    world = drained()
    assert node(world).held and node(world).evidence is None and node(world).evidence_boot_id == ""
    assert ALARM in world.alarms() and world.ask(m.ServerStatus())["held_nodes"] == ["n1"]
    world.run(300)
    assert world.agents["n1"].running == {WEB} and world.agents["n1"].order.hold
    error = world.refuse(m.NodeRebuild, name="n1")
    assert error.code == "refused-unsafe" and "drain it again first" in error.message
    assert world.refuse(m.NodeRebuild, name="n1", evidence="operator").code == "refused-unsafe"


@pytest.mark.parametrize(("kind", "runs"), [(m.NodeDrain, False), (m.NodeEnable, True), (m.NodeDisable, True)])
def test_e7_a_person_decides_for_a_node(kind: type[m.Mutation], runs: bool) -> None:
    world = drained()
    before = world.saved()
    world.do(kind, name="n1", dry_run=True)
    assert world.saved() == before
    world.do(kind, name="n1")
    world.settle()
    assert not node(world).held and ALARM not in world.alarms() and not world.agents["n1"].order.hold
    assert (WEB in world.agents["n1"].running) is runs
    assert (node(world).admin_state == AdminState.DRAINED) is not runs


def test_e7_confirm_drains_the_node() -> None:
    world = drained()
    plan = world.do(m.RecoveryConfirm, comment="as it says")["plan"]
    world.settle()
    assert plan == ["drains n1: its VMs are stopped"] and not world.agents["n1"].running
    assert not node(world).held and ALARM not in world.alarms() and node(world).evidence == Evidence.AGENT


def test_e7_a_drain_that_stops_nothing_is_not_asked_for() -> None:
    world = drained()
    agent = world.agents["n1"]
    agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.UNKNOWN),))
    assert node(world).held
    agent.report(vms=(msgspec.structs.replace(agent.vm_report(WEB), observed=Observed.STOPPED),))
    assert not node(world).held and ALARM not in world.alarms()


def test_e7_of_a_node_that_has_not_said_all_nobody_knows_whether_its_drain_stops_nothing() -> None:
    world = drained()
    agent = world.agents["n1"]
    agent.kill()
    assert agent.connect()
    agent.say(m.Report(session=agent.session or "", seq=1, revision=0, generation=2, digest="d", full=False))
    assert node(world).held
    for page in agent.pull():
        agent.apply(page)
    agent.report()
    assert node(world).held and agent.running


def test_e7_the_word_of_a_person_for_a_lost_node_counts_anew() -> None:
    """That a node was off when the backup was taken proves nothing: it must be said again."""
    world = drained()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="it is off now")
    assert node(world).evidence == Evidence.OPERATOR and not node(world).held and ALARM not in world.alarms()
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert owner(world)[0] == "n2" and world.agents["n2"].running == {WEB}


def test_e7_what_is_held_of_a_node_that_was_not_drained_is_nothing() -> None:
    enabled = r.Node(name="n1", public_key="k", evidence=Evidence.AGENT)
    assert recovery.held_node(enabled) == msgspec.structs.replace(enabled, restored=True)
    off = msgspec.structs.replace(enabled, admin_state=AdminState.DRAINED, evidence_comment="c", evidence_boot_id="b")
    held = recovery.held_node(off)
    assert (held.held, held.evidence, held.evidence_boot_id, held.evidence_comment) == (True, None, "", "")


def test_e7_the_list_is_whole_and_in_order() -> None:
    world = running("n1", "n2")
    for name in ("db", "app"):
        world.create(name, "n1")
        world.do(m.VmStop, vm=name)
    world.settle()
    saved = world.saved()
    for name in ("db", "app"):
        world.do(m.VmStart, vm=name)
    world.settle()
    world.agents["n2"].kill()
    world.restore(saved)
    world.start("n1")
    assert ALARM not in world.alarms(), "until the recovery is over the list is not whole"
    world.restore(saved)
    world.start()
    world.run(40)
    status = world.ask(m.ServerStatus())
    assert [vm["name"] for vm in status["held_vms"]] == ["app", "db"]
    world.do(m.VmStop, vm="db")
    (alarm,) = [a for a in world.ask(m.AlarmList())["items"] if a["code"] == "recovery-held"]
    assert alarm["text"].startswith("1 VM and 0 nodes"), "it says what is so now"


def test_e7_no_alarm_of_it_while_the_recovery_lasts() -> None:
    """Until all have reported, the list is not known."""
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = world.saved()
    world.do(m.VmStart, vm="web")
    world.settle()
    world.agents["n2"].kill()
    world.restore(saved)
    world.start("n1")
    world.run(30)
    assert row(world).held == r.Held.STOP and ALARM not in world.alarms()
    world.start("n2")
    world.run(30)
    assert ALARM in world.alarms()


# --- work that was begun, and what is held ----------------------------------------------------------------------------


def test_e7_a_rebuild_waits_for_the_word_about_a_vm_that_is_held() -> None:
    world = to_stop()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    answer = world.do(m.NodeRebuild, name="n1")
    text = f"{recovery.IN_WORDS[r.Held.STOP]}: confirm it (chime-tool recovery show)"
    assert step(world, answer) == ("waiting", text)
    world.do(m.RecoveryConfirm, comment="yes")
    world.run(3)
    assert owner(world)[0] == "n2" and row(world).desired == Desired.STOPPED


def test_e7_an_evacuation_leaves_what_is_held() -> None:
    world = to_stop()
    answer = world.do(m.NodeEvacuate, name="n1")
    assert step(world, answer) == ("skipped", recovery.IN_WORDS[r.Held.STOP]) and owner(world)[0] == "n1"


def test_e7_an_owner_that_does_not_follow_is_given_an_epoch_and_no_start() -> None:
    world = to_start()
    assert row(world).epoch > EPOCHS_PER_GENERATION and "epoch-raised" in world.actions(WEB)
    assert world.agents["n1"].held[WEB].hold and not world.agents["n1"].running
    assert "recovery show" in str(world.ask(m.Explain(kind="vm", name="web"))["lines"][1:])


def test_e7_one_that_should_be_off_is_given_an_epoch_and_held_too() -> None:
    """It is not started; who starts it is told that it may be elsewhere."""
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = moved_stopped(world)
    world.agents["n2"].power_off()
    world.restore(saved)
    world.start("n1")
    world.do(m.RecoveryConfirm, comment="n2 burnt down")
    world.run(40)
    assert row(world).epoch > EPOCHS_PER_GENERATION and row(world).held == r.Held.START
    assert not world.agents["n1"].running
    (held,) = world.ask(m.ServerStatus())["held_vms"]
    assert held["wants"] == "stop", "it stays off"
    assert "leaves off" in world.do(m.RecoveryConfirm, dry_run=True, comment="looked")["plan"][0]
    assert "may run on a node" in world.do(m.VmStart, vm="web", **word(r.Held.START))["warnings"][0]
    world.settle()
    assert world.agents["n1"].running == {WEB}


def moved_stopped(world: World) -> Any:
    saved = world.saved()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert owner(world)[0] == "n2"
    return saved


# --- nodes that are removed and come back (E1) ------------------------------------------------------------------------


@pytest.fixture
def removed() -> World:
    """n1 was lost, rebuilt by a true word and removed, and has web on its old disk; n2 runs it."""
    world = running("n1", "n2", "n3")
    world.do(m.NodeDisable, name="n3")
    for kind in (m.NodeDisable, m.NodeEnable) * 5:
        world.do(kind, name="n1")
    world.settle()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert owner(world)[0] == "n2"
    assert "never confirmed the removal of 1 moved VM" in world.do(m.NodeRemove, name="n1")["warnings"][0]
    return world


def add(world: World, name: str = "n1") -> Agent:
    world.do(m.NodeAdd, name=name, public_key=key_of(name))
    return world.agents[name]


def test_e1_releases_outlive_their_node(removed: World) -> None:
    assert removed.tables().releases.get("n1", WEB)
    removed.crash()
    removed.start("n2", "n3")
    assert removed.tables().releases.get("n1", WEB)
    agent = add(removed)
    agent.boot_again()
    removed.run(30)
    assert not agent.running and not agent.held and not removed.tables().releases.get("n1", WEB)
    assert removed.agents["n2"].running == {WEB}


def test_e1_a_node_that_is_added_again_goes_on_above_what_it_had(removed: World) -> None:
    """So that its full inventory is newer than any old state's, and its agent follows it."""
    highest = removed.tables().meta.forgotten_revision
    assert highest >= removed.agents["n1"].revision > 1
    agent = add(removed)
    assert node(removed).revision > node(removed).given > highest
    agent.boot_again()
    assert not agent.older and agent.revision > highest


def test_e1_the_highest_revision_of_all_that_were_removed_counts(removed: World) -> None:
    highest = removed.tables().meta.forgotten_revision
    removed.do(m.NodeDrain, name="n3")
    removed.settle()
    assert node(removed, "n3").revision < highest
    removed.do(m.NodeRemove, name="n3")
    assert removed.tables().meta.forgotten_revision == highest
    add(removed)
    removed.do(m.NodeRemove, name="n1")
    assert removed.tables().meta.forgotten_revision == highest + 2


def test_e1_what_its_full_inventory_does_not_name_is_not_started(removed: World) -> None:
    """Also when no release is left to say so."""
    for release in removed.tables().releases.by("node", "n1"):
        removed.tables().releases.delete(release)
    removed.turn()
    agent = add(removed)
    agent.boot_again()
    removed.run(60)
    assert agent.unnamed == {WEB} and not agent.running


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", ["import", "create"])
def test_e1_a_uuid_whose_release_waits(removed: World, there: bool, kind: str) -> None:
    """While its node is there it may have it yet; for one that is gone nobody waits, and later epochs are above it."""
    removed.do(m.VmDelete, vm="web")
    removed.settle()
    release = removed.tables().releases.get("n1", WEB)
    assert release is not None
    if there:
        add(removed)
    fields: dict[str, Any] = {"name": "web", "uuid": WEB, "node": "n2", "spec": SPEC, "dry_run": True}
    body = import_of("web", "n2") if kind == "import" else m.VmCreate(key="c", **{**fields, "dry_run": False})
    if there:
        error = removed.refuse(type(body), **{f: getattr(body, f) for f in body.__struct_fields__ if f != "key"})
        assert error.code == "conflict" and ("not removed yet" in error.message or "given up" in error.message)
        return
    removed.ask(body)
    removed.settle()
    assert row(removed).epoch > release.epoch and removed.tables().releases.get("n1", WEB) == release
    agent = add(removed)
    agent.boot_again()
    removed.run(30)
    assert not agent.running and owner(removed)[0] == "n2"


def test_e1_a_recovery_does_not_wait_for_a_node_that_was_removed(removed: World) -> None:
    del removed.agents["n1"]
    come_back(removed, removed.saved())
    assert removed.tables().releases.get("n1", WEB)


# --- what a word is about ---------------------------------------------------------------------------------------------


def test_a_word_counts_for_what_it_was_given_for() -> None:
    """Between the look and the word the recovery may have begun, or ended, by itself."""
    world = running("n1", "n2")
    stopped = world.saved()
    about = world.ask(m.ServerStatus())["recovery"]
    assert about == ""
    world.do(m.VmStop, vm="web", force=True)
    world.settle()
    backup = world.saved()
    world.do(m.VmStart, vm="web")
    world.settle()
    world.restore(backup)
    about = world.ask(m.ServerStatus())["recovery"]
    assert about == "recovering-2" and stopped != backup
    world.start()
    world.run(60)
    held = world.ask(m.ServerStatus())["recovery"]
    assert held.startswith("held-")
    error = world.refuse(m.RecoveryConfirm, comment="n2 is off", about=about)
    assert error.code == "conflict" and "recovery show" in error.message
    world.do(m.RecoveryConfirm, comment="it is to be stopped", about=held)
    world.settle()
    assert not world.agents["n1"].running and world.ask(m.ServerStatus())["recovery"] == ""


# --- what is said meanwhile -------------------------------------------------------------------------------------------


def recovering() -> World:
    """A restored database that waits for n2."""
    world = running("n1", "n2")
    world.agents["n2"].power_off()
    world.restore(world.saved())
    world.start("n1")
    assert world.tables().meta.waiting_for == ("n2",)
    return world


def test_a_drain_says_that_it_waits_for_the_recovery() -> None:
    world = recovering()
    dry = world.do(m.NodeDrain, name="n1", dry_run=True)
    until = "nothing is stopped before the recovery is over; awaited: n2 (chime-tool recovery show)"
    assert dry["warnings"] == [until]
    answer = world.do(m.NodeDrain, name="n1")
    assert world.op(answer)["steps"][0]["detail"] == "waits for the recovery to end (chime-tool recovery show)"
    world.start("n2")
    world.settle()
    assert world.op(answer)["state"] == "succeeded" and world.op(answer)["steps"][0]["detail"] == ""


def test_a_node_is_explained_with_what_the_server_waits_for() -> None:
    def said(world: World) -> str:
        return "\n".join(world.ask(m.Explain(kind="node", name="n1"))["lines"])

    world = recovering()
    assert "The server decides nothing for now: the database was restored or put back: " in said(world)
    assert "awaited: n2 (chime-tool recovery show)." in said(world)
    world.start("n2")
    world.run(5)
    assert "decides nothing" not in said(world)
    meta = msgspec.structs.replace(world.tables().meta, ahead=9, ahead_text="n2 has an inventory of generation 9")
    world.disk.tables["meta"][()] = meta
    world.crash()
    assert "this database is behind: n2 has an inventory of generation 9 (chime-tool recovery show)." in said(world)


def test_a_node_whose_drain_is_held_is_explained() -> None:
    world = drained()
    assert node(world).held
    assert any("a person has to confirm that" in line for line in world.ask(m.Explain(kind="node", name="n1"))["lines"])


def lines_of(world: World, kind: str, name: str) -> str:
    return "\n".join(world.ask(m.Explain(kind=kind, name=name))["lines"])


def test_a_node_that_is_held_for_a_drain_is_explained_with_the_words_that_are_for_it() -> None:
    world = drained()
    text = lines_of(world, "node", "n1")
    assert "Rebuild is refused: confirm first that it is to be drained (chime-tool node drain n1, or recovery" in text
    assert "chime-tool node enable n1" in text and "--evidence" not in text and "comes back" not in text


def test_no_rebuild_is_promised_while_it_recovers_or_is_behind() -> None:
    world = recovering()
    for ahead in (0, 9):
        meta = msgspec.structs.replace(world.tables().meta, ahead=ahead, ahead_text="n2 knows more" * bool(ahead))
        world.disk.tables["meta"][()] = meta
        world.disk.tables["nodes"][("n2",)] = msgspec.structs.replace(
            node(world, "n2"), admin_state=AdminState.DRAINED, evidence=Evidence.OPERATOR, held=False
        )
        world.crash()
        text = lines_of(world, "node", "n2")
        assert "Rebuild is refused: nothing is moved before the recovery is over." in text and "possible" not in text


def test_a_vm_that_is_held_on_a_drained_node_is_explained_with_the_hold_first() -> None:
    world = to_start()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    first, second = lines_of(world, "vm", "web").splitlines()[2:4]
    assert first == "Nothing is started or stopped here for now: see `chime-tool recovery show`."
    assert second == "When that is over: n1 is drained, rebuild or enable it."
    assert lines_of(drained(), "vm", "web").count("is drained") == 0, "that is not certain yet"
    world = recovering()
    world.do(m.NodeDrain, name="n1")
    world.agents["n1"].running.clear()
    world.agents["n1"].report()
    assert "Nothing is started or stopped here for now" in lines_of(world, "vm", "web")


def test_a_rebuild_promises_no_start_of_what_is_held() -> None:
    world = to_stop()
    world.create("db", "n1")
    world.settle()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="unplugged")
    plan = world.do(m.NodeRebuild, name="n1", dry_run=True)["plan"]
    stays = "leaves web until it is confirmed (chime-tool recovery show): the restored database wants it stopped"
    assert plan[1:] == ["starts db on n2", stays]


def test_the_end_of_a_drain_that_was_not_done_starts_only_what_does_not_run() -> None:
    world = drained("db")
    goes_on = "n1 was not drained, since that waited for a person's word: what runs there goes on"
    assert world.do(m.NodeEnable, name="n1", dry_run=True)["plan"] == ["sets n1 to enabled", goes_on]
    world.agents["n1"].running.discard(uuid_of("db"))
    world.agents["n1"].report()
    assert node(world).held
    plan = world.do(m.NodeEnable, name="n1", dry_run=True)["plan"]
    assert plan == ["sets n1 to enabled", goes_on, "starts 1 VM on n1: db"]


def test_the_end_of_a_drain_does_not_start_what_is_held() -> None:
    world = to_start()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    assert world.do(m.NodeEnable, name="n1", dry_run=True)["plan"] == ["sets n1 to enabled"]


def test_a_word_for_a_vm_on_a_drained_node_starts_it_when_the_drain_is_over() -> None:
    world = to_start()
    world.do(m.NodeDrain, name="n1")
    world.settle()
    plan = world.do(m.RecoveryConfirm, comment="looked", dry_run=True)["plan"]
    assert plan[0] == "starts web when n1, which is drained, is enabled or rebuilt"


@pytest.mark.parametrize("kind", [m.VmStop, m.VmDelete])
@pytest.mark.parametrize("dry_run", [True, False])
def test_who_ends_a_vm_that_may_be_elsewhere_is_told_so(kind: type[m.Mutation], dry_run: bool) -> None:
    world = to_start()
    assert world.do(kind, vm="web", dry_run=dry_run)["warnings"] == [f"it was held: {recovery.IN_WORDS[r.Held.START]}"]
    world = to_stop()
    assert world.do(kind, vm="web", dry_run=dry_run)["warnings"] == []


def test_the_refusal_to_remove_a_node_is_one_sentence() -> None:
    error = recovering().refuse(m.NodeRemove, name="n2")
    assert error.code == "recovering" and error.message == (
        "the database was restored or put back, and n2 may know what it does not: wait until the recovery is over, or "
        "end it without the nodes that cannot be heard (chime-tool recovery confirm)"
    )


def test_the_end_of_a_recovery_is_in_the_log() -> None:
    world = recovering()
    lines: list[str] = []
    world.core.ctx.log = lambda level, text: lines.append(f"{level}: {text}")  # type: ignore[method-assign]
    world.start("n2")
    world.run(5)
    assert "info: the recovery is over: no node is waited for any more" in lines


def test_the_log_begins_with_who_is_waited_for() -> None:
    pinger = SimpleNamespace(available=True, reason="")
    world = recovering()
    (caution,) = main.cautions(world.core, pinger)  # type: ignore[arg-type]
    assert caution.startswith("the database was restored or put back: ") and "awaited: n2 (" in caution
    world.start("n2")
    world.run(5)
    assert main.cautions(world.core, pinger) == []  # type: ignore[arg-type]
    pinger.available, pinger.reason = False, "no right to ping"
    (caution,) = main.cautions(world.core, pinger)  # type: ignore[arg-type]
    assert caution.startswith("no right to ping: ")


# --- what a node that is not known may have ---------------------------------------------------------------------------


def without(saved: Any, name: str) -> Any:
    """The backup is of before that node was added."""
    nodes = {key: value for key, value in saved["nodes"].items() if key != (name,)}
    return {**saved, "nodes": nodes}


def off_since_a_boot(*names: str) -> World:
    """A backup is restored, and n1, which has web, booted since it was taken."""
    world = running("n1", "n2", *names)
    saved = world.saved()
    world.agents["n1"].power_off()
    world.restore(saved)
    world.agents["n2"].start()
    world.agents["n1"].boot_again()
    world.run(40)
    assert not world.tables().meta.holding
    return world


def test_e7_what_does_not_run_on_a_node_that_has_booted_is_held() -> None:
    world = off_since_a_boot()
    assert row(world).held == r.Held.START and not world.agents["n1"].running and ALARM in world.alarms()
    assert (node(world).fresh, node(world).restored) == (False, False)
    world.do(m.RecoveryConfirm, comment="all nodes are known")
    world.settle()
    assert world.agents["n1"].running == {WEB} and ALARM not in world.alarms()


def test_e7_it_is_held_also_when_it_should_be_off() -> None:
    world = running("n1", "n2")
    world.do(m.VmStop, vm="web")
    world.settle()
    saved = world.saved()
    world.agents["n1"].power_off()
    world.restore(saved)
    world.agents["n2"].start()
    world.agents["n1"].boot_again()
    world.run(40)
    assert row(world).held == r.Held.START and row(world).desired == Desired.STOPPED


def test_e7_what_runs_on_such_a_node_is_its_own() -> None:
    world = running("n1", "n2")
    saved = world.saved()
    world.agents["n1"].newest = None  # the agent has lost its state, and the VM runs on
    come_back(world, saved)
    assert row(world).held == r.Held.NOTHING and world.agents["n1"].running == {WEB} and ALARM not in world.alarms()


def test_e7_a_node_that_goes_on_starts_what_it_has() -> None:
    world = running("n1", "n2")
    saved = world.saved()
    world.agents["n1"].running.clear()
    world.agents["n1"].stuck = True
    world.restore(saved)
    world.start()
    world.agents["n1"].stuck = False
    world.run(40)
    assert row(world).held == r.Held.NOTHING and world.agents["n1"].running == {WEB} and not node(world).restored


def test_e7_it_waits_until_it_is_known_what_runs() -> None:
    world = running("n1", "n2")
    saved, agent = world.saved(), world.agents["n1"]
    agent.power_off()
    world.restore(saved)
    world.agents["n2"].start()
    agent.why_failed = ""
    reports = agent.vm_report
    agent.vm_report = lambda uuid: msgspec.structs.replace(reports(uuid), observed=Observed.UNKNOWN)  # type: ignore[method-assign]
    agent.boot_again()
    world.run(40)
    assert not world.tables().meta.holding and node(world).fresh and row(world).held == r.Held.NOTHING
    assert not agent.running, "it holds until then"
    agent.vm_report = reports  # type: ignore[method-assign]
    agent.report(full=True)
    world.run(5)
    assert not node(world).fresh and row(world).held == r.Held.START


def test_e7_one_that_has_left_is_not_waited_for() -> None:
    """n1 knows that web has left, and not what became of it: that is all that it will ever know."""
    world = running("n1", "n2")
    world.create("db", "n1")
    world.settle()
    saved, agent = world.saved(), world.agents["n1"]
    agent.power_off()
    world.restore(saved)
    world.agents["n2"].start()
    reports = agent.vm_report

    def left(uuid: str) -> m.VmReport:
        gone = {"observed": Observed.UNKNOWN, "problem": "migrated-away"} if uuid == WEB else {}
        return msgspec.structs.replace(reports(uuid), **gone)

    agent.vm_report = left  # type: ignore[method-assign]
    agent.boot_again()
    world.run(40)
    assert not node(world).fresh and {row(world).held, row(world, "db").held} == {r.Held.START}


def test_e7_also_when_a_person_has_answered_for_the_node_and_it_comes_later() -> None:
    world = running("n1", "n2")
    saved = world.saved()
    world.agents["n1"].power_off()
    world.restore(saved)
    world.agents["n2"].start()
    world.run(60)
    world.do(m.RecoveryConfirm, comment="n1 is off")
    assert not world.tables().meta.holding and node(world).restored
    world.agents["n1"].boot_again()
    world.run(40)
    assert not world.agents["n1"].running and row(world).held == r.Held.START


def test_e7_it_is_found_on_a_node_that_is_added_again() -> None:
    world = running("n1", "n2", "n3")
    world.do(m.NodeDisable, name="n2")
    saved = without(world.saved(), "n3")
    world.do(m.NodeDrain, name="n1")
    world.settle()
    world.do(m.NodeRebuild, name="n1")
    world.settle()
    assert world.agents["n3"].running == {WEB}
    world.restore(saved)
    world.agents["n2"].start()
    world.agents["n1"].boot_again()
    world.run(40)
    assert row(world).held == r.Held.START and world.agents["n3"].running == {WEB}
    world.do(m.NodeAdd, name="n3", public_key=key_of("n3"))
    world.agents["n3"].start()
    world.run(40)
    assert owner(world)[0] == "n3" and owner(world)[1] > EPOCHS_PER_GENERATION
    assert row(world).held == r.Held.NOTHING and ALARM not in world.alarms()
    assert world.agents["n3"].running == {WEB} and not world.agents["n1"].running


def test_e7_a_rebuild_forgets_nothing_that_waits_for_a_word() -> None:
    """web is to be deleted by the backup; its node is lost."""
    world = to_delete()
    world.agents["n1"].power_off()
    world.run(60)
    world.do(m.NodeDrain, name="n1", evidence="operator", comment="no power")
    plan = world.do(m.NodeRebuild, name="n1", dry_run=True)["plan"]
    assert plan[-1].startswith("leaves web until it is confirmed") and "forgets" not in str(plan)
    world.do(m.NodeRebuild, name="n1")
    assert row(world).held == r.Held.DELETE
    world.do(m.RecoveryConfirm, comment="as it says")
    assert "forgets web" in str(world.do(m.NodeRebuild, name="n1")["plan"])
    assert world.tables().vms.get(WEB) is None
