"""The story of one connection, from top to bottom.

    accepted → [PROXY header] → ClientHello → decision → server → PROXY header and hello in one write → relay → closed

Each step is a method, in this order; `Peer` moves the bytes once both ends stand. Every way out goes through
`_finish`, exactly once, with one outcome.
"""

from __future__ import annotations

import select
import time
from errno import EAGAIN, EINPROGRESS, EMFILE, ENFILE, ENOBUFS, ENOMEM
from socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SO_ERROR, SO_LINGER, SOL_SOCKET, SocketType
from struct import pack
from typing import TYPE_CHECKING

from sniproxy.errors import BadProxyHeader, HelloTooLarge, MalformedHello, NotTls
from sniproxy.model import Outcome, ProxyProtocol
from sniproxy.relay.backend import NONBLOCKING_STREAM, connect_error
from sniproxy.relay.listener import plain_endpoint, set_tcp_options
from sniproxy.relay.peer import READS_PER_TURN, Peer
from sniproxy.wire.alert import fatal_alert
from sniproxy.wire.client_hello import HelloReader, read_whole
from sniproxy.wire.proxy_header import decode, encode_v1, encode_v2
from sniproxy.wire.tls import AlertDescription

if TYPE_CHECKING:
    from collections.abc import Callable

    from sniproxy.policy.routing import Decision
    from sniproxy.relay.backend import Backend, Server
    from sniproxy.relay.engine import Engine
    from sniproxy.relay.listener import Listener
    from sniproxy.wire.client_hello import ClientHello
    from sniproxy.wire.proxy_header import Endpoint

INSPECT_BYTES = 16 * 1024
"""Bytes read at once before there is a server to take them: what is kept of each client while none answers. Nearly
all first flights are shorter; of the others the kernel keeps the rest."""

LINGER_SECONDS = 1.0
"""How long a refused TLS client may take to read its alert. Closing at once, with bytes of it unread, would make the
kernel send a reset that overtakes the alert (RFC 1122 section 4.2.2.13)."""

DESCRIPTOR_SECONDS = 1.0
"""How long a client waits for a descriptor with which to dial its server: twice as long as accepting rests."""

CHALLENGE_SECONDS = 5.0
"""For a validation, from the decision to the end, whatever it sends: no idle timeout ends who never stops (Traefik,
CVE-2026-22045). The responder takes three at the most; Let's Encrypt's validators give up after ten."""

_SEND = MSG_DONTWAIT | MSG_NOSIGNAL
# On Python 3.11 a member of an enum costs a function call each time it is asked for.
_RELAYED, _CHALLENGE = Outcome.RELAYED, Outcome.CHALLENGE
_OFF, _V1 = ProxyProtocol.OFF, ProxyProtocol.V1
_CLOSING = select.EPOLLRDHUP | select.EPOLLHUP
_RESET_ON_CLOSE = pack("ii", 1, 0)
_UNKNOWN: Endpoint = ("unix", 0)
_TOO_MANY = "more connections than one client may have"


