"""An engine inside the test's own event loop, and both ends of every connection in the test's hands.

A test says step by step what the client does, what the server does and what either sees; nothing sleeps. `until`
waits for a condition that a turn of the engine brings about, and time passes only when the test says so.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sniproxy.relay.connection
import sniproxy.relay.engine
from sniproxy.model import Balance, Outcome, ProxyProtocol, TcpAddress, UnixAddress
from sniproxy.policy.routing import REJECT, RESPONDER, Router, RoutingRules
from sniproxy.relay.backend import Backend, BackendSettings, Server
from sniproxy.relay.engine import Engine, RelaySettings, Reports
from sniproxy.relay.listener import Listener, bind
from tests.support.hellos import hello

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from sniproxy.model import Address, ClosedConnection, RelaySnapshot
    from sniproxy.policy.routing import Route

NAME = "git.example.com"
HELLO = hello(NAME, b"h2", b"http/1.1")

UNTIL_SECONDS = 20.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def open_descriptors() -> dict[int, str]:
    """What each open descriptor is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            pass  # the one that listed them
    return found


async def descriptors_now() -> dict[int, str]:
    # While the loop runs: uvloop has a pair of sockets for signals then.
    return open_descriptors()


# ---------------------------------------------------------------------------------------------- ends of connections


class End:
    """One end of a connection, the test's own."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def send_what_fits(self, data: bytes) -> int:
        """Sends until the kernel takes no more; returns how much it took."""
        sent = 0
        try:
            while sent < len(data):
                sent += self.sock.send(memoryview(data)[sent:])
        except BlockingIOError:
            pass
        return sent

    async def receive(self, most: int = 1 << 16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, most)

    async def readable(self) -> None:
        """Waits until there is something to receive."""
        loop = asyncio.get_running_loop()
        something = asyncio.Event()
        loop.add_reader(self.sock, something.set)
        await something.wait()
        loop.remove_reader(self.sock)

    async def receive_exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = await self.receive(min(count - len(parts), 1 << 18))
            assert part, f"the stream ended after {len(parts)} bytes of {count}"
            parts += part
        return bytes(parts)

    async def receive_to_end(self) -> bytes:
        parts = bytearray()
        while part := await self.receive(1 << 18):
            parts += part
        return bytes(parts)

    async def sees_reset(self) -> bytes:
        """What comes before a reset, which must come."""
        parts = bytearray()
        try:
            while part := await self.receive(1 << 18):
                parts += part
        except ConnectionResetError:
            return bytes(parts)
        raise AssertionError(f"an orderly end, not a reset, after {len(parts)} bytes")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Ends with a RST. (A unix socket knows it only where bytes are left unread.)"""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()


class ScriptedServer:
    """A listening socket whose connections the test accepts and plays itself."""

    def __init__(self, relay: Relay, listening: socket.socket, address: Address) -> None:
        self.relay = relay
        self.address = address
        self.sock = listening
        self.fillers: list[socket.socket] = []

    async def accept(self) -> End:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        return self.relay.keep(End(sock))

    def fill_backlog(self) -> None:
        """From now on the kernel takes no more connections; `accept` one to have it take one more."""
        self.sock.listen(0)
        filler = socket.socket(self.sock.family, socket.SOCK_STREAM)
        filler.connect(self.sock.getsockname())
        self.fillers.append(filler)

    def close(self) -> None:
        self.sock.close()
        for filler in self.fillers:
            filler.close()


# ---------------------------------------------------------------------------------------------- time


class Clock:
    """Stands in for the `time` module: real, until it is frozen."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.frozen: float | None = None

    def monotonic(self) -> float:
        return (time.monotonic() if self.frozen is None else self.frozen) + self.offset

    def time(self) -> float:
        return time.time()


class WatchedEngine(Engine):
    """Counts its turns and tells when each is over."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.turns = 0
        self.waiters: list[tuple[Callable[[], object], asyncio.Future[None]]] = []

    def wake(self) -> None:
        super().wake()
        self.turned()

    def _tick(self) -> None:
        super()._tick()
        self.turned()

    def turned(self) -> None:
        self.turns += 1
        for condition, future in self.waiters:
            if not future.done() and condition():
                future.set_result(None)


