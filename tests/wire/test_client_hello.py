"""What is read from a ClientHello: recorded clients in three shapes, then field by field."""

from __future__ import annotations

import pytest

from sniproxy.errors import MalformedHello
from sniproxy.wire.client_hello import ClientHello, HelloReader, extensions, parse_client_hello, read_whole
from sniproxy.wire.tls import AlertDescription
from tests.support import hellos
from tests.support.vectors import HelloVector, client_hellos

CAP = 16384
VECTORS = client_hellos()

recorded = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def collect(stream: bytes, cap: int = CAP) -> ClientHello | None:
    return HelloReader(cap).feed(stream)


def agrees(hello: ClientHello | None, vector: HelloVector) -> bool:
    assert hello is not None
    assert hello.server_name == vector.normal_name
    assert hello.alpn == vector.alpn
    assert hello.versions == vector.versions
    assert hello.ech == vector.ech
    assert hello.message == vector.message
    return True


# -- recorded clients, each in three shapes


def test_the_vectors_are_many_and_of_many_kinds() -> None:
    """The recordings hold what tests rely on: no name, no ALPN, ECH, several records, more than one segment."""
    assert len(VECTORS) >= 25
    assert {vector.expect for vector in VECTORS} == {"ok"}
    assert any(vector.server_name is None for vector in VECTORS)
    assert any(not vector.alpn for vector in VECTORS)
    assert any(vector.ech for vector in VECTORS)
    assert any(len(vector.stream) > len(vector.message) + 5 for vector in VECTORS)
    assert sum(len(vector.stream) > 1400 for vector in VECTORS) >= 3


@recorded
def test_a_recorded_hello_is_read_whole(vector: HelloVector) -> None:
    """All of it in one segment, as it mostly is."""
    assert agrees(collect(vector.stream), vector)


@recorded
def test_every_proper_prefix_of_a_recorded_hello_needs_more(vector: HelloVector) -> None:
    """TCP has no message boundaries (RFC 9293 section 3.7): one byte at a time is a legal delivery."""
    reader = HelloReader(CAP)
    for position in range(len(vector.stream) - 1):
        assert reader.feed(vector.stream[position : position + 1]) is None

    assert agrees(reader.feed(vector.stream[-1:]), vector)
    assert reader.raw == vector.stream


@recorded
def test_bytes_behind_a_recorded_hello_are_kept(vector: HelloVector) -> None:
    """Early data follows the hello at once (RFC 8446 section 4.2.10) and belongs to the server."""
    behind = hellos.record(b"\x01", content_type=hellos.CHANGE_CIPHER_SPEC) + bytes(range(256))
    reader = HelloReader(CAP)

    assert agrees(reader.feed(vector.stream + behind), vector)
    assert reader.raw == vector.stream + behind


@recorded
def test_a_recorded_hello_in_two_segments_is_read_wherever_it_was_cut(vector: HelloVector) -> None:
    """Envoy's tls_inspector test "MultipleReads": a hello cut anywhere reads like a whole one."""
    for cut in range(1, len(vector.stream), 7):
        reader = HelloReader(CAP)
        assert reader.feed(vector.stream[:cut]) is None
        assert agrees(reader.feed(vector.stream[cut:]), vector)


@recorded
def test_the_short_cut_reads_a_recorded_hello_as_the_reader_does(vector: HelloVector) -> None:
    """`read_whole` gives the same hello, or leaves one of several records to HelloReader."""
    hello = read_whole(vector.stream, CAP)

    if len(vector.stream) == len(vector.message) + 5:
        assert agrees(hello, vector)
    else:
        assert hello is None


# -- the message


def test_a_hello_without_an_extensions_block_has_no_name() -> None:
    """RFC 5246 section 7.4.1.2: a hello without extensions ends behind the compression methods."""
    hello = parse_client_hello(hellos.client_hello(legacy_version=0x0300, extensions_block=False))

    assert (hello.server_name, hello.alpn, hello.versions, hello.ech) == (None, (), (0x0300,), False)
    assert list(extensions(hello.message)) == []


