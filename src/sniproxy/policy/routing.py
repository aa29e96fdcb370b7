"""Which backend a connection gets, from what its first bytes said.

The most specific pattern wins and the order in the file never matters:

    git.example.com      exact
    .git.example.com     the suffix that is the whole name
    *.example.com        one label in front
    .example.com         any depth; of several the longest

Under one pattern a route whose `alpn` names a protocol the client offers goes before one without; of several, the
one that the client prefers. A route found by name is final: a client it denies is refused, not sent elsewhere.

Looking up costs three dictionary accesses and one for each parent of the name, however many names there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

from sniproxy.model import Outcome
from sniproxy.wire.tls import AlertDescription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

IPNetwork = IPv4Network | IPv6Network

ACME_TLS_1: Final = (b"acme-tls/1",)
"""The whole ALPN list of a tls-alpn-01 validation (RFC 8737 section 3): a longer list is no challenge."""

ACME_INVALID: Final = ".acme.invalid"
"""Names of the retired tls-sni-01 and -02 validations, which private CAs still use."""

REJECT: Final = "reject"
"""What stands in the place of a backend's name to refuse a connection."""

RESPONDER: Final = "<ACME>"
"""The backend that answers our validations. No name in a configuration has angle brackets; HAProxy writes those of its
internal proxies so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a connection.

    backend: the name of the backend that gets it, or None when it is refused.
    route: the pattern or the rule that decided; a value from the configuration, safe as a label.
    outcome: how a connection so decided ends: RELAYED or CHALLENGE when all goes well, else the refusal.
    alert: for a refusal, the AlertDescription code a TLS client is told.
    reason: the same in words, for people.
    """

    backend: str | None
    route: str
    outcome: Outcome
    reason: str
    alert: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One `[[routes]]` entry. `sni` patterns are lower case; `alpn` protocol names as bytes, empty for any."""

    sni: tuple[str, ...]
    backend: str
    alpn: tuple[bytes, ...] = ()
    allow: tuple[IPNetwork, ...] = ()
    deny: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRules:
    """Everything a Router decides by; `default_backend`, `no_sni` and `not_tls` are a backend's name or REJECT."""

    routes: tuple[Route, ...] = ()
    default_backend: str
    no_sni: str = "default"
    not_tls: str = REJECT


class Networks:
    """A set of networks that answers whether an address is in one of them.

    One dictionary access for each prefix length in use, so that a list of a hundred thousand networks costs no more
    than a short one.
    """

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            by_length.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
        self._by_length = [(version, shift, prefixes) for (version, shift), prefixes in by_length.items()]

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def __contains__(self, address: str) -> bool:
        """Whether the IP address, given as text, is in one of the networks; False for text that is no address."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        version, value = parsed.version, int(parsed)
        return any(version == wanted and value >> shift in prefixes for wanted, shift, prefixes in self._by_length)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A route as one pattern of it leads to it, with both its decisions made beforehand."""

    accept: Decision
    refuse: Decision
    allow: Networks
    deny: Networks

    def decide(self, client: str) -> Decision:
        if self.deny and client in self.deny:
            return self.refuse
        if self.allow and client not in self.allow:
            return self.refuse
        return self.accept


@dataclass(slots=True)
class _Candidates:
    """The routes of one pattern: by protocol, and the one that takes any."""

    by_protocol: dict[bytes, _Candidate] = field(default_factory=dict)
    any_protocol: _Candidate | None = None

    def choose(self, alpn: Sequence[bytes]) -> _Candidate | None:
        if self.by_protocol:
            for protocol in alpn:
                if (candidate := self.by_protocol.get(protocol)) is not None:
                    return candidate
        return self.any_protocol


