"""Connections of a CA: no limit keeps them out, and none of them stays."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.model import Outcome
from sniproxy.policy.routing import RESPONDER, Networks, Router, RoutingRules
from sniproxy.relay.connection import CHALLENGE_SECONDS, LINGER_SECONDS
from sniproxy.relay.engine import MAX_TOLERATED, RelaySettings
from tests.support.engine import HELLO, NAME, End, Relay, ScriptedServer
from tests.support.hellos import client_hello, hello, record, server_name

if TYPE_CHECKING:
    from sniproxy.model import Address

VALIDATION = hello(NAME, b"acme-tls/1")
TOKEN_NAME = hello("0123.4567.acme.invalid")
INTERNAL_ERROR, DECODE_ERROR = 80, 50

LOCALHOST = Networks([ip_network("127.0.0.0/8")])


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


def start(relay: Relay, server: ScriptedServer | Address, *, pending: bool = True, **options: Any) -> None:
    """A relay for whose one name a validation is pending, or was."""
    relay.start(server, challenge=lambda _: pending, validation_pending=lambda: pending, **options)


async def validation(relay: Relay, server: ScriptedServer, first: bytes = VALIDATION) -> tuple[End, End]:
    """A validator and the responder, behind the hello."""
    client = await relay.greet(first)
    accepted = await server.accept()
    assert await accepted.receive_exactly(len(first)) == first
    return client, accepted


# ---------------------------------------------------------------------------------------------- over the limit


async def fill(relay: Relay, count: int = 1) -> None:
    """As many connections of the one client as it may have."""
    for _ in range(count):
        await relay.connect()
    await relay.accepted(count)


@pytest.mark.parametrize("first", [VALIDATION, TOKEN_NAME], ids=["tls-alpn-01", "tls-sni"])
async def test_a_validation_is_let_in_however_many_connections_its_sender_has(relay: Relay, first: bytes) -> None:
    """Let's Encrypt, "Multi-Perspective Validation": a CA's addresses are not announced, and may be shared."""
    server = relay.server()
    start(relay, server, max_connections_per_client=1)
    await fill(relay)
    client, accepted = await validation(relay, server, first)
    await accepted.send(b"certificate")
    assert await client.receive() == b"certificate"
    accepted.close()
    client.close()

    assert (await relay.over()).outcome == Outcome.CHALLENGE


async def test_a_validation_is_let_in_above_the_rate(relay: Relay) -> None:
    """HAProxy's manual, `src_conn_rate`: the same for the other limit."""
    server = relay.server()
    start(relay, server, max_connection_rate_per_client=2)
    relay.freeze()
    await fill(relay, 2)
    client, accepted = await validation(relay, server)
    accepted.close()
    client.close()

    assert (await relay.over()).outcome == Outcome.CHALLENGE


async def test_it_is_not_counted_among_its_clients_connections(relay: Relay) -> None:
    """Every admission is answered by one departure: a connection that was never admitted does not leave either."""
    server = relay.server()
    start(relay, server, max_connections_per_client=1)
    await fill(relay)
    client, accepted = await validation(relay, server)
    (counted,) = relay.engine.admission._clients.values()
    assert counted.connections == 1
    accepted.close()
    client.close()
    await relay.over()
    (counted,) = relay.engine.admission._clients.values()

    assert counted.connections == 1


@pytest.mark.parametrize(
    "first",
    [HELLO, hello(None), hello(NAME, b"h2", b"acme-tls/1"), b"SSH-2.0-OpenSSH_9.2\r\n"],
    ids=["a name", "no name", "two protocols", "not TLS"],
)
async def test_anything_else_over_the_limit_is_refused_once_it_has_said_what_it_is(relay: Relay, first: bytes) -> None:
    """RFC 8737 section 3: only the single protocol acme-tls/1 is a validation. No server gets to see the others."""
    start(relay, relay.refusing(), max_connections_per_client=1, not_tls="haproxy")
    await fill(relay)
    client = await relay.greet(first)
    assert await client.receive() == b""
    closed = await relay.over()

    assert (closed.outcome, closed.termination) == (Outcome.LIMITED, "PR")
    assert closed.reason == "more connections than one client may have"
    assert relay.haproxy.servers[0].errors == {}


async def test_a_name_that_is_not_pending_is_limited_too(relay: Relay) -> None:
    """While any validation is pending all are heard; that one is pending for another name excuses nobody."""
    relay.start(
        relay.server(), max_connections_per_client=1, challenge=lambda _: False, validation_pending=lambda: True
    )
    await fill(relay)
    for first in (VALIDATION, TOKEN_NAME):
        assert await (await relay.greet(first)).receive() == b""
    closed = await relay.over(2)

    assert closed.outcome == relay.closed[0].outcome == Outcome.LIMITED


