"""Code points of the TLS registries, by the names of RFC 8446, RFC 6066, RFC 7301 and RFC 9849."""

from __future__ import annotations

import enum


class ContentType(enum.IntEnum):
    """TLSPlaintext.type (RFC 8446 section 5.1)."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


class AlertDescription(enum.IntEnum):
    """The alerts this program sends (RFC 8446 section 6, RFC 6066 section 3, RFC 7301 section 3.2)."""

    UNEXPECTED_MESSAGE = 10
    RECORD_OVERFLOW = 22
    ILLEGAL_PARAMETER = 47
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    PROTOCOL_VERSION = 70
    INTERNAL_ERROR = 80
    MISSING_EXTENSION = 109
    UNRECOGNIZED_NAME = 112
    NO_APPLICATION_PROTOCOL = 120


class ExtensionType(enum.IntEnum):
    """The extensions this program reads."""

    SERVER_NAME = 0
    SIGNATURE_ALGORITHMS = 13
    APPLICATION_LAYER_PROTOCOL_NEGOTIATION = 16
    SUPPORTED_VERSIONS = 43
    ENCRYPTED_CLIENT_HELLO = 0xFE0D


CLIENT_HELLO = 1
"""HandshakeType of a ClientHello (RFC 8446 section 4)."""

RECORD_HEADER_BYTES = 5
MAX_FRAGMENT_BYTES = 1 << 14
"""Longest TLSPlaintext.fragment (RFC 8446 section 5.1)."""

HANDSHAKE_HEADER_BYTES = 4
MAX_CLIENT_HELLO_BYTES = 2 + 32 + (1 + 32) + (2 + 0xFFFE) + (1 + 0xFF) + (2 + 0xFFFF)
"""Longest body a ClientHello can have, every vector at its limit (RFC 8446 section 4.1.2).
A longer handshake message that claims to be one can never become valid."""


def is_grease(value: int) -> bool:
    """True for the sixteen reserved values 0x0a0a, 0x1a1a … 0xfafa (RFC 8701 section 2)."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF
