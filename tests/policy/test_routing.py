"""Which backend a connection gets: by name, by protocol, by client, and without a route."""

from __future__ import annotations

import pytest

from sniproxy.model import Outcome
from sniproxy.policy.routing import REJECT, Decision, Route
from sniproxy.wire.client_hello import parse_client_hello
from sniproxy.wire.tls import AlertDescription
from tests.support import hellos
from tests.support.routes import CLIENT, chosen, networks, router, to

# -- names

SEVERAL = (
    to("git.example.com"),
    to(".git.example.com"),
    to("*.example.com"),
    to(".example.com"),
    to(".com"),
    to("*.dev.example.com"),
    to(".deep.dev.example.com"),
)


@pytest.mark.parametrize("routes", [SEVERAL, SEVERAL[::-1]], ids=["in this order", "in the other"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("git.example.com", "git.example.com"),
        ("x.git.example.com", ".git.example.com"),
        ("y.x.git.example.com", ".git.example.com"),
        ("www.example.com", "*.example.com"),
        ("dev.example.com", "*.example.com"),
        ("example.com", ".example.com"),
        ("b.a.example.com", ".example.com"),
        ("a.dev.example.com", "*.dev.example.com"),
        ("b.a.dev.example.com", ".example.com"),
        ("deep.dev.example.com", ".deep.dev.example.com"),
        ("b.a.deep.dev.example.com", ".deep.dev.example.com"),
        ("other.com", ".com"),
        ("com", ".com"),
        ("xexample.com", ".com"),
        ("example.com.evil.example", "fallback"),
        ("com.example", "fallback"),
        ("git", "fallback"),
    ],
)
def test_the_most_specific_pattern_wins_in_any_order(routes: tuple[Route, ...], name: str, pattern: str) -> None:
    """RFC 6125 section 6.4.3: a star is one label; nginx, server_name: exact names first, then the longest."""
    assert chosen(router(*routes), name) == pattern


def test_a_star_stands_for_one_label_and_not_for_none() -> None:
    """RFC 6125 section 6.4.3: *.example.com is neither example.com nor a.b.example.com."""
    decider = router(to("*.example.com"))

    assert chosen(decider, "a.example.com") == "*.example.com"
    assert chosen(decider, "example.com") == "fallback"
    assert chosen(decider, "b.a.example.com") == "fallback"


@pytest.mark.parametrize("sent", ["GIT.EXAMPLE.COM", "Git.Example.Com", "git.example.com.", "GIT.example.com."])
def test_a_name_matches_in_any_case_and_with_the_dot_of_the_root(sent: str) -> None:
    """RFC 6066 section 3, "case-insensitive"; CVE-2026-27588 and GHSA-9cr8-q42q-g8m7: mixed case went round a rule."""
    hello = parse_client_hello(hellos.client_hello(hellos.server_name(sent)))

    assert router(to("git.example.com")).tls(hello.host_name, hello.alpn, CLIENT).backend == "git.example.com"


@pytest.mark.parametrize(
    "sent", ["a/../git.example.com", "git.example.com\n", "192.0.2.1", "git..example.com", " git.example.com"]
)
def test_what_is_no_host_name_goes_where_no_name_goes(sent: str) -> None:
    """RFC 6066 section 3 has host names only; dlundquist/sniproxy 166: an address as name made it call itself."""
    hello = parse_client_hello(hellos.client_hello(hellos.server_name(sent)))

    assert (
        router(to(".com", ".1", "192.0.2.1"), no_sni="nameless").tls(hello.host_name, (), CLIENT).backend == "nameless"
    )


def test_a_route_says_which_pattern_decided() -> None:
    """Prometheus, "Metric and label naming": a label has no unbounded values, so it is one of the configuration."""
    decision = router(to("*.example.com", ".example.net", backend="web")).tls("a.example.net", (), CLIENT)

    assert decision == Decision(
        backend="web", route=".example.net", outcome=Outcome.RELAYED, reason='the route ".example.net"'
    )


# -- protocols

BY_PROTOCOL = (
    to("example.com", backend="any"),
    to("example.com", backend="h2", alpn=(b"h2",)),
    to("example.com", backend="mail", alpn=(b"imap", b"smtp")),
    to(".example.com", backend="wide"),
)


@pytest.mark.parametrize("routes", [BY_PROTOCOL, BY_PROTOCOL[::-1]], ids=["in this order", "in the other"])
@pytest.mark.parametrize(
    ("offered", "backend"),
    [
        ((), "any"),
        ((b"http/1.1",), "any"),
        ((b"h2",), "h2"),
        ((b"http/1.1", b"h2"), "h2"),
        ((b"h2", b"imap"), "h2"),
        ((b"imap", b"h2"), "mail"),
        ((b"x", b"smtp", b"h2"), "mail"),
        ((b"H2",), "any"),
        ((b"h2 ",), "any"),
    ],
)
def test_under_one_pattern_the_clients_preference_decides(
    routes: tuple[Route, ...], offered: tuple[bytes, ...], backend: str
) -> None:
    """RFC 7301 section 3.1: a list "in descending order of preference", of opaque names."""
    assert router(*routes).tls("example.com", offered, CLIENT).backend == backend


def test_a_pattern_without_a_route_for_the_protocols_leaves_it_to_the_next() -> None:
    """A route with `alpn` takes only who offers one of them (RFC 7301 section 3.1); the name alone is not enough."""
    decider = router(
        to("git.example.com", backend="exact", alpn=(b"h2",)),
        to("*.example.com", backend="star", alpn=(b"imap",)),
        to(".example.com", backend="wide", alpn=(b"smtp",)),
        to(".com", backend="widest"),
    )

    assert chosen(decider, "git.example.com", b"h2") == "exact"
    assert chosen(decider, "git.example.com", b"imap") == "star"
    assert chosen(decider, "git.example.com", b"smtp") == "wide"
    assert chosen(decider, "git.example.com") == "widest"


