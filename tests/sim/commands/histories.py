"""Commands: state that goes back in time, two of what must be one, nodes that come back under their name."""

from __future__ import annotations

from tests.sim import database
from tests.sim.cluster import Cluster
from tests.sim.commands.base import word as _word
from tests.sim.words import Usage
from wire import messages as m

# --- hosts ------------------------------------------------------------------------------------------------------------


@_word("keep snapshot {node}")
def _keep(c: Cluster, node: str) -> None:
    """The agent's state directory is laid aside as it is now."""
    disk = c.host(node).disk
    disk.kept = disk.content


@_word("put back snapshot {node}")
def _put_back(c: Cluster, node: str) -> None:
    """The one that was laid aside is there again; the agent starts anew. What is under /run stays."""
    if c.host(node).disk.kept is not None:
        c.host(node).put_back(c.host(node).disk.kept)


@_word("snapshot {node} put back by {seconds}")
def _put_back_by(c: Cluster, node: str, seconds: str) -> None:
    """A backup of the state directory, so many seconds old, is there again; the agent starts anew."""
    disk = c.host(node).disk
    content = disk.at(c.engine.now - float(seconds))
    if content != disk.content:
        c.host(node).put_back(content)


@_word("join {node}")
def _join(c: Cluster, node: str) -> None:
    """`agentd join --force` on the host: a new key, which is to be added."""
    c.host(node).join()
    c.know_key(c.host(node))


@_word("add {node}")
def _add(c: Cluster, node: str) -> None:
    """`node add`, with the key that the host has now."""
    c.know_key(c.host(node))
    c.operator.request(f"add {node}", m.NodeAdd, name=node, public_key=c.host(node).key)


# --- the server -------------------------------------------------------------------------------------------------------


@_word("copy database")
def _copy(c: Cluster) -> None:
    """The server's database is copied by `cp`."""
    c.server.copy_database()


@_word("put back database")
def _put_back_database(c: Cluster) -> None:
    """The newest copy stands in its place; the server starts anew, and nobody tells it."""
    c.server.put_back_database()


@_word("put back server")
def _put_back_server(c: Cluster) -> None:
    """As `put back database`, but its whole directory, or its machine, is as it was at the newest copy."""
    c.server.put_back_directory()


@_word("snapshot server")
def _freeze(c: Cluster) -> None:
    """The server's virtual machine is snapshotted, with its memory."""
    c.server.freeze()


@_word("revert server")
def _revert(c: Cluster) -> None:
    """It is reverted to that: its process goes on as it was then, with the old database; connections break."""
    c.server.revert()


@_word("restore on a new machine")
def _restore_anew(c: Cluster) -> None:
    """`chimed restore` of the newest backup where no database is: the one that was there is lost."""
    c.server.restore(present=False)


@_word("init chimed")
def _init(c: Cluster) -> None:
    """`chimed init` with the old key: the database is lost, nodes and VMs are not known. Follow it with `add`. What was
    noted beside the database is still there."""
    c.server.init()


@_word("init chimed on a new machine")
def _init_anew(c: Cluster) -> None:
    """As `init chimed`, where no database was before."""
    c.server.init(present=False)


# --- two servers ------------------------------------------------------------------------------------------------------


@_word("second server copies")
def _second_copies(c: Cluster) -> None:
    """Another machine, `second`, runs chimed with the same key and a copy of the database as it is now."""
    second = c.begin_second_server()
    if second is not None:
        database.put(second.disk, database.copied(c.server.disk, c.engine.now))
        second.start()


@_word("second server restores")
def _second_restores(c: Cluster) -> None:
    """Another machine, `second`, runs chimed after `chimed restore` of the newest backup; the first one goes on."""
    if not c.server.backups:
        return
    second = c.begin_second_server()
    if second is not None:
        second.backups = c.server.backups
        second.restore(present=False)


@_word("flip {node} to {server}")
def _flip(c: Cluster, node: str, server: str) -> None:
    """The host (or `op`, the operator) connects to `second` or `chimed` from now on; its connection breaks."""
    if server in c.servers:
        c.network.flip(node, server)


@_word("stop server {server}")
def _stop_one(c: Cluster, server: str) -> None:
    """One of two ends and is not started again."""
    if server in c.servers:
        c.servers[server].wanted = False
        c.servers[server].kill()


@_word("start server {server}")
def _start_one(c: Cluster, server: str) -> None:
    """It is started."""
    if server in c.servers:
        c.servers[server].wanted = True
        c.servers[server].start()


@_word("keep server {server}")
def _keep_server(c: Cluster, server: str) -> None:
    """When the faults stop (`faults stop`) this one goes on, and the other is stopped for good."""
    if server not in ("chimed", "second"):
        raise Usage("the servers are: chimed, second")
    if server in c.servers:
        c.keeps = server
