"""An HTTP/1.1 server for few and small answers: h11 for the protocol, asyncio streams below.

Everything has a cap or a deadline: a request's head, its arrival, the writing of the answer, the connections at once.
Bodies are not read; a request that announces one is answered and the connection closed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

MAX_HEAD_BYTES = 16 * 1024
"""As HAProxy's tune.bufsize: no client that belongs here sends more."""
REQUEST_SECONDS = 10.0
"""From the first byte, or the last answer, to the end of a request's head."""
WRITE_SECONDS = 10.0
MAX_CONNECTIONS = 256
_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The head of a request. `path` is without the query; header names are lower case, the last of a name counts."""

    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What is sent back; Content-Length, Date and Connection are added."""

    status: int
    body: bytes = field(default=b"", repr=False)  # may be a key authorization
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class HttpServer:
    """Answers requests on listening sockets with `respond`; `bug` is told of exceptions in it."""

    respond: Callable[[Request], Response | Awaitable[Response]]
    bug: Callable[[BaseException], None]
    max_connections: int = MAX_CONNECTIONS
    _servers: list[asyncio.Server] = field(default_factory=list)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def listen(self, listening: socket.socket) -> None:
        """Answers on this socket too, and owns it from now on."""
        self._servers.append(await asyncio.start_server(self._serve, sock=listening, limit=MAX_HEAD_BYTES))

    async def close(self) -> None:
        """Closes listeners and connections."""
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= self.max_connections:
                await self._converse(reader, writer)
                writer.close()
                async with asyncio.timeout(WRITE_SECONDS):
                    await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            pass  # out of time, or gone
        except Exception as error:  # noqa: BLE001
            self.bug(error)
        finally:
            self._connections.discard(task)
            # Closing waits for a client to read what is left, and one that never does would stay for ever.
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        while True:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    request = await _next_request(connection, reader)
            except h11.RemoteProtocolError as error:
                await _send(connection, writer, None, Response(status=error.error_status_hint, body=b"bad request\n"))
                return
            if request is None:
                return
            await _send(connection, writer, request, await self._answer(request))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _answer(self, request: Request) -> Response:
        try:
            answer = self.respond(request)
            return answer if isinstance(answer, Response) else await answer
        except Exception as error:  # noqa: BLE001
            self.bug(error)
            return Response(status=500, body=b"internal error\n")


async def _next_request(connection: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
    """The next request's head; None at the end of the stream."""
    request: Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            target = event.target.decode("latin-1")
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if target[:7].lower() == "http://":
                # The absolute form, whose host goes before the header's (RFC 9112 section 3.2.2).
                headers["host"], _, rest = target[7:].partition("/")
                target = f"/{rest}"
            path, _, query = target.partition("?")
            request = Request(method=event.method.decode("latin-1"), path=path, query=query, headers=headers)
            if "content-length" in headers or "transfer-encoding" in headers:
                return request
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:
            return None


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, request: Request | None, response: Response
) -> None:
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        *response.headers,
    ]
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    parts = [connection.send(h11.Response(status_code=response.status, headers=headers))]
    if request is None or request.method != "HEAD":
        parts.append(connection.send(h11.Data(data=response.body)))
    parts.append(connection.send(h11.EndOfMessage()))
    writer.write(b"".join(part for part in parts if part))
    async with asyncio.timeout(WRITE_SECONDS):
        await writer.drain()
