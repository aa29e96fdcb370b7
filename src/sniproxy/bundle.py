"""A bundle: a private key, its certificate and the chain above it, as HAProxy's `crt` reads them from one PEM file.

Everything that is known of a certificate is read off here, once. Keys and requests for new ones are made here too.
Making an RSA key takes up to a second and is for a thread; all else takes microseconds, or a few milliseconds with RSA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from sniproxy.errors import BadCertificate, BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""The kinds that CAs of the web take."""

MAX_PEM_BYTES: Final = 256 * 1024
"""Of a file that is looked into: ten RSA-4096 certificates have a tenth of it."""

MAX_CHAIN: Final = 10
"""Certificates of one bundle. Public CAs have two or three."""

CLOCK_SKEW: Final = timedelta(hours=1)
"""By how much the CA's clock may be ahead of ours. CAs date their certificates back by an hour for the same reason."""

# Single hyphens are in the headers of keys with a password: "DEK-Info: AES-256-CBC".
_blocks = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[^-]*(?:-(?!----)[^-]*)*-----END \1-----").finditer
# The second is an old word for the first (openssl(1), PEM_STRING_X509_OLD).
_CERTIFICATE = (b"CERTIFICATE", b"X509 CERTIFICATE")
_SEQUENCE = b"\x30"  # what every DER certificate begins with; in text, the digit 0
_EXPONENT = 65537

