"""Live migration between real hosts, with the server and without it, and what goes wrong in the middle.

Each guest counts; a copy that ran beside its source, or from an older state, would show in the counts. A slow migration
(its bandwidth is limited) leaves time to break something.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from tests.lab.lab import Lab
from tests.operator import unique
from tests.terminal import end
from wire import messages as m
from wire.types import Tls

FAST_S, SELDOM_S = 0.1, 1.0  # between two counts
MANY, AT_A_TIME = 20, 5  # VMs of an evacuation; how many boot at the same time
MAX_GAP_S = 2.0  # what a guest may miss
SLOW = m.MigrationOptions(bandwidth_mib_s=3, auto_converge=False)
STEADY = m.MigrationOptions(bandwidth_mib_s=8, auto_converge=False)
ENDS_S = 150.0  # libvirt gives a silent peer up after some 30 s


class Gap:
    """The longest time in which a guest counted nothing. Sees the shared file, not Chime."""

    def __init__(self) -> None:
        self.longest_s = 0.0


@contextmanager
def watched(lab: Lab, name: str) -> Iterator[Gap]:
    """Watches the guest's counter while the block runs."""
    gap, over = Gap(), Event()
    guest = lab.guests[name]

    def watch() -> None:
        size, since = guest.serial.stat().st_size, time.monotonic()
        while not over.wait(0.02):
            now, present = time.monotonic(), guest.serial.stat().st_size
            if present != size:
                size, since = present, now
            gap.longest_s = max(gap.longest_s, now - since)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield gap
    finally:
        over.set()
        thread.join()


def begin(lab: Lab, name: str, options: m.MigrationOptions = SLOW, to: str = "n2") -> str:
    """A migration over the business network is under way, and copies; gives the operation."""
    done = lab.do(m.VmMigrate, wait=False, vm=name, to=to, network="business", options=options)
    operation = str(done["operation"]["id"])
    lab.wait(lambda: copying(lab, operation), f"{name} is being copied", 60)
    return operation


def copying(lab: Lab, operation: str) -> bool:
    """Whether memory of the VM flows."""
    step = lab.ask(m.OpShow(id=operation))["operation"]["steps"][0]
    return step["progress"] is not None and 0 < step["progress"]["remaining_mib"] < step["progress"]["total_mib"]


def ended(lab: Lab, operation: str) -> tuple[str, str]:
    """How the operation ended, and what was said."""
    view = lab.client.wait_operation(operation, ENDS_S)
    return str(view.state), view.outcome


def is_on(lab: Lab, uuid: str, node: str) -> None:
    """The VM runs on the node, and nowhere else; the server knows."""
    lab.wait(lambda: lab.oracle.places(uuid) == [node], f"it runs on {node} alone", 60)
    lab.wait(lambda: (lab.vm(uuid)["node"], lab.vm(uuid)["observed"]) == (node, "running"), "the server knows", 60)


def test_a_guest_misses_at_most_two_seconds(lab: Lab) -> None:
    """`vm migrate`: live, over the business network; the next epoch; nothing is left behind."""
    name = unique("live")
    uuid = lab.create_guest(name, FAST_S, node="n1")
    epoch = lab.vm(uuid)["epoch"]
    with watched(lab, name) as gap:
        lab.tool("vm", "migrate", name, "--to", "n2", "--network", "business", "--yes")
        is_on(lab, uuid, "n2")
        lab.counting(name)
    whole = lab.ran_once(name)
    print(f"the guest missed at most {gap.longest_s:.2f} s")
    assert gap.longest_s <= MAX_GAP_S or not whole
    assert lab.vm(uuid)["epoch"] == epoch + 1 and not lab.raised(uuid)
    lab.wait(lambda: uuid not in lab.host("n1").virsh("list", "--all", "--uuid"), "n1 has no definition of it")
    lab.tool("vm", "stop", name, "--yes", "--force")
    lab.no_process(uuid)
    lab.tool("vm", "start", name)
    assert lab.process(uuid).host == "n2"


def test_a_node_is_evacuated(lab: Lab) -> None:
    """`node evacuate` on a terminal: twenty VMs go, live, with bars; one that is stopped is moved; a Ctrl-C ends the
    watching and nothing else, and says how to follow the operation and how to cancel it."""
    names, resting = [unique("many") for _ in range(MANY)], unique("rests")
    lab.create(resting, lab.guest_spec(resting), node="n1", desired="stopped")
    for first in range(0, MANY, AT_A_TIME):
        for name in names[first : first + AT_A_TIME]:
            lab.create(name, lab.guest_spec(name, SELDOM_S), node="n1")
        for name in names[first : first + AT_A_TIME]:
            lab.counting(name)
    plan = lab.tool("node", "evacuate", "n1", "--dry-run")
    assert all(name in str(plan) for name in (*names, resting))
    watching = lab.server.terminal("chime-tool", "node", "evacuate", "n1", "--yes", "--bandwidth", "20")
    watching.expect(rf"[2-9] of {MANY + 1} migrated")
    assert "\u2501" in watching.before, "there are bars"
    watching.sendintr()
    watching.expect(r"goes on: follow it with chime-tool op wait (op-\d+), cancel it with chime-tool op cancel op-\d+")
    operation = watching.match.group(1)
    assert end(watching) == 5 and lab.ask(m.OpShow(id=operation))["operation"]["state"] == "running"
    following = lab.server.terminal("chime-tool", "op", "wait", operation)
    following.expect(f"{MANY} migrated, 1 moved")
    assert end(following) == 0
    for name in names:
        assert lab.process(lab.vm(name)["uuid"]).host != "n1"
        lab.ran_once(name)
    assert lab.node("n1")["vms"] == 0 and not lab.host("n1").virsh("list", "--all", "--name").strip()
    assert lab.vm(resting)["node"] != "n1"


