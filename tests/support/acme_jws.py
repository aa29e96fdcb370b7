"""Signed requests as a CA reads them: the flattened JSON form of JWS, and nothing else (RFC 8555 section 6.2).

What is wrong raises the Problem that the client gets.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from josepy.errors import Error as JoseError
from josepy.jwa import ES256, ES384, ES512, HS256, HS384, HS512, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA, JWKOct

from tests.support.acme_faults import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALGORITHMS: Mapping[str, JWASignature] = {"RS256": RS256, "ES256": ES256, "ES384": ES384, "ES512": ES512}
"""Of account keys, by the name in `alg`."""

MACS: Mapping[str, JWASignature] = {"HS256": HS256, "HS384": HS384, "HS512": HS512}
"""Of external accounts (RFC 8555 section 7.3.4)."""

_is_base64url = re.compile(r"[A-Za-z0-9_-]*", re.ASCII).fullmatch


def opened(body: bytes, algorithms: Mapping[str, JWASignature]) -> tuple[dict[str, Any], bytes, Callable[[JWK], None]]:
    """Header and payload of a JWS in the flattened JSON form, and what checks its signature with a key."""
    outer = json_object(body)
    if set(outer) != {"protected", "payload", "signature"}:
        raise Problem("malformed", f"not the three fields of a flattened JWS: {sorted(outer)}")
    header = json_object(decoded(outer["protected"]))
    payload, signature = decoded(outer["payload"]), decoded(outer["signature"])
    name = str(header.get("alg"))
    if name not in algorithms:
        raise Problem("badSignatureAlgorithm", f"no algorithm: {name}", algorithms=list(algorithms))
    signed = f"{outer['protected']}.{outer['payload']}".encode()

    def check(key: JWK) -> None:
        if not isinstance(key, JWKOct) and name != algorithm_of(key):
            raise Problem("badSignatureAlgorithm", f"the key does not sign with {name}", algorithms=[algorithm_of(key)])
        if not algorithms[name].verify(key.key, signed, signature):
            raise Problem("malformed", "the signature is not the key's")

    return header, payload, check


def algorithm_of(key: JWK) -> str:
    if isinstance(key, JWKEC):
        return {256: "ES256", 384: "ES384", 521: "ES512"}[key.key.key_size]
    return "RS256"


def public_key(jwk: Any) -> JWK:
    if not isinstance(jwk, dict) or jwk.get("kty") not in {"EC", "RSA"}:
        raise Problem("badPublicKey", "not a public key of RSA or EC")
    if "d" in jwk:
        raise Problem("malformed", "a private key was sent")
    try:
        key = JWKEC.from_json(jwk) if jwk["kty"] == "EC" else JWKRSA.from_json(jwk)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise Problem("badPublicKey", f"the key cannot be read: {error}") from error
    if isinstance(key, JWKRSA) and key.key.key_size < 2048:
        raise Problem("badPublicKey", "the key is too short")
    assert isinstance(key, JWK)
    return key


def decoded(text: Any) -> bytes:
    """Base64url without padding (RFC 8555 section 6.1)."""
    if not isinstance(text, str) or not _is_base64url(text):
        raise Problem("malformed", "not base64url without padding")
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except Base64Error as error:
        raise Problem("malformed", f"not base64url: {error}") from error


def encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")


def json_object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Problem("malformed", f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Problem("malformed", "not a JSON object")
    return found


def spki(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
