"""What a CA signs with: a root, an intermediate, and as many other roots above it as alternate chains are wanted."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

Chain = Literal["whole", "with root", "leaf only", "reversed", "foreign", "shuffled", "empty", "garbage"]
"""How a chain is downloaded: as it should be, or not. `foreign`: the intermediate is another CA's; `shuffled`: the
root comes before it."""


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """In what an issued certificate differs from what was ordered; None where it does not."""

    names: Sequence[str] | None = None
    public_key: CertificatePublicKeyTypes | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    chain: Chain = "whole"


@dataclass(kw_only=True, eq=False)
class Issued:
    """A certificate that was issued.

    account, order: URLs. revoked: the reason code, once it is. replaced_by: the URL of the order that `replaces` it.
    """

    certificate: x509.Certificate
    names: tuple[str, ...]
    account: str
    order: str
    profile: str | None
    chains: list[bytes] = field(repr=False)
    revoked: int | None = None
    replaced_by: str | None = None

    @property
    def pem(self) -> str:
        """The leaf alone."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    @property
    def certificate_id(self) -> str:
        """Its name in renewal information and in `replaces` (RFC 9773 section 4.1)."""
        authority = self.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert authority.key_identifier is not None
        # DER's INTEGER is signed, so a serial number whose first bit is set has a zero byte in front.
        serial = self.serial.to_bytes(self.serial.bit_length() // 8 + 1, "big")
        return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in (authority.key_identifier, serial))


class Issuer:
    """Root and intermediate; `alternates` is how many more roots have signed the same intermediate."""

    def __init__(self, *, alternates: int = 0, name: str = "stub") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(f"{name} intermediate")
        self.roots: list[x509.Certificate] = []
        self.intermediates: list[x509.Certificate] = []
        for number in range(alternates + 1):
            key = ec.generate_private_key(ec.SECP256R1())
            issuer = _common_name(f"{name} root {number}")
            self.roots.append(_authority(issuer, issuer, key, key))
            self.intermediates.append(_authority(subject, issuer, self._key, key))

    @property
    def root_pem(self) -> str:
        return _pem(self.roots[:1]).decode()

    @property
    def signer_pem(self) -> tuple[bytes, bytes]:
        """The intermediate's key and certificate, for another program that signs with them."""
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key, _pem(self.intermediates[:1])

    def sign(
        self,
        public_key: CertificatePublicKeyTypes,
        names: Sequence[str],
        not_before: datetime,
        not_after: datetime,
    ) -> x509.Certificate:
        """A leaf for these names and addresses. Its times are whole seconds, as always."""
        signer = self.intermediates[0].public_key()
        assert isinstance(signer, ec.EllipticCurvePublicKey)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.intermediates[0].subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def chains(self, leaf: x509.Certificate, chain: Chain = "whole") -> list[bytes]:
        """What is downloaded: first the chain to the first root, then those to the others, as PEM without the root."""
        if chain == "empty":
            return [b""]
        if chain == "garbage":
            return [b"-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"]
        if chain == "leaf only":
            return [_pem([leaf])]
        if chain == "foreign":
            return [_pem([leaf, Issuer(name="foreign").intermediates[0]])]
        if chain == "shuffled":
            return [_pem([leaf, self.roots[0], self.intermediates[0]])]
        if chain == "with root":
            return [_pem([leaf, self.intermediates[0], self.roots[0]])]
        chains = [[leaf, intermediate] for intermediate in self.intermediates]
        return [_pem(above[::-1] if chain == "reversed" else above) for above in chains]


def _authority(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3650))  # a test may turn the clock back
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
