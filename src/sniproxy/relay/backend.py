"""The servers that connections are handed to, and the counters that are kept of each."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM
from typing import TYPE_CHECKING

from sniproxy.model import Address, Balance, ProxyProtocol, ServerSnapshot, UnixAddress
from sniproxy.policy.balancing import Balancer

if TYPE_CHECKING:
    from collections.abc import Iterable

NONBLOCKING_STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC

_ERRORS = {
    errno.ECONNREFUSED: "refused",
    errno.ENOENT: "missing",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.ETIMEDOUT: "timeout",
    errno.EAGAIN: "backlog_full",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "no_local_port",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
}


def connect_error(number: int) -> str:
    """A short name out of a closed set for an errno of connect(2), fit to be a metric's label."""
    return _ERRORS.get(number, "other")


class Server:
    """One server. `socket_address` is what connect(2) takes; None until a host name has been resolved.

    `near` means TCP on this machine's loopback. `active` and `connections` are its connections now and ever, `errors`
    its failed connects by name, `up` what its health check says.
    """

    __slots__ = (
        "active",
        "address",
        "backend",
        "connections",
        "errors",
        "family",
        "label",
        "near",
        "resolved_to",
        "socket_address",
        "up",
    )

    def __init__(self, backend: str, address: Address) -> None:
        self.backend = backend
        self.address = address
        self.label = str(address)
        self.active = 0
        self.connections = 0
        self.errors: dict[str, int] = {}
        self.up = True
        self.family = AF_UNIX
        self.near = False
        self.resolved_to: tuple[tuple[str, int], ...] = ()
        self.socket_address: str | tuple[str, int] | None = None
        if isinstance(address, UnixAddress):
            self.socket_address = address.socket_address

    def resolved(self, *addresses: tuple[str, int]) -> None:
        """From now on connections go to these IP addresses: to one of them, until that fails."""
        self.resolved_to = addresses
        if self.socket_address not in addresses:
            self._go_to(addresses[0])

    def failed(self, error: str) -> None:
        """Counts one failed connect; the next one goes to the next address, where there are several."""
        self.errors[error] = self.errors.get(error, 0) + 1
        if len(self.resolved_to) > 1:
            here = self.resolved_to.index(self.socket_address)
            self._go_to(self.resolved_to[(here + 1) % len(self.resolved_to)])

    def _go_to(self, address: tuple[str, int]) -> None:
        host = address[0]
        self.family = AF_INET6 if ":" in host else AF_INET
        self.near = host.startswith("127.") or host == "::1"
        self.socket_address = address

    def snapshot(self) -> ServerSnapshot:
        """The counters as they are now."""
        return ServerSnapshot(self.backend, self.label, self.up, self.active, self.connections, dict(self.errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """One backend of the configuration."""

    name: str
    servers: tuple[Address, ...]
    proxy_protocol: ProxyProtocol
    balance: Balance


class Backend:
    """The servers of one backend and how one is chosen."""

    __slots__ = ("balancer", "name", "proxy_protocol", "servers")

    def __init__(self, settings: BackendSettings, servers: Iterable[Server]) -> None:
        self.name = settings.name
        self.proxy_protocol = settings.proxy_protocol
        self.servers = tuple(servers)
        self.balancer = Balancer(self.servers, settings.balance)

    @property
    def active(self) -> int:
        """Its connections now."""
        return sum(server.active for server in self.servers)

    @property
    def rounds(self) -> int:
        """How often all servers are tried, so that each address of those given by name gets its turn."""
        return max(len(server.resolved_to) for server in self.servers) or 1
