"""The turn, accepting and its rests, limits, reloads, and the counters that always add up."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import select
import socket
from ipaddress import ip_network
from typing import Any

import pytest

import sniproxy.relay.engine
from sniproxy.model import Outcome, TcpAddress, UnixAddress
from sniproxy.policy.routing import Networks, Route, Router, RoutingRules
from sniproxy.relay.connection import Connection
from sniproxy.relay.engine import ACCEPTS_PER_WAKE, RelaySettings
from sniproxy.relay.listener import bind
from tests.support.engine import HELLO, NAME, End, Relay, replace_epoll
from tests.support.hellos import hello

# ---------------------------------------------------------------------------------------------- accepting


async def test_at_max_connections_the_next_ones_wait_and_none_is_dropped(relay: Relay) -> None:
    """HAProxy's manual, `maxconn`: connections above it are not refused, they wait in the kernel's backlog."""
    server = relay.server()
    relay.start(server, max_connections=3)
    clients = [await relay.greet() for _ in range(10)]
    accepted = [await server.accept() for _ in range(3)]
    await relay.until(lambda: relay.engine._full)
    assert (relay.snapshot().active, relay.snapshot().accepted) == (3, 3)
    for number in range(10):
        assert len(relay.engine.live) <= 3
        clients[number].close()
        accepted[number].close()
        await relay.over(number + 1)
        if number + 3 < 10:
            accepted.append(await server.accept())

    assert relay.snapshot().outcomes == {(Outcome.RELAYED, "haproxy"): 10}


async def test_a_higher_max_connections_lets_those_in_who_wait(relay: Relay) -> None:
    """A reload that raises the limit must not need a connection to end first."""
    relay.start(relay.server(), max_connections=1)
    for _ in range(2):
        await relay.connect()
    await relay.until(lambda: relay.engine._full)
    reconfigure(relay, max_connections=2)

    await relay.accepted(2)


async def test_more_connections_at_once_than_one_turn_takes(relay: Relay) -> None:
    """Those that are left are still announced: accepting is level-triggered."""
    relay.start(relay.server())
    for _ in range(3 * ACCEPTS_PER_WAKE):
        await relay.connect()
    await relay.accepted(3 * ACCEPTS_PER_WAKE)

    assert len(relay.engine.live) == 3 * ACCEPTS_PER_WAKE


def failing_accept(relay: Relay, *numbers: int) -> list[int]:
    """Has the next accepts fail with these errnos; returns a list in which the attempts are noted."""
    accept, left, attempts = relay.listener.accept, list(numbers), []

    def failing() -> Any:
        attempts.append(1)
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return accept()

    relay.listener.accept = failing
    return attempts


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
async def test_out_of_descriptors_accepting_rests_and_goes_on(
    relay: Relay, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2025-46807 (sslh) was a crash; asyncio's own server tries again thousands of times a second."""
    server = relay.server()
    relay.start(server)
    monkeypatch.setattr(sniproxy.relay.engine, "PAUSE_SECONDS", 0.1)
    attempts = failing_accept(relay, number)
    before = asyncio.get_running_loop().time()
    await relay.greet()
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    assert len(attempts) <= 3
    assert asyncio.get_running_loop().time() - before >= 0.09
    assert len(relay.warnings) == 1
    assert os.strerror(number) in relay.warnings[0]
    assert "LimitNOFILE" in relay.warnings[0]


async def test_while_accepting_rests_connections_go_on(relay: Relay) -> None:
    """Those that are there have their descriptors."""
    client, accepted = await relay.pair()
    failing_accept(relay, *[errno.EMFILE] * 100)
    await relay.connect()
    await relay.until(lambda: relay.warnings)
    await client.send(b"ping")

    assert await accepted.receive() == b"ping"


