"""The sections that route and serve: defaults and ranges (contract section 2)."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from pydantic import ValidationError

from sniproxy.config.schema import Admin, Backend, Config, Http, Log, Proxy, Route
from sniproxy.model import Balance, ProxyProtocol, TcpAddress, UnixAddress


def test_proxy_has_these_defaults():
    """Section 2: [proxy]."""
    assert dict(Proxy()) == {
        "listen": (TcpAddress("0.0.0.0", 443), TcpAddress("::", 443)),
        "default_backend": "haproxy",
        "no_sni": "default",
        "not_tls": "reject",
        "inspect_delay": 5.0,
        "connect_timeout": 10.0,
        "idle_timeout": 600.0,
        "half_close_timeout": 30.0,
        "shutdown_grace": 30.0,
        "max_hello": 16384,
        "max_connections": 16384,
        "max_connections_per_client": 0,
        "max_connection_rate_per_client": 0,
        "accept_proxy_from": (),
        "workers": 1,
        "user": "",
        "group": "",
    }


def test_a_backend_has_these_defaults():
    """Section 2: [backends.haproxy]."""
    assert dict(Backend.model_validate({"servers": ["unix:/run/haproxy/sniproxy.sock"]})) == {
        "servers": (UnixAddress("/run/haproxy/sniproxy.sock"),),
        "proxy_protocol": ProxyProtocol.V2,
        "balance": Balance.LEASTCONN,
        "check": "off",
        "check_interval": 2.0,
        "rise": 2,
        "fall": 3,
    }


def test_a_route_has_these_defaults():
    """Section 2: [[routes]]."""
    assert dict(Route.model_validate({"sni": ["git.example.com"], "backend": "git"})) == {
        "sni": ("git.example.com",),
        "alpn": (),
        "backend": "git",
        "allow": (),
        "deny": (),
    }


def test_http_has_these_defaults():
    """Section 2: [http]."""
    assert dict(Http()) == {
        "listen": (TcpAddress("0.0.0.0", 80), TcpAddress("::", 80)),
        "redirect_to_https": True,
    }


def test_admin_has_these_defaults():
    """Section 2: [admin]."""
    assert dict(Admin()) == {
        "listen": TcpAddress("127.0.0.1", 8404),
        "control_socket": UnixAddress("/run/sniproxy/control.sock"),
    }


def test_log_has_these_defaults():
    """Section 2: [log]."""
    assert dict(Log()) == {"format": "tcplog", "target": "stdout", "level": "info"}


def test_an_empty_file_has_the_sections_that_are_on_by_default():
    """Section 2: [http] absent: off; status and healthcheck work without an [admin]."""
    config = Config()
    assert (config.http, config.acme, config.haproxy) == (None, None, None)
    assert (config.proxy, config.admin, config.log) == (Proxy(), Admin(), Log())


@pytest.mark.parametrize(
    ("value", "workers"), [(1, 1), (8, 8), ("auto", "auto"), (512, 512)], ids=["1", "8", "auto", "512"]
)
def test_workers_are_a_number_or_auto(value, workers):
    """Section 2: `workers`; "auto" is one per core."""
    assert Proxy.model_validate({"workers": value}).workers == workers


@pytest.mark.parametrize(
    ("value", "target"),
    [("stderr", "stderr"), ("syslog", "syslog"), ("/var/log/sniproxy.log", Path("/var/log/sniproxy.log"))],
)
def test_the_log_goes_to_a_stream_or_a_file(value, target):
    """Section 2: `target`."""
    assert Log.model_validate({"target": value}).target == target


def test_networks_of_clients_are_networks():
    """Section 2: `allow`, `deny`, `accept_proxy_from`: CIDRs."""
    route = Route.model_validate({"allow": ["10.0.0.0/8"], "deny": ["::1"]})
    assert route.allow == (ipaddress.ip_network("10.0.0.0/8"),)
    assert route.deny == (ipaddress.ip_network("::1/128"),)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (Proxy, "workers", 0),
        (Proxy, "workers", True),
        (Proxy, "workers", "Auto"),
        (Proxy, "workers", 513),
        (Proxy, "max_connections", 0),
        (Proxy, "max_connections", "5"),
        (Proxy, "max_connections", 5.0),
        (Proxy, "max_connections_per_client", -1),
        (Proxy, "max_hello", "512"),
        (Proxy, "max_hello", "1MiB"),
        (Proxy, "idle_timeout", 0),
        (Proxy, "listen", []),
        (Proxy, "listen", ":443"),
        (Proxy, "default_backend", ""),
        (Proxy, "user", 5),
        (Proxy, "unknown", 5),
        (Backend, "servers", []),
        (Backend, "servers", [":443"]),
        (Backend, "proxy_protocol", "v3"),
        (Backend, "proxy_protocol", True),
        (Backend, "balance", "random"),
        (Backend, "check", "http"),
        (Backend, "rise", 0),
        (Route, "sni", []),
        (Route, "sni", "git.example.com"),
        (Route, "backend", ""),
        (Http, "listen", []),
        (Http, "redirect_to_https", 1),
        (Http, "redirect_to_https", "true"),
        (Admin, "listen", "8404"),
        (Admin, "control_socket", "control.sock"),
        (Log, "format", "text"),
        (Log, "target", "file.log"),
        (Log, "level", "INFO"),
    ],
)
def test_values_out_of_range_are_refused(section, key, value):
    """Section 2: what each key allows; nothing is converted silently."""
    with pytest.raises(ValidationError) as caught:
        section.model_validate({key: value})
    assert caught.value.errors()[0]["loc"][0] == key


@pytest.mark.parametrize("section", [Proxy, Backend, Route, Http, Admin, Log, Config])
def test_every_key_is_described(section):
    """The reference is made from these."""
    for name, field in section.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
