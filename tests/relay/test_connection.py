"""The story of one connection: what the server gets, what a refused client is told, and how each one ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

import sniproxy.relay.connection
from sniproxy.model import Balance, Outcome, ProxyProtocol, TcpAddress, UnixAddress
from sniproxy.policy.routing import Networks, Route
from sniproxy.relay.connection import INSPECT_BYTES, LINGER_SECONDS, Connection
from sniproxy.relay.engine import BUFFER_BYTES
from sniproxy.relay.peer import Peer
from sniproxy.wire.proxy_header import MAX_V1_BYTES, SIGNATURE, decode, encode_v1, encode_v2
from tests.support.engine import HELLO, NAME, EagerEpoll, End, Relay, replace_epoll
from tests.support.hellos import client_hello, hello, record, records, server_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

UNRECOGNIZED_NAME, INTERNAL_ERROR, ACCESS_DENIED, MISSING_EXTENSION = 112, 80, 49, 109
DECODE_ERROR, ILLEGAL_PARAMETER, UNEXPECTED_MESSAGE = 50, 47, 10

LOCALHOST = Networks([ip_network("127.0.0.0/8")])
EVERY_KIND = pytest.mark.parametrize("kind", ["tcp", "unix"])


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


# ---------------------------------------------------------------------------------------------- the first bytes


@EVERY_KIND
async def test_the_server_gets_exactly_what_the_client_sent(relay: Relay, kind: str) -> None:
    """Bytes behind the hello (RFC 8446 section 2.3, 0-RTT data) reach the server with it, in order."""
    server = relay.server(kind)
    relay.start(server)
    early = os.urandom(5000)
    await relay.greet(HELLO + early)
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO) + 5000) == HELLO + early


@EVERY_KIND
async def test_a_first_flight_larger_than_the_buffer_arrives_whole(relay: Relay, kind: str) -> None:
    """More bytes than were asked for at once made a listener time out or close (Envoy 1.35.1, 1.35.4)."""
    server = relay.server(kind)
    relay.start(server)
    flight = HELLO + os.urandom(8 * BUFFER_BYTES)
    client = await relay.connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(flight))
        accepted = await server.accept()
        assert await accepted.receive_exactly(len(flight)) == flight


async def test_a_first_flight_of_which_nothing_more_will_be_announced(relay: Relay) -> None:
    """epoll(7), edge-triggered: all of it was there at once, and one event told of it."""
    server = relay.server()
    relay.start(server, listen=UnixAddress(relay.path("front.sock")))
    flight = HELLO + os.urandom(BUFFER_BYTES)
    client = await relay.connect()
    assert client.send_what_fits(flight) == len(flight)
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(flight)) == flight


@pytest.mark.parametrize("size", [INSPECT_BYTES, INSPECT_BYTES + 1, BUFFER_BYTES, INSPECT_BYTES + BUFFER_BYTES])
async def test_a_first_flight_that_ends_where_a_read_does(relay: Relay, size: int) -> None:
    """A read that fills its buffer says nothing about whether more is there."""
    server = relay.server()
    relay.start(server)
    flight = HELLO + bytes(size - len(HELLO))
    client = await relay.connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(flight))
        accepted = await server.accept()
        assert await accepted.receive_exactly(len(flight)) == flight
    await client.send(b"more")
    assert await accepted.receive() == b"more"


async def test_a_hello_byte_by_byte(relay: Relay) -> None:
    """RFC 8446 section 5.1: nothing ties a message to segments; Envoy feeds its inspector one byte at a time too."""
    server = relay.server()
    relay.start(server)
    client = await relay.connect()
    for position in range(len(HELLO)):
        await relay.send_and_take(client, HELLO[position : position + 1])
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_hello_over_many_records_is_routed_and_sent_on_as_it_came(relay: Relay, size: int) -> None:
    """RFC 8446 section 5.1 allows any fragmentation; taking a part for the whole lost the name (CVE-2026-32305)."""
    server = relay.server()
    relay.start(server, default_backend="reject", routes=[Route(sni=(NAME,), backend="haproxy")])
    stream = records(client_hello(server_name(NAME)), size)
    client = await relay.greet(stream)
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(stream)) == stream
    client.close()
    accepted.close()
    assert (await relay.over()).sni == NAME


async def test_a_hello_in_two_segments_three_seconds_apart(relay: Relay) -> None:
    """tldr.fail: hellos with post-quantum key shares take two packets, and the second may come late."""
    server = relay.server()
    relay.start(server, inspect_delay=5.0)
    relay.freeze()
    client = await relay.greet(HELLO[:100])
    await relay.until(lambda: relay.engine.live and relay.connection._reader)
    relay.pass_time(3.0)
    await client.send(HELLO[100:])
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


@EVERY_KIND
async def test_a_server_may_speak_first(relay: Relay, kind: str) -> None:
    """What a server sends before it has read anything is not waited for; it may be announced with the connect itself."""
    server = relay.server(kind)
    relay.start(server)
    client = await relay.greet()
    while not relay.engine.live or relay.connection.server is None:
        relay.engine.wake()
    accepted = relay.keep(End(server.sock.accept()[0]))
    assert accepted.send_what_fits(b"220 ready\r\n") == 11

    assert await client.receive_exactly(11) == b"220 ready\r\n"


@EVERY_KIND
async def test_a_client_that_half_closes_behind_its_hello(relay: Relay, kind: str) -> None:
    """The end of stream that comes together with the hello is passed on behind it."""
    server = relay.server(kind)
    relay.start(server)
    client = await relay.connect()
    await client.send(HELLO)
    client.half_close()
    accepted = await server.accept()
    assert await accepted.receive_to_end() == HELLO
    await accepted.send(b"answer")
    accepted.close()

    assert await client.receive_to_end() == b"answer"


async def test_other_than_tls_is_piped_where_a_backend_is_named_for_it(relay: Relay) -> None:
    """Plain text above 16 KiB in one read was closed (Envoy 1.35.4); here it is sent on like anything else."""
    server = relay.server()
    relay.start(server, not_tls="haproxy")
    text = b"SSH-2.0-OpenSSH_9.9\r\n" + os.urandom(100_000)
    client = await relay.connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(text))
        accepted = await server.accept()
        assert await accepted.receive_exactly(len(text)) == text


async def test_other_than_tls_a_byte_at_a_time_keeps_its_first_bytes(relay: Relay) -> None:
    """A first byte that TLS could begin with is kept until the second one tells."""
    server = relay.server()
    relay.start(server, not_tls="haproxy")
    client = await relay.greet(b"\x16")
    await relay.until(lambda: relay.engine.live and relay.connection._reader)
    await client.send(b"\x99rest")
    accepted = await server.accept()

    assert await accepted.receive_exactly(6) == b"\x16\x99rest"


# ---------------------------------------------------------------------------------------------- the PROXY header


class CountingSocket(socket.SocketType):
    """A server's socket that remembers what was written to it."""

    writes: list[bytes]

    def send(self, data: Any, *flags: int) -> int:
        self.writes.append(bytes(data))
        return super().send(data, *flags)


