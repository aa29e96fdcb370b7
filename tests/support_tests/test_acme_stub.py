"""The stub is an honest CA where it was not told otherwise, and does what it was told where it was.

The client is the `acme` package's, which reads and signs by itself.
"""

from __future__ import annotations

import json
import math
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, IncompleteRead, RemoteDisconnected
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import requests
from acme import challenges, crypto_util, messages
from acme.errors import ConflictError
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy.b64 import b64encode
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from tests.support.acme_client import (
    AcmeClient,
    Asked,
    HttpAnswers,
    OrderInvalid,
    TlsAnswers,
    challenge_certificate,
    names_of,
    new_key,
    problem_type,
    signing_request,
)
from tests.support.acme_stub import AcmeStub, CheckFailed
from tests.support.acme_validation import tls_sni_01_names, tls_sni_02_names
from tests.support.processes import LOCALHOST, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message

    from tests.support.acme_faults import Request

NAMES = ["a.test", "b.test"]
KEY_ID, MAC_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False, profiles={"classic": "as ever", "short": "six days"}) as stub:
        yield stub


@pytest.fixture
def client(stub: AcmeStub) -> Iterator[AcmeClient]:
    with AcmeClient(stub.directory_url) as client:
        client.register()
        yield client


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(messages.Error) as error:
        call()
    return problem_type(error.value)


class Got(NamedTuple):
    status: int
    headers: Message
    body: bytes


