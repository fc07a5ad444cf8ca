"""What can happen in a simulated world, in the words of scenarios: faults, people at a console, operators' requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentd import snapshot
from agentd.core.durable import Durable
from agentd.hypervisor import HypervisorError
from tests.sim.cluster import Cluster, VmPlan, spec
from tests.sim.host import Host, SnapshotDisk
from tests.sim.hypervisor import SimHypervisor
from tests.sim.words import Usage, Vocabulary
from wire import messages as m
from wire.types import Desired, Evidence, Severity

COMMANDS = Vocabulary("command")
_word = COMMANDS.word


def carry_out(cluster: Cluster, text: str) -> None:
    """One command. Raises Usage when it means nothing; what is not possible at the moment does nothing."""
    do, words = COMMANDS.find(text)
    cluster.story.tell(cluster.engine.now, "world", text, *words.values())
    try:
        do(cluster, **words)
    except KeyError as unknown:
        raise Usage(f"{text!r}: there is no {unknown}") from None


# --- hosts ------------------------------------------------------------------------------------------------------------


@_word("power {node} off")
def _power_off(c: Cluster, node: str) -> None:
    """The host loses power."""
    c.host(node).power_off()


@_word("power {node} on")
def _power_on(c: Cluster, node: str) -> None:
    """The host boots, with a new boot id."""
    c.host(node).power_on()


@_word("clone {node}", "clone {node} as {claim}")
def _clone(c: Cluster, node: str, claim: str = "") -> None:
    """Another host, `NODE-clone`, boots with the node's key and snapshot; it speaks as the node, or as `claim`."""
    name = f"{node}-clone"
    clone = c.hosts[name] = Host(name, c.engine, c.network, c.oracle)
    clone.key, clone.disk = c.host(node).key, SnapshotDisk(claim or node)
    clone.disk.content = None if claim else c.host(node).disk.content
    clone.peers = c.hosts
    clone.start_agent()


@_word("fault {node} {code}", "fault {node} {code} {severity}")
def _fault(c: Cluster, node: str, code: str, severity: str = "warning") -> None:
    """The host's checks find a fault (`none`: they find none any more)."""
    fault = m.Fault(code=code, text="as ordered", severity=Severity(severity))
    c.host(node).faults = () if code == "none" else (fault,)


# --- the network ------------------------------------------------------------------------------------------------------


@_word("cut {node} mgmt", "cut {node}")
def _cut(c: Cluster, node: str) -> None:
    """The management network between the host (or `op`, the operator) and the server is down, in both directions."""
    c.network.cut(node)


@_word("cut {node} to-server")
def _cut_up(c: Cluster, node: str) -> None:
    """Nothing of the host reaches the server."""
    c.network.cut(node, down=False)


@_word("cut {node} from-server")
def _cut_down(c: Cluster, node: str) -> None:
    """Nothing of the server reaches the host."""
    c.network.cut(node, up=False)


@_word("heal {node}")
def _heal(c: Cluster, node: str) -> None:
    """The network works again; what was held back arrives late, or its connection breaks."""
    c.network.heal(node)


@_word("drop {node}")
def _drop(c: Cluster, node: str) -> None:
    """The host's connections break."""
    c.network.drop(node)


@_word("ping {node} blocked")
def _no_ping(c: Cluster, node: str) -> None:
    """No ping reaches the host."""
    c.network.path(node).ping = False


@_word("ping {node} open")
def _ping(c: Cluster, node: str) -> None:
    """Pings reach it again."""
    c.network.path(node).ping = True


@_word("cut {node} data")
def _cut_data(c: Cluster, node: str) -> None:
    """The network over which VMs are migrated does not reach the host."""
    c.network.without_data.add(node)


@_word("heal {node} data")
def _heal_data(c: Cluster, node: str) -> None:
    """It reaches it again."""
    c.network.without_data.discard(node)


@_word("lose the finish on {node}")
def _finish_lost(c: Cluster, node: str) -> None:
    """In the next migration away from the host, libvirt there does not hear that the copy is complete."""
    c.host(node).finish_lost = True


@_word("noise {node} loss {loss} duplicates {duplicates} reorders {reorders} delay {delay}")
def _noise(c: Cluster, node: str, loss: str, duplicates: str, reorders: str, delay: str) -> None:
    """Frames are lost, doubled, swapped (shares of 1) and delayed (up to so many seconds)."""
    path = c.network.path(node)
    path.loss, path.duplicates, path.reorders = float(loss), float(duplicates), float(reorders)
    path.delay_s = float(delay)


