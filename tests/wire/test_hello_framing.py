"""How a ClientHello is collected: records, fragments, caps, and verdicts that do not wait."""

from __future__ import annotations

from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.errors import HelloTooLarge, MalformedHello, NotTls, WireError
from sniproxy.wire.client_hello import ClientHello, HelloReader, read_whole
from sniproxy.wire.tls import MAX_CLIENT_HELLO_BYTES, AlertDescription
from tests.support import hellos

CAP = 16384
MESSAGE = hellos.client_hello(hellos.server_name("a.example"), hellos.alpn(b"h2"))


def collect(stream: bytes, cap: int = CAP) -> ClientHello | None:
    return HelloReader(cap).feed(stream)


def collect_bytewise(stream: bytes, cap: int = CAP) -> ClientHello | None:
    """The verdict, and that it comes with the last byte of `stream` and not before."""
    reader = HelloReader(cap)
    for position in range(len(stream) - 1):
        assert reader.feed(stream[position : position + 1]) is None
    return reader.feed(stream[-1:])


def verdict(stream: bytes, error: type[WireError], cap: int = CAP) -> int | None:
    """The alert with which `stream` is refused, both at once and byte by byte, exactly at its last byte."""
    with pytest.raises(error) as whole:
        collect(stream, cap)
    with pytest.raises(error) as bytewise:
        collect_bytewise(stream, cap)
    assert type(whole.value) is type(bytewise.value) is error
    assert str(whole.value) == str(bytewise.value)
    return getattr(whole.value, "alert", None)


# -- over several records


@pytest.mark.parametrize(
    "sizes", [(1,), (2,), (3,), (4,), (5,), (1, 1000), (3, 1, 1000), (40, 1, 1000), (len(MESSAGE) - 1, 1)]
)
def test_a_hello_over_several_records_is_read_as_one(sizes: tuple[int, ...]) -> None:
    """RFC 8446 section 5.1: "Handshake messages MAY be … fragmented across several records"; CVE-2026-32305."""
    stream = hellos.records(MESSAGE, *sizes)
    hello = collect(stream)

    assert hello is not None
    assert (hello.server_name, hello.alpn, hello.message) == ("a.example", (b"h2",), MESSAGE)
    assert collect_bytewise(stream) is not None


@pytest.mark.parametrize("cut", range(1, len(MESSAGE)))
def test_a_hello_is_read_wherever_its_records_part(cut: int) -> None:
    """nginx's stream_ssl_preread.t "get_frag", Mbed TLS' defragmentation tests: also in the middle of the header."""
    hello = collect(hellos.records(MESSAGE, cut, len(MESSAGE)))

    assert hello is not None
    assert hello.server_name == "a.example"


def test_thousands_of_records_of_one_byte_are_read() -> None:
    """BoringSSL's fuzz corpus has a hello of 3,237 records of one byte each (RFC 8446 section 5.1)."""
    message = hellos.padded_hello(3237)
    hello = collect(hellos.records(message, 1))

    assert hello is not None
    assert hello.message == message


def test_the_short_cut_leaves_several_records_to_the_reader() -> None:
    """`read_whole` says nothing about a hello that it does not see in one piece."""
    assert read_whole(hellos.records(MESSAGE, 40, 1000), CAP) is None


@pytest.mark.parametrize("version", range(0x0300, 0x0306))
def test_the_record_version_does_not_matter(version: int) -> None:
    """RFC 8446 section 5.1: legacy_record_version "MUST be ignored for all purposes"."""
    assert collect(hellos.record(MESSAGE, version=version)) is not None
    assert read_whole(hellos.record(MESSAGE, version=version), CAP) is not None


def test_a_second_message_in_the_record_of_the_hello_is_the_servers() -> None:
    """RFC 8446 section 5.1: several messages may share a record; only the first is ours to read."""
    stream = hellos.record(MESSAGE + b"\x0b\0\0\0")
    reader = HelloReader(CAP)
    hello = reader.feed(stream)

    assert hello is not None
    assert hello.message == MESSAGE
    assert reader.raw == stream
    assert read_whole(stream, CAP) is None


def test_every_byte_fed_is_kept_while_more_are_needed() -> None:
    """RFC 9293 section 3.7: a stream is its bytes in order; all that was read has to reach a server."""
    reader = HelloReader(CAP)
    reader.feed(memoryview(hellos.record(MESSAGE)[:3]))
    reader.feed(b"")
    reader.feed(hellos.record(MESSAGE)[3:30])

    assert reader.raw == hellos.record(MESSAGE)[:30]


# -- what may not stand between the records


@pytest.mark.parametrize(
    "content_type", [hellos.CHANGE_CIPHER_SPEC, hellos.ALERT, hellos.APPLICATION_DATA, 24, 0, 255, 0x80]
)
@pytest.mark.parametrize("cut", [3, 40, len(MESSAGE) - 1])
def test_another_record_inside_the_hello_is_refused_by_its_first_byte(content_type: int, cut: int) -> None:
    """RFC 8446 section 5.1: "there MUST NOT be any other records between them" (Mbed TLS "4 + appdata + 72")."""
    stream = hellos.record(MESSAGE[:cut]) + bytes((content_type,))

    assert verdict(stream, MalformedHello) == AlertDescription.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("major", [0, 2, 4, 255])
