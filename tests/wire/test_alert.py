"""What a refused TLS client is told."""

from __future__ import annotations

import pytest
from tlslite.messages import Alert, RecordHeader3
from tlslite.utils.codec import Parser

from sniproxy.wire.alert import fatal_alert
from sniproxy.wire.tls import AlertDescription


@pytest.mark.parametrize(
    ("description", "record"),
    [
        (AlertDescription.UNRECOGNIZED_NAME, "15 03 03 00 02 02 70"),
        (AlertDescription.ACCESS_DENIED, "15 03 03 00 02 02 31"),
        (AlertDescription.DECODE_ERROR, "15 03 03 00 02 02 32"),
        (AlertDescription.MISSING_EXTENSION, "15 03 03 00 02 02 6d"),
        (0, "15 03 03 00 02 02 00"),
        (120, "15 03 03 00 02 02 78"),
        (255, "15 03 03 00 02 02 ff"),
    ],
)
def test_an_alert_is_seven_bytes(description: int, record: str) -> None:
    """RFC 8446 sections 5.1 and 6: type 21, version 3.3, two bytes: fatal (2) and the description."""
    assert fatal_alert(description) == bytes.fromhex(record)


@pytest.mark.parametrize("description", AlertDescription)
def test_another_reader_understands_each_alert(description: AlertDescription) -> None:
    """RFC 8446 section 6, as tlslite-ng reads it."""
    record = bytearray(fatal_alert(description))
    header = RecordHeader3().parse(Parser(record[:5]))
    alert = Alert().parse(Parser(record[5:]))

    assert (header.type, header.version, header.length) == (21, (3, 3), 2)
    assert (alert.level, alert.description) == (2, description)
