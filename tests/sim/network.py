"""The network between the server (or two of them) and everybody else, at its worst.

A client has a socket, as a DEALER is one: what is sent while there is no connection waits in it and is delivered later,
old as it is, over the next connection. A connection keeps the order of its frames unless the path is noisy; a cut holds
frames back, in either direction, and when it heals they arrive late, or the connection breaks and some are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tests.sim.engine import Engine

SERVER = "chimed"  # the name of the first one
QUEUE = 64  # frames that wait in a socket; more are dropped, as at a high-water mark
LATENCY_S = (0.0003, 0.003)
RECONNECT_S = (0.05, 2.0)


class Server(Protocol):
    """Who receives what clients send."""

    def incoming(self, route: bytes, key: str, frame: bytes) -> None:
        """A frame came."""


class Path:
    """The way between one host and the server: which directions are cut, and how bad it is. `server`: which one its
    connections go to."""

    def __init__(self) -> None:
        self.server = SERVER
        self.up = self.down = self.ping = True
        self.loss = self.duplicates = self.reorders = self.delay_s = 0.0
        self.held: list[tuple[bool, bytes, bytes]] = []  # (to the server, route, frame)

    @property
    def whole(self) -> bool:
        """Both directions work."""
        return self.up and self.down

    @property
    def noisy(self) -> bool:
        """Frames are lost, doubled, delayed or swapped."""
        return bool(self.loss or self.duplicates or self.reorders or self.delay_s)


class Socket:
    """One client socket. `route`: its connection as the server sees it, or None; `server`: with which it is."""

    def __init__(self, host: str, key: str, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self.host, self.key, self.on_frame, self.on_lost = host, key, on_frame, on_lost
        self.route: bytes | None = None
        self.server = ""
        self.waiting: list[bytes] = []
        self.closed = False
        self.last_up = self.last_down = 0.0


class Network:
    """All paths and connections. `servers`: those that listen. `without_data`: hosts that are cut off from the network
    between the hosts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.paths: dict[str, Path] = {}
        self.servers: dict[str, Server] = {}
        self._routes: dict[bytes, Socket] = {}
        self._closed: dict[bytes, Socket] = {}
        self._unconnected: list[Socket] = []
        self._next_route = 0
        self.without_data: set[str] = set()

    def carries_data(self, one: str, other: str) -> bool:
        """Whether the network over which VMs are migrated connects these hosts."""
        return not {one, other} & self.without_data

    def path(self, host: str) -> Path:
        """The way between `host` and the server."""
        return self.paths.setdefault(host, Path())

    # --- sockets ------------------------------------------------------------------------------------------------------

    def open(self, host: str, key: str, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> Socket:
        """A new socket, which connects as soon as it can."""
        socket = Socket(host, key, on_frame, on_lost)
        self._try_later(socket, 0.001)
        return socket

    def close(self, socket: Socket, silently: bool = False) -> None:
        """The socket goes, with everything that waits in it; what has left it arrives. `silently`: the server does not
        hear of it (power)."""
        socket.closed = True
        socket.waiting.clear()
        if socket.route is not None and not silently:
            self._routes.pop(socket.route, None)
            self._closed[socket.route] = socket

    def _try_later(self, socket: Socket, delay_s: float) -> None:
        self._engine.after(delay_s, self._connect, socket)

    def _connect(self, socket: Socket) -> None:
        if socket.closed or socket.route is not None:
            return
        path = self.path(socket.host)
        if path.server not in self.servers or not path.whole:
            if socket not in self._unconnected:
                self._unconnected.append(socket)
            return
        self._next_route += 1
        socket.server = path.server
        socket.route = b"r%d" % self._next_route
        self._routes[socket.route] = socket
        waiting, socket.waiting = socket.waiting, []
        for frame in waiting:
            self.send_up(socket, frame)

    def _reconnect_all(self) -> None:
        sockets, self._unconnected = self._unconnected, []
        for socket in sockets:
            self._try_later(socket, self._engine.rng.uniform(*RECONNECT_S))

    def _break(self, socket: Socket) -> None:
        """The connection is gone; the client finds out."""
        if socket.route is not None:
            self._routes.pop(socket.route, None)
            socket.route = None
        if not socket.closed:
            self._engine.after(self._engine.rng.uniform(0.001, 0.1), self._lost, socket)
            self._try_later(socket, self._engine.rng.uniform(*RECONNECT_S))

    def _lost(self, socket: Socket) -> None:
        if not socket.closed:
            socket.on_lost()

    # --- frames -------------------------------------------------------------------------------------------------------

    def send_up(self, socket: Socket, frame: bytes) -> None:
        """To the server."""
        if socket.route is not None:
            self._carry(True, socket, socket.route, frame)
        elif len(socket.waiting) < QUEUE:
            socket.waiting.append(frame)

    def send_down(self, route: bytes, frame: bytes) -> bool:
        """To a client. False: there is no such connection."""
        socket = self._routes.get(route)
        if socket is None:
            return False
        self._carry(False, socket, route, frame)
        return True

    def _carry(self, up: bool, socket: Socket, route: bytes, frame: bytes) -> None:
        path, rng = self.path(socket.host), self._engine.rng
        copies, delay_s = 1, rng.uniform(*LATENCY_S) + self._engine.delays.tail()
        if path.noisy:
            copies = 0 if rng.random() < path.loss else 2 if rng.random() < path.duplicates else 1
            delay_s += rng.uniform(0.0, path.delay_s)
        for _ in range(copies):
            arrival = self._engine.now + delay_s
            if not path.noisy or rng.random() >= path.reorders:
                arrival = max(arrival, socket.last_up if up else socket.last_down)
                if up:
                    socket.last_up = arrival
                else:
                    socket.last_down = arrival
            else:
                arrival += rng.uniform(0.0, 5.0)
            self._engine.at(arrival, self._arrive, up, socket, route, frame)

    def _arrive(self, up: bool, socket: Socket, route: bytes, frame: bytes) -> None:
        if self._routes.get(route) is not socket and not (up and self._closed.get(route) is socket):
            return  # of a connection that is gone
        path = self.path(socket.host)
        if not (path.up if up else path.down):
            path.held.append((up, route, frame))
        elif up and socket.server in self.servers:
            self.servers[socket.server].incoming(route, socket.key, frame)
        elif not up and not socket.closed:
            socket.on_frame(frame)

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self, host: str, up: bool = True, down: bool = True) -> None:
        """Nothing passes in these directions any more."""
        path = self.path(host)
        path.up, path.down = path.up and not up, path.down and not down

    def heal(self, host: str) -> None:
        """Everything passes again. The connection has survived, with what it held, or not."""
        path = self.path(host)
        path.up = path.down = True
        held, path.held = path.held, []
        broken = self._engine.rng.random() < 0.5
        for socket in [s for s in self._routes.values() if s.host == host] if broken else []:
            mine = [frame for up, route, frame in held if up and self._routes.get(route) is socket]
            self._break(socket)
            socket.waiting += [frame for frame in mine if self._engine.rng.random() < 0.5]
        late_s = self._engine.rng.uniform(0.0, 0.5)
        for up, route, frame in held:
            if route in self._routes:
                self._engine.after(late_s, self._arrive, up, self._routes[route], route, frame)
        self._reconnect_all()

    def drop(self, host: str) -> None:
        """The connections of the host break (a firewall forgot them)."""
        for socket in [s for s in self._routes.values() if s.host == host]:
            self._break(socket)

    def flip(self, host: str, server: str) -> None:
        """What the host connects to is another server from now on (a name, or an address that moved)."""
        path = self.path(host)
        if path.server != server:
            path.server = server
            path.held.clear()
            self.drop(host)
            self._reconnect_all()

    def server_up(self, server: Server, name: str = SERVER) -> None:
        """The server listens."""
        self.servers[name] = server
        self._reconnect_all()

    def server_down(self, name: str = SERVER) -> None:
        """The server's process is gone, and with it all its connections."""
        self.servers.pop(name, None)
        for path in self.paths.values():
            path.held = [held for held in path.held if self._server_of(held[1]) not in ("", name)]
        for socket in [s for s in self._routes.values() if s.server == name]:
            self._break(socket)
        self._closed = {route: socket for route, socket in self._closed.items() if socket.server != name}

    def _server_of(self, route: bytes) -> str:
        socket = self._routes.get(route) or self._closed.get(route)
        return socket.server if socket is not None else ""

    def pings(self, host: str) -> bool:
        """Whether a ping would come back from a host that is up."""
        path = self.path(host)
        return path.whole and path.ping