def test_a_migration_is_cancelled(lab: Lab) -> None:
    """It ends at once, and the VM goes on where it was."""
    name = unique("stays")
    uuid = lab.create_guest(name, node="n1")
    operation = begin(lab, name)
    lab.tool("op", "cancel", operation, "--yes")
    assert ended(lab, operation)[0] == "cancelled"
    is_on(lab, uuid, "n1")
    lab.ran_once(name)
    lab.wait(lambda: uuid not in lab.host("n2").virsh("list", "--all", "--uuid"), "n2 keeps nothing of it")


def test_what_takes_too_long_is_forced(lab: Lab) -> None:
    """`on_timeout = force`: the guest is paused, so that the rest can be copied."""
    name = unique("forced")
    uuid = lab.create_guest(name, node="n1")
    options = m.MigrationOptions(bandwidth_mib_s=1, auto_converge=False, timeout_s=5, on_timeout="force")  # type: ignore[arg-type]
    operation = begin(lab, name, options)
    assert ended(lab, operation)[0] == "succeeded"
    is_on(lab, uuid, "n2")
    lab.ran_once(name)


def test_what_is_copied_is_encrypted(lab: Lab) -> None:
    """Where the nodes have qemu's keys; who demands it where they have none is refused, and the VM stays."""
    name = unique("secret")
    uuid, n1 = lab.create_guest(name, node="n1"), lab.host("n1")
    demanded = m.MigrationOptions(tls=Tls.ON)
    done = lab.do(m.VmMigrate, wait=False, vm=name, to="n2", network="business", options=demanded)
    state, outcome = ended(lab, done["operation"]["id"])
    assert state == "failed" and "TLS" in outcome, outcome
    with keys(lab, "n1", "n2"):
        operation = begin(lab, name, STEADY)
        assert "migrate_tls" in n1.virsh("qemu-monitor-command", name, "--hmp", "info migrate_parameters")
        assert ended(lab, operation)[0] == "succeeded"
    is_on(lab, uuid, "n2")
    lab.ran_once(name)


@contextmanager
def keys(lab: Lab, *nodes: str) -> Iterator[None]:
    """The nodes have qemu's keys, which name them by their addresses on the business network."""
    hosts = [lab.host(name) for name in nodes]
    names = ",".join(f"IP:{host.address('biz')}" for host in hosts)
    made = hosts[0].run("sh", "-c", MAKE_KEYS, env={"NAMES": names}).stdout
    try:
        for host in hosts:
            host.run("sh", "-c", TAKE_KEYS, env={"KEYS": made})
        yield
    finally:
        for host in hosts:
            host.run("rm", "-rf", "/etc/pki/qemu")


MAKE_KEYS = """set -e
cd "$(mktemp -d)"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -keyout ca-key.pem -out ca-cert.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=node -keyout server-key.pem -out node.csr
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$NAMES" > extensions
openssl x509 -req -in node.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions \
    -out server-cert.pem
cp server-key.pem client-key.pem
cp server-cert.pem client-cert.pem
tar c ./*-cert.pem server-key.pem client-key.pem | base64
"""
TAKE_KEYS = 'mkdir -p /etc/pki/qemu && printf %s "$KEYS" | base64 -d | tar x --no-same-owner -C /etc/pki/qemu'


def test_row_50_the_target_dies_before_and_during(lab: Lab) -> None:
    """The source goes on running, and the operation says why it failed."""
    name = unique("target")
    uuid = lab.create_guest(name, node="n1")
    with watched(lab, name) as gap:
        operation = begin(lab, name)
        lab.host("n2").power_off()
        assert ended(lab, operation)[0] == "failed"
        is_on(lab, uuid, "n1")
        lab.wait_nodes("n2", health="unreachable")
        lab.refused(m.VmMigrate, vm=name, to="n2")
    lab.ran_once(name)
    print(f"the guest missed at most {gap.longest_s:.2f} s")
    lab.host("n2").power_on()
    lab.wait_nodes("n2")
    lab.do(m.VmMigrate, vm=name, to="n2")
    is_on(lab, uuid, "n2")
    lab.ran_once(name)


