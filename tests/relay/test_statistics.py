"""The counters: plain integers that add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sniproxy.model import HISTOGRAM_BOUNDS_SECONDS, Outcome
from sniproxy.relay.statistics import Histogram, Statistics


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    """Prometheus' `le` label: less than or equal."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.100001, 1.0, 1.1, 1e9):
        histogram.observe(seconds)

    assert histogram.counts == [2, 2, 2]


@given(st.lists(st.floats(0, 1e6)))
def test_nothing_is_lost_in_a_histogram(values: list[float]) -> None:
    """The counts are the observations, the total their sum."""
    histogram = Histogram(HISTOGRAM_BOUNDS_SECONDS["connect"])
    for value in values:
        histogram.observe(value)
    snapshot = histogram.snapshot()

    assert sum(snapshot.counts) == len(values)
    assert snapshot.total == sum(values)
    assert len(snapshot.counts) == len(snapshot.bounds) + 1


def test_a_snapshot_is_not_changed_by_what_comes_later() -> None:
    """A scrape reads one instant."""
    histogram = Histogram((1.0,))
    before = histogram.snapshot()
    histogram.observe(0.5)

    assert before.counts == (0, 0)


def test_bounds_go_up() -> None:
    """The exposition format wants buckets in order."""
    for bounds in HISTOGRAM_BOUNDS_SECONDS.values():
        assert list(bounds) == sorted(set(bounds))


def test_connections_are_folded_in_by_outcome_and_backend() -> None:
    """Bytes are counted where there is a backend they went to or came from."""
    statistics = Statistics()
    statistics.close(Outcome.RELAYED, "haproxy", 100, 2000, 0.05)
    statistics.close(Outcome.RELAYED, "haproxy", 1, 0, 20.0)
    statistics.close(Outcome.RELAYED, "git", 0, 7, 20.0)
    statistics.close(Outcome.NOT_TLS, "", 0, 0, 0.0)

    assert statistics.outcomes == {
        (Outcome.RELAYED, "haproxy"): 2,
        (Outcome.RELAYED, "git"): 1,
        (Outcome.NOT_TLS, ""): 1,
    }
    assert statistics.received == {"haproxy": 101, "git": 0}
    assert statistics.sent == {"haproxy": 2000, "git": 7}
    assert sum(statistics.connection.counts) == 4
