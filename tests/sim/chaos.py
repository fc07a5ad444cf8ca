"""A random run: from a seed, how it begins and what goes wrong when. The plan is a scenario like those that people
write, so that a failing one can be shortened, read, and kept."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.sim import commands
from tests.sim.cluster import SETTLE_S, Cluster, Plan, VmPlan
from tests.sim.scenario import WARM_UP_S, Scenario, Step
from tests.sim.story import Story
from wire.types import Desired, OnGuestShutdown, Storage

DURATIONS_S = (120.0, 240.0, 600.0)
GAPS_S = ((0.0, 0.05), (0.05, 1.0), (1.0, 10.0), (10.0, 60.0))
EVACUATION_S = 600.0  # the last of twenty VMs, two at a time, begins late
DELAYS = (("short", 5), ("usual", 4), ("long", 2))

WIDENED = 0.25
"""The share of runs in which state goes back, two servers run, or a node lies; `--wide SHARE` asks for another."""

SHAPES = (("back", 4), ("two", 2), ("liar", 4))
"""What such a run has of it, and how often: not two at once, since each leaves something that nobody can know."""


class Deck:
    """Draws commands that fit the cluster of a plan. `shape`: what else may happen, a key of `MORE`."""

    def __init__(self, plan: Plan, rng: random.Random, shape: str = "") -> None:
        self._rng, self._draws = rng, [*DRAWS, *MORE.get(shape, [])]
        self._nodes = plan.nodes
        self._vms = [vm.name for vm in plan.vms]
        self._homes = {node: [vm.name for vm in plan.vms if vm.node == node] for node in plan.nodes}
        self._made = self._own = 0
        self._focus = rng.sample(plan.nodes, k=min(2, len(plan.nodes)))  # trouble seldom comes alone

    def draw(self) -> list[str]:
        """The next commands, which happen together."""
        draws, weights = zip(*self._draws, strict=True)
        draw: Callable[[Deck], str] = self._rng.choices(draws, weights)[0]
        return draw(self).split("; ")

    def node(self) -> str:
        """A node; more often one that had trouble before."""
        return self._rng.choice(self._focus if self._rng.random() < 0.7 else self._nodes)

    def vm(self) -> str:
        """A VM."""
        return self._rng.choice(self._vms)

    def vm_of(self, node: str) -> str:
        """A VM that began on the node."""
        return self._rng.choice(self._homes[node] or self._vms)

    def one_of(self, *texts: str) -> str:
        """Any of them."""
        return self._rng.choice(texts)

    def small(self) -> int:
        """A number of steps after which something dies: often the next."""
        return self._rng.choice((1, 1, 2, 2, 3, 4, 6, 10))

    def noise(self) -> str:
        """How bad a path is."""
        loss, duplicates, reorders = self._rng.choices((0.0, 0.1, 0.3, 0.5), k=3)
        return f"loss {loss} duplicates {duplicates} reorders {reorders} delay {self.one_of('0', '1', '10')}"

    def new_vm(self) -> str:
        """A VM that is not there yet, or one that was made in this run."""
        if self._made < 4:
            self._made += 1
            self._vms.append(f"new{self._made}")
        return f"new{self._rng.randint(1, self._made)}"

    def own_vm(self) -> str:
        """A person's VM, made and taken into management; it is Chime's like the others from now on."""
        self._own += 1
        name, node = f"own{self._own}", self.node()
        self._vms.append(name)
        return f"virsh define {name} on {node}; import {name} on {node}"

    def past(self) -> str:
        """How many seconds old a backup is."""
        return self.one_of("5", "60")

    def all_added(self) -> str:
        """Every node is added again."""
        return "; ".join(f"add {node}" for node in self._nodes)

    def gone(self, node: str) -> str:
        """The node is lost and rebuilt, and a person removes it."""
        words = f"drain {node} evidence operator; rebuild {node} evidence operator; remove {node}"
        return f"power {node} off; {words}"

    def snapshot(self) -> str:
        """What a snapshot suffers."""
        return self.one_of("empty", "truncated", "flipped", "foreign", "newer")


DRAWS: list[tuple[Callable[[Deck], str], float]] = [
    (lambda d: f"power {d.node()} off", 5),
    (lambda d: f"power {d.node()} on", 6),
    (lambda d: f"cut {d.node()} {d.one_of('mgmt', 'mgmt', 'to-server', 'from-server')}", 5),
    (lambda d: f"heal {d.node()}", 6),
    (lambda d: f"drop {d.node()}", 2),
    (lambda d: f"cut op; crash chimed at commit {d.small()}", 1),
    (lambda d: "heal op", 2),
    (lambda d: f"noise {d.node()} {d.noise()}", 3),
    (lambda d: f"ping {d.node()} {d.one_of('blocked', 'open')}", 1),
    (lambda d: f"kill agentd {d.node()}", 4),
    (lambda d: f"crash agentd {d.node()} in {d.small()} effects", 6),
    (lambda d: f"stop agentd {d.node()}", 1),
    (lambda d: f"start agentd {d.node()}", 2),
    (lambda d: f"freeze agentd {d.node()}", 2),
    (lambda d: f"thaw agentd {d.node()}", 3),
    (lambda d: f"disk {d.one_of(d.node(), 'chimed')} full", 2),
    (lambda d: f"disk {d.one_of(d.node(), 'chimed')} ok", 3),
    (lambda d: f"snapshot {d.node()} {d.snapshot()}", 1),
    (lambda d: f"local drain {d.node()}", 1),
    (lambda d: f"fault {d.node()} {d.one_of('memory-low', 'storage-full', 'none', 'none')}", 1),
    (lambda d: f"libvirt {d.node()} {d.one_of('dies', 'returns', 'returns')}", 3),
    (lambda d: f"libvirt {d.node()} {d.one_of('hangs', 'answers', 'answers')}", 3),
    (lambda d: (lambda n: f"libvirt {n} hangs in start; kill qemu {d.vm_of(n)}")(d.node()), 1),
    (lambda d: f"processes {d.node()} {d.one_of('hidden', 'shown', 'shown')}", 1),
    (lambda d: f"fail {d.node()} {d.one_of('start', 'define', 'destroy', 'shutdown', 'undefine', 'scan')}", 2),
    (lambda d: f"kill qemu {d.vm()}", 6),
    (lambda d: f"sigterm qemu {d.vm()}", 2),
    (lambda d: f"guest {d.vm()} powers off", 2),
    (lambda d: f"guest {d.vm()} obeys {d.one_of('yes', 'no')}", 2),
    (lambda d: f"qemu {d.vm()} {d.one_of('sleeps', 'wakes')}", 2),
    (lambda d: f"disk of {d.vm()} fails", 1),
    (lambda d: f"virsh {d.one_of('suspend', 'resume', 'destroy', 'undefine')} {d.vm()}", 3),
    (lambda d: f"virsh start {d.vm()} on {d.node()}", 1),
    (lambda d: f"virsh define foreign on {d.node()}", 1),
    (lambda d: f"virsh migrate {d.vm()} to {d.node()}", 0.3),
    (lambda d: f"migrate {d.vm()} to {d.node()}", 6),
    (lambda d: f"migrate {d.vm()}", 3),
    (lambda d: f"local migrate {d.vm()} to {d.node()}", 2),
    (lambda d: f"evacuate {d.node()}", 4),
    (lambda d: f"evacuate {d.node()} to {d.node()}", 1),
    (lambda d: f"migrate {d.vm()}; cancel", 1),
    (lambda d: f"lose the finish on {d.node()}; evacuate {d.node()}", 1),
    (lambda d: f"lose the finish on {d.node()}", 2),
    (lambda d: f"cut {d.node()} data", 1.5),
    (lambda d: f"heal {d.node()} data", 2),
    (lambda d: f"qemu of {d.vm()} by hand on {d.node()}", 0.5),
    (lambda d: "kill chimed", 4),
    (lambda d: f"crash chimed {d.one_of('before', 'after')} commit {d.small()}", 6),
    (lambda d: f"crash chimed at send {d.small()}", 4),
    (lambda d: f"stall chimed {d.one_of('2', '20', '100')}", 1),
    (lambda d: f"wall clock {d.one_of('3600', '-3600')}", 1),
    (lambda d: d.one_of("pings fail", "pings work", "pings work"), 1),
    (lambda d: "backup", 1),
    (lambda d: "restore", 0.5),
    (lambda d: "recovery confirm", 0.3),
    (lambda d: f"remove {d.node()}", 0.5),
    (lambda d: f"drain {d.node()}", 7),
    (lambda d: f"drain {d.node()} evidence operator", 1.5),
    (lambda d: (lambda n: f"power {n} off; drain {n} evidence operator; rebuild {n} evidence operator")(d.node()), 3),
    (lambda d: f"rebuild {d.node()}", 8),
    (lambda d: f"rebuild {d.node()} evidence operator", 1),
    (lambda d: f"enable {d.node()}", 6),
    (lambda d: f"disable {d.node()}", 2),
    (lambda d: f"create {d.new_vm()}", 2),
    (lambda d: f"create {d.new_vm()} on {d.node()}", 1),
    (lambda d: f"start {d.vm()}", 6),
    (lambda d: f"stop {d.vm()}", 4),
    (lambda d: f"stop {d.vm()} force", 2),
    (lambda d: f"reboot {d.vm()}", 3),
    (lambda d: f"delete {d.vm()}", 1.5),
    (lambda d: "cancel", 2),
    (lambda d: d.own_vm(), 0.5),
    (lambda d: f"import {d.vm()} on {d.node()}", 0.2),
    (lambda d: f"release {d.vm()}", 0.7),
]
"""What may happen, and how often."""

MORE: dict[str, list[tuple[Callable[[Deck], str], float]]] = {
    "back": [
        (lambda d: f"keep snapshot {d.node()}", 8),
        (lambda d: f"put back snapshot {d.node()}", 3),
        (lambda d: f"snapshot {d.node()} put back by {d.one_of('5', '30', '120')}", 4),
        (lambda d: (lambda n: f"cut {n}; snapshot {n} put back by 60")(d.node()), 2),
        (lambda d: (lambda n: f"power {n} off; snapshot {n} put back by {d.past()}; power {n} on")(d.node()), 4),
        (lambda d: "copy database", 5),
        (lambda d: "put back database", 2),
        (lambda d: (lambda n: f"cut {n}; put back database; power {n} off; power {n} on")(d.node()), 1),
        (lambda d: f"cut {d.node()}; put back database", 1),
        (lambda d: "put back server", 1),
        (lambda d: "snapshot server", 3),
        (lambda d: "revert server", 1.5),
        (lambda d: "backup", 2),
        (lambda d: "restore on a new machine", 1),
        (lambda d: f"init chimed; {d.all_added()}", 0.5),
        (lambda d: d.all_added(), 2),
        (lambda d: d.gone(d.node()), 3),
        (lambda d: f"remove {d.node()}", 3),
        (lambda d: f"add {d.node()}", 4),
        (lambda d: (lambda n: f"add {n}; power {n} on")(d.node()), 4),
        (lambda d: (lambda n: f"join {n}; add {n}; power {n} on")(d.node()), 2),
        (lambda d: (lambda n: f"remove {n}; backup; copy database; add {n}; power {n} on; enable {n}")(d.node()), 4),
        (lambda d: "recovery confirm", 0.5),
    ],
    "two": [
        (lambda d: "second server copies", 6),
        (lambda d: "backup", 2),
        (lambda d: "second server restores", 4),
        (lambda d: f"flip {d.node()} to second", 10),
        (lambda d: f"flip {d.node()} to chimed", 7),
        (lambda d: (lambda n: f"flip {n} to {d.one_of('second', 'chimed')}; power {n} on")(d.node()), 4),
        (lambda d: f"{d.one_of('stop', 'start', 'start')} server second", 2),
    ],
}
"""What else may happen in a run of that shape."""


def plan_of(rng: random.Random, nodes: int = 0, vms: int = 0) -> Plan:
    """A cluster of two to five nodes with two to twenty VMs, or of a given size."""
    names = [f"n{number + 1}" for number in range(nodes or rng.choice((2, 3, 3, 3, 4, 5)))]
    count = vms or rng.choice((2, 3, 4, 6, 10, 20))
    tight = rng.random() < 0.2  # there may be no room for all when a node is gone
    return Plan(
        nodes=names,
        vms=[
            VmPlan(
                name=f"vm{number + 1}",
                node=names[number % len(names)],
                desired=Desired.STOPPED if rng.random() < 0.1 else Desired.RUNNING,
                storage=Storage.LOCAL if rng.random() < 0.1 else Storage.SHARED,
                on_guest_shutdown=OnGuestShutdown.RESTART if rng.random() < 0.2 else OnGuestShutdown.STOP,
            )
            for number in range(count)
        ],
        memory_mib=512 + 1024 * (count // len(names) + 1) if tight and not nodes else 131_072,
    )


def scenario_of(seed: int, nodes: int = 0, vms: int = 0, duration_s: float = 0.0) -> Scenario:
    """What happens under this seed. In more than ten minutes not more goes wrong, but more seldom."""
    rng = random.Random(seed)
    duration_s = duration_s or rng.choice(DURATIONS_S)
    slow = max(1.0, duration_s / max(DURATIONS_S))
    plan = plan_of(rng, nodes, vms)
    shape = random.Random(f"shape of {seed}")  # what is drawn from it leaves the rest of the run as it is
    plan.delays = shape.choices(*zip(*DELAYS, strict=True))[0]
    kind = shape.choices(*zip(*SHAPES, strict=True))[0] if shape.random() < WIDENED else ""
    deck, steps = Deck(plan, rng, kind), []
    now = rng.choice((0.5, WARM_UP_S, WARM_UP_S))
    while now < duration_s:
        steps += [Step(round(now, 3), text) for text in deck.draw()]
        now += rng.uniform(*rng.choice(GAPS_S)) * slow
    if kind == "liar":
        steps = sorted([*_lies(plan, shape, duration_s), *steps], key=lambda step: step.time)
    elif kind == "two":
        steps.append(Step(round(now, 3), f"keep server {shape.choice(('chimed', 'second'))}"))
    return Scenario(plan, steps, f"seed {seed}", seed)


def _settle(cluster: Cluster) -> bool:
    """Lets the time of L1 pass. Whether the server found in it that it is behind: then everybody says hello twice."""
    found = False
    for _ in range(9):
        cluster.engine.run_until(cluster.engine.now + SETTLE_S / 9)
        found |= cluster.is_behind()
    return found


def _lies(plan: Plan, shape: random.Random, duration_s: float) -> list[Step]:
    """From some moment on one node lies, to the end."""
    node, time = shape.choice(plan.nodes), round(shape.choice((0.5, shape.uniform(0.0, duration_s / 2))), 3)
    beside = " beside its agent" if shape.random() < 0.3 else ""
    return [Step(time, f"{node} turns liar{beside}"), Step(time, f"{node} lies at random")]


def run(scenario: Scenario, story: Story | None = None) -> Cluster:
    """The run, then no faults, then L1 and S3. Raises Violation."""
    cluster = Cluster(scenario.plan, scenario.seed, story)
    for step in scenario.steps:
        cluster.engine.run_until(max(cluster.engine.now, step.time))
        commands.carry_out(cluster, step.text)
    cluster.engine.run_until(cluster.engine.now + 1.0)
    cluster.end_faults()
    if _settle(cluster):
        cluster.engine.run_until(cluster.engine.now + SETTLE_S)
    if cluster.waits_for_a_person():
        commands.carry_out(cluster, "recovery confirm")
        cluster.engine.run_until(cluster.engine.now + SETTLE_S)
    if cluster.is_evacuating():
        patience = cluster.engine.now + EVACUATION_S
        while cluster.is_evacuating() and cluster.engine.now < patience:
            cluster.engine.run_until(cluster.engine.now + 1.0)
        cluster.engine.run_until(cluster.engine.now + SETTLE_S)
    cluster.check_picture()
    cluster.check_answers()
    return cluster
