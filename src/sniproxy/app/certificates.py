"""Certificates in the running program: the parts of `acme` and `haproxy`, put together from one configuration.

They are beside the relay, not below it: whatever fails here is told of and tried again, and :443 goes on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any

from sniproxy.acme.account import Account, AccountSettings
from sniproxy.acme.certificate import Means, Reports, current, status
from sniproxy.acme.challenges import key_authorization
from sniproxy.acme.keeper import ORDERS_AT_ONCE, Keeper, no_orders, rehearse
from sniproxy.acme.ordering import Wanted
from sniproxy.acme.responder import MAX_CONNECTIONS, Responder
from sniproxy.acme.store import Store
from sniproxy.app.certificate_json import as_json
from sniproxy.app.hooks import run_hook
from sniproxy.bundle import placeholder, utc_now
from sniproxy.config.certificates import DIRECTORIES, BackendRef
from sniproxy.errors import AcmeError, SniproxyError, StoreError
from sniproxy.haproxy.delivery import Delivery, DeliverySettings, VerifyTarget
from sniproxy.model import CertificateCounts, ProxyProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sniproxy.config import Config
    from sniproxy.model import CertificateStatus, UnixAddress

STORE_AGAIN_SECONDS = 60.0
"""After which a state_dir that could not be used is looked at again."""

HOLD_SECONDS = 60.0
"""For orders and deliveries under way when a reload changes what they are for; then they are cut, and gone on with."""

PROBE_SECONDS = 30.0
"""How long a challenge of our own making is answered: a look-up, and a handshake or two."""

log = logging.getLogger(__name__)


class UnknownCertificate(SniproxyError):
    """There is no certificate of that name."""


class CutShort(SniproxyError):
    """What was asked for takes longer than a reload can wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a configuration asks for, as far as it is about certificates; two that are equal need no change."""

    state_dir: Path
    account: AccountSettings
    rehearsals: AccountSettings
    wanted: tuple[Wanted, ...]
    delivery: DeliverySettings | None
    on_renewed: tuple[str, ...]
    on_failed: tuple[str, ...]
    hook_seconds: float


def plan(config: Config, *, http_01: bool | None = None) -> Plan | None:
    """The plan of a configuration; None where it asks for no certificates.

    http_01: whether port 80 answers; None for what the configuration says.
    """
    acme = config.acme
    if acme is None or not config.certificates:
        return None
    account = AccountSettings(
        directory=acme.directory,
        ca_file=acme.ca_file,
        contact=(f"mailto:{acme.email}",) if acme.email else (),
        agree_to_terms=acme.agree_to_terms,
        eab_kid=acme.eab_kid,
        eab_hmac_file=acme.eab_hmac_file,
    )
    return Plan(
        state_dir=acme.state_dir,
        account=account,
        rehearsals=_rehearsals(config, account),
        wanted=wanted(config, http_01=config.http is not None if http_01 is None else http_01),
        delivery=delivery_settings(config),
        on_renewed=config.hooks.on_renewed,
        on_failed=config.hooks.on_failed,
        hook_seconds=config.hooks.timeout,
    )


def _rehearsals(config: Config, account: AccountSettings) -> AccountSettings:
    assert config.acme is not None
    directory = config.acme.dry_run_directory
    if not directory and account.directory == DIRECTORIES["letsencrypt"]:
        directory = DIRECTORIES["letsencrypt-staging"]
    if not directory or directory == account.directory:
        return account
    return AccountSettings(
        directory=directory, ca_file=account.ca_file, contact=account.contact, agree_to_terms=account.agree_to_terms
    )


def wanted(config: Config, *, http_01: bool) -> tuple[Wanted, ...]:
    """The certificates of a configuration, each with the challenges that it can answer."""
    assert config.acme is not None
    return tuple(
        Wanted(
            name=certificate.name,
            names=certificate.names,
            key_type=certificate.key_type,
            challenges=tuple(kind for kind in certificate.challenges if kind != "http-01" or http_01),
            profile=certificate.profile,
            preferred_chain=config.acme.preferred_chain,
        )
        for certificate in config.certificates
    )


def delivery_settings(config: Config) -> DeliverySettings | None:
    """Where certificates go; None where they stay in the store."""
    haproxy = config.haproxy
    if haproxy is None:
        return None
    verify = haproxy.verify
    if verify is None:
        targets: tuple[VerifyTarget, ...] = ()
    elif isinstance(verify, BackendRef):
        backend = config.backends[verify.name]
        targets = tuple(
            VerifyTarget(address=address, proxy_protocol=backend.proxy_protocol) for address in backend.servers
        )
    else:
        targets = (VerifyTarget(address=verify, proxy_protocol=ProxyProtocol.OFF),)
    return DeliverySettings(
        certificate_dir=haproxy.certificate_dir,
        runtime_sockets=haproxy.runtime_sockets,
        verify=targets,
        reload_command=haproxy.reload_command,
    )


def stored_statuses(config: Config) -> list[CertificateStatus]:
    """What the store knows of each certificate, without any proxy running; nothing is changed. Raises StoreError."""
    this = plan(config)
    if this is None:
        return []
    store = Store(this.state_dir, warn=log.warning, sets_aside=False)
    found = []
    for each in this.wanted:
        files = store.certificate(each.name)
        bundle, broken = current(files)
        seen = status(each, bundle, files.state(), this.account.directory, utc_now(), broken=broken)
        # Where it stays in the store, that is where it belongs.
        found.append(seen if this.delivery is not None else replace(seen, deployed=bundle is not None))
    return found


class Certificates:
    """All that is done about certificates, for as long as the program runs.

    `counts` go on over reloads. `bug` is told of exceptions that should not have been. `validations`: how many
    connections the responder takes at once.
    """

    def __init__(
        self, counts: CertificateCounts, bug: Callable[[BaseException], None], validations: int = MAX_CONNECTIONS
    ) -> None:
        self.counts = counts
        self.responder = Responder(report=log.info, bug=bug, max_connections=validations)
        self._bug = bug
        self._plan: Plan | None = None
        self._keeper: Keeper | None = None
        self._means: Means | None = None
        self._running: asyncio.Task[None] | None = None
        self._hooks: set[asyncio.Task[None]] = set()
        self._probes: set[asyncio.Task[None]] = set()
        self._renewing: set[asyncio.Task[list[dict[str, Any]]]] = set()
        self._changing = asyncio.Lock()

    async def start(self) -> UnixAddress:
        """Starts the responder; returns where it listens."""
        return await self.responder.start()

    async def take(self, new: Plan | None, *, keep: bool = True) -> None:
        """Goes by this plan from now on. Steps under way are let come to their end first.

        keep: whether certificates are kept; without, only what is asked for is done.
        """
        async with self._changing:
            if new == self._plan:
                return
            await self._stop(HOLD_SECONDS)
            self._plan = new
            if new is None:
                return
            self._means = means = self._means_for(new)
            keeper = Keeper(new.wanted, means)
            await keeper.look()  # or it would seem, for a moment, that there are none
            self._keeper = keeper
            for kind in {kind for each in new.wanted for kind in each.challenges}:
                for result in ("valid", "invalid", "error"):
                    self.counts.challenges.setdefault((kind, result), 0)
            if not keep:
                await asyncio.to_thread(means.store.prepare)
            else:
                self._running = asyncio.get_running_loop().create_task(self._run(self._keeper, means.store))
                self._running.add_done_callback(self._on_done)

    async def hooks_done(self) -> None:
        """Returns once all hooks that were run have come to their end, or were killed for taking too long."""
        await asyncio.gather(*self._hooks, return_exceptions=True)

    async def close(self) -> None:
        """Ends it now; what is under way is gone on with at the next start."""
        await self._stop(0)
        beside = [*self._hooks, *self._probes]
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await self.responder.close()

    def statuses(self) -> list[CertificateStatus]:
        """Each certificate, in the order of the configuration."""
        return self._keeper.statuses() if self._keeper is not None else []

    # ------------------------------------------------------------------ asked for

    async def renew(
        self, names: Sequence[str], *, force: bool, dry_run: bool, tell: Callable[[Mapping[str, Any]], None]
    ) -> list[dict[str, Any]]:
        """Does now what is due for these certificates, or for all; returns what came of each, in JSON's terms.

        Each has `name`, `result` ("renewed", "not_due", "failed", "not_deployed", "rehearsed"), `error` and `status`.
        Raises UnknownCertificate, StoreError, and CutShort after a reload that could not wait for it.
        """
        async with self._changing:  # the certificates of a reload that is under way, not those before it
            keeper = self._checked(*names)

        def step(name: str, text: str) -> None:
            tell({"certificate": name, "text": text})

        async def work() -> list[dict[str, Any]]:
            if dry_run:
                return await self._rehearse(keeper, names or list(keeper.certificates), step)
            results = await keeper.renew(names, force=force, tell=step)
            return [_as_json(result.status, result.result, result.error) for result in results]

        renewing = asyncio.get_running_loop().create_task(work())
        self._renewing.add(renewing)
        renewing.add_done_callback(self._renewing.discard)
        try:
            await asyncio.wait((renewing,))
        finally:
            renewing.cancel()
        if renewing.cancelled():
            raise CutShort("a reload has cut it short; what was begun is gone on with")
        return renewing.result()

    async def _rehearse(
        self, keeper: Keeper, names: Sequence[str], step: Callable[[str, str], None]
    ) -> list[dict[str, Any]]:
        assert self._plan is not None
        assert self._means is not None
        this, means = self._plan, self._means
        same = this.rehearsals == this.account and await means.account.is_stored()
        account = means.account if same else Account(this.rehearsals, None)
        results = []
        try:
            for name in names:
                certificate = keeper.certificates[name]
                said = partial(step, name)
                said(f"a dry run at {account.settings.directory}: nothing is kept")
                error = None
                try:
                    # Two validations of one name at a time could not be told apart on the wire.
                    async with certificate.alone:
                        bundle = await rehearse(certificate.wanted, means, account, CertificateCounts(), said)
                    said(f"would have been issued by {bundle.leaf.issuer}")
                except (AcmeError, StoreError) as failure:
                    error = str(failure)
                results.append(_as_json(certificate.status(), "failed" if error else "rehearsed", error))
        finally:
            if not same:
                await account.close()
        return results

    async def revoke(self, name: str, reason: int, *, tell: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Replaces a certificate by a new one, and revokes the old one once the new one is served.

        reason: of RFC 5280 section 5.3.1; CAs take 0, 1 (keyCompromise), 4 (superseded) and 5 (cessationOfOperation).
        Returns what came of the renewal, as `renew` has it, with `revoked`: the serial number, or null where the
        renewal failed. Raises UnknownCertificate, AcmeError, StoreError.
        """
        self._checked(name)
        assert self._means is not None
        means = self._means
        old = await asyncio.to_thread(means.store.certificate(name).current)
        if old is None:
            raise UnknownCertificate(f"there is no certificate {name} yet, and so nothing to revoke")
        (result,) = await self.renew([name], force=True, dry_run=False, tell=tell)
        revoked = None
        if result["result"] == "renewed":
            client = await means.account.client()
            await client.revoke(old.leaf.certificate, reason)
            revoked = old.leaf.serial
            log.warning("certificate %s: revoked serial %s", name, revoked)
        return {**result, "revoked": revoked}

    async def account(self, *, roll_over: bool) -> dict[str, Any]:
        """The account: `directory` and `url`; with `roll_over`, after it was given a new key.

        Raises UnknownCertificate where there is none, AcmeError, StoreError.
        """
        self._checked()
        assert self._means is not None
        account = self._means.account
        if roll_over:
            async with no_orders(self._means.orders):
                await account.roll_over()
            log.warning("the account at %s has a new key", account.settings.directory)
        client = await account.client()
        return {"directory": account.settings.directory, "url": client.account_url}

    def _checked(self, *names: str) -> Keeper:
        """The keeper, which has certificates of these names."""
        keeper = self._keeper
        if keeper is None:
            raise UnknownCertificate("no certificates are configured")
        unknown = [name for name in names if name not in keeper.certificates]
        if unknown:
            known = ", ".join(keeper.certificates)
            raise UnknownCertificate(f"there is no certificate called {', '.join(unknown)}; there is {known}")
        return keeper

    def probe(self, kind: str, identifier: str) -> str:
        """Answers a challenge of our own making for a while, so that the way to it can be tried from outside.

        kind: "tls-alpn-01" or "http-01"; identifier: a name or an IP address. Returns the key authorization that is
        answered with, `TOKEN.REST`: it proves nothing to any CA, which has never heard of the token.
        """
        token = token_urlsafe(16)
        answer = key_authorization(token, f"probe-{token_urlsafe(16)}")
        task = asyncio.get_running_loop().create_task(self._answer_probe(kind, identifier, token, answer))
        self._probes.add(task)
        task.add_done_callback(self._on_probe_done)
        return answer

    async def _answer_probe(self, kind: str, identifier: str, token: str, answer: str) -> None:
        with self.responder.answering(kind, identifier, token, answer):
            await asyncio.sleep(PROBE_SECONDS)

    def _on_probe_done(self, task: asyncio.Task[None]) -> None:
        self._probes.discard(task)
        self._on_done(task)

    # ------------------------------------------------------------------ at work

    def _means_for(self, new: Plan) -> Means:
        store = Store(new.state_dir, warn=log.warning)
        return Means(
            store=store,
            account=Account(new.account, store.account(new.account.directory)),
            responder=self.responder,
            delivery=Delivery(new.delivery, warn=log.warning) if new.delivery is not None else None,
            reports=Reports(
                renewed=partial(self._run_hook, new, "renewed"), failed=partial(self._run_hook, new, "failed")
            ),
            counts=self.counts,
            orders=asyncio.Semaphore(ORDERS_AT_ONCE),
        )

    async def _run(self, keeper: Keeper, store: Store) -> None:
        while True:
            try:
                for warning in await asyncio.to_thread(store.prepare):
                    log.warning("%s", warning)
                break
            except (StoreError, OSError) as error:
                log.error("certificates: %s; looked at again in %g s", error, STORE_AGAIN_SECONDS)  # noqa: TRY400
            await asyncio.sleep(STORE_AGAIN_SECONDS)
        await self._place_placeholders()
        await keeper.run()

    async def _place_placeholders(self) -> None:
        """Where there is no bundle and nothing to make one of, HAProxy gets one that it can start with."""
        assert self._plan is not None
        assert self._means is not None
        delivery = self._means.delivery
        if not isinstance(delivery, Delivery):
            return
        for each in self._plan.wanted:
            try:
                if await asyncio.to_thread(self._means.store.certificate(each.name).current) is None:
                    await delivery.place_placeholder(each.name, placeholder(each.names, utc_now()))
            except (SniproxyError, OSError) as error:
                log.error("certificate %s: %s", each.name, error)  # noqa: TRY400  tried again with the real one

    async def _stop(self, seconds: float) -> None:
        keeper, running, means = self._keeper, self._running, self._means
        if keeper is not None and seconds:
            try:
                async with asyncio.timeout(seconds):
                    await keeper.hold()
            except TimeoutError:
                log.warning("certificates: what is under way is cut, and gone on with")
        work = [*self._renewing, *([running] if running is not None else [])]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        if means is not None:
            await means.account.close()
        self._keeper = self._running = self._means = None

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug(error)

    # ------------------------------------------------------------------ hooks

    def _run_hook(self, this: Plan, event: str, status: CertificateStatus) -> None:
        command = this.on_renewed if event == "renewed" else this.on_failed
        if not command:
            return
        bundle = this.delivery.certificate_dir / f"{status.name}.pem" if this.delivery is not None else None
        running = run_hook(command, event, status, bundle, this.hook_seconds)
        task = asyncio.get_running_loop().create_task(running)
        self._hooks.add(task)
        task.add_done_callback(self._on_hook_done)

    def _on_hook_done(self, task: asyncio.Task[None]) -> None:
        self._hooks.discard(task)
        self._on_done(task)


def _as_json(seen: CertificateStatus, result: str, error: str | None) -> dict[str, Any]:
    return {"name": seen.name, "result": result, "error": error, "status": as_json(seen)}
