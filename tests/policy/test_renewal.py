"""When certificates are renewed: by their CA's word, by their lifetime, by a floor; and the waits after failures."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.policy.renewal import (
    ARI_OVERDUE,
    BACK_OFF,
    DEFAULT_ARI_POLL,
    JITTER,
    LONGEST_ARI_POLL,
    LONGEST_BACK_OFF,
    MAX_RETRY_AFTER,
    SHORTEST_ARI_POLL,
    AriWindow,
    Plan,
    Reason,
    Validity,
    ari_is_fresh,
    ari_poll_delay,
    back_off,
    choose_instant,
    plan,
    rest,
    still_waits,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
BEGIN, END = datetime(1950, 1, 1), datetime(9999, 12, 31, 23, 59, 59)  # noqa: DTZ001  hypothesis adds the zone

instants = st.datetimes(BEGIN, END, timezones=st.just(UTC))
chances = st.floats(0, 1, exclude_max=True)
retry_afters = st.none() | st.floats() | st.integers(-100, 10**9).map(float)
lifetimes = st.timedeltas(SECOND, timedelta(days=40_000))


@st.composite
def validities(draw: st.DrawFn) -> Validity:
    """Whole seconds, as X.509 has them, from 1950 (RFC 5280 section 4.1.2.5) to the end that means none."""
    one, other = sorted((draw(instants).replace(microsecond=0), draw(instants).replace(microsecond=0)))
    return Validity(not_before=one, not_after=other)


def living(lifetime: timedelta) -> Validity:
    """As CAs issue: the last second is included (RFC 5280 section 4.1.2.5)."""
    return Validity(not_before=NOW, not_after=NOW + lifetime - SECOND)


# -- the plan

LIVES = [
    # lifetime, left when the lifetime says so, left at the floor
    (90 * DAY, 30 * DAY, 4 * DAY + 12 * HOUR),
    (64 * DAY, 21 * DAY + 8 * HOUR, 3 * DAY + 4 * HOUR + 48 * MINUTE),
    (45 * DAY, 15 * DAY, 2 * DAY + 6 * HOUR),
    (160 * HOUR, 80 * HOUR, 8 * HOUR),
    (120 * SECOND, 60 * SECOND, 6 * SECOND),
    (10 * DAY, 3 * DAY + 8 * HOUR, 12 * HOUR),
    (10 * DAY - SECOND, 5 * DAY - SECOND / 2, 12 * HOUR - SECOND / 20),
]
each_life = pytest.mark.parametrize(("lifetime", "left", "left_at_floor"), LIVES, ids=str)


@each_life
def test_without_an_answer_the_lifetime_decides(lifetime, left, left_at_floor) -> None:
    """Let's Encrypt's integration guide: a third of the lifetime left, half of it under ten days. Its lifetimes are
    90 days, 64 from February 2027, 45 from February 2028, and 160 hours; 120 seconds is Pebble's in these tests."""
    validity = living(lifetime)

    assert validity.lifetime == lifetime
    assert plan(validity, None) == Plan(at=validity.not_after - left, reason=Reason.LIFETIME)


@each_life
def test_the_cas_instant_goes_before_the_lifetime(lifetime, left, left_at_floor) -> None:
    """RFC 9773 section 4.2: the client renews at the time it has chosen from the window, earlier or later."""
    validity = living(lifetime)
    for at in (NOW - DAY, NOW + lifetime / 10, validity.not_after - left + SECOND, validity.not_after - left_at_floor):
        assert plan(validity, at) == Plan(at=at, reason=Reason.ARI)


@each_life
@pytest.mark.parametrize("late", [timedelta(microseconds=1), HOUR, 400 * DAY])
def test_the_floor_goes_before_the_cas_instant(late, lifetime, left, left_at_floor) -> None:
    """certmagic, maintain.go: with a 20th left ARI is overridden; Traefik's ARI branch without a backstop is how a wrong
    answer becomes an expired certificate."""
    validity = living(lifetime)
    floor = validity.not_after - left_at_floor

    assert plan(validity, floor + late) == Plan(at=floor, reason=Reason.EXPIRING)


@each_life
def test_an_answer_that_is_not_fresh_only_makes_it_earlier(lifetime, left, left_at_floor) -> None:
    """A CA that has fallen silent may have said "revoked, now"; a late time it may have taken back since."""
    validity = living(lifetime)
    by_lifetime = validity.not_after - left

    assert plan(validity, NOW + SECOND, fresh=False) == Plan(at=NOW + SECOND, reason=Reason.ARI)
    for late in (by_lifetime + SECOND, validity.not_after, validity.not_after + DAY):
        assert plan(validity, late, fresh=False) == Plan(at=by_lifetime, reason=Reason.LIFETIME)
    assert plan(validity, None, fresh=False) == plan(validity, None)


