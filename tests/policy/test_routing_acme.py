"""Which connections are ACME validations of ours, and which only look like one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from sniproxy.config.load import parse
from sniproxy.errors import ConfigError
from sniproxy.model import Outcome
from sniproxy.policy.routing import ACME_TLS_1, REJECT, RESPONDER, Decision, Router, RoutingRules
from sniproxy.wire.client_hello import parse_client_hello
from sniproxy.wire.tls import AlertDescription
from tests.support import hellos
from tests.support.routes import CLIENT, chosen, networks, router, to


class Asked:
    """Says that a validation is pending for some names, and remembers for which it was asked."""

    def __init__(self, *pending: str) -> None:
        self.pending = pending
        self.names: list[str] = []

    def __call__(self, name: str) -> bool:
        self.names.append(name)
        return name in self.pending


def test_a_pending_validation_goes_to_the_responder() -> None:
    """RFC 8737 section 3: the list holds the single protocol acme-tls/1, the name is the one to validate."""
    asked = Asked("example.com")
    decision = router(to("example.com"), challenge=asked).tls("example.com", ACME_TLS_1, CLIENT)

    assert decision == Decision(
        backend="acme", route="acme", outcome=Outcome.CHALLENGE, reason="an ACME validation of ours is pending"
    )


def test_the_responder_has_a_name_that_no_backend_can_have() -> None:
    """HAProxy calls its internal proxies so: <HTTPCLIENT>, <OCSP-UPDATE>."""
    decider = Router(RoutingRules(default_backend="haproxy"), challenge=Asked("example.com"))
    assert chosen(decider, "example.com", *ACME_TLS_1) == RESPONDER

    with pytest.raises(ConfigError, match="cannot name a backend"):
        parse(f'[backends."{RESPONDER}"]\nservers = ["127.0.0.1:1"]\n', file="x")


@pytest.mark.parametrize("dot", ["", "."])
@pytest.mark.parametrize("address", ["192.0.2.7", "255.255.255.255", "2001:db8::1", "::"])
def test_a_validation_of_an_address_goes_to_the_responder(address: str, dot: str) -> None:
    """RFC 8738 section 6: the name is the address below in-addr.arpa or ip6.arpa; Go's ReverseAddr ends it in a dot."""
    name = ip_address(address).reverse_pointer
    sent = hellos.client_hello(hellos.server_name(name + dot), hellos.alpn(*ACME_TLS_1))
    hello = parse_client_hello(sent)
    assert hello.host_name == name

    assert router(challenge=Asked(name)).tls(hello.host_name, hello.alpn, CLIENT).outcome is Outcome.CHALLENGE
    assert router(challenge=Asked("7.0.0.0")).tls(hello.host_name, hello.alpn, CLIENT).backend == "fallback"


def test_a_pending_address_is_answered_to_validations_only() -> None:
    """RFC 8737 section 3: without the protocol it is a name like any other."""
    name = ip_address("192.0.2.7").reverse_pointer

    assert chosen(router(to(name), challenge=Asked(name)), name, b"h2") == name


def test_a_validation_that_is_not_ours_follows_its_name() -> None:
    """Traefik's acmeTLSPassthrough: a backend may have an ACME client of its own (RFC 8737 section 3)."""
    decider = router(
        to("example.com"), to("own.example", backend="own", alpn=ACME_TLS_1), challenge=Asked("other.example")
    )

    assert chosen(decider, "example.com", *ACME_TLS_1) == "example.com"
    assert chosen(decider, "own.example", *ACME_TLS_1) == "own"
    assert chosen(decider, "unknown.example", *ACME_TLS_1) == "fallback"


def test_a_pending_validation_goes_before_a_route_for_its_protocol() -> None:
    """RFC 8737 section 3: only who has the key authorization can answer, and while it is pending that is us."""
    decider = router(
        to("example.com", alpn=ACME_TLS_1), to("example.com", backend="web"), challenge=Asked("example.com")
    )

    assert chosen(decider, "example.com", *ACME_TLS_1) == "acme"


def test_a_validation_comes_from_anywhere() -> None:
    """Let's Encrypt, "Multi-Perspective Validation": a CA's addresses are not announced, so no allow list may apply."""
    refusals = ({"allow": networks("198.51.100.0/24")}, {"deny": networks("0.0.0.0/0")})
    for refusal in refusals:
        decider = router(to("example.com", **refusal), challenge=Asked("example.com"))

        assert chosen(decider, "example.com", *ACME_TLS_1) == "acme"
        assert chosen(decider, "example.com", b"h2") is None


