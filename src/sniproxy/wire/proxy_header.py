"""The PROXY protocol, versions 1 and 2 (HAProxy's doc/proxy-protocol.txt, revision 2020/03/05).

Written for backends, so that HAProxy sees the client's address; read from senders that are trusted to know it.
A header is read to its last byte before anything behind it is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from struct import error as struct_error

from crc32c import crc32c

from sniproxy.errors import BadProxyHeader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

MAX_V1_BYTES = 107
"""Longest version 1 line, its CRLF included (section 2.1)."""
MAX_V2_BYTES = 16 + 4096
"""Our cap on a version 2 header. The format allows 64 KiB of TLVs; senders in use stay below 1 KiB, client
certificates included, and the header is held in memory for a peer that has not yet said anything else."""

TLV_ALPN = 0x01
TLV_AUTHORITY = 0x02
TLV_CRC32C = 0x03
TLV_UNIQUE_ID = 0x05

_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
# Valid, and nothing that reaches us: a receiver falls back to UNSPEC for these (section 2.2).
_UDP4, _UDP6, _UNIX_STREAM, _UNIX_DATAGRAM = 0x12, 0x22, 0x31, 0x32
_WITHOUT_ENDPOINTS = frozenset((_UNSPEC, _UDP4, _UDP6, _UNIX_STREAM, _UNIX_DATAGRAM))
_LOCAL_HEADER = SIGNATURE + bytes((_LOCAL, _UNSPEC, 0, 0))
_V4, _V6 = Struct("!4s4sHH"), Struct("!16s16sHH")
_pack_v4 = Struct("!12sBBH4s4sHH").pack
_pack_v6 = Struct("!12sBBH16s16sHH").pack
_tlv_header = Struct("!BH")
_pack_tlv = _tlv_header.pack
_pack_crc = Struct("!BHI").pack
_CRC_TLV_BYTES = 7
_NO_CRC = _pack_crc(TLV_CRC32C, 4, 0)

# The numbers have no leading zeros and only ASCII digits (section 2.1): `int` alone would take more.
_v1_line = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|(TCP[46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
).fullmatch

Endpoint = tuple[str, int]
"""An IP address as text, never an IPv4-mapped IPv6 one, and a port."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a PROXY header says. Both ends None: it names none for TCP (LOCAL, UNKNOWN, UNSPEC, UDP, unix sockets)."""

    source: Endpoint | None
    destination: Endpoint | None


def encode_v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The version 1 line for a connection from `source` to `destination`; UNKNOWN where either is None."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    if ":" not in source[0] and ":" not in destination[0]:
        return b"PROXY TCP4 %b %b %d %d\r\n" % (source[0].encode(), destination[0].encode(), source[1], destination[1])
    return b"PROXY TCP6 %b %b %d %d\r\n" % (
        _as_v6(source[0]).encode(),
        _as_v6(destination[0]).encode(),
        source[1],
        destination[1],
    )


def encode_v2(
    source: Endpoint | None,
    destination: Endpoint | None,
    *,
    authority: str | None,
    alpn: bytes | None,
    unique_id: bytes,
) -> bytes:
    """The version 2 header, with its CRC32C.

    `authority` is the server name (ASCII), `alpn` the protocol the client prefers, `unique_id` at most 128 bytes
    (section 2.2.5); None leaves a TLV out.

    Without both addresses it is LOCAL and has no TLVs. HAProxy begins to read those of an UNSPEC header at its very
    first byte, and closes the connection (2.6 to 3.4, src/connection.c).
    """
    if source is None or destination is None:
        return _LOCAL_HEADER
    tlvs = _pack_tlv(TLV_UNIQUE_ID, len(unique_id)) + unique_id
    if authority is not None:
        tlvs += _pack_tlv(TLV_AUTHORITY, len(authority)) + authority.encode("ascii")
    if alpn is not None:
        tlvs += _pack_tlv(TLV_ALPN, len(alpn)) + alpn
    if ":" not in source[0] and ":" not in destination[0]:
        length = 12 + len(tlvs) + _CRC_TLV_BYTES
        addresses = _pack_ipv4(source[0]), _pack_ipv4(destination[0])
        header = _pack_v4(SIGNATURE, _PROXY, _TCP4, length, *addresses, source[1], destination[1]) + tlvs
    else:
        length = 36 + len(tlvs) + _CRC_TLV_BYTES
        addresses = IPv6Address(_as_v6(source[0])).packed, IPv6Address(_as_v6(destination[0])).packed
        header = _pack_v6(SIGNATURE, _PROXY, _TCP6, length, *addresses, source[1], destination[1]) + tlvs
    # The checksum covers the whole header with its own value as zero (section 2.2.3).
    return header + _pack_crc(TLV_CRC32C, 4, crc32c(header + _NO_CRC))


