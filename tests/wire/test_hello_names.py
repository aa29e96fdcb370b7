"""The server_name and ALPN extensions of a ClientHello: what counts as a name, and what is refused."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.errors import MalformedHello
from sniproxy.wire.client_hello import ClientHello, is_host_name, parse_client_hello
from sniproxy.wire.tls import AlertDescription
from tests.support import hellos


def named(name: str | bytes) -> ClientHello:
    entry = hellos.name_entry(name)
    return parse_client_hello(hellos.client_hello(hellos.server_name(entry)))


def refused(*extensions: bytes) -> int:
    """The alert for a hello with these extensions."""
    with pytest.raises(MalformedHello) as caught:
        parse_client_hello(hellos.client_hello(*extensions))
    return caught.value.alert


# -- server_name: what is a name


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("git.example.com", "git.example.com"),
        ("GIT.Example.COM", "git.example.com"),
        ("git.example.com.", "git.example.com"),
        ("EXAMPLE.Acme.INVALID.", "example.acme.invalid"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("my_host.example.com", "my_host.example.com"),
        ("1.2.0.192.in-addr.arpa", "1.2.0.192.in-addr.arpa"),
        ("0.example", "0.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
        (".".join(["a" * 49] * 5) + ".abc.", ".".join(["a" * 49] * 5) + ".abc"),
    ],
)
def test_a_host_name_is_lower_case_and_without_its_last_dot(sent: str, name: str) -> None:
    """RFC 6066 section 3: case-insensitive, "without a trailing dot"; RFC 1035 section 2.3.4: 253 characters."""
    hello = named(sent)

    assert hello.server_name == name
    assert hello.host_name == name
    assert is_host_name(name)


@pytest.mark.parametrize("sent", ["", "."])
def test_an_empty_name_is_no_name(sent: str) -> None:
    """RFC 6066 section 3 has HostName<1..2^16-1>; clients that send an empty one mean none (utls, EmptyServerName)."""
    hello = named(sent)

    assert hello.server_name is None
    assert hello.host_name is None


@pytest.mark.parametrize(
    "sent",
    [
        "192.0.2.1",
        "192.0.2.1.",
        "3221225985",
        "a.1",
        "2001:db8::1",
        "[2001:db8::1]",
        "a..b",
        ".a",
        "..acme.invalid",
        "a...",
        "-a.example",
        "a-.example",
        "a" * 64 + ".example",
        ".".join(["a" * 49] * 5) + ".abcd",
        "a b",
        " a",
        "a/../b",
        "a\r\nX: y",
        "a\nb",
        "a\n",
        "a\x1b[31m",
        "a%00.example",
        "*.example.com",
        "a:443",
        "user@a",
        "\x7f",
    ],
)
def test_what_is_no_host_name_is_shown_and_never_matched(sent: str) -> None:
    """RFC 6066 section 3: host names only, "Literal IPv4 and IPv6 addresses are not permitted"; CVE-2023-25076."""
    hello = named(sent)

    assert hello.server_name == sent.lower().removesuffix(".")
    assert hello.host_name is None
    assert not is_host_name(sent.lower().removesuffix("."))


@pytest.mark.parametrize(
    "sent",
    [
        b"a\0b",
        b"\0",
        b"a.example\0",
        "bücher.example".encode(),
        b"\xff",
        b"a" * 256,
        b"a" * 65000,
    ],
)
def test_a_name_that_openssl_or_netty_refuses_is_refused(sent: bytes) -> None:
    """OpenSSL (tls_parse_ctos_server_name): no more than 255 bytes, no NUL; netty (SniHandler): ASCII only."""
    assert refused(hellos.server_name(hellos.name_entry(sent))) == AlertDescription.UNRECOGNIZED_NAME


def test_a_name_of_255_bytes_is_read_and_never_matched() -> None:
    """RFC 1035 section 2.3.4: 255 octets in wire form are 253 characters; OpenSSL's TLSEXT_MAXLEN_host_name is 255."""
    hello = named("a" * 255)

    assert hello.server_name == "a" * 255
    assert hello.host_name is None


_LABEL = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=20)


@given(st.lists(_LABEL, min_size=1, max_size=5), _LABEL.filter(lambda label: not label.isdigit()))
def test_any_host_name_comes_out_as_it_went_in(labels: list[str], last: str) -> None:
    """RFC 6066 section 3: the name is the DNS host name, and all its characters count."""
    name = ".".join([*labels, last])

    assert named(name.upper()).host_name == name


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=255))
def test_a_host_name_is_made_of_harmless_characters_only(sent: str) -> None:
    """untangle ngfw_src 1225: a name off the wire that forged log lines and addresses."""
    name = named(sent).host_name

    assert name is None or set(name) <= set(string.ascii_lowercase + string.digits + "-_.")


# -- server_name: framing

NAME = hellos.name_entry("a.example")
OTHER = hellos.name_entry("b.example")

