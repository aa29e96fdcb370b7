"""The ClientHello: collected over records and segments, then read (RFC 8446 sections 4.1.2 and 5.1).

Two steps, so that each is simple. `HelloReader` collects exactly one handshake message, whatever the
segmentation: each byte is looked at once, and a verdict that no further byte could change is given at once.
`parse_client_hello` then is a total function on the complete message.

The framing of everything is checked to its end, also of fields nobody needs: a reader that skips a length picks
another name than the TLS stack behind it will, and that is how a connection reaches the wrong backend.
"""

from __future__ import annotations

import re
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Final

from sniproxy.errors import HelloTooLarge, MalformedHello, NotTls
from sniproxy.wire.tls import (
    CLIENT_HELLO,
    HANDSHAKE_HEADER_BYTES,
    MAX_CLIENT_HELLO_BYTES,
    MAX_FRAGMENT_BYTES,
    RECORD_HEADER_BYTES,
    AlertDescription,
    ContentType,
    ExtensionType,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_u16 = Struct("!H").unpack_from
_extension_header = Struct("!HH").unpack_from

# Plain ints: an enum member costs an attribute look-up each time round the loop over the extensions.
_HANDSHAKE: Final = int(ContentType.HANDSHAKE)
_SERVER_NAME: Final = int(ExtensionType.SERVER_NAME)
_ALPN: Final = int(ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION)
_SUPPORTED_VERSIONS: Final = int(ExtensionType.SUPPORTED_VERSIONS)

_READ: Final = frozenset((_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS))

_MAX_SERVER_NAME_BYTES = 255  # as OpenSSL: the longest DNS name in its wire form (RFC 1035 section 2.3.4)
_MAX_SESSION_ID_BYTES = 32

# A host name as RFC 6066 section 3 means it: ASCII labels of letters, digits, hyphens, and the underscore that
# real deployments use. The last label is not all digits, which rules out IPv4 literals.
_host_name = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"(?![0-9]+\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
).fullmatch


def is_host_name(name: str) -> bool:
    """Whether a name in lower case is a host name by RFC 6066 section 3: what alone may match a route."""
    return _host_name(name) is not None


class ClientHello:
    """What a client asks for.

    server_name: the name as sent, lower case, without one trailing dot; None when the extension is absent or the
        name is empty. It may be anything printable or not: only `host_name` may be matched, or used as a name.
    host_name: `server_name` where it is a host name by RFC 6066, else None.
    alpn: the protocols offered, in the client's order, as bytes; empty without the extension.
    message: the whole handshake message, header included, without record headers.
    """

    __slots__ = ("_versions", "alpn", "host_name", "legacy_version", "message", "server_name")

    def __init__(
        self, server_name: str | None, alpn: tuple[bytes, ...], legacy_version: int, versions: bytes, message: bytes
    ) -> None:
        self.server_name = server_name
        self.host_name = server_name if server_name is not None and _host_name(server_name) else None
        self.alpn = alpn
        self.legacy_version = legacy_version
        self._versions = versions
        self.message = message

    # Only `explain` and the fingerprint ask for these two: they are worked out when asked for.

    @property
    def versions(self) -> tuple[int, ...]:
        """Protocol versions offered, as sent (0x0304 is TLS 1.3), GREASE included, the client's preference first.

        `supported_versions` where that is present and well formed (RFC 8446 section 4.2.1), else `legacy_version`.
        """
        body = self._versions
        if len(body) < 3 or body[0] != len(body) - 1 or body[0] & 1:
            return (self.legacy_version,)
        return tuple(high << 8 | low for high, low in zip(body[1::2], body[2::2], strict=True))

    @property
    def ech(self) -> bool:
        """An encrypted_client_hello extension is there, real or GREASE (RFC 9849): the name is the outer one."""
        return any(kind == ExtensionType.ENCRYPTED_CLIENT_HELLO for kind, _ in extensions(self.message))

    def __repr__(self) -> str:
        return f"<ClientHello {self.server_name!r} alpn={self.alpn!r}>"


