"""The haproxy.cfg that fits a configuration: what to add, and what the old loop no longer needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sniproxy.model import ProxyProtocol, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.config import Config
    from sniproxy.model import Address

_CHALLENGES = "/.well-known/acme-challenge/"


def haproxy_lines(config: Config) -> Iterator[str]:
    """Lines of haproxy.cfg, comments included, in its own order of sections."""
    yield from _global(config)
    name = config.proxy.default_backend
    backend = config.backends.get(name)
    if backend is not None:
        yield f"# Instead of the TCP frontend on :443 and the loop behind it: the servers of backends.{name}."
        yield "frontend https"
        yield "    mode http"
        for server in backend.servers:
            yield f"    bind {_bind(server, backend.proxy_protocol)} ssl crt {_certificates(config)} alpn h2,http/1.1"
        if backend.proxy_protocol is ProxyProtocol.V2:
            yield "    # The id that sniproxy has in its own log, so that both lines of a connection can be found."
            yield "    unique-id-format %[fc_pp_unique_id]"
        yield "    # … and what your HTTPS frontend has had until now: rules, use_backend, default_backend."
        yield ""
    yield from _port_80(config)


def _global(config: Config) -> Iterator[str]:
    known = config.haproxy.runtime_sockets if config.haproxy is not None else ()
    sockets = [socket for socket in known if isinstance(socket, UnixAddress)]
    if not sockets:
        return
    yield "global"
    for socket in sockets:
        yield f"    stats socket {_unix(socket)}{_shared(socket)} level admin"
    yield ""


def _certificates(config: Config) -> str:
    return str(config.haproxy.certificate_dir) if config.haproxy is not None else "/etc/haproxy/certs"


def _bind(server: Address, proxy_protocol: ProxyProtocol) -> str:
    accept = "" if proxy_protocol is ProxyProtocol.OFF else " accept-proxy"
    if isinstance(server, TcpAddress):
        return f"{server}{accept}"
    return f"{_unix(server)}{_shared(server)}{accept}"


def _shared(address: UnixAddress) -> str:
    # haproxy binds it before it becomes its own user; sniproxy joins that group.
    return "" if address.is_abstract else " mode 660 group haproxy"


def _unix(address: UnixAddress) -> str:
    """As haproxy.cfg has it: the abstract name space has a prefix of its own."""
    return f"abns@{address.path[1:]}" if address.is_abstract else f"unix@{address.path}"


def _dialled(address: Address) -> str:
    """Where HAProxy, on this machine, reaches an address that is listened on."""
    if isinstance(address, UnixAddress):
        return _unix(address)
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return str(TcpAddress(host, address.port))


def _port_80(config: Config) -> Iterator[str]:
    if config.http is None:
        yield "# Port 80 stays as it is: [http] is off."
        return
    ports = {address.port for address in config.http.listen if isinstance(address, TcpAddress)}
    if 80 in ports:
        yield "# Port 80 is sniproxy's own: remove every bind on :80. It redirects to https and answers challenges."
        return
    yield "# Your frontend on :80, with this line before any redirect."
    yield "frontend http"
    yield "    mode http"
    yield "    bind :80"
    yield f"    use_backend sniproxy_challenges if {{ path_beg {_CHALLENGES} }}"
    yield "    # … and what it has had until now."
    yield ""
    yield "backend sniproxy_challenges"
    yield "    mode http"
    for number, address in enumerate(config.http.listen, 1):
        yield f"    server sniproxy{number} {_dialled(address)}"
