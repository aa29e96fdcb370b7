"""The HTTP server: everything has a cap or a deadline, and nobody stays longer than that."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from sniproxy.http import server as server_module
from sniproxy.http.server import MAX_HEAD_BYTES, HttpServer, Request, Response
from tests.support.http import GET, Listening, head_and_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def echo(request: Request) -> Response:
    """Says what was asked for, and of whom in a header."""
    body = f"{request.method} {request.path} {request.query}".encode()
    return Response(status=200, body=body, headers=(("X-Host", request.headers.get("host", "")),))


@pytest.fixture
def http(runner: asyncio.Runner) -> Iterator[Listening]:
    listening = Listening(runner, echo)
    yield listening
    listening.finish()


# ---------------------------------------------------------------------------------------------- requests and answers


async def test_a_request_and_its_answer(http: Listening) -> None:
    """RFC 9112: a status line, and the headers that a client needs to find the end."""
    client = await http.connect()
    await client.send(b"GET /path?a=b&c HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = await client.response()

    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"GET /path a=b&c"
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in head
    assert b"\r\nDate: " in head


async def test_the_absolute_form(http: Listening) -> None:
    """RFC 9112 section 3.2.2: a server accepts it, and its host goes before the header's."""
    client = await http.connect()
    await client.send(b"GET HTTP://www.example.com:80/path?a HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = await client.response()

    assert body == b"GET /path a"
    assert b"\r\nX-Host: www.example.com:80\r\n" in head


async def test_a_connection_is_used_again(http: Listening) -> None:
    """RFC 9112 section 9.3: persistent unless one side says otherwise."""
    client = await http.connect()
    for number in range(3):
        await client.send(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        assert (await client.response())[1] == b"GET /%d " % number


async def test_pipelined_requests_are_answered_in_order(http: Listening) -> None:
    """RFC 9112 section 9.3.2."""
    client = await http.connect()
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)))

    for number in range(5):
        assert (await client.response())[1] == b"GET /%d " % number


async def test_a_head_in_many_portions(http: Listening) -> None:
    """TCP knows no messages."""
    client = await http.connect()
    for byte in GET:
        await client.send(bytes((byte,)))

    assert (await client.response())[1] == b"GET / "