@pytest.mark.parametrize("host, unit", [("n1", "chime-agentd"), ("n2", "chime-agentd"), ("srv", "chimed")])
def test_row_51_a_daemon_is_killed_during_migration(lab: Lab, host: str, unit: str) -> None:
    """Source's agent, target's agent, server: libvirt goes on, and the outcome is found from both ends."""
    name = unique("killed")
    uuid = lab.create_guest(name, node="n1")
    operation = begin(lab, name, STEADY)
    lab.host(host).kill(unit)
    lab.wait_server()
    assert ended(lab, operation)[0] == "succeeded"
    is_on(lab, uuid, "n2")
    lab.ran_once(name)


def test_row_51_the_sources_libvirtd_is_killed(lab: Lab) -> None:
    """The migration is cut short: the guest goes on at the source, or has left; it runs once."""
    name = unique("cutoff")
    uuid = lab.create_guest(name, node="n1")
    operation = begin(lab, name)
    lab.host("n1").kill("libvirtd")
    state, outcome = ended(lab, operation)
    assert state in ("failed", "succeeded"), outcome
    is_on(lab, uuid, "n1" if state == "failed" else "n2")
    lab.counting(name)


def test_row_52_the_link_is_cut_at_the_end(lab: Lab) -> None:
    """The target's libvirtd hangs when all is copied: its last answer never comes. The source goes on, and the copy
    that stands on the target never runs; it is removed."""
    name = unique("link")
    uuid = lab.create_guest(name, node="n1")
    operation = begin(lab, name)
    lab.host("n2").hang("libvirtd")
    assert ended(lab, operation)[0] == "failed"
    lab.counting(name)
    lab.host("n2").resume()
    is_on(lab, uuid, "n1")
    lab.ran_once(name)
    lab.wait(lambda: uuid not in lab.host("n2").virsh("list", "--all", "--uuid"), "the copy is removed", 60)
    lab.wait_nodes("n2")
    lab.do(m.VmMigrate, vm=name, to="n2")
    is_on(lab, uuid, "n2")
    lab.ran_once(name)


def test_row_52_the_network_is_cut(lab: Lab) -> None:
    """The data's network is cut while memory is copied: the VM stays."""
    name = unique("wire")
    uuid = lab.create_guest(name, node="n1")
    operation = begin(lab, name)
    lab.host("n1").cut("biz")
    assert ended(lab, operation)[0] == "failed"
    is_on(lab, uuid, "n1")
    lab.ran_once(name)


def test_row_53_neither_server_nor_agent_is_there(lab: Lab) -> None:
    """`chime-agent migrate` moves the VMs while management network and agent are down (with the agent: page 2a of
    operations.md); their target reports them, the server takes that over; the node is drained, and has nothing left."""
    names = [unique("away") for _ in range(2)]
    uuids = {name: lab.create_guest(name, FAST_S, node="n1") for name in names}
    n1 = lab.host("n1")
    n1.pull("mgmt")
    lab.wait_nodes("n1", health="unreachable")
    n1.systemctl("stop", "chime-agentd")
    words = ["migrate", "--interface", n1.plugs["biz"].inner, "--dest", lab.host("n2").address("biz"), "--all"]
    lab.local("n1", *words, "--dry-run")
    assert all(lab.oracle.places(uuid) == ["n1"] for uuid in uuids.values())
    done = lab.local("n1", *words, "--yes")
    assert {vm["uuid"]: vm["outcome"] for vm in done["vms"]} == dict.fromkeys(uuids.values(), "left")
    for name, uuid in uuids.items():
        is_on(lab, uuid, "n2")
        lab.ran_once(name)
    lab.tool("node", "drain", "n1", "--yes", "--evidence", "operator")
    n1.heal()
    n1.systemctl("start", "chime-agentd")
    lab.wait_nodes("n1")
    lab.wait(lambda: not n1.virsh("list", "--all", "--name").strip(), "n1 has nothing left")
    for name, uuid in uuids.items():
        is_on(lab, uuid, "n2")
        lab.ran_once(name)
    assert lab.node("n1")["admin_state"] == "drained" and lab.node("n1")["vms"] == 0


def test_row_53_the_source_is_heard_first(lab: Lab) -> None:
    """Source, target and server are apart; the source is heard first, and the VM runs on where it went."""
    name = unique("first")
    uuid = lab.create_guest(name, node="n1")
    n1, n2 = lab.host("n1"), lab.host("n2")
    n1.pull("mgmt")
    n2.pull("mgmt")
    lab.wait_nodes("n1", "n2", health="unreachable")
    way = ("--interface", n1.plugs["biz"].inner, "--dest", n2.address("biz"))
    lab.local("n1", "migrate", *way, "--uuid", uuid, "--yes")
    assert lab.oracle.places(uuid) == ["n2"]
    n1.heal()
    lab.wait_nodes("n1")
    lab.wait(lambda: lab.vm(uuid)["node"] == "n2", "the source's word is enough")
    lab.counting(name)
    n2.heal()
    lab.wait_nodes("n2")
    is_on(lab, uuid, "n2")
    lab.ran_once(name)
