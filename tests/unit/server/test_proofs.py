"""Whose word counts for what (docs/trust.md, H): an owner's, that of a sealed holder, that of a proven target. What
anybody else says is a sighting: it moves nothing, ends nothing, asks nobody, and nobody waits for it."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from chimed.core.rules import arrivals, behind, proofs
from chimed.core.state import rows as r
from chimed.core.work.rebuild import SIGHTED_S
from tests.unit.server.migration.steps import attempt, leave, lose, migrate, owner, said, state, step
from tests.unit.server.world import ADDRESS, SEAL_KEY, World, running, seal_of, uuid_of
from wire import messages as m
from wire import seals
from wire.types import EPOCHS_PER_GENERATION, Desired, MigrationPhase, Observed

WEB = uuid_of("web")
OTHER_KEY = seals.key_from("the secret key of another server")
OTHER_ADDRESS = "10.9.9.9"


@pytest.fixture
def world() -> World:
    """Three nodes, and the VM `web` that runs on n1."""
    return running("n1", "n2", "n3")


def report(epoch: int, observed: str = "running", **fields: Any) -> m.VmReport:
    """What a node says of `web`."""
    return m.VmReport(**{"uuid": WEB, "epoch": epoch, "revision": 0, "observed": Observed(observed), **fields})


def arrived(epoch: int, name: str, **fields: Any) -> m.MigrationReport:
    """What the copy of `web` shows that n1 has sent by the attempt `name`."""
    voucher = seals.voucher(seal_of(WEB, epoch, "n1"), name, ADDRESS)
    return m.MigrationReport(
        **{"attempt": name, "phase": MigrationPhase.ARRIVED, "peer": "n1", "address": ADDRESS, "voucher": voucher,
           **fields},
    )  # fmt: skip


def shows(world: World, name: str, *vms: m.VmReport, **fields: Any) -> None:
    """The node says that and nothing else; nobody follows it yet."""
    world.agents[name].report(vms=vms, **fields)


# --- seals ------------------------------------------------------------------------------------------------------------

FORGED = {
    "nothing": "",
    "of another node": seal_of(WEB, 2, "n2"),
    "of another epoch": seal_of(WEB, 3, "n3"),
    "of another VM": seal_of(uuid_of("db"), 2, "n3"),
    "of another key": seals.of_assignment(OTHER_KEY, WEB, 2, "n3"),
    "of a point": seals.of_point(SEAL_KEY, "n3", WEB, 2, "", 0),
    "in capitals": seal_of(WEB, 2, "n3").upper(),
    "no ASCII": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 32,
}


def test_h4_an_assignment_that_was_given_is_known_again(world: World) -> None:
    assert proofs.was_given(world.core.ctx, "n3", report(2, seal=seal_of(WEB, 2, "n3")))


@pytest.mark.parametrize("seal", FORGED)
def test_h4_an_assignment_that_was_not_given_is_known_for_that(world: World, seal: str) -> None:
    assert not proofs.was_given(world.core.ctx, "n3", report(2, seal=FORGED[seal]))


def test_h4_the_inventory_gives_the_seal_with_the_assignment(world: World) -> None:
    held = world.agents["n1"].held[WEB]
    assert held.seal == seal_of(WEB, held.epoch, "n1")
    assert proofs.was_given(world.core.ctx, "n1", world.agents["n1"].vm_report(WEB))


def test_h4_who_speaks_as_an_owner(world: World) -> None:
    ctx, vm = world.core.ctx, world.tables().vms.get(WEB)
    assert proofs.speaks_for(ctx, vm, "n1", report(9)), "the owner of the table needs no seal"
    assert not proofs.speaks_for(ctx, vm, "n3", report(2)) and not proofs.speaks_for(ctx, None, "n1", report(2))
    sealed = report(2, seal=seal_of(WEB, 2, "n3"))
    assert proofs.speaks_for(ctx, vm, "n3", sealed) and proofs.speaks_for(ctx, None, "n3", sealed)


# --- vouchers ---------------------------------------------------------------------------------------------------------

VOUCHED: dict[str, tuple[bool, dict[str, Any]]] = {
    "right": (True, {}),
    "of another attempt": (False, {"attempt": "b"}),
    "an address of no node": (False, {"address": OTHER_ADDRESS}),
    "made out for an address of no node": (False, {
        "address": OTHER_ADDRESS, "voucher": seals.voucher(seal_of(WEB, 2, "n1"), "a", OTHER_ADDRESS)}),
    "made out for no address": (False, {"address": "", "voucher": seals.voucher(seal_of(WEB, 2, "n1"), "a", "")}),
    "of another epoch": (False, {"voucher": seals.voucher(seal_of(WEB, 3, "n1"), "a", ADDRESS)}),
    "of a node that is not the owner": (False, {"voucher": seals.voucher(seal_of(WEB, 2, "n3"), "a", ADDRESS)}),
    "the seal itself": (False, {"voucher": seal_of(WEB, 2, "n1")}),
    "none": (False, {"voucher": ""}),
}  # fmt: skip


@pytest.mark.parametrize("case", VOUCHED)
def test_h3_a_voucher_is_for_one_attempt_of_one_owner_to_one_address(world: World, case: str) -> None:
    right, fields = VOUCHED[case]
    assert proofs.was_sent(world.core.ctx, "n2", report(2, migration=arrived(2, "a", **fields)), "n1") is right


def test_h3_a_voucher_is_for_an_address_of_the_node_that_shows_it(world: World) -> None:
    copy, ctx = report(2, migration=arrived(2, "a")), world.core.ctx
    world.tables().nodes.put(msgspec.structs.replace(_node(world, "n2"), address=OTHER_ADDRESS))
    assert not proofs.was_sent(ctx, "n2", copy, "n1") and proofs.was_sent(ctx, "n3", copy, "n1")
    world.tables().nodes.put(msgspec.structs.replace(_node(world, "n2"), ping_address=ADDRESS))
    assert proofs.was_sent(ctx, "n2", copy, "n1"), "any address that the node is known by"
    assert not proofs.was_sent(ctx, "nobody", copy, "n1")
    assert not proofs.was_sent(ctx, "n1", report(2, seal=seal_of(WEB, 2, "n1")), "n1"), "nobody sends a VM to itself"
    world.tables().nodes.put(msgspec.structs.replace(_node(world, "n2"), address="", ping_address="::::"))
    text = arrived(2, "a", address="::::", voucher=seals.voucher(seal_of(WEB, 2, "n1"), "a", "::::"))
    assert not proofs.was_sent(ctx, "n2", report(2, migration=text), "n1"), "what is no address is nobody's"


@pytest.mark.parametrize("said_", [None, m.MigrationReport(attempt="", phase=MigrationPhase.ARRIVED, peer="n1")])
def test_h3_a_copy_by_hand_bears_the_seal_of_its_owner(world: World, said_: m.MigrationReport | None) -> None:
    ctx = world.core.ctx
    assert proofs.was_sent(ctx, "n2", report(2, migration=said_, seal=seal_of(WEB, 2, "n1")), "n1")
    for seal in (seal_of(WEB, 2, "n2"), seal_of(WEB, 3, "n1"), ""):
        assert not proofs.was_sent(ctx, "n2", report(2, migration=said_, seal=seal), "n1")


def _node(world: World, name: str) -> r.Node:
    node = world.tables().nodes.get(name)
    assert node is not None
    return node


@pytest.mark.parametrize(("peer", "right"), [("n2", True), ("n3", False), ("n1", False), (ADDRESS, False), ("", False)])
def test_h3_a_source_names_its_target_so_that_one_node_is_meant(world: World, peer: str, right: bool) -> None:
    word = m.MigrationReport(attempt="a", phase=MigrationPhase.LEFT, peer=peer)
    assert proofs.is_target(world.core.ctx, "n2", "n1", word) is right


# --- sightings --------------------------------------------------------------------------------------------------------

EPOCHS = {"lower": -1, "the same": 0, "higher": 5, "impossible": 5 * EPOCHS_PER_GENERATION}
PHASES = (None, *MigrationPhase)
ATTEMPTS = ("of the open attempt", "of another attempt")


def _picture(world: World) -> dict[str, Any]:
    """All that the word of a node without a proof must not change."""
    saved = world.saved()
    others = {key: row for key, row in saved["releases"].items() if key[0] != "n3"}
    parts = {name: saved[name] for name in ("vms", "migrations", "commands", "operations")}
    return {**parts, "releases": others, "n1": saved["nodes"][("n1",)], "n2": saved["nodes"][("n2",)]}


@pytest.mark.parametrize("is_moving", [False, True])
@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("phase", PHASES)
def test_h4_a_sighting_changes_nothing_of_others(
    world: World, is_moving: bool, epoch: str, phase: MigrationPhase | None
) -> None:
    """It does not raise the owner's epoch, does not ask the owner, moves nothing, ends no attempt and no other copy."""
    if is_moving:
        migrate(world)
    before, at = _picture(world), owner(world)[1] + EPOCHS[epoch]
    names = [attempt(world), "alone"] if is_moving else ["alone"]
    for name, peer in itertools.product(names, ("n1", "n2")):
        word = None if phase is None else m.MigrationReport(attempt=name, phase=phase, peer=peer, address=ADDRESS)
        for observed in ("running", "paused", "stopped"):
            for seal in ("", seal_of(WEB, at, "n2")):
                shows(world, "n3", report(max(at, 0), observed, migration=word, seal=seal, name="web"))
                world.settle()
                assert _picture(world) == before, (name, observed, seal)
    assert not world.tables().meta.behind and world.vm("web")["observed"] in ("running", "migrating")
    counted = world.core.ctx.counters["impossible-epochs"]
    assert bool(counted) is (EPOCHS[epoch] > 0)