@given(validities(), st.none() | instants, st.booleans())
def test_any_certificate_is_renewed_before_it_ends(validity, ari_at, fresh) -> None:
    """Whatever a CA says, and for certificates of one second or of 8000 years."""
    planned = plan(validity, ari_at, fresh=fresh)

    assert planned.at < validity.not_after
    assert planned.is_due(validity.not_after)
    assert planned.at >= validity.not_before - SECOND or planned.at == ari_at


@given(validities(), instants)
def test_with_a_20th_left_any_certificate_is_due(validity, ari_at) -> None:
    """The floor holds for each answer, fresh or not."""
    floor = validity.not_after - validity.lifetime / 20

    assert plan(validity, ari_at).is_due(floor)
    assert plan(validity, ari_at, fresh=False).is_due(floor)
    assert plan(validity, None).is_due(floor)


def test_a_certificate_that_ends_before_it_begins_is_due() -> None:
    """No CA issues one, but files are written by anybody."""
    backwards = Validity(not_before=NOW + DAY, not_after=NOW)

    assert backwards.lifetime == SECOND
    assert plan(backwards, None).is_due(NOW)


@pytest.mark.parametrize(("clock", "due"), [(-400 * DAY, False), (-DAY, False), (59 * DAY, False), (400 * DAY, True)])
def test_a_clock_that_jumps_changes_what_is_due_and_not_the_plan(clock: timedelta, due: bool) -> None:
    """Reliability A8: a day back, a year ahead, then corrected: no storm, and the same plan as before."""
    planned = plan(living(90 * DAY), None)

    assert planned.is_due(NOW + clock) is due


# -- the window


@given(instants, instants, chances)
def test_an_instant_of_the_window_is_inside(one, other, chance) -> None:
    """RFC 9773 section 4.2, step 2: "Select a uniform random time within the suggested window"."""
    window = AriWindow(start=min(one, other), end=max(one, other))
    if window.is_usable:
        assert window.start <= choose_instant(window, chance) <= window.end


def test_chance_is_spread_evenly_over_the_window() -> None:
    """Uniform: half of the chances lie in the first half."""
    window = AriWindow(start=NOW, end=NOW + 2 * DAY)

    assert [choose_instant(window, chance) - NOW for chance in (0.0, 0.25, 0.5)] == [timedelta(), DAY / 2, DAY]


@pytest.mark.parametrize(("length", "usable"), [(SECOND, True), (timedelta(), False), (-DAY, False)])
def test_a_window_that_ends_where_it_starts_is_no_answer(length: timedelta, usable: bool) -> None:
    """RFC 9773 section 4.2: clients MUST treat one as though they failed to receive any response."""
    assert AriWindow(start=NOW, end=NOW + length).is_usable is usable


# -- fresh answers


@pytest.mark.parametrize(
    ("checked", "following", "fresh"),
    [
        (timedelta(), 6 * HOUR, True),
        (-6 * HOUR, timedelta(), True),
        (-30 * HOUR, -DAY, True),
        (-30 * HOUR, -DAY - SECOND, False),
        (-400 * DAY, -399 * DAY, False),
    ],
)
def test_an_answer_counts_until_the_next_one_is_a_day_late(checked, following, fresh) -> None:
    """RFC 9773 section 4.3: checked at the time the CA asks for; a day late is two checks missed."""
    assert ari_is_fresh(NOW + checked, NOW + following, NOW) is fresh


def test_an_answer_from_the_future_is_not_fresh() -> None:
    """Reliability A8: the clock was set back."""
    assert not ari_is_fresh(NOW + SECOND, NOW + 6 * HOUR, NOW)


def test_no_answer_is_not_fresh() -> None:
    """Never asked, or an answer that was none."""
    assert not ari_is_fresh(None, None, NOW)
    assert not ari_is_fresh(NOW, None, NOW)
    assert not ari_is_fresh(None, NOW, NOW)


@given(instants, instants, instants)
def test_answers_do_not_stay_fresh(checked, following, now) -> None:
    """A CA that falls silent does not keep a certificate from its lifetime."""
    if ari_is_fresh(checked, following, now):
        assert now - following <= ARI_OVERDUE


# -- asking the CA


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        (None, 6 * HOUR),
        (21600.0, 6 * HOUR),
        (59.9, MINUTE),
        (0.0, MINUTE),
        (-5.0, MINUTE),
        (math.nan, MINUTE),
        (86401.0, DAY),
        (1e300, DAY),
        (math.inf, DAY),
    ],
)
def test_the_ca_is_asked_when_it_wants_to_be(retry_after, delay) -> None:
    """RFC 9773 section 4.3.2: values under one minute as one minute, over one day as one day; 4.3.3: six hours without."""
    assert ari_poll_delay(retry_after, 0, 90 * DAY) == delay