@EVERY_KIND
@pytest.mark.parametrize("version", [ProxyProtocol.V1, ProxyProtocol.V2])
async def test_header_and_hello_are_one_write(
    relay: Relay, kind: str, version: ProxyProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PROXY protocol, section 2: a receiver may rely on the header coming whole, so it is never sent in parts."""
    monkeypatch.setattr(CountingSocket, "writes", [], raising=False)
    monkeypatch.setattr(sniproxy.relay.connection, "SocketType", CountingSocket)
    server = relay.server(kind)
    relay.start(server, proxy_protocol=version)
    await relay.greet()
    accepted = await server.accept()
    (first,) = await written(relay)
    await accepted.readable()

    assert accepted.sock.recv(65536, socket.MSG_PEEK) == first
    assert first.endswith(HELLO)
    assert decode(first) is not None


async def written(relay: Relay) -> list[bytes]:
    await relay.until(lambda: CountingSocket.writes)
    return CountingSocket.writes


async def received(relay: Relay, client: End) -> tuple[Any, bytes]:
    """The header that the first server gets, read, and everything that came."""
    client.half_close()
    accepted = await relay.servers[0].accept()
    stream = await accepted.receive_to_end()
    decoded = decode(stream)
    assert decoded is not None
    header, length = decoded
    assert stream[length:].endswith(HELLO)
    return header, stream


async def test_version_1_names_client_and_listener(relay: Relay) -> None:
    """The PROXY protocol, section 2.1: `PROXY TCP4 source destination ports`, the destination as the client dialled it."""
    relay.start(relay.server(), proxy_protocol=ProxyProtocol.V1)
    client = await relay.greet()
    source, destination = client.sock.getsockname(), client.sock.getpeername()
    _, stream = await received(relay, client)

    assert stream == f"PROXY TCP4 127.0.0.1 127.0.0.1 {source[1]} {destination[1]}\r\n".encode() + HELLO


async def test_version_2_names_client_listener_host_protocol_and_id(relay: Relay) -> None:
    """The PROXY protocol, section 2.2: addresses, PP2_TYPE_AUTHORITY, PP2_TYPE_ALPN, PP2_TYPE_UNIQUE_ID, checksum."""
    relay.start(relay.server(), proxy_protocol=ProxyProtocol.V2)
    client = await relay.greet()
    source, destination = client.sock.getsockname(), client.sock.getpeername()
    _, stream = await received(relay, client)
    unique_id = relay.engine.id_prefix + "00000001"

    assert stream == encode_v2(source, destination, authority=NAME, alpn=b"h2", unique_id=unique_id.encode()) + HELLO


@pytest.mark.parametrize("version", [ProxyProtocol.V1, ProxyProtocol.V2])
async def test_a_client_on_a_unix_socket_has_no_address(relay: Relay, version: ProxyProtocol) -> None:
    """The PROXY protocol, sections 2.1 and 2.2: UNKNOWN and LOCAL where there is no address to tell."""
    relay.start(relay.server(), proxy_protocol=version, listen=UnixAddress(relay.path("front.sock")))
    client = await relay.greet()
    header, stream = await received(relay, client)

    assert header.source is None
    assert stream.startswith((b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00"))


async def test_an_ipv4_client_of_a_listener_for_both_families_is_told_as_ipv4(relay: Relay) -> None:
    """HAProxy would log ::ffff:127.0.0.1 and match no IPv4 rule otherwise (RFC 4291 section 2.5.5.2)."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    relay.start(relay.server(), proxy_protocol=ProxyProtocol.V1, listen=TcpAddress("", 0))
    client = relay.keep(End(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
    port = relay.listener.socket.getsockname()[1]
    await asyncio.get_running_loop().sock_connect(client.sock, ("127.0.0.2", port))
    await client.send(HELLO)
    source = client.sock.getsockname()
    _, stream = await received(relay, client)

    assert stream == f"PROXY TCP4 127.0.0.1 127.0.0.2 {source[1]} {port}\r\n".encode() + HELLO


async def test_an_ipv6_client(relay: Relay) -> None:
    """The PROXY protocol, section 2.1: TCP6."""
    try:
        relay.start(relay.server(), proxy_protocol=ProxyProtocol.V1, listen=TcpAddress("::1", 0))
    except Exception as error:
        pytest.skip(f"no IPv6 here: {error}")
    client = await relay.greet()
    ours, theirs = client.sock.getsockname()[1], client.sock.getpeername()[1]
    _, stream = await received(relay, client)

    assert stream == f"PROXY TCP6 ::1 ::1 {ours} {theirs}\r\n".encode() + HELLO


SOURCE, DESTINATION = ("192.0.2.7", 51514), ("198.51.100.1", 443)
HEADERS = {
    "v1": encode_v1(SOURCE, DESTINATION),
    "v2": encode_v2(SOURCE, DESTINATION, authority=None, alpn=None, unique_id=b"x"),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_trusted_sender_says_who_the_client_is(relay: Relay, header: bytes) -> None:
    """What follows goes by the address in the header: the header for the server, the log, and `deny`."""
    relay.start(relay.server(), proxy_protocol=ProxyProtocol.V1, accept_proxy_from=LOCALHOST)
    client = await relay.greet(header + HELLO)
    told, stream = await received(relay, client)

    assert (told.source, told.destination) == (SOURCE, DESTINATION)
    assert stream == HEADERS["v1"] + HELLO
    client.close()
    relay.ends[-1].close()
    assert (await relay.over()).address == SOURCE


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_trusted_sender_may_split_its_header_anywhere(relay: Relay, header: bytes) -> None:
    """The PROXY protocol, section 2: a receiver has to cope with any segmentation."""
    server = relay.server()
    relay.start(server, accept_proxy_from=LOCALHOST)
    stream = header + HELLO
    client = await relay.connect()
    for position in range(len(header) + 10):
        await relay.send_and_take(client, stream[position : position + 1])
    await client.send(stream[len(header) + 10 :])
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


async def test_a_route_that_denies_the_client_in_the_header(relay: Relay) -> None:
    """`deny` is about the client, not about the proxy in front."""
    route = Route(sni=(NAME,), backend="haproxy", deny=(ip_network("192.0.2.0/24"),))
    relay.start(relay.server(), routes=[route], accept_proxy_from=LOCALHOST)
    client = await relay.greet(HEADERS["v2"] + HELLO)

    assert await client.receive_to_end() == alert(ACCESS_DENIED)


async def test_local_and_unknown_leave_the_address_of_the_connection(relay: Relay) -> None:
    """The PROXY protocol, section 2.2: LOCAL is a health check of the proxy itself, its own address counts."""
    relay.start(relay.server(), proxy_protocol=ProxyProtocol.V1, accept_proxy_from=LOCALHOST)
    client = await relay.greet(b"PROXY UNKNOWN\r\n" + HELLO)
    port = client.sock.getsockname()[1]
    told, _ = await received(relay, client)

    assert told.source == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "first",
    [HELLO, b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 one two 3 4\r\n" + HELLO, b"PROXY " + b"x" * MAX_V1_BYTES],
    ids=["hello", "http", "broken", "endless"],
)
async def test_a_trusted_sender_must_send_a_valid_header(relay: Relay, first: bytes) -> None:
    """The PROXY protocol, section 2: one that may or may not be there could be forged by the client behind."""
    relay.start(relay.server(), accept_proxy_from=LOCALHOST)
    client = await relay.greet(first)
    closed = await relay.over()

    assert (closed.outcome, closed.termination) == (Outcome.BAD_PROXY_HEADER, "PR")
    assert await client.receive() == b""


async def test_a_header_and_then_silence(relay: Relay) -> None:
    """CVE-2026-25949: a first message that lifts the deadline is a way to stay for ever."""
    relay.start(relay.server(), accept_proxy_from=LOCALHOST, inspect_delay=5.0)
    relay.freeze()
    await relay.greet(HEADERS["v1"])
    await relay.until(lambda: relay.engine.live and relay.connection._head is None)
    relay.pass_time(5.2)

    assert (await relay.over()).outcome == Outcome.INSPECT_TIMEOUT


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_header_from_anybody_else_is_not_believed(relay: Relay, header: bytes) -> None:
    """HAProxy's threat model: PROXY only from trusted senders. From others it is what it is: not TLS."""
    relay.start(relay.server(), accept_proxy_from=Networks([ip_network("192.0.2.0/24")]))
    await relay.greet(header + HELLO)
    closed = await relay.over()

    assert closed.outcome == Outcome.NOT_TLS
    assert closed.address[0] == "127.0.0.1"


# ---------------------------------------------------------------------------------------------- every outcome


async def play_relayed(relay: Relay) -> None:
    client, server = await relay.pair()
    client.close()
    server.close()


async def play_challenge(relay: Relay) -> None:
    server = relay.server()
    relay.start(server, challenge=lambda name: name == NAME)
    first = hello(NAME, b"acme-tls/1")
    client = await relay.greet(first)
    accepted = await server.accept()
    assert await accepted.receive_exactly(len(first)) == first
    accepted.close()
    client.close()


async def play_rejected(relay: Relay) -> None:
    relay.start(relay.server(), routes=[Route(sni=(NAME,), backend="haproxy", deny=(ip_network("127.0.0.0/8"),))])
    assert await (await relay.greet()).receive_to_end() == alert(ACCESS_DENIED)


async def play_limited(relay: Relay) -> None:
    relay.start(relay.server(), max_connections_per_client=1)
    first = await relay.connect()
    await relay.accepted(1)
    assert await (await relay.connect()).receive() == b""
    first.close()
    await relay.over(2)
    relay.closed.reverse()


async def play_no_route(relay: Relay) -> None:
    relay.start(relay.server(), default_backend="reject")
    assert await (await relay.greet()).receive_to_end() == alert(UNRECOGNIZED_NAME)


async def play_not_tls(relay: Relay) -> None:
    relay.start(relay.server())
    assert await (await relay.greet(b"GET / HTTP/1.1\r\n\r\n")).receive() == b""


async def play_malformed(relay: Relay) -> None:
    relay.start(relay.server())
    broken = record(client_hello(server_name(NAME, claim=200)))
    assert await (await relay.greet(broken)).receive_to_end() == alert(DECODE_ERROR)


async def play_too_large(relay: Relay) -> None:
    relay.start(relay.server(), max_hello=512)
    client = await relay.greet(record(bytes((1, 0, 2, 0))))
    assert await client.receive_to_end() == alert(ILLEGAL_PARAMETER)


async def play_inspect_timeout(relay: Relay) -> None:
    relay.start(relay.server(), inspect_delay=5.0)
    relay.freeze()
    client = await relay.connect()
    await relay.accepted(1)
    relay.pass_time(5.2)
    assert await client.receive() == b""


async def play_client_left(relay: Relay) -> None:
    relay.start(relay.server())
    client = await relay.greet(HELLO[:50])
    client.close()


async def play_bad_proxy_header(relay: Relay) -> None:
    relay.start(relay.server(), accept_proxy_from=LOCALHOST)
    await relay.greet()


async def play_backend_unreachable(relay: Relay) -> None:
    relay.start(relay.refusing())
    assert await (await relay.greet()).receive_to_end() == alert(INTERNAL_ERROR)


async def play_internal_error(relay: Relay) -> None:
    relay.start(relay.server())
    relay.monkeypatch.setattr(relay.router, "tls", broken_router)
    await relay.greet()
    await relay.over()
    assert [str(bug) for bug in relay.bugs] == ["no such luck"]
    relay.bugs.clear()


def broken_router(*_: object) -> object:
    raise LookupError("no such luck")


PLAYS: dict[Outcome, tuple[Callable[[Relay], Awaitable[None]], str]] = {
    Outcome.RELAYED: (play_relayed, "--"),
    Outcome.CHALLENGE: (play_challenge, "--"),
    Outcome.REJECTED: (play_rejected, "PR"),
    Outcome.LIMITED: (play_limited, "PR"),
    Outcome.NO_ROUTE: (play_no_route, "PR"),
    Outcome.NOT_TLS: (play_not_tls, "PR"),
    Outcome.MALFORMED: (play_malformed, "PR"),
    Outcome.TOO_LARGE: (play_too_large, "PR"),
    Outcome.INSPECT_TIMEOUT: (play_inspect_timeout, "cR"),
    Outcome.CLIENT_LEFT: (play_client_left, "CR"),
    Outcome.BAD_PROXY_HEADER: (play_bad_proxy_header, "PR"),
    Outcome.BACKEND_UNREACHABLE: (play_backend_unreachable, "SC"),
    Outcome.INTERNAL_ERROR: (play_internal_error, "IR"),
}


def test_every_outcome_has_a_play() -> None:
    assert set(PLAYS) == set(Outcome)


@pytest.mark.parametrize("outcome", Outcome)
async def test_each_outcome(relay: Relay, outcome: Outcome) -> None:
    """Each accepted connection ends in exactly one outcome, with HAProxy's two letters (manual, section 8.5)."""
    play, termination = PLAYS[outcome]
    await play(relay)
    for end in relay.ends:
        end.close()
    await relay.until(lambda: not relay.engine.live)

    assert relay.closed[-1].outcome == outcome
    assert relay.closed[-1].termination == termination
    assert sum(count for (ended, _), count in relay.snapshot().outcomes.items() if ended == outcome) == 1


@pytest.mark.parametrize(
    ("rules", "first", "answer"),
    [
        ({}, hello("x.acme.invalid"), UNRECOGNIZED_NAME),
        ({"no_sni": "reject"}, hello(None), MISSING_EXTENSION),
        ({"default_backend": "reject"}, hello(None), MISSING_EXTENSION),
        ({}, record(b"\x02\x00\x00\x00"), UNEXPECTED_MESSAGE),
        ({}, HELLO[:20] + b"\x15", None),
    ],
    ids=["acme.invalid", "no name", "no name, no default", "a ServerHello", "incomplete"],
)
async def test_what_refused_clients_are_told(
    relay: Relay, rules: dict[str, Any], first: bytes, answer: int | None
) -> None:
    """RFC 8446 sections 6.2 and 9.2, RFC 6066 section 3: the alert that says why."""
    relay.start(relay.server(), **rules)
    client = await relay.greet(first)
    if answer is None:
        client.half_close()

    assert await client.receive_to_end() == (b"" if answer is None else alert(answer))


# ---------------------------------------------------------------------------------------------- refusing


async def test_a_refused_client_that_keeps_sending_reads_its_alert_and_then_the_end(relay: Relay) -> None:
    """RFC 1122 section 4.2.2.13: a close with bytes unread is a reset, which overtakes the alert."""
    relay.start(relay.server(), default_backend="reject")
    client = await relay.greet()
    for _ in range(32):
        await relay.send_and_take(client, bytes(1 << 16))

    assert await client.receive_to_end() == alert(UNRECOGNIZED_NAME)
    client.close()
    assert (await relay.over()).outcome == Outcome.NO_ROUTE


async def test_a_refused_client_that_stays_is_closed_a_second_later(relay: Relay) -> None:
    """Reading an alert takes a round trip, not a lifetime."""
    relay.start(relay.server(), default_backend="reject")
    relay.freeze()
    client = await relay.greet()
    await client.receive_to_end()
    relay.pass_time(LINGER_SECONDS - 0.2)
    assert relay.engine.live
    relay.pass_time(0.4)

    assert not relay.engine.live


async def test_a_refused_client_that_never_stops_sending_is_not_read_for_ever(relay: Relay) -> None:
    """HAProxy's threat model: one cheap client must not cost the others anything."""
    relay.start(relay.server(), default_backend="reject")
    await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection.outcome == Outcome.NO_ROUTE)
    connection = relay.connection
    endless = connection.client.sock = EndlessSocket(connection.client.sock)
    connection._on_lingering(0)

    assert endless.reads < 100
    assert connection.over


class EndlessSocket:
    """A client that has always more to say."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.reads = 0

    def recv_into(self, buffer: bytearray, *_: int) -> int:
        self.reads += 1
        assert self.reads < 10_000, "reads for ever"
        return len(buffer)

    def close(self) -> None:
        self.real.close()


async def test_a_client_that_is_not_tls_and_finds_no_server_is_sent_no_alert(relay: Relay) -> None:
    """An alert record would be seven bytes of noise to an SSH client."""
    relay.start(relay.refusing(), not_tls="haproxy")
    client = await relay.greet(b"SSH-2.0-client\r\n")

    assert await client.receive_to_end() == b""
    assert (await relay.over()).outcome == Outcome.BACKEND_UNREACHABLE


@pytest.mark.parametrize("first", [b"", HELLO[:1], HELLO[:-1]], ids=["nothing", "a byte", "all but a byte"])
async def test_a_client_that_resets_before_its_hello_is_complete(relay: Relay, first: bytes) -> None:
    """It left; nobody is to blame, and no server is asked."""
    relay.start(relay.server())
    client = await relay.greet(first)
    await relay.accepted(1)
    client.reset()
    closed = await relay.over()

    assert (closed.outcome, closed.termination) == (Outcome.CLIENT_LEFT, "CR")
    assert closed.backend_label == ""


# ---------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize(
    "first", [b"", b"\x16", bytes.fromhex("1603030010"), HELLO[:-1]], ids=["nothing", "a byte", "a header", "almost"]
)
async def test_silence_ends_at_inspect_delay(relay: Relay, first: bytes) -> None:
    """CVE-2026-22045, and Traefik's `simple_ddos` test: 16 03 03 00 10 and then silence must be closed."""
    relay.start(relay.server(), inspect_delay=5.0)
    relay.freeze()
    client = await relay.greet(first)
    await relay.until(lambda: relay.engine.live and bool(relay.connection._reader) == bool(first))
    relay.pass_time(4.9)
    assert relay.engine.live
    relay.pass_time(0.3)

    assert (await relay.over()).outcome == Outcome.INSPECT_TIMEOUT
    assert await client.receive() == b""


async def test_bytes_do_not_begin_inspect_delay_anew(relay: Relay) -> None:
    """HAProxy's manual, `tcp-request inspect-delay`: counted from the accept, or a byte now and then holds for ever."""
    relay.start(relay.server(), inspect_delay=5.0)
    relay.freeze()
    client = await relay.connect()
    await relay.accepted(1)
    for position in range(4):
        await relay.send_and_take(client, HELLO[position : position + 1])
        relay.pass_time(1.2)
    assert relay.engine.live
    relay.pass_time(0.4)

    assert (await relay.over()).outcome == Outcome.INSPECT_TIMEOUT


async def test_a_server_that_does_not_answer_ends_at_connect_timeout(relay: Relay) -> None:
    """HAProxy's manual, `timeout connect`. Without one the client hangs as long as it likes (Traefik #9929)."""
    server = relay.server()
    server.fill_backlog()
    relay.start(server, connect_timeout=10.0)
    relay.freeze()
    client = await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection.server)
    relay.pass_time(9.8)
    assert relay.engine.live
    relay.pass_time(0.4)

    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    client.close()
    closed = await relay.over()
    assert (closed.outcome, closed.termination) == (Outcome.BACKEND_UNREACHABLE, "SC")
    assert relay.haproxy.servers[0].errors == {"timeout": 1}


@pytest.mark.parametrize("speaker", ["client", "server"])
async def test_bytes_either_way_keep_a_connection_alive(relay: Relay, speaker: str) -> None:
    """HAProxy's manual, `timeout tunnel`: no byte in either direction for so long."""
    server = relay.server()
    relay.start(server, idle_timeout=600.0)
    relay.freeze()
    client, accepted = await relay.pair(server)
    sender, reader = (client, accepted) if speaker == "client" else (accepted, client)
    for _ in range(3):
        relay.pass_time(500.0)
        assert relay.engine.live
        await sender.send(b"still here")
        assert await reader.receive() == b"still here"
    relay.pass_time(599.0)
    assert relay.engine.live
    relay.pass_time(1.2)

    closed = await relay.over()
    assert (closed.outcome, closed.termination, closed.reason) == (Outcome.RELAYED, "cD", "idle")


async def test_a_server_that_takes_nothing_is_the_one_that_timed_out(relay: Relay) -> None:
    """HAProxy's manual, section 8.5: sD, the server did not read in time."""
    server = relay.server()
    relay.start(server, idle_timeout=600.0)
    relay.freeze()
    client, _ = await relay.pair(server)
    turns = -1
    while relay.connection.server.waiting is None or turns != relay.engine.turns:
        turns = relay.engine.turns
        client.send_what_fits(bytes(1 << 20))
        await asyncio.sleep(0)
    relay.pass_time(600.2)

    assert (await relay.over()).termination == "sD"


@pytest.mark.parametrize("first_to_end", ["client", "server"])
async def test_a_half_closed_connection_has_less_time(relay: Relay, first_to_end: str) -> None:
    """HAProxy's manual, `timeout client-fin`: without it a peer that never closes stays for idle_timeout."""
    server = relay.server()
    relay.start(server, idle_timeout=600.0, half_close_timeout=30.0)
    relay.freeze()
    client, accepted = await relay.pair(server)
    ending, other = (client, accepted) if first_to_end == "client" else (accepted, client)
    ending.half_close()
    assert await other.receive() == b""
    relay.pass_time(29.8)
    assert relay.engine.live
    relay.pass_time(0.4)

    assert (await relay.over()).reason == "idle"


async def test_a_half_closed_connection_that_moves_bytes_lives(relay: Relay) -> None:
    """A download after the request's end may take longer than half_close_timeout."""
    server = relay.server()
    relay.start(server, half_close_timeout=30.0)
    relay.freeze()
    client, accepted = await relay.pair(server)
    client.half_close()
    assert await accepted.receive() == b""
    for _ in range(4):
        relay.pass_time(29.0)
        await accepted.send(b"part")
        assert await client.receive() == b"part"
    accepted.close()

    assert await client.receive() == b""


# ---------------------------------------------------------------------------------------------- dialling


@pytest.mark.parametrize("broken", ["refusing", "missing", "unresolved"])
async def test_the_next_server_takes_what_one_did_not(relay: Relay, broken: str) -> None:
    """HAProxy's manual, `option redispatch`: the client does not notice that one server is down."""
    dead = {
        "refusing": relay.refusing,
        "missing": relay.missing,
        "unresolved": lambda: TcpAddress("name.invalid", 443),
    }[broken]()
    server = relay.server()
    relay.start(dead, server)
    names = {"refusing": "refused", "missing": "missing", "unresolved": "unresolved"}
    for _ in range(2):  # roundrobin begins at either of them
        await relay.greet()
        accepted = await server.accept()
        assert await accepted.receive_exactly(len(HELLO)) == HELLO
    errors, taken = relay.haproxy.servers

    assert errors.errors == {names[broken]: 1}
    assert (errors.connections, taken.connections, taken.active) == (0, 2, 2)
    for end in relay.ends:
        end.close()
    await relay.over(2)
    assert sorted(closed.counts[4] for closed in relay.closed) == [0, 1]
    assert {closed.server_label for closed in relay.closed} == {str(server.address)}


async def test_a_server_that_never_answers_leaves_half_of_the_time_to_the_other(relay: Relay) -> None:
    """With two servers the first may take half of connect_timeout; the client is served within it."""
    silent, server = relay.server(), relay.server()
    silent.fill_backlog()
    relay.start(silent, server, connect_timeout=10.0, balance=Balance.LEASTCONN)
    relay.haproxy.servers[1].up = False  # so that it is the second
    relay.freeze()
    await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection.server)
    relay.pass_time(4.9)
    assert relay.haproxy.servers[0].active == 1
    relay.pass_time(0.3)
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    assert relay.haproxy.servers[0].errors == {"timeout": 1}
    assert relay.haproxy.servers[0].active == 0


async def test_no_server_at_all(relay: Relay) -> None:
    """Each server is tried once and no more: the client is told and let go, there is no loop."""
    relay.start(relay.refusing(), relay.missing(), TcpAddress("name.invalid", 1))
    client = await relay.greet()

    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    client.close()
    closed = await relay.over()
    assert (closed.outcome, closed.backend_label) == (Outcome.BACKEND_UNREACHABLE, "haproxy")
    assert closed.server_label in [server.label for server in relay.haproxy.servers]
    assert closed.reason == "no server of haproxy took the connection"
    assert [server.errors for server in relay.haproxy.servers] == [{"refused": 1}, {"missing": 1}, {"unresolved": 1}]


async def test_it_recovers_by_itself_when_the_server_is_back(relay: Relay) -> None:
    """Traefik #9929: an upstream that was away and came back must simply be used."""
    address = relay.missing()
    assert isinstance(address, UnixAddress)
    relay.start(address)
    client = await relay.greet()
    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    server = relay.server("unix", address.path)
    await relay.greet()
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


async def test_a_unix_socket_whose_backlog_is_full_is_asked_again(relay: Relay) -> None:
    """connect(2), EAGAIN: nothing tells when there is room again. What the client sends meanwhile is not lost."""
    server = relay.server("unix")
    server.fill_backlog()
    relay.start(server)
    client = await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection._backend and relay.connection.slot)
    await client.send(b"early")
    client.half_close()
    await relay.until(lambda: relay.connection.client.finishing)
    await server.accept()  # the one that filled it
    accepted = await server.accept()

    assert await accepted.receive_to_end() == HELLO + b"early"