@pytest.mark.parametrize("problem", ["migrated-away", "newer-epoch", "stale-epoch", "start-failed"])
def test_h4_a_problem_that_another_node_tells_of_is_none(world: World, problem: str) -> None:
    before = _picture(world)
    shows(world, "n3", report(owner(world)[1], "stopped", problem=problem, detail="trust me"))
    world.settle()
    assert _picture(world) == before and ("vm-failed", "web") not in world.alarms()


def test_h4_a_start_does_not_wait_for_a_sighting(world: World) -> None:
    world.do(m.VmStop, vm="web")
    world.settle()
    shows(world, "n3", report(owner(world)[1] + 3, migration=arrived(2, "a", voucher="")))
    answer = world.do(m.VmStart, vm="web")
    world.agents["n1"].sync()
    assert state(world, answer)[0] == "succeeded"


def test_h3_a_copy_without_a_voucher_goes_and_costs_the_owner_nothing(world: World) -> None:
    before = owner(world)
    shows(world, "n3", report(before[1], migration=arrived(before[1], "a", voucher="")))
    release = world.tables().releases.get("n3", WEB)
    assert release is not None and release.epoch == before[1] and owner(world) == before
    world.settle()
    assert owner(world) == before


def test_h3_a_copy_with_a_voucher_is_asked_about_and_ends_the_epoch(world: World) -> None:
    """The owner may have sent it: it looks, and goes on in the next epoch."""
    before = owner(world)
    shows(world, "n3", report(before[1], migration=arrived(before[1], "a")))
    vm = world.tables().vms.get(WEB)
    assert vm is not None and vm.doubt == "a" and not world.tables().releases.by("uuid", WEB)
    world.agents["n1"].sync()
    assert owner(world) == ("n1", before[1] + 1)
    release = world.tables().releases.get("n3", WEB)
    assert release is not None and release.epoch == before[1]