def test_failures_to_ask_back_off_to_six_hours() -> None:
    """RFC 9773 section 4.3.3: exponential back-off for temporary errors, six hours for those that last."""
    minutes = [ari_poll_delay(None, failures, 90 * DAY) / MINUTE for failures in range(1, 13)]

    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]


def test_an_error_that_says_when_is_obeyed() -> None:
    """RFC 9110 section 10.2.3: Retry-After of a 503; never sooner than the back-off."""
    assert ari_poll_delay(3600.0, 1, 90 * DAY) == HOUR
    assert ari_poll_delay(60.0, 20, 90 * DAY) == 6 * HOUR
    assert ari_poll_delay(1e9, 20, 90 * DAY) == DAY


@pytest.mark.parametrize(
    ("lifetime", "delay"), [(160 * HOUR, 6 * HOUR), (DAY, DAY / 10), (HOUR, 6 * MINUTE), (120 * SECOND, MINUTE)]
)
def test_short_lives_are_asked_about_more_often(lifetime, delay) -> None:
    """RFC 9773 section 4.3.3: six hours "or some other locally configured default"."""
    assert ari_poll_delay(None, 0, lifetime) == delay
    assert ari_poll_delay(None, 99, lifetime) == delay


@given(retry_afters, st.integers(-1, 10**9), lifetimes)
def test_the_ca_is_never_asked_in_a_loop_nor_forgotten(retry_after, failures, lifetime) -> None:
    """certmagic #297: 33 questions in one second."""
    assert SHORTEST_ARI_POLL <= ari_poll_delay(retry_after, failures, lifetime) <= LONGEST_ARI_POLL
    if retry_after is None:
        assert ari_poll_delay(retry_after, failures, lifetime) <= DEFAULT_ARI_POLL


# -- after failures


@pytest.mark.parametrize(
    ("failures", "least"), [(0, 0), (1, 1), (2, 10), (3, 100), (4, 1440), (5, 1440), (1000, 1440), (10**9, 1440)]
)
def test_waits_grow_tenfold_to_a_day(failures, least) -> None:
    """Let's Encrypt's integration guide: 1, 10, 100 minutes, then daily."""
    assert back_off(failures, 0.0) == least * MINUTE
    assert back_off(failures, 0.5) == least * MINUTE * (1 + JITTER / 2)
    assert back_off(failures, 0.0, lifetime=90 * DAY) == least * MINUTE


