"""When a certificate is renewed, when its CA is asked about that, and how long to wait after a failure.

All instants are aware. Nothing here asks for the time: clocks are set back and forward, so whoever asks does it again
at each look, and what was stored by a clock that was wrong is not believed (`still_waits`, `ari_is_fresh`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)

FLOOR: Final = 20
"""With a 20th of its lifetime left a certificate is renewed whatever its CA suggests: 4.5 days of 90, 8 hours of 160.
Later than that there would be no time left for a fault that needs a person."""

SHORT_LIVED: Final = timedelta(days=10)
"""Let's Encrypt's integration guide: with half of the lifetime left below this, with a third of it otherwise."""

BACK_OFF: Final = (_MINUTE, 10 * _MINUTE, 100 * _MINUTE, _DAY)
"""After the first failure in a row, the second, the third, and each one more (Let's Encrypt's integration guide)."""

JITTER: Final = 0.25
"""Up to so much is added to a back-off, so that those who failed at the same moment do not all come back at one."""

MAX_RETRY_AFTER: Final = timedelta(days=2)
"""A Retry-After is obeyed up to here. Let's Encrypt's longest is the 34 hours in which a limit of 5 certificates a week
gives one back; without a bound a CA that is wrong, or not itself, could end all renewal."""

LONGEST_BACK_OFF: Final = max(MAX_RETRY_AFTER, BACK_OFF[-1] * (1 + JITTER))

SHORTEST_ARI_POLL: Final = _MINUTE
LONGEST_ARI_POLL: Final = _DAY
"""RFC 9773 section 4.3.2: a Retry-After below a minute or above a day is taken for these."""

DEFAULT_ARI_POLL: Final = 6 * _HOUR
"""RFC 9773 section 4.3.3: when to ask again where the CA does not say, and after errors that last."""

LONGEST_REST: Final = _DAY
"""Between two renewals in a row for reasons of time. A CA that revokes has a day for the worst of reasons and five for
most (CA/Browser Forum's baseline requirements, section 4.9.1.1): of certificates this young, few are late by it."""

ARI_OVERDUE: Final = _DAY
"""An answer still counts while asking again is late by up to this. Let's Encrypt's integration guide wants two checks a
day: with both missed, the CA is silent for some reason of its own, and what it said may no longer be so."""


class Reason(StrEnum):
    """Why a certificate is renewed at its time, or now."""

    ARI = "ari"  # its CA suggested the time
    LIFETIME = "lifetime"  # a third of its lifetime is left, or half
    EXPIRING = "expiring"  # the CA suggested a time too close to the end, or behind it
    MISSING = "missing"  # there is none
    BROKEN = "broken"  # there is one that cannot be used
    NAMES_CHANGED = "names_changed"  # it is not for the names of the configuration
    DIRECTORY_CHANGED = "directory_changed"  # it is from another CA than the configuration's
    FORCED = "forced"  # somebody asked for it


@dataclass(frozen=True, slots=True)
class Validity:
    """A certificate's time, both ends inclusive (RFC 5280 section 4.1.2.5)."""

    not_before: datetime
    not_after: datetime

    @property
    def lifetime(self) -> timedelta:
        """At least a second, for one that ends before it begins too."""
        return max(self.not_after - self.not_before, timedelta()) + timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class AriWindow:
    """A CA's answer to when to renew (RFC 9773 section 4.2). `explanation_url` is a page for people, or empty."""

    start: datetime
    end: datetime
    explanation_url: str = ""

    @property
    def is_usable(self) -> bool:
        """One that ends where it starts, or before, is no answer (RFC 9773 section 4.2)."""
        return self.end > self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """When to renew, and why then. What is past is due now."""

    at: datetime
    reason: Reason

    def is_due(self, now: datetime) -> bool:
        """Whether that is now."""
        return self.at <= now


def choose_instant(window: AriWindow, chance: float) -> datetime:
    """An instant of a usable window; uniform where `chance`, from 0 to below 1, is (RFC 9773 section 4.2, step 2).

    Chosen once for each answer, and stored: whoever draws again at each look renews too early.
    """
    return window.start + (window.end - window.start) * chance


def plan(validity: Validity, ari_at: datetime | None, *, fresh: bool = True) -> Plan:
    """When to renew: at the instant chosen from the CA's answer, None where there is none, or by the lifetime.

    An answer that is not fresh counts only if it asks for less patience than the lifetime: what it said of the past may
    be a revocation, what it said of the future may have been taken back since.
    """
    lifetime = validity.lifetime
    by_lifetime = validity.not_after - (lifetime / 2 if lifetime < SHORT_LIVED else lifetime / 3)
    if ari_at is None or (not fresh and ari_at > by_lifetime):
        return Plan(at=by_lifetime, reason=Reason.LIFETIME)
    floor = validity.not_after - lifetime / FLOOR
    if ari_at > floor:
        return Plan(at=floor, reason=Reason.EXPIRING)
    return Plan(at=ari_at, reason=Reason.ARI)


def rest(left: timedelta) -> timedelta:
    """How long a certificate is left alone that was ordered for a reason of time, whatever the time is said to be.

    left: what it had to live when it came. Without a rest, a clock that is two months ahead or a CA that suggests the
    past for whatever it issues would have one certificate ordered after the other, each of them a success.
    """
    return min(LONGEST_REST, left / FLOOR)


def ari_is_fresh(checked_at: datetime | None, next_check: datetime | None, now: datetime) -> bool:
    """Whether an answer got at `checked_at`, to be asked for again at `next_check`, still counts; None is never.

    One from the future was got before the clock was set back, and nobody knows how old it is.
    """
    if checked_at is None or next_check is None:
        return False
    return checked_at <= now and now - next_check <= ARI_OVERDUE


def ari_poll_delay(retry_after: float | None, failures: int, lifetime: timedelta) -> timedelta:
    """How long not to ask the CA again about a certificate (RFC 9773 section 4.3).

    retry_after: seconds, of the answer or of the error, None without. failures: errors in a row that may pass, 0 after
    an answer. Without a word of the CA it is never more than a tenth of the lifetime: short-lived certificates ask as
    often in their lives as others do.
    """
    asked = None if retry_after is None else _bounded(retry_after, SHORTEST_ARI_POLL, LONGEST_ARI_POLL)
    if asked is not None and failures <= 0:
        return asked
    # 2 ** 9 minutes are more than six hours.
    own = min(DEFAULT_ARI_POLL, _MINUTE * 2 ** min(failures - 1, 9)) if failures > 0 else DEFAULT_ARI_POLL
    own = max(SHORTEST_ARI_POLL, min(own, lifetime / 10))
    return own if asked is None else max(own, asked)


def back_off(
    failures: int, chance: float, *, lifetime: timedelta | None = None, retry_after: float | None = None
) -> timedelta:
    """How long to wait after so many failures in a row: BACK_OFF, and up to JITTER of it by `chance` (0 to below 1).

    lifetime: of the certificate there is, None without. A wait is no longer than a 20th of it, or a minute: a
    certificate of six days must not lose a day. retry_after: seconds for which the CA wants to be left alone, None
    without; obeyed, whatever the lifetime, up to MAX_RETRY_AFTER.

    Let's Encrypt takes 5 failed validations of a name in an hour. These are 3, and 5 at most with any lifetime above
    8 hours, of which it has none (the shortest is 160 hours).
    """
    if failures <= 0:
        delay = timedelta()
    else:
        cap = LONGEST_BACK_OFF if lifetime is None else max(_MINUTE, lifetime / FLOOR)
        # What the cap cuts leaves room for the jitter: those that were cut failed together, too.
        least = min(BACK_OFF[min(failures, len(BACK_OFF)) - 1], max(_MINUTE, cap / (1 + JITTER)))
        delay = min(least * (1 + JITTER * chance), cap)
    asked = timedelta() if retry_after is None else _bounded(retry_after, timedelta(), MAX_RETRY_AFTER)
    return max(delay, asked)


def still_waits(instant: datetime | None, now: datetime, longest: timedelta = LONGEST_BACK_OFF) -> bool:
    """Whether a stored instant, None for none, is yet to come.

    One further away than the longest wait there is was stored by a clock that was ahead, and is not believed. For the
    next question about renewal, `longest` is LONGEST_ARI_POLL.
    """
    return instant is not None and timedelta() < instant - now <= longest


def _bounded(seconds: float, least: timedelta, most: timedelta) -> timedelta:
    """Seconds as the CA has sent them, which may be anything: below zero, without end, not a number."""
    return timedelta(seconds=min(max(least.total_seconds(), seconds), most.total_seconds()))