def decode(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Reads the PROXY header that `data` begins with: what it says, and how many bytes it took.

    None while more bytes are needed. Raises BadProxyHeader for bytes that can be no header, or one above MAX_V1_BYTES
    or MAX_V2_BYTES: as soon as its first words, its length, or else its last byte tell.
    """
    if SIGNATURE.startswith(data[:12]):
        return _decode_v2(data) if len(data) >= 16 else None
    if not b"PROXY ".startswith(data[:6]):
        raise BadProxyHeader("no PROXY header")
    return _decode_v1(data)


def _decode_v1(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\n", 0, MAX_V1_BYTES) + 1
    if not end:
        if len(data) >= MAX_V1_BYTES:
            raise BadProxyHeader(f"a PROXY line of more than {MAX_V1_BYTES} bytes")
        return None
    match = _v1_line(data[:end])
    if match is None:
        raise BadProxyHeader("a PROXY line that is not of the form of version 1")
    family, source, destination, source_port, destination_port = match.groups()
    if family is None:
        return ProxyHeader(None, None), end
    form = IPv4Address if family == b"TCP4" else IPv6Address
    ends = (_endpoint(form, source, source_port), _endpoint(form, destination, destination_port))
    return ProxyHeader(*ends), end


def _endpoint(form: type[IPv4Address | IPv6Address], address: bytes, port: bytes) -> Endpoint:
    try:
        packed = form(address.decode("ascii")).packed
    except ValueError:
        raise BadProxyHeader("a PROXY line with an address that is none") from None
    if int(port) > 0xFFFF:
        raise BadProxyHeader("a PROXY line with a port above 65535")
    return _unmapped(packed), int(port)


def _decode_v2(data: bytes) -> tuple[ProxyHeader, int] | None:
    command, family = data[12], data[13]
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("a PROXY header of an unknown version or command")
    end = 16 + int.from_bytes(data[14:16])
    if end > MAX_V2_BYTES:
        raise BadProxyHeader(f"a PROXY header of {end} bytes, more than {MAX_V2_BYTES}")
    if len(data) < end:
        return None
    form = {_TCP4: _V4, _TCP6: _V6}.get(family)
    if command == _LOCAL or family in _WITHOUT_ENDPOINTS:
        # The whole block is to be discarded (section 2.2), for LOCAL whatever family it claims.
        return ProxyHeader(None, None), end
    if form is None:
        raise BadProxyHeader("a PROXY header of an unknown address family")
    if 16 + form.size > end:
        raise BadProxyHeader("a PROXY header too short for its addresses")
    source, destination, source_port, destination_port = form.unpack_from(data, 16)
    _check_tlvs(data[:end], 16 + form.size)
    return ProxyHeader((_unmapped(source), source_port), (_unmapped(destination), destination_port)), end


def _check_tlvs(header: bytes, position: int) -> None:
    """Walks the TLVs to their end and verifies the checksum where there is one (section 2.2.3)."""
    end = len(header)
    while position < end:
        try:
            kind, length = _tlv_header.unpack_from(header, position)
        except struct_error:
            raise BadProxyHeader("a PROXY header with a cut-off TLV") from None
        position += _tlv_header.size + length
        if position > end:
            raise BadProxyHeader("a PROXY header with a TLV that reaches past its end")
        if kind == TLV_CRC32C:
            if length != 4:
                raise BadProxyHeader("a PROXY header with a checksum that is not four bytes")
            zeroed = header[: position - 4] + b"\0\0\0\0" + header[position:]
            if crc32c(zeroed) != int.from_bytes(header[position - 4 : position]):
                raise BadProxyHeader("a PROXY header whose checksum does not match")


def _unmapped(packed: bytes) -> str:
    """An address as text; ::ffff:192.0.2.1 becomes 192.0.2.1."""
    if len(packed) == 4:
        return "%d.%d.%d.%d" % tuple(packed)  # noqa: UP031
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)


@lru_cache(maxsize=1024)
def _pack_ipv4(address: str) -> bytes:
    # A third of what ipaddress takes, and the kernel has already said that this is an address. One of the two is
    # our own, and clients come again.
    return bytes(map(int, address.split(".")))


def _as_v6(address: str) -> str:
    return address if ":" in address else f"::ffff:{address}"
