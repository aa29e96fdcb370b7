"""The PROXY protocol, version 2, by HAProxy's doc/proxy-protocol.txt: "section" in these tests is one of that text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.errors import BadProxyHeader
from sniproxy.wire.proxy_header import MAX_V2_BYTES, SIGNATURE, ProxyHeader, decode, encode_v2
from tests.support import proxy_headers as built
from tests.support.proxy_headers import NOBODY, V4, V6, needs_more_at_every_proper_prefix, pairs, refused

often = settings(max_examples=5 * settings().max_examples)


# -- version 2, written


def test_the_checksum_of_the_tests_is_crc32c() -> None:
    """RFC 3720 appendix B.4: 32 zeros and 32 ones; and the usual check value of nine digits."""
    assert built.crc32c(bytes(32)).to_bytes(4, "little") == bytes.fromhex("aa36918a")
    assert built.crc32c(b"\xff" * 32).to_bytes(4, "little") == bytes.fromhex("43aba862")
    assert built.crc32c(b"123456789") == 0xE3069283


def test_a_v2_header_to_the_byte() -> None:
    """Section 2.2: signature, version and command, family, length, addresses, ports, TLVs, the checksum last."""
    header = encode_v2(*V4, authority="a.example", alpn=b"h2", unique_id=b"\1\2\3\4")
    body = bytes.fromhex("c0000201 c6336407 dc04 01bb") + bytes.fromhex("05 0004 01020304")
    body += b"\x02\x00\x09a.example" + b"\x01\x00\x02h2"

    assert header == built.checked_header(body)
    assert header[:16].hex(" ") == "0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 21 11 00 2b"


def test_a_v2_header_for_ipv6_to_the_byte() -> None:
    """Section 2.2: \\x21 is TCP over IPv6, 36 bytes of addresses."""
    header = encode_v2(*V6, authority=None, alpn=None, unique_id=b"")
    body = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000007 dc04 01bb 05 0000")

    assert header == built.checked_header(body, family=built.TCP6)


@pytest.mark.parametrize(("source", "destination"), [(None, None), (V4[0], None), (None, V6[1])])
def test_a_v2_header_without_addresses_is_local(source, destination) -> None:
    """Section 2.2: the receiver takes the connection's own endpoints. HAProxy closes an UNSPEC header with TLVs."""
    header = encode_v2(source, destination, authority="a.example", alpn=None, unique_id=b"id")

    assert header == SIGNATURE + b"\x20\x00\x00\x00"
    assert decode(header) == (NOBODY, len(header))


def test_a_v2_header_never_mixes_families() -> None:
    """Section 2.2 has one family for both addresses; RFC 4291 section 2.5.5.2 maps the IPv4 one."""
    header = encode_v2(V4[0], V6[1], authority=None, alpn=None, unique_id=b"")

    assert header[13] == built.TCP6
    assert decode(header) == (ProxyHeader(V4[0], V6[1]), len(header))


@often
@given(
    pair=pairs(),
    authority=st.none() | st.text(st.characters(max_codepoint=127), max_size=255),
    alpn=st.none() | st.binary(max_size=255),
    unique_id=st.binary(max_size=128),
)
def test_a_v2_header_is_read_as_it_was_written(pair, authority, alpn, unique_id) -> None:
    """Section 2.2, both ways; the longest that we write is far below what we read."""
    header = encode_v2(*pair, authority=authority, alpn=alpn, unique_id=unique_id)

    assert decode(header) == (ProxyHeader(*pair), len(header))
    assert decode(header + b"\x16\x03\x01") == (ProxyHeader(*pair), len(header))
    assert len(header) < MAX_V2_BYTES


@given(pairs(), st.binary(max_size=40))
def test_the_checksum_is_that_of_the_whole_header(pair, unique_id: bytes) -> None:
    """Section 2.2.3: CRC32c over the header, the checksum itself as zeros."""
    header = encode_v2(*pair, authority="a.example", alpn=b"h2", unique_id=unique_id)

    assert header[-7:-4] == b"\x03\x00\x04"
    assert int.from_bytes(header[-4:]) == built.crc32c(header[:-4] + bytes(4))


def test_every_proper_prefix_of_a_v2_header_needs_more() -> None:
    """Section 2.2: "The receiver must not start to parse an address before the whole address block is received"."""
    assert needs_more_at_every_proper_prefix(encode_v2(*V6, authority="a.example", alpn=b"h2", unique_id=b"id"))


