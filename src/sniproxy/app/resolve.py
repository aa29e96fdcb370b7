"""Servers given by host name: looked up at the start and again every half minute, beside the relay."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sniproxy.model import TcpAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sniproxy.relay.backend import Server

RESOLVE_SECONDS = 30.0
LOOKUP_SECONDS = 5.0

log = logging.getLogger(__name__)


def is_ip_address(host: str) -> bool:
    """Whether `host` is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` is an address that only this machine reaches."""
    return host == "localhost" or (is_ip_address(host) and ip_address(host).is_loopback)


async def resolve(servers: Iterable[Server]) -> None:
    """Looks every server's host up once, all at the same time. One that cannot be found keeps what it had."""
    await asyncio.gather(*(_resolve(server) for server in servers))


async def _resolve(server: Server) -> None:
    address = server.address
    if not isinstance(address, TcpAddress):
        return
    if is_ip_address(address.host):
        server.resolved((address.host, address.port))
        return
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        log.warning("backend %s: cannot look up %s: %s", server.backend, address.host, reason)
    else:
        # All of them: a name may have an IPv6 address first, and the server listen on IPv4 alone.
        server.resolved(*dict.fromkeys((str(entry[4][0]), address.port) for entry in found))


async def keep_resolved(servers: Callable[[], Iterable[Server]]) -> None:
    """Looks those up again that were given by name, until cancelled."""
    while True:
        await asyncio.sleep(RESOLVE_SECONDS)
        named = [
            server
            for server in servers()
            if isinstance(server.address, TcpAddress) and not is_ip_address(server.address.host)
        ]
        await resolve(named)
