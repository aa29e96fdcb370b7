"""Which certificate is served at an address: a TLS handshake that believes everything, looks, and says goodbye.

Nothing is trusted and nothing is sent, so the oldest versions and weakest ciphers that OpenSSL still knows are offered,
too: who asks wants to see what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from sniproxy.bundle import Leaf
from sniproxy.errors import DeliveryError
from sniproxy.model import Address, ProxyProtocol, UnixAddress
from sniproxy.wire.proxy_header import SIGNATURE, encode_v1
from sniproxy.wire.tls import ContentType

if TYPE_CHECKING:
    from collections.abc import Sequence

HANDSHAKE_SECONDS = 5.0
"""For all of it: connect, handshake. HAProxy takes two milliseconds of its own; the rest is the network's."""

GOODBYE_SECONDS = 0.5
"""For the server to close, too. To leave before would reset the connection, and servers write that into their logs."""

MAX_FLIGHT_BYTES: Final = 256 * 1024
"""Of the server, for its handshake: a chain of ten RSA-4096 certificates has a tenth of it."""

_READ_BYTES = 16 * 1024
_SHOWN_BYTES = 80  # of what is no TLS
_DER = 2  # _ssl.ENCODING_DER
_LEGACY_SERVER_CONNECT = 0x4  # SSL_OP_LEGACY_SERVER_CONNECT: servers from before RFC 5746

# LOCAL: a connection of the sender's own, such as a health check (proxy-protocol.txt, section 2.2). HAProxy refuses the
# command PROXY without addresses as soon as TLVs follow.
_HEADERS = {
    ProxyProtocol.OFF: b"",
    ProxyProtocol.V1: encode_v1(None, None),
    ProxyProtocol.V2: SIGNATURE + b"\x20\x00\x00\x00",
}

_RECORD_TYPES = frozenset(ContentType)
# OpenSSL's names of alerts that were received: TLSV1_UNRECOGNIZED_NAME, SSLV3_ALERT_HANDSHAKE_FAILURE.
_alert = re.compile(r"(?:TLSV1|TLSV13|SSLV3)_(?:ALERT_)?([A-Z_]+)").fullmatch

_CONNECT_WORDS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ENOENT: "there is no such socket; HAProxy makes it when it starts",
    errno.EACCES: "this user may not connect to that socket; join HAProxy's group",
    errno.EHOSTUNREACH: "there is no way to that address",
    errno.ENETUNREACH: "there is no way to that address",
}


