"""Certificates of every kind, and none that would pass for real: any names, dates, keys, signers, and broken ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from sniproxy.bundle import general_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric import rsa

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
"""What tests that bring their own clock have on it."""


class Signer:
    """A CA, whose certificate another has signed, or it itself."""

    def __init__(self, name: str = "test root", parent: Signer | None = None, key: Key | None = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = common_name(name)
        self._parent = parent
        self.certificate = certificate(
            (),
            key=self.key,
            signer=parent or self,
            subject=self.name,
            begins=NOW - timedelta(days=3650),
            ends=NOW + timedelta(days=3650),
            more=[x509.BasicConstraints(ca=True, path_length=None)],
        )

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Its own certificate, and those above it but for the root, as CAs send them."""
        return () if self._parent is None else (self.certificate, *self._parent.chain)


def certificate(
    names: Sequence[str],
    *,
    key: Key | None = None,
    signer: Signer | None = None,
    subject: x509.Name | None = None,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime = NOW + timedelta(days=89),
    serial: int | None = None,
    more: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    """A certificate for these names, signed by its own key without a signer; without names, without the extension."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = subject if subject is not None else common_name(names[0] if names else "nobody")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.name if signer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False
        )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    signing = signer.key if signer else key
    return builder.sign(signing, None if isinstance(signing, Ed25519PrivateKey) else hashes.SHA256())


def altered(original: x509.Certificate, before: bytes, after: bytes) -> x509.Certificate:
    """The certificate with these bytes of its DER replaced by as many others; nothing signs it any more."""
    encoded = original.public_bytes(Encoding.DER)
    assert before in encoded
    assert len(before) == len(after)
    return x509.load_der_x509_certificate(encoded.replace(before, after))


def with_raw_names(encoded: bytes, *, key: Key | None = None) -> x509.Certificate:
    """A certificate whose subject alternative names are these bytes of DER, right or wrong."""
    made = certificate((), key=key, more=[x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, encoded)])
    return x509.load_der_x509_certificate(made.public_bytes(Encoding.DER))


def common_name(text: str) -> x509.Name:
    """A name that is nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def pem(*parts: x509.Certificate | Key) -> bytes:
    """Keys and certificates as PEM, one after the other."""
    return b"".join(
        part.public_bytes(Encoding.PEM)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for part in parts
    )
