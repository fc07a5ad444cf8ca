"""Whether this database is the newest: agents show what they were given, and it may be more than is known here. The
mark beside the database (`state.mark`) may tell it as well, before any agent is heard.

That happens when the database was put back by a copy, when the server's host was reverted, when a second server with
the same key gives orders, or when the database was made anew. Rules: only what bears a seal of this server's key
counts; from then on nothing is decided (`Meta.holding`) until a recovery, in a generation above all that was shown,
has heard every node (`recovery`).
"""

from __future__ import annotations

import msgspec

from chimed.core.state import rows as r
from chimed.core.state.mark import PutBack
from chimed.core.state.turn import Context
from wire import seals
from wire.messages import Point
from wire.types import Severity
from wire.words import ALARMS, AlarmCode

SERVER = "server"
ADVICE = (
    "nothing is started, stopped or moved. If another chimed runs with this key, stop the one that is older. If not, "
    "the database was put back: when all nodes are heard it is brought up to date from what they have (see chime-tool "
    "recovery show)"
)


def is_sealed(ctx: Context, node_name: str, point: Point) -> bool:
    """Whether a server with this key has given the node an inventory that stands there."""
    right = seals.of_point(ctx.seal_key, node_name, point.history, point.generation, point.life, point.revision)
    return seals.fits(point.seal, right)


def newer(ctx: Context, node: r.Node, point: Point) -> str:
    """What the node has that this database has not given it, in words; empty: nothing. `point` is sealed."""
    meta = ctx.tables.meta
    if point.generation > meta.generation:
        return f"{node.name} has an inventory of generation {point.generation}, this database is of {meta.generation}"
    if point.generation < meta.generation:
        return ""
    if point.history != meta.history:
        return f"{node.name} has an inventory of another history with the same generation {meta.generation}"
    if point.revision > node.given:
        return f"{node.name} has an inventory of revision {point.revision}, and this database has given it {node.given}"
    if point.revision == node.given and point.life != node.given_by:
        return f"{node.name} has another inventory of revision {point.revision} than this database has given it"
    return ""


def given(ctx: Context, node_name: str, revision: int) -> None:
    """The node is sent an inventory of this revision: recorded before it is sent."""
    node = ctx.tables.nodes.get(node_name)
    assert node is not None  # it asks
    if revision > node.given:
        ctx.tables.nodes.put(msgspec.structs.replace(node, given=revision, given_by=ctx.life))


def noted(ctx: Context, generation: int, text: str) -> None:
    """The database is behind: from now on it decides nothing, and every agent is told to hold."""
    meta = ctx.tables.meta
    if generation <= meta.ahead:
        return
    ctx.tables.meta = msgspec.structs.replace(meta, ahead=generation, ahead_text=text)
    if not meta.behind:
        ctx.audit("chimed", AlarmCode.SERVER_BEHIND, SERVER, text)
        ctx.log("error", f"this database is behind: {text}")
        ctx.touched.update(node.name for node in ctx.tables.nodes)
    sync_alarm(ctx)


def found_put_back(ctx: Context, found: PutBack) -> None:
    """A newer database was in this one's place before chimed started. Where that cannot be saved now, it is noted
    when it can be; the recovery ends it."""
    if not ctx.read_only and ctx.tables.meta.generation <= found.generation:
        noted(ctx, found.generation, found.text)


def sync_alarm(ctx: Context) -> None:
    """The alarm is there while the database is behind."""
    meta = ctx.tables.meta
    code, text = AlarmCode.SERVER_BEHIND, f"this database is behind: {meta.ahead_text}: {ADVICE}"
    wanted = {code: (ALARMS[code].severity or Severity.CRITICAL, text)} if meta.behind else {}
    ctx.sync_alarms(SERVER, wanted, frozenset({code}))
