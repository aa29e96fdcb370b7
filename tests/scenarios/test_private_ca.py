"""A private CA that still asks for names below acme.invalid, and one whose certificates hardly live."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support import haproxy
from tests.support.acme_stub import AcmeStub
from tests.support.processes import LOCALHOST, until
from tests.support.site import NAMES, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Programs

pytestmark = pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING)


@pytest.fixture
def site(programs: Programs) -> Site:
    return Site(programs=programs)


@pytest.fixture
def stub(site: Site) -> Iterator[AcmeStub]:
    with AcmeStub(tls=(LOCALHOST, site.port), http=(LOCALHOST, site.http_port)) as stub:
        site.directory_url = stub.directory_url
        yield stub


def start(site: Site) -> None:
    site.start_sniproxy()
    site.await_bundle()
    site.start_haproxy()


@pytest.mark.parametrize("challenge", ["tls-sni-01", "tls-sni-02"])
def test_names_below_acme_invalid(site: Site, stub: AcmeStub, challenge: str) -> None:
    """draft-ietf-acme-acme-01 and -02: each has its own server names, all below acme.invalid."""
    stub.challenge_types = ("http-01", challenge)
    stub.tls_sni_01_n = 3
    site.settings["acme"] = f'challenges = ["{challenge}"]'
    start(site)
    assert site.await_deployed()["serial"] == site.served_serial()
    assert site.sniproxy.metric("sniproxy_challenges_total", type=challenge, result="valid") == len(NAMES)
    lines = [line for line in site.sniproxy.stdout.splitlines() if ".acme.invalid|" in line]
    assert lines
    assert all(" <ACME>/responder " in line for line in lines)


def test_certificates_of_eight_seconds_are_renewed_by_themselves(site: Site, stub: AcmeStub) -> None:
    """The code is the same for 90 days and for these: renewed with half of their lives left, and always served."""
    stub.lifetime, stub.backdate = timedelta(seconds=8), timedelta()
    stub.renewal_info = False
    start(site)
    first = site.await_deployed()
    until(lambda: len(stub.issued) >= 4, "three renewals", site.sniproxy)
    serials = [issued.serial for issued in stub.issued]
    until(lambda: int(site.served_serial(), 16) in serials[3:], "the newest is served", site.sniproxy)
    assert first["reason"] == "lifetime"
    assert site.sniproxy.metric("sniproxy_certificate_renewals_total", certificate=NAMES[0], result="failure") == 0
    assert len(set(serials)) == len(serials)


def test_the_first_challenge_fails_and_the_next_attempt_takes_another(site: Site, stub: AcmeStub) -> None:
    """A name that one challenge cannot prove, behind a firewall say, may be proven by another."""
    stub.tls = [(LOCALHOST, site.admin_port)]  # where nobody speaks TLS
    start(site)
    until(lambda: site.known() and site.status()["last_error"], "tls-alpn-01 fails", site.sniproxy)
    assert "tls-alpn-01" in site.status()["last_error"]
    (result,) = site.renew()
    assert result["result"] == "renewed", result["error"]
    assert site.sniproxy.metric("sniproxy_challenges_total", type="http-01", result="valid") == len(NAMES)


def test_a_crash_between_issue_and_save_costs_no_second_certificate(site: Site, stub: AcmeStub) -> None:
    """Order URL and key saved before finalize; the certificate is picked up again."""
    stub.on("certificate", lambda *_: site.sniproxy.kill(), when="received")
    site.start_sniproxy(name="killed")
    site.sniproxy.wait()
    order = site.state / "certificates" / NAMES[0] / "order.json"
    assert json.loads(order.read_text())["url"] in stub.orders or order.exists()
    site.start_sniproxy(name="again")
    site.await_bundle()
    site.start_haproxy()
    site.await_deployed()
    assert len(stub.issued) == 1
    assert stub.count("newOrder") == 1
    assert not order.exists()