async def test_a_unix_socket_whose_backlog_stays_full(relay: Relay) -> None:
    """After connect_timeout it counts as an error of its own and the client is told."""
    server = relay.server("unix")
    server.fill_backlog()
    relay.start(server, connect_timeout=10.0)
    relay.freeze()
    client = await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection._backend and relay.connection.slot)
    relay.pass_time(9.0)
    assert relay.connection.outcome == Outcome.RELAYED
    relay.pass_time(1.2)

    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    assert set(relay.haproxy.servers[0].errors) == {"backlog_full"}


async def test_a_full_backlog_does_not_keep_a_client_from_the_other_server(relay: Relay) -> None:
    """Redispatch is for a server that hangs, too: its backlog fills up and never empties."""
    hanging, server = relay.server("unix"), relay.server("unix")
    hanging.fill_backlog()
    relay.start(hanging, server, balance=Balance.SOURCE)
    relay.haproxy.servers[1].up = False  # so that the hanging one is the first choice, again and again
    relay.freeze()
    await relay.greet()
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


async def test_what_a_client_sends_while_the_server_is_dialled_is_not_lost(relay: Relay) -> None:
    """A TCP server that answers a second late: bytes and the end of stream wait for it."""
    server = relay.server()
    server.fill_backlog()
    relay.start(server)
    client = await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection.server)
    await client.send(b"early")
    client.half_close()
    await relay.until(lambda: relay.connection.client.finishing)
    await server.accept()  # the one that filled it; the kernel then sends the SYN again
    accepted = await server.accept()

    assert await accepted.receive_to_end() == HELLO + b"early"


