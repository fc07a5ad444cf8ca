"""What happens to agents: killed, doubled, without server, with a full disk or a damaged snapshot.

Fault rows 13, 15, 16, 33, 37 and 38.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator

import msgspec
import pytest

from agentd import snapshot
from tests.integration.chime import Chime, tiny, unique
from wire import messages as m

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1",)) as chime:
        yield chime


def test_a_killed_agent_adopts_its_vms(chime: Chime) -> None:
    """Row 13: nothing happens to the VMs, also to one that died meanwhile: it is started once."""
    names = [unique("adopted") for _ in range(3)]
    uuids = [chime.create(name) for name in names]
    before = {uuid: chime.process(uuid) for uuid in uuids}
    pid = chime.agent("n1").pid
    chime.kill(before[uuids[2]])
    chime.agent("n1").kill()
    chime.wait(lambda: chime.agent("n1").pid not in (None, pid), "the agent is back")
    chime.other_process(uuids[2], before[uuids[2]])
    chime.wait_nodes("n1")
    for name in names:
        chime.observed(name, "running")
    assert [chime.pids(uuid) for uuid in uuids[:2]] == [[before[uuid].pid] for uuid in uuids[:2]]
    assert [chime.vm(name)["restarts"] for name in names] == [0, 0, 1]


def test_an_agent_killed_in_the_middle_of_anything(chime: Chime) -> None:
    """Row 15: killed at random moments of create, stop, start, delete; each takes effect once, and ends."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(3):
        name = unique("journal")
        uuid = ""
        steps: list[tuple[type[m.Mutation], dict[str, object]]] = [
            (m.VmCreate, {"name": name, "spec": tiny()}),
            (m.VmStop, {"vm": name, "force": True}),
            (m.VmStart, {"vm": name}),
            (m.VmDelete, {"vm": name}),
        ]
        for kind, values in steps:
            chime.wait(lambda: chime.reported("n1"), "the node takes commands")
            result = chime.do(kind, wait=False, **values)
            uuid = uuid or result["vm"]["uuid"]
            chime.stays(lambda: True, rng.choice((0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)), "a random moment")
            chime.agent("n1").kill()
            op = chime.client.wait_operation(result["operation"]["id"], 60.0)
            assert op.state == "succeeded", f"{op}\n{chime.logs()}"
            want = 1 if kind in (m.VmCreate, m.VmStart) else 0
            assert len(chime.pids(uuid)) == want, f"after {kind.__name__}"
        assert not chime.domain_file("n1", name).exists()


def test_a_start_that_was_cut_off_before_there_was_a_process(chime: Chime) -> None:
    """Row 15: the embedded libvirt dies with its agent; it left a domain that it would take for running for ever."""
    name = unique("unborn")
    uuid = chime.create(name)
    seen = chime.process(uuid)
    status = chime["n1"].hyp / "run" / "qemu" / f"{name}.xml"
    chime.stop_agent("n1")
    chime.kill(seen)
    chime.no_process(uuid)
    words = status.read_text()
    cut_off = "<domstatus state='paused' reason='starting up' pid='0'>"
    status.write_text(re.sub(r"<domstatus [^>]*>", cut_off, words))
    chime.agent("n1").start()
    chime.other_process(uuid, seen)
    chime.observed(name, "running")


def test_a_second_agent_is_refused(chime: Chime) -> None:
    """Row 16: it ends with one clear line; the first goes on."""
    pid = chime.agent("n1").pid
    done = chime.agentd("n1", code=1)
    assert "another agentd" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert chime.agent("n1").pid == pid and chime.node("n1")["health"] == "normal"


def test_crashes_are_mended_without_the_server(chime: Chime) -> None:
    """Row 33: the server is away; its agent starts what crashed, also an agent that was restarted meanwhile."""
    name, off = unique("alone"), unique("off")
    uuid, off_uuid = chime.create(name), chime.create(off, desired="stopped")
    first = chime.process(uuid)
    chime.stop_server()
    chime.kill(first)
    second = chime.other_process(uuid, first)

    def told() -> list[str]:
        return [vm["observed"] for vm in chime.local("n1", "status")["vms"] if vm["name"] == name]

    chime.wait(lambda: told() == ["running"], "the agent has seen it run")  # else it is not a second crash
    chime.agent("n1").kill()
    chime.kill(second)
    third = chime.other_process(uuid, second)
    chime.serve_again()
    chime.wait_nodes("n1")
    chime.observed(name, "running")
    chime.wait(lambda: chime.vm(name)["restarts"] == 2, "both restarts are counted")
    assert chime.pids(uuid) == [third.pid] and not chime.pids(off_uuid)
    chime.wait(lambda: chime.actions(name).count("vm-restarted") >= 1, "the server hears of it")


