"""From the configuration to what each part goes by."""

from __future__ import annotations

import resource
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from sniproxy.app import build
from sniproxy.config import Config, parse
from sniproxy.errors import ConfigError
from sniproxy.http.server import MAX_CONNECTIONS
from sniproxy.model import Balance, ProxyProtocol, TcpAddress, UnixAddress
from sniproxy.policy.routing import RESPONDER

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = """
[proxy]
listen = ["127.0.0.1:8443"]
default_backend = "web"
no_sni = "reject"
not_tls = "git"
inspect_delay = "1s"
connect_timeout = "2s"
idle_timeout = "3s"
half_close_timeout = "4s"
max_hello = "8KiB"
max_connections = 100
max_connections_per_client = 5
max_connection_rate_per_client = 6
accept_proxy_from = ["192.0.2.0/24"]

[backends.web]
servers = ["127.0.0.1:8001", "127.0.0.1:8002"]
proxy_protocol = "v1"
balance = "source"

[backends.git]
servers = ["unix:/run/git.sock"]

[[routes]]
sni = ["git.example.com"]
alpn = ["h2"]
backend = "git"
allow = ["198.51.100.0/24"]
deny = ["198.51.100.7/32"]
"""


@pytest.fixture
def config() -> Config:
    return parse(TEXT, file="sniproxy.toml")


def test_the_routing_table(config: Config) -> None:
    """Every key of [[routes]], and the three words of [proxy] for what no route takes."""
    router = build.router(config)

    assert router.tls("git.example.com", (b"h2",), "198.51.100.1").backend == "git"
    assert router.tls("git.example.com", (b"h2",), "198.51.100.7").backend is None
    assert router.tls("git.example.com", (b"h2",), "192.0.2.1").backend is None
    assert router.tls("git.example.com", (), "198.51.100.1").backend == "web"
    assert router.tls(None, (), "198.51.100.1").backend is None
    assert router.not_tls().backend == "git"


def test_the_relays_settings(config: Config) -> None:
    """Seconds and bytes, under the names of [proxy]."""
    settings = build.relay_settings(config, 1024)

    assert (settings.inspect_delay, settings.connect_timeout) == (1.0, 2.0)
    assert (settings.idle_timeout, settings.half_close_timeout) == (3.0, 4.0)
    assert settings.max_hello == 8192
    assert (settings.max_connections_per_client, settings.max_connection_rate_per_client) == (5, 6)
    assert "192.0.2.1" in settings.accept_proxy_from
    assert "192.0.3.1" not in settings.accept_proxy_from
    assert config.proxy.accept_proxy_from == (ip_network("192.0.2.0/24"),)


@pytest.mark.parametrize(("descriptors", "connections"), [(1024, 100), (248, 85), (148, 41), (64, 4), (10, 1)])
def test_connections_fit_into_the_descriptors(config: Config, descriptors: int, connections: int) -> None:
    """Each connection takes two, and some are kept for the rest of the program; one connection always fits."""
    assert build.relay_settings(config, descriptors).max_connections == connections


def test_the_backends(config: Config) -> None:
    """Names, servers, header and balance."""
    web, git = build.backends(config)

    assert (web.name, git.name) == ("web", "git")
    assert [server.address for server in web.servers] == [TcpAddress("127.0.0.1", 8001), TcpAddress("127.0.0.1", 8002)]
    assert (web.proxy_protocol, git.proxy_protocol) == (ProxyProtocol.V1, ProxyProtocol.V2)
    assert (config.backends["web"].balance, config.backends["git"].balance) == (Balance.SOURCE, Balance.LEASTCONN)


def test_a_server_that_stays_keeps_its_counters(config: Config) -> None:
    """A reload is no reason for a counter to begin anew (Prometheus: counters only go up)."""
    old = build.backends(config)
    old[0].servers[0].connections = 7
    new = build.backends(config, [server for backend in old for server in backend.servers])

    assert new[0].servers[0] is old[0].servers[0]
    assert new[0] is not old[0]


def test_the_same_address_in_another_backend_is_another_server(config: Config) -> None:
    """Its counters have the backend's name as a label."""
    old = build.backends(config)
    moved = parse(TEXT.replace("backends.web]", "backends.www]").replace('"web"', '"www"'), file="sniproxy.toml")

    assert (
        build.backends(moved, [server for backend in old for server in backend.servers])[0].servers[0]
        is not old[0].servers[0]
    )


def test_the_responder_is_a_backend_like_any_other(config: Config) -> None:
    """DESIGN: the router picks it. No header, as it is none of a proxy's; a label that lasts, unlike its address."""
    address = UnixAddress("@sniproxy-acme-0123")
    responder, *others = build.backends(config, responder=address)

    assert (responder.name, responder.proxy_protocol) == (RESPONDER, ProxyProtocol.OFF)
    assert [(server.address, server.label) for server in responder.servers] == [(address, "responder")]
    assert [backend.name for backend in others] == ["web", "git"]
    assert [backend.name for backend in build.backends(config)] == ["web", "git"]


def test_no_configuration_can_name_the_responder(config: Config) -> None:
    """A backend of that name would take its place."""
    with pytest.raises(ConfigError):
        parse(TEXT.replace("backends.git]", f'backends."{RESPONDER}"]'), file="sniproxy.toml")


def test_a_validation_that_is_pending_goes_to_the_responder(config: Config) -> None:
    """RFC 8737 section 3: the protocol list is exactly acme-tls/1, and the name is one that is pending."""
    router = build.router(config, lambda name: name == "git.example.com")

    assert router.tls("git.example.com", (b"acme-tls/1",), "192.0.2.1").backend == RESPONDER
    assert router.tls("git.example.com", (b"acme-tls/1", b"h2"), "198.51.100.1").backend == "git"
    assert router.tls("www.example.com", (b"acme-tls/1",), "192.0.2.1").backend == "web"
    assert build.router(config).tls("git.example.com", (b"acme-tls/1",), "192.0.2.1").backend != RESPONDER


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_descriptors_is_raised_as_far_as_needed(config: Config, limits: tuple[int, int]) -> None:
    """getrlimit(2): the soft limit may be raised up to the hard one by anybody."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))

    assert build.raise_descriptor_limit(config) == 2 * 100 + build.RESERVED_DESCRIPTORS + 2 * MAX_CONNECTIONS
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (
        2 * 100 + build.RESERVED_DESCRIPTORS + 2 * MAX_CONNECTIONS,
        limits[1],
    )


def test_the_limit_of_descriptors_is_never_lowered(config: Config, limits: tuple[int, int]) -> None:
    """Whoever started the program with more may have meant it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, limits[1]))

    assert build.raise_descriptor_limit(config) == 900
