"""Routes and routers in one line each."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from sniproxy.policy.routing import Route, Router, RoutingRules

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT = "192.0.2.1"


def networks(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, texts))


def router(*routes: Route, challenge: Callable[[str], bool] = lambda _: False, **rules: Any) -> Router:
    """A router with these routes; who matches none goes to `fallback`, a validation of ours to `acme`."""
    rules = {"default_backend": "fallback"} | rules
    return Router(RoutingRules(routes=routes, **rules), challenge=challenge, responder="acme")


def to(*patterns: str, backend: str | None = None, **fields: Any) -> Route:
    return Route(sni=patterns, backend=backend or patterns[0], **fields)


def chosen(decider: Router, name: str | None, *alpn: bytes, client: str = CLIENT) -> str | None:
    return decider.tls(name, alpn, client).backend
