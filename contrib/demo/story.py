"""The steps of the demo. Each one does something to the cluster and checks what Chime makes of it.

What Chime says is compared with the process table and with the counters of the guests (see `fleet`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from contrib.demo.fleet import NODES, SERVER_TIMINGS, Fleet, timings, unreachable_s
from contrib.demo.timeline import Failed, Look, Timeline
from tests.hosts import Watch

VMS = tuple(f"vm{number}" for number in range(1, 7))
LOST = "n1"  # the node that loses its power
CRASHED = "vm2"  # the VM whose qemu is killed
AGENT_KILLED = "n3"
SLACK_S = 6.0  # for everything that has to happen in time on a machine that does other things as well
PATIENCE_S = 60.0  # for everything else
WATCHED_S = 6.0  # how long the node that came back is watched for not starting anything


class Story:
    """The steps in their order share what they have seen."""

    def __init__(self, fleet: Fleet, timeline: Timeline, watch: Watch) -> None:
        self.fleet = fleet
        self.line = timeline
        self.watch = watch
        self.victims: list[str] = []
        self.runs_expected = dict.fromkeys(VMS, 1)

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """(title, function); a function returns the detail for the report."""
        return [
            ("a server and three nodes come up", self.come_up),
            ("six VMs are created and spread over the nodes", self.create_vms),
            (f"kill -9 the qemu of {CRASHED}: it is started again", self.kill_qemu),
            (f"kill -9 the agent of {AGENT_KILLED}: its VMs do not notice", self.kill_agent),
            (f"{LOST} loses its power: it becomes unreachable", self.power_off),
            (f"rebuilding the VMs of {LOST} is refused: nothing proves that they do not run", self.refuse),
            ("a person attests that the node is off: its VMs are rebuilt elsewhere", self.rebuild),
            (f"{LOST} comes back: it starts nothing and cleans up", self.come_back),
            ("kill -9 the server: nothing is lost, nobody is accused", self.kill_server),
            ("over all of the demo no VM ran twice", self.never_twice),
        ]

    # The steps

    def come_up(self) -> str:
        """Server, keys, agents."""
        self.line.note("timings are shortened by configuration, so that this does not take all day:")
        self.line.note(timings())
        self.fleet.start_server()
        self._expect("the server answers", lambda: Look(self.fleet.ask("status") is not None, "no answer"), PATIENCE_S)
        for name in NODES:
            bundle = self.fleet.nodes[name].dir / "bundle"
            words = ("node", "add", name, "--output", str(bundle))
            self._do(*words, show=name == NODES[0])
            self.fleet.start_agent(name, bundle)
            if name == NODES[0]:
                self.line.command(f"agentd join {bundle}", "", prompt=f"{name}#")
        self._expect("three nodes are enabled, normal and schedulable", self._all_nodes_fine, PATIENCE_S)
        self._show("node", "list")
        self._expect("no qemu process exists yet", lambda: Look(not self.fleet.places(), self.fleet.places()))
        return "3 nodes normal"

    def create_vms(self) -> str:
        """Six guests, two for each node."""
        for name in VMS:
            typed, answer = self.fleet.create(name)
            if name == VMS[0]:
                self.line.command(typed, answer.text)
            _must_exit(0, typed, answer.code, answer.text)
            self.line.say(f"  {name} runs on {', '.join(self.fleet.places().get(name, ['no node']))}")

        def spread() -> Look:
            places = self.fleet.places()
            where = [host for hosts in places.values() for host in hosts]
            ok = sorted(places) == sorted(VMS) and sorted(where) == sorted(NODES * 2)
            return Look(ok and all(len(hosts) == 1 for hosts in places.values()), places)

        self._expect("one qemu process for each of six VMs, two on each node", spread)
        self._expect_agreement()
        before = {name: self.fleet.guests[name].last() for name in VMS}
        self.line.say("  the guests boot Linux (without KVM this takes a while)")
        self._expect_counting(VMS, before)
        self._show("vm", "list")
        return "2 VMs on each node, all six counters rise"

    def kill_qemu(self) -> str:
        """A crash of the hypervisor process."""
        epoch = self.fleet.vms()[CRASHED]["epoch"]
        old, before = self.fleet.identities()[CRASHED], self.fleet.guests[CRASHED].last()
        self.line.command(f"kill -9 {old[0]}", "", prompt="#")
        began = time.monotonic()
        os.kill(old[0], signal.SIGKILL)
        self._expect(
            "a new qemu process",
            lambda: Look(self.fleet.identities().get(CRASHED, old) != old, self.fleet.identities().get(CRASHED)),
            PATIENCE_S,
            period_s=0.01,
        )
        took = time.monotonic() - began
        self.runs_expected[CRASHED] += 1

        def restarted() -> Look:
            vm = self.fleet.vms()[CRASHED]
            ok = vm["observed"] == "running" and vm["restarts"] == 1 and vm["epoch"] == epoch
            return Look(ok, {key: vm[key] for key in ("observed", "restarts", "epoch")})

        self._expect(f"the server shows it running, restarts 1, epoch {epoch} as before", restarted, PATIENCE_S)
        self._expect_agreement()
        self._expect_counting([CRASHED], {CRASHED: before}, new_run=True)
        self._show("event", "list", "--subject", CRASHED)
        return f"from kill to the new process {took:.2f} s, same epoch"

    def kill_agent(self) -> str:
        """A crash of the agent."""
        service = self.fleet.nodes[AGENT_KILLED].service("agentd")
        starts = service.status()["starts"]
        processes, before = self.fleet.identities(), self._last(VMS)
        self.line.command(f"kill -9 {service.pid}", "", prompt="#")
        began = time.monotonic()
        service.kill()

        def back() -> Look:
            status, agent = service.status(), self.fleet.agent_status(AGENT_KILLED)
            ok = status["starts"] == starts + 1 and agent.get("agent_running") and agent.get("session") == "ready"
            return Look(bool(ok), f"{status}, {agent}")

        self._expect("the agent was started again and is connected", back, PATIENCE_S)
        took = time.monotonic() - began
        self._show_on(AGENT_KILLED, "status")
        self._expect_same_processes(processes)
        self._expect_counting(VMS, before)
        self._expect("all nodes are normal", self._all_nodes_fine, PATIENCE_S)
        self._expect_agreement()
        return f"agent back and connected after {took:.1f} s, all six qemu processes are the same"

    def power_off(self) -> str:
        """A node dies: its network goes silent and every process is gone."""
        self.victims = sorted(name for name, hosts in self.fleet.places().items() if hosts == [LOST])
        others = [name for name in VMS if name not in self.victims]
        wall = time.time()
        self.fleet.nodes[LOST].power_off()
        self.line.say(f"  {LOST} is off; it ran {' and '.join(self.victims)}")
        dead = self._last(self.victims)
        self._expect(
            "no process of these VMs exists anywhere",
            lambda: Look(not set(self.victims) & set(self.fleet.places()), self.fleet.places()),
        )
        limit = unreachable_s(SERVER_TIMINGS)
        self._expect(f"{LOST} is unreachable", lambda: self._health(LOST, "unreachable"), limit + PATIENCE_S)
        took = self._when_called(LOST, "unreachable") - wall
        self._expect(
            f"that was {took:.1f} s after the loss of power (configured: {limit:.1f} s; a busy machine may add "
            f"{SLACK_S:g} s)",
            lambda: Look(took <= limit + SLACK_S, f"{took:.2f} s"),
        )
        self._show("node", "list")
        self._expect(f"{LOST} does not answer ping, {NODES[1]} does", self._pings)
        self._expect("alarm node-unreachable is raised", lambda: self._alarm("node-unreachable", LOST), PATIENCE_S)
        self._show("alarm", "list")
        self._expect("its VMs read unknown, the others running", lambda: self._observed(self.victims, others))
        self._show("vm", "list")
        self._refused(4, "vm", "stop", self.victims[0], "--yes")
        self._refused(4, "vm", "create", "unlucky", "--vcpus", "1", "--memory", "96M", "--stopped", "--node", LOST)
        self._do("vm", "create", "newcomer", "--vcpus", "1", "--memory", "96M", "--stopped", show=True)
        newcomer = self.fleet.vms()["newcomer"]["node"]
        self._expect(f"a new VM is not placed on {LOST}", lambda: Look(newcomer in NODES[1:], newcomer))
        self._do("vm", "delete", "newcomer", "--yes")
        self._expect_counting(others, self._last(others))
        self._expect(
            "the counters of its VMs stand still",
            lambda: Look(self._last(self.victims) == dead, f"{dead} -> {self._last(self.victims)}"),
        )
        return f"unreachable after {took:.1f} s, alarm raised, command refused, {' and '.join(self.victims)} unknown"

    def refuse(self) -> str:
        """No rebuild without a drain, none without evidence."""
        self._refused(3, "node", "rebuild", LOST, "--yes")
        answer = self._do("node", "drain", LOST, "--yes", show=True)
        self._expect("the drain warns", lambda: Look("warning" in answer, answer))
        self._expect(
            "it is drained, without evidence",
            lambda: self._fields(self.fleet.node(LOST), admin_state="drained", drain_evidence=None),
            PATIENCE_S,
        )
        text = self._refused(3, "node", "rebuild", LOST, "--yes")
        self._expect("the refusal says what would do", lambda: Look("--evidence operator" in text, text))
        self._expect(
            "nothing was started",
            lambda: Look(not set(self.victims) & set(self.fleet.places()), self.fleet.places()),
        )
        return "exit 3 before the drain; exit 3 without evidence, and it says which evidence would do"

    def rebuild(self) -> str:
        """With the word of a person."""
        before, epochs = self._last(self.victims), {name: vm["epoch"] for name, vm in self.fleet.vms().items()}
        comment = "I stood before the rack: it is off"
        attest = ("--evidence", "operator", "--comment", comment)
        self._do("node", "rebuild", LOST, *attest, "--dry-run", show=True)
        self._expect(
            "the dry run changed nothing",
            lambda: Look(not set(self.victims) & set(self.fleet.places()), self.fleet.places()),
        )
        began = time.monotonic()
        self._do("node", "rebuild", LOST, *attest, "--yes", show=True)
        took = time.monotonic() - began
        for name in self.victims:
            self.runs_expected[name] += 1

        def moved() -> Look:
            places = self.fleet.places()
            ok = sorted(places) == sorted(VMS) and all(len(hosts) == 1 for hosts in places.values())
            return Look(ok and all(places[name][0] in NODES[1:] for name in VMS), places)

        self._expect("one qemu process for each of six VMs, all on the other nodes", moved)
        self._expect_agreement()
        vms = self.fleet.vms()
        self._expect(
            "both VMs have a new epoch, the others the old one",
            lambda: Look(
                all(vms[name]["epoch"] == epochs[name] + (name in self.victims) for name in VMS),
                {name: vms[name]["epoch"] for name in VMS},
            ),
        )
        self._expect_counting(self.victims, before, new_run=True)
        self._show("vm", "list")
        return f"{' and '.join(self.victims)} run again on other nodes, exactly once, {took:.1f} s after the command"

    def come_back(self) -> str:
        """The dead node rises, with the old definitions on its disk."""
        processes, tried = self.fleet.identities(), self.fleet.starts(LOST)
        self._expect(
            f"{LOST} still has the definitions of {' and '.join(self.victims)} on its disk",
            lambda: Look(set(self.victims) <= self.fleet.definitions(LOST), self.fleet.definitions(LOST)),
        )
        self._expect(
            "libvirt's log there shows how they were started",
            lambda: Look(all(tried.get(name) for name in self.victims), tried),
        )
        self.fleet.nodes[LOST].power_on()
        self.line.say(f"  {LOST} is on again")
        watched_until = time.monotonic() + WATCHED_S
        self._expect(f"{LOST} is normal", lambda: self._health(LOST, "normal"), PATIENCE_S)
        self._expect(
            "the definitions are gone from it",
            lambda: Look(not self.fleet.definitions(LOST), self.fleet.definitions(LOST)),
            PATIENCE_S,
        )
        while time.monotonic() < watched_until:
            here = {name: hosts for name, hosts in self.fleet.places().items() if LOST in hosts}
            if here:
                raise Failed(f"{LOST} starts nothing", here)
            time.sleep(0.05)
        self._expect(
            f"it has started nothing in {WATCHED_S:g} s, and libvirt's log has no try",
            lambda: Look(self.fleet.starts(LOST) == tried, f"{tried} -> {self.fleet.starts(LOST)}"),
        )
        self._expect_same_processes(processes)
        self._expect(
            "it is still drained, and takes no VM",
            lambda: self._fields(self.fleet.node(LOST), admin_state="drained", health="normal", schedulable=False),
        )
        self._show_on(LOST, "status")
        self._expect(
            "alarm node-unreachable is cleared",
            lambda: Look(not self._alarm("node-unreachable", LOST).ok, "still raised"),
            PATIENCE_S,
        )
        self._do("node", "enable", LOST, show=True)
        self._expect(
            "it is schedulable again", lambda: self._fields(self.fleet.node(LOST), schedulable=True), PATIENCE_S
        )
        typed, answer = self.fleet.create("vm7")
        _must_exit(0, typed, answer.code, answer.text)
        self.runs_expected["vm7"] = 1
        places = self.fleet.places().get("vm7")
        self._expect(f"a new VM, vm7, runs on {LOST}, which has the most room", lambda: Look(places == [LOST], places))
        self._expect_counting(["vm7"], self._last(["vm7"]))
        self._show("node", "list")
        return "started nothing, removed both definitions, drained until it was enabled"

    def kill_server(self) -> str:
        """A crash of the server."""
        service = self.fleet.server.service("chimed")
        starts = service.status()["starts"]
        processes, before = self.fleet.identities(), self.fleet.vms()
        events = len(self.fleet.ask("event", "list", "--limit", "10000") or [])
        self.line.command(f"kill -9 {service.pid}", "", prompt="#")
        began = time.monotonic()
        service.kill()

        def back() -> Look:
            status = service.status()
            return Look(status["starts"] == starts + 1 and self._all_nodes_fine().ok, status)

        self._expect("the server was started again and has heard of all nodes", back, PATIENCE_S)
        took = time.monotonic() - began
        time.sleep(max(0.0, unreachable_s(SERVER_TIMINGS) + 1.0 - took))
        keys = ("uuid", "node", "epoch", "desired", "observed", "restarts")
        old = {name: [vm[key] for key in keys] for name, vm in before.items()}
        self._expect(
            "it knows every VM as before",
            lambda: Look(
                {name: [vm[key] for key in keys] for name, vm in self.fleet.vms().items()} == old, self.fleet.vms()
            ),
            PATIENCE_S,
        )
        news = (self.fleet.ask("event", "list", "--limit", "10000") or [])[events:]
        accused = [event for event in news if event["action"] in ("node-health", "alarm-raised")]
        self._expect("no node was called unreachable, no alarm raised", lambda: Look(not accused, accused))
        self._expect_same_processes(processes)
        self._expect_agreement()
        self._do("vm", "stop", "vm7", "--yes", show=True)
        self._expect(
            "commands work: the process of vm7 is gone",
            lambda: Look("vm7" not in self.fleet.places(), self.fleet.places()),
        )
        return f"server back after {took:.1f} s, {len(old)} VMs as before, no alarm"

    def never_twice(self) -> str:
        """Invariant S1, from both sources of truth."""
        self._expect(
            f"no VM had two running processes at any of {self.watch.samples} looks at the process table",
            lambda: Look(not self.watch.violations, self.watch.violations[:3]),
        )
        runs = {name: len(guest.runs()) for name, guest in self.fleet.guests.items()}
        twice = [name for name, guest in self.fleet.guests.items() if len(set(guest.runs())) != runs[name]]
        self._expect("no guest's counter shows two runs at the same time", lambda: Look(not twice, twice))
        self._expect(
            "every guest was booted as many times as it should: "
            + ", ".join(f"{name} {count}" for name, count in self.runs_expected.items()),
            lambda: Look(runs == self.runs_expected, runs),
        )
        return f"{self.watch.samples} looks at the process table, {sum(runs.values())} runs of {len(runs)} guests"

    # Doing and showing

    def _expect(self, what: str, look: Callable[[], Look], timeout_s: float = 0.0, period_s: float = 0.05) -> object:
        return self.line.expect(what, look, timeout_s, period_s)

    def _do(self, *words: str, show: bool = False) -> str:
        """A command that must succeed."""
        answer = self.fleet.tool(*words)
        typed = _typed(words)
        if show:
            self.line.command(typed, answer.text)
        _must_exit(0, typed, answer.code, answer.text)
        return answer.text

    def _show(self, *words: str) -> None:
        self._do(*words, show=True)

    def _show_on(self, node: str, *words: str) -> None:
        answer = self.fleet.on_node(node, *words)
        self.line.command(f"chime-agent {' '.join(words)}", answer.text, prompt=f"{node}#")
        _must_exit(0, f"chime-agent {words[0]}", answer.code, answer.text)

    def _refused(self, code: int, *words: str) -> str:
        """A command that must be refused with this exit code."""
        answer = self.fleet.tool(*words)
        self.line.command(_typed(words), answer.text)
        self._expect(
            f"it was refused, with exit code {code}",
            lambda: Look(answer.code == code, f"exit code {answer.code}: {answer.text}"),
        )
        return answer.text

    # Looking

    def _last(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self.fleet.guests[name].last() for name in names}

    def _expect_counting(self, names: Iterable[str], before: dict[str, Any], new_run: bool = False) -> None:
        """Every counter gets two further, in the same run or in a new one."""

        def counting() -> Look:
            now = self._last(names)
            return Look(all(_went_on(before[name], now[name], new_run) for name in names), f"{before} -> {now}")

        what = "from a new start" if new_run else "without a break"
        self._expect(f"counting {what}: {', '.join(names)}", counting, 2 * PATIENCE_S, period_s=0.2)

    def _expect_same_processes(self, before: dict[str, tuple[int, int]]) -> None:
        self._expect(
            "every qemu process is the same as before",
            lambda: Look(self.fleet.identities() == before, f"{before} -> {self.fleet.identities()}"),
        )

    def _expect_agreement(self) -> None:
        """The server's picture is the reality."""

        def agree() -> Look:
            real = self.fleet.places()
            shown = {name: [vm["node"]] for name, vm in self.fleet.vms().items() if vm["observed"] == "running"}
            return Look(real == dict(sorted(shown.items())), f"shown {shown}, real {real}")

        self._expect("what chime-tool shows is what the process table has", agree, PATIENCE_S)

    def _all_nodes_fine(self) -> Look:
        rows = self.fleet.ask("node", "list") or []
        ok = [row["name"] for row in rows if row["health"] == "normal" and row["schedulable"]] == list(NODES)
        return Look(ok, [(row["name"], row["admin_state"], row["health"], row["reasons"]) for row in rows])

    def _health(self, node: str, wanted: str) -> Look:
        seen = self.fleet.node(node).get("health")
        return Look(seen == wanted, seen)

    def _fields(self, row: dict[str, Any], **wanted: object) -> Look:
        seen = {key: row.get(key) for key in wanted}
        return Look(seen == wanted, seen)

    def _alarm(self, code: str, subject: str) -> Look:
        alarms = [(alarm["code"], alarm["subject"]) for alarm in self.fleet.ask("alarm", "list") or []]
        return Look((code, subject) in alarms, alarms)

    def _observed(self, unknown: Iterable[str], running: Iterable[str]) -> Look:
        wanted = dict.fromkeys(unknown, "unknown") | dict.fromkeys(running, "running")
        seen = {name: vm["observed"] for name, vm in self.fleet.vms().items()}
        return Look(seen == wanted, seen)

    def _pings(self) -> Look:
        codes = [
            self.fleet.server.run(["ping", "-c1", "-W1", self.fleet.nodes[name].address], check=False).returncode
            for name in (LOST, NODES[1])
        ]
        return Look(codes[0] != 0 and codes[1] == 0, f"exit codes of ping: {codes}")

    def _when_called(self, node: str, health: str) -> float:
        """When the server called the node so, for the last time, by its own audit trail."""
        events = self.fleet.ask("event", "list", "--subject", node) or []
        times = [event["time"] for event in events if event["action"] == "node-health" and health in event["text"]]
        if not times:
            raise Failed(f"an event node-health {health} of {node}", events)
        return float(times[-1])


def _went_on(before: Any, now: Any, new_run: bool) -> bool:
    if new_run:
        return bool(now.run != before.run and now.number >= 2)
    return bool(now.number >= before.number + 2 and before.run in ("", now.run))


def _typed(words: Iterable[str]) -> str:
    return "chime-tool " + " ".join(f'"{word}"' if " " in word else word for word in words)


def _must_exit(code: int, typed: str, seen: int, text: str) -> None:
    if seen != code:
        raise Failed(f"exit code {code} of: {typed}", f"exit code {seen}: {text.strip()}")
