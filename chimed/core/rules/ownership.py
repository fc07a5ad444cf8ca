"""What each node should know: pages of its inventory, releases, and changes of owner.

Rules: a change of owner writes the new owner, the higher epoch and the old owner's release in one turn; a release lives
until its node confirms it; only what has a revision later than the agent's is sent.
"""

from __future__ import annotations

import msgspec

from chimed.core.rules import evidence, networks
from chimed.core.rules.alarms import VM_CODES
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire import messages as m
from wire import seals
from wire.types import Desired

PAGE_BYTES = 400_000
PAGE_ROWS = 500

_encoder = msgspec.msgpack.Encoder()


def page(ctx: Context, node_name: str, since: int, session: str, nonce: str, now: float) -> m.Inventory:
    """The next page of what changed on the node after revision `since`."""
    tables = ctx.tables
    node = tables.nodes.get(node_name)
    assert node is not None
    changed: list[tuple[int, m.Assignment | m.Release | m.Command]] = []
    changed += [
        (vm.revision, _assignment(ctx, vm))
        for vm in tables.vms.by("node", node_name)
        if vm.revision > since and vm.desired != Desired.DELETED
    ]
    changed += [
        (release.revision, m.Release(uuid=release.uuid, epoch=release.epoch, keep=release.keep))
        for release in tables.releases.by("node", node_name)
        if release.revision > since and not _is_held_back(ctx, release)
    ]
    changed += [
        (command.revision, _command(command, left_s))
        for command in tables.commands.by("node", node_name)
        if command.revision > since and (left_s := _left_s(ctx, command, now)) > 0
    ]
    changed.sort(key=lambda entry: entry[0])
    taken = _fit(changed)
    more = len(taken) < len(changed)
    parts = [part for _, part in taken]
    meta, revision = tables.meta, taken[-1][0] if more else node.revision
    life = node.given_by if revision <= node.given and node.given_by else ctx.life
    return m.Inventory(
        session=session,
        nonce=nonce,
        generation=meta.generation,
        history=meta.history,
        life=life,
        seal=seals.of_point(ctx.seal_key, node_name, meta.history, meta.generation, life, revision),
        node=m.NodeOrder(
            admin_state=node.admin_state,
            drain_serial=node.drain_serial,
            drain_graceful_s=node.drain_graceful_s,
            hold=meta.holding or node.held or node_name in ctx.fresh,
        ),
        revision=revision,
        more=more,
        vms=tuple(p for p in parts if isinstance(p, m.Assignment)),
        releases=tuple(p for p in parts if isinstance(p, m.Release)),
        commands=tuple(p for p in parts if isinstance(p, m.Command)),
    )


def _fit(
    changed: list[tuple[int, m.Assignment | m.Release | m.Command]],
) -> list[tuple[int, m.Assignment | m.Release | m.Command]]:
    """The first entries that fit into a page; revisions are unique, so that a page never ends within one."""
    size = 0
    taken: list[tuple[int, m.Assignment | m.Release | m.Command]] = []
    for entry in changed[:PAGE_ROWS]:
        size += len(_encoder.encode(entry[1]))
        if taken and size > PAGE_BYTES:
            break
        taken.append(entry)
    return taken


def _is_held_back(ctx: Context, release: r.Release) -> bool:
    """A restored database wants the VM deleted, which waits for a person's word."""
    vm = ctx.tables.vms.get(release.uuid)
    return vm is not None and vm.held == r.Held.DELETE and vm.node == release.node


def _assignment(ctx: Context, vm: r.Vm) -> m.Assignment:
    return m.Assignment(
        uuid=vm.uuid,
        name=vm.name,
        epoch=vm.epoch,
        revision=vm.revision,
        desired=vm.desired,
        start_serial=vm.start_serial,
        graceful_s=vm.graceful_s,
        create_disks=not vm.exists,
        adopt=vm.adopt,
        attempt=vm.attempt,
        arrival=vm.arrival,
        hold=vm.held != r.Held.NOTHING,
        seal=seals.of_assignment(ctx.seal_key, vm.uuid, vm.epoch, vm.node),
        spec=vm.spec,
    )


def _left_s(ctx: Context, command: r.Command, now: float) -> float:
    """How long the command may still be begun. One of a migration is withdrawn, or else stands: its operation does not
    end before it is decided."""
    if command.attempt or command.migration is not None:
        return command.timeout_s
    return ctx.deadlines.get(command.operation, now + command.timeout_s) - now


def _command(command: r.Command, left_s: float) -> m.Command:
    """`left_s`: after that its operation has ended without it, so that it must not be begun any more."""
    return m.Command(
        id=command.id,
        kind=command.kind,
        uuid=command.uuid,
        epoch=command.epoch,
        deadline_s=min(left_s, command.timeout_s),
        force=command.force,
        attempt=command.attempt,
        migration=command.migration,
    )


def release(ctx: Context, node_name: str, vm: r.Vm, epoch: int, keep: bool = False) -> None:
    """Makes sure that `node_name`, which does not own the VM, is told to remove it up to `epoch`; `keep`: to leave it
    as it is."""
    if node_name == vm.node and epoch >= vm.epoch and vm.desired != Desired.DELETED:
        raise AssertionError("a release must never name the owner's present epoch")
    release_any(ctx, node_name, vm.uuid, vm.name, epoch, keep)