BROKEN_NAMES = {
    "no body": hellos.extension(hellos.SERVER_NAME),
    "half a list length": hellos.extension(hellos.SERVER_NAME, b"\0"),
    "an empty list": hellos.server_name(),
    "an entry of a type alone": hellos.server_name(b"\0"),
    "an entry with half a length": hellos.server_name(b"\0\0"),
    "a list 1 byte longer than its container": hellos.server_name(NAME, list_claim=len(NAME) + 1),
    "a list 4 bytes longer": hellos.server_name(NAME, list_claim=len(NAME) + 4),
    "a list of 65535 bytes": hellos.server_name(NAME, list_claim=65535),
    "a list 1 byte shorter": hellos.server_name(NAME, list_claim=len(NAME) - 1),
    "a list of no bytes before a name": hellos.server_name(NAME, list_claim=0),
    "a name 1 byte longer than its list": hellos.server_name(hellos.name_entry("a.example", claim=10)),
    "a name 4 bytes longer": hellos.server_name(hellos.name_entry("a.example", claim=13)),
    "a name of 65535 bytes": hellos.server_name(hellos.name_entry("a.example", claim=65535)),
    "a name 1 byte shorter": hellos.server_name(hellos.name_entry("a.example", claim=8)),
    "an extension 1 byte longer than the list": hellos.server_name(NAME, tail=b"\0"),
    "an extension with a second list": hellos.server_name(NAME, tail=hellos.prefixed(2, OTHER)),
    "two host names": hellos.server_name(NAME, OTHER),
    "the same host name twice": hellos.server_name(NAME, NAME),
    "another type first": hellos.server_name(hellos.name_entry("x", name_type=1), NAME),
    "another type behind": hellos.server_name(NAME, hellos.name_entry("x", name_type=1)),
    "another type alone": hellos.server_name(hellos.name_entry("a.example", name_type=1)),
    "type 255": hellos.server_name(hellos.name_entry("a.example", name_type=255)),
    "a byte behind an empty name": hellos.server_name(hellos.name_entry(""), b"\0"),
}


@pytest.mark.parametrize("extension", BROKEN_NAMES.values(), ids=BROKEN_NAMES)
def test_a_server_name_that_is_not_exactly_one_host_name_is_refused(extension: bytes) -> None:
    """RFC 6066 section 3: not two of one name_type; tlsfuzzer, test-invalid-server-name-extension."""
    assert refused(extension) == AlertDescription.DECODE_ERROR


@pytest.mark.parametrize("distance", [1, 4, 65535 - 14])
def test_a_server_name_extension_that_reaches_past_the_hello_gives_no_name(distance: int) -> None:
    """HAProxy ed267f9bc and 8f507ae75: a length past its container read a name from bytes that are not the client's."""
    extension = hellos.server_name("a.example", claim=14 + distance)

    assert refused(extension) == AlertDescription.DECODE_ERROR


# -- ALPN


@pytest.mark.parametrize(
    "offered",
    [
        (b"h2",),
        (b"h2", b"http/1.1"),
        (b"http/1.1", b"h2"),
        (b"acme-tls/1",),
        (b"ACME-TLS/1",),
        (b"acme-tls/1 ",),
        (b"h2", b"h2"),
        (b"\0\xff",),
        (b"x" * 255,),
        tuple(bytes((value,)) for value in range(256)),
    ],
)
def test_protocols_are_opaque_and_keep_their_order(offered: tuple[bytes, ...]) -> None:
    """RFC 7301 section 3.1: opaque names of 1 to 255 bytes, in the client's order of preference."""
    assert parse_client_hello(hellos.client_hello(hellos.alpn(*offered))).alpn == offered


BROKEN_ALPN = {
    "no body": hellos.extension(hellos.ALPN),
    "half a list length": hellos.extension(hellos.ALPN, b"\0"),
    "an empty list": hellos.alpn(),
    "an empty protocol": hellos.alpn(b""),
    "an empty protocol first": hellos.alpn(b"", b"h2"),
    "an empty protocol last": hellos.alpn(b"h2", b""),
    "an empty protocol after a challenge": hellos.alpn(b"acme-tls/1", b""),
    "a list 1 byte longer than its container": hellos.alpn(b"h2", list_claim=4),
    "a list 4 bytes longer": hellos.alpn(b"h2", list_claim=7),
    "a list of 65535 bytes": hellos.alpn(b"h2", list_claim=65535),
    "a list 1 byte shorter": hellos.alpn(b"h2", list_claim=2),
    "a byte behind the list": hellos.alpn(b"h2", tail=b"\0"),
    "a second list": hellos.alpn(b"acme-tls/1", tail=hellos.prefixed(2, b"\2h2")),
    "a protocol 1 byte longer than its list": hellos.extension(hellos.ALPN, b"\0\3\3h2"),
    "a protocol of 255 bytes in a list of 3": hellos.extension(hellos.ALPN, b"\0\3\xffh2"),
    "a protocol 1 byte shorter": hellos.extension(hellos.ALPN, b"\0\3\1h2"),
}


@pytest.mark.parametrize("extension", BROKEN_ALPN.values(), ids=BROKEN_ALPN)
def test_an_alpn_list_that_does_not_add_up_is_refused(extension: bytes) -> None:
    """RFC 7301 section 3.1: protocol_name_list<2..2^16-1> of ProtocolName<1..2^8-1>, "Empty strings MUST NOT"."""
    assert refused(hellos.server_name("a.example"), extension) == AlertDescription.DECODE_ERROR