# --- left, leaving, failed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["left", "failed"])
@pytest.mark.parametrize("who", ["n2", "n3"])
def test_h4_only_the_source_decides_an_attempt(world: World, phase: str, who: str) -> None:
    answer = migrate(world)
    epoch, name = owner(world)[1], attempt(world)
    word = m.MigrationReport(attempt=name, phase=MigrationPhase(phase), peer="n2")
    shows(world, who, report(epoch, "stopped", migration=word, seal=seal_of(WEB, epoch, who)))
    assert state(world, answer)[0] == "running" if who == "n3" else True
    shows(world, "n3", report(epoch, "stopped", migration=word))
    assert owner(world)[0] == "n1"
    leave(world)
    said(world, "n1")
    assert owner(world) == ("n2", epoch + 1)


def test_h4_leaving_in_the_word_of_a_third_holds_nothing_up(world: World) -> None:
    """A copy goes although somebody says that the VM is leaving by its attempt."""
    epoch = owner(world)[1]
    word = m.MigrationReport(attempt="a", phase=MigrationPhase.LEAVING, peer="n2")
    shows(world, "n3", report(epoch, "running", migration=word))
    world.agents["n2"].arrive(WEB, epoch, "a")
    said(world, "n2")
    said(world, "n1")
    assert not world.agents["n2"].arrivals and owner(world)[0] == "n1"
    assert arrivals.word(world.core.facts, WEB, epoch, "a") is None


