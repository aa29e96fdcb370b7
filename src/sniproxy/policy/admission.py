"""Whether a client may have one more connection: limits by IPv4 address and by IPv6 /64.

By /64, because that is what one customer is given: an attacker who rotates addresses inside it stays one client.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

MAX_CLIENTS = 65536
"""Clients remembered at once. When the table is full of clients that are still connected or counted, a new one is
refused: the limit then holds, and only for those it does not know."""

_WINDOW_SECONDS = 1.0


@dataclass(slots=True)
class _Client:
    connections: int = 0
    window: float = 0.0
    opened: int = 0


class Admission:
    """Counts connections by client. A limit of 0 is off."""

    def __init__(self, *, max_connections: int, max_rate: int) -> None:
        self._max_connections = max_connections
        self._max_rate = max_rate
        self._clients: dict[str | int, _Client] = {}
        self._swept = -_WINDOW_SECONDS

    @property
    def limits(self) -> bool:
        """Whether there is any limit, so that callers can spare themselves the counting."""
        return bool(self._max_connections or self._max_rate)

    def admit(self, address: str, now: float) -> bool:
        """Counts a new connection of `address` at `now` (seconds, any monotonic clock); False when it is one too many.

        Every True is answered by one `leave`.
        """
        key = client_key(address)
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS and not self._forget_idle(now):
                return False
            client = self._clients[key] = _Client(window=now)
        if now - client.window >= _WINDOW_SECONDS:
            client.window, client.opened = now, 0
        if self._max_rate and client.opened >= self._max_rate:
            return False
        if self._max_connections and client.connections >= self._max_connections:
            return False
        client.opened += 1
        client.connections += 1
        return True

    def leave(self, address: str) -> None:
        """One connection that `admit` let in is over."""
        key = client_key(address)
        client = self._clients[key]
        client.connections -= 1
        if not client.connections and not self._max_rate:
            del self._clients[key]

    def _forget_idle(self, now: float) -> bool:
        # Once a window: whoever fills the table must not make each further connection cost a walk through it.
        if now - self._swept < _WINDOW_SECONDS:
            return False
        self._swept = now
        idle = [
            key
            for key, client in self._clients.items()
            if not client.connections and now - client.window >= _WINDOW_SECONDS
        ]
        for key in idle:
            del self._clients[key]
        return bool(idle)


def client_key(address: str) -> str | int:
    """What counts as one client: the IPv4 address itself, or the first 64 bits of an IPv6 address."""
    if ":" not in address:
        return address
    return int(IPv6Address(address.partition("%")[0])) >> 64
