"""A CA that is not Pebble's kin, on the real ports, with renewal information (RFC 9773) and profiles."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import haproxy
from tests.support.acme2certifier import (
    AVAILABLE,
    DNS_PORT,
    HTTP_PORT,
    MISSING,
    TLS_PORT,
    Acme2Certifier,
    loopback_address,
)
from tests.support.pebble import ChallengeDns
from tests.support.processes import until
from tests.support.site import NAMES, Site

if TYPE_CHECKING:
    from tests.support.processes import Programs

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason=MISSING),
    pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING),
]


@pytest.fixture
def site(programs: Programs) -> Site:
    site = Site(programs=programs)
    site.host, site.port, site.http_port = loopback_address(HTTP_PORT, TLS_PORT), TLS_PORT, HTTP_PORT
    return site


def start(site: Site, **options: Any) -> None:
    directory = site.directory
    dns = ChallengeDns(directory, host=loopback_address(DNS_PORT), port=DNS_PORT, default=site.host)
    ca = site.programs.start(Acme2Certifier(directory, site.programs.start(dns), **options))
    site.directory_url = ca.directory_url
    site.start_sniproxy()
    site.await_bundle()
    site.start_haproxy()


def await_ari(site: Site) -> None:
    """Waits until the CA has said when to renew, and that is on disk."""
    state = site.state / "certificates" / NAMES[0] / "state.json"
    until(lambda: json.loads(state.read_text())["ari_at"], "the CA has said when to renew", site.sniproxy)
    assert site.status()["reason"] in ("ari", "expiring")


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
def test_it_issues(site: Site, challenge: str) -> None:
    site.settings["acme"] = f'challenges = ["{challenge}"]'
    start(site)
    assert site.await_deployed()["serial"] == site.served_serial()
    assert site.sniproxy.metric("sniproxy_challenges_total", type=challenge, result="valid") == len(NAMES)


def test_its_renewal_information_decides(site: Site) -> None:
    """RFC 9773 section 4.2: an instant within the window, which here ends with the certificate; drawn once, and kept.

    It is never later than a 20th of the lifetime before the end.
    """
    start(site, validity_days=90, renew_percent=40)
    site.await_deployed()
    await_ari(site)
    status = site.status()
    begin, end, at = (datetime.fromisoformat(status[key]) for key in ("not_before", "not_after", "renew_at"))
    assert begin + timedelta(days=35) < at <= end - timedelta(days=4.5)
    site.sniproxy.stop()
    site.start_sniproxy(name="again")
    until(lambda: site.known() and site.status()["renew_at"] == status["renew_at"], "it is kept", site.sniproxy)


def test_what_is_over_by_its_word_is_renewed_and_replaces_the_old(site: Site) -> None:
    """RFC 9773 section 4.2: a time in the past is now; section 5: the order names what it replaces."""
    start(site, validity_days=90, renew_percent=40)
    first = site.await_deployed()["serial"]
    state = site.state / "certificates" / NAMES[0] / "state.json"
    await_ari(site)
    site.sniproxy.stop()
    document = json.loads(state.read_text())
    document["ari_at"] = document["ari_checked_at"]
    state.write_text(json.dumps(document))
    site.start_sniproxy(name="again")
    until(lambda: site.known() and site.status()["serial"] != first, "it is renewed", site.sniproxy)
    site.await_deployed()
    assert "due (ari)" in site.sniproxy.stderr


def test_a_profile_is_asked_for(site: Site) -> None:
    """Contract section 2: `profile`."""
    site.settings["acme"] = 'profile = "short"'
    start(site)
    site.await_deployed()


def test_a_profile_that_is_not_there_is_told_in_the_cas_words(site: Site) -> None:
    site.settings["acme"] = 'profile = "nowhere"'
    start(site)
    until(lambda: site.known() and site.status()["last_error"], "the CA refuses", site.sniproxy)
    assert "invalidProfile" in site.status()["last_error"]
