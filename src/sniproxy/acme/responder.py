"""Answers validations while they are pending, and nobody else at any time.

A TLS server on a unix socket that only this user can use: the router sends it those connections that are validations
of ours, and the relay treats it like any other server. It reads the ClientHello itself, so that there is a
certificate for exactly those who ask for a pending name in the way the challenge wants it, and an alert for all
others. After the handshake it closes: no byte of application data is ever read or sent (RFC 8737 section 3).

http-01 has no connection of its own here: port 80 asks for the answer by its token.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

from sniproxy.acme.challenges import ChallengeType, tls_answer
from sniproxy.bundle import utc_now
from sniproxy.errors import HelloTooLarge, MalformedHello, NotTls, StartError, StoreError
from sniproxy.model import UnixAddress
from sniproxy.policy.routing import ACME_TLS_1
from sniproxy.wire.alert import fatal_alert
from sniproxy.wire.client_hello import HelloReader
from sniproxy.wire.tls import AlertDescription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sniproxy.bundle import Bundle
    from sniproxy.wire.client_hello import ClientHello

HANDSHAKE_SECONDS = 2.0
"""From accept to the end of the handshake, all of it. The hello is there already, and two round trips follow: this
covers one retransmission. Without it, one that stops half-way stays for ever (CVE-2026-22045)."""

SHUTDOWN_SECONDS = 1.0
"""For the validator to read the last flight and close."""

MAX_CONNECTIONS = 256
"""At once. An order of 100 names, the most that public CAs take, is looked at from five places: 500 handshakes of
two round trips each within a second or two. Each may take 60 KB."""

MAX_HELLO_BYTES = 128 * 1024
"""As the largest proxy.max_hello: what the relay has let through is not refused here."""

_BACKLOG = 1024
_READ_BYTES = 16 * 1024
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7))
_NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL (memfd_create(2)), which Python does not know yet

ItemT = TypeVar("ItemT")


@dataclass(slots=True, kw_only=True, eq=False)
class Answering:
    """One challenge that is being answered, and what came of it so far.

    answered: validations that went all the way: nobody asked, where it is 0. failed: handshakes that broke off.
    reported: the operator was told of one.
    """

    challenge_type: str
    identifier: str
    answered: int = 0
    failed: int = 0
    reported: bool = False


def _by_type() -> dict[str, int]:
    return dict.fromkeys(map(str, ChallengeType), 0)


@dataclass(slots=True, kw_only=True)
class ResponderCounts:
    """What has happened since the start.

    answered, failed: validations by type of challenge; of http-01, how often a token was asked for.
    refused: connections that were no validation of anything pending. over_cap: closed, as there were too many.
    strangers: closed, as they came from another user of this machine.
    """

    answered: dict[str, int] = field(default_factory=_by_type)
    failed: dict[str, int] = field(default_factory=_by_type)
    refused: int = 0
    over_cap: int = 0
    strangers: int = 0


@dataclass(kw_only=True, eq=False)
class _Served:
    """What one server name gets."""

    challenge: Answering
    bundle: Bundle = field(repr=False)
    alpn: bool

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Takes a millisecond: of the many certificates of one tls-sni-01 challenge, most are never asked for."""
        return _context(self.bundle.pem, alpn=self.alpn)


class _Refused(Exception):
    """Not a validation of anything pending; `alert` says which way."""

    def __init__(self, alert: AlertDescription) -> None:
        self.alert = alert
        super().__init__(alert.name)


