"""The counters as Prometheus reads them: a collector over plain integers, asked only when somebody scrapes."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from sniproxy.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from sniproxy.model import CertificateCounts, CertificateStatus, HistogramSnapshot, RelaySnapshot


_RELAYED, _UNREACHABLE = Outcome.RELAYED, Outcome.BACKEND_UNREACHABLE
_WITH_BACKEND = frozenset((_RELAYED, _UNREACHABLE, Outcome.CHALLENGE))


class RelayCollector(Collector):
    """The metrics of the data plane, out of one snapshot a scrape, so that they agree with each other."""

    def __init__(self, snapshot: Callable[[], RelaySnapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for a snapshot."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, from one snapshot."""
        now = self._snapshot()
        connections = CounterMetricFamily(
            "sniproxy_connections",
            "Accepted connections that are over, by how they ended.",
            labels=("outcome", "backend"),
        )
        for (outcome, backend), count in sorted(_all_outcomes(now).items()):
            connections.add_metric((outcome.value, backend), count)
        yield connections
        yield CounterMetricFamily(
            "sniproxy_connections_accepted", "Connections accepted since the start.", value=now.accepted
        )
        yield GaugeMetricFamily("sniproxy_connections_active", "Connections open now.", value=now.active)
        transferred = CounterMetricFamily(
            "sniproxy_bytes",
            "Bytes relayed: in is from clients, out is to clients.",
            labels=("direction", "backend"),
        )
        for direction, totals in (("in", now.received), ("out", now.sent)):
            for backend, count in sorted(totals.items()):
                transferred.add_metric((direction, backend), count)
        yield transferred
        yield _histogram("inspect", "Time from accept to the decision.", now.inspect)
        yield _histogram("connect", "Time from the decision until a server had taken the connection.", now.connect)
        yield _histogram("connection", "Time from accept to close.", now.connection)
        yield from _servers(now)


def _all_outcomes(now: RelaySnapshot) -> dict[tuple[Outcome, str], int]:
    """With those that have not happened yet: a counter that begins at 1 hides its first event from rate()."""
    outcomes: dict[tuple[Outcome, str], int] = {(outcome, ""): 0 for outcome in Outcome if outcome not in _WITH_BACKEND}
    backends = {server.backend for server in now.servers}
    outcomes |= {(outcome, backend): 0 for outcome in (_RELAYED, _UNREACHABLE) for backend in backends}
    return outcomes | now.outcomes


def _servers(now: RelaySnapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "sniproxy_backend_up",
        "1 while the server is used, 0 while its health check fails.",
        labels=("backend", "server"),
    )
    errors = CounterMetricFamily(
        "sniproxy_backend_connect_errors",
        "Failed attempts to connect to a server, by error.",
        labels=("backend", "server", "error"),
    )
    for server in now.servers:
        up.add_metric((server.backend, server.server), server.up)
        for error, count in sorted(server.errors.items()):
            errors.add_metric((server.backend, server.server, error), count)
    yield up
    yield errors


def _histogram(name: str, text: str, values: HistogramSnapshot) -> HistogramMetricFamily:
    buckets = []
    total = 0
    for bound, count in zip((*map(str, values.bounds), "+Inf"), values.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(f"sniproxy_{name}_seconds", text, buckets=buckets, sum_value=values.total)


class CertificateCollector(Collector):
    """The metrics of certificates and challenges."""

    def __init__(self, statuses: Callable[[], Iterable[CertificateStatus]], counts: CertificateCounts) -> None:
        self._statuses = statuses
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for anything."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families. A certificate that is not there yet has no dates, and is not deployed."""
        not_after = _of_certificates("not_after_timestamp_seconds", "When the certificate is over.")
        renew_at = _of_certificates("renew_at_timestamp_seconds", "When the next one is ordered.")
        deployed = _of_certificates("deployed", "1 while the newest certificate is in HAProxy and seen to be served.")
        renewals = CounterMetricFamily(
            "sniproxy_certificate_renewals",
            "Attempts to obtain a certificate, by how they ended.",
            labels=("certificate", "result"),
        )
        for status in self._statuses():
            labels = (status.name,)
            if status.not_after is not None:
                not_after.add_metric(labels, status.not_after.timestamp())
            if status.renew_at is not None:
                renew_at.add_metric(labels, status.renew_at.timestamp())
            deployed.add_metric(labels, status.deployed)
            for result in ("success", "failure"):
                renewals.add_metric((status.name, result), self._counts.renewals.get((status.name, result), 0))
        yield from (not_after, renew_at, deployed, renewals)
        challenges = CounterMetricFamily(
            "sniproxy_challenges",
            "Challenges that are over, by what the CA said; error where it never came to that.",
            labels=("type", "result"),
        )
        for (kind, result), count in sorted(self._counts.challenges.items()):
            challenges.add_metric((kind, result), count)
        yield challenges


def _of_certificates(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sniproxy_certificate_{name}", text, labels=("certificate",))


@dataclass(slots=True)
class ReloadCounts:
    """How reloads went. `last_success` is true until one fails: what runs is then what the file said."""

    by_result: dict[str, int] = field(default_factory=lambda: {"success": 0, "failure": 0})
    last_success: bool = True

    def count(self, *, success: bool) -> None:
        """One more reload."""
        self.by_result["success" if success else "failure"] += 1
        self.last_success = success


class _Reloads(Collector):
    def __init__(self, counts: ReloadCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily(
            "sniproxy_config_reloads", "Reloads of the configuration since the start.", labels=("result",)
        )
        for result, count in self._counts.by_result.items():
            reloads.add_metric((result,), count)
        yield reloads
        yield GaugeMetricFamily(
            "sniproxy_config_last_reload_success",
            "1 while what runs is what the file said at the last reload.",
            value=self._counts.last_success,
        )


class Metrics:
    """All metrics of one process, on a registry of their own."""

    def __init__(
        self,
        snapshot: Callable[[], RelaySnapshot],
        reloads: ReloadCounts,
        version: str,
        certificates: CertificateCollector | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        if certificates is not None:
            self._registry.register(certificates)
        self._registry.register(RelayCollector(snapshot))
        self._registry.register(_Reloads(reloads))
        self._registry.register(_BuildInfo(version))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page for a request's Accept header: its body and its content type."""
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self._registry), content_type


class _BuildInfo(Collector):
    def __init__(self, version: str) -> None:
        self._version = version

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("sniproxy_build_info", "1, with what runs here.", labels=("version", "python"))
        info.add_metric((self._version, platform.python_version()), 1)
        yield info
