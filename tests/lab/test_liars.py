"""One bad node: H1, H3 and H4 of the world, on real hosts. Whoever has the key of n3 says what he likes, in the real
protocol; the VMs are those of others, and nothing of them may end, move or wait.

The judge is the process table: the qemu of an honest node's VM keeps its pid, and is alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.hosts import Qemu
from tests.integration.plain_peer import Agent, Body
from tests.lab import past
from tests.lab.lab import Lab
from tests.lab.test_history import AGENT, stays_there
from tests.lab.test_migration import begin, ended, is_on
from tests.operator import unique
from wire import messages as m
from wire.errors import ChimeError

BAD = "n3"
NEVER = "op-999-1"  # an attempt that never was


class Liar(Agent):
    """An agent that does all that an agent must, and reports `lies` beside it."""

    def __init__(self, lab: Lab) -> None:
        key = past.key_of(lab.host(BAD))
        assert key.secret_key and key.server_public_key and key.endpoint
        super().__init__(
            {
                "name": key.name,
                "public_key": key.public_key,
                "secret_key": key.secret_key,
                "server_public_key": key.server_public_key,
                "endpoint": key.endpoint,
            }
        )
        self._lab = lab
        self.lies: list[Body] = []
        self.heard: list[Body] = []

    def vm_reports(self) -> list[Body]:
        return super().vm_reports() + self.lies

    def says(self, *lies: Body) -> None:
        """From now on he says so. The server has heard it when this returns."""
        self.lies = list(lies)
        self._lab.wait(lambda: self.crash or all(one in self.heard for one in lies), "the lies are heard")
        assert self.crash is None, self.crash

    def _on_report_ack(self, body: Body) -> None:
        sent = self._report_sent
        super()._on_report_ack(body)
        if sent is not None and self._report_sent is None:
            self.heard = sent["vms"]


@contextmanager
def liar(lab: Lab) -> Iterator[Liar]:
    """The agent of n3 is stopped, and somebody with its key speaks in its place."""
    lab.host(BAD).systemctl("stop", AGENT)
    he = Liar(lab)
    he.start()
    try:
        lab.wait(lambda: he.sessions and lab.node(BAD)["health"] == "normal", "he has a session")
        yield he
    finally:
        he.stop()
        lab.host(BAD).systemctl("start", AGENT)


def lie(vm: dict[str, Any], above: int = 0, **said: Any) -> Body:
    """That this VM is on the liar's node, in an epoch that is so much higher than the right one."""
    body: Body = {"uuid": vm["uuid"], "name": vm["name"], "epoch": vm["epoch"] + above, "revision": 1}
    return {**body, "observed": "running", **said}


def of_attempt(phase: str, attempt: str, peer: str, **said: Any) -> Body:
    """What a node says of a migration."""
    return {"migration": {"attempt": attempt, "phase": phase, "peer": peer, **said}}


def honest(lab: Lab, prefix: str) -> tuple[dict[str, Any], Qemu]:
    """A VM on n1: as the server shows it, and its process."""
    name = unique(prefix)
    uuid = lab.create_guest(name, node="n1")
    return lab.observed(name, "running"), lab.process(uuid)


def begun(lab: Lab, name: str) -> str:
    """The operation that migrates the VM; nothing while its node has just begun anew."""
    try:
        return begin(lab, name)
    except ChimeError as error:
        if error.code != "node-unreachable":
            raise
        return ""


def still_its_owners(lab: Lab, vm: dict[str, Any]) -> None:
    """The VM is where it was, in the same epoch, and only told of."""
    now = lab.vm(vm["uuid"])
    assert (now["node"], now["epoch"]) == ("n1", vm["epoch"]), now
    assert "vm-moved" not in lab.actions(vm["name"]) and "vm-adopted" not in lab.actions(vm["name"])


