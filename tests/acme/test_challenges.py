"""What has to be served, to the byte, held against the vectors of the drafts and what Boulder looks at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING, get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.acme.challenges import (
    MAX_ITERATIONS,
    ChallengeType,
    TlsAnswer,
    choose,
    key_authorization,
    server_name,
    tls_answer,
)
from sniproxy.config.certificates import Challenge as ConfiguredChallenge
from sniproxy.errors import OrderFailed
from sniproxy.wire.client_hello import is_host_name

if TYPE_CHECKING:
    from sniproxy.bundle import Bundle

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)

# Token of RFC 8555 section 8.3 and thumbprint of RFC 8555 section 8.1; the digests by hand.
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ANSWER = f"{TOKEN}.{THUMBPRINT}"
Z0 = "94233b719c905dc5472b69e75b78e3021353dc5be6d7c50dfa45996649caa183"
Z1 = "3732c17a7ca81de5af50f529bc4cf4ef025cc9ce245b824dd4bdb73a0f869bbb"
SAN_A = "7ea0aaa69214e71e02cebb18bb867736.09b730209baabf60e43d4999979ff139.token.acme.invalid"
SAN_B = f"{Z0[:32]}.{Z0[32:]}.ka.acme.invalid"

ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31"
ADDRESSES = [
    ("192.0.2.7", "7.2.0.192.in-addr.arpa", bytes.fromhex("3006 8704 c0000207")),
    (
        "2001:db8::1",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        bytes.fromhex("3012 8710 20010db8000000000000000000000001"),
    ),
]


@dataclass(frozen=True)
class Offer:
    """A challenge of an authorization, as far as choosing goes."""

    type: str
    url: str = ""


def alpn_answer(identifier: str = "example.com") -> TlsAnswer:
    return tls_answer("tls-alpn-01", identifier, TOKEN, ANSWER, now=NOW)


def only(answer: TlsAnswer) -> x509.Certificate:
    (bundle,) = answer.bundles
    (certificate,) = bundle.chain
    return certificate


def alternatives(bundle: Bundle) -> list[str]:
    names = bundle.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value for name in names]


def san_bytes(certificate: x509.Certificate) -> bytes:
    """The subjectAltName as it is in the certificate: SEQUENCE, OID, OCTET STRING."""
    head = bytes.fromhex("0603551d11 04")
    encoded = certificate.tbs_certificate_bytes
    start = encoded.index(head) + len(head)
    return encoded[start + 1 : start + 1 + encoded[start]]


# ---------------------------------------------------------------------------------------------- key authorization


def test_the_key_authorization_of_the_rfc() -> None:
    """RFC 8555 section 8.1 and the example of section 8.3."""
    assert key_authorization(TOKEN, THUMBPRINT) == ANSWER


@pytest.mark.parametrize("token", ["", "a.b", "../../etc/passwd", "a b", "a\n", "tök", "x" * 129, "YQ=="])
def test_what_is_no_token_is_refused_and_not_shown(token: str) -> None:
    """RFC 8555 section 8.3: "MUST NOT contain any characters outside the base64url alphabet". acme.sh#4659."""
    with pytest.raises(OrderFailed, match="a token that is not base64url") as caught:
        key_authorization(token, THUMBPRINT)

    assert not token or token not in str(caught.value)


# ---------------------------------------------------------------------------------------------- tls-alpn-01


@pytest.mark.parametrize(
    "identifier",
    ["example.com", "EXAMPLE.com", "example.com.", "xn--bcher-kva.example", "a.b.c.d.example", "x.in-addr.arpa"],
)
def test_a_validation_of_a_name_asks_for_that_name(identifier: str) -> None:
    """RFC 8737 section 3; Boulder compares the entry byte for byte with the name in lower case."""
    name = identifier.lower().rstrip(".")
    answer = alpn_answer(identifier)

    assert answer.server_names == (name,) == (server_name(identifier),)
    assert answer.alpn
    assert san_bytes(only(answer)) == bytes((0x30, len(name) + 2, 0x82, len(name))) + name.encode()


@pytest.mark.parametrize(("address", "name", "encoded"), ADDRESSES)
def test_a_validation_of_an_address_asks_for_its_reverse_name(address: str, name: str, encoded: bytes) -> None:
    """RFC 8738 section 6: the SNI is the name below in-addr.arpa or ip6.arpa, the entry an iPAddress."""
    answer = alpn_answer(address)

    assert answer.server_names == (name,)
    assert san_bytes(only(answer)) == encoded


@given(st.ip_addresses())
def test_the_reverse_name_of_any_address_is_a_host_name(address: object) -> None:
    """RFC 6066 section 3: else our own parser would not let it match anything."""
    assert is_host_name(server_name(str(address)))


def test_the_certificate_is_signed_by_itself() -> None:
    """Boulder, va/tlsalpn.go: CheckSignature with its own key, and RawSubject equals RawIssuer."""
    certificate = only(alpn_answer())

    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.public_bytes() == certificate.issuer.public_bytes()


def test_the_certificate_has_the_digest_in_a_critical_extension() -> None:
    """RFC 8737 section 3: an OCTET STRING with the SHA-256 of the key authorization, critical, in DER."""
    certificate = only(alpn_answer())
    extensions = {extension.oid.dotted_string: extension for extension in certificate.extensions}
    assert set(extensions) == {ACME_IDENTIFIER, ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string}
    proof = extensions[ACME_IDENTIFIER]

    assert proof.critical
    assert isinstance(proof.value, x509.UnrecognizedExtension)
    assert proof.value.value == bytes.fromhex("0420" + Z0)
    assert certificate.tbs_certificate_bytes.count(bytes.fromhex("06082b0601050507011f")) == 1


