"""The rules of routing, written to be obviously right: every pattern of every route is looked at, each time."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sniproxy.policy.routing import Route

Answer = tuple[str, str | None]
"""The pattern that decided, and the backend or None where the client is refused."""


def specificity(pattern: str, name: str) -> int | None:
    """How closely a pattern fits a name, the larger the closer; None where it does not."""
    if pattern.startswith("*."):
        first, dot, rest = name.partition(".")
        return 1_000_000 if first and dot and rest == pattern[2:] else None
    if pattern.startswith("."):
        if name == pattern[1:]:
            return 2_000_000
        return len(pattern) if name.endswith(pattern) else None
    return 3_000_000 if name == pattern else None


def decide(routes: Sequence[Route], name: str, alpn: Sequence[bytes], client: str) -> Answer | None:
    """None where no route matches."""
    fitting: dict[str, int] = {}
    for route in routes:
        for pattern in route.sni:
            closeness = specificity(pattern, name)
            if closeness is not None:
                fitting[pattern] = closeness
    for pattern in sorted(fitting, key=lambda pattern: -fitting[pattern]):
        under = [route for route in routes if pattern in route.sni]
        preferred = [route for protocol in alpn for route in under if protocol in route.alpn]
        preferred += [route for route in under if not route.alpn]
        if preferred:
            return pattern, preferred[0].backend if allowed(preferred[0], client) else None
    return None


def allowed(route: Route, client: str) -> bool:
    address = ip_address(client)
    if any(address in network for network in route.deny):
        return False
    return not route.allow or any(address in network for network in route.allow)
