"""Addresses that collide, and servers that are ourselves (contract section 2: `listen`, `servers`)."""

from __future__ import annotations

import pytest

from sniproxy.config.addresses import listen_address
from sniproxy.config.listeners import collide, leads_back


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.0.0.0:443", "0.0.0.0:443", True),
        ("0.0.0.0:443", "0.0.0.0:80", False),
        ("0.0.0.0:443", "[::]:443", False),
        (":443", "[::]:443", True),
        (":443", "0.0.0.0:443", True),
        ("0.0.0.0:443", "127.0.0.1:443", True),
        ("[::]:443", "127.0.0.1:443", False),
        ("[::]:443", "[::1]:443", True),
        ("127.0.0.1:443", "127.0.0.2:443", False),
        ("localhost:443", "127.0.0.1:443", True),
        ("localhost:443", "0.0.0.0:443", True),
        ("host.example:443", ":443", True),
        ("host.example:443", "127.0.0.1:443", False),
        ("[::ffff:127.0.0.1]:443", "127.0.0.1:443", True),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", ":443", False),
    ],
)
def test_addresses_collide_when_they_cannot_both_be_bound(one, other, expected):
    """Section 2: `listen`; bind(2): EADDRINUSE."""
    assert collide(listen_address(one), listen_address(other)) is expected
    assert collide(listen_address(other), listen_address(one)) is expected


@pytest.mark.parametrize(
    ("server", "listener", "expected"),
    [
        ("127.0.0.1:443", "0.0.0.0:443", True),
        ("127.9.9.9:443", "0.0.0.0:443", True),
        ("127.0.0.1:443", "[::]:443", False),
        ("[::1]:443", "[::]:443", True),
        ("[::1]:443", "0.0.0.0:443", False),
        ("localhost:443", "[::]:443", True),
        ("127.0.0.1:443", ":443", True),
        ("192.0.2.1:443", "192.0.2.1:443", True),
        ("192.0.2.1:443", "0.0.0.0:443", False),
        ("127.0.0.1:4443", "0.0.0.0:443", False),
        ("host.example:443", "0.0.0.0:443", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "0.0.0.0:443", False),
    ],
)
def test_a_server_leads_back_when_it_is_certainly_ourselves(server, listener, expected):
    """Section 2: `servers`; whether 192.0.2.1 is this machine is not in the file."""
    assert leads_back(listen_address(server), listen_address(listener)) is expected