def test_the_certificate_has_a_key_of_its_own_and_a_short_life() -> None:
    """A clock that is an hour behind ours still finds it valid; nobody needs it for longer than the authorization."""
    first, second = only(alpn_answer()), only(alpn_answer())

    assert isinstance(first.public_key(), ec.EllipticCurvePublicKey)
    assert first.public_key().curve.name == "secp256r1"
    assert first.public_key() != second.public_key()
    assert first.not_valid_before_utc == NOW - timedelta(hours=1)
    assert first.not_valid_after_utc <= NOW + timedelta(days=7)


def test_a_certificate_made_in_another_time_zone_is_the_same() -> None:
    """X.509 knows UTC only."""
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    answer = tls_answer("tls-alpn-01", "example.com", TOKEN, ANSWER, now=there)

    assert only(answer).not_valid_before_utc == NOW - timedelta(hours=1)


# ---------------------------------------------------------------------------------------------- tls-sni


def test_tls_sni_02_shows_both_names_to_who_asks_for_the_first() -> None:
    """draft-ietf-acme-acme-09 section 8.3: SAN A from the token, SAN B from the key authorization, nothing else."""
    answer = tls_answer("tls-sni-02", "example.com", TOKEN, ANSWER, now=NOW)
    (bundle,) = answer.bundles

    assert answer.server_names == (SAN_A,)
    assert alternatives(bundle) == [SAN_A, SAN_B]
    assert not answer.alpn


def test_tls_sni_01_as_it_was_deployed_has_one_name() -> None:
    """boulder#962: no `n`, so Z0 alone."""
    answer = tls_answer("tls-sni-01", "example.com", TOKEN, ANSWER, now=NOW)
    (bundle,) = answer.bundles

    assert answer.server_names == (f"{Z0[:32]}.{Z0[32:]}.acme.invalid",)
    assert alternatives(bundle) == list(answer.server_names)
    assert not answer.alpn


def test_tls_sni_01_iterates() -> None:
    """draft-ietf-acme-acme-01 section 7.3: Z(i) is the hash of Z(i-1) as hex; one certificate with one name each."""
    answer = tls_answer("tls-sni-01", "example.com", TOKEN, ANSWER, now=NOW, iterations=25)

    assert len(set(answer.server_names)) == len(answer.bundles) == 25
    assert answer.server_names[1] == f"{Z1[:32]}.{Z1[32:]}.acme.invalid"
    assert [alternatives(bundle) for bundle in answer.bundles] == [[name] for name in answer.server_names]
    last = Z0
    for _ in range(24):
        last = sha256(last.encode()).hexdigest()
    assert answer.server_names[24] == f"{last[:32]}.{last[32:]}.acme.invalid"


@pytest.mark.parametrize("iterations", [0, -1, MAX_ITERATIONS + 1, 1_000_000])
def test_tls_sni_01_with_an_unreasonable_number(iterations: int) -> None:
    """A CA must not make us sign certificates all day."""
    with pytest.raises(OrderFailed, match=str(iterations)):
        tls_answer("tls-sni-01", "example.com", TOKEN, ANSWER, now=NOW, iterations=iterations)


@pytest.mark.parametrize("challenge_type", ["tls-sni-01", "tls-sni-02"])
def test_certificates_below_acme_invalid_are_signed_by_themselves(challenge_type: str) -> None:
    """The drafts ask for no more than "a self-signed certificate"; the names are too long for a common name."""
    certificate = only(tls_answer(challenge_type, "example.com", TOKEN, ANSWER, now=NOW))

    certificate.verify_directly_issued_by(certificate)
    assert len(certificate.extensions) == 1


@pytest.mark.parametrize("challenge_type", ["http-01", "dns-01", "tls-alpn-02", ""])
def test_other_challenges_are_not_answered_over_tls(challenge_type: str) -> None:
    """Asking for it is a mistake of ours."""
    with pytest.raises(ValueError, match="is not answered over TLS"):
        tls_answer(challenge_type, "example.com", TOKEN, ANSWER, now=NOW)


# ---------------------------------------------------------------------------------------------- secrets, choice


@pytest.mark.parametrize("challenge_type", ["tls-alpn-01", "tls-sni-01", "tls-sni-02"])
def test_an_answer_shows_no_key_and_no_key_authorization(challenge_type: str) -> None:
    """Traefik#13758: what has a repr ends up in a log."""
    shown = repr(tls_answer(challenge_type, "example.com", TOKEN, ANSWER, now=NOW))

    assert "PrivateKey" not in shown
    assert TOKEN not in shown
    assert THUMBPRINT not in shown


def test_the_types_are_those_of_the_configuration() -> None:
    """`acme.challenges` may name exactly those that can be answered."""
    assert {str(kind) for kind in ChallengeType} == set(get_args(ConfiguredChallenge))


@pytest.mark.parametrize(
    ("preferred", "chosen"),
    [
        (("tls-alpn-01", "http-01"), "tls-alpn-01"),
        (("http-01", "tls-alpn-01"), "http-01"),
        (("tls-sni-01", "http-01"), "http-01"),
        (("tls-sni-01",), None),
        ((), None),
    ],
)
def test_the_first_of_our_preferences_that_is_offered(preferred: tuple[str, ...], chosen: str | None) -> None:
    """RFC 8555 section 7.5.1: the client chooses; the order of the CA means nothing."""
    offered = [Offer("dns-01", "a"), Offer("http-01", "b"), Offer("tls-alpn-01", "c")]
    found = choose(offered, preferred)

    assert (found.type if found else None) == chosen
    assert found is None or found in offered


def test_nothing_offered_is_nothing_chosen() -> None:
    """An authorization that is valid already may list none (RFC 8555 section 7.1.4)."""
    assert choose((), ("http-01",)) is None
