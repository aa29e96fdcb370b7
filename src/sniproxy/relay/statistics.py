"""The counters of the data plane: plain integers, folded in when a connection ends and read when somebody asks."""

from __future__ import annotations

from bisect import bisect_left

from sniproxy.model import HISTOGRAM_BOUNDS_SECONDS, HistogramSnapshot, Outcome


class Histogram:
    """Counts of durations by bucket. An observation costs one bisect and two additions."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """One more observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> HistogramSnapshot:
        """The counts as they are now."""
        return HistogramSnapshot(self.bounds, tuple(self.counts), self.total)


class Statistics:
    """What has happened since the start. `accepted` equals the live connections plus all of `outcomes`."""

    __slots__ = ("accepted", "connect", "connection", "inspect", "outcomes", "received", "sent")

    def __init__(self) -> None:
        self.accepted = 0
        self.outcomes: dict[tuple[Outcome, str], int] = {}
        self.received: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.inspect = Histogram(HISTOGRAM_BOUNDS_SECONDS["inspect"])
        self.connect = Histogram(HISTOGRAM_BOUNDS_SECONDS["connect"])
        self.connection = Histogram(HISTOGRAM_BOUNDS_SECONDS["connection"])

    def close(self, outcome: Outcome, backend: str, received: int, sent: int, seconds: float) -> None:
        """Folds in one connection that is over."""
        key = (outcome, backend)
        self.outcomes[key] = self.outcomes.get(key, 0) + 1
        if received or sent:
            self.received[backend] = self.received.get(backend, 0) + received
            self.sent[backend] = self.sent.get(backend, 0) + sent
        self.connection.observe(seconds)