# --- agentd -----------------------------------------------------------------------------------------------------------


@_word("kill agentd {node}")
def _kill_agent(c: Cluster, node: str) -> None:
    """SIGKILL; systemd starts it again in 1 to 5 s."""
    agent = c.host(node).agent
    if agent is not None:
        agent.die()


@_word("stop agentd {node}")
def _stop_agent(c: Cluster, node: str) -> None:
    """It ends and is not started again."""
    c.host(node).wanted = False
    _kill_agent(c, node)


@_word("start agentd {node}")
def _start_agent(c: Cluster, node: str) -> None:
    """It is started."""
    c.host(node).wanted = True
    c.host(node).start_agent()


@_word("freeze agentd {node}")
def _freeze(c: Cluster, node: str) -> None:
    """SIGSTOP."""
    agent = c.host(node).agent
    if agent is not None:
        agent.frozen = True


@_word("thaw agentd {node}")
def _thaw(c: Cluster, node: str) -> None:
    """SIGCONT."""
    agent = c.host(node).agent
    if agent is not None:
        agent.thaw()


@_word("crash agentd {node} in {count} effects")
def _crash_agent(c: Cluster, node: str, count: str) -> None:
    """It dies between two effects (writes, messages, orders to libvirt), or in the middle of a write."""
    agent = c.host(node).agent
    if agent is not None:
        agent.crash_in = int(count)


@_word("disk {node} full")
def _disk_full(c: Cluster, node: str) -> None:
    """Nothing can be written (`chimed`: by the server; else by the host's agent)."""
    if node == "chimed":
        c.server.disk.fault = "database or disk is full"
    else:
        c.host(node).disk.full = True


@_word("disk {node} ok")
def _disk_ok(c: Cluster, node: str) -> None:
    """It can be written again."""
    if node == "chimed":
        c.server.disk.fault = ""
    else:
        c.host(node).disk.full = False


@_word("snapshot {node} {damage}")
def _snapshot(c: Cluster, node: str, damage: str) -> None:
    """The agent dies, and its snapshot is empty, truncated, flipped (one bit), foreign (of another node) or newer."""
    host = c.host(node)
    if damage not in _DAMAGES:
        raise Usage(f"a snapshot can be: {', '.join(_DAMAGES)}")
    if host.disk.content:
        host.disk.content = _DAMAGES[damage](host.disk.content, c.engine.rng)
        c.oracle.snapshot_lost(host)
    _kill_agent(c, node)


