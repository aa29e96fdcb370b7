"""The values that several layers share."""

from __future__ import annotations

import pytest

from sniproxy.model import HISTOGRAM_BOUNDS_SECONDS, HelloKind, Outcome, TcpAddress, UnixAddress


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (TcpAddress("127.0.0.1", 4443), "127.0.0.1:4443"),
        (TcpAddress("::1", 443), "[::1]:443"),
        (TcpAddress("", 443), ":443"),
        (TcpAddress("haproxy.internal", 443), "haproxy.internal:443"),
        (UnixAddress("/run/haproxy/sniproxy.sock"), "unix:/run/haproxy/sniproxy.sock"),
        (UnixAddress("@name"), "unix:@name"),
    ],
)
def test_addresses_print_as_the_configuration_writes_them(address, text):
    """Config: "HOST:PORT", "[::]:443", ":443", "unix:/path"."""
    assert str(address) == text


@pytest.mark.parametrize(
    ("path", "address", "abstract"), [("/run/web.sock", "/run/web.sock", False), ("@web", "\0web", True)]
)
def test_an_abstract_socket_has_a_nul_in_front(path, address, abstract):
    """unix(7): that is what tells the kernel that there is no file."""
    assert UnixAddress(path).socket_address == address
    assert UnixAddress(path).is_abstract is abstract


def test_the_outcomes_are_those_of_the_metrics():
    """Metrics: each accepted connection ends in exactly one of thirteen outcomes."""
    assert {outcome.value for outcome in Outcome} == {
        "relayed",
        "challenge",
        "rejected",
        "limited",
        "no_route",
        "not_tls",
        "malformed",
        "too_large",
        "inspect_timeout",
        "client_left",
        "bad_proxy_header",
        "backend_unreachable",
        "internal_error",
    }


def test_the_kinds_are_those_of_explain():
    """Commands: explain's kind is one of six."""
    assert {kind.value for kind in HelloKind} == {"tls", "no_sni", "not_tls", "malformed", "too_large", "incomplete"}


@pytest.mark.parametrize("name", HISTOGRAM_BOUNDS_SECONDS)
def test_the_bounds_of_a_histogram_rise(name):
    """Prometheus: buckets are cumulative, in rising order."""
    bounds = HISTOGRAM_BOUNDS_SECONDS[name]

    assert list(bounds) == sorted(set(bounds))
