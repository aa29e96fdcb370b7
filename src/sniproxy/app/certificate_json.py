"""A certificate's status as JSON: what `certs --json`, the control socket and hooks have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sniproxy.model import CertificateStatus

if TYPE_CHECKING:
    from collections.abc import Mapping


def as_json(status: CertificateStatus, now: datetime | None = None) -> dict[str, Any]:
    """The keys of the reference; times are RFC 3339 in UTC, to the second, and null where there is none."""
    left = status.days_left(now or datetime.now(UTC))
    return {
        "name": status.name,
        "names": list(status.names),
        "issuer": status.issuer,
        "serial": status.serial,
        "not_before": _time(status.not_before),
        "not_after": _time(status.not_after),
        "days_left": None if left is None else round(left, 4),
        "renew_at": _time(status.renew_at),
        "reason": status.reason,
        "deployed": status.deployed,
        "deployed_at": _time(status.deployed_at),
        "last_error": status.last_error,
        "next_attempt": _time(status.next_attempt),
    }


def from_json(document: Mapping[str, Any]) -> CertificateStatus:
    """The reverse; what is worked out of the others is left out. Raises KeyError, ValueError, TypeError."""

    def time(key: str) -> datetime | None:
        return datetime.fromisoformat(document[key]) if document[key] is not None else None

    return CertificateStatus(
        name=document["name"],
        names=tuple(document["names"]),
        issuer=document["issuer"],
        serial=document["serial"],
        not_before=time("not_before"),
        not_after=time("not_after"),
        renew_at=time("renew_at"),
        reason=document["reason"],
        deployed=document["deployed"],
        deployed_at=time("deployed_at"),
        last_error=document["last_error"],
        next_attempt=time("next_attempt"),
    )


def _time(instant: datetime | None) -> str | None:
    return None if instant is None else f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