# What the library raises for certificates that are broken, or that it does not know how to read.
_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def generate_key(key_type: str) -> PrivateKey:
    """A new key; `key_type` is one of the configuration's: ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096.

    RSA takes 30 ms to a second without the interpreter's lock: for a thread.
    """
    algorithm, _, size = key_type.partition("-")
    if algorithm == "rsa":
        return rsa.generate_private_key(_EXPONENT, int(size))
    return ec.generate_private_key({"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}[size])


def load_key(pem: bytes) -> PrivateKey:
    """Reads a private key without a password. Raises BundleError, which shows nothing of it.

    The numbers of an RSA key are not checked: that holds the interpreter's lock for 0.35 s with 4096 bits, and a key
    that does not sign is found when it is compared with its certificate.
    """
    try:
        key = serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # From None: the library's text may show what it choked on.
        raise BundleError("the private key cannot be read; it must be PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise BundleError("the private key is neither RSA nor ECDSA")
    return key


def key_pem(key: PrivateKey) -> bytes:
    """A key as PEM (PKCS #8, no password)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key: PrivateKey, names: Sequence[str]) -> bytes:
    """A CSR for DNS names and IP addresses, as DER (RFC 8555 section 7.4)."""
    alternatives = x509.SubjectAlternativeName(list(map(general_name, names)))
    request = x509.CertificateSigningRequestBuilder(
        x509.Name([]), [x509.Extension(alternatives.oid, False, alternatives)]
    )
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def general_name(name: str) -> x509.GeneralName:
    """A name as a certificate has it: an IP address, else a DNS name."""
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Leaf:
    """What there is to know of one certificate."""

    certificate: x509.Certificate

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Its DNS names, lower case, and IP addresses, in its own order.

        Its common name, if it has no subject alternative names at all (RFC 6125 section 6.4.4); none if they cannot
        be read.
        """
        try:
            extensions, subject = self.certificate.extensions, self.certificate.subject
        except _UNREADABLE:
            return ()
        try:
            found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return self._common_names(subject)
        return tuple(
            str(name.value) if isinstance(name, x509.IPAddress) else name.value.lower()
            for name in found
            if isinstance(name, x509.IPAddress | x509.DNSName)
        )

    @property
    def not_before(self) -> datetime:
        """Valid from, UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """Valid until, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def serial(self) -> str:
        """The serial number in hex, lower case, as many digits as bytes have."""
        digits = f"{self.certificate.serial_number:x}"
        return f"0{digits}" if len(digits) % 2 else digits

    @property
    def issuer(self) -> str:
        """Who signed it, in words: the common name, else the whole name; empty if it cannot be read."""
        try:
            issuer = self.certificate.issuer
        except _UNREADABLE:
            return ""
        return next(iter(self._common_names(issuer)), issuer.rfc4514_string())

    @property
    def is_self_signed(self) -> bool:
        """Whether nobody but itself vouches for it."""
        try:
            return self.certificate.issuer == self.certificate.subject
        except _UNREADABLE:
            return False

    @property
    def sha1(self) -> str:
        """The SHA-1 fingerprint in hex, upper case: what HAProxy's `show ssl cert` prints."""
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303  a name for it, no proof

    @property
    def der(self) -> bytes:
        """The certificate as it goes over the wire."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def ari_certificate_id(self) -> str | None:
        """What its CA calls it in renewal information (RFC 9773 section 4.1); None without an authority key id."""
        from base64 import urlsafe_b64encode  # noqa: PLC0415

        try:
            authority = self.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        except (x509.ExtensionNotFound, *_UNREADABLE):
            return None
        if authority.key_identifier is None:
            return None
        serial = self.certificate.serial_number
        # The bytes of a DER INTEGER: one more bit than the number has, for the sign.
        encoded = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
        parts = (urlsafe_b64encode(part).decode().rstrip("=") for part in (authority.key_identifier, encoded))
        return ".".join(parts)

    @staticmethod
    def _common_names(name: x509.Name) -> tuple[str, ...]:
        return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME))


@dataclass(frozen=True)
class Bundle:
    """A key that belongs to the first certificate of the chain; each one after it has signed the one before."""

    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        """Raises BundleError where they do not belong together."""
        if not self.chain:
            raise BundleError("there is no certificate")
        if _public(self.key) != _public(self.chain[0]):
            raise BundleError("the private key is not the one of the certificate")

    @cached_property
    def leaf(self) -> Leaf:
        """The certificate itself."""
        return Leaf(self.chain[0])

    @cached_property
    def pem(self) -> bytes:
        """Key, leaf, chain, without an empty line: for HAProxy's runtime API a blank line ends the payload."""
        return key_pem(self.key) + b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @classmethod
    def parse(cls, pem: bytes) -> Bundle:
        """Reads key and certificates out of PEM text in any order, the leaf before its chain. Raises BundleError."""
        if len(pem) > MAX_PEM_BYTES:
            raise BundleError(f"the file has more than {MAX_PEM_BYTES} bytes")
        keys, certificates = [], []
        for block in _blocks(pem):
            if block[1] in _CERTIFICATE:
                certificates.append(_certificate(block[0]))
            elif block[1].endswith(b"PRIVATE KEY"):
                keys.append(block[0])
        if len(keys) != 1:
            raise BundleError("there is no private key" if not keys else "there is more than one private key")
        return cls(load_key(keys[0]), tuple(certificates))


def read_certificates(content: bytes, max_bytes: int = MAX_PEM_BYTES) -> tuple[x509.Certificate, ...]:
    """The certificates of PEM text in its order; keys and other text are passed over. Or the one of a DER file.

    Raises BundleError.
    """
    if len(content) > max_bytes:
        raise BundleError(f"the file has more than {max_bytes} bytes")
    if content[:1] == _SEQUENCE and b"-----BEGIN " not in content:
        return (_certificate(content, x509.load_der_x509_certificate),)
    found = tuple(_certificate(block[0]) for block in _blocks(content) if block[1] in _CERTIFICATE)
    if not found:
        raise BundleError("there is no certificate in it")
    return found


def check_issued(key: PrivateKey, chain: Sequence[x509.Certificate], names: Sequence[str], now: datetime) -> Bundle:
    """What a CA has issued, if it is what was ordered: for this key, these names and this time, the chain whole.

    Raises BadCertificate.
    """
    try:
        bundle = Bundle(key, tuple(chain))
        got = bundle.leaf.names
    except BundleError as error:
        raise BadCertificate(f"the CA's certificate is of no use: {error}") from None
    if len(chain) > MAX_CHAIN:
        raise BadCertificate(f"the CA's chain has {len(chain)} certificates")
    if sorted(set(got)) != sorted(set(names)):
        found = printable(", ".join(got)) or "no name"
        raise BadCertificate(f"the CA's certificate is for {found}, not for {', '.join(names)}")
    if bundle.leaf.not_after <= now:
        raise BadCertificate(
            f"the CA's certificate is over since {bundle.leaf.not_after:%Y-%m-%d %H:%M} UTC; is the clock right?"
        )
    if bundle.leaf.not_before > now + CLOCK_SKEW:
        raise BadCertificate(
            f"the CA's certificate begins at {bundle.leaf.not_before:%Y-%m-%d %H:%M} UTC; is the clock right?"
        )
    for lower, upper in pairwise(chain):
        try:
            lower.verify_directly_issued_by(upper)
        except (*_UNREADABLE, TypeError, InvalidSignature):
            raise BadCertificate(
                "the CA's chain does not hold: a certificate in it was not signed by the next"
            ) from None
    return bundle


def placeholder(names: Sequence[str], now: datetime) -> Bundle:
    """A self-signed bundle that lets HAProxy start before there is a real one; a `crt DIR` that is empty does not."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PLACEHOLDER)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Bundle(key, (certificate,))


PLACEHOLDER: Final = "sniproxy placeholder, not issued yet"
"""The common name of placeholders."""


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)


def printable(text: str) -> str:
    """Text out of a certificate, which may hold anything, with what is not for a line of text as question marks."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _certificate(
    content: bytes, load: Callable[[bytes], x509.Certificate] = x509.load_pem_x509_certificate
) -> x509.Certificate:
    try:
        certificate = load(content)
        # Read here, so that what is broken is found here: the library puts it off until somebody asks.
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except _UNREADABLE:
        # From None, and without its words: they quote lines of the file.
        raise BundleError("a certificate in it cannot be read: it is cut off, or altered, or not X.509") from None
    return certificate


def _public(of: PrivateKey | x509.Certificate) -> bytes:
    try:
        return of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except _UNREADABLE:
        raise BundleError("the public key of the certificate is of a kind that cannot be read") from None
