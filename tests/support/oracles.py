"""Readers of ClientHellos that are not ours, to compare with: tlslite-ng, OpenSSL, and JA4 as its paper has it."""

from __future__ import annotations

import contextlib
import functools
import ssl
import warnings
from dataclasses import dataclass
from hashlib import sha256

from tlslite.messages import ClientHello
from tlslite.utils.codec import Parser


@dataclass(frozen=True)
class Reading:
    """What a hello says, names as sent; `server_name` is None where there is none or an empty one."""

    server_name: bytes | None
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]
    ech: bool
    legacy_version: int


def tlslite_reading(message: bytes) -> Reading | None:
    """What tlslite-ng reads from a whole handshake message; None when it refuses it."""
    hello = _tlslite_parse(message)
    if hello is None:
        return None
    try:
        alpn = hello.getExtension(16)
        versions = hello.getExtension(43)
        return Reading(
            server_name=bytes(hello.server_name) or None,
            alpn=tuple(bytes(name) for name in (alpn.protocol_names or ())) if alpn else (),
            versions=_versions(versions.versions) if versions else (_pair(hello.client_version),),
            ech=hello.getExtension(0xFE0D) is not None,
            legacy_version=_pair(hello.client_version),
        )
    except Exception:
        # Its properties choke on bodies its parser let pass; either way it does not read this hello.
        return None


def openssl_server_name(stream: bytes) -> tuple[bool, str | None]:
    """Whether an OpenSSL server accepts these bytes as a hello, and the name its servername callback is given.

    It calls that once all extensions are read, and before it needs a certificate.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = _openssl_server().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(stream)
    _told.clear()
    with contextlib.suppress(ssl.SSLError):
        server.do_handshake()
    return bool(_told), _told[0] if _told else None


def reference_ja4(message: bytes) -> str:
    """JA4 step by step as its description tells it, from what tlslite-ng has read; no hurry and no cleverness."""
    hello = _tlslite_parse(message)
    assert hello is not None
    ciphers = [suite for suite in hello.cipher_suites if not _grease(suite)]
    kinds = [extension.extType for extension in hello.extensions or () if not _grease(extension.extType)]
    versions = hello.getExtension(43)
    offered = _versions(versions.versions) if versions else (_pair(hello.client_version),)
    version = max((value for value in offered if not _grease(value)), default=0)
    alpn = hello.getExtension(16)
    first = bytes(alpn.protocol_names[0]) if alpn and alpn.protocol_names else b""
    signatures = hello.getExtension(13)
    schemes = [_pair(scheme) for scheme in (signatures.sigalgs or ())] if signatures else []

    part_a = "t"
    part_a += {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}.get(version, "00")
    part_a += "d" if 0 in kinds else "i"
    part_a += f"{min(len(ciphers), 99):02d}{min(len(kinds), 99):02d}"
    if not first:
        part_a += "00"
    elif chr(first[0]).isascii() and chr(first[0]).isalnum() and chr(first[-1]).isascii() and chr(first[-1]).isalnum():
        part_a += chr(first[0]) + chr(first[-1])
    else:
        part_a += f"{first[0]:02x}"[0] + f"{first[-1]:02x}"[1]

    part_b = ",".join(sorted(f"{suite:04x}" for suite in ciphers))
    part_c = ",".join(sorted(f"{kind:04x}" for kind in kinds if kind not in (0, 16)))
    listed = ",".join(f"{scheme:04x}" for scheme in schemes if not _grease(scheme))
    if listed:
        part_c += "_" + listed
    return f"{part_a}_{_short_hash(part_b)}_{_short_hash(part_c)}"


_told: list[str | None] = []


@functools.cache
def _openssl_server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        # TLS 1.0 is what is asked for here.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1

    def on_server_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        _told.append(name)
        return int(ssl.ALERT_DESCRIPTION_USER_CANCELLED)

    context.sni_callback = on_server_name
    return context


def _tlslite_parse(message: bytes) -> ClientHello | None:
    parser = Parser(bytearray(message))
    try:
        if parser.get(1) != 1:
            return None
        hello = ClientHello().parse(parser)
    except Exception:
        # It raises SyntaxError, ValueError and its own kinds, as it comes.
        return None
    return None if parser.getRemainingLength() else hello


def _pair(value: tuple[int, int]) -> int:
    return value[0] << 8 | value[1]


def _versions(pairs: list[tuple[int, int]] | None) -> tuple[int, ...]:
    return tuple(_pair(pair) for pair in pairs or ())


def _grease(value: int) -> bool:
    return f"{value:04x}" in {f"{digit}a{digit}a" for digit in "0123456789abcdef"}


def _short_hash(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()[:12] if text else "000000000000"
