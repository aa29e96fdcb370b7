"""The story of one certificate, from due to deployed.

    due → lock → look again → order → answer → finalize → store → deliver → verify → recorded

`ManagedCertificate.keep` goes round for as long as the program runs. What it knows is on disk, so each round begins
where the last one ended, in whichever process that was. `ordering` has order to finalize; `policy.renewal` says when.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import random
from typing import TYPE_CHECKING, Protocol

from sniproxy.acme.account import is_unknown_account
from sniproxy.acme.locking import held
from sniproxy.acme.ordering import Ordering, Wanted, is_for
from sniproxy.acme.store import CertificateState
from sniproxy.bundle import Bundle, utc_now
from sniproxy.errors import AcmeError, DeliveryError, StoreError, ValidationFailed
from sniproxy.model import CertificateCounts, CertificateStatus
from sniproxy.policy import renewal
from sniproxy.policy.renewal import AriWindow, Reason, Validity

if TYPE_CHECKING:
    from collections.abc import Callable

    from sniproxy.acme.account import Account
    from sniproxy.acme.client import Client
    from sniproxy.acme.responder import Responder
    from sniproxy.acme.store import CertificateFiles, PendingOrder, Store
    from sniproxy.bundle import Leaf

TICK = timedelta(seconds=30)
"""The clock is looked at this often at least: after a suspend, or a clock that was set, all is as late as that."""

RECONCILE = timedelta(minutes=2)
"""Between two looks whether what was delivered is still there, in memory, and served: a handshake and a command."""

DELIVERY_BACK_OFF_SECONDS = (2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""After a delivery that failed; the last one for all that follow. HAProxy is on this machine, and it costs the CA
nothing, so this is a matter of seconds: a restart of HAProxy should not leave an old certificate for long."""

AFTER_A_BUG = timedelta(minutes=1)

TRIES_OF_AN_ORDER = 3
"""Failures in a row after which an order that does not come to an end is not gone on with any more: two hours, or what
the lifetime leaves time for. CAs forget theirs after a week, and there are certificates that have less left."""

SKEW_SECONDS = 120.0
"""A clock that is off by more is told of: certificates would seem to begin or end at other times than they do."""

OF_TIME = frozenset((Reason.ARI, Reason.LIFETIME, Reason.EXPIRING))

log = logging.getLogger(__name__)


