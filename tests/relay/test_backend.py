"""What is known of servers: where they are, how many connections they have, what went wrong."""

from __future__ import annotations

import errno
import socket

import pytest

from sniproxy.model import Balance, ProxyProtocol, ServerSnapshot, TcpAddress, UnixAddress
from sniproxy.relay.backend import Backend, BackendSettings, Server, connect_error


def test_errors_have_names_out_of_a_closed_set() -> None:
    """Prometheus' naming advice: a label's values are few and known. Whatever else an errno says is `other`."""
    names = {connect_error(number) for number in [0, *errno.errorcode]}

    assert names == {
        "refused",
        "missing",
        "denied",
        "timeout",
        "backlog_full",
        "reset",
        "unreachable",
        "no_local_port",
        "descriptors",
        "other",
    }
    assert connect_error(errno.ECONNREFUSED) == "refused"
    assert connect_error(errno.ENOENT) == "missing"
    assert connect_error(0) == "other"


@pytest.mark.parametrize(
    ("path", "connects_to"), [("/run/haproxy.sock", "/run/haproxy.sock"), ("@haproxy", "\0haproxy")]
)
def test_a_unix_server_needs_no_resolving(path: str, connects_to: str) -> None:
    """`@name` is Linux's abstract name space, as HAProxy writes it."""
    server = Server("haproxy", UnixAddress(path))

    assert server.socket_address == connects_to
    assert server.family == socket.AF_UNIX
    assert server.label == f"unix:{path}"


def test_a_tcp_server_is_unknown_until_it_is_resolved() -> None:
    """The lookup may come later, or find another address each time."""
    server = Server("haproxy", TcpAddress("haproxy.internal", 4443))
    places = [(server.family, server.socket_address)]
    for host in ("192.0.2.1", "2001:db8::1"):
        server.resolved((host, 4443))
        places.append((server.family, server.socket_address))

    assert places[0][1] is None
    assert places[1:] == [(socket.AF_INET, ("192.0.2.1", 4443)), (socket.AF_INET6, ("2001:db8::1", 4443))]
    assert server.label == "haproxy.internal:4443"


def test_a_snapshot_is_not_changed_by_what_comes_later() -> None:
    """A scrape reads one instant."""
    server = Server("haproxy", UnixAddress("/s"))
    server.failed("refused")
    before = server.snapshot()
    server.failed("refused")
    server.active += 1

    assert before == ServerSnapshot("haproxy", "unix:/s", up=True, active=0, connections=0, errors={"refused": 1})


def test_a_backend_keeps_the_servers_it_is_given() -> None:
    """After a reload the counters of a server go on."""
    servers = [Server("haproxy", UnixAddress(f"/{number}")) for number in range(3)]
    settings = BackendSettings(
        name="haproxy",
        servers=tuple(server.address for server in servers),
        proxy_protocol=ProxyProtocol.V2,
        balance=Balance.ROUNDROBIN,
    )
    backend = Backend(settings, servers)

    assert backend.servers == tuple(servers)
    assert {backend.balancer.choose("192.0.2.1") for _ in range(3)} == set(servers)
