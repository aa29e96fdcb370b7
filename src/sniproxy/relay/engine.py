"""Polls, dispatches, accepts: an epoll of its own that the event loop watches as one descriptor.

When something is ready the loop calls `wake`, which asks this epoll for everything that is ready and calls plain
methods, one a socket. Sockets are registered edge-triggered, once, and once more if they ever fill up; the kernel drops
them when they are closed.
"""

from __future__ import annotations

import asyncio
import errno
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from socket import SOCK_STREAM, SocketType
from typing import TYPE_CHECKING

from sniproxy.model import ClosedConnection, RelaySnapshot
from sniproxy.policy.admission import Admission
from sniproxy.policy.routing import Networks, Router
from sniproxy.relay.connection import Connection
from sniproxy.relay.deadlines import TICK_SECONDS, Wheel
from sniproxy.relay.listener import Listener, plain_endpoint
from sniproxy.relay.statistics import Statistics

if TYPE_CHECKING:
    from sniproxy.relay.backend import Backend
    from sniproxy.relay.peer import Peer

_STREAM = int(SOCK_STREAM)
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_EVERYTHING = _READABLE | select.EPOLLOUT

EVENTS_PER_WAKE = 256
"""Events taken from the kernel at once: others in the event loop get their turn after a few milliseconds."""

ACCEPTS_PER_WAKE = 32
"""Connections accepted at once at the most, so that a flood of new ones does not hold up those that are established."""

TURNS_UNTIL_MORE = 8
"""Turns that found a connection before two are accepted in one, then four: a flood gets there in a millisecond."""

BUFFER_BYTES = 128 * 1024
"""Bytes read at once while memory is plenty. Half of what one stalled reader may cost."""

MAX_TOLERATED = 64
"""Connections over their client's limit that are heard all the same, at once: as many as a CA's validators open, and
few enough that a client gains nothing by it."""

PAUSE_SECONDS = 0.5
"""How long accepting rests when the kernel is out of descriptors or memory: long enough not to spin, short enough that
nobody's SYN is repeated more than once."""

# Of one connection only (accept(2): "treat them like EAGAIN").
_OF_ONE_CONNECTION = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.EINTR,
    )
)

