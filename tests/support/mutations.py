"""Strategies for hypothesis: streams cut into portions, and hellos with something wrong."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support import hellos
from tests.support.vectors import client_hellos

_RECORDED = [vector.stream for vector in client_hellos()]


@st.composite
def portions(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream cut anywhere, empty portions included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@st.composite
def mutated(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> bytes:
    """A stream with up to four changes: a byte written over, bytes put in, taken out or doubled, the end cut off."""
    stream = bytearray(draw(streams))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(len(stream) - 1, 0)))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("write", "write", "put in", "take out", "double", "cut"))):
            case "write":
                stream[position : position + 1] = bytes(
                    (draw(st.one_of(st.integers(0, 255), st.sampled_from((0, 1, 255)))),)
                )
            case "put in":
                stream[position:position] = draw(st.binary(max_size=8))
            case "take out":
                del stream[position : position + length]
            case "double":
                stream[position:position] = stream[position : position + length]
            case _:
                del stream[position:]
    return bytes(stream)


def recorded_streams() -> st.SearchStrategy[bytes]:
    return st.sampled_from(_RECORDED)


def small_streams() -> st.SearchStrategy[bytes]:
    """Short hellos, where a random change is likely to meet something that matters."""
    return st.builds(
        lambda name, protocols, sizes: hellos.records(
            hellos.client_hello(
                hellos.server_name(name), hellos.alpn(*protocols), hellos.supported_versions(0x0304), ciphers=(0x1301,)
            ),
            *sizes,
        ),
        st.sampled_from(("a.example", "A.b", "x.acme.invalid")),
        st.lists(st.sampled_from((b"h2", b"acme-tls/1")), min_size=1, max_size=3),
        st.lists(st.integers(1, 200), min_size=1, max_size=4),
    )


def nearly_hellos() -> st.SearchStrategy[bytes]:
    """What a fuzzer would try: recorded and small hellos with changes, and records of anything."""
    fragment = st.binary(max_size=60)
    content_type = st.sampled_from((22, 22, 22, 20, 21, 23, 0))
    begins = st.just(b"\1\0\0\x30\3\3") | st.just(b"")
    records = st.lists(
        st.builds(
            lambda kind, start, rest: hellos.record(start + rest, content_type=kind), content_type, begins, fragment
        ),
        max_size=5,
    ).map(b"".join)
    return st.one_of(mutated(recorded_streams()), mutated(small_streams()), records, st.binary(max_size=80))
