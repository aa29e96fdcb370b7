"""Our account at one directory: made ready when it is first needed, its key on disk before the CA hears of it.

`Client` speaks the protocol; this says with which key, and what to do where the CA does not know it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.acme.client import Client
from sniproxy.acme.locking import held
from sniproxy.bundle import PrivateKey, generate_key
from sniproxy.errors import AcmeError, Problem, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.acme.store import AccountFiles

KEY_TYPE = "ecdsa-p256"
"""Of account keys: every CA takes ES256, and signing a request costs 0.1 ms."""

MAX_HMAC_BYTES = 4096
"""Of the file with the key of an external account binding, which has some hundred."""

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
        self._preparing = asyncio.Lock()

    async def client(self) -> Client:
        """The client of the account, which the CA knows. Raises AcmeError and StoreError."""
        async with self._preparing:
            if self._client is None:
                self._client = await self._prepared()
            return self._client

    async def directory_client(self) -> Client:
        """A client to ask what needs no account: the directory, renewal information. Raises StoreError."""
        if self._client is not None:
            return self._client
        return await self.client()

    async def unknown(self) -> None:
        """The CA has said that it does not know the account: it is found, or made, again on next need."""
        async with self._preparing:
            client, self._client = self._client, None
            if client is not None:
                await client.close()
            if self._files is not None:
                stored = await asyncio.to_thread(self._files.load)
                if stored is not None:
                    await asyncio.to_thread(self._files.save, stored.key, None, stored.contact)

    async def roll_over(self) -> None:
        """Gives the account a new key (RFC 8555 section 7.3.5). Raises AcmeError and StoreError.

        The new key is on disk before the CA hears of it, and takes the old one's place after the CA has agreed:
        whichever of the two the CA knows after a crash, it is there.
        """
        assert self._files is not None
        client = await self.client()
        key = generate_key(KEY_TYPE)
        await asyncio.to_thread(self._files.save_next_key, key)
        await client.roll_over_key(key)
        await asyncio.to_thread(self._files.adopt_next_key)
        await self.close()

    async def close(self) -> None:
        """Lets the client's thread and connections go; a next need makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # ------------------------------------------------------------------ made ready

    async def _prepared(self) -> Client:
        files = self._files
        if files is None:
            return await self._registered(self._client_with(generate_key(KEY_TYPE), None))
        async with held(files.lock(), "the same account"):  # two processes at once would make two of them
            await self._finish_roll_over(files)
            stored = await asyncio.to_thread(files.load)
            if stored is None:
                key = generate_key(KEY_TYPE)
                await asyncio.to_thread(files.save, key, None, ())
                client = await self._registered(self._client_with(key, None))
            elif stored.url is None:
                client = await self._found_or_registered(self._client_with(stored.key, None))
            else:
                client = self._client_with(stored.key, stored.url)
                if stored.contact == self.settings.contact:
                    return client
                await client.update_account(contact=self.settings.contact)
            await asyncio.to_thread(files.save, client.key, client.account_url, self.settings.contact)
        return client

    def _client_with(self, key: PrivateKey, url: str | None) -> Client:
        return Client(self.settings.directory, key, account_url=url, ca_file=self.settings.ca_file)

    async def _found_or_registered(self, client: Client) -> Client:
        """For a key that may be known to the CA: of a start that was cut short, or from another program."""
        if await client.find_account() is not None:
            return client
        return await self._registered(client)

    async def _registered(self, client: Client) -> Client:
        settings = self.settings
        try:
            account = await client.create_account(
                contact=settings.contact,
                agree_to_terms=settings.agree_to_terms,
                eab_kid=settings.eab_kid,
                eab_hmac=await asyncio.to_thread(_hmac, settings.eab_hmac_file),
            )
        except BaseException:
            await client.close()
            raise
        log.info("account %s at %s", account.url, settings.directory)
        return client

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
