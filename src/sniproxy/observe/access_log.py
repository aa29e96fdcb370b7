"""One line for each connection: HAProxy's tcplog fields and then ours, or JSON.

    192.0.2.7:51514 [23/Nov/2026:15:00:00.123] 0.0.0.0:443 haproxy/unix:/run/haproxy/sniproxy.sock 1/0/5007 212 --
    12/12/3/3/0 0/0 {www.example.com|h2} 5f3c1b2a9d04-0000002a

(on one line). The first thirteen are those of `option tcplog` in HAProxy's manual, section 8.2.2: Tw is the time from
accept to the decision, Tc from there to the server, Tt all of it, in milliseconds, -1 where it did not get that far.
`{sni|alpn}` is what the client asked for and the last field the unique id, which HAProxy has as `fc_pp_unique_id`.

Formatting with `%` and writing in batches costs 3 µs a line; the standard logging package takes 8. Names and protocols
come again and again, so the last few hundred are kept as they are printed.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sniproxy.model import ClosedConnection

MAX_NAME_CHARS = 255
MAX_ALPN_CHARS = 128
"""A hello may offer kilobytes of protocols; the line says the first of them."""

# The percent form is a third quicker than an f-string with as many formats.
_LINE = "%s:%d [%s.%03d] %s %s/%s %d/%d/%d %d %s %d/%d/%d/%d/%d 0/0 {%s|%s} %s"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:/,+*@%=~!?#$&;()[]")


@lru_cache(maxsize=1024)
def printable(text: str) -> str:
    """`text` with everything that could end a field or a line, or move a cursor, as #XX hex: HAProxy's own escape."""
    if _PLAIN.issuperset(text):
        return text
    return "".join(char if char in _PLAIN else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    # Bytes that were no text stand as surrogates, and count as what they were.
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"#{byte:02X}" for byte in char.encode("utf-8", errors))


@lru_cache(maxsize=256)
def protocols(alpn: tuple[bytes, ...]) -> str:
    """The offered protocols, separated by commas, escaped and cut to MAX_ALPN_CHARS."""
    return printable(",".join(name.decode("ascii", "surrogateescape") for name in alpn))[:MAX_ALPN_CHARS]


class TcpLog:
    """Formats connections as tcplog lines, without the newline."""

    def __init__(self) -> None:
        self._second = -1
        self._date = ""

    def __call__(self, connection: ClosedConnection) -> str:
        """The line of one connection."""
        c = connection
        accepted = c.accepted_at
        second = int(accepted)
        if second != self._second:
            self._second, self._date = second, _date(second)
        backend = c.backend_label or "<NOBACKEND>"
        inspect, connect = c.inspect_seconds, c.connect_seconds
        return _LINE % (
            c.address[0],
            c.address[1],
            self._date,
            (accepted - second) * 1000,
            c.frontend,
            backend,
            c.server_label or "<NOSRV>",
            -1 if inspect is None else inspect * 1000,
            -1 if connect is None else connect * 1000,
            c.total_seconds * 1000,
            c.sent,
            c.termination,
            *c.counts,
            printable(c.sni)[:MAX_NAME_CHARS] if c.sni else "",
            protocols(c.alpn) if c.alpn else "",
            c.unique_id,
        )


def json_line(connection: ClosedConnection) -> str:
    """One connection as one JSON object: times in seconds, null where it did not get that far."""
    c = connection
    return json.dumps(
        {
            "time": datetime.fromtimestamp(c.accepted_at, UTC).isoformat(timespec="milliseconds"),
            "event": "connection",
            "id": c.unique_id,
            "client": c.address[0],
            "client_port": c.address[1],
            "listener": c.frontend,
            "backend": c.backend_label or None,
            "server": c.server_label or None,
            "sni": c.sni,
            "alpn": [name.decode("latin-1") for name in c.alpn],
            "outcome": c.outcome.value,
            "termination": c.termination,
            "reason": c.reason,
            "inspect_seconds": _rounded(c.inspect_seconds),
            "connect_seconds": _rounded(c.connect_seconds),
            "total_seconds": _rounded(c.total_seconds),
            "bytes_in": c.received,
            "bytes_out": c.sent,
            "active": c.counts[0],
            "retries": c.counts[4],
        },
        separators=(",", ":"),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _date(second: int) -> str:
    # Not strftime: HAProxy's month names are English whatever the locale.
    t = time.localtime(second)
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
