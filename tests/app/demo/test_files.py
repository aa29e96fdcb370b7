"""The files that the demo writes: the programs they are for take them."""

from __future__ import annotations

import re
import subprocess

import pytest

from sniproxy.app.demo.files import BUNDLE, CLIENT, DRAIN_SECONDS, HAPROXY_CFG, INTERNAL_NAME, NAME, PAGE, SNIPROXY_TOML
from sniproxy.bundle import placeholder, utc_now
from sniproxy.config import parse
from tests.support.haproxy import HAPROXY, MISSING


@pytest.fixture
def config(tmp_path):
    return parse(
        SNIPROXY_TOML.format(port=1443, admin_port=1404, acme_port=1400, directory=tmp_path), file="sniproxy.toml"
    )


def test_the_configuration_is_good(config, tmp_path):
    (certificate,) = config.certificates
    assert certificate.names == (NAME, INTERNAL_NAME)
    assert certificate.challenges == ("tls-alpn-01",)
    assert f"{certificate.name}.pem" == BUNDLE
    assert config.haproxy.certificate_dir == tmp_path / "certs"
    assert config.acme.state_dir == tmp_path / "state"
    assert config.proxy.shutdown_grace == DRAIN_SECONDS


def test_one_name_is_for_one_client(config):
    (route,) = config.routes
    assert [str(pattern) for pattern in route.sni] == [INTERNAL_NAME]
    assert [str(network) for network in route.allow] == [f"{CLIENT}/32"]


@pytest.mark.skipif(HAPROXY is None, reason=MISSING)
def test_haproxy_takes_its_own_without_a_warning(tmp_path):
    certs = tmp_path / "certs"
    certs.mkdir()
    (certs / BUNDLE).write_bytes(placeholder((NAME,), utc_now()).pem)
    (tmp_path / "page.html").write_text(PAGE)
    cfg = tmp_path / "haproxy.cfg"
    cfg.write_text(HAPROXY_CFG.format(directory=tmp_path))
    assert HAPROXY is not None
    done = subprocess.run([HAPROXY, "-c", "-f", cfg], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_idle_connections_are_closed_before_the_proxy_cuts_them():
    timeouts = [int(seconds) for seconds in re.findall(r"timeout http-\S+ (\d+)s", HAPROXY_CFG)]
    assert len(timeouts) == 2
    assert max(timeouts) < DRAIN_SECONDS


def test_the_page_tells_what_is_compared():
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', PAGE)
    assert [key for key, _ in rows] == ["src", "req.ver", "ssl_fc_sni", "fc_pp_authority", "fc_pp_unique_id"]