def test_a_full_disk_of_the_agent(chime: Chime) -> None:
    """Row 37: VMs run on; what cannot be recorded is not done; the node says why; it recovers when there is room."""
    name, new = unique("before"), unique("new")
    state, host, content = chime.agent_state("n1"), chime["n1"], {}
    uuid = chime.create(name)
    seen = chime.process(uuid)
    chime.stop_agent("n1")
    content = {file.name: file.read_bytes() for file in state.iterdir() if file.is_file()}
    host.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=0700", "tmpfs", state])
    try:
        for file, raw in content.items():
            host.run(["sh", "-c", f"umask 077; cat > {state}/{file} < {_spool(chime, raw)}"])
        chime.agent("n1").start()
        chime.in_session("n1")
        chime.wait_nodes("n1")
        host.run(["sh", "-c", f"cat /dev/zero > {state}/ballast"], check=False)
        result = chime.do(m.VmCreate, wait=False, name=new, spec=tiny())
        chime.wait(lambda: "snapshot-not-writable" in chime.node("n1")["reasons"], "the fault is reported")
        new_uuid = result["vm"]["uuid"]
        chime.stays(lambda: not chime.pids(new_uuid), 2.0, "nothing is done that is not recorded")
        assert chime.pids(uuid) == [seen.pid] and chime.alarms("node-error")
        host.run(["rm", f"{state}/ballast"])
        assert chime.process(new_uuid)
        chime.observed(new, "running")
        chime.wait_nodes("n1")
        assert chime.pids(uuid) == [seen.pid]
        chime.stop_agent("n1")
        after = host.run(["cat", f"{state}/snapshot"]).stdout
    finally:
        host.run(["umount", "-l", state])
    (state / "snapshot").write_text(after)


def _spool(chime: Chime, raw: bytes) -> str:
    place = chime.cluster.dir / unique("spool")
    place.write_bytes(raw)
    place.chmod(0o600)
    return str(place)


def _of_another_node(raw: bytes) -> bytes:
    durable, serial = snapshot.decode(raw, "n1")
    return snapshot.encode(msgspec.structs.replace(durable, node="n9"), serial)


def _newer(raw: bytes) -> bytes:
    first, _, rest = raw.partition(b"\n")
    header = json.loads(first)
    return json.dumps({**header, "version": header["version"] + 1}).encode() + b"\n" + rest


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "flipped": lambda raw: raw[:-40] + bytes([raw[-40] ^ 4]) + raw[-39:],
    "empty": lambda raw: b"",
    "another-node": _of_another_node,
    "newer": _newer,
}


def test_a_damaged_snapshot_is_refused(chime: Chime) -> None:
    """Row 38: put aside, with the reason; what runs is adopted; nothing is started before the server confirms."""
    running, dead = unique("running"), unique("dead")
    uuid, dead_uuid = chime.create(running), chime.create(dead)
    seen, epoch = chime.process(uuid), chime.vm(running)["epoch"]
    file = chime.agent_state("n1") / "snapshot"
    chime.stop_server()
    chime.stop_agent("n1")
    chime.kill(chime.process(dead_uuid))
    sound = file.read_bytes()
    for count, (kind, damage) in enumerate(DAMAGE.items(), 1):
        file.write_bytes(damage(sound))
        chime.agent("n1").start()
        chime.wait(lambda n=count: len(list(file.parent.glob("snapshot.refused-*"))) == n, f"{kind}: it is put aside")
        chime.wait(lambda: chime.local("n1", "status").get("agent_running"), f"{kind}: the agent is there")
        chime.stays(lambda: not chime.pids(dead_uuid), 1.0, f"{kind}: nothing is started without the server")
        assert chime.pids(uuid) == [seen.pid], kind
        chime.stop_agent("n1")
    chime.agent("n1").start()
    chime.serve_again()
    chime.process(dead_uuid)
    chime.observed(running, "running")
    chime.observed(dead, "running")
    assert chime.pids(uuid) == [seen.pid]
    assert chime.vm(running)["epoch"] == epoch
