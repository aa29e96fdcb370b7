"""The lines for haproxy.cfg. That HAProxy takes them is in tests/cli/test_haproxy_config.py."""

from __future__ import annotations

import pytest

from sniproxy.app.haproxy_lines import haproxy_lines
from sniproxy.config import parse


def lines(text: str) -> list[str]:
    return [line.strip() for line in haproxy_lines(parse(text, file="sniproxy.toml"))]


@pytest.mark.parametrize(
    ("server", "bind"),
    [
        ("unix:/run/h.sock", "bind unix@/run/h.sock mode 660 group haproxy accept-proxy ssl"),
        ("unix:@h", "bind abns@h accept-proxy ssl"),
        ("127.0.0.1:4443", "bind 127.0.0.1:4443 accept-proxy ssl"),
        ("[::1]:4443", "bind [::1]:4443 accept-proxy ssl"),
    ],
)
def test_where_haproxy_listens_is_where_we_dial(server: str, bind: str) -> None:
    """HAProxy's manual, section 4.2, bind: addresses, unix@ for paths, abns@ for the abstract name space."""
    assert any(line.startswith(bind) for line in lines(f'[backends.haproxy]\nservers = ["{server}"]\n'))


@pytest.mark.parametrize(
    ("header", "accepted", "joined"), [("v2", True, True), ("v1", True, False), ("off", False, False)]
)
def test_the_header_is_accepted_where_it_is_sent(header: str, accepted: bool, joined: bool) -> None:
    """HAProxy's manual, accept-proxy: both or neither. Only version 2 has an id to put into HAProxy's log."""
    text = "\n".join(lines(f'[backends.haproxy]\nservers = ["127.0.0.1:4443"]\nproxy_protocol = "{header}"\n'))

    assert ("accept-proxy" in text) is accepted
    assert ("unique-id-format %[fc_pp_unique_id]" in text) is joined


@pytest.mark.parametrize(
    ("listen", "server"),
    [
        ("127.0.0.1:8099", "127.0.0.1:8099"),
        (":8099", "127.0.0.1:8099"),
        ("0.0.0.0:8099", "127.0.0.1:8099"),
        ("[::]:8099", "[::1]:8099"),
        ("unix:/run/http.sock", "unix@/run/http.sock"),
        ("unix:@http", "abns@http"),
    ],
)
def test_port_80_behind_haproxy(listen: str, server: str) -> None:
    """Contract, [http] listen: behind HAProxy's own :80 frontend, which sends challenges on."""
    found = lines(f'[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n[http]\nlisten = ["{listen}"]\n')

    assert "use_backend sniproxy_challenges if { path_beg /.well-known/acme-challenge/ }" in found
    assert found[-1] == f"server sniproxy1 {server}"


def test_port_80_of_our_own() -> None:
    """HAProxy has to let go of it."""
    found = lines('[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n[http]\nlisten = ["0.0.0.0:80"]\n')

    assert "remove every bind on :80" in found[-1]
