"""Eight hundred first flights from captures and fuzz corpora of other projects, with what their decoders say.

The corpus lies beside this tree and is no part of it; without it these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.errors import HelloTooLarge, MalformedHello, NotTls, WireError
from sniproxy.model import HelloKind
from sniproxy.wire.client_hello import ClientHello, HelloReader, read_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

CORPUS = Path(__file__).parent.parent.parent.parent / "shared" / "corpus" / "clienthello.jsonl"
CAP = 16384


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    if not CORPUS.is_file():
        pytest.skip(f"no corpus beside the tree at ../{CORPUS.relative_to(CORPUS.parent.parent.parent)}")
    return [json.loads(line) for line in CORPUS.read_text(encoding="ascii").splitlines()]


def verdict(chunks: Iterable[bytes]) -> tuple[str, ClientHello | None, bytes]:
    """The corpus' word for what came out, the hello if there is one, and all bytes that were kept."""
    reader = HelloReader(CAP)
    try:
        for chunk in chunks:
            if (hello := reader.feed(chunk)) is not None:
                return "tls", hello, bytes(reader.raw)
    except NotTls as error:
        return ("sslv2" if error.sslv2 else HelloKind.NOT_TLS), None, bytes(reader.raw)
    except (MalformedHello, HelloTooLarge):
        return HelloKind.MALFORMED, None, bytes(reader.raw)
    return HelloKind.INCOMPLETE, None, bytes(reader.raw)


def wrong(entry: dict[str, Any], kind: str, hello: ClientHello | None) -> str:
    """What a verdict has wrong, as one line; empty when it is right."""
    expect = entry["expect"]
    lenient = entry.get("note", "").startswith("lenient-ok:")
    where = f"{entry['id']} ({entry['source']}): "
    if kind != expect["kind"]:
        return "" if lenient and kind == "tls" else f"{where}{kind}, not {expect['kind']}"
    if hello is None:
        return ""
    seen = (hello.server_name, [name.decode("latin-1") for name in hello.alpn], hello.ech, hello.legacy_version)
    sent_name = (expect["sni"] or "").lower().removesuffix(".") or None
    told = (sent_name, expect["alpn"], expect["ech"], int(expect["legacy_version"], 16))
    return "" if seen == told else f"{where}{seen}, not {told}"


def test_the_corpus_is_read_whole(entries: list[dict[str, Any]]) -> None:
    """Kind, name, protocols, ECH and legacy version are those on which tshark, tlslite-ng and OpenSSL agree."""
    mistakes = [wrong(entry, *verdict([bytes.fromhex(entry["hex"])])[:2]) for entry in entries]

    assert not list(filter(None, mistakes))


def test_the_corpus_is_read_byte_by_byte(entries: list[dict[str, Any]]) -> None:
    """Envoy "MultipleReads": every proper prefix of a hello needs more, and the end result is the same."""
    mistakes = []
    for entry in entries:
        stream = bytes.fromhex(entry["hex"])
        kind, hello, raw = verdict(stream[at : at + 1] for at in range(len(stream)))
        mistakes.append(wrong(entry, kind, hello))
        if hello is not None and entry["expect"]["kind"] == "tls":
            # All bytes up to the end of the hello; what follows it in its last record has not been fed.
            unread = len(stream) - len(raw)
            mistakes.append("" if stream.startswith(raw) and not unread else f"{entry['id']}: {unread} bytes early")

    assert not list(filter(None, mistakes))


def test_the_corpus_is_read_in_the_segments_it_came_in(entries: list[dict[str, Any]]) -> None:
    """The TCP segments of the captures: what real clients and networks do to a hello (tldr.fail)."""
    mistakes = []
    for entry in entries:
        stream, position, chunks = bytes.fromhex(entry["hex"]), 0, []
        for length in entry["segments"] or ():
            chunks.append(stream[position : position + length])
            position += length
        mistakes.append(wrong(entry, *verdict([*chunks, stream[position:]])[:2]))

    assert not list(filter(None, mistakes))


def test_bytes_behind_a_hello_of_the_corpus_change_nothing(entries: list[dict[str, Any]]) -> None:
    """RFC 8446 section 4.2.10: early data follows at once; the hello is the same, and all bytes are kept."""
    behind = b"\x17\x03\x03\x00\x10" + bytes(16)
    mistakes = []
    for entry in entries:
        stream = bytes.fromhex(entry["hex"])
        if entry["expect"]["kind"] == "incomplete":
            continue
        kind, hello, raw = verdict([stream + behind])
        mistakes.append(wrong(entry, kind, hello))
        mistakes.append("" if raw == stream + behind else f"{entry['id']}: bytes lost")

    assert not list(filter(None, mistakes))


def test_the_short_cut_agrees_about_the_corpus(entries: list[dict[str, Any]]) -> None:
    """`read_whole` says what HelloReader says, or nothing."""
    mistakes = []
    for entry in entries:
        try:
            hello = read_whole(bytes.fromhex(entry["hex"]), CAP)
        except WireError:
            mistakes.append(wrong(entry, HelloKind.MALFORMED, None))
        else:
            mistakes.append(wrong(entry, "tls", hello) if hello is not None else "")

    assert not list(filter(None, mistakes))
