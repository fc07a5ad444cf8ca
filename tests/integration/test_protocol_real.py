"""An agent and a client that were written from docs/protocol.md alone work with the real chimed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import plain_peer
from tests.integration.plain_peer import Agent, Peer, Refused
from tests.integration.real_server import ROOT, Server, token, until

SPEC = {"vcpus": 1, "memory_mib": 256}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("protocol"), heartbeat_s=2.0, challenge_s=1.8) as running:
        yield running


@pytest.fixture
def operator(server: Server) -> Iterator[Peer]:
    with server.new_peer() as peer:
        yield peer


@pytest.fixture
def agents(server: Server, operator: Peer, request: pytest.FixtureRequest) -> Iterator[list[Agent]]:
    """Two agents in session."""
    names = [f"{request.node.name.replace('_', '-')[5:40]}-{number}" for number in (1, 2)]
    made = [Agent(server.add_node(operator, name)) for name in names]
    for agent in made:
        agent.start()
    until(lambda: all(node(operator, name)["schedulable"] for name in names), "both nodes are schedulable")
    yield made
    with server.new_peer() as again:  # so that the next test's VMs go to its own nodes
        for agent in made:
            again.change("node.disable", name=agent.node)
            agent.stop()


def node(operator: Peer, name: str) -> plain_peer.Body:
    shown: plain_peer.Body = operator.request("node.show", {"name": name})["node"]
    return shown


def vm(operator: Peer, name: str) -> plain_peer.Body:
    shown: plain_peer.Body = operator.request("vm.show", {"vm": name})["vm"]
    return shown


def test_the_peers_know_nothing_of_chime() -> None:
    text = Path(plain_peer.__file__).read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported <= {"__future__", "collections", "hashlib", "msgpack", "secrets", "threading", "time", "typing",
                        "uuid", "zmq"}  # fmt: skip


def test_example_client(server: Server, operator: Peer, agents: list[Agent], tmp_path: Path) -> None:
    found = re.search(r"<!-- example: client -->\n```python\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.S)
    assert found
    script = tmp_path / "client.py"
    script.write_text(found[1])
    name = agents[0].node
    argv = [sys.executable, "-I", str(script), str(server.operator_file)]
    done = subprocess.run([*argv, name], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"{name} normal" in lines
    assert lines[-1].startswith("operation op")
    until(lambda: node(operator, name)["drain_evidence"] == "agent", "the drain is proven")
    wrong = subprocess.run([*argv, "nowhere"], capture_output=True, text=True, timeout=30, check=False)
    assert (wrong.returncode, wrong.stderr) == (1, "not-found: there is no node nowhere\n")


def test_life_of_a_vm(operator: Peer, agents: list[Agent]) -> None:
    first = agents[0]
    created = operator.change("vm.create", name="life", spec=SPEC, node=first.node)
    assert operator.finish(created)["state"] == "succeeded"
    uuid = vm(operator, "life")["uuid"]
    assert first.machines == {uuid: True}
    for verb, runs in (("stop", False), ("start", True), ("reboot", True)):
        body = {"force": True} if verb == "stop" else {}
        ended = operator.finish(operator.change(f"vm.{verb}", vm="life", **body))
        assert ended["state"] == "succeeded", ended
        assert first.machines == {uuid: runs}
    assert first.resets == [uuid]
    assert vm(operator, "life")["observed"] == "running"
    ended = operator.finish(operator.change("vm.delete", vm=uuid))
    assert ended["state"] == "succeeded", ended
    assert first.machines == {}
    with pytest.raises(Refused, match="not-found"):
        vm(operator, "life")
    assert not (first.errors or first.missed)


def test_a_start_that_fails(operator: Peer, agents: list[Agent]) -> None:
    first = agents[0]
    first.fail["bad"] = "disk /shared/bad.qcow2 is not there"
    ended = operator.finish(operator.change("vm.create", name="bad", spec=SPEC, node=first.node))
    assert (ended["state"], ended["outcome"]) == ("failed", "disk /shared/bad.qcow2 is not there")
    assert vm(operator, "bad")["observed"] == "failed"
    first.fail.clear()
    assert operator.finish(operator.change("vm.start", vm="bad"))["state"] == "succeeded"
    operator.finish(operator.change("vm.delete", vm="bad"))


def test_drain_rebuild_release(operator: Peer, agents: list[Agent]) -> None:
    first, second = agents
    names = [f"moving-{number}" for number in range(3)]
    for name in names:
        operator.finish(operator.change("vm.create", name=name, spec=SPEC, node=first.node))
    before = vm(operator, names[0])["epoch"]
    with pytest.raises(Refused, match="refused-unsafe"):
        operator.change("node.rebuild", name=first.node)
    ended = operator.finish(operator.change("node.drain", name=first.node, graceful_s=0))
    assert ended["state"] == "succeeded", ended
    assert node(operator, first.node)["drain_evidence"] == "agent"
    assert not any(first.machines.values())
    ended = operator.finish(operator.change("node.rebuild", name=first.node))
    assert ended["state"] == "succeeded", ended
    assert sum(second.machines.values()) == 3
    assert vm(operator, names[0])["epoch"] == before + 1
    until(lambda: not first.machines, "the releases were carried out")
    until(lambda: not first._unconfirmed, "the releases were confirmed")
    operator.change("node.enable", name=first.node)
    for name in names:
        operator.finish(operator.change("vm.delete", vm=name))


def test_server_restart_and_agent_restart(server: Server, operator: Peer, agents: list[Agent]) -> None:
    first = agents[0]
    operator.finish(operator.change("vm.create", name="stays", spec=SPEC, node=first.node))
    server.stop()
    server.start()
    with server.new_peer() as again:
        until(lambda: vm(again, "stays")["observed"] == "running", "the agent is back", 30)
        assert list(first.machines.values()) == [True]
        first.stop()
        assert vm(again, "stays")["observed"] != "running", "nobody can tell without an agent"
        agents[0] = Agent(first.keys, first.boot_id)
        agents[0].machines.update(first.machines)
        agents[0].start()
        until(lambda: vm(again, "stays")["observed"] == "running", "its next life is in session", 30)
        assert agents[0].errors == []
        again.finish(again.change("vm.delete", vm="stays"))


def test_the_same_key_twice(operator: Peer, agents: list[Agent]) -> None:
    """Section 8: a repeated request changes nothing, with another body it is a conflict."""
    key, body = token(), {"name": "once", "spec": SPEC}
    first = operator.request("vm.create", {"key": key, **body})
    assert operator.request("vm.create", {"key": key, **body}) == first
    with pytest.raises(Refused, match="key-conflict"):
        operator.request("vm.create", {"key": key, **body, "name": "twice"})
    operator.finish(first)
    operator.finish(operator.change("vm.delete", vm="once"))
