"""One connection, one line: fields where HAProxy has them, and nothing a client sends leaves its own field."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.model import Outcome
from sniproxy.observe.access_log import MAX_ALPN_CHARS, MAX_NAME_CHARS, TcpLog, json_line, printable, protocols

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.model import ClosedConnection


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A connection that is over, with what most of them have."""

    unique_id: str = "5f3c1b2a9d04-0000002a"
    address: tuple[str, int] = ("192.0.2.7", 51514)
    accepted_at: float = 1795446000.1234
    frontend: str = "0.0.0.0:443"
    backend_label: str = "haproxy"
    server_label: str = "unix:/run/haproxy/sniproxy.sock"
    inspect_seconds: float | None = 0.0014
    connect_seconds: float | None = 0.0002
    total_seconds: float = 5.0071
    received: int = 517
    sent: int = 212
    outcome: Outcome = Outcome.RELAYED
    termination: str = "--"
    reason: str = 'the route "www.example.com"'
    counts: tuple[int, int, int, int, int] = (12, 12, 3, 3, 0)
    sni: str | None = "www.example.com"
    alpn: tuple[bytes, ...] = (b"h2", b"http/1.1")


ENDED = Ended()
REFUSED = Ended(
    backend_label="",
    server_label="",
    inspect_seconds=None,
    connect_seconds=None,
    total_seconds=0.0,
    received=0,
    sent=0,
    outcome=Outcome.NOT_TLS,
    termination="PR",
    counts=(1, 1, 0, 0, 0),
    sni=None,
    alpn=(),
)

# HAProxy's manual, section 8.2.2, `option tcplog`, with our two fields behind it.
TCPLOG = re.compile(
    r"(?P<client>\S+):(?P<port>\d+) \[(?P<date>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d\.\d{3})\] (?P<frontend>\S+)"
    r" (?P<backend>[^ /]+)/(?P<server>\S+) (?P<tw>-?\d+)/(?P<tc>-?\d+)/(?P<tt>\d+) (?P<bytes>\d+) (?P<state>[A-Za-z-]{2})"
    r" \d+/\d+/\d+/\d+/\d+ 0/0 \{(?P<sni>[^ |{}]*)\|(?P<alpn>[^ |{}]*)\} (?P<id>[0-9a-f-]+)"
).fullmatch


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# ---------------------------------------------------------------------------------------------- tcplog


def test_a_relayed_connection(utc: None) -> None:
    """HAProxy's manual, section 8.2.2, field by field."""
    assert TcpLog()(ENDED) == (
        "192.0.2.7:51514 [23/Nov/2026:15:00:00.123] 0.0.0.0:443 haproxy/unix:/run/haproxy/sniproxy.sock 1/0/5007 212 --"
        " 12/12/3/3/0 0/0 {www.example.com|h2,http/1.1} 5f3c1b2a9d04-0000002a"
    )


def test_a_connection_that_did_not_get_far(utc: None) -> None:
    """HAProxy's manual, section 8.4: -1 for a time that was not reached, <NOSRV> without a server."""
    assert TcpLog()(REFUSED) == (
        "192.0.2.7:51514 [23/Nov/2026:15:00:00.123] 0.0.0.0:443 <NOBACKEND>/<NOSRV> -1/-1/0 0 PR"
        " 1/1/0/0/0 0/0 {|} 5f3c1b2a9d04-0000002a"
    )


def test_an_ipv6_client(utc: None) -> None:
    """As HAProxy writes it: the last colon is the port's."""
    match = TCPLOG(TcpLog()(replace(ENDED, address=("2001:db8::1", 443))))

    assert match
    assert (match["client"], match["port"]) == ("2001:db8::1", "443")


def test_the_date_changes_with_the_second(utc: None) -> None:
    """It is made once a second and not once a line."""
    log = TcpLog()
    dates = []
    for accepted_at in (1795446000.0, 1795446000.9999, 1795446001.0, 1795445999.5):
        match = TCPLOG(log(replace(ENDED, accepted_at=accepted_at)))
        assert match
        dates.append(match["date"][-12:])

    assert dates == ["15:00:00.000", "15:00:00.999", "15:00:01.000", "14:59:59.500"]


def test_months_are_english_whatever_the_locale(utc: None) -> None:
    """HAProxy's are, and what parses them expects it."""
    log = TcpLog()
    months = []
    for month in range(1, 13):
        match = TCPLOG(log(replace(ENDED, accepted_at=time.mktime((2026, month, 15, 12, 0, 0, 0, 0, 0)))))
        assert match
        months.append(match["date"][3:6])

    assert months == ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


# ---------------------------------------------------------------------------------------------- hostile names

