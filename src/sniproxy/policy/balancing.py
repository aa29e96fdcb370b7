"""Which server of a backend takes the next connection, in HAProxy's words: leastconn, roundrobin, source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from zlib import crc32

from sniproxy.model import Balance

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Candidate(Protocol):
    """What choosing has to know of a server."""

    active: int
    """Connections it has now."""
    up: bool
    """False while its health check says that it does not answer."""


ServerT = TypeVar("ServerT", bound=Candidate)


class Balancer(Generic[ServerT]):
    """Chooses among `servers`, whose `active` and `up` others keep current."""

    def __init__(self, servers: Sequence[ServerT], balance: Balance) -> None:
        self.servers = tuple(servers)
        self._balance = balance
        self._turn = 0

    def choose(self, client: str, tried: Collection[ServerT] = ()) -> ServerT | None:
        """The server for a client's address; None when each is in `tried`, those that did not take it already.

        Servers that are down are passed over while one is up. With all of them down they are tried nonetheless:
        a check may be wrong, and the client loses nothing.
        """
        if len(self.servers) == 1 and not tried:
            return self.servers[0]
        left = [server for server in self.servers if server not in tried]
        left = [server for server in left if server.up] or left
        if not left:
            return None
        if self._balance is Balance.SOURCE:
            # Not hash(): it differs from process to process, and a client is to stay where it was after a restart.
            return left[crc32(client.encode("ascii", "replace")) % len(left)]
        self._turn += 1
        if self._balance is Balance.LEASTCONN:
            # Beginning at another one each time, so that equals take turns.
            start = self._turn % len(left)
            return min(left[start:] + left[:start], key=_active)
        return left[self._turn % len(left)]


def _active(server: Candidate) -> int:
    return server.active