@pytest.mark.parametrize("position", [*range(12), *range(16, 28)])
def test_no_changed_byte_of_the_addresses_passes_the_checksum(position: int) -> None:
    """Section 2.2.3: "the receiver MUST treat the TCP connection providing the header as invalid"."""
    for change in (0x01, 0x80, 0xFF):
        header = bytearray(encode_v2(*V4, authority="a.example", alpn=b"h2", unique_id=b"id"))
        header[position] ^= change
        refused(bytes(header))


# -- version 2, read

BLOCK = built.addresses(*V4)
BLOCK6 = built.addresses(*V6)


def test_a_v2_header_without_a_checksum_is_taken() -> None:
    """Section 2.2.3: it is checked "if the checksum is provided"."""
    assert decode(built.header(BLOCK) + b"x") == (ProxyHeader(*V4), 28)
    assert decode(built.header(BLOCK6, family=built.TCP6)) == (ProxyHeader(*V6), 52)


@pytest.mark.parametrize("family", [0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x7F, 0xFF])
@pytest.mark.parametrize("body", [b"", b"\0", BLOCK, BLOCK6, bytes(216), b"\xff" * 20])
def test_a_local_command_is_the_senders_own_whatever_else_it_says(family: int, body: bytes) -> None:
    """Section 2.2: "must accept this connection as valid and … discard the protocol block including the family"."""
    header = built.header(body, command=built.LOCAL, family=family)

    assert decode(header + b"x") == (NOBODY, len(header))
    assert needs_more_at_every_proper_prefix(header)


@pytest.mark.parametrize("family", [built.UNSPEC, built.UDP4, built.UDP6, built.UNIX_STREAM, built.UNIX_DATAGRAM])
@pytest.mark.parametrize("body", [b"", b"\0", BLOCK, bytes(216)])
def test_a_family_without_tcp_endpoints_is_unspec(family: int, body: bytes) -> None:
    """Section 2.2: a receiver "automatically falls back to the UNSPEC mode" for what it does not support."""
    header = built.header(body, family=family)

    assert decode(header + b"x") == (NOBODY, len(header))


@pytest.mark.parametrize("family", [0x01, 0x02, 0x03, 0x10, 0x13, 0x1F, 0x20, 0x23, 0x30, 0x33, 0x41, 0xF1, 0xFF])
def test_an_unknown_family_is_refused(family: int) -> None:
    """Section 2.2: "other values are unspecified … and must be rejected as invalid by receivers"."""
    refused(built.header(BLOCK, family=family))


@pytest.mark.parametrize("command", [0x00, 0x01, 0x10, 0x11, 0x22, 0x2F, 0x30, 0x31, 0xFF])
def test_an_unknown_version_or_command_is_refused(command: int) -> None:
    """Section 2.2: version 2 only; "Receivers must drop connections presenting unexpected values here"."""
    refused(built.header(BLOCK, command=command))


@pytest.mark.parametrize(("family", "length"), [(built.TCP4, 0), (built.TCP4, 11), (built.TCP6, 12), (built.TCP6, 35)])
def test_a_header_too_short_for_its_addresses_is_refused(family: int, length: int) -> None:
    """Section 2.2: 12 bytes for TCP over IPv4, 36 for IPv6."""
    refused(built.header(BLOCK6[:length], family=family))


def test_a_mapped_address_in_a_v2_header_is_an_ipv4_address() -> None:
    """RFC 4291 section 2.5.5.2, as in version 1."""
    block = built.addresses(("::ffff:192.0.2.1", 1), ("::ffff:198.51.100.7", 2))

    assert decode(built.header(block, family=built.TCP6)) == (ProxyHeader(("192.0.2.1", 1), ("198.51.100.7", 2)), 52)


@pytest.mark.parametrize(
    "tlvs",
    [
        built.tlv(built.NOOP, b""),
        built.tlv(built.NOOP, bytes(100)),
        built.tlv(built.ALPN, b"h2") + built.tlv(built.AUTHORITY, b"a.example"),
        built.tlv(built.SSL, b"\1\0\0\0\0" + built.tlv(0x21, b"TLSv1.3")),
        built.tlv(built.NETNS, b"blue"),
        built.tlv(0xE0, b"ours") + built.tlv(0xFF, b""),
    ],
)
def test_tlvs_are_passed_over(tlvs: bytes) -> None:
    """Section 2.2: "A receiver may choose to skip over and ignore the TLVs it is not interested in"."""
    header = built.header(BLOCK + tlvs)

    assert decode(header + b"x") == (ProxyHeader(*V4), len(header))