class Delivers(Protocol):
    """What brings bundles to where they are served (haproxy.delivery.Delivery)."""

    async def deliver(self, name: str, bundle: Bundle) -> None:
        """Brings it there and proves that it is served. Raises DeliveryError."""

    async def differences(self, name: str, bundle: Bundle) -> list[str]:
        """What is not as a delivery leaves it; empty when all of it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom to tell: of a certificate that is new and served, and of one that could not be obtained or delivered.

    Without [haproxy] one is where it belongs as soon as it is stored.
    """

    renewed: Callable[[CertificateStatus], None]
    failed: Callable[[CertificateStatus], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What all certificates share. `delivery` is None where they stay in the store.

    orders: how many are ordered at the same time. now, chance: the time of day, and a number from 0 up to 1.
    """

    store: Store
    account: Account
    responder: Responder
    delivery: Delivers | None
    reports: Reports
    counts: CertificateCounts
    orders: asyncio.Semaphore
    now: Callable[[], datetime] = utc_now
    chance: Callable[[], float] = random


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What came of asking for one certificate now.

    result: "renewed", "not_due", "failed" or "not_deployed"; the last is of a certificate that is there, new or not,
    and is not served.
    """

    status: CertificateStatus
    result: str
    error: str | None = None


class ManagedCertificate:
    """One `[[certificates]]` entry and all that is done for it."""

    def __init__(self, wanted: Wanted, means: Means) -> None:
        self.wanted = wanted
        self._means = means
        self._files: CertificateFiles = means.store.certificate(wanted.name)
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()
        self._tell: Callable[[str], None] = self._log
        self._bundle: Bundle | None = None
        self._broken = False  # there are files, and none of them is a bundle
        self._state: CertificateState = CertificateState()
        self._unsaved = False  # the disk did not take the state: what is in memory holds
        self._unfinished = False  # an order of an earlier start is under way
        self._fetched = False  # and its certificate is in the store already
        self._differs = True  # what is in HAProxy is not known to be this one
        self._delivery_failures = 0
        self._deliver_at = self._reconcile_at = means.now()
        self._after_bug: datetime | None = None

    # ------------------------------------------------------------------ round and round

    async def keep(self) -> None:
        """Does whatever is due, whenever it is, until cancelled."""
        while True:
            try:
                async with self._busy:
                    await self._read()
                    await self._round()
            except (StoreError, OSError) as error:
                log.error("certificate %s: %s", self.wanted.name, error)  # noqa: TRY400  no bug of ours
                self._after_bug = self._means.now() + AFTER_A_BUG
            except Exception:
                log.exception("certificate %s: a bug in sniproxy, please report it", self.wanted.name)
                self._after_bug = self._means.now() + AFTER_A_BUG
            await self._until_next()

    async def look(self) -> None:
        """Reads what is on disk, so that `status` has it; what cannot be read is for `keep` to tell of."""
        try:
            async with self._busy:
                await self._read()
        except (StoreError, OSError):
            pass

    async def _until_next(self) -> None:
        self._wake.clear()
        now = self._means.now()
        seconds = min(max((self._next(now) - now).total_seconds(), 0.05), TICK.total_seconds())
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _next(self, now: datetime) -> datetime:
        """When there is something to do, as far as is known."""
        if self._after_bug is not None and self._after_bug > now:
            return self._after_bug
        instants = [self._attempt_at(now)]
        if self._bundle is not None:
            instants.append(self._ari_at(now))
            if self._means.delivery is not None:
                instants.append(self._deliver_at if self._differs else self._reconcile_at)
        return min(instants)

    async def _round(self) -> None:
        now = self._means.now()
        if self._bundle is not None and self._ari_at(now) <= now:
            await self._ask_ari()
        reason = self._due(self._means.now())
        if reason is not None and not renewal.still_waits(self._state.next_attempt, self._means.now()):
            await self._renew(force=False)
        await self._bring()

    async def _bring(self) -> None:
        """Sees to it that HAProxy has what the store has."""
        if self._bundle is None:
            return
        if self._means.delivery is None:
            await self._record_served(self._bundle)  # the store is where it belongs
            return
        now = self._means.now()
        # A clock that was set back must not put this off.
        if not self._differs and (self._reconcile_at <= now or self._reconcile_at > now + RECONCILE):
            await self._reconcile()
        longest = timedelta(seconds=DELIVERY_BACK_OFF_SECONDS[-1] * 2)
        if self._differs and (self._deliver_at <= now or self._deliver_at > now + longest):
            await self._deliver()

    # ------------------------------------------------------------------ due

    async def _read(self) -> None:
        """What is on disk, which another process may have changed. Raises StoreError."""
        if self._unsaved:
            await self._save_state()
        before = self._bundle
        self._bundle, self._broken, state, order = await asyncio.to_thread(self._from_disk)
        self._unfinished = order is not None and is_for(order, self.wanted, self._means.account.settings.directory)
        self._fetched = self._unfinished and _is_of(self._bundle, order)
        if not self._unsaved:
            self._state = state
        serial = self._bundle.leaf.serial if self._bundle is not None else None
        if before is None or serial != before.leaf.serial:
            self._differs = True
            self._deliver_at = self._means.now()

    def _from_disk(self) -> tuple[Bundle | None, bool, CertificateState, PendingOrder | None]:
        order = self._files.order()  # first: it is there until its certificate is
        return *current(self._files), self._files.state(), order

    def _due(self, now: datetime) -> Reason | None:
        """Why there has to be another certificate now; None when there need not be."""
        reason, at = self._plan(now)
        if at <= now:
            return reason
        # Somebody has asked for it, and the program ended before it came.
        return Reason.FORCED if self._unfinished else None

    def _plan(self, now: datetime) -> tuple[Reason, datetime]:
        directory = self._means.account.settings.directory
        return planned(self.wanted, self._bundle, self._state, directory, now, broken=self._broken)

    def _attempt_at(self, now: datetime) -> datetime:
        """When a certificate is ordered next: when it is due, and no earlier than the back-off has it."""
        due = now if self._unfinished else self._plan(now)[1]
        waits = self._state.next_attempt
        return max(due, waits) if waits is not None and renewal.still_waits(waits, now) else due

    # ------------------------------------------------------------------ renewal information

    def _ari_at(self, now: datetime) -> datetime:
        """When the CA is asked next when to renew (RFC 9773 section 4.3)."""
        assert self._bundle is not None
        state, leaf = self._state, self._bundle.leaf
        if leaf.ari_certificate_id is None or leaf.not_after <= now:
            return datetime.max.replace(tzinfo=now.tzinfo)
        if state.ari_certificate_id != leaf.ari_certificate_id or state.ari_next_check is None:
            return now
        # Not more than a day ahead is ever written down: anything else is a clock that was set back.
        return state.ari_next_check if state.ari_next_check <= now + renewal.LONGEST_ARI_POLL else now

    async def _ask_ari(self) -> None:
        """Asks the CA when to renew, and draws the instant once for each answer."""
        assert self._bundle is not None
        leaf, state, means = self._bundle.leaf, self._state, self._means
        lifetime = validity(leaf).lifetime
        identity = leaf.ari_certificate_id
        assert identity is not None
        known = state.ari_certificate_id == identity
        failures = state.ari_failures if known else 0
        try:
            client = await means.account.client()
            if (await client.directory()).renewal_info is None:
                delay = renewal.ari_poll_delay(None, 0, lifetime)
                state = self._without_ari(identity)
            else:
                answer = await client.renewal_info(identity)
                delay = renewal.ari_poll_delay(answer.retry_after, 0, lifetime)
                window = AriWindow(start=answer.start, end=answer.end, explanation_url=answer.explanation_url)
                state = self._with_ari(window, known=known)
        except (AcmeError, StoreError) as error:
            log.info("certificate %s: no renewal information: %s", self.wanted.name, error)
            retry_after = error.retry_after if isinstance(error, AcmeError) else None
            delay = renewal.ari_poll_delay(retry_after, failures + 1, lifetime)
            state = replace(state if known else self._without_ari(identity), ari_failures=failures + 1)
        self._state = replace(state, ari_certificate_id=identity, ari_next_check=means.now() + delay)
        await self._save_state()

    def _without_ari(self, identity: str) -> CertificateState:
        return replace(
            self._state,
            ari_certificate_id=identity,
            ari_start=None,
            ari_end=None,
            ari_at=None,
            ari_explanation_url="",
            ari_checked_at=None,
            ari_failures=0,
        )

    def _with_ari(self, window: AriWindow, *, known: bool) -> CertificateState:
        """The state with this answer."""
        state, now = self._state, self._means.now()
        if known and state.ari_at is not None and (state.ari_start, state.ari_end) == (window.start, window.end):
            return replace(state, ari_checked_at=now, ari_failures=0)
        at = renewal.choose_instant(window, self._means.chance())
        if window.explanation_url:
            log.warning("certificate %s: the CA moved its renewal, see %s", self.wanted.name, window.explanation_url)
        return replace(
            state,
            ari_start=window.start,
            ari_end=window.end,
            ari_at=at,
            ari_explanation_url=window.explanation_url,
            ari_checked_at=now,
            ari_failures=0,
        )

    # ------------------------------------------------------------------ lock, look again, order, store

    async def _renew(self, *, force: bool) -> bool:
        """Gets another certificate into the store; False where that failed, which is then recorded.

        force: somebody has asked for it, due or not.
        """
        try:
            async with self._means.orders:
                obtained = await self._obtain_locked(force=force)
        except (AcmeError, StoreError, OSError) as error:
            await self._record_failure(error)
            return False
        if obtained is not None:
            self._means.counts.renewal(self.wanted.name, "success")
            leaf = obtained.leaf
            self._tell(f"issued by {leaf.issuer}: serial {leaf.serial}, until {leaf.not_after:%Y-%m-%d %H:%M:%S} UTC")
        return True

    async def _obtain_locked(self, *, force: bool) -> Bundle | None:
        """The new bundle; None where another process has been here meanwhile, and there is nothing left to do."""
        async with held(self._files.lock(), "the same certificate"):
            await self._read()
            reason = Reason.FORCED if force else self._due(self._means.now())
            if reason is None:
                return None
            self._tell(f"due ({reason})")
            bundle = self._bundle if self._fetched else None
            if bundle is None:
                bundle = await self._obtain()
                # The new generation first: whatever comes next, it is never lost, and never ordered again.
                await asyncio.to_thread(self._files.save, bundle)
            self._record_success(bundle, reason)
            await self._save_state()
            await asyncio.to_thread(self._files.forget_order)
            await self._read()
            return bundle

    async def _obtain(self) -> Bundle:
        account = self._means.account
        client = await account.client()
        try:
            return await self._ordered(client)
        except AcmeError as error:
            if not is_unknown_account(error):
                raise
        self._tell("the CA does not know the account: making it again")
        await account.unknown(client)
        return await self._ordered(await account.client())

    async def _ordered(self, client: Client) -> Bundle:
        means, state = self._means, self._state
        directory = await client.directory()
        if client.clock_skew is not None and abs(client.clock_skew) > SKEW_SECONDS:
            log.warning("the CA's clock is %+.0f s from this machine's: is ours right?", client.clock_skew)
        return await Ordering(
            client=client,
            responder=means.responder,
            wanted=self.wanted,
            directory=means.account.settings.directory,
            files=self._files,
            counts=means.counts,
            tell=self._tell,
            replaces=self._replaces() if directory.renewal_info is not None else None,
            avoid=state.failed_challenge,
            last_try=state.failures >= TRIES_OF_AN_ORDER,
            now=means.now,
        ).obtain()

    def _replaces(self) -> str | None:
        """The certificate that the next one follows; only a CA that issued it can know it."""
        if self._bundle is None or self._state.directory != self._means.account.settings.directory:
            return None
        return self._bundle.leaf.ari_certificate_id

    def _record_success(self, bundle: Bundle, reason: Reason) -> None:
        directory, now = self._means.account.settings.directory, self._means.now()
        self._state = replace(
            self._without_ari(""),
            names=self.wanted.names,
            directory=directory,
            failures=0,
            next_attempt=None,
            last_attempt=now,
            last_error=None,
            failed_challenge="",
            issued_at=now,
            issued_reason=reason.value,
        )
        if renewal.plan(validity(bundle.leaf), None).is_due(now):
            log.warning("certificate %s: the new one is due again at once: is the clock right?", self.wanted.name)

    async def _record_failure(self, error: Exception) -> None:
        means, state = self._means, self._state
        failures = state.failures + 1
        leaf = self._bundle.leaf if self._bundle is not None else None
        delay = renewal.back_off(
            failures,
            means.chance(),
            lifetime=validity(leaf).lifetime if leaf is not None else None,
            retry_after=error.retry_after if isinstance(error, AcmeError) else None,
        )
        now = means.now()
        self._state = replace(
            state,
            failures=failures,
            last_attempt=now,
            last_error=_words(error),
            next_attempt=now + delay,
            failed_challenge=error.challenge if isinstance(error, ValidationFailed) else state.failed_challenge,
        )
        means.counts.renewal(self.wanted.name, "failure")
        self._tell(f"failed: {_words(error)}")
        log.error("certificate %s: %s; next attempt in %s", self.wanted.name, _words(error), _duration(delay))
        await self._save_state()
        means.reports.failed(self.status())

    async def _save_state(self) -> None:
        """Where that cannot be written it holds until the program ends, and the disk's trouble is told of."""
        try:
            await asyncio.to_thread(self._files.save_state, self._state)
            self._unsaved = False
        except (StoreError, OSError) as error:
            self._unsaved = True
            log.error("certificate %s: %s", self.wanted.name, error)  # noqa: TRY400  no bug of ours

    # ------------------------------------------------------------------ deliver, verify, record

    async def _deliver(self) -> str | None:
        """Brings the bundle to HAProxy; returns what went wrong, None when it is proven to be served."""
        bundle, means = self._bundle, self._means
        assert bundle is not None
        assert means.delivery is not None
        try:
            await means.delivery.deliver(self.wanted.name, bundle)
        except (DeliveryError, OSError) as error:
            await self._record_undelivered(_words(error))
            return _words(error)
        self._differs = False
        self._delivery_failures = 0
        self._reconcile_at = means.now() + RECONCILE
        await self._record_served(bundle)
        return None

    async def _record_served(self, bundle: Bundle) -> None:
        serial = bundle.leaf.serial
        is_new = self._state.deployed_serial != serial
        if is_new or self._state.delivery_error is not None:
            now = self._means.now()
            self._state = replace(self._state, deployed_serial=serial, deployed_at=now, delivery_error=None)
            if self._means.delivery is not None:
                self._tell(f"served: serial {serial}")
            if is_new:
                # Before it is on disk: after a crash between the two somebody is told twice, and not never.
                self._means.reports.renewed(self.status())
            await self._save_state()

    async def _record_undelivered(self, words: str) -> None:
        delays = DELIVERY_BACK_OFF_SECONDS
        delay = delays[min(self._delivery_failures, len(delays) - 1)] * (1 + self._means.chance() / 4)
        self._delivery_failures += 1
        self._deliver_at = self._means.now() + timedelta(seconds=delay)
        first = self._state.delivery_error is None
        if words != self._state.delivery_error:
            # The same again is not worth a line each time, nor a write.
            self._state = replace(self._state, delivery_error=words)
            log.error("certificate %s: not deployed: %s; tried again", self.wanted.name, words)
            await self._save_state()
        self._tell(f"not deployed: {words}")
        if first:
            self._means.reports.failed(self.status())

    async def _reconcile(self) -> None:
        """Looks whether disk, HAProxy's memory and what it serves are still what was delivered."""
        assert self._bundle is not None
        assert self._means.delivery is not None
        found = await self._means.delivery.differences(self.wanted.name, self._bundle)
        self._reconcile_at = self._means.now() + RECONCILE
        if found:
            self._differs = True
            self._deliver_at = self._means.now()
            log.warning("certificate %s: %s; delivering it again", self.wanted.name, "; ".join(found))

    # ------------------------------------------------------------------ asked for

    async def renew_now(self, *, force: bool, tell: Callable[[str], None]) -> Renewed:
        """Does now what is due, whatever the back-off says; with `force`, orders even if nothing is."""
        async with self._busy:

            def log_and_tell(text: str) -> None:
                self._log(text)
                tell(text)

            self._tell = log_and_tell
            try:
                return await self._renew_now(force=force)
            finally:
                self._tell = self._log
                self._wake.set()

    async def _renew_now(self, *, force: bool) -> Renewed:
        try:
            await self._read()
        except (StoreError, OSError) as error:
            return Renewed(status=self.status(), result="failed", error=_words(error))
        is_due = force or self._due(self._means.now()) is not None
        if is_due and not await self._renew(force=force):
            # The old one keeps serving, so it should be where it belongs.
            await self._put_in_place()
            return Renewed(status=self.status(), result="failed", error=self._state.last_error)
        why_not = await self._put_in_place()
        if why_not is not None:
            return Renewed(status=self.status(), result="not_deployed", error=why_not)
        return Renewed(status=self.status(), result="renewed" if is_due else "not_due")

    async def _put_in_place(self) -> str | None:
        if self._bundle is None:
            return None
        if self._means.delivery is None:
            await self._record_served(self._bundle)
            return None
        if not self._differs:
            await self._reconcile()
        return await self._deliver() if self._differs else None

    @property
    def alone(self) -> asyncio.Lock:
        """While this is held, nothing else is done with the certificate."""
        return self._busy

    async def hold(self) -> None:
        """Waits for what is being done to be done; nothing new is begun after that."""
        await self._busy.acquire()

    # ------------------------------------------------------------------ told

    def status(self) -> CertificateStatus:
        """As operators see it."""
        directory, now = self._means.account.settings.directory, self._means.now()
        seen = status(self.wanted, self._bundle, self._state, directory, now, broken=self._broken)
        if self._means.delivery is None:
            return replace(seen, deployed=self._bundle is not None)
        return replace(seen, deployed=seen.deployed and not self._differs)

    def _log(self, text: str) -> None:
        log.info("certificate %s: %s", self.wanted.name, text)


def current(files: CertificateFiles) -> tuple[Bundle | None, bool]:
    """The bundle of the store, and where there is none, whether there are files of which none is one. May block."""
    bundle = files.current()
    return bundle, bundle is None and bool(files.generations())


def planned(
    wanted: Wanted, bundle: Bundle | None, state: CertificateState, directory: str, now: datetime, *, broken: bool
) -> tuple[Reason, datetime]:
    """When the next certificate is ordered, and why then; a time that is not in the future is now."""
    if bundle is None:
        return Reason.BROKEN if broken else Reason.MISSING, now
    leaf = bundle.leaf
    if set(leaf.names) != set(wanted.names):
        return Reason.NAMES_CHANGED, now
    if state.directory not in ("", directory):
        return Reason.DIRECTORY_CHANGED, now
    answered = state.ari_certificate_id == leaf.ari_certificate_id
    fresh = renewal.ari_is_fresh(state.ari_checked_at, state.ari_next_check, now)
    plan = renewal.plan(validity(leaf), state.ari_at if answered else None, fresh=fresh)
    issued_at = state.issued_at
    if issued_at is None or issued_at > now or state.issued_reason not in OF_TIME:
        return plan.reason, plan.at
    # It would be the second one in a row that time itself is the reason for.
    return plan.reason, max(plan.at, issued_at + renewal.rest(leaf.not_after - issued_at))


def _is_of(bundle: Bundle | None, order: PendingOrder | None) -> bool:
    """Whether the order has led to this bundle: its key is the one of the order's CSR."""
    return bundle is not None and order is not None and bundle.key.public_key() == order.key.public_key()


def validity(leaf: Leaf) -> Validity:
    """The time for which it is good."""
    return Validity(not_before=leaf.not_before, not_after=leaf.not_after)


def status(
    wanted: Wanted, bundle: Bundle | None, state: CertificateState, directory: str, now: datetime, *, broken: bool
) -> CertificateStatus:
    """What the store knows of a certificate, as operators see it."""
    reason, at = planned(wanted, bundle, state, directory, now, broken=broken)
    waits = state.next_attempt if renewal.still_waits(state.next_attempt, now) else None
    # What went wrong in ordering one that is not due any more, as a clock is right again, is not wrong any more.
    failed = state.last_error if waits is not None or at <= now else None
    error = failed or state.delivery_error or _wrong_time(bundle, now)
    if bundle is None:
        return CertificateStatus(
            name=wanted.name,
            names=wanted.names,
            renew_at=at,
            reason=reason.value,
            last_error=error,
            next_attempt=waits or now,
        )
    leaf = bundle.leaf
    return CertificateStatus(
        name=wanted.name,
        names=leaf.names,
        issuer=leaf.issuer,
        serial=leaf.serial,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        renew_at=at,
        reason=reason.value,
        deployed=state.deployed_serial == leaf.serial and state.delivery_error is None,
        deployed_at=state.deployed_at,
        last_error=error,
        next_attempt=max(at, waits) if waits is not None else at,
    )


def _wrong_time(bundle: Bundle | None, now: datetime) -> str | None:
    """What is wrong with a certificate that is not valid now; None where nothing is."""
    if bundle is None:
        return None
    if bundle.leaf.not_after <= now:
        return f"expired at {bundle.leaf.not_after:%Y-%m-%d %H:%M:%S} UTC"
    if bundle.leaf.not_before > now:
        return f"not valid before {bundle.leaf.not_before:%Y-%m-%d %H:%M:%S} UTC; is the clock right?"
    return None


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _duration(delay: timedelta) -> str:
    seconds = round(delay.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