def test_a_source_that_was_owner_before_is_believed_with_its_seal(world: World) -> None:
    """n1 had the VM in an epoch that the table has forgotten: what it says of that epoch counts, with the seal."""
    epoch = owner(world)[1] + 4
    word = m.MigrationReport(attempt="a", phase=MigrationPhase.LEFT, peer="n3")
    for seal, heard in ((seal_of(WEB, epoch, "n2"), True), ("", False), (seal_of(WEB, epoch, "n3"), False)):
        session = world.core.sessions.get("n2")
        assert session is not None
        world.core.sessions.note(session, [report(epoch, "stopped", migration=word, seal=seal)], True)
        assert (arrivals.word(world.core.facts, WEB, epoch, "a") is not None) is heard


# --- arrived ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "voucher", "moves"), [("n2", "", True), ("n3", "", False), ("n3", "x", False)])
def test_h3_of_an_ordered_attempt_only_its_target_arrives(world: World, who: str, voucher: str, moves: bool) -> None:
    migrate(world)
    epoch, name = owner(world)[1], attempt(world)
    world.agents["n1"].power_off()
    world.run(60)
    shows(world, who, report(epoch, migration=arrived(epoch, name, voucher=voucher)))
    assert owner(world) == (("n2", epoch + 1) if moves else ("n1", epoch))


@pytest.mark.parametrize("voucher", [True, False])
def test_h3_of_an_attempt_by_hand_the_voucher_counts(world: World, voucher: bool) -> None:
    """The source is lost, and a copy runs: it is the VM if the source has sent it."""
    epoch = owner(world)[1]
    world.agents["n1"].power_off()
    world.run(60)
    fields = {} if voucher else {"voucher": seals.voucher(seal_of(WEB, epoch, "n3"), "a", ADDRESS)}
    shows(world, "n3", report(epoch, migration=arrived(epoch, "a", **fields)))
    assert owner(world)[0] == ("n3" if voucher else "n1")
    assert not world.tables().releases.get("n3", WEB), "nobody can tell yet: the owner is not heard"


@pytest.mark.parametrize(("phase", "peer", "there"), [
    ("left", "n3", "moved"), ("left", "n2", "released"), ("leaving", "n3", "waits"), ("leaving", "n2", "released"),
    ("failed", "n3", "released"),
])  # fmt: skip
def test_h3_a_copy_without_a_voucher_is_what_its_source_says(world: World, phase: str, peer: str, there: str) -> None:
    """An agent of an earlier version makes none. The target is named, so that a third cannot claim the VM."""
    epoch, agent = owner(world)[1], world.agents["n1"]
    agent.begin_alone(WEB, "a", peer)
    session = world.core.sessions.get("n1")
    assert session is not None
    word = m.MigrationReport(attempt="a", phase=MigrationPhase(phase), peer=peer)
    world.core.sessions.note(session, [msgspec.structs.replace(agent.vm_report(WEB), migration=word)], True)
    agent.running.clear()
    shows(world, "n3", report(epoch, migration=arrived(epoch, "a", voucher="")))
    assert owner(world)[0] == ("n3" if there == "moved" else "n1")
    released = world.tables().releases.get("n3", WEB)
    assert (released is not None) is (there == "released")
    if there == "released":
        assert owner(world) == ("n1", epoch), "what was only sighted costs the owner nothing"