@pytest.mark.parametrize(
    "tlvs",
    [
        b"\4",
        b"\4\0",
        built.tlv(built.NOOP, b"", claim=1),
        built.tlv(built.NOOP, b"abc", claim=4),
        built.tlv(built.NOOP, b"abc", claim=65535),
        built.tlv(built.NOOP, b"abc", claim=2),
        built.tlv(built.NOOP, b"") + b"\0",
    ],
)
def test_a_tlv_that_does_not_add_up_is_refused(tlvs: bytes) -> None:
    """Section 2.2: each TLV says how long it is, and the header how far they reach."""
    refused(built.header(BLOCK + tlvs))


@pytest.mark.parametrize("length", [0, 3, 5])
def test_a_checksum_is_four_bytes(length: int) -> None:
    """Section 2.2.3: "a 32-bit number"."""
    assert "four bytes" in refused(built.header(BLOCK + built.tlv(built.CRC32C, bytes(length))))


@pytest.mark.parametrize("behind", [b"", built.tlv(built.NOOP, b"x"), built.tlv(built.UNIQUE_ID, b"id")])
def test_a_checksum_may_stand_anywhere_among_the_tlvs(behind: bytes) -> None:
    """Section 2.2.3: the checksum is of the whole header, what follows it included."""
    header = built.checked_header(BLOCK + built.tlv(built.AUTHORITY, b"a.example"), behind=behind)

    assert decode(header) == (ProxyHeader(*V4), len(header))


@pytest.mark.parametrize("wrong", [1, 0x01000000, 0xFFFFFFFF])
def test_a_wrong_checksum_is_refused(wrong: int) -> None:
    """Section 2.2.3: "verify that the calculated CRC32c checksum is the same as the received"."""
    assert "checksum" in refused(built.checked_header(BLOCK, wrong=wrong))


def test_a_second_checksum_has_to_be_right_too() -> None:
    """Section 2.2.3: each is checked, so a right one cannot be followed by a wrong one."""
    assert "checksum" in refused(built.checked_header(BLOCK, behind=built.tlv(built.CRC32C, bytes(4))))


def test_the_longest_v2_header_is_a_cap_of_ours() -> None:
    """Section 2.2 allows 65,535 bytes behind the first sixteen, to be held for who has not yet said anything."""
    filler = MAX_V2_BYTES - 16 - len(BLOCK) - 3
    longest = built.header(BLOCK + built.tlv(built.NOOP, bytes(filler)))

    assert len(longest) == MAX_V2_BYTES
    assert decode(longest) == (ProxyHeader(*V4), MAX_V2_BYTES)
    assert str(MAX_V2_BYTES) in refused(built.header(claim=MAX_V2_BYTES - 16 + 1))
    assert str(MAX_V2_BYTES) in refused(built.header(claim=65535, command=built.LOCAL))


def test_the_signature_is_that_of_the_text() -> None:
    """Section 2.2: twelve bytes with a null byte at the fifth position."""
    assert SIGNATURE == built.SIGNATURE


# -- anything


@often
@given(
    st.binary(max_size=120)
    | st.binary(max_size=100).map(lambda rest: b"PROXY " + rest)
    | st.text("PROXYTCUN46 0123456789.:abcdf\r\n", max_size=60).map(lambda rest: b"PROXY TCP" + rest.encode())
    | st.builds(
        built.header,
        st.binary(max_size=80),
        command=st.sampled_from((0x20, 0x21, 0x11)),
        family=st.sampled_from((0x00, 0x11, 0x21, 0x31)),
        claim=st.none() | st.integers(0, 100),
    ),
    st.binary(max_size=20),
)
def test_any_bytes_are_a_header_or_need_more_or_are_refused(stream: bytes, behind: bytes) -> None:
    """A reader has three outcomes, and once it has a header or refuses, more bytes do not change that."""
    try:
        found = decode(stream)
    except BadProxyHeader:
        refused(stream + behind)
        return

    if found is not None:
        assert 15 <= found[1] <= len(stream)
        assert decode(stream + behind) == found
        assert decode(stream[: found[1] - 1]) is None