async def test_one_warning_a_second(relay: Relay) -> None:
    """A flood of log lines would be the second harm."""
    relay.start(relay.server())
    relay.freeze()
    error = OSError(errno.EMFILE, "Too many open files")
    relay.engine.now = relay.clock.monotonic()
    for _ in range(20):
        relay.engine.pause_for_descriptors(error)
    assert len(relay.warnings) == 1
    relay.engine.now += 1.1
    for _ in range(20):
        relay.engine.pause_for_descriptors(error)

    assert len(relay.warnings) == 2


async def test_a_real_lack_of_descriptors(relay: Relay) -> None:
    """Clients for whom no descriptor is left wait, nothing spins, and they are taken when some are free again."""
    client, accepted = await relay.pair()
    waiting = relay.keep(End(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
    attempts = failing_accept(relay)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        await asyncio.get_running_loop().sock_connect(waiting.sock, relay.listener.socket.getsockname())
        await relay.until(lambda: relay.warnings)
        turns = relay.engine.turns
        await client.send(b"ping")
        assert await accepted.receive() == b"ping"
        await relay.until(lambda: len(attempts) == 3)
        assert relay.engine.turns - turns < 20
        assert relay.snapshot().accepted == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    await relay.accepted(2)
    assert relay.snapshot().active == 2


@pytest.mark.parametrize(
    "number",
    [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH, errno.EPERM, errno.ENETDOWN],
    ids=errno.errorcode.get,
)
async def test_an_error_of_one_connection_is_no_reason_to_rest(relay: Relay, number: int) -> None:
    """accept(2): "treat them like EAGAIN" — it was about that connection, and the next one may be fine."""
    server = relay.server()
    relay.start(server)
    failing_accept(relay, number, number)
    await relay.greet()
    accepted = await server.accept()

    assert await accepted.receive_exactly(len(HELLO)) == HELLO
    assert not relay.warnings


async def test_several_listeners(relay: Relay) -> None:
    """Each connection is told with the address it came in on."""
    server = relay.server()
    relay.start(server)
    second = bind(UnixAddress(relay.path("second.sock")))
    relay.engine.listen([second])
    (await relay.connect()).close()
    first = await relay.over()
    relay.listener, listener = second, relay.listener
    (await relay.connect()).close()
    last = await relay.over(2)

    assert (first.frontend, last.frontend) == (listener.name, second.name)


async def test_a_listener_that_is_taken_away(relay: Relay) -> None:
    """Connections that came in on it go on; others are refused by the kernel, and other listeners stay."""
    client, accepted = await relay.pair()
    other = bind(TcpAddress("127.0.0.1", 0))
    relay.engine.listen([other])
    address = relay.listener.socket.getsockname()
    relay.engine.unlisten([relay.listener])
    refused = relay.keep(End(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.get_running_loop().sock_connect(refused.sock, address)
    await client.send(b"still here")
    assert await accepted.receive() == b"still here"
    relay.listener = other
    await relay.connect()

    await relay.accepted(2)
    assert relay.engine.listening
    relay.engine.stop_listening()
    assert not relay.engine.listening


# ---------------------------------------------------------------------------------------------- limits


async def test_connections_of_one_client_are_limited_and_others_are_not(relay: Relay) -> None:
    """HAProxy's manual, `src_conn_cur`: the limit is by client, and one that ends makes room."""
    relay.start(relay.server(), max_connections_per_client=2)
    first, _ = await relay.connect(), await relay.connect()
    await relay.accepted(2)
    third = await relay.connect()
    assert await third.receive() == b""
    assert (await relay.over()).outcome == Outcome.LIMITED
    await relay.connect(source="127.0.0.2")
    await relay.accepted(4)
    assert len(relay.engine.live) == 3
    first.close()
    await relay.over(2)
    await relay.connect()
    await relay.accepted(5)

    assert len(relay.engine.live) == 3


async def test_new_connections_of_one_client_are_limited_by_the_second(relay: Relay) -> None:
    """HAProxy's manual, `src_conn_rate`."""
    relay.start(relay.server(), max_connection_rate_per_client=3)
    relay.freeze()
    for _ in range(3):
        (await relay.connect()).close()
    await relay.over(3)
    assert await (await relay.connect()).receive() == b""
    assert (await relay.over(4)).outcome == Outcome.LIMITED
    relay.clock.offset += 1.1
    await relay.connect()

    await relay.accepted(5)
    assert len(relay.engine.live) == 1


async def test_clients_behind_a_trusted_sender_are_limited_each(relay: Relay) -> None:
    """The address in the PROXY header counts: the proxy in front would be one client otherwise."""
    networks = Networks([ip_network("127.0.0.0/8")])
    relay.start(relay.server(), max_connections_per_client=1, accept_proxy_from=networks)
    header = b"PROXY TCP4 192.0.2.%d 192.0.2.9 1 2\r\n"
    await relay.greet(header % 1)
    await relay.greet(header % 2)
    await relay.until(lambda: sum(connection.admitted for connection in relay.engine.live) == 2)
    again = await relay.greet(header % 1)

    assert await again.receive() == b""
    closed = await relay.over()
    assert (closed.outcome, closed.address[0]) == (Outcome.LIMITED, "192.0.2.1")


# ---------------------------------------------------------------------------------------------- reload


def reconfigure(relay: Relay, *, router: Router | None = None, backends: Any = None, **settings: Any) -> None:
    backends = backends or relay.engine.backends.values()
    relay.all_backends += backends
    relay.engine.reconfigure(RelaySettings(**settings), router or relay.router, backends)


async def test_a_reload_keeps_connections_and_routes_new_ones_anew(relay: Relay) -> None:
    """HAProxy's manual, section 3.6 (management): established connections are not touched by a new configuration."""
    client, accepted = await relay.pair()
    elsewhere = relay.server()
    rules = RoutingRules(routes=(Route(sni=(NAME,), backend="git"),), default_backend="reject")
    reconfigure(relay, router=Router(rules), backends=[relay.backend("git", [elsewhere.address])])
    await relay.greet()
    assert await (await elsewhere.accept()).receive_exactly(len(HELLO)) == HELLO
    await client.send(b"old")
    assert await accepted.receive() == b"old"
    client.close()
    accepted.close()

    assert (await relay.over()).backend_label == "haproxy"


async def test_a_reload_in_the_midst_of_a_hello(relay: Relay) -> None:
    """The decision is made by the rules in force when it is made."""
    relay.start(relay.server())
    client = await relay.greet(HELLO[:30])
    await relay.until(lambda: relay.engine.live and relay.connection._reader)
    reconfigure(relay, router=Router(RoutingRules(default_backend="reject")))
    await client.send(HELLO[30:])
    await client.receive_to_end()
    client.close()

    assert (await relay.over()).outcome == Outcome.NO_ROUTE


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 5)])
async def test_a_reload_that_changes_limits(relay: Relay, before: int, after: int) -> None:
    """Connections that were counted by the old table end without disturbing the new one."""
    relay.start(relay.server(), max_connections_per_client=before)
    old = [await relay.connect() for _ in range(2)]
    await relay.accepted(2)
    reconfigure(relay, max_connections_per_client=after)
    new = [await relay.connect() for _ in range(2)]
    await relay.accepted(4)
    for client in (*old, *new):
        client.close()
    await relay.over(4)

    assert relay.snapshot().outcomes == {(Outcome.CLIENT_LEFT, ""): 4}
    assert relay.engine.admission._clients == {}


# ---------------------------------------------------------------------------------------------- the turn


class ScriptedEpoll:
    """Announces what the test says, once, in this order."""

    def __init__(self, real: Any, events: list[tuple[int, int]]) -> None:
        self.real = real
        self.events = events

    def poll(self, *_: int) -> list[tuple[int, int]]:
        return self.events

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def test_an_event_of_a_closed_descriptor_does_not_reach_its_successor(relay: Relay) -> None:
    """The kernel hands out the lowest free number: a connection accepted in the same turn gets the one just closed."""
    client, _ = await relay.pair()
    old = relay.connection
    numbers = {old.client.fd, old.server.fd}
    # Without a turn of the event loop in between.
    newcomer = relay.keep(End(socket.create_connection(relay.listener.socket.getsockname())))
    client.reset()
    taken = os.dup(0)  # the number that was the client's own
    engine = relay.engine
    real = engine._epoll
    gone = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP
    events = [(old.client.fd, gone), (relay.listener.fd, select.EPOLLIN), *((fd, gone) for fd in numbers)]
    replace_epoll(engine, ScriptedEpoll(real, events))
    try:
        engine.wake()
    finally:
        engine._epoll = real
        os.close(taken)
    new = relay.connection

    assert old.over
    assert new.client.fd in numbers
    assert not new.client.finishing
    await newcomer.send(HELLO)
    assert await (await relay.servers[0].accept()).receive_exactly(len(HELLO)) == HELLO


async def test_events_of_both_ends_in_one_turn(relay: Relay) -> None:
    """The first one may end the connection; the second is then nobody's."""
    client, accepted = await relay.pair()
    connection = relay.connection
    client.reset()
    accepted.reset()
    gone = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP
    real = relay.engine._epoll
    events = [(connection.client.fd, gone), (connection.server.fd, gone)]
    replace_epoll(relay.engine, ScriptedEpoll(real, events))
    try:
        relay.engine.wake()
    finally:
        relay.engine._epoll = real

    assert connection.over
    assert not relay.bugs


class Insatiable:
    """A peer that always has more than its share."""

    over = False

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.pumps = 0

    def pump(self) -> None:
        self.pumps += 1
        again: Any = self.relay.engine.again
        again(self)


async def test_the_event_loop_has_its_turn_between_two_of_a_bulk_transfer(relay: Relay) -> None:
    """However often the engine is woken, one further turn is asked for: they must not add up until they are all."""
    relay.start(relay.server())
    peer: Any = Insatiable(relay)
    relay.engine.again(peer)
    for _ in range(50):
        relay.engine.wake()
    before = peer.pumps
    for _ in range(10):
        await asyncio.sleep(0)
    peer.over = True

    assert before == 50
    assert peer.pumps - before <= 20


async def test_an_engine_that_is_closed_in_mid_transfer_asks_for_no_further_turn(relay: Relay) -> None:
    """What was left over for the next turn must not find a closed epoll."""
    await relay.pair()
    relay.engine.again(relay.connection.client)
    relay.engine.wake()
    relay.engine.again(relay.connection.client)
    relay.engine._next = relay.engine._loop.call_soon(relay.engine.wake)
    problems: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    relay.engine.close()
    for _ in range(3):
        await asyncio.sleep(0)

    assert problems == []
    assert [closed.termination for closed in relay.closed] == ["KD"]
    relay.started = False


async def test_a_bug_before_the_first_byte(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in one connection's first step, its socket is closed and the next one is served."""
    server = relay.server()
    relay.start(server)
    start = Connection.start
    failures = [ZeroDivisionError("a bug")]

    def start_or_break(self: Connection) -> None:
        if failures:
            raise failures.pop()
        start(self)

    monkeypatch.setattr(Connection, "start", start_or_break)
    await relay.greet()
    closed = await relay.over()
    await relay.greet()

    assert await (await server.accept()).receive_exactly(len(HELLO)) == HELLO
    assert (closed.outcome, closed.termination) == (Outcome.INTERNAL_ERROR, "IR")
    assert [str(bug) for bug in relay.bugs] == ["a bug"]
    relay.bugs.clear()


async def test_a_bug_in_a_deadline(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others whose deadline is the same still have theirs looked at."""
    relay.start(relay.server(), inspect_delay=5.0)
    relay.freeze()
    for _ in range(3):
        await relay.connect()
    await relay.accepted(3)
    timeout = Connection._on_inspect_timeout

    def timeout_or_break(self: Connection) -> None:
        if self._number == 2:
            raise ZeroDivisionError("a bug")
        timeout(self)

    for connection in relay.engine.live:
        monkeypatch.setattr(Connection, "_on_inspect_timeout", timeout_or_break)
        connection._expire = connection._on_inspect_timeout
    relay.pass_time(5.2)

    assert sorted(closed.outcome for closed in relay.closed) == sorted(
        [Outcome.INTERNAL_ERROR, Outcome.INSPECT_TIMEOUT, Outcome.INSPECT_TIMEOUT]
    )
    assert len(relay.bugs) == 1
    relay.bugs.clear()


# ---------------------------------------------------------------------------------------------- the counters


async def test_accepted_is_active_plus_all_outcomes_at_every_turn(relay: Relay) -> None:
    """Each accepted connection is either open or has ended in exactly one way, whenever one looks."""
    server = relay.server()
    relay.start(server, routes=[Route(sni=(".example.org",), backend="haproxy", deny=(ip_network("127.0.0.0/8"),))])
    dice = random.Random(11)
    wrong: list[Any] = []
    last: dict[str, int] = {}

    def look() -> bool:
        now = relay.snapshot()
        if now.accepted != now.active + sum(now.outcomes.values()):
            wrong.append(now)
        for direction, totals in (("in", now.received), ("out", now.sent)):
            if sum(totals.values()) < last.get(direction, 0):
                wrong.append(now)  # a counter that goes down
            last[direction] = sum(totals.values())
        return False

    async def play_server() -> None:
        while True:
            accepted = await server.accept()
            tasks.append(asyncio.get_running_loop().create_task(echo(accepted)))

    async def echo(accepted: End) -> None:
        try:
            while part := await accepted.receive():
                await accepted.send(part)
        except OSError:
            pass
        accepted.close()

    async def play_client() -> None:
        for _ in range(20):
            first = dice.choice((HELLO, HELLO, hello("a.example.org"), b"GET / HTTP/1.1\r\n", HELLO[:40]))
            client = await relay.greet(first)
            try:
                if first is HELLO:
                    data = bytes(dice.choice((1, 1000, 50_000)))
                    await client.send(data)
                    await client.receive_exactly(dice.choice((1, len(HELLO) + len(data))))
                if dice.random() < 0.5:
                    client.reset()
            except OSError:
                pass
            client.close()

    tasks: list[asyncio.Task[None]] = []
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    relay.engine.waiters.append((look, future))
    tasks.append(asyncio.get_running_loop().create_task(play_server()))
    async with asyncio.TaskGroup() as clients:
        for _ in range(16):
            clients.create_task(play_client())
    await relay.over(320)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    relay.engine.waiters.clear()

    assert wrong == []
    assert relay.snapshot().accepted == 320
    assert {outcome for outcome, _ in relay.snapshot().outcomes} == {
        Outcome.RELAYED,
        Outcome.REJECTED,
        Outcome.NOT_TLS,
        Outcome.CLIENT_LEFT,
    }


async def test_bytes_of_live_connections_are_in_the_snapshot(relay: Relay) -> None:
    """A transfer of hours must not show as one jump at its end."""
    client, accepted = await relay.pair()
    await client.send(bytes(1000))
    await accepted.receive_exactly(1000)
    await accepted.send(bytes(50))
    await client.receive_exactly(50)
    now = relay.snapshot()

    assert now.received == {"haproxy": len(HELLO) + 1000}
    assert now.sent == {"haproxy": 50}
    assert now.active == 1
    assert [(server.active, server.connections) for server in now.servers] == [(1, 1), (0, 0)]


async def test_times_go_into_the_histograms(relay: Relay) -> None:
    """Inspecting and connecting once for each that got there; the whole for every one."""
    relay.start(relay.refusing())
    (await relay.connect()).close()
    await relay.over(1)
    await (await relay.greet()).receive_to_end()
    relay.ends[-1].close()
    await relay.over(2)
    now = relay.snapshot()

    assert (sum(now.inspect.counts), sum(now.connect.counts), sum(now.connection.counts)) == (1, 0, 2)
