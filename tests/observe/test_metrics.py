"""What Prometheus reads: the names and labels that dashboards rely on, and numbers that agree with each other."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sniproxy.model import (
    HISTOGRAM_BOUNDS_SECONDS,
    CertificateCounts,
    CertificateStatus,
    HistogramSnapshot,
    Outcome,
    RelaySnapshot,
    ServerSnapshot,
)
from sniproxy.observe.metrics import CertificateCollector, Metrics, RelayCollector, ReloadCounts


def histogram(name: str, *seconds: int) -> HistogramSnapshot:
    """Observations of whole seconds."""
    bounds = HISTOGRAM_BOUNDS_SECONDS[name]
    counts = [0] * (len(bounds) + 1)
    for value in seconds:
        counts[sum(bound < value for bound in bounds)] += 1
    return HistogramSnapshot(bounds, tuple(counts), float(sum(seconds)))


SNAPSHOT = RelaySnapshot(
    accepted=10,
    active=3,
    outcomes={(Outcome.RELAYED, "haproxy"): 4, (Outcome.RELAYED, "git"): 1, (Outcome.NOT_TLS, ""): 2},
    received={"haproxy": 1000, "git": 5},
    sent={"haproxy": 123_456_789_012, "git": 0},
    inspect=histogram("inspect", 0, 1, 1),
    connect=histogram("connect"),
    connection=histogram("connection", 2, 20_000),
    servers=(
        ServerSnapshot("haproxy", "unix:/run/haproxy.sock", up=True, active=2, connections=4, errors={}),
        ServerSnapshot("git", "192.0.2.1:443", up=False, active=1, connections=1, errors={"refused": 7, "timeout": 1}),
    ),
)

# Names, types and labels are a promise: a change here breaks somebody's dashboard.
FAMILIES = {
    "sniproxy_connections": ("counter", {"outcome", "backend"}),
    "sniproxy_connections_accepted": ("counter", set()),
    "sniproxy_connections_active": ("gauge", set()),
    "sniproxy_bytes": ("counter", {"direction", "backend"}),
    "sniproxy_inspect_seconds": ("histogram", {"le"}),
    "sniproxy_connect_seconds": ("histogram", {"le"}),
    "sniproxy_connection_seconds": ("histogram", {"le"}),
    "sniproxy_backend_up": ("gauge", {"backend", "server"}),
    "sniproxy_backend_connect_errors": ("counter", {"backend", "server", "error"}),
    "sniproxy_config_reloads": ("counter", {"result"}),
    "sniproxy_config_last_reload_success": ("gauge", set()),
    "sniproxy_build_info": ("gauge", {"version", "python"}),
}


def page(snapshot: RelaySnapshot = SNAPSHOT, reloads: ReloadCounts | None = None, accept: str = "") -> str:
    body, _ = Metrics(lambda: snapshot, reloads or ReloadCounts(), "1.2.3").render(accept)
    return body.decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_name_type_and_labels(name: str) -> None:
    """Counters end in _total, times are seconds, amounts are bytes (Prometheus, "Metric and label naming")."""
    families = {family.name: family for family in text_string_to_metric_families(page())}
    kind, labels = FAMILIES[name]
    family = families[name]

    assert family.type == kind
    assert family.documentation
    assert {label for sample in family.samples for label in sample.labels} == labels
    if kind == "counter":
        assert {sample.name for sample in family.samples} == {f"{name}_total"}


def test_there_are_no_other_families_of_ours() -> None:
    """Whatever is added belongs into the promise, too."""
    ours = {family.name for family in text_string_to_metric_families(page()) if family.name.startswith("sniproxy_")}

    assert ours == set(FAMILIES)


def test_accepted_is_active_plus_all_outcomes_on_every_page() -> None:
    """One snapshot a page: numbers that are read one after the other would not agree."""
    calls = []

    def snapshot() -> RelaySnapshot:
        calls.append(1)
        return replace(SNAPSHOT, accepted=SNAPSHOT.accepted + len(calls), active=SNAPSHOT.active + len(calls))

    metrics = Metrics(snapshot, ReloadCounts(), "1.2.3")
    for number in (1, 2):
        found = samples(metrics.render("")[0].decode())
        ended = sum(count for (name, _), count in found.items() if name == "sniproxy_connections_total")
        accepted = found["sniproxy_connections_accepted_total", frozenset()]
        assert accepted == found["sniproxy_connections_active", frozenset()] + ended
        assert len(calls) == number


def test_numbers_are_those_of_the_snapshot() -> None:
    """Also the big ones, to the last byte."""
    text = page()

    assert value(text, "sniproxy_connections_total", outcome="relayed", backend="haproxy") == 4
    assert value(text, "sniproxy_connections_total", outcome="not_tls", backend="") == 2
    assert value(text, "sniproxy_bytes_total", direction="in", backend="git") == 5
    assert value(text, "sniproxy_bytes_total", direction="out", backend="haproxy") == 123_456_789_012
    assert value(text, "sniproxy_backend_up", backend="haproxy", server="unix:/run/haproxy.sock") == 1
    assert value(text, "sniproxy_backend_up", backend="git", server="192.0.2.1:443") == 0
    refused = {"backend": "git", "server": "192.0.2.1:443", "error": "refused"}
    assert value(text, "sniproxy_backend_connect_errors_total", **refused) == 7


def test_buckets_add_up_to_the_count() -> None:
    """Prometheus' histograms are cumulative: each bucket holds those below it, +Inf holds all."""
    text = page()

    assert value(text, "sniproxy_inspect_seconds_bucket", le="0.0005") == 1
    assert value(text, "sniproxy_inspect_seconds_bucket", le="1.0") == 3
    assert value(text, "sniproxy_inspect_seconds_bucket", le="+Inf") == 3
    assert value(text, "sniproxy_inspect_seconds_count") == 3
    assert value(text, "sniproxy_inspect_seconds_sum") == 2
    assert value(text, "sniproxy_connection_seconds_bucket", le="14400.0") == 1
    assert value(text, "sniproxy_connection_seconds_bucket", le="+Inf") == 2


