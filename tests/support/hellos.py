"""Builds what clients send first, part by part, so that each part can be made wrong.

Everything here is bytes in, bytes out, from the inside to the outside: an entry, an extension, a message, records.
A `claim` is the length written in front of a part instead of its true one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVER_NAME = 0
SIGNATURE_ALGORITHMS = 13
ALPN = 16
SUPPORTED_VERSIONS = 43
ENCRYPTED_CLIENT_HELLO = 0xFE0D

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23

RANDOM = bytes(range(32))
CIPHERS = (0x1301, 0xC02F)


def prefixed(width: int, body: bytes, *, claim: int | None = None) -> bytes:
    """`body` behind its length in `width` bytes."""
    return (len(body) if claim is None else claim).to_bytes(width) + body


def u16_list(values: Iterable[int]) -> bytes:
    return b"".join(value.to_bytes(2) for value in values)


# -- extensions


def extension(kind: int, body: bytes = b"", *, claim: int | None = None) -> bytes:
    return kind.to_bytes(2) + prefixed(2, body, claim=claim)


def name_entry(name: str | bytes, *, name_type: int = 0, claim: int | None = None) -> bytes:
    """One ServerName of the list in a server_name extension (RFC 6066 section 3)."""
    raw = name.encode("ascii") if isinstance(name, str) else name
    return bytes((name_type,)) + prefixed(2, raw, claim=claim)


def server_name(
    *entries: str | bytes, list_claim: int | None = None, claim: int | None = None, tail: bytes = b""
) -> bytes:
    """A server_name extension: text becomes a host_name entry, bytes are entries already."""
    names = b"".join(name_entry(entry) if isinstance(entry, str) else entry for entry in entries)
    return extension(SERVER_NAME, prefixed(2, names, claim=list_claim) + tail, claim=claim)


def alpn(*protocols: bytes, list_claim: int | None = None, claim: int | None = None, tail: bytes = b"") -> bytes:
    """An application_layer_protocol_negotiation extension (RFC 7301 section 3.1)."""
    names = b"".join(prefixed(1, protocol) for protocol in protocols)
    return extension(ALPN, prefixed(2, names, claim=list_claim) + tail, claim=claim)


def supported_versions(*versions: int) -> bytes:
    return extension(SUPPORTED_VERSIONS, prefixed(1, u16_list(versions)))


def signature_algorithms(*schemes: int) -> bytes:
    return extension(SIGNATURE_ALGORITHMS, prefixed(2, u16_list(schemes)))


# -- the message


def client_hello(
    *extensions: bytes,
    legacy_version: int = 0x0303,
    session_id: bytes = b"",
    session_id_claim: int | None = None,
    ciphers: Iterable[int] = CIPHERS,
    ciphers_claim: int | None = None,
    compression: bytes = b"\0",
    compression_claim: int | None = None,
    extensions_claim: int | None = None,
    extensions_block: bool = True,
    tail: bytes = b"",
    claim: int | None = None,
    message_type: int = 1,
) -> bytes:
    """A ClientHello handshake message with its header (RFC 8446 section 4.1.2).

    Without `extensions_block` it ends behind the compression methods, as those of SSL 3.0 do.
    """
    body = legacy_version.to_bytes(2) + RANDOM
    body += prefixed(1, session_id, claim=session_id_claim)
    body += prefixed(2, u16_list(ciphers), claim=ciphers_claim)
    body += prefixed(1, compression, claim=compression_claim)
    if extensions_block:
        body += prefixed(2, b"".join(extensions), claim=extensions_claim)
    return bytes((message_type,)) + prefixed(3, body + tail, claim=claim)


def padded_hello(length: int, name: str = "git.example.com") -> bytes:
    """A message of exactly `length` bytes, filled up by a padding extension (RFC 7685)."""
    return client_hello(
        server_name(name), extension(21, bytes(length - len(client_hello(server_name(name), extension(21)))))
    )


# -- records


def record(fragment: bytes, *, content_type: int = HANDSHAKE, version: int = 0x0301, claim: int | None = None) -> bytes:
    """One TLSPlaintext (RFC 8446 section 5.1)."""
    return bytes((content_type,)) + version.to_bytes(2) + prefixed(2, fragment, claim=claim)


def fragments(message: bytes, *sizes: int) -> Iterator[bytes]:
    """The message in portions of these sizes; the last size is used until nothing is left."""
    position = 0
    for number in range(len(message)):
        if position >= len(message):
            return
        size = sizes[min(number, len(sizes) - 1)]
        yield message[position : position + size]
        position += size


def records(message: bytes, *sizes: int) -> bytes:
    """The message over several records, their fragments of these sizes."""
    return b"".join(record(fragment) for fragment in fragments(message, *sizes))


def hello(name: str | None = "git.example.com", *protocols: bytes) -> bytes:
    """What an ordinary client sends: one record with one ClientHello."""
    extensions = [extension(23), extension(35), supported_versions(0x0304, 0x0303)]
    if name is not None:
        extensions.insert(0, server_name(name))
    if protocols:
        extensions.append(alpn(*protocols))
    return record(client_hello(*extensions, session_id=bytes(32)))


def sslv2_hello(
    version: int = 0x0303, *, ciphers: bytes = b"\0\0\x2f\x01\0\x80", challenge: bytes = bytes(16)
) -> bytes:
    """A ClientHello in the framing of SSL 2.0 (RFC 5246 appendix E.2)."""
    body = b"\x01" + version.to_bytes(2) + u16_list((len(ciphers), 0, len(challenge))) + ciphers + challenge
    return (0x8000 | len(body)).to_bytes(2) + body
