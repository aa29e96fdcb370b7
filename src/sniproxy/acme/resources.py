"""What a CA has to say (RFC 8555 section 7.1, RFC 9773): its JSON in, values out. Nothing here reads from a network.

A reply is believed as far as it is well-formed. What is missing, of another type, too long or not a URL that may be
asked is CaUnreachable, in words that say which field of what; members that RFC 8555 does not know are passed over.
Texts that end up before an operator are made printable, cut, and rid of key authorizations, which CAs like to quote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from sniproxy.errors import AcmeError, CaUnreachable, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_IDENTIFIERS: Final = 1000
"""Of an order, and its authorizations: ten times what public CAs put into one certificate."""

MAX_CHALLENGES: Final = 50
"""Of an authorization. There are some five types."""

MAX_SUBPROBLEMS: Final = 100
"""Kept of a problem document: one for each name of the largest orders that public CAs take."""

MAX_URL_CHARS: Final = 2000
"""What every server takes in a request line."""

MAX_TEXT_CHARS: Final = 2000
"""Of a text in the CA's words. More would fill the status page and the state file, and say no more."""

MAX_TOKEN_CHARS: Final = 512
"""RFC 8555 asks for 22 or more (section 8.3); CAs use 43."""

MAX_RETRY_AFTER_SECONDS: Final = 7 * 24 * 60 * 60.0
"""The longest of the rate limits that public CAs have. More than that is a mistake, and would outlive certificates."""

MAX_ITERATIONS: Final = 100
"""Of a tls-sni-01 challenge, each of which takes a certificate of ours; the draft's example has 25."""

_EnumT = TypeVar("_EnumT", bound=StrEnum)

_is_date = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII).fullmatch
_is_token = re.compile(rf"[A-Za-z0-9_-]{{22,{MAX_TOKEN_CHARS}}}").fullmatch
_is_seconds = re.compile(r"[+-]?\d+", re.ASCII).fullmatch
# token "." thumbprint, the latter always 43 letters of base64url (RFC 8555 section 8.1); and a token in a URL. Nothing
# is looked at twice: texts can be long.
_key_authorizations = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])")
_challenge_paths = re.compile(r"(/\.well-known/acme-challenge/)[A-Za-z0-9_-]+")


class AccountStatus(StrEnum):
    """RFC 8555 section 7.1.2."""

    VALID = "valid"
    DEACTIVATED = "deactivated"
    REVOKED = "revoked"


class OrderStatus(StrEnum):
    """RFC 8555 section 7.1.3."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    """RFC 8555 section 7.1.4."""

    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    """RFC 8555 section 7.1.5."""

    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Where to ask for what (RFC 8555 section 7.1.1); None for what the CA does not offer, "" for what it does not say.

    profiles: what there is to choose from, with the CA's words for it. terms_of_service and website are for people.
    """

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str | None = None
    key_change: str | None = None
    renewal_info: str | None = None
    terms_of_service: str = ""
    website: str = ""
    profiles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    external_account_required: bool = False
    caa_identities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account; its URL is its name (`kid`) in every request. `contact` is empty where the CA does not tell."""

    url: str
    status: AccountStatus
    contact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order. identifiers: DNS names, lower case, and IP addresses, as the CA has them.

    certificate: where it is, once the status is valid. retry_after: seconds until it is worth another look.
    """

    url: str
    status: OrderStatus
    identifiers: tuple[str, ...]
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str | None = None
    error: Problem | None = None
    expires: datetime | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way to prove control of an identifier. `type` may be one that we know nothing of; `token` is empty then.

    iterations: `n` of tls-sni-01 (draft-ietf-acme-acme-01 section 7.3), 1 for everything else.
    """

    type: str
    url: str
    status: ChallengeStatus
    token: str = field(default="", repr=False)
    error: Problem | None = None
    iterations: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What is to be proven for one identifier: a DNS name without `*.`, or an IP address. One challenge is enough."""

    url: str
    status: AuthorizationStatus
    identifier: str
    is_ip: bool = False
    wildcard: bool = False
    challenges: tuple[Challenge, ...] = ()
    expires: datetime | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalInfo:
    """The window in which the CA would have a certificate renewed (RFC 9773 section 4.2); start is before end.

    explanation_url: for people, "" where there is none. retry_after: seconds until the next question.
    """

    start: datetime
    end: datetime
    explanation_url: str = ""
    retry_after: float | None = None


