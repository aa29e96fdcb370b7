"""Bundles that are valid now: of any names, ECDSA or RSA, signed by one CA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from sniproxy.bundle import Bundle, PrivateKey, generate_key
from tests.support import certificates

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = "test issuer"


@cache
def _root() -> certificates.Signer:
    return certificates.Signer("test root")


@cache
def issuer() -> certificates.Signer:
    return certificates.Signer(ISSUER, parent=_root())


@cache
def _rsa_key() -> PrivateKey:
    return generate_key("rsa-2048")  # made once, as it takes a while


def bundle(*names: str, rsa: bool = False, chain: int = 1) -> Bundle:
    """A new certificate for these names. chain: how often the issuer's comes after it, as long chains need much room."""
    key = _rsa_key() if rsa else generate_key("ecdsa-p256")
    now = datetime.now(UTC)
    leaf = certificates.certificate(
        names, key=key, signer=issuer(), begins=now - timedelta(hours=1), ends=now + timedelta(days=30)
    )
    return Bundle(key, (leaf, *issuer().chain * chain))


def write(path: Path, content: Bundle) -> Bundle:
    """Puts it where HAProxy reads it, as an administrator would."""
    path.write_bytes(content.pem)
    return content