class Responder:
    """Answers what is pending. Made and used within one event loop; `start`, and `close` when done.

    report: gets a line for the operator. bug: an exception that should not have been.
    """

    def __init__(
        self,
        *,
        report: Callable[[str], None],
        bug: Callable[[BaseException], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.counts = ResponderCounts()
        self._report = report
        self._bug = bug
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        # By server name and by token. The newest of several is served: the older ones may be answered by now.
        self._tls: dict[str, list[_Served]] = {}
        self._http: dict[str, list[tuple[Answering, str]]] = {}

    async def start(self) -> UnixAddress:
        """Listens; returns where, a name that nobody can know beforehand. Raises StartError."""
        address = UnixAddress(f"@sniproxy-acme-{token_hex(16)}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(address.socket_address)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listening, backlog=_BACKLOG, limit=_READ_BYTES
            )
        except OSError as error:
            listening.close()
            raise StartError(f"the ACME responder cannot listen on {address}: {error.strerror or error}") from error
        return address

    async def close(self) -> None:
        """Stops listening and cuts what is left."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # ------------------------------------------------------------------ what is pending

    @contextmanager
    def answering(
        self, challenge_type: str, identifier: str, token: str, key_authorization: str, iterations: int = 1
    ) -> Iterator[Answering]:
        """Answers one challenge from enter to exit, however often: a CA looks from several places.

        identifier: a DNS name or an IP address. iterations: tls-sni-01's `n`. Where two are pending for one name, each
        lasts as long as it should, and the one that began last is served. Raises StoreError where this machine cannot
        keep a key in memory only, OrderFailed where the CA asks for too much.
        """
        challenge = Answering(challenge_type=challenge_type, identifier=identifier)
        if challenge_type == ChallengeType.HTTP_01:
            answer = (challenge, key_authorization)
            _add(self._http, token, answer)
            try:
                yield challenge
            finally:
                _remove(self._http, token, answer)
            return
        certificates = tls_answer(
            challenge_type, identifier, token, key_authorization, now=utc_now(), iterations=iterations
        )
        served = [
            (name, _Served(challenge=challenge, bundle=bundle, alpn=certificates.alpn))
            for name, bundle in zip(certificates.server_names, certificates.bundles, strict=True)
        ]
        _ = served[0][1].context  # a machine that cannot do it says so here, not to the CA
        for name, item in served:
            _add(self._tls, name, item)
        try:
            yield challenge
        finally:
            for name, item in served:
                _remove(self._tls, name, item)

    def is_pending(self, name: str) -> bool:
        """Whether a TLS validation asks for this server name (lower case) now: what a Router wants to know."""
        return name in self._tls

    @property
    def has_pending(self) -> bool:
        """Whether any TLS validation may come now."""
        return bool(self._tls)

    def http_answer(self, token: str) -> str | None:
        """The key authorization for a pending http-01 token; None for any other."""
        pending = self._http.get(token)
        if not pending:
            return None
        challenge, answer = pending[-1]
        self._answered(challenge)
        return answer

    # ------------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if _user_of(writer) != os.geteuid():
                self.counts.strangers += 1
            elif len(self._connections) > self._max_connections:
                self._too_many()
            else:
                await self._answer(reader, writer)
                await _part(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # out of time, or gone: a validator that has seen enough resets the connection
        except Exception as error:  # noqa: BLE001
            self._bug(error)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One handshake, to its end or to an alert."""
        served = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                hello, first = await _read_hello(reader)
                served = self._served(hello)
                await _shake_hands(served.context, first, reader, writer)
        except NotTls:
            self.counts.refused += 1
        except (MalformedHello, HelloTooLarge, _Refused) as error:
            self.counts.refused += 1
            writer.write(fatal_alert(error.alert))
        except ssl.SSLError as error:
            assert served is not None
            self._failed(served.challenge, error.reason or "the TLS handshake failed")
        except OSError as error:
            if served is None:
                self.counts.refused += 1
            else:
                # Leaving is not worth a word: whoever has seen enough may.
                late = isinstance(error, TimeoutError)
                self._failed(served.challenge, f"no handshake within {HANDSHAKE_SECONDS:g} s" if late else "")
            raise
        else:
            self._answered(served.challenge)

    def _served(self, hello: ClientHello) -> _Served:
        pending = self._tls.get(hello.host_name or "", [])
        for served in reversed(pending):
            if not served.alpn or hello.alpn == ACME_TLS_1:
                return served
        # RFC 6066 section 3, RFC 7301 section 3.2.
        raise _Refused(AlertDescription.NO_APPLICATION_PROTOCOL if pending else AlertDescription.UNRECOGNIZED_NAME)

    def _answered(self, challenge: Answering) -> None:
        challenge.answered += 1
        self.counts.answered[challenge.challenge_type] += 1

    def _failed(self, challenge: Answering, why: str) -> None:
        challenge.failed += 1
        self.counts.failed[challenge.challenge_type] += 1
        if why and not challenge.reported:  # once: who fails can do so as often as it likes
            challenge.reported = True
            self._report(f"{challenge.identifier}: a {challenge.challenge_type} validation broke off: {why}")

    def _too_many(self) -> None:
        self.counts.over_cap += 1
        if self.counts.over_cap == 1:
            self._report(f"more than {self._max_connections} validations at once: those above are closed, and counted")


def _add(pending: dict[str, list[ItemT]], key: str, item: ItemT) -> None:
    pending.setdefault(key, []).append(item)


def _remove(pending: dict[str, list[ItemT]], key: str, item: ItemT) -> None:
    """Takes out this one, which equals no other, and the key with the last."""
    items = pending[key]
    items.remove(item)
    if not items:
        del pending[key]


def _user_of(writer: asyncio.StreamWriter) -> int:
    """Who has connected (unix(7), SO_PEERCRED): an abstract name has no permissions of its own."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
    )
    return int(_PEER_CREDENTIALS.unpack(credentials)[1])


async def _read_hello(reader: asyncio.StreamReader) -> tuple[ClientHello, bytes]:
    """The hello, and all bytes that came up to its end and behind it. Raises WireError, or ConnectionError."""
    hellos = HelloReader(MAX_HELLO_BYTES)
    while (hello := hellos.feed(await _some(reader))) is None:
        pass
    return hello, bytes(hellos.raw)


async def _shake_hands(
    context: ssl.SSLContext, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A handshake whose first bytes have been read already, and close_notify behind it. Raises OSError."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(first)
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    over = False
    try:
        while not over:
            try:
                tls.do_handshake()
                over = True
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await _some(reader))
        try:
            tls.unwrap()
        except ssl.SSLError:
            pass  # its own close_notify is not waited for
    finally:
        writer.write(outgoing.read())  # the last flight, or the alert that says what is wrong


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(_READ_BYTES)
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, "the client left")
    return data


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lets the client read what it was sent: closing with bytes of it unread would take that away."""
    async with asyncio.timeout(SHUTDOWN_SECONDS):
        await writer.drain()
        if not writer.transport.is_closing():
            writer.write_eof()
        while await reader.read(_READ_BYTES):
            pass


def _context(pem: bytes, *, alpn: bool) -> ssl.SSLContext:
    """A server's TLS context for key and certificate, which touch no disk. Raises StoreError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8737 section 4
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # nobody resumes, and a ticket unread would turn the validator's close into a reset
    if alpn:
        context.set_alpn_protocols([protocol.decode("ascii") for protocol in ACME_TLS_1])
    try:
        descriptor = _memory_file()
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        raise StoreError(
            "a challenge's key cannot be kept in memory: memfd_create and /proc are needed"
            f" ({getattr(error, 'strerror', None) or type(error).__name__}); http-01 works without"
        ) from None
    return context


def _memory_file() -> int:
    try:
        # A kernel with vm.memfd_noexec=2 takes no other.
        return os.memfd_create("sniproxy-challenge", os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("sniproxy-challenge", os.MFD_CLOEXEC)  # before Linux 6.3
