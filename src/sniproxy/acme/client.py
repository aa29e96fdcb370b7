"""An ACME client for one account at one directory (RFC 8555): each method one step, with values in and values out.

Here is the side of the event loop: which request, with which nonce, in what order, and how long to wait for it.
`network.py` is the other side, where requests are signed and sent: one daemon thread of each client's own, one request
at a time, which is left behind if it hangs. `resources.py` reads the answers. Nothing here polls: a caller looks again
when he sees fit, and the answers say when the CA would like that (`retry_after`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from sniproxy.acme.resources import (
    checked_url,
    identifier_for,
    parse,
    read_account,
    read_authorization,
    read_challenge,
    read_directory,
    read_order,
    read_renewal_info,
    refusal,
    shown,
)
from sniproxy.bundle import MAX_PEM_BYTES, PrivateKey, read_certificates
from sniproxy.errors import AcmeError, BundleError, CaUnreachable, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from sniproxy.acme.network import Network, Reply
    from sniproxy.acme.resources import Account, Authorization, Challenge, Directory, Order, RenewalInfo

REQUEST_SECONDS: Final = 20.0
"""For one request, from the look-up of the CA's address to the last byte. Public CAs take some seconds at most."""

TURN_SECONDS: Final = 60.0
"""For the requests before it, which go one after the other. Longer, and the CA hangs: let the caller back off."""

CLOSE_SECONDS: Final = 2.0
"""For the thread to close its connections. One that cannot be woken ends with the process."""

DIRECTORY_SECONDS: Final = 3600.0
"""For which a directory is believed: CAs change it some times a year, and an hour is nothing to a certificate."""

NONCE_SECONDS: Final = 300.0
"""For which an unused nonce is kept. CAs take them for longer, and an older one costs a request at worst."""

MAX_NONCES: Final = 8
"""Kept. One request is under way at a time, and each brings a new one."""

NONCE_RETRIES: Final = 5
"""After badNonce (RFC 8555 section 6.5). Pebble refuses every seventh on purpose: six in a row are one in 90,000."""

MAX_REDIRECTS: Final = 3
"""Followed, of GET and HEAD."""

MAX_ALTERNATES: Final = 4
"""Chains looked at besides the default one. Public CAs have one or two."""

MAX_DIRECTORY_BYTES: Final = 256 * 1024
"""Public CAs have one kilobyte."""

MAX_REPLY_BYTES: Final = 1024 * 1024
"""Of any other answer: an order of a thousand names has a fifth of that."""

MAX_LEFT_BEHIND: Final = 8
"""Threads that hang, each with its connection. Looking up an address can take a minute where DNS does not answer."""

_JSON: Final = "application/json"
_CHAIN: Final = "application/pem-certificate-chain"

_is_base64url = re.compile(r"[A-Za-z0-9_-]{1,512}").fullmatch
_is_mac_key = re.compile(r"[A-Za-z0-9_-]{2,1024}={0,2}").fullmatch
_is_certificate_id = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_links = re.compile(r"<([^<>]*)>([^<]*)").findall
_relation = re.compile(r';\s*rel\s*=\s*"?([^";,]*)', re.IGNORECASE).search

T = TypeVar("T")

log = logging.getLogger(__name__)