def release_any(ctx: Context, node_name: str, uuid: str, name: str, epoch: int, keep: bool = False) -> None:
    """The same, also for a VM that a restored database does not know."""
    known = ctx.tables.releases.get(node_name, uuid)
    if known is not None and known.epoch >= epoch:
        return
    row = r.Release(node=node_name, uuid=uuid, epoch=epoch, revision=ctx.bump(node_name), name=name, keep=keep)
    ctx.tables.releases.put(row)
    ctx.audit("chimed", "release", uuid, f"{node_name} no longer owns it up to epoch {epoch}")


def is_unconfirmed(ctx: Context, uuid: str) -> bool:
    """Whether a node has yet to confirm that it has given up the VM. One that was removed gives it up when it is added
    again, and by then another VM of that UUID has later epochs."""
    return any(ctx.tables.nodes.get(release.node) is not None for release in ctx.tables.releases.by("uuid", uuid))


def move(ctx: Context, vm: r.Vm, target: str, why: str, arrival: str = "") -> r.Vm:
    """Gives the VM to `target` in the next epoch, with a release for the old owner. The caller has the evidence.
    `arrival`: the attempt whose copy there is the VM."""
    old = vm.node
    revision = ctx.bump(target)
    moved = msgspec.structs.replace(
        vm, node=target, epoch=ctx.next_epoch(vm), revision=revision, exists=True, adopt=False,
        attempt="", arrival=arrival, doubt="",
    )
    ctx.tables.vms.put(moved)
    release(ctx, old, moved, vm.epoch)
    ctx.audit("chimed", "vm-moved", vm.uuid, f"{old} -> {target}, epoch {moved.epoch}: {why}")
    return moved


def raise_epoch(ctx: Context, vm: r.Vm, epoch: int, why: str) -> r.Vm:
    """The owner goes on in a later epoch."""
    raised = msgspec.structs.replace(vm, epoch=epoch, revision=ctx.bump(vm.node))
    ctx.tables.vms.put(raised)
    ctx.audit("chimed", "epoch-raised", vm.uuid, f"{vm.node}: {vm.epoch} -> {epoch}: {why}")
    return raised


def end_copy(ctx: Context, vm: r.Vm, node_name: str, what: str) -> None:
    """The node is told to end its copy of the present epoch, and the owner goes on in the next: a later copy of the
    owner's epoch would fall under the release too."""
    raised = raise_epoch(ctx, vm, ctx.next_epoch(vm), f"{node_name} {what} of epoch {vm.epoch}")
    release(ctx, node_name, raised, vm.epoch)


def adopt(ctx: Context, vm: r.Vm, node_name: str, epoch: int) -> None:
    """After a restore: the node holds the VM in a higher epoch than this database knows, so it is the owner."""
    revision = ctx.bump(node_name)
    adopted = msgspec.structs.replace(
        vm, node=node_name, epoch=epoch, revision=revision, exists=True, adopt=False,
        attempt="", arrival="", doubt="",
    )
    ctx.tables.vms.put(adopted)
    release(ctx, vm.node, adopted, vm.epoch)
    ctx.audit("chimed", "vm-adopted", vm.uuid, f"{node_name} holds it in epoch {epoch}, the database knew {vm.epoch}")


def confirm_release(ctx: Context, node_name: str, confirmed: m.Release) -> str:
    """The node has removed the VM up to that epoch; a VM that was to be deleted is gone now, or is to be deleted where
    it had left to. Returns the id of the operation that may have waited for it, or nothing."""
    known = ctx.tables.releases.get(node_name, confirmed.uuid)
    if known is None or known.epoch > confirmed.epoch:
        return ""
    ctx.tables.releases.delete(known)
    vm = ctx.tables.vms.get(confirmed.uuid)
    if vm is not None and vm.desired == Desired.DELETED and vm.node == node_name:
        if known.keep:
            return forget(ctx, vm, f"{vm.name} stays on {node_name} as it is, without Chime", "vm-released")
        target = networks.other_node_at(ctx.tables.nodes, confirmed.left_to, node_name)
        if target is not None:
            _delete_there(ctx, vm, target.name)
            return ""
        return forget(ctx, vm, f"{vm.name} is removed from {node_name}")
    ctx.audit(f"agentd@{node_name}", "released", confirmed.uuid, f"{known.name}: epoch {confirmed.epoch} is gone")
    return ""


def _delete_there(ctx: Context, vm: r.Vm, target: str) -> None:
    """A VM that is to be deleted had left its node when that heard of it."""
    evidence.drained_again(ctx, target, vm)
    moved = move(ctx, vm, target, f"migrated: {vm.node} says that it had left, and is deleted there")
    release(ctx, target, moved, moved.epoch)


def forget(ctx: Context, vm: r.Vm, why: str, action: str = "vm-deleted") -> str:
    """A VM that was deleted or given back leaves the database. Returns its operation."""
    ctx.tables.vms.delete(vm)
    meta = ctx.tables.meta
    ctx.tables.meta = msgspec.structs.replace(meta, forgotten_epoch=max(meta.forgotten_epoch, vm.epoch))
    ctx.sync_alarms(vm.uuid, {}, VM_CODES)
    ctx.audit("chimed", action, vm.uuid, why)
    return vm.operation