def test_the_reason_names_the_protocols() -> None:
    """What `explain` prints: the pattern and the protocols of the route, escaped (RFC 7301: any octets)."""
    decision = router(to("example.com", alpn=(b"h2", b"\xff"))).tls("example.com", (b"h2",), CLIENT)

    assert decision.reason == 'the route "example.com" for h2 or \\xff'


# -- clients


@pytest.mark.parametrize(
    ("allow", "deny", "client", "admitted"),
    [
        ((), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.2.255", True),
        (("192.0.2.0/24",), (), "192.0.3.0", False),
        (("192.0.2.0/24",), (), "2001:db8::1", False),
        (("192.0.2.1/32",), (), "192.0.2.1", True),
        (("192.0.2.1/32",), (), "192.0.2.2", False),
        (("0.0.0.0/0",), (), "255.255.255.255", True),
        (("0.0.0.0/0",), (), "::1", False),
        (("::/0",), (), "2001:db8::1", True),
        (("::/0",), (), "192.0.2.1", False),
        (("2001:db8::/32", "192.0.2.0/24"), (), "2001:db8:ffff::1", True),
        (("2001:db8::/32", "192.0.2.0/24"), (), "2001:db9::1", False),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "198.51.100.1", True),
        ((), ("fe80::/10",), "fe80::1%eth0", False),
        (("192.0.2.0/24",), ("192.0.2.128/25",), "192.0.2.1", True),
        (("192.0.2.0/24",), ("192.0.2.128/25",), "192.0.2.200", False),
        (("192.0.2.200/32",), ("192.0.2.128/25",), "192.0.2.200", False),
        ((), ("0.0.0.0/0", "::/0"), "2001:db8::1", False),
        (("192.0.2.0/24",), (), "", False),
        (("192.0.2.0/24",), (), "not an address", False),
        ((), ("192.0.2.0/24",), "not an address", True),
    ],
)
def test_deny_goes_before_allow(allow: tuple[str, ...], deny: tuple[str, ...], client: str, admitted: bool) -> None:
    """RFC 4632 section 3.1: a prefix is the address under its mask; an exception is carved out by deny."""
    decider = router(to("example.com", allow=networks(*allow), deny=networks(*deny)))

    assert chosen(decider, "example.com", client=client) == ("example.com" if admitted else None)


def test_a_client_that_a_route_denies_is_refused_and_not_sent_elsewhere() -> None:
    """RFC 8446 section 6.2: access_denied; a wider route must not be the way round a narrower one."""
    decider = router(to("git.example.com", deny=networks("192.0.2.0/24")), to(".example.com", backend="wide"))

    assert decider.tls("git.example.com", (), CLIENT) == Decision(
        backend=None,
        route="git.example.com",
        outcome=Outcome.REJECTED,
        reason='the route "git.example.com", but the client\'s address is not allowed',
        alert=AlertDescription.ACCESS_DENIED,
    )


# -- without a route


@pytest.mark.parametrize(
    ("rules", "name", "decision"),
    [
        (
            {},
            "other.example",
            Decision(
                backend="fallback",
                route="default_backend",
                outcome=Outcome.RELAYED,
                reason="no route matches the server name: default_backend",
            ),
        ),
        (
            {"default_backend": REJECT},
            "other.example",
            Decision(
                backend=None,
                route="default_backend",
                outcome=Outcome.NO_ROUTE,
                reason="no route matches the server name, and default_backend is reject",
                alert=AlertDescription.UNRECOGNIZED_NAME,
            ),
        ),
        (
            {},
            None,
            Decision(
                backend="fallback",
                route="default_backend",
                outcome=Outcome.RELAYED,
                reason="no usable server name: default_backend",
            ),
        ),
        (
            {"default_backend": REJECT},
            None,
            Decision(
                backend=None,
                route="default_backend",
                outcome=Outcome.NO_ROUTE,
                reason="no usable server name, and default_backend is reject",
                alert=AlertDescription.MISSING_EXTENSION,
            ),
        ),
        (
            {"no_sni": "nameless"},
            None,
            Decision(
                backend="nameless", route="no_sni", outcome=Outcome.RELAYED, reason="no usable server name: no_sni"
            ),
        ),
        (
            {"no_sni": REJECT},
            None,
            Decision(
                backend=None,
                route="no_sni",
                outcome=Outcome.REJECTED,
                reason="no usable server name, and no_sni is reject",
                alert=AlertDescription.MISSING_EXTENSION,
            ),
        ),
    ],
)
def test_what_no_route_takes(rules: dict[str, str], name: str | None, decision: Decision) -> None:
    """RFC 6066 section 3, unrecognized_name; RFC 8446 section 9.2, missing_extension."""
    assert router(to("example.com"), **rules).tls(name, (), CLIENT) == decision


def test_what_is_not_tls_is_refused_without_an_alert_or_goes_to_its_backend() -> None:
    """RFC 8446 section 6: an alert is a TLS record, and nobody else can read it."""
    assert router().not_tls() == Decision(
        backend=None, route="not_tls", outcome=Outcome.NOT_TLS, reason="not TLS, and not_tls is reject"
    )
    assert router(not_tls="ssh").not_tls() == Decision(
        backend="ssh", route="not_tls", outcome=Outcome.RELAYED, reason="not TLS: not_tls"
    )
