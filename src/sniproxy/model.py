"""Value types that several layers share. Nothing here does anything but hold and print values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port. `host` is an IP address without brackets, a host name, or "" for all addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix stream socket; `@name` is Linux's abstract name space."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def is_abstract(self) -> bool:
        """Whether it has no file."""
        return self.path.startswith("@")

    @property
    def socket_address(self) -> str:
        """What bind(2) and connect(2) take (unix(7): a NUL stands in front of an abstract name)."""
        return "\0" + self.path[1:] if self.is_abstract else self.path


Address = TcpAddress | UnixAddress


class HelloKind(enum.StrEnum):
    """What the first bytes of a connection turned out to be."""

    TLS = "tls"
    NO_SNI = "no_sni"
    NOT_TLS = "not_tls"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    INCOMPLETE = "incomplete"


class Outcome(enum.StrEnum):
    """How an accepted connection ended. Every accepted connection ends in exactly one of these."""

    RELAYED = "relayed"
    CHALLENGE = "challenge"
    REJECTED = "rejected"
    LIMITED = "limited"
    NO_ROUTE = "no_route"
    NOT_TLS = "not_tls"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    INSPECT_TIMEOUT = "inspect_timeout"
    CLIENT_LEFT = "client_left"
    BAD_PROXY_HEADER = "bad_proxy_header"
    BACKEND_UNREACHABLE = "backend_unreachable"
    INTERNAL_ERROR = "internal_error"


class ProxyProtocol(enum.StrEnum):
    """Which PROXY header a backend is sent."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


class Balance(enum.StrEnum):
    """How a server is chosen among those of a backend, in HAProxy's words."""

    LEASTCONN = "leastconn"
    ROUNDROBIN = "roundrobin"
    SOURCE = "source"


HISTOGRAM_BOUNDS_SECONDS = {
    # From a loopback connect to the longest inspect_delay that makes sense.
    "inspect": (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    "connect": (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    # From one request to a WebSocket that stays for hours.
    "connection": (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0),
}
"""Upper bounds of the buckets of each histogram, in seconds, without the last one, which is infinite."""


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """`counts[i]` observations were at most `bounds[i]` and above the bound before; the last count has no bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One server of a backend: connections now and ever, and failed connects by error."""

    backend: str
    server: str
    up: bool
    active: int
    connections: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class RelaySnapshot:
    """All counters of the data plane at one instant: `accepted` is `active` plus the sum of `outcomes`.

    `outcomes` counts by outcome and backend ("" where none). `received` and `sent` are bytes from and to clients, by
    backend, those of live connections included.
    """

    accepted: int
    active: int
    outcomes: dict[tuple[Outcome, str], int]
    received: dict[str, int]
    sent: dict[str, int]
    inspect: HistogramSnapshot
    connect: HistogramSnapshot
    connection: HistogramSnapshot
    servers: tuple[ServerSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """One managed certificate as operators see it. Times are aware, in UTC.

    Of the certificate there is now: `names` (those asked for while there is none), `issuer`, `serial` (hex),
    `not_before`, `not_after`; None while there is none. `renew_at` is when the next one is ordered and `reason` why
    then. `deployed`: it is in HAProxy, and was seen to be served. `last_error` is what went wrong last, in the words of
    the CA or of HAProxy, None once all is well. `next_attempt` is when it is tried again.
    """

    name: str
    names: tuple[str, ...]
    issuer: str | None = None
    serial: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    renew_at: datetime | None = None
    reason: str | None = None
    deployed: bool = False
    deployed_at: datetime | None = None
    last_error: str | None = None
    next_attempt: datetime | None = None

    def days_left(self, now: datetime) -> float | None:
        """Until it is over; negative if it is, None while there is none."""
        return None if self.not_after is None else (self.not_after - now).total_seconds() / 86400


@dataclass(slots=True)
class CertificateCounts:
    """What happened to certificates since the start.

    renewals: by certificate and result, "success" or "failure". challenges: by type and what the CA said of them,
    "valid" or "invalid"; "error" where it never came to that.
    """

    renewals: dict[tuple[str, str], int] = field(default_factory=dict)
    challenges: dict[tuple[str, str], int] = field(default_factory=dict)

    def renewal(self, name: str, result: str) -> None:
        """One more attempt to obtain a certificate is over."""
        self.renewals[name, result] = self.renewals.get((name, result), 0) + 1

    def challenge(self, kind: str, result: str) -> None:
        """One more challenge is over."""
        self.challenges[kind, result] = self.challenges.get((kind, result), 0) + 1


class ClosedConnection(Protocol):
    """One connection as its log line tells it, when it is over.

    Times are seconds; None where the connection did not get that far. `sni` is as the client sent it, in lower case,
    and may hold anything: whoever prints it escapes it. `counts` are the connections at the end, this one included:
    of the process, the listener, the backend and the server; then the retries.
    """

    @property
    def unique_id(self) -> str: ...
    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def accepted_at(self) -> float: ...
    @property
    def frontend(self) -> str: ...
    @property
    def backend_label(self) -> str: ...
    @property
    def server_label(self) -> str: ...
    @property
    def inspect_seconds(self) -> float | None: ...
    @property
    def connect_seconds(self) -> float | None: ...
    @property
    def total_seconds(self) -> float: ...
    @property
    def received(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def termination(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def counts(self) -> tuple[int, int, int, int, int]: ...
    @property
    def sni(self) -> str | None: ...
    @property
    def alpn(self) -> tuple[bytes, ...]: ...
