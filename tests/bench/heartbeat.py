"""chimed's heartbeat path (CURVE, decode, validate, liveness, answer) as a share of a bare echo loop with CURVE.

Both servers are processes of their own with the same connections, the same sizes and the same load, in turns. The
load needs as much CPU as the server does, so on a small machine it decides the rate, and the ratio of the rates is
flattering. Judged is therefore the CPU time of the whole server process (libzmq's threads included) for each message.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.echo import SECRET
from tests.bench.figures import Figure, Runs
from tests.bench.fleet import Agents, Server, free_port
from tests.bench.processes import command, cpu_s, running
from wire import curve

NODES = 1000
ROUNDS = 12
REPEATS = 15
SHARE = 0.7


def measure(directory: Path) -> list[Figure]:
    """The share."""
    quiet = 3600.0  # nobody is missed while the other server is at work
    server = Server(
        directory, NODES, heartbeat_s=quiet, command_timeout_s=quiet, operation_timeout_s=quiet
    )
    with server.started() as pid, Agents(server.endpoint, server.keys.public, server.nodes) as agents:
        agents.say_hello(server.vms)
        pair, endpoint = curve.new_pair(), f"tcp://127.0.0.1:{free_port()}"
        os.environ[SECRET] = pair.secret
        echo = running(command("tests.bench.echo", endpoint, str(agents.answer_bytes)), directory / "echo.log")
        with echo as bare, Agents(endpoint, pair.public, server.nodes) as peers:
            peers.say_nothing(agents.frame_bytes)
            return _compare({"chimed": (pid, agents), "bare": (bare.pid, peers)})


def _compare(both: dict[str, tuple[int, Agents]]) -> list[Figure]:
    cpu_us = {who: Runs() for who in both}
    rate = {who: Runs() for who in both}
    for repeat in range(-1, REPEATS):
        for who in sorted(both, reverse=bool(repeat % 2)):
            pid, agents = both[who]
            before = cpu_s(pid)
            seconds = agents.beat(ROUNDS)
            if repeat >= 0:  # the first warms up
                cpu_us[who].values.append((cpu_s(pid) - before) / (ROUNDS * NODES) * 1e6)
                rate[who].values.append(ROUNDS * NODES / seconds)
    detail = {
        "nodes": NODES,
        "messages_each": ROUNDS * NODES * REPEATS,
        "frame_bytes": both["chimed"][1].frame_bytes,
        "answer_bytes": both["chimed"][1].answer_bytes,
        "cpu_us_per_message": {who: runs.rounded() for who, runs in cpu_us.items()},
        "messages_per_s": {who: runs.rounded(0) for who, runs in rate.items()},
        "median_cpu_us": {who: round(runs.median, 3) for who, runs in cpu_us.items()},
        "median_messages_per_s": {who: round(runs.median) for who, runs in rate.items()},
    }
    share = _share(cpu_us["bare"], cpu_us["chimed"])
    throughput = _share(rate["chimed"], rate["bare"])
    note = "the load shares the machine: not judged"
    return [
        Figure("heartbeat path, share of a bare echo loop, CPU per message", share, "x", ">=", SHARE, detail),
        Figure("heartbeat path, share of a bare echo loop, rate", throughput, "x", detail={"note": note}),
    ]


def _share(upper: Runs, lower: Runs) -> float:
    """The median of the ratios of neighbours in time: what else the machine does touches both."""
    return Runs([a / b for a, b in zip(upper.values, lower.values, strict=True)]).median
