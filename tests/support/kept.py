"""Certificates kept in this process: a CA that does as it is told, a store on disk, a clock to be set, and no HAProxy."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sniproxy.acme.account import Account, AccountSettings
from sniproxy.acme.certificate import ManagedCertificate, Means, Reports
from sniproxy.acme.keeper import ORDERS_AT_ONCE
from sniproxy.acme.ordering import Wanted
from sniproxy.acme.responder import Responder
from sniproxy.acme.store import CertificateState, Store
from sniproxy.bundle import Bundle, PrivateKey, generate_key, utc_now
from sniproxy.errors import DeliveryError
from sniproxy.model import CertificateCounts
from tests.support import certificates
from tests.support.processes import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from sniproxy.model import CertificateStatus
    from tests.support.acme_stub import AcmeStub

NAME, NAMES = "www.example.test", ("www.example.test", "example.test")
CONTACT = ("mailto:admin@example.test",)

LOOKS = 150
"""At the clock: a dozen rounds, in which whatever is to happen has happened."""


async def until(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` returns, as soon as that is true; an error that says what was waited for otherwise."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.003)
    return result


class Clock:
    """This machine's time of day: the true one, until it is set. `looks`: how often it was looked at."""

    def __init__(self) -> None:
        self.offset = timedelta()
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return utc_now() + self.offset

    def set(self, *, by: timedelta) -> None:
        """Forward, or back."""
        self.offset += by


class Deliveries:
    """Instead of HAProxy: takes what is brought, unless it is told otherwise.

    failing: why it does not take it. found: what is different there. let: deliveries wait until it is set.
    """

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.looked = 0
        self.failing: str | None = None
        self.found: list[str] = []
        self.let = asyncio.Event()
        self.let.set()

    @property
    def serials(self) -> list[str]:
        """Of what was brought, in order."""
        return [serial for _, serial in self.made]

    async def deliver(self, name: str, bundle: Bundle) -> None:
        self.made.append((name, bundle.leaf.serial))
        await self.let.wait()
        if self.failing is not None:
            raise DeliveryError(self.failing)
        self.found = []

    async def differences(self, name: str, bundle: Bundle) -> list[str]:
        self.looked += 1
        return list(self.found)


@dataclass(kw_only=True)
class Workbench:
    """What all tests of certificates share; to be made within an event loop.

    Each `means` is that of another process on the same disk. `delivery` None: certificates stay in the store.
    """

    stub: AcmeStub
    directory: Path
    clock: Clock = field(default_factory=Clock)
    delivery: Deliveries | None = field(default_factory=Deliveries)
    renewed: list[CertificateStatus] = field(default_factory=list)
    failed: list[CertificateStatus] = field(default_factory=list)
    counts: CertificateCounts = field(default_factory=CertificateCounts)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    chance: float = 0.0

    def __post_init__(self) -> None:
        self.responder = Responder(report=lambda _: None, bug=self.stub.bugs.append)
        self.accounts: list[Account] = []

    @property
    def store(self) -> Store:
        return Store(self.directory, warn=self.warnings.append)

    def account(self, **changes: Any) -> Account:
        """As of another process."""
        known: dict[str, Any] = {"directory": self.stub.directory_url, "contact": CONTACT, "agree_to_terms": True}
        settings = AccountSettings(**{**known, **self.settings, **changes})
        account = Account(settings, self.store.account(settings.directory))
        self.accounts.append(account)
        return account

    def means(self, **changes: Any) -> Means:
        """As of another process."""
        known: dict[str, Any] = {
            "store": self.store,
            "account": self.account(),
            "responder": self.responder,
            "delivery": self.delivery,
            "reports": Reports(renewed=self.renewed.append, failed=self.failed.append),
            "counts": self.counts,
            "orders": asyncio.Semaphore(ORDERS_AT_ONCE),
            "now": self.clock,
            "chance": lambda: self.chance,
        }
        return Means(**{**known, **changes})

    def certificate(self, means: Means | None = None, **changes: Any) -> ManagedCertificate:
        return ManagedCertificate(wanted(**changes), means or self.means())

    @asynccontextmanager
    async def kept(self, certificate: ManagedCertificate | None = None) -> AsyncIterator[ManagedCertificate]:
        """A certificate that is kept, as it is in a running program, until the end."""
        certificate = certificate or self.certificate()
        task = asyncio.get_running_loop().create_task(certificate.keep())
        try:
            yield certificate
            assert not task.done(), "it is kept until that is cancelled"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Lets all clients go."""
        for account in self.accounts:
            await account.close()

    def pass_time(self, delta: timedelta) -> None:
        """For all the world: this machine and the CA."""
        self.clock.set(by=delta)
        self.stub.clock_skew += delta

    async def idle(self, looks: int = LOOKS) -> None:
        """Until whatever is to happen has happened: the clock was looked at some dozen times more."""
        enough = self.clock.looks + looks
        await until(lambda: self.clock.looks >= enough, "the certificate is looked at")

    # ------------------------------------------------------------------ what is on disk

    def files(self, name: str = NAME) -> Any:
        return self.store.certificate(name)

    def state(self, name: str = NAME) -> CertificateState:
        state: CertificateState = self.files(name).state()
        return state

    def change_state(self, name: str = NAME, **changes: Any) -> None:
        """As if that had happened before."""
        self.files(name).save_state(replace(self.state(name), **changes))

    def serial(self, name: str = NAME) -> str | None:
        """Of the bundle in the store."""
        bundle = self.files(name).current()
        return None if bundle is None else bundle.leaf.serial

    def put(
        self,
        names: Iterable[str] = NAMES,
        *,
        age: timedelta = timedelta(days=1),
        lifetime: timedelta = timedelta(days=90),
        name: str = NAME,
    ) -> Bundle:
        """Puts a bundle into the store, of a CA that nobody can ask: it has no renewal information."""
        begins = self.clock() - age
        key: PrivateKey = generate_key("ecdsa-p256")
        leaf = certificates.certificate(tuple(names), key=key, begins=begins, ends=begins + lifetime)
        bundle = Bundle(key, (leaf,))
        self.files(name).save(bundle)
        return bundle


def wanted(**changes: Any) -> Wanted:
    """An entry of [[certificates]]."""
    known: dict[str, Any] = {
        "name": NAME,
        "names": NAMES,
        "key_type": "ecdsa-p256",
        "challenges": ("tls-alpn-01", "http-01"),
    }
    return Wanted(**{**known, **changes})


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory, byte for byte."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
