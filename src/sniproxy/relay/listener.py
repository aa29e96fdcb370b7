"""A listening socket: bound here, accepted from by the engine."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from sniproxy.errors import StartError
from sniproxy.model import Address, UnixAddress

if TYPE_CHECKING:
    from sniproxy.wire.proxy_header import Endpoint

BACKLOG = 4096
"""As HAProxy does by default for a busy frontend; the kernel cuts it to net.core.somaxconn."""

# A client that vanished without a word is noticed after 60 + 6 * 10 seconds, well before idle_timeout. Servers are near
# and few: the kernel's own two hours do for them, and two system calls a connection are saved.
_KEEPALIVE_SECONDS = 60
_KEEPALIVE_INTERVAL_SECONDS = 10
_KEEPALIVE_PROBES = 6


class Listener:
    """One listening socket and what is known of the connections that come in on it.

    `name` is its address as configured. Whoever makes a Listener closes it.
    """

    __slots__ = ("accept", "active", "at_once", "family", "fd", "in_a_row", "local", "name", "socket")

    def __init__(self, name: str, listening: socket.socket) -> None:
        self.name = name
        self.socket = listening
        self.fd = listening.fileno()
        self.family = int(listening.family)  # asking the socket makes an enum's member, each time
        # What socket.accept() itself calls. Without the wrapper there is no second object for each connection and no
        # getsockopt: 2 µs of 50.
        self.accept = listening._accept  # type: ignore[attr-defined]  # noqa: SLF001
        self.local = _fixed_local(listening)
        self.active = 0  # connections that came in here, now
        self.at_once = 1  # connections to accept in one turn
        self.in_a_row = 0  # turns that did not find fewer

    def close(self) -> None:
        """Stops listening; connections already accepted are not touched."""
        self.socket.close()


def bind(address: Address) -> Listener:
    """Binds and listens. ":443" takes both families, "[::]:443" IPv6 only, so that "0.0.0.0:443" can stand beside it.

    Raises StartError saying what is wrong and what to do.
    """
    listening: socket.socket | None = None
    try:
        if isinstance(address, UnixAddress):
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _bind_unix(listening, address)
        else:
            host = address.host
            family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
            # Accepted connections inherit all of these, which saves setting them on each.
            set_tcp_options(listening)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_SECONDS)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
            listening.bind((host or "::", address.port))
        listening.setblocking(False)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise StartError(_why_not(address, error)) from error
    return Listener(str(address), listening)


def has_ipv6() -> bool:
    """Whether this machine has IPv6 at all; some are started with it switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def set_tcp_options(connection: socket.SocketType) -> None:
    """No delay for small writes, and keepalive, on a TCP socket."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def plain_endpoint(address: tuple[str, int] | str | bytes) -> Endpoint | None:
    """What the kernel calls a peer, as IP address and port: ::ffff:192.0.2.1 as 192.0.2.1, no scope. None for unix."""
    if not isinstance(address, tuple):
        return None
    host: str = address[0]
    if ":" in host:
        host = host.partition("%")[0]
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]
    return host, address[1]


def _bind_unix(listening: socket.socket, address: UnixAddress) -> None:
    path = Path(address.path)
    if not address.is_abstract and path.is_socket() and not _answers(address.path):
        path.unlink(missing_ok=True)  # left behind by a process that is gone
    listening.bind(address.socket_address)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


def _fixed_local(listening: socket.socket) -> Endpoint | None:
    """The address clients dialled, where it is the same for all of them."""
    endpoint = plain_endpoint(listening.getsockname())
    return None if endpoint is None or endpoint[0] in ("0.0.0.0", "::") else endpoint  # noqa: S104


def _why_not(address: Address, error: OSError) -> str:
    hints = {
        errno.EADDRINUSE: "another program listens there; `ss -ltnp` shows which",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE, a unix socket needs a writable directory",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }
    hint = hints.get(error.errno or 0)
    return f"cannot listen on {address}: {error.strerror or error}" + (f" ({hint})" if hint else "")
