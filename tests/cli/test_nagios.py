"""One line and an exit status (Monitoring Plugins Development Guidelines): text, bar, performance data."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from sniproxy.app.expiry import Finding, unseen
from sniproxy.cli.nagios import MOST_NAMED, Status, line, report
from sniproxy.model import CertificateStatus
from tests.support.certificates import NOW

DAY = timedelta(days=1)


def finding(name="a.example", left=43.0, *, lifetime=90, managed=True, deployed=True, **more):
    ends = NOW + left * DAY
    status = CertificateStatus(
        name=name,
        names=(name,),
        not_before=ends - lifetime * DAY,
        not_after=ends,
        deployed=deployed,
        last_error=more.pop("last_error", None),
    )
    return Finding(status=status, is_managed=managed, **more)


def missing(name="a.example", **more):
    return Finding(status=CertificateStatus(name=name, names=(name,), **more), is_managed=True)


def judged(*findings, warn=None, critical=None):
    status, text = report(findings, warn=warn, critical=critical, now=NOW)
    # Exit status and word are the same, and all is on one line.
    assert text.startswith(f"SNIPROXY {status.name} - ")
    assert "\n" not in text
    return int(status), text.split(" - ", 1)[1]


def test_all_is_well():
    """The first to expire, and how many there are."""
    code, text = judged(finding("b.example", 80), finding("www.example.com", 43.7), finding("c.example", 60))

    assert code == 0
    assert text.partition(" | ")[0] == "3 certificates, next to expire www.example.com in 43 days"


def test_performance_data_has_value_and_thresholds():
    """'label'=value;warn;crit: ranges, "15:" being an alert below 15."""
    _, text = judged(finding("a.example", 43), finding("b.example", 6, lifetime=6))

    assert text.partition(" | ")[2] == "'a.example'=43.00;15:;4.5: 'b.example'=6.00;1:;0.3:"


@pytest.mark.parametrize(
    ("left", "lifetime", "code"),
    [
        (15.1, 90, 0),
        (14.9, 90, 1),
        (4.6, 90, 1),
        (4.4, 90, 2),
        (0, 90, 2),
        (-3, 90, 2),
        (2, 6, 0),
        (0.9, 6, 1),
        (0.2, 6, 2),
        (31, 365, 0),
        (29, 365, 1),
        (13, 365, 2),
    ],
)
def test_thresholds_fit_the_lifetime(left, lifetime, code):
    """Contract: sensible defaults relative to lifetime."""
    assert judged(finding(left=left, lifetime=lifetime))[0] == code


@pytest.mark.parametrize(
    ("warn", "critical", "code"), [(40, 10, 0), (50, 10, 1), (50, 45, 2), (50, None, 1), (None, 45, 2), (43, 10, 0)]
)
def test_thresholds_that_were_given(warn, critical, code):
    """--warn and --critical: fewer days than that."""
    assert judged(finding(left=43), warn=warn, critical=critical)[0] == code


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (12.9, "a.example expires in 12 days"),
        (2.0, "a.example expires in 2 days"),
        (1.99, "a.example expires in 47 hours"),
        (1.5 / 24, "a.example expires in 1 hour"),
        (-0.5, "a.example expired 12 hours ago"),
        (-3.2, "a.example expired 3 days ago"),
    ],
)
def test_the_time_left_in_words(left, words):
    """Rounded down: nobody should count on more than there is."""
    assert judged(finding(left=left))[1].startswith(f"{words}; 1 certificate |")


def test_a_certificate_that_is_not_there_yet_is_critical():
    """Its name is served without one, or with a placeholder."""
    code, text = judged(missing(last_error="rateLimited: too many"), finding("b.example"))

    assert (code, text.partition(";")[0]) == (2, "a.example has no certificate: rateLimited: too many")


def test_a_certificate_that_is_not_deployed_is_a_warning():
    """What is served is another one, and that one ends sooner."""
    code, text = judged(finding(deployed=False, last_error="HAProxy: Permission denied"))

    assert (code, text.partition(";")[0]) == (1, "a.example is not deployed: HAProxy: Permission denied")


def test_deployed_is_asked_of_managed_ones_only():
    """Nobody knows it of a file."""
    assert judged(finding(managed=False, deployed=False))[0] == 0


def test_an_error_that_has_time_is_none_yet():
    """It is tried again for a month; --warn tells when that is not going to be."""
    assert judged(finding(left=29, last_error="connection refused"))[0] == 0
    assert "connection refused" in judged(finding(left=9, last_error="connection refused"))[1]


def test_a_mistake_that_clients_see_is_critical():
    """Not for the name, say."""
    code, text = judged(finding(managed=False, notes=("not for www.test",), is_wrong=True))

    assert (code, text.partition(";")[0]) == (2, "a.example: not for www.test")


def test_what_could_not_be_looked_at_is_unknown():
    """The guidelines: UNKNOWN for a plugin that could not do what it should."""
    code, text = judged(unseen("www.test:443", "nobody listens there"), finding("b.example"))

    assert (code, text.partition(";")[0]) == (3, "www.test:443: nobody listens there")


def test_critical_goes_before_unknown_before_warning():
    """What is known to be bad is the worst there is."""
    unknown, warning, critical = unseen("u", "no"), finding("w", 9), finding("c", 1)

    assert judged(warning, unknown)[0] == 3
    assert judged(warning, unknown, critical)[0] == 2
    text = judged(warning, unknown, critical)[1]
    assert text.startswith("c expires in 24 hours, u: no, w expires in 9 days; 3 certificates |")


def test_nothing_to_look_at_is_unknown():
    """Somebody expected certificates."""
    assert judged() == (3, "there are no certificates to look at")


def test_only_a_few_are_named():
    """It goes into a message to a telephone."""
    _, text = judged(*(finding(f"n{number}", 1) for number in range(MOST_NAMED + 2)))

    assert f"n{MOST_NAMED - 1} expires in 24 hours and 2 more; {MOST_NAMED + 2} certificates |" in text


def test_labels_are_quoted_and_unique():
    """The guidelines: a quote is doubled, an equals sign not allowed; a label twice would be one value."""
    _, text = judged(finding("/srv/it's=a|b.pem"), finding("x"), finding("x"))

    labels = re.findall(r"('(?:[^']|'')*')=", text.partition(" | ")[2])
    assert labels == ["'/srv/it''s_a/b.pem'", "'x'", "'x#2'"]


def test_a_text_stays_on_its_side_of_the_bar():
    """The first bar begins the performance data; a line break would begin the long output."""
    assert line(Status.UNKNOWN, "bad.toml:2: x\nbad.toml:3: y|z") == "SNIPROXY UNKNOWN - bad.toml:2: x bad.toml:3: y/z"


def test_the_exit_statuses_are_those_of_the_guidelines():
    assert {status.name: int(status) for status in Status} == {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