async def test_a_hello_over_the_limit_that_is_broken_is_broken(relay: Relay) -> None:
    """It never got as far as a decision; the limit goes on holding for the next."""
    start(relay, relay.server(), max_connections_per_client=1)
    await fill(relay)
    client = await relay.greet(record(client_hello(server_name(NAME, claim=200))))
    assert await client.receive_to_end() == alert(DECODE_ERROR)
    client.close()

    assert (await relay.over()).outcome == Outcome.MALFORMED


async def test_without_a_pending_validation_no_byte_is_read(relay: Relay) -> None:
    """As before: the cheapest refusal is the one before the hello."""
    start(relay, relay.server(), pending=False, max_connections_per_client=1)
    await fill(relay)
    client = await relay.connect()

    assert await client.receive() == b""
    closed = await relay.over()
    assert (closed.outcome, closed.inspect_seconds) == (Outcome.LIMITED, None)


async def test_so_many_are_heard_at_once_and_no_more(relay: Relay) -> None:
    """HAProxy's threat model, asymmetric cost: an exception from a limit needs a limit of its own."""
    server = relay.server()
    start(relay, server, max_connections_per_client=1)
    await fill(relay)
    heard = [await relay.connect() for _ in range(MAX_TOLERATED)]
    await relay.accepted(1 + MAX_TOLERATED)
    assert await (await relay.connect()).receive() == b""
    assert (await relay.over()).outcome == Outcome.LIMITED
    heard[0].close()
    await relay.over(2)
    client, accepted = await validation(relay, server)
    accepted.close()
    client.close()

    assert (await relay.over(3)).outcome == Outcome.CHALLENGE


async def test_one_that_is_heard_and_says_nothing_has_inspect_delay(relay: Relay) -> None:
    """HAProxy's manual, `tcp-request inspect-delay`: the same for all."""
    start(relay, relay.server(), max_connections_per_client=1, inspect_delay=5.0)
    relay.freeze()
    await fill(relay)
    silent = await relay.connect()
    await relay.accepted(2)
    relay.pass_time(5.2)

    assert await silent.receive() == b""
    assert [closed.outcome for closed in relay.closed] == [Outcome.INSPECT_TIMEOUT] * 2


async def test_a_validation_behind_a_trusted_sender(relay: Relay) -> None:
    """HAProxy's proxy-protocol.txt: the client is the one in the header, and it is the one that is over its limit."""
    server = relay.server()
    start(relay, server, max_connections_per_client=1, accept_proxy_from=LOCALHOST)
    header = b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\n"
    await relay.greet(header)
    await relay.until(lambda: relay.engine.live and relay.connection.admitted)
    client = await relay.greet(header + VALIDATION)
    accepted = await server.accept()
    assert await accepted.receive_exactly(len(VALIDATION)) == VALIDATION
    accepted.close()
    client.close()
    assert (await relay.over()).outcome == Outcome.CHALLENGE
    refused = await relay.greet(header + HELLO)

    assert await refused.receive() == b""
    assert (await relay.over(2)).outcome == Outcome.LIMITED


async def test_a_reload_while_one_is_heard(relay: Relay) -> None:
    """Other limits come with another table; who was never in the old one leaves neither of them."""
    start(relay, relay.server(), max_connections_per_client=1)
    await fill(relay)
    heard = await relay.greet(HELLO[:20])
    await relay.until(lambda: relay.engine.tolerated)
    relay.engine.reconfigure(
        RelaySettings(max_connections_per_client=5),
        Router(RoutingRules(default_backend="haproxy")),
        relay.engine.backends.values(),
    )
    await heard.send(HELLO[20:])

    assert await heard.receive() == b""
    assert (await relay.over()).outcome == Outcome.LIMITED
    assert relay.engine.admission._clients == {}


# ---------------------------------------------------------------------------------------------- its own deadline


async def at_its_deadline(relay: Relay) -> None:
    """Nothing ends the validation before its time is over, and then it ends."""
    relay.pass_time(CHALLENGE_SECONDS - 0.2)
    assert not relay.closed
    relay.pass_time(0.4)
    closed = await relay.over()
    assert (closed.outcome, closed.termination) == (Outcome.CHALLENGE, "cD")
    assert closed.reason == "a validation that did not end within 5 s"


