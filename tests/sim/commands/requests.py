"""Commands: what operators ask of the server."""

from __future__ import annotations

from tests.sim.cluster import Cluster, VmPlan, spec
from tests.sim.commands.base import word as _word
from tests.sim.words import Usage
from wire import messages as m
from wire.types import Desired, Evidence


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


@_word("evacuate {node} over {network}")
def _evacuate_over(c: Cluster, node: str, network: str) -> None:
    """`node evacuate --network`; hosts have one interface, `eth0`."""
    _ask(c, f"evacuate {node}", m.NodeEvacuate, name=node, network=network)


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
    """`recovery confirm`: false, and remembered as that, for nodes that are waited for, or are not known, and have
    power."""
    status = c.ask(m.ServerStatus())
    meant = list(status["waiting_for"]) if status else []
    if status and status["held_vms"]:
        known = {name for (name,) in c.server.disk.tables["nodes"]}
        meant += [name for name in c.hosts if name not in known]
    c.oracle.lies |= {name for name in meant if c.hosts[name].powered}
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