KNOWN_CHALLENGES: Final = frozenset(
    ("http-01", "dns-01", "dns-account-01", "tls-alpn-01", "tls-sni-01", "tls-sni-02", "onion-csr-01")
)
"""Those that have a token; without one, they are broken."""


def read_directory(document: object) -> Directory:
    """Raises CaUnreachable."""
    directory = _Reader(document, "directory")
    meta = directory.inner("meta")
    return Directory(
        new_nonce=directory.url("newNonce"),
        new_account=directory.url("newAccount"),
        new_order=directory.url("newOrder"),
        revoke_cert=directory.url_or_none("revokeCert"),
        key_change=directory.url_or_none("keyChange"),
        renewal_info=directory.url_or_none("renewalInfo"),
        terms_of_service=meta.text_or_empty("termsOfService"),
        website=meta.text_or_empty("website"),
        profiles=meta.texts_by_name("profiles"),
        external_account_required=meta.flag("externalAccountRequired"),
        caa_identities=meta.texts("caaIdentities"),
    )


def read_account(url: str, document: object) -> Account:
    """Raises CaUnreachable."""
    account = _Reader(document, "account")
    return Account(url=url, status=account.status(AccountStatus), contact=account.texts("contact"))


def read_order(url: str, document: object, *, retry_after: float | None = None) -> Order:
    """Raises CaUnreachable."""
    order = _Reader(document, "order")
    identifiers = tuple(read_identifier(item, "order")[0] for item in order.items("identifiers", MAX_IDENTIFIERS))
    if not identifiers:
        raise CaUnreachable("the CA's order has no identifiers")
    authorizations = order.items("authorizations", MAX_IDENTIFIERS)
    return Order(
        url=url,
        status=order.status(OrderStatus),
        identifiers=identifiers,
        authorizations=tuple(checked_url(item, "the CA's order: an authorization") for item in authorizations),
        finalize=order.url("finalize"),
        certificate=order.url_or_none("certificate"),
        error=order.problem("error"),
        expires=order.date("expires"),
        retry_after=retry_after,
    )


def read_authorization(url: str, document: object, *, retry_after: float | None = None) -> Authorization:
    """Raises CaUnreachable."""
    authorization = _Reader(document, "authorization")
    identifier, is_ip = read_identifier(authorization.member("identifier"), "authorization")
    return Authorization(
        url=url,
        status=authorization.status(AuthorizationStatus),
        identifier=identifier,
        is_ip=is_ip,
        wildcard=authorization.flag("wildcard"),
        challenges=tuple(map(read_challenge, authorization.items("challenges", MAX_CHALLENGES))),
        expires=authorization.date("expires"),
        retry_after=retry_after,
    )


def read_challenge(document: object) -> Challenge:
    """Raises CaUnreachable."""
    challenge = _Reader(document, "challenge")
    kind = challenge.text("type")
    token = challenge.members.get("token")
    if not isinstance(token, str) or not _is_token(token):
        if kind in KNOWN_CHALLENGES:
            # It becomes part of a path and of a response: nothing but letters of base64url may.
            raise CaUnreachable(f"the CA's {kind} challenge has no token of 22 or more letters of base64url")
        token = ""
    error = challenge.problem("error", token)
    iterations = challenge.number("n", MAX_ITERATIONS) if kind == "tls-sni-01" else 1
    return Challenge(
        type=kind,
        url=challenge.url("url"),
        status=challenge.status(ChallengeStatus),
        token=token,
        error=error,
        iterations=iterations,
    )


def read_renewal_info(document: object, *, retry_after: float | None = None) -> RenewalInfo:
    """Raises CaUnreachable, and that also for a window that ends before it begins (RFC 9773 section 4.2)."""
    info = _Reader(document, "renewal information")
    window = info.inner("suggestedWindow")
    start, end = window.date("start"), window.date("end")
    if start is None or end is None:
        raise CaUnreachable("the CA's renewal information lacks the start or the end of its window")
    if end <= start:
        raise CaUnreachable("the CA's renewal information has a window that ends before it begins")
    explanation_url = info.text_or_empty("explanationURL")
    return RenewalInfo(start=start, end=end, explanation_url=explanation_url, retry_after=retry_after)


