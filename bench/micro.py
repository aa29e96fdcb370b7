"""What single functions on the way of a connection cost: python -m bench.micro.

The smallest of several repeats, because everything that disturbs adds.
"""

from __future__ import annotations

import timeit
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from bench.first_flight import PROTOCOLS, SERVER_NAME, client_hello
from sniproxy.observe.access_log import TcpLog
from sniproxy.policy.routing import Route, Router, RoutingRules
from sniproxy.wire.client_hello import HelloReader, read_whole
from sniproxy.wire.proxy_header import encode_v2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPEATS = 5
SECONDS_PER_REPEAT = 0.03
MAX_HELLO = 16384
CLIENT = "192.0.2.7"
ALPN = tuple(name.encode() for name in PROTOCOLS)


@dataclass(frozen=True, slots=True)
class Timing:
    """What one call takes."""

    name: str
    nanoseconds: float


def timings() -> Iterator[Timing]:
    """All of them, one after the other."""
    for name, call in _calls():
        timer = timeit.Timer(call)
        calls = 100
        while timer.timeit(calls) < SECONDS_PER_REPEAT:
            calls *= 2
        yield Timing(name, min(timer.repeat(REPEATS, calls)) / calls * 1e9)


def _calls() -> Iterator[tuple[str, Callable[[], object]]]:
    hello = client_hello()
    yield f"`read_whole`, hello of {len(hello)} bytes", lambda: read_whole(hello, MAX_HELLO)
    yield "`HelloReader.feed`, the same in one piece", lambda: HelloReader(MAX_HELLO).feed(hello)
    yield "`HelloReader.feed`, the same in two pieces", lambda: _feed(hello[:200], hello[200:])
    yield "`HelloReader.feed`, the same byte by byte", lambda: _feed(*(hello[i : i + 1] for i in range(len(hello))))
    for count in (10, 1_000, 100_000):
        router = _router(count)
        yield f"`Router.tls`, one of {count:,} names", partial(router.tls, "www.site6.example", ALPN, CLIENT)
        yield f"`Router.tls`, none of {count:,} names", partial(router.tls, "a.b.c.example.com", ALPN, CLIENT)
    yield (
        "`encode_v2`, IPv4, name, protocol and unique id",
        lambda: encode_v2(
            (CLIENT, 51514),
            ("198.51.100.1", 443),
            authority=SERVER_NAME,
            alpn=ALPN[0],
            unique_id=b"5f3c1b2a9d04-0000002a",
        ),
    )
    line, connection = TcpLog(), _closed()
    yield "`TcpLog`, one line", lambda: line(connection)


def _feed(*portions: bytes) -> object:
    reader = HelloReader(MAX_HELLO)
    hello = None
    for portion in portions:
        hello = reader.feed(portion)
    return hello


def _router(count: int) -> Router:
    """A third each of exact names, of one label more, and of any depth."""
    forms = ("www.site{}.example", "*.site{}.example", ".site{}.example")
    routes = tuple(Route(sni=(forms[number % 3].format(number),), backend="b") for number in range(count))
    return Router(RoutingRules(routes=routes, default_backend="reject"))


def _closed() -> SimpleNamespace:
    return SimpleNamespace(
        accepted_at=1_790_000_000.123,
        address=(CLIENT, 51514),
        frontend="0.0.0.0:443",
        backend_label="haproxy",
        server_label="unix:/run/haproxy/sniproxy.sock",
        inspect_seconds=0.0004,
        connect_seconds=0.0001,
        total_seconds=0.212,
        sent=5021,
        termination="--",
        counts=(12, 12, 3, 3, 0),
        sni=SERVER_NAME,
        alpn=ALPN,
        unique_id="5f3c1b2a9d04-0000002a",
    )


if __name__ == "__main__":
    for timing in timings():
        print(f"{timing.nanoseconds:12,.0f} ns  {timing.name}")