class Router:
    """Decides by fixed rules; a reload makes a new one.

    `challenge` tells whether a validation of ours is pending for a name (lower case). It is asked only for
    connections that look like a validation, and the answer sends them to the backend named `responder`.
    """

    def __init__(
        self, rules: RoutingRules, *, challenge: Callable[[str], bool] = lambda _: False, responder: str = RESPONDER
    ) -> None:
        self._exact: dict[str, _Candidates] = {}
        self._one_label: dict[str, _Candidates] = {}
        self._suffix: dict[str, _Candidates] = {}
        for route in rules.routes:
            self._add(route)
        self._challenge = challenge
        self._responder = Decision(
            backend=responder, route="acme", outcome=Outcome.CHALLENGE, reason="an ACME validation of ours is pending"
        )
        self._default = _fallback(
            rules.default_backend,
            "default_backend",
            "no route matches the server name",
            Outcome.NO_ROUTE,
            AlertDescription.UNRECOGNIZED_NAME,
        )
        self._no_sni = _no_sni(rules)
        self._not_tls = _fallback(rules.not_tls, "not_tls", "not TLS", Outcome.NOT_TLS, None)

    def _add(self, route: Route) -> None:
        allow, deny = Networks(route.allow), Networks(route.deny)
        for pattern in route.sni:
            candidate = _Candidate(
                accept=Decision(
                    backend=route.backend, route=pattern, outcome=Outcome.RELAYED, reason=_words(pattern, route.alpn)
                ),
                refuse=Decision(
                    backend=None,
                    route=pattern,
                    outcome=Outcome.REJECTED,
                    reason=f"{_words(pattern, route.alpn)}, but the client's address is not allowed",
                    alert=AlertDescription.ACCESS_DENIED,
                ),
                allow=allow,
                deny=deny,
            )
            if pattern.startswith("*."):
                candidates = self._one_label.setdefault(pattern[2:], _Candidates())
            elif pattern.startswith("."):
                candidates = self._suffix.setdefault(pattern[1:], _Candidates())
            else:
                candidates = self._exact.setdefault(pattern, _Candidates())
            for protocol in route.alpn:
                candidates.by_protocol[protocol] = candidate
            if not route.alpn:
                candidates.any_protocol = candidate

    def not_tls(self) -> Decision:
        """For a connection whose first bytes are not TLS."""
        return self._not_tls

    def tls(self, name: str | None, alpn: tuple[bytes, ...], client: str) -> Decision:
        """For a ClientHello with this host name (lower case, None without a usable one), from this address."""
        if name is None:
            return self._no_sni
        if alpn == ACME_TLS_1 and self._challenge(name):
            return self._responder
        if name.endswith(ACME_INVALID):
            return self._responder if self._challenge(name) else _NO_CHALLENGE
        if (candidates := self._exact.get(name)) and (candidate := candidates.choose(alpn)):
            return candidate.decide(client)
        if self._suffix or self._one_label:
            return self._by_parents(name, alpn, client)
        return self._default

    def _by_parents(self, name: str, alpn: tuple[bytes, ...], client: str) -> Decision:
        parent = name.partition(".")[2]
        levels: list[tuple[Mapping[str, _Candidates], str]] = [(self._suffix, name), (self._one_label, parent)]
        for table, key in levels:
            if (candidates := table.get(key)) and (candidate := candidates.choose(alpn)):
                return candidate.decide(client)
        while parent:
            if (candidates := self._suffix.get(parent)) and (candidate := candidates.choose(alpn)):
                return candidate.decide(client)
            parent = parent.partition(".")[2]
        return self._default


_NO_CHALLENGE: Final = Decision(
    backend=None,
    route="acme.invalid",
    outcome=Outcome.REJECTED,
    reason="*.acme.invalid, and no validation of ours is pending for it",
    alert=AlertDescription.UNRECOGNIZED_NAME,
)


def _words(pattern: str, alpn: tuple[bytes, ...]) -> str:
    protocols = " or ".join(protocol.decode("ascii", "backslashreplace") for protocol in alpn)
    return f'the route "{pattern}"' + (f" for {protocols}" if protocols else "")


def _fallback(backend: str, key: str, condition: str, refusal: Outcome, alert: int | None) -> Decision:
    if backend == REJECT:
        return Decision(
            backend=None, route=key, outcome=refusal, reason=f"{condition}, and {key} is reject", alert=alert
        )
    return Decision(backend=backend, route=key, outcome=Outcome.RELAYED, reason=f"{condition}: {key}")


def _no_sni(rules: RoutingRules) -> Decision:
    condition = "no usable server name"
    # RFC 8446 section 9.2: a server that insists on a name answers missing_extension.
    if rules.no_sni == "default":
        return _fallback(
            rules.default_backend,
            "default_backend",
            condition,
            Outcome.NO_ROUTE,
            AlertDescription.MISSING_EXTENSION,
        )
    return _fallback(rules.no_sni, "no_sni", condition, Outcome.REJECTED, AlertDescription.MISSING_EXTENSION)
