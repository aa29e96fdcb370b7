"""PROXY headers: endpoints to put into them, what reading them gives, and version 2 built part by part."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import strategies as st

from sniproxy.errors import BadProxyHeader
from sniproxy.wire.proxy_header import ProxyHeader, decode

V4 = ("192.0.2.1", 56324), ("198.51.100.7", 443)
V6 = ("2001:db8::1", 56324), ("2001:db8::7", 443)
NOBODY = ProxyHeader(None, None)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")

LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UDP6, UNIX_STREAM, UNIX_DATAGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32

ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 1, 2, 3, 4, 5, 0x20, 0x30


def addresses(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """The address block of TCP over IPv4 or IPv6 (section 2.2)."""
    packed = ip_address(source[0]).packed + ip_address(destination[0]).packed
    return packed + source[1].to_bytes(2) + destination[1].to_bytes(2)


def tlv(kind: int, value: bytes, *, claim: int | None = None) -> bytes:
    return bytes((kind,)) + (len(value) if claim is None else claim).to_bytes(2) + value


def header(body: bytes = b"", *, command: int = PROXY, family: int = TCP4, claim: int | None = None) -> bytes:
    length = len(body) if claim is None else claim
    return SIGNATURE + bytes((command, family)) + length.to_bytes(2) + body


def crc32c(octets: bytes) -> int:
    """The checksum bit by bit, as RFC 9260 appendix A (once RFC 4960 appendix B) defines it."""
    register = 0xFFFFFFFF
    for octet in octets:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def checked_header(body: bytes, *, behind: bytes = b"", family: int = TCP4, wrong: int = 0) -> bytes:
    """A header with a checksum TLV after `body`, and `behind` after that; `wrong` is added to the checksum."""
    zeroed = header(body + tlv(CRC32C, bytes(4)) + behind, family=family)
    value = (crc32c(zeroed) + wrong) % (1 << 32)
    return header(body + tlv(CRC32C, value.to_bytes(4)) + behind, family=family)


def needs_more_at_every_proper_prefix(whole: bytes) -> bool:
    return all(decode(whole[:length]) is None for length in range(len(whole)))


def refused(stream: bytes) -> str:
    """Why these bytes are refused, as they must be."""
    with pytest.raises(BadProxyHeader) as caught:
        decode(stream)
    return str(caught.value)


def pairs() -> st.SearchStrategy[tuple[tuple[str, int], tuple[str, int]]]:
    """Source and destination of one family, as the relay hands them over: never an IPv4-mapped address."""

    def of(version: int) -> st.SearchStrategy[tuple[tuple[str, int], tuple[str, int]]]:
        hosts = st.ip_addresses(v=version).filter(lambda host: getattr(host, "ipv4_mapped", None) is None)
        endpoint = st.tuples(hosts.map(str), st.integers(0, 65535))
        return st.tuples(endpoint, endpoint)

    return of(4) | of(6)
