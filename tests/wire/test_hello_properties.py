"""What holds for whatever a client sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.errors import MalformedHello, WireError
from sniproxy.wire.client_hello import ClientHello, HelloReader, extensions, parse_client_hello, read_whole
from sniproxy.wire.ja4 import ja4
from tests.support import hellos
from tests.support.mutations import mutated, nearly_hellos, portions, recorded_streams, small_streams

if TYPE_CHECKING:
    from collections.abc import Iterable

often = settings(max_examples=10 * settings().max_examples)
caps = st.sampled_from((64, 100, 517, 2000, 16384))

Result = tuple[object, ...] | None


def described(hello: ClientHello) -> Result:
    return (
        hello.server_name,
        hello.host_name,
        hello.alpn,
        hello.versions,
        hello.ech,
        hello.legacy_version,
        hello.message,
    )


def outcome(chunks: Iterable[bytes], cap: int) -> Result:
    """What HelloReader makes of these portions: a hello, None, or which error with which words."""
    reader = HelloReader(cap)
    try:
        for chunk in chunks:
            if (hello := reader.feed(chunk)) is not None:
                return described(hello)
    except WireError as error:
        return type(error), str(error), getattr(error, "alert", None)
    return None


@often
@given(nearly_hellos(), caps)
def test_any_bytes_are_a_hello_or_need_more_or_are_a_wire_error(stream: bytes, cap: int) -> None:
    """A reader has three outcomes; Envoy and HAProxy fuzz theirs for any other."""
    outcome([stream], cap)


@often
@given(st.data(), nearly_hellos(), caps)
def test_the_portions_make_no_difference(data: st.DataObject, stream: bytes, cap: int) -> None:
    """TCP keeps no boundaries (RFC 9293 section 3.7): neither a hello nor an error may depend on them."""
    chunks = data.draw(portions(stream))

    assert outcome(chunks, cap) == outcome([stream], cap)


@given(nearly_hellos(), caps)
def test_single_bytes_make_no_difference(stream: bytes, cap: int) -> None:
    """As above, in the smallest portions there are."""
    assert outcome((stream[at : at + 1] for at in range(len(stream))), cap) == outcome([stream], cap)


@often
@given(nearly_hellos(), caps)
def test_the_short_cut_says_nothing_else_than_the_reader(stream: bytes, cap: int) -> None:
    """`read_whole` gives the hello or the error that HelloReader gives, or leaves it to that."""
    try:
        hello = read_whole(stream, cap)
        result = None if hello is None else described(hello)
    except MalformedHello as error:
        result = type(error), str(error), error.alert

    assert result is None or result == outcome([stream], cap)


@often
@given(nearly_hellos(), st.binary(max_size=40))
def test_a_verdict_stands_whatever_follows(stream: bytes, behind: bytes) -> None:
    """A hello or an error, once given, is the same with more bytes behind it."""
    result = outcome([stream], 16384)

    assert result is None or outcome([stream + behind], 16384) == result


@often
@given(st.binary(max_size=120) | mutated(small_streams()).map(lambda stream: stream[5:]))
def test_any_message_is_a_hello_or_malformed(message: bytes) -> None:
    """`parse_client_hello` is a total function, also on what no reader would hand to it."""
    try:
        hello = parse_client_hello(message)
    except MalformedHello:
        return

    assert described(hello) is not None
    assert len(ja4(hello)) == 36
    assert sum(4 + len(body) for _, body in extensions(message)) < len(message)


@often
@given(mutated(recorded_streams() | small_streams()))
def test_a_challenge_is_never_read_where_none_was_sent(stream: bytes) -> None:
    """RFC 8737 section 3: the protocol is the exact bytes `acme-tls/1`; no damage to another hello makes them up."""
    result = outcome([stream], 16384)

    if result is not None and result[2] == (b"acme-tls/1",):
        assert b"\0\x0b\x0aacme-tls/1" in b"".join(result[-1:])


@given(
    name=st.none() | st.from_regex(r"[a-z0-9]{1,20}(\.[a-z][a-z0-9]{0,20}){1,4}", fullmatch=True),
    protocols=st.lists(st.binary(min_size=1, max_size=20), max_size=5),
    versions=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=10),
    others=st.lists(
        st.tuples(st.integers(60, 0xFFFF).filter(lambda kind: kind != 0xFE0D), st.binary(max_size=30)), max_size=8
    ),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_what_was_built_is_what_is_read(name, protocols, versions, others, sizes, order) -> None:
    """RFC 8446 section 4.1.2, the other way round: each field comes out as it was put in, in any order."""
    parts = [hellos.extension(kind, body) for kind, body in others] + [hellos.supported_versions(*versions)]
    parts += [hellos.server_name(name)] if name else []
    parts += [hellos.alpn(*protocols)] if protocols else []
    order.shuffle(parts)
    hello = HelloReader(16384).feed(hellos.records(hellos.client_hello(*parts), *sizes))

    assert hello is not None
    assert (hello.host_name, hello.alpn, hello.versions, hello.ech) == (name, tuple(protocols), tuple(versions), False)
