"""acme2certifier does what other tests ask of it: issue, renewal information, profiles."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from acme import messages
from acme.client import _renewal_info_path_component
from cryptography import x509

from tests.support.acme2certifier import (
    AVAILABLE,
    DNS_PORT,
    HTTP_PORT,
    MISSING,
    PROFILES,
    TLS_PORT,
    Acme2Certifier,
    loopback_address,
)
from tests.support.acme_client import (
    AcmeClient,
    HttpAnswers,
    OrderInvalid,
    TlsAnswers,
    challenge_certificate,
    names_of,
    problem_type,
)
from tests.support.pebble import ChallengeDns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Programs

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=MISSING)


@pytest.fixture(scope="module")
def site() -> str:
    """The address of every name."""
    return loopback_address(HTTP_PORT, TLS_PORT)


@pytest.fixture(scope="module")
def ca(module_programs: Programs, site: str) -> Acme2Certifier:
    directory = module_programs.directory
    dns = module_programs.start(ChallengeDns(directory, host=loopback_address(DNS_PORT), port=DNS_PORT, default=site))
    return module_programs.start(Acme2Certifier(directory, dns))


@pytest.fixture
def client(ca: Acme2Certifier) -> Iterator[AcmeClient]:
    with AcmeClient(ca.directory_url) as client:
        client.register(contact=["mailto:admin@example.com"])
        yield client


def test_the_directory_offers_renewal_information_and_profiles(client: AcmeClient) -> None:
    assert client.directory["renewalInfo"]
    assert client.directory["keyChange"]
    assert dict(client.directory.meta.profiles) == PROFILES


def test_tls_alpn_01(ca: Acme2Certifier, client: AcmeClient, site: str) -> None:
    with TlsAnswers(TLS_PORT, host=site) as tls:
        chain = client.obtain(["a.test", "b.test"], show=tls.answer)
    certificates = x509.load_pem_x509_certificates((chain + ca.root()).encode())
    assert names_of(certificates[0]) == ("a.test", "b.test")
    assert len(certificates) == 3
    for lower, upper in pairwise(certificates):
        lower.verify_directly_issued_by(upper)
    assert sorted(set(map(str, tls.seen))) == ["a.test", "b.test"]


def test_http_01(client: AcmeClient, site: str) -> None:
    with HttpAnswers(HTTP_PORT, host=site) as http:
        client.obtain(["a.test"], type="http-01", show=http.answer)
    assert http.seen[0][0] == "a.test"


def test_a_wrong_answer_is_not_believed(client: AcmeClient, site: str) -> None:
    with TlsAnswers(TLS_PORT, host=site) as tls:
        tls.show(challenge_certificate(["a.test"], "not the key authorization"), "a.test")
        with pytest.raises(OrderInvalid):
            client.obtain(["a.test"])


def test_renewal_is_suggested_in_the_last_third(client: AcmeClient, site: str) -> None:
    """RFC 9773 section 4."""
    with TlsAnswers(TLS_PORT, host=site) as tls:
        chain = client.obtain(["a.test"], show=tls.answer)
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    renew, _ = client.acme.renewal_time(chain.encode())
    assert renew is not None
    assert timedelta(days=59) < renew - leaf.not_valid_before_utc < timedelta(days=91)


def test_an_order_may_have_a_profile(client: AcmeClient) -> None:
    _, order = client.new_order(["a.test"], profile="short")
    assert order["status"] == "pending"
    with pytest.raises(messages.Error) as refused:
        client.new_order(["a.test"], profile="unheard-of")
    assert problem_type(refused.value) == "invalidProfile"


def test_an_order_may_name_what_it_replaces_however_often(client: AcmeClient, site: str) -> None:
    """RFC 9773 section 5 has 409 for the second; as it is here, only the stub can be used to try that."""
    with TlsAnswers(TLS_PORT, host=site) as tls:
        chain = client.obtain(["a.test"], show=tls.answer)
    replaces = _renewal_info_path_component(x509.load_pem_x509_certificates(chain.encode())[0])
    for _ in range(2):
        client.new_order(["a.test"], replaces=replaces)