class HelloReader:
    """Collects the first handshake message of one connection and reads it.

    Feed it the stream as it comes, in any portions; `raw` keeps every byte fed, those behind the hello included,
    to be sent on unchanged. A message of more than `cap` bytes, or one whose records take more than twice that on the
    wire, is refused. (Twice: the shortest fragmentation seen in the wild, six bytes a record, stays below it.)
    """

    __slots__ = ("_cap", "_left", "_message", "_position", "_wanted", "raw")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self.raw = bytearray()
        self._position = 0  # in raw: everything before it has been taken in
        self._left = 0  # bytes of the current record's fragment still to come
        self._message = bytearray()
        self._wanted = 0  # length of the whole message, 0 until its header is complete

    def feed(self, data: bytes | memoryview) -> ClientHello | None:
        """Takes in the next bytes; returns the hello once it is complete, None while more are needed.

        Raises NotTls, MalformedHello or HelloTooLarge as soon as the field that settles it is there. The portions
        make no difference: neither to what comes out, nor to which of the errors it is.
        """
        raw = self.raw
        raw += data
        message = self._message
        end = len(raw)
        while True:
            if not self._left:
                if not self._begin_record():
                    return None
            elif self._position == end:
                return None
            # Nothing is taken from behind the limit, or it would depend on the portions whether a fragment across
            # it is refused.
            fragment_end = min(self._position + self._left, end, 2 * self._cap)
            message += raw[self._position : fragment_end]
            self._left -= fragment_end - self._position
            self._position = fragment_end
            if not self._wanted and message:
                self._wanted = _message_length(message, self._cap)
            if self._wanted and len(message) >= self._wanted:
                return parse_client_hello(bytes(message[: self._wanted]))
            if self._position >= 2 * self._cap:
                text = f"its records take more than {2 * self._cap} bytes on the wire"
                raise HelloTooLarge(text, alert=AlertDescription.ILLEGAL_PARAMETER)

    def _begin_record(self) -> bool:
        """Reads the record header at the current position; False while it is incomplete."""
        raw, position = self.raw, self._position
        if position == 0 and not _starts_like_tls(raw):
            return False
        if len(raw) - position < RECORD_HEADER_BYTES:
            _check_partial_header(raw, position)
            return False
        _check_partial_header(raw, position)
        length = _u16(raw, position + 3)[0]
        if length > MAX_FRAGMENT_BYTES:
            raise MalformedHello(f"a record of {length} bytes", alert=AlertDescription.RECORD_OVERFLOW)
        if not length:
            # RFC 8446 section 5.1: no zero-length fragments of Handshake types.
            raise MalformedHello("an empty handshake record", alert=AlertDescription.UNEXPECTED_MESSAGE)
        self._left = length
        self._position = position + RECORD_HEADER_BYTES
        return True


def read_whole(data: bytes, cap: int) -> ClientHello | None:
    """The hello when `data` begins with one record that holds exactly one: the first flight of most clients.

    None means only that this short cut does not apply; `HelloReader` then decides. Raises MalformedHello for a
    complete message that breaks a rule. It saves the copies and the state of HelloReader, 2 µs of 5.
    """
    if len(data) < 9 or data[0] != _HANDSHAKE or data[1] != 3 or data[5] != CLIENT_HELLO:
        return None
    fragment = _u16(data, 3)[0]
    if data[6] or _u16(data, 7)[0] + HANDSHAKE_HEADER_BYTES != fragment:
        return None
    end = RECORD_HEADER_BYTES + fragment
    if end > len(data) or fragment > MAX_FRAGMENT_BYTES or fragment > cap:
        return None
    return parse_client_hello(data[RECORD_HEADER_BYTES:end])


def parse_client_hello(message: bytes) -> ClientHello:
    """Reads one complete ClientHello handshake message, header included.

    Raises MalformedHello with the alert to send when any length in it does not add up, an extension stands twice
    (RFC 8446 section 4.2), or the server_name or ALPN body breaks its own rules.
    """
    try:
        return _parse(message)
    except (IndexError, ValueError, struct_error) as error:
        # Reading past the end: an inner length reaches out of its container.
        raise _malformed("a length that reaches past the end") from error


def _parse(message: bytes) -> ClientHello:
    end = len(message)
    legacy_version = _u16(message, 4)[0]
    position = 38  # behind the handshake header, legacy_version and random
    if message[position] > _MAX_SESSION_ID_BYTES:
        raise _malformed("a session id of more than 32 bytes")
    position += 1 + message[position]
    ciphers = _u16(message, position)[0]
    if ciphers & 1:
        raise _malformed("an odd number of bytes of cipher suites")
    position += 2 + ciphers
    position += 1 + message[position]
    server_name: str | None = None
    alpn: tuple[bytes, ...] = ()
    versions = b""
    if position != end:
        if position + 2 + _u16(message, position)[0] != end:
            raise _malformed("the extensions do not end where the message does")
        position += 2
        seen = 0
        while position < end:
            kind, length = _extension_header(message, position)
            position += 4 + length
            if kind not in _READ:
                continue
            # Those we read must not stand twice; of others OpenSSL lets copies pass, and so do we.
            if seen >> kind & 1:
                raise MalformedHello("an extension that stands twice", alert=AlertDescription.ILLEGAL_PARAMETER)
            seen |= 1 << kind
            body = message[position - length : position]
            if kind == _SERVER_NAME:
                server_name = _server_name(body)
            elif kind == _ALPN:
                alpn = _protocol_names(body)
            else:
                versions = body
        if position != end:
            raise _malformed("an extension that reaches past the end")
    return ClientHello(server_name, alpn, legacy_version, versions, message)