@pytest.mark.parametrize(
    ("lifetime", "minutes"),
    [
        (90 * DAY, [1, 10, 100, 1440]),
        (64 * DAY, [1, 10, 100, 1440]),
        (45 * DAY, [1, 10, 100, 1440]),
        (160 * HOUR, [1, 10, 100, 384]),
        (10 * HOUR, [1, 10, 24, 24]),
        (120 * SECOND, [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_short_lives_wait_no_20th_of_themselves(lifetime, minutes) -> None:
    """A certificate of 160 hours is renewed with 80 left: daily tries would be three."""
    assert [back_off(failures, 0.0, lifetime=lifetime) / MINUTE for failures in range(1, 5)] == minutes


@given(st.integers(1, 10**9), chances, st.none() | lifetimes)
def test_a_wait_is_never_below_the_table_nor_above_its_cap(failures, chance, lifetime) -> None:
    """Chance adds a quarter at most; the lifetime cuts, to a minute at least."""
    delay = back_off(failures, chance, lifetime=lifetime)
    table = BACK_OFF[min(failures, 4) - 1]
    cap = LONGEST_BACK_OFF if lifetime is None else max(MINUTE, lifetime / 20)

    assert min(table, cap / (1 + JITTER)) <= delay <= min(table * (1 + JITTER), cap)
    assert delay >= MINUTE


@given(chances, chances)
def test_chance_spreads_those_that_failed_together(one, other) -> None:
    """A CA that comes back must not be met by everybody in one second."""
    for lifetime in (None, 90 * DAY, 160 * HOUR):
        for failures in range(1, 6):
            first, second = (back_off(failures, chance, lifetime=lifetime) for chance in (one, other))
            assert (first <= second) is (one <= other) or abs(one - other) < 1e-6


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        (0.0, MINUTE),
        (-1.0, MINUTE),
        (math.nan, MINUTE),
        (61.0, 61 * SECOND),
        (34 * 3600.0, 34 * HOUR),
        (48 * 3600.0, 2 * DAY),
        (1e12, 2 * DAY),
        (math.inf, 2 * DAY),
    ],
)
def test_retry_after_is_obeyed_up_to_a_bound(retry_after, delay) -> None:
    """RFC 8555 section 6.6; a CA that is wrong, or not itself, must not end all renewal."""
    assert back_off(1, 0.0, retry_after=retry_after) == delay
    assert back_off(1, 0.0, lifetime=120 * SECOND, retry_after=retry_after) == delay


def test_a_cas_wish_counts_without_a_failure_too() -> None:
    """An answer "processing" has a Retry-After and is none (RFC 8555 section 7.4)."""
    assert back_off(0, 0.0, retry_after=5.0) == 5 * SECOND


@given(st.integers(0, 10**9), chances, st.none() | lifetimes, st.none() | st.floats(0, 1e12))
def test_a_wait_is_never_below_retry_after(failures, chance, lifetime, retry_after) -> None:
    """Let's Encrypt counts requests during a limit against the client."""
    delay = back_off(failures, chance, lifetime=lifetime, retry_after=retry_after)

    assert delay <= LONGEST_BACK_OFF
    if retry_after is not None:
        assert delay >= min(timedelta(seconds=retry_after), MAX_RETRY_AFTER)


@given(
    st.none() | st.timedeltas(8 * HOUR, timedelta(days=40_000)), st.lists(st.tuples(chances, retry_afters), min_size=20)
)
def test_no_hour_has_more_than_five_tries(lifetime, outcomes) -> None:
    """Let's Encrypt: 5 failed validations per name, account and hour. Its shortest lifetime is 160 hours."""
    tries = [timedelta()]
    for failures, (chance, retry_after) in enumerate(outcomes, start=1):
        tries.append(tries[-1] + back_off(failures, chance, lifetime=lifetime, retry_after=retry_after))

    assert all(sixth - first >= HOUR for first, sixth in zip(tries, tries[5:], strict=False))
    assert all(later - earlier >= MINUTE for earlier, later in pairwise(tries))


# -- stored waits


@pytest.mark.parametrize(
    ("ahead", "waits"),
    [
        (-400 * DAY, False),
        (timedelta(), False),
        (SECOND, True),
        (DAY * 1.25, True),
        (2 * DAY, True),
        (2 * DAY + SECOND, False),
        (400 * DAY, False),
    ],
)
def test_a_wait_longer_than_any_is_not_believed(ahead, waits) -> None:
    """Reliability A8: the clock was a year ahead when it was stored, and has been corrected since."""
    assert still_waits(NOW + ahead, NOW) is waits


def test_no_wait_is_over() -> None:
    """Nothing has failed."""
    assert not still_waits(None, NOW)


def test_a_question_about_renewal_waits_a_day_at_most() -> None:
    """RFC 9773 section 4.3.2."""
    assert still_waits(NOW + DAY, NOW, LONGEST_ARI_POLL)
    assert not still_waits(NOW + DAY + SECOND, NOW, LONGEST_ARI_POLL)


@given(st.integers(1, 100), chances, st.none() | st.timedeltas(SECOND, 825 * DAY), retry_afters)
def test_every_wait_there_is_is_believed(failures, chance, lifetime, retry_after) -> None:
    """825 days is the longest life a browser ever took (CA/Browser Forum ballot 193)."""
    delay = back_off(failures, chance, lifetime=lifetime, retry_after=retry_after)

    assert still_waits(NOW + delay, NOW)
    assert not still_waits(NOW + delay, NOW + delay)


@given(instants, instants)
def test_a_wait_ends_whatever_the_clocks_do(instant, now) -> None:
    """Asked again once the longest wait has passed, nothing waits any more."""
    if now <= datetime(9999, 12, 1, tzinfo=UTC) and still_waits(instant, now):
        assert not still_waits(instant, now + LONGEST_BACK_OFF)


# -- the rest


@pytest.mark.parametrize(
    ("left", "expected"),
    [(90 * DAY, DAY), (20 * DAY, DAY), (6 * DAY, 7.2 * HOUR), (2 * MINUTE, 6 * SECOND), (timedelta(), timedelta())],
)
def test_a_renewal_for_a_reason_of_time_is_followed_by_a_rest(left: timedelta, expected: timedelta) -> None:
    """A 20th of what is left, as the floor: short-lived ones rest as often in their lives as others do. Or a day."""
    assert rest(left) == expected


def test_one_that_was_over_when_it_came_has_no_rest() -> None:
    """A backup that was brought back, say: its instants are not those of what was issued last."""
    assert rest(-DAY) < timedelta()
