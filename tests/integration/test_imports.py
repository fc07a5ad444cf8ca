"""Import and release end to end: a person's VM comes into management running, and leaves it running."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import strace
from tests.hosts.strace import Attached, Fault
from tests.integration.chime import Chime, Qemu, unique
from wire import messages as m
from wire.client import new_key
from wire.errors import ChimeError

pytestmark = pytest.mark.integration

XML = (
    "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
    "<os><type>hvm</type></os><on_crash>restart</on_crash></domain>"
)


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1", "n2")) as chime:
        yield chime


ARGUMENT = (
    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-S'/>"
    "</qemu:commandline></domain>"
)


def theirs(
    chime: Chime, node: str = "n1", uuid: str = "", running: bool = True, made_of: str = XML
) -> tuple[str, str]:
    """Name and UUID of a VM that a person made: an embedded libvirt is theirs only while no agent runs."""
    name, uuid = unique("theirs"), uuid or str(uuids.uuid4())
    chime.stop_agent(node)
    xml = made_of.format(name=name, uuid=uuid)
    chime.as_a_person(node, f"connection.defineXML({xml!r})" + (".create()" if running else ""))
    chime.agent(node).start()
    chime.wait(lambda: tells(chime, node, uuid), f"{node} has {name}")
    chime.wait(lambda: chime.reported(node), f"{node} has reported")
    return name, uuid


def tells(chime: Chime, node: str, uuid: str) -> bool:
    """Whether the node's new agent has found it."""
    try:
        return bool(chime.ask(m.NodeSurvey(name=node, uuid=uuid))["items"])
    except ChimeError as error:
        assert error.code in ("node-unreachable", "unreachable")
        return False


def end(chime: Chime, node: str, name: str, uuid: str) -> None:
    """Removes what `theirs` made."""
    for seen in chime.processes().get(uuid, []):
        if seen.host == node:
            chime.kill(seen)
    chime.stop_agent(node)
    chime.as_a_person(node, f"connection.lookupByName({name!r}).undefine()")
    chime.agent(node).start()
    chime.wait(lambda: chime.reported(node), f"{node} has reported")


def stays(chime: Chime, seen: Qemu, uuid: str, node: str = "n1") -> None:
    assert chime.pids(uuid) == [seen.pid] and seen.host == node


def test_a_running_vm_comes_into_management_and_leaves_it_running(chime: Chime) -> None:
    name, uuid = theirs(chime)
    mine = chime.process(uuid)
    before = chime.domain_file("n1", name).read_text()
    shown = chime.tool("vm", "import", "n1", "--dry-run")
    found = [(row["name"], row["state"], row["vcpus"], row["memory_mib"]) for row in shown]
    assert found == [(name, "importable", 1, 32)]
    assert not chime.vms() and chime.domain_file("n1", name).read_text() == before

    (row,) = chime.tool("vm", "import", "n1", "--all", "--yes")
    assert row["state"] == "succeeded"
    assert (chime.vm(name)["observed"], chime.vm(name)["desired"]) == ("running", "running")
    stays(chime, mine, uuid)
    assert "<on_crash>restart</on_crash>" in chime.domain_file("n1", name).read_text()
    assert chime.tool("vm", "import", "n1", "--dry-run") == []

    chime.kill(mine)
    second = chime.other_process(uuid, mine)
    chime.observed(name, "running")
    assert "<on_crash>destroy</on_crash>" in chime.domain_file("n1", name).read_text()

    chime.tool("vm", "release", name, "--yes")
    assert uuid not in chime.vms() and not chime.alarms()
    stays(chime, second, uuid)
    assert "<chime:vm" not in chime.domain_file("n1", name).read_text()
    chime.do(m.NodeDrain, name="n1", graceful_s=0.0)
    chime.do(m.NodeEnable, name="n1")
    stays(chime, second, uuid)
    chime.kill(second)
    chime.no_process(uuid)
    chime.agent("n1").kill()
    chime.wait_nodes("n1")
    chime.stays(lambda: not chime.processes().get(uuid), 2.0, "nobody starts it again")
    assert chime.domain_file("n1", name).exists()
    end(chime, "n1", name, uuid)


