"""Addresses (contract section 2: "HOST:PORT", "[::]:443", ":443", "unix:/path")."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.addresses import dial_address, listen_address, runtime_socket, socket_path
from sniproxy.model import TcpAddress, UnixAddress


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:443", TcpAddress("0.0.0.0", 443)),
        ("[::]:443", TcpAddress("::", 443)),
        ("[0:0::1]:443", TcpAddress("::1", 443)),
        (":443", TcpAddress("", 443)),
        ("Host.Example:1", TcpAddress("host.example", 1)),
        ("127.0.0.1:65535", TcpAddress("127.0.0.1", 65535)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:@x", UnixAddress("@x")),
    ],
)
def test_addresses_are_read(text, address):
    """Section 2: addresses."""
    assert listen_address(text) == address


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_prints_as_it_is_read(ip, port):
    """Section 2: addresses; what the status shows can be written into the file."""
    address = TcpAddress(str(ip), port)
    assert listen_address(str(address)) == address


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("::1", '"::1" is an IPv6 address without brackets and port; write "[::1]:443"'),
        ("2001:db8::1", 'write "[2001:db8::1]:443"'),
        ("::1:443", 'is an IPv6 address without brackets; write "[::1]:443"'),
        ("[::1]", 'has no port; write "[::1]:443"'),
        ("[192.0.2.1]:443", "only an IPv6 address goes in brackets"),
        ("127.0.0.1:0", "port 0 does not exist; it may be 1 to 65535"),
        ("127.0.0.1:65536", "port 65536 does not exist"),
        ("127.0.0.1", 'has no port; write "127.0.0.1:443"'),
        ("127.0.0:443", "neither an IPv4 address nor a host name"),
        ("*:443", 'without the star, ":443"'),
        ("a b:443", 'has " " in it'),
        ("host:https", "is not an address"),
        ("/run/x.sock", 'is a bare path; write "unix:/run/x.sock"'),
        ("unix@/run/x.sock", "HAProxy's notation"),
        ("unix:run/x.sock", "is not a unix socket"),
        ("unix:@", "is not a unix socket"),
        ("unix:/a\0b", "is not a unix socket"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("", "is not an address"),
        (443, "is not an address"),
    ],
)
def test_anything_else_is_no_address(value, reason):
    """Section 2: addresses; the message shows the right form."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        listen_address(value)


@pytest.mark.parametrize("value", [":443", "0.0.0.0:443", "[::]:443"])
def test_all_addresses_cannot_be_connected_to(value):
    """Section 2: `servers` are machines."""
    with pytest.raises(ValueError, match="can only be listened on"):
        dial_address(value)


@pytest.mark.parametrize("value", ["/run/x.sock", "unix:/run/x.sock"])
def test_a_socket_path_may_have_its_prefix(value):
    """Section 2: `control_socket` is a path, addresses have unix: before theirs; both are understood."""
    assert socket_path(value) == UnixAddress("/run/x.sock")


@pytest.mark.parametrize("value", ["x.sock", "unix:@x", "127.0.0.1:1", "", 5])
def test_a_socket_path_is_absolute(value):
    """Section 2: `control_socket` has mode 0660, which abstract sockets do not have."""
    with pytest.raises(ValueError, match="absolute path"):
        socket_path(value)


@pytest.mark.parametrize(
    ("text", "address"),
    [("/run/a.sock", UnixAddress("/run/a.sock")), ("127.0.0.1:9999", TcpAddress("127.0.0.1", 9999))],
)
def test_the_runtime_api_may_be_on_tcp(text, address):
    """Section 2: `runtime_sockets`; HAProxy's stats socket can be either."""
    assert runtime_socket(text) == address