def read_problem(
    document: object, *, status: int = 0, retry_after: float | None = None, secret: str = ""
) -> Problem | None:
    """A problem document (RFC 7807, RFC 8555 section 6.7); None where it is none.

    Nothing in it is an error: it is one already, and what can be told of it is told. status: that of HTTP, 0 inside an
    object. secret: not to be quoted, if it is in there.
    """
    return _problem(document, status, retry_after, secret, with_inner=True)


def _problem(
    document: object, status: int, retry_after: float | None, secret: str, *, with_inner: bool
) -> Problem | None:
    if not isinstance(document, dict) or not {"type", "title", "detail"} & document.keys():
        return None

    def text(key: str) -> str:
        value = document.get(key)
        return shown(value, secret) if isinstance(value, str) else ""

    detail = text("detail") or text("title")
    if text("instance"):  # where userActionRequired says what to do (RFC 8555 section 7.3.3)
        detail = f"{detail} ({text('instance')})"
    identifier = document.get("identifier")
    name = identifier.get("value") if isinstance(identifier, dict) else None
    subproblems = document.get("subproblems")
    inner = subproblems[:MAX_SUBPROBLEMS] if with_inner and isinstance(subproblems, list) else []
    found = (_problem(item, 0, None, secret, with_inner=False) for item in inner)
    return Problem(
        type=text("type") or "about:blank",
        detail=detail,
        status=status,
        identifier=shown(name) if isinstance(name, str) else "",
        subproblems=[problem for problem in found if problem is not None],
        retry_after=retry_after,
    )


def refusal(what: str, status: int, body: bytes, *, content_type: str, retry_after: float | None) -> AcmeError:
    """What to raise for a reply that is no success: Problem in the CA's words, else CaUnreachable in ours.

    what: was asked for, `newOrder`.
    """
    try:
        problem = read_problem(json.loads(body), status=status, retry_after=retry_after)
    except (ValueError, RecursionError):
        problem = None
    if problem is not None:
        return problem
    kind = shown(content_type.partition(";")[0].strip()) or "no type"
    return CaUnreachable(
        f"{what}: the CA answered {status}, and not as ACME has it ({kind}); "
        + ("it may be overloaded" if status == 429 or status >= 500 else "is acme.directory right?"),
        retry_after=retry_after,
    )


def parse(what: str, body: bytes) -> object:
    """A reply's JSON. Raises CaUnreachable."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise CaUnreachable(f"{what}: the CA's answer is not JSON; is acme.directory right?") from None


def identifier_for(name: str) -> dict[str, str]:
    """A DNS name or an IP address as it goes into an order (RFC 8555 section 7.1.3, RFC 8738)."""
    try:
        return {"type": "ip", "value": str(ip_address(name))}
    except ValueError:
        return {"type": "dns", "value": name.lower()}


def read_identifier(document: object, what: str) -> tuple[str, bool]:
    """A name in lower case, or an IP address; and whether it is the latter. Raises CaUnreachable."""
    identifier = _Reader(document, f"{what}'s identifier")
    kind, value = identifier.text("type"), identifier.text("value")
    if kind == "dns":
        return value.lower(), False
    if kind == "ip":
        try:
            return str(ip_address(value)), True
        except ValueError:
            raise CaUnreachable(f"the CA's {what} has an IP address that is none: {shown(value)}") from None
    raise CaUnreachable(f"the CA's {what} is for an identifier of an unknown type, {shown(kind)}")


def checked_url(value: object, what: str) -> str:
    """A URL that may be asked: https, or http to this machine itself (a test CA). Raises CaUnreachable."""
    if isinstance(value, str) and len(value) <= MAX_URL_CHARS and value.isascii() and value.isprintable():
        try:
            url = urlsplit(value)
            host, _ = url.hostname or "", url.port
        except ValueError:
            host, url = "", None
        # No user in front of the host: that would be sent along as a password.
        if url is not None and host and " " not in value and url.username is None:
            if url.scheme == "https" or (url.scheme == "http" and is_loopback(host)):
                return value
            raise CaUnreachable(f"{what} is not an https:// URL")
    raise CaUnreachable(f"{what} is not a URL")


def is_loopback(host: str) -> bool:
    """Whether only this machine itself answers there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after_seconds(value: str | None, date: datetime) -> float | None:
    """Retry-After (RFC 9110 section 10.2.3): seconds, or a date that is compared with `date`, the time of the reply.

    From 0 to MAX_RETRY_AFTER_SECONDS; None where there is none, or one that means nothing.
    """
    if value is None:
        return None
    if _is_seconds(value.strip()):
        seconds = float(value)
    else:
        until = http_date(value)
        if until is None:
            return None
        seconds = (until - date).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def http_date(value: str | None) -> datetime | None:
    """A date of HTTP (RFC 9110 section 5.6.7), UTC; None where it is none."""
    if value is None or len(value) > 64:
        return None
    try:
        date = parsedate_to_datetime(value)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def shown(text: str, secret: str = "") -> str:
    """A text of the CA's that people may see: no control characters, not too long, no key authorization."""
    text = text[: MAX_TEXT_CHARS + 2 * MAX_TOKEN_CHARS]  # so that none is cut in two, and overlooked
    text = _challenge_paths.sub(r"\1(token)", _key_authorizations.sub("(key authorization)", text))
    if secret:
        text = text.replace(secret, "(token)")
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


