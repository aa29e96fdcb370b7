"""What each kind of challenge wants to be served, to the byte. Values only: nothing here listens or waits.

    tls-alpn-01   RFC 8737, RFC 8738   a self-signed certificate for the name alone, behind the protocol acme-tls/1
    http-01       RFC 8555 8.3         the key authorization itself, over port 80
    tls-sni-02    draft-ietf-acme-acme-02 to -09 8.3    one certificate with two names below acme.invalid
    tls-sni-01    draft-ietf-acme-acme-01 7.3           certificates with one name below acme.invalid each

The last two were given up by public CAs in 2019, as on a shared host one tenant can answer for another. Private CAs
still use them.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sniproxy.bundle import CLOCK_SKEW, Bundle, general_name
from sniproxy.errors import OrderFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime


class ChallengeType(enum.StrEnum):
    """The challenges that can be answered here, as CAs and the configuration call them."""

    TLS_ALPN_01 = "tls-alpn-01"
    HTTP_01 = "http-01"
    TLS_SNI_01 = "tls-sni-01"
    TLS_SNI_02 = "tls-sni-02"


ACME_IDENTIFIER: Final = ObjectIdentifier("1.3.6.1.5.5.7.1.31")
"""id-pe-acmeIdentifier (RFC 8737 section 6.1). The .30.1 of the drafts is refused by everybody."""

VALIDITY: Final = timedelta(days=1)
"""Of a challenge certificate. No validator looks at it, and no authorization takes that long."""

MAX_ITERATIONS: Final = 64
"""Certificates for one tls-sni-01 challenge: `n`, which the CA says. The draft's example has 25; each takes a
millisecond."""

SUBJECT: Final = "sniproxy ACME challenge"

# RFC 8555 section 8.3: base64url. 22 characters are the shortest allowed, and nobody sends more than 64.
_is_token = re.compile(r"[A-Za-z0-9_-]{1,128}").fullmatch
_OCTET_STRING_OF_32 = b"\x04\x20"


class Offered(Protocol):
    """A challenge of an authorization, of which only the type matters here."""

    @property
    def type(self) -> str: ...


OfferedT = TypeVar("OfferedT", bound=Offered)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsAnswer:
    """What a TLS validation has to be served: who asks for `server_names[i]` gets `bundles[i]`.

    server_names: in lower case, as they come in a ClientHello. alpn: only to clients that offer exactly acme-tls/1,
    which has to be negotiated.
    """

    server_names: tuple[str, ...]
    bundles: tuple[Bundle, ...] = field(repr=False)
    alpn: bool


def choose(offered: Iterable[OfferedT], preferred: Sequence[str]) -> OfferedT | None:
    """Of the challenges offered, the one whose type comes first in `preferred`; None where none is in it."""
    by_type = {challenge.type: challenge for challenge in offered}
    return next((by_type[kind] for kind in preferred if kind in by_type), None)


def key_authorization(token: str, thumbprint: str) -> str:
    """The proof of all challenges (RFC 8555 section 8.1): the token and the account key's thumbprint (RFC 7638).

    Raises OrderFailed for a token that is none: it would end up in paths and names.
    """
    if not _is_token(token):
        raise OrderFailed("the CA's challenge has a token that is not base64url (RFC 8555 section 8.3)")
    return f"{token}.{thumbprint}"


def server_name(identifier: str) -> str:
    """What a tls-alpn-01 validation of this DNS name or IP address asks for (RFC 8737 section 3, RFC 8738 section 6).

    The name in lower case; of an address, its name below in-addr.arpa or ip6.arpa.
    """
    name = _canonical(identifier)
    return name if isinstance(name, str) else name.reverse_pointer


def tls_answer(
    challenge_type: str, identifier: str, token: str, key_authorization: str, *, now: datetime, iterations: int = 1
) -> TlsAnswer:
    """The certificates that prove one of the three TLS challenges, with a new key.

    identifier: a DNS name (A-labels) or an IP address. iterations: tls-sni-01's `n`. Raises OrderFailed where that is
    unreasonable, ValueError for another type of challenge.
    """
    if challenge_type == ChallengeType.TLS_ALPN_01:
        return _alpn_answer(identifier, key_authorization, now)
    key = ec.generate_private_key(ec.SECP256R1())
    if challenge_type == ChallengeType.TLS_SNI_02:
        # B is the proof, and not to be guessed from the name that is asked for.
        asked, proof = _name(_hex(token), "token."), _name(_hex(key_authorization), "ka.")
        return TlsAnswer(server_names=(asked,), bundles=(_certificate(key, (asked, proof), now),), alpn=False)
    if challenge_type == ChallengeType.TLS_SNI_01:
        if not 1 <= iterations <= MAX_ITERATIONS:
            raise OrderFailed(
                f"the CA's tls-sni-01 challenge wants {iterations} certificates (at most {MAX_ITERATIONS})"
            )
        names = tuple(map(_name, islice(_iterated(key_authorization), iterations)))
        return TlsAnswer(
            server_names=names, bundles=tuple(_certificate(key, (name,), now) for name in names), alpn=False
        )
    raise ValueError(f"{challenge_type} is not answered over TLS")


def _alpn_answer(identifier: str, key_authorization: str, now: datetime) -> TlsAnswer:
    digest = sha256(key_authorization.encode("ascii")).digest()
    proof = x509.UnrecognizedExtension(ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest)
    key = ec.generate_private_key(ec.SECP256R1())
    bundle = _certificate(key, (str(_canonical(identifier)),), now, proof)
    return TlsAnswer(server_names=(server_name(identifier),), bundles=(bundle,), alpn=True)


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    alternatives: Sequence[str],
    now: datetime,
    proof: x509.UnrecognizedExtension | None = None,
) -> Bundle:
    """Self-signed, as all of them are: the subject is the issuer (Boulder compares their bytes)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SUBJECT)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(list(map(general_name, alternatives))), critical=False)
    )
    if proof is not None:
        builder = builder.add_extension(proof, critical=True)
    return Bundle(key, (builder.sign(key, hashes.SHA256()),))


def _canonical(identifier: str) -> str | IPv4Address | IPv6Address:
    """An address, or a name in lower case and without a trailing dot."""
    try:
        return ip_address(identifier)
    except ValueError:
        return identifier.lower().removesuffix(".")


def _hex(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()


def _iterated(key_authorization: str) -> Iterator[str]:
    """Z0, Z1, …: each the hash of the one before it, as hex."""
    digest = _hex(key_authorization)
    while True:
        yield digest
        digest = _hex(digest)


def _name(digest: str, kind: str = "") -> str:
    """64 hex digits as two labels, as one would be longer than a label can be."""
    return f"{digest[:32]}.{digest[32:]}.{kind}acme.invalid"
