"""Agents, operators, crashes and failing storage at random, by seed; the invariants are checked after every turn.

The harness knows what really runs: at most one host runs a VM, unless an operator's word was false (never here)."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from tests.fakes.names import key_of
from tests.unit.server.world import ADDRESS, LOCAL, SPEC, Refused, World, seal_of, uuid_of
from wire import messages as m
from wire.types import MigrationPhase, Observed

NODES = ("n1", "n2", "n3", "n4")
VMS = tuple(f"v{i}" for i in range(6))
BUDGET_S = 2.0


def one_owner_runs(world: World) -> None:
    """S1, on the real hosts."""
    running = Counter(uuid for agent in world.agents.values() for uuid in agent.running)
    assert all(count == 1 for count in running.values()), f"two instances: {running}"


def rewind(world: World, rng: random.Random, kept: list[Any]) -> None:
    """The database goes back to what it was, by a copy or by a restore; or that moment is kept."""
    if not kept or rng.random() < 0.6:
        kept.append(world.saved())
    elif rng.random() < 0.5:
        world.put_back(rng.choice(kept))
    else:
        world.restore(rng.choice(kept), f"history{rng.getrandbits(32)}")


def replace_node(world: World, rng: random.Random, name: str) -> None:
    """A node leaves, by a true word if it is off, or comes again under its name with the state that it has."""
    try:
        if world.tables().nodes.get(name) is None:
            world.do(m.NodeAdd, name=name, public_key=key_of(name))
        elif not world.agents[name].host_up:
            world.do(m.NodeDrain, name=name, evidence="operator", comment="it is off")
            world.do(m.NodeRemove, name=name)
    except Refused as refusal:
        assert refusal.code not in ("internal", "key-conflict"), refusal


def lie(world: World, rng: random.Random, name: str, vm: str) -> None:
    """Somebody with the key of a node speaks of a VM that it does not own, with what it has seen of seals at most."""
    agent, row = world.agents[name], world.tables().vms.get(uuid_of(vm))
    if not agent.up or agent.older or agent.session is None or row is None or row.node == name:
        return
    epoch = max(0, row.epoch + rng.choice((-1, 0, 0, 1, 7, 2_000_000_000)))
    phase = rng.choice((None, *MigrationPhase))
    row_ = world.tables().migrations.get(row.uuid)
    attempt = rng.choice(("a lie", row_.attempt if row_ is not None else "a lie"))
    word = None if phase is None else m.MigrationReport(attempt=attempt, phase=phase, peer=row.node, address=ADDRESS)
    claim = m.VmReport(
        uuid=row.uuid, epoch=epoch, revision=rng.choice((0, 5)), observed=rng.choice(list(Observed)), migration=word,
        seal=rng.choice(("", seal_of(row.uuid, epoch + 1, name), "x")),
    )  # fmt: skip
    before = world.tables().vms.get(row.uuid)
    try:
        agent.report(vms=(*(agent.vm_report(uuid) for uuid in agent.held if uuid != row.uuid), claim))
    except Refused:
        return
    after = world.tables().vms.get(row.uuid)
    assert after is None or before is None or after.node != name, "a lie has moved a VM"


def act(world: World, rng: random.Random, kept: list[Any]) -> None:
    """One thing that a person or the world does."""
    name, vm = rng.choice(NODES), rng.choice(VMS)
    agent = world.agents[name]
    choice = rng.randrange(20)
    if choice == 0 and agent.host_up:
        agent.power_off()
    elif choice == 1 and not agent.host_up:
        agent.boot_again()
    elif choice == 2 and agent.up:
        agent.kill()
    elif choice == 3 and agent.host_up and not agent.up:
        agent.start()
    elif choice == 4:
        world.deaf.symmetric_difference_update({name})
    elif choice == 5:
        world.crash()
    elif choice == 6:
        world.disk.fault = "" if world.disk.fault else "disk full"
        if not world.disk.fault and world.core.ctx.read_only:
            world.recover_storage()
    elif choice == 7 and agent.running:
        agent.halted.add(rng.choice(sorted(agent.running)))
    elif choice == 8:
        rewind(world, rng, kept)
    elif choice == 9:
        replace_node(world, rng, name)
    elif choice == 10:
        lie(world, rng, name, vm)
    else:
        request(world, rng, name, vm)


def request(world: World, rng: random.Random, name: str, vm: str) -> None:
    """One request, sometimes cut by a crash and repeated with its key."""
    word = {} if world.agents[name].host_up else {"evidence": "operator", "comment": "it is off"}
    key = world.key()
    body: m.Mutation = rng.choice([
        m.VmCreate(key=key, name=vm, uuid=uuid_of(vm), spec=rng.choice((SPEC, SPEC, LOCAL))),
        m.VmStart(key=key, vm=vm), m.VmStop(key=key, vm=vm), m.VmReboot(key=key, vm=vm), m.VmDelete(key=key, vm=vm),
        m.NodeEnable(key=key, name=name), m.NodeDisable(key=key, name=name), m.NodeDrain(key=key, name=name, **word),
        m.NodeRebuild(key=key, name=name, **word), m.NodeRebuild(key=key, name=name),
        m.OpCancel(key=key, id=f"op-{rng.randint(1, 40)}"),
        m.RecoveryConfirm(key=key, comment="as it says", dry_run=True),
    ])  # fmt: skip
    cut = rng.random()
    try:
        if cut < 0.1:
            world.say("op", body, save=False)
        elif cut < 0.2:
            world.say("op", body, send=False)
        first = world.ask(body)
        assert world.ask(body) == first
    except Refused as refusal:
        assert refusal.code not in ("internal", "key-conflict"), refusal


def heal(world: World) -> None:
    """Faults stop; L1 within 90 s and a little more for hosts that just booted."""
    world.deaf.clear()
    if world.disk.fault:
        world.disk.fault = ""
    if world.core.ctx.read_only:
        world.recover_storage()
    for agent in world.agents.values():
        if not agent.host_up:
            agent.boot_again()
        elif not agent.up:
            agent.start()
    for name in NODES:
        if world.tables().nodes.get(name) is None:
            world.do(m.NodeAdd, name=name, public_key=key_of(name))
    world.run(120)
    assert not world.tables().meta.holding, "a recovery does not end"
    world.do(m.RecoveryConfirm, comment="as it says")
    world.settle()
    world.run(60)
    for op in list(world.tables().operations):
        if op.state == "running" and op.kind in ("rebuild", "drain"):
            world.do(m.OpCancel, id=op.id)
    world.settle()
    world.run(30)
    world.settle()


def check_end(world: World) -> None:
    """The picture equals reality."""
    one_owner_runs(world)
    for name in NODES:
        assert world.node(name)["health"] == "normal", name
    for row in world.tables().vms:
        view, agent = world.vm(row.name), world.agents[row.node]
        really = row.uuid in agent.running
        assert (view["observed"] == "running") is really, view
        assert row.held == "", "held after a person has said so"
        if row.desired == "running" and world.node(row.node)["admin_state"] != "drained":
            assert really, f"{view} does not run"
    assert not len(world.tables().releases), "a release that nobody confirmed"
    assert not [a for a in world.alarms() if a[0].startswith(("vm-dup", "vm-mis", "node-u", "agent-l", "mass"))]


@pytest.mark.parametrize("seed", range(4))
def test_anything_at_any_time(seed: int) -> None:
    began, story = time.monotonic(), seed
    while time.monotonic() - began < BUDGET_S:
        rng = random.Random(story)
        world = World(*NODES, seed=story)
        world.start()
        kept: list[Any] = []
        try:
            for _ in range(60):
                act(world, rng, kept)
                one_owner_runs(world)
                world.run(rng.choice((0.5, 3.0, 20.0)))
                one_owner_runs(world)
            heal(world)
            check_end(world)
        except Exception as error:
            raise AssertionError(f"story {story}: {error}") from error
        story += 1000