def test_h3_an_older_copy_is_what_the_owner_says_of_it_when_it_was_sent(world: World) -> None:
    """The owner got a new epoch while the VM was leaving it: its copy is of the epoch before."""
    epoch = owner(world)[1]
    world.agents["n1"].running.clear()
    for peer, moves in (("n2", False), ("n3", True)):
        session = world.core.sessions.get("n1")
        assert session is not None
        word = m.MigrationReport(attempt="a", phase=MigrationPhase.LEFT, peer=peer)
        away = report(epoch, "stopped", migration=word)
        world.core.sessions.note(session, [away], True)
        shows(world, "n3", report(epoch - 1, migration=arrived(epoch - 1, "a", voucher="")))
        assert (owner(world)[0] == "n3") is moves
        assert bool(world.tables().releases.get("n3", WEB)) is not moves
        for row in world.tables().releases.by("node", "n3"):
            world.tables().releases.delete(row)
            world.turn()
        shows(world, "n3")


# --- epochs that this database has not given --------------------------------------------------------------------------


def _second_generation(world: World) -> None:
    """The database was restored, and the recovery is over."""
    world.restore(world.saved())
    world.start()
    world.run(20)
    assert world.tables().meta.generation == 2 and not world.tables().meta.recovering


@pytest.mark.parametrize("seal", ["right", "of another", "none"])
@pytest.mark.parametrize("who", ["n1", "n3"])
def test_e4_a_higher_epoch_of_this_generation_shows_that_the_database_is_behind(
    world: World, who: str, seal: str
) -> None:
    before = owner(world)
    epoch = before[1] + 3
    given = {"right": seal_of(WEB, epoch, who), "of another": seal_of(WEB, epoch, "n2"), "none": ""}[seal]
    shows(world, who, report(epoch, revision=3, seal=given))
    assert owner(world) == before and not world.tables().releases.by("uuid", WEB)
    assert world.tables().meta.behind is (seal == "right")
    assert world.core.ctx.counters["impossible-epochs"] == (seal != "right")
    if seal == "right":
        text = f"{who} was given web in epoch {epoch}, and this database knows only {before[1]}"
        assert world.tables().meta.ahead_text == text and ("server-behind", behind.SERVER) in world.alarms()


def _undone(world: World, who: str, **fields: Any) -> m.VmReport:
    """An epoch of the first generation that is higher than the one of the second that the table has."""
    epoch = owner(world)[1] + 3
    assert epoch < EPOCHS_PER_GENERATION
    return report(epoch, seal=seal_of(WEB, epoch, who), **fields)


@pytest.mark.parametrize("revision", [0, 3])
def test_e5_an_epoch_of_a_history_that_was_undone_is_released_and_the_owner_is_left_alone(
    world: World, revision: int
) -> None:
    _second_generation(world)
    before = owner(world)
    copy = _undone(world, "n3", revision=revision)
    shows(world, "n3", copy)
    assert owner(world) == before and not world.tables().meta.behind
    release = world.tables().releases.get("n3", WEB)
    assert release is not None and release.epoch == copy.epoch
    assert world.vm("web")["observed"] == "running"


def test_e5_it_is_released_though_the_owner_is_not_heard(world: World) -> None:
    """No word of the owner makes an epoch that was undone the right one."""
    _second_generation(world)
    world.agents["n1"].kill()
    world.run(60)
    before, copy = owner(world), _undone(world, "n3")
    shows(world, "n3", copy)
    release = world.tables().releases.get("n3", WEB)
    assert release is not None and release.epoch == copy.epoch and owner(world) == before


def test_e5_the_owner_itself_goes_on_above_an_epoch_of_a_history_that_was_undone(world: World) -> None:
    """Its snapshot has lost the VM, and its domain bears what it once had."""
    _second_generation(world)
    copy = _undone(world, "n1")
    shows(world, "n1", copy)
    assert owner(world) == ("n1", EPOCHS_PER_GENERATION + 1)
    assert not world.tables().meta.behind and not world.tables().releases.by("uuid", WEB)