def test_an_empty_extensions_block_is_none_at_all() -> None:
    """RFC 5246 section 7.4.1.4: the list of extensions may be empty."""
    hello = parse_client_hello(hellos.client_hello())

    assert (hello.server_name, hello.alpn, list(extensions(hello.message))) == (None, (), [])


def test_extensions_are_listed_in_the_order_sent() -> None:
    """RFC 8446 section 4.2: extensions may appear in any order."""
    message = hellos.client_hello(hellos.extension(35, b"x"), hellos.server_name("a.example"), hellos.extension(23))

    assert [kind for kind, _ in extensions(message)] == [35, 0, 23]
    assert parse_client_hello(message).server_name == "a.example"


def test_grease_is_passed_over_wherever_it_stands() -> None:
    """RFC 8701 section 3.1: clients put reserved values among ciphers, extensions, versions and protocols."""
    message = hellos.client_hello(
        hellos.extension(0x0A0A),
        hellos.server_name("a.example"),
        hellos.alpn(b"\x1a\x1a", b"h2"),
        hellos.supported_versions(0x2A2A, 0x0304),
        hellos.extension(0xFAFA, b"\0"),
        ciphers=(0x3A3A, 0x1301),
    )
    hello = parse_client_hello(message)

    assert (hello.server_name, hello.alpn, hello.versions) == ("a.example", (b"\x1a\x1a", b"h2"), (0x2A2A, 0x0304))


def test_a_hello_of_tls_1_3_only_names_the_version_in_its_extension() -> None:
    """RFC 8446 section 4.2.1: supported_versions goes before legacy_version (CVE-2020-8660)."""
    hello = parse_client_hello(hellos.client_hello(hellos.supported_versions(0x0304)))

    assert (hello.legacy_version, hello.versions) == (0x0303, (0x0304,))


@pytest.mark.parametrize("body", [b"", b"\0", b"\2\3", b"\3\3\4\3", b"\4\3\4", b"\2\3\4\0"])
def test_broken_supported_versions_fall_back_to_the_legacy_one(body: bytes) -> None:
    """Only a fingerprint asks for the versions; the server behind us refuses such a hello (RFC 8446 section 4.2.1)."""
    hello = parse_client_hello(hellos.client_hello(hellos.extension(hellos.SUPPORTED_VERSIONS, body)))

    assert hello.versions == (0x0303,)


def test_an_empty_list_of_ciphers_is_for_the_server_to_refuse() -> None:
    """nginx's stream_ssl_preread.t sends such hellos and is routed by their names."""
    assert (
        parse_client_hello(hellos.client_hello(hellos.server_name("a.example"), ciphers=())).server_name == "a.example"
    )


def test_the_longest_session_id_is_taken() -> None:
    """RFC 8446 section 4.1.2: legacy_session_id<0..32>."""
    message = hellos.client_hello(hellos.server_name("a.example"), session_id=bytes(32))

    assert parse_client_hello(message).server_name == "a.example"


