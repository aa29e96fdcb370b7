"""The server name and the protocols are those that other readers see: tlslite-ng and OpenSSL.

A front that reads another name than the TLS stack behind it sends connections to the wrong backend.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from sniproxy.errors import WireError
from sniproxy.wire.client_hello import ClientHello, HelloReader
from tests.support.mutations import mutated, recorded_streams, small_streams
from tests.support.oracles import openssl_server_name, tlslite_reading
from tests.support.vectors import HelloVector, client_hellos

VECTORS = client_hellos()
EXHAUSTIVE = ("openssl-alpn", "openssl-tls1-2", "gnutls-acme-tls-1", "node-alpn")

recorded = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
often = settings(max_examples=10 * settings().max_examples)


def ours(stream: bytes) -> ClientHello | None:
    """The hello, or None where the stream is refused or incomplete."""
    try:
        return HelloReader(1 << 17).feed(stream)
    except WireError:
        return None


def normal(name: str | bytes | None) -> str | None:
    """A name as another reader gives it, in our form."""
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return (name or "").lower().removesuffix(".") or None


def compare(stream: bytes) -> tuple[bool, bool]:
    """Checks that all who accept the stream agree; tells whether OpenSSL and tlslite-ng were among them."""
    hello = ours(stream)
    if hello is None:
        return False, False
    accepted, name = openssl_server_name(stream)
    if accepted:
        assert hello.server_name == normal(name), "OpenSSL reads another name"
    reading = tlslite_reading(hello.message)
    if reading is not None:
        assert hello.server_name == normal(reading.server_name), "tlslite-ng reads another name"
        assert hello.alpn == reading.alpn
        assert hello.ech == reading.ech
        assert hello.legacy_version == reading.legacy_version
    return accepted, reading is not None


@recorded
def test_all_readers_agree_about_a_recorded_hello(vector: HelloVector) -> None:
    """RFC 6066 section 3 and RFC 7301 section 3.1, read by OpenSSL's servername callback and by tlslite-ng."""
    assert compare(vector.stream) == (True, True)


@recorded
def test_openssl_is_told_the_recorded_name(vector: HelloVector) -> None:
    """The recordings' own statement of the name is the one that OpenSSL's servername callback is given."""
    accepted, name = openssl_server_name(vector.stream)

    assert accepted
    assert normal(name) == vector.normal_name


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_no_single_wrong_byte_makes_readers_disagree(name: str) -> None:
    """Every byte of a real hello in turn, four wrong values each: who accepts it reads the same name and protocols."""
    (stream,) = (vector.stream for vector in VECTORS if vector.name == name)
    both = 0
    for position in range(len(stream)):
        for change in (1, 0x80, stream[position], 0xFF ^ stream[position]):
            damaged = bytearray(stream)
            damaged[position] ^= change
            both += compare(bytes(damaged)) == (True, True)

    assert both > len(stream)


@often
@given(mutated(recorded_streams() | small_streams()))
def test_no_damage_makes_readers_disagree(stream: bytes) -> None:
    """As above, with bytes put in, taken out and doubled anywhere."""
    compare(stream)