class EagerEpoll:
    """An epoll that announces more than there is: edges may come together, and may be late."""

    def __init__(self, real: Any, also: int) -> None:
        self.real = real
        self.also = also

    def poll(self, *arguments: int) -> list[tuple[int, int]]:
        return [(fd, events | self.also) for fd, events in self.real.poll(*arguments)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def replace_epoll(engine: Engine, epoll: Any) -> None:
    """Has the engine poll something else, which need only look like an epoll."""
    engine._epoll = epoll


@dataclass(frozen=True)
class Closed:
    """What was told of a connection when it was over."""

    unique_id: str
    address: tuple[str, int]
    accepted_at: float
    frontend: str
    backend_label: str
    server_label: str
    inspect_seconds: float | None
    connect_seconds: float | None
    total_seconds: float
    received: int
    sent: int
    outcome: Outcome
    termination: str
    reason: str
    counts: tuple[int, int, int, int, int]
    sni: str | None
    alpn: tuple[bytes, ...]


# ---------------------------------------------------------------------------------------------- the engine


class Relay:
    """One engine with its listeners and servers, until `finish` has made sure that nothing of it is left."""

    def __init__(self, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = runner
        self.monkeypatch = monkeypatch
        self.descriptors = runner.run(descriptors_now())
        self.directory = tempfile.TemporaryDirectory(prefix="relay-")
        self.clock = Clock()
        monkeypatch.setattr(sniproxy.relay.engine, "time", self.clock)
        monkeypatch.setattr(sniproxy.relay.connection, "time", self.clock)
        self.ends: list[End] = []
        self.servers: list[ScriptedServer] = []
        self.reserved: list[socket.socket] = []
        self.closed: list[Closed] = []
        self.warnings: list[str] = []
        self.bugs: list[BaseException] = []
        self.listener: Listener
        self.engine: WatchedEngine
        self.started = False

    def keep(self, end: End) -> End:
        self.ends.append(end)
        return end

    def path(self, name: str) -> str:
        return str(Path(self.directory.name, name))

    # -- servers

    def server(self, kind: str = "tcp", path: str = "") -> ScriptedServer:
        """A server that does what the test has it do."""
        address: Address
        if kind == "unix":
            address = UnixAddress(path or self.path(f"server{len(self.servers)}.sock"))
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listening.bind(address.path)
        else:
            listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listening.bind(("127.0.0.1", 0))
            address = TcpAddress(*listening.getsockname())
        listening.setblocking(False)
        listening.listen(1024)
        server = ScriptedServer(self, listening, address)
        self.servers.append(server)
        return server

    def refusing(self) -> Address:
        """An address that refuses every connection, and that nobody else can take."""
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.bind(("127.0.0.1", 0))
        self.reserved.append(reserved)
        return TcpAddress(*reserved.getsockname())

    def missing(self) -> Address:
        return UnixAddress(self.path("nobody-here.sock"))

    # -- the engine

    def start(
        self,
        *servers: ScriptedServer | Address,
        routes: Sequence[Route] = (),
        default_backend: str = "haproxy",
        no_sni: str = "default",
        not_tls: str = REJECT,
        challenge: Callable[[str], bool] = lambda _: False,
        validation_pending: Callable[[], bool] = lambda: False,
        proxy_protocol: ProxyProtocol = ProxyProtocol.OFF,
        balance: Balance = Balance.ROUNDROBIN,
        listen: Address | None = None,
        **settings: Any,
    ) -> None:
        """Listens, with these servers behind the one backend, which is named haproxy, and behind RESPONDER."""
        addresses = [server.address if isinstance(server, ScriptedServer) else server for server in servers]
        backends = [self.backend(name, addresses, proxy_protocol, balance) for name in ("haproxy", RESPONDER)]
        self.router = Router(
            RoutingRules(routes=tuple(routes), default_backend=default_backend, no_sni=no_sni, not_tls=not_tls),
            challenge=challenge,
        )
        self.listener = bind(listen or TcpAddress("127.0.0.1", 0))
        reports = Reports(closed=self._on_closed, warning=self.warnings.append, bug=self.bugs.append)
        loop = self.runner.get_loop()
        self.engine = WatchedEngine(
            loop, RelaySettings(**settings), self.router, backends, reports, validation_pending=validation_pending
        )
        self.all_backends = list(backends)
        self.engine.listen([self.listener])
        self.started = True

    def backend(
        self,
        name: str,
        addresses: Sequence[Address],
        proxy_protocol: ProxyProtocol = ProxyProtocol.OFF,
        balance: Balance = Balance.ROUNDROBIN,
    ) -> Backend:
        servers = [Server(name, address) for address in addresses]
        for server in servers:
            if isinstance(server.address, TcpAddress) and server.address.host[0].isdigit():
                server.resolved((server.address.host, server.address.port))
        backend_settings = BackendSettings(
            name=name, servers=tuple(addresses), proxy_protocol=proxy_protocol, balance=balance
        )
        return Backend(backend_settings, servers)

    def _on_closed(self, connection: ClosedConnection) -> None:
        self.closed.append(Closed(**{name: getattr(connection, name) for name in Closed.__annotations__}))

    def snapshot(self) -> RelaySnapshot:
        return self.engine.snapshot()

    @property
    def haproxy(self) -> Backend:
        return self.engine.backends["haproxy"]

    @property
    def connection(self) -> Any:
        """The only live connection."""
        (connection,) = self.engine.live
        return connection

    # -- clients

    async def connect(self, *, receive_buffer: int = 0, source: str = "") -> End:
        """A client. It can always connect: the kernel takes it, whatever the engine is at."""
        listening = self.listener.socket
        sock = socket.socket(listening.family, socket.SOCK_STREAM)
        end = self.keep(End(sock))
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, listening.getsockname())
        return end

    async def greet(self, first: bytes = HELLO, **options: Any) -> End:
        """A client that has sent its hello."""
        client = await self.connect(**options)
        await client.send(first)
        return client

    async def pair(self, server: ScriptedServer | None = None, **options: Any) -> tuple[End, End]:
        """Client and server with a relay between them, behind the hello."""
        if not self.started:
            server = server or self.server()
            self.start(server)
        server = server or self.servers[0]
        client = await self.greet(**options)
        accepted = await server.accept()
        assert await accepted.receive_exactly(len(HELLO)) == HELLO
        return client, accepted

    # -- waiting

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for a turn of the engine after which the condition holds."""
        if condition():
            return
        future = asyncio.get_running_loop().create_future()
        entry = (condition, future)
        self.engine.waiters.append(entry)
        try:
            async with asyncio.timeout(UNTIL_SECONDS):
                await future
        finally:
            self.engine.waiters.remove(entry)

    async def over(self, count: int = 1) -> Closed:
        """The last of so many connections that are over."""
        await self.until(lambda: len(self.closed) >= count)
        assert len(self.closed) == count
        return self.closed[-1]

    async def send_and_take(self, client: End, data: bytes) -> None:
        """Has the engine take these bytes in a turn of their own."""
        turns = self.engine.turns
        await client.send(data)
        await self.until(lambda: self.engine.turns > turns)

    async def accepted(self, count: int) -> None:
        await self.until(lambda: self.engine.statistics.accepted >= count)

    def freeze(self) -> None:
        """From now on time stands still until `pass_time`."""
        self.clock.frozen = time.monotonic()

    def pass_time(self, seconds: float) -> None:
        """Lets time pass, and deadlines with it."""
        self.clock.offset += seconds
        if self.engine._ticking is not None:
            self.engine._ticking.cancel()
        self.engine._tick()

    # -- the end

    async def finish(self) -> None:
        """Closes everything and asserts that nothing is left."""
        for end in self.ends:
            end.close()
        for server in self.servers:
            server.close()
        for reserved in self.reserved:
            reserved.close()
        if self.started:
            await self._finish_engine()
        self.directory.cleanup()
        left = open_descriptors()
        assert len(left) == len(self.descriptors), [what for fd, what in left.items() if fd not in self.descriptors]

    async def _finish_engine(self) -> None:
        engine = self.engine
        await self.until(lambda: not engine.live)
        engine.close()
        await asyncio.sleep(0)
        snapshot = engine.snapshot()
        assert not self.bugs
        assert snapshot.accepted == sum(snapshot.outcomes.values()) == len(self.closed)
        assert engine.held == 0
        assert not engine.wheel
        assert not engine.tolerated
        assert not engine._handlers
        for backend in {*self.all_backends, *engine.backends.values()}:
            assert backend.active == 0
            assert [server.active for server in backend.servers] == [0] * len(backend.servers)
