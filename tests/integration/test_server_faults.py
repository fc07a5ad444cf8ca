"""What happens to the server: killed, restarted, a full disk, a damaged or an old database.

Fault rows 31, 34, 36, 39 and 40.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.integration.chime import CALM, SERVER, Chime, new_key, tiny, unique
from wire import messages as m
from wire.errors import ChimeError
from wire.types import Desired

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(needs_hosts: None) -> Iterator[Chime]:
    with Chime(("n1", "n2"), CALM, server_state_mount="size=4m,mode=0700") as chime:
        yield chime


def test_a_killed_server_and_a_client_that_tries_again(chime: Chime) -> None:
    """Row 31: killed at a random moment around the commit; the same key gives one effect and one answer."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(6):
        name, answers = unique("retried"), []
        body = m.VmCreate(key=new_key(), name=name, spec=tiny(), desired=Desired.STOPPED)
        pause_s = rng.uniform(0.0, 0.03)

        def ask(body: m.VmCreate = body, answers: list[object] = answers) -> None:
            with chime.new_client(timeout_s=2.0) as client:
                deadline = time.monotonic() + 60.0
                while not answers and time.monotonic() < deadline:
                    try:
                        answers.append(client.request(body))
                    except ChimeError as error:  # no-room: no agent has come back yet
                        assert error.code in ("unreachable", "no-room", "node-unreachable"), error

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(pause_s)
        chime.server.kill()
        asking.join()
        again = chime.ask(body, 30.0)
        assert again == answers[0]
        assert [vm["uuid"] for vm in chime.vms().values() if vm["name"] == name] == [again["vm"]["uuid"]]
        chime.observed(name, "stopped")
        other = m.VmCreate(key=body.key, name=unique("other"), spec=tiny())
        with pytest.raises(ChimeError, match="key"):
            chime.ask(other)
        chime.wait_nodes("n1", "n2")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restarted_server_calls_nobody_unreachable(chime: Chime, how: str) -> None:
    """Row 34: all agents are up: no node is called unreachable, no VM is touched, no alarm is raised."""
    name = unique("through")
    uuid = chime.create(name)
    seen = chime.process(uuid)
    last = chime.ask(m.EventList(limit=1))["items"][-1]["id"]
    if how == "kill":
        chime.server.kill()
    else:
        chime.server.stop()
        chime.server.start()
    chime.wait_server()
    chime.stays(lambda: {chime.node(n)["health"] for n in chime.names} == {"normal"}, 8.0, "all nodes are normal")
    chime.observed(name, "running")
    after = chime.ask(m.EventList(after_id=last, limit=1000))["items"]
    assert not [event for event in after if "unreachable" in event["text"] or event["action"] == "alarm-raised"]
    assert not chime.alarms() and chime.pids(uuid) == [seen.pid]


def test_a_full_disk_of_the_server(chime: Chime) -> None:
    """Row 36: read-only, clear errors, nothing is granted; VMs are kept running; it recovers when there is room."""
    name, new = unique("kept"), unique("new")
    uuid = chime.create(name)
    seen = chime.process(uuid)
    host = chime[SERVER]
    # All of the room, to the last byte, and more than once: SQLite may free some by its checkpoints.
    fill = f"cat /dev/zero > {chime.state_dir}/ballast; cat /dev/zero >> {chime.state_dir}/ballast"

    def refused() -> bool:
        host.run(["sh", "-c", fill], check=False)
        code = chime.refused(m.VmCreate, name=unique("filling"), spec=tiny(), desired="stopped")
        return code == "storage-unavailable"

    def creates() -> str:
        try:
            return "" if refused() else "granted"
        except pytest.fail.Exception:
            return "granted"

    chime.wait(lambda: creates() == "", "the disk is full")
    assert chime.ask(m.ServerStatus())["read_only"]
    assert chime.refused(m.VmCreate, name=new, spec=tiny()) == "storage-unavailable"
    assert chime.refused(m.VmStop, vm=name, force=True) == "storage-unavailable"
    words = chime.tool("vm", "stop", name, "--force", "--yes", code=1)
    assert len(words.strip().splitlines()) <= 3 and "record" in words
    assert chime.vm(name)["desired"] == "running" and new not in {vm["name"] for vm in chime.vms().values()}
    chime.stays(lambda: chime.node("n1")["health"] == "normal", 4.0, "nodes are heard all the same")
    chime.kill(seen)
    again = chime.other_process(uuid, seen)
    host.run(["rm", f"{chime.state_dir}/ballast"])
    chime.wait(lambda: not chime.ask(m.ServerStatus())["read_only"], "it recovers")
    new_uuid = chime.create(new)
    assert chime.process(new_uuid) and chime.pids(uuid) == [again.pid]
    chime.wait(lambda: chime.vm(name)["restarts"] == 1, "what happened meanwhile is told")
    assert "storage-recovered" in chime.actions()


