"""What a CA keeps: accounts, orders, authorizations and challenges (RFC 8555 section 7.1), and what it takes from whom.

They are plain and may be changed by a test at any time: `stub.orders[0].status = "invalid"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.acme_faults import Problem
from tests.support.acme_jws import decoded, spki

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from josepy.jwk import JWK

    from tests.support.acme_issuer import Issued

_is_host_name = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*", re.ASCII
).fullmatch


@dataclass(kw_only=True, eq=False)
class Account:
    """status: valid, deactivated. key: of requests. eab: the key id of the external account it is bound to."""

    url: str
    key: JWK = field(repr=False)
    contact: list[str]
    status: str = "valid"
    eab: str | None = None


@dataclass(kw_only=True, eq=False)
class Challenge:
    """One way to prove an identifier. status: pending, processing, valid, invalid. error: a problem document."""

    url: str
    type: str
    token: str
    status: str = "pending"
    validated: datetime | None = None
    error: dict[str, Any] | None = None
    n: int | None = None


@dataclass(kw_only=True, eq=False)
class Authorization:
    """status: pending, valid, invalid, deactivated, expired. identifier: `("dns", "a.test")`."""

    url: str
    identifier: tuple[str, str]
    account: Account
    expires: datetime
    challenges: list[Challenge]
    status: str = "pending"


@dataclass(kw_only=True, eq=False)
class Order:
    """status: pending, ready, processing, valid, invalid, worked out by the CA until it is set. issued: in the end."""

    url: str
    account: Account
    identifiers: list[tuple[str, str]]
    authorizations: list[Authorization]
    expires: datetime
    profile: str | None = None
    replaces: str | None = None
    error: dict[str, Any] | None = None
    status: str = "pending"
    request: x509.CertificateSigningRequest | None = None
    polls_left: float = 0
    issued: Issued | None = None


def contacts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(contact, str) for contact in value):
        raise Problem("malformed", "contact is not a list of URLs")
    for contact in value:
        if not contact.startswith("mailto:"):
            raise Problem("unsupportedContact", f"only mailto: {contact}")
        if not re.fullmatch(r"mailto:[^@\s,?]+@[^@\s,?]+", contact):
            raise Problem("invalidContact", f"no address: {contact}")
    return value


def identifiers(value: Any, blocked: Collection[str]) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise Problem("malformed", "there are no identifiers")
    found, refused = [], []
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
            raise Problem("malformed", f"no identifier: {entry}")
        kind, name = entry.get("type"), entry["value"]
        if kind == "dns":
            name = name.lower()
            if name in blocked or name.startswith("*."):
                refused.append((kind, name))
            elif not _is_host_name(name):
                raise Problem("malformed", f"no host name: {name}")
        elif kind == "ip":
            try:
                canonical = str(ip_address(name)) == name
            except ValueError:
                canonical = False
            if not canonical:
                raise Problem("malformed", f"no IP address as RFC 5952 has it: {name}")
            if name in blocked:
                refused.append((kind, name))
        else:
            raise Problem("unsupportedIdentifier", f"no type of identifier: {kind}")
        found.append((kind, name))
    if refused:
        raise _rejected(refused)
    return list(dict.fromkeys(found))


def _rejected(identifiers: Sequence[tuple[str, str]]) -> Problem:
    """One problem, or one with a subproblem for each (RFC 8555 section 6.7.1)."""
    problems = [
        Problem("rejectedIdentifier", f"the CA does not issue for {name}", identifier={"type": kind, "value": name})
        for kind, name in identifiers
    ]
    if len(problems) == 1:
        return problems[0]
    inner = [problem.document for problem in problems]
    return Problem("rejectedIdentifier", f"the CA does not issue for {len(inner)} of these", subproblems=inner)


def signing_request(text: Any, order: Order, account_key: JWK) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_der_x509_csr(decoded(text))
        signed = request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise Problem("badCSR", f"the CSR cannot be read, or has no names: {error}") from error
    if not signed:
        raise Problem("badCSR", "the CSR's signature is not its key's")
    asked = {("dns", name) for name in names.get_values_for_type(x509.DNSName)}
    asked |= {("ip", str(address)) for address in names.get_values_for_type(x509.IPAddress)}
    if asked != set(order.identifiers) or len(list(names)) != len(order.identifiers):
        raise Problem("badCSR", f"the CSR is for {sorted(asked)}, the order for {sorted(order.identifiers)}")
    key = request.public_key()
    if spki(key) == spki(account_key.key):
        raise Problem("badCSR", "the key is the account's")
    good = (isinstance(key, rsa.RSAPublicKey) and key.key_size in {2048, 3072, 4096}) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {"secp256r1", "secp384r1"}
    )
    if not good:
        raise Problem("badCSR", "the key is neither RSA of 2048, 3072 or 4096 bits nor P-256 nor P-384")
    return request


def challenge_object(challenge: Challenge) -> dict[str, Any]:
    content: dict[str, Any] = {
        "type": challenge.type,
        "url": challenge.url,
        "status": challenge.status,
        "token": challenge.token,
    }
    if challenge.n is not None:
        content["n"] = challenge.n
    if challenge.validated is not None:
        content["validated"] = rfc3339(challenge.validated)
    if challenge.error is not None:
        content["error"] = challenge.error
    return content


def suggested(issued: Issued) -> tuple[datetime, datetime]:
    begin, end = issued.certificate.not_valid_before_utc, issued.certificate.not_valid_after_utc
    middle = begin + (end - begin) * 2 / 3
    half = min(timedelta(days=1), (end - begin) / 90)
    return middle - half, middle + half


def rfc3339(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
