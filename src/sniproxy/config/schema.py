"""The sections that route and serve: [proxy], [backends.NAME], [[routes]], [http], [admin] and [log]; and Config.

Each field says what it accepts, its unit and why its default is what it is. Where HAProxy has the same thing, its
word stands in the description. The certificates' sections are in `certificates`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PlainValidator, WithJsonSchema

from sniproxy.config import units
from sniproxy.config.certificates import Acme, Certificate, Haproxy, Hooks
from sniproxy.config.fields import (
    Converted,
    Count,
    CountOrOff,
    DialAddress,
    Duration,
    DurationOrOff,
    ListenAddress,
    Network,
    OptionalListenAddress,
    OptionalSocketPath,
    Pattern,
    Protocol,
    Section,
    absolute_path,
    key,
    key_without_default,
    optional_section,
)
from sniproxy.config.wording import shown
from sniproxy.model import Balance, ProxyProtocol

SMALLEST_HELLO = "1KiB"
LARGEST_HELLO = "128KiB"
MOST_WORKERS = 512

Stream = Literal["stdout", "stderr", "syslog"]

_STREAMS: tuple[Stream, ...] = get_args(Stream)


def _workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_WORKERS:
        return value
    raise ValueError(f'must be "auto" or a number from 1 to {MOST_WORKERS}, not {shown(value)}')


def _target(value: object) -> Path | Stream:
    for stream in _STREAMS:
        if value == stream:
            return stream
    try:
        return absolute_path(value)
    except ValueError:
        raise ValueError(f'must be "stdout", "stderr", "syslog" or an absolute path, not {shown(value)}') from None


_hello_size = PlainValidator(partial(units.size, smallest=SMALLEST_HELLO, largest=LARGEST_HELLO))


class Proxy(Section):
    """[proxy]: the public TLS side, and what holds for every connection."""

    listen: Annotated[tuple[ListenAddress, ...], Converted] = key(
        default=["0.0.0.0:443", "[::]:443"],
        min_length=1,
        description="Where clients come in: HAProxy's bind. The default takes both families on all addresses.",
    )
    default_backend: str = key(
        default="haproxy",
        min_length=1,
        description='The backend of names that no route takes, or "reject" to refuse them. HAProxy\'s default_backend.',
    )
    no_sni: str = key(
        default="default",
        min_length=1,
        description='What TLS clients that send no name get: "default" is as default_backend, "reject", or a backend.',
    )
    not_tls: str = key(
        default="reject",
        min_length=1,
        description='What clients that do not speak TLS get: "reject", or a backend (SSH, say).',
    )
    inspect_delay: Duration = key(
        default="5s",
        description="From accept to routed, all of it: the PROXY header and the ClientHello have to be in by then. "
        "HAProxy's tcp-request inspect-delay.",
    )
    connect_timeout: Duration = key(
        default="10s",
        description="To reach a server of the backend. HAProxy's timeout connect.",
    )
    idle_timeout: Duration = key(
        default="10m",
        description="Without a byte either way, after which a connection is closed. It exceeds HAProxy's usual "
        "timeout client, so that HAProxy is the one to end idle sessions. HAProxy's timeout tunnel.",
    )
    half_close_timeout: Duration = key(
        default="30s",
        description="Likewise, once one side has finished sending. HAProxy's timeout client-fin and server-fin.",
    )
    shutdown_grace: DurationOrOff = key(
        default="30s",
        description="For live connections to end after TERM, before they are cut; 0 cuts them at once. "
        "HAProxy's hard-stop-after.",
    )
    max_hello: Annotated[int, _hello_size, WithJsonSchema({"type": ["string", "integer"]})] = key(
        default="16KiB",
        description=f"The longest ClientHello taken, {SMALLEST_HELLO} to {LARGEST_HELLO}. Browsers with post-quantum "
        "key shares send under 2KiB. HAProxy's tune.bufsize, which is 16KiB too.",
    )
    max_connections: Count = key(
        default=16384,
        description="Connections at once, of all clients together. HAProxy's maxconn.",
    )
    max_connections_per_client: CountOrOff = key(
        default=0,
        description="Connections at once of one client, which is an IPv4 address or an IPv6 /64; 0 is off. "
        "HAProxy's src_conn_cur.",
    )
    max_connection_rate_per_client: CountOrOff = key(
        default=0,
        description="New connections per second of one client, as above; 0 is off. HAProxy's src_conn_rate(1s).",
    )
    accept_proxy_from: Annotated[tuple[Network, ...], Converted] = key(
        default=[],
        description="Networks of load balancers in front: they must send a PROXY header, v1 or v2, and nobody else's "
        "is read. HAProxy's tcp-request connection expect-proxy layer4.",
    )
    workers: Annotated[
        int | Literal["auto"],
        PlainValidator(_workers),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}, {"const": "auto"}]}),
    ] = key(
        default=1,
        description='Processes that relay; "auto" is one per core. One core relays several Gbit/s. '
        "HAProxy's nbthread.",
    )
    user: str = key(
        default="", description="To become after binding, when started as root; empty: stay. HAProxy's user."
    )
    group: str = key(default="", description="Likewise; empty: the user's own group. HAProxy's group.")


class Backend(Section):
    """[backends.NAME]: servers that take connections over."""

    needed: ClassVar[tuple[str, ...]] = ("servers",)

    servers: Annotated[tuple[DialAddress, ...], Converted] = key_without_default(
        until_set=(),
        min_length=1,
        description='Where to connect: "unix:/run/haproxy/sniproxy.sock" costs least; several are balanced. '
        "HAProxy's server.",
    )
    proxy_protocol: Annotated[ProxyProtocol, Converted] = key(
        default="v2",
        description="The header that tells the server the client's address: v2 carries the name, the ALPN list and a "
        "unique id as well. HAProxy's send-proxy-v2, send-proxy; accept-proxy on its bind line reads both.",
    )
    balance: Annotated[Balance, Converted] = key(
        default="leastconn",
        description="How one of several servers is chosen; leastconn because connections live long and unevenly. "
        "HAProxy's balance.",
    )
    check: Literal["off", "tcp", "tls"] = key(
        default="off",
        description="Whether servers are asked if they live: by connecting, or by a TLS handshake. Off, because a "
        "server that fails to connect is passed over anyway. HAProxy's check, check-ssl.",
    )
    check_interval: Duration = key(
        default="2s", description="Between two checks of a server. HAProxy's inter, with its default."
    )
    rise: Count = key(
        default=2, description="Good checks in a row until a server is up. HAProxy's rise, with its default."
    )
    fall: Count = key(
        default=3, description="Bad checks in a row until a server is down. HAProxy's fall, with its default."
    )


class Route(Section):
    """[[routes]]: names, and the backend that gets their connections. The most specific pattern wins."""

    needed: ClassVar[tuple[str, ...]] = ("sni", "backend")

    sni: Annotated[tuple[Pattern, ...], Converted] = key_without_default(
        until_set=(),
        min_length=1,
        description='Names: "git.example.com" is itself only, "*.example.com" has one label more, ".example.net" is '
        "the name and all below it. HAProxy's req.ssl_sni, with -m str, reg and dom.",
    )
    alpn: Annotated[tuple[Protocol, ...], Converted] = key(
        default=[], description="Protocols of which the client must offer one; empty: any. HAProxy's req.ssl_alpn."
    )
    backend: str = key_without_default(
        until_set="",
        min_length=1,
        description="The backend that gets the connection. HAProxy's use_backend.",
    )
    allow: Annotated[tuple[Network, ...], Converted] = key(
        default=[], description="Networks of clients let through; empty: all. HAProxy's tcp-request content accept."
    )
    deny: Annotated[tuple[Network, ...], Converted] = key(
        default=[],
        description="Networks of clients refused; it goes before allow. HAProxy's tcp-request content reject.",
    )


class Http(Section):
    """[http]: the port-80 side, which answers http-01 challenges and redirects; without the section, off."""

    listen: Annotated[tuple[ListenAddress, ...], Converted] = key(
        default=["0.0.0.0:80", "[::]:80"],
        min_length=1,
        description="Where plain HTTP comes in; 127.0.0.1:8099, say, behind HAProxy's own frontend on :80.",
    )
    redirect_to_https: bool = key(
        default=True,
        description="Answer everything but challenges with 308 to https. HAProxy's http-request redirect scheme https.",
    )


class Admin(Section):
    """[admin]: what the running proxy tells and takes. Without the section it listens at its defaults."""

    listen: OptionalListenAddress = key(
        default="127.0.0.1:8404",
        description="Read only: the status page, /status.json, /metrics, /healthz, /readyz. This machine alone by "
        'default, as it shows names and addresses; "" turns it off, and with it status and healthcheck. '
        "HAProxy's stats uri, on its usual port.",
    )
    control_socket: OptionalSocketPath = key(
        default="/run/sniproxy/control.sock",
        description='Mode 0660, the only way in for what changes something (renew, reload); "" turns it off. '
        "HAProxy's stats socket level admin.",
    )


class Log(Section):
    """[log]: one line per connection, and what the program has to say."""

    format: Literal["tcplog", "json"] = key(
        default="tcplog",
        description="tcplog is HAProxy's, with {sni|alpn} after it, so its log readers go on working; "
        "json is one object a line.",
    )
    target: Annotated[
        Path | Stream,
        PlainValidator(_target),
        WithJsonSchema({"type": "string", "pattern": "^(stdout|stderr|syslog|/.*)$"}),
    ] = key(
        default="stdout",
        description='"stdout", "stderr", "syslog" or an absolute path, reopened on USR1. HAProxy\'s log.',
    )
    level: Literal["debug", "info", "warning", "error"] = key(
        default="info", description="The least important kind of line that is written."
    )


class Config(Section):
    """The whole file; sections that it does not have are at their defaults, or off."""

    proxy: Proxy = Field(default_factory=Proxy, description="The public TLS side.")
    backends: Annotated[Mapping[str, Backend], Converted] = key(
        default={}, description="Where connections go, by name: [backends.NAME]."
    )
    routes: Annotated[tuple[Route, ...], Converted] = key(
        default=[], description="Which names go to which backend; the order does not matter."
    )
    http: Http | None = optional_section(description="The port-80 side; absent: off.")
    admin: Admin = Field(default_factory=Admin, description="Status, metrics, health and control.")
    acme: Acme | None = optional_section(
        description="The CA that certificates are ordered from; absent: none are.",
    )
    certificates: Annotated[tuple[Certificate, ...], Converted] = key(
        default=[], description="The certificates to obtain and keep fresh."
    )
    haproxy: Haproxy | None = optional_section(
        description="Where certificates are delivered to; absent: they stay in acme.state_dir.",
    )
    hooks: Hooks = Field(default_factory=Hooks, description="Programs to run when something happened to a certificate.")
    log: Log = Field(default_factory=Log, description="Where log lines go, and how they look.")
