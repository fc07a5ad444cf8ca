"""Answers to operators that change nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from chimed.core.agents.surveys import Surveys
from chimed.core.operators import explain
from chimed.core.operators.views import Views
from chimed.core.rules import recovery
from chimed.core.rules.known import Facts
from chimed.core.state import effects as fx
from chimed.core.state import rows as r
from chimed.core.state.turn import Context
from wire import messages as m
from wire.errors import ChimeError
from wire.types import OperationState, Severity

R = TypeVar("R")
MAX_HELD = 500


def find_node(ctx: Context, name: str) -> r.Node:
    """The node. Raises `ChimeError` not-found."""
    node = ctx.tables.nodes.get(name)
    if node is None:
        raise ChimeError("not-found", f"there is no node {name}")
    return node


def find_vm(ctx: Context, name: str) -> r.Vm:
    """The VM by name or UUID. Raises `ChimeError` not-found."""
    vm = ctx.tables.vms.get(name.lower()) or next(iter(ctx.tables.vms.by("name", name)), None)
    if vm is None:
        raise ChimeError("not-found", f"there is no VM {name}")
    return vm


def find_operation(ctx: Context, op_id: str) -> r.Operation:
    """The operation. Raises `ChimeError` not-found."""
    op = ctx.tables.operations.get(op_id)
    if op is None:
        raise ChimeError("not-found", f"there is no operation {op_id}")
    return op


class Queries:
    """One method for each reading verb."""

    def __init__(self, ctx: Context, facts: Facts, views: Views, surveys: Surveys, started: float) -> None:
        self._ctx, self._facts, self._views, self._started = ctx, facts, views, started
        self.handlers: dict[type[m.Base], Callable[..., Any]] = {
            m.ServerStatus: self._status,
            m.NodeList: self._nodes,
            m.NodeShow: self._node,
            m.NodeSurvey: surveys.ask,
            m.VmList: self._vms,
            m.VmShow: self._vm,
            m.OpList: self._ops,
            m.OpShow: self._op,
            m.EventList: self._events,
            m.AlarmList: self._alarms,
            m.OperatorList: self._operators,
            m.Explain: self._explain,
        }

    def _status(self, _body: m.ServerStatus, now: float, _event: fx.Received) -> Any:
        meta = self._ctx.tables.meta
        return {
            "version": self._ctx.policy.version,
            "generation": meta.generation,
            "history": meta.history,
            "recovering": meta.holding,
            "behind": meta.ahead_text,
            "recovery": recovery.at_hand(self._ctx),
            "waiting_for": list(meta.waiting_for) if meta.recovering else self._absent(),
            "held_vms": [
                {
                    "name": vm.name,
                    "uuid": vm.uuid,
                    "node": vm.node,
                    "wants": recovery.wants(vm),
                    "why": recovery.IN_WORDS[vm.held],
                }
                for vm in recovery.held_vms(self._ctx)[:MAX_HELD]
            ],
            "held_nodes": [node.name for node in recovery.held_nodes(self._ctx)[:MAX_HELD]],
            "read_only": bool(self._ctx.read_only),
            "uptime_s": round(now - self._started, 3),
            "nodes": len(self._ctx.tables.nodes),
            "vms": len(self._ctx.tables.vms),
            "counters": dict(sorted(self._ctx.counters.items())),
        }

    def _absent(self) -> list[str]:
        """Nodes that have to be heard before a database that is behind can be brought up to date."""
        if not self._ctx.tables.meta.behind:
            return []
        return sorted(node.name for node in self._ctx.tables.nodes if not self._facts.is_live(node.name))

    def _nodes(self, body: m.NodeList, now: float, _event: fx.Received) -> Any:
        return _page(self._ctx.tables.nodes, body, lambda n: n.name, lambda n: self._views.node(n, now))

    def _node(self, body: m.NodeShow, now: float, _event: fx.Received) -> Any:
        node = find_node(self._ctx, body.name)
        vms = sorted(self._ctx.tables.vms.by("node", node.name), key=lambda vm: vm.name)
        return {
            "node": self._views.node(node, now),
            "vms": [self._views.vm(vm) for vm in vms[:1000]],
            "last_operations": self._views.last_operations(node.name),
        }

    def _vms(self, body: m.VmList, _now: float, _event: fx.Received) -> Any:
        if body.node is not None:
            find_node(self._ctx, body.node)
        vms = self._ctx.tables.vms if body.node is None else self._ctx.tables.vms.by("node", body.node)
        return _page(vms, body, lambda vm: vm.name, self._views.vm)

    def _vm(self, body: m.VmShow, _now: float, _event: fx.Received) -> Any:
        vm = find_vm(self._ctx, body.vm)
        return {"vm": self._views.vm(vm), "spec": vm.spec, "last_operations": self._views.last_operations(vm.uuid)}

    def _ops(self, body: m.OpList, _now: float, _event: fx.Received) -> Any:
        every = self._ctx.tables.operations
        ops = every.by("state", OperationState.RUNNING) if body.active else list(every)
        return _page(ops, body, lambda op: f"{op.number:012}", self._views.operation)

    def _op(self, body: m.OpShow, _now: float, _event: fx.Received) -> Any:
        return {"operation": self._views.operation(find_operation(self._ctx, body.id))}

    def _events(self, body: m.EventList, _now: float, event: fx.Received) -> Any:
        subjects: tuple[str, ...] = ()
        if body.subject is not None:
            uuids = tuple(vm.uuid for vm in self._ctx.tables.vms.by("name", body.subject))
            subjects = (body.subject, *uuids)
        self._ctx.emit(fx.ReadEvents(event.route, event.id, body, subjects))
        return None

    def _alarms(self, body: m.AlarmList, _now: float, _event: fx.Received) -> Any:
        alarms = list(self._ctx.tables.alarms) if body.all else self._ctx.tables.alarms.by("cleared", None)
        items = [self._views.alarm(a) for a in sorted(alarms, key=lambda a: a.id)[-body.limit :]]
        return {"items": [*items, *self._unrecorded()]}

    def _unrecorded(self) -> list[m.AlarmView]:
        """The one alarm that cannot be recorded."""
        if not self._ctx.read_only:
            return []
        alarm = r.Alarm(
            id=0,
            code="storage-unavailable",
            subject="server",
            severity=Severity.CRITICAL,
            text=f"nothing can be recorded, so nothing is changed: {self._ctx.read_only}",
            raised=self._ctx.read_only_since,
        )
        return [self._views.alarm(alarm)]

    def _operators(self, _body: m.OperatorList, _now: float, _event: fx.Received) -> Any:
        rows = sorted(self._ctx.tables.operators, key=lambda o: o.name)
        return {"items": [{"name": o.name, "public_key": o.public_key, "created": o.created} for o in rows]}

    def _explain(self, body: m.Explain, now: float, _event: fx.Received) -> Any:
        if body.kind == "node":
            node = find_node(self._ctx, body.name)
            return {"lines": explain.node_lines(self._ctx, self._facts, self._views, node, now)}
        if body.kind == "vm":
            vm = find_vm(self._ctx, body.name)
            return {"lines": explain.vm_lines(self._ctx, self._facts, self._views, vm)}
        raise ChimeError("invalid", f"explain takes node or vm, not {body.kind}")


def _page(rows: Iterable[R], body: m.Page, name: Callable[[R], str], view: Callable[[R], Any]) -> Any:
    """Rows in the order of their names, from after the one that the request names."""
    later = ((name(row), row) for row in rows)
    if body.after:
        later = (pair for pair in later if pair[0] > body.after)
    taken = heapq.nsmallest(body.limit + 1, later, key=lambda pair: pair[0])
    more = len(taken) > body.limit
    return {
        "items": [view(row) for _, row in taken[: body.limit]],
        "next": taken[body.limit - 1][0] if more else "",
    }