class Failure(enum.StrEnum):
    """What kept a handshake from its end."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    ALERT = "alert"
    NOT_TLS = "not_tls"
    BROKEN = "broken"
    BAD_NAME = "bad_name"


class HandshakeFailed(DeliveryError):
    """No certificate was seen. `failure` tells why; `alert` is the server's, in OpenSSL's words, if it sent one."""

    def __init__(self, message: str, *, failure: Failure, alert: str | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.alert = alert


@dataclass(frozen=True)
class ServedLeaf(Leaf):
    """The certificate that was served, and how.

    chain: all that were sent, the leaf first; where this Python does not tell them, the leaf alone.
    version: `TLSv1.3`. cipher: OpenSSL's name. alpn: the protocol that was agreed on, None for none.
    """

    chain: tuple[x509.Certificate, ...]
    version: str
    cipher: str
    alpn: str | None


async def served_leaf(
    address: Address,
    server_name: str | None,
    *,
    proxy_protocol: ProxyProtocol = ProxyProtocol.OFF,
    alpn: Sequence[str] = (),
    rsa_only: bool = False,
    seconds: float = HANDSHAKE_SECONDS,
) -> ServedLeaf:
    """The certificate that a client gets which asks for `server_name`; with None it asks for none (RFC 6066 section 3).

    proxy_protocol: the header that the server wants first; it says that the connection is our own.
    alpn: protocols to offer. rsa_only: offer no other kind of key, which takes TLS 1.2 at most.
    seconds: a deadline for all of it.

    Raises HandshakeFailed, whose text begins with the address. The connection is closed in any case.
    """
    probe = _Probe(address, server_name, proxy_protocol)
    try:
        async with asyncio.timeout(seconds):
            await probe.look(_context(alpn, rsa_only=rsa_only))
            await probe.say_goodbye()
    except TimeoutError:
        if probe.leaf is None:
            raise probe.failed(f"{probe.missing} within {seconds:g} s", Failure.TIMEOUT) from None
    finally:
        probe.close()
    assert probe.leaf is not None
    return probe.leaf


class _Probe:
    """One connection. `leaf` is there once the handshake is done; `missing` is what is waited for until then."""

    def __init__(self, address: Address, server_name: str | None, proxy_protocol: ProxyProtocol) -> None:
        self.leaf: ServedLeaf | None = None
        self.missing = "no connection"
        self._address = address
        self._name = server_name
        self._proxy_protocol = proxy_protocol
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._received = 0
        self._first = b""

    async def look(self, context: ssl.SSLContext) -> None:
        try:
            tls = self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=self._name)
        except ValueError:  # UnicodeError as well: host names have to be such for ssl
            raise self.failed(f"{self._name!r} is no name to ask for", Failure.BAD_NAME) from None
        reader, writer = self._streams = await self._connect()
        self.missing = "no TLS handshake"
        writer.write(_HEADERS[self._proxy_protocol])
        try:
            while not self._goes_on(tls):
                await self._flush(writer)
                await self._receive(reader)
            await self._flush(writer)
        except ssl.SSLError as error:
            raise self._refusal(error) from None
        except OSError:
            raise self._closed() from None
        self.leaf = self._read_off(tls)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._address
        try:
            if isinstance(address, UnixAddress):
                return await asyncio.open_unix_connection(address.socket_address)
            return await asyncio.open_connection(address.host, address.port)
        except socket.gaierror as error:
            raise self.failed(f"the name cannot be looked up ({error.strerror})", Failure.UNREACHABLE) from None
        except OSError as error:
            words = _CONNECT_WORDS.get(error.errno or 0) or error.strerror or str(error)
            raise self.failed(words, Failure.UNREACHABLE) from None

    def _goes_on(self, tls: ssl.SSLObject) -> bool:
        """As far as it gets with what is there; True when the handshake is done."""
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self._outgoing.read())
        await writer.drain()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        part = await reader.read(_READ_BYTES)
        if not part:
            raise self._closed()
        self._received += len(part)
        if self._received > MAX_FLIGHT_BYTES:
            raise self.failed("a handshake without end", Failure.BROKEN)
        if len(self._first) < _SHOWN_BYTES:
            self._first = (self._first + part)[:_SHOWN_BYTES]
            self._must_be_tls()
        self._incoming.write(part)

    def _must_be_tls(self) -> None:
        """The type of a record and the first byte of its version tell TLS from what is not (RFC 8446 section 5.1)."""
        first = self._first
        if first[0] in _RECORD_TYPES and first[1:2] in (b"", b"\x03"):
            return
        line = re.split(rb"[\r\n]", first, maxsplit=1)[0].decode("latin-1")
        shown = "".join(char if char.isprintable() else "?" for char in line)
        raise self.failed(f'it does not speak TLS, but says "{shown}"', Failure.NOT_TLS)

    def _read_off(self, tls: ssl.SSLObject) -> ServedLeaf:
        try:
            chain = tuple(map(x509.load_der_x509_certificate, _sent_chain(tls)))
        except ValueError as error:
            raise self.failed(f"its certificate cannot be read: {error}", Failure.BROKEN) from None
        if not chain:
            raise self.failed("it sends no certificate", Failure.BROKEN)
        cipher = tls.cipher()
        return ServedLeaf(
            chain[0],
            chain=chain,
            version=tls.version() or "",
            cipher=cipher[0] if cipher is not None else "",
            alpn=tls.selected_alpn_protocol(),
        )

    async def say_goodbye(self) -> None:
        """close_notify (RFC 8446 section 6.1), and a moment for the server to close, too."""
        assert self._tls is not None
        assert self._streams is not None
        reader, writer = self._streams
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # writes it, and would like to have the server's
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._flush(writer)
                writer.write_eof()
                while await reader.read(_READ_BYTES):
                    pass

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()

    # ------------------------------------------------------------------ what went wrong

    def failed(self, words: str, failure: Failure, *, alert: str | None = None) -> HandshakeFailed:
        return HandshakeFailed(f"{self._address}: {words}", failure=failure, alert=alert)

    def _refusal(self, error: ssl.SSLError) -> HandshakeFailed:
        reason = error.reason or "an error without a name"
        match = _alert(reason)
        if match is None:
            return self.failed(f"the handshake fails: {_plain(reason)}", Failure.BROKEN)
        alert = _plain(match[1])
        about = f"for {self._name}" if self._name is not None else "for clients that ask for no name"
        hint = f"; it has no certificate {about}" if alert == "unrecognized name" else ""
        return self.failed(f'it refuses with the alert "{alert}"{hint}', Failure.ALERT, alert=alert)

    def _closed(self) -> HandshakeFailed:
        if self._received:
            return self.failed("it closes in the middle of the handshake", Failure.CLOSED)
        if self._proxy_protocol is ProxyProtocol.OFF:
            hint = "a bind line with accept-proxy does that to whoever sends no PROXY header"
        else:
            hint = "a bind line without accept-proxy does that to whoever sends a PROXY header"
        return self.failed(f"it closes without a word; {hint}", Failure.CLOSED)


def _context(alpn: Sequence[str], *, rsa_only: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= _LEGACY_SERVER_CONNECT
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    if rsa_only:
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the ciphers of 1.3 say nothing about the key
    context.set_ciphers(("aRSA" if rsa_only else "ALL") + ":!aNULL:!eNULL:!PSK:!SRP:@SECLEVEL=0")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _sent_chain(tls: ssl.SSLObject) -> list[bytes]:
    """The certificates that were sent, as DER: the leaf at least, all of them where this Python tells."""
    leaf = tls.getpeercert(binary_form=True)
    if leaf is None:
        return []
    try:
        # Public since 3.13 (SSLObject.get_unverified_chain), there since 3.10.
        return [sent.public_bytes(_DER) for sent in tls._sslobj.get_unverified_chain()]  # type: ignore[attr-defined]  # noqa: SLF001
    except (AttributeError, TypeError):
        return [leaf]


def _plain(reason: str) -> str:
    return reason.lower().replace("_", " ")