class Connection:
    """One accepted connection. The engine makes it with the client's socket; it closes both sockets itself.

    deadline, slot: the wheel's. touched: when bytes last moved. over: closed, whatever may still be announced.
    The public names at the end are what its log line tells (model.ClosedConnection).
    """

    __slots__ = (
        "_backend",
        "_busy_until",
        "_connected_at",
        "_decision",
        "_expire",
        "_first",
        "_head",
        "_inspected_at",
        "_local",
        "_number",
        "_reader",
        "_remote",
        "_round",
        "_server",
        "_started",
        "_tried",
        "_waited",
        "accepted_at",
        "address",
        "admitted",
        "alpn",
        "client",
        "deadline",
        "engine",
        "listener",
        "outcome",
        "over",
        "reason",
        "server",
        "slot",
        "sni",
        "termination",
        "touched",
        "unread",
    )

    # ------------------------------------------------------------------ accepted

    def __init__(self, engine: Engine, sock: SocketType, remote: Endpoint | None, listener: Listener) -> None:
        self.engine = engine
        self.client = Peer(self, sock)
        self.server: Peer | None = None
        self.address = remote or _UNKNOWN
        self.accepted_at = time.time()
        self.touched = self._started = engine.now
        self.deadline = 0.0
        self.slot = 0
        self.admitted = self.over = False
        self.unread = False  # bytes of the client may be there that the kernel will not announce again
        self.sni: str | None = None
        self.alpn: tuple[bytes, ...] = ()
        self.outcome = _RELAYED
        self.termination = "--"
        self.reason = ""
        self._number = engine.statistics.accepted
        self.listener = listener
        self._remote = remote
        self._local = listener.local
        self._head: bytes | None = None  # the PROXY header that is still to come, as far as it is here
        self._reader: HelloReader | None = None
        self._decision: Decision | None = None
        self._first = b""  # all that the server gets first
        self._backend: Backend | None = None
        self._server: Server | None = None
        self._tried: tuple[Server, ...] = ()
        self._round = 0
        self._busy_until = 0.0  # nothing is wrong that waiting until then could not cure
        self._waited = False  # and was asked again: its failures are counted already
        self._inspected_at = self._connected_at = 0.0

    def start(self) -> None:
        """Begins to inspect."""
        engine = self.engine
        if self._remote is not None and engine.proxied_from(self._remote[0]):
            self._head = b""
        elif not self._admit():
            return
        self._wait(engine.settings.inspect_delay, self._on_inspect_timeout)
        engine.watch(self.client, self._on_client_bytes)

    def _admit(self) -> bool:
        """Counts the client against its limits; False when the connection is over for that.

        One too many that may be a validation is heard, and not counted.
        """
        admission = self.engine.admission
        if admission.limits and self._remote is not None:
            self.admitted = admission.admit(self.address[0], self.engine.now)
            if not (self.admitted or self.engine.tolerate(self)):
                self._finish(Outcome.LIMITED, "PR", _TOO_MANY)
        return not self.over

    # ------------------------------------------------------------------ inspect

    def _on_client_bytes(self, events: int) -> None:
        engine, client = self.engine, self.client
        client.finishing = bool(events & _CLOSING)
        while True:
            try:
                count = client.sock.recv_into(engine.buffer, INSPECT_BYTES, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._finish(Outcome.CLIENT_LEFT, "CR", "the client left before its hello was complete")
                return
            self.unread = client.finishing or count == INSPECT_BYTES
            if self._take(bytes(engine.view[:count])) or not self.unread:
                return

    def _take(self, data: bytes) -> bool:
        """The next bytes of the client; True when they settle what becomes of it."""
        try:
            if self._head is not None:
                data = self._behind_proxy_header(self._head + data)
            return self.over or bool(data and self._inspect(data))
        except BadProxyHeader as error:
            self._finish(Outcome.BAD_PROXY_HEADER, "PR", str(error))
        except NotTls as error:
            self.reason = str(error)
            self._decided(self.engine.router.not_tls(), bytes(self._reader.raw) if self._reader else data)
        except MalformedHello as error:
            self._refuse(Outcome.MALFORMED, error.alert, str(error))
        except HelloTooLarge as error:
            self._refuse(Outcome.TOO_LARGE, error.alert, str(error))
        return True

    def _behind_proxy_header(self, head: bytes) -> bytes:
        """What follows the PROXY header; empty while that is incomplete or nothing follows yet."""
        decoded = decode(head)
        if decoded is None:
            self._head = head
            return b""
        self._head = None
        header, length = decoded
        if header.source is not None and header.destination is not None:
            self._remote, self._local = header.source, header.destination
            self.address = header.source
        self._admit()
        return head[length:]

    def _inspect(self, data: bytes) -> bool:
        """Looks for the hello; True when it is complete and decided upon."""
        cap = self.engine.settings.max_hello
        if self._reader is None:
            hello = read_whole(data, cap)
            if hello is not None:
                self._decided_by(hello, data)
                return True
            self._reader = HelloReader(cap)
        hello = self._reader.feed(data)
        if hello is None:
            return False
        self._decided_by(hello, bytes(self._reader.raw))
        return True

    def _on_inspect_timeout(self) -> None:
        self._finish(Outcome.INSPECT_TIMEOUT, "cR", "no complete hello within inspect_delay")

    # ------------------------------------------------------------------ decide

    def _decided_by(self, hello: ClientHello, raw: bytes) -> None:
        self.sni = hello.server_name
        self.alpn = hello.alpn
        self._decided(self.engine.router.tls(hello.host_name, hello.alpn, self.address[0]), raw)

    def _decided(self, decision: Decision, raw: bytes) -> None:
        engine = self.engine
        if engine.tolerated and decision.outcome is not _CHALLENGE and self in engine.tolerated:
            self._finish(Outcome.LIMITED, "PR", _TOO_MANY)
            return
        self._reader = None
        self._decision = decision
        self._inspected_at = engine.now
        engine.statistics.inspect.observe(engine.now - self._started)
        if decision.backend is None:
            self._refuse(decision.outcome, decision.alert, self.reason or decision.reason)
            return
        self._backend = engine.backends[decision.backend]
        self._first = self._proxy_header(self._backend) + raw
        self.client.received = len(raw)
        self._dial()

    def _proxy_header(self, backend: Backend) -> bytes:
        if backend.proxy_protocol is _OFF:
            return b""
        remote, local = self._remote, self._local
        if local is None and remote is not None:
            try:
                local = plain_endpoint(self.client.sock.getsockname())
            except OSError:
                remote = None  # the client is gone, which its own event tells
        if backend.proxy_protocol is _V1:
            return encode_v1(remote, local)
        alpn = self.alpn[0] if self.alpn else None
        return encode_v2(remote, local, authority=self.sni, alpn=alpn, unique_id=self.unique_id.encode("ascii"))

    # ------------------------------------------------------------------ dial

    def _dial(self) -> None:
        """Tries the servers of the backend until one takes the connection or none is left."""
        backend = self._backend
        assert backend is not None
        while True:
            if self._dial_each(backend):
                return
            self._round += 1
            if self._round >= backend.rounds:
                break
            self._tried = ()
        if self._busy_until > self.engine.now:
            # Nothing will tell when a backlog is no longer full, or a descriptor free: ask again, one tick later.
            self._busy_until, self._waited, self._tried, self._round = 0.0, True, (), 0
            self.engine.watch_again(self.client, self._on_client_while_connecting)
            self._wait(0.0, self._dial)
            return
        # A client that is not TLS, which has its reason by now, could make nothing of an alert.
        alert = None if self.reason else AlertDescription.INTERNAL_ERROR
        self._refuse(Outcome.BACKEND_UNREACHABLE, alert, f"no server of {backend.name} took the connection", "SC")

    def _dial_each(self, backend: Backend) -> bool:
        """Tries the servers that have not been tried; False when all of them have failed already."""
        while (server := backend.balancer.choose(self.address[0], self._tried)) is not None:
            self._tried += (server,)
            if self._connect(server, shares=len(backend.servers) - len(self._tried) + 1):
                return True
        return False

    def _connect(self, server: Server, shares: int) -> bool:
        """Begins to connect to a server; False when that has failed already.

        It may take one of `shares` equal parts of the time left: a server that never answers leaves some to others.
        """
        if server.socket_address is None:
            server.failed("unresolved")
            return False
        try:
            sock = SocketType(server.family, NONBLOCKING_STREAM)
        except OSError as error:
            if not self._waited:
                server.failed(connect_error(error.errno or 0))
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                # Not the server's fault, and it passes. But not for long: this client has one that others need.
                self._busy_until = self._inspected_at + DESCRIPTOR_SECONDS
                self.engine.pause_for_descriptors(error)
            return False
        server.active += 1
        self._server = server
        self.server = Peer(self, sock)
        try:
            if server.family != AF_UNIX:
                set_tcp_options(sock)
            status = sock.connect_ex(server.socket_address)
        except OSError as error:
            status = error.errno or 0
        if status == 0 or (status == EINPROGRESS and server.near and _is_connected(sock)):
            self._connected()
            return True
        if status == EINPROGRESS:
            self._wait(self._connect_seconds_left() / shares, self._on_connect_timeout)
            self.engine.watch_again(self.client, self._on_client_while_connecting)
            self.server.announced = True
            self.engine.watch(self.server, self._on_connect_event, writable=True)
            return True
        if status == EAGAIN and server.family == AF_UNIX:
            self._busy_until = self.engine.now + self._connect_seconds_left()  # its backlog is full
        self._drop_server(connect_error(status))
        return False

    def _connect_seconds_left(self) -> float:
        limit = self.engine.settings.connect_timeout
        if self._expected() is _CHALLENGE:
            limit = min(limit, CHALLENGE_SECONDS - LINGER_SECONDS)
        return max(self._inspected_at + limit - self.engine.now, 0.0)

    def _on_connect_event(self, events: int) -> None:
        server = self.server
        assert server is not None
        status = server.sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if status:
            self._connect_failed(connect_error(status))
            return
        self._connected()
        if not server.over:
            server.on_event(events)  # a server that speaks first may have done so already

    def _on_connect_timeout(self) -> None:
        self._connect_failed("timeout")

    def _connect_failed(self, error: str) -> None:
        self._drop_server(error)
        self._dial()

    def _drop_server(self, error: str = "") -> None:
        server, peer = self._server, self.server
        assert server is not None
        assert peer is not None
        if error and not self._waited:
            server.failed(error)
        server.active -= 1
        self._server = None
        peer.over = True  # whatever the turn still holds for it
        peer.release(self.engine)
        self.engine.forget(peer)
        self.server = None

    def _on_client_while_connecting(self, events: int) -> None:
        """Nothing is read from the client now; only a reset counts."""
        self.unread = True
        if events & _CLOSING:
            self.client.finishing = True
        if events & select.EPOLLERR:
            self._finish(Outcome.CLIENT_LEFT, "CC", "the client was reset before a server had taken it")

    # ------------------------------------------------------------------ relay

    def _connected(self) -> None:
        """PROXY header and all that the client has sent go out in one write; from then on it is a relay."""
        engine, client, server, decision = self.engine, self.client, self.server, self._decision
        assert server is not None
        assert self._server is not None
        assert decision is not None
        try:
            sent = server.sock.send(self._first, _SEND)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._connect_failed(connect_error(error.errno or 0))
            return
        rest, self._first = self._first[sent:], b""
        self._server.connections += 1
        # Not engine.now: a connect that succeeds at once, over a unix socket, would seem to take no time at all.
        self.touched = self._connected_at = time.monotonic()
        engine.statistics.connect.observe(self._connected_at - self._inspected_at)
        client.other, server.other = server, client
        if decision.outcome is _CHALLENGE:
            self._wait(self._inspected_at + CHALLENGE_SECONDS - engine.now, self._on_idle)
        else:
            self._wait(engine.settings.idle_timeout, self._on_idle)
        engine.watch_again(client, client.on_event)
        if server.announced:
            engine.watch_again(server, server.on_event)
        else:
            engine.watch(server, server.on_event)
        if rest:
            server.hold(rest, engine)
        if self.unread:
            client.pump()

    def on_half_closed(self) -> None:
        """One side has sent its last byte: from now on the shorter of the two idle timeouts counts."""
        decision = self._decision
        if not (self.over or (decision is not None and decision.outcome is _CHALLENGE)):
            self._wait(self.engine.settings.half_close_timeout, self._on_idle)

    def on_shut(self) -> None:
        """One side has been told that nothing more comes. When both have, it is over."""
        client, server = self.client, self.server
        if server is None or not (client.ended and server.ended):
            return
        if client.waiting is None and server.waiting is None:
            self._finish(self._expected(), "--")

    def on_reset(self, peer: Peer) -> None:
        """One side was reset: so is the other. SO_LINGER 0, because close alone would look like a proper end."""
        other = self.server if peer is self.client else self.client
        if other is not None:
            _reset_on_close(other.sock)
        self._finish(self._expected(), "CD" if peer is self.client else "SD", "reset")

    def on_gone(self) -> None:
        """The server was reset behind its end. So is the client, as soon as it has the server's last words."""
        server = self.server
        assert server is not None
        if self.client.has_everything():
            self.on_reset(server)
        elif self._idle_at(self.engine.settings.half_close_timeout) > self.engine.now:
            self._wait(0.0, self.on_gone)
        else:
            self._on_idle()

    def _on_idle(self) -> None:
        server = self.server
        half_closed = self.client.ended or (server is not None and server.ended)
        settings = self.engine.settings
        idle_at = self._idle_at(settings.half_close_timeout if half_closed else settings.idle_timeout)
        if idle_at > self.engine.now:
            self._wait(idle_at - self.engine.now, self._on_idle)
            return
        if self._expected() is _CHALLENGE:
            self._finish(_CHALLENGE, "cD", f"a validation that did not end within {CHALLENGE_SECONDS:g} s")
            return
        # Bytes that wait for the server make it the one that does not answer.
        stuck = server is not None and server.waiting is not None
        self._finish(self._expected(), "sD" if stuck else "cD", "idle")

    def _idle_at(self, limit: float) -> float:
        """When it has been idle for too long if nothing moves any more; for a validation, whatever moves."""
        if self._expected() is _CHALLENGE:
            return self._inspected_at + CHALLENGE_SECONDS
        return self.touched + limit

    def _expected(self) -> Outcome:
        return self._decision.outcome if self._decision is not None else _RELAYED

    # ------------------------------------------------------------------ refuse

    def _refuse(self, outcome: Outcome, alert: int | None, reason: str, termination: str = "PR") -> None:
        """Tells a TLS client why and lets it read that; others are closed at once."""
        self.outcome, self.termination, self.reason = outcome, termination, reason
        if alert is None:
            self._refused()
            return
        try:
            self.client.sock.send(fatal_alert(alert), _SEND)
            self.client.sock.shutdown(SHUT_WR)
        except OSError:
            self._refused()
            return
        self._wait(LINGER_SECONDS, self._refused)
        self.engine.watch_again(self.client, self._on_lingering)
        self._on_lingering(0)

    def _on_lingering(self, _events: int) -> None:
        """What a refused client still sends is thrown away, until it closes."""
        try:
            for _ in range(READS_PER_TURN):
                if not self.client.sock.recv_into(self.engine.buffer, 0, MSG_DONTWAIT):
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        # Closed, or sending so much that it will not listen either.
        self._refused()

    def _refused(self) -> None:
        self._finish(self.outcome, self.termination, self.reason)

    # ------------------------------------------------------------------ closed

    def expire(self) -> None:
        """The deadline has passed."""
        if not self.over:
            self._expire()

    def fail(self) -> None:
        """A bug showed while this connection was served: it ends, and no other does."""
        self._finish(Outcome.INTERNAL_ERROR, "ID" if self._connected_at else "IR", "a bug in sniproxy")

    def cut(self) -> None:
        """The program stops and cannot wait for this connection any longer."""
        for peer in (self.client, self.server):
            if peer is not None:
                _reset_on_close(peer.sock)
        if self.outcome is not Outcome.RELAYED:
            self._refused()
            return
        outcome = self._expected() if self._connected_at else Outcome.CLIENT_LEFT
        self._finish(outcome, "KD", "cut when the program stopped")

    def _wait(self, seconds: float, expire: Callable[[], None]) -> None:
        """From now on this is the one deadline of the connection."""
        self._expire = expire
        self.engine.wheel.schedule(self, self.engine.now + seconds)

    def _finish(self, outcome: Outcome, termination: str, reason: str = "") -> None:
        if self.over:
            return
        self.over = True
        self.outcome, self.termination = outcome, termination
        self.reason = reason or (self._decision.reason if self._decision is not None else "")
        engine, client, server = self.engine, self.client, self.server
        engine.closed(self)
        engine.forget(client)
        client.release(engine)
        if server is not None:
            engine.forget(server)
            server.release(engine)
            self.server = None
        if self._server is not None:
            self._server.active -= 1
        # Objects that point at each other would be left to the garbage collector.
        self._expire = _nothing
        client.part()
        if server is not None:
            server.part()

    # ------------------------------------------------------------------ for the log

    @property
    def unique_id(self) -> str:
        """Unique among all connections of all starts: what HAProxy reads as `fc_pp_unique_id`."""
        return f"{self.engine.id_prefix}{self._number:08x}"

    @property
    def frontend(self) -> str:
        """The listener's address as configured."""
        return self.listener.name

    @property
    def backend_label(self) -> str:
        """The backend's name, empty where none was chosen."""
        return self._backend.name if self._backend is not None else ""

    @property
    def server_label(self) -> str:
        """The server's address as configured, or the last one tried; empty where none was."""
        if self._server is not None:
            return self._server.label
        return self._tried[-1].label if self._tried else ""

    @property
    def inspect_seconds(self) -> float | None:
        """From accept to the decision."""
        return self._inspected_at - self._started if self._inspected_at else None

    @property
    def connect_seconds(self) -> float | None:
        """From the decision to the first byte to the server."""
        return self._connected_at - self._inspected_at if self._connected_at else None

    @property
    def total_seconds(self) -> float:
        """From accept until now."""
        return self.engine.now - self._started

    @property
    def received(self) -> int:
        """Bytes from the client, without its PROXY header."""
        return self.client.received

    @property
    def sent(self) -> int:
        """Bytes from the server to the client."""
        return self.server.received if self.server is not None else 0

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Connections of the process, listener, backend, server; retries (HAProxy's %ac/%fc/%bc/%sc/%rc)."""
        return (
            len(self.engine.live),
            self.listener.active,
            self._backend.active if self._backend is not None else 0,
            self._server.active if self._server is not None else 0,
            max(len(self._tried) - 1, 0),
        )


def _is_connected(sock: SocketType) -> bool:
    """Whether a connect that is "in progress" has succeeded meanwhile.

    On loopback it has, nearly always: the answer came while the kernel still held the socket. Seeing that at once saves
    a wake-up, 10 µs of 130.
    """
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _nothing() -> None:
    """What expires when nothing can any more."""


def _reset_on_close(sock: SocketType) -> None:
    try:
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass  # gone already
