"""A small ACME CA inside the test's own process, that does what the test says: RFC 8555, and 8738, 9773, profiles.

It is a real one: requests have to be signed, nonces used once, challenges are looked at over the network as strictly as
Let's Encrypt does, and what it issues is signed by its intermediate. Whatever it does not do right it was told to:

    with AcmeStub(tls=("127.0.0.1", port)) as stub:
        stub.fail("newOrder", status=429, problem="rateLimited", retry_after="120")
        ...  # a client of stub.directory_url
        assert stub.count("newOrder") == 2

What goes wrong on the way is a matter of rules, see `Faults`; what the CA is like, of the attributes of `AcmeStub`, which
may be changed at any time. Plain http on 127.0.0.1. One thread for each connection, as clients and tests may block.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Self

from cryptography.hazmat.primitives.serialization import Encoding
from josepy.jwk import JWK, JWKOct

from tests.support.acme_faults import PEM_CHAIN, Faults, Problem, Reply, Request
from tests.support.acme_http import Server
from tests.support.acme_issuer import Chain, Issued, Issuer, Wrong
from tests.support.acme_jws import ALGORITHMS, MACS, decoded, encoded, json_object, opened, public_key, spki
from tests.support.acme_resources import (
    Account,
    Authorization,
    Challenge,
    Order,
    challenge_object,
    contacts,
    identifiers,
    rfc3339,
    signing_request,
    suggested,
)
from tests.support.acme_validation import (
    CheckFailed,
    check_http_01,
    check_tls_alpn_01,
    check_tls_sni_01,
    check_tls_sni_02,
)
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

__all__ = [
    "Account",
    "AcmeStub",
    "Authorization",
    "Challenge",
    "CheckFailed",
    "Issued",
    "Order",
    "Problem",
    "Reply",
    "Request",
    "check_http_01",
    "check_tls_alpn_01",
    "check_tls_sni_01",
    "check_tls_sni_02",
]

Place = tuple[str, int]
"""Host and port."""

_REVOCATION_REASONS = {0, 1, 3, 4, 5}


class AcmeStub(Faults):
    """A CA, from `with` or `start` until `close`. Its address is the same after a `start` that follows.

    Args:
        tls, http: where tls-alpn-01 (and tls-sni) and http-01 are looked at: host and port, whatever the name. Several
            are tried one after the other, as long as there is no connection: IPv6, then IPv4, say.
        validate: False believes every challenge at once. A function is called with authorization, challenge and key
            authorization, and raises CheckFailed.
        perspectives: how many look at each challenge at once; all have to find it right.
        challenges: the types offered for each name.
        eab: key ids and their MAC keys (base64url) of external accounts; given, no account is made without one.
        profiles: their names with their descriptions, in the directory's meta.
        alternates: how many other chains a certificate has.
        renewal_info: whether the directory has it.
        terms_of_service: the URL; None: there is nothing to agree to.
    """

    def __init__(
        self,
        *,
        tls: Place | Sequence[Place] = (),
        http: Place | Sequence[Place] = (),
        validate: bool | Callable[[Authorization, Challenge, str], None] = True,
        perspectives: int = 3,
        challenges: Sequence[str] = ("tls-alpn-01", "http-01"),
        eab: Mapping[str, str] | None = None,
        profiles: Mapping[str, str] | None = None,
        alternates: int = 0,
        renewal_info: bool = True,
        terms_of_service: str | None = "https://ca.test/terms",
    ) -> None:
        super().__init__()
        self.tls, self.http = _places(tls), _places(http)
        self.validate = validate
        self.perspectives = perspectives
        self.challenge_types = tuple(challenges)
        self.eab = None if eab is None else dict(eab)
        self.profiles = dict(profiles or {})
        self.renewal_info = renewal_info
        self.terms_of_service = terms_of_service

        self.lifetime = timedelta(days=90)
        """Of certificates, from their notBefore on."""
        self.profile_lifetimes: dict[str, timedelta] = {}
        """Of those profiles that have another."""
        self.backdate = timedelta(hours=1)
        """By how much notBefore is before the CA's time. Let's Encrypt's is an hour."""
        self.clock_skew = timedelta(0)
        """By how much the CA's clock is ahead of ours: the Date header, and all it dates."""
        self.tls_sni_01_n: int | None = None
        """How many names tls-sni-01 asks for; None: it does not say, and asks for one, as Let's Encrypt did."""
        self.reuse_authorizations = False
        """Whether valid authorizations of an account hold for its next orders."""
        self.authorization_lifetime = timedelta(days=7)
        self.order_lifetime = timedelta(days=7)
        self.processing_polls: float = 0
        """How often a finalized order is asked for and still `processing`; math.inf is for good."""
        self.poll_retry_after: str | None = None
        """Retry-After on what is still going on: pending and processing."""
        self.already_replaced: Literal["once", "always", "never"] = "once"
        """When `replaces` is answered by 409 alreadyReplaced (RFC 9773 section 5): when an order that is not invalid
        has named the certificate before."""
        self.renewal_window: tuple[datetime, datetime] | Callable[[Issued], tuple[datetime, datetime]] | None = None
        """The suggested window; None: two days around two thirds of the lifetime, or less of a short one."""
        self.explanation_url: str | None = None
        self.renewal_retry_after: str | None = "21600"
        self.blocked: set[str] = set()
        """Names that are refused with rejectedIdentifier."""
        self.nonces_in_errors = True
        """Whether error replies have a nonce, too."""

        self.requests: list[Request] = []
        """All that came, in order."""
        self.issued: list[Issued] = []
        self.accounts: list[Account] = []
        self.orders: list[Order] = []
        self.authorizations: list[Authorization] = []
        self.bugs: list[BaseException] = []
        """What went wrong in here, or in a test's callback; `close` raises the first."""

        self._issuer = Issuer(alternates=alternates)
        self._lock = threading.RLock()
        self._nonces: set[str] = set()
        self._numbers = count(1)
        self._wrong: deque[Wrong] = deque()
        self._failing_orders: deque[dict[str, Any] | None] = deque()
        self._failing_authorizations: deque[dict[str, Any] | None] = deque()
        self._validating: list[threading.Thread] = []
        self._server: Server | None = None
        self.port = free_port()
        self.base_url = f"http://{LOCALHOST}:{self.port}"
        self.directory_url = f"{self.base_url}/directory"

    # ------------------------------------------------------------------ for tests

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Listens; with all it knew before, if that is not the first time."""
        self._closing.clear()
        self._server = Server(self)
        self._server.start()

    def close(self) -> None:
        """Lets go of all connections and threads. Raises what went wrong in a callback, if anything did."""
        self._closing.set()
        if self._server is not None:
            self._server.stop()
            self._server = None
        for thread in self._validating:
            thread.join(PATIENCE_SECONDS)
        self._validating.clear()
        if self.bugs:
            raise self.bugs[0]

    @property
    def root_pem(self) -> str:
        """The root above what it issues."""
        return self._issuer.root_pem

    @property
    def root_pems(self) -> list[str]:
        """That, and those of the alternate chains."""
        return [root.public_bytes(Encoding.PEM).decode() for root in self._issuer.roots]

    def now(self) -> datetime:
        """The CA's time."""
        return datetime.now(UTC) + self.clock_skew

    def count(self, resource: str) -> int:
        """How many requests there were, answered as they should be or not."""
        return sum(request.resource == resource for request in list(self.requests))

    def payloads(self, resource: str) -> list[dict[str, Any]]:
        """What was sent to a resource; POST-as-GET and GET sent nothing."""
        return [
            request.payload
            for request in list(self.requests)
            if request.resource == resource and request.payload is not None
        ]

    def misissue(
        self,
        *,
        names: Sequence[str] | None = None,
        public_key: CertificatePublicKeyTypes | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        chain: Chain = "whole",
        times: int = 1,
    ) -> None:
        """Issues something else than what was ordered, so many times."""
        wrong = Wrong(names=names, public_key=public_key, not_before=not_before, not_after=not_after, chain=chain)
        self._wrong.extend([wrong] * times)

    def fail_order(self, error: str | Mapping[str, Any] | None = None, *, times: int = 1) -> None:
        """An order becomes `invalid` after it was finalized; with this error object, or without any."""
        self._failing_orders.extend([_document(error)] * times)

    def fail_authorization(self, error: str | Mapping[str, Any] | None = None, *, times: int = 1) -> None:
        """A challenge that was looked at is `invalid`, whatever there was; with this error object, or without any."""
        self._failing_authorizations.extend([_document(error)] * times)

    def forget(self) -> None:
        """Knows no account, order or authorization any more, as a test CA after a restart; what is issued stays."""
        with self._lock:
            for known in (self.accounts, self.orders, self.authorizations):
                known.clear()

    def thumbprint(self, account: Account) -> str:
        """Of the account's key (RFC 7638), base64url: the second half of a key authorization."""
        return encoded(account.key.thumbprint())

    # ------------------------------------------------------------------ requests

    def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[Reply, list[_Call]]:
        """A reply, and what is to be called once it is sent. In the thread of the connection."""
        resource = _resource(path)
        payload, account = _skimmed(body)
        with self._lock:
            request = Request(
                number=len(self.requests) + 1,
                resource=resource,
                method=method,
                path=path,
                payload=payload,
                account=account,
                headers=headers,
                body=body,
            )
            self.requests.append(request)
        rules = self._rules_for(request)
        for rule in rules:
            if rule.received:
                rule.received(request)
        instead = next((rule.instead for rule in rules if rule.instead), None)
        reply = self._carried_out(request) if instead is None else instead()
        self._add_common_headers(request, reply)
        for rule in rules:
            if rule.edit:
                reply = rule.edit(reply)
        for rule in rules:
            if rule.carried_out:
                rule.carried_out(request)
        return reply, [partial(rule.answered, request) for rule in rules if rule.answered]

    def _carried_out(self, request: Request) -> Reply:
        unsigned = {"directory": self._directory, "newNonce": self._new_nonce, "renewalInfo": self._renewal_info}
        signed = {
            "newAccount": self._new_account,
            "newOrder": self._new_order,
            "revokeCert": self._revoke_certificate,
            "keyChange": self._key_change,
            "account": self._account,
            "orders": self._orders,
            "order": self._order,
            "authorization": self._authorization,
            "challenge": self._challenge,
            "finalize": self._finalize,
            "certificate": self._certificate,
        }
        with self._lock:
            try:
                if request.resource in unsigned:
                    _method_is(request, "GET", "HEAD")
                    return unsigned[request.resource](request)
                if request.resource in signed:
                    _method_is(request, "POST")
                    return signed[request.resource](self._verified(request))
                raise Problem("malformed", f"there is no {request.path}", 404)  # noqa: TRY301
            except Problem as problem:
                return problem.reply()

    def _add_common_headers(self, request: Request, reply: Reply) -> None:
        reply.headers.setdefault("Date", format_datetime(self.now(), usegmt=True))
        links = [f'<{self.directory_url}>;rel="index"'] if request.resource != "directory" else []
        if "Link" in reply.headers:
            links.append(reply.headers["Link"])
        if links:
            reply.headers["Link"] = ", ".join(links)
        if (request.method == "POST" or request.resource == "newNonce") and (
            reply.status < 400 or self.nonces_in_errors
        ):
            with self._lock:
                nonce = secrets.token_urlsafe(16)
                self._nonces.add(nonce)
            reply.headers.setdefault("Replay-Nonce", nonce)
            reply.headers.setdefault("Cache-Control", "no-store")

    # ------------------------------------------------------------------ signatures (RFC 8555 section 6.2)

    def _verified(self, request: Request) -> _Signed:
        if request.headers.get("Content-Type") != "application/jose+json":
            raise Problem("malformed", "the Content-Type is not application/jose+json", 415)
        header, payload, check = opened(request.body, ALGORITHMS)
        if ("jwk" in header) == ("kid" in header):
            raise Problem("malformed", "there has to be one of jwk and kid")
        by_key = "jwk" in header
        if request.resource == "newAccount" and not by_key:
            raise Problem("malformed", "newAccount is signed by the key in jwk")
        if request.resource not in {"newAccount", "revokeCert"} and by_key:
            raise Problem("malformed", "all but newAccount and revokeCert are signed by an account")
        account = None
        if by_key:
            key = public_key(header["jwk"])
        else:
            account = next((known for known in self.accounts if known.url == header["kid"]), None)
            if account is None:
                raise Problem("accountDoesNotExist", f"there is no account {header['kid']}")
            key = account.key
        check(key)
        if header.get("url") != self.base_url + request.path:
            raise Problem("unauthorized", f"the url that was signed is {header.get('url')}", 401)
        if header.get("nonce") not in self._nonces:
            raise Problem("badNonce", "the nonce is unknown, or has been used")
        self._nonces.remove(header["nonce"])
        if account is not None and account.status != "valid":
            raise Problem("unauthorized", f"the account is {account.status}", 401)
        content = None
        if payload:
            content = json_object(payload)
        return _Signed(request, content, key, account)

    def _bound(self, binding: Any, key: JWK) -> str:
        """The key id of an external account binding (RFC 8555 section 7.3.4)."""
        assert self.eab is not None
        if not isinstance(binding, dict):
            raise Problem("externalAccountRequired", "there is no externalAccountBinding", 403)
        header, payload, check = opened(json.dumps(binding).encode(), MACS)
        kid = header.get("kid")
        if kid not in self.eab:
            raise Problem("unauthorized", f"there is no external account {kid}", 403)
        if header.get("url") != f"{self.base_url}/new-account" or "nonce" in header:
            raise Problem("malformed", "the binding is for another url, or has a nonce")
        check(JWKOct(key=decoded(self.eab[kid])))
        if public_key(json_object(payload)).thumbprint() != key.thumbprint():
            raise Problem("malformed", "the binding is for another key")
        return str(kid)

    # ------------------------------------------------------------------ what is not signed

    def _directory(self, request: Request) -> Reply:
        meta: dict[str, Any] = {"website": "https://ca.test/", "externalAccountRequired": self.eab is not None}
        if self.terms_of_service is not None:
            meta["termsOfService"] = self.terms_of_service
        if self.profiles:
            meta["profiles"] = self.profiles
        paths = {
            "newNonce": "/new-nonce",
            "newAccount": "/new-account",
            "newOrder": "/new-order",
            "revokeCert": "/revoke-cert",
            "keyChange": "/key-change",
        }
        if self.renewal_info:
            paths["renewalInfo"] = "/renewal-info"
        urls = {name: self.base_url + path for name, path in paths.items()}
        # A field of no meaning, as Let's Encrypt has: clients have to pass over what they do not know.
        return Reply.of_json({**urls, "meta": meta, secrets.token_urlsafe(8): "https://ca.test/unknown-field"})

    def _new_nonce(self, request: Request) -> Reply:
        return Reply(status=200 if request.method == "HEAD" else 204)

    def _renewal_info(self, request: Request) -> Reply:
        """RFC 9773 section 4.2."""
        certificate_id = request.path.removeprefix("/renewal-info/")
        issued = next((issued for issued in self.issued if issued.certificate_id == certificate_id), None)
        if issued is None or not self.renewal_info:
            raise Problem("malformed", f"there is no certificate {certificate_id}", 404)
        window = self.renewal_window or suggested
        start, end = window(issued) if callable(window) else window
        content: dict[str, Any] = {"suggestedWindow": {"start": rfc3339(start), "end": rfc3339(end)}}
        if self.explanation_url is not None:
            content["explanationURL"] = self.explanation_url
        reply = Reply.of_json(content)
        if self.renewal_retry_after is not None:
            reply.headers["Retry-After"] = self.renewal_retry_after
        return reply

    # ------------------------------------------------------------------ accounts (RFC 8555 section 7.3)

    def _new_account(self, signed: _Signed) -> Reply:
        payload = signed.content()
        account = self._account_of(signed.key)
        if account is not None:
            if account.status != "valid":
                raise Problem("unauthorized", f"the account is {account.status}", 401)
            return self._account_reply(account, 200)
        if payload.get("onlyReturnExisting") is True:
            raise Problem("accountDoesNotExist", "there is no account with this key")
        if self.terms_of_service is not None and payload.get("termsOfServiceAgreed") is not True:
            raise Problem("malformed", "the terms of service have not been agreed to")
        contact = contacts(payload.get("contact", []))
        eab = None if self.eab is None else self._bound(payload.get("externalAccountBinding"), signed.key)
        url = f"{self.base_url}/account/{next(self._numbers)}"
        account = Account(url=url, key=signed.key, contact=contact, eab=eab)
        self.accounts.append(account)
        return self._account_reply(account, 201)

    def _account(self, signed: _Signed) -> Reply:
        account = signed.owner()
        if account.url != self.base_url + signed.request.path:
            raise Problem("unauthorized", "this is another account", 403)
        for name, value in (signed.payload or {}).items():
            if name == "contact":
                account.contact = contacts(value)
            elif (name, value) == ("status", "deactivated"):
                account.status = "deactivated"
            elif name == "status":
                raise Problem("malformed", f"an account cannot be made {value}")
        return self._account_reply(account, 200)

    def _orders(self, signed: _Signed) -> Reply:
        account = signed.owner()
        if f"{account.url}/orders" != self.base_url + signed.request.path:
            raise Problem("unauthorized", "this is another account", 403)
        return Reply.of_json({"orders": [order.url for order in self.orders if order.account is account]})

    def _account_reply(self, account: Account, status: int) -> Reply:
        content = {"status": account.status, "contact": account.contact, "orders": f"{account.url}/orders"}
        return Reply.of_json(content, status, Location=account.url)

    def _account_of(self, key: JWK) -> Account | None:
        thumbprint = key.thumbprint()
        return next((account for account in self.accounts if account.key.thumbprint() == thumbprint), None)

    def _key_change(self, signed: _Signed) -> Reply:
        """RFC 8555 section 7.3.5."""
        account = signed.owner()
        header, payload, check = opened(json.dumps(signed.content()).encode(), ALGORITHMS)
        if "jwk" not in header or "kid" in header or "nonce" in header:
            raise Problem("malformed", "the inner signature has jwk, and neither kid nor nonce")
        key = public_key(header["jwk"])
        check(key)
        if header.get("url") != self.base_url + signed.request.path:
            raise Problem("malformed", "the inner signature is for another url")
        inner = json_object(payload)
        if inner.get("account") != account.url:
            raise Problem("malformed", "the inner signature is for another account")
        if public_key(inner.get("oldKey")).thumbprint() != account.key.thumbprint():
            raise Problem("malformed", "oldKey is not the account's key")
        other = self._account_of(key)
        if other is not None:
            raise Problem("malformed", "the key is in use", 409, headers={"Location": other.url})
        account.key = key
        return self._account_reply(account, 200)

    # ------------------------------------------------------------------ orders (RFC 8555 section 7.4)

    def _new_order(self, signed: _Signed) -> Reply:
        account, payload = signed.owner(), signed.content()
        if "notBefore" in payload or "notAfter" in payload:
            raise Problem("malformed", "notBefore and notAfter are not supported")
        asked_for = identifiers(payload.get("identifiers"), self.blocked)
        profile = payload.get("profile")
        if profile is not None and profile not in self.profiles:
            raise Problem("invalidProfile", f"there is no profile {profile}")
        order = Order(
            url=f"{self.base_url}/order/{next(self._numbers)}",
            account=account,
            identifiers=asked_for,
            authorizations=[],
            expires=self.now() + self.order_lifetime,
            profile=profile,
            replaces=payload.get("replaces"),
        )
        replaced = None if order.replaces is None else self._replaceable(order)
        order.authorizations += [self._authorization_for(account, identifier) for identifier in asked_for]
        if replaced is not None:
            replaced.replaced_by = order.url
        self.orders.append(order)
        return self._order_reply(order, 201)

    def _replaceable(self, order: Order) -> Issued:
        """RFC 9773 section 5; what else is checked is what Boulder checks."""
        issued = next((issued for issued in self.issued if issued.certificate_id == order.replaces), None)
        if issued is None:
            raise Problem("malformed", f"there is no certificate {order.replaces} to replace", 404)
        if issued.account != order.account.url:
            raise Problem("unauthorized", "the certificate to replace is another account's", 403)
        if not set(issued.names) & {name for _, name in order.identifiers}:
            raise Problem("malformed", "the certificate to replace is for none of these identifiers")
        before = next((known for known in self.orders if known.url == issued.replaced_by), None)
        replaced = before is not None and self._refreshed(before).status != "invalid"
        if self.already_replaced == "always" or (self.already_replaced == "once" and replaced):
            raise Problem("alreadyReplaced", f"{order.replaces} is replaced already", 409)
        return issued

    def _authorization_for(self, account: Account, identifier: tuple[str, str]) -> Authorization:
        if self.reuse_authorizations:
            for known in self.authorizations:
                if (known.account, known.identifier, known.status) == (account, identifier, "valid"):
                    return known
        number = next(self._numbers)
        kinds = [kind for kind in self.challenge_types if identifier[0] == "dns" or not kind.startswith("tls-sni")]
        authorization = Authorization(
            url=f"{self.base_url}/authorization/{number}",
            identifier=identifier,
            account=account,
            expires=self.now() + self.authorization_lifetime,
            challenges=[
                Challenge(
                    url=f"{self.base_url}/challenge/{number}/{position}",
                    type=kind,
                    token=secrets.token_urlsafe(32),
                    n=self.tls_sni_01_n if kind == "tls-sni-01" else None,
                )
                for position, kind in enumerate(kinds)
            ],
        )
        self.authorizations.append(authorization)
        return authorization

    def _order(self, signed: _Signed) -> Reply:
        order = self._own_order(signed, self.base_url + signed.request.path)
        if order.status == "processing":
            if order.polls_left > 0:
                order.polls_left -= 1
            else:
                self._complete(order)
        return self._order_reply(order, 200)

    def _finalize(self, signed: _Signed) -> Reply:
        order = self._own_order(signed, (self.base_url + signed.request.path).removesuffix("/finalize"))
        if order.status != "ready":
            raise Problem("orderNotReady", f"the order is {order.status}", 403)
        order.request = signing_request(signed.content().get("csr"), order, signed.key)
        order.status = "processing"
        order.polls_left = self.processing_polls
        if not order.polls_left:
            self._complete(order)
        return self._order_reply(order, 200)

    def _own_order(self, signed: _Signed, url: str) -> Order:
        order = next((order for order in self.orders if order.url == url), None)
        if order is None:
            raise Problem("malformed", f"there is no {url}", 404)
        if order.account is not signed.account:
            raise Problem("unauthorized", "the order is another account's", 403)
        return self._refreshed(order)

    def _refreshed(self, order: Order) -> Order:
        """Moves an order on that its authorizations have moved (RFC 8555 section 7.1.6)."""
        now = self.now()
        if order.status == "pending":
            statuses = {authorization.status for authorization in order.authorizations}
            if statuses == {"valid"}:
                order.status = "ready"
            elif statuses - {"pending", "valid"}:
                order.status = "invalid"
        if order.status in {"pending", "ready"} and order.expires <= now:
            order.status = "invalid"
        return order

    def _order_reply(self, order: Order, status: int) -> Reply:
        self._refreshed(order)
        content: dict[str, Any] = {
            "status": order.status,
            "expires": rfc3339(order.expires),
            "identifiers": [{"type": kind, "value": value} for kind, value in order.identifiers],
            "authorizations": [authorization.url for authorization in order.authorizations],
            "finalize": f"{order.url}/finalize",
        }
        optional = {"profile": order.profile, "replaces": order.replaces, "error": order.error}
        content.update({name: value for name, value in optional.items() if value is not None})
        if order.issued is not None:
            content["certificate"] = f"{self.base_url}/certificate/{self.issued.index(order.issued) + 1}"
        reply = Reply.of_json(content, status, Location=order.url)
        if self.poll_retry_after is not None and order.status in {"pending", "processing"}:
            reply.headers["Retry-After"] = self.poll_retry_after
        return reply

    def _complete(self, order: Order) -> None:
        """Issues, or does not."""
        if self._failing_orders:
            order.status, order.error = "invalid", self._failing_orders.popleft()
            return
        assert order.request is not None
        wrong = self._wrong.popleft() if self._wrong else Wrong()
        names = tuple(wrong.names or (value for _, value in order.identifiers))
        lifetime = self.profile_lifetimes.get(order.profile or "", self.lifetime)
        not_before = wrong.not_before or self.now() - self.backdate
        # Both ends belong to it (RFC 5280 section 4.1.2.5).
        not_after = wrong.not_after or not_before + lifetime - timedelta(seconds=1)
        key = wrong.public_key or order.request.public_key()
        certificate = self._issuer.sign(key, names, not_before, not_after)
        order.issued = Issued(
            certificate=certificate,
            names=names,
            account=order.account.url,
            order=order.url,
            profile=order.profile,
            chains=self._issuer.chains(certificate, wrong.chain),
        )
        self.issued.append(order.issued)
        order.status = "valid"

    # ------------------------------------------------------------------ challenges (RFC 8555 section 7.5)

    def _authorization(self, signed: _Signed) -> Reply:
        authorization = self._own_authorization(signed, signed.request.path.split("/")[2])
        if signed.payload:
            if signed.payload.get("status") != "deactivated":
                raise Problem("malformed", "an authorization can only be deactivated")
            authorization.status = "deactivated"
        content = {
            "status": authorization.status,
            "expires": rfc3339(authorization.expires),
            "identifier": {"type": authorization.identifier[0], "value": authorization.identifier[1]},
            "challenges": list(map(challenge_object, authorization.challenges)),
        }
        return self._polled(Reply.of_json(content), authorization)

    def _challenge(self, signed: _Signed) -> Reply:
        authorization = self._own_authorization(signed, signed.request.path.split("/")[2])
        url = self.base_url + signed.request.path
        challenge = next((challenge for challenge in authorization.challenges if challenge.url == url), None)
        if challenge is None:
            raise Problem("malformed", f"there is no {url}", 404)
        if signed.payload is not None and (authorization.status, challenge.status) == ("pending", "pending"):
            challenge.status = "processing"
            self._start_looking(authorization, challenge)
        reply = Reply.of_json(challenge_object(challenge))
        reply.headers["Link"] = f'<{authorization.url}>;rel="up"'
        return self._polled(reply, authorization)

    def _polled(self, reply: Reply, authorization: Authorization) -> Reply:
        if self.poll_retry_after is not None and authorization.status == "pending":
            reply.headers["Retry-After"] = self.poll_retry_after
        return reply

    def _own_authorization(self, signed: _Signed, number: str) -> Authorization:
        url = f"{self.base_url}/authorization/{number}"
        authorization = next((known for known in self.authorizations if known.url == url), None)
        if authorization is None:
            raise Problem("malformed", f"there is no {url}", 404)
        if authorization.account is not signed.account:
            raise Problem("unauthorized", "the authorization is another account's", 403)
        if authorization.status in {"pending", "valid"} and authorization.expires <= self.now():
            authorization.status = "expired" if authorization.status == "valid" else "invalid"
        return authorization

    def _start_looking(self, authorization: Authorization, challenge: Challenge) -> None:
        if self.validate is False:
            self._settle(authorization, challenge, None)
            return
        arguments = (authorization, challenge)
        thread = threading.Thread(target=self._look, args=arguments, name="validation", daemon=True)
        self._validating.append(thread)
        thread.start()

    def _look(self, authorization: Authorization, challenge: Challenge) -> None:
        """In a thread of its own; nothing is locked meanwhile."""
        key_authorization = f"{challenge.token}.{self.thumbprint(authorization.account)}"
        failure = None
        try:
            if callable(self.validate):
                self.validate(authorization, challenge, key_authorization)
            else:
                self._look_from_everywhere(authorization.identifier[1], challenge, key_authorization)
        except CheckFailed as error:
            failure = Problem(error.type, error.detail, 400 if error.type in {"connection", "tls"} else 403).document
        except Exception as error:
            self.bugs.append(error)
            failure = Problem("serverInternal", "a bug in the test", 500).document
        with self._lock:
            self._settle(authorization, challenge, failure)

    def _look_from_everywhere(self, identifier: str, challenge: Challenge, key_authorization: str) -> None:
        with ThreadPoolExecutor(self.perspectives) as perspectives:
            looking = [
                perspectives.submit(self._look_from_one, identifier, challenge, key_authorization)
                for _ in range(self.perspectives)
            ]
        for looked in looking:
            looked.result()

    def _look_from_one(self, identifier: str, challenge: Challenge, key_authorization: str) -> None:
        places = self.http if challenge.type == "http-01" else self.tls
        failure = CheckFailed("connection", "the test has not said where to look: AcmeStub(tls=..., http=...)")
        for host, port in places:
            try:
                if challenge.type == "tls-alpn-01":
                    check_tls_alpn_01(host, port, identifier, key_authorization)
                elif challenge.type == "http-01":
                    tls_port = self.tls[0][1] if self.tls else None
                    check_http_01(host, port, identifier, challenge.token, key_authorization, tls_port=tls_port)
                elif challenge.type == "tls-sni-01":
                    check_tls_sni_01(host, port, key_authorization, n=challenge.n or 1)
                elif challenge.type == "tls-sni-02":
                    check_tls_sni_02(host, port, challenge.token, key_authorization)
                else:
                    raise AssertionError(f"nobody here can look at {challenge.type}")
                return
            except CheckFailed as error:
                failure = error
                if error.type not in {"connection", "tls"}:
                    break
        raise failure

    def _settle(self, authorization: Authorization, challenge: Challenge, failure: dict[str, Any] | None) -> None:
        valid = failure is None
        if self._failing_authorizations:
            valid, failure = False, self._failing_authorizations.popleft()
        challenge.status = authorization.status = "valid" if valid else "invalid"
        challenge.error = failure
        if valid:
            challenge.validated = self.now()
        for order in self.orders:
            if authorization in order.authorizations:
                self._refreshed(order)

    # ------------------------------------------------------------------ certificates

    def _certificate(self, signed: _Signed) -> Reply:
        number, _, chain = signed.request.path.removeprefix("/certificate/").partition("/")
        position, alternate = int(number) - 1, int(chain or 0)
        if position >= len(self.issued) or alternate >= len(self.issued[position].chains):
            raise Problem("malformed", f"there is no {signed.request.path}", 404)
        issued = self.issued[position]
        if signed.account is None or issued.account != signed.account.url:
            raise Problem("unauthorized", "the certificate is another account's", 403)
        reply = Reply(headers={"Content-Type": PEM_CHAIN}, body=issued.chains[alternate])
        others = [
            f'<{self.base_url}/certificate/{number}{f"/{other}" if other else ""}>;rel="alternate"'
            for other in range(len(issued.chains))
            if other != alternate
        ]
        if others:
            reply.headers["Link"] = ", ".join(others)
        return reply

    def _revoke_certificate(self, signed: _Signed) -> Reply:
        """RFC 8555 section 7.6."""
        payload = signed.content()
        der = decoded(payload.get("certificate"))
        issued = next((known for known in self.issued if known.certificate.public_bytes(Encoding.DER) == der), None)
        if issued is None:
            raise Problem("malformed", "the certificate is not from here", 404)
        if signed.account is None:
            allowed = spki(issued.certificate.public_key()) == spki(signed.key.key)
        else:
            proven = {
                known.identifier[1]
                for known in self.authorizations
                if known.account is signed.account and known.status == "valid"
            }
            allowed = issued.account == signed.account.url or set(issued.names) <= proven
        if not allowed:
            raise Problem("unauthorized", "neither the certificate's key nor an account that may", 403)
        if issued.revoked is not None:
            raise Problem("alreadyRevoked", "the certificate is revoked already")
        reason = payload.get("reason", 0)
        if reason not in _REVOCATION_REASONS:
            raise Problem("badRevocationReason", f"no reason to revoke: {reason}")
        issued.revoked = reason
        return Reply()


