"""Which of our own addresses would collide, and which server would lead back to ourselves.

Only what is certain from the text: what a name resolves to, or which addresses this machine has, is for a check of
the running system.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from sniproxy.config.addresses import is_wildcard
from sniproxy.model import Address, TcpAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.config.schema import Config
    from sniproxy.config.wording import KeyPath

_LOCALHOST = frozenset(("127.0.0.1", "::1"))


def own_addresses(config: Config) -> Iterator[tuple[KeyPath, Address]]:
    """Everything the program listens on, with the place in the file."""
    for index, address in enumerate(config.proxy.listen):
        yield ("proxy", "listen", index), address
    for index, address in enumerate(config.http.listen if config.http else ()):
        yield ("http", "listen", index), address
    if config.admin.listen is not None:
        yield ("admin", "listen"), config.admin.listen
    if config.admin.control_socket is not None:
        yield ("admin", "control_socket"), config.admin.control_socket


def collide(one: Address, other: Address) -> bool:
    """Whether the two cannot both be bound: the same, or one is part of the other, as 127.0.0.1 is of 0.0.0.0."""
    if not (isinstance(one, TcpAddress) and isinstance(other, TcpAddress)):
        return one == other
    if one.port != other.port:
        return False
    if is_wildcard(one.host) or is_wildcard(other.host):
        return bool(_families(one.host) & _families(other.host))
    return bool(_hosts(one.host) & _hosts(other.host))


def leads_back(server: Address, listener: Address) -> bool:
    """Whether connecting to `server` certainly ends at `listener`."""
    if not (isinstance(server, TcpAddress) and isinstance(listener, TcpAddress)):
        return server == listener
    if server.port != listener.port:
        return False
    if is_wildcard(listener.host):
        return _is_loopback(server.host) and bool(_families(server.host) & _families(listener.host))
    return bool(_hosts(server.host) & _hosts(listener.host))


def _hosts(host: str) -> frozenset[str]:
    if host == "localhost":
        return _LOCALHOST
    try:
        address = ip_address(host)
    except ValueError:
        return frozenset((host,))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return frozenset((str(mapped or address),))


def _families(host: str) -> frozenset[int]:
    """4, 6 or both, as for "" and for names. [::] is bound to IPv6 alone, beside 0.0.0.0."""
    try:
        return frozenset((ip_address(next(iter(_hosts(host)))).version,)) if host != "localhost" else frozenset((4, 6))
    except ValueError:
        return frozenset((4, 6))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(next(iter(_hosts(host)))).is_loopback
    except ValueError:
        return False