BROKEN_LENGTHS = {
    "no bytes at all": b"",
    "the handshake header alone": hellos.client_hello()[:4],
    "ends in the version": hellos.client_hello()[:5],
    "ends in the random": hellos.client_hello()[:37],
    "ends behind the random": hellos.client_hello()[:38],
    "a session id of 33 bytes": hellos.client_hello(session_id=bytes(33)),
    "a session id that reaches past the end": hellos.client_hello(
        session_id_claim=32, extensions_block=False, ciphers=()
    ),
    "ciphers of an odd length": hellos.client_hello(ciphers_claim=3),
    "ciphers of an odd length, and all else adds up": hellos.client_hello(ciphers_claim=5),
    "ciphers that reach past the end": hellos.client_hello(ciphers_claim=0x8000),
    "no compression methods": hellos.client_hello()[:45],
    "compression that reaches past the end": hellos.client_hello(compression_claim=255),
    "compression that eats the block's length": hellos.client_hello(compression_claim=2),
    "half a length of the extensions": hellos.client_hello(extensions_block=False, tail=b"\0"),
    "extensions that end one byte early": hellos.client_hello(hellos.extension(35), extensions_claim=3),
    "extensions that reach 1 byte past the end": hellos.client_hello(hellos.extension(35), extensions_claim=5),
    "extensions that reach 4 bytes past the end": hellos.client_hello(hellos.extension(35), extensions_claim=8),
    "extensions of 65535 bytes": hellos.client_hello(hellos.extension(35), extensions_claim=65535),
    "bytes behind the extensions": hellos.client_hello(hellos.extension(35), tail=b"\0"),
    "a header of an extension cut to 1 byte": hellos.client_hello(hellos.extension(35), b"\0"),
    "a header of an extension cut to 3 bytes": hellos.client_hello(hellos.extension(35), b"\0\0\0"),
    "an extension that reaches 1 byte past the end": hellos.client_hello(hellos.extension(35, b"ab", claim=3)),
    "an extension that reaches 4 bytes past the end": hellos.client_hello(hellos.extension(35, b"ab", claim=6)),
    "an extension of 65535 bytes": hellos.client_hello(hellos.extension(35, b"ab", claim=65535)),
    "an extension that swallows the next header": hellos.client_hello(
        hellos.extension(35, claim=1), hellos.server_name("a.example")
    ),
}


@pytest.mark.parametrize("message", BROKEN_LENGTHS.values(), ids=BROKEN_LENGTHS)
def test_lengths_that_do_not_add_up_are_decode_errors(message: bytes) -> None:
    """RFC 8446 section 6.2, decode_error: "some field was out of the specified range or the length … was incorrect"."""
    with pytest.raises(MalformedHello) as caught:
        parse_client_hello(message)

    assert caught.value.alert == AlertDescription.DECODE_ERROR


@pytest.mark.parametrize(
    "twice",
    [
        hellos.server_name("a.example"),
        hellos.alpn(b"h2"),
        hellos.supported_versions(0x0304),
    ],
    ids=["server_name", "alpn", "supported_versions"],
)
def test_an_extension_must_not_stand_twice(twice: bytes) -> None:
    """RFC 8446 section 4.2: "There MUST NOT be more than one extension of the same type"."""
    with pytest.raises(MalformedHello) as caught:
        parse_client_hello(hellos.client_hello(twice, hellos.extension(35), twice))

    assert caught.value.alert == AlertDescription.ILLEGAL_PARAMETER


def test_two_extensions_with_different_names_are_not_a_choice() -> None:
    """BoringSSL's runner "DuplicateExtensionServer": neither the first nor the last of two wins."""
    message = hellos.client_hello(hellos.server_name("a.example"), hellos.server_name("b.example"))

    with pytest.raises(MalformedHello):
        parse_client_hello(message)


def test_ech_is_seen_and_the_outer_name_is_the_name() -> None:
    """RFC 9849 section 10: the name a client-facing server sees is that of the ClientHelloOuter."""
    body = b"\0" + bytes(9)
    message = hellos.client_hello(
        hellos.server_name("public.example"), hellos.extension(hellos.ENCRYPTED_CLIENT_HELLO, body)
    )
    hello = parse_client_hello(message)

    assert (hello.server_name, hello.ech) == ("public.example", True)


@pytest.mark.parametrize("kind", [0xFFCE, 0xFE08, 0xFE0C, 0xFE0E])
def test_code_points_of_drafts_are_not_ech(kind: int) -> None:
    """RFC 9849 section 11.1 registers 0xfe0d and no other."""
    assert not parse_client_hello(hellos.client_hello(hellos.extension(kind))).ech


def test_a_hello_prints_what_it_asks_for() -> None:
    """A repr is for people who debug: the name and the protocols, escaped."""
    hello = parse_client_hello(hellos.client_hello(hellos.server_name("a\nb"), hellos.alpn(b"h2")))

    assert repr(hello) == "<ClientHello 'a\\nb' alpn=(b'h2',)>"
