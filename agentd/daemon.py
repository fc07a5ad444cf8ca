"""The agent's shell: one loop that turns what came into events, and does what the core orders, in its order.

Rules: a snapshot is on disk before what depends on it is done; libvirt is never called in this thread; the loop goes on
whatever libvirt, the disk or the network do. Nothing is decided here.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from pathlib import Path

import structlog
import zmq

from agentd import __version__, host
from agentd.boot import boot_id
from agentd.checks.finding import find
from agentd.checks.runner import Runner
from agentd.config import Config
from agentd.core import effects as fx
from agentd.core.agent import AgentCore, AgentPolicy
from agentd.core.budget import RestartPolicy
from agentd.hypervisor import Hypervisor
from agentd.link_socket import LinkSocket
from agentd.local_socket import LocalSocket, Question
from agentd.snapshot import Snapshot, SnapshotError
from agentd.workers import Workers
from wire import messages as m
from wire.keys import KeyFile
from wire.local.notify import Notifier
from wire.text import counted
from wire.types import VirtType

MAX_WAIT_S = 60.0

log = structlog.get_logger()


class Daemon:
    """One incarnation of the agent."""

    def __init__(self, config: Config, keys: KeyFile, hypervisor: Hypervisor, snapshot: Snapshot) -> None:
        self._config, self._snapshot = config, snapshot
        durable, why = snapshot.load()
        if why:
            log.error(why)
        policy = AgentPolicy(
            audit_s=config.audit_s,
            settle_s=config.settle_s,
            restart=RestartPolicy(
                config.restart_backoff_s, config.restart_backoff_max_s, config.restart_budget, config.restart_window_s
            ),
        )
        self._core = AgentCore(
            durable, boot_id(), uuid.uuid4().hex[:16], policy, random.SystemRandom(), host.boottime()
        )
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._workers = Workers(
            hypervisor, durable.node, self._core.may, self._wake, config.workers, config.call_timeout_s
        )
        self._faults_changed = threading.Event()
        found = find(config)
        self._checks = Runner(found.checks, self._on_faults, found.problems, config.severities)
        self._link = LinkSocket(keys)
        self._local = LocalSocket(Path(config.socket))
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._poller.register(self._local.socket, zmq.POLLIN)
        self._watch_link()
        self._next_ask = 0
        self._stopping = False

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, notifier: Notifier) -> None:
        """Until SIGTERM or SIGINT; VMs go on. Ready means that the loop turns, whatever server and libvirt do."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        known = self._core.durable
        log.info(f"agentd {__version__}: node {known.node}, {counted(len(known.held), 'VM')} in the snapshot")
        self._checks.start()
        notifier.ready(f"guards node {known.node}")
        while not self._stopping:
            notifier.beat()
            self._poller.poll(int(min(self._wait_s(), notifier.wait_s()) * 1000) + 1)
            self._drain_wake()
            for event in self._events():
                self._do(self._core.handle(event, host.boottime()))
        notifier.stopping()
        self._checks.stop()
        self._say_bye()
        log.info("stopped; VMs go on")

    def _wait_s(self) -> float:
        deadline = self._core.next_deadline() - host.boottime()
        return max(0.0, min(deadline, self._workers.next_overdue_s(), MAX_WAIT_S))

    def _events(self) -> list[fx.Event]:
        if self._faults_changed.is_set():
            self._faults_changed.clear()
            self._check_host()
        events: list[fx.Event] = self._workers.take()
        if why := self._link.lost():
            events.append(fx.Disconnected(why))
        events += [fx.Received(body, correlation_id) for body, correlation_id in self._link.receive()]
        question = self._local.receive()
        if question is not None:
            events.append(self._asked(question))
        return [*events, fx.Tick()]

    def _asked(self, question: Question) -> fx.Event:
        self._next_ask += 1
        return fx.Asked(
            self._next_ask, question.verb, question.graceful_s, question.uuid, question.attempt, question.migration
        )

    def _stop(self, *_: object) -> None:
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it is awake already

    def _on_faults(self) -> None:
        """From a check's thread: the core shall hear of it now, not with the next look at the host."""
        self._faults_changed.set()
        self._wake()

    def _drain_wake(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def _say_bye(self) -> None:
        if self._core.link.session:
            self._link.send(m.Bye(session=self._core.link.session), "")

    # --- effects ------------------------------------------------------------------------------------------------------

    def _do(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Save):
                self._do(self._core.handle(self._save(effect), host.boottime()))
            else:
                self._do_one(effect)

    def _save(self, effect: fx.Save) -> fx.Event:
        try:
            self._snapshot.save(effect.durable)
        except SnapshotError as error:
            return fx.SaveFailed(str(error))
        return fx.Saved()

    def _do_one(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Send):
            self._link.send(effect.body, effect.id)
        elif isinstance(effect, fx.Act):
            self._workers.act(effect)
        elif isinstance(effect, fx.AbortMigration):
            self._workers.abort_migration(effect.uuid)
        elif isinstance(effect, fx.Scan):
            self._workers.scan()
        elif isinstance(effect, fx.LookForeign):
            self._workers.look_foreign(effect)
        elif isinstance(effect, fx.CheckHost):
            self._check_host()
        elif isinstance(effect, fx.Reconnect):
            self._reconnect()
        elif isinstance(effect, fx.ConnectHypervisor):
            self._workers.connect(self._workers.post)
        elif isinstance(effect, fx.Answer):
            self._local.answer(effect.result)
        elif isinstance(effect, fx.Log):
            getattr(log, effect.level)(effect.text)

    def _check_host(self) -> None:
        running = sum(seen.domain is not None and seen.domain.active for seen in self._core.vms.facts.values())
        self._workers.check(lambda: self._look_at_host(running))

    def _look_at_host(self, running: int) -> fx.Event:
        kvm = self._config.virt_type != VirtType.QEMU and os.access("/dev/kvm", os.R_OK | os.W_OK)
        return fx.HostChecked(
            faults=self._checks.faults(), load=host.load(running), host=self._host_facts(kvm)
        )

    def _host_facts(self, kvm: bool) -> m.HostFacts:
        return host.host_facts(kvm, "", __version__, self._config.business_interface)

    def _reconnect(self) -> None:
        for socket in (self._link.socket, self._link.monitor):
            if socket is not None:
                self._poller.unregister(socket)
        self._link.reconnect()
        self._watch_link()

    def _watch_link(self) -> None:
        for socket in (self._link.socket, self._link.monitor):
            if socket is not None:
                self._poller.register(socket, zmq.POLLIN)