async def test_the_answer_to_head_has_no_body_and_the_length_of_one(http: Listening) -> None:
    """RFC 9110 section 9.3.2. What follows it is the next answer."""
    client = await http.connect()
    await client.send(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    head = await client.head()

    assert b"\r\nContent-Length: 8\r\n" in head
    assert (await client.response())[1] == b"GET / "


@pytest.mark.parametrize(
    "request_head",
    [b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"],
    ids=["asked for", "HTTP/1.0"],
)
async def test_a_connection_that_is_to_be_closed(http: Listening, request_head: bytes) -> None:
    """RFC 9112 section 9.6: the answer says so, too, and the end comes behind it."""
    client = await http.connect()
    await client.send(request_head)
    head, body = head_and_body(await client.to_end())

    assert b"\r\nConnection: close\r\n" in head
    assert body == b"GET / "


@pytest.mark.parametrize(
    "announced",
    [
        b"Content-Length: 5\r\n",
        b"Content-Length: 1000000\r\nExpect: 100-continue\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
    ids=["length", "expected", "chunked"],
)
async def test_a_body_is_not_waited_for(http: Listening, announced: bytes) -> None:
    """Nothing here takes one: the answer comes at once and the connection is closed, so that no byte of the body is
    taken for a request (CWE-444)."""
    client = await http.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + announced + b"\r\n")
    head, body = head_and_body(await client.to_end())

    assert b"\r\nConnection: close\r\n" in head
    assert body == b"POST / "


async def test_a_body_that_looks_like_a_request_is_none(http: Listening) -> None:
    """CWE-444, request smuggling."""
    client = await http.connect()
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)

    assert b"smuggled" not in await client.to_end()


BAD = {
    "not HTTP": b"\x16\x03\x01\x00\x05hello\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "control character": b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
}


@pytest.mark.parametrize("request_head", BAD.values(), ids=BAD)
async def test_a_bad_request_is_answered_and_closed(http: Listening, request_head: bytes) -> None:
    """RFC 9112 section 2.2: 400, and then nobody knows where the next one begins."""
    client = await http.connect()
    await client.send(request_head)

    assert (await client.to_end()).startswith(b"HTTP/1.1 400 ")
    assert http.bugs == []


async def test_a_bug_in_an_answer(runner: asyncio.Runner) -> None:
    """It is the server's fault, says so, is reported, and the next request is answered."""

    def broken(request: Request) -> Response:
        if request.path == "/broken":
            raise ZeroDivisionError("a bug")
        return echo(request)

    listening = Listening(runner, broken)
    await listening.start()
    client = await listening.connect()
    await client.send(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.head()).startswith(b"HTTP/1.1 500 ")
    await client.receive_exactly(len(b"internal error\n"))
    await client.send(GET)

    assert (await client.response())[1] == b"GET / "
    assert [str(bug) for bug in listening.bugs] == ["a bug"]
    listening.bugs.clear()
    await listening.stop()


async def test_an_answer_that_cannot_be_sent_is_a_bug_too(runner: asyncio.Runner) -> None:
    """A header that no header can be: the client gets no half of it, and somebody hears of it."""
    listening = Listening(runner, lambda _: Response(status=200, headers=(("X", "a\r\nSet-Cookie: b"),)))
    await listening.start()
    client = await listening.connect()
    await client.send(GET)

    assert await client.to_end() == b""
    assert len(listening.bugs) == 1
    listening.bugs.clear()
    await listening.stop()


async def test_an_answer_may_take_its_time(runner: asyncio.Runner) -> None:
    """Those that ask others before they answer are coroutines."""
    ready = asyncio.Event()

    async def later(request: Request) -> Response:
        await ready.wait()
        return echo(request)

    listening = Listening(runner, later)
    await listening.start()
    client = await listening.connect()
    await client.send(GET)
    ready.set()

    assert (await client.response())[1] == b"GET / "
    await listening.stop()


# ---------------------------------------------------------------------------------------------- caps and deadlines


async def test_a_head_that_is_too_large(http: Listening) -> None:
    """RFC 6585 section 5: 431. It is not collected first."""
    client = await http.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 2 * MAX_HEAD_BYTES)

    assert (await client.to_end()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("first", [b"", b"G", GET[:-2]], ids=["nothing", "a byte", "almost"])
async def test_a_head_that_does_not_come(http: Listening, first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris (CVE-2007-6750): a head has one deadline, however often a byte of it comes."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
    client = await http.connect()
    await client.send(first)

    assert await client.to_end() == b""


async def test_the_deadline_begins_anew_with_each_request(http: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection is closed the same way."""
    client = await http.connect()
    await client.send(GET)
    await client.response()
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
    await client.send(GET)
    await client.response()

    assert await client.to_end() == b""


async def test_a_client_that_does_not_read_is_let_go(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits until what is left has been read; who never reads would keep the descriptor for ever."""
    monkeypatch.setattr(server_module, "WRITE_SECONDS", 0.05)
    listening = Listening(runner, lambda _: Response(status=200, body=bytes(8 << 20)))
    await listening.start(send_buffer=4096)
    client = await listening.connect(receive_buffer=4096)
    await listening.connections(1)
    await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await listening.connections(0)

    with pytest.raises((ConnectionResetError, AssertionError)):
        await client.receive_exactly(8 << 20)
    await listening.stop()


async def test_a_small_answer_that_is_not_read_is_let_go_too(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fits into the transport's buffer, so that writing it seems to be done; the descriptor is there all the same."""
    monkeypatch.setattr(server_module, "WRITE_SECONDS", 0.05)
    listening = Listening(runner, lambda _: Response(status=200, body=bytes(50_000)))
    await listening.start(send_buffer=4096)
    client = await listening.connect(receive_buffer=4096)
    await listening.connections(1)
    await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await listening.connections(0)

    with pytest.raises((ConnectionResetError, AssertionError)):
        await client.receive_exactly(50_000)
    await listening.stop()


async def test_more_connections_than_there_may_be(runner: asyncio.Runner) -> None:
    """Port 80 must not take the descriptors that port 443 needs."""
    listening = Listening(runner, echo, max_connections=2)
    await listening.start()
    clients = [await listening.connect() for _ in range(2)]
    for client in clients:
        await client.send(GET)
        await client.response()
    late = await listening.connect()
    assert await late.to_end() == b""
    clients[0].close()
    await listening.connections(1)
    client = await listening.connect()
    await client.send(GET)

    assert (await client.response())[1] == b"GET / "
    await listening.stop()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_goes_away(http: Listening, how: str) -> None:
    """In the midst of a head, of an answer, or before either: nothing to report."""
    for first in (b"", GET[:10], GET):
        client = await http.connect()
        if first:
            await client.send(first)
        getattr(client, how)()

    await http.connections(0)
    assert http.bugs == []


# ---------------------------------------------------------------------------------------------- listening


async def test_a_unix_socket(runner: asyncio.Runner, tmp_path: Path) -> None:
    """`admin.listen = "unix:/path"`."""
    listening = Listening(runner, echo)
    await listening.start(path=str(tmp_path / "admin.sock"))
    client = await listening.connect()
    await client.send(GET)

    assert (await client.response())[1] == b"GET / "
    await listening.stop()


async def test_two_sockets_and_one_server(runner: asyncio.Runner) -> None:
    """One for each address of the configuration."""
    http = HttpServer(echo, lambda _: None)
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for listening in made:
        listening.setblocking(False)
        await http.listen(listening)
    for listening in made:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
    await http.close()


async def test_closing_ends_connections(runner: asyncio.Runner) -> None:
    """A program that stops does not wait for browsers that keep connections."""
    listening = Listening(runner, echo)
    await listening.start()
    client = await listening.connect()
    await client.send(GET)
    await client.response()
    await listening.server.close()

    assert await client.to_end() == b""
    with pytest.raises(ConnectionRefusedError):
        await listening.connect()
    await listening.stop()
