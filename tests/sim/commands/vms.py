"""Commands: libvirt, qemu, guests, and people who use `virsh`."""

from __future__ import annotations

from collections.abc import Callable

from agentd.hypervisor import HypervisorError
from tests.sim.cluster import Cluster
from tests.sim.commands.base import on
from tests.sim.commands.base import word as _word
from tests.sim.host import Host
from tests.sim.hypervisor import SimHypervisor
from tests.sim.words import Usage

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


def _at(c: Cluster, vm: str, do: Callable[[SimHypervisor, str], object]) -> None:
    """Where libvirt runs the VM, if it does."""
    host, uuid = on(c, vm)
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
    host, uuid = on(c, vm)
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
    host, uuid = on(c, vm)
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
    host, uuid = on(c, vm)
    target = c.host(node)
    if host is None or host is target or not target.powered or not host.hypervisor.is_running(uuid):
        return
    if uuid in host.hypervisor.moves:
        return  # libvirt refuses
    c.oracle.excused.add(uuid)
    c.oracle.trust.sent(node, uuid)
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