def test_reloads_are_there_before_the_first_one() -> None:
    """A counter that appears with its first event has no increase for that event."""
    reloads = ReloadCounts()
    text = page(reloads=reloads)
    assert value(text, "sniproxy_config_reloads_total", result="success") == 0
    assert value(text, "sniproxy_config_reloads_total", result="failure") == 0
    assert value(text, "sniproxy_config_last_reload_success") == 1
    reloads.count(success=False)
    text = page(reloads=reloads)
    assert value(text, "sniproxy_config_reloads_total", result="failure") == 1
    assert value(text, "sniproxy_config_last_reload_success") == 0
    reloads.count(success=True)

    assert value(page(reloads=reloads), "sniproxy_config_last_reload_success") == 1


def test_the_build() -> None:
    """What runs here, as labels of a gauge that is 1."""
    assert value(page(), "sniproxy_build_info", version="1.2.3", python=platform.python_version()) == 1


def test_a_label_with_anything_in_it_is_read_back_as_it_was() -> None:
    """The text format: backslash, quote and newline are escaped in a label's value."""
    path = 'unix:/run/a "b"\\c\nd'
    server = ServerSnapshot("haproxy", path, up=True, active=0, connections=0, errors={})

    assert value(page(replace(SNAPSHOT, servers=(server,))), "sniproxy_backend_up", backend="haproxy", server=path) == 1


def test_the_format_is_what_the_reader_asks_for() -> None:
    """Prometheus asks for OpenMetrics; a person with curl gets the plain text format."""
    metrics = Metrics(lambda: SNAPSHOT, ReloadCounts(), "1.2.3")
    plain, plain_type = metrics.render("*/*")
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")

    assert plain_type.startswith("text/plain")
    assert list(text_string_to_metric_families(plain.decode()))
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(body.decode())} >= set(FAMILIES)


def test_registering_asks_for_no_snapshot() -> None:
    """The engine may not be there yet."""

    def no_snapshot() -> RelaySnapshot:
        raise AssertionError("asked")

    assert list(RelayCollector(no_snapshot).describe()) == []
    Metrics(no_snapshot, ReloadCounts(), "1.2.3")


def test_the_process_is_watched_too() -> None:
    """Memory and open files, by the names every dashboard knows."""
    names = {family.name for family in text_string_to_metric_families(page())}

    assert {"process_resident_memory_bytes", "process_open_fds", "process_max_fds", "python_info"} <= names


