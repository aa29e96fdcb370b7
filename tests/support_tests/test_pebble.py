"""Pebble and its DNS do what other tests ask of them (Pebble's README, 2.4.0)."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from acme import messages
from cryptography import x509

from tests.support.acme_client import (
    AcmeClient,
    HttpAnswers,
    OrderInvalid,
    TlsAnswers,
    challenge_certificate,
    names_of,
    problem_type,
)
from tests.support.pebble import AVAILABLE, MISSING, ChallengeDns, Pebble

if TYPE_CHECKING:
    from tests.support.processes import Programs

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=MISSING)

KEY_ID, MAC_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest.fixture(scope="module")
def challenge_dns(module_programs: Programs) -> ChallengeDns:
    return module_programs.start(ChallengeDns(module_programs.directory))


@pytest.fixture(scope="module")
def pebble(module_programs: Programs, challenge_dns: ChallengeDns) -> Pebble:
    return module_programs.start(Pebble(module_programs.directory, dns=challenge_dns, validity_seconds=120))


class TestChallengeDns:
    def test_every_name_is_this_machine_and_has_no_ipv6_address(self, challenge_dns: ChallengeDns) -> None:
        assert challenge_dns.lookup("a.test") == challenge_dns.lookup("b.other") == ["127.0.0.1"]
        assert challenge_dns.lookup("a.test", "AAAA") == []

    def test_a_name_may_have_addresses_of_its_own(self, challenge_dns: ChallengeDns) -> None:
        challenge_dns.add_a("own.test", "127.0.0.2", "127.0.0.3")
        challenge_dns.add_aaaa("own.test", "::1")
        assert challenge_dns.lookup("own.test") == ["127.0.0.2", "127.0.0.3"]
        assert challenge_dns.lookup("own.test", "AAAA") == ["::1"]
        challenge_dns.clear("own.test")
        assert challenge_dns.lookup("own.test") == ["127.0.0.1"]

    def test_the_default_can_be_another(self, challenge_dns: ChallengeDns) -> None:
        challenge_dns.set_default("127.0.0.9", "::1")
        assert challenge_dns.lookup("a.test") == ["127.0.0.9"]
        assert challenge_dns.lookup("a.test", "AAAA") == ["::1"]
        challenge_dns.set_default()
        assert challenge_dns.lookup("a.test", "AAAA") == []

    def test_a_name_may_fail(self, challenge_dns: ChallengeDns) -> None:
        challenge_dns.servfail("broken.test")
        with pytest.raises(LookupError, match="SERVFAIL"):
            challenge_dns.lookup("broken.test")
        challenge_dns.clear("broken.test")
        assert challenge_dns.lookup("broken.test") == ["127.0.0.1"]


class TestPebble:
    @pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
    def test_a_certificate_is_issued_for_what_it_has_seen(self, pebble: Pebble, challenge: str) -> None:
        with (
            AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client,
            TlsAnswers(pebble.tls_port) as tls,
            HttpAnswers(pebble.http_port) as http,
        ):
            client.register()
            show = {"tls-alpn-01": tls.answer, "http-01": http.answer}[challenge]
            chain = client.obtain(["a.test", "b.test"], type=challenge, show=show)
        leaf, *above = x509.load_pem_x509_certificates(chain.encode() + pebble.root().encode())
        assert names_of(leaf) == ("a.test", "b.test")
        for lower, upper in pairwise([leaf, *above]):
            lower.verify_directly_issued_by(upper)
        assert above[0] == x509.load_pem_x509_certificate(pebble.intermediate().encode())

    def test_the_lifetime_is_the_given_one(self, pebble: Pebble) -> None:
        """To the second: certificateValidityPeriod counts seconds, and both ends of the period (RFC 5280)."""
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client, TlsAnswers(pebble.tls_port) as tls:
            client.register()
            (leaf, *_) = x509.load_pem_x509_certificates(client.obtain(["a.test"], show=tls.answer).encode())
        lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert timedelta(seconds=119) <= lifetime <= timedelta(seconds=120)

    def test_nothing_is_issued_for_a_wrong_answer(self, pebble: Pebble) -> None:
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client, TlsAnswers(pebble.tls_port) as tls:
            client.register()
            tls.show(challenge_certificate(["a.test"], "another key authorization"), "a.test")
            with pytest.raises(OrderInvalid, match="unauthorized"):
                client.obtain(["a.test"])

    def test_it_knows_what_has_been_revoked(self, pebble: Pebble) -> None:
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client, TlsAnswers(pebble.tls_port) as tls:
            client.register()
            (leaf, *_) = x509.load_pem_x509_certificates(client.obtain(["a.test"], show=tls.answer).encode())
            assert pebble.status(leaf.serial_number) == "Valid"
            client.acme.revoke(leaf, 0)
            assert pebble.status(leaf.serial_number) == "Revoked"


class TestPebbleOtherwise:
    def test_an_external_account_is_demanded_and_checked(self, programs: Programs) -> None:
        pebble = programs.start(Pebble(programs.directory, eab={KEY_ID: MAC_KEY}, always_valid=True))
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client:
            assert client.acme.external_account_required()
            with pytest.raises(messages.Error) as refused:
                client.register()
            assert problem_type(refused.value) == "externalAccountRequired"
            assert client.register(eab=(KEY_ID, MAC_KEY))

    def test_there_are_other_chains_and_longer_ones(self, programs: Programs) -> None:
        pebble = programs.start(
            Pebble(programs.directory, alternate_roots=1, chain_length=3, always_valid=True, nonce_reject=30)
        )
        assert pebble.root(0) != pebble.root(1)
        assert pebble.intermediate(0) != pebble.intermediate(1)
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client:
            client.register()
            assert client.obtain(["a.test"]).count("BEGIN CERTIFICATE") == 4

    def test_a_name_on_the_block_list_is_refused_and_valid_authorizations_are_used_again(
        self, programs: Programs
    ) -> None:
        pebble = programs.start(
            Pebble(programs.directory, blocklist=["bad.test"], authz_reuse=100, always_valid=True, strict=False)
        )
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client:
            client.register()
            with pytest.raises(messages.Error) as refused:
                client.new_order(["bad.test"])
            assert problem_type(refused.value) == "rejectedIdentifier"
            client.obtain(["good.test"])
            assert client.new_order(["good.test"])[1]["status"] == "ready"

    def test_after_a_restart_it_is_at_the_same_address_and_knows_nobody(self, programs: Programs) -> None:
        pebble = programs.start(Pebble(programs.directory, always_valid=True))
        root = pebble.root()
        with AcmeClient(pebble.directory_url, ca_file=pebble.ca_file) as client:
            client.register()
            pebble.restart()
            with pytest.raises(messages.Error) as refused:
                client.new_order(["a.test"])
        assert problem_type(refused.value) == "accountDoesNotExist"
        assert pebble.root() != root

    def test_what_it_says_when_it_cannot_start_is_told(self, programs: Programs) -> None:
        pebble = Pebble(programs.directory, always_valid=True)
        pebble.kill()
        with pytest.raises(AssertionError, match="pebble has ended"):
            programs.start(pebble)