def test_h1_a_higher_epoch_of_another_nodes_vm(lab: Lab) -> None:
    """While the server recovers and afterwards: without proof it is a sighting, and the owner stays."""
    vm, seen = honest(lab, "owned")
    backup = past.back_up(lab)
    with liar(lab) as he:
        he.lies = [lie(vm, 1)]
        past.restore(lab, backup)
        lab.wait(lambda: not past.status(lab)["recovering"], "all nodes have spoken")
        lab.wait_nodes("n1")
        lab.observed(vm["name"], "running")
        stays_there(lab, seen)
        still_its_owners(lab, vm)
        he.says(lie(vm, 2))
        he.says(lie(vm, 1_000_000_000, seal="0" * 32), lie({**vm, "uuid": "0" * 8 + vm["uuid"][8:]}))
        stays_there(lab, seen, nothing_on=BAD)
        still_its_owners(lab, vm)
        lab.kill(seen)
        assert lab.other_process(vm["uuid"], seen).host == "n1", "its owner starts it again"
    assert lab.guests[vm["name"]].runs()


def test_h3_arrived_by_an_attempt_that_never_was(lab: Lab) -> None:
    """While the owner's agent is away, and when it is back; in the present epoch and in a higher one."""
    vm, seen = honest(lab, "away")
    n1 = lab.host("n1")
    n1.systemctl("stop", AGENT)
    lab.wait(lambda: "agent-lost" in lab.node("n1")["reasons"], "the agent is missed")
    came = of_attempt("arrived", NEVER, "n1", voucher="0" * 32, address=lab.host(BAD).address("biz"))
    with liar(lab) as he:
        for above in (0, 1):
            he.says(lie(vm, above, **came))
            stays_there(lab, seen, nothing_on=BAD)
            still_its_owners(lab, vm)
        he.says(lie(vm, **came))
        n1.systemctl("start", AGENT)
        lab.wait_nodes("n1")
        lab.observed(vm["name"], "running")
        stays_there(lab, seen, nothing_on=BAD)
        still_its_owners(lab, vm)
    lab.wait_nodes(BAD)
    lab.wait(lambda: not lab.raised(vm["uuid"]), "nothing is left of it")
    assert lab.pids(vm["uuid"]) == [seen.pid]


def test_h3_arrived_in_a_rebuild(lab: Lab) -> None:
    """The owner has lost power: the liar does not get the VM, and does not keep the rebuild from it for long."""
    vm, _seen = honest(lab, "rebuilt")
    lab.do(m.NodeDisable, name=BAD)
    past.lose(lab, "n1")
    with liar(lab) as he:
        he.says(lie(vm, **of_attempt("arrived", NEVER, "n1")))
        word = {"evidence": "operator", "comment": "it is off"}
        lab.do(m.NodeDrain, name="n1", **word)
        lab.do(m.NodeRebuild, name="n1", **word)
        assert lab.process(vm["uuid"]).host == "n2" and lab.vm(vm["uuid"])["node"] == "n2"
        lab.counting(vm["name"])
        stays_there(lab, lab.process(vm["uuid"]), nothing_on=BAD)


def test_h4_a_third_node_speaks_of_an_open_migration(lab: Lab) -> None:
    """Only the source's word counts: the copy goes on, the source runs until it has left, and the guest runs once."""
    vm, seen = honest(lab, "moving")
    with liar(lab) as he:
        he.says(lie(vm, **of_attempt("left", NEVER, "n2"), observed="stopped"))
        lab.host("n1").systemctl("restart", AGENT)  # so that he is heard before the source
        lab.wait_nodes("n1")
        lab.observed(vm["name"], "running")
        operation = lab.wait(lambda: begun(lab, vm["name"]), "the source has told how it is")
        attempt = f"{operation}-{past.status(lab)['generation']}"
        for phase in ("leaving", "failed", "left"):
            he.says(lie(vm, **of_attempt(phase, attempt, "n2"), observed="stopped"))
        assert lab.ask(m.OpShow(id=operation))["operation"]["state"] == "running"
        assert seen.pid in lab.pids(vm["uuid"])
        still_its_owners(lab, vm)
        assert ended(lab, operation)[0] == "succeeded"
        is_on(lab, vm["uuid"], "n2")
        lab.ran_once(vm["name"])
