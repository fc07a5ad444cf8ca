"""`chime-agent migrate`, with a hypervisor in memory: without the agent, and through the socket of one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.boot import boot_id
from agentd.core import effects as fx
from agentd.core import leaving
from agentd.core.durable import Attempt, Durable, Held, Tombstone
from agentd.core.facts import DomainState
from agentd.hypervisor import HypervisorError
from agentd.libvirt.target_check import Findings
from agentd.local import migrate, offline, running
from agentd.local.main import main
from agentd.local.progress import ProgressLine
from agentd.local_socket import LocalSocket
from agentd.snapshot import Snapshot
from tests.fakes.hypervisor import FakeHypervisor
from tests.unit.agent.server import VM_1, VM_2, assignment
from tests.unit.agent.world import PEER, World
from wire import curve, keys
from wire.errors import ChimeError
from wire.messages import MigrationProgress
from wire.types import Desired, MigrationPhase


class Node:
    """A node with its state on disk and two running VMs; `run` calls chime-agent."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = directory / "agentd.toml"
        self.state = directory / "state"
        self.config.write_text(
            f'state_dir = "{self.state}"\nsocket = "{directory}/a.sock"\nsettle_s = 0.2\ncall_timeout_s = 5\n'
        )
        self.snapshot = Snapshot(self.state, "n1")
        pair = curve.new_pair()
        bundle = keys.KeyFile(kind=keys.Kind.NODE, name="n1", public_key=pair.public, secret_key=pair.secret)
        keys.save(self.state / "node.key", bundle, overwrite=True)
        self.hv, self.peer = FakeHypervisor(), FakeHypervisor()
        self.hv.peers[PEER] = self.peer
        for hypervisor in (self.hv, self.peer):
            hypervisor.connect(lambda event: None, lambda why: None)
        durable = Durable(node="n1", confirmed_boot=boot_id())
        for vm in (assignment(), assignment(VM_2)):
            self.hv.define(vm)
            self.hv.start(vm.uuid)
            durable = durable.with_held(Held(vm=vm, started_serial=1))
        self.snapshot.save(durable)
        self._capsys = capsys
        self.said = ""

    def connect(self, _config: object) -> FakeHypervisor:
        try:
            self.hv.connect(lambda event: None, lambda why: None)
        except HypervisorError as error:
            raise ChimeError("unreachable", str(error)) from None
        return self.hv

    @property
    def saved(self) -> Durable:
        durable, why = self.snapshot.load()
        assert why == ""
        return durable

    def change(self, change: Callable[[Durable], Durable]) -> None:
        self.snapshot.save(change(self.saved))

    def run(self, *argv: str, verb: str = "migrate") -> tuple[int, Any]:
        to = ("--interface", "eth1", "--dest", PEER) if verb == "migrate" else ()
        code = main([verb, *to, *argv, "--config", str(self.config), "-o", "json"])
        out, self.said = self._capsys.readouterr()
        return code, json.loads(out) if out else None

    def runs_there(self, uuid: str) -> bool:
        domain = self.peer.domains.get(uuid)
        return domain is not None and domain.state == DomainState.RUNNING

    def check(self) -> None:
        """At most one of both runs."""
        for uuid, domain in self.hv.domains.items():
            assert not (domain.state == DomainState.RUNNING and self.runs_there(uuid))


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the check of the target finds."""
    found: list[str] = []

    class Checking(FakeHypervisor):
        def check_target(self, address: str, interface: str, uuids: list[str], local_disks: bool) -> Findings:
            assert (address, interface, local_disks) == (PEER, "eth1", False) and uuids
            return Findings(tuple(found), ("the way was not measured",), reached="unreachable" not in found)

    monkeypatch.setattr("agentd.libvirt.driver.configured", lambda _config: Checking())
    return found


@pytest.fixture
def node(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problems: list[str]
) -> Iterator[Node]:
    made = Node(short_dir, capsys)
    monkeypatch.setattr(offline, "connect", made.connect)
    yield made
    made.check()


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    return {vm["uuid"]: vm["outcome"] for vm in document["vms"]}


# --- without the agent ------------------------------------------------------------------------------------------------


def test_all_vms_leave_without_agent_and_server(node: Node) -> None:
    code, document = node.run("--all", "--yes")
    assert code == 0 and outcomes(document) == {VM_1: "left", VM_2: "left"}
    assert set(document["vms"][0]) == {"uuid", "name", "outcome", "detail"}
    assert node.runs_there(VM_1) and node.runs_there(VM_2) and node.hv.domains == {}
    saved = node.saved
    assert saved.held == {} and all(left.handed_over for left in saved.left.values())
    assert saved.tombstones == {uuid: Tombstone(epoch=1, done=True, acked=True) for uuid in (VM_1, VM_2)}
    code, status = node.run(verb="status")
    assert code == 0 and {vm["uuid"] for vm in status["left"]} == {VM_1, VM_2}
    assert node.run("--uuid", VM_1, "--confirm")[1]["vms"][0]["outcome"] == "left", "asked again"
    assert node.hv.calls.count(("migrate", VM_1)) == 1


def test_one_vm_leaves_and_the_other_stays(node: Node) -> None:
    code, document = node.run("--uuid", VM_1.upper(), "--confirm")
    assert code == 0 and outcomes(document) == {VM_1: "left"}
    assert node.runs_there(VM_1) and node.hv.domains[VM_2].state == DomainState.RUNNING and VM_2 in node.saved.held


def test_a_dry_run_changes_nothing(node: Node, problems: list[str]) -> None:
    before = node.saved
    code, document = node.run("--all", "--dry-run")
    assert code == 0 and document["changed"] is False and len(document["plan"]) == 2
    problems.append("no room: 3 MiB are free")
    code, document = node.run("--all", "--dry-run")
    assert code == 3 and document["problems"] == ["no room: 3 MiB are free"] and "no room" in node.said
    assert node.saved == before and node.peer.domains == {}


def test_a_target_that_cannot_take_them_is_refused(node: Node, problems: list[str]) -> None:
    problems.append("no room: 3 MiB are free")
    code, document = node.run("--all", "--yes")
    assert code == 3 and outcomes(document) == {VM_1: "refused", VM_2: "refused"}
    problems[:] = ["unreachable"]
    assert node.run("--all", "--yes")[0] == 4 and node.peer.domains == {}


def test_without_a_terminal_it_asks_for_yes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert node.run("--all")[0] == 2 and "--yes" in node.said and node.peer.domains == {}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n")
    assert node.run("--all")[0] == 1 and node.peer.domains == {}
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n")
    assert node.run("--all")[0] == 0 and node.runs_there(VM_1)


def test_safety_rules_refuse(node: Node) -> None:
    assert node.run("--uuid", "00000000-0000-4000-8000-0000000000ff", "--yes")[0] == 3
    assert "does not own" in node.said
    node.hv.person_pause(VM_1)
    assert node.run("--uuid", VM_1, "--yes")[0] == 3 and "paused" in node.said
    code, document = node.run("--all", "--yes")
    assert code == 1 and outcomes(document) == {VM_1: "refused", VM_2: "left"}, "one stayed"
    node.hv.person_resume(VM_1)
    node.change(lambda durable: msgspec.structs.replace(durable, confirmed_boot="another"))
    code, document = node.run("--all", "--yes")
    assert code == 3 and "not confirmed" in document["vms"][0]["detail"]


def test_stopped_vms_are_not_touched(node: Node) -> None:
    vm = assignment(desired=Desired.STOPPED)
    node.hv.destroy(VM_1)
    node.change(lambda durable: durable.with_held(Held(vm=vm)))
    code, document = node.run("--all", "--yes")
    assert code == 0 and outcomes(document) == {VM_2: "left"} and VM_1 in node.saved.held


def test_usage_is_checked(node: Node) -> None:
    for argv in (["--uuid", "x"], ["--all", "--timeout", "x"], ["--all", "--uuid", VM_1], []):
        assert node.run(*argv, "--yes")[0] == 2
    assert main(["migrate", "--interface", "e", "--dest", "host", "--all", "--config", str(node.config)]) == 2


def test_libvirt_that_does_not_answer_is_exit_4(node: Node) -> None:
    node.hv.lose()
    assert node.run("--all", "--yes")[0] == 4
    node.hv.restore()
    node.hv.fail_next("scan")
    assert node.run("--all", "--yes")[0] == 4


def test_a_failed_migration_leaves_the_vm_running_and_is_exit_1(node: Node) -> None:
    node.hv.fail_next("migrate_confirm", HypervisorError("the reply was lost"))
    code, document = node.run("--uuid", VM_1, "--yes")
    assert code == 1 and document["vms"][0] == {
        "uuid": VM_1, "name": "vm-01", "outcome": "failed", "detail": "the reply was lost"
    }  # fmt: skip
    attempt = node.saved.held[VM_1].attempt
    assert attempt is not None and attempt.phase == MigrationPhase.FAILED and attempt.resumed
    assert node.hv.domains[VM_1].state == DomainState.RUNNING and not node.runs_there(VM_1)


def test_a_source_that_stayed_paused_is_resumed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = node.hv.migrate_fail
    monkeypatch.setattr(node.hv, "migrate_fail", lambda uuid, paused=True: fail(uuid, paused))
    node.hv.fail_next("migrate_confirm")
    assert node.run("--uuid", VM_1, "--yes")[0] == 1
    assert node.hv.domains[VM_1].state == DomainState.RUNNING and ("resume", VM_1) in node.hv.calls


def test_handing_over_is_tried_again(node: Node) -> None:
    node.hv.fail_next("hand_over", HypervisorError("no answer"))
    assert node.run("--uuid", VM_1, "--yes")[0] == 0
    assert node.runs_there(VM_1) and node.hv.calls.count(("hand_over", VM_1)) == 2


def test_a_copy_that_is_gone_is_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    confirm = node.hv.migrate_confirm

    def confirmed(uuid: str) -> None:
        confirm(uuid)
        node.peer.destroy(uuid)

    monkeypatch.setattr(node.hv, "migrate_confirm", confirmed)
    code, document = node.run("--uuid", VM_1, "--yes")
    assert code == 0 and "no copy" in document["vms"][0]["detail"] and node.saved.left[VM_1].handed_over


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("step", ["migrate_begin", "migrate_arrive", "migrate_confirm", "inspect_after", "hand_over"])
def test_killed_at_any_step_the_next_one_goes_on(node: Node, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """libvirt goes on with what was begun."""
    hv = node.hv
    confirm, inspect = hv.migrate_confirm, hv.inspect

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "inspect_after":
            patch.setattr(hv, "migrate_confirm", lambda uuid: (confirm(uuid), patch.setattr(hv, "inspect", dies)))
        else:
            patch.setattr(hv, step, dies)
        with pytest.raises(Killed):
            node.run("--uuid", VM_1, "--yes")
    assert hv.inspect == inspect
    attempt = node.saved.held[VM_1].attempt if VM_1 in node.saved.held else None
    assert attempt is None or attempt.phase == MigrationPhase.LEAVING
    if VM_1 in hv.moves:
        if not hv.moves[VM_1].arrived:
            hv.migrate_arrive(VM_1)
        hv.migrate_confirm(VM_1)
    hv.close()
    node.snapshot.unlock()
    node.run("--all", "--yes")
    node.check()
    assert node.runs_there(VM_1) and node.saved.left[VM_1].handed_over and leaving_uuids(node) == []


def leaving_uuids(node: Node) -> list[str]:
    return [uuid for uuid, held in node.saved.held.items() if held.leaving]


def test_an_undecided_attempt_is_looked_at_before_anything_else(node: Node) -> None:
    attempt = Attempt(id="a0", target="", address=PEER)
    node.change(lambda durable: leaving.begin(durable, VM_1, attempt))
    code, document = node.run("--uuid", VM_1, "--yes")
    assert code == 0 and outcomes(document) == {VM_1: "left"} and "earlier migration" in node.said


def test_an_attempt_that_cannot_be_decided_is_exit_5(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "GRACE_S", 1.0)
    monkeypatch.setattr(node.hv, "migrate", lambda *_: node.hv.lose())
    code, document = node.run("--uuid", VM_1, "--yes", "--timeout", "0.2")
    assert code == 5 and "not decided yet" in document["vms"][0]["detail"] and leaving_uuids(node) == [VM_1]


def test_a_connection_that_is_made_again_is_given_time_to_settle(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        node.hv.lose()
        node.hv.restore()
        raise HypervisorError("the connection to libvirt broke")

    monkeypatch.setattr(node.hv, "migrate", breaks)
    code, document = node.run("--uuid", VM_1, "--yes")
    assert code == 1 and document["vms"][0]["detail"] == "the connection to libvirt broke"


def test_a_definition_that_stayed_behind_is_removed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    domain, confirm = node.hv.domains[VM_1], node.hv.migrate_confirm

    def confirmed(uuid: str) -> None:
        confirm(uuid)
        node.hv.domains[uuid] = domain

    monkeypatch.setattr(node.hv, "migrate_confirm", confirmed)
    assert node.run("--uuid", VM_1, "--yes")[0] == 0 and VM_1 not in node.hv.domains and node.runs_there(VM_1)


def test_a_drain_after_it_counts_nothing_that_has_left(node: Node) -> None:
    assert node.run("--all", "--yes")[0] == 0
    code, document = node.run("--yes", "--graceful", "0", verb="drain")
    assert code == 0 and document["drained"] and node.runs_there(VM_1)


def test_status_says_in_words_what_leaves(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.hv.fail_next("migrate_confirm", HypervisorError("the reply was lost"))
    node.run("--uuid", VM_1, "--yes")
    node.run("--uuid", VM_2, "--yes")
    assert main(["status", "--config", str(node.config)]) == 0
    shown = capsys.readouterr().out
    assert f"migration of vm-01 to {PEER}: failed: the reply was lost" in shown and VM_1 in shown
    assert f"vm-02 has left to {PEER}: it was told to run there" in shown


def test_progress_is_a_line_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = MigrationProgress(total_mib=64, remaining_mib=32, rate_mib_s=8, iteration=2)
    with ProgressLine("vm") as line:
        for _ in range(3):
            line.show(half)
        line.show(MigrationProgress())
    assert capsys.readouterr().err == "vm: 50 %, 32 of 64 MiB left, 8 MiB/s, pass 2\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressLine("vm") as line:
        line.show(half)
    shown = capsys.readouterr().err
    assert shown.startswith("\rvm [###############...............] 50 %") and shown.endswith("\r")


# --- through the agent ------------------------------------------------------------------------------------------------


class Served:
    """The core of an agent in memory behind a real socket; questions move its clock."""

    def __init__(self, world: World, path: Path) -> None:
        self.world, self._socket, self._ending = world, LocalSocket(path), threading.Event()
        self.before: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending.is_set():
            if not self._socket.socket.poll(20):
                continue
            question = self._socket.receive()
            if question is None:
                continue
            self.before()
            self.world.run(0.3)
            self.world.answers.clear()
            self.world.give(
                fx.Asked(1, question.verb, question.graceful_s, question.uuid, question.attempt, question.migration)
            )
            self._socket.answer(self.world.answers[0])

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def served(short_dir: Path, problems: list[str]) -> Iterator[tuple[Served, Callable[..., int]]]:
    world = World()
    world.start_agent()
    world.run_until(lambda: world.ready)
    world.server.assign(assignment())
    world.poke()
    world.run_until(lambda: world.runs(VM_1))
    world.run(6.0)
    config = short_dir / "agentd.toml"
    config.write_text(f'state_dir = "{short_dir}/state"\nsocket = "{short_dir}/a.sock"\n')
    agent = Served(world, short_dir / "a.sock")

    def run(*argv: str) -> int:
        to = ("--interface", "eth1", "--dest", PEER)
        return main(["migrate", *to, *argv, "--yes", "--config", str(config), "-o", "json"])

    yield agent, run
    agent.close()


Running = tuple[Served, Callable[..., int]]


def test_the_agent_migrates_when_it_runs(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    agent, run = served
    agent.world.network_down = True
    assert run("--uuid", VM_1) == 0
    out, said = capsys.readouterr()
    document = json.loads(out)
    assert outcomes(document) == {VM_1: "left"} and document["vms"][0]["detail"] == "it runs there"
    assert agent.world.runs_on_peer(VM_1) and "MiB" in said


def test_the_agent_s_failure_is_exit_1(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    agent, run = served
    agent.world.hv.fail_next("migrate_confirm", HypervisorError("the reply was lost"))
    assert run("--all") == 1
    assert json.loads(capsys.readouterr().out)["vms"][0]["detail"] == "the reply was lost"


def test_what_the_agent_cannot_record_is_not_begun(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    agent, run = served
    agent.world.disk_full = True
    assert run("--all") == 1
    assert "no space" in json.loads(capsys.readouterr().out)["vms"][0]["detail"] and agent.world.migrations == []


def test_the_agent_refuses_what_has_changed_since(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    agent, run = served
    asked: list[int] = []

    def before() -> None:
        asked.append(1)
        if len(asked) == 2:
            agent.world.hv.person_pause(VM_1)

    agent.before = before
    assert run("--all") == 3
    assert "paused" in json.loads(capsys.readouterr().out)["vms"][0]["detail"]


def test_the_server_may_draw_its_conclusion_first(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    agent, run = served

    def before() -> None:
        if agent.world.migrations:
            agent.world.run_until(lambda: agent.world.runs_on_peer(VM_1))
            agent.world.server.release(VM_1, 1)
            agent.world.poke()
            agent.world.run(3.0)

    agent.before = before
    assert run("--all") == 0
    assert "given it to its new node" in json.loads(capsys.readouterr().out)["vms"][0]["detail"]


def test_an_agent_that_ends_is_replaced(node: Node, monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    """It has recorded the attempt and answered; then it is gone for good."""
    monkeypatch.setattr(migrate, "ALONE_S", 1.0)
    monkeypatch.setattr(running, "ANSWER_S", 4.0)
    status = {"node": "n1", "faults": [], "vms": [], "migrations": [], "left": [], "objections": {VM_1: None}}
    socket = LocalSocket(short_dir / "a.sock")

    def serve() -> None:
        answers: list[dict[str, Any]] = [status, {"begun": "?"}]
        for answer in answers:
            assert socket.socket.poll(10_000)
            question = socket.receive()
            assert question is not None
            if question.migration is not None:
                attempt = leaving.ordered(question.attempt, question.migration)
                node.snapshot.save(leaving.begin(node.saved, VM_1, attempt))
            socket.answer(answer)
        socket.socket.poll(10_000)  # the next question is never answered
        socket.close()

    agent = threading.Thread(target=serve)
    agent.start()
    code, document = node.run("--uuid", VM_1, "--yes")
    agent.join()
    assert code == 1 and outcomes(document) == {VM_1: "failed"} and leaving_uuids(node) == []