_Call = Callable[[], object]


@dataclass(frozen=True)
class _Signed:
    """A request whose signature, url and nonce are right. payload: None for POST-as-GET."""

    request: Request
    payload: dict[str, Any] | None
    key: JWK
    account: Account | None

    def content(self) -> dict[str, Any]:
        if self.payload is None:
            raise Problem("malformed", "there is no payload")
        return self.payload

    def owner(self) -> Account:
        assert self.account is not None
        return self.account


def _places(places: Place | Sequence[Place]) -> list[Place]:
    if not places:
        return []
    return [places] if isinstance(places[0], str) else list(places)  # type: ignore[list-item]


def _document(error: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(error, str):
        return Problem(error, f"scripted {error}", 403).document
    return None if error is None else dict(error)


_RESOURCES = {
    "directory": r"/directory",
    "newNonce": r"/new-nonce",
    "newAccount": r"/new-account",
    "newOrder": r"/new-order",
    "revokeCert": r"/revoke-cert",
    "keyChange": r"/key-change",
    "renewalInfo": r"/renewal-info/[^/]+",
    "account": r"/account/[0-9]+",
    "orders": r"/account/[0-9]+/orders",
    "order": r"/order/[0-9]+",
    "finalize": r"/order/[0-9]+/finalize",
    "authorization": r"/authorization/[0-9]+",
    "challenge": r"/challenge/[0-9]+/[0-9]+",
    "certificate": r"/certificate/[1-9][0-9]*(/[1-9][0-9]*)?",
}


def _resource(path: str) -> str:
    return next((name for name, pattern in _RESOURCES.items() if re.fullmatch(pattern, path, re.ASCII)), "unknown")


def _method_is(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise Problem("malformed", f"{request.resource} takes {' and '.join(methods)}", 405)


def _skimmed(body: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """Payload and account of a signed request for the record, whether or not it is valid."""
    try:
        outer = json.loads(body)
        header = json.loads(decoded(outer["protected"]))
        payload = decoded(outer["payload"])
        return json.loads(payload) if payload else None, header.get("kid")
    except (ValueError, KeyError, TypeError, AttributeError, Problem):
        return None, None