async def test_a_client_that_sends_on_and_on_while_the_server_is_dialled(relay: Relay) -> None:
    """HAProxy's threat model, unbounded allocation: while no server answers, clients must not fill our memory."""
    server = relay.server("unix")
    server.fill_backlog()
    relay.start(server, max_hello=16384)
    client = await relay.connect()
    stream = HELLO + os.urandom(500_000)
    sent = client.send_what_fits(stream)
    await relay.until(lambda: relay.engine.live and relay.connection._first)
    assert len(relay.connection._first) <= 2 * 16384 + INSPECT_BYTES
    await server.accept()  # the one that filled it
    accepted = await server.accept()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(stream[sent:]))
        assert await accepted.receive_exactly(len(stream)) == stream


async def test_a_client_that_resets_while_the_server_is_dialled(relay: Relay) -> None:
    """HAProxy's manual, section 8.5: CC. Nobody is left to connect for."""
    server = relay.server()
    server.fill_backlog()
    relay.start(server)
    client = await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection.server)
    client.reset()
    closed = await relay.over()

    assert (closed.outcome, closed.termination) == (Outcome.CLIENT_LEFT, "CC")


class FailingSocket(socket.SocketType):
    """A server's socket whose first writes fail: the reset came between connect and write."""

    failures = 0

    def send(self, data: Any, *flags: int) -> int:
        if FailingSocket.failures:
            FailingSocket.failures -= 1
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return super().send(data, *flags)