class _Reader:
    """A JSON object of the CA's. Each method gives one member, or raises CaUnreachable saying what is wrong with it."""

    def __init__(self, document: object, what: str) -> None:
        if not isinstance(document, dict):
            raise CaUnreachable(f"the CA's {what} is not a JSON object; is acme.directory right?")
        self.what = what
        self.members: Mapping[str, Any] = document

    def member(self, key: str) -> Any:
        value = self.members.get(key)
        if value is None:
            raise CaUnreachable(f"the CA's {self.what} lacks {key}")
        return value

    def inner(self, key: str) -> _Reader:
        """An object inside; an empty one where there is none."""
        value = self.members.get(key)
        if not isinstance(value, dict | None):
            raise self.wrong(key, "an object")
        return _Reader(value or {}, f"{self.what}, in {key}")

    def text(self, key: str) -> str:
        value = self.member(key)
        if not isinstance(value, str) or not value or len(value) > MAX_TEXT_CHARS or not value.isprintable():
            raise self.wrong(key, "a text")
        return value

    def text_or_empty(self, key: str) -> str:
        return self.text(key) if self.members.get(key) not in (None, "") else ""

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(_text(item, self.wrong(key, "a list of texts")) for item in self.items(key, MAX_IDENTIFIERS))

    def texts_by_name(self, key: str) -> Mapping[str, str]:
        wrong = self.wrong(key, "an object of texts")
        found = self.inner(key).members
        if len(found) > MAX_IDENTIFIERS:
            raise wrong
        return MappingProxyType({_text(name, wrong): _text(value, wrong) for name, value in found.items()})

    def items(self, key: str, most: int) -> list[Any]:
        value = self.members.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        if len(value) > most:
            raise CaUnreachable(f"the CA's {self.what} has {len(value)} {key}, and more than {most} are not believed")
        return value

    def flag(self, key: str) -> bool:
        value = self.members.get(key)
        if not isinstance(value, bool | None):
            raise self.wrong(key, "true or false")
        return bool(value)

    def number(self, key: str, most: int) -> int:
        value = self.members.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(key, f"a number from 1 to {most}")
        return value

    def url(self, key: str) -> str:
        return checked_url(self.member(key), f"the CA's {self.what}: {key}")

    def url_or_none(self, key: str) -> str | None:
        return self.url(key) if self.members.get(key) is not None else None

    def status(self, statuses: type[_EnumT]) -> _EnumT:
        value = self.text("status")
        try:
            return statuses(value)
        except ValueError:
            raise CaUnreachable(f"the CA's {self.what} has a status that ACME does not know, {shown(value)}") from None

    def date(self, key: str) -> datetime | None:
        """RFC 3339, UTC."""
        value = self.members.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not _is_date(value):
            raise self.wrong(key, "a date")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self.wrong(key, "a date") from None

    def problem(self, key: str, secret: str = "") -> Problem | None:
        return read_problem(self.members.get(key), secret=secret)

    def wrong(self, key: str, wanted: str) -> CaUnreachable:
        return CaUnreachable(f"the CA's {self.what}: {key} is not {wanted}")


def _text(value: object, wrong: CaUnreachable) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not value.isprintable():
        raise wrong
    return value