Handler = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """What the data plane goes by. Times in seconds, sizes in bytes; the names are those of `[proxy]`."""

    inspect_delay: float = 5.0
    connect_timeout: float = 10.0
    idle_timeout: float = 600.0
    half_close_timeout: float = 30.0
    max_hello: int = 16384
    max_connections: int = 16384
    max_connections_per_client: int = 0
    max_connection_rate_per_client: int = 0
    accept_proxy_from: Networks = field(default_factory=lambda: Networks(()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """What the engine tells others.

    `closed` gets each connection that is over, `warning` a line for the operator, `bug` an exception that should not
    have been.
    """

    closed: Callable[[ClosedConnection], None]
    warning: Callable[[str], None]
    bug: Callable[[BaseException], None]


class Engine:
    """All connections of one process. Made and used within one event loop; `close` when done.

    validation_pending: whether a CA may connect now to validate a name. Nobody knows from where, so while it may, a
    client over its limit is heard, and refused only when its hello turns out to be no validation.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: RelaySettings,
        router: Router,
        backends: Iterable[Backend],
        reports: Reports,
        *,
        validation_pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.router = router
        self.backends = {backend.name: backend for backend in backends}
        self.admission = Admission(
            max_connections=settings.max_connections_per_client, max_rate=settings.max_connection_rate_per_client
        )
        self.statistics = Statistics()
        self.live: set[Connection] = set()
        self.tolerated: set[Connection] = set()  # those over their client's limit
        self.wheel: Wheel[Connection] = Wheel()
        self.now: float = time.monotonic()
        self.held = 0  # bytes read that nobody has taken yet, of all connections
        self.read_bytes = BUFFER_BYTES  # to read at once
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.id_prefix = f"{token_hex(6)}-"
        self._loop = loop
        self._reports = reports
        self._validation_pending = validation_pending
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()
        self._again: dict[Peer, None] = {}  # in their order, each once
        self._next: asyncio.Handle | None = None
        self._listeners: list[Listener] = []
        self._listening = False
        self._full = False
        self._pause: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._warned_at = -1.0
        self._empty: asyncio.Event | None = None
        loop.add_reader(self._epoll.fileno(), self.wake)

    # ------------------------------------------------------------------ what connections ask for

    def watch(self, peer: Peer, handler: Handler, *, writable: bool = False) -> None:
        """From now on `handler` is called with the epoll flags of whatever happens on the peer's socket.

        That it can be written to is announced when `writable` is asked for, or later by `await_writable`. Most sockets
        never fill up, and being told of each new one that it is empty is a wake-up for nothing.
        """
        self._handlers[peer.fd] = handler
        self._fresh.add(peer.fd)
        self._epoll.register(peer.fd, _EVERYTHING if writable else _READABLE)

    def await_writable(self, peer: Peer) -> None:
        """From now on, for good, it is also announced that the peer's socket can be written to: at once, if it can."""
        self._epoll.modify(peer.fd, _EVERYTHING)

    def watch_again(self, peer: Peer, handler: Handler) -> None:
        """Another handler for a socket that is being watched."""
        self._handlers[peer.fd] = handler

    def forget(self, peer: Peer) -> None:
        """Closes the peer's socket."""
        self._handlers.pop(peer.fd, None)
        peer.sock.close()

    def again(self, peer: Peer) -> None:
        """The peer has had its share of this turn, and there is more."""
        self._again[peer] = None

    def hold(self, count: int) -> None:
        """So many bytes more, or fewer, are kept for readers that do not take them.

        The more there are, the less is read at once: a thousand stalled readers stay below 100 MiB, and ten thousand
        below twice that.
        """
        self.held += count
        self.read_bytes = BUFFER_BYTES if self.held < 48 << 20 else 32 * 1024 if self.held < 72 << 20 else 8 * 1024

    def proxied_from(self, address: str) -> bool:
        """Whether this sender must send a PROXY header, and is believed."""
        networks = self.settings.accept_proxy_from
        return bool(networks) and address in networks

    def tolerate(self, connection: Connection) -> bool:
        """Whether a connection over its client's limit is heard, as it may be a validation."""
        if len(self.tolerated) >= MAX_TOLERATED or not self._validation_pending():
            return False
        self.tolerated.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """A connection is over: count it and tell of it, while its sockets are still there to be asked."""
        try:
            self._reports.closed(connection)
        except Exception as error:  # noqa: BLE001  a log line that cannot be written must not keep sockets open
            self._reports.bug(error)
        self.live.discard(connection)
        connection.listener.active -= 1
        self.wheel.discard(connection)
        if connection.admitted:
            self.admission.leave(connection.address[0])
        elif self.tolerated:
            self.tolerated.discard(connection)
        self.statistics.close(
            connection.outcome,
            connection.backend_label,
            connection.received,
            connection.sent,
            connection.total_seconds,
        )
        if self._full and len(self.live) < self.settings.max_connections:
            self._full = False
            self._resume_accepting()
        if not self.live and self._empty is not None:
            self._empty.set()

    # ------------------------------------------------------------------ the turn

    def wake(self) -> None:
        """One turn: those that had more to read last time, then everything that is ready."""
        self.now = time.monotonic()
        self._fresh.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        again, self._again = self._again, {}
        for peer in again:
            if not peer.over:
                self._guard(peer.pump)
        handlers, fresh = self._handlers, self._fresh
        for fd, events in self._epoll.poll(0, EVENTS_PER_WAKE):
            handler = handlers.get(fd)
            # A descriptor opened in this turn cannot have an event in it: that is one of its predecessor's.
            if handler is None or fd in fresh:
                continue
            try:
                handler(events)
            except Exception as error:  # noqa: BLE001
                self._bug(handler, error)
        if self._again:
            self._next = self._loop.call_soon(self.wake)
        if self._ticking is None and self.wheel:
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self.now = time.monotonic()
        self._fresh.clear()
        for connection in self.wheel.due(self.now):
            self._guard(connection.expire)
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick) if self.wheel else None
        if self._again and self._next is None:
            self._next = self._loop.call_soon(self.wake)

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001
            self._bug(step, error)

    def _bug(self, step: Callable[..., None], error: Exception) -> None:
        self._reports.bug(error)
        owner = getattr(step, "__self__", None)
        connection = owner if isinstance(owner, Connection) else getattr(owner, "connection", None)
        if connection is not None:
            connection.fail()

    # ------------------------------------------------------------------ accepting

    def listen(self, listeners: Iterable[Listener]) -> None:
        """Accepts from these too. The engine closes them in the end."""
        self._pause_accepting()
        self._listeners += listeners
        self._resume_accepting()

    def unlisten(self, listeners: Iterable[Listener]) -> None:
        """Closes these listeners; connections go on."""
        self._pause_accepting()
        for listener in listeners:
            self._listeners.remove(listener)
            listener.close()
        self._resume_accepting()

    def stop_listening(self) -> None:
        """Closes all listeners; connections go on."""
        self.unlisten(list(self._listeners))

    @property
    def listening(self) -> bool:
        """Whether there are listeners at all, paused or not."""
        return bool(self._listeners)

    def _resume_accepting(self) -> None:
        if self._listening or self._full or self._pause is not None:
            return
        self._listening = True
        for listener in self._listeners:
            self._handlers[listener.fd] = partial(self._accept, listener)
            self._epoll.register(listener.fd, select.EPOLLIN)

    def _pause_accepting(self) -> None:
        if self._listening:
            self._listening = False
            for listener in self._listeners:
                self._handlers.pop(listener.fd, None)
                self._epoll.unregister(listener.fd)

    def _accept(self, listener: Listener, _events: int) -> None:
        """Accepts one connection, or more at once when turn after turn has found one.

        To ask until there is none costs 5 µs of 100 each time: the kernel makes a socket before it looks. What is
        left is announced again in the next turn.
        """
        for _ in range(listener.at_once):
            if len(self.live) >= self.settings.max_connections:
                # The kernel's backlog holds those who come now; a connection that ends goes on with them.
                self._full = True
                self._pause_accepting()
                return
            try:
                fd, address = listener.accept()
            except BlockingIOError:
                listener.at_once, listener.in_a_row = 1, 0
                return
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                self.pause_for_descriptors(error)
                return
            self.statistics.accepted += 1
            sock = SocketType(listener.family, _STREAM, 0, fd)
            listener.active += 1
            connection = Connection(self, sock, plain_endpoint(address), listener)
            self.live.add(connection)
            self._guard(connection.start)
        listener.in_a_row += 1
        if listener.in_a_row > TURNS_UNTIL_MORE:
            listener.at_once = min(2 * listener.at_once, ACCEPTS_PER_WAKE)

    def pause_for_descriptors(self, error: OSError) -> None:
        """The kernel is out of descriptors or memory: accept nothing for a moment, and say so once a second at most."""
        self._pause_accepting()
        if self._pause is None:
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
        if self.now - self._warned_at >= 1.0:
            self._warned_at = self.now
            self._reports.warning(
                f"cannot open another connection: {error.strerror}; accepting rests for {PAUSE_SECONDS} s"
                f" ({len(self.live)} connections; raise LimitNOFILE or lower max_connections)"
            )

    def _resume(self) -> None:
        self._pause = None
        self._resume_accepting()

    # ------------------------------------------------------------------ from outside

    def reconfigure(self, settings: RelaySettings, router: Router, backends: Iterable[Backend]) -> None:
        """New connections go by these; those that are there keep the decision and the server they have."""
        limits = (settings.max_connections_per_client, settings.max_connection_rate_per_client)
        old = (self.settings.max_connections_per_client, self.settings.max_connection_rate_per_client)
        if limits != old:
            # Connections counted by the old table are not known to the new one.
            self.admission = Admission(max_connections=limits[0], max_rate=limits[1])
            for connection in self.live:
                connection.admitted = False
        self.settings = settings
        self.router = router
        self.backends = {backend.name: backend for backend in backends}
        if self._full and len(self.live) < settings.max_connections:
            self._full = False
            self._resume_accepting()

    def snapshot(self) -> RelaySnapshot:
        """All counters at this instant, live connections included."""
        statistics = self.statistics
        received, sent = dict(statistics.received), dict(statistics.sent)
        for connection in self.live:
            label = connection.backend_label
            if label:
                received[label] = received.get(label, 0) + connection.received
                sent[label] = sent.get(label, 0) + connection.sent
        return RelaySnapshot(
            accepted=statistics.accepted,
            active=len(self.live),
            outcomes=dict(statistics.outcomes),
            received=received,
            sent=sent,
            inspect=statistics.inspect.snapshot(),
            connect=statistics.connect.snapshot(),
            connection=statistics.connection.snapshot(),
            servers=tuple(server.snapshot() for backend in self.backends.values() for server in backend.servers),
        )

    async def drained(self) -> None:
        """Returns when there is no connection left. Whoever waits has stopped listening."""
        self._empty = asyncio.Event()
        if self.live:
            await self._empty.wait()

    def cut_all(self) -> int:
        """Ends every connection with a reset; returns how many there were."""
        self.now = time.monotonic()
        connections = list(self.live)
        for connection in connections:
            self._guard(connection.cut)
        return len(connections)

    def close(self) -> None:
        """Stops listening, cuts what is left and gives the epoll back."""
        self.stop_listening()
        self.cut_all()
        for timer in (self._pause, self._ticking, self._next):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