@pytest.mark.parametrize(
    "offered",
    [
        (b"h2", b"acme-tls/1"),
        (b"acme-tls/1", b"h2"),
        (b"acme-tls/1", b"acme-tls/1"),
        (b"ACME-TLS/1",),
        (b"acme-tls/1 ",),
        (b" acme-tls/1",),
        (b"acme-tls/2",),
        (b"acme-tls/1\0",),
        (b"acme-tls",),
        (b"h2",),
        (),
    ],
)
def test_anything_else_than_that_one_protocol_is_no_validation(offered: tuple[bytes, ...]) -> None:
    """RFC 8737 section 3: an ALPN extension "with the single protocol name"; RFC 7301: names match by octet."""
    asked = Asked("example.com")

    assert chosen(router(to("example.com"), challenge=asked), "example.com", *offered) == "example.com"
    assert asked.names == []


def test_a_validation_without_a_name_is_a_connection_without_a_name() -> None:
    """RFC 8737 section 3: a validation has a server_name extension, with the name to validate."""
    asked = Asked("", "None")

    assert chosen(router(challenge=asked, no_sni="nameless"), None, *ACME_TLS_1) == "nameless"
    assert asked.names == []


@pytest.mark.parametrize("alpn", [(), (b"h2",), ACME_TLS_1])
@pytest.mark.parametrize("name", ["a.acme.invalid", "ab12.cd34.acme.invalid", "x.y.z.acme.invalid"])
def test_a_name_below_acme_invalid_is_answered_while_pending_and_else_refused(
    name: str, alpn: tuple[bytes, ...]
) -> None:
    """RFC 8555's draft 07 section 8.3 (tls-sni-02); tcpproxy's acmeMatch asked every backend for any such name."""
    routes = (to(".invalid"), to(".acme.invalid"), to(name))

    assert chosen(router(*routes, challenge=Asked(name)), name, *alpn) == "acme"
    assert router(*routes, challenge=Asked("other.acme.invalid")).tls(name, alpn, CLIENT) == Decision(
        backend=None,
        route="acme.invalid",
        outcome=Outcome.REJECTED,
        reason="*.acme.invalid, and no validation of ours is pending for it",
        alert=AlertDescription.UNRECOGNIZED_NAME,
    )


@pytest.mark.parametrize("sent", ["EXAMPLE.Acme.INVALID", "example.acme.invalid.", "Example.acme.invalid"])
def test_a_name_below_acme_invalid_is_known_in_any_case(sent: str) -> None:
    """RFC 6066 section 3, "case-insensitive"; GHSA-9cr8-q42q-g8m7."""
    hello = parse_client_hello(hellos.client_hello(hellos.server_name(sent)))

    assert router(challenge=Asked("example.acme.invalid")).tls(hello.host_name, (), CLIENT).outcome is Outcome.CHALLENGE
    assert router(challenge=Asked()).tls(hello.host_name, (), CLIENT).outcome is Outcome.REJECTED


@pytest.mark.parametrize(
    "sent",
    [
        "xacme.invalid",
        "acme.invalid",
        "acme.invalid.",
        "acme.invalid.example.org",
        "..acme.invalid",
        ".acme.invalid",
        "a.acme.invalid..",
    ],
)
def test_a_name_that_only_looks_like_acme_invalid_is_none(sent: str) -> None:
    """RFC 1035 section 2.3.1: labels are between dots, and none is empty."""
    hello = parse_client_hello(hellos.client_hello(hellos.server_name(sent)))
    asked = Asked(sent, sent.strip("."))

    assert router(challenge=asked).tls(hello.host_name, (), CLIENT).backend == "fallback"
    assert asked.names == []


def test_without_an_acme_client_nothing_is_pending() -> None:
    """A proxy that issues nothing lets every validation follow its name (RFC 8737 section 3)."""
    decider = Router(RoutingRules(routes=(to("example.com"),), default_backend=REJECT))

    assert chosen(decider, "example.com", *ACME_TLS_1) == "example.com"
    assert chosen(decider, "a.acme.invalid") is None
