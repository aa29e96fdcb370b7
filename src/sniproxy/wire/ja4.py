"""JA4, the fingerprint of a TLS client (FoxIO's "JA4+ technical details", BSD-licensed part).

`t13d1516h2_8daaf6152771_e5627efa2ab1`: transport, highest version, SNI or not, number of ciphers and extensions,
first ALPN; then twelve hex digits of the SHA-256 of the sorted ciphers; then of the sorted extensions and the
signature algorithms. GREASE is left out throughout.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sniproxy.wire.client_hello import extensions
from sniproxy.wire.tls import ExtensionType, is_grease

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sniproxy.wire.client_hello import ClientHello

_VERSION_NAMES = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_UNHASHED = {ExtensionType.SERVER_NAME, ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION}


def ja4(hello: ClientHello) -> str:
    """The JA4 fingerprint of a client that speaks TLS over TCP: 36 ASCII characters."""
    bodies = dict(extensions(hello.message))
    kinds = [kind for kind, _ in extensions(hello.message) if not is_grease(kind)]
    ciphers = _without_grease(_cipher_suites(hello.message))
    versions = [version for version in hello.versions if not is_grease(version)]
    signature_algorithms = _u16_list(bodies.get(ExtensionType.SIGNATURE_ALGORITHMS, b"")[2:])
    head = (
        f"t{_VERSION_NAMES.get(max(versions, default=0), '00')}"
        f"{'d' if ExtensionType.SERVER_NAME in bodies else 'i'}"
        f"{min(len(ciphers), 99):02}{min(len(kinds), 99):02}{_alpn_mark(hello.alpn)}"
    )
    hashed = _hex_list(sorted(kind for kind in kinds if kind not in _UNHASHED))
    if hashed and signature_algorithms:
        hashed += "_" + _hex_list(_without_grease(signature_algorithms))
    return f"{head}_{_digest(_hex_list(sorted(ciphers)))}_{_digest(hashed)}"


def _alpn_mark(alpn: tuple[bytes, ...]) -> str:
    if not alpn:
        return "00"
    first, last = alpn[0][:1], alpn[0][-1:]
    if first.isalnum() and last.isalnum():
        return (first + last).decode("ascii")
    return alpn[0].hex()[0] + alpn[0].hex()[-1]


def _cipher_suites(message: bytes) -> list[int]:
    start = 38 + 1 + message[38]
    length = int.from_bytes(message[start : start + 2])
    return _u16_list(message[start + 2 : start + 2 + length])


def _u16_list(body: bytes) -> list[int]:
    return [high << 8 | low for high, low in zip(body[::2], body[1::2], strict=False)]


def _without_grease(values: Iterable[int]) -> list[int]:
    return [value for value in values if not is_grease(value)]


def _hex_list(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _digest(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()[:12] if text else "0" * 12