def test_a_record_of_another_major_version_inside_the_hello_is_refused(major: int) -> None:
    """RFC 8446 appendix D: no version has a major number other than 3; OpenSSL answers protocol_version."""
    stream = hellos.record(MESSAGE[:40]) + bytes((hellos.HANDSHAKE, major))

    assert verdict(stream, MalformedHello) == AlertDescription.PROTOCOL_VERSION


@pytest.mark.parametrize("before", [b"", hellos.record(MESSAGE[:40])], ids=["first", "second"])
def test_an_empty_record_is_refused(before: bytes) -> None:
    """RFC 8446 section 5.1: "Implementations MUST NOT send zero-length fragments of Handshake types"."""
    assert verdict(before + hellos.record(b""), MalformedHello) == AlertDescription.UNEXPECTED_MESSAGE


# -- verdicts that do not wait


@pytest.mark.parametrize("length", [16385, 18432, 65535])
@pytest.mark.parametrize("before", [b"", hellos.record(MESSAGE[:40])], ids=["first", "second"])
def test_a_record_that_is_too_long_is_refused_by_its_header(length: int, before: bytes) -> None:
    """RFC 8446 section 5.1: "The length MUST NOT exceed 2^14 bytes … record_overflow"."""
    header = hellos.record(b"", claim=length)

    assert verdict(before + header, MalformedHello) == AlertDescription.RECORD_OVERFLOW
    assert read_whole(header + MESSAGE, CAP) is None


def test_the_short_cut_leaves_a_record_that_is_too_long_to_the_reader() -> None:
    """As above, where all of it is there and adds up."""
    assert read_whole(hellos.record(hellos.padded_hello(16385)), 1 << 16) is None


def test_the_longest_record_is_taken() -> None:
    """RFC 8446 section 5.1: 2^14 bytes are allowed."""
    assert collect(hellos.record(hellos.padded_hello(16384)), 16384) is not None
    assert read_whole(hellos.record(hellos.padded_hello(16384)), 16384) is not None


@pytest.mark.parametrize("message_type", [0, 2, 11, 20, 24, 254])
def test_another_handshake_message_is_refused_by_its_first_byte(message_type: int) -> None:
    """RFC 8446 section 4.1.2: a client "is REQUIRED to send the ClientHello as its first TLS message"."""
    stream = hellos.record(bytes((message_type,)), claim=512)

    assert verdict(stream, MalformedHello) == AlertDescription.UNEXPECTED_MESSAGE
    assert read_whole(hellos.record(hellos.client_hello(message_type=message_type)), CAP) is None


@pytest.mark.parametrize("length", [MAX_CLIENT_HELLO_BYTES + 1, 0xFFFFFF])
def test_a_length_that_no_hello_has_is_refused_by_the_header(length: int) -> None:
    """netty SslClientHelloHandler, TooLongFrameException: 16 MiB are announced, nine bytes are sent."""
    stream = hellos.record(b"\1" + length.to_bytes(3), claim=512)

    assert verdict(stream, MalformedHello, 1 << 20) == AlertDescription.DECODE_ERROR


@pytest.mark.parametrize("body", [CAP - 3, CAP, 0xFFFF, MAX_CLIENT_HELLO_BYTES])
def test_a_hello_above_the_cap_is_refused_by_the_header(body: int) -> None:
    """Traefik 12638: a length in a header must not make anybody wait for, or make room for, that many bytes."""
    stream = hellos.record(b"\1" + body.to_bytes(3), claim=512)

    assert verdict(stream, HelloTooLarge) == AlertDescription.ILLEGAL_PARAMETER
    assert read_whole(stream, CAP) is None


def test_the_short_cut_looks_at_all_three_bytes_of_the_length() -> None:
    """RFC 8446 section 4: uint24 length; the lower two bytes alone would fit the record."""
    stream = hellos.record(hellos.client_hello(claim=0x10000 + len(hellos.client_hello()) - 4))

    assert read_whole(stream, CAP) is None
    with pytest.raises(HelloTooLarge):
        collect(stream)


# -- caps


@pytest.mark.parametrize("length", [100, 517, 4096])
def test_the_cap_is_the_length_of_the_message(length: int) -> None:
    """`max_hello` bytes pass and one more does not, whatever the record headers add (RFC 8446 section 4)."""
    stream = hellos.record(hellos.padded_hello(length))

    assert collect(stream, length) is not None
    assert read_whole(stream, length) is not None
    with pytest.raises(HelloTooLarge):
        collect(stream, length - 1)
    assert read_whole(stream, length - 1) is None


def test_records_may_take_twice_the_cap_on_the_wire_and_no_byte_more() -> None:
    """BoringSSL's fuzz corpora: 19,422 bytes for a hello of 3,237, so a cap on the wire has to leave room."""
    message = hellos.padded_hello(300)
    stream = hellos.records(message, 1)

    assert len(stream) == 1800
    assert collect(stream, 900) is not None
    assert collect_bytewise(stream, 900) is not None
    assert verdict(stream[:-1], HelloTooLarge, 899) == AlertDescription.ILLEGAL_PARAMETER