def test_e5_the_owner_has_left_in_an_epoch_of_a_history_that_was_undone(world: World) -> None:
    _second_generation(world)
    left = m.MigrationReport(attempt="a", phase=MigrationPhase.LEFT, peer="n2")
    world.agents["n1"].running.clear()
    shows(world, "n1", _undone(world, "n1", migration=left))
    assert owner(world)[0] == "n2"


@pytest.mark.parametrize(("phase", "released"), [("left", True), ("arrived", False)])
def test_e5_a_copy_or_a_departure_of_a_history_that_was_undone(world: World, phase: str, released: bool) -> None:
    """That it has left may be forgotten; a copy that has arrived is what its source says, and nobody speaks."""
    _second_generation(world)
    before = owner(world)
    word = m.MigrationReport(attempt="a", phase=MigrationPhase(phase), peer="n2")
    shows(world, "n3", _undone(world, "n3", migration=word))
    assert owner(world) == before and bool(world.tables().releases.get("n3", WEB)) is released


# --- after a restore --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("revision", [0, 3])
def test_h1_in_a_recovery_the_owner_follows_a_sealed_epoch_only(world: World, sealed: bool, revision: int) -> None:
    """It holds it, or it runs it and has lost its snapshot."""
    backup = world.saved()
    world.restore(backup)
    epoch = owner(world)[1] + 4
    world.agents["n3"].connect()
    seal = seal_of(WEB, epoch, "n3") if sealed else seal_of(WEB, epoch, "n1")
    shows(world, "n3", report(epoch, revision=revision, seal=seal), generation=2)
    assert owner(world) == (("n3", epoch) if sealed else ("n1", epoch - 4))
    assert bool(world.tables().releases.get("n1", WEB)) is sealed


def test_h1_in_a_recovery_a_vm_that_is_to_be_deleted_gets_no_other_owner(world: World) -> None:
    """It is held, and a person decides when all have reported."""
    world.do(m.VmDelete, vm="web")
    world.restore(world.saved())
    before = owner(world)
    epoch = before[1] + 4
    world.agents["n3"].connect()
    shows(world, "n3", report(epoch, revision=3, seal=seal_of(WEB, epoch, "n3")), generation=2)
    assert owner(world) == before and not world.tables().releases.get("n3", WEB)
    assert world.core.ctx.counters["impossible-epochs"] == 0


def test_h1_in_a_recovery_an_epoch_of_its_own_generation_has_not_been_given(world: World) -> None:
    """Its owner goes on in this generation already, in a higher one than it has told."""
    world.restore(world.saved())
    world.agents["n1"].connect()
    shows(world, "n1", report(owner(world)[1] + 2, seal=seal_of(WEB, owner(world)[1] + 2, "n1")), generation=2)
    before = owner(world)
    assert before == ("n1", EPOCHS_PER_GENERATION + 1) and world.tables().meta.recovering
    world.agents["n3"].connect()
    epoch = before[1] + 5
    shows(world, "n3", report(epoch, revision=3, seal=seal_of(WEB, epoch, "n3")), generation=2)
    assert owner(world) == before and world.core.ctx.counters["impossible-epochs"] == 1


def test_h1_in_a_recovery_an_epoch_above_all_generations_is_none(world: World) -> None:
    """Nobody can have been given it, whoever says so."""
    world.restore(world.saved())
    before, epoch = owner(world), 2 * EPOCHS_PER_GENERATION + 1
    for number, name in enumerate(("n1", "n3"), start=1):
        world.agents[name].connect()
        shows(world, name, report(epoch, revision=3, seal=seal_of(WEB, epoch, name)), generation=2)
        assert owner(world) == before and world.core.ctx.counters["impossible-epochs"] >= number


def test_h1_who_was_given_it_and_neither_holds_nor_runs_it_is_no_owner(world: World) -> None:
    world.restore(world.saved())
    epoch = owner(world)[1] + 4
    world.agents["n3"].connect()
    shows(world, "n3", report(epoch, "stopped", seal=seal_of(WEB, epoch, "n3")), generation=2)
    assert owner(world) == ("n1", epoch - 4)


