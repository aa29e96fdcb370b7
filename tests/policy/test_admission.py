"""How many connections one client may have."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.policy import admission
from sniproxy.policy.admission import Admission, client_key

often = settings(max_examples=5 * settings().max_examples)


def admitted(limits: Admission, *addresses: str, now: float = 0.0) -> list[bool]:
    return [limits.admit(address, now) for address in addresses]


# -- who is one client


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:0:1::", "2001:db8:0:0:2::", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("2001:db8::1", "2001:0DB8:0:0::2", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "192.0.2.1", False),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_64(one: str, other: str, same: bool) -> None:
    """RFC 6177 section 2: a site is given a /64 at least (renaudallard/sniproxy 0.13.5)."""
    assert (client_key(one) == client_key(other)) is same


def test_rotating_inside_a_64_is_no_way_round_the_limit() -> None:
    """RFC 8981: a host may have as many temporary addresses as it likes below its prefix."""
    limits = Admission(max_connections=2, max_rate=0)

    assert admitted(limits, *(f"2001:db8::{n:x}" for n in range(5))) == [True, True, False, False, False]
    assert admitted(limits, "2001:db8:0:1::1") == [True]


# -- connections at once


def test_without_limits_nobody_is_refused() -> None:
    """HAProxy's manual, server "maxconn": 0 means unlimited; callers may spare themselves the counting."""
    limits = Admission(max_connections=0, max_rate=0)

    assert not limits.limits
    assert all(admitted(limits, *["192.0.2.1"] * 1000))


@pytest.mark.parametrize(("connections", "rate"), [(1, 0), (0, 1), (1, 1)])
def test_any_limit_is_a_limit(connections: int, rate: int) -> None:
    """Either of the two is reason enough to count."""
    assert Admission(max_connections=connections, max_rate=rate).limits


def test_a_client_that_leaves_makes_room_for_itself() -> None:
    """HAProxy's manual, "conn_cur": what counts is how many there are now."""
    limits = Admission(max_connections=1, max_rate=0)

    assert admitted(limits, "192.0.2.1", "192.0.2.1", "192.0.2.2") == [True, False, True]
    limits.leave("192.0.2.1")
    assert admitted(limits, "192.0.2.1", "192.0.2.2") == [True, False]


def test_a_refused_connection_is_not_counted() -> None:
    """Each admitted one is answered by one `leave`; a refused one by none."""
    limits = Admission(max_connections=1, max_rate=0)
    admitted(limits, *["192.0.2.1"] * 10)
    limits.leave("192.0.2.1")

    assert admitted(limits, "192.0.2.1") == [True]


def test_nothing_is_remembered_of_clients_that_are_gone() -> None:
    """HAProxy's threat model, "unbounded allocation": without a rate there is nothing to remember."""
    limits = Admission(max_connections=3, max_rate=0)
    for n in range(1000):
        address = f"10.0.{n >> 8}.{n & 255}"
        limits.admit(address, 0.0)
        limits.leave(address)

    assert not limits._clients


_steps = st.lists(
    st.tuples(
        st.sampled_from(("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1")), st.booleans()
    ),
    max_size=60,
)


@often
@given(_steps, st.integers(1, 3))
def test_any_coming_and_going_is_counted_as_a_slow_counter_would(steps: list[tuple[str, bool]], limit: int) -> None:
    """A list of who is there, counted anew for each who comes: the same answers, for any order of events."""
    limits = Admission(max_connections=limit, max_rate=0)
    present: list[str] = []
    for address, comes in steps:
        if comes:
            there = sum(client_key(one) == client_key(address) for one in present)

            assert limits.admit(address, 0.0) is (there < limit)
            present += [address] if there < limit else []
        elif address in present:
            present.remove(address)
            limits.leave(address)

    assert len(limits._clients) == len({client_key(one) for one in present})


# -- connections a second


def test_a_rate_is_new_connections_within_a_second() -> None:
    """HAProxy's manual, "conn_rate": connections over a period, whether they are still there or not."""
    limits = Admission(max_connections=0, max_rate=2)

    assert admitted(limits, *["192.0.2.1"] * 3, now=10.0) == [True, True, False]
    limits.leave("192.0.2.1")
    limits.leave("192.0.2.1")
    assert admitted(limits, "192.0.2.1", now=10.9) == [False]
    assert admitted(limits, *["192.0.2.1"] * 3, now=11.0) == [True, True, False]