def test_the_cap_on_the_wire_does_not_depend_on_the_segments() -> None:
    """A hello complete only behind twice the cap, in a record that begins before, passes in no segmentation."""
    message = hellos.padded_hello(100)
    stream = hellos.records(message, *[1] * 30, 70)

    assert len(stream) == 255
    assert verdict(stream[:250], HelloTooLarge, 125) is not None
    with pytest.raises(HelloTooLarge):
        collect(stream, 125)
    assert collect(stream, 128) is not None


def test_a_record_header_across_the_cap_on_the_wire_is_refused() -> None:
    """As above, where it is a header and not a fragment that crosses the line."""
    stream = hellos.records(hellos.padded_hello(100), *[1] * 33, 100)

    assert verdict(stream[: 33 * 6 + 5], HelloTooLarge, 100) is not None


class Counted(bytearray):
    """A bytearray that counts the bytes that go in and out of it."""

    moved = 0

    def __bytes__(self) -> bytes:
        Counted.moved += len(self)
        return bytes(bytearray(self))

    def __iadd__(self, other: bytes) -> Self:  # type: ignore[override,misc]
        Counted.moved += len(other)
        return super().__iadd__(other)

    def __getitem__(self, key):
        taken = super().__getitem__(key)
        Counted.moved += 1 if isinstance(taken, int) else len(taken)
        return taken


def moved_bytes(stream: bytes, portion: int, cap: int) -> int:
    """How many bytes HelloReader moves about for this stream in these portions."""
    reader = HelloReader(cap)
    reader.raw, reader._message = Counted(), Counted()
    Counted.moved = 0
    for position in range(0, len(stream), portion):
        reader.feed(stream[position : position + portion])
    return Counted.moved


@pytest.mark.parametrize("fragment", [1, 7, 1000, 16384])
@pytest.mark.parametrize("portion", [1, 3, 1460])
def test_the_work_grows_with_the_bytes_and_not_with_their_square(portion: int, fragment: int) -> None:
    """HAProxy's threat model, "quadratic parsing": the longest hello in the smallest portions costs so much a byte."""
    for length in (1000, 2000, 4000, 8000):
        stream = hellos.records(hellos.padded_hello(length), fragment)

        assert moved_bytes(stream, portion, 1 << 20) <= 5 * len(stream)


# -- what is not TLS


@pytest.mark.parametrize(
    "stream",
    [
        b"G",
        b"S",
        b"\0",
        b"\x14",
        b"\x15",
        b"\x17",
        b"\x16\x02",
        b"\x16\x04",
        b"\x16\x16",
        b"\x7f",
        b"\x80\x2e\x02",
        b"\x80\x2e\x01\x01",
        b"\x80\x2e\x01\x00\x01",
        b"\xff\xff\xff",
    ],
)
def test_what_does_not_begin_with_a_handshake_record_is_not_tls(stream: bytes) -> None:
    """RFC 8446 section 5.1: ContentType handshake is 22, the major version 3; nothing more is waited for."""
    assert verdict(stream, NotTls) is None
    assert read_whole(stream, CAP) is None
    with pytest.raises(NotTls) as caught:
        collect(stream)
    assert not caught.value.sslv2


def test_another_protocol_keeps_its_bytes() -> None:
    """RFC 4253 section 4.2: an SSH client begins with its version string; its server has to see all of it."""
    reader = HelloReader(CAP)
    with pytest.raises(NotTls) as caught:
        reader.feed(b"SSH-2.0-OpenSSH_9.2\r\n")

    assert reader.raw == b"SSH-2.0-OpenSSH_9.2\r\n"
    assert not caught.value.sslv2


@pytest.mark.parametrize("version", [0x0002, 0x0300, 0x0301, 0x0302, 0x0303])
def test_a_hello_in_the_framing_of_ssl_2_is_told_apart(version: int) -> None:
    """RFC 5246 appendix E.2: TLS all the same, but it cannot carry a server name (nginx-tests "sslv2")."""
    with pytest.raises(NotTls) as caught:
        collect(hellos.sslv2_hello(version))

    assert caught.value.sslv2


def test_a_long_hello_of_ssl_2_is_told_apart() -> None:
    """RFC 5246 appendix E.2: fifteen bits of length, so the first byte may be anything from 0x80."""
    with pytest.raises(NotTls) as caught:
        collect(hellos.sslv2_hello(ciphers=bytes(3 * 500)))

    assert caught.value.sslv2


@given(st.binary(max_size=4))
def test_the_first_bytes_of_ssl_2_wait_for_no_more_than_five(rest: bytes) -> None:
    """RFC 5246 appendix E.2: length, type and version stand in the first five bytes."""
    stream = (b"\x80\x2e" + rest + bytes(5))[:5]

    with pytest.raises(NotTls):
        collect(stream)
