"""The record that tells a refused TLS client why (RFC 8446 section 6)."""

from __future__ import annotations

from sniproxy.wire.tls import AlertDescription, ContentType

_FATAL = 2
# TLS 1.2 in the record header: what every client since SSL 3.0 reads, and what a server must
# send before a version is agreed (RFC 8446 section 5.1).
_HEADER = bytes((ContentType.ALERT, 3, 3, 0, 2, _FATAL))

_RECORDS = {code: _HEADER + bytes((code,)) for code in AlertDescription}


def fatal_alert(description: int) -> bytes:
    """The seven bytes of a fatal alert record; `description` is an AlertDescription code."""
    return _RECORDS.get(description) or _HEADER + bytes((description,))  # type: ignore[call-overload]
