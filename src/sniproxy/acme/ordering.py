"""One order, from newOrder to a certificate (RFC 8555 section 7.4), or from wherever an earlier attempt had got to.

    pending → each authorization answered → ready → finalize → processing → valid → the certificate, checked

URL and key of an order are on disk before it is finalized: a process that dies while the CA issues takes the
certificate out of the same order at its next start, and nothing is issued twice.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cryptography.x509.oid import NameOID

from sniproxy.acme.challenges import choose, key_authorization
from sniproxy.acme.resources import AuthorizationStatus, ChallengeStatus, OrderStatus
from sniproxy.acme.store import PendingOrder
from sniproxy.bundle import check_issued, generate_key, signing_request, utc_now
from sniproxy.errors import AcmeError, BadCertificate, OrderFailed, Problem, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from cryptography import x509

    from sniproxy.acme.client import Client
    from sniproxy.acme.resources import Authorization, Challenge, Order
    from sniproxy.acme.responder import Responder
    from sniproxy.bundle import Bundle, PrivateKey
    from sniproxy.model import CertificateCounts

ORDER_SECONDS = 600.0
"""For an order, all of it. Public CAs take seconds, and say so where they take longer; what is not done by then is
looked at again after the back-off, and goes on where it was."""

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.25, 8.0
"""Between two looks at an object that is being worked on, where the CA does not say: a test CA is done at once, and a
public one should not be asked much more than ten times a minute."""

LONGEST_RETRY_AFTER_SECONDS = 120.0
"""A longer Retry-After of an order is not waited for in place: the order is left, and gone on with later. Of an
authorization it is, as whoever leaves takes the answer away that the CA is about to look at."""

_COMMON_NAME = NameOID.COMMON_NAME
_CHANGED_MINDS = frozenset((400, 403, 404, 409))

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One `[[certificates]]` entry. `challenges` are types, in order of preference."""

    name: str
    names: tuple[str, ...]
    key_type: str
    challenges: tuple[str, ...]
    profile: str = ""
    preferred_chain: str = ""


class OrderFiles(Protocol):
    """Where the order under way is kept: `CertificateFiles`, or `Nowhere`. All of it may block."""

    def order(self) -> PendingOrder | None:
        """The order under way."""

    def save_order(self, order: PendingOrder) -> None:
        """Keeps it."""

    def forget_order(self) -> None:
        """It has come to its end."""