@pytest.mark.parametrize("settings", [{"idle_timeout": 600.0}, {"idle_timeout": 1.0, "half_close_timeout": 1.0}])
async def test_a_validation_that_falls_silent_ends(relay: Relay, settings: dict[str, float]) -> None:
    """CVE-2026-22045: handshake done, and then nothing. No other timeout has a say in it."""
    server = relay.server("unix")
    start(relay, server, **settings)
    relay.freeze()
    client, accepted = await validation(relay, server)
    await at_its_deadline(relay)

    assert await client.receive() == b""
    assert await accepted.receive() == b""


@pytest.mark.parametrize("speaker", ["validator", "responder"])
async def test_bytes_do_not_begin_it_anew(relay: Relay, speaker: str) -> None:
    """Traefik's lesson: a deadline that each byte puts off is none."""
    server = relay.server("unix")
    start(relay, server)
    relay.freeze()
    client, accepted = await validation(relay, server)
    sender, reader = (client, accepted) if speaker == "validator" else (accepted, client)
    for _ in range(4):
        await sender.send(b"x")
        assert await reader.receive() == b"x"
        relay.pass_time(1.2)
    assert not relay.closed
    relay.pass_time(0.4)

    assert (await relay.over()).termination == "cD"


@pytest.mark.parametrize("ends", ["validator", "responder"])
async def test_a_half_close_does_not_begin_it_anew(relay: Relay, ends: str) -> None:
    """Nor does half_close_timeout, which is six times as long."""
    server = relay.server("unix")
    start(relay, server, half_close_timeout=30.0)
    relay.freeze()
    client, accepted = await validation(relay, server)
    first, second = (client, accepted) if ends == "validator" else (accepted, client)
    first.half_close()
    assert await second.receive() == b""

    await at_its_deadline(relay)


async def test_a_validator_that_stays_when_the_responder_is_gone(relay: Relay) -> None:
    """A relay waits for both ends; for this one not half a minute."""
    server = relay.server("unix")
    start(relay, server)
    relay.freeze()
    client, accepted = await validation(relay, server)
    accepted.close()
    assert await client.receive() == b""

    await at_its_deadline(relay)


async def test_a_validator_that_reads_nothing_when_the_responder_is_gone(relay: Relay) -> None:
    """Bytes that nobody takes hold nothing up either."""
    server = relay.server("unix")
    start(relay, server)
    relay.freeze()
    await relay.greet(VALIDATION, receive_buffer=4096)
    accepted = await server.accept()
    assert await accepted.receive_exactly(len(VALIDATION)) == VALIDATION
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(accepted.send(bytes(1 << 24)))
        await relay.until(lambda: relay.connection.client.waiting)
        sending.cancel()
    accepted.close()

    await at_its_deadline(relay)


async def test_a_hundred_silent_validations_leave_room_for_others(relay: Relay) -> None:
    """All of them end, and a connection that is none of them goes on."""
    server = relay.server("unix")
    relay.start(server, challenge=lambda name: name == "silent.example")
    relay.freeze()
    ordinary = await relay.greet()
    other_end = await server.accept()
    assert await other_end.receive_exactly(len(HELLO)) == HELLO
    first = hello("silent.example", b"acme-tls/1")
    for _ in range(100):
        await validation(relay, server, first)
    relay.pass_time(CHALLENGE_SECONDS + 0.2)
    await relay.over(100)
    assert relay.snapshot().outcomes == {(Outcome.CHALLENGE, RESPONDER): 100}
    await ordinary.send(b"still here")

    assert await other_end.receive() == b"still here"


async def test_a_responder_that_takes_nothing(relay: Relay) -> None:
    """connect(2), EAGAIN: a full backlog is asked again, for less than connect_timeout, and with time for the alert."""
    server = relay.server("unix")
    server.fill_backlog()
    start(relay, server, connect_timeout=10.0)
    relay.freeze()
    client = await relay.greet(VALIDATION)
    await relay.until(lambda: relay.engine.live and relay.connection._backend and relay.connection.slot)
    relay.pass_time(CHALLENGE_SECONDS - LINGER_SECONDS - 0.2)
    assert relay.connection.outcome == Outcome.RELAYED
    relay.pass_time(0.4)

    assert await client.receive_to_end() == alert(INTERNAL_ERROR)
    relay.pass_time(LINGER_SECONDS + 0.2)
    assert (await relay.over()).outcome == Outcome.BACKEND_UNREACHABLE


async def test_a_connection_that_is_no_validation_has_no_such_deadline(relay: Relay) -> None:
    """HAProxy's manual, `timeout tunnel`: it counts from the last byte."""
    server = relay.server("unix")
    start(relay, server)
    relay.freeze()
    await relay.greet()
    await server.accept()
    await relay.until(lambda: relay.connection._connected_at)
    relay.pass_time(CHALLENGE_SECONDS * 10)

    assert not relay.closed
