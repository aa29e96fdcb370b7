"""Servers given by host name: what is looked up, and what happens when that fails."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from sniproxy.app import resolve as module
from sniproxy.app.resolve import is_ip_address, is_loopback, keep_resolved, resolve
from sniproxy.model import TcpAddress, UnixAddress
from sniproxy.relay.backend import Server


def server(host: str) -> Server:
    return Server("web", TcpAddress(host, 443))


@pytest.mark.parametrize(
    ("host", "answer"),
    [("192.0.2.1", True), ("2001:db8::1", True), ("example.com", False), ("localhost", False), ("192.0.2", False)],
)
def test_what_is_an_address(host: str, answer: bool) -> None:
    """RFC 1123 section 2.1: a host is checked for being an address first."""
    assert is_ip_address(host) is answer


@pytest.mark.parametrize(("host", "family"), [("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)])
def test_an_address_is_its_own_answer(host: str, family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for what is known."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked"))
    one = server(host)
    asyncio.run(resolve([one]))

    assert (one.socket_address, one.family) == ((host, 443), family)


def test_a_unix_socket_is_left_alone() -> None:
    """It has its address from the beginning."""
    one = Server("web", UnixAddress("/run/web.sock"))
    asyncio.run(resolve([one]))

    assert one.socket_address == "/run/web.sock"


def test_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6724: the resolver's first answer is its best."""
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 443)),
               (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.8", 443))]  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    one = server("haproxy.example")
    asyncio.run(resolve([one]))

    assert one.socket_address == ("192.0.2.7", 443)


def test_a_name_that_cannot_be_found_keeps_its_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver that is down for a minute is no reason to drop a server that works."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    one = server("haproxy.example")
    one.resolved(("192.0.2.1", 443))
    with caplog.at_level(logging.WARNING):
        asyncio.run(resolve([one]))

    assert one.socket_address == ("192.0.2.1", 443)
    assert caplog.messages == ["backend web: cannot look up haproxy.example: Name or service not known"]


def test_a_resolver_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start waits a few seconds for it, and no longer."""

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
        await resolve([one])

    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.01)
    one = server("haproxy.example")
    with caplog.at_level(logging.WARNING):
        asyncio.run(run())

    assert one.socket_address is None
    assert caplog.messages == ["backend web: cannot look up haproxy.example: no answer"]


def test_names_are_looked_up_again_and_addresses_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has moved is found again, without a restart."""
    asked: list[str] = []

    async def scenario() -> None:
        enough = asyncio.Event()

        async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            asked.append(host)
            if len(asked) == 2:
                enough.set()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{len(asked)}", port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        keeping = asyncio.create_task(keep_resolved(lambda: servers))  # noqa: TID251  cancelled below
        await asyncio.wait_for(enough.wait(), 30)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    monkeypatch.setattr(module, "RESOLVE_SECONDS", 0.001)
    servers = [server("haproxy.example"), server("198.51.100.1"), Server("web", UnixAddress("/run/web.sock"))]
    asyncio.run(scenario())

    assert set(asked) == {"haproxy.example"}
    assert servers[0].socket_address is not None


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_what_only_this_machine_reaches(host: str, answer: bool) -> None:
    """RFC 1122 section 3.2.1.3 and RFC 4291 section 2.5.3."""
    assert is_loopback(host) is answer