def test_one_uuid_is_managed_on_one_node(chime: Chime) -> None:
    """The second is refused, and goes on as it is."""
    name, uuid = theirs(chime)
    other, _ = theirs(chime, "n2", uuid, running=False)
    chime.tool("vm", "import", "n1", name, "--yes")
    (row,) = chime.tool("vm", "import", "n2", "--dry-run")
    assert row["state"] == "refused" and f"{name} on n1" in row["detail"]
    chime.tool("vm", "import", "n2", other, "--yes", code=1)
    assert chime.vm(name)["node"] == "n1" and len(chime.processes()[uuid]) == 1
    chime.tool("vm", "release", name, "--yes")
    end(chime, "n2", other, uuid)
    end(chime, "n1", name, uuid)


def test_what_was_changed_since_it_was_looked_at_is_left_alone(chime: Chime) -> None:
    name, uuid = theirs(chime)
    mine = chime.process(uuid)
    xml = chime.ask(m.NodeSurvey(name="n1", uuid=uuid))["items"][0]["xml"]
    spec = m.VmSpec(vcpus=1, memory_mib=32, xml=xml.replace("restart", "preserve"))
    request = m.VmImport(key=new_key(), node="n1", name=name, uuid=uuid, spec=spec, desired="running")  # type: ignore[arg-type]
    op = chime.client.wait_operation(chime.ask(request)["operation"]["id"], 30.0)
    assert op.state == "failed" and "was changed" in op.outcome
    chime.wait(lambda: not chime.vms(), "it is forgotten")
    stays(chime, mine, uuid)
    assert "<chime:vm" not in chime.domain_file("n1", name).read_text()
    chime.tool("vm", "import", "n1", name, "--yes")
    stays(chime, mine, uuid)
    chime.tool("vm", "release", name, "--yes")
    end(chime, "n1", name, uuid)


def test_h5_what_reaches_beyond_the_vm_needs_the_operators_word_and_the_nodes_too(chime: Chime) -> None:
    """It runs on all the time: nothing is taken over."""
    name, uuid = theirs(chime, made_of=XML.replace("</domain>", ARGUMENT))
    mine = chime.process(uuid)
    (row,) = chime.tool("vm", "import", "n1", "--dry-run")
    assert row["state"] == "refused" and "--allow-unsafe" in row["detail"] and "commandline" in row["warnings"][0]
    chime.tool("vm", "import", "n1", name, "--yes", code=3)
    assert "warning: " in chime.tool("vm", "import", "n1", name, "--yes", "--allow-unsafe", code=1)
    op = chime.ask(m.OpList(limit=1000))["items"][-1]
    assert (op["kind"], op["state"]) == ("import", "failed")
    assert "this node does not allow it: commandline" in op["outcome"] and "vm_allow in agentd.toml" in op["outcome"]
    chime.wait(lambda: not chime.vms(), "it is forgotten")
    stays(chime, mine, uuid)
    assert "<chime:vm" not in chime.domain_file("n1", name).read_text()
    end(chime, "n1", name, uuid)


@pytest.mark.parametrize("number", [1, 2])
def test_an_agent_that_dies_in_an_import_or_a_release_goes_on(chime: Chime, number: int, tmp_path: Path) -> None:
    """Killed before it has recorded the order, and after that, before it has told: the VM runs on all the time."""
    if not strace.usable():
        pytest.skip("strace is missing, or may not trace here")
    name, uuid = theirs(chime)
    mine = chime.process(uuid)
    state = chime.agent_state("n1")
    fault = Fault((state / "snapshot", state / "snapshot.part"), "rename", str(number))
    for verb, words in (("import", ("import", "n1", name)), ("release", ("release", name))):
        pid = chime.wait(lambda: chime.agent("n1").pid, "the agent runs")
        with Attached(fault, pid, tmp_path / "trace") as attached:
            chime.tool("vm", *words, "--yes")
            chime.wait(lambda attached=attached: attached.over, f"the agent is killed in the {verb}")
        assert strace.place_of_death(tmp_path / "trace") == "rename snapshot"
        chime.wait_nodes("n1")
        stays(chime, mine, uuid)
        assert (uuid in chime.vms()) == (verb == "import")
        marked = "<chime:vm" in chime.domain_file("n1", name).read_text()
        assert marked == (verb == "import")
    end(chime, "n1", name, uuid)
