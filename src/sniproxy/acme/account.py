"""Our account at one directory: made ready when it is first needed, its key on disk before the CA hears of it.

`Client` speaks the protocol; this says with which key, and what to do where the CA does not know it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.acme.client import Client
from sniproxy.acme.locking import held
from sniproxy.acme.store import StoredAccount
from sniproxy.bundle import PrivateKey, generate_key
from sniproxy.errors import AcmeError, Problem, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sniproxy.acme.store import AccountFiles

KEY_TYPE = "ecdsa-p256"
"""Of account keys: every CA takes ES256, and signing a request costs 0.1 ms."""

MAX_HMAC_BYTES = 4096
"""Of the file with the key of an external account binding, which has some hundred."""

_WHAT = "the same account"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSettings:
    """[acme], as far as it is about the account.

    contact: URLs, `mailto:admin@example.com`. ca_file: what to trust; None for what the system does.
    eab_hmac_file: its base64url text is read when an account is made.
    """

    directory: str
    ca_file: Path | None = None
    contact: tuple[str, ...] = ()
    agree_to_terms: bool = False
    eab_kid: str = ""
    eab_hmac_file: Path | None = None


class Account:
    """One account. `files` is where its key is kept; None for an account that is forgotten in the end."""

    def __init__(self, settings: AccountSettings, files: AccountFiles | None) -> None:
        self.settings = settings
        self._files = files
        self._client: Client | None = None
        self._former: Client | None = None
        self._preparing = asyncio.Lock()

    async def client(self) -> Client:
        """The client of the account, which the CA knows. Raises AcmeError and StoreError."""
        async with self._preparing:
            return await self._ready()

    async def is_stored(self) -> bool:
        """Whether the account is on disk, with what the CA calls it. Raises StoreError."""
        stored = await asyncio.to_thread(self._files.load) if self._files is not None else None
        return stored is not None and stored.url is not None

    async def unknown(self, client: Client) -> None:
        """The CA has said that it does not know this client's account: it is found, or made, again on next need.

        Of several orders that are told so, the first one sees to it. Raises StoreError.
        """
        async with self._preparing:
            if client is not self._client:
                return
            if self._former is not None:
                await self._former.close()
            # Not closed yet: other orders are about to be told the same, which is more than that they were cut off.
            self._former, self._client = client, None
            if self._files is not None:
                stored = await asyncio.to_thread(self._files.load)
                if stored is not None:
                    await asyncio.to_thread(self._files.save, stored.key, None, stored.contact)

    async def roll_over(self) -> None:
        """Gives the account a new key (RFC 8555 section 7.3.5). Raises AcmeError and StoreError.

        The new key is on disk before the CA hears of it, and takes the old one's place after the CA has agreed:
        whichever of the two the CA knows after a crash, it is there. To be done while nothing is ordered: what is
        answered to challenges is made from the key.
        """
        files = self._files
        assert files is not None
        async with self._preparing:
            client = await self._ready()
            async with held(files.lock(), _WHAT):  # or another process would ask about the new key too soon
                key = generate_key(KEY_TYPE)
                await asyncio.to_thread(files.save_next_key, key)
                try:
                    await client.roll_over_key(key)
                    await asyncio.to_thread(files.adopt_next_key)
                except BaseException:
                    # Only the CA knows which key it is now. It is asked before anything else.
                    self._client = None
                    await client.close()
                    raise

    async def close(self) -> None:
        """Lets the client's thread and connections go; a next need makes new ones."""
        clients = (self._client, self._former)
        self._client = self._former = None
        for client in clients:
            if client is not None:
                await client.close()

    # ------------------------------------------------------------------ made ready

    async def _ready(self) -> Client:
        if self._client is None:
            self._client = await self._prepared()
        return self._client

    async def _prepared(self) -> Client:
        files = self._files
        if files is None:
            client = self._client_with(generate_key(KEY_TYPE), None)
            async with _closed_after_errors(client):
                await self._register(client)
            return client
        async with held(files.lock(), _WHAT):  # two processes at once would make two of them
            await self._finish_roll_over(files)
            stored = await asyncio.to_thread(files.load)
            is_new = stored is None
            if stored is None:
                stored = StoredAccount(key=generate_key(KEY_TYPE))
                await asyncio.to_thread(files.save, stored.key, None, ())
            client = self._client_with(stored.key, stored.url)
            async with _closed_after_errors(client):
                contact = await self._made_known(client, stored, is_new=is_new)
                if (client.account_url, contact) != (stored.url, stored.contact):
                    await asyncio.to_thread(files.save, client.key, client.account_url, contact)
        return client

    async def _made_known(self, client: Client, stored: StoredAccount, *, is_new: bool) -> tuple[str, ...]:
        """Sees to it that the CA knows the account, and how to reach its owner; returns the contact that it has."""
        wanted = self.settings.contact
        contact = stored.contact
        if stored.url is None:
            # The CA may know the key: from a start that was cut short, or from another program.
            found = None if is_new else await client.find_account()
            if found is None:
                await self._register(client)
                return wanted
            contact = found.contact
        if contact != wanted:
            try:
                await client.update_account(contact=wanted)
            except Problem as problem:
                if is_unknown_account(problem):
                    await self._register(client)
                    return wanted
                # No reason to let certificates expire.
                log.warning("the CA does not take acme.email: %s", problem)
                return stored.contact
        return wanted

    def _client_with(self, key: PrivateKey, url: str | None) -> Client:
        return Client(self.settings.directory, key, account_url=url, ca_file=self.settings.ca_file)

    async def _register(self, client: Client) -> None:
        settings = self.settings
        account = await client.create_account(
            contact=settings.contact,
            agree_to_terms=settings.agree_to_terms,
            eab_kid=settings.eab_kid,
            eab_hmac=await asyncio.to_thread(_hmac, settings.eab_hmac_file),
        )
        log.info("account %s at %s", account.url, settings.directory)

    async def _finish_roll_over(self, files: AccountFiles) -> None:
        """After a crash in the middle of a key rollover: which of the two keys does the CA know?"""
        key = await asyncio.to_thread(files.next_key)
        if key is None:
            return
        client = self._client_with(key, None)
        try:
            known = await client.find_account()
        finally:
            await client.close()
        await asyncio.to_thread(files.adopt_next_key if known else files.drop_next_key)
        log.warning("the account's new key %s", "is the one the CA knows" if known else "had not reached the CA")


@asynccontextmanager
async def _closed_after_errors(client: Client) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await client.close()
        raise


def is_unknown_account(error: AcmeError) -> bool:
    """Whether the CA says that it has no such account (RFC 8555 section 6.7)."""
    return isinstance(error, Problem) and error.code == "accountDoesNotExist"


def _hmac(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_HMAC_BYTES).decode("ascii").strip()
    except OSError as error:
        raise StoreError(f"acme.eab_hmac_file: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise StoreError(f"acme.eab_hmac_file: {path} is not base64url text") from None