def test_h12_the_database_is_moved_away_under_the_server(chime: Chime) -> None:
    """Noticed without anything to save; nothing is granted, somebody is told; all goes on when it is back."""
    host, database = chime[SERVER], chime.state_dir / "chime.db"
    host.run(["mv", database, f"{database}.aside"])
    chime.wait(lambda: chime.ask(m.ServerStatus())["read_only"], "it is noticed", 10.0)
    assert chime.refused(m.VmCreate, name=unique("lost"), spec=tiny()) == "storage-unavailable"
    (alarm,) = chime.alarms("storage-unavailable")
    assert alarm["severity"] == "critical" and f"{database} was deleted, moved or replaced" in alarm["text"]
    chime.stays(lambda: chime.node("n1")["health"] == "normal", 3.0, "nodes are heard all the same")
    host.run(["sh", "-c", f"cp {database}.aside {database}"])
    chime.stays(lambda: chime.ask(m.ServerStatus())["read_only"], 3.0, "a copy is not the file")
    host.run(["mv", f"{database}.aside", database])
    chime.wait(lambda: not chime.ask(m.ServerStatus())["read_only"], "it recovers")
    chime.create(unique("saved"))
    assert not chime.alarms("storage-unavailable")


def test_a_damaged_database_is_not_used(chime: Chime) -> None:
    """Row 39: the server refuses to start, leaves the file, says how to restore; with a backup all goes on."""
    name = unique("damaged")
    uuid = chime.create(name)
    seen = chime.process(uuid)
    backup = chime[SERVER].dir / unique("backup")
    chime.chimed("backup", backup)
    generation = chime.ask(m.ServerStatus())["generation"]
    chime.server.stop()
    database = chime.state_dir / "chime.db"
    host = chime[SERVER]
    damage = f"head -c 3000 /dev/urandom | dd of={database} bs=1 seek=4096 conv=notrunc status=none; cksum {database}"
    before = host.run(["sh", "-c", damage]).stdout
    refused = chime.chimed(code=1)
    assert "chimed restore" in refused.stderr and str(database) in refused.stderr
    assert host.run(["cksum", database]).stdout == before
    chime.chimed("restore", backup, code=2)  # nobody to ask
    chime.chimed("restore", backup, "--yes")
    chime.serve_again()
    chime.wait_nodes("n1", "n2")
    assert chime.ask(m.ServerStatus())["generation"] == generation + 1
    chime.wait(lambda: not chime.ask(m.ServerStatus())["recovering"], "all nodes have reported")
    chime.observed(name, "running")
    assert chime.pids(uuid) == [seen.pid]
    host.run(["sh", "-c", f"test -s {database}.replaced-* && rm {database}.replaced-*"])  # it was kept


def test_an_old_backup_is_restored(chime: Chime) -> None:
    """Row 40: between backup and restore a VM was rebuilt elsewhere, one made, one deleted. The higher epoch wins; the
    node that owned it before starts nothing; nothing changes its owner until all is known."""
    moved, made, gone, same = (unique(word) for word in ("moved", "made", "gone", "same"))
    uuid = chime.create(moved, node="n1")
    gone_uuid, same_uuid = chime.create(gone, node="n2"), chime.create(same, node="n2")
    backup = chime[SERVER].dir / unique("backup")
    chime.chimed("backup", backup)
    epoch = chime.vm(moved)["epoch"]
    chime["n1"].power_off()
    chime.wait_nodes("n1", health="unreachable")
    chime.do(m.NodeDrain, name="n1", evidence="operator", comment="it is off")
    chime.do(m.NodeRebuild, name="n1")
    owner = chime.process(uuid)
    assert owner.host == "n2"
    made_uuid = chime.create(made, node="n2")
    made_seen, same_seen = chime.process(made_uuid), chime.process(same_uuid)
    chime.do(m.VmDelete, vm=gone)
    chime.stop_server()
    chime.chimed("restore", backup, "--yes")
    chime["n2"].cut()  # the old owner comes back first: the worst order
    chime["n1"].power_on()
    chime.serve_again()
    assert chime.ask(m.ServerStatus())["recovering"]
    chime.stays(lambda: chime.pids(uuid) == [owner.pid], 5.0, "the old owner starts nothing")
    chime["n2"].heal()
    chime.wait(lambda: chime.vm(moved)["epoch"] > epoch, "the higher epoch wins")
    assert (chime.vm(moved)["node"], chime.vm(moved)["epoch"]) == ("n2", epoch + 1)
    assert chime.refused(m.NodeRebuild, name="n2") in ("recovering", "refused-unsafe")
    chime.do(m.RecoveryConfirm, comment="n1 was off all the time")
    chime.wait_nodes("n1", "n2")
    chime.wait(lambda: not chime.domain_file("n1", moved).exists(), "the old owner cleans up")
    chime.observed(moved, "running")
    assert chime.pids(uuid) == [owner.pid] and chime.pids(same_uuid) == [same_seen.pid]
    assert chime.pids(made_uuid) == [made_seen.pid], "what the database does not know is not touched"
    assert [a for a in chime.alarms("vm-unknown")], "but somebody is told"
    assert chime.process(gone_uuid).host == "n2", "the deletion is forgotten: the database is the authority"
    chime.do(m.VmCreate, name=made, spec=tiny(), uuid=made_uuid, node="n2")  # taken over by hand
    chime.observed(made, "running")
    assert chime.pids(made_uuid) == [made_seen.pid]