def _flip(content: bytes, rng: Any) -> bytes:
    at = rng.randrange(len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


_DAMAGES = {
    "empty": lambda content, rng: b"",
    "truncated": lambda content, rng: content[: rng.randrange(len(content) - 2)],
    "flipped": _flip,
    "foreign": lambda content, rng: snapshot.encode(Durable(node="elsewhere"), 1),
    "newer": lambda content, rng: content.replace(b'"version":1', b'"version":9', 1),
}
"""What can be wrong with a snapshot."""


@_word("local drain {node}")
def _local_drain(c: Cluster, node: str) -> None:
    """`chime-agent drain` on the node."""
    agent = c.host(node).agent
    if agent is not None:
        agent.ask("drain", 10.0)


@_word("local migrate {vm} to {node}")
def _local_migrate(c: Cluster, vm: str, node: str) -> None:
    """`chime-agent migrate` on the node where it runs, without the server."""
    host, uuid = _on(c, vm)
    c.host(node)
    if host is not None and host.name == node:
        host.tell(f"chime-agent migrate {vm}: {node} is this node itself", uuid)
    elif host is not None and host.agent is not None:
        c.oracle.on_the_node.add((host.name, uuid))
        if (node,) not in c.server.disk.tables["nodes"]:
            c.oracle.has_gone_out_of_sight(uuid)
        host.agent.ask_to_migrate(uuid, node)


# --- libvirt ----------------------------------------------------------------------------------------------------------


@_word("libvirt {node} dies")
def _libvirt_dies(c: Cluster, node: str) -> None:
    """libvirtd is gone; VMs live."""
    c.host(node).hypervisor.lose()


@_word("libvirt {node} returns")
def _libvirt_returns(c: Cluster, node: str) -> None:
    """libvirtd runs again."""
    c.host(node).hypervisor.restore()


@_word("libvirt {node} hangs")
def _hangs(c: Cluster, node: str) -> None:
    """libvirtd answers nothing."""
    c.host(node).hang()


@_word("libvirt {node} hangs in start")
def _hangs_in_start(c: Cluster, node: str) -> None:
    """libvirtd hangs when the next VM is started there, with the order in its hands."""
    c.host(node).hangs_in_start = True


@_word("libvirt {node} answers")
def _answers(c: Cluster, node: str) -> None:
    """libvirtd answers again, also what it was asked before."""
    c.host(node).unhang()


@_word("processes {node} {how}")
def _processes_hidden(c: Cluster, node: str, how: str) -> None:
    """The agent cannot look at the processes of its host (hidden), or can again (shown)."""
    c.host(node).hypervisor.blind = how == "hidden"


@_word("fail {node} {call}")
def _fail(c: Cluster, node: str, call: str) -> None:
    """The next call (start, define, destroy, shutdown, undefine, scan) on the node fails."""
    c.host(node).hypervisor.fail_next(call)


# --- VMs --------------------------------------------------------------------------------------------------------------


def _on(c: Cluster, vm: str) -> tuple[Host | None, str]:
    """Where libvirt runs the VM."""
    uuid = c.uuid(vm)
    for host in c.hosts.values():
        if host.hypervisor.is_running(uuid) or host.hypervisor.is_paused(uuid):
            return host, uuid
    return None, uuid


def _at(c: Cluster, vm: str, do: Callable[[SimHypervisor, str], object]) -> None:
    """Where libvirt runs the VM, if it does."""
    host, uuid = _on(c, vm)
    if host is not None:
        do(host.hypervisor, uuid)


@_word("kill qemu {vm}")
def _kill_qemu(c: Cluster, vm: str) -> None:
    """SIGKILL to its qemu."""
    _at(c, vm, lambda hypervisor, uuid: hypervisor.kill(uuid))


@_word("sigterm qemu {vm}")
def _sigterm(c: Cluster, vm: str) -> None:
    """SIGTERM to its qemu, from the host."""
    c.oracle.may_halt.add(c.uuid(vm))
    _at(c, vm, lambda hypervisor, uuid: hypervisor.host_sigterm(uuid))


@_word("guest {vm} powers off")
def _guest_off(c: Cluster, vm: str) -> None:
    """The guest powers itself off."""
    c.oracle.may_halt.add(c.uuid(vm))
    _at(c, vm, lambda hypervisor, uuid: hypervisor.guest_shutdown(uuid))


@_word("guest {vm} obeys {how}")
def _obeys(c: Cluster, vm: str, how: str) -> None:
    """Whether the guest powers off when asked (yes, no)."""
    host, uuid = _on(c, vm)
    if host is not None:
        host.hypervisor.domains[uuid].obeys = how == "yes"


@_word("qemu {vm} sleeps")
def _sleeps(c: Cluster, vm: str) -> None:
    """Its qemu is in D state: alive, and no signal ends it."""
    _at(c, vm, lambda hypervisor, uuid: hypervisor.freeze(uuid, "D"))


@_word("qemu {vm} stops")
def _stops(c: Cluster, vm: str) -> None:
    """SIGSTOP to its qemu: alive, and does nothing."""
    _at(c, vm, lambda hypervisor, uuid: hypervisor.freeze(uuid, "T"))


@_word("qemu {vm} wakes")
def _wakes(c: Cluster, vm: str) -> None:
    """Its qemu is as usual."""
    _at(c, vm, lambda hypervisor, uuid: hypervisor.freeze(uuid, "S"))


@_word("disk of {vm} fails")
def _io_error(c: Cluster, vm: str) -> None:
    """A disk error pauses it."""
    _at(c, vm, lambda hypervisor, uuid: hypervisor.io_error(uuid))


@_word("virsh {verb} {vm}")
def _virsh(c: Cluster, verb: str, vm: str) -> None:
    """A person at the node: suspend, resume, destroy or undefine."""
    host, uuid = _on(c, vm)
    if verb not in _VIRSH:
        raise Usage(f"virsh can: {', '.join(_VIRSH)}")
    if host is None:
        host = next((h for h in c.hosts.values() if h.powered and uuid in h.hypervisor.domains), None)
    if host is not None and not (verb == "resume" and uuid in host.hypervisor.handed_over):
        if verb == "undefine" and host.is_undecided(uuid):
            c.oracle.spoil(uuid)  # that it is not defined any more shows that it has left
        try:  # a copy that a person lets run is out of Chime's hands
            getattr(host.hypervisor, _VIRSH[verb])(uuid)
        except HypervisorError as error:
            host.tell(f"virsh {verb} {vm}: {error}")


_VIRSH = {
    "suspend": "person_pause", "resume": "person_resume", "destroy": "person_destroy", "undefine": "person_undefine",
}  # fmt: skip
"""What a person does with virsh."""


@_word("virsh start {vm} on {node}")
def _virsh_start(c: Cluster, vm: str, node: str) -> None:
    """A person starts it, where it is defined."""
    host, uuid = c.host(node), c.uuid(vm)
    if host.powered:
        c.oracle.hand_started[(node, uuid)] = c.engine.now
        domain = host.hypervisor.domains.get(uuid)
        if domain is not None and domain.stamp is not None and domain.stamp.attempt and host.is_undecided(uuid):
            c.oracle.spoil(uuid)  # only its source may let a copy run
        try:
            host.hypervisor.person_start(uuid)
        except HypervisorError as error:
            host.tell(f"virsh start {vm}: {error}")


@_word("virsh define {name} on {node}")
def _virsh_define(c: Cluster, name: str, node: str) -> None:
    """A person makes and starts a VM that is not Chime's."""
    host, uuid = c.host(node), c.uuid(name)
    c.oracle.foreign.add(uuid)
    if host.powered and uuid not in host.hypervisor.domains:
        host.hypervisor.person_define(uuid, name)
        host.hypervisor.person_start(uuid)


@_word("qemu of {vm} by hand on {node}")
def _outside(c: Cluster, vm: str, node: str) -> None:
    """A person runs a qemu of the VM outside libvirt."""
    host, uuid = c.host(node), c.uuid(vm)
    if host.powered:
        c.oracle.hand_started[(node, uuid)] = c.engine.now
        host.hypervisor.person_run(uuid)


@_word("qemu of {vm} by hand on {node} ends")
def _outside_ends(c: Cluster, vm: str, node: str) -> None:
    """It ends."""
    c.host(node).hypervisor.person_end(c.uuid(vm))


@_word("virsh migrate {vm} to {node}")
def _migrate(c: Cluster, vm: str, node: str) -> None:
    """A person migrates it live, without Chime: 2 to 10 s of copying, then the handover."""
    host, uuid = _on(c, vm)
    target = c.host(node)
    if host is None or host is target or not target.powered or not host.hypervisor.is_running(uuid):
        return
    if uuid in host.hypervisor.moves:
        return  # libvirt refuses
    c.oracle.excused.add(uuid)
    try:
        target.hypervisor.incoming(host.hypervisor.domains[uuid])
    except HypervisorError as error:
        host.tell(f"virsh migrate {vm}: {error}")
        return
    host.hypervisor.leaving.add(uuid)
    c.engine.after(c.engine.rng.uniform(2.0, 10.0), _hand_over, c, uuid, host, target, (host.boots, target.boots))


def _hand_over(c: Cluster, uuid: str, host: Host, target: Host, boots: tuple[int, int]) -> None:
    """The source is paused and the target goes on, if both are still there; else the copy is thrown away."""
    host.hypervisor.leaving.discard(uuid)
    if boots != (host.boots, target.boots) or not (host.powered and target.powered):
        if target.powered and target.boots == boots[1] and target.hypervisor.is_paused(uuid):
            target.hypervisor.destroy_by_hand(uuid)
        return
    if not (host.hypervisor.is_running(uuid) and target.hypervisor.is_paused(uuid)):
        if target.hypervisor.is_paused(uuid):
            target.hypervisor.destroy_by_hand(uuid)
        return
    host.hypervisor.pause_for_handover(uuid)
    target.hypervisor.take_over(uuid)
    host.hypervisor.migrated_away(uuid)


# --- chimed -----------------------------------------------------------------------------------------------------------


@_word("kill chimed")
def _kill_server(c: Cluster) -> None:
    """SIGKILL; systemd starts it again in 1 to 5 s."""
    c.server.kill()


@_word("stop chimed")
def _stop_server(c: Cluster) -> None:
    """It ends and is not started again."""
    c.server.wanted = False
    c.server.kill()


@_word("start chimed")
def _start_server(c: Cluster) -> None:
    """It is started."""
    c.server.wanted = True
    c.server.start()


@_word("crash chimed at {step} {count}", "crash chimed {when} commit {count}")
def _crash_server(c: Cluster, count: str, step: str = "", when: str = "after") -> None:
    """It dies at the n-th `commit` or `send` from now; `before` or `after` a commit (else after)."""
    kind = step or "commit"
    if kind not in ("commit", "send") or when not in ("before", "after"):
        raise Usage("chimed crashes at: send N; commit N (before or after)")
    if c.server.process is not None:
        c.server.process.crash_at = {kind if kind == "send" else f"commit-{when}": int(count)}


@_word("stall chimed {seconds}")
def _stall(c: Cluster, seconds: str) -> None:
    """Its loop sleeps (SIGSTOP, swap) for so long."""
    if c.server.process is not None:
        c.server.process.stalled_until = c.engine.now + float(seconds)


@_word("wall clock {seconds}")
def _wall(c: Cluster, seconds: str) -> None:
    """The server's time of day jumps by so much."""
    c.server.clock.wall_shift += float(seconds)


@_word("pings fail")
def _pings_fail(c: Cluster) -> None:
    """The server may not send pings."""
    c.server.pings_fail = True


@_word("pings work")
def _pings_work(c: Cluster) -> None:
    """It may again."""
    c.server.pings_fail = False


@_word("backup")
def _backup(c: Cluster) -> None:
    """`chimed backup`."""
    c.server.backup()


@_word("restore")
def _restore(c: Cluster) -> None:
    """`chimed restore` of the newest backup, and a start."""
    c.server.restore()


@_word("faults stop")
def _faults_stop(c: Cluster) -> None:
    """Everything works again; people undo what they did by hand."""
    c.end_faults()


# --- operators --------------------------------------------------------------------------------------------------------


def _ask(c: Cluster, text: str, kind: type[m.Mutation], **fields: object) -> None:
    if "evidence" in fields and "name" in fields:
        c.oracle.words.add(str(fields["name"]))
    c.operator.request(text, kind, **fields)


@_word("drain {node}")
def _drain(c: Cluster, node: str) -> None:
    """`node drain`; guests have 10 s."""
    _ask(c, f"drain {node}", m.NodeDrain, name=node, graceful_s=10.0)


@_word("drain {node} evidence operator")
def _drain_attested(c: Cluster, node: str) -> None:
    """`node drain --evidence operator`: false, and remembered as that, when the host has power."""
    _ask(c, f"drain {node}", m.NodeDrain, name=node, graceful_s=10.0, evidence=Evidence.OPERATOR)


@_word("rebuild {node}")
def _rebuild(c: Cluster, node: str) -> None:
    """`node rebuild`."""
    _ask(c, f"rebuild {node}", m.NodeRebuild, name=node)


@_word("rebuild {node} evidence operator")
def _rebuild_attested(c: Cluster, node: str) -> None:
    """`node rebuild --evidence operator`."""
    _ask(c, f"rebuild {node}", m.NodeRebuild, name=node, evidence=Evidence.OPERATOR)


@_word("enable {node}")
def _enable(c: Cluster, node: str) -> None:
    """`node enable`."""
    _ask(c, f"enable {node}", m.NodeEnable, name=node)


@_word("disable {node}")
def _disable(c: Cluster, node: str) -> None:
    """`node disable`."""
    _ask(c, f"disable {node}", m.NodeDisable, name=node)


@_word("remove {node}")
def _remove(c: Cluster, node: str) -> None:
    """`node remove`."""
    _ask(c, f"remove {node}", m.NodeRemove, name=node)


@_word("rekey {node}")
def _rekey(c: Cluster, node: str) -> None:
    """`node add --replace`: its agent's key is worth nothing from now on."""
    _ask(c, f"rekey {node}", m.NodeRekey, name=node, public_key=("another" + "k" * 40)[:40])


@_word("create {vm} on {node}")
def _create_on(c: Cluster, vm: str, node: str) -> None:
    """`vm create --node`."""
    c.uuid(vm)
    _ask(c, f"create {vm}", m.VmCreate, name=vm, uuid=c.uuid(vm), spec=spec(VmPlan(vm, node)), node=node)


@_word("create {vm}")
def _create(c: Cluster, vm: str) -> None:
    """`vm create`; the server chooses the node."""
    _ask(c, f"create {vm}", m.VmCreate, name=vm, uuid=c.uuid(vm), spec=spec(VmPlan(vm, "")))


@_word("start {vm}")
def _start(c: Cluster, vm: str) -> None:
    """`vm start`."""
    _ask(c, f"start {vm}", m.VmStart, vm=vm)


@_word("start {vm} evidence operator")
def _start_attested(c: Cluster, vm: str) -> None:
    """`vm start --evidence operator`: it runs nowhere, says a person."""
    _ask(c, f"start {vm}", m.VmStart, vm=vm, evidence=Evidence.OPERATOR)


@_word("stop {vm}")
def _stop(c: Cluster, vm: str) -> None:
    """`vm stop`; the guest has 10 s."""
    _ask(c, f"stop {vm}", m.VmStop, vm=vm, graceful_s=10.0)


@_word("stop {vm} force")
def _stop_force(c: Cluster, vm: str) -> None:
    """`vm stop --force`."""
    _ask(c, f"stop {vm}", m.VmStop, vm=vm, graceful_s=10.0, force=True)


@_word("reboot {vm}")
def _reboot(c: Cluster, vm: str) -> None:
    """`vm reboot`."""
    c.oracle.reboots_asked[c.uuid(vm)] += 1
    _ask(c, f"reboot {vm}", m.VmReboot, vm=vm)


@_word("delete {vm}")
def _delete(c: Cluster, vm: str) -> None:
    """`vm delete`."""
    _ask(c, f"delete {vm}", m.VmDelete, vm=vm)


@_word("import {vm} on {node}")
def _import(c: Cluster, vm: str, node: str) -> None:
    """`vm import` of what a person has made there, as a survey shows it now."""
    uuid, hypervisor = c.uuid(vm), c.host(node).hypervisor
    xml = hypervisor.domains[uuid].xml if uuid in hypervisor.domains else f"<domain><uuid>{uuid}</uuid></domain>"
    desired = Desired.RUNNING if uuid in hypervisor.alive() else Desired.STOPPED
    made_of = m.VmSpec(vcpus=1, memory_mib=64, xml=xml)
    _ask(c, f"import {vm}", m.VmImport, node=node, name=vm, uuid=uuid, spec=made_of, desired=desired)


@_word("release {vm}")
def _release(c: Cluster, vm: str) -> None:
    """`vm release`: it stays where it is, as it is."""
    _ask(c, f"release {vm}", m.VmRelease, vm=vm)


@_word("migrate {vm} to {node}")
def _vm_migrate_to(c: Cluster, vm: str, node: str) -> None:
    """`vm migrate --to`."""
    _ask(c, f"migrate {vm}", m.VmMigrate, vm=vm, to=node)


@_word("migrate {vm}")
def _vm_migrate(c: Cluster, vm: str) -> None:
    """`vm migrate`; the server chooses the node."""
    _ask(c, f"migrate {vm}", m.VmMigrate, vm=vm)


@_word("evacuate {node} to {other}")
def _evacuate_to(c: Cluster, node: str, other: str) -> None:
    """`node evacuate --to`."""
    _ask(c, f"evacuate {node}", m.NodeEvacuate, name=node, to=other)


@_word("evacuate {node}")
def _evacuate(c: Cluster, node: str) -> None:
    """`node evacuate`; the server chooses the nodes."""
    _ask(c, f"evacuate {node}", m.NodeEvacuate, name=node)


@_word("cancel")
def _cancel(c: Cluster) -> None:
    """`op cancel` of the newest operation."""
    known = [request.operation for request in c.operator.requests if request.operation]
    if known:
        _ask(c, f"cancel {known[-1]}", m.OpCancel, id=known[-1])


@_word("recovery confirm")
def _confirm(c: Cluster) -> None:
    """`recovery confirm`: false, and remembered as that, for nodes that are waited for and have power."""
    status = c.ask(m.ServerStatus())
    waiting = status["waiting_for"] if status else []
    c.oracle.lies |= {name for name in waiting if c.hosts[name].powered}
    _ask(c, "recovery confirm", m.RecoveryConfirm, comment="attested")


@_word("again {rest}")
def _again(c: Cluster, rest: str) -> None:
    """The same request once more, with its key."""
    for request in c.operator.requests:
        if request.text == rest:
            request.asked = c.engine.now
            c.operator.again(request)
            return
    raise Usage(f"nobody has asked {rest!r}")