class Client:
    """One account. Whoever makes it closes it. All methods raise AcmeError: Problem in the CA's words, CaUnreachable.

    key: the account's. account_url: if it is known already; else the CA is asked, when it is needed. ca_file: whom to
    trust, None for whom the system trusts. HTTPS_PROXY and NO_PROXY of the environment count, but not for loopback.

    thumbprint: of the key (RFC 7638), the second half of every key authorization. clock_skew: seconds by which the
    CA's clock was ahead of ours at its last answer, None as long as there was no date.
    """

    def __init__(
        self, directory_url: str, key: PrivateKey, *, account_url: str | None = None, ca_file: Path | None = None
    ) -> None:
        self.directory_url = directory_url
        self.account_url = account_url
        self.key = key
        self.thumbprint = _thumbprint(key)
        self.clock_skew: float | None = None
        self._ca_file = ca_file
        self._directory: Directory | None = None
        self._directory_ends = 0.0
        self._nonces: deque[tuple[str, float]] = deque(maxlen=MAX_NONCES)
        self._turn = asyncio.Lock()
        self._thread: _Thread | None = None
        self._left_behind: list[_Thread] = []

    def __repr__(self) -> str:
        return f"Client({self.directory_url!r}, account_url={self.account_url!r})"

    async def close(self) -> None:
        """Ends what is going on and closes the connections."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.leave()
            await asyncio.to_thread(thread.join, CLOSE_SECONDS)

    # ---------------------------------------------------------------------------------------------------- directory

    async def directory(self) -> Directory:
        """What the CA offers, and where; asked for anew after an hour, and after a failure."""
        now = asyncio.get_running_loop().time()
        if self._directory is None or now >= self._directory_ends:
            reply = await self._get("directory", self.directory_url, limit=MAX_DIRECTORY_BYTES)
            self._directory = read_directory(parse("directory", reply.body))
            self._directory_ends = now + DIRECTORY_SECONDS
        return self._directory

    async def renewal_info(self, certificate_id: str) -> RenewalInfo:
        """When the CA would have a certificate renewed (RFC 9773 section 4.2)."""
        base = (await self.directory()).renewal_info
        if base is None:
            raise AcmeError("the CA offers no renewal information")
        if not _is_certificate_id(certificate_id):
            raise ValueError("not a certificate id")
        reply = await self._get("renewalInfo", f"{base.rstrip('/')}/{certificate_id}", limit=MAX_REPLY_BYTES)
        return read_renewal_info(parse("renewalInfo", reply.body), retry_after=reply.retry_after)

    # ------------------------------------------------------------------------------------------------------ account

    async def find_account(self) -> Account | None:
        """The account of our key; None if the CA says that it has none (RFC 8555 section 7.3.1)."""
        try:
            return await self._new_account({"onlyReturnExisting": True})
        except Problem as problem:
            if problem.code == "accountDoesNotExist":
                return None
            raise

    async def create_account(
        self, *, contact: Sequence[str], agree_to_terms: bool, eab_kid: str = "", eab_hmac: str = ""
    ) -> Account:
        """A new account, or the one that our key has already (RFC 8555 section 7.3).

        contact: URLs, `mailto:admin@example.com`. eab_kid, eab_hmac: what the CA has given to its customer, the latter
        as base64url (RFC 8555 section 7.3.4).
        """
        directory = await self.directory()
        if directory.terms_of_service and not agree_to_terms:
            raise AcmeError(
                f"the CA has terms of service, {directory.terms_of_service}: read them, and set acme.agree_to_terms"
            )
        if directory.external_account_required and not eab_kid:
            where = f" at {directory.website}" if directory.website else ""
            raise AcmeError(f"the CA takes its customers only: get acme.eab_kid and acme.eab_hmac_file{where}")
        payload: dict[str, Any] = {"termsOfServiceAgreed": agree_to_terms}
        if contact:
            payload["contact"] = list(contact)
        if eab_kid:
            key, mac_key = self.key, _mac_key(eab_hmac)
            url = directory.new_account
            payload["externalAccountBinding"] = await self._in_thread(
                "newAccount", lambda network: network.external_account(key, url, kid=eab_kid, mac_key=mac_key)
            )
        return await self._new_account(payload)

    async def update_account(self, *, contact: Sequence[str]) -> Account:
        """Other contact addresses (RFC 8555 section 7.3.2)."""
        url = await self._known_account()
        reply = await self._post("account", url, {"contact": list(contact)})
        return read_account(url, parse("account", reply.body))

    async def deactivate_account(self) -> None:
        """For ever (RFC 8555 section 7.3.6)."""
        await self._post("account", await self._known_account(), {"status": "deactivated"})

    async def roll_over_key(self, new_key: PrivateKey) -> None:
        """Another key for the account, from now on (RFC 8555 section 7.3.5).

        The caller has `new_key` on disk: after a failure, it may be the one that the CA knows.
        """
        url = _offered((await self.directory()).key_change, "keyChange")
        account_url, old_key = await self._known_account(), self.key
        change = await self._in_thread(
            "keyChange", lambda network: network.key_change(old_key, new_key, url, account_url)
        )
        await self._post("keyChange", url, change)
        self.key = new_key
        self.thumbprint = _thumbprint(new_key)

    # ------------------------------------------------------------------------------------------------------- orders

    async def new_order(self, names: Sequence[str], *, profile: str = "", replaces: str | None = None) -> Order:
        """Orders a certificate for DNS names and IP addresses (RFC 8555 section 7.4).

        profile: one of the directory's, empty for the CA's choice. replaces: the certificate id of the one that this is
        to follow (RFC 9773 section 5); not sent to a CA that has no renewal information.
        """
        directory = await self.directory()
        identifiers = {identifier["value"]: identifier for identifier in map(identifier_for, names)}
        payload: dict[str, Any] = {"identifiers": list(identifiers.values())}
        if profile:
            payload["profile"] = profile
        if replaces is not None and directory.renewal_info is not None:
            payload["replaces"] = replaces
        reply = await self._post("newOrder", directory.new_order, payload)
        document = parse("newOrder", reply.body)
        order = read_order(_location(reply, "order"), document, retry_after=reply.retry_after)
        _compare(order, list(identifiers))
        return order

    async def order(self, url: str) -> Order:
        """How it is with an order now."""
        return self._order(url, await self._post("order", url, None))

    async def authorization(self, url: str) -> Authorization:
        """How it is with an authorization now (RFC 8555 section 7.5)."""
        reply = await self._post("authorization", url, None)
        return read_authorization(url, parse("authorization", reply.body), retry_after=reply.retry_after)

    async def deactivate_authorization(self, url: str) -> None:
        """Gives up a proof, or the attempt at one (RFC 8555 section 7.5.2)."""
        await self._post("authorization", url, {"status": "deactivated"})

    async def answer(self, challenge: Challenge) -> Challenge:
        """Tells the CA that the response is in its place, and to look now (RFC 8555 section 7.5.1)."""
        reply = await self._post("challenge", challenge.url, {})
        return read_challenge(parse("challenge", reply.body))

    async def finalize(self, order: Order, csr: bytes) -> Order:
        """Asks for the certificate of an order that is ready, with a CSR in DER (RFC 8555 section 7.4)."""
        reply = await self._post("finalize", order.finalize, {"csr": _base64url(csr)})
        finalized = self._order(order.url, reply)
        _compare(finalized, order.identifiers)
        return finalized

    async def certificate(self, url: str, *, alternates: bool = True) -> tuple[tuple[x509.Certificate, ...], ...]:
        """The certificate with its chain, leaf first; then with each other chain that the CA has (section 7.4.2).

        alternates: whether to ask for the others.
        """
        reply = await self._post("certificate", url, None, accept=_CHAIN, limit=MAX_PEM_BYTES)
        chains = [_chain(reply)]
        if alternates:
            for other in _alternates(url, reply.links):
                answer = await self._post("certificate", other, None, accept=_CHAIN, limit=MAX_PEM_BYTES)
                chains.append(_chain(answer))
        return tuple(chains)

    async def revoke(self, certificate: x509.Certificate, reason: int = 0) -> None:
        """Revokes a certificate of this account (RFC 8555 section 7.6); reason: a code of RFC 5280 section 5.3.1."""
        url = _offered((await self.directory()).revoke_cert, "revokeCert")
        der = certificate.public_bytes(Encoding.DER)
        await self._post("revokeCert", url, {"certificate": _base64url(der), "reason": reason})

    # ----------------------------------------------------------------------------------------------------- requests

    async def _known_account(self) -> str:
        if self.account_url is None and await self.find_account() is None:
            raise AcmeError("the CA has no account for this key")
        assert self.account_url is not None
        return self.account_url

    async def _new_account(self, payload: Mapping[str, Any]) -> Account:
        url = (await self.directory()).new_account
        reply = await self._post("newAccount", url, payload, with_key=True)
        document = parse("newAccount", reply.body)
        account = read_account(_location(reply, "account"), document)
        self.account_url = account.url
        return account

    def _order(self, url: str, reply: Reply) -> Order:
        return read_order(url, parse("order", reply.body), retry_after=reply.retry_after)

    async def _post(
        self,
        what: str,
        url: str,
        payload: Mapping[str, Any] | None,
        *,
        with_key: bool = False,
        accept: str = _JSON,
        limit: int = MAX_REPLY_BYTES,
    ) -> Reply:
        """A signed request and its answer, which is a success; `payload` None for a POST-as-GET. `what`: for people."""
        account_url = None if with_key else await self._known_account()
        url, key = self._askable(url, what), self.key

        def post(network: Network, nonce: str) -> Reply:
            return network.post(url, payload, key=key, account_url=account_url, nonce=nonce, accept=accept, limit=limit)

        for attempt in range(NONCE_RETRIES + 1):
            reply = await self._exchange(what, partial(post, nonce=await self._nonce()))
            self._keep_nonce(reply)
            if reply.status < 300:
                return reply
            refused = _refused(what, reply)
            if attempt == NONCE_RETRIES or not (isinstance(refused, Problem) and refused.code == "badNonce"):
                raise refused
        raise AssertionError  # the last attempt has either returned or raised

    async def _nonce(self) -> str:
        """One that was not used yet: the newest we have, else a fresh one (RFC 8555 section 7.2)."""
        if self._nonces:
            nonce, since = self._nonces.pop()
            if asyncio.get_running_loop().time() - since < NONCE_SECONDS:
                return nonce
            self._nonces.clear()  # the others are older
        url = (await self.directory()).new_nonce
        reply = await self._get("newNonce", url, head=True)
        fresh = _usable_nonce(reply)
        if fresh is None:
            raise CaUnreachable("newNonce: the CA's answer has no nonce, or one that is not base64url")
        return fresh

    def _keep_nonce(self, reply: Reply) -> None:
        """Each answer brings one, errors too."""
        nonce = _usable_nonce(reply)
        if nonce is not None:
            self._nonces.append((nonce, asyncio.get_running_loop().time()))

    async def _get(self, what: str, url: str, *, limit: int = 0, head: bool = False) -> Reply:
        """A request that is not signed, and its answer, which is a success; redirects are followed."""

        def ask(network: Network, url: str) -> Reply:
            return network.head(url) if head else network.get(url, limit=limit)

        for _ in range(MAX_REDIRECTS + 1):
            reply = await self._exchange(what, partial(ask, url=self._askable(url, what)))
            if reply.status < 300:
                return reply
            if reply.status not in (301, 302, 303, 307, 308) or reply.location is None:
                raise _refused(what, reply)
            url = _joined(url, reply.location)
        raise CaUnreachable(f"{what}: the CA redirects more than {MAX_REDIRECTS} times")

    def _askable(self, url: str, what: str) -> str:
        """Plain http is for test CAs; one that is asked by https never sends us there."""
        checked_url(url, f"{what}: the address to ask at")
        if urlsplit(url).scheme == "http" and not self.directory_url.startswith("http:"):
            raise CaUnreachable(f"{what}: the address to ask at is not an https:// URL")
        return url

    async def _exchange(self, what: str, job: Callable[[Network], Reply]) -> Reply:
        try:
            reply = await self._in_thread(what, job)
        except CaUnreachable:
            self._directory = None  # it may have moved
            raise
        log.debug("%s: the CA answers %d", what, reply.status)
        if reply.status == 404:
            self._directory = None
        if reply.clock_skew is not None:
            self.clock_skew = reply.clock_skew
        return reply

    async def _in_thread(self, what: str, job: Callable[[Network], T]) -> T:
        """What `job` returns in the client's thread, one at a time, within REQUEST_SECONDS."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise CaUnreachable(f"{what}: the requests before it were not done in {TURN_SECONDS:g} s") from None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await self._running_thread().submit(job)
        except TimeoutError:
            self._leave_behind()
            host = shown(urlsplit(self.directory_url).netloc)
            raise CaUnreachable(f"{what}: the CA at {host} has not answered in {REQUEST_SECONDS:g} s") from None
        except asyncio.CancelledError:
            self._leave_behind()
            raise
        finally:
            self._turn.release()

    def _running_thread(self) -> _Thread:
        if self._thread is None:
            self._left_behind = [thread for thread in self._left_behind if thread.is_alive]
            if len(self._left_behind) >= MAX_LEFT_BEHIND:
                raise CaUnreachable(f"{MAX_LEFT_BEHIND} requests to the CA still hang; does DNS answer?")
            self._thread = _Thread(self._ca_file)
        return self._thread

    def _leave_behind(self) -> None:
        """Nobody waits any more for what the thread does: it ends by itself, and the next request has another."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.leave()
            self._left_behind.append(thread)


# ---------------------------------------------------------------------------------------------------------- the thread


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    do: Callable[[Network], T]
    done: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop


class _Thread:
    """Where requests are made, one after the other. A daemon: if it hangs, that does not hold up the process's end."""

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._network: Network | None = None
        self._is_left = False
        self._thread = threading.Thread(target=self._work, name="acme", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Callable[[Network], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(job, done, loop))
        return done

    def leave(self) -> None:
        """Ends it: what it is doing is cut short, and nothing more is sent."""
        self._is_left = True
        if self._network is not None:
            self._network.cut()
        self._jobs.put(None)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                network = self._ready()
                if self._is_left:  # looked at after `_network` is set, and set before `leave` looks at that
                    raise CaUnreachable("the client is closed")  # noqa: TRY301  whoever waits is told below
                result = job.do(network)
            except Exception as error:  # noqa: BLE001  whoever waits is told, and knows what to make of it
                _tell(job, None, error)
            else:
                _tell(job, result, None)
            del job  # with all that it holds, while the next one is waited for
        if self._network is not None:
            self._network.close()

    def _ready(self) -> Network:
        if self._network is None:
            from sniproxy.acme.network import Network  # noqa: PLC0415  a third of a second and 30 MiB

            self._network = Network(self._ca_file)
        return self._network


def _tell(job: _Job[Any], result: object, error: Exception | None) -> None:
    def settle() -> None:
        if job.done.done():
            return
        if error is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(error)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        pass  # the loop is closed: nobody is there any more


# -------------------------------------------------------------------------------------------------------------- pieces


def _refused(what: str, reply: Reply) -> AcmeError:
    return refusal(what, reply.status, reply.body, content_type=reply.content_type, retry_after=reply.retry_after)


def _joined(url: str, reference: str) -> str:
    """Where a relative reference leads; one that leads nowhere stays what it is, and is found when it is asked."""
    try:
        return urljoin(url, reference)
    except ValueError:
        return reference


def _location(reply: Reply, what: str) -> str:
    return checked_url(reply.location, f"the CA's {what} has no address of its own: its Location")


def _offered(url: str | None, what: str) -> str:
    if url is None:
        raise AcmeError(f"the CA does not offer {what}")
    return url


def _compare(order: Order, names: Sequence[str]) -> None:
    """An order for anything else than what was asked for is not ours to fulfil."""
    if set(order.identifiers) != set(names):
        got, wanted = shown(", ".join(order.identifiers)), ", ".join(names)
        raise AcmeError(f"the CA's order is for {got}, not for {wanted}")


def _chain(reply: Reply) -> tuple[x509.Certificate, ...]:
    try:
        return read_certificates(reply.body)
    except BundleError as error:
        raise CaUnreachable(f"the CA's certificate is not PEM: {error}") from None


def _alternates(url: str, links: Sequence[str]) -> list[str]:
    """The other chains' URLs (RFC 8555 section 7.4.2, RFC 8288), a few of them."""
    found = []
    for target, parameters in _links(", ".join(links)):
        relation = _relation(parameters)
        if relation is not None and "alternate" in relation[1].lower().split():
            found.append(_joined(url, target))
    return [other for other in dict.fromkeys(found) if other != url][:MAX_ALTERNATES]


def _usable_nonce(reply: Reply) -> str | None:
    """Its nonce, if it goes back as it came: what is signed are the bytes it stands for (RFC 8555 section 6.5.1)."""
    nonce = reply.nonce
    if nonce is None or not _is_base64url(nonce):
        return None
    try:
        return nonce if _base64url(_bytes(nonce)) == nonce else None
    except ValueError:
        return None


def _mac_key(text: str) -> bytes:
    text = text.strip()
    try:
        if _is_mac_key(text):
            return _bytes(text.rstrip("="))
    except ValueError:
        pass
    raise AcmeError("acme.eab_hmac_file does not hold base64url, as the CA has given it")


def _base64url(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _thumbprint(key: PrivateKey) -> str:
    """RFC 7638: the hash of the public key's required members, in the order of the alphabet.

    Written out, since it is asked for before there is a thread that has imported what else could tell.
    """
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        members = {"e": _number(numbers.e), "kty": "RSA", "n": _number(numbers.n)}
    else:
        point = key.public_key().public_numbers()
        size = (key.curve.key_size + 7) // 8
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.curve.key_size]
        members = {"crv": curve, "kty": "EC", "x": _number(point.x, size), "y": _number(point.y, size)}
    return _base64url(sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def _number(number: int, size: int = 0) -> str:
    return _base64url(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))