@EVERY_KIND
async def test_a_server_that_resets_before_the_first_write_is_passed_over(
    relay: Relay, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been sent to it yet, so another one can have it."""
    monkeypatch.setattr(FailingSocket, "failures", 1)
    monkeypatch.setattr(sniproxy.relay.connection, "SocketType", FailingSocket)
    one, two = relay.server(kind), relay.server(kind)
    relay.start(one, two)
    replace_epoll(relay.engine, EagerEpoll(relay.engine._epoll, select.EPOLLIN))  # it had spoken before
    await relay.greet()
    await relay.until(lambda: relay.engine.live and relay.connection._connected_at)
    by_label = {str(server.address): server for server in (one, two)}
    accepted = await by_label[relay.connection.server_label].accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    assert not relay.bugs
    assert sorted(len(server.errors) for server in relay.haproxy.servers) == [0, 1]


async def test_no_descriptor_for_the_server(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """connect needs a descriptor too: without one for a second that client is closed, which frees its own."""

    def no_descriptor(*_: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    relay.start(relay.server())
    client = await relay.connect()
    await relay.accepted(1)
    monkeypatch.setattr(sniproxy.relay.connection, "SocketType", no_descriptor)
    await client.send(HELLO)

    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    client.close()
    assert (await relay.over()).outcome == Outcome.BACKEND_UNREACHABLE
    assert relay.haproxy.servers[0].errors == {"descriptors": 1}
    assert 1 <= len(relay.warnings) <= 3  # one a second at most


async def test_a_descriptor_that_is_free_again_soon(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors is no reason to refuse a client that one tick later could be served."""

    def no_descriptor(*_: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    server = relay.server()
    relay.start(server)
    client = await relay.connect()
    await relay.accepted(1)
    with monkeypatch.context() as short:
        short.setattr(sniproxy.relay.connection, "SocketType", no_descriptor)
        await client.send(HELLO)
        await relay.until(lambda: relay.warnings)
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO


async def test_every_address_of_a_name_is_tried(relay: Relay) -> None:
    """RFC 8305 section 1: a name may have an IPv6 address that nobody listens on, and an IPv4 one that works."""
    server = relay.server()
    relay.start(server)
    relay.haproxy.servers[0].resolved(("::1", server.address.port), ("127.0.0.1", server.address.port))
    relay.haproxy.servers[0]._go_to(("::1", server.address.port))
    await relay.greet()
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    assert sum(relay.haproxy.servers[0].errors.values()) == 1
    assert relay.haproxy.servers[0].socket_address == ("127.0.0.1", server.address.port)


async def test_the_line_counts_the_connections_of_the_listener_and_of_the_backend(relay: Relay) -> None:
    """HAProxy's manual, section 8.2.2: actconn, feconn, beconn, srv_conn."""
    first, _ = await relay.pair(relay.server())
    second, _ = await relay.pair()
    first.reset()
    closed = await relay.over()

    assert closed.counts == (2, 2, 2, 2, 0)
    second.close()


# ---------------------------------------------------------------------------------------------- the end


async def test_a_bug_ends_the_connection_it_shows_in_and_no_other(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """certmagic fff412b: a panic in one task took the whole service with it."""
    client, accepted = await relay.pair()
    broken, _ = await relay.pair()
    pump = Peer.pump

    def pump_or_break(self: Peer) -> None:
        if self.connection._number == 2:
            raise ZeroDivisionError("a bug")
        pump(self)

    monkeypatch.setattr(Peer, "pump", pump_or_break)
    await broken.send(b"x")
    closed = await relay.over()
    monkeypatch.undo()
    await client.send(b"fine")

    assert (closed.outcome, closed.termination) == (Outcome.INTERNAL_ERROR, "ID")
    assert await accepted.receive() == b"fine"
    assert [str(bug) for bug in relay.bugs] == ["a bug"]
    relay.bugs.clear()


async def test_a_log_that_fails_keeps_no_connection_open(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told of a connection's end may have a bug; the descriptors are given back nonetheless."""
    client, accepted = await relay.pair()
    told = relay._on_closed

    def tell_and_break(connection: Any) -> None:
        told(connection)
        raise ZeroDivisionError("a bug in the log")

    object.__setattr__(relay.engine._reports, "closed", tell_and_break)
    client.close()
    accepted.close()
    await relay.until(lambda: not relay.engine.live)

    assert [str(bug) for bug in relay.bugs] == ["a bug in the log"]
    relay.bugs.clear()
    assert relay.snapshot().outcomes == {(Outcome.RELAYED, "haproxy"): 1}


async def test_connections_that_are_cut_are_reset_at_both_ends(relay: Relay) -> None:
    """An orderly end would look like a complete answer."""
    client, accepted = await relay.pair()
    assert relay.engine.cut_all() == 1

    assert await client.sees_reset() == b""
    assert await accepted.sees_reset() == b""
    assert (relay.closed[0].outcome, relay.closed[0].termination) == (Outcome.RELAYED, "KD")


async def test_a_client_that_is_cut_before_its_hello_has_left(relay: Relay) -> None:
    """It was never relayed, and no rule refused it."""
    relay.start(relay.server())
    await relay.greet(HELLO[:10])
    await relay.accepted(1)
    relay.engine.cut_all()

    assert (relay.closed[0].outcome, relay.closed[0].termination) == (Outcome.CLIENT_LEFT, "KD")


async def test_a_refused_client_that_is_cut_stays_refused(relay: Relay) -> None:
    """What became of it was decided before."""
    relay.start(relay.server(), default_backend="reject")
    client = await relay.greet()
    await client.receive_to_end()
    relay.engine.cut_all()

    assert relay.closed[0].outcome == Outcome.NO_ROUTE


async def test_what_is_told_of_a_connection(relay: Relay) -> None:
    """HAProxy's manual, section 8.2.3: times, bytes and counts of a connection that went well."""
    server = relay.server()
    relay.start(server)
    relay.freeze()
    await relay.pair(server)
    client = await relay.connect()
    await relay.accepted(2)
    relay.clock.offset += 1.0
    await client.send(HELLO)
    accepted = await server.accept()
    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    relay.clock.offset += 2.0
    await accepted.send(bytes(1000))
    accepted.close()
    assert len(await client.receive_to_end()) == 1000
    client.close()
    closed = await relay.over()

    assert closed.inspect_seconds == pytest.approx(1.0)
    assert closed.connect_seconds == pytest.approx(0.0)
    assert closed.total_seconds == pytest.approx(3.0)
    assert (closed.received, closed.sent) == (len(HELLO), 1000)
    assert closed.counts == (2, 2, 2, 2, 0)
    assert (closed.sni, closed.alpn) == (NAME, (b"h2", b"http/1.1"))
    assert closed.frontend == str(relay.listener.name)
    assert closed.unique_id == relay.engine.id_prefix + "00000002"


async def test_nothing_but_reference_counts_is_needed_to_let_go_of_connections(relay: Relay) -> None:
    """The collector walks all live connections to find those that are over: a cycle in each would cost far too much."""
    gc.collect()
    gc.disable()
    try:
        await play_relayed(relay)
        await relay.over(1)
        client, _ = await relay.pair()
        client.reset()
        await relay.over(2)
        for outcome in (Outcome.NOT_TLS, Outcome.MALFORMED):
            await relay.greet(b"GET" if outcome == Outcome.NOT_TLS else record(b"\x02\x00\x00\x00"))
        relay.ends[-1].close()
        await relay.over(4)
        turns = relay.engine.turns
        await relay.connect()
        await relay.until(lambda: relay.engine.turns > turns)
        left = [found for found in gc.get_objects() if isinstance(found, Connection | Peer)]
    finally:
        gc.enable()

    assert len(left) == 2  # of the one that is open


async def test_two_thousand_connections_leave_no_descriptor(relay: Relay) -> None:
    """After the end of stream both ways nothing is closed by itself: whoever relays has to."""
    server = relay.server("unix")
    relay.start(server)
    await asyncio.sleep(0)
    for number in range(1, 2001):
        client = await relay.greet()
        accepted = await server.accept()
        await accepted.receive_exactly(len(HELLO))
        accepted.close()
        assert await client.receive() == b""
        client.close()
        relay.ends.clear()
        await relay.over(number)

    assert relay.snapshot().outcomes == {(Outcome.RELAYED, "haproxy"): 2000}