def get(stub: AcmeStub, path: str = "/directory") -> Got:
    """The reply to a client that knows no ACME."""
    connection = HTTPConnection(LOCALHOST, stub.port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Got(response.status, response.headers, response.read())
    finally:
        connection.close()


class TestObtaining:
    def test_tls_alpn_01_is_looked_at_from_three_perspectives(self) -> None:
        with (
            TlsAnswers() as tls,
            AcmeStub(tls=(tls.host, tls.port)) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            key = new_key()
            chain = certificates(client.obtain(NAMES, show=tls.answer, key=key))
        assert sorted(map(str, tls.seen)) == ["a.test"] * 3 + ["b.test"] * 3
        assert names_of(chain[0]) == tuple(NAMES)
        assert chain[0].public_key() == key.public_key()
        for lower, upper in pairwise([*chain, *certificates(stub.root_pem)]):
            lower.verify_directly_issued_by(upper)

    def test_http_01(self) -> None:
        with (
            HttpAnswers() as http,
            AcmeStub(http=(http.host, http.port), perspectives=1) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            client.obtain(NAMES, type="http-01", show=http.answer)
        assert [host for host, _ in http.seen] == NAMES

    @pytest.mark.parametrize(("n", "looks"), [(None, 1), (4, 4)], ids=["without n", "n = 4"])
    def test_tls_sni_01(self, n: int | None, looks: int) -> None:
        with (
            TlsAnswers(alpn=()) as tls,
            AcmeStub(tls=(tls.host, tls.port), perspectives=1, challenges=["tls-sni-01"]) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            stub.tls_sni_01_n = n
            client.register()

            def show(asked: Asked) -> None:
                assert asked.fields.get("n") == n
                for name in tls_sni_01_names(asked.key_authorization, looks):
                    tls.show(challenge_certificate([name]), name)

            client.obtain(["a.test"], type="tls-sni-01", show=show)
        assert len(tls.seen) == looks

    def test_tls_sni_02(self) -> None:
        with (
            TlsAnswers(alpn=()) as tls,
            AcmeStub(tls=(tls.host, tls.port), challenges=["tls-sni-02"]) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()

            def show(asked: Asked) -> None:
                names = tls_sni_02_names(asked.token, asked.key_authorization)
                tls.show(challenge_certificate(names), names[0])

            client.obtain(["a.test"], type="tls-sni-02", show=show)

    def test_an_address(self) -> None:
        """RFC 8738; tls-sni was never for addresses."""
        with (
            TlsAnswers() as tls,
            AcmeStub(tls=(tls.host, tls.port), challenges=["tls-alpn-01", "tls-sni-01"]) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            chain = client.obtain(["192.0.2.7"], show=tls.answer)
            (authorization,) = stub.authorizations
        assert names_of(certificates(chain)[0]) == ("192.0.2.7",)
        assert [challenge.type for challenge in authorization.challenges] == ["tls-alpn-01"]

    def test_the_way_of_the_acme_package_itself(self) -> None:
        with (
            HttpAnswers() as http,
            AcmeStub(http=(http.host, http.port), alternates=1) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            key_pem = new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            order = client.acme.new_order(crypto_util.make_csr(key_pem, ["a.test"]))
            (found,) = (
                body for body in order.authorizations[0].body.challenges if isinstance(body.chall, challenges.HTTP01)
            )
            response, validation = found.response_and_validation(client.key)
            http.pages[found.chall.path] = validation.encode()
            client.acme.answer_challenge(found, response)
            deadline = datetime.now() + timedelta(seconds=30)  # noqa: DTZ005  as the package wants it
            done = client.acme.finalize_order(client.acme.poll_authorizations(order, deadline), deadline, True)
        (leaf, one), (same_leaf, other) = map(certificates, [done.fullchain_pem, *done.alternative_fullchains_pem])
        assert leaf == same_leaf
        roots = [certificates(pem)[0] for pem in stub.root_pems]
        one.verify_directly_issued_by(roots[0])
        other.verify_directly_issued_by(roots[1])
        leaf.verify_directly_issued_by(other)

    def test_a_wrong_answer_is_not_believed(self) -> None:
        with (
            TlsAnswers() as tls,
            AcmeStub(tls=(tls.host, tls.port)) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            tls.show(challenge_certificate(["a.test"], "not the key authorization"), "a.test")
            with pytest.raises(OrderInvalid, match="digest of something else"):
                client.obtain(["a.test"])
            assert stub.orders[0].status == "invalid"
            assert stub.issued == []

    def test_a_place_without_connection_is_left_for_the_next(self) -> None:
        """As a CA goes on from IPv6 to IPv4."""
        with (
            TlsAnswers() as silent,
            TlsAnswers() as tls,
            AcmeStub(tls=[(LOCALHOST, silent.port), (tls.host, tls.port)], perspectives=1) as stub,
            AcmeClient(stub.directory_url) as client,
        ):
            client.register()
            client.obtain(["a.test"], show=tls.answer)
            assert silent.seen == tls.seen == ["a.test"]

    def test_the_test_may_look_itself(self) -> None:
        def look(authorization: Any, challenge: Any, key_authorization: str) -> None:
            raise CheckFailed("dns", f"no such name: {authorization.identifier[1]}")

        with AcmeStub(validate=look) as stub, AcmeClient(stub.directory_url) as client:
            client.register()
            with pytest.raises(OrderInvalid, match="no such name") as failed:
                client.obtain(["a.test"])
            assert failed.value.errors[0]["type"] == "urn:ietf:params:acme:error:dns"

    def test_what_was_asked_and_issued_is_on_record(self, stub: AcmeStub, client: AcmeClient) -> None:
        chain = client.obtain(["a.test"], profile="short")
        assert stub.payloads("newOrder") == [{"identifiers": [{"type": "dns", "value": "a.test"}], "profile": "short"}]
        (issued,) = stub.issued
        assert issued.certificate == certificates(chain)[0]
        assert (issued.names, issued.profile) == (("a.test",), "short")
        assert issued.account == stub.accounts[0].url == stub.requests[-1].account
        assert [request.number for request in stub.requests] == [*range(1, len(stub.requests) + 1)]
        kinds = [request.resource for request in stub.requests if request.resource not in {"directory", "newNonce"}]
        assert kinds[:5] == ["newAccount", "newOrder", "authorization", "challenge", "authorization"]
        assert kinds[-2:] == ["order", "certificate"]


class TestSignatures:
    def post(self, client: AcmeClient, url: str, **changes: Any) -> requests.Response:
        """POST-as-GET with what the test makes of it."""
        nonce = client.net._get_nonce(url, client.directory["newNonce"])
        signed = json.loads(client.net._wrap_in_jws(None, nonce, changes.pop("signed_url", url)))
        headers = {"Content-Type": changes.pop("content_type", "application/jose+json")}
        response = client.net.session.post(url, json.dumps({**signed, **changes}), headers=headers, timeout=20)
        client.net._nonces.clear()
        return response

    def error(self, response: requests.Response) -> tuple[int, str]:
        assert response.headers["Content-Type"] == "application/problem+json"
        return response.status_code, response.json()["type"].rpartition(":")[2]

    def test_a_good_one_is_taken(self, stub: AcmeStub, client: AcmeClient) -> None:
        assert self.post(client, stub.accounts[0].url).status_code == 200

    def test_one_of_another_key_is_not(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.net.key = JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        assert self.error(self.post(client, stub.accounts[0].url)) == (400, "malformed")

    def test_one_for_another_url_is_not(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 6.4."""
        url = stub.accounts[0].url
        assert self.error(self.post(client, url, signed_url=f"{url}/orders")) == (401, "unauthorized")

    def test_a_nonce_is_good_for_once(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 6.5."""
        url = stub.accounts[0].url
        nonce = client.net._get_nonce(url, client.directory["newNonce"])
        body = client.net._wrap_in_jws(None, nonce, url)
        headers = {"Content-Type": "application/jose+json"}
        first, again = (client.net.session.post(url, body, headers=headers, timeout=20) for _ in range(2))
        assert first.status_code == 200
        assert self.error(again) == (400, "badNonce")
        assert again.headers["Replay-Nonce"] != first.headers["Replay-Nonce"]

    def test_the_content_type_and_the_form_are_checked(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 6.2."""
        url = stub.accounts[0].url
        assert self.error(self.post(client, url, content_type="application/json")) == (415, "malformed")
        assert self.error(self.post(client, url, header={})) == (400, "malformed")
        assert self.error(self.post(client, url, signature="AA==")) == (400, "malformed")

    def test_newaccount_wants_a_key_and_all_else_an_account(self, stub: AcmeStub, client: AcmeClient) -> None:
        assert self.error(self.post(client, client.directory["newAccount"])) == (400, "malformed")
        client.net.account = None
        assert self.error(self.post(client, stub.accounts[0].url)) == (400, "malformed")

    def test_an_algorithm_it_does_not_know_is_named_with_those_it_knows(
        self, stub: AcmeStub, client: AcmeClient
    ) -> None:
        protected = b64encode(json.dumps({"alg": "none", "kid": stub.accounts[0].url}).encode()).decode()
        response = self.post(client, stub.accounts[0].url, protected=protected)
        assert self.error(response) == (400, "badSignatureAlgorithm")
        assert "ES256" in response.json()["algorithms"]

    def test_get_is_not_post_as_get(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 6.3."""
        assert get(stub, stub.accounts[0].url.removeprefix(stub.base_url)).status == 405


class TestAccounts:
    def test_a_key_has_one_account(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 7.3."""
        client.net.account = None
        with pytest.raises(ConflictError) as conflict:  # that is what the package makes of a 200
            client.register()
        assert conflict.value.location == stub.accounts[0].url

    def test_an_account_is_found_by_its_key(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 7.3.1."""
        found = client.acme.query_registration(messages.RegistrationResource(body=messages.Registration()))
        assert found.uri == stub.accounts[0].url
        with AcmeClient(stub.directory_url) as other:
            unknown = messages.RegistrationResource(body=messages.Registration())
            assert refused(lambda: other.acme.query_registration(unknown)) == "accountDoesNotExist"
        assert len(stub.accounts) == 1

    def test_the_terms_have_to_be_agreed_to(self, stub: AcmeStub) -> None:
        with AcmeClient(stub.directory_url) as client:
            assert client.directory.meta.terms_of_service == stub.terms_of_service
            assert refused(lambda: client.acme.new_account(messages.NewRegistration())) == "malformed"

    def test_the_contact_can_be_changed_and_the_account_closed(self, stub: AcmeStub, client: AcmeClient) -> None:
        url = stub.accounts[0].url
        assert client.post(url, {"contact": ["mailto:a@b.test"]}).json()["contact"] == ["mailto:a@b.test"]
        assert refused(lambda: client.post(url, {"contact": ["tel:1"]})) == "unsupportedContact"
        assert refused(lambda: client.post(url, {"contact": ["mailto:nobody"]})) == "invalidContact"
        assert client.post(url, {"status": "deactivated"}).json()["status"] == "deactivated"
        assert refused(lambda: client.new_order(NAMES)) == "unauthorized"

    def test_an_external_account_is_demanded_and_checked(self) -> None:
        """RFC 8555 section 7.3.4."""
        with AcmeStub(eab={KEY_ID: MAC_KEY}) as stub, AcmeClient(stub.directory_url) as client:
            assert client.acme.external_account_required()
            assert refused(client.register) == "externalAccountRequired"
            assert refused(lambda: client.register(eab=("other", MAC_KEY))) == "unauthorized"
            assert refused(lambda: client.register(eab=(KEY_ID, MAC_KEY[::-1]))) == "malformed"
            client.register(eab=(KEY_ID, MAC_KEY))
            assert stub.accounts[0].eab == KEY_ID

    def test_the_key_can_be_changed(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 7.3.5."""
        key = JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        url = client.directory["keyChange"]
        content = {"account": stub.accounts[0].url, "oldKey": client.key.public_key().to_partial_json()}
        protected = {"alg": "ES256", "jwk": key.public_key().to_partial_json(), "url": url}
        parts = [b64encode(json.dumps(part).encode()).decode() for part in (protected, content)]
        signature = b64encode(ES256.sign(key.key, ".".join(parts).encode())).decode()
        inner = {"protected": parts[0], "payload": parts[1], "signature": signature}
        spoilt = {**inner, "signature": parts[0]}
        assert refused(lambda: client.post(url, spoilt)) == "malformed"
        assert client.post(url, inner).status_code == 200
        assert refused(lambda: client.new_order(NAMES)) == "malformed"
        client.net.key = key
        client.new_order(NAMES)

    def test_after_forget_nobody_is_known(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.forget()
        assert refused(lambda: client.new_order(NAMES)) == "accountDoesNotExist"


class TestOrders:
    def test_names_are_checked(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.blocked = {"bad.test", "worse.test"}
        assert refused(lambda: client.new_order(["a_b.test"])) == "malformed"
        assert refused(lambda: client.new_order(["*.a.test"])) == "rejectedIdentifier"
        assert client.new_order(["A.test"])[1]["identifiers"] == [{"type": "dns", "value": "a.test"}]
        with pytest.raises(messages.Error) as error:
            client.new_order(["a.test", "bad.test", "worse.test"])
        named = [problem.identifier.value for problem in error.value.subproblems]
        assert named == ["bad.test", "worse.test"]

    def test_a_profile_has_to_be_one_of_those_in_the_directory(self, stub: AcmeStub, client: AcmeClient) -> None:
        assert dict(client.directory.meta.profiles) == stub.profiles
        with pytest.raises(messages.Error) as error:
            client.new_order(NAMES, profile="long")
        assert problem_type(error.value) == "invalidProfile"

    def test_a_profile_may_have_a_lifetime_of_its_own(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.profile_lifetimes["short"] = timedelta(hours=160)
        (short, *_), (other, *_) = (certificates(client.obtain(NAMES, **extra)) for extra in ({"profile": "short"}, {}))
        assert short.not_valid_after_utc < other.not_valid_after_utc - timedelta(days=80)

    def test_an_order_is_finalized_when_it_is_ready(self, stub: AcmeStub, client: AcmeClient) -> None:
        url, _ = client.new_order(NAMES)
        assert refused(lambda: client.finalize(url, NAMES)) == "orderNotReady"

    def test_the_request_has_to_be_for_the_order_and_not_with_the_accounts_key(
        self, stub: AcmeStub, client: AcmeClient
    ) -> None:
        stub.reuse_authorizations = True
        client.obtain(NAMES)
        url, order = client.new_order(NAMES)
        assert order["status"] == "ready"
        assert refused(lambda: client.finalize(url, ["a.test"])) == "badCSR"
        assert refused(lambda: client.finalize(url, [*NAMES, "c.test"])) == "badCSR"
        assert refused(lambda: client.finalize(url, NAMES, client.key.key._wrapped)) == "badCSR"
        client.finalize(url, NAMES)

    def test_what_is_anothers_is_not_shown(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        with AcmeClient(stub.directory_url) as other:
            other.register()
            theirs = [stub.orders[0].url, stub.authorizations[0].url, f"{stub.base_url}/certificate/1"]
            assert [refused(partial(other.get, url)) for url in theirs] == ["unauthorized"] * 3

    def test_an_order_runs_out(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.order_lifetime = timedelta(0)
        assert client.new_order(NAMES)[1]["status"] == "invalid"

    def test_an_authorization_can_be_given_up(self, stub: AcmeStub, client: AcmeClient) -> None:
        """RFC 8555 section 7.5.2."""
        url, order = client.new_order(NAMES)
        client.post(order["authorizations"][0], {"status": "deactivated"})
        assert client.get(url)["status"] == "invalid"


class TestReplacing:
    """RFC 9773 section 5."""

    def test_an_order_may_name_what_it_replaces_once(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        (issued,) = stub.issued
        url, order = client.new_order(NAMES, replaces=issued.certificate_id)
        assert order["replaces"] == issued.certificate_id
        assert issued.replaced_by == url
        with pytest.raises(ConflictError):
            client.new_order(NAMES, replaces=issued.certificate_id)
        stub.orders[-1].status = "invalid"
        client.new_order(NAMES, replaces=issued.certificate_id)

    def test_the_refusal_says_that_it_is_replaced(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        stub.already_replaced = "always"
        seen = []
        client.net.session.hooks["response"].append(lambda response, **_: seen.append(response))
        with pytest.raises(ConflictError):
            client.new_order(NAMES, replaces=stub.issued[0].certificate_id)
        assert (seen[-1].status_code, seen[-1].json()["type"]) == (409, "urn:ietf:params:acme:error:alreadyReplaced")

    def test_it_may_be_allowed_for_good(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        stub.already_replaced = "never"
        for _ in range(2):
            client.new_order(NAMES, replaces=stub.issued[0].certificate_id)

    def test_it_has_to_be_the_accounts_own_for_one_of_the_names(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        replaces = stub.issued[0].certificate_id
        assert refused(lambda: client.new_order(["c.test"], replaces=replaces)) == "malformed"
        assert refused(lambda: client.new_order(NAMES, replaces="AAAA.AAAA")) == "malformed"
        with AcmeClient(stub.directory_url) as other:
            other.register()
            assert refused(lambda: other.new_order(NAMES, replaces=replaces)) == "unauthorized"


class TestRenewalInformation:
    """RFC 9773 section 4."""

    def window(self, stub: AcmeStub) -> dict[str, Any]:
        return json.loads(get(stub, f"/renewal-info/{stub.issued[0].certificate_id}").body)

    def test_it_is_found_by_the_id_that_others_work_out(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.lifetime, stub.backdate = timedelta(days=90), timedelta(0)
        leaf = certificates(client.obtain(NAMES))[0]
        renew, _ = client.acme.renewal_time(stub.issued[0].pem.encode())
        assert renew is not None
        assert timedelta(days=58) < renew - leaf.not_valid_before_utc < timedelta(days=62)

    def test_the_test_sets_the_window(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        start = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
        stub.renewal_window = (start, start - timedelta(days=1))
        stub.explanation_url = "https://ca.test/why"
        assert self.window(stub) == {
            "suggestedWindow": {"start": "2030-01-02T03:04:05Z", "end": "2030-01-01T03:04:05Z"},
            "explanationURL": "https://ca.test/why",
        }
        stub.renewal_window = lambda issued: (issued.certificate.not_valid_before_utc, start)
        assert self.window(stub)["suggestedWindow"]["end"] == "2030-01-02T03:04:05Z"

    def test_when_to_ask_again_is_told(self, stub: AcmeStub, client: AcmeClient) -> None:
        client.obtain(NAMES)
        path = f"/renewal-info/{stub.issued[0].certificate_id}"
        assert get(stub, path).headers["Retry-After"] == "21600"
        stub.renewal_retry_after = None
        assert get(stub, path).headers["Retry-After"] is None
        assert get(stub, "/renewal-info/AAAA.AAAA").status == 404

    def test_a_ca_may_have_none(self, stub: AcmeStub) -> None:
        stub.renewal_info = False
        assert "renewalInfo" not in json.loads(get(stub).body)


class TestRevoking:
    """RFC 8555 section 7.6."""

    def test_the_account_may_once(self, stub: AcmeStub, client: AcmeClient) -> None:
        leaf = certificates(client.obtain(NAMES))[0]
        assert refused(lambda: client.acme.revoke(leaf, 7)) == "badRevocationReason"
        client.acme.revoke(leaf, 4)
        assert stub.issued[0].revoked == 4
        assert refused(lambda: client.acme.revoke(leaf, 4)) == "alreadyRevoked"

    def test_the_certificates_key_may(self, stub: AcmeStub, client: AcmeClient) -> None:
        key = new_key()
        leaf = certificates(client.obtain(NAMES, key=key))[0]
        client.net.account, client.net.key = None, JWKEC(key=key)
        client.acme.revoke(leaf, 1)
        assert stub.issued[0].revoked == 1

    def test_another_account_may_when_it_has_proven_all_names(self, stub: AcmeStub, client: AcmeClient) -> None:
        leaf = certificates(client.obtain(NAMES))[0]
        with AcmeClient(stub.directory_url) as other:
            other.register()
            other.obtain(NAMES[:1])
            assert refused(lambda: other.acme.revoke(leaf, 0)) == "unauthorized"
            other.obtain(NAMES[1:])
            other.acme.revoke(leaf, 0)


class TestFaults:
    def test_an_error_with_a_time_to_wait_and_then_none(self, stub: AcmeStub) -> None:
        stub.fail("directory", status=429, problem="rateLimited", retry_after="120", times=2)
        replies = [get(stub) for _ in range(3)]
        assert [reply.status for reply in replies] == [429, 429, 200]
        assert replies[0].headers["Retry-After"] == "120"
        assert replies[0].headers["Content-Type"] == "application/problem+json"
        assert json.loads(replies[0].body)["type"] == "urn:ietf:params:acme:error:rateLimited"

    def test_an_error_without_words(self, stub: AcmeStub) -> None:
        stub.fail("directory", status=503, problem=None)
        reply = get(stub)
        assert (reply.status, reply.body) == (503, b"")

    def test_nothing_is_carried_out_behind_an_error_unless_wanted(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.fail("newOrder")
        assert refused(lambda: client.new_order(NAMES)) == "serverInternal"
        assert stub.orders == []
        stub.fail("newOrder", carried_out=True)
        assert refused(lambda: client.new_order(NAMES)) == "serverInternal"
        assert len(stub.orders) == 1
        assert stub.count("newOrder") == 2

    def test_they_queue_up_and_let_pass(self, stub: AcmeStub) -> None:
        stub.fail("directory", status=500, times=1, skip=1)
        stub.html("directory")
        stub.fail("directory", status=503, times=None)
        assert [get(stub).status for _ in range(5)] == [502, 500, 503, 503, 503]
        stub.heal()
        assert get(stub).status == 200

    def test_a_resource_that_does_not_exist_is_a_mistake_of_the_test(self, stub: AcmeStub) -> None:
        with pytest.raises(AssertionError, match="no resource"):
            stub.fail("new-order")

    def test_good_nonces_are_refused(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.bad_nonce(3)
        client.new_order(NAMES)
        assert stub.count("newOrder") == 4
        assert stub.count("newNonce") == 1 + 3  # the package throws those of errors away

    def test_errors_may_come_without_a_nonce(self, stub: AcmeStub, client: AcmeClient) -> None:
        seen: list[requests.Response] = []
        client.net.session.hooks["response"].append(lambda response, **_: seen.append(response))
        stub.fail("newOrder", times=2)
        refused(lambda: client.new_order(NAMES))
        assert "Replay-Nonce" in seen[-1].headers
        stub.nonces_in_errors = False
        refused(lambda: client.new_order(NAMES))
        assert "Replay-Nonce" not in seen[-1].headers

    def test_a_page(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.html("newOrder", status=201)
        with pytest.raises(KeyError, match="location"):
            client.new_order(NAMES)
        stub.html("directory")
        reply = get(stub)
        assert (reply.status, reply.headers["Content-Type"]) == (502, "text/html")

    def test_any_answer(self, stub: AcmeStub) -> None:
        stub.answer("directory", {"newNonce": 7}, status=203, content_type="text/plain", headers={"X-A": "b"})
        reply = get(stub)
        assert (reply.status, reply.body) == (203, b'{"newNonce": 7}')
        assert (reply.headers["Content-Type"], reply.headers["X-A"]) == ("text/plain", "b")

    @pytest.mark.parametrize("declared", [True, False])
    def test_a_huge_answer(self, stub: AcmeStub, declared: bool) -> None:
        stub.huge("directory", 1 << 20, declared=declared)
        reply = get(stub)
        assert len(reply.body) == 1 << 20
        assert (reply.headers["Content-Length"] == str(1 << 20)) is declared

    def test_a_huge_answer_ends_with_its_reader(self, stub: AcmeStub) -> None:
        stub.huge("directory", 1 << 40)
        connection = HTTPConnection(LOCALHOST, stub.port, timeout=20)
        connection.request("GET", "/directory")
        assert connection.getresponse().read(10) == b" " * 10
        connection.close()

    def test_fields_that_are_missing_or_wrong(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.omit("newOrder", "finalize", "authorizations")
        assert set(client.new_order(NAMES)[1]) == {"status", "expires", "identifiers"}
        stub.edit("newOrder", lambda order: order.update(status=["ready"]))
        assert client.new_order(NAMES)[1]["status"] == ["ready"]
        stub.edit("newOrder", lambda order: [order])
        assert isinstance(client.new_order(NAMES)[1], list)

    def test_headers_that_are_missing_or_wrong(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.headers("newOrder", {"Location": None, "Content-Type": "text/html"})
        with pytest.raises(KeyError, match="location"):
            client.new_order(NAMES)
        stub.headers("newNonce", {"Replay-Nonce": None})
        assert get(stub, "/new-nonce").headers["Replay-Nonce"] is None

    def test_a_connection_that_ends_too_early(self, stub: AcmeStub) -> None:
        stub.cut("directory", 10)
        with pytest.raises(IncompleteRead, match="10 bytes read"):
            get(stub)
        stub.cut("directory")
        with pytest.raises(RemoteDisconnected):
            get(stub)

    def test_the_reply_that_is_cut_off_was_of_something_that_happened(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.cut("newOrder")
        with pytest.raises(requests.ConnectionError):
            client.new_order(NAMES)
        assert len(stub.orders) == 1

    def test_a_body_byte_by_byte(self, stub: AcmeStub) -> None:
        stub.drip("directory", 0.0001)
        assert "newOrder" in json.loads(get(stub).body)

    def test_a_request_hangs_until_it_is_let_go(self, stub: AcmeStub) -> None:
        event = stub.hang("directory")
        replies: list[Got] = []
        thread = threading.Thread(target=lambda: replies.append(get(stub)))
        thread.start()
        until(lambda: stub.count("directory") == 1, "the request has come")
        assert replies == []
        event.set()
        thread.join(20)
        assert replies[0].status == 200

    def test_what_hangs_ends_with_the_ca(self) -> None:
        stub = AcmeStub(validate=False)
        stub.start()
        stub.hang("directory", carried_out=True)
        stub.drip("newNonce", 1000)
        outcome: list[BaseException] = []

        def ask() -> None:
            try:
                get(stub)
            except (OSError, HTTPException) as error:
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: stub.count("directory") == 1, "the request has come")
        stub.close()
        thread.join(20)
        assert outcome

    def test_a_request_is_late(self, stub: AcmeStub) -> None:
        stub.delay("directory", 0.01)
        assert get(stub).status == 200

    def test_the_test_is_called_at_each_moment(self, stub: AcmeStub, client: AcmeClient) -> None:
        said: list[tuple[str, int, str]] = []

        def note(moment: str) -> Callable[[Request], None]:
            return lambda request: said.append((moment, len(stub.orders), request.resource))

        for moment in ("received", "carried out", "answered"):
            stub.on("newOrder", note(moment), when=moment)
        client.new_order(NAMES)
        until(lambda: len(said) == 3, "all three")
        assert said == [("received", 0, "newOrder"), ("carried out", 1, "newOrder"), ("answered", 1, "newOrder")]

    def test_any_moment_can_be_counted_to(self, stub: AcmeStub, client: AcmeClient) -> None:
        seen: list[str] = []
        stub.on(None, lambda request: seen.append(request.resource), skip=2)
        client.obtain(NAMES)
        requests_since = stub.requests[3:]
        assert seen == [requests_since[2].resource]

    def test_what_goes_wrong_in_a_callback_is_not_lost(self) -> None:
        stub = AcmeStub()
        stub.start()
        stub.on("directory", lambda request: 1 / 0)
        with pytest.raises(HTTPException):
            get(stub)
        with pytest.raises(ZeroDivisionError):
            stub.close()

    def test_it_can_be_away_and_come_back(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.close()
        with pytest.raises(requests.ConnectionError):
            client.new_order(NAMES)
        stub.start()
        client.new_order(NAMES)

    def test_the_clock_is_wrong(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.clock_skew = -timedelta(days=3)
        date = parsedate_to_datetime(get(stub).headers["Date"])
        leaf = certificates(client.obtain(NAMES))[0]
        expected = datetime.now(UTC) - timedelta(days=3)
        assert abs(date - expected) < timedelta(minutes=2)
        assert abs(leaf.not_valid_before_utc + stub.backdate - expected) < timedelta(minutes=2)


class TestOutcomes:
    def test_processing_for_a_while(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.processing_polls, stub.poll_retry_after = 3, "5"
        client.obtain(NAMES)
        statuses = [request.resource for request in stub.requests].count("order")
        assert statuses >= 3 + 2

    def test_processing_for_good(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.processing_polls, stub.poll_retry_after = math.inf, "7"
        stub.reuse_authorizations = True
        url, order = client.new_order(NAMES)
        for asked in client.challenges(order, "http-01"):
            client.post(asked.url, {})
        csr = signing_request(new_key(), NAMES)
        client.post(order["finalize"], {"csr": b64encode(csr).decode()})
        replies = [client.post(url, None) for _ in range(10)]
        assert {reply.json()["status"] for reply in replies} == {"processing"}
        assert {reply.headers["Retry-After"] for reply in replies} == {"7"}
        stub.processing_polls = stub.orders[-1].polls_left = 0
        assert client.get(url)["status"] == "valid"

    @pytest.mark.parametrize("error", [None, "caa"])
    def test_an_order_fails_after_all(self, stub: AcmeStub, client: AcmeClient, error: str | None) -> None:
        stub.fail_order(error)
        with pytest.raises(AssertionError, match="invalid"):
            client.obtain(NAMES)
        assert stub.issued == []
        order = client.get(stub.orders[0].url)
        assert order.get("error", {}).get("type") == (error and f"urn:ietf:params:acme:error:{error}")

    @pytest.mark.parametrize("error", [None, {"type": "urn:ietf:params:acme:error:dns", "detail": "NXDOMAIN"}])
    def test_a_challenge_fails(self, stub: AcmeStub, client: AcmeClient, error: dict[str, str] | None) -> None:
        stub.fail_authorization(error)
        with pytest.raises(OrderInvalid) as failed:
            client.obtain(["a.test"])
        assert failed.value.errors == ([error] if error else [])
        assert failed.value.authorizations[0]["status"] == "invalid"

    def test_other_names_another_key_another_time(self, stub: AcmeStub, client: AcmeClient) -> None:
        key = rsa.generate_private_key(65537, 2048).public_key()
        before, after = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC)
        stub.misissue(names=["other.test", "192.0.2.1"])
        stub.misissue(public_key=key)
        stub.misissue(not_before=before, not_after=after)
        names, keys, times, right = (certificates(client.obtain(NAMES))[0] for _ in range(4))
        assert names_of(names) == ("other.test", "192.0.2.1")
        assert keys.public_key() == key
        assert (times.not_valid_before_utc, times.not_valid_after_utc) == (before, after)
        assert names_of(right) == tuple(NAMES)

    @pytest.mark.parametrize(
        ("chain", "count"),
        [("with root", 3), ("leaf only", 1), ("reversed", 2), ("foreign", 2), ("shuffled", 3)],
    )
    def test_a_chain_that_is_broken(self, stub: AcmeStub, client: AcmeClient, chain: Any, count: int) -> None:
        stub.misissue(chain=chain)
        found = certificates(client.obtain(NAMES))
        assert len(found) == count
        if chain == "with root":
            found[0].verify_directly_issued_by(found[1])
            found[1].verify_directly_issued_by(found[2])
        elif count > 1:
            with pytest.raises((ValueError, InvalidSignature)):
                found[0].verify_directly_issued_by(found[1])

    @pytest.mark.parametrize("chain", ["empty", "garbage"])
    def test_no_chain_at_all(self, stub: AcmeStub, client: AcmeClient, chain: Any) -> None:
        stub.misissue(chain=chain)
        text = client.obtain(NAMES)
        with pytest.raises(ValueError, match=r"PEM|parsing|ASN\.1"):
            certificates(text)

    def test_lifetimes_in_seconds_and_dated_back(self, stub: AcmeStub, client: AcmeClient) -> None:
        stub.lifetime, stub.backdate = timedelta(seconds=120), timedelta(seconds=30)
        leaf = certificates(client.obtain(NAMES))[0]
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(seconds=119)  # both ends count
        assert leaf.not_valid_before_utc < stub.now()

    def test_state_can_be_changed_by_hand(self, stub: AcmeStub, client: AcmeClient) -> None:
        url, _ = client.new_order(NAMES)
        stub.orders[0].status = "valid"
        assert "certificate" not in client.get(url)
