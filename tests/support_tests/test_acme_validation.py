"""The validators are as strict as Boulder (va/tlsalpn.go, va/http.go), and let through what is right."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.acme_client import (
    ACME_IDENTIFIER,
    HttpAnswers,
    TlsAnswers,
    challenge_certificate,
)
from tests.support.acme_validation import (
    CheckFailed,
    check_http_01,
    check_tls_alpn_01,
    check_tls_sni_01,
    check_tls_sni_02,
    tls_sni_01_names,
    tls_sni_02_names,
)
from tests.support.processes import LOCALHOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
NAME = "a.test"
WELL_KNOWN = f"/.well-known/acme-challenge/{TOKEN}"


@pytest.fixture
def tls() -> Iterator[TlsAnswers]:
    with TlsAnswers() as answers:
        yield answers


@pytest.fixture
def http() -> Iterator[HttpAnswers]:
    with HttpAnswers() as answers:
        yield answers


def with_extension_twice(key_authorization: str) -> bytes:
    """acmeIdentifier twice, which no builder makes: another extension is turned into it, and signed again."""
    other = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.32")
    digest = x509.UnrecognizedExtension(other, b"\x04\x20" + b"\0" * 32)
    pem = challenge_certificate([NAME], key_authorization, extensions=[(digest, True)])
    certificate = x509.load_pem_x509_certificate(pem)
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    first, second = (bytes.fromhex("06082b06010505070120"), bytes.fromhex("06082b0601050507011f"))
    signed = certificate.tbs_certificate_bytes.replace(first, second)
    assert signed.count(second) == 2
    signature = b"\0" + key.sign(signed, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256 (RFC 5758)
    content = signed + algorithm + b"\x03" + bytes([len(signature)]) + signature
    der = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    return pem.partition(b"-----BEGIN CERTIFICATE")[0] + ssl.DER_cert_to_PEM_cert(der).encode()


class TestTlsAlpn01:
    def test_what_rfc_8737_asks_for_is_right(self, tls: TlsAnswers) -> None:
        tls.show(challenge_certificate([NAME], KEY_AUTHORIZATION), NAME)
        check_tls_alpn_01(tls.host, tls.port, NAME, KEY_AUTHORIZATION)
        assert tls.seen == [NAME]

    def test_an_address_is_asked_for_by_its_reverse_name(self, tls: TlsAnswers) -> None:
        """RFC 8738 section 6."""
        reverse = "1.2.0.192.in-addr.arpa"
        tls.show(challenge_certificate(["192.0.2.1"], KEY_AUTHORIZATION), reverse)
        check_tls_alpn_01(tls.host, tls.port, "192.0.2.1", KEY_AUTHORIZATION)
        assert tls.seen == [reverse]

    def test_an_ipv6_address_likewise(self, tls: TlsAnswers) -> None:
        tls.show(challenge_certificate(["2001:db8::1"], KEY_AUTHORIZATION), f"1.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa")
        check_tls_alpn_01(tls.host, tls.port, "2001:db8::1", KEY_AUTHORIZATION)

    def test_several_perspectives_look_at_once(self, tls: TlsAnswers) -> None:
        tls.show(challenge_certificate([NAME], KEY_AUTHORIZATION), NAME)
        with ThreadPoolExecutor(5) as perspectives:
            looks = [
                perspectives.submit(check_tls_alpn_01, tls.host, tls.port, NAME, KEY_AUTHORIZATION) for _ in range(5)
            ]
        assert [look.result() for look in looks] == [None] * 5

    def test_other_extensions_are_allowed(self, tls: TlsAnswers) -> None:
        constraints = (x509.BasicConstraints(ca=False, path_length=None), True)
        tls.show(challenge_certificate([NAME], KEY_AUTHORIZATION, extensions=[constraints]), NAME)
        check_tls_alpn_01(tls.host, tls.port, NAME, KEY_AUTHORIZATION)

    def test_a_long_name_is_compared_whole(self, tls: TlsAnswers) -> None:
        name = ".".join(["a" * 60] * 4)
        tls.show(challenge_certificate([name], KEY_AUTHORIZATION), name)
        check_tls_alpn_01(tls.host, tls.port, name, KEY_AUTHORIZATION)

    @pytest.mark.parametrize(
        ("pem", "reason"),
        [
            (challenge_certificate([NAME, "b.test"], KEY_AUTHORIZATION), "not for exactly"),
            (challenge_certificate(["b.test"], KEY_AUTHORIZATION), "not for exactly"),
            (challenge_certificate(["A.test"], KEY_AUTHORIZATION), "not for exactly"),
            (challenge_certificate([NAME, "192.0.2.1"], KEY_AUTHORIZATION), "not for exactly"),
            (challenge_certificate([NAME], KEY_AUTHORIZATION, critical=False), "not critical"),
            (challenge_certificate([NAME], KEY_AUTHORIZATION + "x"), "digest of something else"),
            (challenge_certificate([NAME], None), "no acmeIdentifier"),
            (challenge_certificate([NAME], KEY_AUTHORIZATION, issuer="other"), "not self-signed"),
            (
                challenge_certificate([NAME], KEY_AUTHORIZATION, signer=ec.generate_private_key(ec.SECP256R1())),
                "not self-signed",
            ),
            (
                challenge_certificate(
                    [NAME], extensions=[(x509.UnrecognizedExtension(ACME_IDENTIFIER, b"\x04\x1f" + b"x" * 31), True)]
                ),
                "not an OCTET STRING of 32",
            ),
            (with_extension_twice(KEY_AUTHORIZATION), "twice"),
        ],
        ids=[
            "extra SAN",
            "other SAN",
            "upper case",
            "extra address",
            "not critical",
            "wrong digest",
            "no extension",
            "other issuer",
            "other signer",
            "31 bytes",
            "extension twice",
        ],
    )
    def test_whatever_else_is_wrong(self, tls: TlsAnswers, pem: bytes, reason: str) -> None:
        tls.show(pem, NAME)
        with pytest.raises(CheckFailed, match=reason) as failed:
            check_tls_alpn_01(tls.host, tls.port, NAME, KEY_AUTHORIZATION)
        assert failed.value.type == "unauthorized"

    @pytest.mark.parametrize("alpn", [(), ("h2",)], ids=["none", "h2"])
    def test_another_protocol_is_wrong(self, alpn: tuple[str, ...]) -> None:
        with TlsAnswers(alpn=alpn) as tls:
            tls.show(challenge_certificate([NAME], KEY_AUTHORIZATION), NAME)
            with pytest.raises(CheckFailed, match=r"the protocol is none|NO_APPLICATION_PROTOCOL"):
                check_tls_alpn_01(tls.host, tls.port, NAME, KEY_AUTHORIZATION)

    def test_an_alert_is_no_answer(self, tls: TlsAnswers) -> None:
        with pytest.raises(CheckFailed, match="UNRECOGNIZED_NAME") as failed:
            check_tls_alpn_01(tls.host, tls.port, NAME, KEY_AUTHORIZATION)
        assert failed.value.type == "tls"

    def test_nobody_there_is_no_answer(self) -> None:
        with pytest.raises(CheckFailed, match="refused") as failed:
            check_tls_alpn_01(LOCALHOST, free_port(), NAME, KEY_AUTHORIZATION)
        assert failed.value.type == "connection"


class TestHttp01:
    @pytest.mark.parametrize("end", [b"", b"\n", b" \t\r\n"], ids=["none", "newline", "white space"])
    def test_the_key_authorization_is_right_whatever_white_space_follows(self, http: HttpAnswers, end: bytes) -> None:
        """RFC 8555 section 8.3."""
        http.pages[WELL_KNOWN] = KEY_AUTHORIZATION.encode() + end
        check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION)
        assert http.seen == [(NAME, WELL_KNOWN)]

    def test_an_ipv6_address_is_in_brackets(self, http: HttpAnswers) -> None:
        http.pages[WELL_KNOWN] = KEY_AUTHORIZATION.encode()
        check_http_01(http.host, http.port, "2001:db8::1", TOKEN, KEY_AUTHORIZATION)
        assert http.seen == [("[2001:db8::1]", WELL_KNOWN)]

    def test_a_redirect_to_another_name_is_followed(self, http: HttpAnswers) -> None:
        http.redirects[WELL_KNOWN] = "http://b.test/elsewhere"
        http.pages["/elsewhere"] = KEY_AUTHORIZATION.encode()
        check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION)
        assert http.seen[-1] == ("b.test", "/elsewhere")

    def test_a_redirect_to_https_is_followed_and_no_certificate_checked(self, http: HttpAnswers) -> None:
        http.redirects[WELL_KNOWN] = f"https://{NAME}{WELL_KNOWN}"
        with TlsAnswers(alpn=()) as tls:
            tls.show(challenge_certificate(["other.test"]), NAME)
            with pytest.raises(CheckFailed):  # that server speaks no HTTP
                check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION, tls_port=tls.port)
            assert tls.seen == [NAME]

    @pytest.mark.parametrize(
        "target",
        ["http://192.0.2.1/", "http://a.test:8080/", "ftp://a.test/", f"http://a.test{WELL_KNOWN}", "https://a.test/"],
        ids=["address", "port", "scheme", "loop", "nothing at 443"],
    )
    def test_a_redirect_that_leads_nowhere_is_wrong(self, http: HttpAnswers, target: str) -> None:
        http.redirects[WELL_KNOWN] = target
        with pytest.raises(CheckFailed, match=r"redirect|known to listen") as failed:
            check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION)
        assert failed.value.type == "connection"

    @pytest.mark.parametrize(
        ("page", "reason"),
        [
            (None, "404"),
            (b"something else", "not the key authorization"),
            (b" " + KEY_AUTHORIZATION.encode(), "not the key authorization"),
            (KEY_AUTHORIZATION.encode().ljust(128), "more than 127 bytes"),
        ],
        ids=["no page", "other page", "space in front", "128 bytes"],
    )
    def test_whatever_else_is_wrong(self, http: HttpAnswers, page: bytes | None, reason: str) -> None:
        if page is not None:
            http.pages[WELL_KNOWN] = page
        with pytest.raises(CheckFailed, match=reason) as failed:
            check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION)
        assert failed.value.type == "unauthorized"

    def test_127_bytes_are_not_too_many(self, http: HttpAnswers) -> None:
        http.pages[WELL_KNOWN] = KEY_AUTHORIZATION.encode().ljust(127)
        check_http_01(http.host, http.port, NAME, TOKEN, KEY_AUTHORIZATION)


class TestTlsSni:
    def test_the_names_of_01_are_hashes_of_hashes(self) -> None:
        """draft-ietf-acme-acme-01 section 7.3; the digests by `sha256sum`."""
        assert tls_sni_01_names(KEY_AUTHORIZATION, 2) == [
            "94233b719c905dc5472b69e75b78e302.1353dc5be6d7c50dfa45996649caa183.acme.invalid",
            "3732c17a7ca81de5af50f529bc4cf4ef.025cc9ce245b824dd4bdb73a0f869bbb.acme.invalid",
        ]

    def test_the_names_of_02_are_of_the_token_and_the_key_authorization(self) -> None:
        """draft-ietf-acme-acme-09 section 8.3; the digests by `sha256sum`."""
        assert tls_sni_02_names(TOKEN, KEY_AUTHORIZATION) == (
            "7ea0aaa69214e71e02cebb18bb867736.09b730209baabf60e43d4999979ff139.token.acme.invalid",
            "94233b719c905dc5472b69e75b78e302.1353dc5be6d7c50dfa45996649caa183.ka.acme.invalid",
        )

    def test_01_finds_the_name_among_others(self, tls: TlsAnswers) -> None:
        """As Boulder did: certbot put a "dummy" in front, because the name is too long for a common name."""
        for name in tls_sni_01_names(KEY_AUTHORIZATION, 3):
            tls.show(challenge_certificate(["dummy", name]), name)
        check_tls_sni_01(tls.host, tls.port, KEY_AUTHORIZATION, n=3)
        assert tls.seen == tls_sni_01_names(KEY_AUTHORIZATION, 3)

    def test_01_refuses_another_certificate(self, tls: TlsAnswers) -> None:
        (name,) = tls_sni_01_names(KEY_AUTHORIZATION)
        tls.show(challenge_certificate([NAME]), name)
        with pytest.raises(CheckFailed, match="other names"):
            check_tls_sni_01(tls.host, tls.port, KEY_AUTHORIZATION)

    def test_02_takes_the_two_names_in_any_order_and_case(self, tls: TlsAnswers) -> None:
        a, b = tls_sni_02_names(TOKEN, KEY_AUTHORIZATION)
        tls.show(challenge_certificate([b.upper(), a]), a)
        check_tls_sni_02(tls.host, tls.port, TOKEN, KEY_AUTHORIZATION)
        assert tls.seen == [a]

    @pytest.mark.parametrize("more", [[], [NAME]], ids=["one name", "three names"])
    def test_02_wants_exactly_two(self, tls: TlsAnswers, more: list[str]) -> None:
        a, b = tls_sni_02_names(TOKEN, KEY_AUTHORIZATION)
        tls.show(challenge_certificate([a, b, *more] if more else [a]), a)
        with pytest.raises(CheckFailed, match="exactly the two"):
            check_tls_sni_02(tls.host, tls.port, TOKEN, KEY_AUTHORIZATION)
