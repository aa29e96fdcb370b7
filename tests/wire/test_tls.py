"""Code points: the same as in the registries, as another library has copied them."""

from __future__ import annotations

import re

import pytest
from tlslite import constants

from sniproxy.wire import tls
from tests.support import hellos


@pytest.mark.parametrize("code", tls.AlertDescription)
def test_alerts_are_those_of_the_registry(code: tls.AlertDescription) -> None:
    """RFC 8446 section 6, RFC 6066 section 3."""
    assert getattr(constants.AlertDescription, code.name.lower()) == code


@pytest.mark.parametrize("code", tls.ContentType)
def test_content_types_are_those_of_the_registry(code: tls.ContentType) -> None:
    """RFC 8446 section 5.1."""
    assert getattr(constants.ContentType, code.name.lower()) == code


@pytest.mark.parametrize(
    ("name", "code"),
    [("server_name", 0), ("signature_algorithms", 13), ("alpn", 16), ("supported_versions", 43)],
)
def test_extensions_are_those_of_the_registry(name: str, code: int) -> None:
    """RFC 8446 section 4.2."""
    assert getattr(constants.ExtensionType, name) == code
    assert code in list(tls.ExtensionType)


def test_encrypted_client_hello_is_that_of_the_registry() -> None:
    """RFC 9849 section 11.1: 0xfe0d."""
    assert int(tls.ExtensionType.ENCRYPTED_CLIENT_HELLO) == 0xFE0D


def test_the_client_hello_is_type_1() -> None:
    """RFC 8446 section 4."""
    assert constants.HandshakeType.client_hello == tls.CLIENT_HELLO


def test_grease_is_sixteen_values() -> None:
    """RFC 8701 section 2: 0x0a0a, 0x1a1a … 0xfafa, and nothing else of sixteen bits."""
    written = [value for value in range(0x10000) if re.fullmatch(r"([0-9a-f])a\1a", f"{value:04x}")]

    assert len(written) == 16
    assert [value for value in range(0x10000) if tls.is_grease(value)] == written


def test_no_hello_is_longer_than_its_vectors_allow() -> None:
    """RFC 8446 section 4.1.2: legacy_session_id<0..32>, cipher_suites<2..2^16-2> and so on, all at their limits."""
    filler = hellos.extension(21, bytes(0xFFFF - 4))
    longest = hellos.client_hello(filler, session_id=bytes(32), ciphers=[0x1301] * 0x7FFF, compression=bytes(255))

    assert len(longest) == tls.HANDSHAKE_HEADER_BYTES + tls.MAX_CLIENT_HELLO_BYTES
