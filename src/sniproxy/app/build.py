"""From the configuration to what each part goes by: nobody gets more than its own."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from sniproxy.http.server import MAX_CONNECTIONS
from sniproxy.model import Balance, ProxyProtocol
from sniproxy.policy.routing import RESPONDER, Networks, Route, Router, RoutingRules
from sniproxy.relay.backend import Backend, BackendSettings, Server
from sniproxy.relay.engine import RelaySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sniproxy.config import Config
    from sniproxy.model import UnixAddress

RESERVED_DESCRIPTORS = 48
"""Descriptors that connections must leave: listeners, epolls, the log, a certificate being written."""

MAX_VALIDATIONS = 256
"""Validations at once. Each has, beside the two of a connection, a descriptor of the responder."""


def router(config: Config, challenge: Callable[[str], bool] = lambda _: False) -> Router:
    """The routing table of a configuration; `challenge` tells whether a validation of ours is pending for a name."""
    proxy = config.proxy
    routes = tuple(
        Route(
            sni=route.sni,
            alpn=route.alpn,
            backend=route.backend,
            allow=route.allow,
            deny=route.deny,
        )
        for route in config.routes
    )
    return Router(
        RoutingRules(routes=routes, default_backend=proxy.default_backend, no_sni=proxy.no_sni, not_tls=proxy.not_tls),
        challenge=challenge,
    )


def relay_settings(config: Config, descriptors: int) -> RelaySettings:
    """The data plane's settings where the process may have so many descriptors open."""
    proxy = config.proxy
    return RelaySettings(
        inspect_delay=proxy.inspect_delay,
        connect_timeout=proxy.connect_timeout,
        idle_timeout=proxy.idle_timeout,
        half_close_timeout=proxy.half_close_timeout,
        max_hello=proxy.max_hello,
        max_connections=min(proxy.max_connections, connections_for(descriptors, config)),
        max_connections_per_client=proxy.max_connections_per_client,
        max_connection_rate_per_client=proxy.max_connection_rate_per_client,
        accept_proxy_from=Networks(proxy.accept_proxy_from),
    )


def backends(config: Config, known: Iterable[Server] = (), responder: UnixAddress | None = None) -> list[Backend]:
    """The backends; a server that is among the `known` is taken over, with its counters.

    responder: where validations are answered, which is a backend like any other; None where none are.
    """
    servers = {(server.backend, server.label): server for server in known}
    made = [] if responder is None else [_responder(responder)]
    for name, section in config.backends.items():
        settings = BackendSettings(
            name=name, servers=section.servers, proxy_protocol=section.proxy_protocol, balance=section.balance
        )
        made.append(
            Backend(
                settings,
                [servers.get((name, str(address))) or Server(name, address) for address in section.servers],
            )
        )
    return made


def _responder(address: UnixAddress) -> Backend:
    settings = BackendSettings(
        name=RESPONDER, servers=(address,), proxy_protocol=ProxyProtocol.OFF, balance=Balance.ROUNDROBIN
    )
    server = Server(RESPONDER, address)
    server.label = "responder"  # its address is another one at each start, and labels last
    return Backend(settings, [server])


def http_connections(descriptors: int) -> int:
    """How many connections each of the two HTTP servers may have: they must not take those of :443."""
    return max(4, min(MAX_CONNECTIONS, descriptors // 16))


def validations(descriptors: int) -> int:
    """How many connections the responder may have: for 100 names, the most that CAs take, seen from a few places."""
    return max(8, min(MAX_VALIDATIONS, descriptors // 16))


def connections_for(descriptors: int, config: Config) -> int:
    """How many connections fit: each takes two descriptors, and some are kept for the rest of the program."""
    kept = RESERVED_DESCRIPTORS + 2 * http_connections(descriptors)
    if config.certificates:
        kept += validations(descriptors)
    return max((descriptors - kept) // 2, 1)


def raise_descriptor_limit(config: Config) -> int:
    """Raises this process's limit as far as needed and allowed; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.proxy.max_connections * 2 + RESERVED_DESCRIPTORS + 2 * MAX_CONNECTIONS
    if config.certificates:
        wanted += MAX_VALIDATIONS
    if wanted > soft:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
