"""Commands: the server's process, its disk, its backups."""

from __future__ import annotations

from tests.sim.cluster import Cluster
from tests.sim.commands.base import word as _word
from tests.sim.words import Usage


@_word("kill chimed")
def _kill_server(c: Cluster) -> None:
    """SIGKILL; systemd starts it again in 1 to 5 s."""
    c.server.kill()


@_word("stop chimed")
def _stop_server(c: Cluster) -> None:
    """It ends and is not started again."""
    c.server.wanted = False
    c.server.kill()


@_word("start chimed")
def _start_server(c: Cluster) -> None:
    """It is started."""
    c.server.wanted = True
    c.server.start()


@_word("crash chimed at {step} {count}", "crash chimed {when} commit {count}")
def _crash_server(c: Cluster, count: str, step: str = "", when: str = "after") -> None:
    """It dies at the n-th `commit` or `send` from now; `before` or `after` a commit (else after)."""
    kind = step or "commit"
    if kind not in ("commit", "send") or when not in ("before", "after"):
        raise Usage("chimed crashes at: send N; commit N (before or after)")
    if c.server.process is not None:
        c.server.process.crash_at = {kind if kind == "send" else f"commit-{when}": int(count)}


@_word("stall chimed {seconds}")
def _stall(c: Cluster, seconds: str) -> None:
    """Its loop sleeps (SIGSTOP, swap) for so long."""
    if c.server.process is not None:
        c.server.process.stalled_until = c.engine.now + float(seconds)


@_word("wall clock {seconds}")
def _wall(c: Cluster, seconds: str) -> None:
    """The server's time of day jumps by so much."""
    c.server.clock.wall_shift += float(seconds)


@_word("pings fail")
def _pings_fail(c: Cluster) -> None:
    """The server may not send pings."""
    c.server.pings_fail = True


@_word("pings work")
def _pings_work(c: Cluster) -> None:
    """It may again."""
    c.server.pings_fail = False


@_word("backup")
def _backup(c: Cluster) -> None:
    """`chimed backup`."""
    c.server.backup()


@_word("restore")
def _restore(c: Cluster) -> None:
    """`chimed restore` of the newest backup, and a start."""
    c.server.restore()


@_word("faults stop")
def _faults_stop(c: Cluster) -> None:
    """Everything works again; people undo what they did by hand."""
    c.end_faults()
