"""H6: one key at full speed costs the others nothing: a real chimed, real sockets, an attacker that is a process.

What is judged strictly does not depend on what else this machine does: memory, the trail, that every heartbeat and
every request is answered, and for how long chimed's loop works while a heartbeat waits, by its own processor clock. The
times of a quiet machine are figures of `make bench BENCH='--only overload'`; here they are printed, and bounded so that
a machine that does much else passes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.bench.attack import KINDS
from tests.bench.fleet import Agents
from tests.bench.overload import HEARTBEAT_MS, MEMORY_MIB, REVOKED, Scene
from wire import messages as m
from wire.client import Client
from wire.errors import ChimeError

NODES = 200
SECONDS = 3.0
SLOWEST_HEARTBEAT_S, SLOWEST_REQUEST_S = 2.0, 5.0


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Agents]]:
    scene = Scene(tmp_path_factory.mktemp("overload"), NODES)
    with scene.running() as agents:
        yield scene, agents


def told(scene: Scene) -> set[str]:
    """What is in the trail about the hostile node."""
    with scene.server.client() as client:
        return {line["action"] for line in client.request(m.EventList(subject=scene.hostile, limit=1000))["items"]}


def test_h7_a_request_that_is_not_for_the_key_is_told(attacked: tuple[Scene, Agents]) -> None:
    """Before the attacks: a key that is far beyond its budget is not heard at all for a while."""
    scene, _ = attacked
    server = scene.server
    node = Client(server.endpoint, server.keys.public, server.nodes[-1][1], 30.0)
    with node, pytest.raises(ChimeError) as error:
        node.request(m.NodeList())
    assert error.value.code == "forbidden"
    assert "requests-forbidden" in told(scene)


@pytest.mark.parametrize("kind", [*KINDS, REVOKED])
def test_h6_one_key_at_full_speed_costs_the_others_nothing(attacked: tuple[Scene, Agents], kind: str) -> None:
    scene, agents = attacked
    seen = scene.attack(agents, kind, SECONDS)
    print(kind, json.dumps(seen.detail()))
    assert (seen.error, seen.missing) == ("", 0)
    assert seen.memory_mib < MEMORY_MIB
    assert 1000 * max(seen.work) < HEARTBEAT_MS
    assert max(seen.beats) < SLOWEST_HEARTBEAT_S
    assert max(seen.asks) < SLOWEST_REQUEST_S
    there, must = scene.trail()
    assert there == must > 0
    time.sleep(0.5)


def test_h6_what_the_hostile_node_did_is_told(attacked: tuple[Scene, Agents]) -> None:
    scene, _ = attacked
    with scene.server.client() as client:
        nodes = {row["name"]: row["health"] for row in client.items(m.NodeList())}
    assert told(scene) & {"messages-over-budget", "events-dropped", "changes-refused"}
    assert {health for name, health in nodes.items() if name != scene.hostile} == {"normal"}
    log = scene.server.log.read_text()
    assert "Traceback" not in log
    assert len(log) < 1_000_000
