"""JA4 by its published description ("JA4: TLS Client Fingerprinting", FoxIO), examples included."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sniproxy.wire.client_hello import parse_client_hello
from sniproxy.wire.ja4 import ja4
from tests.support import hellos
from tests.support.oracles import reference_ja4, tlslite_reading
from tests.support.vectors import HelloVector, client_hellos

VECTORS = {vector.name: vector for vector in client_hellos()}

# The worked example of the description, in the order it gives.
EXAMPLE_CIPHERS = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"
EXAMPLE_EXTENSIONS = "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"
EXAMPLE_SCHEMES = "0403,0804,0401,0503,0805,0501,0806,0601"

GREASE = [value << 8 | value for value in range(0x0A, 0x100, 0x10)]


def numbers(text: str) -> list[int]:
    return [int(value, 16) for value in text.split(",")]


def extension(kind: int, *, schemes: list[int]) -> bytes:
    """An extension of the example; those that the fingerprint looks into get a body."""
    known = {
        hellos.SERVER_NAME: hellos.server_name("www.example.org"),
        hellos.ALPN: hellos.alpn(b"h2", b"http/1.1"),
        hellos.SUPPORTED_VERSIONS: hellos.supported_versions(0x0304, 0x0303),
        hellos.SIGNATURE_ALGORITHMS: hellos.signature_algorithms(*schemes),
    }
    return known.get(kind, hellos.extension(kind))


def fingerprint(
    ciphers: list[int], kinds: list[int], schemes: list[int] | None = None, legacy_version: int = 0x0303
) -> str:
    extensions = [extension(kind, schemes=schemes or []) for kind in kinds]
    return ja4(parse_client_hello(hellos.client_hello(*extensions, ciphers=ciphers, legacy_version=legacy_version)))


def part_a(*extensions: bytes, **fields: int) -> str:
    return ja4(parse_client_hello(hellos.client_hello(*extensions, **fields))).split("_")[0]


def test_the_worked_example() -> None:
    """Section "Example": t13d1516h2_8daaf6152771_e5627efa2ab1."""
    found = fingerprint(numbers(EXAMPLE_CIPHERS), numbers(EXAMPLE_EXTENSIONS), numbers(EXAMPLE_SCHEMES))

    assert found == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_the_worked_example_without_signature_algorithms() -> None:
    """Section "Extension hash": without schemes there is no underscore behind the extensions, 6d807ffa2a79."""
    found = fingerprint(numbers(EXAMPLE_CIPHERS), numbers(EXAMPLE_EXTENSIONS), [])

    assert found == "t13d1516h2_8daaf6152771_6d807ffa2a79"


def test_grease_is_left_out_everywhere() -> None:
    """Section "Details": "The program needs to ignore GREASE values anywhere it sees them"."""
    found = fingerprint(
        [*GREASE[:3], *numbers(EXAMPLE_CIPHERS), GREASE[15]],
        [GREASE[4], *numbers(EXAMPLE_EXTENSIONS), GREASE[5]],
        [GREASE[6], *numbers(EXAMPLE_SCHEMES)],
    )

    assert found == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_the_order_of_ciphers_and_extensions_does_not_matter() -> None:
    """Section "Extension hash": both lists are sorted, so that clients which shuffle them keep their fingerprint."""
    found = fingerprint(numbers(EXAMPLE_CIPHERS)[::-1], sorted(numbers(EXAMPLE_EXTENSIONS)), numbers(EXAMPLE_SCHEMES))

    assert found == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_the_order_of_signature_algorithms_matters() -> None:
    """Section "Extension hash": "in the order that they appear (not sorted)"."""
    found = fingerprint(numbers(EXAMPLE_CIPHERS), numbers(EXAMPLE_EXTENSIONS), numbers(EXAMPLE_SCHEMES)[::-1])

    assert found.startswith("t13d1516h2_8daaf6152771_")
    assert not found.endswith("e5627efa2ab1")


def test_a_browser_has_its_published_fingerprint() -> None:
    """The description's example is Chrome's before 2023; a recording of version 110 has it too."""
    assert VECTORS["chrome110"].ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_the_fingerprint_of_a_recorded_client(vector: HelloVector) -> None:
    """Each recording states what an independent reading of its hello gives."""
    assert ja4(parse_client_hello(vector.message)) == vector.ja4
    assert reference_ja4(vector.message) == vector.ja4


@pytest.mark.parametrize(
    ("protocol", "mark"),
    [
        (b"h2", "h2"),
        (b"http/1.1", "h1"),
        (b"acme-tls/1", "a1"),
        (b"x", "xx"),
        (b"\xab", "ab"),
        (b"\xab\xcd", "ad"),
        (b"\x30\xab", "3b"),
        (b"\x30\x31\xab\xcd", "3d"),
        (b"\x30\xab\xcd\x31", "01"),
        (b" h2", "22"),
        (b"h2_", "6f"),
        (b"\x0a\x0a", "0a"),
    ],
)
def test_the_mark_of_the_first_protocol(protocol: bytes, mark: str) -> None:
    """Section "ALPN Extension Value", its five examples in hexadecimal among these."""
    assert part_a(hellos.alpn(protocol, b"h3"))[-2:] == mark


def test_no_protocol_is_two_zeros() -> None:
    """Section "ALPN Extension Value": "If there is no ALPN extension … we print "00""."""
    assert part_a(hellos.server_name("a.example")) == "t12d020100"


@pytest.mark.parametrize(
    ("version", "mark"),
    [
        (0x0304, "13"),
        (0x0303, "12"),
        (0x0302, "11"),
        (0x0301, "10"),
        (0x0300, "s3"),
        (0x0002, "s2"),
        (0x0305, "00"),
        (0, "00"),
    ],
)
def test_the_mark_of_the_version(version: int, mark: str) -> None:
    """Section "TLS and DTLS Version": a table, and "00" for the unknown."""
    assert part_a(legacy_version=version) == f"t{mark}i020000"


def test_the_version_is_the_highest_of_the_extension() -> None:
    """Section "TLS and DTLS Version": the highest value in supported_versions, GREASE ignored."""
    assert part_a(hellos.supported_versions(0x0302, 0x0304, 0xFAFA, 0x0303)) == "t13i020100"
    assert part_a(hellos.supported_versions(0x0302), legacy_version=0x0303) == "t11i020100"


def test_numbers_end_at_99() -> None:
    """Section "Number of Ciphers": "If there's > 99 … output "99""; extensions likewise."""
    found = fingerprint(list(range(0xC000, 0xC000 + 120)), list(range(0x100, 0x100 + 150)))

    assert found.startswith("t12i999900_")


def test_signalling_values_count_as_ciphers() -> None:
    """Section "Number of Ciphers": "count other non-cipher values such as SCSV (0x00FF, 0x5600)"."""
    assert fingerprint([0x1301, 0x00FF, 0x5600], []).startswith("t12i030000_")


def test_empty_lists_are_twelve_zeros() -> None:
    """Sections "Cipher hash" and "Extension hash": 000000000000 rather than the hash of nothing."""
    assert fingerprint([], []) == "t12i000000_000000000000_000000000000"
    assert fingerprint(GREASE[:2], GREASE[:2]) == "t12i000000_000000000000_000000000000"
    assert fingerprint([], [0, 16]).endswith("h2_000000000000_000000000000")


def test_a_hello_without_an_extensions_block_has_a_fingerprint() -> None:
    """RFC 5246 section 7.4.1.2: extensions may be absent altogether."""
    message = hellos.client_hello(legacy_version=0x0300, extensions_block=False)

    assert ja4(parse_client_hello(message)).startswith("ts3i020000_")


_U16 = st.integers(0, 0xFFFF) | st.sampled_from(GREASE)


@given(
    ciphers=st.lists(_U16, max_size=30),
    kinds=st.lists(
        _U16.filter(lambda kind: kind not in {1, 5, 10, 11, 15, 28, 41, 45, 47, 50, 51}), unique=True, max_size=20
    ),
    schemes=st.lists(_U16, max_size=10),
)
def test_any_hello_has_the_fingerprint_of_the_plain_reading(
    ciphers: list[int], kinds: list[int], schemes: list[int]
) -> None:
    """The description followed word by word, over what tlslite-ng has read, gives the same."""
    extensions = [extension(kind, schemes=schemes) for kind in kinds]
    message = hellos.client_hello(*extensions, ciphers=ciphers)
    assume(tlslite_reading(message) is not None)  # it refuses some extensions without a body

    assert ja4(parse_client_hello(message)) == reference_ja4(message)