HOSTILE = {
    "newline": "a\nb.example.com",
    "carriage return": "a\r\n192.0.2.1:1 [01/Jan/2026:00:00:00.000] forged",
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "space": "a b",
    "quotes": "a\"b'c`d",
    "closes the field": "x} 00000000-00000000",
    "divides the field": "x|y",
    "opens a field": "{x",
    "format": "%s%n%(x)s{0}{c.engine}",
    "nothing printable": "".join(map(chr, range(33))),
    "delete": "\x7f",
    "not ASCII": "bücher.example",
    "right to left": "\u202egro.elpmaxe",
    "line separator": "a\u2028b\u0085c",
    "surrogate escape": b"\xff\xfe".decode("ascii", "surrogateescape"),
    "lone surrogate": "\ud800",
    "backslash": "a\\nb",
    "255 bytes": "a" * 255,
    "far too long": "\n" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_stays_in_its_field_and_its_line(name: str) -> None:
    """CWE-117. A server name has forged log lines elsewhere (untangle/ngfw_src #1225)."""
    line = TcpLog()(replace(ENDED, sni=name))
    match = TCPLOG(line)

    assert match
    assert (match["alpn"], match["id"]) == ("h2,http/1.1", ENDED.unique_id)
    assert line.isascii()
    assert line.isprintable()
    assert len(match["sni"]) <= MAX_NAME_CHARS


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_protocol_stays_in_its_field_and_its_line(name: str) -> None:
    """RFC 7301 section 3.1: protocol names are opaque bytes, any of them."""
    raw = name.encode("utf-8", "surrogatepass")
    match = TCPLOG(TcpLog()(replace(ENDED, alpn=(raw, b"h2"))))

    assert match
    assert (match["sni"], match["id"]) == ("www.example.com", ENDED.unique_id)
    assert len(match["alpn"]) <= MAX_ALPN_CHARS


@given(st.text(), st.lists(st.binary(min_size=1, max_size=255), max_size=20))
def test_any_name_and_any_protocols(name: str, alpn: list[bytes]) -> None:
    """Whatever a hello may hold: one line, and its fields are where they belong."""
    match = TCPLOG(TcpLog()(replace(ENDED, sni=name, alpn=tuple(alpn))))

    assert match
    assert match["id"] == ENDED.unique_id


@pytest.mark.parametrize("name", ["www.example.com", "xn--bcher-kva.example", "_dmarc.example.com", "192.0.2.1"])
def test_ordinary_names_are_printed_as_they_are(name: str) -> None:
    """What people search for in a log must be in it."""
    assert printable(name) == name


def test_what_is_escaped_is_written_in_hex_as_haproxy_does() -> None:
    """HAProxy's manual, section 8.6: a non-printable character is #XX."""
    assert printable("a\n|ü") == "a#0A#7C#C3#BC"
    assert protocols((b"h2", b"\x00\xff")) == "h2,#00#FF"


# ---------------------------------------------------------------------------------------------- JSON


def test_a_connection_as_json() -> None:
    """Times in seconds, names of fields that say what they are."""
    assert json.loads(json_line(ENDED)) == {
        "time": "2026-11-23T15:00:00.123+00:00",
        "event": "connection",
        "id": "5f3c1b2a9d04-0000002a",
        "client": "192.0.2.7",
        "client_port": 51514,
        "listener": "0.0.0.0:443",
        "backend": "haproxy",
        "server": "unix:/run/haproxy/sniproxy.sock",
        "sni": "www.example.com",
        "alpn": ["h2", "http/1.1"],
        "outcome": "relayed",
        "termination": "--",
        "reason": 'the route "www.example.com"',
        "inspect_seconds": 0.0014,
        "connect_seconds": 0.0002,
        "total_seconds": 5.0071,
        "bytes_in": 517,
        "bytes_out": 212,
        "active": 12,
        "retries": 0,
    }


def test_what_was_not_reached_is_null() -> None:
    """-1 and empty strings would be taken for values."""
    line = json.loads(json_line(REFUSED))

    assert [line[key] for key in ("backend", "server", "sni", "inspect_seconds", "connect_seconds")] == [None] * 5


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_makes_valid_json_on_one_line(name: str) -> None:
    """RFC 8259 section 7. The name is whole: whoever reads JSON has it escaped already."""
    line = json_line(replace(ENDED, sni=name, alpn=(name.encode("utf-8", "surrogatepass"),)))

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["sni"] == name


def test_every_outcome_can_be_told() -> None:
    """By the words of the metric's label."""
    log = TcpLog()
    for outcome in Outcome:
        ended: ClosedConnection = replace(ENDED, outcome=outcome)
        assert json.loads(json_line(ended))["outcome"] == outcome.value
        assert TCPLOG(log(ended))