@pytest.mark.parametrize("of", ["connections", "certificates"])
def test_promtool_finds_nothing_to_say(of: str) -> None:
    """Prometheus' own linter."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = page() if of == "connections" else certificate_page()
    ours = "".join(line for line in text.splitlines(keepends=True) if "sniproxy_" in line.split("{")[0])
    checked = subprocess.run([promtool, "check", "metrics"], input=ours, text=True, capture_output=True)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# ------------------------------------------------------------------------------------------------------- certificates

NOT_AFTER = datetime(2027, 1, 24, 12, 0, tzinfo=UTC)
STATUSES = (
    CertificateStatus(
        name="example.com",
        names=("example.com", "www.example.com"),
        serial="0abc",
        not_before=NOT_AFTER - timedelta(days=90),
        not_after=NOT_AFTER,
        renew_at=NOT_AFTER - timedelta(days=30, seconds=0.5),
        reason="ari",
        deployed=True,
    ),
    CertificateStatus(name="new.example.com", names=("new.example.com",), last_error="no", reason="missing"),
)

CERTIFICATE_FAMILIES = {
    "sniproxy_certificate_not_after_timestamp_seconds": ("gauge", {"certificate"}),
    "sniproxy_certificate_renew_at_timestamp_seconds": ("gauge", {"certificate"}),
    "sniproxy_certificate_deployed": ("gauge", {"certificate"}),
    "sniproxy_certificate_renewals": ("counter", {"certificate", "result"}),
    "sniproxy_challenges": ("counter", {"type", "result"}),
}


def certificate_page(counts: CertificateCounts | None = None, accept: str = "") -> str:
    counts = counts or CertificateCounts(challenges={("tls-alpn-01", "valid"): 0})
    collector = CertificateCollector(lambda: STATUSES, counts)
    body, _ = Metrics(lambda: SNAPSHOT, ReloadCounts(), "1.2.3", collector).render(accept)
    return body.decode()


@pytest.mark.parametrize("name", CERTIFICATE_FAMILIES)
def test_a_family_of_certificates_has_its_name_type_and_labels(name: str) -> None:
    """Contract, section 3."""
    family = {family.name: family for family in text_string_to_metric_families(certificate_page())}[name]
    kind, labels = CERTIFICATE_FAMILIES[name]

    assert family.type == kind
    assert family.documentation
    assert {label for sample in family.samples for label in sample.labels} == labels


def test_a_certificate_has_its_times() -> None:
    """Unix time, in seconds; a fraction of one is nobody's business to lose."""
    text = certificate_page()

    assert value(text, "sniproxy_certificate_not_after_timestamp_seconds", certificate="example.com") == (
        NOT_AFTER.timestamp()
    )
    assert value(text, "sniproxy_certificate_renew_at_timestamp_seconds", certificate="example.com") == (
        NOT_AFTER.timestamp() - 30 * 86400 - 0.5
    )
    assert value(text, "sniproxy_certificate_deployed", certificate="example.com") == 1


def test_one_that_is_not_there_yet_has_none_and_is_not_deployed() -> None:
    """An alert on `deployed == 0` sees it; 1970 would be a date that it never had."""
    found = samples(certificate_page())
    labels = frozenset({("certificate", "new.example.com")})

    assert found["sniproxy_certificate_deployed", labels] == 0
    assert ("sniproxy_certificate_not_after_timestamp_seconds", labels) not in found
    assert ("sniproxy_certificate_renew_at_timestamp_seconds", labels) not in found


def test_renewals_are_counted_from_nothing() -> None:
    """A counter that begins at 1 hides its first event from rate()."""
    counts = CertificateCounts()
    counts.renewal("example.com", "success")
    counts.renewal("example.com", "success")
    counts.renewal("gone.example.com", "failure")
    text = certificate_page(counts)

    assert value(text, "sniproxy_certificate_renewals_total", certificate="example.com", result="success") == 2
    assert value(text, "sniproxy_certificate_renewals_total", certificate="example.com", result="failure") == 0
    assert value(text, "sniproxy_certificate_renewals_total", certificate="new.example.com", result="success") == 0
    assert "gone.example.com" not in text  # labels are those of the configuration


def test_challenges_are_counted_by_what_the_ca_said() -> None:
    """`valid`, `invalid`, and `error` where it never came to that."""
    counts = CertificateCounts()
    for result in ("valid", "valid", "invalid", "error"):
        counts.challenge("http-01", result)
    text = certificate_page(counts)

    assert {
        result: value(text, "sniproxy_challenges_total", type="http-01", result=result)
        for result in ("valid", "invalid", "error")
    } == {"valid": 2, "invalid": 1, "error": 1}


def test_no_text_of_anybody_is_a_label() -> None:
    """Labels are closed sets: neither serial numbers nor errors (Prometheus, "Do not overuse labels")."""
    text = certificate_page()

    assert "0abc" not in text
    assert 'no"' not in text


def test_certificates_can_be_read_as_openmetrics_too() -> None:
    """The other format that scrapers ask for."""
    families = {family.name for family in parse_openmetrics(certificate_page(accept="application/openmetrics-text"))}

    assert set(CERTIFICATE_FAMILIES) <= families


def test_nothing_is_asked_before_somebody_scrapes() -> None:
    """Registering a collector asks it for its families; certificates are not there by then."""
    collector = CertificateCollector(pytest.fail, CertificateCounts())

    assert list(collector.describe()) == []
    Metrics(lambda: SNAPSHOT, ReloadCounts(), "1.2.3", collector)