class Nowhere:
    """Keeps nothing: for dry runs."""

    def order(self) -> PendingOrder | None:
        """None is under way."""
        return None

    def save_order(self, order: PendingOrder) -> None:
        """Not kept."""

    def forget_order(self) -> None:
        """Not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """One attempt at one certificate.

    replaces: the certificate id of the one that this is to follow (RFC 9773 section 5), None where there is none.
    avoid: the type of challenge that failed last; it goes to the end of the preferences.
    last_try: an order that does not come to an end in its time is not gone on with later, but given up.
    tell: is told of each step, in words. now: the time of day.
    """

    client: Client
    responder: Responder
    wanted: Wanted
    directory: str
    files: OrderFiles
    counts: CertificateCounts
    tell: Callable[[str], None]
    replaces: str | None = None
    avoid: str = ""
    last_try: bool = False
    now: Callable[[], datetime] = utc_now

    async def obtain(self) -> Bundle:
        """The certificate. Raises AcmeError, StoreError; BadCertificate where it is not what was ordered.

        The order is kept in `files` for as long as something may still come of it; a caller that has stored the
        certificate forgets it.
        """
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                pending, order = await self._under_way() or await self._begun()
                return await self._to_the_end(order, pending.key)
        except TimeoutError:
            if self.last_try:
                await asyncio.to_thread(self.files.forget_order)
            given_up = "; there will be another one" if self.last_try else ""
            raise OrderFailed(f"the CA was not done with the order after {ORDER_SECONDS:g} s{given_up}") from None

    # ------------------------------------------------------------------ begin

    async def _under_way(self) -> tuple[PendingOrder, Order] | None:
        """The order of an earlier attempt, if it is for the same and may still come to something."""
        pending = await asyncio.to_thread(self.files.order)
        if pending is None:
            return None
        order = None
        if is_for(pending, self.wanted, self.directory):
            try:
                order = await self.client.order(pending.url)
            except Problem as problem:
                if problem.status not in _CHANGED_MINDS:
                    raise
        if order is None or order.status is OrderStatus.INVALID:
            await asyncio.to_thread(self.files.forget_order)
            return None
        self.tell(f"going on with an order that is {order.status}")
        return pending, order

    async def _begun(self) -> tuple[PendingOrder, Order]:
        # The key first: should it be RSA, making it takes a while, and an order waits for nobody.
        key = await asyncio.to_thread(generate_key, self.wanted.key_type)
        order = await self._new_order()
        if order.status is OrderStatus.VALID:
            raise OrderFailed("the CA answers with an order that is done already, for a key that is not ours")
        pending = PendingOrder(
            url=order.url,
            key=key,
            names=self.wanted.names,
            directory=self.directory,
            profile=self.wanted.profile,
            replaces=self.replaces,
        )
        await asyncio.to_thread(self.files.save_order, pending)
        self.tell(f"ordered from {self.directory}")
        return pending, order

    async def _new_order(self) -> Order:
        wanted = self.wanted
        try:
            return await self.client.new_order(wanted.names, profile=wanted.profile, replaces=self.replaces)
        except Problem as problem:
            if self.replaces is None or problem.status not in _CHANGED_MINDS:
                raise
            # An order with `replaces` fails for ever once another has replaced the same one: a crash is enough.
            log.info("certificate %s: the CA does not take `replaces` (%s), ordering without", wanted.name, problem)
            return await self.client.new_order(wanted.names, profile=wanted.profile, replaces=None)

    # ------------------------------------------------------------------ to its end

    async def _to_the_end(self, order: Order, key: PrivateKey) -> Bundle:
        """Does what the order's status asks for, until there is a certificate."""
        polls = _poll_delays()
        while True:
            match order.status:
                case OrderStatus.PENDING:
                    await self._authorize_all(order)
                    order = await self._changed(order, polls)
                case OrderStatus.READY:
                    order = await self._finalized(order, key)
                    if order.status is OrderStatus.READY:  # the CA has not made up its mind
                        await self._pause(order.retry_after, polls)
                case OrderStatus.PROCESSING:
                    await self._pause(order.retry_after, polls)
                    order = await self.client.order(order.url)
                case OrderStatus.VALID:
                    return await self._fetched(order, key)
                case OrderStatus.INVALID:
                    await asyncio.to_thread(self.files.forget_order)
                    raise OrderFailed(f"the order is invalid: {order.error or 'the CA does not say why'}")

    async def _changed(self, order: Order, polls: Iterator[float]) -> Order:
        """The order once it is no longer pending: a CA may take a moment to see that the last name is validated."""
        while True:
            order = await self.client.order(order.url)
            if order.status is not OrderStatus.PENDING:
                return order
            await self._pause(order.retry_after, polls)

    async def _finalized(self, order: Order, key: PrivateKey) -> Order:
        request = await asyncio.to_thread(signing_request, key, self.wanted.names)
        try:
            return await self.client.finalize(order, request)
        except Problem as problem:
            if problem.code == "orderNotReady":  # it is being worked on already: an earlier attempt had got this far
                return await self.client.order(order.url)
            if problem.status in _CHANGED_MINDS:
                await asyncio.to_thread(self.files.forget_order)
            raise

    async def _fetched(self, order: Order, key: PrivateKey) -> Bundle:
        if order.certificate is None:
            await asyncio.to_thread(self.files.forget_order)
            raise OrderFailed("the CA says that the certificate is there, and not where")
        try:
            # Chains that nobody asked for are not fetched: one that cannot be had would be in the way.
            chains = await self.client.certificate(order.certificate, alternates=bool(self.wanted.preferred_chain))
            chain = preferred(chains, self.wanted.preferred_chain)
            return await asyncio.to_thread(check_issued, key, chain, self.wanted.names, self.now())
        except BadCertificate:
            await asyncio.to_thread(self.files.forget_order)
            raise
        except Problem as problem:
            if problem.status in _CHANGED_MINDS:  # it does not have it any more: asking again would be for ever
                await asyncio.to_thread(self.files.forget_order)
            raise

    async def _pause(
        self, retry_after: float | None, polls: Iterator[float], longest: float = LONGEST_RETRY_AFTER_SECONDS
    ) -> None:
        seconds = next(polls)
        if retry_after is not None:
            if retry_after > longest:
                raise OrderFailed("the CA is at it, and asks to be left alone for a while", retry_after=retry_after)
            seconds = max(retry_after, FIRST_POLL_SECONDS)
        await asyncio.sleep(seconds)

    # ------------------------------------------------------------------ authorizations

    async def _authorize_all(self, order: Order) -> None:
        """Answers every authorization, all at the same time. Raises what went wrong with the first, in words of all."""
        results = await asyncio.gather(*map(self._authorize, order.authorizations), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if not errors:
            return
        for error in errors:
            if not isinstance(error, AcmeError):
                raise error
        failed = [error for error in errors if isinstance(error, ValidationFailed)]
        if failed:
            await asyncio.to_thread(self.files.forget_order)
            raise ValidationFailed("; ".join(map(str, failed)), challenge=failed[0].challenge)
        raise errors[0]

    async def _authorize(self, url: str) -> None:
        """One name: valid already, or proven by one challenge, which is answered until the CA has made up its mind."""
        authorization = await self.client.authorization(url)
        if authorization.status is AuthorizationStatus.VALID:
            return
        identifier = authorization.identifier
        if authorization.status is not AuthorizationStatus.PENDING:
            raise ValidationFailed(f"{identifier}: {_why(authorization)}")
        challenge = self._chosen(authorization)
        self.tell(f"{identifier}: answering {challenge.type}")
        answer = key_authorization(challenge.token, self.client.thumbprint)
        with self.responder.answering(challenge.type, identifier, challenge.token, answer, challenge.iterations):
            try:
                if challenge.status is ChallengeStatus.PENDING:
                    await self.client.answer(challenge)
                authorization = await self._decided(authorization, challenge)
            except BaseException:
                self.counts.challenge(challenge.type, "error")
                raise
        valid = authorization.status is AuthorizationStatus.VALID
        self.counts.challenge(challenge.type, "valid" if valid else "invalid")
        if not valid:
            raise ValidationFailed(f"{identifier}: {_why(authorization, challenge)}", challenge=challenge.type)
        self.tell(f"{identifier}: valid")

    def _chosen(self, authorization: Authorization) -> Challenge:
        preferences = sorted(self.wanted.challenges, key=lambda kind: kind == self.avoid)
        left = [challenge for challenge in authorization.challenges if challenge.status is not ChallengeStatus.INVALID]
        challenge = choose(left, preferences)
        if challenge is None:
            offered = ", ".join(sorted(challenge.type for challenge in left)) or "none"
            raise ValidationFailed(
                f"{authorization.identifier}: the CA offers {offered}, and acme.challenges has {', '.join(preferences)}"
            )
        return challenge

    async def _decided(self, authorization: Authorization, challenge: Challenge) -> Authorization:
        """The authorization once it is no longer pending, or the challenge has failed."""
        polls = _poll_delays()
        while True:
            await self._pause(authorization.retry_after, polls, ORDER_SECONDS)
            authorization = await self.client.authorization(authorization.url)
            if authorization.status is not AuthorizationStatus.PENDING or _has_failed(authorization, challenge):
                return authorization


def _has_failed(authorization: Authorization, tried: Challenge) -> bool:
    """Whether a challenge has failed whose authorization is still pending, and stays so until it expires.

    step-ca's do; there a challenge that may be answered again is pending as well, with the error of the last time.
    Where a CA tries again by itself it is `processing` (RFC 8555 section 8.2).
    """
    return any(
        challenge.status is ChallengeStatus.INVALID
        or (challenge.status is ChallengeStatus.PENDING and challenge.error is not None)
        for challenge in authorization.challenges
        if challenge.url == tried.url
    )


def is_for(order: PendingOrder, wanted: Wanted, directory: str) -> bool:
    """Whether an order that is under way is for what is wanted now."""
    mine = (directory, sorted(wanted.names), wanted.profile)
    return mine == (order.directory, sorted(order.names), order.profile)


def preferred(chains: Sequence[tuple[x509.Certificate, ...]], issuer: str) -> tuple[x509.Certificate, ...]:
    """The chain whose topmost certificate was issued by this common name; the first where none was."""
    for chain in chains:
        names = chain[-1].issuer.get_attributes_for_oid(_COMMON_NAME) if issuer else []
        if any(name.value == issuer for name in names):
            return chain
    return chains[0]


def _poll_delays() -> Iterator[float]:
    delay = FIRST_POLL_SECONDS
    while True:
        yield delay
        delay = min(delay * 1.5, LONGEST_POLL_SECONDS)


def _why(authorization: Authorization, tried: Challenge | None = None) -> str:
    """In the CA's words, where it has any: of the challenge that was tried, or of any."""
    for challenge in authorization.challenges:
        if challenge.error is not None and (tried is None or challenge.url == tried.url):
            return f"{challenge.type}: {challenge.error}"
    what = f"{tried.type}: " if tried is not None else ""
    if authorization.status is AuthorizationStatus.PENDING:
        return f"{what}the challenge has failed, and the CA does not say why"
    return f"{what}the authorization is {authorization.status}, and the CA does not say why"
