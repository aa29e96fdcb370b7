"""One line and an exit status, as Nagios and all that came after it want them of a plugin.

Monitoring Plugins Development Guidelines: `SERVICE STATUS - text | label=value;warn;crit;…`, statuses 0 to 3, and
UNKNOWN for whatever could not be looked at. Thresholds are ranges; "15:" alerts below 15.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sniproxy.app.expiry import thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sniproxy.app.expiry import Finding

MOST_NAMED = 5
"""Of what is wrong, in the text: it goes into messages to telephones."""


class Status(enum.IntEnum):
    """The exit statuses."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


# What could not be looked at may be as bad as anything but what is known to be bad.
_SEVERITY = (Status.OK, Status.WARNING, Status.UNKNOWN, Status.CRITICAL)


def line(status: Status, text: str, performance: Sequence[str] = ()) -> str:
    """The line of output; the bar in it divides text and performance data, so there is one at most."""
    plain = " ".join(text.replace("|", "/").split())
    data = f" | {' '.join(performance)}" if performance else ""
    return f"SNIPROXY {status.name} - {plain}{data}"


def report(
    findings: Sequence[Finding], *, warn: float | None, critical: float | None, now: datetime
) -> tuple[Status, str]:
    """Status and line for certificates; without thresholds in days, each has those that fit its lifetime."""
    if not findings:
        return Status.UNKNOWN, line(Status.UNKNOWN, "there are no certificates to look at")
    troubles: dict[Status, list[str]] = {status: [] for status in Status}
    performance = []
    for number, finding in enumerate(findings):
        own_warn, own_critical = thresholds(finding.status)
        limits = (own_warn if warn is None else warn, own_critical if critical is None else critical)
        status, text = _judge(finding, *limits, now)
        troubles[status].append(text)
        left = finding.status.days_left(now)
        if left is not None:
            earlier = any(before.status.name == finding.status.name for before in findings[:number])
            label = f"{finding.status.name}#{number}" if earlier else finding.status.name
            performance.append(f"{_label(label)}={left:.2f};{limits[0]:.4g}:;{limits[1]:.4g}:")
    worst = max((status for status in Status if troubles[status]), key=_SEVERITY.index)
    count = f"{len(findings)} certificate{'s' if len(findings) != 1 else ''}"
    if worst is Status.OK:
        first = min(findings, key=lambda finding: finding.status.days_left(now) or 0.0)
        text = f"{count}, next to expire {first.status.name} in {_time_left(first.status.days_left(now) or 0.0)}"
    else:
        wrong = [text for status in reversed(_SEVERITY[1:]) for text in troubles[status]]
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        text = f"{', '.join(wrong[:MOST_NAMED])}{more}; {count}"
    return worst, line(worst, text, performance)


def _judge(finding: Finding, warn: float, critical: float, now: datetime) -> tuple[Status, str]:
    seen = finding.status
    left = seen.days_left(now)
    if finding.error is not None:
        return Status.UNKNOWN, f"{seen.name}: {finding.error}"
    if left is None:
        why = f": {seen.last_error}" if seen.last_error else ""
        return Status.CRITICAL, f"{seen.name} has no certificate{why}"
    if left <= 0:
        return Status.CRITICAL, f"{seen.name} expired {_time_left(-left)} ago"
    if finding.is_wrong:
        return Status.CRITICAL, f"{seen.name}: {', '.join(finding.notes)}"
    text = f"{seen.name} expires in {_time_left(left)}"
    # Why it has not been renewed, or is not what is served.
    why = f": {seen.last_error}" if seen.last_error else ""
    if left < critical:
        return Status.CRITICAL, text + why
    if left < warn:
        return Status.WARNING, text + why
    if finding.is_managed and not seen.deployed:
        return Status.WARNING, f"{seen.name} is not deployed{why}"
    return Status.OK, text


def _time_left(days: float) -> str:
    """Whole units, rounded down: nobody should count on more than there is."""
    amount, unit = (int(days), "day") if days >= 2 else (int(days * 24), "hour")
    return f"{amount} {unit}{'' if amount == 1 else 's'}"


def _label(name: str) -> str:
    """As the guidelines quote labels; an equals sign is not allowed in them at all."""
    escaped = name.replace("=", "_").replace("'", "''").replace("|", "/")
    return f"'{escaped}'"