def test_the_rate_of_one_client_is_not_that_of_another() -> None:
    """RFC 6177 section 2: one site, one count."""
    limits = Admission(max_connections=0, max_rate=1)

    assert admitted(limits, "192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2") == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_both_limits_hold_together() -> None:
    """Whichever is reached first refuses."""
    limits = Admission(max_connections=3, max_rate=2)

    assert admitted(limits, *["192.0.2.1"] * 3, now=0.0) == [True, True, False]
    assert admitted(limits, *["192.0.2.1"] * 3, now=1.0) == [True, False, False]


@often
@given(st.lists(st.integers(0, 700), min_size=1, max_size=60), st.integers(1, 4))
def test_a_rate_is_never_exceeded_twofold_and_never_refuses_too_early(pauses: list[int], rate: int) -> None:
    """Windows of a second: at most twice the rate in any second, and never a refusal below the rate in one."""
    limits, now = Admission(max_connections=0, max_rate=rate), 0.0
    taken: list[float] = []
    for pause in pauses:
        now += pause / 1000
        recent = sum(now - at < 1.0 for at in taken)
        if limits.admit("192.0.2.1", now):
            taken.append(now)
            limits.leave("192.0.2.1")
            assert recent < 2 * rate
        else:
            assert recent >= rate


# -- a full table


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_CLIENTS", 3)


@pytest.mark.usefixtures("small_table")
def test_a_full_table_refuses_the_unknown_and_nobody_else() -> None:
    """renaudallard/sniproxy 0.13.5: its table failed open when full, for who had enough addresses."""
    limits = Admission(max_connections=2, max_rate=0)

    assert admitted(limits, "10.0.0.1", "10.0.0.2", "10.0.0.3") == [True] * 3
    assert admitted(limits, "10.0.0.4", "10.0.0.1", "10.0.0.2", "10.0.0.4", now=5.0) == [False, True, True, False]
    limits.leave("10.0.0.3")
    assert admitted(limits, "10.0.0.4", now=5.0) == [True]


@pytest.mark.usefixtures("small_table")
def test_a_full_table_forgets_who_is_gone_and_no_longer_counted() -> None:
    """Addresses that came once must not keep others out for ever."""
    limits = Admission(max_connections=0, max_rate=5)
    admitted(limits, "10.0.0.1", "10.0.0.2", "10.0.0.3", now=0.0)
    limits.leave("10.0.0.1")
    limits.leave("10.0.0.2")

    assert admitted(limits, "10.0.0.4", now=0.5) == [False]
    assert admitted(limits, "10.0.0.4", "10.0.0.5", "10.0.0.6", now=1.5) == [True, True, False]
    assert admitted(limits, "10.0.0.3", now=1.5) == [True]


class Counted(dict[Any, Any]):
    """A dictionary that counts how often it is walked through."""

    walks = 0

    def items(self) -> Any:
        Counted.walks += 1
        return super().items()


@pytest.mark.usefixtures("small_table")
def test_a_full_table_is_walked_through_once_a_second_at_most() -> None:
    """HAProxy's threat model, "asymmetric": who fills the table must not make each connection cost a walk."""
    limits = Admission(max_connections=1, max_rate=1)
    limits._clients = Counted()
    Counted.walks = 0
    for n in range(100):
        limits.admit(f"10.0.0.{n}", n / 50)

    assert len(limits._clients) == admission.MAX_CLIENTS
    assert Counted.walks == 2


@pytest.mark.usefixtures("small_table")
@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.sampled_from((0, 400, 1100))), max_size=60),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_the_table_never_grows_beyond_its_size_and_never_loses_a_connection(
    steps: list[tuple[int, bool, int]], connections: int, rate: int
) -> None:
    """HAProxy's threat model, "unbounded allocation"; and who was admitted can always leave."""
    limits, present, now = Admission(max_connections=connections, max_rate=rate), Counter[str](), 0.0
    for number, comes, pause in steps:
        address, now = f"10.0.0.{number}", now + pause / 1000
        if comes:
            present[address] += limits.admit(address, now)
        elif present[address]:
            present[address] -= 1
            limits.leave(address)

        assert len(limits._clients) <= admission.MAX_CLIENTS
        assert not connections or max(present.values(), default=0) <= connections
