"""Whatever passes decoding trips nothing: extreme values of each field of each message, through the whole server core.

The values are made from the schema, the names and sessions among them are real ones, so that a message gets past its
first check. What the core answers must decode where it arrives.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect as i

from chimed.core.state import effects as fx
from tests.fakes.names import key_of, uuid_of
from tests.tools.samples import KEY
from tests.unit.server.world import World, running
from wire import codec
from wire import messages as m
from wire import types as w
from wire.errors import ChimeError
from wire.verbs import VERBS, Role

SPOKEN = [kind for kind, verb in VERBS.items() if verb.sender is not Role.SERVER]
TEXTS = (
    "",
    " ",
    "-",
    "0",
    "a" * 2000,
    "\U0001f480" * 64,
    "\ufffd",
    "\u0301",
    "n1",
    "web",
    "(",
    "%s{0}",
    "10.0.0.1",
    "::::",
)
BY_PATTERN: dict[str, tuple[str, ...]] = {
    w.NAME_PATTERN: ("n1", "n2", "web", "db", "0", "a" * 63, "n1.", "reboot", "vm", "node", "op-1", uuid_of("web")),
    w.UUID_PATTERN: (uuid_of("web"), uuid_of("db"), uuid_of("x"), "0" * 8 + ("-" + "0" * 4) * 3 + "-" + "0" * 12),
    w.PATH_PATTERN: ("/", "//", "/..", "/srv/shared.qcow2", "/" + "a" * 1023),
    w.BRIDGE_PATTERN: (".", "..", "eth0", "-"),
    w.MAC_PATTERN: ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"),
    w.Z85_PATTERN: (KEY, key_of("n1"), key_of("op"), "0" * 40),
    w.ADDRESS_PATTERN: ("10.0.0.2", "127.0.0.1", "fe80::1", "::1", "255.255.255.254", "2001:db8::1"),
}


def of(kind: Any, live: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    """Raw values of a type, extreme ones by preference; `live`: texts that mean something in this world."""
    if isinstance(kind, i.Metadata):
        return of(kind.type, live)
    if isinstance(kind, i.StructType):
        fields = {field.encode_name: of(field.type, live) for field in kind.fields}
        needed = {name: fields.pop(name) for name in [f.encode_name for f in kind.fields if f.required]}
        return st.fixed_dictionaries(needed, optional=fields)
    if isinstance(kind, i.UnionType):
        return st.one_of([of(part, live) for part in kind.types])
    if isinstance(kind, i.VarTupleType):
        return st.lists(of(kind.item_type, live), max_size=3)
    if isinstance(kind, i.EnumType):
        return st.sampled_from([member.value for member in kind.cls])
    if isinstance(kind, i.StrType):
        return _text(kind, live)
    if isinstance(kind, i.IntType):
        low, high = kind.ge or 0, kind.le or 2**53
        return st.sampled_from(sorted({v for v in (low, low + 1, 2, 3, 2**31, high - 1, high) if low <= v <= high}))
    if isinstance(kind, i.FloatType):
        return st.sampled_from([0, 0.0, 5e-324, 1e-9, 0.5, 60.0, float(kind.le or 0)])
    return st.none() if isinstance(kind, i.NoneType) else st.booleans()


def _text(kind: i.StrType, live: tuple[str, ...]) -> st.SearchStrategy[str]:
    if kind.pattern in BY_PATTERN:
        return st.sampled_from(BY_PATTERN[kind.pattern])
    low, high = kind.min_length or 0, kind.max_length or 10_000
    return st.sampled_from([text for text in (*live, *TEXTS) if low <= len(text) <= high])


def world_with_work() -> World:
    """Three nodes, VMs, a migration that is open, one node drained, one lost."""
    world = running("n1", "n2", "n3")
    world.create("db", "n2")
    world.do(m.VmMigrate, vm="web", to="n2")
    world.agents["n1"].sync()
    world.do(m.NodeDrain, name="n3")
    world.settle()
    return world


def shown(world: World, effects: list[fx.Effect]) -> None:
    """What is sent decodes at its receiver. (The nonce of a heartbeat goes back to whoever made it as it came.)"""
    for effect in effects:
        if isinstance(effect, fx.Send) and not isinstance(effect.body, m.HeartbeatAck):
            codec.decode(codec.encode(effect.body, effect.id))


def say(world: World, kind: str, raw: dict[str, Any]) -> None:
    """Sends what decodes, and looks at what follows from it for a while."""
    try:
        body = codec.decode(codec.encode(msgspec.convert(raw, VERBS[kind].body))).body
    except (ChimeError, msgspec.ValidationError):
        return
    who, route = ("op", b"op") if VERBS[kind].sender is Role.OPERATOR else ("n1", world.agents["n1"].route)
    shown(world, world.turn(fx.Received(key_of(who), route, body, "c", lambda: "10.0.0.1")))


@pytest.mark.parametrize("kind", [kind for kind in SPOKEN if VERBS[kind].sender is Role.OPERATOR])
@given(draw=st.data())
@settings(max_examples=6, suppress_health_check=list(HealthCheck), deadline=None)
def test_h2_no_request_that_decodes_trips_the_server(kind: str, draw: st.DataObject) -> None:
    three_of(kind, draw, world_with_work())


@pytest.mark.parametrize("kind", [kind for kind in SPOKEN if VERBS[kind].sender is Role.AGENT])
@pytest.mark.parametrize("recovering", [False, True])
@given(draw=st.data())
@settings(max_examples=12, suppress_health_check=list(HealthCheck), deadline=None)
def test_h2_no_word_of_an_agent_that_decodes_trips_the_server(kind: str, recovering: bool, draw: st.DataObject) -> None:
    world = world_with_work()
    if recovering:
        meta = world.tables().meta
        world.disk.tables["meta"][()] = msgspec.structs.replace(meta, generation=2, waiting_for=("n1", "n2", "n3"))
        world.crash()
        world.agents["n1"].connect()
    three_of(kind, draw, world)


def three_of(kind: str, draw: st.DataObject, world: World) -> None:
    """Three messages of that kind, and then the life that goes on."""
    session = world.agents["n1"].session or ""
    attempts = tuple(row.attempt for row in world.tables().migrations)
    live = (session, session, session, *attempts, "op-1", "op-2", "k1")
    for _ in range(3):
        raw = draw.draw(of(i.type_info(VERBS[kind].body), live), label=kind)
        if "session" in raw:
            raw["session"] = session
        if kind == "hello":
            raw |= {"versions": [1], "node": "n1"}
        if kind == "report":
            raw["generation"] = world.tables().meta.generation
        if kind == "heartbeat":
            raw |= {"boot_id": world.agents["n1"].boot, "incarnation": "i1"}
        if "name" in raw and kind.startswith("node.") and kind != "node.add":
            raw["name"] = draw.draw(st.sampled_from(["n1", "n2", "n3"]))
        if "vm" in raw:
            raw["vm"] = draw.draw(st.sampled_from(["web", "db"]))
        say(world, kind, raw)
        world.now += 2
        shown(world, world.turn())
    world.crash()
    world.start()
    for name, agent in world.agents.items():
        if agent.session is not None and world.core.peer(key_of(name)) is not None:
            shown(world, [fx.Send(agent.route, page) for page in agent.pull(0)])
    for question in (m.NodeList(), m.VmList(), m.OpList(), m.AlarmList(), m.ServerStatus()):
        world.ask(question)
    world.run(20)