def _malformed(text: str) -> MalformedHello:
    return MalformedHello(text, alert=AlertDescription.DECODE_ERROR)


def _starts_like_tls(raw: bytearray) -> bool:
    """True for a TLS handshake record, False while that is open; raises NotTls for anything else."""
    if not raw:
        return False
    first = raw[0]
    if first == _HANDSHAKE:
        if len(raw) < 2:
            return False
        if raw[1] == 3:
            return True
    elif first & 0x80:
        # SSL 2.0 framing (RFC 5246 appendix E.2): two bytes of length, message type 1, then a version.
        if len(raw) < 5 and bytes(raw[2:3]) in (b"", b"\x01") and bytes(raw[3:4]) in (b"", b"\x00", b"\x03"):
            return False
        if raw[2] == CLIENT_HELLO and (raw[3] == 3 or raw[3:5] == b"\x00\x02"):
            raise NotTls("an SSL 2.0 ClientHello, which cannot carry a server name", sslv2=True)
    raise NotTls("not a TLS handshake record")


def _check_partial_header(raw: bytearray, position: int) -> None:
    """Content type and major version of the record header at `position`, as far as it is there."""
    if len(raw) > position and raw[position] != _HANDSHAKE:
        text = f"a record of type {raw[position]} inside the hello"
        raise MalformedHello(text, alert=AlertDescription.UNEXPECTED_MESSAGE)
    # The minor version is ignored, as RFC 8446 section 5.1 demands.
    if len(raw) > position + 1 and raw[position + 1] != 3:
        text = f"a record of version {raw[position + 1]}.x inside the hello"
        raise MalformedHello(text, alert=AlertDescription.PROTOCOL_VERSION)


def _message_length(message: bytearray, cap: int) -> int:
    """Length of the whole handshake message, its header included, from that header; 0 while that is incomplete."""
    if message[0] != CLIENT_HELLO:
        text = f"a handshake message of type {message[0]}, not a ClientHello"
        raise MalformedHello(text, alert=AlertDescription.UNEXPECTED_MESSAGE)
    if len(message) < HANDSHAKE_HEADER_BYTES:
        return 0
    body = int.from_bytes(message[1:HANDSHAKE_HEADER_BYTES])
    if body > MAX_CLIENT_HELLO_BYTES:
        raise _malformed(f"a length of {body} bytes, more than any ClientHello can have")
    if body + HANDSHAKE_HEADER_BYTES > cap:
        text = f"a ClientHello of {body + HANDSHAKE_HEADER_BYTES} bytes, more than max_hello"
        raise HelloTooLarge(text, alert=AlertDescription.ILLEGAL_PARAMETER)
    return body + HANDSHAKE_HEADER_BYTES


def _server_name(body: bytes) -> str | None:
    """RFC 6066 section 3. One host_name and nothing else, as OpenSSL and every client in use have it."""
    length = len(body)
    if length < 5 or _u16(body)[0] != length - 2 or body[2] or _u16(body, 3)[0] != length - 5:
        raise _malformed("a server_name extension that is not one host_name")
    name = body[5:]
    if len(name) > _MAX_SERVER_NAME_BYTES or 0 in name or not name.isascii():
        text = "a server name that is too long, holds a NUL or is not ASCII"
        raise MalformedHello(text, alert=AlertDescription.UNRECOGNIZED_NAME)
    return name.decode("ascii").lower().removesuffix(".") or None


def _protocol_names(body: bytes) -> tuple[bytes, ...]:
    """RFC 7301 section 3.1: a non-empty list of non-empty names."""
    end = len(body)
    if end < 4 or _u16(body)[0] != end - 2:
        raise _malformed("an ALPN extension whose length does not add up")
    names = []
    position = 2
    while position < end:
        start = position + 1
        position = start + body[position]
        if position == start or position > end:
            raise _malformed("an ALPN protocol name that is empty or reaches past the end")
        names.append(body[start:position])
    return tuple(names)


def extensions(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The extensions of a ClientHello that `parse_client_hello` has accepted, in order: type and body."""
    position = 38 + 1 + message[38]
    position += 2 + _u16(message, position)[0]
    position += 1 + message[position]
    position += 2
    while position < len(message):
        kind, length = _extension_header(message, position)
        yield kind, message[position + 4 : position + 4 + length]
        position += 4 + length
