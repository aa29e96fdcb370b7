"""The PROXY protocol, version 1, by HAProxy's doc/proxy-protocol.txt: "section" in these tests is one of that text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from sniproxy.wire.proxy_header import MAX_V1_BYTES, ProxyHeader, decode, encode_v1
from tests.support.proxy_headers import NOBODY, V4, V6, needs_more_at_every_proper_prefix, pairs, refused

often = settings(max_examples=5 * settings().max_examples)


# -- version 1, written


def test_a_v1_line_for_ipv4() -> None:
    """Section 2.1: the example before an HTTP request."""
    line = encode_v1(("192.168.0.1", 56324), ("192.168.0.11", 443))

    assert line == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"


def test_a_v1_line_for_ipv6() -> None:
    """Section 2.1: TCP6 and addresses as sets of four hexadecimal digits, delimited by colons."""
    assert encode_v1(*V6) == b"PROXY TCP6 2001:db8::1 2001:db8::7 56324 443\r\n"


@pytest.mark.parametrize(("source", "destination"), [(None, None), (V4[0], None), (None, V4[1])])
def test_a_v1_line_without_addresses_is_unknown(source, destination) -> None:
    """Section 2.1: "unknown connection (short form)", 15 characters."""
    assert encode_v1(source, destination) == b"PROXY UNKNOWN\r\n"


def test_a_v1_line_never_mixes_families() -> None:
    """Section 2.1: one family for both; RFC 4291 section 2.5.5.2 maps the IPv4 one."""
    assert encode_v1(V4[0], V6[1]) == b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::7 56324 443\r\n"
    assert encode_v1(V6[0], V4[1]) == b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.7 56324 443\r\n"


@often
@given(pairs())
def test_a_v1_line_is_read_as_it_was_written(pair) -> None:
    """Section 2.1, both ways: addresses, ports, and how long the line is."""
    line = encode_v1(*pair)

    assert len(line) <= MAX_V1_BYTES
    assert decode(line) == (ProxyHeader(*pair), len(line))
    assert decode(line + b"\x16\x03\x01\r\n") == (ProxyHeader(*pair), len(line))
    assert needs_more_at_every_proper_prefix(line)


# -- version 1, read

LONGEST_ADDRESS = b":".join([b"ffff"] * 8)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN anything at all\r\n",
        b"PROXY UNKNOWN " + LONGEST_ADDRESS + b" " + LONGEST_ADDRESS + b" 65535 65535\r\n",
    ],
)
def test_an_unknown_connection_is_the_senders_own(line: bytes) -> None:
    """Section 2.1: "the receiver must ignore anything presented before the CRLF"."""
    assert decode(line + b"rest") == (NOBODY, len(line))
    assert needs_more_at_every_proper_prefix(line)


def test_the_longest_line_is_107_bytes() -> None:
    """Section 2.1: "If the CRLF sequence is not found in the first 107 characters, … declare the line invalid"."""
    start = b"PROXY UNKNOWN "
    longest = start + b"x" * (107 - len(start) - 2) + b"\r\n"
    longer = start + b"x" * (108 - len(start) - 2) + b"\r\n"

    assert MAX_V1_BYTES == 107
    assert decode(longest) == (NOBODY, 107)
    assert decode(longer[:106]) is None
    assert "107" in refused(longer[:107])
    assert "107" in refused(longer)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.7 1_0 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 +10 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 -1 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 010 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 00 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 0x50 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 100000 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80 99999",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 \xd9\xa1 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80.0 443",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80 443 ",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80 443 x",
        b"PROXY TCP4 192.0.2.1 198.51.100.7  80 443",
        b"PROXY TCP4 192.0.2.1\t198.51.100.7 80 443",
        b"PROXY  TCP4 192.0.2.1 198.51.100.7 80 443",
        b"PROXY TCP4  192.0.2.1 198.51.100.7 80 443",
        b"PROXY TCP4 192.0.2.1 80 443",
        b"PROXY TCP4 192.0.2.01 198.51.100.7 80 443",
        b"PROXY TCP4 192.0.2.256 198.51.100.7 80 443",
        b"PROXY TCP4 192.0.2 198.51.100.7 80 443",
        b"PROXY TCP4 0xc0.0.2.1 198.51.100.7 80 443",
        b"PROXY TCP4 3221225985 198.51.100.7 80 443",
        b"PROXY TCP4 localhost 198.51.100.7 80 443",
        b"PROXY TCP4 2001:db8::1 2001:db8::7 80 443",
        b"PROXY TCP6 192.0.2.1 198.51.100.7 80 443",
        b"PROXY TCP6 2001:db8::1 198.51.100.7 80 443",
        b"PROXY TCP6 2001:db8::1%eth0 2001:db8::7 80 443",
        b"PROXY TCP6 [2001:db8::1] 2001:db8::7 80 443",
        b"PROXY TCP6 2001:db8:::1 2001:db8::7 80 443",
        b"PROXY TCP6 2001:db8::12345 2001:db8::7 80 443",
        b"PROXY UDP4 192.0.2.1 198.51.100.7 80 443",
        b"PROXY TCP5 192.0.2.1 198.51.100.7 80 443",
        b"PROXY tcp4 192.0.2.1 198.51.100.7 80 443",
        b"PROXY UNKNOWNX",
        b"PROXY unknown",
        b"PROXY ",
        b"PROXY TCP4",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 80 443\r",
        b"PROXY UNKNOWN a\rb",
    ],
)
def test_a_line_that_is_not_exactly_of_the_form_is_refused(line: bytes) -> None:
    """Section 2.1: "Any sequence which does not exactly match the protocol must be discarded" (aiosmtpd: 1_0)."""
    refused(line + b"\r\n")


@pytest.mark.parametrize("end", [b"\n", b" \n", b"\r\r\n", b"\0\r\n"])
def test_a_line_ends_with_cr_and_lf(end: bytes) -> None:
    """Section 2.1: "The receiver must not tolerate a single CR or LF character to end the line"."""
    refused(b"PROXY TCP4 192.0.2.1 198.51.100.7 80 443" + end)


def test_ports_from_0_to_65535_are_taken() -> None:
    """Section 2.1: "in the range [0..65535] inclusive"."""
    found = decode(b"PROXY TCP4 192.0.2.1 198.51.100.7 0 65535\r\n")

    assert found is not None
    assert found[0] == ProxyHeader(("192.0.2.1", 0), ("198.51.100.7", 65535))


def test_a_mapped_address_in_a_v1_line_is_an_ipv4_address() -> None:
    """RFC 4291 section 2.5.5.2: ::ffff:192.0.2.1 is the IPv4 node; an allow list for 192.0.2.0/24 has to see it."""
    found = decode(b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c633:6407 1 2\r\n")

    assert found is not None
    assert found[0] == ProxyHeader(("192.0.2.1", 1), ("198.51.100.7", 2))


@pytest.mark.parametrize(
    "start", [b"G", b"\x16\x03\x01", b"PROXZ", b"proxy ", b"PROXY\t", b"\r\n\r\n\0\r\nQUIT\r", b"\r\r", b"\n", b"\0"]
)
def test_what_begins_like_no_header_is_refused_at_once(start: bytes) -> None:
    """Section 2: a sender either sends it first or is no sender; "It is recommended to abort … as soon as possible"."""
    assert refused(start) == "no PROXY header"