def test_h1_of_a_vm_that_nobody_knows_only_a_sealed_holder_is_the_newest(world: World) -> None:
    """A restored database does not know the VM; n2 holds it, n3 only says so, in a higher epoch."""
    backup = world.saved()
    world.create("new", "n2")
    new = uuid_of("new")
    world.restore(backup)
    world.start("n1", "n2")
    world.agents["n3"].connect()
    claim = m.VmReport(uuid=new, epoch=9, revision=5, observed=Observed.RUNNING, name="new")
    shows(world, "n3", claim, generation=2)
    world.run(20)
    assert not world.tables().releases.by("uuid", new) and new in world.agents["n2"].running
    shows(world, "n3", msgspec.structs.replace(claim, seal=seal_of(new, 9, "n3")))
    release = world.tables().releases.get("n2", new)
    assert release is not None and release.epoch < 9, "who holds an older epoch has lost it"
    assert not world.tables().releases.get("n3", new)


def test_h1_a_claim_above_all_generations_is_none(world: World) -> None:
    backup = world.saved()
    world.create("new", "n2")
    new = uuid_of("new")
    world.restore(backup)
    world.start("n1", "n2")
    world.agents["n3"].connect()
    epoch = 3 * EPOCHS_PER_GENERATION
    claim = m.VmReport(uuid=new, epoch=epoch, revision=5, observed=Observed.RUNNING, seal=seal_of(new, epoch, "n3"))
    shows(world, "n3", claim, generation=2)
    assert not world.tables().releases.by("uuid", new)


# --- in a rebuild -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", ["without a voucher", "with one"])
def test_h3_what_runs_elsewhere_when_its_owner_is_rebuilt(world: World, copy: str) -> None:
    epoch = owner(world)[1]
    lose(world)
    word = arrived(epoch, "a", **({} if copy == "with one" else {"voucher": ""}))
    agent = world.agents["n3"]
    agent.stuck = True  # it says it again and again, and removes nothing
    agent._others = lambda: [report(epoch, migration=word)]  # type: ignore[method-assign]
    agent.report()
    if copy == "with one":
        assert owner(world)[0] == "n3", "it was sent there, and runs: it is the VM"
        return
    world.do(m.NodeDisable, name="n3")
    answer = world.do(m.NodeRebuild, name="n1")
    assert step(world, answer) == ("waiting", "n3 has a copy: it is asked to remove it") and owner(world)[0] == "n1"
    assert world.tables().releases.get("n3", WEB)
    world.run(SIGHTED_S / 2)
    assert owner(world)[0] == "n1"
    world.run(SIGHTED_S)
    assert owner(world)[0] == "n2" and state(world, answer)[0] == "succeeded"


def test_a_rebuild_waits_for_the_end_of_a_copy_that_was_sent(world: World) -> None:
    """It is paused: the VM is where it was proven to be off, and the copy has to go first, however long that takes."""
    epoch = owner(world)[1]
    lose(world)
    agent = world.agents["n3"]
    agent.stuck = True
    agent.arrive(WEB, epoch, "a", "paused")
    agent.report()
    world.do(m.NodeDisable, name="n3")
    answer = world.do(m.NodeRebuild, name="n1")
    world.run(4 * SIGHTED_S)
    assert step(world, answer) == ("waiting", "n3 has a copy: it is asked to remove it") and owner(world)[0] == "n1"
    agent.arrivals.clear()
    agent.report()
    world.run(2)
    assert owner(world)[0] == "n2"


def test_h4_a_deletion_is_not_held_up_by_a_sighting(world: World) -> None:
    epoch = owner(world)[1]
    shows(world, "n3", report(epoch + 2, migration=arrived(2, "a", voucher="")))
    answer = world.do(m.VmDelete, vm="web")
    world.settle()
    assert state(world, answer)[0] == "succeeded" and world.tables().vms.get(WEB) is None
    assert Desired.DELETED not in {vm.desired for vm in world.tables().vms}
