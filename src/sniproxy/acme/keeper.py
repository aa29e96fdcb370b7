"""All managed certificates: each goes round by itself (certificate.ManagedCertificate), a few order at a time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from sniproxy.acme.certificate import ManagedCertificate, Renewed
from sniproxy.acme.ordering import Nowhere, Ordering

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from sniproxy.acme.account import Account
    from sniproxy.acme.certificate import Means
    from sniproxy.acme.ordering import Wanted
    from sniproxy.bundle import Bundle
    from sniproxy.model import CertificateCounts, CertificateStatus

ORDERS_AT_ONCE = 4
"""Certificates ordered at the same time. An order that hangs must not hold up all others; more would not be quicker, as
all requests of one account go through one thread."""


class Keeper:
    """The certificates of one configuration. `run` keeps them until it is cancelled."""

    def __init__(self, wanted: Iterable[Wanted], means: Means) -> None:
        self.certificates = {each.name: ManagedCertificate(each, means) for each in wanted}

    async def look(self) -> None:
        """Reads what is on disk of each of them, so that `statuses` has it before `run` has begun."""
        for certificate in self.certificates.values():
            await certificate.look()

    async def run(self) -> None:
        """Keeps all of them, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for certificate in self.certificates.values():
                tasks.create_task(certificate.keep())

    def statuses(self) -> list[CertificateStatus]:
        """Each of them, in the order of the configuration."""
        return [certificate.status() for certificate in self.certificates.values()]

    async def renew(self, names: Sequence[str], *, force: bool, tell: Callable[[str, str], None]) -> list[Renewed]:
        """Does now what is due for these, or for all; with `force` all of them are ordered anew.

        tell: is told of each step, with the certificate's name. Raises KeyError for a name that is not there.
        """
        chosen = [self.certificates[name] for name in names] or list(self.certificates.values())

        async def one(certificate: ManagedCertificate) -> Renewed:
            name = certificate.wanted.name
            return await certificate.renew_now(force=force, tell=lambda text: tell(name, text))

        results = await asyncio.gather(*map(one, chosen), return_exceptions=True)
        for result in results:  # once all of them are done
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Renewed)]

    async def hold(self) -> None:
        """Waits for orders and deliveries that are under way; no other is begun. The caller has a deadline."""
        await asyncio.gather(*(certificate.hold() for certificate in self.certificates.values()))


@asynccontextmanager
async def no_orders(orders: asyncio.Semaphore) -> AsyncIterator[None]:
    """Waits for orders that are under way, and lets none begin as long as this lasts. `orders`: those of `Means`."""
    async with AsyncExitStack() as all_of_them:
        for _ in range(ORDERS_AT_ONCE):
            await all_of_them.enter_async_context(orders)
        yield


async def rehearse(
    wanted: Wanted, means: Means, account: Account, counts: CertificateCounts, tell: Callable[[str], None]
) -> Bundle:
    """A dry run: orders as for real, with this account, and keeps nothing. Raises AcmeError and StoreError.

    Returns the certificate, which is good for looking at.
    """
    async with means.orders:
        client = await account.client()
        return await Ordering(
            client=client,
            responder=means.responder,
            wanted=wanted,
            directory=account.settings.directory,
            files=Nowhere(),
            counts=counts,
            tell=tell,
            now=means.now,
        ).obtain()
