"""`sniproxy haproxy-config`: the HAProxy lines that fit a config, and HAProxy itself as their judge."""

from __future__ import annotations

import grp
from typing import TYPE_CHECKING

import pytest

from tests.support.haproxy import HAPROXY, MISSING, configuration_mistakes
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

MINIMAL = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s

"""


def has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture
def lines(sniproxy: Callable[..., Result], tmp_path: Path) -> Callable[[str], str]:
    """What is printed for a configuration."""

    def printed(text: str) -> str:
        path = tmp_path / "sniproxy.toml"
        path.write_text(text)
        result = sniproxy("haproxy-config", "-c", path)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    return printed


SERVERS = [
    "unix:/run/haproxy/sniproxy.sock",
    "unix:@sniproxy",
    "127.0.0.1:4443",
    "[::1]:4443",
    "localhost:4443",
]
HTTP = {
    "off": "",
    "own": '[http]\nlisten = ["0.0.0.0:80", "[::]:80"]\n',
    "behind": '[http]\nlisten = ["127.0.0.1:8099"]\n',
    "behind, all addresses": '[http]\nlisten = [":8099"]\n',
    "behind, IPv6": '[http]\nlisten = ["[::1]:8099", "[::]:8098"]\n',
    "unix": '[http]\nlisten = ["unix:/run/sniproxy/http.sock"]\n',
    "abstract": '[http]\nlisten = ["unix:@sniproxy-http"]\n',
}
DELIVERY = """
[acme]
email = "admin@example.com"
agree_to_terms = true

[[certificates]]
names = ["example.com"]

[haproxy]
certificate_dir = "{directory}"
runtime_sockets = ["/run/haproxy/admin.sock", "unix:@haproxy-admin", "127.0.0.1:9999"]
"""


@pytest.mark.skipif(HAPROXY is None, reason=MISSING)
@pytest.mark.skipif(not has_group("haproxy"), reason="this machine has no group haproxy, which the lines name")
@pytest.mark.parametrize("header", ["v2", "v1", "off"])
@pytest.mark.parametrize("server", SERVERS)
def test_haproxy_takes_the_lines(lines: Callable[[str], str], tmp_path: Path, server: str, header: str) -> None:
    """HAProxy's manual, section 5.1: pasted behind a minimal `defaults`, they are a configuration without a warning."""
    certificates = Authority(tmp_path).directory(("example.com",))
    printed = lines(
        f'[backends.haproxy]\nservers = ["{server}"]\nproxy_protocol = "{header}"\n'
        + DELIVERY.format(directory=certificates)
    )

    assert configuration_mistakes(MINIMAL + printed, tmp_path) == ""
    assert (" accept-proxy" in printed) == (header != "off")


@pytest.mark.skipif(HAPROXY is None, reason=MISSING)
@pytest.mark.skipif(not has_group("haproxy"), reason="this machine has no group haproxy, which the lines name")
@pytest.mark.parametrize("http", HTTP)
def test_haproxy_takes_the_lines_for_port_80(lines: Callable[[str], str], tmp_path: Path, http: str) -> None:
    """HAProxy's manual, section 5.2: `server` takes the address where we answer challenges."""
    certificates = Authority(tmp_path).directory(("example.com",))
    printed = lines(
        '[backends.haproxy]\nservers = ["unix:/run/haproxy/sniproxy.sock"]\n'
        + HTTP[http]
        + DELIVERY.format(directory=certificates)
    )

    assert configuration_mistakes(MINIMAL + printed, tmp_path) == ""
    assert ("use_backend sniproxy_challenges" in printed) == (http not in ("off", "own"))


def test_a_bind_for_each_server(lines: Callable[[str], str]) -> None:
    """Contract: `bind unix@… accept-proxy ssl crt …`."""
    printed = lines('[backends.haproxy]\nservers = ["unix:/run/haproxy/sniproxy.sock", "127.0.0.1:4443"]\n')
    binds = [line.strip() for line in printed.splitlines() if line.strip().startswith("bind")]

    tls = "ssl crt /etc/haproxy/certs alpn h2,http/1.1"
    assert binds == [
        f"bind unix@/run/haproxy/sniproxy.sock mode 660 group haproxy accept-proxy {tls}",
        f"bind 127.0.0.1:4443 accept-proxy {tls}",
    ]


def test_the_stats_socket_is_where_we_look_for_it(lines: Callable[[str], str], tmp_path: Path) -> None:
    """Contract: `stats socket`; level admin is what setting a certificate takes (management guide, section 9.3).

    HAProxy binds it as root: without a group it would be root's alone, wherever its directory has no setgid bit.
    """
    printed = lines('[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n' + DELIVERY.format(directory=tmp_path))

    assert "    stats socket unix@/run/haproxy/admin.sock mode 660 group haproxy level admin\n" in printed
    assert "    stats socket abns@haproxy-admin level admin\n" in printed


def test_without_a_backend_there_is_no_frontend(lines: Callable[[str], str]) -> None:
    """default_backend = "reject": nothing of HAProxy's is behind by default."""
    printed = lines('[proxy]\ndefault_backend = "reject"\n')

    assert "frontend https" not in printed
