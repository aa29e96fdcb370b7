"""An HTTP server inside the test's own event loop, and clients that say exactly what the test says."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from sniproxy.http.server import HttpServer
from tests.support.engine import End, open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def open_sockets() -> int:
    # Nothing else: uvloop opens /dev/null with its first server, for the day that descriptors run out.
    return sum(what.startswith("socket:") for what in open_descriptors().values())


def head_and_body(stream: bytes) -> tuple[bytes, bytes]:
    """The head with its last CRLF, without the empty line, and what follows."""
    head, separator, body = stream.partition(b"\r\n\r\n")
    assert separator, stream
    return head + b"\r\n", body


class Client(End):
    """A client of one connection."""

    async def head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.receive_exactly(1)
        return head[:-2]

    async def response(self) -> tuple[bytes, bytes]:
        head = await self.head()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        return head, await self.receive_exactly(int(length.split()[1]))

    async def to_end(self) -> bytes:
        return await self.receive_to_end()


class Listening:
    """One server on one socket, until `stop` has made sure that nothing of it is left."""

    def __init__(self, runner: asyncio.Runner, respond: Callable[..., Any], **options: Any) -> None:
        self.runner = runner
        self.bugs: list[BaseException] = []
        self.server = HttpServer(respond, self.bugs.append, **options)
        self.clients: list[Client] = []
        self.socket: socket.socket | None = None
        self.address: Any = None
        self.before = 0

    async def start(self, *, path: str = "", send_buffer: int = 0) -> None:
        self.before = open_sockets()
        self.socket = listening = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listening.bind(path or ("127.0.0.1", 0))
        self.address = listening.getsockname()
        listening.setblocking(False)
        listening.listen()
        await self.server.listen(listening)

    async def connect(self, *, receive_buffer: int = 0) -> Client:
        if self.socket is None:
            await self.start()
        assert self.socket is not None
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        client = Client(socket.socket(family, socket.SOCK_STREAM))
        self.clients.append(client)
        if receive_buffer:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(client.sock, self.address)
        return client

    async def connections(self, count: int) -> None:
        """Waits until the server has so many."""
        async with asyncio.timeout(20):
            while len(self.server._connections) != count:  # noqa: ASYNC110  no event tells
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Closes everything and asserts that nothing is left."""
        for client in self.clients:
            client.close()
        await self.server.close()
        async with asyncio.timeout(20):
            while open_sockets() > self.before:  # noqa: ASYNC110  no event tells
                await asyncio.sleep(0.001)
        assert open_sockets() == self.before
        assert self.bugs == []

    def finish(self) -> None:
        self.runner.run(self.stop())
