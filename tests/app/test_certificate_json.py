"""A certificate as `certs --json` shows it (contract section 1)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from sniproxy.app.certificate_json import as_json, from_json
from sniproxy.model import CertificateStatus

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)

STATUS = CertificateStatus(
    name="example.com",
    names=("example.com", "192.0.2.1"),
    issuer="Some CA",
    serial="0abc",
    not_before=NOW - timedelta(days=30),
    not_after=NOW + timedelta(days=60),
    renew_at=NOW + timedelta(days=30),
    reason="lifetime",
    deployed=True,
    deployed_at=NOW - timedelta(days=30),
    last_error="the CA: no",
    next_attempt=NOW + timedelta(days=30),
)


def test_the_contracts_keys_are_there():
    """Section 1: `certs --json` is a list of objects."""
    document = as_json(STATUS, NOW)
    assert document.keys() >= {
        "name",
        "names",
        "issuer",
        "serial",
        "not_before",
        "not_after",
        "renew_at",
        "days_left",
        "reason",
        "deployed",
        "last_error",
        "next_attempt",
    }


def test_times_are_rfc_3339_in_utc():
    """Section 1."""
    document = as_json(STATUS, NOW)
    assert document["not_after"] == "2027-01-24T12:00:00Z"
    assert document["days_left"] == 60


def test_what_is_not_there_is_null():
    """Section 1: `last_error` … or null."""
    document = as_json(CertificateStatus(name="a.example", names=("a.example",), reason="missing"), NOW)
    assert document["issuer"] is document["not_after"] is document["days_left"] is document["last_error"] is None
    assert document["deployed"] is False


def test_it_comes_back_as_it_was():
    assert from_json(json.loads(json.dumps(as_json(STATUS)))) == STATUS
