"""What holds for any configuration: the slow router agrees, order decides nothing, size costs nothing."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.model import Outcome
from sniproxy.policy.routing import Networks, Route, Router
from tests.support import slow_router
from tests.support.routes import CLIENT, chosen, networks, router, to

often = settings(max_examples=5 * settings().max_examples)


# -- networks

_v4 = st.builds(
    lambda address, length: ip_network((address, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
_v6 = st.builds(
    lambda address, length: ip_network((address.to_bytes(16), length), strict=False),
    st.integers(0, 2**128 - 1),
    st.integers(0, 128),
)


@given(st.lists(_v4 | _v6, max_size=8), st.data())
def test_a_set_of_networks_answers_as_each_of_them_would(members, data: st.DataObject) -> None:
    """RFC 4632 and RFC 4291 prefixes, as Python's ipaddress understands them one by one."""
    anywhere = st.ip_addresses()
    inside = [st.integers(int(one[0]), int(one[-1])).map(type(one[0])) for one in members]
    address = data.draw(st.one_of(anywhere, *inside))

    assert (str(address) in Networks(members)) == any(address in one for one in members)
    assert bool(Networks(members)) == bool(members)


def test_a_hundred_thousand_networks_are_as_few_steps_as_one() -> None:
    """HAProxy's ACL files hold whole countries: what counts is the number of prefix lengths, not of networks."""
    many = Networks(IPv4Network((value << 8, 24)) for value in range(100_000))

    assert len(many._by_length) == 1
    assert str(ip_address(99_999 << 8 | 7)) in many
    assert str(ip_address(100_000 << 8)) not in many


# -- any configuration

_labels = st.sampled_from(("a", "b", "com"))
_names = st.lists(_labels, min_size=1, max_size=4).map(".".join)
_patterns = st.builds("{}{}".format, st.sampled_from(("", "*.", ".")), _names)
_protocols = st.sampled_from((b"h2", b"http/1.1", b"imap"))
_clients = st.sampled_from(("192.0.2.1", "192.0.2.200", "198.51.100.1", "2001:db8::1"))
_networks = st.sampled_from(networks("192.0.2.0/24", "192.0.2.128/25", "198.51.100.0/24", "2001:db8::/32", "0.0.0.0/0"))


@st.composite
def route_lists(draw: st.DrawFn) -> list[Route]:
    """Routes of which no two claim the same pattern for the same protocol, as the configuration demands."""
    routes: list[Route] = []
    taken: set[tuple[str, bytes | None]] = set()
    for number in range(draw(st.integers(0, 8))):
        alpn = tuple(draw(st.lists(_protocols, max_size=2, unique=True)))
        patterns = draw(st.lists(_patterns, min_size=1, max_size=3, unique=True))
        claims = {(pattern, protocol) for pattern in patterns for protocol in alpn or (None,)}
        if claims & taken:
            continue
        taken |= claims
        allow, deny = (tuple(draw(st.lists(_networks, max_size=2))) for _ in range(2))
        routes.append(Route(sni=tuple(patterns), backend=f"backend{number}", alpn=alpn, allow=allow, deny=deny))
    return routes


requests = st.lists(
    st.tuples(_names, st.lists(_protocols, max_size=3, unique=True).map(tuple), _clients), min_size=1, max_size=20
)


@often
@given(route_lists(), requests)
def test_every_decision_is_that_of_the_slow_router(routes, asked) -> None:
    """All patterns looked at one by one (RFC 6125 section 6.4.3 for the star) give the same backend or refusal."""
    decider = router(*routes)
    for name, alpn, client in asked:
        decision = decider.tls(name, alpn, client)

        expected = slow_router.decide(routes, name, alpn, client) or ("default_backend", "fallback")
        assert (decision.route, decision.backend) == expected
        assert decision.outcome is (Outcome.RELAYED if decision.backend else Outcome.REJECTED)
        assert (decision.alert is None) == (decision.backend is not None)


@often
@given(route_lists(), requests, st.randoms(use_true_random=False))
def test_the_order_of_the_routes_decides_nothing(routes, asked, chance) -> None:
    """HAProxy's use_backend takes the first that matches; here two orders of a file never differ."""
    shuffled = [
        Route(
            sni=route.sni[::-1],
            backend=route.backend,
            alpn=route.alpn[::-1],
            allow=route.allow[::-1],
            deny=route.deny[::-1],
        )
        for route in routes
    ]
    chance.shuffle(shuffled)
    one, other = router(*routes), router(*shuffled)
    for name, alpn, client in asked:
        first, second = one.tls(name, alpn, client), other.tls(name, alpn, client)

        assert (first.backend, first.route, first.outcome, first.alert) == (
            second.backend,
            second.route,
            second.outcome,
            second.alert,
        )


class Counted(dict[str, Any]):
    """A dictionary that counts how often it is asked."""

    asked = 0

    def get(self, *arguments: Any) -> Any:
        Counted.asked += 1
        return super().get(*arguments)


def lookups(decider: Router, name: str) -> int:
    """How many dictionary accesses a decision takes."""
    decider._exact = Counted(decider._exact)
    decider._one_label = Counted(decider._one_label)
    decider._suffix = Counted(decider._suffix)
    Counted.asked = 0
    decider.tls(name, (b"h2",), CLIENT)
    return Counted.asked


def with_names(number: int) -> Router:
    """A third of them exact, a third one label deep, a third of any depth."""
    return router(
        to(*(f"name{n}.example.com" for n in range(0, number, 3)), backend="exact"),
        to(*(f"*.sub{n}.example.com" for n in range(0, number, 3)), backend="star"),
        to(*(f".deep{n}.example.com" for n in range(0, number, 3)), backend="wide"),
    )


def test_a_hundred_thousand_names_cost_no_more_look_ups_than_ten() -> None:
    """CVE-2026-27588 lay in a second way of matching for more than 100 names: here there is one, with a bound."""
    few, many = with_names(10), with_names(100_000)
    names = ("name6.example.com", "x.sub6.example.com", "a.b.c.d.deep6.example.com", "a.b.c.unknown", "unknown")

    assert [chosen(few, name) for name in names] == ["exact", "star", "wide", "fallback", "fallback"]
    assert [chosen(many, name) for name in names] == ["exact", "star", "wide", "fallback", "fallback"]
    for name in names:
        assert lookups(few, name) == lookups(many, name) <= 3 + name.count(".")


def test_exact_names_alone_cost_one_look_up() -> None:
    """Most configurations have no patterns, and then the parents of a name are nobody's (RFC 1034 section 3.1)."""
    assert lookups(router(to("example.com")), "a.b.c.d.example.com") == 1
